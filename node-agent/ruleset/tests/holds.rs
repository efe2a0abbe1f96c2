//! Whose rule a port is held by before a forward comes, and that nobody else's is taken for one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use sallyport_api::Reason;
use sallyport_ruleset::binding::Binding;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{Conflict, FirewallTable, Holder, Holds, HostFirewall, nft, xtables};

#[path = "support/compiled.rs"]
mod compiled;
#[path = "../../policy/tests/support/scene.rs"]
mod scene;

use scene::Scene;

const NODE: &str = "name: gw1\nlisten: [10.30.1.78]\nlocal: [127.0.0.1/8, 10.30.1.78/23]\n";
const SCENE: &str = "---
kind: PortForward
metadata: { name: web, namespace: payments }
spec:
  ports: [ { name: web, port: 8080, endPort: 8089 }, { name: other, port: 9000, targetPort: 80 } ]
  sources: { allow: [ { cidr: 10.30.1.80/32 } ] }
  targets: [ { name: web1, ip: 10.30.1.79 }, { name: web2, ip: 10.30.1.81 } ]
---
kind: GatewayPool
metadata: { name: default }
spec:
  nodeSelector: {}
  grants: [ { name: all, namespaceSelector: {}, ports: [ { port: 1, endPort: 65535 } ], targetCIDRs: [ 0.0.0.0/0 ],
    sourceCIDRs: [ 0.0.0.0/0 ] } ]
";

/// Who holds each port of the forward.
fn held(tables: Vec<FirewallTable>) -> [Option<Conflict>; 2] {
    let scene = Scene::parse(SCENE, NODE);
    let decision = scene.decide();
    let table = Scene::compile(&decision, &scene.nodes[0]).unwrap().table;
    let bindings: Vec<Binding<'_>> = table.bindings().collect();
    let firewall = HostFirewall { tables, unread: Vec::new() };
    let holds = Holds::new(&firewall, &bindings);
    let [web, other] = bindings.as_slice() else { panic!("{bindings:?}") };
    [holds.on(web), holds.on(other)]
}

fn iptables(table: &str, own: bool, rules: &str) -> Vec<FirewallTable> {
    let chains = rules.lines().filter_map(|rule| rule.strip_prefix("-A ")?.split(' ').next());
    let builtin = ["PREROUTING", "FORWARD", "POSTROUTING"];
    let declared: String = chains.filter(|name| !builtin.contains(name)).map(|name| format!(":{name} -\n")).collect();
    let builtin = builtin.map(|chain| format!(":{chain} ACCEPT\n")).concat();
    let holder = Holder::Iptables { program: if own { "iptables-nft" } else { "iptables-legacy" }, own };
    xtables::parse(&format!("*{table}\n{builtin}{declared}{rules}\nCOMMIT\n"), Family::V4, holder)
}

const KUBE: &str = "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 8080 -j KUBE-SVC-A
-A KUBE-SERVICES -d 10.30.1.78/32 -p tcp -m comment --comment \"shop/web external IP\" -m tcp --dport 8083 -j KUBE-EXT-A
-A KUBE-SERVICES -m comment --comment \"this must be last\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport 9000 -j KUBE-EXT-A
-A KUBE-EXT-A -j KUBE-MARK-MASQ
-A KUBE-EXT-A -j KUBE-SVC-A
-A KUBE-SVC-A -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-A
-A KUBE-SVC-A -j KUBE-SEP-B
-A KUBE-SEP-A -s 10.244.1.3/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.244.1.3:80
-A KUBE-SEP-B -p tcp -m tcp -j DNAT --to-destination 10.244.1.4:80
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000";

#[test]
fn whoever_publishes_a_port_holds_it_and_is_named() {
    for own in [true, false] {
        let program = if own { "iptables-nft" } else { "iptables-legacy" };
        for (table, rules, ports, rule) in [
            (
                "nat",
                "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
                 -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8082 -j DNAT --to-destination 172.17.0.2:80",
                [true, false],
                "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8082 -j DNAT",
            ),
            (
                "nat",
                "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
                 -A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 9000 -j CNI-DN-0123456789\n\
                 -A CNI-DN-0123456789 -s 10.42.0.0/24 -p tcp -m tcp --dport 9000 -j CNI-HOSTPORT-SETMARK\n\
                 -A CNI-DN-0123456789 -p tcp -m tcp --dport 9000 -j DNAT --to-destination 10.42.0.7:80\n\
                 -A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000",
                [false, true],
                "-A CNI-DN-0123456789 -p tcp -m tcp --dport 9000 -j DNAT",
            ),
            ("nat", KUBE, [true, true], "-A KUBE-SEP-A -p tcp -m tcp -j DNAT"),
            ("nat", "-A PREROUTING -p tcp -m tcp --dport 9000 -j REDIRECT --to-ports 3128", [false, true], "REDIRECT"),
            // Whose packets it is about does not matter.
            ("nat", "-A PREROUTING -s 192.0.2.0/24 -p tcp --dport 8080 -j REDIRECT", [true, false], "192.0.2.0/24"),
            ("nat", "-A PREROUTING -i eth7 -p tcp -m tcp --dport 9000 -j REDIRECT", [false, true], "eth7"),
            ("nat", "-A PREROUTING -d 10.30.1.78/32 -j DNAT --to-destination 10.30.1.99", [true, true], "10.30.1.99"),
            (
                "mangle",
                "-A PREROUTING -p tcp -m tcp --dport 9000 -j TPROXY --on-port 1 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1",
                [false, true],
                "TPROXY",
            ),
        ] {
            let found = held(iptables(table, own, rules));
            assert_eq!(found.each_ref().map(Option::is_some), ports, "{rules}");
            for holder in found.iter().flatten() {
                let said = holder.to_string();
                let place = format!("table {table} of {program}, chain PREROUTING");
                for word in [rule, &place, &format!("run `{program} -t {table} -D ")] {
                    assert!(said.contains(word) && holder.reason == Reason::PortInUse, "{word}: {said}");
                }
            }
        }
    }
}

#[test]
fn rules_of_nft_hold_ports_too() {
    let native = |rules: &[&str]| {
        let rule = |expr: &&str| {
            format!(r#",{{"rule":{{"family":"ip","table":"t","chain":"pre","handle":7,"expr":[{expr}]}}}}"#)
        };
        let rules: String = rules.iter().map(rule).collect();
        let json = format!(
            r#"{{"nftables":[{{"table":{{"family":"ip","name":"t"}}}},{{"chain":{{"family":"ip","table":"t","name":"pre",
            "type":"nat","hook":"prerouting","prio":-100,"policy":"accept"}}}}{rules}]}}"#
        );
        held(vec![nft::parse(&json, "ip", "t").unwrap()])
    };
    let port = r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":9000}}"#;
    for verdict in [r#"{"dnat":{"addr":"172.17.0.2","port":80}}"#, r#"{"redirect":{"port":3128}}"#] {
        let [web, other] = native(&[&format!("{port},{verdict}")]);
        let said = other.unwrap().to_string();
        assert!(web.is_none() && said.contains("run `nft delete rule ip t pre handle 7`"), "{said}");
    }
    // What a verdict map leads elsewhere is as good as a rule.
    let map = r#"{"vmap":{"key":{"concat":[{"meta":{"key":"l4proto"}},{"payload":{"protocol":"th","field":"dport"}}]},
        "data":{"set":[[{"concat":["tcp",8081]},{"accept":null}],[{"concat":["udp",9000]},{"accept":null}]]}}}"#;
    assert_eq!(native(&[map]), [None, None], "an accept publishes nothing");
}

#[test]
fn whoever_is_about_something_else_holds_nothing() {
    for rules in [
        "-A PREROUTING -p udp -m udp --dport 9000 -j DNAT --to-destination 172.17.0.2:80",
        "-A PREROUTING -p tcp -m tcp --dport 8090 -j DNAT --to-destination 172.17.0.2:80",
        "-A PREROUTING -d 10.30.1.77/32 -p tcp -m tcp --dport 9000 -j DNAT --to-destination 172.17.0.2:80",
        "-A PREROUTING ! -d 10.30.1.78/32 -p tcp -m tcp --dport 9000 -j REDIRECT --to-ports 3128",
        "-A PREROUTING -m addrtype ! --dst-type LOCAL -p tcp -j REDIRECT --to-ports 3128",
        "-A PREROUTING -i lo -p tcp -m tcp --dport 9000 -j REDIRECT --to-ports 3128",
        "-A PREROUTING -m mark --mark 0x2/0x2 -p tcp -j DNAT --to-destination 172.17.0.2",
        "-A PREROUTING -p tcp -m tcp --dport 9000 -j ACCEPT\n-A PREROUTING -p tcp -m tcp --dport 9000 -j REDIRECT",
        "-A PREROUTING -p tcp -m tcp --dport 9000 -j MARK --set-xmark 0x1/0x1",
        "-A POSTROUTING -p tcp -m tcp --dport 9000 -j MASQUERADE",
        // Ours, of a forward that is carried.
        "-A PREROUTING -j SALLY-PRE\n-A SALLY-PRE -p tcp -m tcp --dport 9000 -j DNAT --to-destination 10.30.1.90:80",
    ] {
        assert_eq!(held(iptables("nat", true, rules)), [None, None], "{rules}");
    }
    assert_eq!(held(iptables("raw", true, "-A PREROUTING -p tcp -m tcp --dport 9000 -j DROP")), [None, None]);
    assert_eq!(held(Vec::new()), [None, None]);
}

#[test]
fn rules_made_by_hand_that_lead_where_the_forward_does_are_replaced_without_a_gap() {
    let dnat = |port: u16, to: &str| {
        iptables(
            "nat",
            true,
            &format!("-A PREROUTING -d 10.30.1.78/32 -p tcp --dport {port} -j DNAT --to-destination {to}"),
        )
    };
    for (port, to, holds) in [
        (9000, "10.30.1.79:80", false),
        (9000, "10.30.1.81:80", false),
        (8080, "10.30.1.79", false),
        (8085, "10.30.1.79:8085", false),
        (9000, "10.30.1.79", true),
        (9000, "10.30.1.79:81", true),
        (9000, "10.30.1.80:80", true),
        (9000, "10.30.1.79-10.30.1.80:80", true),
    ] {
        assert_eq!(held(dnat(port, to)).iter().any(Option::is_some), holds, "{port} to {to}");
    }
}
