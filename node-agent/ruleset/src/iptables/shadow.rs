//! Rules of others that stand before our jumps and would decide about our packets first.
//!
//! Somebody who inserts a rule at the top of a chain stands before us. That matters only if the rule, or a chain that
//! it leads to, could decide about a packet of ours. Where that cannot be told for sure it counts as yes: moving our
//! jump to the top changes nothing for anybody else's packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::rc::Rc;

use sallyport_api::gateway_pool::FirewallOrder;

use crate::binding::Binding;
use crate::family::Family;
use crate::firewall::packet::{Fit, Packet, Side, number, ports};
use crate::firewall::place::forwarded;
use crate::firewall::{FirewallRule, State, Verdict, What, xtables};
use crate::iptables::installed::InstalledTable;
use crate::iptables::rule::Table;
use crate::table::{ForwardingTable, TableChange};

/// Nested chains are followed this far, which is as far as the kernel goes; a rule deeper than that counts as deciding.
const DEPTH: usize = 16;

/// The first of the rules `ahead` in the built-in chain `builtin` that could decide about one of `packets`.
pub(crate) fn shadowing_rule<'a>(
    packets: &Packets,
    family: Family,
    table: Table,
    there: &'a InstalledTable,
    builtin: &str,
    ahead: Range<usize>,
) -> Option<&'a str> {
    let rules = there.foreign.get(builtin)?.get(ahead).filter(|ahead| !ahead.is_empty())?;
    let passing = packets.passing(family, builtin);
    let mut walk = Walk { passing: &passing, table, there, base: true, visited: BTreeSet::new() };
    rules.iter().find(|rule| walk.decides(rule, DEPTH)).map(String::as_str)
}

/// What the packets of forwards look like, by family: as they come in, and behind the translation.
#[derive(Clone, Debug, Default)]
pub struct Packets {
    v4: [Requests; 2],
    v6: [Requests; 2],
    grown: u64,
    /// Whether they pass what others deny by name in `FORWARD`.
    pub order: FirewallOrder,
}

impl PartialEq for Packets {
    fn eq(&self, other: &Self) -> bool {
        (&self.v4, &self.v6) == (&other.v4, &other.v6)
    }
}

/// What requests look like in one place, each property by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Requests {
    /// Where they go, and for how many bindings.
    to: BTreeMap<IpAddr, usize>,
    /// To which first and last ports there, by IP protocol number, and for how many bindings.
    ports: BTreeMap<u8, BTreeMap<(u16, u16), usize>>,
}

impl Requests {
    /// Counts so many more of these, or fewer; whether there were none such.
    fn count(&mut self, to: impl IntoIterator<Item = IpAddr>, protocol: u8, ports: (u16, u16), by: isize) -> bool {
        let mut grown = false;
        for ip in to {
            grown |= count(&mut self.to, ip, by);
        }
        let of_protocol = self.ports.entry(protocol).or_default();
        grown |= count(of_protocol, ports, by);
        if of_protocol.is_empty() {
            self.ports.remove(&protocol);
        }
        grown
    }
}

/// So many more of `key`, or fewer; whether it is new.
fn count<K: Ord>(counted: &mut BTreeMap<K, usize>, key: K, by: isize) -> bool {
    let before = counted.get(&key).copied().unwrap_or_default();
    let now = before.saturating_add_signed(by);
    if now == 0 {
        counted.remove(&key);
    } else {
        counted.insert(key, now);
    }
    before == 0 && now > 0
}

impl Packets {
    /// Those of the forwards in `table`.
    #[must_use]
    pub fn of(table: &ForwardingTable) -> Self {
        let mut packets = Self::default();
        packets.follow(table, &TableChange::all_of(table));
        packets
    }

    /// Follows what `change` has done to `table`.
    pub fn follow(&mut self, table: &ForwardingTable, change: &TableChange) {
        if change.is_new {
            *self = Self { grown: self.grown + 1, order: self.order, ..Self::default() };
        }
        // What one forward loses and another gets was there all the time.
        for entry in &change.come {
            self.count(&table.bindings_of(entry), 1);
        }
        for entry in &change.gone {
            self.count(&table.bindings_of(entry), -1);
        }
    }

    /// Those of the forwards in `table` as well.
    pub fn add(&mut self, table: &ForwardingTable) {
        table.bindings().for_each(|binding| self.count(&[binding], 1));
    }

    /// Without those of the forwards in `table`, which were [added](Self::add).
    pub fn remove(&mut self, table: &ForwardingTable) {
        table.bindings().for_each(|binding| self.count(&[binding], -1));
    }

    /// A number that changes whenever there are packets such as there were not, and not when there are only fewer.
    #[must_use]
    pub fn grown(&self) -> u64 {
        self.grown
    }

    fn count(&mut self, bindings: &[Binding<'_>], by: isize) {
        for binding in bindings {
            let [incoming, translated] = match binding.family() {
                Family::V4 => &mut self.v4,
                Family::V6 => &mut self.v6,
            };
            let (port, protocol) = (binding.port, number(binding.protocol()));
            let last = port.target_port + (port.end_port - port.port);
            let mut grown = incoming.count([binding.listen], protocol, (port.port, port.end_port), by);
            let targets = binding.targets().filter(|target| target.weight > 0).map(|target| target.ip);
            grown |= translated.count(targets, protocol, (port.target_port, last), by);
            self.grown += u64::from(grown);
        }
    }

    /// Those that rules of others in `nat` may meet, in whatever chain.
    #[must_use]
    pub fn met_in_nat(&self, family: Family) -> Met {
        let hooks = Table::Nat.hooks().iter();
        Met { passing: hooks.flat_map(|(builtin, _)| self.passing(family, builtin)).collect() }
    }

    /// Those that pass the built-in chain `builtin`.
    fn passing(&self, family: Family, builtin: &str) -> Vec<Passing> {
        let [incoming, translated] = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        let packet = Packet { states: Some(&[State::New]), ..Packet::of(family) };
        let to_all = |requests: &Requests, packet: Packet<'static>| -> Vec<Passing> {
            let destinations: Rc<[_]> = requests.to.keys().map(|ip| *ip..=*ip).collect();
            let of_protocol = |(protocol, ports): (&u8, &BTreeMap<(u16, u16), usize>)| Passing {
                ports: Some(ports.keys().map(|(first, last)| *first..=*last).collect()),
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
            _ if translated.ports.is_empty() => Vec::new(),
            _ => {
                let packets = forwarded(family, translated.ports.keys().copied());
                packets.map(|packet| Passing { packet, ports: None }).collect()
            }
        }
    }
}

/// Packets that rules of others may meet.
#[derive(Debug)]
pub struct Met {
    passing: Vec<Passing>,
}

impl Met {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.passing.is_empty()
    }

    /// Whether one of them may meet `rule`, written as `iptables-save` prints it.
    #[must_use]
    pub fn may_meet(&self, rule: &str) -> bool {
        let rule = xtables::rule(rule);
        self.passing.iter().any(|passing| passing.may_meet(&rule))
    }
}

/// Packets of one protocol.
#[derive(Debug)]
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
