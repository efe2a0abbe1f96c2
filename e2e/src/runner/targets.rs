//! What a tier runs: the test programs that require its feature (the first tier: those that require none), and the parts of
//! a program that are processes of their own.

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

/// The names of the test programs of the workspace that require `feature`.
pub fn programs(repository: &Path, feature: Option<&str>) -> Result<Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version=1"])
        .current_dir(repository)
        .output()
        .context("run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let targets = metadata.packages.into_iter().flat_map(|package| package.targets);
    Ok(targets.filter(|target| is_of(target, feature)).map(|target| target.name).collect())
}

fn is_of(target: &Target, feature: Option<&str>) -> bool {
    target.kind.iter().any(|kind| kind == "test") && target.required_features.first().map(String::as_str) == feature
}

/// Tests that share a process: those of one module of a program, or those of a program that are in no module.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The program.
    pub program: String,
    /// The tests, with the paths of their modules.
    pub tests: Vec<String>,
}

impl Part {
    fn module(&self) -> &str {
        module(self.tests.first().map_or("", String::as_str))
    }
}

fn module(test: &str) -> &str {
    test.split_once("::").map_or("", |(module, _)| module)
}

/// The parts of programs, each given with the names of its tests, in the order in which they are to run.
pub fn parts(programs: Vec<(String, Vec<String>)>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for (program, mut tests) in programs {
        tests.sort_by(|a, b| module(a).cmp(module(b)));
        for of_module in tests.chunk_by(|a, b| module(a) == module(b)) {
            parts.push(Part { program: program.clone(), tests: of_module.to_vec() });
        }
    }
    let place = |name: &str| LONGEST.iter().position(|long| *long == name).unwrap_or(LONGEST.len());
    parts.sort_by_key(|part| (part.module() == LAST, place(part.module())));
    parts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::{LAST, LONGEST, Part, parts, programs};
    use crate::program::repository;
    use crate::runner::Tier;

    /// The parts of an end-to-end program, as if each of its modules had one test.
    fn parts_of(program: &str) -> Vec<Part> {
        let main = repository().unwrap().join(format!("e2e/tests/{program}/main.rs"));
        let text = fs::read_to_string(main).unwrap();
        let modules = text.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
        parts(vec![(program.to_owned(), modules.map(|module| format!("{module}::holds")).collect())])
    }

    #[test]
    fn the_longest_come_first_and_each_of_them_exists() {
        let all = ["kernel", "control_plane", "cluster"].map(parts_of);
        let names: Vec<Vec<&str>> = all.iter().map(|parts| parts.iter().map(Part::module).collect()).collect();
        let first: Vec<&str> =
            names.iter().flat_map(|names| names.iter().take_while(|name| LONGEST.contains(name)).copied()).collect();
        assert_eq!(first, LONGEST);
        assert_eq!(*names.last().and_then(|names| names.last()).unwrap(), LAST);
    }

    #[test]
    fn tests_of_a_module_share_a_process_and_no_other_does() {
        let tests = ["b::two", "alone", "a::deep::three", "b::one", "too", "a::four"].map(str::to_owned).to_vec();
        let parts = parts(vec![("program".to_owned(), tests)]);
        let tests: Vec<Vec<&str>> = parts.iter().map(|part| part.tests.iter().map(String::as_str).collect()).collect();
        assert_eq!(tests, [vec!["alone", "too"], vec!["a::deep::three", "a::four"], vec!["b::two", "b::one"]]);
    }

    /// Cargo runs all programs of a name.
    #[test]
    fn no_tier_runs_a_program_of_another() {
        let mut seen = BTreeSet::new();
        for tier in Tier::ALL {
            let programs: BTreeSet<_> = programs(repository().unwrap(), tier.feature()).unwrap().into_iter().collect();
            assert!(!programs.is_empty(), "nothing tests {}", tier.name());
            for program in programs {
                assert!(seen.insert(program.clone()), "there are two test programs {program}, of different tiers");
            }
        }
    }
}
