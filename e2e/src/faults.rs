//! The faults that Sallyport promises to live through, and one table of what was seen when each was made.
//!
//! Every promise is kept by tests that are named after it; here is which tests belong to which fault, and how they are
//! run one after another. What a test does is in its own file.
#![expect(clippy::print_stdout, reason = "prints the table, and the figures that it is made from")]

mod row;
mod rows;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};

use crate::runner::{self, Tier, Totals};
use row::{Row, Test};
use rows::ROWS;

/// What a test prints in front of a figure for the table.
const FIGURE: &str = "figure: ";

/// The variable that says how often a test makes a fault that it repeats.
const REPETITIONS: &str = "SALLYPORT_FAULT_REPETITIONS";

/// How often that is for the table; else it is [`FEW`] times.
const MANY: usize = 20;

/// How often a fault is repeated in the tests of every day.
const FEW: usize = 3;

/// How often a test shall make a fault that takes luck to be lived through once.
#[must_use]
pub fn repetitions() -> usize {
    std::env::var(REPETITIONS).ok().and_then(|number| number.parse().ok()).unwrap_or(FEW)
}

/// Says what a test has measured, for people and for a row of the table.
pub fn figure(row: u8, figure: impl fmt::Display) {
    println!("{FIGURE}{row}: {figure}");
}

/// Runs the tests of every row, or of the `only` one, in the named tiers that this machine can run; prints the table
/// and says whether no promise was broken.
pub fn run(tiers: &str, only: Option<u8>) -> Result<bool> {
    let tiers = Tier::parse_all(tiers)?;
    let rows: Vec<&Row> = ROWS.iter().filter(|row| only.is_none_or(|only| only == row.number)).collect();
    ensure!(!rows.is_empty(), "there is no such row; there are: 1 to {}", ROWS.len());
    if runner::build()?.failed > 0 {
        bail!("the tests could not be built");
    }
    let mut obstacles = Vec::new();
    let mut stages = Vec::new();
    for tier in Tier::ALL {
        if !tiers.contains(&tier) {
            obstacles.push((tier, "not asked for".to_owned()));
        } else if rows.iter().any(|row| row.tests.iter().any(|test| test.tier == tier)) {
            match tier.obstacle() {
                Some(obstacle) => obstacles.push((tier, obstacle)),
                None => stages.extend(tier.stage()?),
            }
        }
    }
    let mut runs = Runs::default();
    let seen = rows.into_iter().map(|row| Seen::of(row, &obstacles, &mut runs)).collect::<Result<Vec<_>>>()?;
    println!("\n{HEAD}");
    for seen in &seen {
        println!("{seen}");
    }
    for (tier, obstacle) in obstacles {
        println!("\nThe tier {} was not run: {obstacle}.", tier.name());
    }
    Ok(seen.iter().all(|seen| seen.broken.is_empty()))
}

const HEAD: &str = "| # | fault | promise | seen | verdict |\n|---|---|---|---|---|";

/// What was seen of one row.
struct Seen {
    row: &'static Row,
    figures: Vec<String>,
    kept: usize,
    broken: Vec<&'static str>,
    unseen: Vec<&'static str>,
}

/// What came of each test that was run: many belong to several rows.
#[derive(Default)]
struct Runs(BTreeMap<&'static str, Run>);

#[derive(Clone, Default)]
struct Run {
    passed: bool,
    /// Each with the number of the row that it belongs to in front.
    figures: Vec<String>,
}

impl Runs {
    fn of(&mut self, test: &'static Test) -> Result<&Run> {
        if !self.0.contains_key(test.name) {
            println!("=== {}", test.name);
            let run = run_alone(test)?;
            self.0.insert(test.name, run);
        }
        self.0.get(test.name).context("find a test that was run")
    }
}

/// Runs one test. None that ran is none that passed.
fn run_alone(test: &Test) -> Result<Run> {
    let (repetitions, mut totals, mut run) = (MANY.to_string(), Totals::default(), Run::default());
    let success = runner::cargo(&test.cargo_arguments(), &[(REPETITIONS, &repetitions)], |line| {
        println!("{line}");
        if let Some((_, figure)) = line.split_once(FIGURE) {
            run.figures.push(figure.to_owned());
        }
        if let Some(counted) = Totals::of_result_line(line) {
            totals.add(counted);
        }
    })?;
    run.passed = success && totals.passed > 0 && totals.failed == 0;
    Ok(run)
}

impl Seen {
    fn of(row: &'static Row, obstacles: &[(Tier, String)], runs: &mut Runs) -> Result<Self> {
        let mut seen = Self { row, figures: Vec::new(), kept: 0, broken: Vec::new(), unseen: Vec::new() };
        let ours = format!("{}: ", row.number);
        for test in row.tests {
            if obstacles.iter().any(|(tier, _)| *tier == test.tier) {
                seen.unseen.push(test.tier.name());
                continue;
            }
            let run = runs.of(test)?;
            seen.figures.extend(run.figures.iter().filter_map(|figure| figure.strip_prefix(&ours)).map(str::to_owned));
            if run.passed {
                seen.kept += 1;
            } else {
                seen.broken.push(test.name);
            }
        }
        Ok(seen)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tests = if self.kept == 1 { "test passes" } else { "tests pass" };
        let figures = match self.figures.as_slice() {
            [] if self.kept == 0 => "–".to_owned(),
            [] => format!("{} {tests}", self.kept),
            figures => figures.join("; "),
        };
        let verdict = match (self.broken.as_slice(), self.kept, self.unseen.last()) {
            ([], 0, _) => "not run".to_owned(),
            ([], _, None) => "kept".to_owned(),
            ([], _, Some(tier)) => format!("kept; tier {tier} not run"),
            (broken, ..) => format!("**BROKEN**: {}", broken.join(", ")),
        };
        write!(f, "{}{figures} | {verdict} |", self.row)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::program::repository;

    #[test]
    fn rows_are_numbered_and_each_names_tests_that_exist() {
        let root = repository().unwrap();
        let mut sources = String::new();
        for package in ["crds", "operator", "node-agent"] {
            collect(&root.join(package), &mut sources);
        }
        for (row, number) in ROWS.iter().zip(1..) {
            assert_eq!(row.number, number);
            assert!(!row.tests.is_empty(), "nothing tests row {number}");
            for test in row.tests {
                let there = match test.module {
                    Some(module) => {
                        let file = format!("e2e/tests/{}/{module}.rs", test.tier.program());
                        fs::read_to_string(root.join(file)).unwrap()
                    }
                    None => sources.clone(),
                };
                assert!(there.contains(&format!("fn {}(", test.name)), "row {number}: there is no {}", test.name);
            }
        }
    }

    #[test]
    fn the_docs_hold_every_row() {
        let docs = fs::read_to_string(repository().unwrap().join("docs/reliability.md")).unwrap();
        for row in ROWS {
            assert!(docs.contains(&row.to_string()), "docs/reliability.md lacks a row that begins with {row}");
        }
    }

    #[test]
    fn the_docs_name_the_tests_of_every_row() {
        let docs = fs::read_to_string(repository().unwrap().join("docs/reliability.md")).unwrap();
        let names = |row: &Row| row.tests.iter().map(|test| format!("`{}`", test.name)).collect::<Vec<_>>().join(", ");
        let made_by: String = ROWS.iter().map(|row| format!("| {} | {} |\n", row.number, names(row))).collect();
        let section = format!("| # | made by |\n|---|---|\n{made_by}\n");
        assert!(docs.contains(&section), "docs/reliability.md lacks this:\n{section}");
    }

    #[test]
    fn a_row_says_what_was_seen_and_what_could_not_be() {
        let mut seen = Seen { row: &ROWS[0], figures: vec![], kept: 0, broken: vec![], unseen: vec!["cluster"] };
        assert!(seen.to_string().ends_with("| – | not run |"), "{seen}");
        seen.kept = 2;
        assert!(seen.to_string().ends_with("| 2 tests pass | kept; tier cluster not run |"), "{seen}");
        seen.figures = vec!["0 lost".to_owned(), "5 ms".to_owned()];
        seen.broken = vec!["a_test"];
        assert!(seen.to_string().ends_with("| 0 lost; 5 ms | **BROKEN**: a_test |"), "{seen}");
    }

    fn collect(folder: &std::path::Path, sources: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
}
