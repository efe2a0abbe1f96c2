//! Clients who are not listed: whether somebody else's rules bring them to a forward's target through its port.
//!
//! Our rules let them go on untouched, so what may happen to them is for the others to say. Only where one of those sends
//! packets to the very target is anybody followed: one client for each range of addresses in which all rules treat everybody
//! alike, on each such range of ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::rc::Rc;

use ipnet::IpNet;

use crate::binding::Binding;
use crate::family::Family;
use crate::firewall::leg::{Leg, is_translated};
use crate::firewall::packet::{Fit, Packet, Side};
use crate::firewall::path::{ClientPath, Finding, PATHS, Wrong, target_paths};
use crate::firewall::ranges::cells;
use crate::firewall::rules::Act;
use crate::firewall::screen::{Screen, Stage};
use crate::firewall::walk::{At, End, Listing, Outcome, walk};
use crate::firewall::{To, What, range_of};

/// Somebody who is let in.
pub(super) struct Stranger {
    pub(super) finding: Finding,
    /// The addresses of all who fare alike.
    pub(super) clients: RangeInclusive<IpAddr>,
}

/// The first who is let in to a target of the forward whose `bindings` of one family these are, for certain if there is
/// such a one; the gateway itself, whose addresses are `own`, is no client.
pub(super) fn stranger(
    screen: &Screen,
    own: &Rc<[RangeInclusive<IpAddr>]>,
    bindings: &[Binding<'_>],
    interface: &dyn Fn(IpNet) -> Option<String>,
) -> Option<Stranger> {
    let first = bindings.first()?;
    let leads = |binding: &Binding<'_>| {
        let ports = binding.port.port..=binding.port.end_port;
        screen.doors.iter().any(|to| {
            let offset = binding.port.target_port.wrapping_sub(binding.port.port);
            first.targets().any(|target| goes(to, target.ip, &ports, offset))
        })
    };
    // Almost always none of them does.
    if screen.doors.is_empty() || !bindings.iter().any(leads) {
        return None;
    }
    let clients = unlisted(screen, own, first);
    // Behind a way that is not known, rules that ask for it may be met.
    let one_by_one = clients.iter().map(|range| {
        let client = around(range);
        (range.clone(), [range.clone()].into(), Side::Towards(client, interface))
    });
    let everybody = || {
        let whole = Some(*clients.first()?.start()..=*clients.last()?.end());
        whole.map(|range| (range, clients.iter().cloned().collect(), Side::Unknown))
    };
    let targets: Vec<ClientPath<'_>> = target_paths(bindings, own, interface).collect();
    let most = PATHS / targets.len().max(1);
    let paths: Vec<ClientPath<'_>> = targets.into_iter().flat_map(|path| path.by_port(screen, most)).collect();
    // More clients than can be followed one by one are followed all at once, and nothing is certain of them.
    let are_many = clients.len().saturating_mul(paths.len()) > PATHS;
    let clients: Vec<(RangeInclusive<IpAddr>, Rc<[_]>, Side<'_>)> =
        if are_many { everybody().into_iter().collect() } else { one_by_one.collect() };
    let mut perhaps = None;
    for path in paths {
        for (range, addresses, client_side) in &clients {
            let clients = Some(Rc::clone(addresses));
            let one = ClientPath { clients, client_side: *client_side, ..path.clone() };
            match one.gets_in(screen) {
                Some(finding) if finding.certain => return Some(Stranger { finding, clients: range.clone() }),
                Some(finding) => drop(perhaps.get_or_insert_with(|| Stranger { finding, clients: range.clone() })),
                None => {}
            }
        }
    }
    perhaps
}

/// The smallest network that holds all of `range`.
fn around(range: &RangeInclusive<IpAddr>) -> IpNet {
    let (first, bits) = match (range.start(), range.end()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (*range.start(), (first.to_bits() ^ last.to_bits()).leading_zeros()),
        (IpAddr::V6(first), IpAddr::V6(last)) => (*range.start(), (first.to_bits() ^ last.to_bits()).leading_zeros()),
        (first, _) => (*first, 0),
    };
    u8::try_from(bits)
        .ok()
        .and_then(|bits| IpNet::new(first, bits).ok())
        .map_or_else(|| first.into(), |net| net.trunc())
}

/// Whether `to` may be port `ports` + `offset` of `target`.
pub(super) fn goes(to: &To, target: IpAddr, ports: &RangeInclusive<u16>, offset: u16) -> bool {
    match to {
        To::Host => false,
        To::Unknown => true,
        To::Addresses { ips, ports: there } => {
            let at_target = |port: u16| port.wrapping_add(offset);
            ips.as_ref().is_some_and(|ips| ips.contains(&target))
                && match there {
                    Some(there) => {
                        *there.start() <= at_target(*ports.end()) && at_target(*ports.start()) <= *there.end()
                    }
                    None => offset == 0,
                }
        }
    }
}

impl ClientPath<'_> {
    /// The rule by which these clients, who are not listed, get to the target, if they do.
    fn gets_in(&self, screen: &Screen) -> Option<Finding> {
        let mut marks = ((u32::MAX, 0), (u32::MAX, 0));
        let mut door: Option<(usize, At)> = None;
        let mut certain = true;
        for (number, stage) in screen.stages.iter().enumerate() {
            let base = &stage.base;
            if base.translates && is_translated(base, door.is_some(), false) {
                continue;
            }
            if !base.hook.is_incoming() && door.is_none() {
                return None;
            }
            let mut packet = Packet { mark: marks.0, own_mark: marks.1, ..self.packet(base, Leg::First) };
            let outcome = walk(stage, &mut packet, Listing::Unlisted);
            marks = (packet.mark, packet.own_mark);
            certain &= passes_for_certain(base.translates, &outcome);
            let sent = |end: End| match end {
                End::Sent(at) if base.translates && self.is_at(stage, at) => Some(at),
                _ => None,
            };
            let some = || outcome.some.iter().find_map(|(_, end)| sent(*end));
            if let Some(at) = sent(outcome.end).or_else(some) {
                certain &= sent(outcome.end).is_some() && *Self::to(stage, at) != To::Unknown;
                door = Some((number, at));
            } else if matches!(outcome.end, End::Dropped(_) | End::Sent(_)) {
                // Dropped, or with somebody else.
                if !outcome.left {
                    return None;
                }
                certain = false;
            }
        }
        let (stage, at) = door?;
        Some(Finding { wrong: Wrong::LetIn, certain, stage, at: Some(at), leg: Leg::First })
    }

    fn to(stage: &Stage, at: At) -> &To {
        match &stage.rule(at).act {
            Act::Destination(to) => to,
            _ => &To::Unknown,
        }
    }

    /// Whether the rule may send these packets to the target.
    fn is_at(&self, stage: &Stage, at: At) -> bool {
        let (Some(target), Some(listen), Some(port)) = (&self.target, &self.listen_port, &self.target_port) else {
            return false;
        };
        goes(Self::to(stage, at), *target[0].start(), listen, port.start().wrapping_sub(*listen.start()))
    }
}

/// Whether nothing but the end of its way happens to a packet, whatever a rule does that names whom it drops.
fn passes_for_certain(translates: bool, outcome: &Outcome) -> bool {
    outcome.some.iter().all(|(fit, end)| match end {
        End::Dropped(_) => *fit == Fit::Some,
        End::Accepted(_) | End::Renamed(_) => !translates,
        _ => false,
    })
}

/// The addresses of those who are not listed, each range one in which all rules treat everybody alike.
fn unlisted(screen: &Screen, own: &[RangeInclusive<IpAddr>], binding: &Binding<'_>) -> Vec<RangeInclusive<IpAddr>> {
    let listed: Vec<_> = binding.allowed().map(range_of).collect();
    let denied: Vec<_> = binding.denied().map(range_of).collect();
    let named = screen.tests().filter_map(|what| match what {
        What::Sources(listed) => Some(listed),
        _ => None,
    });
    let borders = named.flatten().chain(&listed).chain(&denied).chain(own).cloned();
    let is_listed =
        |ip: &IpAddr| listed.iter().any(|net| net.contains(ip)) && !denied.iter().any(|net| net.contains(ip));
    let mut clients = cells(&hosts(binding.family()), borders);
    clients.retain(|range| !is_listed(range.start()) && !own.contains(range));
    clients
}

/// The addresses that a client can have.
fn hosts(family: Family) -> Vec<RangeInclusive<IpAddr>> {
    let v4 = |first: [u8; 4], last: [u8; 4]| IpAddr::V4(Ipv4Addr::from(first))..=IpAddr::V4(Ipv4Addr::from(last));
    let v6 = |first: u128, last: u128| IpAddr::V6(Ipv6Addr::from(first))..=IpAddr::V6(Ipv6Addr::from(last));
    match family {
        Family::V4 => vec![v4([1, 0, 0, 0], [126, 255, 255, 255]), v4([128, 0, 0, 0], [223, 255, 255, 255])],
        Family::V6 => vec![v6(0x2000 << 112, (0x4000 << 112) - 1), v6(0xfc00 << 112, (0xfe00 << 112) - 1)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_addresses_lies_in_one_network() {
        for (first, last, net) in [
            ("10.0.0.1", "10.0.0.1", "10.0.0.1/32"),
            ("10.0.0.1", "10.0.0.2", "10.0.0.0/30"),
            ("1.0.0.0", "126.255.255.255", "0.0.0.0/1"),
            ("fd00::1", "fd00::ffff", "fd00::/112"),
        ] {
            assert_eq!(around(&(first.parse().unwrap()..=last.parse().unwrap())).to_string(), net);
        }
    }
}
