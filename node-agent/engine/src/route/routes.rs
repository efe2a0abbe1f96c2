//! How this host reaches others, as its own kernel says.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use sallyport_ruleset::facts::LocalAddress;
use sallyport_ruleset::family::Family;

use crate::netlink::{self, Error, Socket};

/// How the kernel reaches a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Index of the outgoing interface.
    pub interface: u32,
    /// The next hop, if it is not the host itself.
    pub gateway: Option<IpAddr>,
    /// Source address of packets of this host's own.
    pub source: Option<IpAddr>,
}

/// Asks the kernel behind `socket` for the way to `target`; `None` if there is none.
pub fn look_up(socket: &Socket, target: IpAddr) -> Result<Option<Route>, Error> {
    let mut route = None;
    let outcome = socket.ask("look up a route", question(target), 0, |answer| {
        if let RouteNetlinkMessage::NewRoute(message) = answer {
            route = Some(read(&message));
        }
        Ok(())
    });
    match outcome {
        Ok(()) => Ok(route),
        Err(Error::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn question(target: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match target {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = Family::of(target).bits();
    message.attributes.push(RouteAttribute::Destination(target.into()));
    RouteNetlinkMessage::GetRoute(message)
}

fn read(message: &RouteMessage) -> Route {
    let mut route = Route::default();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.interface = *index,
            RouteAttribute::Gateway(address) => route.gateway = plain(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::PrefSource(address) => route.source = plain(address),
            _ => {}
        }
    }
    route
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// Names of the interfaces through which networks are reached; each is asked for once, and nothing before it is needed.
pub struct Interfaces<'a> {
    local: &'a [LocalAddress],
    known: RefCell<BTreeMap<IpNet, Option<String>>>,
    names: RefCell<Option<BTreeMap<u32, String>>>,
    /// Unless the last question failed.
    socket: RefCell<Option<Socket>>,
}

impl<'a> Interfaces<'a> {
    /// Of the host with the addresses `local`.
    #[must_use]
    pub fn of(local: &'a [LocalAddress]) -> Self {
        Self { local, known: RefCell::default(), names: RefCell::default(), socket: RefCell::default() }
    }

    /// The interface through which all hosts of `net` are reached, if that can be told: of a network that is not right
    /// here, parts may be reached in other ways.
    pub fn towards(&self, net: IpNet) -> Option<String> {
        self.known.borrow_mut().entry(net).or_insert_with(|| self.look(net).ok().flatten()).clone()
    }

    fn look(&self, net: IpNet) -> Result<Option<String>, Error> {
        let whole = net.prefix_len() == net.max_prefix_len();
        if !whole && !self.local.iter().any(|own| own.network().contains(&net)) {
            return Ok(None);
        }
        let Some(host) = net.hosts().next() else { return Ok(None) };
        let socket = self.socket.take().map_or_else(|| Socket::open(NETLINK_ROUTE), Ok)?;
        let route = look_up(&socket, host)?;
        let mut names = self.names.borrow_mut();
        let names = match names.as_mut() {
            Some(names) => names,
            None => names.insert(interface_names(&socket)?),
        };
        self.socket.replace(Some(socket));
        Ok(route.and_then(|route| names.get(&route.interface).cloned()))
    }
}

pub(super) fn interface_names(socket: &Socket) -> Result<BTreeMap<u32, String>, Error> {
    netlink::whole(|| {
        let mut names = BTreeMap::new();
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        socket.ask("list the interfaces", request, NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                let name = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name.clone()),
                    _ => None,
                });
                names.extend(name.map(|name| (link.header.index, name)));
            }
            Ok(())
        })?;
        Ok(names)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn an_interface_is_told_only_where_all_of_a_network_is_behind_it() {
        let local = [LocalAddress { ip: "127.0.0.1".parse().unwrap(), prefix_len: 8, global: false }];
        let interfaces = Interfaces::of(&local);
        for (network, name) in [("127.0.0.1/32", Some("lo")), ("127.5.0.0/16", Some("lo")), ("0.0.0.0/0", None)] {
            assert_eq!(interfaces.towards(net(network)).as_deref(), name, "{network}");
        }
    }
}
