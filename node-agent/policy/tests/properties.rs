//! What `decide` and `slice` promise, held against random objects, edits and hostile strings.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use sallyport_api::forward_slice::{ForwardSliceSpec, SliceForward};
use sallyport_api::id::Moment;
use sallyport_api::intent::Intent;
use sallyport_api::names::{MAX_SLICE_BYTES, MAX_SLICE_FORWARDS};
use sallyport_api::port_forward::{Mode, PortForwardSpec, Protocol};
use sallyport_api::testing;
use sallyport_policy::decide::{Decision, Verdict};
use sallyport_policy::digest::intent_hash;
use sallyport_policy::observed::{Forward, Outgoing};
use sallyport_policy::slice::cut;
use sallyport_policy::validate::{Problem, validate};

#[path = "support/scene.rs"]
mod scene;
#[path = "support/specs.rs"]
mod specs;

use scene::Scene;
use specs::{LISTEN, asks, forward, scene, spec};

fn config(divisor: u32) -> ProptestConfig {
    let all = ProptestConfig::default();
    ProptestConfig { cases: all.cases.div_ceil(divisor), failure_persistence: None, ..all }
}

fn accepted(decision: &Decision, forward: &Forward) -> bool {
    matches!(decision.forwards.get(&forward.key), Some(Verdict::Accepted(_)))
}

/// Every port that a forward listens on, one by one, straight from its fields. Without addresses of its own it listens
/// on every address of its targets' families, for which those of the scene stand.
fn cells(intent: &Intent) -> BTreeSet<(IpAddr, Protocol, u16)> {
    let mut addresses = intent.addresses.clone();
    if addresses.is_empty() {
        addresses.extend(LISTEN.iter().map(|text| text.parse::<IpAddr>().unwrap()));
        addresses.retain(|ip| intent.targets.iter().any(|target| target.ip.is_ipv6() == ip.is_ipv6()));
    }
    let of = |ip: IpAddr| {
        intent.ports.iter().flat_map(move |port| (port.port..=port.end_port).map(move |n| (ip, port.protocol, n)))
    };
    addresses.into_iter().flat_map(of).collect()
}

/// What the slices hold for each forward.
fn held(decision: &Decision) -> BTreeMap<&str, &Intent> {
    let forwards = decision.slices.values().flat_map(|slice| &slice.forwards);
    forwards.map(|forward| (forward.uid.as_str(), &forward.intent)).collect()
}

fn no_port_is_given_twice(decision: &Decision) -> Result<(), TestCaseError> {
    let mut taken = BTreeMap::new();
    for (uid, intent) in held(decision) {
        for cell in cells(intent) {
            let other = taken.insert(cell, uid);
            prop_assert!(other.is_none(), "{cell:?} was given to {uid} and to {}", other.unwrap());
        }
    }
    Ok(())
}

/// Exactly who is accepted is carried, with what it asks; for one that is paused what it had is, or nothing.
fn what_is_carried_is_what_was_asked_or_kept(
    before: &Decision,
    after: &Decision,
    forwards: &[Forward],
) -> Result<(), TestCaseError> {
    let (had, has) = (held(before), held(after));
    for forward in forwards {
        let asked = validate(asks(forward)).ok().filter(|_| accepted(after, forward));
        let now = has.get(forward.uid.as_str()).copied();
        if asks(forward).mode == Mode::Apply {
            prop_assert_eq!(now, asked.as_ref(), "{}", &forward.key);
        } else {
            prop_assert_eq!(now, had.get(forward.uid.as_str()).copied(), "{} is paused", &forward.key);
        }
    }
    Ok(())
}

fn slices_are_small(slices: &BTreeMap<String, ForwardSliceSpec>) -> Result<(), TestCaseError> {
    for (name, slice) in slices {
        let entries = slice.forwards.len() + slice.planned.len();
        prop_assert!(entries > 0, "{name} is empty");
        prop_assert!(entries <= MAX_SLICE_FORWARDS, "{name} has {entries}");
        let bytes = serde_json::to_vec(slice).unwrap().len();
        prop_assert!(bytes <= MAX_SLICE_BYTES, "{name} has {bytes} bytes");
    }
    Ok(())
}

fn homes(slices: &BTreeMap<String, ForwardSliceSpec>) -> BTreeMap<&str, &str> {
    slices
        .iter()
        .flat_map(|(name, slice)| slice.forwards.iter().map(move |f| (f.uid.as_str(), name.as_str())))
        .collect()
}

/// A scene whose forwards count against grants of limited size.
fn with_quota(mut scene: Scene, limits: [i32; 2]) -> Scene {
    let all = scene.pools[0].spec.grants.pop().unwrap();
    let mut low = all.clone();
    low.name = "low-ports".into();
    low.ports.iter_mut().for_each(|port| port.end_port = Some(4095));
    low.max_forwards = Some(limits[0]);
    let mut any = all;
    any.name = "any-port".into();
    any.max_forwards = Some(limits[1]);
    // The wider one first: who takes what they find then stands in the way of who can take nothing else.
    scene.pools[0].spec.grants = vec![any, low];
    scene
}

/// Something that a user does between two decisions.
#[derive(Clone, Debug)]
enum Edit {
    Create(PortForwardSpec, i64),
    Change(Index, PortForwardSpec),
    Delete(Index),
}

fn with_mode() -> impl Strategy<Value = PortForwardSpec> {
    let mode = prop_oneof![4 => Just(Mode::Apply), 1 => Just(Mode::Paused), 1 => Just(Mode::Plan)];
    (spec(), mode).prop_map(|(spec, mode)| PortForwardSpec { mode, ..spec })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        3 => (with_mode(), -5..100_i64).prop_map(|(spec, created)| Edit::Create(spec, created)),
        2 => (any::<Index>(), with_mode()).prop_map(|(at, spec)| Edit::Change(at, spec)),
        1 => any::<Index>().prop_map(Edit::Delete),
    ]
}

proptest! {
    #![proptest_config(config(1))]

    #[test]
    fn the_order_of_the_inputs_changes_nothing(specs in vec(spec(), 1..8), order in any::<u64>()) {
        let mut scene = scene(&specs, &LISTEN);
        let decision = scene.decide();
        let turn = usize::try_from(order % 97).unwrap();
        let len = scene.forwards.len();
        scene.forwards.rotate_left(turn % len);
        if order % 2 == 0 {
            scene.forwards.reverse();
        }
        scene.nodes[0].listen.reverse();
        prop_assert_eq!(&scene.decide(), &decision);
    }

    #[test]
    fn no_port_is_given_twice_and_nobody_loses_what_they_hold(
        edits in vec(edit(), 1..24),
        limits in [0..4_i32, 0..4_i32],
        limited in any::<bool>(),
    ) {
        let mut scene = scene(&[], &LISTEN);
        if limited {
            scene = with_quota(scene, limits);
        }
        let mut before = scene.decide();
        for (number, edit) in edits.into_iter().enumerate() {
            let mut touched = None;
            match edit {
                Edit::Create(spec, created) => scene.forwards.push(Forward { created: Moment(created), ..forward(number, &spec) }),
                Edit::Change(at, spec) if !scene.forwards.is_empty() => {
                    let at = at.index(scene.forwards.len());
                    scene.forwards[at].generation += 1;
                    scene.forwards[at].spec = Ok(spec.into());
                    touched = Some(scene.forwards[at].key.clone());
                }
                Edit::Delete(at) if !scene.forwards.is_empty() => {
                    scene.forwards.remove(at.index(scene.forwards.len()));
                }
                _ => {}
            }
            scene.slices = before.slices.clone();
            let after = scene.decide();
            no_port_is_given_twice(&after)?;
            what_is_carried_is_what_was_asked_or_kept(&before, &after, &scene.forwards)?;
            prop_assert_eq!(after.forwards.len(), scene.forwards.len());
            let homes = (homes(&before.slices), homes(&after.slices));
            for forward in scene.forwards.iter().filter(|forward| touched.as_ref() != Some(&forward.key)) {
                let had = held(&before).get(forward.uid.as_str()).copied().cloned();
                if let Some(intent) = had {
                    let has = held(&after).get(forward.uid.as_str()).copied().cloned();
                    prop_assert_eq!(has, Some(intent), "{} lost: {:?}", &forward.key, &after.forwards[&forward.key]);
                    prop_assert_eq!(homes.0.get(forward.uid.as_str()), homes.1.get(forward.uid.as_str()), "{} moved", forward.key);
                }
            }
            scene.slices = after.slices.clone();
            prop_assert_eq!(&scene.decide(), &after, "deciding again changes something");
            before = after;
        }
    }

    #[test]
    fn whoever_is_refused_is_told_the_field_and_the_remedy(specs in vec(spec(), 1..8)) {
        let scene = scene(&specs, &LISTEN);
        for (key, verdict) in scene.decide().forwards {
            if let Verdict::Refused(problems) = verdict {
                prop_assert!(!problems.is_empty(), "{key} is refused without a reason");
                for problem in problems {
                    prop_assert!(problem.field.starts_with("spec"), "{key}: {problem}");
                    prop_assert!(problem.message.len() > 20, "{key}: {problem}");
                }
            }
        }
    }

    #[test]
    fn a_refusal_tells_nothing_of_another_namespace(
        specs in vec((0..3_usize, spec()), 2..10),
        leaving in vec(any::<bool>(), 10),
    ) {
        let tenants = ["alpha", "bravo", "charlie"];
        let mut scene = scene(&[], &LISTEN);
        for (number, (tenant, spec)) in specs.iter().enumerate() {
            let mut forward = forward(number, spec);
            forward.key.namespace = tenants[*tenant].to_owned();
            forward.key.name = format!("{}-private-{number}", tenants[*tenant]);
            scene.forwards.push(forward);
        }
        // Some of those who hold a port have just been deleted, and the nodes may still carry them.
        let held = scene.decide();
        scene.outgoing = (held.slices.values().flat_map(|slice| &slice.forwards))
            .zip(&leaving)
            .filter(|(_, leaving)| **leaving)
            .map(|(forward, _)| {
                scene.forwards.retain(|other| other.uid != forward.uid);
                Outgoing { pool: "default".into(), uid: forward.uid.clone(), intent: forward.intent.clone().into() }
            })
            .collect();
        for (key, verdict) in scene.decide().forwards {
            let Verdict::Refused(problems) = verdict else { continue };
            let own = asks(scene.forwards.iter().find(|forward| forward.key == key).unwrap());
            let text = serde_json::to_string(own).unwrap();
            let asked: BTreeSet<i32> = (own.ports.iter()).flat_map(|port| port.port..=port.end_port.unwrap_or(port.port)).collect();
            for Problem { message, .. } in &problems {
                for other in tenants.iter().filter(|name| **name != key.namespace) {
                    prop_assert!(!message.contains(other), "{key} is told of {other}: {message}");
                }
                for address in LISTEN.iter().filter(|address| !text.contains(**address)) {
                    prop_assert!(!message.contains(address), "{key} is told of {address}: {message}");
                }
                let Some(ports) = message.strip_prefix("port ").and_then(|rest| rest.split('/').next()) else { continue };
                for port in ports.split('-').map(|port| port.parse().unwrap()) {
                    prop_assert!(asked.contains(&port), "{key} is told of port {port}: {message}");
                }
            }
        }
    }
}

/// An accepted forward whose entry in a slice takes roughly `sources` times ninety bytes.
fn bulky(number: usize, sources: u8) -> Arc<SliceForward> {
    let block = |low| IpNet::from(IpAddr::from([0xfd00, 0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666, low]));
    let allow: Vec<IpNet> = (0..u16::from(sources)).map(block).collect();
    let forward = testing::Forward::tcp(&format!("payments/f{number}"), 3306).slice_forward(intent_hash);
    let intent = Intent { deny: allow.clone(), allow, ..forward.intent };
    Arc::new(SliceForward { uid: format!("uid-{number}").into(), hash: intent_hash(&intent), intent, ..forward })
}

proptest! {
    #![proptest_config(config(16))]

    #[test]
    fn slices_stay_small_and_only_who_grew_moves(
        sizes in vec(prop_oneof![1 => 1..4_u8, 3 => 60..65_u8], 60..320),
        changes in vec((any::<Index>(), prop_oneof![Just(0), 1..4_u8, 60..65_u8]), 1..8),
    ) {
        let mut world: BTreeMap<usize, Arc<SliceForward>> = sizes.iter().enumerate().map(|(n, size)| (n, bulky(n, *size))).collect();
        let pool = |world: &BTreeMap<usize, Arc<SliceForward>>| BTreeMap::from([("default".to_owned(), world.values().cloned().collect())]);
        // Plans come and go beside it, and nobody moves for them.
        let plans = |number: usize| BTreeMap::from([("default".to_owned(), (0..number % 17).map(|n| bulky(1000 + n, 60)).collect())]);
        let mut before = cut(pool(&world), plans(sizes.len()), &BTreeMap::new());
        slices_are_small(&before)?;
        for (at, size) in changes {
            let changed = at.index(sizes.len() + 20);
            if size == 0 {
                world.remove(&changed);
            } else {
                world.insert(changed, bulky(changed, size));
            }
            let after = cut(pool(&world), plans(changed), &before);
            slices_are_small(&after)?;
            let uid = format!("uid-{changed}");
            let (old, new) = (homes(&before), homes(&after));
            prop_assert_eq!(new.len(), world.len());
            for (who, home) in old.iter().filter(|(who, _)| **who != uid) {
                prop_assert_eq!(new.get(who), Some(home), "{} moved although {} changed", who, &uid);
            }
            prop_assert_eq!(&cut(pool(&world), plans(changed), &after), &after);
            before = after;
        }
    }
}

proptest! {
    #![proptest_config(config(4))]

    #[test]
    fn what_has_expired_holds_nothing_and_everything_else_is_as_without_it(
        mut specs in vec(spec(), 1..8),
        expiries in vec(prop::option::of(1..20_i64), 8),
        now in 0..22_i64,
    ) {
        for (spec, expiry) in specs.iter_mut().zip(&expiries) {
            spec.expires_at = expiry.and_then(time);
        }
        let mut scene = scene(&specs, &LISTEN);
        let before = scene.decide();
        scene.slices = before.slices.clone();
        scene.now = Moment(now);
        let after = scene.decide();
        for (forward, expiry) in scene.forwards.iter().zip(&expiries) {
            let expired = expiry.is_some_and(|expiry| expiry <= now);
            prop_assert!(!(expired && accepted(&after, forward)), "{} has expired", forward.key);
            prop_assert!(expired || !accepted(&before, forward) || accepted(&after, forward), "{} lost it", forward.key);
        }
        no_port_is_given_twice(&after)?;
    }
}

fn time(seconds: i64) -> Option<Time> {
    Moment(seconds).to_time()
}
