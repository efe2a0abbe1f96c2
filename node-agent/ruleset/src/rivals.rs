//! Foreign rules ahead of our jumps that would take our packets.
//!
//! Somebody who inserts a rule at the top of a chain stands before us. That matters only if the rule, or a chain that
//! it leads to, could decide about a packet of ours. Where that cannot be told for sure it counts as yes: moving our
//! jump to the top changes nothing for anybody else's packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::family::Family;
use crate::installed::InstalledTable;
use crate::rule::{Table, protocol_name};
use crate::table::ForwardingTable;
use crate::words::words;

/// Nested chains are followed this far; a rule deeper than that counts as taking.
const DEPTH: usize = 16;

/// The first rule among the first `before` of the built-in chain `builtin` that could take one of `packets`.
pub(crate) fn taker<'a>(
    packets: &Packets,
    family: Family,
    table: Table,
    there: &'a InstalledTable,
    builtin: &str,
    before: usize,
) -> Option<&'a str> {
    let rules = there.foreign.get(builtin).filter(|_| before > 0)?;
    let seen = packets.at(family, builtin);
    let mut visited = BTreeSet::new();
    let takes = |rule: &&String| seen.taken_by(rule, table, builtin, there, &mut visited, DEPTH);
    rules.iter().take(before).find(takes).map(String::as_str)
}

/// What the packets of forwards look like, by family: as they come in, and behind the translation.
#[derive(Clone, Debug, Default)]
pub struct Packets {
    v4: [Seen; 2],
    v6: [Seen; 2],
}

/// What packets look like in one place, each property by itself.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Destination addresses of requests.
    to: BTreeSet<IpAddr>,
    /// Ports of requests by protocol name.
    ports: BTreeMap<&'static str, BTreeSet<(u16, u16)>>,
}

impl Packets {
    /// Those of the forwards in `table`.
    #[must_use]
    pub fn of(table: &ForwardingTable<'_>) -> Self {
        let mut packets = Self::default();
        for binding in &table.bindings {
            let [requests, translated] = match binding.family() {
                Family::V4 => &mut packets.v4,
                Family::V6 => &mut packets.v6,
            };
            let (port, name) = (binding.port, protocol_name(binding.protocol()));
            requests.to.insert(binding.listen);
            requests.ports.entry(name).or_default().insert((port.port, port.end_port));
            translated.to.extend(binding.targets().filter(|target| target.weight > 0).map(|target| target.ip));
            let last = port.target_port + (port.end_port - port.port);
            translated.ports.entry(name).or_default().insert((port.target_port, last));
        }
        packets
    }

    /// Those that pass `builtin`. Where answers pass too, addresses and ports say nothing by themselves.
    fn at(&self, family: Family, builtin: &str) -> Passing<'_> {
        let [requests, translated] = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        let seen = if matches!(builtin, "PREROUTING" | "OUTPUT") { requests } else { translated };
        Passing { seen, both_ways: builtin == "FORWARD" }
    }
}

struct Passing<'a> {
    seen: &'a Seen,
    both_ways: bool,
}

impl Passing<'_> {
    /// Whether `rule` could end the way of one of these packets before our jump.
    fn taken_by(
        &self,
        rule: &str,
        table: Table,
        builtin: &str,
        there: &InstalledTable,
        visited: &mut BTreeSet<String>,
        depth: usize,
    ) -> bool {
        let words = words(rule);
        if !self.may_match(&words) {
            return false;
        }
        let goes = after(&words, "-g");
        if goes.is_some() && table.hooks().iter().any(|(hook, _)| *hook == builtin) {
            // The end of that chain is the end of the built-in one: our jump is never reached.
            return true;
        }
        let Some(target) = after(&words, "-j").or(goes) else { return false };
        if let Some(chain) = there.foreign.get(target) {
            return depth == 0
                || (visited.insert(target.to_owned())
                    && chain.iter().any(|rule| self.taken_by(rule, table, target, there, visited, depth - 1)));
        }
        match table {
            // What others accept we accept too; returning from a built-in chain means its policy.
            Table::Filter => match target {
                "RETURN" => builtin == "FORWARD",
                "DROP" | "REJECT" | "QUEUE" | "NFQUEUE" | "TARPIT" => true,
                _ => false,
            },
            Table::Nat => match target {
                "RETURN" => matches!(builtin, "PREROUTING" | "OUTPUT" | "POSTROUTING"),
                "ACCEPT" | "DROP" | "DNAT" | "REDIRECT" | "NETMAP" | "SNAT" | "MASQUERADE" => true,
                _ => false,
            },
        }
    }

    fn may_match(&self, words: &[&str]) -> bool {
        let plain = |flag: &str| after(words, flag).filter(|_| !negated(words, flag));
        if let Some(states) = plain("--ctstate").or_else(|| plain("--state"))
            && states.split(',').all(|state| matches!(state, "INVALID" | "UNTRACKED"))
        {
            return false;
        }
        let protocol = match plain("-p") {
            Some("tcp") => Some("tcp"),
            Some("udp") => Some("udp"),
            Some("all") | None => None,
            // Errors about our connections pass here too.
            Some("icmp" | "ipv6-icmp" | "icmpv6") if self.both_ways => None,
            Some(_) => return false,
        };
        if protocol.is_some_and(|protocol| !self.seen.ports.contains_key(protocol)) {
            return false;
        }
        if self.both_ways {
            return true;
        }
        if let Some(net) = plain("-d").and_then(network)
            && !self.seen.to.iter().any(|ip| net.contains(ip))
        {
            return false;
        }
        let listed = plain("--dport").or_else(|| plain("--dports"));
        let Some(listed) = listed else { return true };
        let ranges: Vec<(u16, u16)> = listed.split(',').filter_map(port_range).collect();
        self.seen
            .ports
            .iter()
            .filter(|(name, _)| protocol.is_none_or(|protocol| protocol == **name))
            .flat_map(|(_, ports)| ports)
            .any(|(first, last)| ranges.iter().any(|(from, to)| from <= last && first <= to))
    }
}

fn after<'a>(words: &[&'a str], flag: &str) -> Option<&'a str> {
    words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1)).copied()
}

fn negated(words: &[&str], flag: &str) -> bool {
    words.iter().position(|word| *word == flag).is_some_and(|at| at > 0 && words[at - 1] == "!")
}

fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

#[cfg(test)]
pub(crate) mod tests;
