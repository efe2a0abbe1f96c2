//! Entry point: arguments, logs, and one of the commands.

use std::process::ExitCode;

use clap::Parser as _;
use sallyport_node_agent::args::{Cli, Command};
use sallyport_node_agent::{cleanup, plan, render, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let Cli { log_format, command } = Cli::parse();
    sallyport_runtime::log::init(log_format);
    match command {
        Command::Run { host, once } => run::run(&host, once).await,
        Command::Plan { host } => plan::plan(&host).await,
        Command::Render { manifests, node_address, audience } => render::render(&manifests, node_address, audience),
        Command::Cleanup { state_dir } => cleanup::cleanup(&state_dir).await,
    }
}
