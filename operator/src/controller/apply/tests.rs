//! Which writes follow from what was decided, in which order, and what the API server gets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use serde_json::json;

use super::*;
use crate::fixture::{Scene, forward, pool};

const NOTHING: [&str; 0] = [];

#[test]
fn nothing_is_written_that_is_so_already() {
    let mut scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306), ("b", 3307)]);
    assert_eq!(scene.pass(), NOTHING);
    // Whoever leads next knows only the objects, and comes to the same.
    scene.revisions = crate::controller::rollout::SliceRevisions::default();
    assert_eq!(scene.pass(), NOTHING);
    scene.obey("gw1");
    assert_eq!(scene.pass(), NOTHING);
}

#[test]
fn a_forward_is_held_before_it_is_carried_and_let_go_last() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.see(forward("b", 3307));
    assert_eq!(scene.pass(), ["hold b"]);
    assert_eq!(scene.pass(), ["slice default-0000 [a b]"]);
    scene.obey("gw1");
    scene.delete_forward("b");
    assert_eq!(scene.pass(), ["slice default-0000 [a]"]);
    assert_eq!(scene.pass(), NOTHING);
    scene.obey("gw1");
    assert_eq!(scene.pass(), ["release b"]);
    assert_eq!(scene.pass(), NOTHING);
}

#[test]
fn a_forward_that_came_and_went_unreported_is_waited_for() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.see(forward("b", 3307));
    assert_eq!(scene.pass(), ["hold b"]);
    assert_eq!(scene.pass(), ["slice default-0000 [a b]"]);
    scene.delete_forward("b");
    // The slice is what the last report speaks of, but that was before.
    assert_eq!(scene.pass(), ["slice default-0000 [a]"]);
    assert_eq!(scene.pass(), NOTHING);
    scene.obey("gw1");
    assert_eq!(scene.pass(), ["release b"]);
}

#[test]
fn a_slice_that_vanished_while_nobody_led_comes_back_empty_and_then_goes() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.store.slices.deleted("default-0000");
    scene.revisions = crate::controller::rollout::SliceRevisions::default();
    scene.delete_forward("a");
    assert_eq!(scene.pass(), ["slice default-0000 []"]);
    scene.obey("gw1");
    scene.settle();
    assert_eq!(scene.store.slices.objects().count(), 0);
}

#[test]
fn finalizers_of_others_stay_and_the_revision_goes_along() {
    let mut scene = Scene::with_nodes(&[]);
    scene.see(forward("a", 3306));
    let key = ForwardRef { namespace: "apps".into(), name: "a".into() };
    let revision = scene.forward("a")["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let both = vec!["example.com/other".to_owned(), FINALIZER.to_owned()];
    assert_eq!(finalizer_write(&scene.store, &key, true), Some(Write::Finalizers(key.clone(), revision, both.clone())));
    let mut held = scene.forward("a");
    held["metadata"]["finalizers"] = json!(both);
    scene.see(held);
    for (wanted, list) in [(true, both), (false, vec!["example.com/other".to_owned()])] {
        let Some(Write::Finalizers(.., written)) = finalizer_write(&scene.store, &key, wanted) else { panic!() };
        assert_eq!(written, list);
    }
    let gone = ForwardRef { namespace: "apps".into(), name: "gone".into() };
    assert_eq!(finalizer_write(&scene.store, &gone, false), None);
}

#[test]
fn a_forward_that_moves_is_in_its_new_slice_first() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306), ("b", 3307)]);
    let mut desired = scene.decide();
    let whole = desired.slices["default-0000"].clone();
    let (one, other) = (vec![whole.forwards[0].clone()], vec![whole.forwards[1].clone()]);
    let of = |forwards| ForwardSliceSpec { hash: "new".into(), forwards, ..whole.clone() };
    desired.slices = BTreeMap::from([("default-0000".to_owned(), of(one)), ("default-0001".to_owned(), of(other))]);
    let slices = |scene: &Scene| writes(&scene.store, &desired);
    let first = slices(&scene);
    let [Write::Slice(name, _, spec)] = first.as_slice() else { panic!("{first:?}") };
    assert_eq!(name, "default-0001");
    scene.see(json!({ "kind": "ForwardSlice", "apiVersion": "sallyport.dev/v1alpha1", "metadata": { "name": name }, "spec": spec }));
    let then = slices(&scene);
    let [Write::Slice(name, ..)] = then.as_slice() else { panic!("{then:?}") };
    assert_eq!(name, "default-0000", "and only then it leaves the old one");
}

#[test]
fn a_forward_that_changes_pools_is_never_without_a_gateway() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.see(pool("second"));
    let mut moved = scene.forward("a");
    moved["spec"]["pool"] = "second".into();
    scene.see(moved);
    assert_eq!(scene.pass(), ["slice second-0000 [a]"]);
    assert_eq!(scene.pass(), ["slice default-0000 []"]);
    scene.settle();
    assert_eq!(scene.store.slices.objects().count(), 1);
}

#[test]
fn namespaces_take_turns() {
    let keys = ["a/1", "a/2", "a/3", "b/1", "c/1", "c/2"].map(|text| {
        let (namespace, name) = text.split_once('/').unwrap();
        ForwardRef { namespace: namespace.into(), name: name.into() }
    });
    let order: Vec<String> = in_turn(keys.to_vec(), |key| key).iter().map(ToString::to_string).collect();
    assert_eq!(order, ["a/1", "b/1", "c/1", "a/2", "c/2", "a/3"]);
}
