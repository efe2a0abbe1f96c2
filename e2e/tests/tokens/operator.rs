//! The operator: what its work takes, and what a token of its account must not do although RBAC cannot tell the two apart.

use anyhow::{Context, Result};
use http::Method;
use sallyport_e2e::control_plane::scene::{AGENT, KINDS, PAYMENTS, SYSTEM, Scene, forward_path, node_path, spec};
use serde_json::{Value, json};

use crate::request::Request;

const NODE: &str = "/api/v1/nodes/gw1";
const NODES: &str = "/api/v1/nodes";

fn daemon_sets() -> String {
    format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets")
}

fn agents() -> String {
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
    let (alone, env, confined) = ("one container", "may be told their node", "must be confined by");
    let (mounts, capabilities) = ("and nothing else", "NET_ADMIN and NET_RAW and may gain no others");
    let started = "started by their image alone";
    let table = [
        (format!("{agent}/image"), json!("example.com/mine:1"), "image must be sallyport/node-agent:test"),
        (format!("{pod}/containers/-"), container.clone(), alone),
        (format!("{pod}/initContainers"), json!([container]), alone),
        (format!("{agent}/command"), json!(["/bin/sh"]), started),
        (format!("{agent}/args"), json!(["cleanup"]), started),
        (format!("{agent}/lifecycle"), json!({ "postStart": { "exec": { "command": ["/bin/sh"] } } }), started),
        (format!("{agent}/env/-"), json!({ "name": "LD_PRELOAD", "value": "/var/lib/sallyport/mine.so" }), env),
        (format!("{agent}/envFrom"), json!([{ "secretRef": { "name": "mine" } }]), env),
        (
            format!("{agent}/env"),
            json!([{ "name": "NODE_NAME", "valueFrom": { "secretKeyRef": { "name": "mine", "key": "a" } } }]),
            env,
        ),
        (format!("{pod}/serviceAccountName"), json!("sallyport-operator"), "service account sallyport-node-agent"),
        (format!("{pod}/nodeSelector"), json!({ "a": "b" }), "kept to nodes with the label"),
        (format!("{pod}/hostPID"), json!(true), "may not see the host's processes"),
        (format!("{pod}/hostIPC"), json!(true), "may not see the host's processes"),
        (format!("{pod}/volumes/-"), volume("hostPath", json!({ "path": "/", "type": "" })), mounts),
        (format!("{pod}/volumes/-"), volume("hostPath", json!({ "path": "/proc/sys", "type": "" })), mounts),
        (format!("{pod}/volumes/-"), volume("secret", json!({ "secretName": "mine" })), mounts),
        (format!("{pod}/volumes/-"), volume("emptyDir", json!({})), mounts),
        (format!("{agent}/securityContext"), json!({ "privileged": true }), capabilities),
        (format!("{agent}/securityContext"), json!({ "runAsUser": 0 }), capabilities),
        (format!("{agent}/securityContext/capabilities/add/-"), json!("SYS_PTRACE"), capabilities),
        (format!("{agent}/securityContext/capabilities/drop"), json!([]), capabilities),
        (format!("{agent}/securityContext/seccompProfile"), json!({ "type": "Unconfined" }), confined),
        (format!("{agent}/securityContext/appArmorProfile"), json!({ "type": "Unconfined" }), confined),
        (format!("{agent}/securityContext/seLinuxOptions"), json!({ "type": "spc_t" }), confined),
        (format!("{pod}/securityContext/seccompProfile"), json!({ "type": "Unconfined" }), confined),
        (format!("{pod}/securityContext"), json!({}), confined),
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
