//! What no forward may ever ask for: targets that are always refused and ports that stay the gateway's own.
//!
//! Compiled in, so that neither a permissive pool nor an object that slipped past admission can lift them.

use std::net::IpAddr;

use ipnet::IpNet;
use sallyport_api::Protocol;

/// Targets that are always refused, each with what it is.
///
/// IANA special-purpose registries (RFC 6890), and the metadata services of cloud providers, which hand
/// credentials to whoever can reach them from the node's address.
const REFUSED: &[(&str, &str)] = &[
    ("0.0.0.0/8", "an unspecified address"),
    ("127.0.0.0/8", "a loopback address"),
    ("169.254.0.0/16", "a link-local address (cloud metadata lives there)"),
    ("224.0.0.0/4", "a multicast address"),
    ("240.0.0.0/4", "a reserved or broadcast address"),
    ("100.100.100.200/32", "a cloud metadata service"),
    ("168.63.129.16/32", "a cloud metadata service"),
    ("192.0.0.192/32", "a cloud metadata service"),
    ("::1/128", "a loopback address"),
    ("::ffff:0:0/96", "an IPv4-mapped address: write the IPv4 address itself"),
    ("::/96", "an unspecified or IPv4-compatible address"),
    ("64:ff9b::/96", "an address that embeds an IPv4 address (NAT64)"),
    ("64:ff9b:1::/48", "an address that embeds an IPv4 address (NAT64)"),
    ("2001::/32", "an address that embeds an IPv4 address (Teredo)"),
    ("2002::/16", "an address that embeds an IPv4 address (6to4)"),
    ("fe80::/10", "a link-local address"),
    ("ff00::/8", "a multicast address"),
    ("fd00:ec2::254/128", "a cloud metadata service"),
    ("fd20:ce::254/128", "a cloud metadata service"),
];

/// Ports that the gateway needs for itself: a forward on one of them could lock everybody out of the node.
///
/// ssh, DHCP, BGP, etcd, the API server, CNI overlays and agents, the kubelet and its neighbours, the `NodePort` range.
const RESERVED: &[(Protocol, u16, u16)] = &[
    (Protocol::Tcp, 22, 22),
    (Protocol::Udp, 67, 68),
    (Protocol::Tcp, 179, 179),
    (Protocol::Udp, 546, 547),
    (Protocol::Tcp, 2379, 2381),
    (Protocol::Tcp, 4240, 4240),
    (Protocol::Udp, 4789, 4789),
    (Protocol::Tcp, 5473, 5473),
    (Protocol::Udp, 6081, 6081),
    (Protocol::Tcp, 6443, 6443),
    (Protocol::Udp, 8472, 8472),
    (Protocol::Tcp, 10248, 10260),
    (Protocol::Tcp, 30000, 32767),
    (Protocol::Udp, 30000, 32767),
    (Protocol::Udp, 51820, 51821),
];

/// Says what `target` is if it is an address that no forward may deliver to.
#[must_use]
pub fn refused_target(target: IpAddr) -> Option<&'static str> {
    REFUSED.iter().find(|(net, _)| net.parse::<IpNet>().is_ok_and(|net| net.contains(&target))).map(|(_, what)| *what)
}

/// The first built-in reserved range that `first..=last` touches.
#[must_use]
pub fn reserved_range(protocol: Protocol, first: u16, last: u16) -> Option<(u16, u16)> {
    RESERVED
        .iter()
        .find(|(reserved, from, to)| *reserved == protocol && *from <= last && first <= *to)
        .map(|(_, from, to)| (*from, *to))
}

#[cfg(test)]
mod tests {
    use sallyport_api::condition::Reason;
    use sallyport_api::{ForwardRef, GatewayNodeSpec, PortForwardSpec, SliceForward};
    use serde_json::json;

    use super::*;
    use crate::compile::compile;
    use crate::digest::intent_hash;
    use crate::facts::LocalAddress;
    use crate::rule::Ruleset;
    use crate::validate::validate;

    #[test]
    fn every_network_of_the_table_parses_and_refuses_its_own_address() {
        for (net, what) in REFUSED {
            let net: IpNet = net.parse().unwrap();
            assert!(refused_target(net.addr()).is_some(), "{net}: {what}");
        }
    }

    #[test]
    fn the_address_beside_each_network_is_refused_only_by_another() {
        for (net, what) in REFUSED {
            let net: IpNet = net.parse().unwrap();
            let (first, last) = (net.network(), net.broadcast());
            assert!(refused_target(first).is_some() && refused_target(last).is_some(), "{net}: {what}");
            let beside = |ip: IpAddr, step: i8| match ip {
                IpAddr::V4(ip) => IpAddr::from(u32::from(ip).wrapping_add_signed(step.into()).to_be_bytes()),
                IpAddr::V6(ip) => IpAddr::from(u128::from(ip).wrapping_add_signed(step.into()).to_be_bytes()),
            };
            for ip in [beside(first, -1), beside(last, 1)] {
                let elsewhere =
                    REFUSED.iter().any(|(other, _)| other.parse::<IpNet>().is_ok_and(|other| other.contains(&ip)));
                assert_eq!(refused_target(ip).is_some(), elsewhere, "{ip} beside {net}");
            }
        }
    }

    #[test]
    fn every_refused_target_is_refused_by_the_operator_and_again_by_the_agent() {
        for (net, what) in REFUSED {
            let net: IpNet = net.parse().unwrap();
            for target in [net.network(), net.broadcast()] {
                let (gateway, source) =
                    if target.is_ipv4() { ("10.30.1.78", "10.30.1.80/32") } else { ("fd00::78", "fd00::80/128") };
                let asked: PortForwardSpec = serde_json::from_value(json!({
                    "ports": [{ "name": "p", "port": 3306 }],
                    "sources": { "allow": [{ "cidr": source }] },
                    "targets": [{ "name": "t", "ip": target }],
                }))
                .unwrap();
                let problems = validate(&asked).unwrap_err();
                assert_eq!((problems.len(), problems[0].reason), (1, Reason::InvalidTarget), "{target}: {what}");
                assert!(
                    problems[0].message.contains(&format!("{target} is {what}")) || what.contains("cloud"),
                    "{}",
                    problems[0]
                );

                // Whoever wrote the slice, the hash is right.
                let intent = serde_json::from_value(json!({
                    "ports": [{ "protocol": "TCP", "port": 3306, "endPort": 3306, "targetPort": 3306 }],
                    "allow": [source],
                    "targets": [{ "ip": target, "weight": 1 }],
                }))
                .unwrap();
                let key = ForwardRef { namespace: "payments".into(), name: "mysql".into() };
                let forged =
                    SliceForward { uid: "uid".into(), r#ref: key, generation: 1, hash: intent_hash(&intent), intent };
                let node: GatewayNodeSpec =
                    serde_json::from_value(json!({ "pool": "default", "state": "Active", "addresses": [gateway] }))
                        .unwrap();
                let own = LocalAddress { ip: gateway.parse().unwrap(), prefix_len: 24, global: true };
                let compiled = compile(&node, &[&forged], &[own], 0);
                assert_eq!(compiled.failures[0].reason, Reason::InvalidTarget, "{target}: {what}");
                assert_eq!(compiled.ruleset, Ruleset::default(), "{target}: {what}");
            }
        }
    }

    #[test]
    fn both_ends_of_a_reserved_range_are_refused_and_their_neighbours_are_not() {
        for (protocol, first, last) in RESERVED {
            assert_eq!(reserved_range(*protocol, *first, *first), Some((*first, *last)));
            assert_eq!(reserved_range(*protocol, *last, *last), Some((*first, *last)));
            assert_eq!(reserved_range(*protocol, first - 1, first - 1), None, "{first}");
            assert_eq!(reserved_range(*protocol, last + 1, last + 1), None, "{last}");
            assert_eq!(
                reserved_range(*protocol, 1, 65535).map(|(from, _)| from),
                RESERVED.iter().find(|(of, ..)| of == protocol).map(|(_, from, _)| *from)
            );
        }
    }

    #[test]
    fn ordinary_addresses_are_not_refused() {
        for ip in ["10.30.1.79", "192.168.1.1", "100.64.0.1", "8.8.8.8", "fd00::1", "2a00:1450::1"] {
            assert_eq!(refused_target(ip.parse().unwrap()), None, "{ip}");
        }
    }

    #[test]
    fn a_range_that_touches_a_reserved_port_is_found() {
        assert_eq!(reserved_range(Protocol::Tcp, 20, 25), Some((22, 22)));
        assert_eq!(reserved_range(Protocol::Udp, 20, 25), None);
        assert_eq!(reserved_range(Protocol::Tcp, 3306, 3306), None);
    }
}
