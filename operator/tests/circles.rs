//! No two modules of a package lead to each other: whoever reads one file needs not read another first that needs the first.
//!
//! Only what is compiled into the programs is looked at, not their tests. That a module and its parent know each other is no
//! circle: the parent is what both are parts of.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The circles that there still are: a package and modules that lead to each other. This list may only become shorter.
const KNOWN: &[(&str, &[&str])] = &[];

/// The text of each module by its path from the root, which has none.
type Sources = BTreeMap<Vec<String>, String>;

fn path(text: &str) -> Vec<String> {
    text.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// What is left of a module without its comments and its tests, and the names of modules that only tests have.
fn production(text: &str) -> (String, Vec<String>) {
    let (mut code, mut only_tests) = (String::new(), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            code += line.split("//").next().unwrap();
            code.push('\n');
            continue;
        }
        let of_tests = lines.by_ref().find(|line| !line.trim_start().starts_with("#[")).unwrap_or_default();
        let name = of_tests.trim().trim_start_matches("pub(crate) ").trim_start_matches("pub ").strip_prefix("mod ");
        if let Some(name) = name.and_then(|name| name.strip_suffix(';')) {
            only_tests.push(name.to_owned());
        } else if of_tests.ends_with('{') {
            // Up to the line that ends it, which is indented as it is.
            let end = format!("{}}}", &of_tests[..of_tests.len() - of_tests.trim_start().len()]);
            lines.by_ref().find(|line| *line == end);
        }
    }
    (code, only_tests)
}

/// Reads the modules below `folder`, all but those of tests.
fn read(folder: &Path) -> Sources {
    fn files(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { files(&path, found) } else { found.push(path) }
        }
    }
    let mut found = Vec::new();
    files(folder, &mut found);
    let (mut sources, mut of_tests) = (Sources::new(), Vec::new());
    for file in found.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let inner = file.strip_prefix(folder).unwrap().with_extension("");
        let mut module: Vec<String> = inner.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if matches!(module.last().map(String::as_str), Some("lib" | "main")) {
            module.pop();
        }
        let (code, only_tests) = production(&fs::read_to_string(file).unwrap());
        of_tests.extend(only_tests.into_iter().map(|name| [module.clone(), vec![name]].concat()));
        *sources.entry(module).or_default() += &code;
    }
    sources.retain(|module, _| !of_tests.iter().any(|test| module.starts_with(test)));
    sources
}

/// Every path that stands behind `prefix` in `code`: `{a, b::{c, d}}` are `a`, `b::c` and `b::d`.
fn paths_behind(code: &str, prefix: &str) -> Vec<Vec<String>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut paths = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if !code[..at].ends_with(|c: char| is_word(c) || c == ':') {
            tree(&mut code[at + prefix.len()..].chars().peekable(), &[], &mut paths);
        }
    }
    paths
}

fn tree(text: &mut std::iter::Peekable<std::str::Chars<'_>>, before: &[String], paths: &mut Vec<Vec<String>>) {
    let mut here = before.to_vec();
    loop {
        let mut word = String::new();
        while let Some(c) = text.next_if(|c| c.is_alphanumeric() || *c == '_' || c.is_whitespace()) {
            word.push(c);
        }
        // What stands behind a space is no part of the path, but for `{` of a list: ` as name`.
        here.extend(word.split_whitespace().next().map(str::to_owned));
        if text.next_if_eq(&'{').is_some() {
            while text.next_if_eq(&'}').is_none() && text.peek().is_some() {
                tree(text, &here, paths);
                text.next_if_eq(&',');
                while text.next_if(|c| c.is_whitespace()).is_some() {}
            }
            return;
        }
        let goes_on =
            !word.ends_with(char::is_whitespace) && text.next_if_eq(&':').is_some() && text.next_if_eq(&':').is_some();
        if !goes_on {
            text.next_if_eq(&'*');
            paths.push(here);
            return;
        }
    }
}

/// The modules that `module` names in its text.
fn named(sources: &Sources, module: &[String], code: &str) -> BTreeSet<Vec<String>> {
    let mut paths = paths_behind(code, "crate::");
    for up in 1..=module.len() {
        let parent = &module[..module.len() - up];
        let behind = paths_behind(code, &"super::".repeat(up));
        paths.extend(behind.into_iter().map(|path| [parent, &path].concat()));
    }
    let longest =
        |path: Vec<String>| (0..=path.len()).rev().map(|len| path[..len].to_vec()).find(|at| sources.contains_key(at));
    paths.into_iter().filter_map(longest).collect()
}

/// The circles among the modules of a package, each as the paths of those that lead to each other. A module stands for all
/// that is below it, seen from one beside it.
fn circles(sources: &Sources) -> BTreeSet<Vec<String>> {
    let mut leads: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (module, code) in sources {
        for other in named(sources, module, code) {
            let shared = module.iter().zip(&other).take_while(|(a, b)| a == b).count();
            if module.len() > shared && other.len() > shared {
                leads.entry(module[..=shared].to_vec()).or_default().insert(other[..=shared].to_vec());
            }
        }
    }
    let reached = |from: &Vec<String>| {
        let mut reached = BTreeSet::new();
        let mut open = vec![from];
        while let Some(next) = open.pop() {
            for to in leads.get(next).into_iter().flatten() {
                if reached.insert(to.clone()) {
                    open.push(to);
                }
            }
        }
        reached
    };
    let reach: BTreeMap<&Vec<String>, BTreeSet<Vec<String>>> = leads.keys().map(|from| (from, reached(from))).collect();
    let with = |one: &Vec<String>| -> Vec<String> {
        let both = |other: &&&Vec<String>| reach[one].contains(**other) && reach[*other].contains(one);
        reach.keys().filter(both).map(|other| other.join("::")).collect()
    };
    reach.keys().map(|one| with(one)).filter(|circle| circle.len() > 1).collect()
}

#[test]
fn no_modules_of_a_package_lead_to_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let members = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let members = members.split("members = [").nth(1).unwrap().split(']').next().unwrap();
    let mut found = BTreeSet::new();
    for package in members.split('"').skip(1).step_by(2) {
        let sources = read(&root.join(package).join("src"));
        assert!(sources.len() > 1, "{package} has no modules: where are they?");
        found.extend(circles(&sources).into_iter().map(|circle| (package.to_owned(), circle)));
    }
    let known = |(package, circle): &(&str, &[&str])| {
        ((*package).to_owned(), circle.iter().map(|module| (*module).to_owned()).collect::<Vec<_>>())
    };
    let known: BTreeSet<_> = KNOWN.iter().map(known).collect();
    let new: Vec<_> = found.difference(&known).collect();
    assert!(new.is_empty(), "these lead to each other: give what both need a module of its own: {new:#?}");
    let gone: Vec<_> = known.difference(&found).collect();
    assert!(gone.is_empty(), "take these out of KNOWN, they are no circles any more: {gone:#?}");
}

#[test]
fn a_circle_is_found_however_it_is_written() {
    let package = |modules: &[(&str, &str)]| -> Sources {
        modules.iter().map(|(module, text)| (path(module), production(text).0)).collect()
    };
    let found = |modules: &[(&str, &str)]| circles(&package(modules)).into_iter().collect::<Vec<_>>();
    let three = [
        ("", "mod a; mod b; mod c;"),
        ("a", "use crate::{b::{B, C as D}, Root};"),
        ("b", "fn b() { super::c::Thing::new() }"),
        ("c", "use crate::a::inner::Deep;"),
        ("a::inner", ""),
    ];
    assert_eq!(found(&three), [["a", "b", "c"]]);
    let below = [("a::x", "use super::y::Y;"), ("a::y", "use super::{\n    x::X,\n};"), ("a", "use crate::a::x::X;")];
    assert_eq!(found(&below), [["a::x", "a::y"]]);
    let none = [
        ("a", "use crate::b::B; // use crate::c::C\n#[cfg(test)]\nmod tests {\n    use crate::c::C;\n}\n"),
        ("b", "/// As [`crate::a::A`].\nuse super::Root;\n#[cfg(test)]\nuse crate::a::A;\n"),
        ("c", "use crate::a::A;"),
        ("a::x", "use super::Parent;"),
        ("", "use a::x::X;"),
    ];
    assert_eq!(found(&none), Vec::<Vec<String>>::new());
}
