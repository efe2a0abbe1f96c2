//! What no forward may ever ask for: targets that are always refused and ports that stay the gateway's own.
//!
//! The lists are the API's own, from which the schema's rule about targets is generated too.

use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::IpNet;
use sallyport_api::Protocol;
use sallyport_api::limits::{REFUSED_TARGETS, RESERVED_PORTS};

/// The table of refused targets, read once.
static REFUSED: LazyLock<Vec<(IpNet, &str)>> =
    LazyLock::new(|| REFUSED_TARGETS.iter().filter_map(|(net, what)| Some((net.parse().ok()?, *what))).collect());

/// Says what `target` is if it is an address that no forward may deliver to.
#[must_use]
pub fn refused_target(target: IpAddr) -> Option<&'static str> {
    REFUSED.iter().find(|(net, _)| net.contains(&target)).map(|(_, what)| *what)
}

/// The first built-in reserved range that `first..=last` touches.
#[must_use]
pub fn reserved_range(protocol: Protocol, first: u16, last: u16) -> Option<(u16, u16)> {
    RESERVED_PORTS
        .iter()
        .find(|(reserved, from, to, _)| *reserved == protocol && *from <= last && first <= *to)
        .map(|(_, from, to, _)| (*from, *to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_of_the_table_parses_and_refuses_its_own_address() {
        for (net, what) in REFUSED_TARGETS {
            let net: IpNet = net.parse().unwrap();
            assert!(refused_target(net.addr()).is_some(), "{net}: {what}");
        }
    }

    #[test]
    fn the_address_beside_each_network_is_refused_only_by_another() {
        for (net, what) in REFUSED_TARGETS {
            let net: IpNet = net.parse().unwrap();
            let (first, last) = (net.network(), net.broadcast());
            assert!(refused_target(first).is_some() && refused_target(last).is_some(), "{net}: {what}");
            let beside = |ip: IpAddr, step: i8| match ip {
                IpAddr::V4(ip) => IpAddr::from(u32::from(ip).wrapping_add_signed(step.into()).to_be_bytes()),
                IpAddr::V6(ip) => IpAddr::from(u128::from(ip).wrapping_add_signed(step.into()).to_be_bytes()),
            };
            for ip in [beside(first, -1), beside(last, 1)] {
                let elsewhere = REFUSED_TARGETS
                    .iter()
                    .any(|(other, _)| other.parse::<IpNet>().is_ok_and(|other| other.contains(&ip)));
                assert_eq!(refused_target(ip).is_some(), elsewhere, "{ip} beside {net}");
            }
        }
    }

    #[test]
    fn both_ends_of_a_reserved_range_are_refused_and_their_neighbours_are_not() {
        for (protocol, first, last, _) in RESERVED_PORTS {
            assert_eq!(reserved_range(*protocol, *first, *first), Some((*first, *last)));
            assert_eq!(reserved_range(*protocol, *last, *last), Some((*first, *last)));
            assert_eq!(reserved_range(*protocol, first - 1, first - 1), None, "{first}");
            assert_eq!(reserved_range(*protocol, last + 1, last + 1), None, "{last}");
            assert_eq!(
                reserved_range(*protocol, 1, 65535).map(|(from, _)| from),
                RESERVED_PORTS.iter().find(|(of, ..)| of == protocol).map(|(_, from, ..)| *from)
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
