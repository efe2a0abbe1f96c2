//! The agent on gw1: what it must be able to do, and what its account must not do for it.

use anyhow::{Result, ensure};
use http::Method;
use sallyport_e2e::control_plane::Api;
use sallyport_e2e::control_plane::scene::{KINDS, SYSTEM, node_path};
use serde_json::{Value, json};

use super::request::Request;

fn leases() -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases")
}

fn lease(node: &str) -> String {
    format!("{}/sallyport-agent-{node}", leases())
}

fn patch(path: &str, body: Value) -> Request {
    Request::new(Method::PATCH, path).body(body)
}

fn status(node: &str) -> Request {
    patch(&format!("{}/status", node_path(node)), json!({ "status": { "failuresTotal": 0 } }))
}

fn label(path: &str) -> Request {
    patch(path, json!({ "metadata": { "labels": { "test": "true" } } }))
}

/// What its work takes.
pub fn does_its_work(gw1: &Api) -> Result<()> {
    status("gw1").is_accepted(gw1)?;
    label(&lease("gw1")).is_accepted(gw1)?;
    for path in ["gatewaynodes", "gatewaynodes/gw2", "forwardslices"] {
        Request::new(Method::GET, &format!("{KINDS}/{path}")).is_accepted(gw1)?;
    }
    // An agent whose Lease is gone makes it anew.
    let answer = create_lease("sallyport-agent-gw1").send(gw1)?;
    ensure!(answer.code == 409, "creating its Lease gave {}, not that it is there: {}", answer.code, answer.message());
    Ok(())
}

fn create_lease(name: &str) -> Request {
    Request::new(Method::POST, &leases()).body(json!({ "metadata": { "name": name } }))
}

/// What is refused at once to a token that names no node.
pub fn of_another_node() -> Request {
    status("gw2")
}

/// What the agent on gw1 must not do.
pub fn beyond() -> Vec<Request> {
    let (own, other) = (node_path("gw1"), node_path("gw2"));
    let of_others = "the agent on node gw1 may write gw1, not gw2";
    let anything = json!({
        "apiVersion": "sallyport.dev/v1alpha1",
        "kind": "GatewayNode",
        "metadata": { "name": "gw3" },
        "spec": { "pool": "default", "state": "Active", "addresses": [], "ipForward": "Manage", "backend": "Auto" },
    });
    vec![
        status("gw2").words(of_others),
        label(&other).words(of_others),
        Request::new(Method::DELETE, &other).words(of_others),
        label(&own).words("of its GatewayNode an agent may write the status alone"),
        patch(&own, json!({ "spec": { "reservedPorts": [] , "state": "Retired" } })).words("the status alone"),
        Request::new(Method::DELETE, &own).words("an agent may delete nothing"),
        Request::new(Method::DELETE, &format!("{KINDS}/gatewaynodes")).words("may"),
        Request::new(Method::POST, &format!("{KINDS}/gatewaynodes")).body(anything).words("may write gw1, not gw3"),
        label(&lease("gw2")).words("may write sallyport-agent-gw1, not sallyport-agent-gw2"),
        create_lease("sallyport-operator").words("may write sallyport-agent-gw1, not sallyport-operator"),
        create_lease("sallyport-agent-gw3").words("may write sallyport-agent-gw1, not sallyport-agent-gw3"),
        Request::new(Method::DELETE, &lease("gw1")).words("an agent may delete nothing"),
    ]
}

/// What a token of the account must not do that is bound to no pod, and so names no node.
pub fn homeless() -> Vec<Request> {
    let words = "must be bound to a pod on a node";
    vec![
        status("gw1").words(words),
        label(&lease("gw1")).words(words),
        create_lease("sallyport-agent-gw3").words(words),
    ]
}
