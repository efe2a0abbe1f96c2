//! Each thing that somebody can do to our rules is named.

use super::*;
use crate::iptables::installed::Installed;
use crate::iptables::plan::plan;
use crate::iptables::rule::Ruleset;
use crate::iptables::shadow::tests::packets;

const OURS: &str = "*nat
:PREROUTING ACCEPT [0:0]
:SALLY-MT - [0:0]
:SALLY-PRE - [0:0]
-A PREROUTING -j SALLY-PRE
-A SALLY-MT -d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.79
-A SALLY-MT -d 10.30.1.78/32 -p tcp -m tcp --dport 3307 -j DNAT --to-destination 10.30.1.79
-A SALLY-PRE -j SALLY-MT
COMMIT
";

fn installed(text: &str) -> InstalledRuleset {
    InstalledRuleset { v4: Installed::parse(text), ..InstalledRuleset::default() }
}

/// What of `installed` is not as `desired`.
fn found(desired: &Ruleset, installed: &InstalledRuleset) -> Vec<Difference> {
    differences(&plan(desired, &packets(), installed), installed)
}

/// What is told once `from` has become `to` in a kernel that was as it should be.
fn after(from: &str, to: &str) -> Vec<(Kind, String)> {
    let ours = installed(OURS).ours();
    let text = OURS.replace(from, to);
    assert_ne!(text, OURS, "nothing was done");
    // The rules of OUTPUT are not in the text: not what is told here.
    let found = found(&ours, &installed(&text));
    found.into_iter().filter(|found| !found.text.contains("OUTPUT")).map(|found| (found.kind, found.text)).collect()
}

#[test]
fn what_was_done_is_named() {
    let rule = "-d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.79";
    let second = "-d 10.30.1.78/32 -p tcp -m tcp --dport 3307 -j DNAT --to-destination 10.30.1.79";
    let line = |rule: &str| format!("-A SALLY-MT {rule}\n");
    for (from, to, kind, said) in [
        (line(rule), String::new(), Kind::Rules, format!("IPv4 nat SALLY-MT: 1 rule missing: {rule}")),
        (
            line(rule),
            line(&rule.replace("1.79", "1.81")),
            Kind::Rules,
            format!("IPv4 nat SALLY-MT: 1 rule missing: {rule}, 1 rule added: {}", rule.replace("1.79", "1.81")),
        ),
        (
            line(rule) + &line(second),
            line(second) + &line(rule),
            Kind::Rules,
            "IPv4 nat SALLY-MT: the rules are in another order".to_owned(),
        ),
        (
            line(rule) + &line(second),
            String::new(),
            Kind::Rules,
            format!("IPv4 nat SALLY-MT: 2 rules missing, the first: {rule}"),
        ),
        (line(rule), line(rule).repeat(2), Kind::Rules, format!("IPv4 nat SALLY-MT: 1 rule added: {rule}")),
        (
            ":SALLY-PRE - [0:0]\n".to_owned(),
            ":SALLY-PRE - [0:0]\n:SALLY-EVIL - [0:0]\n".to_owned(),
            Kind::Rules,
            "IPv4 nat SALLY-EVIL: the chain should not be there".to_owned(),
        ),
        (
            "-A PREROUTING -j SALLY-PRE\n".to_owned(),
            String::new(),
            Kind::Jump,
            "IPv4 nat PREROUTING: the jump to SALLY-PRE is missing".to_owned(),
        ),
        (
            "-A PREROUTING -j SALLY-PRE\n".to_owned(),
            "-A PREROUTING -j SALLY-PRE\n".repeat(2),
            Kind::Jump,
            "IPv4 nat PREROUTING: the jump to SALLY-PRE is there 2 times".to_owned(),
        ),
        (
            "-A PREROUTING -j".to_owned(),
            "-A PREROUTING -p tcp -m tcp --dport 3306 -j ACCEPT\n-A PREROUTING -j".to_owned(),
            Kind::Shadow,
            "IPv4 nat PREROUTING: a rule before ours would take our packets: -p tcp -m tcp --dport 3306 -j ACCEPT"
                .to_owned(),
        ),
    ] {
        assert_eq!(after(&from, &to), [(kind, said)]);
    }
}

#[test]
fn a_missing_chain_and_a_jump_that_leads_nowhere_wanted_are_named() {
    let nothing = InstalledRuleset::default();
    let ours = installed(OURS);
    let text = told(&found(&ours.ours(), &nothing));
    assert!(text.starts_with("IPv4 nat SALLY-MT: the chain is missing; IPv4 nat SALLY-PRE: the chain is missing; "));
    let text = told(&found(&nothing.ours(), &ours));
    assert!(text.contains("IPv4 nat PREROUTING: the jump to SALLY-PRE should not be there"), "{text}");
}

#[test]
fn rules_of_others_that_take_nothing_of_ours_are_no_difference() {
    let harmless = "-A PREROUTING -p tcp -m tcp --dport 80 -j ACCEPT\n-A PREROUTING -j";
    assert_eq!(after("-A PREROUTING -j", harmless), []);
}

#[test]
fn much_is_told_in_short() {
    let many = vec![Difference::forwarding(Family::V6); 20];
    let text = told(&many);
    assert!(text.starts_with("forwarding of IPv6 packets is off; ") && text.ends_with("; and 12 more"), "{text}");
    assert_eq!((shortened(&"ä".repeat(500)).chars().count(), told(&[])), (RULE, String::new()));
}
