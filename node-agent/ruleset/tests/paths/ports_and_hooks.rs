//! What is about some ports of a forward, some interfaces, or one hook alone.

use sallyport_ruleset::firewall::Paths;

use super::*;

/// A forward of ports 3306 to 3315, which the target has as 13306 to 13315.
fn range() -> String {
    forward("10.30.1.80/32", "").replace("port: 3306 }", "port: 3306, endPort: 3315, targetPort: 13306 }")
}

#[test]
fn every_port_of_a_range_is_looked_at_by_itself() {
    for (table, jump, rule, reason, words) in [
        (
            "nat",
            "PREROUTING -j SALLY-PRE",
            "PREROUTING -p tcp -m tcp --dport 3310 -j REDIRECT --to-ports 1",
            Reason::Diverted,
            "port 3310 are",
        ),
        (
            "filter",
            "FORWARD -j SALLY-FWD",
            "FORWARD -p tcp -m tcp --dport 13310:13311 -j DROP",
            Reason::HostFirewallConflict,
            "ports 3310 to 3311 are",
        ),
        (
            "filter",
            "FORWARD -j SALLY-FWD",
            "FORWARD -p tcp -m tcp --sport 13315 -j DROP",
            Reason::HostFirewallConflict,
            "port 3315 are",
        ),
        (
            "filter",
            "FORWARD -j SALLY-FWD",
            "FORWARD -p tcp -m tcp ! --dport 13306 -j DROP",
            Reason::HostFirewallConflict,
            "ports 3307 to 3315 are",
        ),
        (
            "raw",
            "PREROUTING -p udp -j ACCEPT",
            "PREROUTING -p tcp -m multiport --dports 80,3306,4000:5000 -j DROP",
            Reason::HostFirewallConflict,
            "port 3306 are",
        ),
    ] {
        let found = found(&range(), own(table, &format!("-A {rule}\n-A {jump}")));
        is_blocked(&found, reason, &[]);
        let said = &found.blocked[0].message;
        assert!(said.contains(&format!("packets of its clients 10.30.1.80/32 to 10.30.1.78 {words}")), "{said}");
    }
    for rule in ["--dport 3310", "--dport 13316", "--sport 3306"] {
        let rule = format!("-A FORWARD -p tcp -m tcp {rule} -j DROP\n-A FORWARD -j SALLY-FWD");
        assert_eq!(found(&range(), own("filter", &rule)), Assessment::default(), "{rule}");
    }
    // More borders than are looked at: the last ports are together, and the first still by themselves.
    let many: String =
        (3307..=3800).step_by(2).map(|port| format!("-A PREROUTING -p tcp -m tcp --dport {port} -j DROP\n")).collect();
    let wide = forward("10.30.1.80/32", "").replace("port: 3306 }", "port: 3306, endPort: 3805 }");
    is_blocked(&found(&wide, own("raw", &many)), Reason::HostFirewallConflict, &["--dport 3307 -j DROP"]);
}

#[test]
fn who_keeps_our_rules_from_hiding_clients_spoils_only_what_asks_for_that() {
    for rule in ["-A POSTROUTING -d 10.30.1.0/24 -j ACCEPT", "-A POSTROUTING -o eth0 -j RETURN"] {
        let before = || own("nat", &format!("{rule}\n-A POSTROUTING -j SALLY-POST"));
        let words = ["sourceNAT Masquerade is to hide", rule.strip_prefix("-A ").unwrap()];
        is_blocked(&story(before()), Reason::HostFirewallConflict, &words);
        let preserve = forward("192.0.2.0/24", "  sourceNAT: { mode: Preserve }\n");
        assert_eq!(found(&preserve, before()), Assessment::default());
        assert_eq!(story(own("nat", &format!("-A POSTROUTING -j SALLY-POST\n{rule}"))), Assessment::default());
    }
    // Of another base chain it is nobody's business: all of them are asked.
    let accept = r#"{"accept":null}"#;
    assert_eq!(story(native("nat", "postrouting", 90, &[accept])), Assessment::default());
}

#[test]
fn chains_at_ingress_are_about_packets_of_their_own_interfaces() {
    let drop =
        r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":3306}},{"drop":null}"#;
    let at_ingress = |device: &str, policy: &str, rule: &str| {
        let json = format!(
            r#"{{"nftables":[{{"table":{{"family":"inet","name":"site"}}}},{{"chain":{{"family":"inet","table":"site",
            "name":"early","type":"filter","hook":"ingress","prio":0,"policy":"{policy}"{device}}}}},
            {{"rule":{{"family":"inet","table":"site","chain":"early","handle":1,"expr":[{rule}]}}}}]}}"#
        );
        vec![nft::parse(&json, "inet", "site").unwrap()]
    };
    let on = |devices: &str| format!(r#","dev":{devices}"#);
    let words =
        ["table inet site, chain early (hook ingress", "early handle 1", "ip daddr 10.30.1.78 tcp dport 3306 accept"];
    for devices in [r#""eth0""#, r#"["eth1","eth0"]"#] {
        is_blocked(&story(at_ingress(&on(devices), "accept", drop)), Reason::HostFirewallConflict, &words);
    }
    assert_eq!(story(at_ingress(&on(r#""eth1""#), "drop", drop)), Assessment::default());
    is_unclear(&story(at_ingress("", "accept", drop)), &["may be dropped"]);
    let other = drop.replace("3306", "22");
    assert_eq!(story(at_ingress("", "accept", &other)), Assessment::default());
    is_unclear(&story(at_ingress("", "drop", &other)), &["may be dropped", "policy drop"]);
}

#[test]
fn other_routes_matter_where_a_rule_asks_for_an_interface() {
    let elsewhere = |_: IpNet| Some("wg0".to_owned());
    for (rule, matters) in [("-A FORWARD -i wg0 -j DROP", true), ("-A FORWARD -s 192.0.2.1/32 -j DROP", false)] {
        let scene = Scene::parse(&format!("---{}\n---{POOL}", forward("10.30.1.80/32", "")), NODE);
        let table = Scene::compile(&scene.decide(), &scene.nodes[0]).unwrap().table;
        let firewall =
            HostFirewall { tables: own("filter", &format!("{rule}\n-A FORWARD -j SALLY-FWD")), unread: Vec::new() };
        let mut paths = Paths::default();
        assert_eq!(paths.assess(&firewall, &table, &|_| true, &interface), Assessment::default());
        assert!(!paths.lead_elsewhere(&interface));
        assert_eq!(paths.lead_elsewhere(&elsewhere), matters, "{rule}");
        let found = paths.assess(&firewall, &table, &|_| true, &elsewhere);
        assert_eq!(found.blocked.len(), usize::from(matters));
    }
}

#[test]
fn fragments_are_not_what_forwarded_packets_are_told_by() {
    let fragments = r#"{"match":{"op":"!=","left":{"&":[{"payload":{"protocol":"ip","field":"frag-off"}},8191]},"right":0}},{"drop":null}"#;
    assert_eq!(story(native("filter", "forward", 0, &[fragments])), Assessment::default());
}

#[test]
fn an_element_of_a_verdict_map_may_have_a_comment_and_a_counter() {
    let map = |key: &str| {
        let left = r#"{"payload":{"protocol":"ip","field":"saddr"}}"#;
        let others = r#"["10.30.1.81",{"accept":null}]"#;
        format!(r#"{{"vmap":{{"key":{left},"data":{{"set":[[{key},{{"drop":null}}],{others}]}}}}}}"#)
    };
    for told in [r#""comment":"bad host""#, r#""counter":{"packets":1,"bytes":60}"#] {
        let key = |ip: &str| format!(r#"{{"elem":{{"val":"{ip}",{told}}}}}"#);
        let found = story(native("filter", "forward", 0, &[&map(&key("10.30.1.80"))]));
        is_blocked(&found, Reason::HostFirewallConflict, &["handle 1"]);
        assert_eq!(story(native("filter", "forward", 0, &[&map(&key("10.30.1.82"))])), Assessment::default());
    }
    is_blocked(&story(native("filter", "forward", 0, &[&map(r#""*""#)])), Reason::HostFirewallConflict, &["handle 1"]);
}

#[test]
fn a_jump_to_a_chain_that_does_nothing_has_done_what_stands_before_it() {
    let set = r#"{"mangle":{"key":{"ct":{"key":"mark"}},"value":7}}"#;
    let rule = |chain: &str, expr: &str| {
        format!(r#"{{"rule":{{"family":"ip","table":"site","chain":"{chain}","handle":9,"expr":[{expr}]}}}}"#)
    };
    let json = |jump: &str, named: &str, body: &str| {
        format!(
            r#"{{"nftables":[{{"table":{{"family":"ip","name":"site"}}}},
            {{"chain":{{"family":"ip","table":"site","name":"chain","type":"filter","hook":"forward","prio":-10,"policy":"accept"}}}},
            {{"chain":{{"family":"ip","table":"site","name":"{named}"}}}},{},{}]}}"#,
            rule("chain", jump),
            rule(named, body)
        )
    };
    let table = |json: String| vec![nft::parse(&json, "ip", "site").unwrap()];
    let counts = json(&format!(r#"{set},{{"jump":{{"target":"logit"}}}}"#), "logit", r#"{"counter":null}"#);
    is_blocked(&story(table(counts)), Reason::MarkOverwritten, &[]);
    // In a table of somebody else a chain of such a name is his.
    let named = json(r#"{"jump":{"target":"SALLY-X"}}"#, "SALLY-X", r#"{"drop":null}"#);
    is_blocked(&story(table(named)), Reason::HostFirewallConflict, &["handle 9"]);
}

#[test]
fn a_rule_may_name_what_a_connection_was_before_it_was_translated() {
    let dropped = |asks: &str| {
        let rules = format!("-A FORWARD -j DOCKER-USER\n-A FORWARD -j SALLY-FWD\n-A DOCKER-USER {asks} -j DROP");
        story(own("filter", &rules))
    };
    for asks in [
        "-p tcp -m conntrack --ctorigdst 10.30.1.78 --ctorigdstport 3306",
        "-m conntrack --ctorigsrc 10.30.1.0/24 --ctdir REPLY",
        "-m conntrack ! --ctorigdst 10.30.1.77 --ctproto 6",
        "-p tcp -m multiport --ports 80,3306",
    ] {
        is_blocked(&dropped(asks), Reason::HostFirewallConflict, &["`-A DOCKER-USER "]);
    }
    for asks in [
        "-p tcp -m conntrack --ctorigdst 10.30.1.78 --ctorigdstport 8080",
        "-p tcp -m conntrack --ctorigdst 10.30.1.77 --ctorigdstport 3306",
        "-m conntrack --ctorigsrc 10.30.2.0/24",
        "-m conntrack --ctproto 17",
        "-p tcp -m multiport --ports 80,8080",
    ] {
        assert_eq!(dropped(asks), Assessment::default(), "{asks}");
    }
    // Of a range the port that is named alone.
    let rules = "-A FORWARD -j DOCKER-USER\n-A FORWARD -j SALLY-FWD\n-A DOCKER-USER -p tcp -m conntrack --ctorigdstport 3310 -j DROP";
    is_blocked(&found(&range(), own("filter", rules)), Reason::HostFirewallConflict, &["port 3310"]);
    // Before connection tracking nothing is known of a connection.
    let raw = "-A PREROUTING -p tcp -m conntrack --ctorigdstport 3306 -j DROP";
    assert_eq!(story(own("raw", raw)), Assessment::default());
}
