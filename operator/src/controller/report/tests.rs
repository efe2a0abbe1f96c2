//! Which statuses are written at once, which wait, and which are no news; how forwards are counted.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::sync::Arc;

use prometheus_client::registry::Registry;
use serde_json::json;

use super::*;
use crate::fixture::{Scene, forward};

struct Desk {
    scene: Scene,
    reporter: Reporter,
    metrics: Metrics,
}

impl Desk {
    fn new(scene: Scene) -> Self {
        let metrics = Metrics::new(&mut Registry::default());
        Self { scene, reporter: Reporter::default(), metrics }
    }

    /// The statuses of forwards that are to be written now; the API server takes them.
    fn told(&mut self) -> Vec<String> {
        let desired = self.scene.decide();
        let liveness = Liveness::default();
        let Scene { store, revisions, .. } = &self.scene;
        let writes = self.reporter.writes(store, revisions, &liveness, &desired, &self.metrics);
        let reports = writes.into_iter().filter_map(|write| match write {
            Write::ForwardStatus(report) => Some(report),
            _ => None,
        });
        let reports: Vec<_> = reports.collect();
        let said = reports.iter().map(|report| {
            let nodes = report.status.nodes.unwrap();
            let programmed = condition::of(&report.status.conditions, ConditionType::Programmed).unwrap();
            format!("{} {} {}/{}", report.key.name, programmed.reason.unwrap(), nodes.programmed, nodes.desired)
        });
        let said = said.collect();
        for report in reports {
            let mut object = self.scene.forward(&report.key.name);
            object["status"] = json!(report.status);
            self.scene.see(object);
        }
        said
    }
}

/// Lets the time pass that the desk waits for.
async fn wait(desk: &Desk) -> Duration {
    let rest = desk.reporter.next_look().unwrap() - Instant::now();
    tokio::time::advance(rest).await;
    rest
}

#[tokio::test(start_paused = true)]
async fn mere_progress_is_told_once_a_second_and_an_end_at_once() {
    let mut desk = Desk::new(Scene::settled(&["gw1", "gw2", "gw3"], &[]));
    desk.scene.see(forward("a", 3306));
    desk.scene.pass();
    desk.scene.pass();
    assert!(desk.told().is_empty(), "it may arrive in a moment");
    assert_eq!(wait(&desk).await, ON_ITS_WAY);
    assert_eq!(desk.told(), ["a Pending 0/3"]);
    desk.scene.obey("gw1");
    assert!(desk.told().is_empty(), "that is mere progress");
    wait(&desk).await;
    assert_eq!(desk.told(), ["a Pending 1/3"]);
    desk.scene.obey("gw2");
    assert!(desk.told().is_empty());
    desk.scene.obey("gw3");
    assert_eq!(desk.told(), ["a Verified 3/3"]);
    assert!(desk.told().is_empty(), "what is settled is not written again");
    assert_eq!(desk.reporter.next_look(), None);
}

#[tokio::test(start_paused = true)]
async fn what_arrives_in_a_moment_is_told_once() {
    let mut desk = Desk::new(Scene::settled(&["gw1"], &[]));
    desk.scene.see(forward("a", 3306));
    desk.scene.pass();
    desk.scene.pass();
    assert!(desk.told().is_empty());
    desk.scene.obey("gw1");
    assert_eq!(desk.told(), ["a Verified 1/1"]);

    let mut edited = desk.scene.forward("a");
    edited["metadata"]["generation"] = json!(2);
    edited["spec"]["ports"][0]["port"] = json!(3307);
    desk.scene.see(edited);
    desk.scene.pass();
    assert!(desk.told().is_empty(), "its status still speaks of generation 1");
    desk.scene.obey("gw1");
    assert_eq!(desk.told(), ["a Verified 1/1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_or_refused_is_told_at_once() {
    let mut desk = Desk::new(Scene::settled(&["gw1"], &[("a", 3306)]));
    assert_eq!(desk.told(), ["a Verified 1/1"]);
    // The node says nothing of the slice any more: nothing else is new.
    let mut status = desk.scene.done("gw1");
    status.observed_slices[0].state = sallyport_api::gateway_node::SliceState::Pending;
    desk.scene.report("gw1", status);
    assert_eq!(desk.told(), ["a Pending 0/1"]);
    desk.scene.see(forward("b", 3306));
    assert_eq!(desk.told(), ["b PortConflict 0/1"]);
}

#[tokio::test(start_paused = true)]
async fn connections_that_drain_are_told_once_a_second() {
    let mut desk = Desk::new(Scene::settled(&["gw1"], &[("a", 3306)]));
    desk.told();
    for connections in [3, 2, 0] {
        let mut status = desk.scene.done("gw1");
        let uid: String = desk.scene.forward("a")["metadata"]["uid"].as_str().unwrap().chars().take(13).collect();
        let listed = json!([{ "uid": uid, "connections": connections }]);
        status.draining = if connections == 0 { Vec::new() } else { serde_json::from_value(listed).unwrap() };
        desk.scene.report("gw1", status);
        assert!(desk.told().is_empty(), "{connections} at once");
        tokio::time::advance(desk.reporter.next_look().unwrap() - Instant::now()).await;
        assert_eq!(desk.told(), ["a Verified 1/1"]);
        assert_eq!(desk.scene.forward("a")["status"]["targets"]["draining"].as_i64().unwrap_or_default(), connections);
    }
    assert_eq!((desk.told().len(), desk.reporter.next_look()), (0, None));
}

#[tokio::test]
async fn a_forward_that_cannot_be_read_is_told_once_for_each_form() {
    let mut desk = Desk::new(Scene::settled(&["gw1"], &[]));
    let mut broken = forward("a", 3306);
    broken["spec"]["ports"] = json!("all");
    desk.scene.see(broken.clone());
    let tell = |desk: &mut Desk| {
        let desired = desk.scene.decide();
        let Scene { store, revisions, .. } = &desk.scene;
        let writes = desk.reporter.writes(store, revisions, &Liveness::default(), &desired, &desk.metrics);
        let mut statuses = writes.into_iter().filter_map(|write| match write {
            Write::ForwardStatus(report) => Some(report),
            _ => None,
        });
        statuses.next()
    };
    let report = tell(&mut desk).unwrap();
    let accepted = condition::of(&report.status.conditions, ConditionType::Accepted).unwrap();
    assert_eq!(accepted.reason, Some(Reason::UnsupportedValue));
    assert!(report.status.conditions[0].message.contains("spec.ports"), "{:?}", report.status.conditions);
    assert!(tell(&mut desk).is_some(), "what was not written has to be written");
    desk.reporter.written(*report, false);
    assert!(tell(&mut desk).is_none());
    broken["spec"]["ports"] = json!(7);
    desk.scene.see(broken);
    assert!(tell(&mut desk).is_some());
}

#[tokio::test]
async fn forwards_are_counted_by_pool_and_verdict() {
    let mut desk = Desk::new(Scene::settled(&["gw1"], &[("a", 3306)]));
    desk.scene.see(forward("b", 3306));
    let desired = desk.scene.decide();
    let Scene { store, revisions, .. } = &desk.scene;
    let writes = desk.reporter.writes(store, revisions, &Liveness::default(), &desired, &desk.metrics);
    let status = writes.iter().find_map(|write| match write {
        Write::PoolStatus(name, status) if name == "default" => Some(Arc::new((**status).clone())),
        _ => None,
    });
    assert_eq!(status.unwrap().forwards, Some(ForwardCounts { accepted: 1, refused: 1 }));
}
