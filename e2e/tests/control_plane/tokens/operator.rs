//! The operator: what its work takes, and what a token of its account must not do although RBAC cannot tell the two apart.

use anyhow::{Context, Result};
use http::Method;
use sallyport_e2e::control_plane::scene::{AGENT, KINDS, PAYMENTS, SYSTEM, Scene, forward_path, node_path, spec};
use serde_json::{Value, json};

use super::request::Request;

const NODE: &str = "/api/v1/nodes/gw1";
const NODES: &str = "/api/v1/nodes";

fn daemon_sets() -> String {
    format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets")
}

pub fn agents() -> String {
    format!("{}/{AGENT}", daemon_sets())
}

fn leases() -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases")
}

fn pools() -> String {
    format!("{KINDS}/gatewaypools")
}

fn patch(path: &str, body: Value) -> Request {
    Request::new(Method::PATCH, path).body(body)
}

fn label(path: &str, label: &str) -> Request {
    patch(path, json!({ "metadata": { "labels": { label: "" } } }))
}

/// What its work takes, as long as RBAC lets it ask at all.
pub fn work(scene: &Scene) -> Result<Vec<Request>> {
    let forward = forward_path(PAYMENTS, "mysql");
    let same = scene.api.get(&agents())?.context("find the DaemonSet of the agents")?;
    let finalizers = |list: Value| patch(&forward, json!({ "metadata": { "finalizers": list } }));
    Ok(vec![
        Request::new(Method::PUT, &agents()).body(same),
        Request::new(Method::DELETE, &agents()),
        label(NODE, "sallyport.dev/agent"),
        patch(NODE, json!({ "metadata": { "labels": { "sallyport.dev/agent": null } } })),
        finalizers(json!([])),
        finalizers(json!(["sallyport.dev/rules"])),
        patch(&format!("{forward}/status"), json!({ "status": { "hash": "v1:0" } })),
        label(&format!("{}/default", pools()), "test"),
        label(&node_path("gw1"), "test"),
        label(&format!("{}/sallyport-operator", leases()), "test"),
        Request::new(Method::DELETE, &format!("{}/sallyport-agent-gw1", leases())),
    ])
}

/// What the operator must not do.
pub fn beyond(scene: &Scene) -> Result<Vec<Request>> {
    let mut requests = nodes();
    requests.extend(other_objects());
    requests.extend(daemon_set(scene)?);
    Ok(requests)
}

fn nodes() -> Vec<Request> {
    let (labels, rest) =
        ("the operator may change sallyport.dev/agent alone", "the operator may change its labels alone");
    let whole = "the operator may only change Nodes";
    vec![
        label(NODE, "sallyport.dev/gateway2").words(labels),
        patch(NODE, json!({ "metadata": { "labels": { "sallyport.dev/gateway": null } } })).words(labels),
        patch(NODE, json!({ "metadata": { "annotations": { "a": "b" } } })).words(rest),
        patch(NODE, json!({ "metadata": { "finalizers": ["example.com/mine"] } })).words(rest),
        patch(NODE, json!({ "spec": { "unschedulable": true } })).words(rest),
        patch(NODE, json!({ "spec": { "taints": [{ "key": "a", "effect": "NoExecute" }] } })).words(rest),
        patch(&format!("{NODE}/status"), json!({ "status": { "phase": "Terminated" } })).words(rest),
        Request::new(Method::DELETE, NODE).words(whole),
        Request::new(Method::POST, NODES).body(json!({ "metadata": { "name": "gw9" } })).words(whole),
    ]
}

fn other_objects() -> Vec<Request> {
    let forward = forward_path(PAYMENTS, "mysql");
    let finalizer = "the status and the finalizer sallyport.dev/rules alone";
    let pool = "may write the one named default, and delete none";
    let lease = "may write its own Lease, and delete those of agents";
    let named = |name: &str| json!({ "metadata": { "name": name } });
    let new = |kind: &str, spec: Value| json!({ "apiVersion": "sallyport.dev/v1alpha1", "kind": kind, "metadata": { "name": "mine" }, "spec": spec });
    let new_pool = new("GatewayPool", json!({ "nodeSelector": {} }));
    let new_forward = new("PortForward", spec(3307));
    vec![
        patch(&forward, json!({ "spec": { "sources": { "allow": [{ "cidr": "0.0.0.0/0" }] } } })).words(finalizer),
        patch(&forward, json!({ "metadata": { "annotations": { "a": "b" } } })).words(finalizer),
        patch(&forward, json!({ "metadata": { "finalizers": ["example.com/mine"] } })).words(finalizer),
        label(&forward, "test").words(finalizer),
        Request::new(Method::DELETE, &forward).words("may not make or delete PortForwards"),
        Request::new(Method::POST, forward.trim_end_matches("/mysql"))
            .body(new_forward)
            .words("may not make or delete"),
        Request::new(Method::POST, &pools()).body(new_pool).words(pool),
        Request::new(Method::DELETE, &format!("{}/default", pools())).words(pool),
        label(&format!("{}/sallyport-agent-gw1", leases()), "test").words(lease),
        Request::new(Method::POST, &leases()).body(named("kube-controller-manager")).words(lease),
        Request::new(Method::POST, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases")
            .body(named("sallyport-operator"))
            .words(lease),
    ]
}

/// The one `DaemonSet` with one thing changed, and others.
fn daemon_set(scene: &Scene) -> Result<Vec<Request>> {
    let same = scene.api.get(&agents())?.context("find the DaemonSet of the agents")?;
    let pod = "/spec/template/spec";
    let agent = "/spec/template/spec/containers/0";
    let with = |changes: &[(String, Value)]| {
        let mut changed = same.clone();
        for (pointer, value) in changes {
            let (above, key) = pointer.rsplit_once('/').context("split a pointer")?;
            match changed.pointer_mut(above).with_context(|| format!("find {above}"))? {
                Value::Array(list) => list.push(value.clone()),
                there => there[key] = value.clone(),
            }
        }
        anyhow::Ok(changed)
    };
    let container = json!({ "name": "second", "image": "sallyport/node-agent:test" });
    let volume = |kind: &str, value: Value| json!({ "name": "mine", kind: value });
    let shell = json!({ "exec": { "command": ["/bin/sh"] } });
    let of_secret = json!({ "secretKeyRef": { "name": "mine", "key": "a" } });
    let unconfined = json!({ "type": "Unconfined" });
    let template = "/spec/template/metadata";
    let (labels, strategy, own) = ("must have the labels of", "must be replaced one at a time", "its own labels alone");
    let table = [
        (format!("{agent}/image"), json!("example.com/mine:1"), "and differ in containers, containers[0].image"),
        (format!("{pod}/containers/-"), container.clone(), "and differ in containers"),
        (format!("{pod}/initContainers"), json!([container]), "and differ in initContainers"),
        (format!("{agent}/command"), json!(["/bin/sh"]), "containers[0].command"),
        (format!("{agent}/args"), json!(["run", "--admin=0.0.0.0:9478"]), "containers[0].args"),
        (format!("{agent}/lifecycle"), json!({ "postStart": shell }), "containers[0].lifecycle"),
        (format!("{agent}/livenessProbe"), shell.clone(), "containers[0].livenessProbe"),
        (format!("{agent}/readinessProbe"), shell.clone(), "containers[0].readinessProbe"),
        (format!("{agent}/startupProbe"), shell, "containers[0].startupProbe"),
        (format!("{agent}/readinessProbe/httpGet/host"), json!("10.0.0.1"), "containers[0].readinessProbe"),
        (format!("{agent}/env/-"), json!({ "name": "LD_PRELOAD", "value": "mine.so" }), "containers[0].env"),
        (format!("{agent}/env"), json!([{ "name": "NODE_NAME", "valueFrom": of_secret }]), "containers[0].env"),
        (format!("{agent}/envFrom"), json!([{ "secretRef": { "name": "mine" } }]), "containers[0].envFrom"),
        (format!("{agent}/volumeMounts/0/mountPath"), json!("/usr/sbin"), "containers[0].volumeMounts"),
        (format!("{agent}/securityContext"), json!({ "privileged": true }), "containers[0].securityContext"),
        (format!("{agent}/securityContext/readOnlyRootFilesystem"), json!(null), "containers[0].securityContext"),
        (format!("{agent}/securityContext/capabilities/add/-"), json!("SYS_PTRACE"), "containers[0].securityContext"),
        (format!("{agent}/securityContext/capabilities/drop"), json!([]), "containers[0].securityContext"),
        (format!("{agent}/securityContext/seccompProfile"), unconfined.clone(), "containers[0].securityContext"),
        (format!("{agent}/securityContext/appArmorProfile"), unconfined, "containers[0].securityContext"),
        (
            format!("{agent}/securityContext/seLinuxOptions"),
            json!({ "type": "spc_t" }),
            "containers[0].securityContext",
        ),
        (format!("{pod}/securityContext"), json!({}), "and differ in securityContext"),
        (format!("{pod}/serviceAccountName"), json!("sallyport-operator"), "serviceAccountName"),
        (format!("{pod}/nodeSelector"), json!({ "a": "b" }), "and differ in nodeSelector"),
        (format!("{pod}/nodeName"), json!("gw1"), "and differ in nodeName"),
        (format!("{pod}/hostAliases"), json!([{ "ip": "10.0.0.1", "hostnames": ["a"] }]), "and differ in hostAliases"),
        (format!("{pod}/runtimeClassName"), json!("mine"), "and differ in runtimeClassName"),
        (format!("{pod}/imagePullSecrets"), json!([{ "name": "mine" }]), "and differ in imagePullSecrets"),
        (format!("{pod}/hostPID"), json!(true), "and differ in hostPID"),
        (format!("{pod}/hostIPC"), json!(true), "and differ in hostIPC"),
        (format!("{pod}/volumes/-"), volume("hostPath", json!({ "path": "/", "type": "" })), "and differ in volumes"),
        (format!("{pod}/volumes/-"), volume("secret", json!({ "secretName": "mine" })), "and differ in volumes"),
        (format!("{template}/labels/mine"), json!("1"), labels),
        (format!("{template}/annotations"), json!({ "mine": "1" }), labels),
        ("/spec/minReadySeconds".to_owned(), json!(3600), strategy),
        ("/spec/updateStrategy".to_owned(), json!({ "type": "OnDelete" }), strategy),
        ("/metadata/labels/mine".to_owned(), json!("1"), own),
        ("/metadata/annotations/mine".to_owned(), json!("1"), own),
        ("/metadata/finalizers".to_owned(), json!(["example.com/mine"]), own),
        (
            "/metadata/ownerReferences".to_owned(),
            json!([{ "apiVersion": "v1", "kind": "Node", "name": "gw1", "uid": "1" }]),
            own,
        ),
    ];
    let mut requests = Vec::new();
    for (pointer, value, words) in table {
        let what = format!("{pointer} = {value}");
        let put = Request::new(Method::PUT, &agents());
        requests.push(put.body(with(&[(pointer, value)])?).called(what).words(words));
    }
    let other = [("/metadata".to_owned(), json!({ "name": "mine" }))];
    let alone = "may write the DaemonSet sallyport-node-agent alone";
    let elsewhere = daemon_sets().replace(SYSTEM, PAYMENTS);
    let here = [("/metadata".to_owned(), json!({ "name": AGENT }))];
    requests.push(Request::new(Method::POST, &daemon_sets()).body(with(&other)?).words(alone));
    requests.push(Request::new(Method::POST, &elsewhere).body(with(&here)?).words(alone));
    Ok(requests)
}
