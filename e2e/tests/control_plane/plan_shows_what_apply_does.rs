//! A planned edit touches no gateway; every gateway says in the status, and an Event for each, what it would change.
//! Pausing keeps the same; applying does what was shown.

use anyhow::{Context, Result, ensure};
use sallyport_e2e::article::GW1;
use sallyport_e2e::control_plane::scene::{GW2, KINDS, PAYMENTS, SOON, Scene, forward_path, node_path, scene, spec};
use sallyport_e2e::wait;
use serde_json::{Value, json};

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/payments/events";

fn with_mode(port: u16, mode: &str) -> Value {
    let mut spec = spec(port);
    spec["mode"] = mode.into();
    spec["targets"][0]["weight"] = 1.into();
    spec["ports"][0]["targetPort"] = 3306.into();
    spec
}

fn status(scene: &Scene) -> Result<Value> {
    let object = scene.api.get(&forward_path(PAYMENTS, "mysql"))?.context("find the forward")?;
    Ok(object["status"].clone())
}

/// The notes of the Events of changes to this port.
fn notes(scene: &Scene, port: &str) -> Result<Vec<String>> {
    let events = scene.api.list(EVENTS)?;
    let planned = events.iter().filter(|event| event["reason"] == "Planned" && event["regarding"]["name"] == "mysql");
    let notes = planned.filter_map(|event| event["note"].as_str()).filter(|note| note.contains(port));
    Ok(notes.map(str::to_owned).collect())
}

#[test]
fn planned_edit_touches_nothing_and_every_gateway_says_what_it_would_change() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306])?;
        let path = forward_path(PAYMENTS, "mysql");
        scene.apply_ready(PAYMENTS, "mysql", &with_mode(3306, "Apply"))?;
        let (before, carried) = (scene.rules()?, status(scene)?["appliedHash"].clone());

        scene.apply(PAYMENTS, "mysql", &with_mode(3307, "Plan"))?;
        scene.wait_for(&path, "Programmed", "Planned", SOON)?;
        wait::until_true("a plan of both gateways", SOON, || {
            Ok(status(scene)?["plan"].as_array().is_some_and(|plan| plan.len() == 2))
        })?;
        let planned = status(scene)?;
        for (entry, node, ip) in [(0, "gw1", GW1), (1, "gw2", GW2)] {
            let entry = &planned["plan"][entry];
            let rule = |sign: char, port: u16, to: &str| {
                format!(
                    "{sign} -A SALLY-MT -s 10.30.1.80/32 -d {ip}/32 -p tcp -m tcp --dport {port} -j DNAT --to-destination 10.30.1.79{to}\n"
                )
            };
            let expected = format!("# IPv4 nat\n{}{}", rule('-', 3306, ""), rule('+', 3307, ":3306"));
            ensure!(entry["change"] == expected, "{node} says {entry}, not {expected}");
            ensure!(entry["nodes"] == json!([node]) && entry["nodesTotal"] == 1, "whose change: {entry}");
        }
        ensure!(scene.rules()? == before, "a plan changed rules");
        ensure!(planned["appliedHash"] == carried && planned["hash"] != carried, "hashes: {planned}");
        ensure!(planned["nodes"]["programmed"] == 2, "what is kept: {planned}");
        scene.expect_answers(3306)?;
        wait::until_true("an Event for each change", SOON, || Ok(notes(scene, "--dport 3307")?.len() == 2))?;

        // The port that is kept is nobody else's, nor is anything given to a forward that only plans.
        scene.apply(PAYMENTS, "rival", &with_mode(3306, "Plan"))?;
        scene.wait_for(&forward_path(PAYMENTS, "rival"), "Accepted", "PortConflict", SOON)?;
        scene.apply_ready(PAYMENTS, "quick", &with_mode(3309, "Apply"))?;
        scene.apply(PAYMENTS, "rival", &with_mode(3309, "Paused"))?;
        scene.wait_for(&forward_path(PAYMENTS, "rival"), "Accepted", "PortConflict", SOON)?;
        ensure!(notes(scene, "--dport 3307")?.len() == 2, "told again, though nothing changed");

        scene.apply(PAYMENTS, "mysql", &with_mode(3307, "Paused"))?;
        scene.wait_for(&path, "Programmed", "Paused", SOON)?;
        wait::until_true("the end of the plan", SOON, || {
            let slices = scene.api.list(&format!("{KINDS}/forwardslices"))?;
            let nodes = [node_path("gw1"), node_path("gw2")].map(|path| scene.api.get(&path));
            let mut told = vec![status(scene)?["plan"].clone()];
            told.extend(slices.iter().map(|slice| slice["spec"]["planned"].clone()));
            for node in nodes {
                told.push(node?.context("find the node")?["status"]["plans"].clone());
            }
            Ok(told.iter().all(Value::is_null))
        })?;
        scene.expect_answers(3306)?;

        scene.apply_ready(PAYMENTS, "mysql", &with_mode(3307, "Apply"))?;
        ensure!(status(scene)?["appliedHash"] == planned["hash"], "not what was planned");
        scene.expect_answers(3307)?;
        scene.expect_refusals(3306)
    })
}
