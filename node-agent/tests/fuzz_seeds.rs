//! The seeds of the fuzz targets and thousands of mutations of them, held to what `make fuzz` holds millions to.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

/// The files of a target, in the order of their names.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

/// What somebody may have done to a text.
#[derive(Clone, Debug)]
enum Mutation {
    Overwrite(Index, u8),
    Cut(Index, Index),
    Repeat(Index, Index),
    /// Something that a parser may take for more than text.
    Insert(Index, &'static str),
    /// The end of another seed in place of its own.
    Splice(Index, Index, Index),
}

const TOKENS: [&str; 24] = [
    "\n", "\n---\n", " ", "\t", "\0", "\"", "'", ": ", "- ", "{", "]", "&a", "*a", "!!int ", "-j ", "-A ", ":SALLY-",
    "COMMIT", "0", "65536", "-1", "/33", "::ffff:", "\u{202e}",
];

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    prop_oneof![
        2 => (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Overwrite(at, byte)),
        1 => (at(), at()).prop_map(|(from, to)| Mutation::Cut(from, to)),
        1 => (at(), at()).prop_map(|(from, to)| Mutation::Repeat(from, to)),
        4 => (at(), select(TOKENS.to_vec())).prop_map(|(at, token)| Mutation::Insert(at, token)),
        1 => (at(), at(), at()).prop_map(|(at, seed, from)| Mutation::Splice(at, seed, from)),
    ]
}

fn mutated(seeds: &[Vec<u8>], seed: Index, mutations: &[Mutation]) -> Vec<u8> {
    let mut text = seed.get(seeds).clone();
    for mutation in mutations {
        let place = |index: &Index| index.index(text.len() + 1);
        match mutation {
            Mutation::Overwrite(at, byte) => {
                let at = place(at);
                text.splice(at..(at + 1).min(text.len()), [*byte]);
            }
            Mutation::Cut(from, to) => {
                let (from, to) = (place(from), place(to));
                // A few bytes at a time: of half a text little is left to read.
                text.drain(from.min(to)..from.max(to).min(from.min(to) + 20));
            }
            Mutation::Repeat(from, to) => {
                let (from, to) = (place(from), place(to));
                let piece = text[from.min(to)..from.max(to)].to_vec();
                text.splice(from..from, piece);
            }
            Mutation::Insert(at, token) => {
                let at = place(at);
                text.splice(at..at, token.bytes());
            }
            Mutation::Splice(at, seed, from) => {
                let other = seed.get(seeds);
                text.truncate(place(at));
                text.extend(&other[from.index(other.len() + 1)..]);
            }
        }
    }
    text
}

#[test]
fn no_mutated_manifest_becomes_a_rule_that_is_not_ours() {
    let seeds = seeds("manifests");
    for seed in &seeds {
        fuzz::manifests(seed);
    }
    proptest!(config(4), |(seed in any::<Index>(), mutations in vec(mutation(), 0..6))| {
        fuzz::manifests(&mutated(&seeds, seed, &mutations));
    });
}

#[test]
fn no_mutated_save_makes_a_plan_that_touches_others() {
    let seeds = seeds("save");
    for seed in &seeds {
        fuzz::save(seed);
    }
    proptest!(config(4), |(seed in any::<Index>(), mutations in vec(mutation(), 0..12))| {
        fuzz::save(&mutated(&seeds, seed, &mutations));
    });
}

#[test]
fn no_mutated_firewall_is_too_much_for_its_readers() {
    let seeds = seeds("firewall");
    for seed in &seeds {
        fuzz::firewall(seed);
    }
    proptest!(config(2), |(seed in any::<Index>(), mutations in vec(mutation(), 0..6))| {
        fuzz::firewall(&mutated(&seeds, seed, &mutations));
    });
}

/// `factor` times as many cases as other properties get.
fn config(factor: u32) -> ProptestConfig {
    let all = ProptestConfig::default();
    ProptestConfig { cases: all.cases * factor, failure_persistence: None, ..all }
}
