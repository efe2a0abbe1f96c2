//! A change in the eyes of people: the rules that come and go, and no others.
//!
//! What is loaded are whole chains. A chain holds rules of many forwards, and whoever asks about one of them may not see
//! the others: rules that only change their chain or place are left out.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::iptables::installed::{InstalledRuleset, InstalledTable};
use crate::iptables::op::{Op, Step, inserted};
use crate::iptables::rule::Line;

/// What `ops` do to `installed`, a line for each rule with `-` or `+` in front; empty if no rule comes or goes.
#[must_use]
pub fn diff(ops: &[Op], installed: &InstalledRuleset) -> String {
    let mut text = String::new();
    for ops in ops.chunk_by(|a, b| (a.family, a.table) == (b.family, b.table)) {
        let (family, table) = (ops[0].family, ops[0].table);
        let lines = changes(ops, installed.family(family).table(table));
        if !lines.is_empty() {
            write!(text, "# {family} {}\n{lines}", table.name()).expect("writing to a string cannot fail");
        }
    }
    text
}

fn changes(ops: &[Op], there: &InstalledTable) -> String {
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    for op in ops {
        if let Step::Replace { chain, .. } | Step::Flush { chain } | Step::Delete { chain } = &op.step {
            let rules = there.ours.get(chain).into_iter().flatten();
            removed.extend(rules.map(|rule| (chain.as_str(), rule.as_str())));
        }
        if let Step::Replace { chain, rules } = &op.step {
            added.extend(rules.iter().map(|rule: &Line| (chain.as_str(), rule.as_str())));
        }
    }
    let mut stay: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, rule) in &removed {
        *stay.entry(rule).or_default() += 1;
    }
    let mut come = Vec::new();
    for (chain, rule) in added {
        match stay.get_mut(rule).filter(|left| **left > 0) {
            Some(left) => *left -= 1,
            None => come.push((chain, rule)),
        }
    }
    let mut text = String::new();
    let mut line = |parts: &[&str]| {
        text.extend(parts.iter().copied());
        text.push('\n');
    };
    // What is left over went nowhere.
    for (chain, rule) in removed {
        if let Some(left) = stay.get_mut(rule).filter(|left| **left > 0) {
            *left -= 1;
            line(&["- -A ", chain, " ", rule]);
        }
    }
    for (chain, rule) in come {
        line(&["+ -A ", chain, " ", rule]);
    }
    for op in ops {
        match &op.step {
            Step::Jump { builtin, chain, present, before, .. } => {
                for _ in 0..*present {
                    line(&["- -A ", builtin, " -j ", chain]);
                }
                line(&["+ ", &inserted(builtin, chain, *before)]);
            }
            Step::Unjump { builtin, chain, present } => {
                for _ in 0..*present {
                    line(&["- -A ", builtin, " -j ", chain]);
                }
            }
            Step::Unhook { chain } => {
                for (builtin, _) in op.table.hooks().iter().filter(|(_, ours)| ours == chain) {
                    for _ in there.jumps(builtin, chain) {
                        line(&["- -A ", builtin, " -j ", chain]);
                    }
                }
            }
            Step::Replace { .. } | Step::Flush { .. } | Step::Delete { .. } => {}
        }
    }
    text
}

#[cfg(test)]
mod tests;
