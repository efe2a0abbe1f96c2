//! The programs of Kubernetes that this tier runs.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Result, anyhow};

use crate::binaries;

/// The folder that holds them, found once.
static FOLDER: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();

/// Builds what is not there yet.
pub fn ensure() -> Result<PathBuf> {
    let needed = ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "helm"];
    let found = FOLDER.get_or_init(|| binaries::ensure(&needed).map_err(|error| format!("{error:#}")));
    found.clone().map_err(|error| anyhow!(error))
}

/// The path of one of them.
pub fn find(name: &str) -> Result<PathBuf> {
    Ok(ensure()?.join(name))
}
