//! A row of the table of faults, and the tests that make it.

use std::fmt;

use crate::runner::Tier;

/// A fault and what is promised of it.
#[derive(Debug)]
pub struct Row {
    /// Its number.
    pub number: u8,
    /// What goes wrong.
    pub fault: &'static str,
    /// What Sallyport does then.
    pub promise: &'static str,
    /// The tests that hold it to that.
    pub tests: &'static [Test],
}

/// A test, as cargo finds it.
#[derive(Debug)]
pub struct Test {
    /// The tier that it needs.
    pub tier: Tier,
    /// Its module in the test program of its tier; none for a test of the pure tier, which may be anywhere.
    pub module: Option<&'static str>,
    /// The name of the function.
    pub name: &'static str,
}

impl Test {
    /// The arguments that make cargo run this test alone.
    pub fn cargo_arguments(&self) -> Vec<String> {
        let chosen = match self.module {
            Some(module) => format!("--test {} -- --exact {module}::{}", self.tier.program(), self.name),
            None => format!("--tests -- {}", self.name),
        };
        let all = format!("test --quiet --workspace --all-features {chosen} --nocapture");
        all.split(' ').map(str::to_owned).collect()
    }
}

/// Its first three cells.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} | {} | {} | ", self.number, self.fault, self.promise)
    }
}

pub(super) const fn pure(name: &'static str) -> Test {
    Test { tier: Tier::Pure, module: None, name }
}

pub(super) const fn kernel(module: &'static str, name: &'static str) -> Test {
    Test { tier: Tier::Kernel, module: Some(module), name }
}

pub(super) const fn control_plane(module: &'static str, name: &'static str) -> Test {
    Test { tier: Tier::ControlPlane, module: Some(module), name }
}

pub(super) const fn cluster(module: &'static str, name: &'static str) -> Test {
    Test { tier: Tier::Cluster, module: Some(module), name }
}
