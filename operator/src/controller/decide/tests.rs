//! What should be: which forwards are in slices, which wait, and what unreadable objects and dead nodes change.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use sallyport_api::id::Moment;
use sallyport_api::names::FINALIZER;
use sallyport_policy::digest::slice_hash;
use serde_json::{Value, json};

use super::*;
use crate::controller::cache::Cache;
use crate::fixture::{Scene, forward, node, pool};

fn key(name: &str) -> ForwardRef {
    ForwardRef { namespace: "apps".into(), name: name.into() }
}

fn carried(desired: &Desired, slice: &str) -> Vec<String> {
    desired.slices[slice].forwards.iter().map(|forward| forward.r#ref.name.clone()).collect()
}

fn refusal<'a>(desired: &'a Desired, name: &str) -> &'a Problem {
    match &desired.verdicts[&key(name)] {
        Verdict::Refused(problems) => &problems[0],
        Verdict::Accepted(_) => panic!("{name} is accepted"),
    }
}

/// The object in a form that this version cannot read.
fn unreadable_form(mut object: Value, part: &str) -> Value {
    object["spec"][part] = json!("from the future");
    object
}

#[test]
fn a_forward_enters_a_slice_only_with_our_finalizer() {
    let mut scene = Scene::with_nodes(&["gw1"]);
    scene.see(forward("a", 3306));
    let desired = scene.decide();
    assert_eq!(desired.to_hold, BTreeSet::from([key("a")]));
    assert!(desired.slices.is_empty(), "not even an empty slice: {:?}", desired.slices);
    assert!(matches!(desired.verdicts[&key("a")], Verdict::Accepted(_)));

    let mut held = forward("a", 3306);
    held["metadata"]["finalizers"] = json!(["example.com/other", FINALIZER]);
    scene.see(held);
    let desired = scene.decide();
    assert!(desired.to_hold.is_empty());
    assert_eq!(carried(&desired, "default-0000"), ["a"]);
    assert_eq!(desired.slices["default-0000"].hash, slice_hash(&desired.slices["default-0000"].forwards));
}

#[test]
fn a_newcomer_without_finalizer_changes_nothing_for_the_others() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    let before = scene.decide().slices;
    scene.see(forward("b", 3307));
    let desired = scene.decide();
    assert_eq!(desired.slices, before, "hash included");
    // A finalizer that somebody took away comes back; meanwhile the forward stays where it is.
    scene.see(forward("a", 3306));
    let desired = scene.decide();
    assert_eq!(desired.to_hold, BTreeSet::from([key("a"), key("b")]));
    assert_eq!(desired.slices, before);
}

#[test]
fn a_deleted_forward_is_released_only_when_no_node_carries_it() {
    let mut scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306), ("b", 3307)]);
    scene.delete_forward("a");
    let desired = scene.decide();
    assert_eq!(carried(&desired, "default-0000"), ["b"]);
    assert!(!desired.verdicts.contains_key(&key("a")));
    assert!(desired.to_release.is_empty(), "its slice still has it");

    assert_eq!(scene.pass(), ["slice default-0000 [b]"]);
    scene.obey("gw1");
    let desired = scene.decide();
    assert!(desired.to_release.is_empty(), "gw2 has not read it back");
    assert_eq!(scene.revisions.outgoing().len(), 1);
    scene.obey("gw2");
    assert_eq!(scene.pass(), ["release a"]);
}

#[test]
fn the_port_of_a_deleted_forward_is_given_once_it_is_off_every_node() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.delete_forward("a");
    scene.see(forward("b", 3306));
    scene.pass();
    assert_eq!(refusal(&scene.decide(), "b").reason, Reason::PortConflict);
    scene.obey("gw1");
    assert!(matches!(scene.decide().verdicts[&key("b")], Verdict::Accepted(_)));
}

#[test]
fn a_dead_node_keeps_no_forward_from_going() {
    let mut scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306)]);
    scene.delete_forward("a");
    scene.pass();
    scene.obey("gw1");
    assert!(scene.decide().to_release.is_empty());
    scene.gone.insert("gw2".into());
    assert_eq!(scene.decide().to_release, BTreeSet::from([key("a")]));
}

#[test]
fn while_deletions_are_kept_off_nothing_changes() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.delete_forward("a");
    scene.retention.keep_deleted = true;
    assert_eq!(scene.pass(), [""; 0]);
    scene.retention.keep_deleted = false;
    assert_eq!(scene.pass(), ["slice default-0000 []"]);
}

#[test]
fn an_empty_slice_is_deleted_when_every_node_has_emptied_it() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.delete_forward("a");
    scene.pass();
    assert!(scene.decide().done_slices.is_empty());
    scene.obey("gw1");
    assert_eq!(scene.decide().done_slices, BTreeSet::from(["default-0000".to_owned()]));
}

#[test]
fn an_unreadable_forward_keeps_what_it_had() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    let (slices, verdicts) = (scene.decide().slices, scene.decide().verdicts);
    scene.see(unreadable_form(scene.forward("a"), "sources"));
    assert_eq!(scene.decide().slices, slices);

    // After a restart nothing but the slice tells what it was.
    let unreadable = unreadable_form(scene.forward("a"), "sources");
    scene.store.forwards = Cache::default();
    scene.see(unreadable);
    assert!(scene.store.forwards.entry("apps", "a").unwrap().object().is_none());
    let desired = scene.decide();
    assert_eq!(desired.slices, slices);
    assert_eq!(desired.verdicts, verdicts);
}

#[test]
fn what_is_carried_asks_for_itself() {
    let mut rich = forward("a", 3306);
    rich["spec"]["addresses"] = json!(["10.30.1.78"]);
    rich["spec"]["ports"] = json!([{ "name": "x", "port": 1000, "endPort": 1010, "targetPort": 2000 },
        { "name": "y", "protocol": "UDP", "port": 53 }]);
    rich["spec"]["sources"] = json!({ "allow": [{ "cidr": "10.0.0.0/8" }], "deny": [{ "cidr": "10.9.0.0/16" }] });
    rich["spec"]["targets"] =
        json!([{ "name": "x", "ip": "10.30.1.79", "weight": 3 }, { "name": "y", "ip": "10.30.1.77", "weight": 0 }]);
    for mode in ["Masquerade", "Preserve"] {
        rich["spec"]["sourceNAT"] = json!({ "mode": mode });
        let object: sallyport_api::PortForward = serde_json::from_value(rich.clone()).unwrap();
        let intent = sallyport_policy::validate::validate(&object.spec).unwrap();
        assert_eq!(sallyport_policy::validate::revalidate("default", &intent).unwrap(), intent, "{mode}");
    }
}

#[test]
fn an_unreadable_newcomer_is_refused_by_what_is_wrong_with_it() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.see(unreadable_form(forward("b", 3307), "sources"));
    let desired = scene.decide();
    let problem = refusal(&desired, "b");
    assert_eq!(problem.reason, Reason::UnsupportedValue);
    assert!(problem.message.contains("from the future"), "{problem}");
    assert_eq!(carried(&desired, "default-0000"), ["a"], "nobody else is harmed");
}

#[test]
fn an_unreadable_pool_freezes_its_slices_and_nodes() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.store.pools = Cache::default();
    scene.see(unreadable_form(pool("default"), "grants"));
    scene.see(forward("b", 3307));
    let mut changed = scene.forward("a");
    changed["spec"]["ports"][0]["port"] = 3308.into();
    scene.see(changed);
    let desired = scene.decide();
    assert_eq!(desired.pools["default"][0].reason, Reason::UnsupportedValue);
    assert_eq!(refusal(&desired, "b").reason, Reason::PoolNotFound);
    assert!(matches!(desired.verdicts[&key("a")], Verdict::Accepted(_)));
    assert_eq!(scene.pass(), [""; 0]);
}

#[test]
fn targets_of_the_cluster_itself_are_refused() {
    let cases = [
        json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": { "name": "kubernetes", "namespace": "default" },
            "addressType": "IPv4", "endpoints": [{ "addresses": ["10.30.1.79"] }] }),
        json!({ "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "kubernetes" },
            "spec": { "cidrs": ["fd00::/112", "10.30.0.0/16"] } }),
    ];
    for case in cases {
        let mut scene = Scene::with_nodes(&["gw1"]);
        scene.see(forward("a", 3306));
        assert!(matches!(scene.decide().verdicts[&key("a")], Verdict::Accepted(_)));
        scene.see(case.clone());
        assert_eq!(refusal(&scene.decide(), "a").reason, Reason::InvalidTarget, "{case}");
    }
}

#[test]
fn addresses_of_nodes_are_their_internal_ones() {
    let object: Node = serde_json::from_value(node("gw1", "default")).unwrap();
    let node = node_of(&object);
    assert_eq!(node.addresses, ["10.30.1.78".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(node.labels.unwrap()["gateway"], "default");
}

#[test]
fn an_uninstallation_leaves_nothing_but_what_users_wrote() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.see(forward("b", 3306));
    scene.uninstalling = true;
    let desired = scene.decide();
    assert_eq!(refusal(&desired, "a").reason, Reason::Pending);
    assert_eq!(scene.pass(), ["slice default-0000 []", "gateway gw1 Retired default"]);
    assert!(scene.pass().is_empty(), "it waits for the agent");
    scene.settle();
    assert_eq!(scene.store.slices.objects().count() + scene.store.gateways.objects().count(), 0);
    assert_eq!(scene.forward("a")["metadata"]["finalizers"], json!(["example.com/other"]));
    assert!(!scene.store.nodes.objects().any(|node| crate::controller::gateways::has_label(node)));
}

#[test]
fn an_uninstallation_gives_up_on_dead_nodes() {
    let mut scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306)]);
    scene.uninstalling = true;
    scene.gone.insert("gw2".into());
    let desired = scene.decide();
    assert_eq!(desired.done_gateways, BTreeSet::from(["gw2".into()]));
    assert_eq!(desired.labelled, BTreeSet::from(["gw1".into()]));
}

#[test]
fn a_successor_that_is_held_already_waits_for_the_former_holder_too() {
    let mut scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306), ("b", 3307)]);
    let mut edited = scene.forward("b");
    edited["spec"]["ports"][0]["port"] = 3306.into();
    edited["metadata"]["generation"] = 2.into();
    scene.see(edited);
    scene.settle();
    scene.delete_forward("a");
    // It has the finalizer from before, so only the nodes can tell when its time has come.
    assert_eq!(scene.pass(), ["slice default-0000 []"]);
    scene.obey("gw1");
    assert_eq!(scene.pass(), [""; 0]);
    scene.obey("gw2");
    assert_eq!(scene.pass(), ["slice default-0000 [b]", "release a"]);
}

#[test]
fn a_pool_that_went_with_its_definition_stays_as_it_was() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.store.pools.deleted("default");
    scene.retention.keep_pools = true;
    assert_eq!(scene.pass(), [""; 0]);
    scene.retention.keep_pools = false;
    assert!(!scene.pass().is_empty(), "a pool that an admin deleted is gone");
}

#[test]
fn a_dead_node_makes_no_slice_come_and_go() {
    let mut scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306)]);
    scene.gone.insert("gw2".into());
    scene.delete_forward("a");
    for _ in 0..4 {
        scene.pass();
        scene.obey("gw1");
    }
    assert_eq!(scene.pass(), [""; 0]);
}

#[test]
fn a_forward_that_expires_leaves_its_slice_and_its_port_is_handed_over() {
    let mut scene = Scene::with_nodes(&["gw1"]);
    let mut expiring = forward("a", 3306);
    expiring["spec"]["expiresAt"] = json!("1970-01-01T00:01:40Z");
    scene.see(expiring);
    scene.settle();
    scene.see(forward("b", 3306));
    scene.now = Moment(99);
    let desired = scene.decide();
    assert_eq!(desired.expiries, BTreeMap::from([(key("a"), Moment(100))]));
    assert_eq!(refusal(&desired, "b").reason, Reason::PortConflict);

    scene.now = Moment(100);
    let desired = scene.decide();
    assert_eq!(refusal(&desired, "a").reason, Reason::Expired);
    assert_eq!(desired.expiries, BTreeMap::from([(key("a"), Moment(100))]), "status says when it was");
    assert_eq!(
        refusal(&desired, "b").message,
        "port 3306/TCP is still being taken off the gateways; this forward follows by itself"
    );
    scene.settle();
    assert_eq!(carried(&scene.decide(), "default-0000"), ["b"]);
}

#[test]
fn a_forward_that_cannot_be_read_expires_as_it_would_have() {
    let mut scene = Scene::with_nodes(&["gw1"]);
    let mut expiring = forward("a", 3306);
    expiring["spec"]["expiresAt"] = json!("1970-01-01T00:01:40Z");
    scene.see(expiring);
    scene.settle();
    let before = scene.decide().slices;
    scene.see(unreadable_form(scene.forward("a"), "sources"));
    assert_eq!(scene.decide().slices, before);
    scene.now = Moment(100);
    assert_eq!(refusal(&scene.decide(), "a").reason, Reason::Expired);
}
