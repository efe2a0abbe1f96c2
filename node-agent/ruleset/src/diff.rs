//! A change in the eyes of people: the rules that come and go, and no others.
//!
//! What is loaded are whole chains. A chain holds rules of many forwards, and whoever asks about one of them may not see
//! the others: rules that only change their chain or place are left out.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::family::Family;
use crate::installed::{Installed, InstalledRuleset};
use crate::plan::Batch;

/// What `batch` does to `installed`, a line for each rule with `-` or `+` in front; empty if no rule comes or goes.
#[must_use]
pub fn diff(batch: &Batch, installed: &InstalledRuleset) -> String {
    let mut text = String::new();
    for family in Family::BOTH {
        let Some(batch) = batch.family(family) else { continue };
        for section in batch.split("COMMIT\n") {
            let Some((table, body)) = section.strip_prefix('*').and_then(|section| section.split_once('\n')) else {
                continue;
            };
            let lines = changes(body, installed.family(family), table);
            if !lines.is_empty() {
                write!(text, "# {family} {table}\n{lines}").expect("writing to a string cannot fail");
            }
        }
    }
    text
}

fn changes(body: &str, installed: &Installed, table: &str) -> String {
    let ours = installed.table_of(table).map(|table| &table.ours);
    let (mut removed, mut added, mut text) = (Vec::new(), Vec::new(), String::new());
    for line in body.lines() {
        if let Some(declared) = line.strip_prefix(':') {
            let chain = declared.split(' ').next().unwrap_or_default();
            let rules = ours.and_then(|ours| ours.get(chain)).into_iter().flatten();
            removed.extend(rules.map(|rule| (chain, rule.as_str())));
        } else if let Some(rule) = line.strip_prefix("-A ").and_then(|line| line.split_once(' ')) {
            added.push(rule);
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
    for jump in body.lines() {
        if let Some(jump) = jump.strip_prefix("-D ") {
            line(&["- -A ", jump]);
        } else if jump.starts_with("-I ") {
            line(&["+ ", jump]);
        }
    }
    text
}

#[cfg(test)]
mod tests;
