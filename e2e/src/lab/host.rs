//! A host of a lab: running programs inside it, its firewall, its addresses and its kernel settings.

use std::ffi::OsStr;
use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Dialogue, Process, ip};

/// Seconds that a program run inside a host may take before it is ended.
const RUN_LIMIT: &str = "120";

/// A place where programs run, mostly a network namespace, with a name that people read.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    namespace: String,
    // The command that runs another one there.
    enter: Vec<String>,
}

/// What a program that has ended printed, and whether it succeeded.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

/// The two families of iptables programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// `iptables-nft`: iptables rules kept in `nf_tables`.
    Nft,
    /// `iptables-legacy`: rules kept in `x_tables`.
    Legacy,
}

/// IP version 4 or 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4: the `iptables` programs.
    V4,
    /// IPv6: the `ip6tables` programs.
    V6,
}

impl Variant {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// The name of one of its programs: `iptables-nft-save`, `ip6tables-legacy-restore`, …
    #[must_use]
    pub fn program(self, family: Family, action: &str) -> String {
        let base = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{base}-{self}-{action}")
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        })
    }
}

impl Outcome {
    /// Whether it ended with exit code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

impl Host {
    pub(super) fn new(name: &str, namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), ..Self::entered_by(name, &["ip", "netns", "exec", namespace]) }
    }

    /// A place that is no namespace of a lab: `enter` is the command that runs another one there. It must become that
    /// other one, or [`Host::spawn`] cannot end what it has started.
    #[must_use]
    pub fn entered_by(name: &str, enter: &[&str]) -> Self {
        let enter = enter.iter().map(|&word| word.to_owned()).collect();
        Self { name: name.to_owned(), namespace: String::new(), enter }
    }

    /// The short name: `gw1`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network namespace's name.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Runs a program to its end.
    pub fn run<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<Outcome> {
        self.run_with_input(command, b"")
    }

    /// Runs a program to its end, with `input` as its standard input.
    pub fn run_with_input<S: AsRef<OsStr>>(&self, command: &[S], input: &[u8]) -> Result<Outcome> {
        let line = display(command);
        let mut child = Command::new("timeout")
            .args(["--kill-after=2", RUN_LIMIT])
            .args(&self.enter)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("run `{line}` on {}", self.name))?;
        let mut stdin = child.stdin.take().context("take the program's input")?;
        // A program that ends without reading its input is no error of ours.
        let _ = stdin.write_all(input);
        drop(stdin);
        let output = child.wait_with_output().with_context(|| format!("wait for `{line}` on {}", self.name))?;
        Ok(Outcome {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a program that must succeed, and gives its standard output.
    pub fn check<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<String> {
        self.check_with_input(command, b"")
    }

    /// Runs a program that must succeed, with `input` as its standard input, and gives its standard output.
    pub fn check_with_input<S: AsRef<OsStr>>(&self, command: &[S], input: &[u8]) -> Result<String> {
        let outcome = self.run_with_input(command, input)?;
        if !outcome.success() {
            bail!(
                "`{}` on {} ended with {:?}: {}{}",
                display(command),
                self.name,
                outcome.code,
                outcome.stdout,
                outcome.stderr
            );
        }
        Ok(outcome.stdout)
    }

    /// Starts a program that runs until the returned value is dropped. Its output goes to a temporary file that
    /// [`Process::output`] reads.
    pub fn spawn<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<Process> {
        let folder = super::folder()?;
        let log = folder.path().join("output");
        Process::start(&self.enter, command, log, Some(folder))
    }

    /// Starts a program that answers lines with lines.
    pub fn converse<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<Dialogue> {
        Dialogue::start(&self.enter, command)
    }

    /// Like [`Host::spawn`], with the output appended to `log`, which outlives the program.
    pub fn spawn_logging_to<S: AsRef<OsStr>>(&self, command: &[S], log: &Path) -> Result<Process> {
        Process::start(&self.enter, command, log.to_owned(), None)
    }

    /// Adds an address with its prefix length to an interface.
    pub fn add_address(&self, interface: &str, address: &str) -> Result<()> {
        let mut args = vec!["-n", &self.namespace, "address", "add", address, "dev", interface];
        if address.contains(':') {
            // Duplicate address detection would hold the address back for a second.
            args.push("nodad");
        }
        ip(&args)
    }

    /// Removes an address with its prefix length from an interface.
    pub fn remove_address(&self, interface: &str, address: &str) -> Result<()> {
        ip(&["-n", &self.namespace, "address", "delete", address, "dev", interface])
    }

    /// Adds a route to `destination` (or `default`) by way of `via`.
    pub fn add_route(&self, destination: &str, via: &str) -> Result<()> {
        ip(&["-n", &self.namespace, "route", "add", destination, "via", via])
    }

    /// Feeds `text` to `iptables-restore --noflush`: it adds to what is there.
    pub fn iptables_restore(&self, variant: Variant, family: Family, text: &str) -> Result<()> {
        let program = variant.program(family, "restore");
        self.check_with_input(&[&program, "--noflush", "-w"], text.as_bytes()).map(drop)
    }

    /// What `iptables-save` prints, without its comments and counters.
    pub fn iptables_save(&self, variant: Variant, family: Family) -> Result<String> {
        let text = self.check(&[variant.program(family, "save")])?;
        Ok(text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(" [").next().unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect())
    }

    /// Runs one `iptables` command line, as an administrator would type it.
    pub fn iptables(&self, variant: Variant, family: Family, arguments: &str) -> Result<()> {
        let base = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let mut command = vec![format!("{base}-{variant}"), "-w".to_owned()];
        command.extend(arguments.split_whitespace().map(str::to_owned));
        self.check(&command).map(drop)
    }

    /// Reads a kernel setting by its path below `/proc/sys`.
    pub fn sysctl(&self, path: &str) -> Result<String> {
        let value = self.check(&["cat", &format!("/proc/sys/{path}")])?;
        Ok(value.trim().to_owned())
    }

    /// Writes a kernel setting by its path below `/proc/sys`.
    pub fn write_sysctl(&self, path: &str, value: &str) -> Result<()> {
        let command = format!("echo {value} > /proc/sys/{path}");
        self.check(&["sh", "-c", &command]).map(drop)
    }

    /// The conntrack entries that match `filter`, one a line.
    pub fn conntrack(&self, filter: &[&str]) -> Result<Vec<String>> {
        let mut command = vec!["conntrack", "-L"];
        command.extend(filter);
        let listed = self.check(&command)?;
        Ok(listed.lines().map(str::to_owned).collect())
    }
}

/// A command line for a person to read.
pub(super) fn display<S: AsRef<OsStr>>(command: &[S]) -> String {
    let words: Vec<_> = command.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    words.join(" ")
}
