//! A slice that vanishes without having been emptied is no order: the rules stay until somebody says what shall hold.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::control_plane::scene::{KINDS, PAYMENTS, SOON, Scene, forward_path, node_path, scene, spec};
use sallyport_e2e::wait;

#[test]
fn deleted_slice_leaves_the_rules_and_comes_back() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306])?;
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        let rules = scene.rules()?;
        // Nobody is there to write it again.
        scene.operators.clear();
        scene.api.delete(&format!("{KINDS}/forwardslices"))?;
        for node in ["gw1", "gw2"] {
            scene.wait_for(&node_path(node), "Synced", "SliceMissing", SOON)?;
        }
        unchanged(scene, &rules)?;

        scene.start_operator("operator-b")?;
        for node in ["gw1", "gw2"] {
            scene.wait_for(&node_path(node), "Synced", "Synced", Duration::from_secs(40))?;
        }
        scene.wait_for(&forward_path(PAYMENTS, "mysql"), "Ready", "Ready", SOON)?;
        unchanged(scene, &rules)
    })
}

#[test]
fn deleted_definitions_leave_the_rules() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306])?;
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        let rules = scene.rules()?;
        let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        for kind in ["forwardslices", "gatewaynodes"] {
            scene.api.delete(&format!("{definitions}/{kind}.sallyport.dev"))?;
        }
        for kind in ["forwardslices", "gatewaynodes"] {
            scene.wait_until_gone(&format!("{definitions}/{kind}.sallyport.dev"), SOON)?;
        }
        wait::holds_for("the rules staying without definitions", Duration::from_secs(3), || {
            Ok(scene.rules()? == rules && scene.kubelets.agent("gw1").is_some())
        })?;
        scene.expect_answers(3306)?;

        scene.terminal.apply(&scene.terminal.chart("sallyport-system")?)?;
        for node in ["gw1", "gw2"] {
            scene.wait_for(&node_path(node), "Synced", "Synced", Duration::from_secs(40))?;
        }
        scene.wait_for(&forward_path(PAYMENTS, "mysql"), "Ready", "Ready", Duration::from_secs(20))?;
        unchanged(scene, &rules)
    })
}

fn unchanged(scene: &Scene, rules: &[String]) -> Result<()> {
    let now = scene.rules()?;
    ensure!(now == rules, "rules changed: {now:?}");
    scene.expect_answers(3306).context("the rules are there but nothing passes")
}
