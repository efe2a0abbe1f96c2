//! The programs of Kubernetes and its surroundings that the tests run: built from their Go modules by
//! `e2e/cluster/binaries.sh`, which knows their versions, and kept in a cache outside the repository.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::program;

/// Builds those of `programs` that are not there yet, which takes minutes the first time, and gives the folder
/// that holds them. Progress goes to standard error.
pub fn ensure(programs: &[&str]) -> Result<PathBuf> {
    let output = Command::new(program::repository()?.join("e2e/cluster/binaries.sh"))
        .args(programs)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("run e2e/cluster/binaries.sh")?;
    if !output.status.success() {
        bail!("e2e/cluster/binaries.sh could not build {}", programs.join(", "));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}
