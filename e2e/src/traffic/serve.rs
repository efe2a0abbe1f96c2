//! The echo server: to every line (TCP) or datagram (UDP) it answers its own name, the peer it sees, and the
//! port that the peer has reached.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::Protocol;
use crate::lab::{Host, Process};
use crate::program;

/// Answer every line or datagram with this server's name, the peer it sees and the port it was reached on.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// The name to answer with.
    #[arg(long)]
    name: String,
    /// A TCP address and port to listen on; may be repeated.
    #[arg(long)]
    tcp: Vec<SocketAddr>,
    /// A UDP address and port to listen on; may be repeated.
    #[arg(long)]
    udp: Vec<SocketAddr>,
}

impl Serve {
    /// Serves until the process is ended.
    pub async fn run(self) -> Result<()> {
        for address in self.tcp {
            let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
            tokio::spawn(accept(listener, self.name.clone(), address.port()));
        }
        for address in self.udp {
            let socket = UdpSocket::bind(address).await.with_context(|| format!("listen on {address}"))?;
            tokio::spawn(answer_datagrams(socket, self.name.clone(), address.port()));
        }
        #[expect(clippy::print_stdout, reason = "tells whoever started it that it listens")]
        {
            println!("ready");
        }
        std::future::pending().await
    }
}

async fn accept(listener: TcpListener, name: String, port: u16) {
    loop {
        if let Ok((stream, peer)) = listener.accept().await {
            tokio::spawn(answer_lines(stream, format!("{name} {peer} {port}\n")));
        }
    }
}

/// The client ends the connection; an error here is the end of one client only.
async fn answer_lines(stream: TcpStream, answer: String) {
    let _ = stream.set_nodelay(true);
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    while matches!(reader.read_line(&mut line).await, Ok(1..)) {
        line.clear();
        if writer.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn answer_datagrams(socket: UdpSocket, name: String, port: u16) {
    let mut buffer = [0; 2048];
    loop {
        if let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(format!("{name} {peer} {port}\n").as_bytes(), peer).await;
        }
    }
}

/// Starts a server on `host` that answers with the host's name, and waits until it listens.
pub fn serve(host: &Host, listeners: &[(Protocol, SocketAddr)]) -> Result<Process> {
    let mut command =
        vec![program::own()?.display().to_string(), "serve".to_owned(), format!("--name={}", host.name())];
    for (protocol, address) in listeners {
        command.push(format!("--{protocol}={address}"));
    }
    let mut process = host.spawn(&command)?;
    process.wait_for("ready", Duration::from_secs(5))?;
    Ok(process)
}
