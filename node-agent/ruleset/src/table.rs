//! The forwarding table: what a node forwards, a line a port and address, before it is said to any kernel.
//!
//! ```text
//! PortForward payments/mysql   10.30.1.78 tcp/3306  10.30.1.80/32 ─► 10.30.1.79:3306  Masquerade
//! ```
//! Rules, the flows that may go on, who listens in the way, and the path of packets through other firewalls are all read
//! off it. It is kept from one pass to the next: a forward that changes costs what it takes to look at that one.

mod entries;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, SliceForward};
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_policy::pool::Reserved;

use self::entries::Entries;
pub use self::entries::Entry;
use crate::binding::{Binding, bindings};
use crate::facts::{LocalAddress, NodeFacts, Tracking};
use crate::family::Family;
use crate::gate::refuse;
use crate::listen::{Listen, is_wanted};

/// Why a forward is not programmed on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which forward.
    pub forward: ForwardRef,
    /// The kind of failure.
    pub reason: Reason,
    /// What is wrong here and what would help.
    pub message: String,
}

/// What a node forwards, and what it cannot.
#[derive(Debug, Default)]
pub struct ForwardingTable {
    node: Option<GatewayNodeSpec>,
    reserved: Vec<Reserved>,
    /// Every address of the node, in order.
    local: Vec<LocalAddress>,
    listen: Listen,
    tracking: Tracking,
    entries: Entries,
}

/// What an [update](ForwardingTable::update) has done to a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableChange {
    /// Whether all of it was made anew, so that nothing which was read off it before is known to hold.
    pub is_new: bool,
    /// The forwards whose bindings are not there any more, unless it is new.
    pub gone: Vec<Entry>,
    /// The forwards whose bindings are there now; all of them if it is new.
    pub come: Vec<Entry>,
}

impl TableChange {
    /// As if all that `table` carries had just come.
    #[must_use]
    pub fn all_of(table: &ForwardingTable) -> Self {
        Self { is_new: true, gone: Vec::new(), come: table.entries.carried().cloned().collect() }
    }
}

impl ForwardingTable {
    /// What the node forwards of the `forwards` of its pool.
    ///
    /// Total and deterministic: the order of the inputs changes nothing.
    #[must_use]
    pub fn new<'f>(
        node: &GatewayNodeSpec,
        forwards: impl IntoIterator<Item = &'f Arc<SliceForward>>,
        facts: &NodeFacts<'_>,
    ) -> Self {
        let mut table = Self::default();
        table.update(node, &[], &forwards.into_iter().cloned().collect::<Vec<_>>(), facts);
        table
    }

    /// Follows a change: of its forwards those in `gone` are not wanted any more, those in `come` are.
    ///
    /// # Guarantees
    /// - The table is that which [`Self::new`] makes of the same forwards, by whatever changes it came to them.
    /// - What did not change is not looked at, unless it may depend on what did: the node's configuration, an address
    ///   that matters to a forward, two forwards that want one port.
    pub fn update(
        &mut self,
        node: &GatewayNodeSpec,
        gone: &[Arc<SliceForward>],
        come: &[Arc<SliceForward>],
        facts: &NodeFacts<'_>,
    ) -> TableChange {
        let mut local = facts.addresses.to_vec();
        local.sort_unstable();
        let listen = Listen::of(node, facts.addresses, facts.found);
        let is_new = self.node.as_ref() != Some(node)
            || self.listen != listen
            || self.tracking != facts.tracking
            || self.depends_on_change_to(&local);
        if is_new {
            self.tracking = facts.tracking;
            self.node = Some(node.clone());
            self.reserved = Reserved::of(&node.reserved_ports);
            self.listen = listen;
            self.entries.rest(node.state == NodeState::Retired);
        }
        self.local = local;
        let Self { reserved, local, listen, entries, .. } = self;
        let check = |forward: &SliceForward| refuse(forward, reserved, listen, local, facts.now);
        entries.update(gone, come, is_new, facts.now, &check)
    }

    /// Whether the table would be another one on a node with these addresses.
    #[must_use]
    pub fn depends_on(&self, addresses: &[LocalAddress]) -> bool {
        let mut local = addresses.to_vec();
        local.sort_unstable();
        self.depends_on_change_to(&local)
    }

    /// Whether an address that is in only one of `local`, which is sorted, and what is known matters to a forward.
    fn depends_on_change_to(&self, local: &[LocalAddress]) -> bool {
        let Some(node) = &self.node else { return true };
        let only_in = |some: &[LocalAddress], others: &[LocalAddress]| {
            let differs = |own: &&LocalAddress| others.binary_search(own).is_err();
            some.iter().filter(differs).any(|own| is_wanted(node, own) || self.entries.concerns(own))
        };
        only_in(&self.local, local) || only_in(local, &self.local)
    }

    /// What connection tracking of the node does.
    #[must_use]
    pub fn tracking(&self) -> Tracking {
        self.tracking
    }

    /// The listen addresses that are really on the node, in order.
    #[must_use]
    pub fn listen(&self) -> &[IpAddr] {
        self.listen.here()
    }

    /// Whether this is an address of the node now.
    #[must_use]
    pub fn is_here(&self, listen: IpAddr) -> bool {
        self.listen.is_here(listen)
    }

    /// The addresses on which something is forwarded, or would be, in order.
    #[must_use]
    pub fn known_addresses(&self) -> Vec<IpAddr> {
        let bound = self.bindings().map(|binding| binding.listen);
        let all: BTreeSet<IpAddr> = self.listen.known().iter().copied().chain(bound).collect();
        all.into_iter().collect()
    }

    /// In order of the forwards' references; those of a forward by family, port and address.
    pub fn bindings(&self) -> impl Iterator<Item = Binding<'_>> {
        self.entries.carried().flat_map(|forward| bindings(forward, &self.listen))
    }

    /// The forwards without bindings here, in order of their references.
    pub fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.entries.failures()
    }

    /// The bindings of `family`, a list for each forward that has any, in order.
    pub fn by_forward(&self, family: Family) -> impl Iterator<Item = Vec<Binding<'_>>> {
        let of_family = move |forward| {
            let bindings = bindings(forward, &self.listen).filter(|binding| binding.family() == family);
            Some(bindings.collect::<Vec<_>>()).filter(|bindings| !bindings.is_empty())
        };
        self.entries.carried().filter_map(move |entry| of_family(&**entry))
    }

    /// The bindings of one forward.
    #[must_use]
    pub fn bindings_of<'a>(&self, forward: &'a SliceForward) -> Vec<Binding<'a>> {
        bindings(forward, &self.listen).collect()
    }

    /// Whether nothing of `family` is forwarded.
    #[must_use]
    pub fn is_empty(&self, family: Family) -> bool {
        self.bindings().all(|binding| binding.family() != family)
    }

    /// Whether nothing is forwarded.
    #[must_use]
    pub fn carries_nothing(&self) -> bool {
        self.entries.carried().next().is_none()
    }
}

#[cfg(test)]
mod tests;
