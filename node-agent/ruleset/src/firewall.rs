//! Other people's firewalls on this host as values: their base chains, and of each rule as much as decides whether a
//! packet of ours passes.
//!
//! ```text
//! iptables-save, nft --json ─► xtables, nft (known: what each word does) ─► HostFirewall
//!     ─► screen: of it, in the kernel's order, what could meet any packet of a forward ─┐
//! ForwardingTable ─► path: a client's packets, leg by leg; stranger: of who is not listed ┴► walk ─► assess ─► remedy
//!                   holds: of anybody, while the forward is not there yet ─► walk ─► remedy
//! ```
//! A kernel asks every base chain of a hook, so an accept of ours in one does not undo a drop in another. Reading them from
//! the host is the engine's. Our own chains are not read here: what they do is known from the forwarding table.

mod assess;
mod holds;
mod known;
mod leg;
pub mod nft;
pub(crate) mod packet;
mod path;
pub(crate) mod place;
mod ranges;
mod remedy;
mod rules;
mod screen;
mod stranger;
mod walk;
mod words;
pub mod xtables;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

pub use self::assess::{Assessment, Paths, assess};
pub use self::holds::Holds;
pub use self::remedy::Conflict;
use crate::family::Family;

/// Everything on a host that may decide about packets of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFirewall {
    /// Tables of nftables and of both variants of iptables.
    pub tables: Vec<FirewallTable>,
    /// What could not be read, for people.
    pub unread: Vec<String>,
}

impl HostFirewall {
    /// Whether somebody else's rules are in both variants of iptables.
    #[must_use]
    pub fn is_mixed(&self) -> bool {
        let used = |own: bool| {
            self.tables
                .iter()
                .any(|table| matches!(table.holder, Holder::Iptables { own: of, .. } if of == own) && table.used)
        };
        used(true) && used(false)
    }
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallTable {
    /// Which programs show and change it.
    pub holder: Holder,
    /// Its name.
    pub name: String,
    /// Whose packets pass through it.
    pub families: Vec<Family>,
    /// The chains that the kernel calls by itself, those that packets of ours may pass.
    pub base: Vec<BaseChain>,
    /// The rules of all chains.
    pub chains: BTreeMap<String, Vec<FirewallRule>>,
    /// Whether somebody else has a rule here.
    pub used: bool,
}

impl FirewallTable {
    /// Whether our own rules are in it.
    fn holds_ours(&self) -> bool {
        matches!(self.holder, Holder::Iptables { own: true, .. }) && matches!(self.name.as_str(), "filter" | "nat")
    }
}

/// Which programs show and change a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// `nft`.
    Nftables,
    /// A variant of iptables.
    Iptables {
        /// Its program for the table's address family.
        program: &'static str,
        /// Whether it is the variant that holds our rules.
        own: bool,
    },
}

/// A chain that the kernel calls by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// Its name.
    pub name: String,
    /// Where it is called.
    pub hook: Hook,
    /// Smaller numbers are called earlier.
    pub priority: i32,
    /// Whether it drops what no rule of it decided about.
    pub drops: bool,
    /// Whether it translates addresses: it sees the first packet of each connection alone.
    pub translates: bool,
}

/// Where on a forwarded packet's way a chain is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// As it comes off one interface, before anything else has seen it.
    Ingress,
    /// As it comes in.
    Prerouting,
    /// Once it is known that it goes on to another host.
    Forward,
    /// As it leaves.
    Postrouting,
}

impl Hook {
    /// Its name in nftables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Forward => "forward",
            Self::Postrouting => "postrouting",
        }
    }

    /// The one of that name, in nftables or iptables.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ingress, Self::Prerouting, Self::Forward, Self::Postrouting]
            .into_iter()
            .find(|hook| hook.name().eq_ignore_ascii_case(name))
    }

    /// Whether it is not known yet where a packet goes.
    fn is_incoming(self) -> bool {
        matches!(self, Self::Ingress | Self::Prerouting)
    }
}

/// A rule: what it asks of a packet, and what it does with one that meets all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirewallRule {
    /// All must hold.
    pub tests: Vec<Test>,
    /// Then these happen,
    pub effects: Vec<Effect>,
    /// and then this.
    pub verdict: Verdict,
    /// What people see of it: in iptables all behind `-A CHAIN`, in nftables its handle.
    pub text: String,
}

/// A property that a rule asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// The property.
    pub what: What,
    /// Whether it must be absent.
    pub negated: bool,
}

/// The properties of packets that are understood here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Address family.
    Family(Family),
    /// One of these IP protocols.
    Protocols(Vec<u8>),
    /// From one of these addresses.
    Sources(Vec<RangeInclusive<IpAddr>>),
    /// To one of these addresses.
    Destinations(Vec<RangeInclusive<IpAddr>>),
    /// From one of these ports.
    SourcePorts(Vec<RangeInclusive<u16>>),
    /// To one of these ports.
    DestinationPorts(Vec<RangeInclusive<u16>>),
    /// From or to one of these ports.
    Ports(Vec<RangeInclusive<u16>>),
    /// Of a connection whose first packet came from one of these addresses.
    OriginalSources(Vec<RangeInclusive<IpAddr>>),
    /// Of one whose first packet was sent to one of these addresses, before any translation.
    OriginalDestinations(Vec<RangeInclusive<IpAddr>>),
    /// Of one whose first packet was sent to one of these ports, before any translation.
    OriginalDestinationPorts(Vec<RangeInclusive<u16>>),
    /// In through one of these interfaces; a name that ends with `*` stands for all that begin so.
    In(Vec<String>),
    /// Out through one of these interfaces.
    Out(Vec<String>),
    /// In one of these states of connection tracking.
    States(Vec<State>),
    /// With this value in these bits of the connection mark.
    ConnectionMark {
        /// The bits.
        mask: u32,
        /// The value.
        value: u32,
    },
    /// With this value in these bits of its own mark.
    PacketMark {
        /// The bits.
        mask: u32,
        /// The value.
        value: u32,
    },
    /// From an address of one of these types (`ip route` calls them so).
    SourceTypes(Vec<AddressType>),
    /// To an address of one of these types.
    DestinationTypes(Vec<AddressType>),
    /// With this value in these bits of the TCP flags.
    TcpFlags {
        /// The bits.
        mask: u8,
        /// The value.
        value: u8,
    },
    /// Whether it is an answer.
    Reply(bool),
    /// Something else: nobody can tell from here.
    Unknown,
}

/// Types of addresses, as far as it matters which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressType {
    /// Of this host.
    Local,
    /// Of another one.
    Unicast,
    /// Any other.
    Other,
}

/// States of connection tracking, as far as it matters which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The first packet of a connection.
    New,
    /// A later one.
    Established,
    /// An error about a connection.
    Related,
    /// Its destination was translated.
    Dnat,
    /// Its source was translated.
    Snat,
    /// Of no connection, or not looked at yet.
    Invalid,
    /// Any other.
    Other,
}

/// How a rule ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The packet passes this base chain.
    Accept,
    /// It is dropped or rejected.
    Drop,
    /// Another chain, then back.
    Jump(String),
    /// Another chain, and not back.
    Goto(String),
    /// Back to where this chain was jumped to from; in a base chain its policy.
    Return,
    /// Its destination becomes another; what translates asks nobody else.
    Destination(To),
    /// Its source becomes another.
    Source,
    /// Somebody else decides, such as a program in user space.
    Elsewhere,
    /// Nothing.
    #[default]
    Continue,
}

/// Where a translation sends packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// To a program on this host.
    Host,
    /// To one of these addresses, if any are named, and one of these ports, if any are.
    Addresses {
        /// The addresses.
        ips: Option<RangeInclusive<IpAddr>>,
        /// The ports.
        ports: Option<RangeInclusive<u16>>,
    },
    /// Nobody can tell from here.
    Unknown,
}

/// What a rule does to a packet that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A mark becomes `(connection mark & of_connection) ^ (packet mark & of_packet) ^ flip`.
    Mark {
        /// Which mark it is.
        of: MarkOf,
        /// The bits that come from the connection mark.
        of_connection: u32,
        /// The bits that come from the packet mark.
        of_packet: u32,
        /// The bits that are turned over then.
        flip: u32,
    },
    /// A mark becomes something that nobody can tell from here.
    AnyMark(MarkOf),
    /// Connection tracking leaves it alone, and so does whatever translates.
    Untrack,
    /// What is not known here.
    Untold,
}

/// The two marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkOf {
    /// That of the connection, which stays.
    Connection,
    /// That of the packet, which goes with it.
    Packet,
}

/// From the first to the last address of `net`.
fn range_of(net: IpNet) -> RangeInclusive<IpAddr> {
    net.network()..=net.broadcast()
}

/// The number of an IP protocol as firewalls name it.
fn protocol_number(name: &str) -> Option<u8> {
    Some(match name {
        "icmp" => 1,
        "igmp" => 2,
        "tcp" => 6,
        "udp" => 17,
        "dccp" => 33,
        "gre" => 47,
        "esp" => 50,
        "ah" => 51,
        "icmpv6" | "ipv6-icmp" => 58,
        "ospf" => 89,
        "vrrp" => 112,
        "sctp" => 132,
        "udplite" => 136,
        number => number.parse().ok()?,
    })
}

/// The bit of a TCP flag, as iptables or nft names it (`include/net/tcp.h`).
fn tcp_flag(name: &str) -> Option<u8> {
    Some(match name.to_ascii_lowercase().as_str() {
        "none" => 0,
        "fin" => 1,
        "syn" => 2,
        "rst" => 4,
        "psh" => 8,
        "ack" => 16,
        "urg" => 32,
        "ecn" => 64,
        "cwr" => 128,
        "all" => 0x3f,
        _ => return None,
    })
}
