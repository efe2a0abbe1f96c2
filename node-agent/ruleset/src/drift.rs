//! How what is installed differs from what shall be, in words: what somebody else has done to our rules.
//!
//! Says what differs exactly where `plan` would change something; how it is put right is `plan`'s.

use std::collections::BTreeMap;
use std::fmt;

use crate::family::Family;
use crate::installed::{InstalledRuleset, InstalledTable};
use crate::rivals;
use crate::rule::{Chains, Rules, Ruleset, Table};

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
    /// Somebody's rule ahead of that one, which would take our packets.
    Rival,
    /// The switch that lets the kernel forward packets.
    Forwarding,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rules, Self::Jump, Self::Rival, Self::Forwarding];

    /// Its name, for people and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Jump => "jump",
            Self::Rival => "rival",
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

/// Everything in which `installed` differs from `desired`: empty exactly when the plan from one to the other is.
#[must_use]
pub fn differences(desired: &Ruleset, installed: &InstalledRuleset) -> Vec<Difference> {
    let mut found = Vec::new();
    for family in Family::BOTH {
        for table in Table::BOTH {
            let here = Here { family, table, there: installed.family(family).table(table) };
            here.chains(desired.family(family).table(table), &mut found);
            here.jumps(desired.family(family), &mut found);
        }
    }
    found
}

/// The first few of them on one line, and how many more there are.
#[must_use]
pub fn told(differences: &[Difference]) -> String {
    let first: Vec<&str> = differences.iter().take(LISTED).map(|difference| difference.text.as_str()).collect();
    let more = differences.len().saturating_sub(LISTED);
    first.join("; ") + &if more > 0 { format!("; and {more} more") } else { String::new() }
}

/// One table of one family.
struct Here<'a> {
    family: Family,
    table: Table,
    there: &'a InstalledTable,
}

impl Here<'_> {
    fn say(&self, kind: Kind, chain: &str, how: &str) -> Difference {
        Difference { kind, text: format!("{} {} {chain}: {how}", self.family, self.table.name()) }
    }

    fn chains(&self, desired: &Chains, found: &mut Vec<Difference>) {
        for (name, wanted) in desired {
            match self.there.ours.get(name) {
                Some(rules) if rules == wanted => {}
                Some(rules) => found.push(self.say(Kind::Rules, name, &changed(wanted, rules))),
                None => found.push(self.say(Kind::Rules, name, "the chain is missing")),
            }
        }
        for (name, rules) in self.there.ours.iter().filter(|(name, _)| !desired.contains_key(*name)) {
            if !rules.is_empty() || !self.there.is_used_by_others(name) {
                found.push(self.say(Kind::Rules, name, "the chain should not be there"));
            }
        }
    }

    fn jumps(&self, desired: &Rules, found: &mut Vec<Difference>) {
        if self.there.unreadable.is_some() {
            return;
        }
        for (builtin, ours) in self.table.hooks() {
            let wanted = desired.table(self.table).contains_key(*ours);
            let at = self.there.jumps(builtin, ours);
            match (wanted, at.as_slice()) {
                (false, []) => {}
                (false, _) => {
                    found.push(self.say(Kind::Jump, builtin, &format!("the jump to {ours} should not be there")));
                }
                (true, []) => found.push(self.say(Kind::Jump, builtin, &format!("the jump to {ours} is missing"))),
                (true, [first]) => {
                    if let Some(rule) = rivals::taker(desired, self.table, self.there, builtin, *first) {
                        let how = format!("a rule before ours would take our packets: {}", shortened(rule));
                        found.push(self.say(Kind::Rival, builtin, &how));
                    }
                }
                (true, all) => {
                    let how = format!("the jump to {ours} is there {} times", all.len());
                    found.push(self.say(Kind::Jump, builtin, &how));
                }
            }
        }
    }
}

/// How the rules of a chain differ: how many are missing and how many are not ours, and the first of each.
fn changed(wanted: &[String], there: &[String]) -> String {
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
fn without<'a>(rules: &'a [String], others: &[String]) -> Vec<&'a str> {
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for other in others {
        *left.entry(other).or_default() += 1;
    }
    let is_left = |rule: &&str| match left.get_mut(*rule) {
        Some(number) if *number > 0 => {
            *number -= 1;
            false
        }
        _ => true,
    };
    rules.iter().map(String::as_str).filter(is_left).collect()
}

/// As much of a rule as is told.
#[must_use]
pub fn shortened(rule: &str) -> String {
    if rule.chars().count() <= RULE { rule.to_owned() } else { rule.chars().take(RULE - 1).chain(['…']).collect() }
}

#[cfg(test)]
mod tests;
