//! The rules of ARCHITECTURE.md that a compiler does not hold: who may depend on whom, that every task is awaited, and that
//! each invariant of docs/invariants.md names a test that exists.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every package of the resolved graph with its normal dependencies, by name.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
        .collect();
    let normal = |dep: &&Value| dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null());
    metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            let deps = node["deps"].as_array().unwrap().iter().filter(normal);
            (
                names[node["id"].as_str().unwrap()].to_owned(),
                deps.map(|dep| names[dep["pkg"].as_str().unwrap()].to_owned()).collect(),
            )
        })
        .collect()
}

fn ours(graph: &BTreeMap<String, BTreeSet<String>>, package: &str) -> Vec<String> {
    graph[package].iter().filter(|name| name.starts_with("sallyport-")).cloned().collect()
}

#[test]
fn packages_depend_on_each_other_only_as_drawn() {
    let graph = dependencies();
    let allowed: &[(&str, &[&str])] = &[
        ("sallyport-api", &[]),
        ("sallyport-runtime", &[]),
        ("sallyport-policy", &["sallyport-api"]),
        ("sallyport-ruleset", &["sallyport-api", "sallyport-policy"]),
        ("sallyport-engine", &["sallyport-ruleset"]),
        (
            "sallyport-node-agent",
            &["sallyport-api", "sallyport-engine", "sallyport-policy", "sallyport-ruleset", "sallyport-runtime"],
        ),
        ("sallyport-operator", &["sallyport-api", "sallyport-policy", "sallyport-runtime"]),
        ("sallyport-e2e", &[]),
    ];
    let known: BTreeSet<&str> = allowed.iter().map(|(package, _)| *package).collect();
    for package in graph.keys().filter(|name| name.starts_with("sallyport-")) {
        assert!(known.contains(package.as_str()), "{package} is new: give it a line here and in ARCHITECTURE.md");
    }
    for (package, may) in allowed {
        for dependency in ours(&graph, package) {
            assert!(may.contains(&dependency.as_str()), "{package} must not depend on {dependency}");
        }
    }
}

/// The names of all packages that `package` links, itself included. By itself: beside the programs, cargo's one `kube` has
/// their features too.
fn linked(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", package, "--edges=normal", "--prefix=none", "--format={p}", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    tree.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

#[test]
fn what_is_pure_reaches_no_runtime_no_client_and_no_randomness() {
    for pure in ["sallyport-policy", "sallyport-ruleset"] {
        let reached = linked(pure);
        for banned in [
            "tokio",
            "hyper",
            "kube-client",
            "kube-runtime",
            "reqwest",
            "rustls",
            "rand",
            "socket2",
            "netlink-sys",
            "tracing-subscriber",
        ] {
            assert!(!reached.contains(banned), "{pure} reaches {banned}");
        }
        assert!(reached.contains("sallyport-api"));
    }
}

#[test]
fn the_operator_links_nothing_that_makes_rules() {
    let reached = linked("sallyport-operator");
    for banned in ["sallyport-ruleset", "sallyport-engine"] {
        assert!(!reached.contains(banned), "the operator reaches {banned}");
    }
    assert!(reached.contains("sallyport-policy"));
}

/// A package that does no I/O forbids it by its own `clippy.toml`, which is the same for all of them.
#[test]
fn what_is_pure_forbids_io_in_the_same_words() {
    let lints = |package: &str| fs::read_to_string(root().join(package).join("clippy.toml")).unwrap();
    assert_eq!(lints("node-agent/policy"), lints("node-agent/ruleset"));
}

#[test]
fn every_invariant_names_a_test_that_exists() {
    let list = fs::read_to_string(root().join("docs/invariants.md")).unwrap();
    let mut sources = Vec::new();
    collect(&root(), &mut sources);
    let sources: String = sources.into_iter().map(|(_, text)| text).collect();
    // Of each invariant its number, and how many tests stand below it.
    let mut invariants: Vec<(usize, usize)> = Vec::new();
    for line in list.lines() {
        if let Some(test) = line.trim_start().strip_prefix("- ") {
            let test = test.strip_prefix('`').and_then(|test| test.strip_suffix('`')).unwrap();
            assert!(sources.contains(&format!("fn {test}(")), "there is no test {test}, named in docs/invariants.md");
            invariants.last_mut().unwrap().1 += 1;
        } else if let Some(number) = line.split_once(". ").and_then(|(number, _)| number.parse().ok()) {
            invariants.push((number, 0));
        }
    }
    for (index, (number, tests)) in invariants.iter().enumerate() {
        assert_eq!(*number, index + 1, "invariants are numbered one by one");
        assert!(*tests > 0, "no test is named below invariant {number}");
    }
    assert!(invariants.len() >= 37, "only {} invariants found: has the list changed its form?", invariants.len());
}

#[test]
fn every_task_and_thread_is_made_where_it_is_awaited() {
    let mut sources = Vec::new();
    // The tests' own programs may do as they like.
    for package in ["crds", "node-agent", "operator"] {
        collect(&root().join(package), &mut sources);
    }
    // Not by the folder that the repository is in.
    let ours = |path: &Path| path.strip_prefix(root()).unwrap().to_path_buf();
    let is_test = |path: &Path| ours(path).iter().any(|part| part == "tests") || path.ends_with("tests.rs");
    let made_by = ["spawn(", "spawn_", "spawn;", "spawn}", "spawn,", "JoinSet", "JoinHandle", "thread::", "LocalSet"];
    let mut seen = BTreeSet::new();
    for (path, text) in sources.iter().filter(|(path, _)| !is_test(path)) {
        let code = text.split("#[cfg(test)]").next().unwrap();
        for line in code.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            // To wait is no thread, and a program is awaited by its own handle.
            let line = line.replace("thread::sleep", "");
            if made_by.iter().any(|made_by| line.contains(made_by)) && !line.starts_with("tasks.spawn(\"") {
                seen.insert((ours(path).display().to_string(), line));
            }
        }
    }
    // The thread that ends a process whose tasks stand still, and one for its last words, are in there too.
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        seen.into_iter().partition(|(path, _)| path == "node-agent/runtime/src/tasks.rs");
    assert!(here.iter().any(|(_, line)| line.contains("self.running.spawn(task)")), "where did it go? {here:#?}");
    let program = ("node-agent/engine/src/command.rs".to_owned(), ".spawn()?;".to_owned());
    assert_eq!(elsewhere, [program], "give it to `runtime::tasks::Tasks`, which awaits it");
}

fn collect(folder: &Path, sources: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                collect(&path, sources);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            sources.push((path, text));
        }
    }
}
