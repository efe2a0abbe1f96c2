//! A grant is what holds a forward open: tightened, it closes what it no longer covers and names the clause; its lifetime
//! ends what says nothing itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use sallyport_e2e::article::{GW1, socket};
use sallyport_e2e::control_plane::scene::{KINDS, ORDERS, SOON, Scene, forward_path, pool, scene, spec};
use sallyport_e2e::traffic::{Protocol, hold};
use serde_json::{Value, json};

/// Changes the grant of the namespace `orders`.
fn grant(scene: &Scene, change: &Value) -> Result<()> {
    let mut pool = pool();
    let grant = pool["spec"]["grants"][1].as_object_mut().context("find the grant")?;
    grant.extend(change.as_object().context("read the change")?.clone());
    scene.api.apply(&format!("{KINDS}/gatewaypools/default"), &pool).map(drop)
}

fn accepted(scene: &Scene, name: &str) -> Result<String> {
    Ok(scene.condition(&forward_path(ORDERS, name), "Accepted")?.context("find Accepted")?.message)
}

#[test]
fn tightened_grant_closes_what_it_no_longer_covers_and_its_lifetime_ends_the_rest() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307])?;
        for (name, port) in [("mysql", 3306), ("other", 3307)] {
            scene.apply_ready(ORDERS, name, &spec(port))?;
        }
        let mut cut = hold(&scene.app1, Protocol::Tcp, socket(GW1, 3306), None)?;
        let mut kept = hold(&scene.app1, Protocol::Tcp, socket(GW1, 3307), None)?;

        grant(scene, &json!({ "ports": [{ "protocol": "TCP", "port": 3307, "endPort": 3310 }] }))?;
        scene.wait_for(&forward_path(ORDERS, "mysql"), "Accepted", "NotGranted", SOON)?;
        let message = accepted(scene, "mysql")?;
        ensure!(message.contains("grant orders allows ports [3307-3310/TCP], not 3306/TCP"), "{message}");
        cut.wait_until_cut(SOON)?;
        scene.expect_refusals(3306)?;
        scene.expect_answers(3307)?;
        ensure!(kept.is_alive()?, "what is still covered was cut");

        // Longer than it has been there, and soon over.
        let path = forward_path(ORDERS, "other");
        let created = || -> Result<Timestamp> {
            let object = scene.api.get(&path)?.context("find the forward")?;
            let text = object["metadata"]["creationTimestamp"].as_str().context("read the time")?;
            text.parse().context("understand the time")
        };
        let age = Timestamp::now().as_second() - created()?.as_second();
        let lifetime = age + 12;
        grant(scene, &json!({ "maxLifetime": format!("{lifetime}s") }))?;
        let end = Timestamp::from_second(created()?.as_second() + lifetime).context("add seconds")?;
        sallyport_e2e::wait::until_true("the end in the status", SOON, || {
            let object = scene.api.get(&path)?.context("find the forward")?;
            Ok(object["status"]["expiresAt"] == json!(end.to_string()))
        })?;
        scene.wait_for(&path, "Accepted", "Expired", Duration::from_secs(30))?;
        ensure!(Timestamp::now() >= end, "expired before its time");
        let message = accepted(scene, "other")?;
        ensure!(
            message.contains(&format!("grant orders allows maxLifetime {lifetime}s from its creation")),
            "{message}"
        );
        kept.wait_until_cut(SOON)?;
        scene.expect_refusals(3307)?;

        // Created anew it has its time before it; a grant without limit lets it last.
        scene.api.delete(&path)?;
        scene.wait_until_gone(&path, SOON)?;
        scene.apply_ready(ORDERS, "other", &spec(3307))?;
        scene.expect_answers(3307)?;
        grant(scene, &json!({}))?;
        scene.wait_for(&forward_path(ORDERS, "mysql"), "Ready", "Ready", SOON)?;
        sallyport_e2e::wait::until_true("no end in the status", SOON, || {
            Ok(scene.api.get(&path)?.context("find the forward")?["status"]["expiresAt"].is_null())
        })?;
        scene.expect_answers(3306)
    })
}
