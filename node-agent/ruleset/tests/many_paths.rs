//! How long it takes to prove the paths of thousands of forwards beside docker and ufw.
//!
//! `cargo test --release -p sallyport-ruleset --test many_paths -- --nocapture` prints the times.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and says what it measured")]
#![allow(clippy::disallowed_types, reason = "how long it takes is what is tested")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sallyport_api::Reason;
use sallyport_api::forward_slice::SliceForward;
use sallyport_api::gateway_node::GatewayNodeSpec;
use sallyport_api::id::Moment;
use sallyport_api::testing::Forward;
use sallyport_policy::digest::intent_hash;
use sallyport_ruleset::facts::{LocalAddress, NodeFacts};
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{Assessment, Holder, HostFirewall, Paths, nft, xtables};
use sallyport_ruleset::table::ForwardingTable;
use serde_json::json;

const UFW: &str = include_str!("firewalls/ufw-0.36.save");
const NUMBER: usize = 10_000;
/// What the goals are with optimisation, and what is more than anything without it on a machine that does more than this.
const GOALS: [Duration; 2] = if cfg!(debug_assertions) {
    [Duration::from_secs(20), Duration::from_secs(5)]
} else {
    [Duration::from_millis(50), Duration::from_millis(2)]
};
const RUNS: usize = if cfg!(debug_assertions) { 1 } else { 21 };

fn forwards() -> Vec<Arc<SliceForward>> {
    let forward = |n: usize| {
        let target = format!("10.31.{}.{}", n / 250 % 250, n % 250 + 1);
        let forward =
            Forward::tcp(&format!("payments/f{n:05}"), u16::try_from(33_000 + n).unwrap()).to([target.as_str()]);
        // Every fourth has several sources.
        let forward = if n.is_multiple_of(4) { forward.from(["10.30.1.80/32", "10.32.0.0/16"]) } else { forward };
        Arc::new(forward.slice_forward(intent_hash))
    };
    (0..NUMBER).map(forward).collect()
}

/// docker with this many published ports from `first` on, as it is in `nat`, `filter` and `raw` since version 28; and ufw.
fn docker_and_ufw(first: usize, published: usize) -> HostFirewall {
    let (mut nat, mut filter, mut raw) = (String::new(), String::new(), String::new());
    for n in 0..published {
        let (ip, port) = (format!("172.17.{}.{}", n / 250, n % 250 + 2), first + n);
        let _ = writeln!(nat, "-A DOCKER ! -i docker0 -p tcp -m tcp --dport {port} -j DNAT --to-destination {ip}:80");
        let _ = writeln!(filter, "-A DOCKER -d {ip}/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT");
        let _ = writeln!(raw, "-A PREROUTING -d {ip}/32 ! -i docker0 -j DROP");
    }
    let nat = format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n-A PREROUTING -j SALLY-PRE\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n-A POSTROUTING -j SALLY-POST\n\
         -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n{nat}COMMIT\n"
    );
    let filter = UFW.replacen(
        "-A FORWARD ",
        &format!("-A FORWARD -j SALLY-FWD\n-A FORWARD -o docker0 -j DOCKER\n-A FORWARD -i docker0 -j ACCEPT\n{filter}-A FORWARD "),
        1,
    );
    let raw = format!("*raw\n:PREROUTING ACCEPT [0:0]\n{raw}COMMIT\n");
    let holder = Holder::Iptables { program: "iptables-nft", own: true };
    let tables = xtables::parse(&(nat + &filter.replacen(":DOCKER - ", "", 1) + &raw), Family::V4, holder);
    HostFirewall { tables, unread: Vec::new() }
}

/// The middle time of some runs of `work`, and what it made; `prepare` is not counted.
fn timed<S, T>(what: &str, prepare: impl Fn() -> S, work: impl Fn(&mut S) -> T) -> (Duration, T) {
    let run = || {
        let mut state = prepare();
        let begin = Instant::now();
        let made = black_box(work(&mut state));
        (begin.elapsed(), made)
    };
    let mut runs: Vec<(Duration, T)> = (0..RUNS).map(|_| run()).collect();
    runs.sort_by_key(|(took, _)| *took);
    let (took, made) = runs.swap_remove(RUNS / 2);
    eprintln!("{what:<52} {:>9.3} ms", took.as_secs_f64() * 1e3);
    (took, made)
}

#[test]
fn ten_thousand_paths_are_proved_in_no_time() {
    let local = ["10.30.1.78".parse().unwrap()].map(|ip| LocalAddress { ip, prefix_len: 23, global: true });
    let node: GatewayNodeSpec =
        serde_json::from_value(json!({ "pool": "default", "state": "Active", "addresses": ["10.30.1.78"] })).unwrap();
    let facts = NodeFacts::of(&local, Moment::default());
    let before = forwards();
    let mut after = before.clone();
    let changed = Arc::make_mut(&mut after[NUMBER / 2]);
    changed.intent.targets[0].ip = "10.31.255.1".parse().unwrap();
    changed.hash = intent_hash(&changed.intent);
    let (before, after) = (ForwardingTable::new(&node, &before, &facts), ForwardingTable::new(&node, &after, &facts));
    assert_eq!((before.failures().count(), after.failures().count()), (0, 0));
    let mut spread = forwards();
    let wide = Arc::make_mut(&mut spread[0]);
    wide.intent.ports[0].port = 65_000;
    wide.hash = intent_hash(&wide.intent);
    let all_ports = ForwardingTable::new(&node, &spread, &facts);
    let interface = |_: IpNet| Some("eth0".to_owned());

    // The last have the ports of forwards, which are ours first.
    for (first, published) in [(8_000, 10), (8_000, 500), (33_000, 500)] {
        let firewall = docker_and_ufw(first, published);
        let all = |paths: &mut Paths, table: &ForwardingTable, firewall: &HostFirewall| {
            paths.assess(firewall, table, &|_| true, &interface)
        };
        let (whole, found) = timed(
            &format!("all, beside docker with {published} ports from {first}, and ufw"),
            Paths::default,
            |paths| all(paths, &before, &firewall),
        );
        assert_eq!(found, Assessment::default(), "{found}");
        let known = || {
            let mut paths = Paths::default();
            all(&mut paths, &before, &firewall);
            paths
        };
        let (one, found) = timed("  one forward changed", known, |paths| all(paths, &after, &firewall));
        assert_eq!(found, Assessment::default(), "{found}");
        let (again, _) = timed("  none changed", known, |paths| all(paths, &before, &firewall));
        assert!(whole < GOALS[0] && one < GOALS[1] && again < GOALS[1], "{whole:?} {one:?} {again:?}");
    }

    // Where docker stands before our jump, and its ports are next to those of forwards, each of them meets it.
    let mut firewall = docker_and_ufw(43_000, 500);
    let pre = firewall.tables[0].chains.get_mut("PREROUTING").unwrap();
    pre.rotate_left(1);
    let (whole, found) = timed("all, behind docker with 500 ports from 43000", Paths::default, |paths| {
        paths.assess(&firewall, &all_ports, &|_| true, &interface)
    });
    assert_eq!(found, Assessment::default(), "{found}");
    assert!(whole < GOALS[0], "{whole:?}");

    // Where everything is dropped there is something to be said of everyone.
    let drops = r#"{"nftables":[{"table":{"family":"inet","name":"filter"}},{"chain":{"family":"inet","table":"filter",
        "name":"forward","type":"filter","hook":"forward","prio":0,"policy":"drop"}}]}"#;
    let mut firewall = docker_and_ufw(8_000, 10);
    firewall.tables.push(nft::parse(drops, "inet", "filter").unwrap());
    let (whole, found) = timed("all, all of them dropped", Paths::default, |paths| {
        paths.assess(&firewall, &before, &|_| true, &interface)
    });
    assert_eq!((found.reason(), found.blocked.len()), (Reason::HostFirewallConflict, NUMBER));
    // No goal, for there is little that would be worse, but not without end.
    assert!(whole < GOALS[0] * 20, "{whole:?}");
}
