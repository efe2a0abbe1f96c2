//! A forward's conditions, addresses, counts and plan, from what the gateways reported.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use jiff::Timestamp;
use sallyport_api::gateway_node::{GatewayNode, SliceState};
use sallyport_api::id::Moment;
use serde_json::json;

use super::*;
use crate::controller::subject::held;
use crate::fixture::{Scene, forward, synced, uid};

fn at(seconds: i64) -> Time {
    Time(Timestamp::from_second(seconds).unwrap())
}

/// The status of the forward `name`, given its old one, while these agents are silent.
fn status_of(scene: &mut Scene, name: &str, silent: &[&str], old: &PortForwardStatus, now: i64) -> PortForwardStatus {
    let desired = scene.decide();
    let key = ForwardRef { namespace: "apps".into(), name: name.into() };
    let entry = scene.store.forwards.entry("apps", name).unwrap();
    let uid = uid(name);
    let gateways: Vec<Gateway<'_>> = scene
        .store
        .gateways
        .objects()
        .map(|object| {
            let name = object.metadata.name.as_deref().unwrap();
            Gateway { name, object, silent: silent.contains(&name) }
        })
        .collect();
    let subject = Subject {
        key: &key,
        uid: &uid,
        generation: entry.meta().generation,
        spec: entry.object().map(|object| &object.spec),
        unreadable: entry.problem(),
        verdict: desired.verdicts.get(&key),
        expires_at: desired.expiries.get(&key).copied().and_then(Moment::to_time),
        held: held(&desired.slices).get(&uid).copied().unwrap_or_default(),
        asked: &gateways,
    };
    forward_status(&subject, &gateways, &scene.revisions, old, &at(now))
}

fn fresh(scene: &mut Scene, name: &str, silent: &[&str]) -> PortForwardStatus {
    status_of(scene, name, silent, &PortForwardStatus::default(), 1)
}

/// The reasons of Accepted, Programmed and Ready.
fn reasons(status: &PortForwardStatus) -> String {
    let all: Vec<&str> = status.conditions.iter().map(|condition| condition.reason.as_str()).collect();
    all.join(" ")
}

fn message(status: &PortForwardStatus, about: ConditionType) -> &str {
    &status.conditions.iter().find(|condition| condition.type_ == about.as_str()).unwrap().message
}

fn counts(status: &PortForwardStatus) -> [i32; 4] {
    let NodeCounts { desired, programmed, failed, unreachable } = status.nodes.unwrap();
    [desired, programmed, failed, unreachable]
}

/// A scene with two gateways where gw2 reports this about the forward `a`.
fn with_report(change: impl FnOnce(&mut GatewayNodeStatus)) -> Scene {
    let mut scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306)]);
    let mut report = scene.done("gw2");
    change(&mut report);
    scene.report("gw2", report);
    scene
}

fn fails(report: &mut GatewayNodeStatus, reason: &str) {
    report.observed_slices[0].failed = vec![uid("a").prefix()];
    report.failures = serde_json::from_value(
        json!([{ "ref": { "namespace": "apps", "name": "a" }, "reason": reason, "message": "look here" }]),
    )
    .unwrap();
}

#[test]
fn programmed_is_true_only_when_every_gateway_read_it_back() {
    type Change = fn(&mut GatewayNodeStatus);
    let cases: [(&str, Change, &str, [i32; 4]); 8] = [
        ("read back", |_| (), "Accepted Verified Ready", [2, 2, 0, 0]),
        ("on its way", |r| r.observed_slices[0].state = SliceState::Pending, "Accepted Pending Pending", [2, 1, 0, 0]),
        ("another form", |r| r.observed_slices[0].hash = "v1:0".into(), "Accepted Pending Pending", [2, 1, 0, 0]),
        ("not seen", |r| r.observed_slices.clear(), "Accepted Pending Pending", [2, 1, 0, 0]),
        ("failed", |r| fails(r, "NoListenAddress"), "Accepted NoListenAddress NoListenAddress", [2, 1, 1, 0]),
        ("failed for a new reason", |r| fails(r, "Novel"), "Accepted NodeFailed NodeFailed", [2, 1, 1, 0]),
        (
            "failed among many",
            |r| {
                fails(r, "x");
                r.failures.clear();
            },
            "Accepted NodeFailed NodeFailed",
            [2, 1, 1, 0],
        ),
        ("agent is starting", |r| r.state = None, "Accepted Verified Ready", [2, 1, 0, 0]),
    ];
    for (case, change, expected, numbers) in cases {
        let mut scene = with_report(change);
        let status = fresh(&mut scene, "a", &[]);
        assert_eq!(reasons(&status), expected, "{case}");
        assert_eq!(counts(&status), numbers, "{case}");
    }
}

#[test]
fn a_forward_that_another_firewall_blocks_is_not_programmed_although_its_rules_are_there() {
    let mut scene = with_report(|report| fails(report, "HostFirewallConflict"));
    let status = fresh(&mut scene, "a", &[]);
    assert_eq!(reasons(&status), "Accepted HostFirewallConflict HostFirewallConflict");
    assert_eq!(message(&status, ConditionType::Programmed), "gw2: look here");
    assert_eq!(status.applied_hash, status.hash);
    let mut scene = with_report(|report| fails(report, "NoListenAddress"));
    assert_eq!(fresh(&mut scene, "a", &[]).applied_hash, None);
}

#[test]
fn a_gateway_that_cannot_write_rules_fails_what_it_does_not_carry_and_only_that() {
    let trouble = |reason: &str| {
        let condition = serde_json::from_value(synced("False", reason, "somebody else", 1)).unwrap();
        move |report: &mut GatewayNodeStatus| report.conditions = vec![condition]
    };
    let mut carried = with_report(trouble("UnsupportedIntent"));
    assert_eq!(reasons(&fresh(&mut carried, "a", &[])), "Accepted Verified Ready");
    for (reason, expected) in
        [("NodeFailed", "NodeFailed"), ("SliceMissing", "Pending"), ("UnsupportedIntent", "UnsupportedIntent")]
    {
        let mut scene = with_report(|report| {
            trouble(reason)(report);
            report.observed_slices[0].state = SliceState::Pending;
        });
        let status = fresh(&mut scene, "a", &[]);
        assert_eq!(reasons(&status), format!("Accepted {expected} {expected}"));
    }
}

#[test]
fn where_somebody_keeps_changing_rules_nothing_counts_as_read_back() {
    let secret = "IPv4 nat SALLY-MT: 1 rule missing: -d 10.9.9.9/32 -p tcp -m tcp --dport 9999";
    let condition = serde_json::from_value(synced("False", "Drifted", secret, 1)).unwrap();
    let mut scene = with_report(|report| report.conditions = vec![condition]);
    let status = fresh(&mut scene, "a", &[]);
    assert_eq!((reasons(&status).as_str(), counts(&status)), ("Accepted Drifted Drifted", [2, 1, 1, 0]));
    let said = message(&status, ConditionType::Programmed);
    assert!(said.contains("gatewaynode gw2") && !said.contains("9999"), "{said}");
    assert_eq!(reasons(&fresh(&mut scene, "a", &["gw2"])), "Accepted AgentUnreachable AgentUnreachable");
}

#[test]
fn a_silent_agent_is_unknown_whatever_it_said_last() {
    let mut scene = with_report(|_| ());
    let status = fresh(&mut scene, "a", &["gw2"]);
    assert_eq!(reasons(&status), "Accepted AgentUnreachable AgentUnreachable");
    assert_eq!(counts(&status), [2, 1, 0, 1]);
    assert!(message(&status, ConditionType::Programmed).contains("gw2"));
    assert_eq!(status.conditions[1].status, "Unknown");
}

#[test]
fn a_pool_without_gateways_says_so() {
    let mut scene = Scene::with_nodes(&[]);
    scene.see(forward("a", 3306));
    assert_eq!(reasons(&fresh(&mut scene, "a", &[])), "Accepted NoGatewayNodes NoGatewayNodes");
}

#[test]
fn a_pool_whose_only_agent_has_never_reported_is_waited_for() {
    let mut scene = Scene::with_nodes(&["gw1"]);
    scene.see(forward("a", 3306));
    scene.pass();
    let status = fresh(&mut scene, "a", &[]);
    assert_eq!(reasons(&status), "Accepted Pending Pending");
    let told = message(&status, ConditionType::Programmed);
    assert!(told.starts_with("waiting for the agent on gw1 to start; if that lasts, look at its pod"), "{told}");
    assert_eq!(status.applied_hash, None);
}

#[test]
fn a_refused_forward_gives_the_reason_everywhere() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    scene.see(forward("b", 3306));
    let status = fresh(&mut scene, "b", &[]);
    assert_eq!(reasons(&status), "PortConflict PortConflict PortConflict");
    assert_eq!((&status.hash, status.addresses.len(), status.source_addresses.len()), (&None, 0, 0));
    assert_eq!(message(&status, ConditionType::Programmed), "not accepted, so no gateway carries it");

    let mut refused = scene.forward("a");
    refused["spec"]["ports"][0]["port"] = 22.into();
    scene.see(refused);
    scene.pass();
    let status = fresh(&mut scene, "a", &[]);
    assert_eq!(reasons(&status), "ReservedPort ReservedPort ReservedPort");
    assert!(status.applied_hash.is_some(), "the kernel still has it");
    assert!(message(&status, ConditionType::Programmed).contains("taken off"));
    scene.obey("gw1");
    assert_eq!(fresh(&mut scene, "a", &[]).applied_hash, None);
}

#[test]
fn an_unreadable_edit_is_told_while_the_form_before_it_holds() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    let mut future = scene.forward("a");
    future["spec"]["sources"] = json!("from the future");
    scene.see(future);
    let status = fresh(&mut scene, "a", &[]);
    assert_eq!(reasons(&status), "UnsupportedValue Verified UnsupportedValue");
    assert!(status.hash.is_some() && status.hash == status.applied_hash);
}

#[test]
fn a_forward_on_its_way_out_says_what_it_waits_for() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    let before = fresh(&mut scene, "a", &[]);
    scene.delete_forward("a");
    scene.pass();
    for (silent, reason) in [(&[][..], "Pending"), (&["gw1"][..], "AgentUnreachable")] {
        let status = status_of(&mut scene, "a", silent, &before, 2);
        assert_eq!(reasons(&status), format!("Accepted {reason} {reason}"));
    }
}

#[test]
fn an_edit_of_a_neighbour_and_a_joining_node_change_nothing() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306), ("b", 3307)]);
    let before = fresh(&mut scene, "a", &[]);
    let mut edited = scene.forward("b");
    edited["spec"]["ports"][0]["port"] = 3308.into();
    edited["metadata"]["generation"] = 2.into();
    scene.see(edited);
    scene.pass();
    assert_eq!(status_of(&mut scene, "a", &[], &before, 9), before, "before the agent has seen it");
    assert_eq!(reasons(&fresh(&mut scene, "b", &[])), "Accepted Pending Pending");
    scene.obey("gw1");
    assert_eq!(status_of(&mut scene, "a", &[], &before, 9), before);

    scene.see(crate::fixture::node("gw2", "default"));
    scene.pass();
    let joining = status_of(&mut scene, "a", &[], &before, 9);
    assert_eq!(reasons(&joining), "Accepted Verified Ready");
    assert_eq!(joining.conditions[1].last_transition_time, at(1));
    assert!(
        message(&joining, ConditionType::Programmed).contains("not yet counted: gw2, whose agent has never reported")
    );
}

#[test]
fn unchanged_input_gives_an_equal_status() {
    let mut scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306)]);
    for silent in [&[][..], &["gw1"]] {
        let before = fresh(&mut scene, "a", silent);
        assert_eq!(status_of(&mut scene, "a", silent, &before, 99), before);
    }
}

#[test]
fn the_applied_hash_is_that_of_all_kernels_or_as_it_was() {
    let mut scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306)]);
    let before = fresh(&mut scene, "a", &[]);
    assert_eq!(before.applied_hash, before.hash);
    let mut edited = scene.forward("a");
    edited["spec"]["ports"][0]["port"] = 3308.into();
    scene.see(edited);
    scene.pass();
    for (obeys, new) in [("gw1", false), ("gw2", true)] {
        let status = status_of(&mut scene, "a", &[], &before, 2);
        assert_ne!(status.hash, before.hash);
        assert_eq!(status.applied_hash, before.hash, "before {obeys}");
        scene.obey(obeys);
        let status = status_of(&mut scene, "a", &[], &before, 2);
        assert_eq!(status.applied_hash == status.hash, new, "after {obeys}");
    }
}

#[test]
fn addresses_are_of_the_families_that_the_targets_have() {
    let scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    let mut gateway = serde_json::to_value(scene.gateway("gw1")).unwrap();
    gateway["spec"]["addresses"] = json!(["10.30.1.99"]);
    gateway["status"]["addresses"] =
        json!([{ "value": "fd00::1" }, { "value": "10.30.1.78" }, { "value": "10.30.1.70" }]);
    gateway["status"]["sourceAddresses"] = json!([{ "value": "fd00::2" }, { "value": "10.30.1.78" }]);
    let gateway: GatewayNode = serde_json::from_value(gateway).unwrap();
    let gateways = [Gateway { name: "gw1", object: &gateway, silent: false }];
    let list = |all: Vec<AddressValue>| all.iter().map(|a| a.value.to_string()).collect::<Vec<_>>().join(" ");
    for (targets, chosen, mode, listen, leave) in [
        (&["10.1.1.1"][..], &[][..], "Masquerade", "10.30.1.70 10.30.1.78", "10.30.1.78"),
        (&["10.1.1.1"], &["10.30.1.70"], "Masquerade", "10.30.1.70", "10.30.1.78"),
        (&["fd00::9"], &[], "Masquerade", "fd00::1", "fd00::2"),
        (&["10.1.1.1", "fd00::9"], &[], "Masquerade", "10.30.1.70 10.30.1.78 fd00::1", "10.30.1.78 fd00::2"),
        (&["10.1.1.1"], &[], "Preserve", "10.30.1.70 10.30.1.78", ""),
    ] {
        let targets: Vec<_> = targets.iter().map(|ip| json!({ "ip": ip, "weight": 1 })).collect();
        let intent = json!({ "addresses": chosen, "ports": [], "allow": [], "targets": targets, "sourceNat": mode });
        let intent: Intent = serde_json::from_value(intent).unwrap();
        assert_eq!(list(listening(&intent, &gateways)), listen, "{targets:?} {chosen:?}");
        assert_eq!(list(leaving_from(&intent, &gateways)), leave, "{targets:?} {mode}");
    }
}

#[test]
fn summaries_are_short_and_exact() {
    let v4 = json!(["10.1.1.1"]);
    for (ports, targets, said, to) in [
        (json!([{ "port": 80 }]), v4.clone(), "80/TCP", "10.1.1.1:80"),
        (json!([{ "port": 80, "targetPort": 8080 }]), json!(["fd00::1"]), "80/TCP", "[fd00::1]:8080"),
        (json!([{ "port": 80, "endPort": 89, "protocol": "UDP" }]), v4.clone(), "80-89/UDP", "10.1.1.1:80-89"),
        (json!([{ "port": 80, "endPort": 89, "targetPort": 180 }]), v4, "80-89/TCP", "10.1.1.1:180-189"),
        (json!([{ "port": 80 }, { "port": 443 }]), json!(["fd00::1"]), "80/TCP,443/TCP", "fd00::1"),
        (
            json!([{ "port": 1 }, { "port": 2 }, { "port": 3 }, { "port": 4 }]),
            json!(["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]),
            "1/TCP,2/TCP,3/TCP and 1 more",
            "10.0.0.1,10.0.0.2,10.0.0.3 and 2 more",
        ),
    ] {
        let mut object = forward("a", 1);
        object["spec"]["ports"] = ports;
        object["spec"]["ports"].as_array_mut().unwrap().iter_mut().for_each(|port| port["name"] = "p".into());
        object["spec"]["targets"] =
            targets.as_array().unwrap().iter().map(|ip| json!({ "name": "t", "ip": ip })).collect();
        let spec = serde_json::from_value(object["spec"].clone()).unwrap();
        let counts = NodeCounts { desired: 3, programmed: 2, ..NodeCounts::default() };
        let summary = summary(&spec, &counts, Some(&"v1:0123456789abcdef".into()));
        assert_eq!((summary.ports.as_str(), summary.targets.as_str()), (said, to));
        assert_eq!((summary.nodes.as_str(), summary.hash.as_str()), ("2/3", "01234567"));
    }
}

#[test]
fn many_names_are_counted_and_long_texts_cut() {
    assert_eq!(names(&["a", "b", "c"]), "a, b, c");
    assert_eq!(names(&["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
    assert_eq!(text::cut("äöü", 3), "äöü");
    assert_eq!(text::cut("äöüß", 3), "äö…");
}

#[test]
fn draining_connections_are_summed_over_the_gateways() {
    let mut scene = Scene::settled(&["gw1", "gw2", "gw3"], &[("a", 3306), ("b", 3307)]);
    for (node, connections) in [("gw1", 3), ("gw2", 4)] {
        let mut status = scene.done(node);
        let prefix = uid("a").prefix();
        status.draining = vec![serde_json::from_value(json!({ "uid": prefix, "connections": connections })).unwrap()];
        scene.report(node, status);
    }
    assert_eq!(fresh(&mut scene, "a", &[]).targets, Some(TargetCounts { total: 1, draining: 7 }));
    assert_eq!(fresh(&mut scene, "b", &[]).targets, Some(TargetCounts { total: 1, draining: 0 }));
}

/// The forward `a`, which is carried on port 3306, with this mode and port.
fn with_mode(scene: &mut Scene, mode: &str, port: u16) {
    let mut object = scene.forward("a");
    object["spec"]["mode"] = mode.into();
    object["spec"]["ports"][0]["port"] = port.into();
    object["metadata"]["generation"] = 2.into();
    scene.see(object);
    scene.settle();
}

/// The agent on `node` says what the plan of this hash would change there.
fn tells(scene: &mut Scene, node: &str, hash: &str, change: &str) {
    let mut report = scene.done(node);
    let told = json!([{ "ref": { "namespace": "apps", "name": "a" }, "hash": hash, "change": change }]);
    report.plans = serde_json::from_value(told).unwrap();
    scene.report(node, report);
}

#[test]
fn a_paused_forward_stays_verified_until_it_is_edited() {
    for (mode, says) in [("Paused", "; paused, so edits wait"), ("Plan", "; mode Plan: Apply would change nothing")] {
        let mut scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306)]);
        let before = fresh(&mut scene, "a", &[]);
        with_mode(&mut scene, mode, 3306);
        let status = fresh(&mut scene, "a", &[]);
        assert_eq!(reasons(&status), "Accepted Verified Ready", "{mode}");
        assert!(message(&status, ConditionType::Programmed).contains(says), "{status:?}");
        assert_eq!(
            (&status.hash, &status.applied_hash, &status.addresses),
            (&before.hash, &before.hash, &before.addresses)
        );
    }
}

#[test]
fn an_edit_that_waits_is_told_beside_what_the_kernels_hold() {
    for (mode, reason) in [("Paused", "Paused"), ("Plan", "Planned")] {
        let mut scene = Scene::settled(&["gw1", "gw2"], &[("a", 3306)]);
        let before = fresh(&mut scene, "a", &[]);
        with_mode(&mut scene, mode, 3307);
        let status = fresh(&mut scene, "a", &[]);
        assert_eq!(reasons(&status), format!("Accepted {reason} {reason}"));
        assert!(message(&status, ConditionType::Programmed).contains("set spec.mode to Apply"), "{status:?}");
        assert_ne!(status.hash, before.hash);
        assert_eq!((&status.applied_hash, &status.addresses), (&before.hash, &before.addresses));
        assert_eq!(counts(&status), [2, 2, 0, 0], "what is kept is there");
        with_mode(&mut scene, "Apply", 3307);
        let applied = fresh(&mut scene, "a", &[]);
        assert_eq!((reasons(&applied).as_str(), &applied.applied_hash), ("Accepted Verified Ready", &status.hash));
    }
}

#[test]
fn an_edit_that_would_be_refused_says_that_apply_closes_the_forward() {
    for (mode, reason) in [("Paused", "Paused"), ("Plan", "Planned")] {
        let mut scene = Scene::settled(&["gw1"], &[("a", 3306), ("b", 3307)]);
        with_mode(&mut scene, mode, 3307);
        let status = fresh(&mut scene, "a", &[]);
        assert_eq!(reasons(&status), format!("PortConflict {reason} PortConflict"));
        assert!(
            message(&status, ConditionType::Programmed).contains("it would be refused, and taken off"),
            "{status:?}"
        );
        assert_eq!((status.hash, status.applied_hash.is_some()), (None, true));
    }
}

#[test]
fn one_that_was_never_carried_says_so_and_is_on_no_address() {
    for (mode, reason) in [("Paused", "Paused"), ("Plan", "Planned")] {
        let mut scene = Scene::with_nodes(&["gw1"]);
        let mut object = forward("a", 3306);
        object["spec"]["mode"] = mode.into();
        scene.see(object);
        scene.settle();
        let status = fresh(&mut scene, "a", &[]);
        assert_eq!(reasons(&status), format!("Accepted {reason} {reason}"));
        assert!(message(&status, ConditionType::Programmed).contains("holds no port"), "{status:?}");
        assert_eq!((status.addresses, status.applied_hash), (vec![], None));
        assert_eq!(scene.forward("a")["metadata"]["finalizers"], json!(["example.com/other"]), "nothing to wait for");
    }
}

#[test]
fn what_was_kept_and_is_not_allowed_any_more_goes_and_says_why() {
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    with_mode(&mut scene, "Paused", 3306);
    let mut pool = crate::fixture::pool("default");
    pool["spec"]["grants"][0]["targetCIDRs"] = json!(["10.99.0.0/16"]);
    scene.see(pool);
    let status = fresh(&mut scene, "a", &[]);
    assert_eq!(reasons(&status), "NotGranted NotGranted NotGranted");
    assert!(message(&status, ConditionType::Programmed).contains("being taken off"), "{status:?}");
    scene.settle();
    assert_eq!(fresh(&mut scene, "a", &[]).applied_hash, None);
}

#[test]
fn a_plan_shows_each_change_once_with_its_nodes_and_awaits_the_others() {
    let mut scene = Scene::settled(&["gw1", "gw2", "gw3"], &[("a", 3306)]);
    with_mode(&mut scene, "Plan", 3307);
    let hash = fresh(&mut scene, "a", &[]).hash.unwrap();
    tells(&mut scene, "gw1", hash.as_str(), "+ one\n");
    tells(&mut scene, "gw2", "v1:of-an-older-plan", "+ stale\n");
    tells(&mut scene, "gw3", hash.as_str(), "+ one\n");
    let status = fresh(&mut scene, "a", &[]);
    let shown = |status: &PortForwardStatus| -> Vec<String> {
        status.plan.iter().map(|p| format!("{} {} {}", p.nodes.join(","), p.nodes_total, p.change.trim())).collect()
    };
    assert_eq!(shown(&status), ["gw1,gw3 2 + one"]);
    assert!(message(&status, ConditionType::Programmed).contains("waiting for gw2"), "{status:?}");
    tells(&mut scene, "gw2", hash.as_str(), "+ two\n");
    let status = fresh(&mut scene, "a", &[]);
    assert_eq!(shown(&status), ["gw1,gw3 2 + one", "gw2 1 + two"]);
    assert!(message(&status, ConditionType::Programmed).contains("status.plan shows"), "{status:?}");
    assert_eq!(shown(&fresh(&mut scene, "a", &["gw2"])), ["gw1,gw3 2 + one"], "a silent agent's word may be old");
    with_mode(&mut scene, "Paused", 3307);
    assert_eq!(shown(&fresh(&mut scene, "a", &[])), [""; 0]);
}
