//! A process that is alive and does nothing, neither answers nor ends; or that does little.

use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// How long a slow process is stopped, and then goes on.
const BEATS: [Duration; 2] = [Duration::from_millis(900), Duration::from_millis(100)];

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

/// Runs `body` while the process goes on for no more than a tenth of the time.
pub fn slowly<T>(pid: u32, body: impl FnOnce() -> Result<T>) -> Result<T> {
    thread::scope(|scope| {
        let (done, is_done) = mpsc::channel::<()>();
        let beats = scope.spawn(move || {
            let [still, going_on] = BEATS;
            loop {
                let stopped = Stopped::stop(pid)?;
                let waited = is_done.recv_timeout(still);
                drop(stopped);
                if waited != Err(RecvTimeoutError::Timeout)
                    || is_done.recv_timeout(going_on) != Err(RecvTimeoutError::Timeout)
                {
                    return anyhow::Ok(());
                }
            }
        });
        let outcome = body();
        drop(done);
        beats.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))?;
        outcome
    })
}
