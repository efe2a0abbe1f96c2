//! Which forwards a table carries, and that changes lead where a fresh start would.

use std::net::IpAddr;

use proptest::prelude::*;
use sallyport_api::id::Moment;
use sallyport_api::intent::Intent;
use sallyport_api::testing::Forward;
use sallyport_policy::digest::intent_hash;
use serde_json::json;

use super::*;
use crate::iptables::layout::{Layout, lower};
use crate::iptables::shadow::Packets;

fn node() -> GatewayNodeSpec {
    let spec = json!({ "pool": "default", "state": "Active", "addresses": ["10.30.1.78", "10.30.1.77", "fd00::78"] });
    serde_json::from_value(spec).unwrap()
}

fn own(ip: &str, prefix_len: u8) -> LocalAddress {
    LocalAddress { ip: ip.parse().unwrap(), prefix_len, global: true }
}

fn local() -> Vec<LocalAddress> {
    vec![own("10.30.1.78", 24), own("10.30.1.77", 24), own("fd00::78", 64)]
}

#[test]
fn forwards_are_told_apart_even_where_a_forged_slice_gives_two_one_uid() {
    let forward = |name: &str, port: u16, target: &str| {
        let forward = Forward::tcp(name, port).to([target]).slice_forward(intent_hash);
        Arc::new(SliceForward { uid: "uid".into(), ..forward })
    };
    let both = [forward("payments/a", 8000, "10.30.1.79"), forward("payments/b", 8001, "10.30.1.81")];
    let own = [own("10.30.1.78", 24)];
    let table = ForwardingTable::new(&node(), &both, &NodeFacts::of(&own, Moment::default()));
    let targets =
        |bindings: Vec<Binding<'_>>| bindings[0].targets().map(|target| target.ip.to_string()).collect::<String>();
    let found: Vec<String> = table.by_forward(Family::V4).map(targets).collect();
    assert_eq!(found, ["10.30.1.79", "10.30.1.81"], "{table:?}");
}

#[test]
fn an_address_that_matters_to_no_forward_changes_nothing() {
    let preserved = |intent: &mut Intent| intent.source_nat = sallyport_api::SourceNatMode::Preserve;
    let forwards = [
        forward("a", 8000, "10.31.0.5", |_| {}),
        forward("b", 8001, "10.32.0.5", preserved),
        forward("c", 8002, "fd01::5", |_| {}),
        forward("d", 8003, "10.33.0.7", |_| {}),
    ];
    let table = ForwardingTable::new(&node(), &forwards, &NodeFacts::of(&local(), Moment::default()));
    let with = |address: LocalAddress| local().into_iter().chain([address]).collect::<Vec<_>>();
    for (address, matters) in [
        (own("fe80::1", 64), false),
        (own("172.17.0.1", 16), false),
        (own("10.31.0.9", 24), false),
        (own("10.31.0.5", 32), true),
        // Where its broadcasts would go.
        (own("10.33.0.5", 30), true),
        (own("10.33.0.5", 28), false),
        (own("10.32.0.9", 24), true),
        (own("10.32.1.9", 24), false),
        (own("10.30.1.78", 32), true),
        (own("fd01::5", 128), true),
        (own("fd01::6", 64), false),
    ] {
        assert_eq!(table.depends_on(&with(address)), matters, "{address:?}");
    }
    assert!(table.depends_on(&local()[1..]), "a listen address has gone");
}

fn forward(name: &str, port: u16, target: &str, change: impl Fn(&mut Intent)) -> Arc<SliceForward> {
    let mut forward = Forward::tcp(&format!("payments/{name}"), port).to([target]).slice_forward(intent_hash);
    change(&mut forward.intent);
    forward.hash = intent_hash(&forward.intent);
    Arc::new(forward)
}

/// A forward that may collide with others, expire, be refused, or share its name and uid.
fn any_forward() -> impl Strategy<Value = Arc<SliceForward>> {
    let target = prop_oneof![Just("10.31.0.5"), Just("10.31.0.6"), Just("fd01::5"), Just("10.30.1.78")];
    let ports = prop_oneof![8000_u16..8060, 20_000_u16..20_600];
    (0..12_u8, ports, target, 0..4_u8, 0..6_u8, 0..5_u8).prop_map(|(name, port, target, width, sources, extra)| {
        let mut forward = forward(&format!("f{name}"), port, target, |intent| {
            if width == 3 {
                intent.ports[0].end_port = port + 9;
            }
            if sources == 0 {
                intent.allow.push("10.40.0.0/16".parse().unwrap());
            }
            match extra {
                0 => intent.expires_at = Some(Moment(i64::from(port % 7))),
                1 => intent.source_nat = sallyport_api::SourceNatMode::Preserve,
                2 => intent.addresses = vec!["10.30.1.77".parse::<IpAddr>().unwrap()],
                3 => intent.targets[0].weight = 0,
                _ => {}
            }
        });
        if sources == 1 {
            Arc::make_mut(&mut forward).uid = "shared".into();
        }
        forward
    })
}

#[derive(Clone, Debug)]
enum Step {
    Come(Arc<SliceForward>),
    Go(prop::sample::Index),
    Replace(prop::sample::Index, Arc<SliceForward>),
    Time(i64),
    Address(bool),
    Retire(bool),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any_forward().prop_map(Step::Come),
        4 => any::<prop::sample::Index>().prop_map(Step::Go),
        4 => (any::<prop::sample::Index>(), any_forward()).prop_map(|(which, new)| Step::Replace(which, new)),
        1 => (0..8_i64).prop_map(Step::Time),
        1 => any::<bool>().prop_map(Step::Address),
        1 => prop::bool::weighted(0.3).prop_map(Step::Retire),
    ]
}

/// What can be seen of a table.
fn seen(table: &ForwardingTable) -> String {
    let bindings: Vec<_> =
        table.bindings().map(|binding| (&binding.forward.r#ref, binding.listen, binding.port)).collect();
    let failures: Vec<_> = table.failures().collect();
    format!("{:?} {bindings:?} {failures:?}", table.listen())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.div_ceil(4), failure_persistence: None, ..ProptestConfig::default() })]

    /// Tables, rules and packets that follow changes are those that are made at once of what is there in the end.
    #[test]
    fn whatever_came_before_the_same_forwards_make_the_same_table(
        steps in prop::collection::vec(any_step(), 1..40),
        many in prop::bool::weighted(0.3),
    ) {
        let (mut node, mut local, mut now) = (node(), local(), Moment::default());
        let mut there: Vec<Arc<SliceForward>> = Vec::new();
        let many = if many { 0..80 } else { 0..0 };
        let mut pending: Vec<_> = many.map(|n| forward(&format!("many{n}"), 8100 + n * 7, "10.31.0.7", |_| {})).collect();
        let (mut table, mut layout, mut packets) = (ForwardingTable::default(), Layout::default(), Packets::default());
        for step in steps {
            let mut gone = Vec::new();
            let mut come = std::mem::take(&mut pending);
            match step {
                Step::Come(forward) => come.push(forward),
                Step::Go(_) | Step::Replace(..) if there.is_empty() => {}
                Step::Go(which) => gone.push(there[which.index(there.len())].clone()),
                Step::Replace(which, new) => {
                    gone.push(there[which.index(there.len())].clone());
                    come.push(new);
                }
                Step::Time(seconds) => now = Moment(seconds),
                Step::Address(has) => {
                    local.retain(|own| own.ip.to_string() != "10.31.0.6");
                    if has {
                        local.push(own("10.31.0.6", 24));
                    }
                }
                Step::Retire(retired) => node.state = if retired { NodeState::Retired } else { NodeState::Active },
            }
            for forward in &gone {
                let at = there.iter().position(|known| known == forward).unwrap();
                there.remove(at);
            }
            there.extend(come.iter().cloned());
            let facts = NodeFacts::of(&local, now);
            let rules_before = layout.ruleset().clone();
            let change = table.update(&node, &gone, &come, &facts);
            layout.follow(&table, &change);
            packets.follow(&table, &change);
            let anew = ForwardingTable::new(&node, &there, &facts);
            prop_assert_eq!(seen(&table), seen(&anew));
            prop_assert_eq!(layout.ruleset(), &lower(&anew));
            prop_assert_eq!(&packets, &Packets::of(&anew));
            // What is not named as changed is as it was.
            for family in Family::BOTH {
                for kind in crate::iptables::rule::Table::ALL {
                    let (was, is) = (rules_before.family(family).table(kind), layout.ruleset().family(family).table(kind));
                    for name in was.keys().chain(is.keys()) {
                        let named = layout.changed().contains(&(family, kind, name.clone()));
                        prop_assert!(named || was.get(name) == is.get(name), "{} changed unnamed", name);
                    }
                }
            }
            layout.forget_changes();
        }
    }
}
