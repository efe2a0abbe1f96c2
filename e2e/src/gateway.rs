//! The node agent on a gateway host, started and stopped as a user does it.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use tempfile::TempDir;

use crate::lab::{self, Family, Host, Outcome, Process, Variant};
use crate::manifest::Manifests;
use crate::program;

/// `--backend` of the node agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The variant that holds the host's own rules.
    Auto,
    /// The named variant.
    Iptables(Variant),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Iptables(variant) => write!(f, "iptables-{variant}"),
        }
    }
}

/// A gateway host with its manifests, its state directory and its agent's log.
#[derive(Debug)]
pub struct Gateway {
    host: Host,
    backend: Backend,
    manifests: Manifests,
    folder: TempDir,
}

impl Gateway {
    /// A gateway with the given manifests, on which no agent has run yet.
    pub fn new(host: &Host, backend: Backend, manifests: Manifests) -> Result<Self> {
        Ok(Self { host: host.clone(), backend, manifests, folder: lab::folder()? })
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Lets the agents that are started from now on use another backend.
    pub fn use_backend(&mut self, backend: Backend) {
        self.backend = backend;
    }

    /// Its manifests.
    #[must_use]
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// The agent's state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Everything that agents on this gateway have printed, oldest first.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("agent.log")
    }

    /// The command line of `run`.
    pub fn run_command(&self) -> Result<Vec<String>> {
        Ok(vec![
            program::node_agent()?.display().to_string(),
            "run".to_owned(),
            "--manifests".to_owned(),
            self.manifests.path().display().to_string(),
            "--node-name".to_owned(),
            self.host.name().to_owned(),
            "--state-dir".to_owned(),
            self.state().display().to_string(),
            "--backend".to_owned(),
            self.backend.to_string(),
        ])
    }

    /// Starts `run`; the agent lives until the returned value is dropped.
    pub fn start(&self) -> Result<Process> {
        self.host.spawn_logging_to(&self.run_command()?, &self.log_file())
    }

    /// `run --once`.
    pub fn once(&self) -> Result<Outcome> {
        let mut command = self.run_command()?;
        command.push("--once".to_owned());
        self.host.run(&command)
    }

    /// `run --once`, which must accept everything.
    pub fn once_accepting(&self) -> Result<()> {
        let outcome = self.once()?;
        if !outcome.success() {
            bail!("run --once ended with {:?}:\n{}{}", outcome.code, outcome.stdout, outcome.stderr);
        }
        Ok(())
    }

    /// The command line of `cleanup`.
    pub fn cleanup_command(&self) -> Result<Vec<String>> {
        Ok(vec![
            program::node_agent()?.display().to_string(),
            "cleanup".to_owned(),
            "--state-dir".to_owned(),
            self.state().display().to_string(),
        ])
    }

    /// `cleanup`, which must succeed.
    pub fn cleanup(&self) -> Result<String> {
        self.host.check(&self.cleanup_command()?)
    }

    /// Everything that explains a failure: rules, conntrack entries, the agent's log.
    #[must_use]
    pub fn diagnostics(&self) -> String {
        let mut text = String::new();
        for variant in Variant::ALL {
            for family in [Family::V4, Family::V6] {
                let program = variant.program(family, "save");
                text += &self.print(&[&program, "-c"]);
            }
        }
        text += &self.print(&["conntrack", "-L"]);
        text += &self.print(&["ip", "address", "show"]);
        let log = self.log();
        let from = log.len().saturating_sub(8000);
        text + "--- agent log (its end)\n" + log.get(from..).unwrap_or(&log)
    }

    fn print(&self, command: &[&str]) -> String {
        let output = match self.host.run(command) {
            Ok(outcome) => outcome.stdout,
            Err(error) => format!("{error:#}\n"),
        };
        format!("--- {} on {}\n{output}", command.join(" "), self.host.name())
    }
}
