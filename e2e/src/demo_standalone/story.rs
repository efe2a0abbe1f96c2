//! How the demo talks: chapters, real commands with their real output, and a list of what was proved.
#![expect(clippy::print_stdout, reason = "a demo prints")]

use std::ffi::OsStr;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::lab::Host;

/// A story being told.
pub struct Story {
    start: Instant,
    proofs: Vec<String>,
}

impl Story {
    /// Starts the clock.
    pub fn begin() -> Self {
        Self { start: Instant::now(), proofs: Vec::new() }
    }

    /// Prints a heading with the time elapsed.
    pub fn chapter(&self, title: &str) {
        println!("\n[{:5.1} s] {title}", self.start.elapsed().as_secs_f64());
    }

    /// Remembers and prints something that has been asserted.
    pub fn proved(&mut self, what: &str) {
        note(&format!("✓ {what}"));
        self.proofs.push(what.to_owned());
    }

    /// Runs a command that must fail.
    pub fn refused<S: AsRef<OsStr>>(&mut self, what: &str, host: &Host, command: &[S]) -> Result<()> {
        typed(host, command);
        let outcome = host.run(command)?;
        note(&outcome.stderr);
        ensure!(!outcome.success(), "{what}: but the command succeeded: {}", outcome.stdout);
        self.proved(what);
        Ok(())
    }

    /// Runs a command that must succeed and print `expected`.
    pub fn shows<S: AsRef<OsStr>>(&mut self, what: &str, host: &Host, command: &[S], expected: &str) -> Result<()> {
        typed(host, command);
        let printed = host.check(command)?;
        note(&printed);
        ensure!(printed.contains(expected), "{what}: {expected:?} is not in the output");
        self.proved(what);
        Ok(())
    }

    /// Prints the proofs.
    pub fn end(&self) {
        println!("\n{} proofs in {:.1} s", self.proofs.len(), self.start.elapsed().as_secs_f64());
        for (number, proof) in self.proofs.iter().enumerate() {
            println!("  {:2}. {proof}", number + 1);
        }
    }
}

/// Prints a command as it was typed on a host.
pub fn typed<S: AsRef<OsStr>>(host: &Host, command: &[S]) {
    note(&format!("{}# {}", host.name(), shell_line(command)));
}

/// Prints lines below a heading.
pub fn note(text: &str) {
    for line in text.lines() {
        println!("          {line}");
    }
}

/// The command line with programs by their names and words quoted where a shell needs it.
fn shell_line<S: AsRef<OsStr>>(command: &[S]) -> String {
    let words = command.iter().enumerate().map(|(position, word)| {
        let word = word.as_ref().to_string_lossy();
        let word = if position == 0 { word.rsplit('/').next().unwrap_or(&word) } else { &word };
        if word.contains([' ', '*', ';']) { format!("\"{word}\"") } else { word.to_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}
