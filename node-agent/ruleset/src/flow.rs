//! Connections as the kernel tracks them, and which of them have to end.
//!
//! The rule that accepts our flows is constant, so a connection outlives the rule that let it in unless its conntrack
//! entry goes too. Pure: reading and deleting entries is the engine's.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use sallyport_api::forward_slice::SliceForward;
use sallyport_api::intent::{Intent, IntentPort, IntentTarget};
use sallyport_api::names::MARK_OURS;
use sallyport_api::{OnTargetRemoved, Protocol};

use crate::binding::Binding;
use crate::table::ForwardingTable;

/// One direction of a tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Who sends in this direction.
    pub src: SocketAddr,
    /// Who receives in this direction, before any translation.
    pub dst: SocketAddr,
}

/// A tracked TCP or UDP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// TCP or UDP; no others are looked at.
    pub protocol: Protocol,
    /// As the client sent it.
    pub original: Tuple,
    /// As the answers come: its source is the real server.
    pub reply: Tuple,
    /// Connection mark.
    pub mark: u32,
    /// Whether the destination was translated (`IPS_DST_NAT`).
    pub dnat: bool,
    /// The kernel's id of the entry (`CTA_ID`): tells it from most successors with equal tuples, not from all.
    pub id: u32,
    /// Conntrack zone (`CTA_ZONE`), 0 unless somebody set one.
    pub zone: u16,
    /// Whether it is a TCP connection that has ended and that the kernel only remembers (`TIME_WAIT`, `CLOSE`).
    pub is_over: bool,
}

impl Flow {
    /// Whether a DNAT rule of ours took it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.dnat && self.mark & MARK_OURS != 0
    }
}

type ByPort<'a> = BTreeMap<u16, (IntentPort, &'a SliceForward)>;

/// The connections that a node's programmed forwards allow.
#[derive(Debug, Default)]
pub struct Allowed<'a> {
    /// By listen address, protocol and first port; claims are disjoint, so one entry covers a port.
    claims: BTreeMap<(IpAddr, Protocol), ByPort<'a>>,
}

impl<'a> Allowed<'a> {
    /// What `table` allows.
    #[must_use]
    pub fn new(table: &'a ForwardingTable) -> Self {
        let mut allowed = Self::default();
        for Binding { forward, listen, port } in table.bindings() {
            allowed.claims.entry((listen, port.protocol)).or_default().insert(port.port, (port, forward));
        }
        allowed
    }

    fn find(&self, flow: &Flow) -> Option<(IntentPort, &'a SliceForward)> {
        let port = flow.original.dst.port();
        let ports = self.claims.get(&(flow.original.dst.ip(), flow.protocol))?;
        let (_, (range, forward)) = ports.range(..=port).next_back()?;
        let admitted = port <= range.end_port && admits(&forward.intent, flow.original.src.ip());
        admitted.then_some((*range, *forward))
    }

    /// Whether this flow, which is ours, has to end: its forward is gone or no longer admits the client, or its target is
    /// gone. A TCP connection to a removed target is let finish unless its forward says `Sever`.
    #[must_use]
    pub fn forbids(&self, flow: &Flow) -> bool {
        if !flow.is_ours() {
            return false;
        }
        let Some((range, forward)) = self.find(flow) else { return true };
        let severed = flow.protocol == Protocol::Udp || forward.intent.on_target_removed == OnTargetRemoved::Sever;
        severed && delivered_to(&forward.intent, range, flow).is_none()
    }

    /// The forward of this flow, if the flow is ours, may go on, and would not go where it goes if it began now: its
    /// target was removed, or has weight 0.
    #[must_use]
    pub fn drains(&self, flow: &Flow) -> Option<&'a SliceForward> {
        if !flow.is_ours() || flow.is_over || self.forbids(flow) {
            return None;
        }
        let (range, forward) = self.find(flow)?;
        let takes_new = delivered_to(&forward.intent, range, flow).is_some_and(|target| target.weight > 0);
        (!takes_new).then_some(forward)
    }

    /// Whether any forward takes UDP.
    #[must_use]
    pub fn any_udp(&self) -> bool {
        self.claims.keys().any(|(_, protocol)| *protocol == Protocol::Udp)
    }

    /// Whether this is a UDP flow to a port of a forward that does not go through it, because it began before the
    /// rules were there: only the first packet of a flow is translated, so it never would.
    #[must_use]
    pub fn bypasses(&self, flow: &Flow) -> bool {
        flow.protocol == Protocol::Udp && !flow.is_ours() && self.find(flow).is_some()
    }
}

fn admits(intent: &Intent, client: IpAddr) -> bool {
    intent.allow.iter().any(|net| net.contains(&client)) && !intent.deny.iter().any(|net| net.contains(&client))
}

/// The target of the intent that a flow goes to, if it goes to the right port of one.
fn delivered_to<'a>(intent: &'a Intent, range: IntentPort, flow: &Flow) -> Option<&'a IntentTarget> {
    let server = flow.reply.src;
    let offset = flow.original.dst.port() - range.port;
    intent.targets.iter().find(|target| target.ip == server.ip() && server.port() == range.target_port + offset)
}

#[cfg(test)]
mod tests;
