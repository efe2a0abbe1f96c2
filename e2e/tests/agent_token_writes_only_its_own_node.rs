//! All agents share a service account, yet the token of each lets it write about its own node and nothing else.

use anyhow::{Context, Result, ensure};
use http::Method;
use sallyport_e2e::control_plane::scene::{
    AGENT, KINDS, PAYMENTS, SOON, SYSTEM, Scene, forward_path, node_path, scene, spec,
};
use sallyport_e2e::control_plane::{Api, kubelet};
use sallyport_e2e::wait;
use serde_json::{Value, json};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/sallyport-system/leases";
const PATCH: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

#[test]
fn token_of_an_agent_reaches_no_further_than_its_node() -> Result<()> {
    scene(|scene| {
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        let gw1 = connect(scene, "gw1", &scene.kubelets.token("gw1").context("find the agent on gw1")?)?;
        let unbound = connect(scene, "unbound", &kubelet::request_token(&scene.api, SYSTEM, AGENT, None)?)?;
        // Policies are seen by the API server a moment after they were made.
        wait::until_true("the policy being in force", SOON, || Ok(write_status(&unbound, "gw1")? == 403))?;

        ensure!(write_status(&gw1, "gw1")? == 200, "an agent cannot write the status of its own node");
        ensure!(write_status(&gw1, "gw2")? == 403, "an agent may write the status of another node");
        ensure!(write_lease(&gw1, "gw1")? == 200, "an agent cannot renew its own Lease");
        ensure!(write_lease(&gw1, "gw2")? == 403, "an agent may renew the Lease of another");
        ensure!(write_lease(&unbound, "gw1")? == 403, "a token without a node may renew a Lease");
        ensure!(create_lease(&gw1, "sallyport-operator")? == 403, "an agent may take the operator's Lease");
        for path in ["gatewaynodes", "gatewaynodes/gw2", "forwardslices"] {
            let code = ask(&gw1, &Method::GET, &format!("{KINDS}/{path}"), None)?;
            ensure!(code == 200, "an agent cannot read {path}: {code}");
        }
        nothing_else(&gw1)
    })
}

fn connect(scene: &Scene, name: &str, token: &str) -> Result<Api> {
    Api::new(&scene.server.kubeconfig(name, token)?)
}

fn write_status(api: &Api, node: &str) -> Result<u16> {
    let path = format!("{}/status", node_path(node));
    let answer = api.send(&Method::PATCH, &path, PATCH, Some(&json!({ "status": { "failuresTotal": 0 } })))?;
    Ok(answer.code)
}

fn write_lease(api: &Api, node: &str) -> Result<u16> {
    let name = format!("sallyport-agent-{node}");
    let path = format!("{LEASES}/{name}?fieldManager=test");
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": name, "labels": { "test": "true" } },
    });
    Ok(api.send(&Method::PATCH, &path, APPLY, Some(&lease))?.code)
}

fn create_lease(api: &Api, name: &str) -> Result<u16> {
    Ok(api.send(&Method::POST, LEASES, "application/json", Some(&json!({ "metadata": { "name": name } })))?.code)
}

/// Whatever an agent has no business with is forbidden by RBAC, for every verb.
fn nothing_else(agent: &Api) -> Result<()> {
    let own = node_path("gw1");
    let slices = format!("{KINDS}/forwardslices");
    let pods = format!("/api/v1/namespaces/{SYSTEM}/pods");
    let daemonset = format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/{AGENT}");
    let forward = forward_path(PAYMENTS, "mysql");
    let object = json!({ "metadata": { "name": "made-by-an-agent" } });
    let table: [(&Method, &str, Option<&Value>); 17] = [
        (&Method::GET, &forward, None),
        (&Method::GET, &format!("{KINDS}/portforwards"), None),
        (&Method::PATCH, &forward, Some(&object)),
        (&Method::PATCH, &format!("{forward}/status"), Some(&object)),
        (&Method::DELETE, &forward, None),
        (&Method::GET, &format!("{KINDS}/gatewaypools"), None),
        (&Method::PATCH, &own, Some(&object)),
        (&Method::DELETE, &own, None),
        (&Method::POST, &format!("{KINDS}/gatewaynodes"), Some(&object)),
        (&Method::POST, &slices, Some(&object)),
        (&Method::DELETE, &slices, None),
        (&Method::GET, "/api/v1/nodes/gw1", None),
        (&Method::PATCH, "/api/v1/nodes/gw1", Some(&object)),
        (&Method::GET, "/api/v1/secrets", None),
        (&Method::GET, &pods, None),
        (&Method::PATCH, &daemonset, Some(&object)),
        (&Method::DELETE, &format!("{LEASES}/sallyport-agent-gw1"), None),
    ];
    for (method, path, body) in table {
        let code = ask(agent, method, path, body)?;
        ensure!(code == 403, "{method} {path} by an agent gave {code}, not 403");
    }
    Ok(())
}

fn ask(api: &Api, method: &Method, path: &str, body: Option<&Value>) -> Result<u16> {
    let content = if *method == Method::PATCH { PATCH } else { "application/json" };
    Ok(api.send(method, path, content, body)?.code)
}
