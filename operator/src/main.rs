//! Entry point: arguments and one of the commands.

use std::io::Write as _;

use clap::Parser as _;
use sallyport_operator::args::{Cli, Command};

fn main() -> anyhow::Result<()> {
    let Cli { command } = Cli::parse();
    match command {
        Command::Crds => std::io::stdout().write_all(sallyport_operator::crds().as_bytes())?,
    }
    Ok(())
}
