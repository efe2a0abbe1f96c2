//! The status after each outcome of a pass.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::rc::Rc;

use sallyport_api::gateway_node::GatewayNodeSpec;
use sallyport_api::gateway_pool::FirewallBackend;
use sallyport_api::id::RulesDigest;
use sallyport_engine::command;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{Assessment, Conflict};
use serde_json::json;

use super::*;
use crate::converge::Report;
use crate::converge::fake::{forward, intents};
use crate::source::cluster::slice::decode;

/// A node with one slice of forwards a and b, of which `change` is made.
struct Scene {
    knowledge: Knowledge,
    intents: Intents,
    draining: Draining,
    plans: Option<Vec<PlannedChange>>,
    admin: Serving,
}

fn scene(change: impl Fn(&mut serde_json::Value)) -> Scene {
    let wanted = intents(&(forward("a", 8000) + &forward("b", 8001)));
    let mut spec = json!({ "pool": "default", "forwards": wanted.forwards().collect::<Vec<_>>() });
    change(&mut spec);
    let mut knowledge = Knowledge::new("gw1");
    knowledge.node_is(Ok(wanted.node.clone()));
    knowledge.node_is_listed();
    knowledge.slices_are("default", [("s0".to_owned(), decode(spec, 4))].into());
    let intents = knowledge.intents().unwrap();
    Scene { knowledge, intents, draining: Draining::new(), plans: None, admin: Serving::NotYet }
}

fn at(second: i64) -> Time {
    Time(jiff::Timestamp::from_second(second).unwrap())
}

impl Scene {
    fn status(
        &self,
        previous: &GatewayNodeStatus,
        verified: Option<&Intents>,
        report: PassReport,
    ) -> GatewayNodeStatus {
        let report = PassReport { draining: self.draining.clone(), plans: self.plans.clone(), ..report };
        compose(
            previous,
            &Facts {
                knowledge: &self.knowledge,
                intents: &self.intents,
                verified,
                report: &report,
                source_addresses: &["10.30.1.78".parse().unwrap()],
                admin: &self.admin,
                last_drift: None,
                generation: Some(7),
                now: &at(1),
            },
        )
    }

    fn good(&self) -> GatewayNodeStatus {
        self.status(&GatewayNodeStatus::default(), Some(&self.intents), verified())
    }
}

fn ended(outcome: Result<Report, Error>) -> PassReport {
    PassReport::of(&Rc::new(intents("")), outcome)
}

fn verified() -> PassReport {
    ended(Ok(Report { digest: "v1:digest".into(), ..Report::default() }))
}

fn failed(error: Error, drift: Option<&str>) -> PassReport {
    PassReport { pending: drift.map(str::to_owned), ..ended(Err(error)) }
}

fn engine_error() -> Error {
    Error::Engine(command::Error::NotInstalled { program: "iptables" }.into())
}

fn words(status: &GatewayNodeStatus, about: &str) -> Option<(String, String)> {
    let found = status.conditions.iter().find(|condition| condition.type_ == about)?;
    Some((found.status.clone(), found.reason.clone()))
}

fn synced(status: &GatewayNodeStatus) -> (String, String) {
    words(status, "Synced").unwrap()
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn a_verified_pass_is_told_in_full() {
    let scene = scene(|_| {});
    let status = scene.good();
    let slice = &scene.intents.slices["s0"];
    let expected = ObservedSlice {
        name: "s0".to_owned(),
        generation: 4,
        hash: slice.hash.clone(),
        state: SliceState::Programmed,
        failed: Vec::new(),
    };
    assert_eq!(status.observed_slices, [expected]);
    assert_eq!((status.state, status.failures_total), (Some(ObservedNodeState::Active), 0));
    assert_eq!(
        (status.rules_digest.as_ref().map(RulesDigest::as_str), status.format_version),
        (Some("v1:digest"), Some(1))
    );
    assert_eq!((synced(&status), status.backend), (is("True", "Synced"), Some(FirewallBackend::IptablesNft)));
    assert_eq!(words(&status, "IPForwarding"), Some(is("True", "Forwarding")));
    assert_eq!(status.conditions[0].observed_generation, Some(7));
    assert_eq!(scene.status(&status, Some(&scene.intents), verified()), status, "the same again is the same");
}

#[test]
fn a_failed_pass_leaves_pending_what_was_not_read_back() {
    let scene = scene(|_| {});
    let good = scene.good();
    let nothing_yet = scene.status(&GatewayNodeStatus::default(), None, failed(engine_error(), None));
    assert_eq!(nothing_yet.observed_slices[0].state, SliceState::Pending);
    assert_eq!((synced(&nothing_yet), nothing_yet.state), (is("False", "NodeFailed"), None));
    assert_eq!((nothing_yet.rules_digest.as_ref(), words(&nothing_yet, "IPForwarding")), (None, None));

    let mut before = scene.intents.clone();
    before.slices.insert("s1".to_owned(), before.slices["s0"].clone());
    Arc::make_mut(before.slices.get_mut("s0").unwrap()).forwards.pop();
    let changed = scene.status(&good, Some(&before), failed(engine_error(), None));
    assert_eq!(changed.observed_slices[0].state, SliceState::Pending, "other content than was read back");
    let unchanged = scene.status(&good, Some(&scene.intents), failed(engine_error(), None));
    assert_eq!(unchanged.observed_slices[0].state, SliceState::Programmed);
    before = scene.intents.clone();
    before.node = GatewayNodeSpec { addresses: Vec::new(), ..before.node };
    let moved = scene.status(&good, Some(&before), failed(engine_error(), None));
    assert_eq!(moved.observed_slices[0].state, SliceState::Pending, "read back for other addresses");
}

#[test]
fn the_reason_tells_what_kind_of_failure_it_is() {
    let scene = scene(|_| {});
    let different = || Error::Different { difference: "nat".to_owned() };
    let require = || Error::ForwardingRequired { family: Family::V4 };
    for (error, drift, reason, forwarding) in [
        (engine_error(), None, "NodeFailed", "Forwarding"),
        (engine_error(), Some("a rule"), "Drifted", "Forwarding"),
        (different(), None, "Drifted", "Forwarding"),
        (require(), None, "NodeFailed", "NotForwarding"),
        // It was on, and somebody has turned it off.
        (require(), Some("forwarding"), "Drifted", "NotForwarding"),
    ] {
        let text = error.to_string();
        let status = scene.status(&scene.good(), None, failed(error, drift));
        assert_eq!(synced(&status), is("False", reason), "{text}");
        assert_eq!(words(&status, "IPForwarding").unwrap().1, forwarding, "{text}");
    }
}

#[test]
fn each_forward_that_cannot_be_carried_is_listed_with_its_slice() {
    let scene = scene(|spec| spec["forwards"][0]["intent"]["sourceNat"] = json!("Teleport"));
    let b = scene.intents.forwards().next().unwrap().clone();
    let failure = Failure { forward: b.r#ref.clone(), reason: Reason::PortConflict, message: "x".repeat(3000) };
    let report = Report { failures: vec![failure], ..Report::default() };
    let status = scene.status(&GatewayNodeStatus::default(), Some(&scene.intents), ended(Ok(report)));
    let failures: Vec<_> = status.failures.iter().map(|f| (f.r#ref.name.as_str(), f.reason.as_str())).collect();
    assert_eq!(failures, [("a", "UnsupportedIntent"), ("b", "PortConflict")]);
    assert_eq!((status.failures_total, status.failures[1].message.chars().count()), (2, MESSAGE));
    assert_eq!(status.observed_slices[0].failed, ["default/a", "default/b"].map(UidPrefix::from));
    assert_eq!(status.observed_slices[0].state, SliceState::Programmed);
    assert_eq!(synced(&status), is("False", "UnsupportedIntent"));
}

#[test]
fn no_more_failures_are_listed_than_the_schema_takes() {
    let scene = scene(|_| {});
    let failure = |number: usize| Failure {
        forward: ForwardRef { namespace: "default".to_owned(), name: format!("f{number:03}") },
        reason: Reason::InvalidTarget,
        message: String::new(),
    };
    let report = Report { failures: (0..50).rev().map(failure).collect(), ..Report::default() };
    let status = scene.status(&GatewayNodeStatus::default(), None, ended(Ok(report)));
    assert_eq!((status.failures.len(), status.failures_total), (LISTED, 50));
    assert_eq!(status.failures[19].r#ref.name, "f019");
}

#[test]
fn a_missing_slice_keeps_its_hash_and_is_named() {
    let mut scene = scene(|_| {});
    let good = scene.good();
    scene.knowledge.slice_is_gone("s0");
    let status = scene.status(&good, Some(&scene.intents), verified());
    assert_eq!(status.observed_slices, good.observed_slices);
    assert_eq!(synced(&status), is("False", "SliceMissing"));
    assert!(status.conditions[0].message.contains("ForwardSlice s0 is gone"), "{:?}", status.conditions);
}

#[test]
fn a_retired_node_is_cleaned_once_that_was_read_back() {
    let mut scene = scene(|spec| spec["forwards"][0]["intent"]["sourceNat"] = json!("Teleport"));
    let good = scene.good();
    scene.intents.node.state = NodeState::Retired;
    scene.intents.slices.clear();
    let trying = scene.status(&good, None, failed(engine_error(), None));
    assert_eq!(trying.state, Some(ObservedNodeState::Active));
    let cleaned = scene.status(&trying, Some(&scene.intents), verified());
    assert_eq!((cleaned.state, synced(&cleaned)), (Some(ObservedNodeState::Cleaned), is("True", "Synced")));
    assert_eq!((cleaned.observed_slices.len(), cleaned.failures_total), (0, 0));
}

#[test]
fn forwards_with_the_most_draining_connections_are_listed_and_others_are_not() {
    let mut scene = scene(|_| {});
    assert_eq!(scene.good().draining, []);
    for number in 0..150 {
        scene.draining.insert(format!("{number:08}-0000-4000-8000-000000000000").into(), 1000 - number);
    }
    let listed = scene.good().draining;
    assert_eq!(listed.len(), MAX_DRAINING);
    assert_eq!(listed[0], DrainingForward { uid: "00000000-0000".into(), connections: 1000 });
    assert_eq!(listed[99], DrainingForward { uid: "00000099-0000".into(), connections: 901 });
}

#[test]
fn the_last_drift_outlives_a_restart() {
    let scene = scene(|_| {});
    let drift = Drift { time: at(0), message: "nat SALLY-MT".to_owned() };
    let previous = GatewayNodeStatus { last_drift: Some(drift.clone()), ..GatewayNodeStatus::default() };
    assert_eq!(scene.status(&previous, None, verified()).last_drift, Some(drift));
}

#[test]
fn a_plan_is_told_while_it_is_one_and_is_bounded() {
    let plan = |scene: &Scene, lines: usize| PlannedChange {
        forward: scene.intents.planned().next().unwrap().r#ref.clone(),
        hash: scene.intents.planned().next().unwrap().hash.clone(),
        change: "+ -A SALLY-MT -j DNAT\n".repeat(lines),
    };
    let mut scene = scene(|spec| {
        let forward = spec["forwards"].as_array_mut().unwrap().pop().unwrap();
        spec["planned"] = json!([forward, { "newer": true }]);
    });
    scene.plans = Some(vec![plan(&scene, 2)]);
    let status = scene.good();
    assert_eq!(status.plans.len(), 1);
    assert_eq!(status.plans[0].r#ref.name, "b");
    assert_eq!(status.plans[0].change, "+ -A SALLY-MT -j DNAT\n+ -A SALLY-MT -j DNAT\n");

    // After a restart what was told before stays until it is known again.
    scene.plans = None;
    assert_eq!(scene.status(&status, Some(&scene.intents), verified()).plans, status.plans);

    scene.plans = Some(vec![plan(&scene, 1000)]);
    let told = &scene.good().plans[0].change;
    let lines = told.lines().count() - 1;
    assert!(told.len() <= MAX_PLAN_TEXT && told.ends_with(&format!("# and {} more lines\n", 1000 - lines)), "{told}");
    assert!(lines > 100);

    scene.plans = Some(vec![PlannedChange { hash: "v1:older".into(), ..plan(&scene, 1) }]);
    assert_eq!(scene.good().plans, []);
    scene.plans = Some(vec![plan(&scene, 1)]);
    scene.intents.slices.clear();
    assert_eq!(scene.good().plans, [], "the plan is gone");
    scene.plans = None;
    assert_eq!(scene.status(&status, None, verified()).plans, []);
}

#[test]
fn other_firewalls_are_reported_and_those_they_block_keep_their_slice_programmed() {
    let scene = scene(|_| ());
    assert_eq!(words(&scene.good(), "HostFirewallCompatible").unwrap(), is("True", "HostFirewallCompatible"));

    let place = "table inet filter, chain forward".to_owned();
    let reason = Reason::HostFirewallConflict;
    let does = "are dropped by".to_owned();
    let conflict = Conflict { reason, certain: true, does, place, remedy: "run `nft insert rule …`".to_owned() };
    let blocked = Failure {
        forward: scene.intents.forwards().next().unwrap().r#ref.clone(),
        reason: Reason::HostFirewallConflict,
        message: format!("its packets {conflict}"),
    };
    let report = |firewall| {
        let firewall = Box::new(firewall);
        Report { digest: "v1:digest".into(), firewall, ..Report::default() }
    };
    let firewall =
        Assessment { conflicts: vec![conflict.clone()], blocked: vec![blocked.clone()], ..Assessment::default() };
    let outcome = ended(Ok(Report { failures: vec![blocked], ..report(firewall) }));
    let status = scene.status(&GatewayNodeStatus::default(), Some(&scene.intents), outcome);
    assert_eq!(words(&status, "HostFirewallCompatible").unwrap(), is("False", "HostFirewallConflict"));
    assert_eq!(synced(&status), is("True", "Synced"));
    assert_eq!(status.observed_slices[0].state, SliceState::Programmed);
    assert_eq!(
        (status.observed_slices[0].failed.len(), status.failures[0].reason.as_str()),
        (1, "HostFirewallConflict")
    );
    let message = |status: &GatewayNodeStatus| {
        status.conditions.iter().find(|condition| condition.type_ == "HostFirewallCompatible").unwrap().message.clone()
    };
    assert!(message(&status).contains(&conflict.to_string()), "{}", message(&status));

    let firewall = Assessment { doubts: vec![conflict], mixed: true, ..Assessment::default() };
    let status = scene.status(&status, Some(&scene.intents), ended(Ok(report(firewall))));
    assert_eq!(words(&status, "HostFirewallCompatible").unwrap(), is("Unknown", "HostFirewallUnclear"));
    assert!(message(&status).contains("both iptables-nft and iptables-legacy"), "{}", message(&status));
    // A pass that failed says nothing about them, so what was known stays.
    let after = scene.status(&status, None, failed(engine_error(), None));
    assert_eq!(message(&after), message(&status));
}

#[test]
fn whether_probes_are_answered_is_a_condition_of_its_own() {
    let mut scene = scene(|_| {});
    let before = scene.good();
    assert_eq!(words(&before, "AdminServing"), None, "nobody has tried");
    let word = |status: &str, reason: &str| Some((status.to_owned(), reason.to_owned()));
    scene.admin = Serving::Refused("cannot listen on 127.0.0.1:9478: Address already in use (os error 98)".to_owned());
    let refused = scene.good();
    assert_eq!(words(&refused, "AdminServing"), word("False", "NotServing"));
    assert_eq!(words(&refused, "Synced"), word("True", "Synced"));
    let told = &refused.conditions.iter().find(|condition| condition.type_ == "AdminServing").unwrap().message;
    assert!(told.starts_with("cannot listen on 127.0.0.1:9478: Address already in use (os error 98); "), "{told}");
    scene.admin = Serving::On("127.0.0.1:9478".parse().unwrap());
    let served = scene.status(&refused, None, failed(engine_error(), None));
    assert_eq!(words(&served, "AdminServing"), word("True", "Serving"), "whatever the kernel does");
    scene.admin = Serving::NotYet;
    let restarted = scene.status(&served, Some(&scene.intents), verified());
    assert_eq!(words(&restarted, "AdminServing"), word("True", "Serving"));
}
