//! Of two replicas of the operator one writes; when it dies the other takes over, and no gateway notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::control_plane::scene::{PAYMENTS, Scene, forward_path, scene, spec};
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
        println!("the other replica had done its first work {} ms after the leader's death", took.as_millis());
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
