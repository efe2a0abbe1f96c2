//! The diff that people read of a plan, for each kind of change.

use super::*;

const INSTALLED: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:SALLY-PRE - [0:0]\n:SALLY-MT - [0:0]\n\
     -A PREROUTING -j SALLY-PRE\n-A SALLY-PRE -d 10.30.1.78/32 -j SALLY-M\n\
     -A SALLY-MT -s 10.0.0.1/32 -j DNAT --to-destination 10.0.0.9\n\
     -A SALLY-MT -s 10.0.0.2/32 -j DNAT --to-destination 10.0.0.9\n\
     -A SALLY-MT -s 10.0.0.2/32 -j DNAT --to-destination 10.0.0.9\nCOMMIT\n";

fn shown(batch: &str) -> String {
    let installed = InstalledRuleset { v4: Installed::parse(INSTALLED), ..InstalledRuleset::default() };
    diff(&Batch { v4: Some(batch.to_owned()), v6: None }, &installed)
}

#[test]
fn only_rules_that_come_or_go_are_shown() {
    let batch = "*nat\n:SALLY-MT - [0:0]\n\
         -A SALLY-MT -s 10.0.0.1/32 -j DNAT --to-destination 10.0.0.9\n\
         -A SALLY-MT -s 10.0.0.3/32 -j DNAT --to-destination 10.0.0.9\n\
         -A SALLY-MT -s 10.0.0.2/32 -j DNAT --to-destination 10.0.0.9\nCOMMIT\n";
    assert_eq!(
        shown(batch),
        "# IPv4 nat\n\
         - -A SALLY-MT -s 10.0.0.2/32 -j DNAT --to-destination 10.0.0.9\n\
         + -A SALLY-MT -s 10.0.0.3/32 -j DNAT --to-destination 10.0.0.9\n"
    );
}

#[test]
fn rules_that_move_to_another_chain_are_nobody_elses_business() {
    let batch = "*nat\n:SALLY-MT - [0:0]\n:SALLY-MT-0-2047 - [0:0]\n\
         -A SALLY-MT -p tcp -m tcp --dport 0:2047 -g SALLY-MT-0-2047\n\
         -A SALLY-MT-0-2047 -s 10.0.0.1/32 -j DNAT --to-destination 10.0.0.9\n\
         -A SALLY-MT-0-2047 -s 10.0.0.2/32 -j DNAT --to-destination 10.0.0.9\n\
         -A SALLY-MT-0-2047 -s 10.0.0.2/32 -j DNAT --to-destination 10.0.0.9\nCOMMIT\n";
    assert_eq!(shown(batch), "# IPv4 nat\n+ -A SALLY-MT -p tcp -m tcp --dport 0:2047 -g SALLY-MT-0-2047\n");
}

#[test]
fn jumps_and_chains_that_go_are_shown() {
    let batch = "*nat\n:SALLY-PRE - [0:0]\n:SALLY-POST - [0:0]\n-D PREROUTING -j SALLY-PRE\n\
         -I POSTROUTING 1 -j SALLY-POST\n-X SALLY-PRE\nCOMMIT\n";
    assert_eq!(
        shown(batch),
        "# IPv4 nat\n- -A SALLY-PRE -d 10.30.1.78/32 -j SALLY-M\n- -A PREROUTING -j SALLY-PRE\n\
         + -I POSTROUTING 1 -j SALLY-POST\n"
    );
}

#[test]
fn nothing_is_shown_where_nothing_comes_or_goes() {
    assert_eq!(shown("*nat\n:SALLY-POST - [0:0]\nCOMMIT\n"), "");
    assert_eq!(diff(&Batch::default(), &InstalledRuleset::default()), "");
}
