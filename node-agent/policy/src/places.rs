//! Where a forward listens: what of that an edit adds, and what of the edited forward was there before.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sallyport_api::Protocol;
use sallyport_api::intent::{Intent, IntentPort};
use serde::{Deserialize, Serialize};

use crate::family::Family;

/// Ports on addresses: each of the ports on each of the addresses. Nowhere by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// An unspecified one stands for every listen address of its family, as it does for a socket.
    addresses: BTreeSet<IpAddr>,
    /// First and last ports, which neither overlap nor touch.
    ports: BTreeSet<(Protocol, u16, u16)>,
}

fn every(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn has_targets(intent: &Intent, family: Family) -> bool {
    intent.targets.iter().any(|target| Family::of(target.ip) == family)
}

impl Places {
    /// Those of `intent`.
    #[must_use]
    pub fn of(intent: &Intent) -> Self {
        let mut places = Self::default();
        places.add(intent);
        places
    }

    /// Those of `intent` as well.
    pub fn add(&mut self, intent: &Intent) {
        if intent.addresses.is_empty() {
            self.addresses.extend(Family::BOTH.into_iter().filter(|family| has_targets(intent, *family)).map(every));
        } else {
            self.addresses.extend(intent.addresses.iter().filter(|ip| has_targets(intent, Family::of(**ip))));
        }
        for port in &intent.ports {
            let (mut first, mut last) = (port.port, port.end_port);
            self.ports.retain(|(protocol, from, to)| {
                let touches =
                    *protocol == port.protocol && *from <= last.saturating_add(1) && first <= to.saturating_add(1);
                if touches {
                    (first, last) = (first.min(*from), last.max(*to));
                }
                !touches
            });
            self.ports.insert((port.protocol, first, last));
        }
    }

    /// Whether they are nowhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() || self.ports.is_empty()
    }

    /// Whether all places of `intent` are among these.
    #[must_use]
    pub fn hold(&self, intent: &Intent) -> bool {
        let wanted = Self::of(intent);
        if wanted.addresses.is_empty() {
            return true;
        }
        wanted.addresses.iter().all(|ip| self.is_on(*ip))
            && wanted.ports.iter().all(|(protocol, first, last)| {
                self.ports.iter().any(|(of, from, to)| of == protocol && from <= first && last <= to)
            })
    }

    /// The parts of `port` that are not among these on the address `listen`.
    #[must_use]
    pub fn lacking(&self, listen: IpAddr, port: IntentPort) -> Vec<IntentPort> {
        if !self.is_on(listen) {
            return vec![port];
        }
        let mut parts = Vec::new();
        let mut next = u32::from(port.port);
        for there in self.shared(port) {
            parts.extend(part(port, next, u32::from(there.port).saturating_sub(1)));
            next = u32::from(there.end_port) + 1;
        }
        parts.extend(part(port, next, port.end_port.into()));
        parts
    }

    /// `intent` at these places alone; `None` if it has none of them.
    #[must_use]
    pub fn cut(&self, intent: &Intent) -> Option<Intent> {
        let mut cut = intent.clone();
        cut.ports = intent.ports.iter().flat_map(|port| self.shared(*port)).collect();
        if intent.addresses.is_empty() {
            let whole = |family: Family| self.addresses.contains(&every(family));
            if Family::BOTH.into_iter().any(|family| has_targets(intent, family) && whole(family)) {
                // There is no way to say: all of this family, and some of that.
                cut.targets.retain(|target| whole(Family::of(target.ip)));
            } else {
                let named = self.addresses.iter().filter(|ip| has_targets(intent, Family::of(**ip)));
                cut.addresses = named.copied().filter(|ip| !ip.is_unspecified()).collect();
                if cut.addresses.is_empty() {
                    return None;
                }
            }
        } else {
            cut.addresses.retain(|ip| self.is_on(*ip));
            if cut.addresses.is_empty() {
                return None;
            }
        }
        (!cut.ports.is_empty()).then_some(cut)
    }

    fn is_on(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip) || self.addresses.contains(&every(Family::of(ip)))
    }

    /// The parts of `port` that are among these on some address, in order.
    fn shared(&self, port: IntentPort) -> impl Iterator<Item = IntentPort> {
        let of_protocol = self.ports.iter().filter(move |(protocol, ..)| *protocol == port.protocol);
        of_protocol.filter_map(move |(_, first, last)| part(port, (*first).into(), (*last).into()))
    }
}

/// The ports of `port` from `first` to `last`, if there are any.
fn part(port: IntentPort, first: u32, last: u32) -> Option<IntentPort> {
    let (first, last) = (first.max(port.port.into()), last.min(port.end_port.into()));
    let (first, last) = (u16::try_from(first).ok()?, u16::try_from(last).ok()?);
    (first <= last).then(|| IntentPort {
        port: first,
        end_port: last,
        target_port: port.target_port + (first - port.port),
        ..port
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sallyport_api::intent::IntentTarget;
    use sallyport_api::testing::Forward;

    use super::*;

    const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"];
    const TARGETS: [&str; 2] = ["10.0.1.1", "fd00:1::1"];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn intents() -> impl Strategy<Value = Intent> {
        let port = (any::<bool>(), 80..90_u16, 0..4_u16).prop_map(|(tcp, port, more)| IntentPort {
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            port,
            end_port: port + more,
            target_port: port + 1000,
        });
        let addresses = prop::sample::subsequence(ADDRESSES.to_vec(), 0..4);
        let targets = prop::sample::subsequence(TARGETS.to_vec(), 1..3);
        (addresses, targets, prop::collection::vec(port, 1..4)).prop_map(|(addresses, targets, ports)| {
            let mut intent = Forward::tcp("payments/mysql", 80).intent();
            intent.addresses = addresses.into_iter().map(ip).collect();
            let target = intent.targets[0];
            intent.targets = targets.iter().map(|address| IntentTarget { ip: ip(address), ..target }).collect();
            intent.ports = ports;
            intent
        })
    }

    /// Whether it listens there, said in another way.
    fn listens(intent: &Intent, address: IpAddr, protocol: Protocol, port: u16) -> bool {
        (intent.addresses.is_empty() || intent.addresses.contains(&address))
            && intent.targets.iter().any(|target| target.ip.is_ipv4() == address.is_ipv4())
            && intent.ports.iter().any(|of| of.protocol == protocol && (of.port..=of.end_port).contains(&port))
    }

    fn places() -> impl Iterator<Item = (IpAddr, Protocol, u16)> {
        let ports = |address| (79..95).flat_map(move |port| [Protocol::Tcp, Protocol::Udp].map(|p| (address, p, port)));
        ADDRESSES.into_iter().map(ip).flat_map(ports)
    }

    proptest! {
        #[test]
        fn what_an_edit_has_is_what_it_had_and_what_it_adds(was in intents(), is in intents()) {
            let had = Places::of(&was);
            let mut both = had.clone();
            both.add(&is);
            prop_assert!(had.hold(&was) && both.hold(&was) && both.hold(&is));
            let cut = had.cut(&is);
            let mut adds = false;
            for (address, protocol, port) in places() {
                let [before, now] = [&was, &is].map(|of| listens(of, address, protocol, port));
                let kept = cut.as_ref().is_some_and(|cut| listens(cut, address, protocol, port));
                prop_assert_eq!(kept, before && now, "{} {}", address, port);
                let lacking = now && is.ports.iter().filter(|of| of.protocol == protocol).any(|of| {
                    had.lacking(address, *of).iter().any(|part| (part.port..=part.end_port).contains(&port))
                });
                prop_assert_eq!(lacking, now && !before, "{} {}", address, port);
                adds |= lacking;
            }
            // Every address is more than those of this test.
            if !is.addresses.is_empty() || was.addresses.is_empty() {
                prop_assert_eq!(had.hold(&is), !adds);
            }
        }
    }

    #[test]
    fn ports_keep_their_targets_when_a_range_is_cut() {
        let was = Forward::tcp("payments/mysql", 8002).through(8003).intent();
        let mut is = Forward::tcp("payments/mysql", 8000).through(8009).intent();
        is.ports[0].target_port = 9000;
        let places = Places::of(&was);
        let ranges =
            |ports: &[IntentPort]| ports.iter().map(|p| (p.port, p.end_port, p.target_port)).collect::<Vec<_>>();
        assert_eq!(ranges(&places.cut(&is).unwrap().ports), [(8002, 8003, 9002)]);
        let lacking = places.lacking("10.30.1.78".parse().unwrap(), is.ports[0]);
        assert_eq!(ranges(&lacking), [(8000, 8001, 9000), (8004, 8009, 9004)]);
        assert!(Places::default().is_empty() && Places::default().cut(&is).is_none());
    }
}
