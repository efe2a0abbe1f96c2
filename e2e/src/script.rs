//! The scripts of `e2e/cluster/`.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::program;
use crate::running::{Running, limited};

/// Seconds that a script may take: the first one builds Kubernetes.
const LIMIT: &str = "3600";

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

/// Starts a script that leaves the processors to all others, and is ended when the returned value is dropped.
pub fn aside(name: &str, arguments: &[&str]) -> Result<Running> {
    let mut command = limited(LIMIT, "nice");
    Running::spawn(command.args(["-n", "19"]).arg(path(name)?).args(arguments).stdout(Stdio::null()))
}

fn output(name: &str, arguments: &[&str], stdout: Stdio) -> Result<Vec<u8>> {
    let output = Running::spawn(limited(LIMIT, path(name)?).args(arguments).stdout(stdout))?.wait()?;
    ensure!(output.status.success(), "e2e/cluster/{name} ended with {}", output.status);
    Ok(output.stdout)
}

fn path(name: &str) -> Result<PathBuf> {
    Ok(program::repository()?.join("e2e/cluster").join(name))
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
