//! Where our jumps are put, and when they are left where they are.

use super::*;
use crate::iptables::installed::Installed;
use crate::iptables::shadow::tests::packets;

const OURS: &str = "-j SALLY-FWD";
const CHAINS: &str =
    "-A DENIES -s 10.30.1.80/32 -j DROP\n-A DROPS -j DROP\n-A BOTH -s 10.30.1.80/32 -j DROP\n-A BOTH -j DROP\n";

/// What is wrong with our jumps among `rules` of `FORWARD`: where they belong, and why the one that is there does not.
fn correction(order: FirewallOrder, rules: &[&str]) -> Option<(Option<usize>, Option<String>)> {
    let rules: String = rules.iter().map(|rule| format!("-A FORWARD {rule}\n")).collect();
    let save = format!("*filter\n:FORWARD ACCEPT [0:0]\n:SALLY-FWD - [0:0]\n{CHAINS}{rules}COMMIT\n");
    let (there, mut packets) = (Installed::parse(&save), packets());
    packets.order = order;
    let places = Places { packets: &packets, family: Family::V4, table: Table::Filter, there: &there.filter };
    places.correction("FORWARD", "SALLY-FWD").map(|found| (found.before, found.misplaced))
}

#[test]
fn a_jump_that_is_missing_is_put_before_the_first_default_or_last() {
    for (before, rules) in [
        (None, &[][..]),
        (None, &["-j DENIES", "-j BOTH"]),
        (Some(0), &["-j DROPS"]),
        (Some(0), &["-j REJECT --reject-with icmp-host-prohibited"]),
        (Some(1), &["-j DENIES", "-j DROPS", "-j DENIES"]),
    ] {
        assert_eq!(correction(FirewallOrder::AfterDenies, rules), Some((before, None)), "{rules:?}");
        assert_eq!(correction(FirewallOrder::First, rules), Some((Some(0), None)), "{rules:?}");
    }
    let twice = ["-j DENIES", OURS, "-j DROPS", OURS];
    assert_eq!(correction(FirewallOrder::AfterDenies, &twice), Some((Some(1), None)));
}

#[test]
fn a_jump_with_no_default_before_it_is_in_place_whatever_the_order_of_all_others_is() {
    for rules in [
        &[OURS][..],
        &[OURS, "-j DROPS", "-j DENIES"],
        &["-j DENIES", OURS, "-j DROPS"],
        &["-j DENIES", OURS, "-j DENIES", "-j BOTH"],
        &["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", OURS, "-j DENIES"],
        &["-j BOTH", OURS],
        &[OURS, "-m conntrack --ctstate INVALID -j DROP"],
    ] {
        assert_eq!(correction(FirewallOrder::AfterDenies, rules), None, "{rules:?}");
    }
}

#[test]
fn a_jump_behind_a_default_or_first_of_all_before_a_deny_is_moved_and_says_for_which_rule() {
    let taken = "a rule before ours would take our packets: ";
    let wins = "ours stands before a rule that is to win: ";
    for (before, why, rule, rules) in [
        (Some(0), taken, "-j DROPS", &["-j DROPS", OURS][..]),
        (
            Some(1),
            taken,
            "-m conntrack --ctstate NEW -j DROP",
            &["-j DENIES", "-m conntrack --ctstate NEW -j DROP", "-i lo -j ACCEPT", OURS],
        ),
        (None, wins, "-j DENIES", &[OURS, "-j DENIES"]),
        (None, wins, "-j BOTH", &[OURS, "-i lo -j ACCEPT", "-j BOTH"]),
        (Some(1), wins, "-j DENIES", &[OURS, "-j DENIES", "-j DROPS"]),
    ] {
        let said = Some((before, Some(format!("{why}{rule}"))));
        assert_eq!(correction(FirewallOrder::AfterDenies, rules), said, "{rules:?}");
    }
}

#[test]
fn where_forwards_are_to_win_only_what_takes_from_them_moves_the_jump() {
    let denied = correction(FirewallOrder::First, &["-j DENIES", OURS]).unwrap();
    assert_eq!(denied, (Some(0), Some("a rule before ours would take our packets: -j DENIES".to_owned())));
    for rules in [&[OURS, "-j DENIES"][..], &["-j ACCEPT", OURS], &["-m conntrack --ctstate INVALID -j DROP", OURS]] {
        assert_eq!(correction(FirewallOrder::First, rules), None, "{rules:?}");
    }
}

#[test]
fn a_first_rule_that_drops_everything_above_our_jump_is_an_emergency_stop_and_stays_there() {
    for stop in ["-j DROP", "-j REJECT --reject-with icmp-port-unreachable", "-m comment --comment stop -j DROP"] {
        for order in [FirewallOrder::AfterDenies, FirewallOrder::First] {
            assert_eq!(correction(order, &[stop, OURS]), None, "{stop}");
            assert_eq!(correction(order, &[stop, OURS, "-j DENIES"]), None, "{stop}");
            // Below it everything is as it would be without it.
            let below = correction(order, &[stop, "-j DROPS", OURS]).unwrap();
            assert_eq!((below.0, below.1.is_some()), (Some(1), true), "{stop}");
            assert_eq!(correction(order, &[stop, OURS, OURS]).unwrap().1, None, "{stop}");
            assert_ne!(correction(order, &[stop, OURS, OURS]).unwrap().0, Some(0), "{stop}");
        }
        assert_eq!(correction(FirewallOrder::AfterDenies, &[stop]), Some((Some(0), None)), "{stop}: a default");
    }
    assert_ne!(correction(FirewallOrder::AfterDenies, &["-m conntrack --ctstate NEW -j DROP", OURS]), None);
}
