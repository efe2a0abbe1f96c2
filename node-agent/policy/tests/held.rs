//! What is held for a forward is asked for like anything else: held to all that a spec is held to, and decided upon by the
//! same rules.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sallyport_api::id::Moment;
use sallyport_api::intent::{Intent, IntentPort, IntentTarget};
use sallyport_api::port_forward::{OnTargetRemoved, PortForwardSpec, Protocol, SourceNatMode};
use sallyport_api::{Reason, SliceForward};
use sallyport_policy::decide::{Decision, Verdict};
use sallyport_policy::validate::{Problem, revalidate, validate};

#[path = "support/scene.rs"]
mod scene;
#[path = "support/spec_of.rs"]
mod spec_of;
#[path = "support/specs.rs"]
mod specs;

use scene::Scene;
use spec_of::spec_of;
use specs::{LISTEN, forward, minimal, scene};

fn net() -> impl Strategy<Value = IpNet> {
    let texts = [
        "0.0.0.0/0",
        "10.30.1.80/32",
        "10.30.1.80/24",
        "10.30.0.0/16",
        "::/0",
        "fd00:30::80/64",
        "::ffff:10.0.0.1/120",
    ];
    select(texts.to_vec()).prop_map(|text| text.parse().unwrap())
}

fn port() -> impl Strategy<Value = IntentPort> {
    let numbers = || select(&[0, 1, 22, 80, 90, 3306, 10250, 65535][..]);
    (any::<bool>(), numbers(), prop::option::of(numbers()), prop::option::of(numbers())).prop_map(
        |(tcp, port, end, target)| IntentPort {
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            port,
            end_port: end.unwrap_or(port),
            target_port: target.unwrap_or(port),
        },
    )
}

fn target() -> impl Strategy<Value = IntentTarget> {
    let ips = ["10.30.1.79", "10.30.1.81", "127.0.0.1", "169.254.169.254", "fd00:30::79", "::1"];
    let weights = select(&[0, 1, 256, 257, u16::MAX][..]);
    (select(ips.to_vec()), weights).prop_map(|(ip, weight)| IntentTarget { ip: ip.parse().unwrap(), weight })
}

/// Intents of every kind, such as somebody may have forged, or an older version written.
fn intents() -> impl Strategy<Value = Intent> {
    let addresses = select(&["10.30.1.78", "fd00:30::78", "0.0.0.0"][..]).prop_map(|ip| ip.parse().unwrap());
    (
        vec(addresses, 0..3),
        vec(port(), 0..4),
        prop_oneof![9 => vec(net(), 0..4), 1 => vec(net(), 60..70)],
        vec(net(), 0..2),
        vec(target(), 0..4),
        any::<bool>(),
        prop::option::of((0..1000_i64).prop_map(Moment)),
    )
        .prop_map(|(addresses, ports, allow, deny, targets, preserve, expires_at)| Intent {
            addresses,
            ports,
            allow,
            deny,
            targets,
            source_nat: if preserve { SourceNatMode::Preserve } else { SourceNatMode::Masquerade },
            on_target_removed: OnTargetRemoved::Sever,
            expires_at,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_held_is_held_to_all_that_a_spec_is_held_to(intent in intents(), pool in select(&["default", "No name"][..])) {
        prop_assert_eq!(revalidate(pool, &intent), validate(&spec_of(pool, &intent)));
    }
}

fn unreadable() -> Problem {
    Problem { field: "spec".into(), reason: Reason::UnsupportedValue, message: "is from the future".into() }
}

/// A scene with one forward that holds port 8080 and cannot be read any more.
fn held() -> (Scene, Decision) {
    let mut scene = scene(&[minimal()], &LISTEN);
    let before = scene.decide();
    scene.slices.clone_from(&before.slices);
    scene.forwards[0].spec = Err(unreadable());
    scene.forwards[0].generation = 2;
    (scene, before)
}

fn carried(decision: &Decision) -> Vec<&Arc<SliceForward>> {
    decision.slices.values().flat_map(|slice| &slice.forwards).collect()
}

#[test]
fn one_that_cannot_be_read_asks_for_what_it_has() {
    let (scene, before) = held();
    let after = scene.decide();
    assert_eq!(after.forwards, before.forwards);
    assert_eq!(
        carried(&after),
        [&Arc::new(SliceForward { generation: 2, ..SliceForward::clone(carried(&before)[0]) })]
    );
}

#[test]
fn one_that_cannot_be_read_keeps_its_port_from_others_and_nothing_that_is_not_granted_any_more() {
    let (mut scene, _) = held();
    let other: PortForwardSpec = minimal();
    scene.forwards.push(forward(1, &other));
    let refusal = |scene: &Scene, number: usize| match &scene.decide().forwards[&scene.forwards[number].key] {
        Verdict::Accepted(_) => None,
        Verdict::Refused(problems) => Some(problems[0].reason),
    };
    assert_eq!((refusal(&scene, 0), refusal(&scene, 1)), (None, Some(Reason::PortConflict)));
    scene.pools[0].spec.grants[0].ports.truncate(0);
    assert_eq!(refusal(&scene, 0), Some(Reason::NotGranted));
}

#[test]
fn one_that_cannot_be_read_and_has_nothing_is_refused_for_what_is_wrong_with_it() {
    let (mut scene, _) = held();
    scene.slices.clear();
    let decision = scene.decide();
    assert_eq!(decision.forwards[&scene.forwards[0].key], Verdict::Refused(vec![unreadable()]));
    assert_eq!(carried(&decision), Vec::<&Arc<SliceForward>>::new());
}
