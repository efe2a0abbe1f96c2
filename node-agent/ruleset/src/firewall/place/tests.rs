//! Rules in the form in which firewalls write them, and what each is to packets of forwards.

use super::*;
use crate::firewall::xtables;

/// Chains of others, each with its rules.
const CHAINS: &[(&str, &[&str])] = &[
    ("EMPTY", &[]),
    ("DENIES", &["-s 10.30.1.80/32 -j DROP"]),
    ("DROPS", &["-j DROP"]),
    ("DOCKER-USER", &["-i eth0 ! -s 192.0.2.2/32 -j DROP", "-j RETURN"]),
    (
        "WHITELIST",
        &[
            "-s 10.30.1.0/24 -j ACCEPT",
            "-p tcp -m tcp --dport 80 -j RETURN",
            "-j REJECT --reject-with icmp-port-unreachable",
        ],
    ),
    ("CSF", &["-s 203.0.113.7/32 -j DROP", "-p tcp -m tcp --dport 80 -j ACCEPT", "-j DROP"]),
    ("RETURNS", &["-j RETURN", "-j DROP"]),
    (
        "STATEFUL",
        &["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-m conntrack --ctstate INVALID -j DROP", "-j DROP"],
    ),
    ("ACCEPTS-ALL-STATES", &["-m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT", "-j DROP"]),
    (
        "EXCEPTED",
        &[
            "-s 203.0.113.7/32 -j DROP",
            "-m conntrack --ctstate DNAT -m connmark --mark 0x10000000/0x10000000 -j ACCEPT",
            "-j DROP",
        ],
    ),
    ("NESTED", &["-j STATEFUL"]),
    ("NESTED-TWICE", &["-m conntrack --ctstate NEW -j NESTED", "-j RETURN"]),
    ("VIA-GOTO", &["-g DROPS", "-s 10.0.0.1/32 -j DROP"]),
    ("GOES-BACK", &["-g EMPTY", "-j DROP"]),
    ("CALICO", &["-i cali+ -j DROPS", "-o cali+ -j DROPS", "-m mark --mark 0x10000/0x10000 -j ACCEPT"]),
    (
        "KUBE-ROUTER",
        &[
            "-d 10.244.1.7/32 -m comment --comment \"rule to jump traffic\" -j POD",
            "-m mark --mark 0x20000/0x20000 -j ACCEPT",
        ],
    ),
    (
        "POD",
        &[
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable",
        ],
    ),
    (
        "KUBE-FORWARD",
        &[
            "-m conntrack --ctstate INVALID -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP",
            "-m mark --mark 0x4000/0x4000 -j ACCEPT",
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ],
    ),
    ("LOOP", &["-j LOOP"]),
];

fn chains(forward: &[&str]) -> BTreeMap<String, Vec<FirewallRule>> {
    let parsed = |rules: &[&str]| rules.iter().map(|rule| xtables::rule(rule)).collect::<Vec<_>>();
    let others = CHAINS.iter().map(|(name, rules)| ((*name).to_owned(), parsed(rules)));
    others.chain([("FORWARD".to_owned(), parsed(forward))]).collect()
}

#[test]
fn what_a_rule_is_to_forwards_is_known_by_its_whole_way_to_a_drop() {
    use Class::{Default, Explicit, Harmless, Mixed};
    let rows = [
        (Harmless, "-j ACCEPT"),
        (Harmless, "-m conntrack --ctstate INVALID -j DROP"),
        (Harmless, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        (Harmless, "-m conntrack ! --ctstate DNAT -j DROP"),
        (Harmless, "-m connmark --mark 0x0/0x10000000 -j DROP"),
        (Harmless, "-p sctp -j DROP"),
        (Harmless, "-m limit --limit 3/min -j LOG"),
        (Harmless, "-j EMPTY"),
        (Harmless, "-j RETURNS"),
        (Harmless, "-j ACCEPTS-ALL-STATES"),
        (Harmless, "-j GOES-BACK"),
        (Harmless, "-j KUBE-FORWARD"),
        (Harmless, "-j LOOP"),
        (Harmless, "-j SALLY-FWD"),
        (Default, "-j DROP"),
        (Default, "-j REJECT --reject-with icmp-host-prohibited"),
        (Default, "-m comment --comment \"drop the rest\" -j DROP"),
        (Default, "-m conntrack --ctstate NEW -j DROP"),
        (Default, "-m conntrack --ctstate INVALID,NEW -j DROP"),
        (Default, "-m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP"),
        (Default, "-m state ! --state RELATED,ESTABLISHED -j REJECT --reject-with icmp-port-unreachable"),
        (Default, "-j RETURN"),
        (Default, "-g EMPTY"),
        (Default, "-j DROPS"),
        (Default, "-j WHITELIST"),
        (Default, "-j STATEFUL"),
        (Default, "-j NESTED-TWICE"),
        (Default, "-j VIA-GOTO"),
        (Explicit, "-s 10.30.1.80/32 -j DROP"),
        (Explicit, "-p icmp -j DROP"),
        (Explicit, "-i eth0 -j DROPS"),
        (Explicit, "-p tcp -j WHITELIST"),
        (Explicit, "-j DENIES"),
        (Explicit, "-j DOCKER-USER"),
        (Explicit, "-m set --match-set crowdsec-blacklists src -j DROP"),
        (Explicit, "-m conntrack --ctstate ESTABLISHED -j DROP"),
        (Explicit, "-m conntrack --ctstate DNAT -j DROP"),
        (Explicit, "-m limit --limit 9/sec -j DROP"),
        (Explicit, "-m geoip --source-country XX -j DROP"),
        (Explicit, "-s 10.0.0.0/8 -j RETURN"),
        (Explicit, "-j NFQUEUE --queue-num 1"),
        (Explicit, "-j CALICO"),
        (Explicit, "-j KUBE-ROUTER"),
        (Explicit, "-j EXCEPTED"),
        (Mixed, "-j CSF"),
        (Mixed, "-g DENIES"),
        (Mixed, "-m conntrack --ctstate NEW -j CSF"),
    ];
    for (class, text) in rows {
        let chains = chains(&[text]);
        assert_eq!(Forward::new(Family::V4, &chains).class(&chains["FORWARD"][0]), class, "{text}");
    }
}

#[test]
fn what_names_addresses_of_the_other_family_is_harmless() {
    let chains = chains(&["-s 10.30.1.80/32 -j DROP", "-p icmp -j DROP", "-p ipv6-icmp -j DROP", "-j DROP"]);
    let classes =
        |family| chains["FORWARD"].iter().map(|rule| Forward::new(family, &chains).class(rule)).collect::<Vec<_>>();
    assert_eq!(classes(Family::V6)[0], Class::Harmless);
    assert_eq!(classes(Family::V6)[2..], [Class::Explicit, Class::Default]);
    assert_eq!(classes(Family::V4)[1], Class::Explicit);
}

#[test]
fn ours_belongs_before_the_first_default_and_never_before_what_is_denied_by_name() {
    for (place, rules) in [
        (None, &[][..]),
        (None, &["-j DOCKER-USER", "-o docker0 -j ACCEPT", "-j CSF"]),
        (Some(0), &["-j REJECT --reject-with icmp-host-prohibited"]),
        (Some(1), &["-j DOCKER-USER", "-j DROP", "-s 10.0.0.1/32 -j DROP"]),
        (Some(2), &["-j CSF", "-j KUBE-FORWARD", "-m conntrack --ctstate NEW -j DROP"]),
        (
            Some(3),
            &["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-i lo -j ACCEPT", "-j DENIES", "-j WHITELIST"],
        ),
    ] {
        let chains = chains(rules);
        assert_eq!(Forward::new(Family::V4, &chains).place(&chains["FORWARD"]), place, "{rules:?}");
    }
}

#[test]
fn the_rule_that_drops_what_nobody_named_is_found_in_whatever_chain() {
    for (rules, spots) in [
        (&["-j CSF"][..], &[("CSF", 2)][..]),
        (&["-j DOCKER-USER", "-j NESTED-TWICE"], &[("STATEFUL", 2)]),
        (&["-i eth0 -j DROPS"], &[]),
        (&["-m conntrack --ctstate NEW -j DROP", "-j DROPS"], &[("DROPS", 0), ("FORWARD", 0)]),
    ] {
        let chains = chains(rules);
        assert_eq!(Forward::new(Family::V4, &chains).defaults("FORWARD"), spots, "{rules:?}");
    }
}
