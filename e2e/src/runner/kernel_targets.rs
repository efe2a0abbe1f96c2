//! Which test targets belong to the kernel tier: those that require the feature `kernel-tests`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The feature that marks a target of this tier.
const FEATURE: &str = "kernel-tests";

/// A package and its test targets of this tier.
#[derive(Debug)]
pub struct Package {
    name: String,
    targets: Vec<String>,
}

impl Package {
    /// The arguments that make cargo run these targets and no others.
    pub fn cargo_arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--package={}", self.name), format!("--features={}/{FEATURE}", self.name)];
        arguments.extend(self.targets.iter().map(|target| format!("--test={target}")));
        arguments
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<PackageMetadata>,
}

#[derive(Deserialize)]
struct PackageMetadata {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    #[serde(default, rename = "required-features")]
    required_features: Vec<String>,
}

/// The packages of the workspace that have targets of this tier.
pub fn packages(repository: &Path) -> Result<Vec<Package>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version=1"])
        .current_dir(repository)
        .output()
        .context("run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let packages = metadata.packages.into_iter().map(|package| Package {
        name: package.name,
        targets: package.targets.into_iter().filter(is_kernel_test).map(|target| target.name).collect(),
    });
    Ok(packages.filter(|package| !package.targets.is_empty()).collect())
}

fn is_kernel_test(target: &Target) -> bool {
    target.kind.iter().any(|kind| kind == "test") && target.required_features.iter().any(|feature| feature == FEATURE)
}
