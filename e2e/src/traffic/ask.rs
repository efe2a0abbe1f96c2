//! The client of the echo server: one question, one long conversation, or the first answer that comes.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::{interval, timeout};

use crate::lab::{Host, Process};
use crate::{program, wait};

/// The longest wait for an answer that is expected.
const PATIENCE: Duration = Duration::from_millis(900);
/// After this long TCP sends its first packet once more (`TCP_TIMEOUT_INIT`, `include/net/tcp.h`).
const AGAIN: Duration = Duration::from_secs(1);

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A server answered.
    Heard {
        /// The name of the host that answered.
        server: String,
        /// The client's address as that server sees it.
        peer: SocketAddr,
        /// The port that the server was reached on.
        port: u16,
    },
    /// The other side refused (a reset, or an ICMP error).
    Refused,
    /// Nothing came in time.
    Silence,
}

impl Answer {
    /// Whether the server `name` answered.
    #[must_use]
    pub fn is_from(&self, name: &str) -> bool {
        matches!(self, Self::Heard { server, .. } if server == name)
    }

    pub(super) fn parse(line: &str) -> Option<Self> {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["refused"] => Some(Self::Refused),
            ["silence"] => Some(Self::Silence),
            [server, peer, port] => {
                Some(Self::Heard { server: server.to_owned(), peer: peer.parse().ok()?, port: port.parse().ok()? })
            }
            _ => None,
        }
    }
}

/// Ask an echo server and print its answer, `refused` or `silence`.
#[derive(Args, Clone, Debug)]
pub struct Ask {
    /// Transport protocol.
    protocol: Protocol,
    /// The server's address and port.
    to: SocketAddr,
    /// The address and port to ask from; port 0 is any.
    #[arg(long)]
    from: Option<SocketAddr>,
    /// Go on asking in the same connection, once in so many milliseconds, until no answer comes.
    #[arg(long, conflicts_with = "first_answer")]
    every: Option<u64>,
    /// Open a new connection every millisecond and print when the first answer came, in Unix nanoseconds.
    #[arg(long)]
    first_answer: bool,
}

impl Ask {
    /// One question.
    pub(super) fn once(protocol: Protocol, to: SocketAddr) -> Self {
        Self { protocol, to, from: None, every: None, first_answer: false }
    }

    /// Two questions in one connection, and the answer to the second.
    pub(super) async fn twice(&self) -> std::io::Result<String> {
        if self.protocol == Protocol::Tcp {
            let mut stream = BufReader::new(self.connect().await?);
            let mut line = String::new();
            for _ in 0..2 {
                line.clear();
                stream.write_all(b"who am I\n").await?;
                stream.read_line(&mut line).await?;
            }
            return if line.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(line) };
        }
        let socket = UdpSocket::bind(SocketAddr::new(any_address(self.to), 0)).await?;
        socket.connect(self.to).await?;
        let (mut buffer, mut length) = ([0; 2048], 0);
        for _ in 0..2 {
            length = loop {
                socket.send(b"who am I\n").await?;
                // What is lost is sent again, as the kernel does it for TCP.
                if let Ok(length) = timeout(AGAIN, socket.recv(&mut buffer)).await {
                    break length?;
                }
            };
        }
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Asks and prints.
    #[expect(clippy::print_stdout, reason = "the answer is this command's output")]
    pub async fn run(self) -> Result<()> {
        if self.first_answer {
            println!("ready");
            println!("{}", self.first_answer_time().await?);
            return Ok(());
        }
        let answer = match self.protocol {
            Protocol::Tcp => self.ask_tcp().await,
            Protocol::Udp => self.ask_udp().await,
        };
        match answer {
            Ok(answer) => print!("{answer}"),
            Err(error) if error.kind() == ErrorKind::TimedOut => println!("silence"),
            Err(error) => match error.kind() {
                ErrorKind::ConnectionRefused
                | ErrorKind::ConnectionReset
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::UnexpectedEof => println!("refused"),
                _ => return Err(error).context("ask"),
            },
        }
        Ok(())
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = if self.to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = self.from {
            socket.set_reuseaddr(true)?;
            socket.bind(from)?;
        }
        let stream = socket.connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    #[expect(clippy::print_stdout, reason = "each answer is this command's output")]
    async fn ask_tcp(&self) -> std::io::Result<String> {
        let stream = timeout(PATIENCE, self.connect()).await??;
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        loop {
            let mut line = String::new();
            timeout(PATIENCE, async {
                writer.write_all(b"who am I\n").await?;
                reader.read_line(&mut line).await
            })
            .await??;
            if line.is_empty() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let Some(every) = self.every else {
                return Ok(line);
            };
            print!("{line}");
            tokio::time::sleep(Duration::from_millis(every)).await;
        }
    }

    #[expect(clippy::print_stdout, reason = "each answer is this command's output")]
    async fn ask_udp(&self) -> std::io::Result<String> {
        let socket = UdpSocket::bind(self.from.unwrap_or_else(|| SocketAddr::new(any_address(self.to), 0))).await?;
        socket.connect(self.to).await?;
        let mut buffer = [0; 2048];
        loop {
            let length = timeout(PATIENCE, async {
                socket.send(b"who am I\n").await?;
                socket.recv(&mut buffer).await
            })
            .await??;
            let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let Some(every) = self.every else {
                return Ok(line);
            };
            print!("{line}");
            tokio::time::sleep(Duration::from_millis(every)).await;
        }
    }

    /// Connection attempts follow each other every millisecond, because one that was dropped is repeated
    /// by the kernel only after a second.
    async fn first_answer_time(&self) -> Result<u128> {
        let (found, mut first) = tokio::sync::mpsc::channel(1);
        let mut ticks = interval(Duration::from_millis(1));
        let attempts = async {
            loop {
                ticks.tick().await;
                let (asker, found) = (self.clone(), found.clone());
                tokio::spawn(async move {
                    if let Ok(Ok(_)) = timeout(Duration::from_millis(100), asker.ask_tcp()).await {
                        let _ = found.try_send(unix_time());
                    }
                });
            }
        };
        tokio::select! {
            () = attempts => bail!("the attempts ended"),
            time = first.recv() => time.context("wait for the first answer"),
            () = tokio::time::sleep(Duration::from_secs(20)) => bail!("no answer within 20 s"),
        }
    }
}

/// The address that stands for all of this host's, of the family of `to`.
pub(super) fn any_address(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn unix_time() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

fn command(protocol: Protocol, to: SocketAddr) -> Result<Vec<String>> {
    Ok(vec![program::own()?.display().to_string(), "ask".to_owned(), protocol.to_string(), to.to_string()])
}

/// Asks once from `host`, waiting for at most 900 ms.
pub fn ask(host: &Host, protocol: Protocol, to: SocketAddr) -> Result<Answer> {
    run(host, &command(protocol, to)?)
}

/// Like [`ask`], from a chosen address and port.
pub fn ask_from(host: &Host, protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Result<Answer> {
    let mut command = command(protocol, to)?;
    command.push(format!("--from={from}"));
    run(host, &command)
}

fn run(host: &Host, command: &[String]) -> Result<Answer> {
    let line = host.check(command)?;
    Answer::parse(&line).with_context(|| format!("understand the answer {line:?}"))
}

/// A conversation that is kept going: one question every 20 ms in one connection.
#[derive(Debug)]
pub struct Held {
    process: Process,
}

/// Starts a conversation from `host` and waits for its first answer.
pub fn hold(host: &Host, protocol: Protocol, to: SocketAddr, from: Option<SocketAddr>) -> Result<Held> {
    let mut command = command(protocol, to)?;
    command.push("--every=20".to_owned());
    command.extend(from.map(|from| format!("--from={from}")));
    let mut process = host.spawn(&command)?;
    wait::until_true("the first answer of a conversation", Duration::from_secs(3), || {
        if process.ended()?.is_some() {
            bail!("the conversation with {to} did not begin: {}", process.output());
        }
        // A client that gives up says so on a line of its own before it ends: only an answer counts.
        Ok(process.output().lines().any(|line| matches!(Answer::parse(line), Some(Answer::Heard { .. }))))
    })?;
    Ok(Held { process })
}

impl Held {
    /// Whether answers still come (or 900 ms without one have not passed yet).
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// The number of answers so far.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.process.output().lines().count()
    }

    /// The last answer.
    pub fn last(&self) -> Option<Answer> {
        self.process.output().lines().rev().find_map(Answer::parse)
    }

    /// Waits until the conversation has ended for want of an answer.
    pub fn wait_until_cut(&mut self, limit: Duration) -> Result<Duration> {
        wait::until_true("the end of a conversation", limit, || Ok(!self.is_alive()?))
    }
}

/// A client that will know when the first answer came.
#[derive(Debug)]
pub struct Stopwatch {
    process: Process,
}

/// Starts asking from `host` every millisecond.
pub fn wait_for_first_answer(host: &Host, to: SocketAddr) -> Result<Stopwatch> {
    let mut command = command(Protocol::Tcp, to)?;
    command.push("--first-answer".to_owned());
    let mut process = host.spawn(&command)?;
    process.wait_for("ready", Duration::from_secs(5))?;
    Ok(Stopwatch { process })
}

impl Stopwatch {
    /// Time from `start` to the first answer.
    pub fn since(mut self, start: SystemTime) -> Result<Duration> {
        let status = self.process.wait(Duration::from_secs(25))?;
        let output = self.process.output();
        let line = output.lines().last().unwrap_or_default();
        if !status.success() {
            bail!("no first answer: {output}");
        }
        let nanoseconds: u64 = line.parse().context("read the time of the first answer")?;
        let answered = UNIX_EPOCH + Duration::from_nanos(nanoseconds);
        answered.duration_since(start).context("measure the time to the first answer")
    }
}
