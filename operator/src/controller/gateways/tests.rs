//! How a node joins, is cleaned and leaves: each step waits for the one before it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::json;

use super::*;
use crate::fixture::{Scene, node, pool};

const NOTHING: [&str; 0] = [];

/// The node gets the label of another pool, or of none; it keeps the agent's.
fn assign(scene: &mut Scene, pool: &str) {
    let mut object = node("gw1", pool);
    object["metadata"]["labels"][AGENT_LABEL] = "".into();
    scene.see(object);
}

#[test]
fn a_node_gets_its_configuration_and_then_its_agent() {
    let mut scene = Scene::with_nodes(&["gw1"]);
    scene.see(node("other", "none"));
    assert_eq!(scene.pass(), ["gateway gw1 Active default"]);
    assert_eq!(scene.pass(), ["label gw1"]);
    assert_eq!(scene.pass(), NOTHING);
}

#[test]
fn a_node_is_cleaned_before_its_agent_goes_and_forgotten_last() {
    let mut scene = Scene::settled(&["gw1"], &[]);
    assign(&mut scene, "none");
    assert_eq!(scene.pass(), ["gateway gw1 Retired default"]);
    assert_eq!(scene.pass(), NOTHING, "until the agent has cleaned");
    scene.obey("gw1");
    assert_eq!(scene.pass(), ["unlabel gw1"]);
    assert_eq!(scene.pass(), ["delete gateway gw1"]);
    assert_eq!(scene.pass(), NOTHING);
}

#[test]
fn a_report_on_an_older_configuration_does_not_count() {
    let mut scene = Scene::settled(&["gw1"], &[]);
    assign(&mut scene, "none");
    scene.pass();
    let generation = scene.gateway("gw1").metadata.generation.unwrap();
    let mut report = scene.done("gw1");
    for (observed, clean) in [(Some(generation - 1), false), (None, false), (Some(generation), true)] {
        report.conditions[0].observed_generation = observed;
        scene.report("gw1", report.clone());
        assert_eq!(is_clean(&scene.gateway("gw1")), clean, "{observed:?}");
        assert_eq!(scene.decide().labelled.contains(&"gw1".into()), !clean, "{observed:?}");
    }
    report.state = Some(ObservedNodeState::Active);
    scene.report("gw1", report);
    assert!(!is_clean(&scene.gateway("gw1")));
}

#[test]
fn a_node_is_cleaned_before_it_serves_another_pool() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.see(pool("second"));
    assign(&mut scene, "second");
    assert_eq!(scene.pass(), ["gateway gw1 Retired default"]);
    assert_eq!(scene.pass(), NOTHING);
    scene.obey("gw1");
    assert_eq!(scene.pass(), ["gateway gw1 Active second"]);
    assert!(!scene.pass().contains(&"unlabel gw1".to_owned()), "its agent stays");
}

#[test]
fn a_node_that_comes_back_while_it_leaves_is_active_at_once() {
    let mut scene = Scene::settled(&["gw1"], &[]);
    assign(&mut scene, "none");
    scene.pass();
    assign(&mut scene, "default");
    assert_eq!(scene.pass(), ["gateway gw1 Active default"]);
    assert_eq!(scene.pass(), NOTHING);
}

#[test]
fn a_configuration_that_vanished_comes_back_and_the_agent_stays() {
    let mut scene = Scene::settled(&["gw1"], &[]);
    scene.store.gateways.deleted("gw1");
    assert_eq!(scene.pass(), ["gateway gw1 Active default"]);
}

#[test]
fn an_agent_that_nothing_explains_cleans_up_before_it_goes() {
    let mut scene = Scene::with_nodes(&[]);
    assign(&mut scene, "none");
    assert_eq!(scene.pass(), ["gateway gw1 Retired default"]);
    assert_eq!(scene.pass(), NOTHING);
    scene.obey("gw1");
    assert_eq!([scene.pass(), scene.pass()].concat(), ["unlabel gw1", "delete gateway gw1"]);
}

#[test]
fn the_nodes_of_an_unreadable_pool_stay_as_they_are() {
    let mut scene = Scene::settled(&["gw1"], &[]);
    scene.store.pools = crate::controller::cache::Cache::default();
    let mut unreadable = pool("default");
    unreadable["spec"]["grants"] = json!("from the future");
    scene.see(unreadable);
    assert_eq!(scene.pass(), NOTHING);
}
