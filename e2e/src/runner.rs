//! Runs the tiers of tests that this machine can run and counts: what passed, what failed, what was skipped.
#![expect(clippy::print_stdout, reason = "prints the progress and the totals of the tests")]

mod targets;

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::sync::{Mutex, PoisonError};
use std::{fmt, io, panic, thread};

use anyhow::{Context, Result, bail, ensure};

use crate::running::{self, Running, limited};
use crate::{cluster, control_plane, lab, packages, program, script};

/// Seconds that one call of cargo may take before it is ended.
const CARGO_LIMIT: &str = "2400";

/// Counts of tests and checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Those that passed.
    pub passed: usize,
    /// Those that failed.
    pub failed: usize,
    /// Those that were not run.
    pub skipped: usize,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Totals {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Reads cargo's line `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    pub(crate) fn of_result_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut totals = Self::default();
        for part in counts.split("; ") {
            let (number, what) = part.split_once(' ')?;
            match what {
                "passed" => totals.passed = number.parse().ok()?,
                "failed" => totals.failed = number.parse().ok()?,
                "ignored" => totals.skipped = number.parse().ok()?,
                _ => {}
            }
        }
        Some(totals)
    }
}

/// A tier of tests, from the least to the most that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// Formatting, lints, and the tests that need nothing but the toolchain.
    Pure,
    /// The tests that make network namespaces.
    Kernel,
    /// The tests against a real API server, with nodes played by the tests.
    ControlPlane,
    /// The tests in a real cluster, which is made for them and taken away after them.
    Cluster,
}

impl Tier {
    /// All of them, in the order in which they run.
    pub(crate) const ALL: [Self; 4] = [Self::Pure, Self::Kernel, Self::ControlPlane, Self::Cluster];

    /// The name in `--tiers`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Kernel => "kernel",
            Self::ControlPlane => "control-plane",
            Self::Cluster => "cluster",
        }
    }

    fn parse(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|tier| tier.name() == name) {
            Some(tier) => Ok(tier),
            None => bail!("there is no tier {name:?}; the tiers are: {}", tiers()),
        }
    }

    /// The tiers of a list that is separated by spaces.
    pub(crate) fn parse_all(names: &str) -> Result<Vec<Self>> {
        let tiers: Vec<Self> = names.split_whitespace().map(Self::parse).collect::<Result<_>>()?;
        if tiers.is_empty() {
            bail!("no tier was named; the tiers are: {}", self::tiers());
        }
        Ok(tiers)
    }

    /// The feature that its test programs require.
    pub(crate) fn feature(self) -> Option<&'static str> {
        match self {
            Self::Pure => None,
            Self::Kernel => Some("kernel-tests"),
            Self::ControlPlane => Some("control-plane-tests"),
            Self::Cluster => Some("cluster-tests"),
        }
    }

    /// The one of its test programs that is in `e2e/tests`.
    pub(crate) fn program(self) -> String {
        self.name().replace('-', "_")
    }

    /// Why this machine cannot run the tier.
    pub(crate) fn obstacle(self) -> Option<String> {
        match self {
            Self::Pure => None,
            Self::Kernel => kernel_obstacle(),
            Self::ControlPlane => kernel_obstacle().or_else(control_plane_obstacle),
            Self::Cluster => kernel_obstacle().or_else(control_plane_obstacle).or_else(docker_obstacle),
        }
    }

    fn run(self) -> Result<Totals> {
        let _down = self.stage()?;
        let programs = targets::programs(program::repository()?, self.feature())?;
        if self == Self::Pure { pure(&programs) } else { parts(programs, self.abreast()) }
    }

    /// Whether its tests mostly wait, so that others may run beside them.
    fn waits(self) -> bool {
        matches!(self, Self::Kernel | Self::ControlPlane)
    }

    /// How many parts of its test programs run at a time. More would bend their timings; there is one cluster, and a test
    /// has it for itself.
    fn abreast(self) -> usize {
        if self.waits() { 2 } else { 1 }
    }

    /// Makes the cluster, if this tier needs it; it is taken away when the returned value is dropped.
    pub(crate) fn stage(self) -> Result<Option<script::DownAtEnd>> {
        if self != Self::Cluster {
            return Ok(None);
        }
        let down = script::DownAtEnd;
        cluster::Cluster::up()?.load_images()?;
        Ok(Some(down))
    }
}

/// The names of all tiers, as a person writes them.
pub fn tiers() -> String {
    Tier::ALL.map(Tier::name).join(" ")
}

/// Runs the named tiers (separated by spaces), prints the totals as the last line, and says whether nothing
/// failed. What a tier needs is decided before its tests start.
pub fn run(tiers: &str) -> Result<bool> {
    let tiers = Tier::parse_all(tiers)?;
    let mut totals = Totals::default();
    let mut ahead = None;
    for &tier in &tiers {
        let name = tier.name();
        println!("=== tier {name}");
        let obstacle = tier.obstacle();
        if obstacle.is_none() && tier.waits() && tiers.contains(&Tier::Cluster) && ahead.is_none() {
            // It takes minutes, which these tests do not miss.
            ahead = Some(script::aside("images.sh", &["programs"])?);
        }
        totals.add(match obstacle {
            None => match tier.run() {
                Err(error) if !running::interrupted() => {
                    println!("FAILED: tier {name}: {error:#}");
                    Totals { failed: 1, ..Totals::default() }
                }
                ran => ran?,
            },
            Some(why) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => {
                println!("FAILED: tier {name} cannot run here: {why}");
                Totals { failed: 1, ..Totals::default() }
            }
            Some(why) => {
                println!("SKIPPED: tier {name} cannot run here: {why}");
                Totals { skipped: 1, ..Totals::default() }
            }
        });
    }
    println!("{totals}");
    Ok(totals.failed == 0)
}

fn kernel_obstacle() -> Option<String> {
    if !packages::is_root() {
        return Some("network namespaces need root".to_owned());
    }
    let needed = [packages::LAB, packages::MARIADB].concat();
    if let Err(error) = packages::install_missing(&needed) {
        return Some(format!("{error:#}"));
    }
    let mut lab = lab::Lab::new();
    lab.host("probe").err().map(|error| format!("{error:#}"))
}

fn control_plane_obstacle() -> Option<String> {
    control_plane::programs::ensure().err().map(|error| format!("{error:#}"))
}

fn docker_obstacle() -> Option<String> {
    script::run("docker.sh", &[]).err().map(|error| format!("{error:#}"))
}

/// Formatting, lints, unit tests, the examples in docs, and the named test programs.
fn pure(programs: &[String]) -> Result<Totals> {
    let mut totals = Totals::default();
    totals.add(check(&["fmt", "--all", "--check"])?);
    totals.add(check(&[
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ])?);
    for args in
        [cargo_test(programs, &["--no-fail-fast", "--lib", "--bins"]), cargo_test(&[], &["--no-fail-fast", "--doc"])]
    {
        totals.add(tests(&args, |line| println!("{line}"))?);
    }
    Ok(totals)
}

/// Every part of the named test programs, `abreast` of them at a time, and before them the programs that they start.
fn parts(programs: Vec<String>, abreast: usize) -> Result<Totals> {
    let mut totals = build()?;
    if totals.failed > 0 {
        return Ok(totals);
    }
    let programs: Vec<_> =
        programs.into_iter().map(|program| Ok((program.clone(), list(program)?))).collect::<Result<_>>()?;
    let waiting = Mutex::new(targets::parts(programs).into_iter());
    let work = || {
        let mut totals = Totals::default();
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(part) = next else {
                return Ok(totals);
            };
            // What several print at a time would be mixed.
            let mut lines = String::new();
            let program = [part.program];
            let mut args = cargo_test(&program, &[]);
            args.extend(["--", "--test-threads=2", "--exact"]);
            args.extend(part.tests.iter().map(String::as_str));
            let ran = tests(&args, |line| lines.extend([line, "\n"]));
            print!("{lines}");
            totals.add(ran?);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..abreast).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let ran: Result<Totals> = worker.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked));
            totals.add(ran?);
        }
        Ok(totals)
    })
}

/// The names of the tests of a program.
fn list(program: String) -> Result<Vec<String>> {
    let (program, mut names, mut printed) = ([program], Vec::new(), String::new());
    let mut args = cargo_test(&program, &[]);
    args.extend(["--", "--list", "--format=terse"]);
    let success = cargo(&args, &[], |line| {
        names.extend(line.strip_suffix(": test").map(str::to_owned));
        printed.extend([line, "\n"]);
    })?;
    ensure!(success && !names.is_empty(), "no tests are listed by cargo {}:\n{printed}", args.join(" "));
    Ok(names)
}

/// The arguments that make cargo run the named test programs and no others.
///
/// Always the workspace as a whole, with all features: else cargo would build most dependencies once more with others.
fn cargo_test<'a>(programs: &'a [String], options: &[&'a str]) -> Vec<&'a str> {
    let programs = programs.iter().flat_map(|program| ["--test", program]);
    ["test", "--workspace", "--all-features"].into_iter().chain(options.iter().copied()).chain(programs).collect()
}

/// Builds all tests and the programs that they start, and takes away what tests that were killed have left.
pub(crate) fn build() -> Result<Totals> {
    lab::sweep()?;
    check(&["build", "--quiet", "--workspace", "--all-features", "--bins", "--tests"])
}

/// A call of cargo that passes or fails as a whole.
fn check(args: &[&str]) -> Result<Totals> {
    println!("--- cargo {}", args.join(" "));
    let success = cargo(args, &[], |line| println!("{line}"))?;
    println!("check {}: {}", args.first().unwrap_or(&""), if success { "ok" } else { "FAILED" });
    Ok(Totals { passed: usize::from(success), failed: usize::from(!success), skipped: 0 })
}

/// A call of `cargo test`, counted by its result lines.
fn tests(args: &[&str], mut print: impl FnMut(&str)) -> Result<Totals> {
    print(&format!("--- cargo {}", args.join(" ")));
    let mut totals = Totals::default();
    let success = cargo(args, &[], |line| {
        print(line);
        if let Some(counted) = Totals::of_result_line(line) {
            totals.add(counted);
        }
    })?;
    if !success && totals.failed == 0 {
        print("FAILED: cargo failed, and no test that it counted did");
        totals.failed = 1;
    }
    Ok(totals)
}

/// Runs cargo with variables in its environment, gives each line of its output as it comes, and says whether it succeeded.
pub(crate) fn cargo(
    args: &[impl AsRef<OsStr>],
    variables: &[(&str, &str)],
    mut each_line: impl FnMut(&str),
) -> Result<bool> {
    ensure!(!running::interrupted(), "interrupted");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let (reader, writer) = io::pipe().context("make a pipe")?;
    let mut command = limited(CARGO_LIMIT, cargo);
    command
        .args(args)
        .current_dir(program::repository()?)
        // Where an error was made says nothing about the network that it came from.
        .env("RUST_LIB_BACKTRACE", "0")
        .envs(variables.iter().copied())
        .stdout(writer.try_clone().context("copy a pipe")?)
        .stderr(writer);
    let running = Running::spawn(&mut command)?;
    // The command holds the pipe's other end, too: its lines would never end.
    drop(command);
    for line in BufReader::new(reader).split(b'\n') {
        each_line(&String::from_utf8_lossy(&line.context("read cargo's output")?));
    }
    let status = running.wait()?.status;
    if running::interrupted() {
        lab::sweep()?;
        bail!("interrupted");
    }
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::{Tier, Totals};

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.1s";
        let expected = Totals { passed: 12, failed: 3, skipped: 1 };
        assert_eq!(Totals::of_result_line(line), Some(expected));
    }

    #[test]
    fn other_lines_are_not_counted() {
        assert_eq!(Totals::of_result_line("test result_lines_are_counted ... ok"), None);
    }

    #[test]
    fn totals_read_as_one_line() {
        let totals = Totals { passed: 3, failed: 0, skipped: 2 };
        assert_eq!(totals.to_string(), "3 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn unknown_tier_is_an_error_that_names_the_tiers() {
        let error = Tier::parse("cosmic").unwrap_err().to_string();
        assert!(error.contains("pure kernel control-plane"), "{error}");
    }
}
