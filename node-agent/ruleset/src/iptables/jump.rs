//! Where the jumps from built-in chains to ours belong, and whether they stand there.
//!
//! In `nat` whoever is asked first decides, so ours stand first. In `FORWARD` it depends on the [order](FirewallOrder). A first
//! rule of `FORWARD` that drops everything while our jump stands below it is somebody's emergency stop, and stays above it.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use sallyport_api::gateway_pool::FirewallOrder;

use crate::family::Family;
use crate::firewall::place::{Chains, Class, Forward, drops_all};
use crate::firewall::{FirewallRule, xtables};
use crate::iptables::drift::shortened;
use crate::iptables::installed::InstalledTable;
use crate::iptables::rule::Table;
use crate::iptables::shadow::{Packets, shadowing_rule};

/// How a jump comes to stand where it belongs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Correction {
    /// Before which of the rules of others, from 0; `None`: behind all of them.
    pub(crate) before: Option<usize>,
    /// Why the only one that is there stands in the wrong place.
    pub(crate) misplaced: Option<String>,
}

/// What decides about places.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a> {
    pub(crate) packets: &'a Packets,
    pub(crate) family: Family,
    pub(crate) table: Table,
    pub(crate) there: &'a InstalledTable,
}

impl Places<'_> {
    /// What is wrong with the jumps to `ours` in `builtin`; `None` if the one that is needed stands where it belongs.
    pub(crate) fn correction(&self, builtin: &str, ours: &str) -> Option<Correction> {
        let at = self.there.jumps(builtin, ours);
        if self.table == Table::Filter {
            return self.in_forward(builtin, &at);
        }
        // Only where our packets pass it matters who is first.
        let misplaced = if self.table.is_needed() { self.shadowed(builtin, 0, &at) } else { None };
        (at.len() != 1 || misplaced.is_some()).then_some(Correction { before: Some(0), misplaced })
    }

    /// The same where others may deny what is forwarded, with our jumps `at` these places.
    fn in_forward(&self, builtin: &str, at: &[usize]) -> Option<Correction> {
        let chains = Understood::of(self.there);
        let rules = chains.rules(builtin).map(|(_, rules)| rules).unwrap_or_default();
        let others: Vec<_> = rules.iter().enumerate().filter(|(place, _)| !at.contains(place)).collect();
        // Below an emergency stop everything is as it would be without it.
        let stopped = at.first().is_some_and(|first| *first > 0) && rules.first().is_some_and(drops_all);
        let above = usize::from(stopped);
        let forward = Forward::new(self.family, &chains);
        let before = match self.packets.order {
            FirewallOrder::First => Some(above),
            FirewallOrder::AfterDenies => {
                forward.place(others[above..].iter().map(|(_, rule)| *rule)).map(|place| place + above)
            }
        };
        let misplaced = match (at, self.packets.order, before) {
            ([_], FirewallOrder::First, _) => self.shadowed(builtin, above, at),
            ([one], FirewallOrder::AfterDenies, Some(default)) if default < *one => {
                Some(taken_by(&others[default].1.text))
            }
            // Nobody has put it to the very top but we, when others had no rule here or forwards were to win.
            ([0], FirewallOrder::AfterDenies, _) => {
                let wins = |class| matches!(class, Class::Explicit | Class::Mixed);
                let mut ahead = others[..before.unwrap_or(others.len())].iter().map(|(_, rule)| *rule);
                let denied = ahead.find(|rule| wins(forward.class(rule)));
                denied.map(|rule| format!("ours stands before a rule that is to win: {}", shortened(&rule.text)))
            }
            _ => None,
        };
        (at.len() != 1 || misplaced.is_some()).then_some(Correction { before, misplaced })
    }

    /// What stands before the only jump, from the rule `from` on, and would take our packets.
    fn shadowed(&self, builtin: &str, from: usize, at: &[usize]) -> Option<String> {
        let [one] = at else { return None };
        shadowing_rule(self.packets, self.family, self.table, self.there, builtin, from..*one).map(taken_by)
    }
}

/// The chains of others in a table, whose rules are understood when they are asked for.
struct Understood<'a>(BTreeMap<&'a str, (&'a [String], OnceCell<Vec<FirewallRule>>)>);

impl<'a> Understood<'a> {
    fn of(there: &'a InstalledTable) -> Self {
        let chain = |(name, rules): (&'a String, &'a Vec<String>)| (name.as_str(), (rules.as_slice(), OnceCell::new()));
        Self(there.foreign.iter().map(chain).collect())
    }
}

impl Chains for Understood<'_> {
    fn rules(&self, chain: &str) -> Option<(&str, &[FirewallRule])> {
        let (name, (text, rules)) = self.0.get_key_value(chain)?;
        let understood = || text.iter().map(|rule| xtables::rule(rule)).collect();
        Some((name, rules.get_or_init(understood)))
    }
}

fn taken_by(rule: &str) -> String {
    format!("a rule before ours would take our packets: {}", shortened(rule))
}

#[cfg(test)]
mod tests;
