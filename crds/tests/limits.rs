//! `docs/security.md` shows the lists of refused targets and of reserved ports as they are.

#![allow(clippy::unwrap_used, reason = "this is a test, its functions outside of #[test] included")]

use std::fs;
use std::path::Path;

use sallyport_api::limits::{REFUSED_TARGETS, RESERVED_PORTS};

/// A table of two columns: what it is, and all entries that are that, each in the order of the list.
fn table(head: &str, entries: impl Iterator<Item = (String, &'static str)>) -> String {
    let mut rows: Vec<(&str, Vec<String>)> = Vec::new();
    for (entry, what) in entries {
        match rows.iter_mut().find(|(other, _)| *other == what) {
            Some((_, same)) => same.push(entry),
            None => rows.push((what, vec![entry])),
        }
    }
    let rows: String = rows.iter().map(|(what, entries)| format!("| {what} | {} |\n", entries.join(", "))).collect();
    format!("{head}\n|---|---|\n{rows}\n")
}

#[test]
fn the_docs_show_what_is_refused_and_nothing_else() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md")).unwrap();
    let targets = REFUSED_TARGETS.iter().map(|(block, what)| (format!("`{block}`"), *what));
    let ports = RESERVED_PORTS.iter().map(|(protocol, first, last, what)| {
        let ports = if first == last { first.to_string() } else { format!("{first}–{last}") };
        (format!("{ports}/{protocol}"), *what)
    });
    for table in [table("| a target is refused that is | in |", targets), table("| kept for | ports |", ports)] {
        assert!(text.contains(&table), "docs/security.md needs this table:\n\n{table}");
    }
}
