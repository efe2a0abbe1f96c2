//! The `DaemonSet` that runs the agents: on labelled nodes, with as few privileges as the work needs.

use std::collections::BTreeMap;

use clap::ValueEnum;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use sallyport_api::names::{AGENT_LABEL, AGENT_NAME, OPERATOR_NAME};
use serde_json::{Value, json};

use crate::args::AgentArgs;

/// Annotation with the version of the template, so that it is known without comparing defaults.
const TEMPLATE: &str = "sallyport.dev/template";

/// Where the agent's probes and metrics answer: on the node itself only.
const ADMIN: (&str, i32) = ("127.0.0.1", 9478);

/// The one `DaemonSet`, in `namespace`.
pub fn daemon_set(namespace: &str, args: &AgentArgs) -> DaemonSet {
    let labels = BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), AGENT_NAME.to_owned()),
        ("app.kubernetes.io/part-of".to_owned(), "sallyport".to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), OPERATOR_NAME.to_owned()),
    ]);
    let spec = json!({
        "selector": LabelSelector {
            match_labels: Some(BTreeMap::from([("app.kubernetes.io/name".to_owned(), AGENT_NAME.to_owned())])),
            ..LabelSelector::default()
        },
        "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 0 } },
        "template": { "metadata": { "labels": labels }, "spec": pod(args) },
    });
    let template = spec.to_string();
    let spec: DaemonSetSpec = serde_json::from_value(spec).expect("the fields above are those of a DaemonSet");
    DaemonSet {
        metadata: ObjectMeta {
            name: Some(AGENT_NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(TEMPLATE.to_owned(), sallyport_ruleset::digest::short_id(&template))])),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// Whether `existing` was written from the same template.
pub fn is_same(existing: &DaemonSet, wanted: &DaemonSet) -> bool {
    let template = |set: &DaemonSet| set.metadata.annotations.as_ref().and_then(|all| all.get(TEMPLATE)).cloned();
    template(existing) == template(wanted)
}

fn pod(args: &AgentArgs) -> Value {
    let probe = |path: &str, period: i32| json!({ "httpGet": { "host": ADMIN.0, "port": ADMIN.1, "path": path }, "periodSeconds": period });
    let path = |name: &str, path: &str, kind: &str| json!({ "name": name, "hostPath": { "path": path, "type": kind } });
    json!({
        "serviceAccountName": AGENT_NAME,
        "hostNetwork": true,
        // The API server is reached by address; names are the node's own.
        "dnsPolicy": "Default",
        "priorityClassName": "system-node-critical",
        // Written by the operator alone: a label of the user's would end the agent before it could clean its node.
        "nodeSelector": { AGENT_LABEL: "" },
        "tolerations": [{ "operator": "Exists" }],
        "terminationGracePeriodSeconds": 10,
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": "agent",
            "image": args.agent_image,
            "imagePullPolicy": word(&args.agent_image_pull_policy),
            "args": [
                "run",
                "--node-name=$(NODE_NAME)",
                "--namespace=$(POD_NAMESPACE)",
                "--state-dir=/var/lib/sallyport",
                "--proc-sys=/host/proc/sys",
                format!("--admin={}:{}", ADMIN.0, ADMIN.1),
            ],
            "env": [
                { "name": "NODE_NAME", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                { "name": "POD_NAMESPACE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.namespace" } } },
                { "name": "SALLYPORT_LOG_FORMAT", "value": word(&args.agent_log_format) },
            ],
            "securityContext": security(args.agent_privileged),
            // No liveness probe: whoever takes the address could have the agent killed. It ends by itself when it hangs.
            "readinessProbe": probe("/readyz", 5),
            "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "memory": "256Mi" } },
            "volumeMounts": [
                { "name": "proc-sys-net", "mountPath": "/host/proc/sys/net" },
                { "name": "xtables-lock", "mountPath": "/run/xtables.lock" },
                { "name": "state", "mountPath": "/var/lib/sallyport" },
            ],
        }],
        "volumes": [
            path("proc-sys-net", "/proc/sys/net", "Directory"),
            path("xtables-lock", "/run/xtables.lock", "FileOrCreate"),
            path("state", "/var/lib/sallyport", "DirectoryOrCreate"),
        ],
    })
}

/// How a choice is written on the command line.
fn word(choice: &impl ValueEnum) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn security(privileged: bool) -> Value {
    if privileged {
        return json!({ "runAsUser": 0, "privileged": true, "readOnlyRootFilesystem": true });
    }
    json!({
        "runAsUser": 0,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        // NET_RAW for iptables-legacy, which speaks to the kernel through a raw socket.
        "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] },
    })
}

#[cfg(test)]
mod tests;
