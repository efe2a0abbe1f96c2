//! Which agents are silent and which nodes are dead, by no clock but our own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::json;

use super::*;
use crate::fixture::{Scene, node};

const NOW: &str = "2026-01-01T01:00:00Z";

fn lease(scene: &mut Scene, renewed: &str) {
    scene.see(json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "namespace": "", "name": "sallyport-agent-gw1" }, "spec": { "renewTime": renewed } }));
}

fn feel(pulse: &mut Pulse, scene: &Scene) -> Vital {
    pulse.feel(&scene.world, NOW.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_silent_when_no_renewal_was_seen_for_as_long_as_its_lease_lasts() {
    let mut scene = Scene::settled(&["gw1"], &[]);
    let mut pulse = Pulse::default();
    // A clock of the node that is wrong by years says nothing.
    lease(&mut scene, "1999-01-01T00:00:00.000000Z");
    assert!(feel(&mut pulse, &scene).silent.is_empty());
    tokio::time::advance(Duration::from_secs(39)).await;
    assert!(feel(&mut pulse, &scene).silent.is_empty());
    lease(&mut scene, "1999-01-01T00:00:10.000000Z");
    assert!(feel(&mut pulse, &scene).silent.is_empty());
    tokio::time::advance(Duration::from_secs(39)).await;
    assert!(feel(&mut pulse, &scene).silent.is_empty(), "it was renewed");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(feel(&mut pulse, &scene).silent.contains("gw1"));
    lease(&mut scene, "1999-01-01T00:00:20.000000Z");
    assert!(feel(&mut pulse, &scene).silent.is_empty(), "it is back");
}

#[tokio::test(start_paused = true)]
async fn a_missing_lease_is_silence_only_of_an_agent_that_was_there() {
    let mut scene = Scene::with_nodes(&["gw1"]);
    scene.pass();
    let mut pulse = Pulse::default();
    assert!(feel(&mut pulse, &scene).unborn.contains("gw1"));
    scene.obey("gw1");
    let vital = feel(&mut pulse, &scene);
    assert!(vital.unborn.is_empty() && vital.silent.is_empty());
    tokio::time::advance(Duration::from_secs(41)).await;
    assert!(feel(&mut pulse, &scene).silent.contains("gw1"));
}

#[tokio::test]
async fn nodes_that_are_gone_or_not_ready_for_long_are_not_waited_for() {
    for (status, since, dead) in [
        ("True", "2026-01-01T00:00:00Z", false),
        ("False", "2026-01-01T00:56:00Z", false),
        ("False", "2026-01-01T00:54:00Z", true),
        ("Unknown", "2026-01-01T00:54:00Z", true),
        ("False", "2026-01-01T09:00:00Z", false),
    ] {
        let mut scene = Scene::settled(&["gw1"], &[]);
        let mut object = node("gw1", "default");
        object["status"]["conditions"] = json!([{ "type": "Ready", "status": status, "lastTransitionTime": since }]);
        scene.see(object);
        assert_eq!(feel(&mut Pulse::default(), &scene).dead.contains("gw1"), dead, "{status} {since}");
    }
    let mut scene = Scene::settled(&["gw1"], &[]);
    scene.world.nodes.deleted("gw1");
    assert!(feel(&mut Pulse::default(), &scene).dead.contains("gw1"));
}
