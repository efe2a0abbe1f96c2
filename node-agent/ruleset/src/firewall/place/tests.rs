//! Rules in the form in which firewalls write them, and what each is to packets of forwards.

use proptest::collection::vec;
use proptest::prelude::*;

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
    ("SOME-RETURN", &["-s 10.30.1.0/24 -j RETURN", "-j ACCEPT"]),
    ("AFTER-SOME", &["-j SOME-RETURN", "-j DROP"]),
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
        (Default, "-j AFTER-SOME"),
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

/// Conditions of rules: what they ask, whether of packets of forwards nobody can tell if they have it, and in which states.
const ASKS: [(&str, bool, [bool; 3]); 5] = [
    ("", false, [true; 3]),
    ("-s 10.9.0.0/16 ", true, [true; 3]),
    ("-m conntrack --ctstate NEW ", false, [true, false, false]),
    ("-m conntrack --ctstate RELATED,ESTABLISHED ", false, [false, true, true]),
    ("-m conntrack --ctstate INVALID ", false, [false; 3]),
];
/// Verdicts; of the chains only those that come later are led to.
const VERDICTS: [&str; 9] = ["-j DROP", "-j ACCEPT", "-j RETURN", "-j A", "-j B", "-j C", "-g A", "-g B", "-g C"];
const NAMES: [&str; 4] = ["FORWARD", "A", "B", "C"];

/// A rule by its condition and its verdict.
type Drawn = (usize, usize);

/// The rules of each chain, of which `FORWARD` has one.
fn drawn() -> impl Strategy<Value = Vec<Vec<Drawn>>> {
    let rule = (0..ASKS.len(), 0..VERDICTS.len());
    let chain = |number: usize, rules: std::ops::Range<usize>| {
        let leads_on = move |verdict: usize| match verdict {
            0..3 => verdict,
            // Chains lead to later ones alone, as the kernel lets none lead to itself.
            _ if (verdict - 3) % 3 + 1 > number => verdict,
            _ => verdict % 3,
        };
        vec(rule.clone(), rules).prop_map(move |rules| {
            rules.into_iter().map(|(asks, verdict)| (asks, leads_on(verdict))).collect::<Vec<_>>()
        })
    };
    (chain(0, 1..2), chain(1, 0..4), chain(2, 0..4), chain(3, 0..4)).prop_map(|(f, a, b, c)| vec![f, a, b, c])
}

/// One packet on its way: in which state it is, and which of the rules that ask what nobody can tell it meets.
struct Traveller<'a> {
    drawn: &'a [Vec<Drawn>],
    state: usize,
    meets: u32,
    /// Whether it was dropped, and whether by name.
    dropped: Option<bool>,
}

impl Traveller<'_> {
    /// Whether it comes back from `chain`.
    fn comes_back(&mut self, chain: usize, named: bool, base: bool) -> bool {
        for (number, (asks, verdict)) in self.drawn[chain].iter().enumerate() {
            let (text, unknown, states) = ASKS[*asks];
            let bit = self.drawn[..chain].iter().map(Vec::len).sum::<usize>() + number;
            if !states[self.state] || (unknown && self.meets & (1 << bit) == 0) {
                continue;
            }
            // Asking for later packets alone names them, too.
            let named = named || unknown || text.contains("RELATED");
            let dropped = match *verdict {
                0 => true,
                1 => return false,
                2 if base => true,
                2 => return true,
                to if to < 6 => {
                    if !self.comes_back(to - 2, named, false) {
                        return false;
                    }
                    continue;
                }
                to => {
                    if !self.comes_back(to - 5, named, base) {
                        return false;
                    }
                    if !base {
                        return true;
                    }
                    true
                }
            };
            if dropped {
                self.dropped = Some(named);
                return false;
            }
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_class_is_what_becomes_of_each_packet_that_there_could_be(drawn in drawn()) {
        let text = |(asks, verdict): &Drawn| xtables::rule(&format!("{}{}", ASKS[*asks].0, VERDICTS[*verdict]));
        let named = NAMES.iter().zip(&drawn).map(|(name, rules)| ((*name).to_owned(), rules.iter().map(text).collect()));
        let chains: BTreeMap<String, Vec<FirewallRule>> = named.collect();
        let rules: usize = drawn.iter().map(Vec::len).sum();
        let (mut by_default, mut by_name) = (false, false);
        for (state, meets) in (0..3).flat_map(|state| (0..1_u32 << rules).map(move |meets| (state, meets))) {
            let mut packet = Traveller { drawn: &drawn, state, meets, dropped: None };
            packet.comes_back(0, false, true);
            by_default |= packet.dropped == Some(false);
            by_name |= packet.dropped == Some(true);
        }
        let expected = match (by_default, by_name) {
            (false, false) => Class::Harmless,
            (true, false) => Class::Default,
            (false, true) => Class::Explicit,
            (true, true) => Class::Mixed,
        };
        let forward = Forward::new(Family::V4, &chains);
        prop_assert_eq!(forward.class(&chains["FORWARD"][0]), expected, "{:#?}", chains);
        prop_assert_eq!(forward.place(&chains["FORWARD"]), (expected == Class::Default).then_some(0));
    }
}
