//! Entry point: arguments, logs, and one of the commands.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use sallyport_node_agent::args::{Cli, Command};
use sallyport_node_agent::{cleanup, plan, render, run};

/// Gives back what a change needed for a moment; glibc keeps it, which at 10,000 forwards is as much again.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Cli { log_format, command } = Cli::parse();
    sallyport_runtime::log::init(log_format);
    sallyport_runtime::descriptors::raise_limit();
    let outcome = match command {
        Command::Run(args) => run::run(&args).await,
        Command::Plan { manifests, host } => Box::pin(plan::plan(&manifests, &host)).await,
        Command::Render { manifests, node_address, audience } => render::render(&manifests, &node_address, audience),
        Command::Cleanup { state_dir } => cleanup::cleanup(&state_dir).await,
    };
    outcome.unwrap_or_else(|error| {
        // With its causes, on one line; if that fails, too, there is nobody left to say so to.
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
        ExitCode::FAILURE
    })
}
