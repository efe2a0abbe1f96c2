//! The addresses that a host has.

use std::net::IpAddr;

use ipnet::IpNet;

/// An address on an interface of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalAddress {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network that is reached directly through its interface.
    pub prefix_len: u8,
    /// Whether others can reach the host by it: of universe scope, on no loopback interface,
    /// neither loopback nor link-local, and for IPv6 neither tentative nor a duplicate.
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
