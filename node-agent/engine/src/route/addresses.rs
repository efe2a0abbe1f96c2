//! The addresses of this host, as rtnetlink lists them.
//!
//! Which of them a forward listens on is decided elsewhere.

use std::net::IpAddr;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_sys::protocols::NETLINK_ROUTE;
use sallyport_ruleset::facts::LocalAddress;

use crate::netlink::{self, Error, Socket};

/// The loopback interface has this index in every network namespace (`LOOPBACK_IFINDEX` in
/// `include/net/flow.h`).
const LOOPBACK_INDEX: u32 = 1;

/// Every address on every interface in the network namespace of the calling thread, sorted,
/// without duplicates. One dump, some tens of microseconds.
pub fn local_addresses() -> Result<Vec<LocalAddress>, Error> {
    let messages = list(&Socket::open(NETLINK_ROUTE)?)?;
    let mut addresses: Vec<LocalAddress> = messages.iter().filter_map(decode).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The addresses of every interface as the kernel lists them, asked again while they change.
pub(super) fn list(socket: &Socket) -> Result<Vec<AddressMessage>, Error> {
    netlink::whole(|| ask(socket))
}

fn ask(socket: &Socket) -> Result<Vec<AddressMessage>, Error> {
    let mut messages = Vec::new();
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    socket.ask("list the host's addresses", request, NLM_F_DUMP, |answer| {
        if let RouteNetlinkMessage::NewAddress(message) = answer {
            messages.push(message);
        }
        Ok(())
    })?;
    Ok(messages)
}

/// The `IFA_LOCAL` and the `IFA_ADDRESS` of an address. On a point-to-point interface the former is our own end and the latter
/// the other one; elsewhere they are the same, or one is missing.
pub(super) fn ends(message: &AddressMessage) -> (Option<IpAddr>, Option<IpAddr>) {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    (local, address)
}

/// `None` for a message without an address, as some families other than IP have.
fn decode(message: &AddressMessage) -> Option<LocalAddress> {
    let (local, address) = ends(message);
    let ip = local.or(address)?;
    Some(LocalAddress { ip, prefix_len: message.header.prefix_len, global: is_global(message, ip) })
}

fn is_global(message: &AddressMessage, ip: IpAddr) -> bool {
    let header = &message.header;
    let reachable = match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => {
            // A deprecated one is only no longer chosen as a source (RFC 4862, 5.5.4): keepalived and kube-vip make theirs so.
            let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
            !ip.is_loopback() && !ip.is_unicast_link_local() && !header.flags.intersects(unusable)
        }
    };
    reachable && header.scope == AddressScope::Universe && header.index != LOOPBACK_INDEX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(index: u32, scope: AddressScope, flags: AddressHeaderFlags, ip: &str) -> LocalAddress {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.scope = scope;
        message.header.flags = flags;
        message.header.prefix_len = 24;
        message.attributes.push(AddressAttribute::Address(ip.parse().unwrap()));
        decode(&message).unwrap()
    }

    #[test]
    fn only_universe_scope_off_loopback_is_global() {
        let permanent = AddressHeaderFlags::Permanent;
        for (index, scope, ip, global) in [
            (2, AddressScope::Universe, "10.30.1.78", true),
            (2, AddressScope::Universe, "2001:db8::1", true),
            (2, AddressScope::Link, "10.30.1.78", false),
            (2, AddressScope::Host, "10.30.1.78", false),
            (1, AddressScope::Universe, "10.30.1.78", false),
            (2, AddressScope::Universe, "127.0.0.2", false),
            (2, AddressScope::Universe, "::1", false),
            (2, AddressScope::Universe, "169.254.1.1", false),
            (2, AddressScope::Universe, "fe80::1", false),
        ] {
            assert_eq!(on(index, scope, permanent, ip).global, global, "{index} {scope:?} {ip}");
        }
    }

    #[test]
    fn an_ipv6_address_that_cannot_be_used_is_not_global() {
        for flag in [AddressHeaderFlags::Tentative, AddressHeaderFlags::Dadfailed] {
            assert!(!on(2, AddressScope::Universe, flag, "2001:db8::1").global, "{flag:?}");
        }
        assert!(on(2, AddressScope::Universe, AddressHeaderFlags::Deprecated, "2001:db8::1").global);
        // The same bit means "older than another of its network" for IPv6 and IPv4 alike.
        let secondary = AddressHeaderFlags::Secondary;
        assert!(on(2, AddressScope::Universe, secondary, "2001:db8::1").global);
    }

    #[test]
    fn a_point_to_point_address_is_our_own_end() {
        let mut message = AddressMessage::default();
        let (peer, own) = ("10.9.0.2".parse().unwrap(), "10.9.0.1".parse().unwrap());
        message.attributes = vec![AddressAttribute::Address(peer), AddressAttribute::Local(own)];
        assert_eq!(decode(&message).unwrap().ip, own);
    }
}
