//! Which addresses of this host masqueraded connections leave from: what targets see, and their firewalls must allow.
//!
//! Chosen as the kernel chooses. IPv4 (`nf_nat_masquerade_ipv4` and `inet_select_addr`): the first primary address of
//! universe scope on the outgoing interface whose network holds the next hop, else the first such address there. IPv6
//! (`nf_nat_masquerade_ipv6`): source address selection, whose result a route lookup carries.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::{Error, Socket};
use crate::route::addresses::{ends, list};
use crate::route::routes::{self, Route};

/// An IPv4 address that masquerading may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Primary {
    interface: u32,
    ip: IpAddr,
    network: IpNet,
}

/// The addresses that connections to `targets` leave from. A target that cannot be reached adds none.
pub fn source_addresses(targets: &BTreeSet<IpAddr>) -> Result<BTreeSet<IpAddr>, Error> {
    if targets.is_empty() {
        return Ok(BTreeSet::new());
    }
    let socket = Socket::open(NETLINK_ROUTE)?;
    let primaries: Vec<Primary> = list(&socket)?.iter().filter_map(primary).collect();
    let mut sources = BTreeSet::new();
    for target in targets {
        let route = routes::look_up(&socket, *target)?;
        sources.extend(route.and_then(|route| select(*target, &route, &primaries)));
    }
    Ok(sources)
}

fn select(target: IpAddr, route: &Route, primaries: &[Primary]) -> Option<IpAddr> {
    if target.is_ipv6() {
        return route.source;
    }
    let next_hop = route.gateway.unwrap_or(target);
    let there = || primaries.iter().filter(|own| own.interface == route.interface);
    let chosen = there().find(|own| own.network.contains(&next_hop)).or_else(|| there().next());
    // An interface without an address of its own borrows one of another.
    chosen.map(|own| own.ip).or(route.source)
}

fn primary(message: &AddressMessage) -> Option<Primary> {
    let header = &message.header;
    if header.scope != AddressScope::Universe || header.flags.contains(AddressHeaderFlags::Secondary) {
        return None;
    }
    let (local, address) = ends(message);
    // The kernel compares with the network of the other end.
    let network = IpNet::new(address.or(local)?, header.prefix_len).ok()?.trunc();
    Some(Primary { interface: header.index, ip: local.or(address)?, network }).filter(|own| own.ip.is_ipv4())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(interface: u32, ip: &str, network: &str) -> Primary {
        Primary { interface, ip: ip.parse().unwrap(), network: network.parse().unwrap() }
    }

    #[test]
    fn the_address_beside_the_next_hop_wins_then_the_first_of_the_interface() {
        let primaries = [
            own(2, "10.0.0.1", "10.0.0.0/24"),
            own(2, "10.0.1.1", "10.0.1.0/24"),
            own(3, "192.168.0.1", "192.168.0.0/24"),
        ];
        let route = |interface, gateway: Option<&str>| Route {
            interface,
            gateway: gateway.map(|ip| ip.parse().unwrap()),
            source: Some("9.9.9.9".parse().unwrap()),
        };
        for (target, route, source) in [
            ("10.0.0.9", route(2, None), "10.0.0.1"),
            ("10.0.1.9", route(2, None), "10.0.1.1"),
            ("172.16.0.9", route(2, Some("10.0.1.254")), "10.0.1.1"),
            ("172.16.0.9", route(2, None), "10.0.0.1"),
            ("172.16.0.9", route(3, Some("192.168.0.254")), "192.168.0.1"),
            ("172.16.0.9", route(4, None), "9.9.9.9"),
            ("fd00::9", Route { source: Some("fd00::1".parse().unwrap()), ..Route::default() }, "fd00::1"),
        ] {
            assert_eq!(select(target.parse().unwrap(), &route, &primaries), Some(source.parse().unwrap()), "{target}");
        }
    }

    #[test]
    fn the_kernel_is_asked_and_what_it_cannot_reach_adds_nothing() {
        let loopback: BTreeSet<IpAddr> = ["127.0.0.1".parse().unwrap()].into();
        // 127.0.0.1 has host scope: the route's own source address is what is left.
        assert_eq!(source_addresses(&loopback).unwrap(), loopback);
        assert_eq!(source_addresses(&BTreeSet::new()).unwrap(), BTreeSet::new());
    }
}
