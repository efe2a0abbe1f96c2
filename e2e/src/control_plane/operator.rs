//! The operator as a process, with the rights of its service account.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::api::Api;
use super::kubelet::request_token;
use super::server::Server;
use crate::lab::Process;
use crate::program;

/// One replica, until it is dropped.
#[derive(Debug)]
pub struct Operator {
    name: String,
    process: Process,
    log: PathBuf,
}

/// Where a replica runs and what it is told.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The administrator, who asks for the operator's token.
    pub api: &'a Api,
    /// The control plane.
    pub server: &'a Server,
    /// The operator's namespace.
    pub namespace: &'a str,
    /// Its service account.
    pub account: &'a str,
    /// Options beside those that every replica needs.
    pub options: &'a [String],
}

impl Operator {
    /// Starts a replica: its name is its identity, and the port of its admin server is its own.
    pub fn start(setting: Setting<'_>, name: &str, port: u16) -> Result<Self> {
        let Setting { api, server, namespace, account, options } = setting;
        let kubeconfig = server.kubeconfig(name, &request_token(api, namespace, account, None)?)?;
        let log = server.file(&format!("{name}.log"));
        let mut command = vec![
            "env".to_owned(),
            format!("KUBECONFIG={}", kubeconfig.display()),
            "RUST_LOG=info,sallyport_operator=debug".to_owned(),
            program::operator()?.display().to_string(),
            "run".to_owned(),
            format!("--namespace={namespace}"),
            format!("--identity={name}"),
            "--agent-image=sallyport/node-agent:test".to_owned(),
            format!("--admin=127.0.0.1:{port}"),
        ];
        command.extend_from_slice(options);
        let process = server.host().spawn_logging_to(&command, &log)?;
        Ok(Self { name: name.to_owned(), process, log })
    }

    /// Its identity.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The running program.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its log file, which outlives it.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }
}
