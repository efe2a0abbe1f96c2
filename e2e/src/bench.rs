//! The numbers that the docs promise, measured: each is a ratio or a median of one run, printed as a table,
//! and a goal that is missed fails the run.

mod apply;
mod busy;
mod drift;
mod footprint;
mod kind;
mod latency;
mod live;
mod many;
mod peer;
mod scale;
mod table;

use anyhow::{Result, bail, ensure};

pub use apply::Time;

use crate::packages;
use table::Table;

/// Adds its rows to the table.
type Measurement = fn(&mut Table) -> Result<()>;

/// What is measured, in the order of the table.
const MEASUREMENTS: &[(&str, Measurement)] = &[
    ("apply", apply::measure),
    ("latency", latency::measure),
    ("losses", live::losses_under_change),
    ("first-byte", live::saved_to_first_byte),
    ("drift", drift::measure),
    ("footprint", footprint::measure),
    ("busy-node", busy::measure),
    ("scale", scale::measure),
    ("kind-latency", kind::measure),
];

/// Measures everything, or `only` what is named, prints the table, and says whether every goal was met.
pub fn run(only: Option<&str>) -> Result<bool> {
    packages::install_missing(packages::LAB)?;
    let chosen: Vec<_> = MEASUREMENTS.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = MEASUREMENTS.iter().map(|(name, _)| *name).collect();
        bail!("there is no such measurement; there are: {}", names.join(", "));
    }
    let mut table = Table::default();
    for (_, measure) in chosen {
        measure(&mut table)?;
    }
    table.print();
    Ok(table.every_goal_met())
}

/// Fails unless a cluster small enough for the tests of every day keeps within the limits of a large one.
pub fn small_scale() -> Result<()> {
    let mut table = Table::default();
    scale::measure_at(&scale::SMALL, &mut table)?;
    ensure!(table.every_goal_met(), "a limit was passed (see above)");
    Ok(())
}
