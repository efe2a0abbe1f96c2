//! What the forwarding table and its rules promise, held against random objects.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use sallyport_api::forward_slice::SliceForward;
use sallyport_api::id::Moment;
use sallyport_api::port_forward::PortForwardSpec;
use sallyport_ruleset::facts::NodeFacts;
use sallyport_ruleset::iptables::rule::{Chain, Rules, Ruleset};

#[path = "support/compiled.rs"]
mod compiled;
#[path = "../../policy/tests/support/scene.rs"]
mod scene;
#[path = "../../policy/tests/support/specs.rs"]
mod specs;

use compiled::{Compiled, compile};
use scene::Scene;
use specs::{LISTEN, scene, spec};

fn config(divisor: u32) -> ProptestConfig {
    let all = ProptestConfig::default();
    ProptestConfig { cases: all.cases.div_ceil(divisor), failure_persistence: None, ..all }
}

proptest! {
    #![proptest_config(config(1))]

    #[test]
    fn the_order_of_the_inputs_changes_no_rule(specs in vec(spec(), 1..8), order in any::<u64>()) {
        let mut scene = scene(&specs, &LISTEN);
        let decision = scene.decide();
        let compiled = Scene::compile(&decision, &scene.nodes[0]).unwrap();
        scene.nodes[0].local.reverse();
        let node = &decision.nodes[&"gw1".into()];
        let mut forwards: Vec<&Arc<SliceForward>> = decision.slices.values().flat_map(|slice| &slice.forwards).collect();
        let turn = usize::try_from(order % 97).unwrap();
        let len = forwards.len().max(1);
        forwards.rotate_left(turn % len);
        if order % 2 == 0 {
            forwards.reverse();
        }
        let turned = compile(node, &forwards, &NodeFacts::of(&scene.nodes[0].local_addresses(), Moment::default()));
        let seen = |of: &Compiled| {
            format!("{:?} {:?} {:?}", of.table.listen(), of.table.bindings().collect::<Vec<_>>(), of.table.failures().collect::<Vec<_>>())
        };
        prop_assert_eq!(seen(&turned), seen(&compiled));
        prop_assert_eq!(turned.ruleset, compiled.ruleset);
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
    let mut rules = family.nat[name].to_vec();
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
            family.nat.insert(format!("{name}-"), Chain::default());
        }
        4 => {
            let moved = family.nat.remove(name).unwrap();
            family.filter.insert(name.clone(), moved);
        }
        5 => std::mem::swap(&mut ruleset.v4, &mut ruleset.v6),
        _ => {}
    }
    if *how < 3 {
        let family: &mut Rules = if ruleset.v4.is_empty() { &mut ruleset.v6 } else { &mut ruleset.v4 };
        family.nat.insert(name.clone(), rules.into());
    }
}

proptest! {
    #![proptest_config(config(4))]

    #[test]
    fn what_has_expired_makes_no_rule_and_everything_else_is_as_without_it(
        mut specs in vec(spec(), 1..8),
        expiries in vec(prop::option::of(1..20_i64), 8),
        now in 0..22_i64,
    ) {
        for (spec, expiry) in specs.iter_mut().zip(&expiries) {
            spec.expires_at = expiry.map(|at| Moment(at).to_time().unwrap());
        }
        let scene = scene(&specs, &LISTEN);
        let before = scene.decide();
        let node = &before.nodes[&"gw1".into()];
        let local = scene.nodes[0].local_addresses();
        let all: Vec<&Arc<SliceForward>> = before.slices.values().flat_map(|slice| &slice.forwards).collect();
        let lasting: Vec<&Arc<SliceForward>> =
            all.iter().copied().filter(|forward| forward.intent.expires_at.is_none_or(|expiry| expiry > Moment(now))).collect();
        // An agent that hears nothing any more.
        let compiled = compile(node, &all, &NodeFacts::of(&local, Moment(now)));
        let without = compile(node, &lasting, &NodeFacts::of(&local, Moment(now)));
        prop_assert_eq!(&compiled.ruleset, &without.ruleset);
        prop_assert_eq!(compiled.table.failures().count() - without.table.failures().count(), all.len() - lasting.len());
    }
}
