//! The smallest atomic change from what is installed to what shall be: `iptables-restore --noflush` text.
//!
//! Only chains that differ are written, each flushed and filled within the transaction of its table; jumps are added
//! and removed in the same transaction. Foreign rules are never named, so they cannot be changed or reordered.

use std::fmt::Write as _;

use crate::family::Family;
use crate::installed::{Installed, InstalledRuleset, InstalledTable};
use crate::rivals;
use crate::rule::{Chains, Rules, Ruleset, Table};

/// Text for each family's `iptables-restore --noflush`; `None` where nothing has to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// For `iptables-restore`.
    pub v4: Option<String>,
    /// For `ip6tables-restore`.
    pub v6: Option<String>,
}

impl Batch {
    /// The text for `family`.
    #[must_use]
    pub fn family(&self, family: Family) -> Option<&str> {
        match family {
            Family::V4 => self.v4.as_deref(),
            Family::V6 => self.v6.as_deref(),
        }
    }

    /// Whether nothing has to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

/// Plans the change from `installed` to `desired`.
///
/// *Guarantees*: empty exactly when our chains are equal, every jump stands once, and no foreign rule before a jump
/// would take our packets. In a table that is [unreadable](InstalledTable::unreadable) it names no jump. With `yield_place` the latter is left as it is: for when somebody keeps fighting for the
/// first place.
#[must_use]
pub fn plan(desired: &Ruleset, installed: &InstalledRuleset, yield_place: bool) -> Batch {
    let text = |family| plan_family(desired.family(family), installed.family(family), yield_place);
    Batch { v4: text(Family::V4), v6: text(Family::V6) }
}

fn plan_family(desired: &Rules, installed: &Installed, yield_place: bool) -> Option<String> {
    let mut tables = Table::BOTH.map(|table| {
        let (chains, there) = (desired.table(table), installed.table(table));
        let taken = |builtin: &str, before: usize| {
            !yield_place && rivals::taker(desired, table, there, builtin, before).is_some()
        };
        (table, plan_table(table, chains, there, taken))
    });
    if desired.is_empty() {
        // Going away, translation stops before acceptance does: a flow is refused rather than dropped half-way.
        tables.reverse();
    }
    let mut text = String::new();
    for (table, body) in tables {
        if !body.is_empty() {
            write!(text, "*{}\n{body}COMMIT\n", table.name()).expect("writing to a string cannot fail");
        }
    }
    (!text.is_empty()).then_some(text)
}

fn plan_table(table: Table, desired: &Chains, there: &InstalledTable, taken: impl Fn(&str, usize) -> bool) -> String {
    // A chain to which somebody else's rule leads cannot be deleted; emptied, it does nothing.
    let obsolete: Vec<&String> = there
        .ours
        .iter()
        .filter(|(name, rules)| !(desired.contains_key(*name) || rules.is_empty() && there.is_used_by_others(name)))
        .map(|(name, _)| name)
        .collect();
    let changed: Vec<(&String, &Vec<String>)> =
        desired.iter().filter(|(name, rules)| there.ours.get(*name) != Some(*rules)).collect();
    let mut text = String::new();
    for name in changed.iter().map(|(name, _)| *name).chain(obsolete.iter().copied()) {
        // Declares the chain, and flushes it if it exists.
        line(&mut text, &[":", name, " - [0:0]"]);
    }
    for (name, rules) in &changed {
        for rule in *rules {
            line(&mut text, &["-A ", name, " ", rule]);
        }
    }
    // Where a table cannot be read nobody knows who stands before us: a jump that is there stays, and none is added. What has
    // to go goes by other means.
    let hooks = if there.unreadable.is_none() { table.hooks() } else { &[] };
    for (builtin, ours) in hooks {
        let wanted = desired.contains_key(*ours);
        let at = there.jumps(builtin, ours);
        // Of two equal rules `-D` takes the first, so with two jumps none can be kept where it stands.
        let stays = wanted && at.len() == 1 && !taken(builtin, at[0]);
        for _ in at.iter().filter(|_| !stays) {
            line(&mut text, &["-D ", builtin, " -j ", ours]);
        }
        if wanted && !stays {
            line(&mut text, &["-I ", builtin, " 1 -j ", ours]);
        }
    }
    for name in obsolete.into_iter().filter(|name| !there.is_used_by_others(name)) {
        line(&mut text, &["-X ", name]);
    }
    text
}

/// The jumps to our entry chains that `desired` does not have, in tables that are unreadable: a plan cannot name them there.
/// Translation goes before acceptance, so that a flow is refused rather than dropped half-way.
#[must_use]
pub fn jumps_to_unhook(desired: &Ruleset, installed: &InstalledRuleset) -> Vec<(Family, Table, &'static str)> {
    let tables =
        Family::BOTH.into_iter().flat_map(|family| Table::BOTH.into_iter().rev().map(move |table| (family, table)));
    let gone = |(family, table)| {
        let there = installed.family(family).table(table);
        let hooked = if there.unreadable.is_some() { there.hooked(table) } else { Vec::new() };
        let wanted = desired.family(family).table(table);
        hooked.into_iter().filter(|ours| !wanted.contains_key(*ours)).map(move |ours| (family, table, ours)).collect()
    };
    tables.flat_map(|place| -> Vec<_> { gone(place) }).collect()
}

fn line(text: &mut String, parts: &[&str]) {
    text.extend(parts.iter().copied());
    text.push('\n');
}

/// The whole of `desired` as text for hosts that have nothing of ours yet.
#[must_use]
pub fn render(desired: &Ruleset) -> Batch {
    plan(desired, &InstalledRuleset::default(), false)
}

#[cfg(test)]
mod tests;
