//! The scripts of `e2e/cluster/`: run one at a time, and ended when a person ends us.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::program;

/// Seconds that a script may take: the first one builds Kubernetes.
const LIMIT: &str = "3600";

/// The process id of the script that is running; 0 when none is.
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// Runs a script, which must succeed. It says on standard error what it does.
pub fn run(name: &str, arguments: &[&str]) -> Result<()> {
    output(name, arguments, Stdio::inherit()).map(drop)
}

/// Runs a script, which must succeed, and gives what it prints.
pub fn answer(name: &str, arguments: &[&str]) -> Result<String> {
    let printed = output(name, arguments, Stdio::piped())?;
    Ok(String::from_utf8(printed)
        .with_context(|| format!("read what e2e/cluster/{name} prints"))?
        .trim_end()
        .to_owned())
}

fn output(name: &str, arguments: &[&str], stdout: Stdio) -> Result<Vec<u8>> {
    let child = Command::new("timeout")
        .args(["--kill-after=10", LIMIT])
        .arg(program::repository()?.join("e2e/cluster").join(name))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(stdout)
        .spawn()
        .with_context(|| format!("run e2e/cluster/{name}"))?;
    RUNNING.store(child.id(), Ordering::Relaxed);
    let output = child.wait_with_output().with_context(|| format!("wait for e2e/cluster/{name}"));
    RUNNING.store(0, Ordering::Relaxed);
    let output = output?;
    ensure!(output.status.success(), "e2e/cluster/{name} ended with {}", output.status);
    Ok(output.stdout)
}

/// Ends the script that is running, with all that it has started; [`run`] then fails. Says whether there was one.
pub fn interrupt() -> bool {
    let pid = RUNNING.load(Ordering::Relaxed);
    // `timeout` passes the signal on to all that it started.
    pid != 0 && Command::new("kill").args(["-TERM", &pid.to_string()]).output().is_ok()
}

/// Takes the cluster away when it is dropped, whatever happened.
#[derive(Debug)]
pub struct DownAtEnd;

impl Drop for DownAtEnd {
    fn drop(&mut self) {
        // It has said what is wrong, and there is nobody to tell.
        let _ = run("down.sh", &[]);
    }
}
