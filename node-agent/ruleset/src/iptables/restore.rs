//! Changes → the text of `iptables-restore --noflush`. The only place where a change becomes text.

use crate::family::Family;
use crate::iptables::op::{Op, Step, inserted};
use crate::iptables::rule::Table;

/// The text that does those of `ops` that are for `family`; `None` where nothing is to be restored.
///
/// A chain that is declared is made, or flushed if it exists. [Unhooking](Step::Unhook) has no text.
#[must_use]
pub fn restore(ops: &[Op], family: Family) -> Option<String> {
    let of_family = |op: &&Op| op.family == family && !matches!(op.step, Step::Unhook { .. });
    let ops: Vec<&Op> = ops.iter().filter(of_family).collect();
    let mut text = String::new();
    for ops in ops.chunk_by(|a, b| a.table == b.table) {
        transaction(&mut text, ops[0].table, ops);
    }
    (!text.is_empty()).then_some(text)
}

fn transaction(text: &mut String, table: Table, ops: &[&Op]) {
    let mut line = |parts: &[&str]| {
        text.extend(parts.iter().copied());
        text.push('\n');
    };
    line(&["*", table.name()]);
    for op in ops {
        if let Step::Replace { chain, .. } | Step::Flush { chain } | Step::Delete { chain } = &op.step {
            line(&[":", chain, " - [0:0]"]);
        }
    }
    for op in ops {
        if let Step::Replace { chain, rules } = &op.step {
            for rule in rules {
                line(&["-A ", chain, " ", rule.as_str()]);
            }
        }
    }
    for op in ops {
        if let Step::Jump { builtin, chain, present, .. } | Step::Unjump { builtin, chain, present } = op.step {
            for _ in 0..present {
                line(&["-D ", builtin, " -j ", chain]);
            }
        }
        if let Step::Jump { builtin, chain, before, .. } = op.step {
            line(&[&inserted(builtin, chain, before)]);
        }
    }
    for op in ops {
        if let Step::Delete { chain } = &op.step {
            line(&["-X ", chain]);
        }
    }
    line(&["COMMIT"]);
}
