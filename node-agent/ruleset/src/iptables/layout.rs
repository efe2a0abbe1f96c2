//! The forwarding table → chains of iptables.
//!
//! ```text
//! nat PREROUTING, OUTPUT ─► SALLY-PRE ─► SALLY-M (masquerade) ─► SALLY-MT (TCP) ─► port buckets ─► DNAT
//!                                    │                       └─► SALLY-MU (UDP) ─► …
//!                                    └─► SALLY-P (preserve)  ─► SALLY-PT, SALLY-PU ─► …
//! nat POSTROUTING ─► SALLY-POST: masquerade what SALLY-M marked
//! filter FORWARD ─► SALLY-FWD: accept what either marked, both directions
//! ```
//! A new connection costs a few comparisons whatever the number of forwards; an established one costs one. The mark
//! says which connections are ours, so `filter` and `POSTROUTING` hold a constant number of rules.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sallyport_api::intent::{IntentPort, IntentTarget};
use sallyport_api::names::{MARK_MASQUERADE, MARK_OURS};
use sallyport_api::{Protocol, SourceNatMode};
use sallyport_policy::digest::short_id;

use crate::binding::Binding;
use crate::family::Family;
use crate::firewall::packet::protocol_name;
use crate::iptables::rule::{Action, Chains, Line, Rule, Rules, Ruleset, chain};
use crate::table::ForwardingTable;

/// A chain that would hold more rules than this is split by port.
const SPLIT_ABOVE: usize = 32;
/// Ports in a chain below the protocol's root, below that, and so on. The kernel looks at one rule of a chain after the
/// other, so eight ways at each fork are few to look at; more forks would be more chains.
const BUCKETS: [u32; 4] = [8192, 1024, 128, 16];

/// The rules by which a kernel does what `table` says.
#[must_use]
pub fn lower(table: &ForwardingTable<'_>) -> Ruleset {
    let mut ruleset = Ruleset::default();
    for family in Family::BOTH {
        let mut layout = Layout::default();
        for bindings in table.by_forward(family) {
            layout.place(bindings);
        }
        layout.write(ruleset.family_mut(family));
    }
    ruleset
}

/// The rules of one family before they are cut into chains.
#[derive(Default)]
struct Layout {
    /// Rules by first and last port, for each way of treating the source address and each protocol.
    by_port: BTreeMap<(Nat, Protocol), Vec<PortRule>>,
    /// Listen addresses in use.
    addresses: BTreeMap<Nat, Vec<IpAddr>>,
    /// Chains of single forwards: their sources, and their targets.
    own: Chains,
}

/// What happens to the client's address. Ordered as the chains are visited.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Nat {
    Masquerade,
    Preserve,
}

impl Nat {
    fn letter(self) -> char {
        match self {
            Self::Masquerade => 'M',
            Self::Preserve => 'P',
        }
    }

    fn mark(self) -> u32 {
        match self {
            Self::Masquerade => MARK_OURS | MARK_MASQUERADE,
            Self::Preserve => MARK_OURS,
        }
    }
}

struct PortRule {
    first: u16,
    last: u16,
    line: Line,
}

/// A forward, as its rules and chains name it.
struct Own {
    owner: Arc<str>,
    id: String,
}

impl Own {
    fn sources(&self) -> String {
        format!("SALLY-S-{}", self.id)
    }

    fn targets(&self) -> String {
        format!("SALLY-D-{}", self.id)
    }
}

impl Layout {
    /// Adds the rules of one forward, whose `bindings` of one family these are.
    fn place(&mut self, bindings: &[Binding<'_>]) {
        let Some(first) = bindings.first() else { return };
        let nat = match first.source_nat() {
            SourceNatMode::Masquerade => Nat::Masquerade,
            SourceNatMode::Preserve => Nat::Preserve,
        };
        self.addresses.entry(nat).or_default().extend(bindings.iter().map(|binding| binding.listen));
        let allow: Vec<IpNet> = first.allowed().collect();
        let targets: Vec<IntentTarget> = first.targets().collect();
        let own = Own { owner: first.forward.uid.as_str().into(), id: short_id(first.forward.uid.as_str()) };
        // One source needs no chain of its own: the DNAT rule names it.
        let single = allow.first().copied().filter(|_| allow.len() == 1 && first.denied().next().is_none());
        if single.is_none() {
            self.write_own_chains(&own, first, &targets);
        }
        for Binding { listen, port, .. } in bindings {
            let rules = self.by_port.entry((nat, port.protocol)).or_default();
            let to_address = Rule { destination: Some(*listen), ..Rule::default() };
            if let Some(source) = single {
                let matches = Rule { source: Some(source), ..to_address };
                rules.extend(deliver(&own.owner, &matches, *port, &targets));
            } else {
                // -A SALLY-MT -d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j SALLY-S-0123456789abcdef
                let action = Action::Jump(own.sources());
                rules.push(on_ports(&own.owner, &to_address, port.protocol, port.port, port.end_port, action));
            }
        }
    }

    /// `SALLY-S-…` lets the allowed sources through to `SALLY-D-…`, which delivers.
    fn write_own_chains(&mut self, own: &Own, binding: &Binding<'_>, targets: &[IntentTarget]) {
        let from = |net: IpNet, action: Action| Rule { source: Some(net), action, ..Rule::default() }.line();
        // -A SALLY-S-0123456789abcdef -s 10.30.1.66/32 -j RETURN
        let denied = binding.denied().map(|net| from(net, Action::Return));
        // -A SALLY-S-0123456789abcdef -s 10.30.1.0/24 -j SALLY-D-0123456789abcdef
        let allowed = binding.allowed().map(|net| from(net, Action::Jump(own.targets())));
        self.own.insert(own.sources(), denied.chain(allowed).collect());
        let ports = binding.forward.intent.ports.iter();
        let rules = ports.flat_map(|port| deliver(&own.owner, &Rule::default(), *port, targets));
        self.own.insert(own.targets(), rules.map(|rule| rule.line).collect());
    }

    /// Cuts the rules into chains.
    fn write(self, rules: &mut Rules) {
        if self.by_port.is_empty() {
            return;
        }
        let Self { by_port, addresses, own } = self;
        let mut pre = Vec::new();
        let masquerades = addresses.contains_key(&Nat::Masquerade);
        for (nat, mut addresses) in addresses {
            addresses.sort_unstable();
            addresses.dedup();
            let group = format!("SALLY-{}", nat.letter());
            for address in addresses {
                // -A SALLY-PRE -d 10.30.1.78/32 -j SALLY-M
                let rule = Rule { destination: Some(address), action: Action::Jump(group.clone()), ..Rule::default() };
                pre.push(rule.line());
            }
            // -A SALLY-M -j CONNMARK --set-xmark 0x30000000/0x30000000
            let mut body = vec![mark(nat.mark())];
            for protocol in by_port.keys().filter(|(of, _)| *of == nat).map(|(_, protocol)| *protocol) {
                // -A SALLY-M -p tcp -j SALLY-MT
                let root = root_chain(nat, protocol);
                body.push(Rule { protocol: Some(protocol), action: Action::Jump(root), ..Rule::default() }.line());
            }
            // No DNAT rule took the connection, so it is not ours: -A SALLY-M -j CONNMARK --set-xmark 0x0/0x30000000
            body.push(mark(0));
            rules.nat.insert(group, body);
        }
        rules.nat.insert(chain::PRE.to_owned(), pre);
        for ((nat, protocol), port_rules) in by_port {
            split(&mut rules.nat, root_chain(nat, protocol), protocol, port_rules, &BUCKETS);
        }
        rules.nat.extend(own);
        // -A SALLY-POST -m conntrack --ctstate DNAT -m connmark --mark 0x30000000/0x30000000 -j MASQUERADE
        let masquerade =
            Rule { ours: Some(Nat::Masquerade.mark()), action: Action::Masquerade, ..Rule::default() }.line();
        rules.nat.insert(chain::POST.to_owned(), if masquerades { vec![masquerade] } else { Vec::new() });
        // -A SALLY-FWD -m conntrack --ctstate DNAT -m connmark --mark 0x10000000/0x10000000 -j ACCEPT
        let accept = Rule { ours: Some(MARK_OURS), action: Action::Accept, ..Rule::default() }.line();
        rules.filter.insert(chain::FORWARD.to_owned(), vec![accept]);
    }
}

fn mark(bits: u32) -> Line {
    Rule { action: Action::Mark(bits), ..Rule::default() }.line()
}

/// `SALLY-MT`: the root chain of a protocol.
fn root_chain(nat: Nat, protocol: Protocol) -> String {
    let letter = protocol_name(protocol).to_ascii_uppercase();
    format!("SALLY-{}{}", nat.letter(), &letter[..1])
}

/// The DNAT rules of one port or range for what `matches`: one a target, or one a target and port for a shifted range.
fn deliver(owner: &Arc<str>, matches: &Rule, port: IntentPort, targets: &[IntentTarget]) -> Vec<PortRule> {
    let to_targets = |first, last, target_port| {
        weighted(targets).map(move |(ip, chance)| {
            let matches = Rule { chance, ..matches.clone() };
            on_ports(owner, &matches, port.protocol, first, last, Action::Dnat(ip, target_port))
        })
    };
    // -s 10.30.1.80/32 -d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j DNAT --to-destination 10.30.1.79
    if port.target_port == port.port {
        return to_targets(port.port, port.end_port, None).collect();
    }
    // A shifted range as one rule was seen to reach a wrong port when tuples collide: one rule a port instead.
    // -s 10.30.1.80/32 -d 10.30.1.78/32 -p tcp -m tcp --dport 13306 -j DNAT --to-destination 10.30.1.79:3306
    let ports = (port.port..=port.end_port).zip(port.target_port..);
    ports.flat_map(|(listen, target)| to_targets(listen, listen, Some(target))).collect()
}

fn on_ports(owner: &Arc<str>, matches: &Rule, protocol: Protocol, first: u16, last: u16, action: Action) -> PortRule {
    let rule = Rule { protocol: Some(protocol), ports: Some((first, last)), action, ..matches.clone() };
    PortRule { first, last, line: rule.of(owner) }
}

/// Targets that take new connections, each with its chance among those that the targets before it left; the last has
/// none and takes the rest.
fn weighted(targets: &[IntentTarget]) -> impl Iterator<Item = (IpAddr, Option<u32>)> + '_ {
    let mut rest: u64 = targets.iter().map(|target| u64::from(target.weight)).sum();
    targets.iter().filter(|target| target.weight > 0).map(move |target| {
        let weight = u64::from(target.weight);
        // Rounded to the units in which the kernel keeps a chance, so that it reads back as written.
        let chance =
            (weight < rest).then(|| u32::try_from(((weight << 31) + rest / 2) / rest).unwrap_or(u32::MAX >> 1));
        rest -= weight;
        (target.ip, chance)
    })
}

/// Puts `rules` into `chain`, or, where they are many, into a chain for each bucket of ports below it.
fn split(chains: &mut Chains, chain: String, protocol: Protocol, mut rules: Vec<PortRule>, buckets: &[u32]) {
    let Some((size, finer)) = buckets.split_first().filter(|_| rules.len() > SPLIT_ABOVE) else {
        // Stable: the order of a forward's own rules is part of their meaning.
        rules.sort_by_key(|rule| rule.first);
        chains.insert(chain, rules.into_iter().map(|rule| rule.line).collect());
        return;
    };
    let bucket = |port: u16| u32::from(port) / size;
    // A range that crosses a border stays here, before the buckets; claims never overlap, so there are few such.
    let (mut here, below): (Vec<_>, Vec<_>) =
        rules.into_iter().partition(|rule| bucket(rule.first) != bucket(rule.last));
    here.sort_by_key(|rule| rule.first);
    let mut body: Vec<Line> = here.into_iter().map(|rule| rule.line).collect();
    let mut parts: BTreeMap<u32, Vec<PortRule>> = BTreeMap::new();
    for rule in below {
        parts.entry(bucket(rule.first)).or_default().push(rule);
    }
    let root = chain.split('-').take(2).collect::<Vec<_>>().join("-");
    for (number, part) in parts {
        let first = u16::try_from(number * size).unwrap_or(u16::MAX);
        let last = u16::try_from(number * size + size - 1).unwrap_or(u16::MAX);
        let name = format!("{root}-{first}-{last}");
        // -A SALLY-MT -p tcp -m tcp --dport 0:8191 -g SALLY-MT-0-8191
        let rule = Rule {
            protocol: Some(protocol),
            ports: Some((first, last)),
            action: Action::Goto(name.clone()),
            ..Rule::default()
        };
        body.push(rule.line());
        split(chains, name, protocol, part, finer);
    }
    chains.insert(chain, body);
}
