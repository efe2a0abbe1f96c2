//! Entry point: arguments, logs, and one of the commands.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use sallyport_operator::args::{Cli, Command};
use sallyport_operator::run;

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { log_format, command } = Cli::parse();
    sallyport_runtime::log::init(log_format);
    sallyport_runtime::descriptors::raise_limit();
    let outcome = match command {
        Command::Run { replica, agent, default_pool, service_cidrs, admin } => {
            run::run(&replica, &agent, default_pool.as_deref(), service_cidrs, admin).await
        }
        Command::Uninstall { replica, force, timeout } => {
            run::uninstall(&replica, force, timeout.map(Duration::from_secs)).await
        }
        Command::Crds => std::io::stdout()
            .write_all(sallyport_operator::crds().as_bytes())
            .map(|()| ExitCode::SUCCESS)
            .map_err(anyhow::Error::from),
    };
    outcome.unwrap_or_else(|error| {
        // With its causes, on one line; nobody is left to be told that this failed.
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
        ExitCode::FAILURE
    })
}
