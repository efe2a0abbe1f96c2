//! Of two replicas of the operator one writes; when it dies the other takes over, and no gateway notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::control_plane::Stopped;
use sallyport_e2e::control_plane::scene::{PAYMENTS, Scene, both, forward_path, scene, spec};
use sallyport_e2e::faults::figure;
use serde_json::Value;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/sallyport-system/leases/sallyport-operator";

#[test]
fn only_the_leader_writes_and_the_other_takes_over() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307])?;
        scene.start_operator("operator-b")?;
        scene.apply_ready(PAYMENTS, "mysql", &spec(3306))?;
        ensure!(holder(scene)? == "operator-a", "{} leads", holder(scene)?);
        let rules = scene.rules()?;

        scene.operators[0].process().kill()?;
        // The API knows nothing of the death: what is asked for meanwhile is done by the successor.
        scene.apply(PAYMENTS, "second", &spec(3307))?;
        let path = forward_path(PAYMENTS, "second");
        let took = scene.wait_for(&path, "Ready", "Ready", Duration::from_secs(40))?;
        figure(3, format_args!("killed: the other had done its first work after {} ms", took.as_millis()));
        ensure!(holder(scene)? == "operator-b", "{} leads", holder(scene)?);
        for (before, after) in rules.iter().zip(scene.rules()?) {
            let lost: Vec<_> = before.lines().filter(|line| !after.contains(line)).collect();
            ensure!(lost.is_empty(), "rules were lost in the take-over: {lost:?}");
        }
        scene.expect_answers(3306)?;
        scene.expect_answers(3307)?;

        // The former leader comes back as the second.
        scene.start_operator("operator-a")?;
        scene.apply_ready(PAYMENTS, "third", &spec(3308))?;
        ensure!(holder(scene)? == "operator-b", "{} leads", holder(scene)?);
        one_writer_at_a_time(scene)
    })
}

#[test]
fn leader_that_stood_still_writes_nothing_when_it_goes_on() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307])?;
        scene.start_operator("operator-b")?;
        scene.apply_ready(PAYMENTS, "mysql", &both(3306))?;
        let load = scene.load(3306)?;
        let stopped = Stopped::stop(scene.operators[0].process().pid())?;
        scene.apply(PAYMENTS, "second", &spec(3307))?;
        scene.wait_for(&forward_path(PAYMENTS, "second"), "Ready", "Ready", Duration::from_secs(40))?;
        ensure!(holder(scene)? == "operator-b", "{} leads", holder(scene)?);
        drop(stopped);
        let status = scene.operators[0].process().wait(Duration::from_secs(15))?;
        ensure!(!status.success(), "it ended as if all were well");
        scene.apply_ready(PAYMENTS, "third", &spec(3308))?;
        one_writer_at_a_time(scene)?;
        let events = scene.api.list(&format!("/apis/events.k8s.io/v1/namespaces/{PAYMENTS}/events"))?;
        let told = |event: &&Value| event["regarding"]["name"] == "second" && event["reason"] == "Verified";
        ensure!(events.iter().filter(told).count() <= 1, "an event was told twice: {events:?}");
        let report = load.end()?;
        report.expect_no_loss().context("while the leader stood still")?;
        figure(3, format_args!("stood still: ended by itself when it went on, {report}"));
        Ok(())
    })
}

/// Each replica has a token of its own, by which the API server's audit log tells them apart.
fn one_writer_at_a_time(scene: &Scene) -> Result<()> {
    let log = scene.server.writes()?;
    let mut writers: Vec<&Value> = Vec::new();
    for write in in_order(&log) {
        let token = &write["user"]["extra"]["authentication.kubernetes.io/credential-id"][0];
        if writers.last() != Some(&token) {
            writers.push(token);
        }
    }
    ensure!(writers.len() == 2, "two leaders one after the other would be 2 runs of writes, not: {writers:?}");
    Ok(())
}

/// The operator's writes in the order in which the API server got them; every replica writes Leases.
fn in_order(writes: &[Value]) -> Vec<&Value> {
    let mut ours: Vec<&Value> = writes
        .iter()
        .filter(|write| write["user"]["username"] == "system:serviceaccount:sallyport-system:sallyport-operator")
        .filter(|write| write["objectRef"]["resource"] != "leases")
        .collect();
    ours.sort_by_key(|write| write["requestReceivedTimestamp"].as_str());
    ours
}

fn holder(scene: &Scene) -> Result<String> {
    let lease = scene.api.get(LEASE)?.context("find the operator's Lease")?;
    Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
}
