//! Which test targets belong to a tier: those that require its feature.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// A package and its test targets of one tier.
#[derive(Debug)]
pub struct Package {
    name: String,
    feature: String,
    targets: Vec<String>,
}

impl Package {
    /// The arguments that make cargo run these targets and no others.
    pub fn cargo_arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--workspace".to_owned(), format!("--features={}/{}", self.name, self.feature)];
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

/// The packages of the workspace that have targets of the tier that `feature` marks.
pub fn packages(repository: &Path, feature: &str) -> Result<Vec<Package>> {
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
        feature: feature.to_owned(),
        targets: package
            .targets
            .into_iter()
            .filter(|target| is_of(target, feature))
            .map(|target| target.name)
            .collect(),
    });
    Ok(packages.filter(|package| !package.targets.is_empty()).collect())
}

fn is_of(target: &Target, feature: &str) -> bool {
    target.kind.iter().any(|kind| kind == "test") && target.required_features.iter().any(|required| required == feature)
}
