//! What a silent agent's kernel carries is not known: a delete waits for it and says so, unless the node is dead.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use sallyport_e2e::control_plane::Stopped;
use sallyport_e2e::control_plane::scene::{PAYMENTS, SOON, Scene, forward_path, node_path, scene, spec};
use sallyport_e2e::faults::figure;
use sallyport_e2e::wait;
use serde_json::json;

#[test]
fn silent_agent_blocks_a_delete_and_says_so() -> Result<()> {
    scene(|scene| {
        let (path, stopped) = delete_with_silent_agent(scene)?;
        // An agent counts as silent once its Lease is over: 40 s after it was last renewed.
        wait::until_true("the forward saying whom it waits for", Duration::from_mins(1), || {
            let object = scene.api.get(&path)?.context("the object went before the node was clean")?;
            let ready = scene.condition(&path, "Ready")?;
            let text = ready.as_ref().map(|ready| format!("{} {}", ready.reason, ready.message)).unwrap_or_default();
            Ok(object["metadata"]["deletionTimestamp"].is_string()
                && text.contains("AgentUnreachable")
                && text.contains("gw2"))
        })?;
        ensure!(scene.rules()?[1].contains("--dport 3306"), "the silent node was not needed for this test");
        drop(stopped);
        scene.wait_until_gone(&path, SOON)?;
        ensure!(!scene.rules()?[1].contains("--dport 3306"), "the object went before the node was clean");
        Ok(())
    })
}

#[test]
fn dead_node_does_not_block_a_delete() -> Result<()> {
    scene(|scene| {
        let (path, _stopped) = delete_with_silent_agent(scene)?;
        let gw2 = &scene.kubelets.nodes()[1];
        // Not ready for four minutes: it may come back.
        gw2.report(&scene.api, false, ago(240)?)?;
        wait::holds_for("the delete waiting for gw2", Duration::from_secs(2), || Ok(scene.api.get(&path)?.is_some()))?;
        gw2.report(&scene.api, false, ago(301)?)?;
        scene.wait_until_gone(&path, Duration::from_secs(20)).map(drop)
    })
}

#[test]
fn node_that_returns_is_rid_of_what_was_deleted_meanwhile() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307])?;
        scene.apply_ready(PAYMENTS, "stays", &spec(3307))?;
        let (path, stopped) = delete_with_silent_agent(scene)?;
        scene.api.delete("/api/v1/nodes/gw2")?;
        let took = scene.wait_until_gone(&path, Duration::from_secs(20))?;
        ensure!(scene.rules()?[1].contains("--dport 3306"), "the dead node was not needed for this test");

        let gw2 = &scene.kubelets.nodes()[1];
        gw2.register(&scene.api, &json!({ "sallyport.dev/gateway": "" }))?;
        drop(stopped);
        let rid = wait::until_true("gw2 being rid of it", Duration::from_secs(40), || {
            Ok(!scene.rules()?[1].contains("--dport 3306"))
        })?;
        scene.wait_for(&node_path("gw2"), "Synced", "Synced", Duration::from_secs(40))?;
        scene.wait_for(&forward_path(PAYMENTS, "stays"), "Ready", "Ready", SOON)?;
        scene.expect_answers(3307)?;
        let (took, rid) = (took.as_millis(), rid.as_millis());
        figure(21, format_args!("Node deleted: released in {took} ms; rid of it {rid} ms after it returned"));
        Ok(())
    })
}

/// A forward that both nodes carried is being deleted, and the agent on gw2 does nothing.
fn delete_with_silent_agent(scene: &Scene) -> Result<(String, Stopped)> {
    scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
    let stopped = Stopped::stop(scene.kubelets.agent("gw2").context("find the agent on gw2")?)?;
    let path = forward_path(PAYMENTS, "mysql");
    scene.api.delete(&path)?;
    wait::until_true("gw1 dropping the forward", SOON, || Ok(!scene.rules()?[0].contains("--dport 3306")))?;
    wait::holds_for("the delete waiting for gw2", Duration::from_secs(1), || Ok(scene.api.get(&path)?.is_some()))?;
    Ok((path, stopped))
}

fn ago(seconds: i64) -> Result<Timestamp> {
    Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).context("go back in time")
}
