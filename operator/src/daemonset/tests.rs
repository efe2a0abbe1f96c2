//! What the agents' pods may do, where they run, and what a replacement keeps.

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
fn a_replacement_has_the_wanted_spec_and_keeps_what_others_wrote_beside_it() {
    let wanted = daemon_set("sallyport", &args());
    let mut existing = wanted.clone();
    let pod = existing.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    (pod.host_pid, pod.containers[0].image) = (Some(true), Some("other".to_owned()));
    let metadata = &mut existing.metadata;
    metadata.resource_version = Some("7".to_owned());
    metadata.labels = Some(BTreeMap::from([("mine".to_owned(), "1".to_owned())]));
    metadata.annotations = Some([("mine", "2"), (TEMPLATE, "3")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    assert!(!has_labels(&existing, &wanted));
    assert_eq!(
        differing(&existing, &wanted),
        ["spec.template.spec.containers[0].image", "spec.template.spec.hostPID", "labels"]
    );
    let whole = replaced(&existing, &wanted);
    assert_eq!(whole.spec, wanted.spec);
    assert!(has_labels(&whole, &wanted) && whole.metadata.labels.unwrap()["mine"] == "1");
    assert_eq!(whole.metadata.resource_version.unwrap(), "7", "what somebody writes meanwhile is not lost");
    assert_eq!(whole.metadata.annotations.unwrap().into_keys().collect::<Vec<_>>(), ["mine"]);
}
