//! What the rules must know about the host they are for.
//!
//! Pure: reading it from the kernel is the node agent's.

use std::net::IpAddr;

use ipnet::IpNet;
use sallyport_api::id::Moment;

use crate::listener::Listener;

/// Everything about the host that decides what becomes of its forwards, as of one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeFacts<'a> {
    /// Every address on every interface, in any order.
    pub addresses: &'a [LocalAddress],
    /// The sockets that listen. Read only where a forward may have to wait for one of them, else empty; rules do not depend on
    /// them.
    pub listeners: &'a [Listener],
    /// The time by which forwards expire.
    pub now: Moment,
}

impl<'a> NodeFacts<'a> {
    /// A host with these addresses at `now`, on which nothing is known to listen.
    #[must_use]
    pub fn of(addresses: &'a [LocalAddress], now: Moment) -> Self {
        Self { addresses, now, ..Self::default() }
    }
}

/// An address on an interface of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalAddress {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network that is reached directly through its interface.
    pub prefix_len: u8,
    /// Whether others can reach the host by it: of universe scope, on no loopback interface,
    /// neither loopback nor link-local, and for IPv6 neither tentative nor a duplicate nor
    /// deprecated.
    pub global: bool,
}

impl LocalAddress {
    /// The network that is on-link through this address.
    #[must_use]
    pub fn network(&self) -> IpNet {
        IpNet::new(self.ip, self.prefix_len).map_or_else(|_| self.ip.into(), |net| net.trunc())
    }

    /// The broadcast address of that network; none for IPv6, nor where the prefix leaves no room for one (RFC 3021).
    #[must_use]
    pub fn broadcast(&self) -> Option<IpAddr> {
        match self.network() {
            IpNet::V4(net) if net.prefix_len() < 31 => Some(net.broadcast().into()),
            _ => None,
        }
    }
}
