//! The command line.

use clap::{Parser, Subcommand};

/// Decides which port-forwards of a cluster hold and keeps their gateways configured.
#[derive(Debug, Parser)]
#[command(name = "sallyport-operator", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the operator can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the custom resource definitions of this version, for `kubectl apply --server-side -f -`.
    Crds,
}
