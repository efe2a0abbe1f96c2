//! The packets between a forward's clients and its targets, as each chain on their way sees them.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use sallyport_api::forward_slice::ForwardRef;
use sallyport_api::names::{MARK_MASQUERADE, MARK_OURS};
use sallyport_api::{Protocol, SourceNatMode};

use crate::binding::Binding;
use crate::family::Family;
use crate::firewall::packet::{Packet, number, protocol_name};
use crate::firewall::walk::{Fate, fate};
use crate::firewall::{BaseChain, FirewallTable, Hook, State, range_of};

/// Priority at which connection tracking begins (`NF_IP_PRI_CONNTRACK`, `include/uapi/linux/netfilter_ipv4.h`).
const CONNTRACK: i32 = -200;
/// Priority at which our rules translate destinations (`NF_IP_PRI_NAT_DST`).
const DNAT: i32 = -100;
/// Priority at which source addresses are rewritten (`NF_IP_PRI_NAT_SRC`).
const SNAT: i32 = 100;

/// Whether the destination is still the gateway in `base`, and our mark not yet there to be seen.
pub(super) fn is_pre_dnat(base: &BaseChain) -> bool {
    base.hook == Hook::Prerouting && base.priority <= DNAT
}

/// The packets of a path as a chain sees them that is asked before any translation, in the direction in which it drops them.
pub(super) struct PreDnat {
    pub(super) request: bool,
    pub(super) protocol: &'static str,
    pub(super) ip: IpAddr,
    pub(super) port: u16,
}

/// What is known of every packet of every forward.
pub(super) fn any_packet(family: Family, base: &BaseChain, reply: bool) -> Packet {
    let states: &'static [State] = match (reply, is_pre_dnat(base)) {
        (false, true) => &[State::New],
        (false, false) => &[State::New, State::Dnat],
        (true, _) => &[State::Established, State::Dnat],
    };
    let tracked = base.hook != Hook::Prerouting || base.priority > CONNTRACK;
    // A mark is set where destinations are translated.
    let marked = tracked && (reply || !is_pre_dnat(base));
    Packet {
        states: tracked.then_some(states),
        mark: if marked { (MARK_OURS, MARK_OURS) } else { (0, 0) },
        reply,
        ..Packet::of(family)
    }
}

/// The packets between a forward's clients and one of its targets, on one of its ports.
pub(super) struct ClientPath<'a> {
    pub(super) forward: &'a ForwardRef,
    family: Family,
    protocol: Protocol,
    clients: Vec<RangeInclusive<IpAddr>>,
    client_side: Option<Vec<String>>,
    listen: Vec<RangeInclusive<IpAddr>>,
    listen_port: RangeInclusive<u16>,
    target: IpAddr,
    target_side: Option<Vec<String>>,
    target_port: RangeInclusive<u16>,
    source_nat: SourceNatMode,
}

/// The paths of one forward, whose `bindings` of one family these are.
pub(super) fn client_paths<'a>(
    bindings: &[Binding<'a>],
    interface: &dyn Fn(IpNet) -> Option<String>,
) -> Vec<ClientPath<'a>> {
    let Some(first) = bindings.first() else { return Vec::new() };
    let clients: Vec<_> = first.allowed().map(range_of).collect();
    let client_side: Option<Vec<String>> = first.allowed().map(interface).collect();
    let mut paths = Vec::new();
    for target in first.targets().filter(|target| target.weight > 0) {
        let target_side = interface(target.ip.into()).map(|name| vec![name]);
        for bindings in bindings.chunk_by(|a, b| a.port == b.port) {
            let port = bindings[0].port;
            paths.push(ClientPath {
                forward: &first.forward.r#ref,
                family: first.family(),
                protocol: port.protocol,
                clients: clients.clone(),
                client_side: client_side.clone(),
                listen: bindings.iter().map(|binding| binding.listen..=binding.listen).collect(),
                listen_port: port.port..=port.end_port,
                target: target.ip,
                target_side: target_side.clone(),
                target_port: port.target_port..=port.target_port + (port.end_port - port.port),
                source_nat: first.source_nat(),
            });
        }
    }
    paths
}

impl ClientPath<'_> {
    /// What the chain does with requests or answers, whichever fare worse.
    pub(super) fn fate(&self, table: &FirewallTable, base: &BaseChain) -> Fate {
        fate(table, base, &self.request(base)).max(fate(table, base, &self.answer(base)))
    }

    fn known(&self, base: &BaseChain, reply: bool) -> Packet {
        let any = any_packet(self.family, base, reply);
        let protocol = number(self.protocol);
        let mark = match self.source_nat {
            _ if any.mark.0 == 0 => any.mark,
            SourceNatMode::Masquerade => (MARK_OURS | MARK_MASQUERADE, MARK_OURS | MARK_MASQUERADE),
            SourceNatMode::Preserve => (MARK_OURS | MARK_MASQUERADE, MARK_OURS),
        };
        Packet { protocol: Some(protocol), mark, ..any }
    }

    /// Whether the chain sees packets from or to the gateway's own address on the side of the target.
    fn masqueraded(&self, base: &BaseChain, reply: bool) -> bool {
        let translated = match base.hook {
            Hook::Prerouting => reply && is_pre_dnat(base),
            Hook::Forward => false,
            Hook::Postrouting => !reply && base.priority >= SNAT,
        };
        translated && self.source_nat == SourceNatMode::Masquerade
    }

    /// Those before any translation, in one of the directions.
    pub(super) fn pre_dnat(&self, request: bool) -> PreDnat {
        let protocol = protocol_name(self.protocol);
        match self.listen.first() {
            Some(ip) if request => PreDnat { request, protocol, ip: *ip.start(), port: *self.listen_port.start() },
            _ => PreDnat { request: false, protocol, ip: self.target, port: *self.target_port.start() },
        }
    }

    pub(super) fn request(&self, base: &BaseChain) -> Packet {
        let before = is_pre_dnat(base);
        let to = if before { self.listen.clone() } else { vec![self.target..=self.target] };
        Packet {
            sources: (!self.masqueraded(base, false)).then(|| self.clients.clone()),
            destinations: Some(to),
            destination_port: Some(if before { self.listen_port.clone() } else { self.target_port.clone() }),
            inward: self.client_side.clone(),
            outward: if base.hook == Hook::Prerouting { None } else { self.target_side.clone() },
            ..self.known(base, false)
        }
    }

    pub(super) fn answer(&self, base: &BaseChain) -> Packet {
        // The answer's source is the target until the very end, where it becomes the listen address.
        let after = base.hook == Hook::Postrouting && base.priority >= SNAT;
        let (from, port) = if after {
            (self.listen.clone(), &self.listen_port)
        } else {
            (vec![self.target..=self.target], &self.target_port)
        };
        Packet {
            sources: Some(from),
            destinations: (!self.masqueraded(base, true)).then(|| self.clients.clone()),
            source_port: Some(port.clone()),
            inward: self.target_side.clone(),
            outward: if base.hook == Hook::Prerouting { None } else { self.client_side.clone() },
            ..self.known(base, true)
        }
    }
}
