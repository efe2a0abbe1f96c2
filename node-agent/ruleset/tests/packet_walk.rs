//! Packets walk through the rendered rules, and fare as the manifests say: forwards deliver, all else stays as it was.
//!
//! `walk/netfilter.rs` knows netfilter and no forwards, `walk/oracle.rs` knows forwards and no rules; neither shares
//! code with what is tested.

use std::net::{IpAddr, SocketAddr};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use sallyport_api::forward_slice::{ForwardRef, SliceForward};
use sallyport_api::names::{MARK_MASQUERADE, MARK_OURS};
use sallyport_api::port_forward::{
    ForwardPort, PortForwardSpec, Protocol, Source, SourceNat, SourceNatMode, Sources, Target,
};
use sallyport_ruleset::decide::{Forward, Verdict as Decided};
use sallyport_ruleset::family::Family;
use sallyport_ruleset::flow::{Allowed, Flow, Tuple};
use sallyport_ruleset::plan::render;

#[path = "support/kernel.rs"]
mod kernel;
#[path = "walk/netfilter.rs"]
mod netfilter;
#[path = "walk/oracle.rs"]
mod oracle;
#[path = "support/scene.rs"]
mod scene;

use kernel::Kernel;
use netfilter::{Connection, Host, LATER, Origin, Verdict};
use oracle::Declared;
use scene::Scene;

const OURS: u32 = MARK_OURS | MARK_MASQUERADE;

const POOL: &str = r#"
apiVersion: sallyport.dev/v1alpha1
kind: GatewayPool
metadata: { name: default }
spec:
  nodeSelector: {}
  listen: { addresses: [LISTEN] }
  grants:
    - name: everything
      namespaceSelector: {}
      ports: [{ port: 1, endPort: 65535 }, { protocol: UDP, port: 1, endPort: 65535 }]
      targetCIDRs: [0.0.0.0/0, "::/0"]
      sourceCIDRs: [0.0.0.0/0, "::/0"]
      sourceNATModes: [Masquerade, Preserve]
"#;

/// The gateway: listens on the first addresses of each network; 172.20.0.1 is its own too.
const NODE: &str = r#"
name: gw1
listen: [10.30.1.78, 10.30.1.77, 172.20.0.1, "fd00:30::78", "fd00:30::77"]
local: [127.0.0.1/8, 10.30.1.78/23, 10.30.1.77/23, 172.20.0.1/24, "::1/128", "fd00:30::78/64", "fd00:30::77/64"]
"#;

const LISTEN: [&str; 4] = ["10.30.1.78", "10.30.1.77", "fd00:30::78", "fd00:30::77"];
const TARGETS: [&str; 8] =
    ["10.30.1.79", "10.30.1.81", "10.30.0.9", "172.20.0.9", "192.168.9.9", "fd00:30::79", "fd00:31::9", "2a00:1::9"];
const BLOCKS: [&str; 14] = [
    "0.0.0.0/0",
    "10.30.1.80/32",
    "10.30.1.0/24",
    "10.30.1.64/26",
    "10.30.0.0/16",
    "10.30.1.78/32",
    "192.168.7.0/25",
    "172.16.0.0/12",
    "255.255.255.255/32",
    "::/0",
    "fd00:30::80/128",
    "fd00:30::/64",
    "fd00:30::/32",
    "ffff::/16",
];
/// Where buckets and the port space begin and end, and some in between.
const PORTS: [i32; 16] =
    [1, 23, 53, 2040, 2047, 2048, 2111, 2112, 3306, 4090, 4095, 4096, 8000, 8005, 33000, 65500];

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

fn port() -> impl Strategy<Value = ForwardPort> {
    let width = prop_oneof![5 => Just(0), 3 => 1..20_i32, 1 => 60..200_i32];
    let target = prop_oneof![3 => Just(None), 1 => (1..65000).prop_map(Some), 1 => Just(Some(0))];
    (any::<bool>(), select(PORTS.to_vec()), 0..6_i32, width, target).prop_map(|(tcp, base, more, width, target)| {
        let first = (base + more).min(65535);
        ForwardPort {
            name: "p".into(),
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            port: first,
            end_port: (width > 0).then_some((first + width).min(65535)),
            // 0 stands for the port itself, written out.
            target_port: target.map(|target| if target == 0 { first } else { target }),
        }
    })
}

fn spec() -> impl Strategy<Value = PortForwardSpec> {
    let weight = prop_oneof![4 => Just(1), 1 => Just(0), 2 => 2..8, 1 => Just(1000)];
    let addresses = prop_oneof![3 => Just(Vec::new()), 1 => subsequence(LISTEN.to_vec(), 1..=2)];
    (
        addresses,
        vec(port(), 1..3),
        subsequence(BLOCKS.to_vec(), 1..4),
        prop_oneof![2 => Just(Vec::new()), 1 => subsequence(BLOCKS[1..].to_vec(), 1..3)],
        subsequence(TARGETS.to_vec(), 1..4).prop_flat_map(move |ips| (vec(weight.clone(), ips.len()), Just(ips))),
        prop::bool::weighted(0.3),
    )
        .prop_map(|(addresses, mut ports, mut allow, deny, (weights, ips), preserve)| {
            for (index, port) in ports.iter_mut().enumerate() {
                port.name = format!("p{index}");
            }
            // Families that do not fit are refused, which is tested elsewhere: most scenes shall have forwards.
            for (six, whole) in [(false, "0.0.0.0/0"), (true, "::/0")] {
                let wanted = ips.iter().any(|ip| ip.contains(':') == six);
                allow.retain(|cidr| wanted || cidr.contains(':') != six);
                if wanted && !allow.iter().any(|cidr| cidr.contains(':') == six) {
                    allow.push(whole);
                }
            }
            let sources = |cidrs: &[&str]| cidrs.iter().map(|cidr| Source { cidr: (*cidr).to_owned() }).collect();
            PortForwardSpec {
                pool: "default".into(),
                addresses: addresses.into_iter().map(str::to_owned).collect(),
                ports,
                sources: Sources { allow: sources(&allow), deny: sources(&deny) },
                targets: ips
                    .iter()
                    .zip(weights)
                    .enumerate()
                    .map(|(index, (ip, weight))| Target { name: format!("t{index}"), ip: (*ip).to_owned(), weight })
                    .collect(),
                source_nat: SourceNat {
                    mode: if preserve { SourceNatMode::Preserve } else { SourceNatMode::Masquerade },
                },
            }
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

        let blocks: Vec<&str> = spec.sources.allow.iter().chain(&spec.sources.deny).map(|source| source.cidr.as_str()).collect();
        let block = *self.source.get(&blocks);
        let (first, last) = oracle::borders(block);
        let edge = if self.destination.index(2) == 0 { first } else { last };
        let src = oracle::address(block, edge.wrapping_add_signed(self.source_nudge.into()));

        let mut places: Vec<&str> = LISTEN.iter().copied().cycle().take(40).collect();
        places.extend(["172.20.0.1", "10.30.1.76", "8.8.8.8", "fd00:31::1", "2a00:1::1"]);
        places.extend(spec.targets.iter().map(|target| target.ip.as_str()));
        places.retain(|place| place.contains(':') == src.is_ipv6());
        let dst: IpAddr = self.destination.get(&places).parse().unwrap();
        (if tcp { "tcp" } else { "udp" }, SocketAddr::new(src, 40000), SocketAddr::new(dst, u16::try_from(dport).unwrap()))
    }
}

/// A scene whose pool listens on the chosen addresses only.
fn scene(specs: &[PortForwardSpec], listen: &[&str]) -> Scene {
    let listen: Vec<String> = listen
        .iter()
        .map(|ip| format!("{{ type: CIDR, value: \"{ip}/{}\" }}", if ip.contains(':') { 128 } else { 32 }))
        .collect();
    let mut scene = Scene::parse(&POOL.replace("LISTEN", &listen.join(", ")), NODE);
    scene.forwards = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| Forward {
            key: ForwardRef { namespace: "payments".into(), name: format!("f{index}") },
            uid: format!("uid-{index}"),
            generation: 1,
            created: 0,
            spec: spec.clone(),
        })
        .collect();
    scene
}

/// What the walk found in one scene, so that a test can see that it was no walk through an empty field.
#[derive(Debug, Default)]
struct Seen {
    delivered: usize,
    left_alone: usize,
}

fn walk(specs: &[PortForwardSpec], listen: &[&str], drops: bool, chosen: &[bool], probes: &[Probe]) -> Seen {
    let scene = scene(specs, listen);
    let decision = scene.decide();
    let node = &scene.nodes[0];
    let compiled = Scene::compile(&decision, node).unwrap();
    let batch = render(&compiled.ruleset);
    let declared: Vec<Declared<'_>> = scene
        .forwards
        .iter()
        .filter(|forward| matches!(decision.forwards[&forward.key], Decided::Accepted(_)))
        .filter(|forward| compiled.failures.iter().all(|failure| failure.forward != forward.key))
        .map(|forward| Declared { spec: &forward.spec, listen: &compiled.listen })
        .collect();
    let slices: Vec<&SliceForward> = decision.slices.values().flat_map(|slice| &slice.forwards).collect();
    let allowed = Allowed::new(&compiled, &slices);
    let local: Vec<IpAddr> = node.local_addresses().iter().map(|own| own.ip).collect();
    let hosts = Family::BOTH.map(|family| {
        let without = foreign(family, drops, chosen);
        let mut with = without.clone();
        with.restore(batch.family(family).unwrap_or_default()).unwrap();
        (Host::new(&without, &local), Host::new(&with, &local))
    });

    let mut seen = Seen::default();
    for probe in probes {
        let (protocol, src, dst) = probe.packet(specs);
        let (without, with) = &hosts[usize::from(src.is_ipv6())];
        let outcomes = with.connect(probe.origin, protocol, src, dst);
        let shares = oracle::shares(&declared, protocol, src.ip(), dst);
        let what = format!("{protocol} from {src} to {dst} ({:?})\n{}", probe.origin, batch.v4.as_deref().unwrap_or_default());
        if shares.is_empty() {
            seen.left_alone += 1;
            let [(_, untouched)] = without.connect(probe.origin, protocol, src, dst)[..] else { panic!("no dice here") };
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
        let admitted = oracle::admitted(&declared, protocol, src.ip(), dst);
        // A UDP flow ends with its target too, so without one there is nothing to keep.
        for (_, connection) in outcomes.iter().filter(|_| protocol == "tcp" || !admitted || !shares.is_empty()) {
            assert_eq!(allowed.forbids(&as_ours(connection)), !admitted, "cutting {what}");
        }
    }
    seen
}

/// Every share is served, nobody else is, and the filter lets all of it through.
fn delivered(host: &Host, outcomes: &[(f64, Connection)], shares: &[oracle::Share], what: &str) {
    for share in shares {
        let likelihood: f64 =
            outcomes.iter().filter(|(_, connection)| connection.translated == Some(share.to)).map(|(chance, _)| chance).sum();
        assert!((likelihood - share.share).abs() < 1e-6, "{likelihood} is not {share:?}: {what}");
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
fn as_ours(connection: &Connection) -> Flow {
    let server = connection.translated.unwrap_or(connection.dst);
    Flow {
        protocol: if connection.protocol == "tcp" { 6 } else { 17 },
        original: Tuple { src: connection.src, dst: connection.dst },
        reply: Tuple { src: server, dst: connection.src },
        mark: OURS,
        dnat: true,
        id: 1,
        zone: 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn forwards_deliver_as_declared_and_nothing_else_is_touched(
        specs in vec(spec(), 1..9),
        listen in subsequence(LISTEN.to_vec(), 1..=4),
        drops in any::<bool>(),
        chosen in vec(any::<bool>(), FOREIGN.len()),
        probes in vec(probe(), 60),
    ) {
        walk(&specs, &listen, drops, &chosen, &probes);
    }
}

#[test]
fn a_walk_meets_forwards_and_bystanders_alike() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let scenes = (vec(spec(), 4..9), vec(probe(), 60));
    let mut seen = Seen::default();
    for _ in 0..10 {
        let (specs, probes) = scenes.new_tree(&mut runner).unwrap().current();
        let here = walk(&specs, &LISTEN, true, &[true; FOREIGN.len()], &probes);
        seen.delivered += here.delivered;
        seen.left_alone += here.left_alone;
    }
    assert!(seen.delivered > 100 && seen.left_alone > 100, "{seen:?}");
}
