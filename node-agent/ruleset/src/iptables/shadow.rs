//! Rules of others that stand before our jumps and would decide about our packets first.
//!
//! Somebody who inserts a rule at the top of a chain stands before us. That matters only if the rule, or a chain that
//! it leads to, could decide about a packet of ours. Where that cannot be told for sure it counts as yes: moving our
//! jump to the top changes nothing for anybody else's packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;

use sallyport_api::names::MARK_OURS;

use crate::family::Family;
use crate::firewall::packet::{Fit, Packet, Side, number, ports};
use crate::firewall::{FirewallRule, State, Verdict, What, xtables};
use crate::iptables::installed::InstalledTable;
use crate::iptables::rule::Table;
use crate::table::ForwardingTable;

/// Nested chains are followed this far, which is as far as the kernel goes; a rule deeper than that counts as deciding.
const DEPTH: usize = 16;
/// IP protocol numbers of the errors about connections (`include/uapi/linux/in.h`, `in6.h`).
const ICMP: [u8; 2] = [1, 58];

/// The first rule among the first `before` of the built-in chain `builtin` that could decide about one of `packets`.
pub(crate) fn shadowing_rule<'a>(
    packets: &Packets,
    family: Family,
    table: Table,
    there: &'a InstalledTable,
    builtin: &str,
    before: usize,
) -> Option<&'a str> {
    let rules = there.foreign.get(builtin).filter(|_| before > 0)?;
    let passing = packets.passing(family, builtin);
    let mut walk = Walk { passing: &passing, table, there, base: true, visited: BTreeSet::new() };
    rules.iter().take(before).find(|rule| walk.decides(rule, DEPTH)).map(String::as_str)
}

/// What the packets of forwards look like, by family: as they come in, and behind the translation.
#[derive(Clone, Debug, Default)]
pub struct Packets {
    v4: [Requests; 2],
    v6: [Requests; 2],
}

/// What requests look like in one place, each property by itself.
#[derive(Clone, Debug, Default)]
struct Requests {
    /// Where they go.
    to: BTreeSet<IpAddr>,
    /// To which first and last ports there, by IP protocol number.
    ports: BTreeMap<u8, BTreeSet<(u16, u16)>>,
}

impl Packets {
    /// Those of the forwards in `table`.
    #[must_use]
    pub fn of(table: &ForwardingTable<'_>) -> Self {
        let mut packets = Self::default();
        for binding in &table.bindings {
            let [incoming, translated] = match binding.family() {
                Family::V4 => &mut packets.v4,
                Family::V6 => &mut packets.v6,
            };
            let (port, protocol) = (binding.port, number(binding.protocol()));
            incoming.to.insert(binding.listen);
            incoming.ports.entry(protocol).or_default().insert((port.port, port.end_port));
            translated.to.extend(binding.targets().filter(|target| target.weight > 0).map(|target| target.ip));
            let last = port.target_port + (port.end_port - port.port);
            translated.ports.entry(protocol).or_default().insert((port.target_port, last));
        }
        packets
    }

    /// Those that pass the built-in chain `builtin`.
    fn passing(&self, family: Family, builtin: &str) -> Vec<Passing> {
        let [incoming, translated] = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        let packet = Packet { states: Some(&[State::New]), ..Packet::of(family) };
        let to_all = |requests: &Requests, packet: Packet<'static>| -> Vec<Passing> {
            let destinations: Rc<[_]> = requests.to.iter().map(|ip| *ip..=*ip).collect();
            let of_protocol = |(protocol, ports): (&u8, &BTreeSet<(u16, u16)>)| Passing {
                ports: Some(ports.iter().map(|(first, last)| *first..=*last).collect()),
                packet: Packet {
                    protocol: Some(*protocol),
                    destinations: Some(destinations.clone()),
                    ..packet.clone()
                },
            };
            requests.ports.iter().map(of_protocol).collect()
        };
        match builtin {
            "PREROUTING" => to_all(incoming, packet),
            // What a host sends to an address of its own leaves through its loopback.
            "OUTPUT" => to_all(incoming, Packet { outward: Side::Loopback, ..packet }),
            "POSTROUTING" => to_all(translated, Packet { states: Some(&[State::New, State::Dnat]), ..packet }),
            // Answers and errors about our connections pass here too, so that addresses and ports say nothing.
            _ if translated.ports.is_empty() => Vec::new(),
            _ => {
                let carried = translated.ports.keys().flat_map(|protocol| FORWARDED.map(|state| (*protocol, state)));
                let errors = ICMP.into_iter().flat_map(|protocol| ERRORS.map(|state| (protocol, state)));
                let known = |(protocol, (states, reply))| Packet {
                    protocol: Some(protocol),
                    states: Some(states),
                    mark: (MARK_OURS, MARK_OURS),
                    reply,
                    ..packet.clone()
                };
                carried.chain(errors).map(known).map(|packet| Passing { packet, ports: None }).collect()
            }
        }
    }
}

/// States that packets of one kind have all at once, and whether they are answers.
type Kind = (&'static [State], bool);

/// What forwards have in `FORWARD`. The client's address is translated too, or it is not.
const FORWARDED: [Kind; 5] = [
    (&[State::New, State::Dnat], false),
    (&[State::Established, State::Dnat], false),
    (&[State::Established, State::Dnat], true),
    (&[State::Established, State::Dnat, State::Snat], false),
    (&[State::Established, State::Dnat, State::Snat], true),
];
/// The errors about them.
const ERRORS: [Kind; 2] = [(&[State::Related, State::Dnat], false), (&[State::Related, State::Dnat], true)];

/// Packets of one protocol.
struct Passing {
    packet: Packet<'static>,
    /// The ports to which they go, if that is known.
    ports: Option<Vec<RangeInclusive<u16>>>,
}

impl Passing {
    /// Whether one of them may meet all of what a rule asks.
    fn may_meet(&self, rule: &FirewallRule) -> bool {
        rule.tests.iter().all(|test| match (&test.what, &self.ports) {
            (What::DestinationPorts(listed), Some(own)) => ports(own, listed, test.negated) != Fit::None,
            _ => self.packet.fits_one(test) != Fit::None,
        })
    }
}

/// The way through rules of others.
struct Walk<'a> {
    passing: &'a [Passing],
    table: Table,
    there: &'a InstalledTable,
    /// Whether it is still in the built-in chain.
    base: bool,
    visited: BTreeSet<String>,
}

impl Walk<'_> {
    /// Whether `rule` could end the way of one of these packets before our jump.
    fn decides(&mut self, rule: &str, depth: usize) -> bool {
        let rule = xtables::rule(rule);
        if !self.passing.iter().any(|passing| passing.may_meet(&rule)) {
            return false;
        }
        match &rule.verdict {
            // The end of that chain is the end of the built-in one: our jump is never reached.
            Verdict::Goto(_) if self.base => true,
            Verdict::Goto(chain) | Verdict::Jump(chain) if self.there.foreign.contains_key(chain) => {
                depth == 0 || (self.visited.insert(chain.clone()) && self.decides_in(chain, depth - 1))
            }
            // Returning from a built-in chain means its policy.
            Verdict::Return => self.base,
            Verdict::Drop | Verdict::Elsewhere => true,
            // What others accept we accept too; in `nat` it means that nothing is translated.
            Verdict::Accept | Verdict::Destination(_) | Verdict::Source => self.table == Table::Nat,
            Verdict::Jump(_) | Verdict::Goto(_) | Verdict::Continue => false,
        }
    }

    fn decides_in(&mut self, chain: &str, depth: usize) -> bool {
        let there = self.there;
        let base = std::mem::replace(&mut self.base, false);
        let decides = there.foreign.get(chain).into_iter().flatten().any(|rule| self.decides(rule, depth));
        self.base = base;
        decides
    }
}

#[cfg(test)]
pub(crate) mod tests;
