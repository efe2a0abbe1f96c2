//! The numbers that the docs promise, measured: each is a ratio or a median of one run, printed as a table,
//! and a goal that is missed fails the run.

mod apply;
mod footprint;
mod latency;
mod live;
mod many;
mod peer;
mod table;

use anyhow::Result;

use crate::packages;
use table::Table;

/// Measures everything, prints the table, and says whether every goal was met.
pub fn run() -> Result<bool> {
    packages::install_missing(packages::LAB)?;
    let mut table = Table::default();
    apply::measure(&mut table)?;
    latency::measure(&mut table)?;
    live::losses_under_change(&mut table)?;
    live::saved_to_first_byte(&mut table)?;
    footprint::measure(&mut table)?;
    table.print();
    Ok(table.every_goal_met())
}
