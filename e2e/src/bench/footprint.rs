//! What the agent itself takes: memory with many forwards, and processor time when nothing happens.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::many::{self, Path, TARGET_PORT};
use super::table::Table;
use crate::article::{DB1, socket};
use crate::lab::Variant;
use crate::traffic::{Protocol, ask, serve};
use crate::wait;

/// Forwards on the gateway.
const FORWARDS: [u16; 2] = [1_000, 10_000];

/// How long the agent at rest is watched.
const REST: Duration = Duration::from_secs(30);

/// Measures with both variants.
pub fn measure(table: &mut Table) -> Result<()> {
    for variant in Variant::ALL {
        for count in FORWARDS {
            measure_one(table, variant, count)?;
        }
    }
    Ok(())
}

fn measure_one(table: &mut Table, variant: Variant, count: u16) -> Result<()> {
    let path = Path::build()?;
    let _target = serve(&path.target, &[(Protocol::Tcp, socket(DB1, TARGET_PORT))])?;
    let gateway = path.agent(variant, many::manifests(count)?)?;
    let agent = gateway.start()?;
    wait::until_true("the last forward answering", Duration::from_mins(1), || {
        let last = Path::entrance(count - 1);
        Ok(ask(&path.client, Protocol::Tcp, last)?.is_from("target"))
    })
    .with_context(|| gateway.log())?;
    wait::until_true("the agent coming to rest", Duration::from_mins(1), || {
        Ok(processor_share(agent.pid(), Duration::from_secs(1))? < 0.02)
    })?;
    let share = processor_share(agent.pid(), REST)? * 100.0;
    let resident = memory_mib(agent.pid(), "VmRSS:")?;
    let peak = memory_mib(agent.pid(), "VmHWM:")?;
    table.number(
        &format!("resident memory at {count} forwards, {variant}"),
        format!("{resident:.1} MiB (peak {peak:.1})"),
        "≤ 40 MiB",
        resident <= 40.0,
    );
    table.number(
        &format!("processor at rest at {count} forwards, {variant}"),
        format!("{share:.2} % of a core"),
        "≤ 1 %",
        share <= 1.0,
    );
    Ok(())
}

/// A line of `/proc/<pid>/status`, in MiB.
pub fn memory_mib(pid: u32, field: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read its memory")?;
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .context("understand its memory")?;
    Ok(kib / 1024.0)
}

/// The share of one core that a process and the programs that it ran take for so long.
pub fn processor_share(pid: u32, span: Duration) -> Result<f64> {
    let (before, start) = (processor_ticks(pid)?, Instant::now());
    std::thread::sleep(span);
    let ticks = processor_ticks(pid)? - before;
    // Linux counts in hundredths of a second for user space on every architecture (USER_HZ).
    Ok(ticks / 100.0 / start.elapsed().as_secs_f64())
}

/// `utime` and `stime` of proc(5), then the same of the children that have ended, which follow the name in parentheses as
/// the 12th to 15th field.
fn processor_ticks(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read its times")?;
    let (_, fields) = stat.rsplit_once(") ").context("understand its times")?;
    let times = fields.split_whitespace().skip(11).take(4);
    times.map(|ticks| ticks.parse::<f64>().context("understand its times")).sum()
}
