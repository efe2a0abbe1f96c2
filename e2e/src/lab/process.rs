//! A program running inside a host of a lab until it is dropped.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::host::display;
use crate::wait;

/// A running program. Dropping it ends the program at once and waits for its end.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    // Keeps the output until the process is dropped.
    _log_folder: Option<TempDir>,
}

impl Process {
    pub(super) fn start<S: AsRef<OsStr>>(
        enter: &[String],
        command: &[S],
        log: PathBuf,
        log_folder: Option<TempDir>,
    ) -> Result<Self> {
        let name = display(command);
        let output = append(&log)?;
        let errors = output.try_clone().context("share a program's output file")?;
        let (first, rest) = enter.split_first().context("find the command that enters the host")?;
        // It replaces itself by the program, as `ip netns exec` does, so the child's id is the program's id.
        let child = Command::new(first)
            .args(rest)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start `{name}`"))?;
        Ok(Self { child, name, log, _log_folder: log_folder })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far (and, for a shared log, those before it), both streams in order.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Writes to its standard input.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("find the program's input")?;
        input
            .write_all(text.as_bytes())
            .and_then(|()| input.flush())
            .with_context(|| format!("write to `{}`", self.name))
    }

    /// The exit status, once it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("look whether `{}` has ended", self.name))
    }

    /// Waits for the program to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of `{}`", self.name);
        wait::until(&what, limit, || self.ended()).map(|(status, _)| status)
    }

    /// Waits until the output holds `text`; fails at once when the program ends before.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let what = format!("`{text}` printed by `{}`", self.name);
        wait::until_true(&what, limit, || {
            let ended = self.ended()?;
            if self.output().contains(text) {
                return Ok(true);
            }
            if let Some(status) = ended {
                bail!("`{}` ended with {status}:\n{}", self.name, self.output());
            }
            Ok(false)
        })
        .map(drop)
    }

    /// Asks it to end (SIGTERM) and waits for that.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        let pid = self.pid().to_string();
        Command::new("kill")
            .args(["-TERM", &pid])
            .output()
            .with_context(|| format!("send SIGTERM to `{}`", self.name))?;
        self.wait(limit)
    }

    /// Ends it at once (SIGKILL) and waits for that.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().and_then(|()| self.child.wait()).map(drop).with_context(|| format!("kill `{}`", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to kill and the wait returns at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running program that answers each line with a line. Dropping it ends the program at once and waits for its end.
#[derive(Debug)]
pub struct Dialogue {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Dialogue {
    pub(super) fn start<S: AsRef<OsStr>>(enter: &[String], command: &[S]) -> Result<Self> {
        let name = display(command);
        let (first, rest) = enter.split_first().context("find the command that enters the host")?;
        let mut child = Command::new(first)
            .args(rest)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{name}`"))?;
        let (questions, answers) = child.stdin.take().zip(child.stdout.take()).context("take the program's pipes")?;
        Ok(Self { child, questions, answers: BufReader::new(answers) })
    }

    /// The answer to `question`.
    pub fn ask(&mut self, question: &str) -> Result<String> {
        writeln!(self.questions, "{question}").context("ask a program")?;
        let mut answer = String::new();
        match self.answers.read_line(&mut answer).context("read a program's answer")? {
            0 => bail!("a program has ended instead of answering"),
            _ => Ok(answer),
        }
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("open {}", path.display()))
}
