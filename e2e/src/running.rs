//! The programs that this one waits for, and how a signal ends all of them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

/// The process ids of those that run.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Whether a signal has ended some.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A program that [`interrupt`] ends. Dropping it ends it, too.
#[derive(Debug)]
pub struct Running(Option<Child>);

/// The command of a program that is ended after `limit` seconds, with all that it has started.
pub fn limited(limit: &str, program: impl AsRef<OsStr>) -> Command {
    // `timeout` passes signals on to all that it started.
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", limit]).arg(program).stdin(Stdio::null());
    command
}

impl Running {
    /// Starts a [`limited`] command.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let mut running = running();
        let child = command.spawn().with_context(|| format!("run {command:?}"))?;
        running.insert(child.id());
        Ok(Self(Some(child)))
    }

    /// Waits until it ends, and gives what it printed on the pipes that its command made.
    pub fn wait(mut self) -> Result<Output> {
        let child = self.0.take().context("find the program")?;
        let pid = child.id();
        let output = child.wait_with_output().context("wait for a program");
        running().remove(&pid);
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = terminate(child.id());
            let _ = child.wait();
            running().remove(&child.id());
        }
    }
}

/// Ends all that run, with all that they have started. Says whether there were any.
pub fn interrupt() -> bool {
    let running = running();
    if running.is_empty() {
        return false;
    }
    INTERRUPTED.store(true, Ordering::Relaxed);
    running.iter().all(|pid| terminate(*pid).is_ok())
}

/// Whether [`interrupt`] has ended some.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn terminate(pid: u32) -> std::io::Result<Output> {
    Command::new("kill").args(["-TERM", &pid.to_string()]).output()
}
