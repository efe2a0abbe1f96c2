//! A process that is alive and does nothing: neither answers nor ends.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A stopped process; it goes on when this value is dropped.
#[derive(Debug)]
pub struct Stopped {
    pid: u32,
}

impl Stopped {
    /// Stops the process (SIGSTOP).
    pub fn stop(pid: u32) -> Result<Self> {
        let stopped = Self { pid };
        ensure!(stopped.signal("-STOP")?, "process {pid} cannot be stopped");
        Ok(stopped)
    }

    fn signal(&self, signal: &str) -> Result<bool> {
        let output = Command::new("kill").args([signal, &self.pid.to_string()]).output().context("run kill")?;
        Ok(output.status.success())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _ = self.signal("-CONT");
    }
}
