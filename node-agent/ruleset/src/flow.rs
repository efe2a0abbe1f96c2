//! Connections as the kernel tracks them, and which of them have to end.
//!
//! The rule that accepts our flows is constant, so a connection outlives the rule that let it in unless its conntrack
//! entry goes too. Pure: reading and deleting entries is the engine's.

mod review;
mod translations;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use sallyport_api::forward_slice::SliceForward;
use sallyport_api::intent::{Intent, IntentPort, IntentTarget};
use sallyport_api::names::{MARK_MASQUERADE, MARK_OURS};
use sallyport_api::{OnTargetRemoved, Protocol, SourceNatMode};

pub use self::review::{Review, Reviewed};
pub use self::translations::Translations;
use crate::binding::Binding;
use crate::family::Family;
use crate::table::ForwardingTable;

/// One direction of a tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Who sends in this direction.
    pub src: SocketAddr,
    /// Who receives in this direction, before any translation.
    pub dst: SocketAddr,
}

/// How a connection begins: its protocol, and the direction in which the client sends. No two in one zone begin alike.
pub type Start = (Protocol, Tuple);

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// TCP that was not answered yet (`SYN_SENT`).
    Opening,
    /// Under way, as UDP always is.
    Open,
    /// TCP that has ended and that the kernel only remembers (`TIME_WAIT`, `CLOSE`).
    Over,
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
    /// The connection for which a helper of the kernel expected this one (`CTA_TUPLE_MASTER`), as FTP's control connection is
    /// for those that carry files.
    pub master: Option<Start>,
    /// Connection mark.
    pub mark: u32,
    /// Whether the destination was translated (`IPS_DST_NAT`).
    pub dnat: bool,
    /// The kernel's id of the entry (`CTA_ID`): tells it from most successors with equal tuples, not from all.
    pub id: u32,
    /// Conntrack zone (`CTA_ZONE`), 0 unless somebody set one.
    pub zone: u16,
    /// How far it has come.
    pub stage: Stage,
}

impl Flow {
    /// How it began.
    #[must_use]
    pub fn start(&self) -> Start {
        (self.protocol, self.original)
    }

    /// Whether it has the mark that our DNAT rules set, which nobody else does.
    #[must_use]
    pub fn has_our_mark(&self) -> bool {
        self.mark & MARK_OURS != 0
    }

    /// Whether a DNAT rule of ours took it, for it has our mark or goes the way of one of `translations`. In a zone that
    /// somebody made, addresses may be those of another network: there the mark alone tells.
    #[must_use]
    pub fn is_ours(&self, translations: &Translations) -> bool {
        self.dnat && (self.has_our_mark() || self.zone == 0 && translations.lead(self))
    }

    /// Whether its source was treated in another way than `wanted`. Without our mark it may have stayed the same because the mark
    /// that asks for masquerading was overwritten.
    fn differs_from(&self, wanted: SourceNatMode) -> bool {
        let (marked, masqueraded) = (self.has_our_mark(), self.mark & MARK_MASQUERADE != 0);
        match wanted {
            SourceNatMode::Masquerade => marked && !masqueraded,
            SourceNatMode::Preserve if marked => masqueraded,
            SourceNatMode::Preserve => self.reply.dst.ip() != self.original.src.ip(),
        }
    }
}

type ByPort<'a> = BTreeMap<u16, (IntentPort, &'a SliceForward)>;

/// The connections that a node's programmed forwards allow.
#[derive(Debug)]
pub struct Allowed<'a> {
    /// By listen address, protocol and first port; claims are disjoint, so one entry covers a port.
    claims: BTreeMap<(IpAddr, Protocol), ByPort<'a>>,
    /// The listen addresses that are on the node, in order.
    here: &'a [IpAddr],
    past: &'a Translations,
}

impl<'a> Allowed<'a> {
    /// What `table` allows, where rules that have gone since may have taken connections by `past`.
    #[must_use]
    pub fn new(table: &'a ForwardingTable, past: &'a Translations) -> Self {
        let mut claims: BTreeMap<_, ByPort<'_>> = BTreeMap::new();
        for Binding { forward, listen, port } in table.bindings() {
            claims.entry((listen, port.protocol)).or_default().insert(port.port, (port, forward));
        }
        Self { claims, here: table.listen(), past }
    }

    /// The translations of rules that have gone.
    #[must_use]
    pub fn past(&self) -> &'a Translations {
        self.past
    }

    /// The forward that claims the destination of connections that begin so.
    fn claim(&self, (protocol, tuple): &Start) -> Option<(IntentPort, &'a SliceForward)> {
        let port = tuple.dst.port();
        let ports = self.claims.get(&(tuple.dst.ip(), *protocol))?;
        let (_, (range, forward)) = ports.range(..=port).next_back()?;
        (port <= range.end_port).then_some((*range, *forward))
    }

    /// The forward that takes connections that begin so.
    fn find(&self, start: &Start) -> Option<(IntentPort, &'a SliceForward)> {
        self.claim(start).filter(|(_, forward)| admits(&forward.intent, start.1.src.ip()))
    }

    /// Whether connections that begin so are let in.
    fn admits(&self, start: &Start) -> bool {
        self.find(start).is_some()
    }

    /// Whether a DNAT rule that is there, or was, took this connection.
    #[must_use]
    pub fn is_ours(&self, flow: &Flow) -> bool {
        let leads_there = || {
            let claim = self.claim(&flow.start());
            claim.is_some_and(|(range, forward)| delivered_to(&forward.intent, range, flow).is_some())
        };
        flow.is_ours(self.past) || flow.dnat && flow.zone == 0 && leads_there()
    }

    /// Whether this flow has to end, if it is ours and follows no other: its forward is gone, no longer admits the client or
    /// treats its address in another way, or its target is gone. A TCP connection to a removed target is let finish unless its
    /// forward says `Sever`.
    #[must_use]
    pub fn forbids(&self, flow: &Flow) -> bool {
        if flow.master.is_some() || !self.is_ours(flow) {
            return false;
        }
        let Some((range, forward)) = self.find(&flow.start()) else { return true };
        let severed = flow.protocol == Protocol::Udp || forward.intent.on_target_removed == OnTargetRemoved::Sever;
        flow.differs_from(forward.intent.source_nat) || severed && delivered_to(&forward.intent, range, flow).is_none()
    }

    /// The forward of this flow, if the flow is ours, may go on, and would not go where it goes if it began now: its
    /// target was removed, or has weight 0.
    #[must_use]
    pub fn drains(&self, flow: &Flow) -> Option<&'a SliceForward> {
        if flow.stage == Stage::Over || flow.master.is_some() || !self.is_ours(flow) || self.forbids(flow) {
            return None;
        }
        let (range, forward) = self.find(&flow.start())?;
        let takes_new = delivered_to(&forward.intent, range, flow).is_some_and(|target| target.weight > 0);
        (!takes_new).then_some(forward)
    }

    /// The addresses that rules which are there, or were, take connections from.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.claims.keys().map(|(listen, _)| *listen).chain(self.past.addresses()).collect()
    }

    /// The families and protocols of which there are forwards.
    #[must_use]
    pub fn kinds(&self) -> BTreeSet<(Family, Protocol)> {
        self.claims.keys().map(|(listen, protocol)| (Family::of(*listen), *protocol)).collect()
    }

    /// Whether this flow is one to a port of a forward that does not go through it, because it began before the rules were
    /// there, or the address was: only the first packet of a flow is translated, so it never would. TCP that was answered is
    /// somebody's conversation; what was not answered has lost nothing.
    #[must_use]
    pub fn bypasses(&self, flow: &Flow) -> bool {
        let is_stuck = flow.protocol == Protocol::Udp || flow.stage == Stage::Opening;
        // What goes to an address that is away is merely routed.
        let is_here = self.here.binary_search(&flow.original.dst.ip()).is_ok();
        is_stuck && !flow.dnat && flow.zone == 0 && is_here && self.admits(&flow.start())
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
