//! Foreign rules ahead of our jumps that would take our packets.
//!
//! Somebody who inserts a rule at the top of a chain stands before us. That matters only if the rule, or a chain that
//! it leads to, could decide about a packet of ours. Where that cannot be told for sure it counts as yes: moving our
//! jump to the top changes nothing for anybody else's packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::installed::InstalledTable;
use crate::rule::{Rules, Table};

/// Nested chains are followed this far; a rule deeper than that counts as taking.
const DEPTH: usize = 16;

/// The first rule among the first `before` of the built-in chain `builtin` that could take a packet of `ours`.
pub(crate) fn taker<'a>(
    ours: &Rules,
    table: Table,
    there: &'a InstalledTable,
    builtin: &str,
    before: usize,
) -> Option<&'a str> {
    let rules = there.foreign.get(builtin).filter(|_| before > 0)?;
    let packets = Packets::of(ours, builtin);
    let mut visited = BTreeSet::new();
    let takes = |rule: &&String| packets.taken_by(rule, table, builtin, there, &mut visited, DEPTH);
    rules.iter().take(before).find(takes).map(String::as_str)
}

/// What our packets look like at one hook, each property by itself.
struct Packets {
    /// Destination addresses of requests.
    to: BTreeSet<IpAddr>,
    /// Ports of requests by protocol name, as disjoint ranges.
    ports: BTreeMap<&'static str, Vec<(u16, u16)>>,
    /// Whether answers pass here too, so that addresses and ports say nothing by themselves.
    both_ways: bool,
}

impl Packets {
    /// Reads them off our own rules: the listen addresses and ports, or behind the translation the targets.
    fn of(ours: &Rules, builtin: &str) -> Self {
        let before_dnat = matches!(builtin, "PREROUTING" | "OUTPUT");
        let mut packets = Self { to: BTreeSet::new(), ports: BTreeMap::new(), both_ways: builtin == "FORWARD" };
        for rule in ours.nat.values().flatten() {
            let words: Vec<&str> = rule.split(' ').collect();
            let after =
                |flag: &str| words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1)).copied();
            let target = after("--to-destination");
            let listens = after("-d").is_some();
            if before_dnat && let Some(address) = after("-d").and_then(network) {
                packets.to.insert(address.addr());
            }
            if !before_dnat && let Some(target) = target {
                packets.to.extend(target_address(target));
            }
            let protocol = match after("-p") {
                Some("tcp") => "tcp",
                Some("udp") => "udp",
                _ => continue,
            };
            // Bucket rules span ports that nobody asked for: only rules that name an address or a target count.
            if (target.is_some() || listens)
                && let Some((first, last)) = after("--dport").and_then(port_range)
            {
                let translated =
                    target.filter(|_| !before_dnat).and_then(|target| target.parse::<std::net::SocketAddr>().ok());
                let ports = translated.map_or((first, last), |target| (target.port(), target.port()));
                packets.ports.entry(protocol).or_default().push(ports);
            }
        }
        packets
    }

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
        if protocol.is_some_and(|protocol| !self.ports.contains_key(protocol)) {
            return false;
        }
        if self.both_ways {
            return true;
        }
        if let Some(net) = plain("-d").and_then(network)
            && !self.to.iter().any(|ip| net.contains(ip))
        {
            return false;
        }
        let listed = plain("--dport").or_else(|| plain("--dports"));
        let Some(listed) = listed else { return true };
        let ranges: Vec<(u16, u16)> = listed.split(',').filter_map(port_range).collect();
        self.ports
            .iter()
            .filter(|(name, _)| protocol.is_none_or(|protocol| protocol == **name))
            .flat_map(|(_, ports)| ports)
            .any(|(first, last)| ranges.iter().any(|(from, to)| from <= last && first <= to))
    }
}

/// Splits a rule into words; a quoted comment stays one word.
pub(crate) fn words(rule: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = rule.trim_start();
    while !rest.is_empty() {
        let end = if let Some(quoted) = rest.strip_prefix('"') {
            let mut escaped = false;
            let close = quoted.char_indices().find(|(_, c)| {
                let closes = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                closes
            });
            close.map_or(rest.len(), |(at, _)| at + 2)
        } else {
            rest.find(' ').unwrap_or(rest.len())
        };
        words.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    words
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

fn target_address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|socket| socket.ip()))
}

#[cfg(test)]
mod tests;
