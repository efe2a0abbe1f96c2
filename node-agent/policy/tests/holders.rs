//! Who holds a port or a place under a quota keeps it, whoever comes or edits.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use sallyport_api::Reason;
use sallyport_api::id::{Moment, Uid};
use sallyport_api::port_forward::{ForwardPort, PortForwardSpec, Source};
use sallyport_policy::decide::{Decision, Verdict};
use sallyport_policy::observed::{Forward, Outgoing};

#[path = "support/scene.rs"]
mod scene;
#[path = "support/specs.rs"]
mod specs;

use scene::Scene;
use specs::{LISTEN, forward, minimal, scene};

fn on_ports(ports: &[i32]) -> PortForwardSpec {
    let mut spec = minimal();
    spec.ports = ports
        .iter()
        .map(|port| ForwardPort { name: format!("p{port}"), port: *port, ..spec.ports[0].clone() })
        .collect();
    spec
}

fn from(cidr: &str, port: i32) -> PortForwardSpec {
    let mut spec = on_ports(&[port]);
    spec.sources.allow = vec![Source { cidr: cidr.into() }];
    spec
}

/// A scene in which forward `n` asks for the `n`th spec and is older than those after it.
fn in_order_of_age(specs: &[PortForwardSpec]) -> Scene {
    let mut scene = scene(&[], &LISTEN);
    for (number, spec) in specs.iter().enumerate() {
        let created = i64::try_from(number).unwrap();
        scene.forwards.push(Forward { created: Moment(created), ..forward(number, spec) });
    }
    scene
}

/// Decides and keeps what was decided, as the operator does.
fn decide(scene: &mut Scene) -> Decision {
    let decision = scene.decide();
    scene.slices.clone_from(&decision.slices);
    decision
}

/// Why each forward is refused, in order; `None` for one that is accepted.
fn refusals(scene: &Scene, decision: &Decision) -> Vec<Option<Reason>> {
    let of = |forward: &Forward| match &decision.forwards[&forward.key] {
        Verdict::Accepted(_) => None,
        Verdict::Refused(problems) => Some(problems[0].reason),
    };
    scene.forwards.iter().map(of).collect()
}

/// Gives the pool one grant for each entry: a field, its value, and the forwards it allows.
fn grants(scene: &mut Scene, limits: &[(&str, serde_json::Value, i32)]) {
    let all = serde_json::to_value(&scene.pools[0].spec.grants[0]).unwrap();
    let grant = |(index, (field, value, max)): (usize, &(&str, serde_json::Value, i32))| {
        let mut grant = all.clone();
        grant["name"] = format!("g{index}").into();
        grant[*field] = value.clone();
        grant["maxForwards"] = (*max).into();
        serde_json::from_value(grant).unwrap()
    };
    scene.pools[0].spec.grants = limits.iter().enumerate().map(grant).collect();
}

#[test]
fn an_older_forward_edited_onto_a_held_port_loses_its_own_and_evicts_nobody() {
    let mut scene = in_order_of_age(&[on_ports(&[90]), on_ports(&[80])]);
    decide(&mut scene);
    // Both hold a part of what they now want, and the older wants what the younger holds.
    scene.forwards[0].spec = Ok(on_ports(&[80, 90]).into());
    scene.forwards[1].spec = Ok(on_ports(&[80, 81]).into());
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [Some(Reason::PortConflict), None]);
}

#[test]
fn what_a_refused_edit_lets_go_of_is_free_at_once() {
    let mut scene = in_order_of_age(&[on_ports(&[80]), on_ports(&[90]), on_ports(&[80])]);
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [None, None, Some(Reason::PortConflict)]);
    scene.forwards[0].spec = Ok(on_ports(&[80, 90]).into());
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [Some(Reason::PortConflict), None, None]);
}

#[test]
fn a_newcomer_gets_a_held_port_only_once_its_holder_is_gone() {
    let mut scene = in_order_of_age(&[on_ports(&[80]), on_ports(&[80])]);
    let older = scene.forwards.remove(0);
    decide(&mut scene);
    scene.forwards.insert(0, older);
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [Some(Reason::PortConflict), None]);
    scene.forwards.remove(1);
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [None]);
}

#[test]
fn an_edit_takes_nobodys_place_under_a_quota() {
    let mut scene = in_order_of_age(&[from("192.168.7.0/24", 80), from("10.30.1.80/32", 81)]);
    let sources = |cidr: &str| serde_json::json!([cidr]);
    let limits = [("sourceCIDRs", sources("10.30.0.0/16"), 1), ("sourceCIDRs", sources("192.168.0.0/16"), 1)];
    grants(&mut scene, &limits);
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [None, None]);
    // The older one keeps its port, but now needs the grant that the younger one fills.
    scene.forwards[0].spec = Ok(from("10.30.1.90/32", 80).into());
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [Some(Reason::QuotaExceeded), None]);
}

#[test]
fn a_forward_moves_to_another_grant_of_its_own_to_make_room() {
    let mut scene = in_order_of_age(&[on_ports(&[80]), on_ports(&[9000])]);
    let ports = |last: i32| serde_json::json!([{ "port": 1, "endPort": last }]);
    grants(&mut scene, &[("ports", ports(65535), 1), ("ports", ports(4095), 1)]);
    // The older one fits under both grants and finds the first free, which the younger one cannot do without.
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [None, None]);
    assert_eq!(decide(&mut scene), decision);
}

#[test]
fn a_successor_waits_until_no_node_carries_the_former_holder() {
    let mut scene = in_order_of_age(&[on_ports(&[80]), on_ports(&[80]), on_ports(&[81])]);
    decide(&mut scene);
    let former = scene.slices["default-0000"].forwards[0].clone();
    scene.forwards.remove(0);
    scene.outgoing =
        vec![Outgoing { pool: "default".into(), uid: former.uid.clone(), intent: former.intent.clone().into() }];
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [Some(Reason::PortConflict), None]);
    scene.outgoing.clear();
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [None, None]);
}

#[test]
fn a_forward_never_waits_for_itself_nor_for_another_pool() {
    let mut scene = in_order_of_age(&[on_ports(&[80])]);
    decide(&mut scene);
    let before = scene.slices["default-0000"].forwards[0].clone();
    scene.forwards[0].spec = Ok(on_ports(&[80, 81]).into());
    let outgoing =
        |pool: &str, uid: &Uid| Outgoing { pool: pool.into(), uid: uid.clone(), intent: before.intent.clone().into() };
    scene.outgoing = vec![outgoing("default", &before.uid), outgoing("other", &"uid-7".into())];
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [None]);
}

#[test]
fn while_nodes_are_unknown_holders_stay_and_newcomers_wait() {
    let mut scene = in_order_of_age(&[on_ports(&[80]), on_ports(&[81])]);
    let newcomer = scene.forwards.remove(1);
    decide(&mut scene);
    scene.forwards.push(newcomer);
    scene.unknown.insert("default".into());
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [None, Some(Reason::Pending)]);
}

#[test]
fn no_target_may_be_the_cluster_itself() {
    let mut scene = in_order_of_age(&[on_ports(&[80])]);
    scene.forbidden = vec!["10.30.1.79/32".parse().unwrap()];
    let decision = decide(&mut scene);
    assert_eq!(refusals(&scene, &decision), [Some(Reason::InvalidTarget)]);
}
