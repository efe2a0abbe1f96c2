//! Two forwards want one port: whoever holds it keeps it, the other learns that it is taken and not by whom, and gets
//! it once no node carries the former holder any more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::control_plane::Stopped;
use sallyport_e2e::control_plane::scene::{ORDERS, PAYMENTS, SOON, Scene, forward_path, scene, spec};
use sallyport_e2e::faults::figure;
use sallyport_e2e::lab::{Family, Variant};
use sallyport_e2e::wait;

#[test]
fn holder_keeps_the_port_and_hands_it_over_when_deleted() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307])?;
        scene.apply_ready(ORDERS, "first", &spec(3306))?;
        let (first, second) = (forward_path(ORDERS, "first"), forward_path(PAYMENTS, "second"));
        let mut wants = spec(3306);
        wants["ports"][0]["targetPort"] = 3307.into();
        scene.apply(PAYMENTS, "second", &wants)?;
        scene.wait_for(&second, "Accepted", "PortConflict", SOON)?;
        loser_is_told_no_names(scene, &second)?;
        ensure!(scene.condition(&first, "Ready")?.is_some_and(|ready| ready.status == "True"), "the holder lost it");

        scene.api.delete(&first)?;
        let never_both = wait::until_true("the successor being Ready", Duration::from_secs(5), || {
            one_forward_a_gateway(scene)?;
            Ok(scene.condition(&second, "Ready")?.is_some_and(|ready| ready.status == "True"))
        })?;
        figure(19, format_args!("handed over in {} ms", never_both.as_millis()));
        ensure!(scene.api.get(&first)?.is_none(), "the successor came in before the former holder was gone");
        scene.expect_answers(3306)
    })
}

#[test]
fn successor_waits_for_every_node() -> Result<()> {
    scene(|scene| {
        scene.apply_ready(ORDERS, "first", &spec(3306))?;
        let (first, second) = (forward_path(ORDERS, "first"), forward_path(PAYMENTS, "second"));
        scene.apply(PAYMENTS, "second", &spec(3306))?;
        scene.wait_for(&second, "Accepted", "PortConflict", SOON)?;
        let gw2 = scene.kubelets.agent("gw2").context("find the agent on gw2")?;
        let stopped = Stopped::stop(gw2)?;
        scene.api.delete(&first)?;
        wait::until_true("gw1 dropping the first forward", SOON, || Ok(!scene.rules()?[0].contains("3306")))?;
        wait::holds_for("the successor waiting for gw2", Duration::from_secs(2), || {
            let waits = scene.condition(&second, "Ready")?.is_none_or(|ready| ready.status != "True");
            Ok(waits && scene.api.get(&first)?.is_some() && !scene.rules()?[0].contains("3306"))
        })?;
        drop(stopped);
        scene.wait_for(&second, "Ready", "Ready", SOON)?;
        ensure!(scene.api.get(&first)?.is_none(), "both forwards hold the port");
        Ok(())
    })
}

/// The loser is in another namespace than the holder: its message may not say what is there.
fn loser_is_told_no_names(scene: &Scene, loser: &str) -> Result<()> {
    let accepted = scene.condition(loser, "Accepted")?.context("find the condition")?;
    let object = scene.api.get(loser)?.context("find the loser")?["status"].to_string();
    ensure!(!object.contains(ORDERS) && !object.contains("first"), "the loser is told of others: {object}");
    ensure!(accepted.message.contains("3306"), "the message does not name the port: {}", accepted.message);
    Ok(())
}

/// No kernel ever has rules of both.
fn one_forward_a_gateway(scene: &Scene) -> Result<()> {
    for host in [&scene.gw1, &scene.gw2] {
        let rules = host.iptables_save(Variant::Nft, Family::V4)?;
        let forwards = rules.lines().filter(|rule| rule.contains("--dport 3306 ") && rule.contains("DNAT")).count();
        ensure!(forwards <= 1, "{} carries both forwards:\n{rules}", host.name());
    }
    Ok(())
}
