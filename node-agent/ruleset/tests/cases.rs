//! Every folder of `testdata` is a case: manifests and a node on one side, rules and verdicts on the other.
//!
//! `UPDATE_EXPECT=1` writes the expected files anew; read what changed before you keep it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "the cases are files")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use expect_test::expect_file;
use sallyport_policy::decide::{Decision, Verdict};
use sallyport_ruleset::family::Family;
use sallyport_ruleset::iptables::plan::render;
use sallyport_ruleset::iptables::restore::restore;

#[path = "support/compiled.rs"]
mod compiled;
#[path = "../../policy/tests/support/scene.rs"]
mod scene;

use scene::Scene;

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut folders: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

/// What was said about every object, in words that its author reads.
fn verdicts(scene: &Scene, decision: &Decision) -> String {
    let mut text = String::new();
    for (name, problems) in &decision.pools {
        let word = if problems.is_empty() { "ok" } else { "has problems" };
        writeln!(text, "pool {name}: {word}").unwrap();
        for problem in problems {
            writeln!(text, "  {} {problem}", problem.reason).unwrap();
        }
    }
    for (key, verdict) in &decision.forwards {
        match verdict {
            Verdict::Accepted(_) => writeln!(text, "forward {key}: accepted").unwrap(),
            Verdict::Refused(problems) => {
                writeln!(text, "forward {key}: refused").unwrap();
                for problem in problems {
                    writeln!(text, "  {} {problem}", problem.reason).unwrap();
                }
            }
        }
    }
    for node in &scene.nodes {
        let Some(compiled) = Scene::compile(decision, node) else {
            writeln!(text, "node {}: in no pool", node.name).unwrap();
            continue;
        };
        let pool = &decision.nodes[&node.name].pool;
        let listen: Vec<String> = compiled.table.listen().iter().map(ToString::to_string).collect();
        writeln!(text, "node {}: pool {pool}, listens on {}", node.name, listen.join(", ")).unwrap();
        for failure in compiled.table.failures() {
            writeln!(text, "  {} {}: {}", failure.reason, failure.forward, failure.message).unwrap();
        }
    }
    text
}

/// The rules of the first node, which is the one that the case is about.
fn rules(scene: &Scene, decision: &Decision, family: Family) -> String {
    let compiled = Scene::compile(decision, &scene.nodes[0]);
    compiled.and_then(|compiled| restore(&render(&compiled.ruleset), family)).unwrap_or_default()
}

#[test]
fn every_case_gives_the_rules_and_verdicts_beside_it() {
    let folders = folders();
    assert!(folders.len() > 20, "the case folders are gone");
    for folder in folders {
        let read =
            |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let scene = Scene::parse(&read("forwards.yaml"), &read("node.yaml"));
        let decision = scene.decide();
        expect_file![folder.join("verdicts.txt")].assert_eq(&verdicts(&scene, &decision));
        expect_file![folder.join("v4.rules")].assert_eq(&rules(&scene, &decision, Family::V4));
        expect_file![folder.join("v6.rules")].assert_eq(&rules(&scene, &decision, Family::V6));
    }
}
