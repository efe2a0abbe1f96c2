//! Runs one program with a deadline. No shell; arguments are never anything a user wrote.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// How long a program may take before it is killed: another process can hold the iptables lock for seconds.
const DEADLINE: Duration = Duration::from_secs(30);

/// What can go wrong with a program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not installed.
    #[error("{program} is not installed; install iptables and nftables (Debian: apt-get install iptables nftables)")]
    NotInstalled {
        /// Its name.
        program: &'static str,
    },
    /// It could not be started or talked to.
    #[error("failed to run {program}")]
    Run {
        /// Its name.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {} s and was killed", DEADLINE.as_secs())]
    TimedOut {
        /// Its name.
        program: &'static str,
    },
    /// It ended with an error.
    #[error("{program} {} failed ({status}): {stderr}", arguments.join(" "))]
    Failed {
        /// Its name.
        program: &'static str,
        /// Its arguments.
        arguments: Vec<String>,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said, on one line.
        stderr: String,
    },
}

/// Runs `program`, feeds it `input`, and returns what it printed.
pub async fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<String, Error> {
    let finish = async {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program that fails early closes its input; its exit status tells why, not this.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        output
    };
    let output = match tokio::time::timeout(DEADLINE, finish).await {
        Err(_) => return Err(Error::TimedOut { program }),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NotInstalled { program }),
        Ok(Err(source)) => return Err(Error::Run { program, source }),
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let stderr = said.lines().filter(|line| !line.is_empty()).take(3).collect::<Vec<_>>().join("; ");
    Err(Error::Failed {
        program,
        arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
        status: output.status,
        stderr,
    })
}
