//! The order of a plan, and the place of our jumps.

use super::*;
use crate::iptables::restore::restore;
use crate::iptables::shadow::tests::packets;

/// The change to `desired` as text, if there is any.
fn planned(desired: &Ruleset, installed: &InstalledRuleset) -> Option<String> {
    restore(&plan(desired, &packets(), installed), Family::V4)
}

/// Our smallest rule set, with `before` and `after` around our jump in PREROUTING.
fn installed(before: &str, after: &str) -> InstalledRuleset {
    let nat = format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:SALLY-PRE - [0:0]\n:SALLY-POST - [0:0]\n\
         {before}-A PREROUTING -j SALLY-PRE\n{after}-A OUTPUT -j SALLY-PRE\n-A POSTROUTING -j SALLY-POST\n\
         -A SALLY-PRE -d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.79\nCOMMIT\n"
    );
    InstalledRuleset { v4: Installed::parse(&nat), ..InstalledRuleset::default() }
}

#[test]
fn nothing_is_planned_where_nothing_differs() {
    let installed = installed("", "-A PREROUTING -j DROP\n");
    assert_eq!(plan(&installed.ours(), &packets(), &installed), []);
}

#[test]
fn the_jump_moves_only_before_a_rule_that_takes_from_us() {
    let harmless = installed("-A PREROUTING -p udp -j ACCEPT\n", "");
    assert_eq!(planned(&harmless.ours(), &harmless), None);
    let taking = installed("-A PREROUTING -p tcp -j ACCEPT\n", "");
    let ops = plan(&taking.ours(), &packets(), &taking);
    let text = restore(&ops, Family::V4).unwrap();
    assert_eq!(text, "*nat\n-D PREROUTING -j SALLY-PRE\n-I PREROUTING 1 -j SALLY-PRE\nCOMMIT\n");
    assert!(ops.iter().all(Op::is_move), "who yields does nothing");
}

#[test]
fn of_two_jumps_neither_is_trusted() {
    let twice = installed("", "-A PREROUTING -j ACCEPT\n-A PREROUTING -j SALLY-PRE\n");
    let batch = planned(&twice.ours(), &twice).unwrap();
    assert_eq!(batch.matches("-D PREROUTING -j SALLY-PRE\n").count(), 2, "{batch}");
    assert!(batch.ends_with("-I PREROUTING 1 -j SALLY-PRE\nCOMMIT\n"), "{batch}");
}

#[test]
fn translation_stops_before_acceptance_when_going_away() {
    let mut going = installed("", "");
    going.v4.filter = Installed::parse("*filter\n-A FORWARD -j SALLY-FWD\n:SALLY-FWD - [0:0]\nCOMMIT\n").filter;
    let batch = planned(&Ruleset::default(), &going).unwrap();
    assert!(batch.find("*nat") < batch.find("*filter"), "{batch}");
    let coming = planned(&going.ours(), &InstalledRuleset::default()).unwrap();
    assert!(coming.find("*filter") < coming.find("*nat"), "{coming}");
}

#[test]
fn a_chain_that_somebody_else_uses_is_emptied_instead_of_deleted() {
    let used = installed("-A PREROUTING -i eth0 -j SALLY-PRE\n", "");
    assert!(planned(&Ruleset::default(), &used).unwrap().contains(":SALLY-PRE - [0:0]\n"));
    for foreign in ["-A PREROUTING -i eth0 -j SALLY-PRE\n", "-A CUSTOM -j SALLY-PRE\n", "-A PREROUTING -j SALLY-POST\n"]
    {
        let chain = foreign.trim().rsplit(' ').next().unwrap();
        let used = installed("", foreign);
        let batch = planned(&Ruleset::default(), &used).unwrap();
        assert!(!batch.contains(&format!("-X {chain}\n")), "{batch}");
        assert!(!batch.contains(foreign.trim_start_matches("-A ")), "{batch}");
    }
}

#[test]
fn tables_that_are_not_ours_are_passed_over() {
    let save =
        "*raw\n:SALLY-PRE - [0:0]\n-A SALLY-PRE -j RETURN\nCOMMIT\n# *nat\n*security\n-A SALLY-X -j DROP\nCOMMIT\n";
    assert_eq!(Installed::parse(save), Installed::default());
}
