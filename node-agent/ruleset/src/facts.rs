//! What the rules must know about the host they are for.
//!
//! Pure: reading it from the kernel is the node agent's.

use std::net::IpAddr;

use sallyport_api::id::Moment;

pub use crate::address::LocalAddress;
use crate::listener::Listener;

/// Everything about the host that decides what becomes of its forwards, as of one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeFacts<'a> {
    /// Every address on every interface, in any order.
    pub addresses: &'a [LocalAddress],
    /// Listen addresses that its pool has found on it, now or before: what is away for a moment is wanted all the same.
    pub found: &'a [IpAddr],
    /// The sockets that listen. Read only where a forward may have to wait for one of them, else empty; rules do not depend on
    /// them.
    pub listeners: &'a [Listener],
    /// What its connection tracking does with segments that it cannot place.
    pub tracking: Tracking,
    /// The time by which forwards expire.
    pub now: Moment,
}

/// The settings of connection tracking by which rules differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracking {
    /// It places segments out of their connection's window, too (`nf_conntrack_tcp_be_liberal`).
    pub liberal: bool,
    /// It takes up connections that it did not see begin (`nf_conntrack_tcp_loose`).
    pub loose: bool,
}

impl Default for Tracking {
    /// As kernels have it unless somebody says otherwise.
    fn default() -> Self {
        Self { liberal: false, loose: true }
    }
}

impl Tracking {
    /// Whether answers of targets that it cannot place are to be kept from the host. If it takes up no connection, all of one
    /// whose state was lost is such: that is to be reset, and not to hang.
    #[must_use]
    pub fn hides_answers(self) -> bool {
        !self.liberal && self.loose
    }
}

impl<'a> NodeFacts<'a> {
    /// A host with these addresses at `now`, on which nothing is known to listen.
    #[must_use]
    pub fn of(addresses: &'a [LocalAddress], now: Moment) -> Self {
        Self { addresses, now, ..Self::default() }
    }
}
