//! Which writes follow from what was decided, in which order, and what the API server gets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use serde_json::Value;

use super::*;
use crate::fixture::{Scene, forward, pool};

const NOTHING: [&str; 0] = [];

#[test]
fn nothing_is_written_that_is_so_already() {
    let mut scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306), ("b", 3307)]);
    assert_eq!(scene.pass(), NOTHING);
    // Whoever leads next knows only the objects, and comes to the same.
    scene.history = crate::controller::carried::History::default();
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
    scene.world.slices.deleted("default-0000");
    scene.history = crate::controller::carried::History::default();
    scene.delete_forward("a");
    assert_eq!(scene.pass(), ["slice default-0000 []"]);
    scene.obey("gw1");
    scene.settle();
    assert_eq!(scene.world.slices.objects().count(), 0);
}

#[test]
fn finalizers_of_others_stay_and_the_revision_goes_along() {
    let mut scene = Scene::with_nodes(&[]);
    scene.see(forward("a", 3306));
    let key = ForwardRef { namespace: "apps".into(), name: "a".into() };
    let revision = scene.forward("a")["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let both = vec!["example.com/other".to_owned(), FINALIZER.to_owned()];
    assert_eq!(finalizer_write(&scene.world, &key, true), Some(Write::Finalizers(key.clone(), revision, both.clone())));
    let mut held = scene.forward("a");
    held["metadata"]["finalizers"] = json!(both);
    scene.see(held);
    for (wanted, list) in [(true, both), (false, vec!["example.com/other".to_owned()])] {
        let Some(Write::Finalizers(.., written)) = finalizer_write(&scene.world, &key, wanted) else { panic!() };
        assert_eq!(written, list);
    }
    let gone = ForwardRef { namespace: "apps".into(), name: "gone".into() };
    assert_eq!(finalizer_write(&scene.world, &gone, false), None);
}

#[test]
fn a_forward_that_moves_is_in_its_new_slice_first() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306), ("b", 3307)]);
    let mut desired = scene.decide();
    let whole = desired.slices["default-0000"].clone();
    let (one, other) = (vec![whole.forwards[0].clone()], vec![whole.forwards[1].clone()]);
    let of = |forwards| ForwardSliceSpec { hash: "new".into(), forwards, ..whole.clone() };
    desired.slices = BTreeMap::from([("default-0000".to_owned(), of(one)), ("default-0001".to_owned(), of(other))]);
    let slices = |scene: &Scene| writes(&scene.world, &desired);
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
    assert_eq!(scene.world.slices.objects().count(), 1);
}

#[test]
fn what_one_object_is_is_written_one_after_the_other() {
    let key = ForwardRef { namespace: "apps".into(), name: "a".into() };
    let report = ForwardReport {
        key: key.clone(),
        uid: String::new(),
        status: PortForwardStatus::default(),
        before: PortForwardStatus::default(),
        unreadable: false,
    };
    let status = Write::ForwardStatus(Box::new(report));
    let finalizers = Write::Finalizers(key, String::new(), vec![]);
    assert_eq!(status.subject(), finalizers.subject());
    assert_eq!((status.resource(), finalizers.resource()), ("portforwards/status", "portforwards"));
    assert!(finalizers.matters() && !status.matters());
    assert_ne!(Write::Label("a".into(), true).subject(), Write::DeleteGateway("a".into()).subject());
}

/// Sends a write to an API server that answers with what it got; what it got.
async fn sent(write: Write) -> (String, Value) {
    let (client, mut handle) = crate::fixture::api_server();
    let served = async {
        let (request, answer) = handle.next_request().await.unwrap();
        let said = format!("{} {}", request.method(), request.uri());
        let body: Value = serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
        let mut object = if body.is_object() { body.clone() } else { json!({}) };
        object["metadata"]["name"] = "gw1".into();
        object["metadata"]["labels"] = json!({});
        crate::fixture::respond(answer, 200, &object);
        (said, body)
    };
    let (sent, served) = tokio::join!(write.send(client), served);
    assert!(sent.is_ok(), "{:?}", sent.err());
    served
}

#[tokio::test]
async fn labels_and_owners_are_what_the_api_server_gets() {
    let (said, body) = sent(Write::Label("gw1".into(), true)).await;
    assert_eq!(said, "PATCH /api/v1/nodes/gw1?&force=true&fieldManager=sallyport-operator");
    assert_eq!(body["metadata"], json!({ "labels": { AGENT_LABEL: "" } }), "and nothing else of the node");
    let (_, body) = sent(Write::Label("gw1".into(), false)).await;
    assert_eq!(body, json!({ "metadata": { "labels": { AGENT_LABEL: null } } }));
    let spec = Scene::settled(&["gw1"], &[]).gateway("gw1").spec;
    let (_, body) = sent(Write::Gateway("gw1".into(), "u".into(), spec)).await;
    assert_eq!(
        body["metadata"]["ownerReferences"],
        json!([{ "apiVersion": "v1", "kind": "Node", "name": "gw1", "uid": "u" }])
    );
}

#[tokio::test]
async fn a_status_is_for_the_object_of_this_uid_only() {
    let key = ForwardRef { namespace: "apps".into(), name: "a".into() };
    let report = |unreadable| ForwardReport {
        key: key.clone(),
        uid: "u".into(),
        status: PortForwardStatus::default(),
        before: PortForwardStatus::default(),
        unreadable,
    };
    let (said, body) = sent(Write::ForwardStatus(Box::new(report(false)))).await;
    assert!(said.starts_with("PATCH /apis/sallyport.dev/v1alpha1/namespaces/apps/portforwards/a/status?"), "{said}");
    assert_eq!(body["metadata"], json!({ "uid": "u" }));
    assert!(body.get("spec").is_none());
    // Of what cannot be read the whole status is replaced: nothing is left that was said of its better days.
    let (_, body) = sent(Write::ForwardStatus(Box::new(report(true)))).await;
    assert_eq!(body[0], json!({ "op": "test", "path": "/metadata/uid", "value": "u" }));
    assert_eq!(body[1], json!({ "op": "add", "path": "/status", "value": {} }));
}

#[tokio::test]
async fn a_repair_that_was_told_already_is_told() {
    let drift = json!({ "time": "2026-01-01T00:00:00Z", "message": "jump" });
    let mut world = World::default();
    let object = json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "GatewayNode", "metadata": { "name": "gw1", "resourceVersion": "1" },
        "spec": { "pool": "default", "state": "Active" }, "status": { "lastDrift": drift },
    });
    world.gateways.feed(kube::runtime::watcher::Event::Apply(crate::fixture::guard(object)));
    for code in [503, 409] {
        let write = world.drifts.writes(&world.gateways, 0).remove(0);
        let (client, mut handle) = crate::fixture::api_server();
        let refused = async {
            let (request, answer) = handle.next_request().await.unwrap();
            assert!(request.uri().path().ends_with("/namespaces/default/events"), "{}", request.uri());
            let reason = if code == 409 { "AlreadyExists" } else { "ServiceUnavailable" };
            let status = json!({ "kind": "Status", "status": "Failure", "reason": reason, "code": code });
            crate::fixture::respond(answer, code, &status);
        };
        let (answer, ()) = tokio::join!(write.send(client), refused);
        assert_eq!(answer.is_ok(), code == 409);
        if let Ok(answer) = answer {
            answer(&mut world);
        }
    }
    assert_eq!(world.drifts.writes(&world.gateways, 0), []);
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
