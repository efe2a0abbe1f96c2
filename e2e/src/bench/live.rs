//! A gateway at work: what is lost while forwards change, and how soon a saved file takes effect.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::many::{self, Path, TARGET_PORT};
use super::table::Table;
use crate::article::{DB1, socket};
use crate::gateway::Gateway;
use crate::lab::{Process, Variant};
use crate::manifest::Manifests;
use crate::traffic::{Protocol, RunningLoad, ask, percentile, serve, wait_for_first_answer};
use crate::wait;

/// Forwards on the gateway.
const FORWARDS: u16 = 100;

/// Long connections, and new connections a second.
const LOAD: (usize, u32) = (200, 200);

/// Length of the load, in seconds.
const SECONDS: u64 = 12;

/// Files saved.
const SAMPLES: u16 = 100;

/// The longest wait for the agent.
const PATIENCE: Duration = Duration::from_secs(10);

/// A gateway with an agent that has applied its 100 forwards, each in a file of its own.
struct Site {
    path: Path,
    gateway: Gateway,
    // Run until this value is dropped.
    _processes: [Process; 2],
}

impl Site {
    fn start(variant: Variant) -> Result<Self> {
        let path = Path::build()?;
        let target = serve(&path.target, &[(Protocol::Tcp, socket(DB1, TARGET_PORT))])?;
        let manifests = Manifests::new()?;
        for number in 0..FORWARDS {
            manifests.save(&many::forward(number))?;
        }
        let gateway = path.agent(variant, manifests)?;
        let agent = gateway.start()?;
        wait::until_true("the last forward answering", PATIENCE, || {
            let last = Path::entrance(FORWARDS - 1);
            Ok(ask(&path.client, Protocol::Tcp, last)?.is_from("target"))
        })
        .with_context(|| gateway.log())?;
        Ok(Self { path, gateway, _processes: [target, agent] })
    }
}

/// Changes each of 100 forwards while connections are open and opened through all of them.
pub fn losses_under_change(table: &mut Table) -> Result<()> {
    for variant in Variant::ALL {
        let site = Site::start(variant)?;
        let entrances: Vec<_> = (0..FORWARDS).map(|number| (Protocol::Tcp, Path::entrance(number))).collect();
        let (established, new) = LOAD;
        let mut load = RunningLoad::start(&site.path.client, &entrances, established, new, SECONDS)?;
        let mut changes = 0;
        while load.is_running()? {
            for number in 0..FORWARDS {
                let mut forward = many::forward(number);
                // Who was allowed stays allowed; the forward's rules change all the same.
                forward.allow.push(format!("10.60.{}.0/24", changes / FORWARDS % 200));
                site.gateway.manifests().save(&forward)?;
                changes += 1;
                if number % 10 == 0 {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        let report = load.report()?;
        let what = format!(
            "lost of {} new and {} long connections while {FORWARDS} forwards change ({changes} files saved), {variant}",
            report.new, report.established
        );
        let ours = format!("{} (longest wait {:.0} ms)", report.lost(), report.longest_wait_ms);
        table.number(&what, ours, "0", report.lost() == 0);
    }
    Ok(())
}

/// Moves a forward to a port where nobody answered before, again and again.
pub fn saved_to_first_byte(table: &mut Table) -> Result<()> {
    for variant in Variant::ALL {
        let site = Site::start(variant)?;
        let mut latencies = Vec::new();
        for sample in 0..SAMPLES {
            let mut forward = many::forward(FORWARDS - 1);
            forward.port += 1 + sample;
            let entrance = Path::entrance(FORWARDS + sample);
            let stopwatch = wait_for_first_answer(&site.path.client, entrance)?;
            let saved = SystemTime::now();
            site.gateway.manifests().save(&forward)?;
            let latency = stopwatch.since(saved).with_context(|| site.gateway.log())?;
            latencies.push(latency.as_secs_f64() * 1e3);
        }
        let (p50, p99) = (percentile(latencies.clone(), 50), percentile(latencies, 99));
        let what = format!("file saved to first byte through, {FORWARDS} forwards, {variant}");
        table.number(&format!("{what}, p50"), format!("{p50:.1} ms"), "≤ 100 ms", p50 <= 100.0);
        table.number(&format!("{what}, p99"), format!("{p99:.1} ms"), "< 500 ms", p99 < 500.0);
    }
    Ok(())
}
