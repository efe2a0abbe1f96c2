//! What `decide`, `slice` and `compile` promise, held against random objects, edits and hostile strings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use regex::RegexSet;
use sallyport_api::forward_slice::{ForwardSliceSpec, SliceForward};
use sallyport_api::intent::{Intent, IntentPort, IntentTarget};
use sallyport_api::names::{MAX_SLICE_BYTES, MAX_SLICE_FORWARDS};
use sallyport_api::port_forward::{PortForwardSpec, Protocol, SourceNatMode};
use sallyport_ruleset::compile::{Compiled, compile};
use sallyport_ruleset::decide::{Decision, Forward, Verdict};
use sallyport_ruleset::digest::{intent_hash, short_id};
use sallyport_ruleset::family::Family;
use sallyport_ruleset::plan::{plan, render};
use sallyport_ruleset::rule::{Rules, Ruleset};
use sallyport_ruleset::slice::cut;

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/scene.rs"]
mod scene;
#[path = "support/specs.rs"]
mod specs;

use kernel::Kernel;
use scene::Scene;
use specs::{LISTEN, forward, scene, spec};

fn config(divisor: u32) -> ProptestConfig {
    let all = ProptestConfig::default();
    ProptestConfig { cases: all.cases.div_ceil(divisor), failure_persistence: None, ..all }
}

fn accepted(decision: &Decision, forward: &Forward) -> bool {
    matches!(decision.forwards.get(&forward.key), Some(Verdict::Accepted(_)))
}

/// Every port that a forward listens on, one by one, straight from its fields. Without addresses of its own it listens
/// on every address of its targets' families, for which those of the scene stand.
fn cells(spec: &PortForwardSpec) -> BTreeSet<(IpAddr, Protocol, i32)> {
    let mut addresses: Vec<IpAddr> = spec.addresses.iter().map(|text| text.parse().unwrap()).collect();
    if addresses.is_empty() {
        addresses.extend(LISTEN.iter().map(|text| text.parse::<IpAddr>().unwrap()));
        addresses.retain(|ip| spec.targets.iter().any(|target| target.ip.contains(':') == ip.is_ipv6()));
    }
    let of = |ip: IpAddr| {
        spec.ports.iter().flat_map(move |port| {
            (port.port..=port.end_port.unwrap_or(port.port)).map(move |number| (ip, port.protocol, number))
        })
    };
    addresses.into_iter().flat_map(of).collect()
}

fn no_port_is_given_twice(decision: &Decision, forwards: &[Forward]) -> Result<(), TestCaseError> {
    let mut taken = BTreeMap::new();
    for forward in forwards.iter().filter(|forward| accepted(decision, forward)) {
        for cell in cells(&forward.spec) {
            let other = taken.insert(cell, &forward.key);
            prop_assert!(other.is_none(), "{cell:?} was given to {} and to {}", forward.key, other.unwrap());
        }
    }
    Ok(())
}

fn slices_are_small(slices: &BTreeMap<String, ForwardSliceSpec>) -> Result<(), TestCaseError> {
    for (name, slice) in slices {
        prop_assert!(!slice.forwards.is_empty(), "{name} is empty");
        prop_assert!(slice.forwards.len() <= MAX_SLICE_FORWARDS, "{name} has {}", slice.forwards.len());
        let bytes = serde_json::to_vec(slice).unwrap().len();
        prop_assert!(bytes <= MAX_SLICE_BYTES, "{name} has {bytes} bytes");
    }
    Ok(())
}

fn homes(slices: &BTreeMap<String, ForwardSliceSpec>) -> BTreeMap<&str, &str> {
    slices.iter().flat_map(|(name, slice)| slice.forwards.iter().map(move |f| (f.uid.as_str(), name.as_str()))).collect()
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
    scene.pools[0].spec.grants = vec![low, any];
    scene
}

/// Something that a user does between two decisions.
#[derive(Clone, Debug)]
enum Edit {
    Create(PortForwardSpec, i64),
    Change(Index, PortForwardSpec),
    Delete(Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        3 => (spec(), -5..100_i64).prop_map(|(spec, created)| Edit::Create(spec, created)),
        2 => (any::<Index>(), spec()).prop_map(|(at, spec)| Edit::Change(at, spec)),
        1 => any::<Index>().prop_map(Edit::Delete),
    ]
}

proptest! {
    #![proptest_config(config(1))]

    #[test]
    fn the_order_of_the_inputs_changes_nothing(specs in vec(spec(), 1..8), order in any::<u64>()) {
        let mut scene = scene(&specs, &LISTEN);
        let decision = scene.decide();
        let compiled = Scene::compile(&decision, &scene.nodes[0]).unwrap();
        let turn = usize::try_from(order % 97).unwrap();
        let len = scene.forwards.len();
        scene.forwards.rotate_left(turn % len);
        if order % 2 == 0 {
            scene.forwards.reverse();
        }
        scene.nodes[0].local.reverse();
        scene.nodes[0].listen.reverse();
        prop_assert_eq!(&scene.decide(), &decision);
        let node = &decision.nodes["gw1"];
        let mut forwards: Vec<&SliceForward> = decision.slices.values().flat_map(|slice| &slice.forwards).collect();
        forwards.reverse();
        prop_assert_eq!(compile(node, &forwards, &scene.nodes[0].local_addresses()), compiled);
    }

    #[test]
    fn no_port_is_given_twice_and_nobody_loses_what_they_hold(
        edits in vec(edit(), 1..24),
        limits in [0..8_i32, 0..8_i32],
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
                Edit::Create(spec, created) => scene.forwards.push(Forward { created, ..forward(number, &spec) }),
                Edit::Change(at, spec) if !scene.forwards.is_empty() => {
                    let at = at.index(scene.forwards.len());
                    scene.forwards[at].generation += 1;
                    scene.forwards[at].spec = spec;
                    touched = Some(scene.forwards[at].key.clone());
                }
                Edit::Delete(at) if !scene.forwards.is_empty() => {
                    scene.forwards.remove(at.index(scene.forwards.len()));
                }
                _ => {}
            }
            scene.slices = before.slices.clone();
            let after = scene.decide();
            no_port_is_given_twice(&after, &scene.forwards)?;
            prop_assert_eq!(after.forwards.len(), scene.forwards.len());
            let homes = (homes(&before.slices), homes(&after.slices));
            for forward in scene.forwards.iter().filter(|forward| touched.as_ref() != Some(&forward.key)) {
                if accepted(&before, forward) {
                    prop_assert!(accepted(&after, forward), "{} lost: {:?}", forward.key, after.forwards[&forward.key]);
                    prop_assert_eq!(homes.0.get(&*forward.uid), homes.1.get(&*forward.uid), "{} moved", forward.key);
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
    fn equal_digests_mean_equal_rules(
        specs in vec(spec(), 1..4),
        others in vec(spec(), 0..2),
        tampering in (any::<Index>(), any::<Index>(), 0..6_u8),
    ) {
        let compiled = |specs: &[PortForwardSpec]| {
            let scene = scene(specs, &LISTEN);
            Scene::compile(&scene.decide(), &scene.nodes[0]).unwrap().ruleset
        };
        let ruleset = compiled(&specs);
        let mut other = if others.is_empty() { ruleset.clone() } else { compiled(&others) };
        tamper(&mut other, &tampering);
        prop_assert_eq!(ruleset.digest() == other.digest(), ruleset == other, "{:?}\n{:?}", ruleset, other);
        prop_assert_eq!(ruleset.digest(), ruleset.clone().digest());
    }
}

/// Changes a rule set in one small way.
fn tamper(ruleset: &mut Ruleset, (chain, rule, how): &(Index, Index, u8)) {
    let family: &mut Rules = if ruleset.v4.is_empty() { &mut ruleset.v6 } else { &mut ruleset.v4 };
    let names: Vec<String> = family.nat.keys().cloned().collect();
    if names.is_empty() {
        return;
    }
    let name = chain.get(&names);
    let rules = family.nat.get_mut(name).unwrap();
    match how {
        0 if !rules.is_empty() => {
            rules.remove(rule.index(rules.len()));
        }
        1 if !rules.is_empty() => {
            let at = rule.index(rules.len());
            rules.insert(at, rules[at].clone());
        }
        2 => rules.reverse(),
        3 => {
            family.nat.insert(format!("{name}-"), Vec::new());
        }
        4 => {
            let moved = family.nat.remove(name).unwrap();
            family.filter.insert(name.clone(), moved);
        }
        5 => std::mem::swap(&mut ruleset.v4, &mut ruleset.v6),
        _ => {}
    }
}

/// An accepted forward whose entry in a slice takes roughly `sources` times twenty bytes.
fn bulky(number: usize, sources: u8) -> SliceForward {
    let allow = (0..sources).map(|low| IpNet::from(IpAddr::from([10, 0, 200, low]))).collect();
    let intent = Intent {
        addresses: Vec::new(),
        ports: vec![IntentPort { protocol: Protocol::Tcp, port: 3306, end_port: 3306, target_port: 3306 }],
        allow,
        deny: Vec::new(),
        targets: vec![IntentTarget { ip: [10, 30, 1, 79].into(), weight: 1 }],
        source_nat: SourceNatMode::Masquerade,
    };
    SliceForward {
        uid: format!("uid-{number}"),
        r#ref: forward(number, &minimal()).key,
        generation: 1,
        hash: intent_hash(&intent),
        intent,
    }
}

/// The least that a forward has to say.
fn minimal() -> PortForwardSpec {
    serde_json::from_value(serde_json::json!({
        "ports": [{ "name": "p", "port": 8080 }],
        "sources": { "allow": [{ "cidr": "10.30.1.80/32" }] },
        "targets": [{ "name": "t", "ip": "10.30.1.79" }],
    }))
    .unwrap()
}

proptest! {
    #![proptest_config(config(32))]

    #[test]
    fn slices_stay_small_and_only_who_grew_moves(
        sizes in vec(prop_oneof![1..4_u8, 1..4_u8, 60..65_u8], 250..450),
        changes in vec((any::<Index>(), prop_oneof![Just(0), 1..4_u8, 60..65_u8]), 1..12),
    ) {
        let mut world: BTreeMap<usize, SliceForward> = sizes.iter().enumerate().map(|(n, size)| (n, bulky(n, *size))).collect();
        let pool = |world: &BTreeMap<usize, SliceForward>| BTreeMap::from([("default".to_owned(), world.values().cloned().collect())]);
        let mut before = cut(pool(&world), &BTreeMap::new());
        slices_are_small(&before)?;
        for (at, size) in changes {
            let changed = at.index(sizes.len() + 20);
            if size == 0 {
                world.remove(&changed);
            } else {
                world.insert(changed, bulky(changed, size));
            }
            let after = cut(pool(&world), &before);
            slices_are_small(&after)?;
            let uid = format!("uid-{changed}");
            let (old, new) = (homes(&before), homes(&after));
            prop_assert_eq!(new.len(), world.len());
            for (who, home) in old.iter().filter(|(who, _)| **who != uid) {
                prop_assert_eq!(new.get(who), Some(home), "{} moved although {} changed", who, &uid);
            }
            prop_assert_eq!(&cut(pool(&world), &after), &after);
            before = after;
        }
    }
}

/// Each line that may stand in a batch, written down anew: nothing that a user wrote can look like one.
static GRAMMAR: LazyLock<RegexSet> = LazyLock::new(|| {
    let chain = r"SALLY-(?:PRE|POST|FWD|[MP][TU]?|[MP][TU]-\d{1,5}-\d{1,5}|[SD]-[0-9a-f]{16})";
    let ip = r"(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9a-f:]*:[0-9a-f:]*)";
    let port = r"\d{1,5}";
    let to = format!(r"(?:{ip}|(?:\d{{1,3}}\.){{3}}\d{{1,3}}:{port}|\[[0-9a-f:]+\]:{port})");
    let guard = format!(
        r"(?:-s {ip}/\d{{1,3}} )?(?:-d {ip}/(?:32|128) )?(?:-p (?:tcp|udp) )?(?:-m (?:tcp|udp) --dport {port}(?::{port})? )?(?:-m statistic --mode random --probability 0\.\d{{11}} )?"
    );
    let ours = r"(?:-m conntrack --ctstate DNAT -m connmark --mark 0x[13]0000000/0x[13]0000000 )";
    let action = format!(
        r"(?:-j RETURN|-[jg] {chain}|-j CONNMARK --set-xmark 0x[0-3]0{{0,7}}/0x30000000|-j DNAT --to-destination {to})"
    );
    RegexSet::new([
        r"^\*(?:filter|nat)$".to_owned(),
        "^COMMIT$".to_owned(),
        format!(r"^:{chain} - \[0:0\]$"),
        format!(r"^-A {chain} {guard}{action}$"),
        format!(r"^-A SALLY-(?:POST|FWD) {ours}-j (?:MASQUERADE|ACCEPT)$"),
        "^-I FORWARD 1 -j SALLY-FWD$".to_owned(),
        "^-I (?:PREROUTING|OUTPUT) 1 -j SALLY-PRE$".to_owned(),
        "^-I POSTROUTING 1 -j SALLY-POST$".to_owned(),
        "^-D FORWARD -j SALLY-FWD$".to_owned(),
        "^-D (?:PREROUTING|OUTPUT) -j SALLY-PRE$".to_owned(),
        "^-D POSTROUTING -j SALLY-POST$".to_owned(),
        format!("^-X {chain}$"),
    ])
    .unwrap()
});

/// Both the batch that installs and the batch that removes say nothing but what the grammar knows.
fn batches_are_clean(compiled: &Compiled) -> Result<(), TestCaseError> {
    let mut installed = sallyport_ruleset::installed::InstalledRuleset::default();
    for family in Family::BOTH {
        let mut kernel = Kernel::default();
        let batch = render(&compiled.ruleset);
        let Some(text) = batch.family(family) else { continue };
        kernel.restore(text).map_err(TestCaseError::fail)?;
        *installed.family_mut(family) = sallyport_ruleset::installed::Installed::parse(&kernel.save());
        let removal = plan(&Ruleset::default(), &installed, false);
        for line in text.split('\n').chain(removal.family(family).unwrap().split('\n')).filter(|line| !line.is_empty()) {
            prop_assert!(GRAMMAR.is_match(line), "{line:?}");
        }
    }
    Ok(())
}

/// Strings that somebody might hope end up in a rule.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("10.30.1.79\n-A INPUT -j ACCEPT".to_owned()),
        Just("10.30.1.79; -j ACCEPT".to_owned()),
        Just("10.30.1.80/32\n".to_owned()),
        Just("10.30.1.80/32 -j ACCEPT".to_owned()),
        Just("\0".to_owned()),
        Just("p\0p".to_owned()),
        Just("１０.３０.１.７９".to_owned()),
        Just("пункт".to_owned()),
        Just("-j".to_owned()),
        Just("\"".to_owned()),
        Just("x".repeat(300)),
        "\\PC{0,300}",
        ".{0,40}",
        "[0-9a-f:./-]{0,45}",
    ]
}

proptest! {
    #![proptest_config(config(1))]

    #[test]
    fn no_string_of_a_user_reaches_a_rule(
        spec in spec(),
        text in hostile(),
        second in hostile(),
        place in 0..9_u8,
        at in any::<Index>(),
    ) {
        let mut spec = spec;
        let mut uid = "uid-0".to_owned();
        let mut key = forward(0, &spec).key;
        match place {
            0 => spec.pool.clone_from(&text),
            1 => spec.addresses.push(text.clone()),
            2 => at.get_mut(&mut spec.ports).name.clone_from(&text),
            3 => at.get_mut(&mut spec.sources.allow).cidr.clone_from(&text),
            4 => spec.sources.deny.push(sallyport_api::Source { cidr: text.clone() }),
            5 => at.get_mut(&mut spec.targets).name.clone_from(&text),
            6 => at.get_mut(&mut spec.targets).ip.clone_from(&text),
            7 => uid.clone_from(&text),
            _ => { key.name.clone_from(&text); key.namespace.clone_from(&second); }
        }
        let mut scene = scene(&[spec], &LISTEN);
        scene.forwards[0].uid = uid;
        scene.forwards[0].key = key;
        let decision = scene.decide();
        let compiled = Scene::compile(&decision, &scene.nodes[0]).unwrap();
        batches_are_clean(&compiled)?;
        for problem in decision.forwards.values().filter_map(|v| if let Verdict::Refused(p) = v { Some(p) } else { None }).flatten() {
            if place < 7 {
                prop_assert!(!problem.to_string().contains(['\n', '\0', '\r', '\u{1b}']), "{problem:?}");
            }
        }
    }

    #[test]
    fn no_slice_however_forged_becomes_a_wrong_rule(
        ports in vec((any::<bool>(), any::<u16>(), any::<u16>(), any::<u16>(), any::<bool>()), 0..4),
        allow in vec(any::<(u32, u8)>(), 0..4),
        targets in vec(any::<(u32, u16, bool)>(), 0..4),
        preserve in any::<bool>(),
        uid in hostile(),
        honest_hash in prop::bool::weighted(0.9),
    ) {
        let intent = Intent {
            addresses: Vec::new(),
            ports: ports.iter().map(|(tcp, port, end_port, target_port, near)| IntentPort {
                protocol: if *tcp { Protocol::Tcp } else { Protocol::Udp },
                port: *port,
                end_port: if *near { port.saturating_add(end_port % 8) } else { *end_port },
                target_port: *target_port,
            }).collect(),
            allow: allow.iter().map(|(ip, len)| IpNet::new(std::net::Ipv4Addr::from(*ip).into(), len % 33).unwrap()).collect(),
            deny: Vec::new(),
            targets: targets.iter().map(|(ip, weight, near)| IntentTarget {
                ip: std::net::Ipv4Addr::from(if *near { 0x0a1e_0100 | (ip & 0xff) } else { *ip }).into(),
                weight: *weight,
            }).collect(),
            source_nat: if preserve { SourceNatMode::Preserve } else { SourceNatMode::Masquerade },
        };
        let hash = if honest_hash { intent_hash(&intent) } else { "v1:0".into() };
        let scene = scene(&[], &LISTEN);
        let key = forward(0, &minimal()).key;
        let forged = SliceForward { uid, r#ref: key.clone(), generation: 1, hash, intent };
        let compiled = compile(&scene.decide().nodes["gw1"], &[&forged], &scene.nodes[0].local_addresses());
        batches_are_clean(&compiled)?;
        let programmed = compiled.failures.is_empty();
        prop_assert!(honest_hash || !programmed, "a hash that does not fit was taken");
        for (ip, _, near) in &targets {
            let loopback = !near && ip >> 24 == 127;
            let own = *near && [77, 78, 255].contains(&(ip & 0xff)) || loopback;
            prop_assert!(!(own && programmed), "{ip:x} was taken as a target");
        }
        for (_, port, end_port, target_port, near) in &ports {
            let bad = *port == 0 || *target_port == 0 || !near && end_port < port;
            prop_assert!(!(bad && programmed), "ports {port}-{end_port} to {target_port} were taken");
        }
    }
}

#[test]
fn chain_names_do_not_depend_on_what_a_uid_holds() {
    for uid in ["", "\n", "-j ACCEPT", "a", &"x".repeat(300)] {
        assert!(short_id(uid).len() == 16 && short_id(uid).bytes().all(|b| b.is_ascii_hexdigit()), "{uid}");
    }
}
