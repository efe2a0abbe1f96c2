//! Operator and agent of different versions: what one does not understand of the other changes no rule, is waited for
//! where it matters, and is told.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::control_plane::Stopped;
use sallyport_e2e::control_plane::scene::{KINDS, PAYMENTS, SOON, Scene, forward_path, node_path, scene, spec};
use sallyport_e2e::faults::figure;
use sallyport_e2e::wait;
use serde_json::{Value, json};

/// The longest that a new leader may take.
const TAKE_OVER: Duration = Duration::from_secs(40);

#[test]
fn what_is_newer_than_an_agent_leaves_the_old_rules_and_says_so() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307, 3308])?;
        for (name, port) in [("first", 3306), ("second", 3307)] {
            scene.apply_ready(PAYMENTS, name, &spec(port))?;
        }
        loosen(scene, "forwardslices", "spec")?;
        scene.operators.clear();
        let slices = scene.api.list(&format!("{KINDS}/forwardslices"))?;
        let mut slice = slices.into_iter().next().context("find a slice")?;
        let name = slice["metadata"]["name"].as_str().context("read its name")?.to_owned();
        // A newer operator asks for something new of one forward, and for something old of the other.
        for forward in slice["spec"]["forwards"].as_array_mut().context("find the forwards")? {
            if forward["ref"]["name"] == "first" {
                forward["intent"]["rateLimit"] = 5.into();
                forward["hash"] = "v1:00000000000000000000000000000000".into();
            }
        }
        let changed = json!({ "spec": { "forwards": slice["spec"]["forwards"] } });
        scene.api.merge(&format!("{KINDS}/forwardslices/{name}"), &changed)?;
        for node in ["gw1", "gw2"] {
            scene.wait_for(&node_path(node), "Synced", "UnsupportedIntent", SOON)?;
            let synced = scene.condition(&node_path(node), "Synced")?.context("find the condition")?;
            ensure!(synced.message.contains("upgrade the agent"), "{}", synced.message);
        }
        scene.expect_answers(3306)?;
        scene.expect_answers(3307)?;

        // The operator of this version takes back what it does not know either.
        scene.start_operator("operator-b")?;
        for node in ["gw1", "gw2"] {
            scene.wait_for(&node_path(node), "Synced", "Synced", TAKE_OVER)?;
        }
        scene.apply_ready(PAYMENTS, "third", &spec(3308))?;
        scene.expect_answers(3308)?;
        figure(24, "an older agent: old rules stay, UnsupportedIntent, other forwards served");
        Ok(())
    })
}

#[test]
fn report_of_another_version_is_none_and_is_waited_for() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306])?;
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        loosen(scene, "gatewaynodes", "status")?;
        let stopped = Stopped::stop(scene.kubelets.agent("gw2").context("find the agent on gw2")?)?;
        let node = node_path("gw2");
        scene.api.merge(&format!("{node}/status"), &json!({ "status": { "state": "Teleported" } }))?;
        // One that never saw another status.
        scene.operators.clear();
        scene.start_operator("operator-b")?;
        let path = forward_path(PAYMENTS, "mysql");
        scene.api.delete(&path)?;
        wait::until_true("gw1 dropping the forward", TAKE_OVER, || Ok(!scene.rules()?[0].contains("--dport 3306")))?;
        let mut place = 0;
        scene.server.writes_after(&mut place)?;
        wait::holds_for("the delete waiting for gw2", Duration::from_secs(3), || Ok(scene.api.get(&path)?.is_some()))?;
        let writes = scene.server.writes_after(&mut place)?.into_iter().filter(is_of_the_operator).count();
        ensure!(writes < 10, "the operator wrote {writes} times in 3 s, waiting for gw2");
        ensure!(scene.rules()?[1].contains("--dport 3306"), "the silent node was not needed for this test");

        drop(stopped);
        scene.wait_until_gone(&path, TAKE_OVER)?;
        ensure!(!scene.rules()?[1].contains("--dport 3306"), "the forward went before gw2 was clean");
        figure(24, format_args!("a status that is not understood: waited for with {writes} writes in 3 s"));
        Ok(())
    })
}

fn is_of_the_operator(write: &Value) -> bool {
    let user = write["user"]["username"].as_str().unwrap_or_default();
    user.ends_with(":sallyport-operator") && write["objectRef"]["resource"] != "leases"
}

/// From now on anything goes in a part of a kind's objects, as the definition of another version may have it.
fn loosen(scene: &Scene, kind: &str, part: &str) -> Result<()> {
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind}.sallyport.dev");
    let mut versions = scene.api.get(&path)?.context("find the definition")?["spec"]["versions"].take();
    versions[0]["schema"]["openAPIV3Schema"]["properties"][part] =
        json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    scene.api.merge(&path, &json!({ "spec": { "versions": versions } }))?;
    // It is in force a moment after it was written.
    let name = scene.api.list(&format!("{KINDS}/{kind}"))?[0]["metadata"]["name"].clone();
    let subresource = if part == "status" { "/status" } else { "" };
    let path = format!("{KINDS}/{kind}/{}{subresource}?dryRun=All", name.as_str().unwrap_or_default());
    wait::until_true("the loose schema", SOON, || {
        let answer = scene.api.merge(&path, &json!({ part: { "anything": true } }))?;
        Ok(answer[part]["anything"] == true)
    })
    .map(drop)
}
