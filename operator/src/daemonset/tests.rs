//! Tests.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use sallyport_runtime::log::Format;

use super::*;
use crate::args::PullPolicy;

fn args() -> AgentArgs {
    AgentArgs {
        agent_image: "sallyport/node-agent:1".into(),
        agent_image_pull_policy: PullPolicy::Never,
        agent_privileged: false,
        agent_log_format: Format::Json,
    }
}

fn pod_of(set: &DaemonSet) -> Value {
    serde_json::to_value(set.spec.as_ref().unwrap().template.spec.as_ref().unwrap()).unwrap()
}

#[test]
fn the_agent_gets_two_capabilities_and_nothing_more() {
    let pod = pod_of(&daemon_set("sallyport", &args()));
    assert_eq!(
        pod["containers"][0]["securityContext"],
        json!({ "runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] } })
    );
    assert_eq!(pod["securityContext"], json!({ "seccompProfile": { "type": "RuntimeDefault" } }));
    for namespace in ["hostPID", "hostIPC"] {
        assert!(pod.get(namespace).is_none(), "{namespace}");
    }
    let paths: Vec<&str> =
        pod["volumes"].as_array().unwrap().iter().map(|volume| volume["hostPath"]["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/proc/sys/net", "/run/xtables.lock", "/var/lib/sallyport"]);
}

#[test]
fn it_runs_on_labelled_nodes_only_and_whatever_their_taints() {
    let pod = pod_of(&daemon_set("sallyport", &args()));
    assert_eq!(pod["nodeSelector"], json!({ AGENT_LABEL: "" }));
    assert_eq!(pod["tolerations"], json!([{ "operator": "Exists" }]));
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["containers"][0]["imagePullPolicy"], "Never");
    assert_eq!(pod["containers"][0]["readinessProbe"]["httpGet"]["host"], "127.0.0.1", "on the node itself only");
    assert!(pod["containers"][0]["livenessProbe"].is_null(), "whoever takes the address could have the agent killed");
}

#[test]
fn any_other_argument_is_another_template() {
    let wanted = daemon_set("sallyport", &args());
    assert!(is_same(&daemon_set("sallyport", &args()), &wanted));
    let changes: [fn(&mut AgentArgs); 4] = [
        |args| args.agent_image = "sallyport/node-agent:2".into(),
        |args| args.agent_image_pull_policy = PullPolicy::Always,
        |args| args.agent_privileged = true,
        |args| args.agent_log_format = Format::Text,
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut other = args();
        change(&mut other);
        assert!(!is_same(&daemon_set("sallyport", &other), &wanted), "{number}");
    }
    assert!(!is_same(&DaemonSet::default(), &wanted));
}
