//! A segment of a connection that connection tracking cannot place, as one that was sent again and comes late.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use clap::Args;
use socket2::{Domain, Socket, Type};

use crate::lab::Host;
use crate::program;

/// Sequence numbers so far apart that at most one of them is in any connection's window.
const SEQUENCES: [u32; 4] = [0, 1 << 30, 2 << 30, 3 << 30];
const TCP: u8 = 6;

/// Send segments of a TCP connection that are out of its window.
#[derive(Args, Clone, Debug)]
pub struct Late {
    /// The connection's end here.
    #[arg(long)]
    from: SocketAddr,
    /// Its other end.
    #[arg(long)]
    to: SocketAddr,
}

impl Late {
    /// Sends them.
    pub fn run(self) -> Result<()> {
        let socket = Socket::new(Domain::for_address(self.to), Type::RAW, Some(i32::from(TCP).into()))?;
        socket.bind(&SocketAddr::new(self.from.ip(), 0).into()).context("bind")?;
        for sequence in SEQUENCES {
            socket.send_to(&self.segment(sequence), &SocketAddr::new(self.to.ip(), 0).into()).context("send")?;
        }
        Ok(())
    }

    fn segment(&self, sequence: u32) -> Vec<u8> {
        // Five words of header, with the flags PSH and ACK, a window of 500 and a checksum of zero.
        let (ports, data) = ([self.from.port(), self.to.port()].map(u16::to_be_bytes).concat(), b"late");
        let rest = [5 << 4, 0x18, 1, 0xf4, 0, 0, 0, 0];
        let mut segment = [&ports[..], &sequence.to_be_bytes(), &1_u32.to_be_bytes(), &rest, data].concat();
        let length = u32::try_from(segment.len()).unwrap_or_default().to_be_bytes();
        let pseudo = [&octets(self.from.ip())[..], &octets(self.to.ip()), &length, &[0, 0, 0, TCP], &segment].concat();
        segment[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        segment
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The checksum of the Internet (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default());
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// Has `host` send segments of its connection between `from` and `to` that are out of that one's window.
pub fn send_late(host: &Host, from: SocketAddr, to: SocketAddr) -> Result<()> {
    host.check(&[
        program::own()?.display().to_string(),
        "late".to_owned(),
        format!("--from={from}"),
        format!("--to={to}"),
    ])
    .map(drop)
}
