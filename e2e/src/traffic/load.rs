//! The load generator: long connections that stay busy, new connections at a steady rate, TCP and UDP, and a count
//! of everything that was lost; and the latency of connections made one after another.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{interval, timeout};

use super::Protocol;
use super::ask::any_address;
use crate::lab::{Dialogue, Host, Process};
use crate::program;

/// Written to its standard input, this ends a load before its time, once it has shown enough.
const END: &str = "end\n";

/// Long connections, and new ones, below which a load shows nothing.
const ENOUGH: (usize, usize) = (200, 1000);

/// A connection or an answer that takes longer is lost, however busy the machine is. What takes less may still have
/// lost a packet: of a new connection that shows in the kernel's count of first packets that it had to send again.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// The kernel's counters of this network namespace.
const COUNTERS: &str = "/proc/net/netstat";

/// Keep connections busy and open new ones; print every loss as JSON.
#[derive(Args, Clone, Debug)]
pub struct Load {
    /// A TCP server's address and port; may be repeated, connections take turns.
    #[arg(long)]
    tcp: Vec<SocketAddr>,
    /// A UDP server's address and port; may be repeated, they take turns with those of TCP.
    #[arg(long)]
    udp: Vec<SocketAddr>,
    /// Long connections, each asking ten times a second.
    #[arg(long, default_value_t = 0)]
    established: usize,
    /// New connections opened each second.
    #[arg(long, default_value_t = 0)]
    new_per_second: u32,
    /// How long to go on, in seconds. A line on standard input ends it sooner, once 1,000 new connections were tried.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// What a load has seen.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct LoadReport {
    /// Long connections opened.
    pub established: usize,
    /// Long connections that failed, ended, or (TCP) had no answer for 5 s.
    pub established_lost: usize,
    /// Datagrams on long connections that had no answer within 5 s.
    pub unanswered: usize,
    /// The longest wait for one answer on a long connection, in milliseconds.
    pub longest_wait_ms: f64,
    /// New connections tried.
    pub new: usize,
    /// New connections that failed, or had no answer within 5 s.
    pub new_lost: usize,
    /// First packets of TCP connections that were lost, and sent again after a second.
    pub sent_again: usize,
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
        self.established_lost + self.unanswered + self.new_lost + self.sent_again
    }

    /// Fails if anything was lost, or the load was too small to show anything.
    pub fn expect_no_loss(&self) -> Result<()> {
        ensure!(self.lost() == 0, "connections were lost: {self:?}");
        let (long, new) = ENOUGH;
        ensure!(self.established >= long && self.new >= new, "the load was too small to show anything: {self:?}");
        Ok(())
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { established, established_lost, unanswered, new, new_lost, sent_again, longest_wait_ms, .. } = self;
        write!(f, "lost {established_lost} of {established} long and {new_lost} of {new} new connections")?;
        for (number, what) in [(unanswered, "datagrams on long ones"), (sent_again, "first packets")] {
            if *number > 0 {
                write!(f, ", {number} {what}")?;
            }
        }
        write!(f, " (longest wait {longest_wait_ms:.0} ms)")
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
        let tcp = self.tcp.iter().map(|to| (Protocol::Tcp, *to));
        let targets: Vec<_> = tcp.chain(self.udp.iter().map(|to| (Protocol::Udp, *to))).collect();
        if targets.is_empty() {
            bail!("no server was named: give --tcp or --udp");
        }
        let targets = targets.into_iter().cycle();
        let mut tasks = Vec::new();
        let mut connections = Vec::new();
        for target in targets.clone().take(self.established) {
            let mut connection = Connection::open(target).await.context("open a long connection")?;
            // Only now every host on the way knows of it.
            let answer = timeout(LOST_AFTER, connection.exchange()).await.context("wait for a first answer")?;
            answer.context("get a first answer")?;
            connections.push(connection);
        }
        let sent_again = sent_again()?;
        println!("ready");
        let end = End::after(Duration::from_secs(self.seconds));
        for connection in connections {
            tasks.push(tokio::spawn(keep_busy(connection, end.clone(), Arc::clone(&tally))));
        }
        if self.new_per_second > 0 {
            let mut ticks = interval(Duration::from_secs(1) / self.new_per_second);
            for target in targets {
                ticks.tick().await;
                if end.has_come() {
                    break;
                }
                end.opened.fetch_add(1, Ordering::Relaxed);
                tasks.push(tokio::spawn(open_one(target, Arc::clone(&tally))));
            }
        }
        for task in tasks {
            task.await.context("await a connection")?;
        }
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.report.established = self.established;
        tally.report.sent_again = self::sent_again()?.saturating_sub(sent_again);
        let latencies = std::mem::take(&mut tally.latencies_us);
        tally.report.new_p50_us = percentile(latencies.clone(), 50);
        tally.report.new_p99_us = percentile(latencies, 99);
        println!("{}", serde_json::to_string(&tally.report).context("write the report")?);
        Ok(())
    }
}

/// When a load is over: after its time, or once it has shown enough and a line came on standard input.
#[derive(Clone)]
struct End {
    at: Instant,
    called: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
}

impl End {
    fn after(time: Duration) -> Self {
        let end = Self { at: Instant::now() + time, called: Arc::default(), opened: Arc::default() };
        let called = Arc::clone(&end.called);
        std::thread::spawn(move || {
            if std::io::stdin().read_line(&mut String::new()).is_ok_and(|length| length > 0) {
                called.store(true, Ordering::Relaxed);
            }
        });
        end
    }

    fn has_come(&self) -> bool {
        let enough = self.opened.load(Ordering::Relaxed) >= ENOUGH.1;
        (enough && self.called.load(Ordering::Relaxed)) || Instant::now() >= self.at
    }
}

/// A client's end of a flow.
enum Connection {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Connection {
    async fn open((protocol, to): (Protocol, SocketAddr)) -> Result<Self> {
        if protocol == Protocol::Udp {
            let socket = UdpSocket::bind(SocketAddr::new(any_address(to), 0)).await.context("open a socket")?;
            socket.connect(to).await.context("connect")?;
            return Ok(Self::Udp(socket));
        }
        let stream = timeout(LOST_AFTER, TcpStream::connect(to)).await.context("connect took over 5 s")?;
        let stream = stream.context("connect")?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        Ok(Self::Tcp(stream))
    }

    /// One question and its answer.
    async fn exchange(&mut self) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => exchange(stream).await,
            Self::Udp(socket) => {
                socket.send(b"ping\n").await?;
                socket.recv(&mut [0; 2048]).await.map(drop)
            }
        }
    }
}

async fn keep_busy(mut connection: Connection, end: End, tally: Arc<Mutex<Tally>>) {
    let mut ticks = interval(Duration::from_millis(100));
    let is_udp = matches!(connection, Connection::Udp(_));
    while !end.has_come() {
        ticks.tick().await;
        let start = Instant::now();
        let outcome = timeout(LOST_AFTER, connection.exchange()).await;
        let waited = start.elapsed().as_secs_f64() * 1e3;
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.report.longest_wait_ms = tally.report.longest_wait_ms.max(waited);
        match outcome {
            Ok(Ok(())) => {}
            // The next one may well be answered.
            _ if is_udp => {
                tally.report.unanswered += 1;
                tally.loss("datagram on a long connection: no answer for 5 s".to_owned());
            }
            outcome => {
                tally.report.established_lost += 1;
                tally.loss(match outcome {
                    Ok(Err(error)) => format!("long connection: {error}"),
                    _ => "long connection: no answer for 5 s".to_owned(),
                });
                return;
            }
        }
    }
}

async fn open_one(target: (Protocol, SocketAddr), tally: Arc<Mutex<Tally>>) {
    let outcome = connect_and_ask(target).await;
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.report.new += 1;
    match outcome {
        Ok(latency) => tally.latencies_us.push(latency.as_secs_f64() * 1e6),
        Err(error) => {
            tally.report.new_lost += 1;
            let (protocol, to) = target;
            tally.loss(format!("new connection to {protocol} {to}: {error:#}"));
        }
    }
}

/// Connects, waits for the first byte, and says how long both took together.
async fn connect_and_ask(target: (Protocol, SocketAddr)) -> Result<Duration> {
    let start = Instant::now();
    let mut connection = Connection::open(target).await?;
    timeout(LOST_AFTER, connection.exchange()).await.context("no answer for 5 s")?.context("ask")?;
    Ok(start.elapsed())
}

/// How many first packets of TCP connections were sent again from here since this network namespace was made.
fn sent_again() -> Result<usize> {
    let counters = std::fs::read_to_string(COUNTERS).with_context(|| format!("read {COUNTERS}"))?;
    let number = counter(&counters, "TCPSynRetrans").with_context(|| format!("find TCPSynRetrans in {COUNTERS}"))?;
    Ok(number)
}

/// A counter of the kernel: a line of names is followed by a line of numbers.
fn counter(counters: &str, name: &str) -> Option<usize> {
    let lines: Vec<&str> = counters.lines().collect();
    let mut pairs = lines.chunks_exact(2).map(|pair| pair[0].split_whitespace().zip(pair[1].split_whitespace()));
    pairs.find_map(|mut pair| pair.find(|(this, _)| *this == name)?.1.parse().ok())
}

async fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping\n").await?;
    loop {
        if stream.read_u8().await? == b'\n' {
            return Ok(());
        }
    }
}

/// Open a connection for each line of standard input and print the microseconds until its first byte.
#[derive(Args, Clone, Debug)]
pub struct Latency {
    /// The server's address and port.
    #[arg(long)]
    to: SocketAddr,
}

impl Latency {
    /// Measures and prints, until the input ends.
    #[expect(clippy::print_stdout, reason = "the times are this command's output")]
    pub async fn run(self) -> Result<()> {
        for line in std::io::stdin().lines() {
            line.context("read the next line")?;
            println!("{}", connect_and_ask((Protocol::Tcp, self.to)).await?.as_secs_f64() * 1e6);
        }
        Ok(())
    }
}

/// Who opens connections from one host to one server, one whenever it is asked to.
#[derive(Debug)]
pub struct Connector(Dialogue);

impl Connector {
    /// Starts it on `host`.
    pub fn start(host: &Host, to: SocketAddr) -> Result<Self> {
        host.converse(&[&program::own()?.display().to_string(), "latency", &format!("--to={to}")]).map(Self)
    }

    /// Opens a connection: microseconds until its first byte.
    pub fn connect(&mut self) -> Result<f64> {
        self.0.ask("")?.trim().parse().context("read how long a connection took")
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
        to: &[(Protocol, SocketAddr)],
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
        command.extend(to.iter().map(|(protocol, address)| format!("--{protocol}={address}")));
        let mut process = host.spawn(&command)?;
        process.wait_for("ready", Duration::from_secs(10))?;
        Ok(Self { process, seconds })
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// Ends it as soon as it has shown enough, and gives its report.
    pub fn end(mut self) -> Result<LoadReport> {
        self.process.send(END).context("end the load; it may be over already")?;
        self.report()
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
    use super::{counter, percentile};

    #[test]
    fn counters_are_found_by_their_names() {
        let counters = "TcpExt: SyncookiesSent TCPSynRetrans\nTcpExt: 1 7\nIpExt: InOctets\nIpExt: 9\n";
        assert_eq!((counter(counters, "TCPSynRetrans"), counter(counters, "TCPFoo")), (Some(7), None));
    }

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
