//! What people see of a change, and what they do not.

use super::*;
use crate::family::Family;
use crate::iptables::installed::Installed;
use crate::iptables::rule::Table;

const INSTALLED: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:SALLY-PRE - [0:0]\n:SALLY-MT - [0:0]\n\
     -A PREROUTING -j SALLY-PRE\n-A SALLY-PRE -d 10.30.1.78/32 -j SALLY-M\n\
     -A SALLY-MT -s 10.0.0.1/32 -j DNAT --to-destination 10.0.0.9\n\
     -A SALLY-MT -s 10.0.0.2/32 -j DNAT --to-destination 10.0.0.9\n\
     -A SALLY-MT -s 10.0.0.2/32 -j DNAT --to-destination 10.0.0.9\nCOMMIT\n";

fn shown(steps: impl IntoIterator<Item = Step>) -> String {
    let installed = InstalledRuleset { v4: Installed::parse(INSTALLED), ..InstalledRuleset::default() };
    let ops: Vec<Op> = steps.into_iter().map(|step| Op { family: Family::V4, table: Table::Nat, step }).collect();
    diff(&ops, &installed)
}

fn replace(chain: &str, rules: &[&str]) -> Step {
    Step::Replace { chain: chain.to_owned(), rules: rules.iter().map(|rule| Line::read(*rule)).collect() }
}

#[test]
fn only_rules_that_come_or_go_are_shown() {
    let rules = ["1", "3", "2"].map(|host| format!("-s 10.0.0.{host}/32 -j DNAT --to-destination 10.0.0.9"));
    assert_eq!(
        shown([replace("SALLY-MT", &rules.each_ref().map(String::as_str))]),
        "# IPv4 nat\n\
         - -A SALLY-MT -s 10.0.0.2/32 -j DNAT --to-destination 10.0.0.9\n\
         + -A SALLY-MT -s 10.0.0.3/32 -j DNAT --to-destination 10.0.0.9\n"
    );
}

#[test]
fn rules_that_move_to_another_chain_are_nobody_elses_business() {
    let goto = "-p tcp -m tcp --dport 0:2047 -g SALLY-MT-0-2047";
    let rules = ["1", "2", "2"].map(|host| format!("-s 10.0.0.{host}/32 -j DNAT --to-destination 10.0.0.9"));
    let moved = [replace("SALLY-MT", &[goto]), replace("SALLY-MT-0-2047", &rules.each_ref().map(String::as_str))];
    assert_eq!(shown(moved), format!("# IPv4 nat\n+ -A SALLY-MT {goto}\n"));
}

#[test]
fn jumps_and_chains_that_go_are_shown() {
    let steps = [
        replace("SALLY-POST", &[]),
        Step::Delete { chain: "SALLY-PRE".to_owned() },
        Step::Unjump { builtin: "PREROUTING", chain: "SALLY-PRE", present: 1 },
        Step::Jump { builtin: "POSTROUTING", chain: "SALLY-POST", present: 0, before: Some(0), misplaced: None },
    ];
    assert_eq!(
        shown(steps),
        "# IPv4 nat\n- -A SALLY-PRE -d 10.30.1.78/32 -j SALLY-M\n- -A PREROUTING -j SALLY-PRE\n\
         + -I POSTROUTING 1 -j SALLY-POST\n"
    );
    let unhooked = shown([Step::Unhook { chain: "SALLY-PRE" }]);
    assert_eq!(unhooked, "# IPv4 nat\n- -A PREROUTING -j SALLY-PRE\n");
}

#[test]
fn nothing_is_shown_where_nothing_comes_or_goes() {
    assert_eq!(shown([replace("SALLY-POST", &[])]), "");
    assert_eq!(diff(&[], &InstalledRuleset::default()), "");
}
