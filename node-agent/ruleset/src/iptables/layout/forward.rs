//! The rules of one forward in one family.

use std::net::IpAddr;

use ipnet::IpNet;
use sallyport_api::id::Uid;
use sallyport_api::intent::{IntentPort, IntentTarget};
use sallyport_api::names::{MARK_MASQUERADE, MARK_OURS};
use sallyport_api::{Protocol, SourceNatMode};
use sallyport_policy::digest::short_id;

use super::unplaced::Answers;
use crate::binding::Binding;
use crate::iptables::rule::{Action, Line, Rule};

/// What a forward becomes, before it stands beside others.
#[derive(Debug)]
pub(super) struct ForwardRules {
    pub(super) nat: Nat,
    /// The listen address and the protocol of each binding.
    pub(super) bound: Vec<(IpAddr, Protocol)>,
    /// The rules that stand among those of other forwards, in order.
    pub(super) by_port: Vec<(Protocol, PortRule)>,
    /// Its own chains: its sources, and its targets.
    pub(super) own: Vec<(String, Vec<Line>)>,
    /// From which addresses, and first and last TCP ports there, answers come to the gateway itself.
    pub(super) answers: Vec<Answers>,
}

/// What happens to the client's address. Ordered as the chains are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Nat {
    Masquerade,
    Preserve,
}

impl Nat {
    pub(super) const BOTH: [Self; 2] = [Self::Masquerade, Self::Preserve];

    pub(super) fn letter(self) -> char {
        match self {
            Self::Masquerade => 'M',
            Self::Preserve => 'P',
        }
    }

    pub(super) fn mark(self) -> u32 {
        match self {
            Self::Masquerade => MARK_OURS | MARK_MASQUERADE,
            Self::Preserve => MARK_OURS,
        }
    }
}

/// A rule that stands where its ports are.
#[derive(Debug)]
pub(super) struct PortRule {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) line: Line,
}

impl ForwardRules {
    /// Those of the forward whose `bindings` of one family these are, at least one.
    pub(super) fn of(bindings: &[Binding<'_>]) -> Self {
        let first = &bindings[0];
        let nat = match first.source_nat() {
            SourceNatMode::Masquerade => Nat::Masquerade,
            SourceNatMode::Preserve => Nat::Preserve,
        };
        let owner = &first.forward.uid;
        let allow: Vec<IpNet> = first.allowed().collect();
        let targets: Vec<IntentTarget> = first.targets().collect();
        // One source needs no chain of its own: the DNAT rule names it.
        let single = allow.first().copied().filter(|_| allow.len() == 1 && first.denied().next().is_none());
        let own = if single.is_some() { Vec::new() } else { own_chains(first, &targets) };
        let mut by_port = Vec::new();
        for Binding { listen, port, .. } in bindings {
            let to_address = Rule { destination: Some(*listen), ..Rule::default() };
            let rules = match (single, own.first()) {
                // -A SALLY-MT -d 10.30.1.78/32 -p tcp -m tcp --dport 3306 -j SALLY-S-0123456789abcdef
                (None, Some((sources, _))) => {
                    let action = Action::Jump(sources.clone());
                    vec![on_ports(owner, &to_address, port.protocol, port.port, port.end_port, action)]
                }
                (source, _) => deliver(owner, &Rule { source, ..to_address }, *port, &targets),
            };
            by_port.extend(rules.into_iter().map(|rule| (port.protocol, rule)));
        }
        let bound = bindings.iter().map(|binding| (binding.listen, binding.protocol())).collect();
        let hidden = bindings.iter().filter(|binding| nat == Nat::Masquerade && binding.protocol() == Protocol::Tcp);
        let answers = hidden.flat_map(|Binding { port, .. }| {
            let last = port.target_port + (port.end_port - port.port);
            targets.iter().map(move |target| (target.ip, port.target_port, last))
        });
        let answers = answers.collect();
        Self { nat, bound, by_port, own, answers }
    }
}

/// `SALLY-S-…` lets the allowed sources through to `SALLY-D-…`, which delivers.
fn own_chains(binding: &Binding<'_>, targets: &[IntentTarget]) -> Vec<(String, Vec<Line>)> {
    let owner = &binding.forward.uid;
    let id = short_id(owner.as_str());
    let (to_sources, to_targets) = (format!("SALLY-S-{id}"), format!("SALLY-D-{id}"));
    let from = |net: IpNet, action: Action| Rule { source: Some(net), action, ..Rule::default() }.line();
    // -A SALLY-S-0123456789abcdef -s 10.30.1.66/32 -j RETURN
    let denied = binding.denied().map(|net| from(net, Action::Return));
    // -A SALLY-S-0123456789abcdef -s 10.30.1.0/24 -j SALLY-D-0123456789abcdef
    let allowed = binding.allowed().map(|net| from(net, Action::Jump(to_targets.clone())));
    let sources = denied.chain(allowed).collect();
    let ports = binding.forward.intent.ports.iter();
    let rules = ports.flat_map(|port| deliver(owner, &Rule::default(), *port, targets));
    let delivered = rules.map(|rule| rule.line).collect();
    vec![(to_sources, sources), (to_targets, delivered)]
}

/// The DNAT rules of one port or range for what `matches`: one a target, or one a target and port for a shifted range.
fn deliver(owner: &Uid, matches: &Rule, port: IntentPort, targets: &[IntentTarget]) -> Vec<PortRule> {
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

fn on_ports(owner: &Uid, matches: &Rule, protocol: Protocol, first: u16, last: u16, action: Action) -> PortRule {
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
