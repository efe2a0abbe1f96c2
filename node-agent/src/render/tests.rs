//! What the firewalls of the targets are told to let in.

use super::*;
use crate::converge::fake::intents;

/// The text for the targets of the forwards in `spec`s, through gateways at 10.30.1.78, 10.30.1.77 and `fd00::78`.
fn targets(specs: &[&str]) -> String {
    let manifests: String = specs
        .iter()
        .enumerate()
        .map(|(n, spec)| format!("---\napiVersion: sallyport.dev/v1alpha1\nkind: PortForward\nmetadata: {{ name: f{n} }}\nspec: {{ {spec} }}\n"))
        .collect();
    let mut intents = intents(&manifests);
    intents.node.addresses.push("10.30.1.77".parse().unwrap());
    let local: Vec<LocalAddress> = intents
        .node
        .addresses
        .iter()
        .map(|ip| LocalAddress { ip: *ip, prefix_len: Family::of(*ip).bits(), global: true })
        .collect();
    let forwards: Vec<_> = intents.forwards().collect();
    let table =
        ForwardingTable::new(&intents.node, forwards.iter().copied(), &NodeFacts::of(&local, Moment::default()));
    let mut out = Vec::new();
    print_targets(&mut out, &forwards, &table).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn with_masquerade_a_target_sees_every_gateway() {
    let text = targets(&["ports: [ { name: p, port: 13306, targetPort: 3306 } ], \
         sources: { allow: [ { cidr: 10.30.1.80/32 } ] }, targets: [ { name: t, ip: 10.30.1.79 } ]"]);
    assert_eq!(
        text,
        "set -e\n# on 10.30.1.79\niptables-restore --noflush <<'EOF'\n*filter\n\
         -A INPUT -s 10.30.1.77 -p tcp -m tcp --dport 3306 -j ACCEPT\n\
         -A INPUT -s 10.30.1.78 -p tcp -m tcp --dport 3306 -j ACCEPT\nCOMMIT\nEOF\n"
    );
}

#[test]
fn with_preserve_a_target_sees_the_clients_and_refuses_the_denied_ones_first() {
    let text = targets(&["ports: [ { name: p, protocol: UDP, port: 53 } ], sourceNAT: { mode: Preserve }, \
         sources: { allow: [ { cidr: 10.40.0.0/16 }, { cidr: 10.1.0.0/16 } ], \
         deny: [ { cidr: 10.40.9.0/24 }, { cidr: 10.99.0.0/16 }, { cidr: 10.0.0.0/15 } ] }, \
         targets: [ { name: t, ip: 10.30.1.79 } ]"]);
    assert_eq!(
        text,
        "set -e\n# on 10.30.1.79\niptables-restore --noflush <<'EOF'\n*filter\n\
         -A INPUT -s 10.0.0.0/15 -p udp -m udp --dport 53 -j DROP\n\
         -A INPUT -s 10.40.9.0/24 -p udp -m udp --dport 53 -j DROP\n\
         -A INPUT -s 10.1.0.0/16 -p udp -m udp --dport 53 -j ACCEPT\n\
         -A INPUT -s 10.40.0.0/16 -p udp -m udp --dport 53 -j ACCEPT\nCOMMIT\nEOF\n"
    );
}

#[test]
fn a_range_is_told_as_the_target_sees_it() {
    let spec = |ports: &str| {
        format!(
            "ports: [ {{ name: p, {ports} }} ], sources: {{ allow: [ {{ cidr: 10.30.1.80/32 }} ] }}, targets: [ {{ name: t, ip: 10.30.1.79 }} ]"
        )
    };
    for (ports, seen) in [
        ("port: 8000, endPort: 8009", "--dport 8000:8009 "),
        ("port: 8000, endPort: 8009, targetPort: 9000", "--dport 9000:9009 "),
        ("port: 8000, endPort: 8000", "--dport 8000 "),
    ] {
        assert!(targets(&[&spec(ports)]).contains(seen), "{ports}");
    }
}

#[test]
fn each_family_has_its_own_program_and_sources() {
    let text = targets(&["ports: [ { name: p, port: 80 } ], \
         sources: { allow: [ { cidr: 10.30.1.80/32 }, { cidr: \"fd00::80/128\" } ] }, \
         targets: [ { name: a, ip: 10.30.1.79 }, { name: b, ip: \"fd00::79\" } ]"]);
    let (v4, v6) = text.split_once("# on fd00::79\nip6tables-restore --noflush <<'EOF'\n").unwrap();
    assert!(v4.contains("-s 10.30.1.78 ") && !v4.contains("fd00::78"), "{text}");
    assert!(v6.contains("-s fd00::78 ") && !v6.contains("10.30"), "{text}");
}

#[test]
fn a_target_of_several_forwards_has_one_part_and_each_rule_once() {
    let spec = |port: u16| {
        format!(
            "ports: [ {{ name: p, port: {port}, targetPort: 80 }} ], sources: {{ allow: [ {{ cidr: 10.30.1.80/32 }} ] }}, targets: [ {{ name: t, ip: 10.30.1.79 }} ]"
        )
    };
    let text = targets(&[&spec(8000), &spec(8001)]);
    assert_eq!(text.matches("*filter").count(), 1);
    assert_eq!(text.matches("-s 10.30.1.78 ").count(), 1, "{text}");
}

#[test]
fn a_forward_that_no_gateway_carries_opens_nothing() {
    let text = targets(&["addresses: [ 10.30.1.99 ], ports: [ { name: p, port: 80 } ], \
         sources: { allow: [ { cidr: 10.30.1.80/32 } ] }, targets: [ { name: t, ip: 10.30.1.79 } ]"]);
    assert_eq!(text, "");
}
