//! A forward that is paused or planned keeps what it has, takes nothing from anybody, and keeps nothing that is not
//! allowed any more.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use sallyport_api::Reason;
use sallyport_api::id::{IntentHash, Moment};
use sallyport_api::names::MAX_PLANS;
use sallyport_api::port_forward::{Mode, OnTargetRemoved, PortForwardSpec};
use sallyport_policy::decide::{Decision, Verdict};
use sallyport_policy::digest::intent_hash;
use sallyport_policy::validate::{revalidate, validate};

#[path = "support/scene.rs"]
mod scene;
#[path = "support/specs.rs"]
mod specs;

use scene::Scene;
use specs::{LISTEN, forward, minimal, scene, spec};

const SUSPENDED: [Mode; 2] = [Mode::Paused, Mode::Plan];

fn on(port: i32, mode: Mode) -> PortForwardSpec {
    let mut spec = minimal();
    spec.ports[0].port = port;
    PortForwardSpec { mode, ..spec }
}

fn time(seconds: i64) -> Time {
    Moment(seconds).to_time().unwrap()
}

fn scene_of(specs: &[PortForwardSpec]) -> Scene {
    scene(specs, &LISTEN)
}

/// Decides and keeps what was decided, as the operator does.
fn decide(scene: &mut Scene) -> Decision {
    let decision = scene.decide();
    scene.slices.clone_from(&decision.slices);
    decision
}

/// A scene with one forward on port 80 that is carried and now asks this.
fn edited_to(spec: &PortForwardSpec) -> Scene {
    let mut scene = scene(&[on(80, Mode::Apply)], &LISTEN);
    decide(&mut scene);
    scene.forwards[0].generation = 2;
    scene.forwards[0].spec = Ok(spec.clone().into());
    scene
}

/// Port and generation of everything that is carried.
fn carried(decision: &Decision) -> Vec<(u16, i64)> {
    let forwards = decision.slices.values().flat_map(|slice| &slice.forwards);
    forwards.map(|forward| (forward.intent.ports[0].port, forward.generation)).collect()
}

/// Names of the forwards that are planned, by slice, each with its port.
fn planned(decision: &Decision) -> Vec<String> {
    let plans = decision.slices.iter().flat_map(|(name, slice)| slice.planned.iter().map(move |plan| (name, plan)));
    plans.map(|(name, plan)| format!("{name} {} {}", plan.r#ref, plan.intent.ports[0].port)).collect()
}

fn verdict(decision: &Decision, number: usize) -> Result<IntentHash, (Reason, String)> {
    match &decision.forwards[&forward(number, &minimal()).key] {
        Verdict::Accepted(hash) => Ok(hash.clone()),
        Verdict::Refused(problems) => Err((problems[0].reason, problems[0].message.clone())),
    }
}

fn refusal(decision: &Decision, number: usize) -> (Reason, String) {
    verdict(decision, number).unwrap_err()
}

#[test]
fn an_edit_waits_and_is_carried_when_the_mode_is_apply_again() {
    for mode in SUSPENDED {
        let mut scene = edited_to(&on(81, mode));
        let decision = decide(&mut scene);
        assert_eq!(carried(&decision), [(80, 1)], "{mode:?}");
        assert_eq!(verdict(&decision, 0), Ok(intent_hash(&validate(&on(81, Mode::Apply)).unwrap())));
        assert_eq!(decide(&mut scene).slices, decision.slices, "and again");
        scene.forwards[0].spec = Ok(on(81, Mode::Apply).into());
        assert_eq!(carried(&decide(&mut scene)), [(81, 2)]);
    }
}

#[test]
fn the_mode_alone_changes_neither_slice_nor_hash() {
    for mode in SUSPENDED {
        let mut scene = edited_to(&on(80, mode));
        let before = scene.slices.clone();
        let decision = decide(&mut scene);
        assert_eq!(decision.slices, before, "{mode:?}");
        assert_eq!(verdict(&decision, 0), Ok(before["default-0000"].forwards[0].hash.clone()));
    }
}

#[test]
fn one_that_was_never_carried_is_not_and_holds_no_port() {
    for mode in SUSPENDED {
        let mut scene = scene(&[on(80, mode)], &LISTEN);
        let decision = decide(&mut scene);
        assert_eq!(carried(&decision), [], "{mode:?}");
        assert!(verdict(&decision, 0).is_ok());
        scene.forwards.push(forward(1, &on(80, Mode::Apply)));
        let decision = decide(&mut scene);
        assert_eq!(carried(&decision), [(80, 1)]);
        assert_eq!(refusal(&decision, 0).0, Reason::PortConflict);
        assert!(verdict(&decision, 1).is_ok());
    }
}

#[test]
fn its_port_stays_held_and_what_it_asks_is_not() {
    for mode in SUSPENDED {
        let mut scene = edited_to(&on(81, mode));
        scene.forwards.extend([forward(1, &on(80, Mode::Apply)), forward(2, &on(81, Mode::Apply))]);
        let decision = decide(&mut scene);
        assert_eq!(refusal(&decision, 1).0, Reason::PortConflict, "{mode:?}");
        assert!(verdict(&decision, 2).is_ok());
        assert_eq!(refusal(&decision, 0).0, Reason::PortConflict, "what it asks is another's by now");
        assert_eq!(carried(&decision), [(80, 1), (81, 1)]);
    }
}

#[test]
fn two_that_propose_the_same_are_not_in_each_others_way() {
    let mut scene = scene(&[on(80, Mode::Paused), on(80, Mode::Paused)], &LISTEN);
    let decision = decide(&mut scene);
    assert!(verdict(&decision, 0).is_ok() && verdict(&decision, 1).is_ok());
}

#[test]
fn a_spec_that_is_no_good_changes_nothing_while_it_waits() {
    let mut elsewhere = on(80, Mode::Paused);
    elsewhere.pool = "nowhere".into();
    for (spec, reason) in [(on(0, Mode::Paused), Reason::UnsupportedValue), (elsewhere, Reason::PoolNotFound)] {
        let mut scene = edited_to(&spec);
        let decision = decide(&mut scene);
        assert_eq!(refusal(&decision, 0).0, reason);
        assert_eq!(carried(&decision), [(80, 1)], "{reason}");
    }
}

#[test]
fn what_is_not_allowed_any_more_is_not_kept() {
    type Change = fn(&mut Scene);
    let changes: [(Change, Reason); 4] = [
        (|scene| scene.pools[0].spec.grants[0].target_cidrs = vec!["172.16.0.0/12".into()], Reason::NotGranted),
        (|scene| scene.pools.clear(), Reason::PoolNotFound),
        (|scene| scene.forbidden = vec!["10.30.1.79/32".parse().unwrap()], Reason::InvalidTarget),
        (|scene| scene.pools[0].spec.grants[0].max_forwards = Some(0), Reason::QuotaExceeded),
    ];
    for (change, reason) in changes {
        for spec in [on(80, Mode::Paused), on(81, Mode::Paused)] {
            let mut scene = edited_to(&spec);
            change(&mut scene);
            let decision = decide(&mut scene);
            assert_eq!(refusal(&decision, 0).0, reason);
            assert!(decision.slices.is_empty(), "{reason}");
        }
    }
    let mut scene = edited_to(&on(81, Mode::Paused));
    let ports = serde_json::json!([{ "port": 81 }]);
    scene.pools[0].spec.grants[0].ports = serde_json::from_value(ports).unwrap();
    let (_, message) = refusal(&decide(&mut scene), 0);
    assert!(message.starts_with("what was kept is not allowed any more: "), "{message}");
    assert!(verdict(&decide(&mut scene), 0).is_ok(), "what it asks is, once what it had is gone");
}

#[test]
fn what_is_kept_expires_as_it_said_whatever_waits() {
    for mode in SUSPENDED {
        let mut scene = scene_of(&[PortForwardSpec { expires_at: Some(time(100)), ..on(80, Mode::Apply) }]);
        decide(&mut scene);
        scene.forwards[0].spec = Ok(PortForwardSpec { expires_at: Some(time(200)), ..on(80, mode) }.into());
        let decision = decide(&mut scene);
        assert_eq!(
            (carried(&decision), decision.expiries.values().collect::<Vec<_>>()),
            (vec![(80, 1)], vec![&Moment(100)])
        );
        scene.now = Moment(100);
        let decision = decide(&mut scene);
        assert_eq!((carried(&decision), refusal(&decision, 0).0), (vec![], Reason::Expired), "{mode:?}");
        let decision = decide(&mut scene);
        assert!(verdict(&decision, 0).is_ok(), "it could be carried anew");
        assert_eq!((carried(&decision), decision.expiries.values().collect::<Vec<_>>()), (vec![], vec![&Moment(200)]));
    }
}

#[test]
fn a_grant_that_is_shortened_shortens_what_is_kept() {
    let mut scene = edited_to(&on(80, Mode::Paused));
    scene.pools[0].spec.grants[0].max_lifetime = Some("1h".into());
    let decision = decide(&mut scene);
    assert_eq!(
        (carried(&decision), decision.expiries.values().collect::<Vec<_>>()),
        (vec![(80, 1)], vec![&Moment(3600)])
    );
    assert_eq!(verdict(&decision, 0).as_ref(), Ok(&scene.slices["default-0000"].forwards[0].hash));
    scene.now = Moment(3600);
    assert_eq!(refusal(&decide(&mut scene), 0).0, Reason::Expired);
}

#[test]
fn a_pending_edit_needs_no_second_place_under_a_quota() {
    let mut scene = edited_to(&on(81, Mode::Paused));
    scene.pools[0].spec.grants[0].max_forwards = Some(1);
    assert!(verdict(&decide(&mut scene), 0).is_ok());
    scene.forwards.push(forward(1, &on(90, Mode::Paused)));
    assert_eq!(refusal(&decide(&mut scene), 1).0, Reason::QuotaExceeded);
}

#[test]
fn a_forward_paused_on_its_way_to_another_pool_stays_in_the_one_that_it_asks_for() {
    let mut scene = edited_to(&on(80, Mode::Paused));
    let mut other = scene.pools[0].clone();
    other.name = "other".into();
    scene.pools.push(other);
    let mut copy = scene.slices["default-0000"].clone();
    copy.pool = "other".into();
    scene.slices.insert("other-0000".into(), copy);
    assert_eq!(decide(&mut scene).slices.keys().collect::<Vec<_>>(), ["default-0000"]);
}

#[test]
fn what_is_planned_is_beside_what_is_carried_and_not_in_the_hash() {
    let mut scene = edited_to(&on(81, Mode::Plan));
    let before = scene.slices["default-0000"].clone();
    let decision = decide(&mut scene);
    assert_eq!(planned(&decision), ["default-0000 payments/f0 81"]);
    let slice = &decision.slices["default-0000"];
    assert_eq!((&slice.hash, &slice.forwards), (&before.hash, &before.forwards));
    assert_eq!(slice.planned[0].hash, verdict(&decision, 0).unwrap());
    // A plan alone makes a slice, too, and goes with its mode.
    let mut alone = scene_of(&[on(80, Mode::Plan)]);
    assert_eq!(planned(&decide(&mut alone)), ["default-0000 payments/f0 80"]);
    assert_eq!(decide(&mut alone).slices, alone.slices);
    alone.forwards[0].spec = Ok(on(80, Mode::Paused).into());
    assert!(decide(&mut alone).slices.is_empty());
}

#[test]
fn only_what_would_be_accepted_and_is_not_carried_is_planned() {
    let taken = scene_of(&[on(80, Mode::Apply), on(80, Mode::Plan)]).decide();
    assert_eq!((planned(&taken), refusal(&taken, 1).0), (vec![], Reason::PortConflict));
    assert_eq!(planned(&decide(&mut edited_to(&on(80, Mode::Plan)))), [""; 0]);
}

#[test]
fn no_namespace_takes_all_the_places_for_plans() {
    let mut scene = scene_of(&[]);
    for number in 0..40 {
        scene.forwards.push(forward(number, &on(80, Mode::Plan)));
    }
    let mut other = forward(40, &on(80, Mode::Plan));
    other.key.namespace = "zoo".into();
    scene.forwards.push(other);
    let plans = planned(&scene.decide());
    assert_eq!(plans.len(), MAX_PLANS);
    assert!(plans.contains(&"default-0000 zoo/f40 80".to_owned()), "{plans:?}");
}

proptest! {
    #[test]
    fn a_kept_intent_asks_for_itself(mut spec in spec(), sever in any::<bool>(), expiry in prop::option::of(1..1000_i64)) {
        spec.lifecycle.on_target_removed = if sever { OnTargetRemoved::Sever } else { OnTargetRemoved::Drain };
        spec.expires_at = expiry.map(time);
        let Ok(intent) = validate(&spec) else { return Ok(()) };
        prop_assert_eq!(revalidate("default", &intent), Ok(intent));
    }
}
