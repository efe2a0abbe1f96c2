//! Somebody else's change is told where it can be seen: an event and `lastDrift` for each repair, whoever leads, and
//! conditions that are False for as long as it lasts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::control_plane::scene::{KINDS, PAYMENTS, SOON, Scene, forward_path, node_path, pool, scene, spec};
use sallyport_e2e::lab::{Family, Host, Variant};
use sallyport_e2e::wait;
use serde_json::{Value, json};

/// Longer than anything that is put back at once takes to be told.
const QUIET: Duration = Duration::from_secs(2);
/// Longer than a lease lasts that nobody renews.
const LEASE: Duration = Duration::from_secs(40);

#[test]
fn each_repair_is_told_once_and_what_lasts_is_told_while_it_lasts() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306])?;
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        a_repair_is_told_once(scene)?;
        what_nobody_told_is_told_by_the_next_leader(scene)?;
        a_rival_is_named_while_it_is_there(scene)?;
        forwarding_that_the_pool_requires_is_missed(scene)?;
        scene.expect_answers(3306)
    })
}

fn a_repair_is_told_once(scene: &Scene) -> Result<()> {
    ensure!(repairs(scene)?.is_empty(), "told before anything was done: {:?}", repairs(scene)?);
    let rules = scene.rules()?;
    nat(&scene.gw1, "-D PREROUTING -j SALLY-PRE")?;
    wait::until_true("the repair being told", SOON, || Ok(!repairs(scene)?.is_empty()))?;
    ensure!(scene.rules()? == rules, "told before it was done");
    wait::holds_for("one event for one repair", QUIET, || Ok(repairs(scene)?.len() == 1))?;
    let said = "IPv4 nat PREROUTING: the jump to SALLY-PRE is missing";
    ensure!(repairs(scene)? == [format!("gw1 Warning {said}")], "{:?}", repairs(scene)?);
    let status = status_of(scene, &node_path("gw1"))?;
    ensure!(status["lastDrift"]["message"] == said, "{}", status["lastDrift"]);
    is(scene, &forward_path(PAYMENTS, "mysql"), "Programmed", "Verified")
}

fn what_nobody_told_is_told_by_the_next_leader(scene: &mut Scene) -> Result<()> {
    let rules = scene.rules()?;
    scene.operators.clear();
    nat(&scene.gw2, "-F SALLY-POST")?;
    wait::until_true("the repair", SOON, || {
        let drift = status_of(scene, &node_path("gw2"))?["lastDrift"].take();
        Ok(drift["message"].is_string() && scene.rules()? == rules)
    })?;
    ensure!(repairs(scene)?.len() == 1, "told by nobody: {:?}", repairs(scene)?);
    scene.start_operator("operator-b")?;
    wait::until_true("the next leader telling it", LEASE, || Ok(repairs(scene)?.len() == 2))?;
    wait::holds_for("no repair being told again", QUIET, || Ok(repairs(scene)?.len() == 2))?;
    ensure!(repairs(scene)?.iter().any(|said| said.starts_with("gw2 Warning ")), "{:?}", repairs(scene)?);
    Ok(())
}

fn a_rival_is_named_while_it_is_there(scene: &Scene) -> Result<()> {
    let (gateway, forward) = (node_path("gw1"), forward_path(PAYMENTS, "mysql"));
    let rival = "-p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.81:3306";
    for _ in 0..5 {
        nat(&scene.gw1, &format!("-I PREROUTING {rival}"))?;
        wait::until_true("the first place taken back", SOON, || {
            let rules = scene.gw1.iptables_save(Variant::Nft, Family::V4)?;
            Ok(rules.lines().find(|line| line.starts_with("-A PREROUTING ")) == Some("-A PREROUTING -j SALLY-PRE"))
        })?;
    }
    nat(&scene.gw1, &format!("-I PREROUTING {rival}"))?;
    scene.wait_for(&gateway, "Synced", "Drifted", SOON)?;
    scene.wait_for(&forward, "Programmed", "Drifted", SOON)?;
    let node = scene.condition(&gateway, "Synced")?.context("find Synced")?;
    ensure!(
        node.status == "False" && node.message.contains("nat PREROUTING") && node.message.contains(rival),
        "{node:?}"
    );
    let told = scene.condition(&forward, "Programmed")?.context("find Programmed")?;
    ensure!(told.status == "False" && told.message.contains("gatewaynode gw1"), "{told:?}");
    // Rules may be those of other people's forwards.
    ensure!(!told.message.contains("--dport"), "{told:?}");
    for _ in 0..6 {
        nat(&scene.gw1, &format!("-D PREROUTING {rival}"))?;
    }
    is(scene, &gateway, "Synced", "Synced")?;
    is(scene, &forward, "Programmed", "Verified")
}

fn forwarding_that_the_pool_requires_is_missed(scene: &Scene) -> Result<()> {
    let (gateway, forward) = (node_path("gw1"), forward_path(PAYMENTS, "mysql"));
    let mut required = pool();
    required["spec"]["ipForward"] = json!("Require");
    scene.api.apply(&format!("{KINDS}/gatewaypools/default"), &required)?;
    wait::until_true("the agents knowing", SOON, || {
        let wanted = scene.api.get(&gateway)?.context("find gw1")?["spec"]["ipForward"].take();
        Ok(wanted == "Require" && scene.condition(&gateway, "Synced")?.is_some())
    })?;
    scene.gw1.write_sysctl("net/ipv4/ip_forward", "0")?;
    is(scene, &gateway, "IPForwarding", "NotForwarding")?;
    is(scene, &forward, "Programmed", "Drifted")?;
    ensure!(scene.gw1.sysctl("net/ipv4/ip_forward")? == "0", "it was turned on although the pool says Require");
    // Rules are looked after all the same.
    let rules = scene.rules()?;
    nat(&scene.gw1, "-F SALLY-PRE")?;
    wait::until_true("the flushed chain being back", SOON, || Ok(scene.rules()? == rules))?;

    scene.gw1.write_sysctl("net/ipv4/ip_forward", "1")?;
    is(scene, &gateway, "IPForwarding", "Forwarding")?;
    is(scene, &forward, "Programmed", "Verified")
}

fn is(scene: &Scene, path: &str, kind: &str, reason: &str) -> Result<()> {
    scene.wait_for(path, kind, reason, SOON).map(drop)
}

fn nat(gw1: &Host, arguments: &str) -> Result<()> {
    gw1.iptables(Variant::Nft, Family::V4, &format!("-t nat {arguments}"))
}

fn status_of(scene: &Scene, path: &str) -> Result<Value> {
    Ok(scene.api.get(path)?.with_context(|| format!("find {path}"))?["status"].take())
}

/// The events about repairs: node, type and note.
fn repairs(scene: &Scene) -> Result<Vec<String>> {
    let list = scene.api.get("/apis/events.k8s.io/v1/namespaces/default/events")?.context("list the events")?;
    let repairs = list["items"].as_array().into_iter().flatten().filter(|event| event["reason"] == "DriftRepaired");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(repairs
        .map(|event| format!("{} {} {}", text(&event["regarding"]["name"]), text(&event["type"]), text(&event["note"])))
        .collect())
}
