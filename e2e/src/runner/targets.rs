//! Which test targets belong to a tier: those that require its feature, and to the first one those that require none.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Those that take longest begin first, so that no tier ends with one of them alone.
const LONGEST: [&str; 7] = [
    "gives_up_and_recovers",
    "foreign_changes_under_load",
    "uninstalled_in_any_order",
    "restored_cluster",
    "vanished_permissions_lose_nothing",
    "silent_agent_blocks_a_delete",
    "api_server_away",
];

/// It takes the API server away, and the test after it was seen to take a minute longer than alone.
const LAST: &str = "api_server_stopped_changes_nothing_and_drift_is_repaired";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    #[serde(default, rename = "required-features")]
    required_features: Vec<String>,
}

/// The names of the test targets of the workspace that require `feature`, in the order in which they are to run.
pub fn names(repository: &Path, feature: Option<&str>) -> Result<Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version=1"])
        .current_dir(repository)
        .output()
        .context("run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let targets = metadata.packages.into_iter().flat_map(|package| package.targets);
    let mut names: Vec<_> = targets.filter(|target| is_of(target, feature)).map(|target| target.name).collect();
    names.sort_by_key(|name| (name == LAST, LONGEST.iter().position(|long| long == name).unwrap_or(LONGEST.len())));
    Ok(names)
}

fn is_of(target: &Target, feature: Option<&str>) -> bool {
    target.kind.iter().any(|kind| kind == "test") && target.required_features.first().map(String::as_str) == feature
}

#[cfg(test)]
mod tests {
    use super::{LAST, LONGEST, names};
    use crate::program::repository;
    use crate::runner::Tier;

    #[test]
    fn the_longest_come_first_and_each_of_them_exists() {
        let all: Vec<Vec<String>> =
            Tier::ALL.iter().map(|tier| names(repository().unwrap(), tier.feature()).unwrap()).collect();
        assert!(all.iter().all(|names| !names.is_empty()), "{all:?}");
        let first: Vec<&String> =
            all.iter().flat_map(|names| names.iter().take_while(|name| LONGEST.contains(&name.as_str()))).collect();
        assert_eq!(first, LONGEST);
        assert_eq!(all.last().and_then(|names| names.last()).unwrap(), LAST);
    }
}
