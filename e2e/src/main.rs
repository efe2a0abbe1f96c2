//! The command line: the demo, the tests, the benchmarks, and the small programs that they run inside the
//! hosts of a lab.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a command line program")]

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use sallyport_e2e::traffic::{Ask, Late, Latency, Load, Probe, Serve};
use sallyport_e2e::{bench, cluster, demo, demo_standalone, faults, lab, runner, running, script};
use tokio::signal::unix::{SignalKind, signal};

/// Sallyport seen from outside: the demo, the tests and the benchmarks.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tell the origin story in a real cluster, and assert it. The cluster stays.
    Demo,
    /// Tell the origin story with real programs on a lone gateway, and assert it.
    DemoStandalone,
    /// Make the cluster of the demo and the tests, or use the one that runs, and the hosts beside it.
    Up,
    /// Take the cluster away, and the docker daemon if it was started for it.
    Down,
    /// Build the images of the operator and the node agent.
    Images,
    /// Run tiers of tests and count them.
    Test {
        /// The tiers, separated by spaces.
        #[arg(long, default_value_t = runner::tiers())]
        tiers: String,
    },
    /// Measure, compare with the goals, and print a table.
    Bench {
        /// Only one measurement: apply, latency, losses, first-byte, drift, footprint, busy-node, scale or kind-latency.
        #[arg(long)]
        only: Option<String>,
    },
    /// Do to Sallyport what it promises to live through, and print what was seen.
    Faults {
        /// Only the row of this number.
        #[arg(long)]
        only: Option<u8>,
        /// The tiers to use, separated by spaces.
        #[arg(long, default_value_t = runner::tiers())]
        tiers: String,
    },
    /// Remove what runs that died have left behind.
    Sweep,
    Serve(Serve),
    Ask(Ask),
    Probe(Probe),
    Load(Load),
    Latency(Latency),
    Late(Late),
    Time(bench::Time),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command and says whether all that it checked was well.
fn run(command: Command) -> Result<bool> {
    match command {
        Command::Demo => {
            leave_nothing_when_interrupted();
            demo::run().map(|()| true)
        }
        Command::Up => {
            leave_nothing_when_interrupted();
            let cluster = cluster::Cluster::up()?;
            println!("export KUBECONFIG={}", cluster.kubeconfig().display());
            Ok(true)
        }
        Command::Down => script::run("down.sh", &[]).map(|()| true),
        Command::Images => {
            leave_nothing_when_interrupted();
            script::run("images.sh", &[]).map(|()| true)
        }
        Command::DemoStandalone => {
            leave_nothing_when_interrupted();
            lab::sweep()?;
            demo_standalone::run().map(|()| true)
        }
        Command::Test { tiers } => {
            leave_nothing_when_interrupted();
            runner::run(&tiers)
        }
        Command::Bench { only } => {
            leave_nothing_when_interrupted();
            bench::run(only.as_deref())
        }
        Command::Faults { only, tiers } => {
            leave_nothing_when_interrupted();
            faults::run(&tiers, only)
        }
        Command::Sweep => {
            for namespace in lab::sweep()? {
                println!("removed {namespace}");
            }
            Ok(true)
        }
        Command::Serve(serve) => block_on(serve.run()),
        Command::Ask(ask) => block_on(ask.run()),
        Command::Probe(probe) => block_on(probe.run()),
        Command::Load(load) => block_on(load.run()),
        Command::Latency(latency) => block_on(latency.run()),
        Command::Late(late) => late.run().map(|()| true),
        Command::Time(time) => time.run().map(|()| true),
    }
}

fn block_on(future: impl Future<Output = Result<()>>) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(future).map(|()| true)
}

/// On SIGINT or SIGTERM, takes the labs of this process down before it ends.
fn leave_nothing_when_interrupted() {
    std::thread::spawn(|| {
        let waited = block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            Ok(())
        });
        if waited.is_ok() && !running::interrupt() {
            let _ = lab::remove_own();
            std::process::exit(130);
        }
    });
}
