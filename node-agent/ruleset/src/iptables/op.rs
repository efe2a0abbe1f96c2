//! A change of a kernel's rules as a value: an engine makes text of it, a fake does it, people read it.

use std::fmt;

use crate::family::Family;
use crate::iptables::rule::{Chain, Table};

/// One step of a change. Those of a table are one transaction: all of them happen, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// In which family.
    pub family: Family,
    /// In which table.
    pub table: Table,
    /// What is done there.
    pub step: Step,
}

/// What an [`Op`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A chain of ours holds these rules and no others; it is made if it is not there.
    Replace {
        /// Its name.
        chain: String,
        /// What it holds.
        rules: Chain,
    },
    /// A chain of ours loses its rules and stays, because a rule of somebody else leads to it.
    Flush {
        /// Its name.
        chain: String,
    },
    /// A chain of ours goes.
    Delete {
        /// Its name.
        chain: String,
    },
    /// The jumps from a built-in chain to a chain of ours are replaced by one in its place.
    Jump {
        /// The built-in chain.
        builtin: &'static str,
        /// Ours.
        chain: &'static str,
        /// How many such jumps there are.
        present: usize,
        /// Before which of the rules of others it stands then, from 0; `None`: behind all of them.
        before: Option<usize>,
        /// Why the only one that is there stands in the wrong place, if it does.
        misplaced: Option<String>,
    },
    /// The jumps from a built-in chain to a chain of ours go.
    Unjump {
        /// The built-in chain.
        builtin: &'static str,
        /// Ours.
        chain: &'static str,
        /// How many there are.
        present: usize,
    },
    /// Every jump from a built-in chain to a chain of ours goes, in a table that is
    /// [unreadable](crate::iptables::installed::InstalledTable::unreadable): no restore text can name them there.
    Unhook {
        /// Ours.
        chain: &'static str,
    },
}

impl Op {
    /// Whether it only moves a jump that is there, for the sake of a rule of somebody else.
    #[must_use]
    pub fn is_move(&self) -> bool {
        matches!(self.step, Step::Jump { misplaced: Some(_), .. })
    }

    /// The built-in chain in which it puts or moves a jump, if it does.
    #[must_use]
    pub fn jump_in(&self) -> Option<&'static str> {
        match self.step {
            Step::Jump { builtin, .. } => Some(builtin),
            _ => None,
        }
    }
}

/// What it writes, for people: a chain, or a jump.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.family;
        match &self.step {
            Step::Replace { chain, .. } | Step::Flush { chain } | Step::Delete { chain } => {
                write!(f, "{family} {chain}")
            }
            Step::Jump { builtin, chain, before, .. } => write!(f, "{family} {}", inserted(builtin, chain, *before)),
            Step::Unjump { builtin, chain, .. } => write!(f, "{family} -D {builtin} -j {chain}"),
            Step::Unhook { chain } => write!(f, "{family} jumps to {chain}"),
        }
    }
}

/// What puts a jump into its place, as iptables is told it.
pub(crate) fn inserted(builtin: &str, chain: &str, before: Option<usize>) -> String {
    match before {
        Some(rules) => format!("-I {builtin} {} -j {chain}", rules + 1),
        None => format!("-A {builtin} -j {chain}"),
    }
}
