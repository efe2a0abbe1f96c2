//! A packet of a forward as a chain of the host sees it, and whether a rule fits it.
//!
//! Of some properties only a part is known, or nothing. What a rule asks of those never counts as met for certain.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use sallyport_api::Protocol;

use crate::family::Family;
use crate::firewall::{State, Test, What};

/// TCP and UDP: what forwards carry.
const CARRIED: [u8; 2] = [6, 17];

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
pub(crate) struct Packet {
    pub(crate) family: Family,
    pub(crate) protocol: Option<u8>,
    pub(crate) sources: Option<Vec<RangeInclusive<IpAddr>>>,
    pub(crate) destinations: Option<Vec<RangeInclusive<IpAddr>>>,
    pub(crate) source_port: Option<RangeInclusive<u16>>,
    pub(crate) destination_port: Option<RangeInclusive<u16>>,
    pub(crate) inward: Option<Vec<String>>,
    pub(crate) outward: Option<Vec<String>>,
    pub(crate) states: Option<&'static [State]>,
    /// Bits of the connection mark that are known, and what is in them.
    pub(crate) mark: (u32, u32),
    pub(crate) reply: bool,
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
    Unknown,
}

impl From<bool> for Has {
    fn from(has: bool) -> Self {
        if has { Self::Yes } else { Self::No }
    }
}

impl Packet {
    /// Requests of `family` of which nothing else is known.
    pub(crate) fn of(family: Family) -> Self {
        Self {
            family,
            protocol: None,
            sources: None,
            destinations: None,
            source_port: None,
            destination_port: None,
            inward: None,
            outward: None,
            states: None,
            mark: (0, 0),
            reply: false,
        }
    }

    /// How many of these packets meet all `tests`.
    pub(crate) fn fits(&self, tests: &[Test]) -> Fit {
        tests.iter().map(|test| self.fits_one(test)).min().unwrap_or(Fit::All)
    }

    /// How many of them meet `test`.
    pub(crate) fn fits_one(&self, test: &Test) -> Fit {
        fit(self.has(&test.what), test.negated)
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
            What::In(listed) => interfaces(self.inward.as_deref(), listed),
            What::Out(listed) => interfaces(self.outward.as_deref(), listed),
            What::States(listed) => match self.states {
                Some(states) => listed.iter().any(|state| states.contains(state)).into(),
                None => Has::Unknown,
            },
            What::ConnectionMark { mask, value } => {
                let (known, holds) = self.mark;
                if (value ^ holds) & mask & known != 0 || value & !mask != 0 {
                    Has::No
                } else if mask & !known == 0 {
                    Has::Yes
                } else {
                    Has::Unknown
                }
            }
            What::Reply(reply) => (*reply == self.reply).into(),
            What::Unknown => Has::Unknown,
        }
    }

    fn addresses(&self, own: Option<&[RangeInclusive<IpAddr>]>, listed: &[RangeInclusive<IpAddr>]) -> Has {
        match own {
            Some(own) => overlap(own, listed),
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
        (Has::Unknown, true) => Fit::Unclear,
    }
}

/// How many packets to `own` ports go to `listed` ones, or with `negated` to others.
pub(crate) fn ports(own: &[RangeInclusive<u16>], listed: &[RangeInclusive<u16>], negated: bool) -> Fit {
    fit(overlap(own, listed), negated)
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

fn interfaces(own: Option<&[String]>, listed: &[String]) -> Has {
    let is = |name: &str, pattern: &String| match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    };
    let Some(own) = own else {
        // Whatever comes from or goes to another host does not pass here.
        return if listed.iter().all(|pattern| pattern == "lo") { Has::No } else { Has::Unknown };
    };
    let there = own.iter().filter(|name| listed.iter().any(|pattern| is(name, pattern))).count();
    match there {
        0 => Has::No,
        all if all == own.len() => Has::Yes,
        _ => Has::Partly,
    }
}
