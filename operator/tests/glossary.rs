//! The words of the code: a glossary that stays short and true, and words that were replaced and do not come back.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Words that a newcomer may be asked to learn.
const MOST: usize = 24;

/// Words that the code had for what the field has words for, and those.
const REPLACED: &[(&str, &str)] = &[
    ("aim", "mode"),
    ("amiss", "drift"),
    ("carrier", "node report"),
    ("contender", "candidate"),
    ("contest", "candidates"),
    ("history", "revisions"),
    ("lane", "client path"),
    ("lasting", "persistent drift"),
    ("lingering", "outgoing claims"),
    ("newcomer", "port gate"),
    ("notices", "route events"),
    ("pulse", "liveness"),
    ("purpose", "retention"),
    ("rival", "shadow"),
    ("rivalry", "precedence"),
    ("sight", "socket view"),
    ("standing", "paused"),
    ("suspended", "paused"),
    ("unborn", "liveness"),
    ("vital", "liveness"),
    ("whereabouts", "node state"),
    ("world", "store"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Each identifier of the programs, with a file that has it. Tests may speak as they like.
fn identifiers() -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for package in ["crds", "node-agent", "operator"] {
        collect(&root().join(package), &mut found);
    }
    found
}

fn collect(folder: &Path, found: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !name.starts_with('.') && !matches!(name, "target" | "tests") {
                collect(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests.rs" {
            let text = fs::read_to_string(&path).unwrap();
            for line in text.split("#[cfg(test)]\nmod tests {").next().unwrap().lines() {
                // Texts are every second part of what is between quotes, comments stand at the end.
                let code = line.split("//").next().unwrap().split('"').step_by(2);
                let words = code.flat_map(|code| code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
                for word in words.filter(|word| !word.is_empty()) {
                    found.entry(word.to_owned()).or_insert_with(|| path.clone());
                }
            }
        }
    }
}

/// The words that an identifier is made of, whether it is `written_so` or `WrittenSo`.
fn words(identifier: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_small = false;
    for c in identifier.chars() {
        if c == '_' || (c.is_ascii_uppercase() && after_small) {
            words.push(String::new());
        }
        if c != '_' {
            words.last_mut().unwrap().push(c.to_ascii_lowercase());
        }
        after_small = c.is_ascii_lowercase();
    }
    words
}

#[test]
fn the_glossary_is_short_and_each_of_its_words_is_used_in_the_code() {
    let glossary = fs::read_to_string(root().join("docs/glossary.md")).unwrap();
    let rows = glossary.lines().filter(|line| line.starts_with("| ") && line.ends_with("` |"));
    let names: Vec<&str> = rows.map(|row| row.rsplit('`').nth(1).unwrap()).collect();
    assert!(!names.is_empty() && names.len() <= MOST, "{} words are in the glossary", names.len());
    let used = identifiers();
    for name in names {
        let is_used =
            used.contains_key(name) || used.keys().any(|identifier| words(identifier).iter().any(|w| w == name));
        assert!(is_used, "nothing is called {name}, which is in the glossary");
    }
}

#[test]
fn words_that_were_replaced_do_not_come_back() {
    for (identifier, path) in identifiers() {
        for word in words(&identifier) {
            let of = |(old, _): &&(&str, &str)| word == *old || word.strip_suffix('s') == Some(old);
            if let Some((_, new)) = REPLACED.iter().find(of) {
                panic!("{} has the name {identifier}: the word for it is {new}", path.display());
            }
        }
    }
}

#[test]
fn identifiers_are_taken_apart_into_words() {
    for (identifier, apart) in
        [("NftObject", "nft object"), ("would_create", "would create"), ("MARK_OURS", "mark ours")]
    {
        assert_eq!(words(identifier).join(" "), apart);
    }
}
