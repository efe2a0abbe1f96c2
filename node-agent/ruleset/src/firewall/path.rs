//! The packets between a forward's clients and its targets, and the whole of their way through the host's firewalls.
//!
//! A connection is three packets here: the one that opens it, on which addresses are translated and marks are set; an answer;
//! and a later request. Each passes every base chain, in the kernel's order.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;

use ipnet::IpNet;
use sallyport_api::names::MARK_OURS;
use sallyport_api::{Protocol, SourceNatMode};

use crate::binding::Binding;
use crate::family::Family;
use crate::firewall::leg::{Leg, MASQUERADED, any_packet, is_post_snat, is_pre_dnat, is_translated};
use crate::firewall::packet::{Fit, Original, Packet, Side, number, protocol_name};
use crate::firewall::ranges::cells;
use crate::firewall::screen::{Screen, Stage};
use crate::firewall::walk::{At, End, Listing, MARKS, Outcome, walk};
use crate::firewall::{AddressType, BaseChain, Hook, State, range_of};

/// So many packets of one forward are followed for each kind of what may be wrong with them.
pub(super) const PATHS: usize = 1_024;

/// The packets of a path as a chain sees them that is asked before any translation, in the direction in which it drops them.
pub(super) struct PreDnat {
    pub(super) request: bool,
    pub(super) protocol: &'static str,
    pub(super) ip: IpAddr,
    pub(super) port: u16,
}

/// The packets between clients that are alike and one target, on one of the forward's ports; `None` where nothing is known,
/// since there is no forward yet.
#[derive(Clone)]
pub(super) struct ClientPath<'a> {
    pub(super) family: Family,
    pub(super) protocol: Option<Protocol>,
    pub(super) clients: Option<Rc<[RangeInclusive<IpAddr>]>>,
    pub(super) client_side: Side<'a>,
    /// The gateway's addresses, behind one of which clients may be hidden.
    pub(super) own: Option<Rc<[RangeInclusive<IpAddr>]>>,
    pub(super) listen: Option<Rc<[RangeInclusive<IpAddr>]>>,
    pub(super) listen_port: Option<RangeInclusive<u16>>,
    pub(super) target: Option<Rc<[RangeInclusive<IpAddr>]>>,
    pub(super) target_side: Side<'a>,
    pub(super) target_port: Option<RangeInclusive<u16>>,
    pub(super) source_nat: Option<SourceNatMode>,
}

/// The paths of one forward, whose `bindings` of one family these are: one for each binding, target and
/// allowed network.
pub(super) fn client_paths<'a>(
    bindings: &[Binding<'_>],
    own: &Rc<[RangeInclusive<IpAddr>]>,
    interface: &'a dyn Fn(IpNet) -> Option<String>,
) -> impl Iterator<Item = (IpNet, ClientPath<'a>)> {
    let first = bindings.first();
    let denied: Vec<IpNet> = first.into_iter().flat_map(Binding::denied).collect();
    let allowed = first.into_iter().flat_map(Binding::allowed);
    let allowed: Vec<(IpNet, Rc<[_]>)> = allowed
        .filter(|net| !denied.iter().any(|denied| denied.contains(net)))
        .map(|net| (net, [range_of(net)].into()))
        .collect();
    target_paths(bindings, own, interface).flat_map(move |path| {
        let of_clients = |(net, clients): &(IpNet, Rc<[_]>)| {
            let client_side = Side::Towards(*net, interface);
            (*net, ClientPath { clients: Some(Rc::clone(clients)), client_side, ..path.clone() })
        };
        allowed.iter().map(of_clients).collect::<Vec<_>>()
    })
}

/// The same from anybody: one for each binding and target.
pub(super) fn target_paths<'a>(
    bindings: &[Binding<'_>],
    own: &Rc<[RangeInclusive<IpAddr>]>,
    interface: &'a dyn Fn(IpNet) -> Option<String>,
) -> impl Iterator<Item = ClientPath<'a>> {
    let targets = bindings.first().into_iter().flat_map(Binding::targets).filter(|target| target.weight > 0);
    let targets: Vec<(IpAddr, Rc<[_]>)> = targets.map(|target| (target.ip, [target.ip..=target.ip].into())).collect();
    let own = Rc::clone(own);
    bindings.iter().flat_map(move |binding| {
        let (port, source_nat) = (binding.port, Some(binding.source_nat()));
        let listen: Rc<[_]> = [binding.listen..=binding.listen].into();
        let to_target = |(ip, target): &(IpAddr, Rc<[_]>)| ClientPath {
            protocol: Some(port.protocol),
            own: Some(Rc::clone(&own)),
            listen: Some(Rc::clone(&listen)),
            listen_port: Some(port.port..=port.end_port),
            target: Some(Rc::clone(target)),
            target_side: Side::Towards((*ip).into(), interface),
            target_port: Some(port.target_port..=port.target_port + (port.end_port - port.port)),
            source_nat,
            ..ClientPath::any(binding.family())
        };
        targets.iter().map(to_target).collect::<Vec<_>>()
    })
}

impl ClientPath<'_> {
    /// The same packets by port: those on each range of ports in which all rules treat them alike. Where these are more than
    /// `most`, the last ones are together.
    pub(super) fn by_port(self, screen: &Screen, most: usize) -> Vec<Self> {
        let (Some(listen), Some(target)) = (&self.listen_port, &self.target_port) else { return vec![self] };
        if listen.start() == listen.end() {
            return vec![self];
        }
        // Some rules see the port that clients connect to, others that of the target.
        let there = screen.ports.iter().filter_map(|ports| {
            let back = |port: u16| i32::from(port) - i32::from(*target.start()) + i32::from(*listen.start());
            let clamp = |port: i32| u16::try_from(port.clamp(0, 65535)).ok();
            let (first, last) = (back(*ports.start()), back(*ports.end()));
            (last >= 0 && first <= 65535).then(|| Some(clamp(first)?..=clamp(last)?))?
        });
        let mut cells = cells(std::slice::from_ref(listen), screen.ports.iter().cloned().chain(there));
        let most = most.max(1);
        if cells.len() > most {
            let rest = *cells[most - 1].start()..=*listen.end();
            cells.truncate(most - 1);
            cells.push(rest);
        }
        let there = |port: u16| target.start() + (port - listen.start());
        let one = |ports: RangeInclusive<u16>| Self {
            target_port: Some(there(*ports.start())..=there(*ports.end())),
            listen_port: Some(ports),
            ..self.clone()
        };
        cells.into_iter().map(one).collect()
    }
}

/// What is wrong with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wrong {
    /// Clients who are not listed get to the target.
    LetIn,
    /// They are dropped.
    Dropped,
    /// Connection tracking leaves them alone, so that nothing translates them.
    Untracked,
    /// They go to another destination, or never get to our rules.
    Diverted,
    /// Those of somebody else's clients would no longer get where they go today.
    Held,
    /// Our bits of the connection mark are overwritten.
    Marked,
    /// Their source address is not kept although the forward asks for that.
    Renamed,
    /// Their source address is kept although the forward hides it.
    Unhidden,
    /// Nobody can tell what becomes of them.
    Untold,
}

/// What a rule does to the packets of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) wrong: Wrong,
    /// To all of them, and not just perhaps.
    pub(super) certain: bool,
    /// Where: the base chain by its place in the screen, and the rule; `None` for its policy.
    pub(super) stage: usize,
    pub(super) at: Option<At>,
    pub(super) leg: Leg,
}

impl ClientPath<'_> {
    /// That of any forward that there could be.
    pub(super) fn any(family: Family) -> Self {
        Self {
            family,
            protocol: None,
            clients: None,
            client_side: Side::Unknown,
            own: None,
            listen: None,
            listen_port: None,
            target: None,
            target_side: Side::Unknown,
            target_port: None,
            source_nat: None,
        }
    }

    /// The bits of the connection mark that are ours, and what our rules set there.
    fn mark(&self) -> (u32, u32) {
        match self.source_nat {
            Some(SourceNatMode::Masquerade) => (MARKS, MARKS),
            Some(SourceNatMode::Preserve) => (MARKS, MARK_OURS),
            None => (MARK_OURS, MARK_OURS),
        }
    }

    /// Follows these packets through all of `screen`, up to what ends them for certain.
    pub(super) fn follow(&self, screen: &Screen) -> Vec<Finding> {
        let mut found = Vec::new();
        let (mask, bits) = self.mark();
        let mut connection = (u32::MAX, 0);
        for leg in [Leg::First, Leg::Answer, Leg::Later] {
            // What comes off the wire has no mark.
            let mut marks = (connection, (u32::MAX, 0));
            let (mut is_ours, mut is_renamed) = (leg != Leg::First, leg != Leg::First);
            for (number, stage) in screen.stages.iter().enumerate() {
                let base = &stage.base;
                if base.translates && (leg != Leg::First || is_translated(base, is_ours, is_renamed)) {
                    continue;
                }
                let mut packet = Packet { mark: marks.0, own_mark: marks.1, ..self.packet(base, leg) };
                let outcome = walk(stage, &mut packet, Listing::Listed(mask, bits));
                marks = (packet.mark, packet.own_mark);
                is_ours |= outcome.end == End::Ours;
                is_renamed |= base.hook == Hook::Postrouting && matches!(outcome.end, End::Renamed(_) | End::Ours);
                let marked = is_ours && (marks.0.0 & mask, marks.0.1 & mask) != (mask, bits);
                let before = found.len();
                found.extend(self.judge(stage, &outcome).map(|(wrong, certain, at)| {
                    let certain = certain && !(stage.tied && wrong == Wrong::Diverted);
                    Finding { wrong, certain, stage: number, at, leg }
                }));
                if marked {
                    // Where nobody can tell they are taken to be left alone.
                    let certain = (marks.0.1 ^ bits) & mask & marks.0.0 != 0;
                    found.push(Finding { wrong: Wrong::Marked, certain, stage: number, at: outcome.marked, leg });
                    marks.0 = (marks.0.0 | mask, marks.0.1 & !mask | bits);
                }
                if found[before..].iter().any(|finding| finding.certain) {
                    return found;
                }
            }
            connection = (marks.0.0 | mask, marks.0.1 & !mask | bits);
        }
        found
    }

    /// What the outcome in one base chain means for packets that ours are to translate.
    fn judge(&self, stage: &Stage, outcome: &Outcome) -> impl Iterator<Item = (Wrong, bool, Option<At>)> {
        let incoming = stage.base.hook.is_incoming();
        let lost = incoming && stage.base.translates && stage.ours;
        let keeps = self.source_nat == Some(SourceNatMode::Preserve);
        let hides = self.source_nat == Some(SourceNatMode::Masquerade) && stage.base.hook == Hook::Postrouting;
        let exposes = hides && stage.base.translates && stage.ours;
        let meaning = move |end: End| match end {
            End::Dropped(at) => Some((Wrong::Dropped, at)),
            End::Sent(at) if incoming => Some((Wrong::Diverted, Some(at))),
            // Of the translations in the table of ours nothing that stands before our jump may end.
            End::Accepted(at) if lost => Some((Wrong::Diverted, Some(at))),
            End::Back(at) if lost => Some((Wrong::Diverted, at)),
            End::Renamed(at) if keeps => Some((Wrong::Renamed, Some(at))),
            End::Accepted(at) if exposes => Some((Wrong::Unhidden, Some(at))),
            End::Back(at) if exposes => Some((Wrong::Unhidden, at)),
            End::HandedOver(at) | End::Untold(at) => Some((Wrong::Untold, Some(at))),
            End::Untracked(at) => Some((Wrong::Untracked, Some(at))),
            End::Sent(_) | End::Accepted(_) | End::Back(_) | End::Renamed(_) | End::Ours => None,
        };
        let whole = meaning(outcome.end).map(|(wrong, at)| (wrong, !outcome.left, at));
        // A rule that names what it is about is about that.
        let some = outcome.some.iter().filter(|(fit, _)| *fit > Fit::Some);
        let some = some.filter_map(move |(fit, end)| {
            let (wrong, at) = meaning(*end)?;
            Some((wrong, *fit == Fit::All && wrong == Wrong::Untracked, at))
        });
        whole.into_iter().chain(some.collect::<Vec<_>>())
    }

    /// Those before any translation, in one of the directions.
    pub(super) fn pre_dnat(&self, request: bool) -> Option<PreDnat> {
        let (addresses, port) =
            if request { (&self.listen, &self.listen_port) } else { (&self.target, &self.target_port) };
        let ip = *addresses.as_ref()?.first()?.start();
        Some(PreDnat { request, protocol: protocol_name(self.protocol?), ip, port: *port.as_ref()?.start() })
    }

    /// One of the packets as `base` sees it.
    pub(super) fn packet<'s>(&'s self, base: &BaseChain, leg: Leg) -> Packet<'s> {
        let any = any_packet(self.family, base, leg);
        let Some(source_nat) = self.source_nat else { return any };
        let masquerades = source_nat == SourceNatMode::Masquerade;
        let (before, after) = (is_pre_dnat(base), is_post_snat(base));
        // Masqueraded connections have the gateway's own address on the side of the target.
        let hidden = masquerades && if any.reply { before } else { after && !base.translates };
        let clients = self.clients.clone().filter(|_| !hidden);
        let client_type = if hidden { AddressType::Local } else { AddressType::Unicast };
        let outward = |side| if base.hook.is_incoming() { Side::Unknown } else { side };
        let known = Packet {
            protocol: self.protocol.map(number),
            own: self.own.clone().filter(|_| hidden),
            original: Original {
                sources: self.clients.clone(),
                destinations: self.listen.clone(),
                port: self.listen_port.clone(),
            },
            states: match any.states {
                Some([State::Established, State::Dnat]) if masquerades => Some(MASQUERADED),
                states => states,
            },
            ..any
        };
        if known.reply {
            // The answer's source is the target until the very end, where it becomes the listen address.
            let (from, port) =
                if after { (&self.listen, &self.listen_port) } else { (&self.target, &self.target_port) };
            return Packet {
                sources: from.clone(),
                source_port: port.clone(),
                source_type: Some(if after { AddressType::Local } else { AddressType::Unicast }),
                destinations: clients,
                destination_type: Some(client_type),
                inward: self.target_side,
                outward: outward(self.client_side),
                ..known
            };
        }
        let (to, port) = if before { (&self.listen, &self.listen_port) } else { (&self.target, &self.target_port) };
        Packet {
            sources: clients,
            source_type: Some(client_type),
            destinations: to.clone(),
            destination_port: port.clone(),
            inward: self.client_side,
            outward: outward(self.target_side),
            ..known
        }
    }
}
