//! A packet of a forward as a chain of the host sees it, and whether a rule fits it.
//!
//! Of some properties only a part is known, or nothing. What a rule asks of those never counts as met for certain.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;

use ipnet::IpNet;
use sallyport_api::Protocol;

use crate::family::Family;
use crate::firewall::{AddressType, MarkOf, State, Test, What};

/// TCP and UDP: what forwards carry.
const CARRIED: [u8; 2] = [TCP, 17];
const TCP: u8 = 6;
/// Bits of the TCP flags (`include/net/tcp.h`).
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// The protocol as iptables and nft write it.
pub(crate) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// The number of a protocol that forwards carry (`include/uapi/linux/in.h`).
pub(crate) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// What is known of some packets that look alike; `None` where nothing is.
#[derive(Clone, Debug)]
pub(crate) struct Packet<'a> {
    pub(crate) family: Family,
    pub(crate) protocol: Option<u8>,
    pub(crate) sources: Option<Rc<[RangeInclusive<IpAddr>]>>,
    pub(crate) destinations: Option<Rc<[RangeInclusive<IpAddr>]>>,
    /// Addresses of the gateway, one of which may stand for those that are not known.
    pub(crate) own: Option<Rc<[RangeInclusive<IpAddr>]>>,
    pub(crate) source_port: Option<RangeInclusive<u16>>,
    pub(crate) destination_port: Option<RangeInclusive<u16>>,
    pub(crate) inward: Side<'a>,
    pub(crate) outward: Side<'a>,
    pub(crate) states: Option<&'static [State]>,
    /// Whether connection tracking has seen it; before that it has no connection that could be asked for anything.
    pub(crate) tracked: bool,
    /// Bits of the connection mark that are known, and what is in them.
    pub(crate) mark: (u32, u32),
    /// The same of its own mark.
    pub(crate) own_mark: (u32, u32),
    pub(crate) source_type: Option<AddressType>,
    pub(crate) destination_type: Option<AddressType>,
    /// Whether it is the first of a connection, so that of the TCP flags it has `SYN` alone.
    pub(crate) first: Option<bool>,
    pub(crate) reply: bool,
    /// How the first packet of its connection came, before any translation.
    pub(crate) original: Original,
}

/// The first packet of a connection, before any translation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Original {
    pub(crate) sources: Option<Rc<[RangeInclusive<IpAddr>]>>,
    pub(crate) destinations: Option<Rc<[RangeInclusive<IpAddr>]>>,
    pub(crate) port: Option<RangeInclusive<u16>>,
}

/// The interface on one side of the gateway.
#[derive(Clone, Copy)]
pub(crate) enum Side<'a> {
    /// Nobody knows.
    Unknown,
    /// What the host sends to itself.
    Loopback,
    /// The one behind which the network is, as far as the host's routes tell. They are asked only where a rule asks.
    Towards(IpNet, &'a dyn Fn(IpNet) -> Option<String>),
}

impl fmt::Debug for Side<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("Unknown"),
            Self::Loopback => f.write_str("Loopback"),
            Self::Towards(net, _) => write!(f, "Towards({net})"),
        }
    }
}

/// How many of the packets a rule fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    /// None.
    None,
    /// Those that it names, which may be some of these or none: a bridge, a blocklist, a rate.
    Some,
    /// Nobody can tell: perhaps all of them.
    Unclear,
    /// Every one.
    All,
}

/// Whether packets have a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Has {
    No,
    Yes,
    /// A part of them has it.
    Partly,
    /// All of them, or none.
    Perhaps,
    Unknown,
}

impl From<bool> for Has {
    fn from(has: bool) -> Self {
        if has { Self::Yes } else { Self::No }
    }
}

impl Packet<'_> {
    /// Requests of `family` of which nothing else is known.
    pub(crate) fn of(family: Family) -> Self {
        Self {
            family,
            protocol: None,
            sources: None,
            destinations: None,
            own: None,
            source_port: None,
            destination_port: None,
            inward: Side::Unknown,
            outward: Side::Unknown,
            states: None,
            tracked: true,
            mark: (0, 0),
            own_mark: (0, 0),
            source_type: None,
            destination_type: None,
            first: None,
            reply: false,
            original: Original::default(),
        }
    }

    /// How many of these packets meet all `tests`.
    pub(crate) fn fits(&self, tests: &[Test]) -> Fit {
        let mut least = Fit::All;
        for test in tests {
            least = least.min(self.fits_one(test));
            // Whatever else it asks: the interfaces, for which the host would have to be asked, stand last.
            if least == Fit::None {
                break;
            }
        }
        least
    }

    /// How many of them meet `test`.
    pub(crate) fn fits_one(&self, test: &Test) -> Fit {
        // Without a connection there is nothing that could be so or not so.
        let of_connection = matches!(
            test.what,
            What::ConnectionMark { .. }
                | What::Reply(_)
                | What::OriginalSources(_)
                | What::OriginalDestinations(_)
                | What::OriginalDestinationPorts(_)
        );
        if !self.tracked && of_connection {
            return Fit::None;
        }
        fit(self.has(&test.what), test.negated)
    }

    /// The mark `of`: the bits that are known, and what is in them.
    pub(super) fn mark_of(&mut self, of: MarkOf) -> &mut (u32, u32) {
        match of {
            MarkOf::Connection => &mut self.mark,
            MarkOf::Packet => &mut self.own_mark,
        }
    }

    fn has(&self, what: &What) -> Has {
        match what {
            What::Family(family) => (*family == self.family).into(),
            What::Protocols(listed) => match self.protocol {
                Some(protocol) => listed.contains(&protocol).into(),
                None if CARRIED.iter().all(|carried| listed.contains(carried)) => Has::Yes,
                None if CARRIED.iter().any(|carried| listed.contains(carried)) => Has::Partly,
                None => Has::No,
            },
            What::Sources(listed) => self.addresses(self.sources.as_deref(), listed),
            What::Destinations(listed) => self.addresses(self.destinations.as_deref(), listed),
            What::SourcePorts(listed) => one_port(self.source_port.as_ref(), listed),
            What::DestinationPorts(listed) => one_port(self.destination_port.as_ref(), listed),
            What::Ports(listed) => {
                let [from, to] =
                    [&self.source_port, &self.destination_port].map(|port| one_port(port.as_ref(), listed));
                // A source port that is not known is hardly ever one that is named.
                if to == Has::No { from } else { to }
            }
            What::OriginalSources(listed) => some(self.original.sources.as_deref(), listed),
            What::OriginalDestinations(listed) => some(self.original.destinations.as_deref(), listed),
            What::OriginalDestinationPorts(listed) => one_port(self.original.port.as_ref(), listed),
            What::In(listed) => self.inward.is_one_of(listed),
            What::Out(listed) => self.outward.is_one_of(listed),
            What::States(listed) => match self.states {
                Some(states) => listed.iter().any(|state| states.contains(state)).into(),
                None => Has::Unknown,
            },
            What::ConnectionMark { mask, value } => bits(self.mark, *mask, *value),
            What::PacketMark { mask, value } => bits(self.own_mark, *mask, *value),
            What::SourceTypes(listed) => self.source_type.map_or(Has::Unknown, |own| listed.contains(&own).into()),
            What::DestinationTypes(listed) => {
                self.destination_type.map_or(Has::Unknown, |own| listed.contains(&own).into())
            }
            What::TcpFlags { mask, value } => self.tcp_flags(*mask, *value),
            What::Reply(reply) => (*reply == self.reply).into(),
            What::Unknown => Has::Unknown,
        }
    }

    fn tcp_flags(&self, mask: u8, value: u8) -> Has {
        match self.protocol {
            Some(protocol) if protocol != TCP => Has::No,
            Some(_) => match self.first {
                // One that opens a connection; it may ask for notification of congestion, too.
                Some(true) if mask & 0xc0 == 0 => (SYN & mask == value).into(),
                // All that come after it acknowledge something, but for a reset.
                Some(false) if mask & ACK != 0 && value & (ACK | RST) == 0 => Has::No,
                Some(false) if !self.reply && mask & value & SYN != 0 => Has::No,
                _ => Has::Partly,
            },
            None => Has::Partly,
        }
    }

    fn addresses(&self, known: Option<&[RangeInclusive<IpAddr>]>, listed: &[RangeInclusive<IpAddr>]) -> Has {
        match known {
            Some(known) => overlap(known, listed),
            None if self.own.as_ref().is_some_and(|own| overlap(own, listed) != Has::No) => Has::Perhaps,
            None if listed.iter().any(|range| Family::of(*range.start()) == self.family) => Has::Unknown,
            None => Has::No,
        }
    }
}

/// How many packets meet a test of what they have.
fn fit(has: Has, negated: bool) -> Fit {
    match (has, negated) {
        (Has::Yes, false) | (Has::No, true) => Fit::All,
        (Has::No, false) | (Has::Yes, true) => Fit::None,
        (Has::Partly, _) | (Has::Unknown, false) => Fit::Some,
        // All but what it names: that may well be these.
        (Has::Unknown, true) | (Has::Perhaps, _) => Fit::Unclear,
    }
}

/// How many packets to `own` ports go to `listed` ones, or with `negated` to others.
pub(crate) fn ports(own: &[RangeInclusive<u16>], listed: &[RangeInclusive<u16>], negated: bool) -> Fit {
    fit(overlap(own, listed), negated)
}

fn some(own: Option<&[RangeInclusive<IpAddr>]>, listed: &[RangeInclusive<IpAddr>]) -> Has {
    own.map_or(Has::Unknown, |own| overlap(own, listed))
}

fn one_port(own: Option<&RangeInclusive<u16>>, listed: &[RangeInclusive<u16>]) -> Has {
    own.map_or(Has::Unknown, |own| overlap(std::slice::from_ref(own), listed))
}

/// How much of `own` is in `listed`.
fn overlap<T: PartialOrd>(own: &[RangeInclusive<T>], listed: &[RangeInclusive<T>]) -> Has {
    let inside =
        |one: &RangeInclusive<T>| listed.iter().any(|range| range.contains(one.start()) && range.contains(one.end()));
    let touches =
        |one: &RangeInclusive<T>| listed.iter().any(|range| range.start() <= one.end() && one.start() <= range.end());
    if own.iter().all(inside) {
        Has::Yes
    } else if own.iter().any(touches) {
        Has::Partly
    } else {
        Has::No
    }
}

/// Whether `mask` of the mark `(known, holds)` is `value`.
fn bits((known, holds): (u32, u32), mask: u32, value: u32) -> Has {
    if (value ^ holds) & mask & known != 0 || value & !mask != 0 {
        Has::No
    } else if mask & !known == 0 {
        Has::Yes
    } else {
        Has::Unknown
    }
}

impl Side<'_> {
    fn is_one_of(&self, listed: &[String]) -> Has {
        let is = |name: &str, pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == pattern,
        };
        let name = match self {
            Self::Loopback => Some("lo".to_owned()),
            Self::Unknown => None,
            // Whatever comes from or goes to another host does not pass there.
            Self::Towards(..) if listed.iter().all(|pattern| pattern == "lo") => None,
            Self::Towards(net, ask) => ask(*net),
        };
        match name {
            Some(name) => listed.iter().any(|pattern| is(&name, pattern)).into(),
            None if listed.iter().all(|pattern| pattern == "lo") => Has::No,
            None => Has::Unknown,
        }
    }
}
