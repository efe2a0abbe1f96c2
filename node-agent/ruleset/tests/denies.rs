//! Beside what others drop in `FORWARD`: what they deny by name wins and is named, and where nothing is right that is said.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use sallyport_api::Reason;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{Assessment, FirewallTable, Holder, HostFirewall, assess, xtables};

#[path = "support/compiled.rs"]
mod compiled;
#[path = "../../policy/tests/support/scene.rs"]
mod scene;

use scene::Scene;

const NODE: &str = "name: gw1\nlisten: [10.30.1.78]\nlocal: [127.0.0.1/8, 10.30.1.78/23]\n";
const POOL: &str = "
kind: GatewayPool
metadata: { name: default }
spec:
  nodeSelector: {}
  grants: [ { name: all, namespaceSelector: {}, ports: [ { port: 1, endPort: 65535 } ], targetCIDRs: [ 0.0.0.0/0 ],
    sourceCIDRs: [ 0.0.0.0/0 ] } ]
";
/// The forward of the origin story.
const FORWARD: &str = "
kind: PortForward
metadata: { name: mysql, namespace: payments }
spec:
  ports: [ { name: mysql, port: 3306 } ]
  sources: { allow: [ { cidr: 10.30.1.80/32 } ] }
  targets: [ { name: db1, ip: 10.30.1.79 } ]
";

fn assessed(forwards: &[&str], tables: Vec<FirewallTable>) -> Assessment {
    on(forwards, &HostFirewall { tables, unread: Vec::new() })
}

fn on(forwards: &[&str], firewall: &HostFirewall) -> Assessment {
    let manifests: String = forwards.iter().chain(&[POOL]).map(|text| format!("---{text}")).collect();
    let scene = Scene::parse(&manifests, NODE);
    let decision = scene.decide();
    let table = Scene::compile(&decision, &scene.nodes[0]).unwrap().table;
    assess(firewall, &table, &|_| true, &|_| None)
}

fn own(save: &str) -> Vec<FirewallTable> {
    xtables::parse(save, Family::V4, Holder::Iptables { program: "iptables-nft", own: true })
}

/// A host's own `FORWARD` with these rules, and chains of an administrator that may be among them.
fn forward(rules: &[&str]) -> Vec<FirewallTable> {
    let rules: String = rules.iter().map(|rule| format!("-A FORWARD {rule}\n")).collect();
    own(&format!(
        "*filter\n:FORWARD ACCEPT [0:0]\n:DENIES - [0:0]\n:BOTH - [0:0]\n{rules}-A DENIES -s 10.30.1.80/32 -j DROP\n\
         -A BOTH -s 203.0.113.7/32 -j DROP\n-A BOTH -p tcp -m tcp --dport 80 -j ACCEPT\n-A BOTH -j DROP\nCOMMIT\n"
    ))
}

const OURS: &str = "-j SALLY-FWD";

#[test]
fn a_deny_of_a_listed_client_wins_and_is_named() {
    let found = assessed(&[FORWARD], forward(&["-j DENIES", OURS]));
    let [blocked] = found.blocked.as_slice() else { panic!("{found}") };
    assert_eq!(blocked.reason, Reason::HostFirewallConflict);
    for word in
        ["rule `-A DENIES -s 10.30.1.80/32 -j DROP`", "`iptables-nft -t filter -D DENIES -s 10.30.1.80/32 -j DROP`"]
    {
        assert!(blocked.message.contains(word), "{}", blocked.message);
    }
    assert_eq!(assessed(&[FORWARD], forward(&[OURS, "-j DENIES"])), Assessment::default());
}

#[test]
fn a_drop_behind_what_names_packets_is_not_to_be_taken_out() {
    let save = "*filter\n:FORWARD ACCEPT [0:0]\n:POLICY - [0:0]\n-A FORWARD -d 10.30.1.79/32 -j POLICY\n\
        -A FORWARD -j SALLY-FWD\n-A POLICY -j DROP\nCOMMIT\n";
    let found = assessed(&[FORWARD], own(save));
    assert_eq!((found.reason(), found.blocked.len()), (Reason::HostFirewallConflict, 1), "{found}");
    assert!(found.to_string().contains("what leads to POLICY names these packets"), "{found}");
    assert!(!found.to_string().contains("iptables-nft -t filter -D"), "{found}");
}

#[test]
fn a_chain_that_denies_some_and_drops_the_rest_is_named_with_the_line_that_it_needs() {
    for rules in [&["-j BOTH", OURS][..], &["-j BOTH"]] {
        let found = assessed(&[FORWARD], forward(rules));
        let [blocked] = found.blocked.as_slice() else { panic!("{found}") };
        let line = "`iptables-nft -t filter -I BOTH 3 -m conntrack --ctstate DNAT -m connmark --mark 0x10000000/0x10000000 -j ACCEPT`";
        assert!(
            blocked.message.contains(line) && blocked.message.contains("rule `-A BOTH -j DROP`"),
            "{}",
            blocked.message
        );
    }
}

#[test]
fn a_first_rule_that_drops_everything_above_our_jump_is_an_emergency_stop() {
    for forwards in [&[][..], &[FORWARD]] {
        let found = assessed(forwards, forward(&["-j REJECT --reject-with icmp-port-unreachable", OURS]));
        assert_eq!((found.reason(), found.blocked.len()), (Reason::ForwardingStopped, forwards.len()), "{found}");
        assert!(found.to_string().contains("run `iptables-nft -D FORWARD 1`"), "{found}");
        assert!(found.blocked.iter().all(|blocked| blocked.reason == Reason::ForwardingStopped));
    }
    // Without our jump it is what an enterprise distribution ships, and ours will stand before it.
    for forwards in [&[][..], &[FORWARD]] {
        assert_eq!(
            assessed(forwards, forward(&["-j REJECT --reject-with icmp-host-prohibited"])),
            Assessment::default()
        );
    }
}

#[test]
fn what_will_win_from_a_later_version_on_is_named_and_blocks_nothing_yet() {
    let host = |rules| HostFirewall { tables: forward(rules), unread: Vec::new() };
    let kept = host(&[OURS, "-j DENIES"]);
    let later = kept.with_denies_first().unwrap();
    assert_eq!(later, host(&["-j DENIES", OURS]));
    let mut found = on(&[FORWARD], &kept);
    found.announce(on(&[FORWARD], &later));
    assert_eq!((found.reason(), found.blocked.len()), (Reason::HostFirewallConflict, 0));
    for word in [
        "pass now",
        "from version 0.3.0 on are dropped by",
        "-A DENIES -s 10.30.1.80/32 -j DROP",
        "order of the pool to First",
    ] {
        assert!(found.to_string().contains(word), "{word}: {found}");
    }
    for rules in [&["-j DENIES"][..], &["-j DENIES", OURS], &[OURS, "-j ACCEPT", "-j DROP"]] {
        let later = host(rules).with_denies_first();
        assert!(later.is_none_or(|later| on(&[FORWARD], &later) == Assessment::default()), "{rules:?}");
    }
}
