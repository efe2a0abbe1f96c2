//! Many questions at once from one host, most of which may well stay without an answer.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::time::timeout;

use super::Protocol;
use super::ask::{Answer, Ask};
use crate::lab::Host;
use crate::program;

/// Ask many echo servers at once and print a line for each.
#[derive(Args, Clone, Debug)]
pub struct Probe {
    /// How many milliseconds to wait for answers.
    #[arg(long)]
    wait: u64,
    /// Whom: `tcp/10.30.1.78:3306`.
    questions: Vec<Question>,
}

/// Whom to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// By which protocol.
    pub protocol: Protocol,
    /// The server's address and port.
    pub to: SocketAddr,
}

impl FromStr for Question {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (protocol, to) = text.split_once('/').context("a protocol, a slash, an address and a port")?;
        let protocol = if protocol == "tcp" { Protocol::Tcp } else { Protocol::Udp };
        Ok(Self { protocol, to: to.parse()? })
    }
}

impl Probe {
    /// Asks and prints.
    #[expect(clippy::print_stdout, reason = "the answers are this command's output")]
    pub async fn run(self) -> Result<()> {
        let limit = Duration::from_millis(self.wait);
        let ask = |question: &Question| {
            let ask = Ask::once(question.protocol, question.to);
            tokio::spawn(async move { timeout(limit, ask.twice()).await })
        };
        let asked: Vec<_> = self.questions.iter().map(ask).collect();
        for answer in asked {
            match answer.await? {
                Ok(Ok(line)) => print!("{line}"),
                Ok(Err(_)) => println!("refused"),
                Err(_) => println!("silence"),
            }
        }
        Ok(())
    }
}

/// Asks all of `questions` from `host` at once, twice in each connection, and waits so long for the answers.
pub fn probe(host: &Host, questions: &[Question], wait: Duration) -> Result<Vec<Answer>> {
    let mut command = vec![program::own()?.display().to_string(), "probe".to_owned()];
    command.push(format!("--wait={}", wait.as_millis()));
    command.extend(questions.iter().map(|question| format!("{}/{}", question.protocol, question.to)));
    let output = host.check(&command)?;
    let answers: Option<Vec<Answer>> = output.lines().map(Answer::parse).collect();
    let answers = answers.with_context(|| format!("understand the answers {output:?}"))?;
    ensure!(answers.len() == questions.len(), "{output:?}");
    Ok(answers)
}
