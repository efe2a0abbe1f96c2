//! Rules of the house that no lint knows: a first line that says what a file does in more than a word, no file that nobody
//! compiles, no file too long to be one thing, no name that says nothing, no link that leads nowhere.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines a file may have.
const LONGEST: usize = 500;
/// Words that it takes to say what a file does.
const FEWEST_WORDS: usize = 4;
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 7] = ["utils", "util", "common", "helpers", "misc", "types", "manager"];

/// What takes text of iptables apart: saves and listings of a kernel, and rules of others. Our own rules are values, and what
/// they say is asked of the value.
const READ_IPTABLES: [&str; 4] = [
    "node-agent/engine/src/iptables/apart.rs",
    "node-agent/engine/src/iptables/detect.rs",
    "node-agent/ruleset/src/firewall/xtables.rs",
    "node-agent/ruleset/src/iptables/installed.rs",
];
/// How that is written.
const TAKES_APART: [&str; 8] = [
    "strip_prefix('*')",
    "strip_prefix(':')",
    "strip_prefix(\"-",
    "starts_with(\"-",
    "contains(\"-",
    "split_once(\"-",
    "starts_with('*')",
    "starts_with(':')",
];

fn root() -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap()
}

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                files(&path, extension, found);
            }
        } else if path.extension().is_some_and(|own| own == extension) {
            found.push(path);
        }
    }
}

fn all(extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&root(), extension, &mut found);
    assert!(!found.is_empty());
    found
}

fn stem(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

#[test]
fn every_source_file_begins_by_saying_what_it_does() {
    for path in all("rs") {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} does not begin with //!", path.display());
        let said = text.lines().map_while(|line| line.strip_prefix("//!")).flat_map(str::split_whitespace);
        let words = said.filter(|word| word.contains(char::is_alphabetic)).count();
        assert!(words >= FEWEST_WORDS, "{} does not say what it does", path.display());
    }
}

#[test]
fn nobody_reads_the_text_of_our_own_rules() {
    let mut found = BTreeSet::new();
    for path in all("rs") {
        let inner = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let is_program = inner.starts_with("node-agent/") && inner.contains("src/") && !inner.contains("/fuzz/");
        if !is_program || matches!(stem(&path), "tests" | "fake") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        if TAKES_APART.iter().any(|way| code.contains(way)) {
            found.insert(inner);
        }
    }
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), READ_IPTABLES);
}

#[test]
fn no_source_file_is_longer_than_one_thing_can_be() {
    for path in all("rs") {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= LONGEST, "{} has {lines} lines: more than one thing inside?", path.display());
    }
}

#[test]
fn names_say_what_is_inside() {
    for path in all("rs") {
        assert!(!EMPTY_NAMES.contains(&stem(&path)), "{} has a name that says nothing", path.display());
        assert_ne!(stem(&path), "mod", "{}: write foo.rs beside foo/", path.display());
    }
}

#[test]
fn every_source_file_is_compiled() {
    let sources = all("rs");
    let declared: BTreeSet<String> = sources
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).unwrap();
            let names = text.lines().filter_map(|line| {
                let line = line.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
                Some(line.strip_prefix("mod ")?.strip_suffix(';')?.to_owned())
            });
            names.collect::<Vec<_>>()
        })
        .collect();
    for path in &sources {
        let parent = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let is_root =
            matches!(stem(path), "lib" | "main" | "build") || matches!(parent, "tests" | "bin" | "fuzz_targets");
        assert!(is_root || declared.contains(stem(path)), "no `mod` line leads to {}", path.display());
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for path in all("md") {
        let text = fs::read_to_string(&path).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            assert!(
                path.parent().unwrap().join(target).exists(),
                "{} links to {target}, which is not there",
                path.display()
            );
        }
    }
}
