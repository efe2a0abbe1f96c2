//! What is said about the firewalls of other programs, as those programs write them.
//!
//! `firewalls/` holds what firewalld 1.3, ufw 0.36 and docker 20.10 left in a kernel, and for the others rules written by
//! hand in the form in which they are known to write them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ipnet::IpNet;
use sallyport_api::Reason;
use sallyport_policy::decide::Decision;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{Assessment, FirewallTable, Holder, HostFirewall, assess, nft, xtables};

#[path = "support/compiled.rs"]
mod compiled;
#[path = "../../policy/tests/support/scene.rs"]
mod scene;

use scene::Scene;

const NODE: &str = "name: gw1\nlisten: [10.30.1.78]\nlocal: [127.0.0.1/8, 10.30.1.78/23]\n";
const FORWARD: &str = "
kind: PortForward
metadata: { name: mysql, namespace: payments }
spec:
  ports: [ { name: mysql, port: 13306, targetPort: 3306 } ]
  sources: { allow: [ { cidr: 10.30.1.80/32 } ] }
  targets: [ { name: db1, ip: 10.30.1.79 } ]
";
const FORWARD_TO_ELSEWHERE: &str = "
kind: PortForward
metadata: { name: web, namespace: payments }
spec:
  ports: [ { name: web, port: 8080 } ]
  sources: { allow: [ { cidr: 0.0.0.0/0 } ] }
  targets: [ { name: web, ip: 10.40.0.10 } ]
";
const FORWARD_OF_SEEN_CLIENTS: &str = "
kind: PortForward
metadata: { name: seen, namespace: payments }
spec:
  ports: [ { name: web, port: 8081 } ]
  sources: { allow: [ { cidr: 10.30.0.0/23 }, { cidr: 192.0.2.0/24 } ] }
  targets: [ { name: web, ip: 10.40.0.10 } ]
  sourceNAT: { mode: Preserve }
";
const POOL: &str = "
kind: GatewayPool
metadata: { name: default }
spec:
  nodeSelector: {}
  grants: [ { name: all, namespaceSelector: {}, ports: [ { port: 1, endPort: 65535 } ], targetCIDRs: [ 0.0.0.0/0 ],
    sourceCIDRs: [ 0.0.0.0/0 ], sourceNATModes: [ Masquerade, Preserve ] } ]
";
/// What is in our own table once a forward is programmed.
const OUR_JUMP: &str = "-A FORWARD -j SALLY-FWD
-A SALLY-FWD -m conntrack --ctstate DNAT -m connmark --mark 0x10000000/0x10000000 -j ACCEPT
";

fn decided(manifests: &[&str]) -> (Scene, Decision) {
    let manifests = manifests.iter().chain([&POOL]).map(|text| format!("---{text}")).collect::<String>();
    let scene = Scene::parse(&manifests, NODE);
    let decision = scene.decide();
    (scene, decision)
}

/// Everything near is behind eth0, 10.40.0.0/16 behind eth1.
fn interface(net: IpNet) -> Option<String> {
    let behind = |text: &str| text.parse::<IpNet>().unwrap().contains(&net);
    if behind("10.30.0.0/23") {
        Some("eth0".to_owned())
    } else if behind("10.40.0.0/16") {
        Some("eth1".to_owned())
    } else {
        None
    }
}

fn assessed(manifests: &[&str], tables: Vec<FirewallTable>) -> Assessment {
    assessed_in(manifests, &HostFirewall { tables, unread: Vec::new() }, &interface)
}

fn assessed_in(manifests: &[&str], firewall: &HostFirewall, interface: &dyn Fn(IpNet) -> Option<String>) -> Assessment {
    let (scene, decision) = decided(manifests);
    let table = Scene::compile(&decision, &scene.nodes[0]).unwrap().table;
    assert_eq!((table.failures().count(), table.is_empty(Family::V4)), (0, manifests.is_empty()));
    assess(firewall, &table, &|_| true, interface)
}

fn own(save: &str) -> Vec<FirewallTable> {
    xtables::parse(save, Family::V4, Holder::Iptables { program: "iptables-nft", own: true })
}

fn other(save: &str) -> Vec<FirewallTable> {
    xtables::parse(save, Family::V4, Holder::Iptables { program: "iptables-legacy", own: false })
}

fn native(json: &str, family: &str, name: &str) -> Vec<FirewallTable> {
    vec![nft::parse(json, family, name).unwrap()]
}

/// A table `inet filter` with one base chain and these rules, in the JSON of nft.
fn inet_filter(hook: &str, priority: i32, policy: &str, rules: &[&str]) -> Vec<FirewallTable> {
    let rules: String = rules
        .iter()
        .map(|expr| format!(r#",{{"rule":{{"family":"inet","table":"filter","chain":"chain","expr":[{expr}]}}}}"#))
        .collect();
    let json = format!(
        r#"{{"nftables":[{{"table":{{"family":"inet","name":"filter"}}}},{{"chain":{{"family":"inet","table":"filter",
        "name":"chain","type":"filter","hook":"{hook}","prio":{priority},"policy":"{policy}"}}}}{rules}]}}"#
    );
    native(&json, "inet", "filter")
}

/// With the rules of ours in front of those of others in `filter FORWARD`, as they are once they are programmed.
fn with_our_jump(save: &str) -> String {
    save.replacen("-A FORWARD ", &format!("{OUR_JUMP}-A FORWARD "), 1)
}

const UFW: &str = include_str!("firewalls/ufw-0.36.save");
const DOCKER_20: &str = include_str!("firewalls/docker-20.10.save");
const DOCKER_28: &str = include_str!("firewalls/docker-28.save");
const KUBE_PROXY: &str = include_str!("firewalls/kube-proxy.save");
const KUBE_PROXY_SERVICES: &str = include_str!("firewalls/kube-proxy-nftables-services.json");
const CALICO: &str = include_str!("firewalls/calico.save");
const FIREWALLD: &str = include_str!("firewalls/firewalld-1.3.json");
const FIREWALLD_ZONES: &str = include_str!("firewalls/firewalld-1.3-zones.json");

/// As `StrictForwardPorts=yes` of later versions has it: nothing is accepted for having been translated.
fn strict(firewalld: &str) -> String {
    let translated = |line: &&str| line.contains("\"status\"") && line.contains("\"dnat\"");
    firewalld.lines().filter(|line| !translated(line)).collect::<Vec<_>>().join("\n")
}

#[test]
fn no_alarm_where_things_work() {
    for forwards in [&[][..], &[FORWARD], &[FORWARD, FORWARD_TO_ELSEWHERE], &[FORWARD_OF_SEEN_CLIENTS]] {
        for (name, save) in [
            ("ufw", UFW),
            ("docker 20", DOCKER_20),
            ("docker 28", DOCKER_28),
            ("kube-proxy", KUBE_PROXY),
            ("calico", CALICO),
        ] {
            let found = assessed(forwards, own(&with_our_jump(save)));
            assert_eq!(found, Assessment::default(), "{name}");
        }
        for (name, tables) in [
            ("firewalld", native(FIREWALLD, "inet", "firewalld")),
            ("firewalld with zones", native(FIREWALLD_ZONES, "inet", "firewalld")),
            ("kube-proxy", native(include_str!("firewalls/kube-proxy-nftables.json"), "ip", "kube-proxy")),
            ("kube-proxy's services", native(KUBE_PROXY_SERVICES, "ip", "kube-proxy")),
            ("libvirt", native(include_str!("firewalls/libvirt.json"), "ip", "libvirt_network")),
            ("kube-proxy in the other variant", other(KUBE_PROXY)),
            ("calico in the other variant", other(CALICO)),
        ] {
            let mut found = assessed(forwards, tables);
            found.mixed = false;
            assert_eq!(found, Assessment::default(), "{name}");
        }
    }
}

#[test]
fn no_alarm_where_the_gateway_listens_on_the_bridges_of_others_too() {
    let node = "name: gw1\nlisten: [10.30.1.78, 172.17.0.1, 192.168.122.1, 10.244.0.1]\n\
        local: [127.0.0.1/8, 10.30.1.78/23, 172.17.0.1/16, 192.168.122.1/24, 10.244.0.1/24]\n";
    let scene = Scene::parse(&[FORWARD, FORWARD_TO_ELSEWHERE, POOL].map(|text| format!("---{text}")).concat(), node);
    let decision = scene.decide();
    let table = Scene::compile(&decision, &scene.nodes[0]).unwrap().table;
    assert_eq!((table.failures().count(), table.bindings().count()), (0, 8));
    for (name, tables) in [
        ("ufw", own(&with_our_jump(UFW))),
        ("docker 20", own(&with_our_jump(DOCKER_20))),
        ("docker 28", own(&with_our_jump(DOCKER_28))),
        ("kube-proxy", own(&with_our_jump(KUBE_PROXY))),
        ("calico", own(&with_our_jump(CALICO))),
        ("firewalld with zones", native(FIREWALLD_ZONES, "inet", "firewalld")),
        ("libvirt", native(include_str!("firewalls/libvirt.json"), "ip", "libvirt_network")),
        ("kube-proxy's services", native(KUBE_PROXY_SERVICES, "ip", "kube-proxy")),
    ] {
        let found = assess(&HostFirewall { tables, unread: Vec::new() }, &table, &|_| true, &interface);
        assert_eq!(found, Assessment::default(), "{name}: {found}");
    }
}

#[test]
fn a_node_port_of_kube_proxy_may_take_the_port_of_a_forward() {
    let services = KUBE_PROXY_SERVICES.replace("30080", "13306");
    let found = assessed(&[FORWARD], native(&services, "ip", "kube-proxy"));
    assert_eq!((found.reason(), found.blocked.len()), (Reason::HostFirewallUnclear, 0), "{found}");
    assert!(found.to_string().contains("may be taken before our jump"), "{found}");
}

#[test]
fn rules_of_others_ahead_of_ours_are_no_conflict_unless_they_drop() {
    let ahead =
        |rule: &str| own(&with_our_jump(UFW).replacen("-A FORWARD ", &format!("-A FORWARD {rule}\n-A FORWARD "), 1));
    for rule in [
        "-s 10.30.1.81/32 -j DROP",
        "-m comment --comment \"kubernetes forwarding rules\" -j LOG",
        "-i docker0 -j DROP",
    ] {
        assert_eq!(assessed(&[FORWARD], ahead(rule)), Assessment::default(), "{rule}");
    }
    let found = assessed(&[FORWARD], ahead("-d 10.30.1.79/32 -j REJECT --reject-with icmp-port-unreachable"));
    assert_eq!(found.blocked.len(), 1);
    let remedy = "`iptables-nft -t filter -D FORWARD -d 10.30.1.79/32 -j REJECT --reject-with icmp-port-unreachable`";
    assert!(found.to_string().contains(remedy) && found.to_string().contains("that wins"), "{found}");
}

#[test]
fn a_chain_that_drops_every_forward_is_named_with_the_remedy_even_before_there_is_one() {
    for forwards in [&[][..], &[FORWARD, FORWARD_TO_ELSEWHERE]] {
        for (tables, place, remedy) in [
            (
                inet_filter(
                    "forward",
                    0,
                    "drop",
                    &[
                        r#"{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":["established","related"]}},{"accept":null}"#,
                    ],
                ),
                "table inet filter, chain chain (hook forward, priority 0, policy drop)",
                "`nft insert rule inet filter chain ct status dnat ct mark and 0x10000000 == 0x10000000 accept`",
            ),
            (
                inet_filter("forward", 0, "accept", &[r#"{"reject":{"type":"icmpx","expr":"admin-prohibited"}}"#]),
                "table inet filter, chain chain (hook forward, priority 0)",
                "nft insert rule",
            ),
            (
                native(&strict(FIREWALLD), "inet", "firewalld"),
                "table inet firewalld, chain filter_FORWARD",
                "StrictForwardPorts=no",
            ),
            (
                other(UFW),
                "table filter of iptables-legacy, chain FORWARD (hook forward, priority 0, policy drop)",
                "`iptables-legacy -t filter -I FORWARD -m conntrack --ctstate DNAT -m connmark --mark 0x10000000/0x10000000 -j ACCEPT`",
            ),
        ] {
            let found = assessed(forwards, tables);
            let text = found.to_string();
            assert_eq!(found.reason(), Reason::HostFirewallConflict, "{text}");
            assert!(text.contains(place) && text.contains(remedy), "{text}");
            assert_eq!(found.blocked.len(), forwards.len(), "{text}");
            for blocked in &found.blocked {
                assert_eq!(blocked.reason, Reason::HostFirewallConflict);
                assert!(blocked.message.contains(place) && blocked.message.contains(remedy), "{}", blocked.message);
            }
        }
    }
}

#[test]
fn the_other_variant_of_docker_blocks_those_whose_interfaces_are_known() {
    let found = assessed(&[FORWARD], other(DOCKER_20));
    assert_eq!((found.reason(), found.blocked.len()), (Reason::HostFirewallConflict, 1), "{found}");
    // Its clients may be anywhere, also behind docker0, from where it would be accepted.
    let found = assessed(&[FORWARD_TO_ELSEWHERE], other(DOCKER_20));
    assert_eq!((found.reason(), found.blocked.len()), (Reason::HostFirewallUnclear, 0), "{found}");
}

#[test]
fn what_the_remedies_say_is_understood_as_the_remedy() {
    let ours = r#"{"match":{"op":"in","left":{"ct":{"key":"status"}},"right":"dnat"}},
        {"match":{"op":"==","left":{"&":[{"ct":{"key":"mark"}},268435456]},"right":268435456}},{"accept":null}"#;
    assert_eq!(assessed(&[FORWARD], inet_filter("forward", 0, "drop", &[ours])), Assessment::default());
    let accept = "-A FORWARD -m conntrack --ctstate DNAT -m connmark --mark 0x10000000/0x10000000 -j ACCEPT\n";
    let ufw = UFW.replacen("-A FORWARD ", &format!("{accept}-A FORWARD "), 1);
    assert_eq!(assessed(&[FORWARD], other(&ufw)), Assessment::default());
}

/// Expressions of rules, and what they mean for a forward from 10.30.1.80 to 10.30.1.79:3306, all behind eth0.
#[test]
fn each_rule_is_read_as_the_kernel_reads_it() {
    let fits =
        |left: &str, op: &str, right: &str| format!(r#"{{"match":{{"op":"{op}","left":{left},"right":{right}}}}}"#);
    let payload =
        |protocol: &str, field: &str| format!(r#"{{"payload":{{"protocol":"{protocol}","field":"{field}"}}}}"#);
    let meta = |key: &str| format!(r#"{{"meta":{{"key":"{key}"}}}}"#);
    let ct = |key: &str| format!(r#"{{"ct":{{"key":"{key}"}}}}"#);
    // Whether a drop of what this fits blocks the forward, for certain.
    let certain = [
        (true, fits(&payload("ip", "daddr"), "==", r#""10.30.1.79""#)),
        (true, fits(&payload("ip", "daddr"), "==", r#"{"set":["10.9.9.9",{"prefix":{"addr":"10.30.0.0","len":16}}]}"#)),
        (true, fits(&payload("ip", "saddr"), "==", r#"{"range":["10.30.1.1","10.30.1.99"]}"#)),
        (true, fits(&payload("ip", "saddr"), "!=", r#""10.30.1.81""#)),
        (true, fits(&payload("tcp", "dport"), "==", r#"{"set":[22,{"range":[3300,3310]}]}"#)),
        (true, fits(&payload("th", "dport"), "==", "3306")),
        (true, fits(&payload("tcp", "sport"), "==", "3306")),
        (true, fits(&payload("ip", "protocol"), "==", r#""tcp""#)),
        (true, fits(&meta("l4proto"), "==", r#"{"set":["tcp","udp"]}"#)),
        (true, fits(&meta("nfproto"), "==", r#""ipv4""#)),
        (true, fits(&meta("iifname"), "==", r#""eth0""#)),
        (true, fits(&meta("oifname"), "==", r#""eth*""#)),
        (true, fits(&meta("iifname"), "!=", r#""eth1""#)),
        (true, fits(&ct("state"), "in", r#"["new","invalid"]"#)),
        (true, fits(&ct("state"), "==", r#"{"set":["established","related"]}"#)),
        (true, fits(&ct("direction"), "==", r#""reply""#)),
        (true, fits(&ct("status"), "in", r#""dnat""#)),
        (false, fits(&payload("ip", "daddr"), "==", r#""10.30.1.78""#)),
        (false, fits(&payload("ip6", "daddr"), "!=", r#""fd00::1""#)),
        (false, fits(&payload("tcp", "dport"), "==", "13306")),
        (false, fits(&payload("udp", "dport"), "==", "3306")),
        (false, fits(&payload("icmp", "type"), "==", r#""echo-request""#)),
        (false, fits(&meta("nfproto"), "==", r#""ipv6""#)),
        (false, fits(&meta("oifname"), "==", r#"{"set":["virbr0","docker0"]}"#)),
        (false, fits(&meta("iif"), "==", r#""lo""#)),
        (false, fits(&ct("state"), "in", r#""invalid""#)),
        (false, fits(&ct("mark"), "==", "5")),
        // What names those that it drops is about those.
        (false, fits(&payload("ip", "saddr"), "==", r#""@blocklist""#)),
        (false, fits(&meta("mark"), "==", "5")),
        (true, fits(&meta("mark"), "!=", "5")),
        (false, r#"{"limit":{"rate":3,"per":"second","inv":true}}"#.to_owned()),
        (false, fits(r#"{"fib":{"result":"oif","flags":["saddr","iif"]}}"#, "==", "false")),
    ];
    for (blocks, fits) in certain {
        let found = assessed(&[FORWARD], inet_filter("forward", 0, "accept", &[&format!("{fits},{{\"drop\":null}}")]));
        assert_eq!(found.blocked.len(), usize::from(blocks), "{fits}: {found}");
        let expected = if blocks { Reason::HostFirewallConflict } else { Reason::HostFirewallCompatible };
        assert_eq!(found.reason(), expected, "{fits}");
    }
    // What drops all but those that it names may be about ours.
    for fits in [
        fits(&payload("ip", "saddr"), "!=", r#""@allowed""#),
        fits(&payload("tcp", "dport"), ">=", "1024"),
        r#"{"xt":{"type":"match","name":"owner"}}"#.to_owned(),
    ] {
        let found = assessed(&[FORWARD], inet_filter("forward", 0, "accept", &[&format!("{fits},{{\"drop\":null}}")]));
        assert_eq!((found.reason(), found.blocked.len()), (Reason::HostFirewallUnclear, 0), "{fits}");
    }
}

#[test]
fn chains_and_verdict_maps_are_followed() {
    let map =
        |elements: &str| format!(r#"{{"vmap":{{"key":{{"ct":{{"key":"state"}}}},"data":{{"set":[{elements}]}}}}}}"#);
    let established = map(r#"["established",{"accept":null}],["related",{"accept":null}],["invalid",{"drop":null}]"#);
    let all = map(r#"["*",{"drop":null}],["new",{"accept":null}],["established",{"accept":null}]"#);
    for (policy, rule, reason) in [
        ("accept", established.as_str(), Reason::HostFirewallCompatible),
        ("drop", established.as_str(), Reason::HostFirewallConflict),
        ("drop", all.as_str(), Reason::HostFirewallCompatible),
        ("drop", r#"{"vmap":{"key":{"meta":{"key":"iifname"}},"data":"@zones"}}"#, Reason::HostFirewallUnclear),
        ("drop", r#"{"queue":{"num":3}}"#, Reason::HostFirewallUnclear),
        ("drop", r#"{"return":null}"#, Reason::HostFirewallConflict),
        ("drop", r#"{"counter":{"packets":1,"bytes":2}},{"log":{"prefix":"x"}}"#, Reason::HostFirewallConflict),
    ] {
        let found = assessed(&[FORWARD], inet_filter("forward", 0, policy, &[rule]));
        assert_eq!(found.reason(), reason, "{policy} {rule}");
    }
    // A chain that lets some go back before its end drops the rest: which, nobody can tell.
    let save = |called: &str| {
        other(&format!(
            "*filter\n:FORWARD ACCEPT [0:0]\n:CHECK - [0:0]\n-A FORWARD -j CHECK\n{called}-A CHECK -j DROP\nCOMMIT\n"
        ))
    };
    for (called, reason) in [
        ("", Reason::HostFirewallConflict),
        ("-A CHECK -j RETURN\n", Reason::HostFirewallCompatible),
        (
            "-A CHECK -s 10.30.1.80/32 -p tcp -j RETURN\n-A CHECK -d 10.30.1.80/32 -j RETURN\n",
            Reason::HostFirewallCompatible,
        ),
        ("-A CHECK -m set --match-set allowed src -j RETURN\n", Reason::HostFirewallUnclear),
        ("-A CHECK -m set ! --match-set blocked src -j RETURN\n", Reason::HostFirewallUnclear),
    ] {
        assert_eq!(assessed(&[FORWARD], save(called)).reason(), reason, "{called}");
    }
    let negated = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m set ! --match-set allowed src -j DROP\nCOMMIT\n";
    assert_eq!(assessed(&[FORWARD], other(negated)).reason(), Reason::HostFirewallUnclear);
}

#[test]
fn before_translation_the_gateway_is_the_destination() {
    let to = |ip: &str| {
        format!(
            r#"{{"match":{{"op":"==","left":{{"payload":{{"protocol":"ip","field":"daddr"}}}},"right":"{ip}"}}}},
        {{"match":{{"op":"==","left":{{"payload":{{"protocol":"tcp","field":"dport"}}}},"right":13306}}}},{{"drop":null}}"#
        )
    };
    let found = assessed(&[FORWARD], inet_filter("prerouting", -300, "accept", &[&to("10.30.1.78")]));
    assert_eq!(found.blocked.len(), 1, "{found}");
    assert!(
        found.to_string().contains("nft insert rule inet filter chain ip daddr 10.30.1.78 tcp dport 13306 accept"),
        "{found}"
    );
    assert_eq!(
        assessed(&[FORWARD], inet_filter("prerouting", -300, "accept", &[&to("10.30.1.79")])),
        Assessment::default()
    );
    // Nobody knows yet whose packet it is, so nothing can be said of what drops the untracked or by mark.
    let new = r#"{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":"new"}},{"drop":null}"#;
    assert_eq!(assessed(&[FORWARD], inet_filter("prerouting", -300, "accept", &[new])), Assessment::default());
    assert_eq!(assessed(&[FORWARD], inet_filter("prerouting", -150, "accept", &[new])).blocked.len(), 1);
}

#[test]
fn one_that_is_blocked_does_not_blacken_the_others() {
    let only = r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"daddr"}},"right":"10.40.0.10"}},{"drop":null}"#;
    let found = assessed(&[FORWARD, FORWARD_TO_ELSEWHERE], inet_filter("forward", 0, "accept", &[only]));
    let blocked: Vec<_> = found.blocked.iter().map(|failure| failure.forward.name.as_str()).collect();
    assert_eq!((blocked, found.conflicts.len()), (vec!["web"], 1));
}

#[test]
fn rules_in_both_variants_are_told_and_ours_do_not_count() {
    let nat = |rule: &str| format!("*nat\n:PREROUTING ACCEPT [0:0]\n{rule}COMMIT\n");
    let theirs = nat("-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080\n");
    let ours = nat("-A PREROUTING -j SALLY-PRE\n-A SALLY-PRE -d 10.30.1.78/32 -j SALLY-M\n");
    for (here, there, mixed) in [(&theirs, &theirs, true), (&ours, &theirs, false), (&theirs, &ours, false)] {
        let found = assessed(&[FORWARD], [own(here), other(there)].concat());
        assert_eq!(found.mixed, mixed, "{here} {there}");
        assert_eq!(found.reason(), Reason::HostFirewallCompatible);
        assert_eq!(found.to_string().contains("both iptables-nft and iptables-legacy"), mixed);
    }
}

#[test]
fn a_reload_of_firewalld_blackens_no_forward() {
    let table = inet_filter("forward", 9, "drop", &[]).pop().unwrap();
    let found = assessed(&[FORWARD], vec![FirewallTable { name: "firewalld_policy_drop".to_owned(), ..table }]);
    assert_eq!((found.reason(), found.blocked.len()), (Reason::HostFirewallUnclear, 0), "{found}");
    assert!(found.to_string().contains("if it stays, run `systemctl restart firewalld`"), "{found}");
}

#[test]
fn what_cannot_be_read_is_told_and_what_is_no_table_is_an_error() {
    let unread = HostFirewall { tables: Vec::new(), unread: vec!["table inet x: nft is not installed".to_owned()] };
    let found = assessed_in(&[FORWARD], &unread, &|_| None);
    assert_eq!(found.reason(), Reason::HostFirewallUnclear);
    assert!(found.to_string().contains("nft is not installed"), "{found}");
    for json in ["", "{}", "[1]", r#"{"nftables":[{"table":{"family":"ip","name":"x"}}]}"#] {
        assert!(nft::parse(json, "inet", "x").is_err(), "{json}");
    }
    assert_eq!(xtables::parse("-A FORWARD -j DROP\n:X\n*\nrubbish ! -m\n", Family::V4, Holder::Nftables).len(), 1);
}
