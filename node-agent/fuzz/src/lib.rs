//! What is checked of every input: no panic, no rule but ours, nobody else's rule touched. The fuzz targets call it with
//! what libFuzzer finds; a test calls it with the seeds and with what mutations make of them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a finding is a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::LazyLock;

use sallyport_api::id::Moment;
use sallyport_node_agent::manifest::{self, Object};
use sallyport_node_agent::source::local::{Decided, decide_here};
use sallyport_ruleset::facts::{LocalAddress, NodeFacts};
use sallyport_ruleset::family::Family;
use sallyport_ruleset::firewall::{Holder, HostFirewall, Paths, nft, xtables};
use sallyport_ruleset::iptables::installed::{Installed, InstalledRuleset};
use sallyport_ruleset::iptables::layout::lower;
use sallyport_ruleset::iptables::plan::plan;
use sallyport_ruleset::iptables::restore::restore;
use sallyport_ruleset::iptables::rule::{Ruleset, Table};
use sallyport_ruleset::iptables::shadow::Packets;
use sallyport_ruleset::table::ForwardingTable;

#[path = "../../ruleset/tests/support/grammar.rs"]
mod grammar;
#[path = "../../ruleset/tests/support/kernel.rs"]
mod kernel;

/// What the gateway has on its interfaces.
const LOCAL: [(&str, u8); 4] = [("127.0.0.1", 8), ("10.30.1.78", 23), ("::1", 128), ("fd00:30::78", 64)];
/// Some time in 2026.
const NOW: Moment = Moment(1_767_225_600);
/// Jumps of ours in chains of others.
const HOOKS: [(&str, &str); 5] = [
    ("FORWARD", "SALLY-FWD"),
    ("PREROUTING", "SALLY-PRE"),
    ("OUTPUT", "SALLY-PRE"),
    ("POSTROUTING", "SALLY-POST"),
    ("INPUT", "SALLY-IN"),
];

/// The text of a manifest file: read, decided upon, lowered to rules, and rendered.
pub fn manifests(mut data: &[u8]) {
    let mut objects = BTreeMap::new();
    for outcome in manifest::read(&mut data) {
        match outcome {
            Ok(object) => drop(objects.insert(object.identity(), object)),
            Err(problems) => {
                for problem in &problems {
                    is_one_line(&problem.message);
                }
            }
        }
    }
    let ruleset = ruleset(&objects.values().collect::<Vec<_>>());
    grammar::changes_are_clean(&ruleset).unwrap();
    for rule in [&ruleset.v4, &ruleset.v6].into_iter().flat_map(|rules| rules.nat.values().flatten()) {
        targets_another_host(rule.as_str());
    }
}

/// The rules of a lone gateway with these objects.
fn ruleset(objects: &[&Object]) -> Ruleset {
    forwarding(objects, lower)
}

/// What `work` makes of what a lone gateway forwards with these objects.
fn forwarding<T>(objects: &[&Object], work: impl FnOnce(&ForwardingTable) -> T) -> T {
    let objects: Vec<(&str, &Object)> = objects.iter().map(|object| ("file.yaml", *object)).collect();
    let local = LOCAL.map(|(ip, prefix_len)| {
        let ip: IpAddr = ip.parse().unwrap();
        LocalAddress { ip, prefix_len, global: !ip.is_loopback() }
    });
    let listen = local.iter().filter(|own| own.global).map(|own| own.ip).collect();
    let (held, first_seen) = (BTreeMap::new(), BTreeMap::new());
    let Decided { intents, problems, .. } = decide_here(&objects, "gw1", listen, &held, None, &first_seen, NOW);
    for problem in &problems {
        is_one_line(&problem.message);
    }
    work(&ForwardingTable::new(&intents.node, intents.forwards(), &NodeFacts::of(&local, NOW)))
}

/// Written apart from the table of what is refused.
fn targets_another_host(rule: &str) {
    let Some((_, target)) = rule.split_once("--to-destination ") else { return };
    let ip =
        target.parse::<IpAddr>().or_else(|_| target.parse().map(|socket: std::net::SocketAddr| socket.ip())).unwrap();
    assert!(!(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()), "{rule}");
    assert!(!LOCAL.iter().any(|(own, _)| own.parse() == Ok(ip)), "{rule}");
    match ip {
        IpAddr::V4(ip) => assert!(!(ip.is_link_local() || ip.is_broadcast()), "{rule}"),
        IpAddr::V6(ip) => assert!(!ip.is_unicast_link_local() && ip.to_ipv4_mapped().is_none(), "{rule}"),
    }
}

fn is_one_line(message: &str) {
    assert!(!message.chars().any(char::is_control) && message.len() < 4096, "{message:?}");
}

/// What `iptables-save` may have printed, and what is planned to make it `nothing` or some rules of ours.
pub fn save(data: &[u8]) {
    static SOME: LazyLock<Ruleset> = LazyLock::new(|| {
        let mut text = include_str!("../seeds/manifests/several.yaml").as_bytes();
        let objects: Vec<Object> = manifest::read(&mut text).into_iter().map(|outcome| outcome.unwrap()).collect();
        ruleset(&objects.iter().collect::<Vec<_>>())
    });
    assert!(!SOME.v4.is_empty() && !SOME.v6.is_empty());
    let text = String::from_utf8_lossy(data);
    let installed =
        InstalledRuleset { v4: Installed::parse(&text), v6: Installed::parse(&text), ..InstalledRuleset::default() };
    for desired in [&SOME, &Ruleset::default()] {
        for yield_place in [false, true] {
            let mut ops = plan(desired, &Packets::default(), &installed);
            ops.retain(|op| !(yield_place && op.is_move()));
            for family in Family::BOTH {
                only_ours_is_changed(&restore(&ops, family).unwrap_or_default(), desired, &installed, family);
            }
            let equal = installed.ours() == *desired;
            assert_eq!(installed.digest() == desired.digest(), equal, "digests and rules disagree");
        }
    }
}

/// What `iptables-save` or `nft --json` may have printed of others, and what is said of the forwards beside it.
pub fn firewall(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut tables = Vec::new();
    for name in ["site", "filter"] {
        tables.extend(["inet", "ip"].into_iter().filter_map(|family| nft::parse(&text, family, name).ok()));
    }
    for (program, own) in [("iptables-nft", true), ("iptables-legacy", false)] {
        tables.extend(xtables::parse(&text, Family::V4, Holder::Iptables { program, own }));
    }
    let firewall = HostFirewall { tables, unread: Vec::new() };
    let mut text = include_str!("../seeds/manifests/several.yaml").as_bytes();
    let objects: Vec<Object> = manifest::read(&mut text).into_iter().map(|outcome| outcome.unwrap()).collect();
    for objects in [objects.iter().collect::<Vec<_>>(), Vec::new()] {
        forwarding(&objects, |table| {
            let mut paths = Paths::default();
            let first = paths.assess(&firewall, table, &|_| true, &|_| Some("eth0".to_owned()));
            for said in [first.to_string()].iter().chain(first.blocked.iter().map(|failure| &failure.message)) {
                assert!(!said.chars().any(char::is_control), "{said:?}");
            }
            let again = paths.assess(&firewall, table, &|_| true, &|_| Some("eth0".to_owned()));
            assert_eq!(first, again, "what is remembered is something else");
        });
    }
}

/// Each line is a rule that is wanted, a chain of ours, or a jump of ours.
fn only_ours_is_changed(text: &str, desired: &Ruleset, installed: &InstalledRuleset, family: Family) {
    let mut table = Table::Nat;
    for line in text.split('\n').filter(|line| !line.is_empty()) {
        let wanted = desired.family(family).table(table);
        let there = &installed.family(family).table(table).ours;
        let known: BTreeSet<&String> = wanted.keys().chain(there.keys()).collect();
        assert!(known.iter().all(|name| name.starts_with("SALLY-")), "{known:?}");
        let ours = if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name).unwrap();
            true
        } else if let Some(declared) = line.strip_prefix(':') {
            known.iter().any(|name| declared.strip_suffix(" - [0:0]") == Some(name))
        } else if let Some(name) = line.strip_prefix("-X ") {
            known.iter().any(|known| *known == name)
        } else if let Some((name, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
            wanted.get(name).is_some_and(|rules| rules.iter().any(|wanted| wanted.as_str() == rule))
                || line == "-A FORWARD -j SALLY-FWD"
        } else {
            // The first place, but for `FORWARD`, where it may be any.
            let placed = |chain: &str, to: &str| {
                let number = line.strip_prefix("-I ").and_then(|rest| rest.strip_prefix(chain)?.strip_suffix(to));
                let number = number.and_then(|rest| rest.strip_prefix(' ')?.strip_suffix(" -j ")?.parse().ok());
                number.is_some_and(|number: usize| number == 1 || (number > 1 && chain == "FORWARD"))
            };
            let jump = |(chain, to): &(&str, &str)| placed(chain, to) || line == format!("-D {chain} -j {to}");
            line == "COMMIT" || HOOKS.iter().any(jump)
        };
        assert!(ours, "{line:?} in\n{text}");
    }
}
