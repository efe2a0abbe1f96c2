//! Whose agent is silent, and which nodes are gone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::json;

use super::*;
use crate::fixture::{Scene, node};

const NOW: &str = "2026-01-01T01:00:00Z";

fn lease(scene: &mut Scene, renewed: &str) {
    scene.see(json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "namespace": "", "name": "sallyport-agent-gw1" }, "spec": { "renewTime": renewed } }));
}

fn track(tracker: &mut LivenessTracker, scene: &Scene) -> Liveness {
    tracker.track(&scene.store, NOW.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_silent_when_no_renewal_was_seen_for_as_long_as_its_lease_lasts() {
    let mut scene = Scene::settled(&["gw1"], &[]);
    let mut tracker = LivenessTracker::default();
    // A clock of the node that is wrong by years says nothing.
    lease(&mut scene, "1999-01-01T00:00:00.000000Z");
    assert!(!track(&mut tracker, &scene).is_silent(&"gw1".into()));
    tokio::time::advance(Duration::from_secs(39)).await;
    assert!(!track(&mut tracker, &scene).is_silent(&"gw1".into()));
    lease(&mut scene, "1999-01-01T00:00:10.000000Z");
    assert!(!track(&mut tracker, &scene).is_silent(&"gw1".into()));
    tokio::time::advance(Duration::from_secs(39)).await;
    assert!(!track(&mut tracker, &scene).is_silent(&"gw1".into()), "it was renewed");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(track(&mut tracker, &scene).is_silent(&"gw1".into()));
    lease(&mut scene, "1999-01-01T00:00:20.000000Z");
    assert!(!track(&mut tracker, &scene).is_silent(&"gw1".into()), "it is back");
}

#[tokio::test(start_paused = true)]
async fn a_missing_lease_is_silence_only_of_an_agent_that_was_there() {
    let mut scene = Scene::with_nodes(&["gw1"]);
    scene.pass();
    let mut tracker = LivenessTracker::default();
    assert!(track(&mut tracker, &scene).never_started(&"gw1".into()));
    scene.obey("gw1");
    let liveness = track(&mut tracker, &scene);
    assert!(!liveness.never_started(&"gw1".into()) && !liveness.is_silent(&"gw1".into()));
    tokio::time::advance(Duration::from_secs(41)).await;
    assert!(track(&mut tracker, &scene).is_silent(&"gw1".into()));
}

#[tokio::test]
async fn nodes_that_are_gone_or_not_ready_for_long_are_not_waited_for() {
    for (status, since, gone) in [
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
        assert_eq!(
            track(&mut LivenessTracker::default(), &scene).gone.contains(&"gw1".into()),
            gone,
            "{status} {since}"
        );
    }
    let mut scene = Scene::settled(&["gw1"], &[]);
    scene.store.nodes.deleted("gw1");
    assert!(track(&mut LivenessTracker::default(), &scene).gone.contains(&"gw1".into()));
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_counts_nodes_with_silent_agents_as_gone() {
    let mut scene = Scene::settled(&["gw1"], &[]);
    let mut tracker = LivenessTracker { gives_up: true, ..LivenessTracker::default() };
    lease(&mut scene, "2026-01-01T00:00:00.000000Z");
    assert!(track(&mut tracker, &scene).gone.is_empty());
    tokio::time::advance(Duration::from_secs(41)).await;
    assert!(track(&mut tracker, &scene).gone.contains(&"gw1".into()));
    let mut starting = Scene::with_nodes(&["gw1"]);
    starting.pass();
    assert!(track(&mut tracker, &starting).gone.contains(&"gw1".into()));
}
