//! What the kernel would do with packets of others: the answers to `sallyport_ruleset::routing`, each asked for once.
//!
//! A lookup with an incoming interface (`RTM_GETROUTE` with `RTA_IIF`) goes the whole way of a packet of IPv4 that came in by
//! it: whether that interface forwards, and `rp_filter`, too. For IPv6 it is the route alone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::routing::{Answer, Question};

use crate::netlink::{Error, Socket};
use crate::route::routes::interface_names;

/// The answers so far.
#[derive(Debug, Default)]
pub struct Lookups {
    known: BTreeMap<Question, Answer>,
    kernel: RefCell<Option<Kernel>>,
}

#[derive(Debug)]
struct Kernel {
    socket: Socket,
    names: BTreeMap<u32, String>,
}

impl Lookups {
    /// Asks, unless the answer is known.
    pub fn ask(&mut self, question: Question) -> Answer {
        if let Some(known) = self.known.get(&question) {
            return known.clone();
        }
        let answer = self.look(&question).unwrap_or(Answer::Unclear);
        self.known.insert(question, answer.clone());
        answer
    }

    fn look(&self, question: &Question) -> Result<Answer, Error> {
        let mut kernel = self.kernel.borrow_mut();
        let kernel = match kernel.as_mut() {
            Some(kernel) => kernel,
            None => kernel.insert(Kernel::open()?),
        };
        match question {
            Question::Sends { from, to } => kernel.sends(*from, *to),
            Question::Forwards { by, from, to } => kernel.forwards(by, *from, *to),
            Question::ByMark(family) => kernel.routes_by_mark(*family),
        }
    }
}

impl Kernel {
    fn open() -> Result<Self, Error> {
        let socket = Socket::open(NETLINK_ROUTE)?;
        let names = interface_names(&socket)?;
        Ok(Self { socket, names })
    }

    fn sends(&self, from: Option<IpAddr>, to: IpAddr) -> Result<Answer, Error> {
        let source = from.map(|from| RouteAttribute::Source(from.into()));
        match self.route(to, source) {
            Err(Error::Refused { source, .. }) if is_no_route(&source) => Ok(Answer::NoRoute),
            other => other,
        }
    }

    fn forwards(&self, by: &str, from: IpAddr, to: IpAddr) -> Result<Answer, Error> {
        let Some((index, _)) = self.names.iter().find(|(_, name)| *name == by) else { return Ok(Answer::Unclear) };
        match self.route(to, [RouteAttribute::Source(from.into()), RouteAttribute::Iif(*index)]) {
            Err(Error::Refused { .. }) if from.is_ipv6() => Ok(Answer::Unclear),
            // Which errno it is depends on the kernel's version; the settings say what it can be.
            Err(Error::Refused { .. }) if setting(by, "forwarding") == Some(0) => Ok(Answer::NotForwarding),
            Err(Error::Refused { source, .. }) if is_no_route(&source) => Ok(Answer::NoRoute),
            Err(Error::Refused { .. }) if setting(by, "rp_filter").max(setting("all", "rp_filter")) >= Some(1) => {
                Ok(Answer::Filtered)
            }
            other => other,
        }
    }

    fn route(&self, to: IpAddr, more: impl IntoIterator<Item = RouteAttribute>) -> Result<Answer, Error> {
        let mut message = RouteMessage::default();
        let bits = Family::of(to).bits();
        message.header.address_family = address_family(Family::of(to));
        message.header.destination_prefix_length = bits;
        message.attributes.push(RouteAttribute::Destination(to.into()));
        for attribute in more {
            if matches!(attribute, RouteAttribute::Source(_)) {
                message.header.source_prefix_length = bits;
            }
            message.attributes.push(attribute);
        }
        let mut leaves = None;
        self.socket.ask("look up a route", RouteNetlinkMessage::GetRoute(message), 0, |answer| {
            if let RouteNetlinkMessage::NewRoute(route) = answer {
                leaves = route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
            }
            Ok(())
        })?;
        let name = leaves.and_then(|index| self.names.get(&index).cloned());
        Ok(name.map_or(Answer::Unclear, Answer::By))
    }

    fn routes_by_mark(&self, family: Family) -> Result<Answer, Error> {
        let mut message = RuleMessage::default();
        message.header.family = address_family(family);
        let mut marked = Answer::NoRoute;
        self.socket.ask("list the routing rules", RouteNetlinkMessage::GetRule(message), NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewRule(rule) = answer
                && rule
                    .attributes
                    .iter()
                    .any(|attribute| matches!(attribute, RuleAttribute::FwMark(mark) if *mark != 0))
            {
                marked = Answer::Unclear;
            }
            Ok(())
        })?;
        Ok(marked)
    }
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// Whether an unreachable or prohibiting route, or none at all, makes the kernel refuse.
fn is_no_route(refusal: &std::io::Error) -> bool {
    matches!(refusal.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::PermissionDenied)
}

/// A number of IPv4 that an interface has been set to.
fn setting(interface: &str, name: &str) -> Option<u8> {
    // A name with a dot is a file all the same; one with a slash cannot be.
    let path = Path::new("/proc/sys/net/ipv4/conf").join(interface).join(name);
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
