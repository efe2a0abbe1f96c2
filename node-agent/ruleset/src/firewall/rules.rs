//! The rules of one chain, of which a packet meets those that its destination port could concern.
//!
//! A program that publishes a thousand ports has a thousand rules in one chain, each about one of them.

use std::collections::BTreeMap;
use std::iter::from_fn;
use std::ops::RangeInclusive;
use std::rc::Rc;

use crate::firewall::{Effect, Test, To, What};

/// In so few rules nothing is looked up.
const FEW: usize = 16;

/// A rule that may meet a packet of a forward.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) tests: Vec<Test>,
    pub(super) effects: Vec<Effect>,
    pub(super) act: Act,
    /// The chain that it is in.
    pub(super) chain: Rc<str>,
    /// What people see of it.
    pub(super) text: String,
}

/// How a rule ends.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Accept,
    Drop,
    Return,
    Destination(To),
    Source,
    Elsewhere,
    Continue,
    /// Another chain, and back from there or not.
    Call {
        chain: usize,
        back: bool,
    },
    /// Our rules, which translate the destinations of whoever is listed, and the sources of what they have marked so.
    Ours,
}

/// The rules of one chain, in order.
#[derive(Debug, Default)]
pub(super) struct Rules {
    rules: Vec<Rule>,
    /// Where they are many.
    by_port: Option<ByPort>,
}

/// The numbers of rules: those about one destination port, by that port, and all others.
#[derive(Debug, Default)]
struct ByPort {
    about: BTreeMap<u16, Vec<usize>>,
    others: Vec<usize>,
}

impl Rules {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        let by_port = (rules.len() > FEW).then(|| {
            let mut by_port = ByPort::default();
            for (number, rule) in rules.iter().enumerate() {
                match rule.tests.iter().find_map(|test| only_port(&test.what).filter(|_| !test.negated)) {
                    Some(port) => by_port.about.entry(port).or_default().push(number),
                    None => by_port.others.push(number),
                }
            }
            by_port
        });
        Self { rules, by_port }
    }

    pub(super) fn as_slice(&self) -> &[Rule] {
        &self.rules
    }

    /// The numbers of those that packets to `port` could meet.
    pub(super) fn for_port(&self, port: Option<&RangeInclusive<u16>>) -> impl Iterator<Item = usize> {
        let known = self.by_port.as_ref().zip(port.and_then(only));
        let (all, mut own, mut others): (_, &[usize], &[usize]) = match known {
            None => (0..self.rules.len(), &[], &[]),
            Some((by_port, port)) => {
                let own = by_port.about.get(&port).map_or(&[][..], Vec::as_slice);
                (0..0, own, &by_port.others)
            }
        };
        let merged = from_fn(move || {
            let first = match (own.first(), others.first()) {
                (Some(one), Some(other)) if one > other => &mut others,
                (None, _) => &mut others,
                _ => &mut own,
            };
            first.split_off_first().copied()
        });
        all.chain(merged)
    }
}

/// The one destination port that is asked for.
fn only_port(what: &What) -> Option<u16> {
    match what {
        What::DestinationPorts(listed) => match listed.as_slice() {
            [ports] => only(ports),
            _ => None,
        },
        _ => None,
    }
}

fn only(ports: &RangeInclusive<u16>) -> Option<u16> {
    (ports.start() == ports.end()).then(|| *ports.start())
}
