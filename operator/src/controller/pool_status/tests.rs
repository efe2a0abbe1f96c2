//! When a pool is ready, and which of the things that are amiss it tells.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use jiff::Timestamp;

use super::*;
use crate::fixture::{Scene, synced};

/// A scene, silent agents, problems of the pool; reason, words of the message, nodes that are ready.
type Case<'a> = (&'a Scene, &'a [&'a str], &'a [Problem], &'a str, &'a str, i32);

fn told(scene: &Scene, silent: &[&str], problems: &[Problem]) -> (String, String, PoolNodeCounts) {
    let gateways: Vec<Gateway<'_>> = scene
        .store
        .gateways
        .objects()
        .map(|object| {
            let name = object.metadata.name.as_deref().unwrap();
            Gateway { name, object, silent: silent.contains(&name) }
        })
        .collect();
    let now = Time(Timestamp::UNIX_EPOCH);
    let old = GatewayPoolStatus::default();
    let status = pool_status(Some(3), problems, &gateways, ForwardCounts::default(), &old, &now);
    assert_eq!(status.observed_generation, Some(3));
    let ready = status.conditions.first().unwrap();
    (ready.reason.clone(), ready.message.clone(), status.nodes.unwrap())
}

#[test]
fn a_pool_is_ready_when_every_node_carries_all_its_forwards() {
    let scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306)]);
    let (reason, message, nodes) = told(&scene, &[], &[]);
    assert_eq!((reason.as_str(), nodes), ("Ready", PoolNodeCounts { matched: 2, ready: 2 }), "{message}");
}

#[test]
fn the_first_thing_that_is_amiss_is_told() {
    let problem = Problem { field: "spec.grants[0]".into(), reason: Reason::UnsupportedValue, message: "no".into() };
    let settled = Scene::settled(&["gw1", "gw2"], &[]);
    let mut waiting = Scene::settled(&["gw1", "gw2"], &[]);
    let mut report = waiting.done("gw2");
    report.conditions = vec![serde_json::from_value(synced("False", "NodeFailed", "no iptables", 1)).unwrap()];
    waiting.report("gw2", report);
    let empty = Scene::with_nodes(&[]);
    let cases: [Case<'_>; 4] = [
        (&settled, &[], std::slice::from_ref(&problem), "UnsupportedValue", "spec.grants[0]", 2),
        (&empty, &[], &[], "NoGatewayNodes", "label one", 0),
        (&settled, &["gw1"], &[], "AgentUnreachable", "gw1", 1),
        (&waiting, &[], &[], "Pending", "gw2: no iptables", 1),
    ];
    for (scene, silent, problems, reason, words, ready) in cases {
        let (told_reason, message, nodes) = told(scene, silent, problems);
        assert_eq!((told_reason.as_str(), nodes.ready), (reason, ready), "{message}");
        assert!(message.contains(words), "{reason}: {message}");
    }
}
