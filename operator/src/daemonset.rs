//! The `DaemonSet` that runs the agents: on labelled nodes, with as few privileges as the work needs.
//!
//! Its pods are those of the chart's `_agent-pods.tpl`, field by field: the API server refuses any others.

use std::collections::{BTreeMap, BTreeSet};

use clap::ValueEnum;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use sallyport_api::names::{AGENT_LABEL, AGENT_NAME, OPERATOR_NAME};
use serde_json::{Value, json};

use crate::args::AgentArgs;

/// Annotation by which versions before knew the template. Such a version, gone back to, must not find what it wrote once.
const TEMPLATE: &str = "sallyport.dev/template";

/// Where the agent's probes and metrics answer: on the node itself only.
const ADMIN: (&str, i32) = ("127.0.0.1", 9478);

/// The one `DaemonSet`, in `namespace`.
pub(crate) fn daemon_set(namespace: &str, args: &AgentArgs) -> DaemonSet {
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
    let spec: DaemonSetSpec = serde_json::from_value(spec).expect("the fields above are those of a DaemonSet");
    DaemonSet {
        metadata: ObjectMeta {
            name: Some(AGENT_NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// `existing` with the spec and the labels of `wanted`; all other metadata are those of others.
pub(crate) fn replaced(existing: &DaemonSet, wanted: &DaemonSet) -> DaemonSet {
    let mut whole = DaemonSet { metadata: existing.metadata.clone(), ..wanted.clone() };
    whole.metadata.labels.get_or_insert_default().extend(wanted.metadata.labels.clone().unwrap_or_default());
    whole.metadata.annotations.get_or_insert_default().remove(TEMPLATE);
    whole
}

/// Whether `existing` has the labels of `wanted`.
pub(crate) fn has_labels(existing: &DaemonSet, wanted: &DaemonSet) -> bool {
    let found = existing.metadata.labels.as_ref();
    wanted.metadata.labels.iter().flatten().all(|(key, value)| found.is_some_and(|found| found.get(key) == Some(value)))
}

/// Paths of the fields of the spec that are not the same, and `labels` for those of the `DaemonSet` itself.
pub(crate) fn differing(one: &DaemonSet, other: &DaemonSet) -> Vec<String> {
    let mut paths = Vec::new();
    compare("spec", &json!(one.spec), &json!(other.spec), &mut paths);
    if one.metadata.labels != other.metadata.labels {
        paths.push("labels".to_owned());
    }
    if paths.is_empty() {
        paths.push("a field that this version does not know".to_owned());
    }
    paths
}

fn compare(path: &str, one: &Value, other: &Value, paths: &mut Vec<String>) {
    match (one, other) {
        _ if one == other => {}
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                compare(&format!("{path}.{key}"), &one[key], &other[key], paths);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (one, other)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{index}]"), one, other, paths);
            }
        }
        _ => paths.push(path.to_owned()),
    }
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
            "imagePullPolicy": argument(&args.agent_image_pull_policy),
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
                { "name": "SALLYPORT_LOG_FORMAT", "value": argument(&args.agent_log_format) },
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
fn argument(choice: &impl ValueEnum) -> String {
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
