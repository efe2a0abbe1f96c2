//! How what is installed differs from what shall be, in words: what somebody else has done to our rules.
//!
//! Read off the change that puts it right, so that nothing is told without being repaired, and nothing repaired untold.

use std::collections::BTreeMap;
use std::fmt;

use crate::family::Family;
use crate::iptables::installed::{InstalledRuleset, InstalledTable};
use crate::iptables::op::{Op, Step};
use crate::iptables::rule::Line;

/// Characters of a rule that are told.
const RULE: usize = 160;
/// Differences that are told one by one.
const LISTED: usize = 8;

/// What sort of thing differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A chain of ours, or rules in it.
    Rules,
    /// The rule in a built-in chain that leads to ours.
    Jump,
    /// The place of that one: somebody's rule ahead of it would take our packets, or one behind it is to win.
    Shadow,
    /// The switch that lets the kernel forward packets.
    Forwarding,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rules, Self::Jump, Self::Shadow, Self::Forwarding];

    /// Its name, for people and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Jump => "jump",
            Self::Shadow => "rival",
            Self::Forwarding => "forwarding",
        }
    }
}

/// One thing that is not as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What sort of thing it is.
    pub kind: Kind,
    /// Which one it is, and how it differs.
    pub text: String,
}

impl Difference {
    /// Packets of `family` are not forwarded.
    #[must_use]
    pub fn forwarding(family: Family) -> Self {
        Self { kind: Kind::Forwarding, text: format!("forwarding of {family} packets is off") }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is wrong in `installed`, one for each of the `ops` that [put it right](crate::iptables::plan::plan), in their order.
#[must_use]
pub fn differences(ops: &[Op], installed: &InstalledRuleset) -> Vec<Difference> {
    ops.iter().map(|op| difference(op, installed.family(op.family).table(op.table))).collect()
}

fn difference(op: &Op, there: &InstalledTable) -> Difference {
    let (kind, chain, how) = match &op.step {
        Step::Replace { chain, rules } => {
            let how = there.ours.get(chain).map(|now| changed(rules, now));
            (Kind::Rules, chain.as_str(), how.unwrap_or_else(|| "the chain is missing".to_owned()))
        }
        Step::Flush { chain } | Step::Delete { chain } => {
            (Kind::Rules, chain.as_str(), "the chain should not be there".to_owned())
        }
        Step::Jump { builtin, misplaced: Some(why), .. } => (Kind::Shadow, *builtin, why.clone()),
        Step::Jump { builtin, chain, present: 0, .. } => {
            (Kind::Jump, *builtin, format!("the jump to {chain} is missing"))
        }
        Step::Jump { builtin, chain, present, .. } => {
            (Kind::Jump, *builtin, format!("the jump to {chain} is there {present} times"))
        }
        Step::Unjump { builtin, chain, .. } => {
            (Kind::Jump, *builtin, format!("the jump to {chain} should not be there"))
        }
        Step::Unhook { chain } => (Kind::Jump, *chain, "the jumps to it should not be there".to_owned()),
    };
    Difference { kind, text: format!("{} {} {chain}: {how}", op.family, op.table.name()) }
}

/// The first few of them on one line, and how many more there are.
#[must_use]
pub fn told(differences: &[Difference]) -> String {
    let first: Vec<&str> = differences.iter().take(LISTED).map(|difference| difference.text.as_str()).collect();
    let more = differences.len().saturating_sub(LISTED);
    first.join("; ") + &if more > 0 { format!("; and {more} more") } else { String::new() }
}

/// How the rules of a chain differ: how many are missing and how many are not ours, and the first of each.
fn changed(wanted: &[Line], there: &[Line]) -> String {
    let (missing, added) = (without(wanted, there), without(there, wanted));
    let mut parts = Vec::new();
    for (rules, how) in [(&missing, "missing"), (&added, "added")] {
        match rules.as_slice() {
            [] => {}
            [rule] => parts.push(format!("1 rule {how}: {}", shortened(rule))),
            [rule, ..] => parts.push(format!("{} rules {how}, the first: {}", rules.len(), shortened(rule))),
        }
    }
    if parts.is_empty() { "the rules are in another order".to_owned() } else { parts.join(", ") }
}

/// Those of `rules` that are not in `others`, in their order; what is there twice counts twice.
fn without<'a>(rules: &'a [Line], others: &[Line]) -> Vec<&'a str> {
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for other in others {
        *left.entry(other.as_str()).or_default() += 1;
    }
    let is_left = |rule: &&str| match left.get_mut(*rule) {
        Some(number) if *number > 0 => {
            *number -= 1;
            false
        }
        _ => true,
    };
    rules.iter().map(Line::as_str).filter(is_left).collect()
}

/// As much of a rule as is told.
#[must_use]
pub fn shortened(rule: &str) -> String {
    if rule.chars().count() <= RULE { rule.to_owned() } else { rule.chars().take(RULE - 1).chain(['…']).collect() }
}

#[cfg(test)]
mod tests;
