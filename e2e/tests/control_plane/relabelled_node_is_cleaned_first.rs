//! A node that leaves its pool is cleaned, and says so from its own kernel, before its agent goes.

use std::time::Duration;

use anyhow::{Result, ensure};
use sallyport_e2e::control_plane::scene::{GW2, PAYMENTS, SOON, Scene, forward_path, node_path, scene, spec};
use sallyport_e2e::faults::figure;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::wait;
use serde_json::{Value, json};

const NODE: &str = "/api/v1/nodes/gw2";

#[test]
fn agent_stays_until_its_node_is_clean() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306])?;
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        scene.expect_answers(3306)?;
        label(scene, &Value::Null)?;
        let took = wait::until_true("the agent of gw2 being sent away", Duration::from_secs(20), || {
            // Whatever is seen first: while there is a rule of ours, the label and the pod are there.
            let (labelled, runs) = (is_labelled(scene)?, scene.kubelets.agent("gw2").is_some());
            let clean = is_clean(scene)?;
            ensure!(clean || (labelled && runs), "the agent was sent away before its node was clean");
            Ok(!labelled && !runs)
        })?;
        ensure!(is_clean(scene)?, "rules are left on gw2");
        figure(27, format_args!("rules gone, then the agent, within {} ms", took.as_millis()));
        let answer = scene.ask(GW2, 3306)?;
        ensure!(!answer.is_from("db1"), "gw2 forwards still");
        let path = forward_path(PAYMENTS, "mysql");
        wait::until_true("the forward needing one node", SOON, || {
            let object = scene.api.get(&path)?.unwrap_or_default();
            Ok(object["status"]["nodes"]["desired"] == 1 && object["status"]["nodes"]["programmed"] == 1)
        })?;
        scene.wait_for(&path, "Ready", "Ready", SOON)?;
        scene.wait_until_gone(&node_path("gw2"), SOON)?;

        // The way back is as for a new node.
        label(scene, &json!(""))?;
        wait::until_true("both nodes carrying the forward", Duration::from_secs(30), || {
            let object = scene.api.get(&path)?.unwrap_or_default();
            Ok(object["status"]["nodes"]["programmed"] == 2)
        })?;
        scene.expect_answers(3306)
    })
}

fn label(scene: &Scene, value: &Value) -> Result<()> {
    scene.api.merge(NODE, &json!({ "metadata": { "labels": { "sallyport.dev/gateway": value } } })).map(drop)
}

fn is_labelled(scene: &Scene) -> Result<bool> {
    let node = scene.api.get(NODE)?.unwrap_or_default();
    Ok(node["metadata"]["labels"].get("sallyport.dev/agent").is_some())
}

fn is_clean(scene: &Scene) -> Result<bool> {
    Ok(!scene.gw2.iptables_save(Variant::Nft, Family::V4)?.contains("SALLY-"))
}
