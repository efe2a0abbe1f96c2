//! The load generator: long connections that stay busy, new connections at a steady rate, and a count of
//! everything that was lost; and the latency of connections made one after another.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};

use crate::lab::{Host, Process};
use crate::program;

/// A connect that took longer had its first packet dropped: the kernel repeats it after a second.
const LOST_AFTER: Duration = Duration::from_millis(900);

/// A long connection may wait so long for one answer before it counts as lost.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// Keep connections busy and open new ones; print every loss as JSON.
#[derive(Args, Clone, Debug)]
pub struct Load {
    /// The server's address and port; may be repeated, connections take turns.
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
    /// Long connections, each asking ten times a second.
    #[arg(long, default_value_t = 0)]
    established: usize,
    /// New connections opened each second.
    #[arg(long, default_value_t = 0)]
    new_per_second: u32,
    /// How long to go on, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// What a load has seen.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct LoadReport {
    /// Long connections opened.
    pub established: usize,
    /// Long connections that failed, ended, or had no answer for 5 s.
    pub established_lost: usize,
    /// The longest wait for one answer on a long connection, in milliseconds.
    pub longest_wait_ms: f64,
    /// New connections tried.
    pub new: usize,
    /// New connections that failed, or whose connect took more than 900 ms.
    pub new_lost: usize,
    /// Connect to first byte of a new connection, median, in microseconds.
    pub new_p50_us: f64,
    /// Connect to first byte of a new connection, 99th percentile, in microseconds.
    pub new_p99_us: f64,
    /// The first few reasons of losses.
    pub reasons: Vec<String>,
}

impl LoadReport {
    /// All losses.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.established_lost + self.new_lost
    }
}

#[derive(Default)]
struct Tally {
    report: LoadReport,
    latencies_us: Vec<f64>,
}

impl Tally {
    fn loss(&mut self, reason: String) {
        if self.report.reasons.len() < 5 {
            self.report.reasons.push(reason);
        }
    }
}

impl Load {
    /// Generates the load and prints its report as one line of JSON.
    #[expect(clippy::print_stdout, reason = "the report is this command's output")]
    pub async fn run(self) -> Result<()> {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let targets = self.to.iter().copied().cycle();
        let mut tasks = Vec::new();
        let mut streams = Vec::new();
        for target in targets.clone().take(self.established) {
            let stream = timeout(LOST_AFTER, TcpStream::connect(target))
                .await
                .context("wait for a long connection")?
                .context("open a long connection")?;
            streams.push(stream);
        }
        println!("ready");
        let end = Instant::now() + Duration::from_secs(self.seconds);
        for stream in streams {
            tasks.push(tokio::spawn(keep_busy(stream, end, Arc::clone(&tally))));
        }
        if self.new_per_second > 0 {
            let mut ticks = interval(Duration::from_secs(1) / self.new_per_second);
            for target in targets {
                ticks.tick().await;
                if Instant::now() >= end {
                    break;
                }
                tasks.push(tokio::spawn(open_one(target, Arc::clone(&tally))));
            }
        }
        for task in tasks {
            task.await.context("await a connection")?;
        }
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.report.established = self.established;
        let latencies = std::mem::take(&mut tally.latencies_us);
        tally.report.new_p50_us = percentile(latencies.clone(), 50);
        tally.report.new_p99_us = percentile(latencies, 99);
        println!("{}", serde_json::to_string(&tally.report).context("write the report")?);
        Ok(())
    }
}

async fn keep_busy(mut stream: TcpStream, end: Instant, tally: Arc<Mutex<Tally>>) {
    let mut ticks = interval(Duration::from_millis(100));
    while Instant::now() < end {
        ticks.tick().await;
        let start = Instant::now();
        let outcome = timeout(STALLED_AFTER, exchange(&mut stream)).await;
        let waited = start.elapsed().as_secs_f64() * 1e3;
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.report.longest_wait_ms = tally.report.longest_wait_ms.max(waited);
        let reason = match outcome {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => format!("long connection: {error}"),
            Err(_) => "long connection: no answer for 5 s".to_owned(),
        };
        tally.report.established_lost += 1;
        tally.loss(reason);
        return;
    }
}

async fn open_one(target: SocketAddr, tally: Arc<Mutex<Tally>>) {
    let outcome = connect_and_ask(target).await;
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.report.new += 1;
    match outcome {
        Ok(latency) => tally.latencies_us.push(latency.as_secs_f64() * 1e6),
        Err(error) => {
            tally.report.new_lost += 1;
            tally.loss(format!("new connection to {target}: {error:#}"));
        }
    }
}

/// Connects, waits for the first byte, and says how long both took together.
async fn connect_and_ask(target: SocketAddr) -> Result<Duration> {
    let start = Instant::now();
    let mut stream = timeout(LOST_AFTER, TcpStream::connect(target))
        .await
        .context("connect took over 900 ms")?
        .context("connect")?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    timeout(LOST_AFTER, exchange(&mut stream)).await.context("no answer for 900 ms")?.context("ask")?;
    Ok(start.elapsed())
}

async fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping\n").await?;
    loop {
        if stream.read_u8().await? == b'\n' {
            return Ok(());
        }
    }
}

/// Open connections one after another and print connect-to-first-byte times as JSON.
#[derive(Args, Clone, Debug)]
pub struct Latency {
    /// The server's address and port.
    #[arg(long)]
    to: SocketAddr,
    /// How many connections.
    #[arg(long, default_value_t = 1000)]
    count: usize,
}

/// Connect-to-first-byte times of connections made one after another.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct LatencyReport {
    /// Median, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, in microseconds.
    pub p99_us: f64,
}

impl Latency {
    /// Measures and prints.
    #[expect(clippy::print_stdout, reason = "the report is this command's output")]
    pub async fn run(self) -> Result<()> {
        let mut latencies = Vec::with_capacity(self.count);
        for _ in 0..self.count {
            latencies.push(connect_and_ask(self.to).await?.as_secs_f64() * 1e6);
        }
        let report = LatencyReport { p50_us: percentile(latencies.clone(), 50), p99_us: percentile(latencies, 99) };
        println!("{}", serde_json::to_string(&report).context("write the report")?);
        Ok(())
    }

    /// Measures from `host`.
    pub fn measure(host: &Host, to: SocketAddr, count: usize) -> Result<LatencyReport> {
        let program = program::own()?.display().to_string();
        let output = host.check(&[&program, "latency", &format!("--to={to}"), &format!("--count={count}")])?;
        serde_json::from_str(&output).context("read the latency report")
    }
}

/// The value below which `percent` of a hundred lie; 0 of nothing.
pub fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((values.len() * percent / 100).min(last)).copied().unwrap_or(0.0)
}

/// A load that is running.
#[derive(Debug)]
pub struct RunningLoad {
    process: Process,
    seconds: u64,
}

impl RunningLoad {
    /// Starts a load from `host` and waits until its long connections are open.
    pub fn start(
        host: &Host,
        to: &[SocketAddr],
        established: usize,
        new_per_second: u32,
        seconds: u64,
    ) -> Result<Self> {
        let mut command = vec![
            program::own()?.display().to_string(),
            "load".to_owned(),
            format!("--established={established}"),
            format!("--new-per-second={new_per_second}"),
            format!("--seconds={seconds}"),
        ];
        command.extend(to.iter().map(|address| format!("--to={address}")));
        let mut process = host.spawn(&command)?;
        process.wait_for("ready", Duration::from_secs(10))?;
        Ok(Self { process, seconds })
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// Waits for its end and gives its report.
    pub fn report(mut self) -> Result<LoadReport> {
        let status = self.process.wait(Duration::from_secs(self.seconds + 20))?;
        let output = self.process.output();
        let line = output.lines().last().unwrap_or_default();
        if !status.success() {
            bail!("the load generator failed: {line}");
        }
        serde_json::from_str(line).context("read the load report")
    }
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_of_a_hundred_values_are_the_values() {
        let values: Vec<f64> = (0..100).rev().map(f64::from).collect();
        let found = [50, 99].map(|percent| percentile(values.clone(), percent).to_string());
        assert_eq!(found, ["50", "99"]);
    }

    #[test]
    fn percentile_of_nothing_is_zero() {
        assert_eq!(percentile(Vec::new(), 50).to_bits(), 0);
    }
}
