//! Those who may get through do and nobody else does, or the rule of somebody else that keeps it from being so is named.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ipnet::IpNet;
use sallyport_api::Reason;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{Assessment, FirewallTable, Holder, HostFirewall, assess, nft, xtables};

#[path = "support/compiled.rs"]
mod compiled;
#[path = "paths/ports_and_hooks.rs"]
mod ports_and_hooks;
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
    sourceCIDRs: [ 0.0.0.0/0 ], sourceNATModes: [ Masquerade, Preserve ] } ]
";

/// A forward of the origin story, with other sources and whatever else is to be said of it.
fn forward(allow: &str, rest: &str) -> String {
    format!(
        "
kind: PortForward
metadata: {{ name: mysql, namespace: payments }}
spec:
  ports: [ {{ name: mysql, port: 3306 }} ]
  sources: {{ allow: [ {{ cidr: {allow} }} ] }}
  targets: [ {{ name: db1, ip: 10.30.1.79 }} ]
{rest}"
    )
}

/// Everything near is behind eth0, all else behind nothing that is known.
fn interface(net: IpNet) -> Option<String> {
    let near: IpNet = "10.30.0.0/23".parse().unwrap();
    near.contains(&net).then(|| "eth0".to_owned())
}

fn found(forward: &str, tables: Vec<FirewallTable>) -> Assessment {
    found_on(NODE, forward, tables)
}

fn found_on(node: &str, forward: &str, tables: Vec<FirewallTable>) -> Assessment {
    found_by(&interface, node, forward, tables)
}

fn found_by(
    interface: &dyn Fn(IpNet) -> Option<String>,
    node: &str,
    forward: &str,
    tables: Vec<FirewallTable>,
) -> Assessment {
    let scene = Scene::parse(&format!("---{forward}\n---{POOL}"), node);
    let decision = scene.decide();
    let table = Scene::compile(&decision, &scene.nodes[0]).unwrap().table;
    assert_eq!((table.failures().count(), table.is_empty(Family::V4)), (0, false));
    let found = assess(&HostFirewall { tables, unread: Vec::new() }, &table, &|_| true, interface);
    for conflict in found.conflicts.iter().chain(&found.doubts) {
        assert!(!conflict.remedy.is_empty() && conflict.place.contains("chain"), "{conflict}");
    }
    found
}

/// The forward of the origin story, for one client.
fn story(tables: Vec<FirewallTable>) -> Assessment {
    found(&forward("10.30.1.80/32", ""), tables)
}

/// The tables of our own variant, with our jumps where they are once they are there.
fn own(table: &str, rules: &str) -> Vec<FirewallTable> {
    iptables(table, rules, Holder::Iptables { program: "iptables-nft", own: true })
}

fn other(table: &str, rules: &str) -> Vec<FirewallTable> {
    iptables(table, rules, Holder::Iptables { program: "iptables-legacy", own: false })
}

fn iptables(table: &str, rules: &str, holder: Holder) -> Vec<FirewallTable> {
    let chains: Vec<&str> = rules.lines().filter_map(|rule| rule.strip_prefix("-A ")?.split(' ').next()).collect();
    let declared = chains.iter().filter(|chain| !chain.chars().all(|letter| letter.is_ascii_uppercase()));
    let declared: String = declared.map(|chain| format!(":{chain} - [0:0]\n")).collect();
    let builtin = ["PREROUTING", "FORWARD", "POSTROUTING"].map(|chain| format!(":{chain} ACCEPT [0:0]\n")).concat();
    xtables::parse(&format!("*{table}\n{builtin}{declared}{rules}\nCOMMIT\n"), Family::V4, holder)
}

/// A table `ip site` of nftables with one base chain, whose rules have the handles 1, 2 …
fn native(kind: &str, hook: &str, priority: i32, rules: &[&str]) -> Vec<FirewallTable> {
    let rule = |(number, expr): (usize, &&str)| {
        let handle = number + 1;
        format!(r#",{{"rule":{{"family":"ip","table":"site","chain":"chain","handle":{handle},"expr":[{expr}]}}}}"#)
    };
    let rules: String = rules.iter().enumerate().map(rule).collect();
    let json = format!(
        r#"{{"nftables":[{{"table":{{"family":"ip","name":"site"}}}},{{"chain":{{"family":"ip","table":"site",
        "name":"chain","type":"{kind}","hook":"{hook}","prio":{priority},"policy":"accept"}}}}{rules}]}}"#
    );
    vec![nft::parse(&json, "ip", "site").unwrap()]
}

/// The one forward is blocked for `reason`, and all of `words` are said about it.
fn is_blocked(found: &Assessment, reason: Reason, words: &[&str]) {
    let [blocked] = found.blocked.as_slice() else { panic!("{found}: {found:?}") };
    assert_eq!((blocked.reason, found.reason()), (reason, reason), "{found}");
    for word in words {
        assert!(blocked.message.contains(word), "{word}: {}", blocked.message);
        assert!(found.to_string().contains(word) || word.starts_with("by "), "{word}: {found}");
    }
}

fn is_unclear(found: &Assessment, words: &[&str]) {
    assert_eq!((found.reason(), found.blocked.len()), (Reason::HostFirewallUnclear, 0), "{found}");
    for word in words {
        assert!(found.to_string().contains(word), "{word}: {found}");
    }
}

#[test]
fn rules_made_by_hand_that_a_forward_was_to_replace_let_in_who_is_not_listed() {
    let dnat = "-A PREROUTING -d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.79";
    let behind = format!("-A PREROUTING -j SALLY-PRE\n{dnat}");
    let words = [
        "clients who are not listed",
        "table nat of iptables-nft, chain PREROUTING",
        "`-A PREROUTING -d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.79`",
        "iptables-nft -t nat -D PREROUTING -d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.79",
    ];
    is_blocked(&story(own("nat", &behind)), Reason::HostFirewallBypass, &words);
    is_blocked(&story(other("nat", dnat)), Reason::HostFirewallBypass, &words[..1]);
    // Where FORWARD drops what it does not name, only what it names gets in.
    let drops = "-A FORWARD -j SALLY-FWD\n-A FORWARD -j DROP";
    assert_eq!(story([own("nat", &behind), own("filter", drops)].concat()), Assessment::default());
    let accepts = "-A FORWARD -j SALLY-FWD\n-A FORWARD -s 10.30.1.81/32 -d 10.30.1.79/32 -p tcp -m tcp --dport 3306 -j ACCEPT\n-A FORWARD -j DROP";
    let found = story([own("nat", &behind), own("filter", accepts)].concat());
    is_blocked(&found, Reason::HostFirewallBypass, &["by 10.30.1.81, for one"]);
}

#[test]
fn only_who_is_not_listed_counts_as_let_in() {
    let dnat = |from: &str| {
        let rule = format!(
            "-A PREROUTING {from}-d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.79:3306"
        );
        own("nat", &format!("-A PREROUTING -j SALLY-PRE\n{rule}"))
    };
    assert_eq!(story(dnat("-s 10.30.1.80/32 ")), Assessment::default());
    assert_eq!(found(&forward("0.0.0.0/0", ""), dnat("")), Assessment::default());
    is_blocked(&story(dnat("-s 10.30.1.81/32 ")), Reason::HostFirewallBypass, &["by 10.30.1.81, for one"]);
    is_blocked(&story(dnat("-i eth0 ")), Reason::HostFirewallBypass, &["by "]);
    is_blocked(&story(dnat("-m addrtype --dst-type LOCAL ")), Reason::HostFirewallBypass, &[]);
    // Whoever is denied is not listed, whatever else allows him.
    let denied =
        forward("10.30.1.0/24", "").replace("] }\n  targets", "], deny: [ { cidr: 10.30.1.66/32 } ] }\n  targets");
    is_blocked(&found(&denied, dnat("-s 10.30.1.0/24 ")), Reason::HostFirewallBypass, &["by 10.30.1.66, for one"]);
    // Nobody can tell who is in a set.
    is_unclear(
        &story(dnat("-m set --match-set friends src ")),
        &["may be joined by those of clients who are not listed"],
    );
}

#[test]
fn who_may_come_by_an_interface_that_a_rule_names_is_not_told_by_where_a_single_host_is() {
    // As the host's routes answer: of a single host always, by the default route if by no other.
    let routes = |net: IpNet| (net.prefix_len() == 32).then(|| "eth0".to_owned()).or_else(|| interface(net));
    let rule = "-A PREROUTING -i lan1 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.79:3306";
    let tables = own("nat", &format!("-A PREROUTING -j SALLY-PRE\n{rule}"));
    let found = found_by(&routes, NODE, &forward("10.30.1.80/32", ""), tables);
    is_unclear(&found, &["may be joined by those of clients who are not listed"]);
}

#[test]
fn more_clients_than_are_followed_one_by_one_are_unclear_and_never_forgotten() {
    let door = "-p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.79:3306";
    let others: String =
        (0..600).map(|n| format!("-A PREROUTING -s 5.{}.{}.0/25 -j ACCEPT\n", n / 250, n % 250)).collect();
    let rules = format!("-A PREROUTING -j SALLY-PRE\n{others}-A PREROUTING -s 203.0.113.0/24 {door}");
    is_unclear(&story(own("nat", &rules)), &["may be joined by those of clients who are not listed"]);
}

#[test]
fn a_translation_to_another_target_port_or_host_lets_nobody_in() {
    for rest in [
        "--dport 3307 -j DNAT --to-destination 10.30.1.79:3306",
        "--dport 3306 -j DNAT --to-destination 10.30.1.79:3307",
        "--dport 3306 -j DNAT --to-destination 172.17.0.2:3306",
        "--dport 3306 -j REDIRECT --to-ports 3306",
        "--dport 3306 -j LOG",
    ] {
        let rules = format!("-A PREROUTING -j SALLY-PRE\n-A PREROUTING -d 10.30.1.78/32 -p tcp -m tcp {rest}");
        assert_eq!(story(own("nat", &rules)), Assessment::default(), "{rest}");
    }
    let range = "--dport 3000:4000 -j DNAT --to-destination 10.30.1.70-10.30.1.90";
    let rules = format!("-A PREROUTING -j SALLY-PRE\n-A PREROUTING -p tcp -m tcp {range}");
    is_blocked(&story(own("nat", &rules)), Reason::HostFirewallBypass, &["by 1.0.0.0 to 10.30.1.77, for one"]);
}

#[test]
fn who_translates_before_our_jump_diverts() {
    let jump = "-A PREROUTING -j SALLY-PRE";
    for (rule, word) in [
        ("-A PREROUTING -p tcp -m tcp --dport 3306 -j REDIRECT --to-ports 13306", "REDIRECT"),
        (
            "-A PREROUTING -d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 172.17.0.2:3306",
            "172.17.0.2",
        ),
        (
            "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
             -A DOCKER ! -i docker0 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 172.17.0.2:3306",
            "-D DOCKER ! -i docker0",
        ),
        ("-A PREROUTING -s 10.30.1.80/32 -j ACCEPT", "-s 10.30.1.80/32"),
        ("-A PREROUTING -p tcp -j RETURN", "-p tcp -j RETURN"),
    ] {
        is_blocked(&story(own("nat", &format!("{rule}\n{jump}"))), Reason::Diverted, &["before our jump", word]);
        if !word.contains("REDIRECT") && !rule.contains("10.30.1.79") {
            assert_eq!(story(own("nat", &format!("{jump}\n{rule}"))), Assessment::default(), "{rule}");
        }
    }
    let tproxy = "-A PREROUTING -p tcp -m tcp --dport 3306 -j TPROXY --on-port 1 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1";
    is_blocked(&story(own("mangle", tproxy)), Reason::Diverted, &["TPROXY"]);
    // Of two tables that translate at the same priority the kernel asks the younger one first.
    let dnat = "-A PREROUTING -p tcp -m tcp --dport 3306 -j DNAT --to-destination 172.17.0.2:3306";
    is_unclear(&story(other("nat", dnat)), &["may be taken before our jump"]);
    let redirect = r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":3306}},{"redirect":{"port":1}}"#;
    let words =
        ["table ip site, chain chain (hook prerouting, priority -110)", "nft delete rule ip site chain handle 1"];
    is_blocked(&story(native("nat", "prerouting", -110, &[redirect])), Reason::Diverted, &words);
    assert_eq!(story(native("nat", "prerouting", -90, &[redirect])), Assessment::default());
}

#[test]
fn who_overwrites_our_mark_is_named_with_the_masked_form() {
    for (chain, target, masked) in [
        ("PREROUTING -i eth0", "CONNMARK --set-xmark 0x1/0xffffffff", "CONNMARK --set-xmark 0x1/0xcfffffff"),
        (
            "POSTROUTING",
            "CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff",
            "CONNMARK --save-mark --nfmask 0xcfffffff --ctmask 0xcfffffff",
        ),
        (
            "FORWARD -p tcp",
            "CONNMARK --set-xmark 0x0/0xffffffff",
            "-A FORWARD -p tcp -j CONNMARK --set-xmark 0x0/0xcfffffff",
        ),
    ] {
        let found = story(own("mangle", &format!("-A {chain} -j {target}")));
        is_blocked(&found, Reason::MarkOverwritten, &[masked, "0x30000000"]);
    }
    for harmless in [
        "PREROUTING -j CONNMARK --set-xmark 0x1/0xff",
        "PREROUTING -m connmark --mark 0x0 -j CONNMARK --set-xmark 0x1/0xffffffff",
        "PREROUTING -i wg0 -j CONNMARK --set-xmark 0x1/0xffffffff",
        "PREROUTING -m conntrack --ctstate NEW -j CONNMARK --set-xmark 0x1/0xffffffff",
        "PREROUTING -j MARK --set-xmark 0x1/0xffffffff",
        "POSTROUTING -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff",
    ] {
        assert_eq!(story(own("mangle", &format!("-A {harmless}"))), Assessment::default(), "{harmless}");
    }
    // Copied to the packet as it comes and back as it goes, the bits are there again.
    let both = "-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n\
        -A POSTROUTING -m conntrack ! --ctstate NEW -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff";
    assert_eq!(story(own("mangle", both)), Assessment::default());
    let set = r#"{"mangle":{"key":{"ct":{"key":"mark"}},"value":7}}"#;
    let found = story(native("filter", "forward", 0, &[set]));
    is_blocked(&found, Reason::MarkOverwritten, &["handle 1", "ct mark set ct mark and 0x30000000 xor 0x7"]);
    let masked =
        r#"{"mangle":{"key":{"ct":{"key":"mark"}},"value":{"^":[{"&":[{"ct":{"key":"mark"}},805306368]},7]}}}"#;
    assert_eq!(story(native("filter", "forward", 0, &[masked])), Assessment::default());
    // Taken from where nobody can tell.
    let map =
        r#"{"mangle":{"key":{"ct":{"key":"mark"}},"value":{"map":{"key":{"meta":{"key":"iifname"}},"data":"@m"}}}}"#;
    is_unclear(&story(native("filter", "forward", 0, &[map])), &["may lose our bits"]);
}

#[test]
fn what_is_not_tracked_is_not_translated() {
    for rule in [
        "-A PREROUTING -p tcp -m tcp --dport 3306 -j CT --notrack",
        "-A PREROUTING -p tcp -m tcp --sport 3306 -j NOTRACK",
    ] {
        is_blocked(
            &story(own("raw", rule)),
            Reason::HostFirewallConflict,
            &["kept from connection tracking", "-t raw -I PREROUTING"],
        );
    }
    assert_eq!(
        story(own("raw", "-A PREROUTING -p udp -j CT --notrack\n-A PREROUTING -p tcp -j CT --helper ftp")),
        Assessment::default()
    );
    is_unclear(&story(own("raw", "-A PREROUTING -j CT --zone 7")), &["may or may not pass"]);
    // Answers come to some address of the gateway: if to this one, none of them gets further.
    let after = |first: &str| {
        let answers = "-A PREROUTING -s 10.30.1.79/32";
        story(own("raw", &format!("{answers} {first}\n{answers} -j CT --notrack")))
    };
    for first in ["-d 10.30.1.78 -j RETURN", "-d 10.30.1.78 -j ACCEPT", "-d 10.30.1.78 -j X-1\n-A X-1 -j ACCEPT"] {
        is_unclear(&after(first), &["may be kept from connection tracking"]);
    }
    // Whoever comes back from another chain gets there, and whoever is dropped is no better off.
    for first in ["-j X-1\n-A X-1 -d 10.30.1.78 -j RETURN", "-d 10.30.1.78 -j DROP"] {
        is_blocked(&after(first), Reason::HostFirewallConflict, &["kept from connection tracking"]);
    }
    let notrack = r#"{"notrack":null}"#;
    is_blocked(
        &story(native("filter", "prerouting", -300, &[notrack])),
        Reason::HostFirewallConflict,
        &["table ip site"],
    );
}

#[test]
fn whoever_hides_clients_spoils_only_what_asks_to_see_them() {
    let masquerade = || own("nat", "-A POSTROUTING -o eth0 -j MASQUERADE\n-A POSTROUTING -j SALLY-POST");
    assert_eq!(story(masquerade()), Assessment::default());
    let preserve = forward("192.0.2.0/24", "  sourceNAT: { mode: Preserve }\n");
    let there = found(&preserve, masquerade());
    is_blocked(&there, Reason::HostFirewallConflict, &["sourceNAT Preserve", "-t nat -I POSTROUTING"]);
    let theirs = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n-A POSTROUTING -j KUBE-POSTROUTING\n\
        -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
        -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n-A KUBE-POSTROUTING -j MASQUERADE --random-fully";
    assert_eq!(found(&preserve, own("nat", theirs)), Assessment::default());
}

#[test]
fn every_network_of_clients_is_looked_at_by_itself() {
    let two = forward("10.30.1.80/32 }, { cidr: 10.30.1.96/28", "");
    let found = found(&two, own("filter", "-A FORWARD -s 10.30.1.96/27 -j DROP\n-A FORWARD -j SALLY-FWD"));
    is_blocked(&found, Reason::HostFirewallConflict, &["-s 10.30.1.96/27 -j DROP"]);
    assert!(
        found.blocked[0].message.contains("packets of its clients 10.30.1.96/28 to 10.30.1.78 are dropped"),
        "{found:?}"
    );
    // A blocklist within a network is about those whom it names.
    let listed = own("filter", "-A FORWARD -s 10.30.1.100/32 -j DROP\n-A FORWARD -j SALLY-FWD");
    assert_eq!(self::found(&two, listed), Assessment::default());
}

#[test]
fn a_later_request_is_followed_like_the_first_and_its_answer() {
    let rule = "-A FORWARD -d 10.30.1.79/32 -m conntrack --ctstate ESTABLISHED -j DROP\n-A FORWARD -j SALLY-FWD";
    is_blocked(&story(own("filter", rule)), Reason::HostFirewallConflict, &["ESTABLISHED"]);
    let no_syn = "-A PREROUTING -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP";
    assert_eq!(story(own("mangle", no_syn)), Assessment::default());
}

#[test]
fn answers_to_hidden_clients_come_to_an_address_of_the_gateway() {
    // Whether to this one nobody knows who does not know all of the gateway's addresses.
    let rule = "-A PREROUTING -d 10.30.1.78/32 -p tcp -m tcp ! --dport 3306 -j DROP";
    is_unclear(&story(own("mangle", rule)), &["may be dropped", "! --dport 3306"]);
    let preserve = forward("192.0.2.0/24", "  sourceNAT: { mode: Preserve }\n");
    assert_eq!(found(&preserve, own("mangle", rule)), Assessment::default());
    let ssh = "-A PREROUTING -d 10.30.1.78/32 -p tcp -m tcp --dport 22 -j DROP";
    assert_eq!(story(own("mangle", ssh)), Assessment::default());
}

#[test]
fn the_gateway_itself_is_no_client_that_is_let_in() {
    let rules = "-A PREROUTING -j SALLY-PRE\n-A PREROUTING -s 10.30.1.78/32 -p tcp -j DNAT --to-destination 10.30.1.79";
    assert_eq!(story(own("nat", rules)), Assessment::default());
}

#[test]
fn every_listen_address_is_looked_at_by_itself() {
    let node = "name: gw1\nlisten: [10.30.1.77, 10.30.1.78]\nlocal: [10.30.1.77/23, 10.30.1.78/23]\n";
    let tables = own("raw", "-A PREROUTING -d 10.30.1.77/32 -p tcp -j DROP");
    let found = found_on(node, &forward("10.30.1.80/32", ""), tables);
    is_blocked(&found, Reason::HostFirewallConflict, &["-d 10.30.1.77/32 -p tcp -j DROP"]);
    assert!(found.blocked[0].message.contains("clients 10.30.1.80/32 to 10.30.1.77 are dropped"), "{found:?}");
}

#[test]
fn what_is_not_known_is_unclear_and_never_harmless() {
    for (table, rule) in [
        ("filter", "-A FORWARD -p tcp -j FROBNICATE\n-A FORWARD -j SALLY-FWD"),
        ("mangle", "-A FORWARD -p tcp -j DNPT --src-pfx fd00::/64 --dst-pfx fd01::/64"),
        ("mangle", "-A PREROUTING -j TTL --ttl-set 1"),
        ("mangle", "-A FORWARD -m geoip --source-country XX -j DROP"),
        ("mangle", "-A FORWARD -p tcp -j NFQUEUE --queue-num 1"),
    ] {
        is_unclear(&story(own(table, rule)), &[rule.lines().next().unwrap()]);
    }
    let elsewhere = "-A FORWARD -p udp -j FROBNICATE\n-A FORWARD -i wg0 -j FROBNICATE\n-A FORWARD -j SALLY-FWD";
    assert_eq!(story(own("filter", elsewhere)), Assessment::default());
    for statement in [
        r#"{"frobnicate":null}"#,
        r#"{"mangle":{"key":{"payload":{"protocol":"ip","field":"daddr"}},"value":"10.9.9.9"}}"#,
        r#"{"mangle":{"key":{"ct":{"key":"zone"}},"value":3}}"#,
        r#"{"xt":{"type":"target","name":"FROB"}}"#,
    ] {
        is_unclear(&story(native("filter", "prerouting", -300, &[statement])), &["rule `chain handle 1`"]);
    }
    for statement in [
        r#"{"counter":{"packets":1,"bytes":2}},{"log":{"prefix":"x"}},{"dup":{"addr":"10.9.9.9"}}"#,
        r#"{"mangle":{"key":{"payload":{"protocol":"ip","field":"dscp"}},"value":"cs1"}}"#,
        r#"{"mangle":{"key":{"meta":{"key":"priority"}},"value":"1:1"}}"#,
        r#"{"mangle":{"key":{"tcp option":{"name":"maxseg","field":"size"}},"value":1400}}"#,
        r#"{"set":{"op":"add","elem":{"payload":{"protocol":"ip","field":"saddr"}},"set":"@seen"}}"#,
        r#"{"flow":{"op":"add","flowtable":"@ft"}}"#,
        r#"{"xt":{"type":"target","name":"TCPMSS"}}"#,
    ] {
        assert_eq!(story(native("filter", "forward", 0, &[statement])), Assessment::default(), "{statement}");
    }
}

#[test]
fn named_sets_and_maps_are_read_unless_they_change_by_themselves() {
    let tables = |flags: &str, rule: &str| {
        let json = format!(
            r#"{{"nftables":[{{"table":{{"family":"ip","name":"site"}}}},
            {{"set":{{"family":"ip","table":"site","name":"hosts","type":"ipv4_addr"{flags},
            "elem":["10.30.1.79",{{"elem":{{"val":"10.30.1.81","comment":"x"}}}}]}}}},
            {{"map":{{"family":"ip","table":"site","name":"doors","map":"verdict","elem":[
            [{{"concat":["10.30.1.79","tcp",3306]}},{{"drop":null}}],[{{"concat":["10.30.1.79","udp",53]}},{{"accept":null}}]]}}}},
            {{"chain":{{"family":"ip","table":"site","name":"chain","type":"filter","hook":"forward","prio":0,"policy":"accept"}}}},
            {{"rule":{{"family":"ip","table":"site","chain":"chain","handle":9,"expr":[{rule}]}}}}]}}"#
        );
        vec![nft::parse(&json, "ip", "site").unwrap()]
    };
    let field = |field: &str| format!(r#"{{"payload":{{"protocol":"ip","field":"{field}"}}}}"#);
    let hosts =
        |op: &str| format!(r#"{{"match":{{"op":"{op}","left":{},"right":"@hosts"}}}},{{"drop":null}}"#, field("daddr"));
    is_blocked(&story(tables("", &hosts("=="))), Reason::HostFirewallConflict, &["handle 9"]);
    is_blocked(&story(tables("", &hosts("!="))), Reason::HostFirewallConflict, &["handle 9"]);
    assert_eq!(story(tables(r#","flags":["dynamic"]"#, &hosts("=="))), Assessment::default());
    is_unclear(&story(tables(r#","flags":["timeout"]"#, &hosts("!="))), &["handle 9"]);
    let key = format!(
        r#"{{"concat":[{},{{"meta":{{"key":"l4proto"}}}},{{"payload":{{"protocol":"th","field":"dport"}}}}]}}"#,
        field("daddr")
    );
    let map = format!(r#"{{"vmap":{{"key":{key},"data":"@doors"}}}}"#);
    is_blocked(&story(tables("", &map)), Reason::HostFirewallConflict, &["handle 9"]);
    let one_of = |port: u16| {
        format!(
            r#"{{"match":{{"op":"==","left":{key},"right":
            {{"set":[{{"concat":["10.30.1.79","tcp",{port}]}},{{"concat":["10.30.1.70","tcp",1]}}]}}}}}},{{"drop":null}}"#
        )
    };
    is_blocked(&story(tables("", &one_of(3306))), Reason::HostFirewallConflict, &["handle 9"]);
    assert_eq!(story(tables("", &one_of(3307))), Assessment::default());
}

#[test]
fn what_a_rule_does_before_it_asks_is_done_to_all_who_got_so_far() {
    let match_port = |port: u16| {
        format!(r#"{{"match":{{"op":"==","left":{{"payload":{{"protocol":"tcp","field":"dport"}}}},"right":{port}}}}}"#)
    };
    let set = r#"{"mangle":{"key":{"ct":{"key":"mark"}},"value":7}}"#;
    let found = story(native("filter", "forward", 0, &[&format!("{set},{},{{\"accept\":null}}", match_port(1))]));
    is_blocked(&found, Reason::MarkOverwritten, &[]);
    let found = story(native("filter", "forward", 0, &[&format!("{},{set},{{\"accept\":null}}", match_port(1))]));
    assert_eq!(found, Assessment::default());
}
