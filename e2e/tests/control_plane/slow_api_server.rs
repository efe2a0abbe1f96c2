//! An API server whose every answer is late is waited for: nobody gives up, nothing is written twice, nothing is lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use sallyport_e2e::control_plane::scene::{PAYMENTS, SYSTEM, Scene, both, forward_path, scene, spec};
use sallyport_e2e::faults::figure;
use sallyport_e2e::wait;

/// The longest that a forward may take, when an answer takes a second.
const LATE: Duration = Duration::from_secs(40);

/// Longer than a lease lasts that nobody renews.
const LEASES: Duration = Duration::from_secs(20);

/// How often the status of a new forward may be written: when it is understood, when it is verified, and in between when only one of
/// the two gateways has reported for a second.
const WRITES: usize = 3;

#[test]
fn forwards_are_followed_later_and_nothing_is_written_twice() -> Result<()> {
    scene(|scene| {
        let _db1 = scene.serve(&[3306, 3307])?;
        scene.apply_ready(PAYMENTS, "mysql", &both(3306))?;
        let leader = leader(scene)?;
        let mut place = 0;
        scene.server.writes_after(&mut place)?;
        let load = scene.load(3306)?;
        let took = scene.server.with_slow_api(|| {
            wait::holds_for("the leader leading", LEASES, || Ok(self::leader(scene)? == leader))?;
            scene.apply(PAYMENTS, "second", &spec(3307))?;
            scene.wait_for(&forward_path(PAYMENTS, "second"), "Ready", "Ready", LATE)
        })?;
        ensure!(self::leader(scene)? == leader, "the leader gave up");
        scene.expect_answers(3307)?;
        let report = load.end()?;
        report.expect_no_loss()?;

        let writes = scene.server.writes_after(&mut place)?;
        let of_status = |write: &&serde_json::Value| {
            let what = &write["objectRef"];
            what["name"] == "second" && what["resource"] == "portforwards" && what["subresource"] == "status"
        };
        let written: Vec<_> = writes.iter().filter(of_status).map(|write| &write["requestObject"]["status"]).collect();
        let count = written.len();
        ensure!(count <= WRITES, "its status was written {count} times: {written:?}");
        let says_something = written.iter().all(|status| status.is_object());
        ensure!(says_something && written.windows(2).all(|two| two[0] != two[1]), "written twice: {written:?}");
        let took = took.as_millis();
        figure(
            15,
            format_args!("each answer up to 1 s late: Ready after {took} ms, status written {count} times, {report}"),
        );
        Ok(())
    })
}

fn leader(scene: &Scene) -> Result<String> {
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/sallyport-operator");
    let lease = scene.api.get(&lease)?.unwrap_or_default();
    Ok(lease["spec"]["holderIdentity"].to_string() + &lease["spec"]["leaseTransitions"].to_string())
}
