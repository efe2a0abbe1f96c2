//! Whatever strings and numbers come in, from users or from a forged slice: no rule but ours, and no panic.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ipnet::IpNet;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use sallyport_api::forward_slice::SliceForward;
use sallyport_api::id::Moment;
use sallyport_api::intent::{Intent, IntentPort, IntentTarget};
use sallyport_api::port_forward::{Protocol, SourceNatMode};
use sallyport_api::testing::Forward;
use sallyport_policy::decide::Verdict;
use sallyport_policy::digest::{intent_hash, short_id};
use sallyport_ruleset::facts::NodeFacts;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{Holder, HostFirewall, assess, nft, xtables};

#[path = "support/compiled.rs"]
mod compiled;
#[path = "support/grammar.rs"]
mod grammar;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "../../policy/tests/support/scene.rs"]
mod scene;
#[path = "../../policy/tests/support/specs.rs"]
mod specs;

use compiled::{Compiled, compile};
use scene::Scene;
use specs::{LISTEN, forward, minimal, scene, spec};

/// Both the batch that installs and the batch that removes say nothing but what the grammar knows.
fn changes_are_clean(compiled: &Compiled) -> Result<(), TestCaseError> {
    grammar::changes_are_clean(&compiled.ruleset).map_err(TestCaseError::fail)
}

/// Strings that somebody might hope end up in a rule.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("10.30.1.79\n-A INPUT -j ACCEPT".to_owned()),
        Just("10.30.1.79; -j ACCEPT".to_owned()),
        Just("10.30.1.80/32\n".to_owned()),
        Just("10.30.1.80/32 -j ACCEPT".to_owned()),
        Just("\0".to_owned()),
        Just("p\0p".to_owned()),
        Just("１０.３０.１.７９".to_owned()),
        Just("пункт".to_owned()),
        Just("-j".to_owned()),
        Just("\"".to_owned()),
        Just("x".repeat(300)),
        "\\PC{0,300}",
        ".{0,40}",
        "[0-9a-f:./-]{0,45}",
    ]
}

/// What rules of iptables are made of.
const WORDS: [&str; 44] = [
    "raw",
    "\n",
    "*nat",
    "*filter",
    "*mangle",
    ":PREROUTING ACCEPT [0:0]",
    ":FORWARD DROP [0:0]",
    ":X - [0:0]",
    "-A PREROUTING",
    "-A FORWARD",
    "-A X",
    "-j X",
    "-g X",
    "-j SALLY-PRE",
    "-j SALLY-FWD",
    "-p tcp",
    "-m",
    "!",
    "-s",
    "10.30.1.80/32",
    "-d",
    "10.30.1.78",
    "--dport",
    "0:65535",
    "-j DNAT --to-destination",
    "10.30.1.79:3306",
    ":-",
    "-j CONNMARK --set-xmark",
    "0x1/0xffffffff",
    "--save-mark",
    "-j CT --notrack",
    "-j RETURN",
    "-j DROP",
    "-j ACCEPT",
    "--tcp-flags",
    "SYN,ACK SYN",
    "-i lo",
    "-o eth+",
    "--ctstate NEW,DNAT",
    "-m mark --mark 0/0",
    "\"",
    "--comment",
    "-j TTL --ttl-set 0",
    "-j NETMAP --to",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_string_of_a_user_reaches_a_rule(
        spec in spec(),
        text in hostile(),
        second in hostile(),
        place in 0..9_u8,
        at in any::<Index>(),
    ) {
        let mut spec = spec;
        let mut uid = "uid-0".to_owned();
        let mut key = forward(0, &spec).key;
        match place {
            0 => spec.pool.clone_from(&text),
            1 => spec.addresses.push(text.clone()),
            2 => at.get_mut(&mut spec.ports).name.clone_from(&text),
            3 => at.get_mut(&mut spec.sources.allow).cidr.clone_from(&text),
            4 => spec.sources.deny.push(sallyport_api::Source { cidr: text.clone() }),
            5 => at.get_mut(&mut spec.targets).name.clone_from(&text),
            6 => at.get_mut(&mut spec.targets).ip.clone_from(&text),
            7 => uid.clone_from(&text),
            _ => { key.name.clone_from(&text); key.namespace.clone_from(&second); }
        }
        let mut scene = scene(&[spec], &LISTEN);
        scene.forwards[0].uid = uid.into();
        scene.forwards[0].key = key;
        let decision = scene.decide();
        let compiled = Scene::compile(&decision, &scene.nodes[0]).unwrap();
        changes_are_clean(&compiled)?;
        for problem in decision.forwards.values().filter_map(|v| if let Verdict::Refused(p) = v { Some(p) } else { None }).flatten() {
            if place < 7 {
                prop_assert!(!problem.to_string().contains(['\n', '\0', '\r', '\u{1b}']), "{problem:?}");
            }
        }
    }

    #[test]
    fn whatever_others_print_is_read_and_followed_to_an_end(
        words in vec(select(&WORDS[..]), 0..60),
        text in hostile(),
        at in any::<Index>(),
    ) {
        let mut words: Vec<&str> = words;
        let place = at.index(words.len() + 1);
        words.insert(place, &text);
        let save = words.join(" ").replace(" \n ", "\n");
        let holder = Holder::Iptables { program: "iptables-nft", own: true };
        let mut tables = xtables::parse(&format!("*{save}\nCOMMIT\n"), Family::V4, holder);
        let expressions = format!(r#"[{{"match":{{"op":"==","left":{text:?},"right":{save:?}}}}},{{{text:?}:{save:?}}}]"#);
        let json = format!(
            r#"{{"nftables":[{{"table":{{"family":"ip","name":"x"}}}},{{"chain":{{"family":"ip","table":"x","name":"c",
            "type":"filter","hook":"forward","prio":0}}}},{{"rule":{{"family":"ip","table":"x","chain":"c",
            "expr":{expressions}}}}}]}}"#
        );
        tables.extend(nft::parse(&json, "ip", "x"));
        let scene = scene(&[minimal()], &LISTEN);
        let decision = scene.decide();
        let table = Scene::compile(&decision, &scene.nodes[0]).unwrap().table;
        let found = assess(&HostFirewall { tables, unread: Vec::new() }, &table, &|_| true, &|_| None);
        prop_assert!(!found.to_string().contains(char::is_control), "{found}");
    }

    #[test]
    fn no_slice_however_forged_becomes_a_wrong_rule(
        ports in vec((any::<bool>(), any::<u16>(), any::<u16>(), any::<u16>(), any::<bool>()), 0..4),
        allow in vec(any::<(u32, u8)>(), 0..4),
        targets in vec(any::<(u32, u16, bool)>(), 0..4),
        preserve in any::<bool>(),
        uid in hostile(),
        honest_hash in prop::bool::weighted(0.9),
    ) {
        let intent = Intent {
            ports: ports.iter().map(|(tcp, port, end_port, target_port, near)| IntentPort {
                protocol: if *tcp { Protocol::Tcp } else { Protocol::Udp },
                port: *port,
                end_port: if *near { port.saturating_add(end_port % 8) } else { *end_port },
                target_port: *target_port,
            }).collect(),
            allow: allow.iter().map(|(ip, len)| IpNet::new(std::net::Ipv4Addr::from(*ip).into(), len % 33).unwrap()).collect(),
            targets: targets.iter().map(|(ip, weight, near)| IntentTarget {
                ip: std::net::Ipv4Addr::from(if *near { 0x0a1e_0100 | (ip & 0xff) } else { *ip }).into(),
                weight: *weight,
            }).collect(),
            source_nat: if preserve { SourceNatMode::Preserve } else { SourceNatMode::Masquerade },
            ..Forward::tcp("payments/f0", 1).intent()
        };
        let hash = if honest_hash { intent_hash(&intent) } else { "v1:0".into() };
        let scene = scene(&[], &LISTEN);
        let key = forward(0, &minimal()).key;
        let forged = Arc::new(SliceForward { uid: uid.into(), r#ref: key.clone(), generation: 1, hash, intent });
        let compiled = compile(&scene.decide().nodes[&"gw1".into()], &[&forged], &NodeFacts::of(&scene.nodes[0].local_addresses(), Moment::default()));
        changes_are_clean(&compiled)?;
        let programmed = compiled.table.failures().next().is_none();
        prop_assert!(honest_hash || !programmed, "a hash that does not fit was taken");
        for (ip, _, near) in &targets {
            let loopback = !near && ip >> 24 == 127;
            let own = *near && [77, 78, 255].contains(&(ip & 0xff)) || loopback;
            prop_assert!(!(own && programmed), "{ip:x} was taken as a target");
        }
        for (_, port, end_port, target_port, near) in &ports {
            let bad = *port == 0 || *target_port == 0 || !near && end_port < port;
            prop_assert!(!(bad && programmed), "ports {port}-{end_port} to {target_port} were taken");
        }
    }
}

#[test]
fn chain_names_do_not_depend_on_what_a_uid_holds() {
    for uid in ["", "\n", "-j ACCEPT", "a", &"x".repeat(300)] {
        assert!(short_id(uid).len() == 16 && short_id(uid).bytes().all(|b| b.is_ascii_hexdigit()), "{uid}");
    }
}
