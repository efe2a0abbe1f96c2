//! Rules as docker, kube-proxy and ufw write them, ahead of our jumps.

use super::*;

/// 3306 to 10.30.1.79 and 3400-3409 to 10.30.1.81, on 10.30.1.78.
pub(crate) fn packets() -> Packets {
    let seen = |to: &[&str]| Requests {
        to: to.iter().map(|ip| (ip.parse().unwrap(), 1)).collect(),
        ports: [(6, [((3306, 3306), 1), ((3400, 3409), 1)].into())].into(),
    };
    Packets {
        v4: [seen(&["10.30.1.78"]), seen(&["10.30.1.79", "10.30.1.81"])],
        v6: Default::default(),
        grown: 0,
        order: FirewallOrder::First,
    }
}

/// Whether the rules `before` our jump in `builtin` take something of ours, with the chains of `others`.
fn takes(table: Table, builtin: &str, before: &[&str], others: &[(&str, &[&str])]) -> bool {
    let mut there = InstalledTable::default();
    let owned = |rules: &[&str]| rules.iter().map(|rule| (*rule).to_owned()).collect::<Vec<_>>();
    there.foreign.insert(builtin.to_owned(), owned(before));
    for (chain, rules) in others {
        there.foreign.insert((*chain).to_owned(), owned(rules));
    }
    shadowing_rule(&packets(), Family::V4, table, &there, builtin, 0..before.len()).is_some()
}

#[test]
fn nat_rules_before_ours() {
    let rows = [
        (true, "-p tcp -m tcp --dport 3306 -j DNAT --to-destination 172.17.0.2:3306"),
        (true, "-d 10.30.1.78/32 -p tcp -m tcp --dport 3300:3310 -j REDIRECT --to-ports 80"),
        (true, "-d 10.30.0.0/16 -j ACCEPT"),
        (true, "-j RETURN"),
        (true, "-p tcp -m multiport --dports 80,3405 -j ACCEPT"),
        (true, "-p tcp -m multiport --dports 3000:3500,8080 -j ACCEPT"),
        (true, "! -d 172.17.0.0/16 -j ACCEPT"),
        (true, "! -p udp -j ACCEPT"),
        (true, "-p tcp -m tcp ! --dport 80 -j ACCEPT"),
        (true, "-i eth0 -m addrtype --dst-type LOCAL -j ACCEPT"),
        (true, "-m comment --comment \"not -p udp -d 1.2.3.4\" -j ACCEPT"),
        (true, "-m comment --comment \"say \\\"-p udp\\\" twice\" -j ACCEPT"),
        (false, "-p tcp -m tcp --dport 3307:3399 -j DNAT --to-destination 172.17.0.2"),
        (false, "-p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2"),
        (false, "-p udp -j ACCEPT"),
        (false, "-p icmp -j ACCEPT"),
        (false, "-d 10.30.1.77/32 -j ACCEPT"),
        (false, "-d 172.17.0.0/16 -p tcp -j ACCEPT"),
        (false, "-p tcp -m multiport --dports 80,443 -j ACCEPT"),
        (false, "-j MARK --set-xmark 0x4000/0x4000"),
        (false, "-p tcp -m comment --comment \"-j DROP\""),
        (false, "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES"),
    ];
    for (taken, rule) in rows {
        assert_eq!(takes(Table::Nat, "PREROUTING", &[rule], &[("KUBE-SERVICES", &[])]), taken, "{rule}");
    }
}

#[test]
fn chains_that_the_rule_leads_to_are_followed() {
    let docker: &[&str] =
        &["-i docker0 -j RETURN", "! -i docker0 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 172.17.0.2:3306"];
    let elsewhere: &[&str] =
        &["-i docker0 -j RETURN", "! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80"];
    let jump = ["-m addrtype --dst-type LOCAL -j DOCKER"];
    assert!(takes(Table::Nat, "PREROUTING", &jump, &[("DOCKER", docker)]));
    assert!(
        !takes(Table::Nat, "PREROUTING", &jump, &[("DOCKER", elsewhere)]),
        "returning from a chain comes back to us"
    );
    let services: &[&str] =
        &["-d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC", "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"];
    let ports: &[&str] = &["-p tcp -m tcp --dport 30080 -j KUBE-SVC"];
    let svc: &[&str] = &["-j DNAT --to-destination 10.244.0.5:80"];
    let kube = [("KUBE-SERVICES", services), ("KUBE-NODEPORTS", ports), ("KUBE-SVC", svc)];
    assert!(!takes(Table::Nat, "PREROUTING", &["-j KUBE-SERVICES"], &kube));
    let looping: &[&str] = &["-j LOOP"];
    assert!(!takes(Table::Nat, "PREROUTING", &["-j LOOP"], &[("LOOP", looping)]), "no kernel has this, and it ends");
    assert!(!takes(Table::Nat, "PREROUTING", &["-p udp -j DOCKER"], &[("DOCKER", &["-j ACCEPT"])]));
}

#[test]
fn a_goto_from_a_built_in_chain_never_comes_back() {
    let others: [(&str, &[&str]); 2] = [("ELSE", &[]), ("VIA", &["-g ELSE"])];
    assert!(takes(Table::Nat, "PREROUTING", &["-p tcp -g ELSE"], &others));
    assert!(!takes(Table::Nat, "PREROUTING", &["-p udp -g ELSE"], &others));
    assert!(!takes(Table::Nat, "PREROUTING", &["-p tcp -j VIA"], &others), "its end is the end of VIA, and then ours");
    assert!(takes(Table::Filter, "FORWARD", &["-g ELSE"], &others));
}

#[test]
fn filter_rules_before_ours() {
    let rows = [
        (true, "-j DROP"),
        (true, "-i eth0 -o eth1 -j REJECT --reject-with icmp-port-unreachable"),
        (true, "-s 10.30.1.79/32 -j DROP"),
        (true, "-p tcp -m tcp --sport 3306 -j DROP"),
        (true, "-p icmp -j DROP"),
        (true, "-m conntrack --ctstate INVALID,NEW -j DROP"),
        (true, "-m conntrack ! --ctstate INVALID -j DROP"),
        (true, "-m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP"),
        (true, "-m state ! --state RELATED,ESTABLISHED -j REJECT --reject-with icmp-port-unreachable"),
        (true, "-m conntrack ! --ctstate NEW -j DROP"),
        (true, "-m conntrack --ctstate SNAT -j DROP"),
        (true, "-p icmp -m conntrack --ctstate DNAT -j DROP"),
        (true, "-m conntrack --ctstate RELATED -m conntrack --ctdir REPLY -j DROP"),
        (true, "-j RETURN"),
        (true, "-j ufw-before-forward"),
        (false, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        (false, "-m conntrack --ctstate INVALID -j DROP"),
        (false, "-m conntrack ! --ctstate NEW,RELATED,ESTABLISHED -j DROP"),
        (false, "-m conntrack ! --ctstate DNAT -j DROP"),
        (false, "-m connmark --mark 0x0/0x10000000 -j DROP"),
        (false, "-m state --state INVALID -j DROP"),
        (false, "-p sctp -j DROP"),
        (false, "-p udp -j DROP"),
        (false, "-j DOCKER-USER"),
        (false, "-m limit --limit 3/min -j LOG --log-prefix \"[UFW BLOCK] \""),
    ];
    let chains: [(&str, &[&str]); 2] =
        [("DOCKER-USER", &["-j RETURN"]), ("ufw-before-forward", &["-p tcp -m tcp --dport 3306 -j DROP"])];
    for (taken, rule) in rows {
        assert_eq!(takes(Table::Filter, "FORWARD", &[rule], &chains), taken, "{rule}");
    }
}

#[test]
fn masquerading_before_ours_matters_for_our_targets_only() {
    let rows = [
        (true, "-o eth0 -j MASQUERADE"),
        (true, "-d 10.30.1.81/32 -p tcp -j SNAT --to-source 1.2.3.4"),
        (true, "-d 10.30.1.79/32 -j ACCEPT"),
        (false, "-d 172.17.0.0/16 -j MASQUERADE"),
        (false, "-d 10.30.1.79/32 -p tcp -m tcp --dport 443 -j MASQUERADE"),
        (false, "-p udp -j MASQUERADE"),
    ];
    for (taken, rule) in rows {
        assert_eq!(takes(Table::Nat, "POSTROUTING", &[rule], &[]), taken, "{rule}");
    }
}
