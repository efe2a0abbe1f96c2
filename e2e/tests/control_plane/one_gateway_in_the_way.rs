//! What stands in the way on one gateway is named in the forward and on the node, the other gateway serves meanwhile, and
//! the forward is ready by itself when it is out of the way.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::{GW1, socket};
use sallyport_e2e::control_plane::scene::{
    Condition, GW2, PAYMENTS, SOON, Scene, forward_path, node_path, scene, spec,
};
use sallyport_e2e::faults::figure;
use sallyport_e2e::traffic::{Answer, Protocol, serve};
use sallyport_e2e::wait;

/// The longest that it may take to be ready when no firewall is in the way any more.
const OPENED: Duration = Duration::from_secs(5);

/// The same for a port, which must have been free for 10 s: whoever listened there may only be starting anew.
const FREED: Duration = Duration::from_secs(20);

/// A router's firewall as an administrator writes it.
const FIREWALL: &str = "table inet edge { chain forward { type filter hook forward priority filter; policy drop; \
                        ct state established,related accept; }; }";

#[test]
fn another_firewall_is_named_on_its_node_and_in_the_forward_and_the_remedy_helps() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306])?;
        let (forward, compatible) = (forward_path(PAYMENTS, "mysql"), "HostFirewallCompatible");
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        for node in ["gw1", "gw2"] {
            is(scene, &node_path(node), compatible, "True", compatible)?;
        }

        scene.gw2.check_with_input(&["nft", "-f", "-"], FIREWALL.as_bytes())?;
        let node = is(scene, &node_path("gw2"), compatible, "False", "HostFirewallConflict")?;
        ensure!(node.message.contains("table inet edge, chain forward (hook forward"), "{node:?}");
        let told = is(scene, &forward, "Programmed", "False", "HostFirewallConflict")?;
        ensure!(told.message.contains("are dropped by table inet edge"), "{told:?}");
        ensure!(!told.message.contains("gw1"), "{told:?}");
        is(scene, &node_path("gw1"), compatible, "True", compatible)?;
        gw1_answers(scene)?;
        ensure!(!matches!(scene.ask(GW2, 3306)?, Answer::Heard { .. }), "the firewall drops nothing");

        // Exactly what the message says.
        let remedy = told.message.split("run `").nth(1).and_then(|rest| rest.split('`').next());
        scene.gw2.check(&["sh", "-c", remedy.context("find the remedy")?])?;
        scene.wait_for(&forward, "Ready", "Ready", OPENED)?;
        is(scene, &node_path("gw2"), compatible, "True", compatible)?;
        scene.expect_answers(3306)
    })
}

#[test]
fn a_listener_on_one_gateway_is_named_keeps_its_clients_and_is_followed_when_it_goes() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306])?;
        let listener = serve(&scene.gw2, &[(Protocol::Tcp, socket("0.0.0.0", 3306))])?;
        let forward = forward_path(PAYMENTS, "mysql");
        scene.apply(PAYMENTS, "mysql", &spec(3306))?;
        let told = is(scene, &forward, "Programmed", "False", "PortInUse")?;
        ensure!(told.message.contains("gw2: ") && told.message.contains("port 3306/TCP"), "{told:?}");
        ensure!(!told.message.contains("gw1"), "{told:?}");
        // gw2 may tell before gw1 has programmed anything.
        wait::until_true("db1 answering at gw1", SOON, || Ok(scene.ask(GW1, 3306)?.is_from("db1")))?;
        let answer = scene.ask(GW2, 3306)?;
        ensure!(answer.is_from("gw2"), "{answer:?}, not the program that listens there");

        drop(listener);
        let took = scene.wait_for(&forward, "Ready", "Ready", FREED)?;
        scene.expect_answers(3306)?;
        figure(20, format_args!("a listener named; ready {} ms after it had gone", took.as_millis()));
        Ok(())
    })
}

fn is(scene: &Scene, path: &str, kind: &str, status: &str, reason: &str) -> Result<Condition> {
    scene.wait_for(path, kind, reason, SOON)?;
    let condition = scene.condition(path, kind)?.with_context(|| format!("find {kind}"))?;
    ensure!(condition.status == status && condition.reason == reason, "{condition:?}");
    Ok(condition)
}

fn gw1_answers(scene: &Scene) -> Result<()> {
    let answer = scene.ask(GW1, 3306)?;
    ensure!(answer.is_from("db1"), "{answer:?} at gw1, not db1");
    Ok(())
}
