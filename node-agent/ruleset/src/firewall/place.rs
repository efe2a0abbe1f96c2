//! Where in somebody's `FORWARD` our jump belongs: what others deny by name wins over a forward, what they drop without
//! naming anything does not.
//!
//! ```text
//! rule of FORWARD ─ every way through the chains that it leads to, for each kind of packet that forwards have ─► Class
//! FORWARD ─ the first rule that is a default ─► our jump directly before it, else behind all
//! ```
//! The place depends on the rules of others alone: it must not move, and with it what wins over all other forwards, because
//! one forward came. So of our packets only what is true of every forward's is asked here.

use std::collections::BTreeMap;

use sallyport_api::names::MARK_OURS;

use crate::chain::is_ours;
use crate::family::Family;
use crate::firewall::packet::{Fit, Packet};
use crate::firewall::{FirewallRule, Hook, HostFirewall, State, Test, Verdict, What};

/// Nested chains are followed this far; the kernel allows no more than 16 in nftables.
const DEPTH: usize = 64;
/// IP protocol numbers of what forwards carry and of the errors about it (`include/uapi/linux/in.h`, `in6.h`).
const CARRIED: [u8; 2] = [6, 17];
const ICMP: [u8; 2] = [1, 58];

/// What one rule of `FORWARD`, with all that it leads to, does to packets of forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// It drops none of them.
    Harmless,
    /// It drops them without naming anything: whoever was not let pass before.
    Default,
    /// It drops some that it names.
    Explicit,
    /// It does both, so that no place beside it is right.
    Mixed,
}

/// Chains of others and their rules, of which only those are asked for that decide something.
pub(crate) trait Chains {
    /// The rules of `chain` and its name; `None` if there is no such chain of others.
    fn rules(&self, chain: &str) -> Option<(&str, &[FirewallRule])>;
}

impl Chains for BTreeMap<String, Vec<FirewallRule>> {
    fn rules(&self, chain: &str) -> Option<(&str, &[FirewallRule])> {
        self.get_key_value(chain).map(|(name, rules)| (name.as_str(), rules.as_slice()))
    }
}

/// A rule by the name of its chain and its place there, from 0.
pub(crate) type Spot<'a> = (&'a str, usize);

/// Where a rule stands of which that is not asked.
const NOWHERE: Spot<'static> = ("", 0);

/// The rules of others in `FORWARD` of one family, ours among them as jumps to a chain that is not in there.
pub(crate) struct Forward<'a> {
    chains: &'a dyn Chains,
    packets: Vec<Packet<'static>>,
}

impl<'a> Forward<'a> {
    pub(crate) fn new(family: Family, chains: &'a dyn Chains) -> Self {
        let packets = forwarded(family, CARRIED).collect();
        Self { chains, packets }
    }

    /// What `rule`, which stands in `FORWARD` itself, does.
    pub(crate) fn class(&self, rule: &'a FirewallRule) -> Class {
        let (mut by_default, mut by_name) = (false, false);
        for packet in &self.packets {
            let found = self.way(packet, Looks::ForAll, |way| way.rule(rule, Walked::BASE, NOWHERE));
            by_default |= found.default.is_some();
            by_name |= found.explicit;
        }
        match (by_default, by_name) {
            (false, false) => Class::Harmless,
            (true, false) => Class::Default,
            (false, true) => Class::Explicit,
            (true, true) => Class::Mixed,
        }
    }

    /// Before which of `rules`, those of `FORWARD` without ours, our jump belongs; `None`: behind all of them.
    pub(crate) fn place(&self, rules: impl IntoIterator<Item = &'a FirewallRule>) -> Option<usize> {
        rules.into_iter().position(|rule| self.may_be_default(rule) && self.class(rule) == Class::Default)
    }

    /// Whether `rule` drops some without naming anything, for which the chains of single workloads need not be read.
    fn may_be_default(&self, rule: &'a FirewallRule) -> bool {
        let drops = |packet: &Packet<'static>| {
            self.way(packet, Looks::ForDefaults, |way| way.rule(rule, Walked::BASE, NOWHERE)).default.is_some()
        };
        self.packets.iter().any(drops)
    }

    /// The rules that drop packets without naming anything on the way to them, as a packet that nothing lets pass before
    /// gets there.
    pub(crate) fn defaults(&self, base: &'a str) -> Vec<Spot<'a>> {
        let mut found: Vec<Spot<'a>> = Vec::new();
        for packet in &self.packets {
            let of_kind = self.way(packet, Looks::ForDefaults, |way| way.chain(base, Walked::BASE));
            found.extend(of_kind.default);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn way(&self, packet: &Packet<'static>, looks: Looks, walk: impl FnOnce(&mut Way<'a, '_>) -> Flow) -> Found<'a> {
        let mut way = Way { chains: self.chains, packet, looks, found: Found::default(), done: BTreeMap::new() };
        walk(&mut way);
        way.found
    }
}

impl HostFirewall {
    /// The same with our jump behind what others deny by name in `FORWARD`; `None` if it is there, or none is.
    #[must_use]
    pub fn with_denies_first(&self) -> Option<Self> {
        let (mut moved, mut is_other) = (self.clone(), false);
        for table in moved.tables.iter_mut().filter(|table| table.holds_ours() && table.name == "filter") {
            let families = table.families.clone();
            for base in table.base.iter().filter(|base| base.hook == Hook::Forward) {
                let there = table.chains.get(&base.name).cloned().unwrap_or_default();
                let Some(ours) = there.iter().find(|rule| is_our_jump(rule)).cloned() else { continue };
                let mut rules: Vec<_> = there.iter().filter(|rule| !is_our_jump(rule)).cloned().collect();
                let family = families.first().copied().unwrap_or(Family::V4);
                let place = Forward::new(family, &table.chains).place(&rules).unwrap_or(rules.len());
                rules.insert(place, ours);
                is_other |= rules != there;
                table.chains.insert(base.name.clone(), rules);
            }
        }
        is_other.then_some(moved)
    }
}

/// Whether `rule` is the jump that we make ourselves.
pub(crate) fn is_our_jump(rule: &FirewallRule) -> bool {
    rule.tests.is_empty() && matches!(&rule.verdict, Verdict::Jump(to) if is_ours(to))
}

/// Whether `rule` drops whatever gets to it.
pub(crate) fn drops_all(rule: &FirewallRule) -> bool {
    rule.verdict == Verdict::Drop && rule.tests.is_empty()
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

/// Each kind of packet that forwards of `protocols` have in `FORWARD`. Answers and errors pass there too, so that addresses
/// and ports say nothing.
pub(crate) fn forwarded(
    family: Family,
    protocols: impl IntoIterator<Item = u8>,
) -> impl Iterator<Item = Packet<'static>> {
    let carried = protocols.into_iter().flat_map(|protocol| FORWARDED.map(|kind| (protocol, kind)));
    let errors = ICMP.into_iter().flat_map(|protocol| ERRORS.map(|kind| (protocol, kind)));
    carried.chain(errors).map(move |(protocol, (states, reply))| Packet {
        protocol: Some(protocol),
        states: Some(states),
        mark: (MARK_OURS, MARK_OURS),
        reply,
        ..Packet::of(family)
    })
}

/// Whether a rule that asks `test` names what it is about. That a packet opens a connection says nothing of it.
pub(crate) fn narrows(test: &Test) -> bool {
    match &test.what {
        What::States(states) => states.contains(&State::New) == test.negated,
        _ => true,
    }
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looks {
    ForAll,
    ForDefaults,
}

/// How a packet has come to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Walked {
    /// Whether something on the way names what it is about.
    narrowed: bool,
    /// Whether the end of the chain is the end of `FORWARD`, and so its policy.
    base: bool,
    depth: usize,
}

impl Walked {
    const BASE: Self = Self { narrowed: false, base: true, depth: 0 };
}

/// What becomes of a packet that gets to a rule or a chain, if that is the same for all of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// It goes on, or some of its kind do.
    On,
    /// It leaves the chain and comes back to whoever led here.
    Back,
    /// Some of its kind do that, or none, and the others go on.
    Some,
    /// It goes no further in `FORWARD`.
    Ended,
}

/// What was found on all ways of one kind of packet.
#[derive(Default)]
struct Found<'a> {
    /// The first rule that drops it and names nothing; behind it nothing of that kind is left.
    default: Option<Spot<'a>>,
    explicit: bool,
}

/// The ways of one kind of packet.
struct Way<'a, 'p> {
    chains: &'a dyn Chains,
    packet: &'p Packet<'static>,
    looks: Looks,
    found: Found<'a>,
    /// Chains that were followed, or are being followed.
    done: BTreeMap<(&'a str, bool, bool), Flow>,
}

impl<'a> Way<'a, '_> {
    fn chain(&mut self, name: &'a str, walked: Walked) -> Flow {
        let key = (name, walked.narrowed, walked.base);
        if let Some(known) = self.done.get(&key) {
            return *known;
        }
        self.done.insert(key, Flow::On);
        let (mut flow, mut some_went_back) = (Flow::On, false);
        let rules = self.chains.rules(name).map(|(_, rules)| rules).unwrap_or_default();
        for (number, rule) in rules.iter().enumerate() {
            flow = self.rule(rule, walked, (name, number));
            if flow == Flow::Some {
                (flow, some_went_back) = (Flow::On, true);
            }
            if flow != Flow::On {
                break;
            }
        }
        if flow == Flow::Ended && some_went_back {
            flow = Flow::On;
        }
        self.done.insert(key, flow);
        flow
    }

    /// What `rule`, which stands at `at`, does to this kind.
    fn rule(&mut self, rule: &'a FirewallRule, walked: Walked, at: Spot<'a>) -> Flow {
        let fit = self.packet.fits(&rule.tests);
        if fit == Fit::None {
            return Flow::On;
        }
        let narrowed = walked.narrowed || rule.tests.iter().any(narrows);
        // Behind what names a part of them there is only what is denied by name, and all others go on.
        let leads_on = matches!(rule.verdict, Verdict::Jump(_));
        if narrowed && fit != Fit::All && leads_on && (self.looks == Looks::ForDefaults || self.found.explicit) {
            return Flow::On;
        }
        let flow = match &rule.verdict {
            Verdict::Continue => Flow::On,
            Verdict::Accept | Verdict::Destination(_) | Verdict::Source => Flow::Ended,
            Verdict::Drop => self.dropped(narrowed, at),
            // Whoever decides there may drop it, and is not passed over.
            Verdict::Elsewhere => self.dropped(true, at),
            // To the policy, which may be to drop, today or tomorrow.
            Verdict::Return if walked.base => self.dropped(narrowed, at),
            Verdict::Return => Flow::Back,
            Verdict::Jump(to) | Verdict::Goto(to) => match self.chains.rules(to) {
                Some((to, _)) if walked.depth < DEPTH => {
                    let goes = matches!(rule.verdict, Verdict::Goto(_));
                    let base = walked.base && goes;
                    let flow = self.chain(to, Walked { narrowed, base, depth: walked.depth + 1 });
                    match flow {
                        Flow::Ended => Flow::Ended,
                        _ if base => self.dropped(narrowed, at),
                        _ if goes => Flow::Back,
                        _ => Flow::On,
                    }
                }
                // Ours, or a target that nobody knows.
                _ => Flow::On,
            },
        };
        match (fit, flow) {
            (Fit::All, flow) => flow,
            // A part of them goes on here, whatever the rest does.
            (_, Flow::Back | Flow::Some) => Flow::Some,
            _ => Flow::On,
        }
    }

    fn dropped(&mut self, narrowed: bool, at: Spot<'a>) -> Flow {
        if narrowed {
            self.found.explicit = true;
        } else {
            self.found.default.get_or_insert(at);
        }
        Flow::Ended
    }
}

#[cfg(test)]
mod tests;
