//! Packets walk through the rendered rules, and fare as the manifests say: forwards deliver, all else stays as it was.
//!
//! `walk/netfilter.rs` knows netfilter and no forwards, `walk/oracle.rs` knows forwards and no rules; neither shares
//! code with what is tested.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use sallyport_api::names::{MARK_MASQUERADE, MARK_OURS};
use sallyport_api::port_forward::{PortForwardSpec, Protocol, SourceNatMode};
use sallyport_policy::decide::Verdict as Decided;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::flow::{Allowed, Flow, Stage, Translations, Tuple};
use sallyport_ruleset::iptables::plan::render;
use sallyport_ruleset::iptables::restore::restore;

#[path = "support/compiled.rs"]
mod compiled;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "walk/netfilter.rs"]
mod netfilter;
#[path = "walk/oracle.rs"]
mod oracle;
#[path = "../../policy/tests/support/scene.rs"]
mod scene;
#[path = "../../policy/tests/support/specs.rs"]
mod specs;

use kernel::Kernel;
use netfilter::{Connection, Host, LATER, Origin, Verdict};
use oracle::Declared;
use scene::Scene;
use specs::{LISTEN, asks, crowd, scene, spec};

const OURS: u32 = MARK_OURS | MARK_MASQUERADE;

/// What others have on the host: some of it in each case.
const FOREIGN: [(&str, &str, &str); 9] = [
    ("filter", "FORWARD", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    ("filter", "FORWARD", "-p icmp -j DROP"),
    ("filter", "FORWARD", "-s 192.168.7.0/24 -j DROP"),
    ("filter", "FORWARD", "-p tcp -m tcp --dport 3306 -j ACCEPT"),
    ("filter", "FORWARD", "-j DOCKER-USER"),
    ("nat", "PREROUTING", "-p tcp -m tcp --dport 8005 -j DOCKER"),
    ("nat", "PREROUTING", "-p udp -m udp --dport 2047:2048 -j DOCKER"),
    ("nat", "OUTPUT", "-p tcp -m tcp --dport 8005 -j DOCKER"),
    ("nat", "POSTROUTING", "-s 172.31.0.0/16 -j MASQUERADE"),
];

fn foreign(family: Family, drops: bool, chosen: &[bool]) -> Kernel {
    let mut kernel = Kernel::default();
    let container = if family == Family::V4 { "172.20.0.3:80" } else { "[fd00:20::3]:80" };
    kernel.append("filter", "DOCKER-USER", "-j RETURN");
    kernel.append("nat", "DOCKER", "-j CONNMARK --set-xmark 0x4000/0x4000");
    kernel.append("nat", "DOCKER", &format!("-p tcp -j DNAT --to-destination {container}"));
    kernel.append("nat", "DOCKER", &format!("-p udp -j DNAT --to-destination {container}"));
    for ((table, chain, rule), _) in FOREIGN.iter().zip(chosen).filter(|(_, chosen)| **chosen) {
        let four_only = rule.contains('.') || rule.contains("icmp");
        if family == Family::V4 || !four_only {
            kernel.append(table, chain, rule);
        }
    }
    if drops {
        kernel.tables.get_mut("filter").unwrap().chains.get_mut("FORWARD").unwrap().policy = Some("DROP".into());
    }
    kernel
}

fn crowds() -> impl Strategy<Value = PortForwardSpec> {
    (any::<bool>(), any::<bool>()).prop_map(|(tcp, preserve)| {
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let mode = if preserve { SourceNatMode::Preserve } else { SourceNatMode::Masquerade };
        crowd(protocol, mode)
    })
}

/// How to make up a packet: mostly at a border of some forward.
#[derive(Clone, Debug)]
struct Probe {
    forward: Index,
    port: Index,
    nudge: i32,
    source: Index,
    source_nudge: i32,
    destination: Index,
    tcp: Option<bool>,
    origin: Origin,
}

/// A step over the border, or none.
fn nudge() -> impl Strategy<Value = i32> {
    prop_oneof![3 => Just(0), 1 => Just(-1), 1 => Just(1)]
}

fn probe() -> impl Strategy<Value = Probe> {
    (
        (any::<Index>(), any::<Index>(), nudge()),
        (any::<Index>(), nudge()),
        any::<Index>(),
        prop_oneof![4 => Just(None), 1 => any::<bool>().prop_map(Some)],
        prop_oneof![5 => Just(Origin::Outside), 1 => Just(Origin::Host)],
    )
        .prop_map(|((forward, port, nudge), (source, source_nudge), destination, tcp, origin)| Probe {
            forward,
            port,
            nudge,
            source,
            source_nudge,
            destination,
            tcp,
            origin,
        })
}

impl Probe {
    /// The packet: protocol, source, destination.
    fn packet(&self, specs: &[PortForwardSpec]) -> (&'static str, SocketAddr, SocketAddr) {
        let spec = self.forward.get(specs);
        let port = self.port.get(&spec.ports);
        let tcp = self.tcp.unwrap_or(port.protocol == Protocol::Tcp);
        let (first, last) = (port.port, port.end_port.unwrap_or(port.port));
        let mut ports = vec![first, last, port.target_port.unwrap_or(first)];
        ports.extend([2047, 2111, 4095, 65535].into_iter().filter(|edge| (first..=last).contains(edge)));
        let dport = (self.port.get(&ports) + self.nudge).clamp(1, 65535);

        let blocks: Vec<&str> =
            spec.sources.allow.iter().chain(&spec.sources.deny).map(|source| source.cidr.as_str()).collect();
        let block = *self.source.get(&blocks);
        let (first, last) = oracle::borders(block);
        let edge = if self.destination.index(2) == 0 { first } else { last };
        let src = oracle::address(block, edge.wrapping_add_signed(self.source_nudge.into()));

        let mut places: Vec<&str> = LISTEN.iter().copied().cycle().take(40).collect();
        places.extend(["172.20.0.1", "10.30.1.76", "8.8.8.8", "fd00:31::1", "2a00:1::1"]);
        places.extend(spec.targets.iter().map(|target| target.ip.as_str()));
        places.retain(|place| place.contains(':') == src.is_ipv6());
        let dst: IpAddr = self.destination.get(&places).parse().unwrap();
        (
            if tcp { "tcp" } else { "udp" },
            SocketAddr::new(src, 40000),
            SocketAddr::new(dst, u16::try_from(dport).unwrap()),
        )
    }
}

/// What the walk found in one scene, so that a test can see that it was no walk through an empty field.
#[derive(Debug, Default)]
struct Seen {
    delivered: usize,
    left_alone: usize,
    /// Scenes with so many rules that they are split by port.
    split: usize,
}

fn walk(specs: &[PortForwardSpec], listen: &[&str], drops: bool, chosen: &[bool], probes: &[Probe]) -> Seen {
    let scene = scene(specs, listen);
    let decision = scene.decide();
    let node = &scene.nodes[0];
    let compiled = Scene::compile(&decision, node).unwrap();
    let ops = render(&compiled.ruleset);
    let carried = || {
        let accepted = scene.forwards.iter();
        let accepted = accepted.filter(|forward| matches!(decision.forwards[&forward.key], Decided::Accepted(_)));
        accepted.filter(|forward| compiled.table.failures().all(|failure| failure.forward != forward.key))
    };
    let on = |listen| carried().map(move |forward| Declared { spec: asks(forward), listen }).collect::<Vec<_>>();
    let declared = on(compiled.table.listen());
    // An address that is away keeps its connections.
    let known: Vec<IpAddr> = listen.iter().map(|ip| ip.parse().unwrap()).collect();
    let kept = on(&known);
    let past = Translations::default();
    let allowed = Allowed::new(&compiled.table, &past);
    let local: Vec<IpAddr> = node.local_addresses().iter().map(|own| own.ip).collect();
    let hosts = Family::BOTH.map(|family| {
        let without = foreign(family, drops, chosen);
        let mut with = without.clone();
        with.restore(&restore(&ops, family).unwrap_or_default()).unwrap();
        (Host::new(&without, &local), Host::new(&with, &local))
    });

    let mut seen = Seen {
        split: usize::from(restore(&ops, Family::V4).is_some_and(|v4| v4.contains("-g SALLY-"))),
        ..Seen::default()
    };
    for probe in probes {
        let (protocol, src, dst) = probe.packet(specs);
        let (without, with) = &hosts[usize::from(src.is_ipv6())];
        let outcomes = with.connect(probe.origin, protocol, src, dst);
        let shares = oracle::shares(&declared, protocol, src.ip(), dst);
        let what = format!(
            "{protocol} from {src} to {dst} ({:?})\n{}",
            probe.origin,
            restore(&ops, Family::V4).unwrap_or_default()
        );
        if shares.is_empty() {
            seen.left_alone += 1;
            let [(_, untouched)] = without.connect(probe.origin, protocol, src, dst)[..] else {
                panic!("no dice here")
            };
            for (_, connection) in &outcomes {
                assert_eq!(*connection, untouched, "{what}");
                for later in LATER {
                    assert_eq!(with.later(connection, later), without.later(&untouched, later), "{later:?}: {what}");
                }
            }
        } else {
            seen.delivered += 1;
            delivered(with, &outcomes, &shares, &what);
        }
        let admitted = oracle::admitted(&kept, protocol, src.ip(), dst);
        // A UDP flow ends with its target too, so without one there is nothing to keep.
        for (_, connection) in outcomes.iter().filter(|_| protocol == "tcp" || !admitted || !shares.is_empty()) {
            // Where nothing was delivered nobody knows what would have become of the source: either is right.
            let marks = if connection.mark & OURS == 0 { [OURS, MARK_OURS] } else { [connection.mark; 2] };
            let cut = marks.into_iter().all(|mark| allowed.forbids(&as_ours(connection, mark)));
            assert_eq!(cut, !admitted, "cutting {what}");
        }
    }
    seen
}

/// Every share is served, nobody else is, and the filter lets all of it through.
fn delivered(host: &Host, outcomes: &[(f64, Connection)], shares: &[oracle::Share], what: &str) {
    for share in shares {
        let likelihood: f64 = outcomes
            .iter()
            .filter(|(_, connection)| connection.translated == Some(share.to))
            .map(|(chance, _)| chance)
            .sum();
        assert!((likelihood - share.part).abs() < 1e-6, "{likelihood} is not {share:?}: {what}");
    }
    for (_, connection) in outcomes {
        let share = shares.iter().find(|share| connection.translated == Some(share.to));
        let Some(share) = share else { panic!("nobody declared {connection:?}: {what}") };
        let foreign_masquerade = connection.src.ip().to_string().starts_with("172.31.");
        assert!(connection.masqueraded == share.masqueraded || foreign_masquerade, "{connection:?}: {what}");
        assert_eq!(connection.mark & !OURS, 0, "{connection:?}: {what}");
        assert_eq!(connection.verdict, Verdict::Accept, "{connection:?}: {what}");
        for later in LATER {
            assert_eq!(host.later(connection, later), Verdict::Accept, "{later:?}: {what}");
        }
    }
}

/// The conntrack entry of a connection of ours like this one.
fn as_ours(connection: &Connection, mark: u32) -> Flow {
    let server = connection.translated.unwrap_or(connection.dst);
    Flow {
        protocol: if connection.protocol == "tcp" { Protocol::Tcp } else { Protocol::Udp },
        original: Tuple { src: connection.src, dst: connection.dst },
        reply: Tuple { src: server, dst: connection.src },
        master: None,
        mark,
        dnat: true,
        id: 1,
        zone: 0,
        stage: Stage::Open,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn forwards_deliver_as_declared_and_nothing_else_is_touched(
        mut specs in vec(spec(), 1..9),
        crowd in prop::option::of(crowds()),
        listen in subsequence(LISTEN.to_vec(), 1..=4),
        drops in any::<bool>(),
        chosen in vec(any::<bool>(), FOREIGN.len()),
        probes in vec(probe(), 60),
    ) {
        specs.extend(crowd);
        walk(&specs, &listen, drops, &chosen, &probes);
    }
}

#[test]
fn a_walk_meets_forwards_and_bystanders_alike() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let scenes = (vec(spec(), 4..9), crowds(), vec(probe(), 60));
    let mut seen = Seen::default();
    for _ in 0..10 {
        let (mut specs, crowd, probes) = scenes.new_tree(&mut runner).unwrap().current();
        specs.push(crowd);
        let here = walk(&specs, &LISTEN, true, &[true; FOREIGN.len()], &probes);
        seen.delivered += here.delivered;
        seen.left_alone += here.left_alone;
        seen.split += here.split;
    }
    assert!(seen.delivered > 60 && seen.left_alone > 200 && seen.split > 0, "{seen:?}");
}
