//! The programs of Kubernetes and its surroundings that the tests run: built from their Go modules by
//! `e2e/cluster/binaries.sh`, which knows their versions, and kept in a cache outside the repository.

use std::path::PathBuf;

use anyhow::Result;

use crate::script;

/// Builds those of `programs` that are not there yet, which takes minutes the first time, and gives the folder
/// that holds them. Progress goes to standard error.
pub fn ensure(programs: &[&str]) -> Result<PathBuf> {
    Ok(PathBuf::from(script::answer("binaries.sh", programs)?))
}
