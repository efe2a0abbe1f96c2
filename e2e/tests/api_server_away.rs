//! Without an API server the gateways go on: traffic flows, drift is repaired, and afterwards the status is right.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{GW1, socket};
use sallyport_e2e::control_plane::scene::{PAYMENTS, Scene, forward_path, node_path, scene, spec};
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::traffic::{Protocol, hold};
use sallyport_e2e::wait;

#[test]
fn gateways_go_on_without_the_api_server() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307])?;
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        let rules = scene.rules()?;
        let mut held = hold(&scene.app1, Protocol::Tcp, socket(GW1, 3306), None)?;

        scene.server.kill_api()?;
        repaired(scene, &rules)?;
        // An agent that dies meanwhile goes on from what it has on its disk.
        let before = scene.kubelets.agent("gw1").context("find the agent on gw1")?;
        scene.kubelets.kill("gw1")?;
        wait::until_true("the agent of gw1 being back", Duration::from_secs(5), || {
            let is_new = scene.kubelets.agent("gw1").is_some_and(|pid| pid != before);
            Ok(is_new && scene.kubelets.nodes()[0].log().contains("cause=\"start\""))
        })?;
        repaired(scene, &rules)?;
        wait::holds_for("traffic without the API server", Duration::from_secs(3), || {
            Ok(held.is_alive()? && scene.kubelets.agent("gw1").is_some())
        })?;
        scene.expect_answers(3306)?;

        scene.server.start_api()?;
        scene.apply(PAYMENTS, "second", &spec(3307))?;
        let path = forward_path(PAYMENTS, "second");
        let took = scene.wait_for(&path, "Ready", "Ready", Duration::from_secs(20))?;
        println!("the next forward was ready {} ms after the API server was", took.as_millis());
        scene.expect_answers(3307)?;
        scene.wait_for(&forward_path(PAYMENTS, "mysql"), "Ready", "Ready", Duration::from_secs(10))?;
        let drift = scene.api.get(&node_path("gw1"))?.unwrap_or_default()["status"]["lastDrift"].take();
        ensure!(drift["message"].is_string(), "the drift of meanwhile is not told: {drift}");
        ensure!(held.is_alive()?, "the connection did not last");
        Ok(())
    })
}

/// Somebody flushes our chains; they come back.
fn repaired(scene: &Scene, rules: &[String]) -> Result<()> {
    scene.gw1.iptables(Variant::Nft, Family::V4, "-t nat -F SALLY-PRE")?;
    wait::until_true("the flushed chain being repaired", Duration::from_secs(5), || {
        Ok(scene.gw1.iptables_save(Variant::Nft, Family::V4)? == rules[0])
    })
    .map(drop)
}
