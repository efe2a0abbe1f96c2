//! What the host's own firewalls mean for the forwards: which of them cannot work, or let in more than they list, where, and
//! what would help.
//!
//! No alarm where somebody merely drops what he names (a blocklist, a bridge of virtual machines, a rate): most of that
//! is about others. An alarm without a question mark only where it is about every packet of a listed client, or about
//! somebody who is not listed and gets in.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;

use ipnet::IpNet;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, SliceForward};
use sallyport_api::id::IntentHash;

use crate::binding::Binding;
use crate::family::Family;
use crate::firewall::HostFirewall;
use crate::firewall::path::{ClientPath, Finding, PATHS, client_paths};
use crate::firewall::remedy::{Conflict, conflict, passes_soon};
use crate::firewall::screen::{Hull, Screen};
use crate::firewall::stranger::stranger;
use crate::table::{Failure, ForwardingTable};

/// What the host's own firewalls do with the packets of forwards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assessment {
    /// What spoils some forward, or every one that there could be.
    pub conflicts: Vec<Conflict>,
    /// What may do so, but that cannot be told.
    pub doubts: Vec<Conflict>,
    /// The forwards that do not do here what they ask for.
    pub blocked: Vec<Failure>,
    /// What could not be read, for people.
    pub unread: Vec<String>,
    /// Whether somebody else's rules are in both variants of iptables.
    pub mixed: bool,
}

impl Assessment {
    /// What the condition `HostFirewallCompatible` says of it. What is certain comes first.
    #[must_use]
    pub fn reason(&self) -> Reason {
        if let Some(conflict) = self.conflicts.first() {
            conflict.reason
        } else if self.doubts.is_empty() && self.unread.is_empty() {
            Reason::HostFirewallCompatible
        } else {
            Reason::HostFirewallUnclear
        }
    }

    /// Names what will be in the way, of what was found for the time when denies win, and is not now. No forward is blocked by it
    /// yet.
    pub fn announce(&mut self, later: Self) {
        let is_new = |conflict: &Conflict| !self.conflicts.iter().any(|now| now.place == conflict.place);
        let coming: Vec<_> = later.conflicts.into_iter().filter(is_new).map(Conflict::announced).collect();
        self.conflicts.extend(coming);
    }
}

impl fmt::Display for Assessment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(some) = some(&self.conflicts.iter().chain(&self.doubts).collect::<Vec<_>>()) {
            write!(f, "forwarded packets {some}")?;
        } else if self.unread.is_empty() {
            f.write_str("nothing else on this host drops or diverts forwarded packets, or lets others in")?;
        } else {
            let unread = self.unread.join("; ");
            write!(f, "it cannot be told whether forwarded packets are dropped: cannot read {unread}")?;
        }
        if self.mixed {
            f.write_str("; others have rules in both iptables-nft and iptables-legacy, and packets pass both")?;
        }
        Ok(())
    }
}

/// The first two, and how many more there are; `None` if there are none.
fn some(conflicts: &[&Conflict]) -> Option<String> {
    let (named, more) = conflicts.split_at(conflicts.len().min(2));
    let doubtful = more.iter().filter(|conflict| !conflict.certain).count();
    let more = match (more.len(), doubtful) {
        (0, _) => String::new(),
        (more, 0) => format!("; and {more} more are in the way"),
        (more, doubtful) => format!("; and {more} more are in the way, of which {doubtful} may be about others"),
    };
    let named: Vec<_> = named.iter().map(ToString::to_string).collect();
    (!named.is_empty()).then(|| named.join("; and ") + &more)
}

/// Follows every forward of `forwarding` that is `concerned` through `firewall`; without forwards, any that might come.
///
/// `interface` says through which interface hosts of a network are reached, where all of them are reached through one.
#[must_use]
pub fn assess(
    firewall: &HostFirewall,
    forwarding: &ForwardingTable,
    concerned: &dyn Fn(&SliceForward) -> bool,
    interface: &dyn Fn(IpNet) -> Option<String>,
) -> Assessment {
    Paths::default().assess(firewall, forwarding, concerned, interface)
}

/// What was found of each forward's path, which is true until the firewalls, the listen addresses, the forward itself or the
/// routes that were asked for change.
#[derive(Debug, Default)]
pub struct Paths {
    firewall: HostFirewall,
    listen: Vec<IpAddr>,
    /// By family.
    screens: [Option<Screen>; 2],
    /// By family, in order of the forwards.
    known: [Vec<Rc<Known>>; 2],
}

/// What was found of one forward.
#[derive(Debug)]
struct Known {
    forward: ForwardRef,
    hash: IntentHash,
    /// What the host's routes said.
    asked: Asked,
    found: Vec<Found>,
}

/// Through which interface hosts of networks are reached, shared by forwards one after the other of the same clients and targets.
type Asked = Rc<[(IpNet, Option<String>)]>;

impl Known {
    /// Whether it is what would be found of `forward` today.
    fn is_of(&self, forward: &SliceForward, interface: &dyn Fn(IpNet) -> Option<String>) -> bool {
        self.hash == forward.hash
            && self.forward == forward.r#ref
            && self.asked.iter().all(|(net, answer)| interface(*net) == *answer)
    }
}

/// A finding in words.
#[derive(Clone, Debug)]
struct Found {
    /// Whose packets, for people.
    whose: String,
    conflict: Conflict,
}

impl Paths {
    /// The same as [`assess`], for which only what has changed is followed anew.
    #[must_use]
    pub fn assess(
        &mut self,
        firewall: &HostFirewall,
        forwarding: &ForwardingTable,
        concerned: &dyn Fn(&SliceForward) -> bool,
        interface: &dyn Fn(IpNet) -> Option<String>,
    ) -> Assessment {
        let mut summary = Summary::default();
        if self.firewall != *firewall || self.listen != forwarding.listen() {
            let (firewall, listen) = (firewall.clone(), forwarding.listen().to_vec());
            *self = Self { firewall, listen, ..Self::default() };
        }
        for family in Family::BOTH {
            // A family in which the node listens nowhere is nobody's concern yet.
            if !self.listen.iter().any(|ip| Family::of(*ip) == family) {
                continue;
            }
            let slot = usize::from(family == Family::V6);
            let mut before = std::mem::take(&mut self.known[slot]).into_iter().peekable();
            let mut now = Vec::with_capacity(before.len());
            for bindings in forwarding.by_forward(family).filter(|bindings| concerned(bindings[0].forward)) {
                let forward = bindings[0].forward;
                while before.next_if(|known| known.forward < forward.r#ref).is_some() {}
                let same = |known: &Rc<Known>| known.is_of(forward, interface);
                now.push(before.next_if(same).ok_or(bindings));
            }
            let changed = now.iter().filter_map(|known| known.as_ref().err());
            let hull = Hull::of(changed.flatten());
            let screen = &mut self.screens[slot];
            let made = screen.take().filter(|made| now.is_empty() == made.hull.is_none());
            let screen = screen.insert(match (made, hull) {
                (Some(made), hull) if hull.as_ref().is_none_or(|hull| made.is_for(hull)) => made,
                (made, hull) => {
                    let before = made.and_then(|made| made.hull);
                    let both = before.iter().chain(&hull).cloned().reduce(|one, other| one.around(&other));
                    Screen::new(&self.firewall, family, both)
                }
            });
            let own = self.listen.iter().filter(|ip| Family::of(**ip) == family).map(|ip| *ip..=*ip).collect();
            let (asked, last) = Default::default();
            let follower = Follower { firewall: &self.firewall, screen, own, interface, asked, last };
            if now.is_empty() {
                follower.any(family).iter().for_each(|found| summary.add(found, None));
            }
            for known in now {
                let known = known.unwrap_or_else(|bindings| Rc::new(follower.forward(&bindings)));
                known.found.iter().for_each(|found| summary.add(found, Some(&known.forward)));
                self.known[slot].push(known);
            }
        }
        summary.told(firewall)
    }

    /// Whether `interface` says something else than when the paths were followed, so that they may be other ones.
    #[must_use]
    pub fn lead_elsewhere(&self, interface: &dyn Fn(IpNet) -> Option<String>) -> bool {
        let mut asked = self.known.iter().flatten().flat_map(|known| known.asked.iter());
        asked.any(|(net, answer)| interface(*net) != *answer)
    }
}

/// Follows packets of one family.
struct Follower<'a> {
    firewall: &'a HostFirewall,
    screen: &'a Screen,
    own: Rc<[RangeInclusive<IpAddr>]>,
    interface: &'a dyn Fn(IpNet) -> Option<String>,
    asked: RefCell<BTreeMap<IpNet, Option<String>>>,
    /// What the forward before asked.
    last: RefCell<Asked>,
}

impl Follower<'_> {
    /// What is found of the forward whose `bindings` these are.
    fn forward(&self, bindings: &[Binding<'_>]) -> Known {
        let forward = bindings[0].forward;
        let interface =
            |net: IpNet| self.asked.borrow_mut().entry(net).or_insert_with(|| (self.interface)(net)).clone();
        let mut found: Vec<Found> = Vec::new();
        let paths: Vec<(IpNet, ClientPath<'_>)> = client_paths(bindings, &self.own, &interface).collect();
        let most = PATHS / paths.len().max(1);
        for (net, path) in paths {
            let all_ports = path.listen_port.clone();
            for path in path.by_port(self.screen, most) {
                for finding in path.follow(self.screen) {
                    let mut whose = format!("packets of its clients {net}");
                    if let Some(to) = path.pre_dnat(true) {
                        whose += &format!(" to {}", to.ip);
                    }
                    if let Some(ports) = path.listen_port.as_ref().filter(|ports| Some(*ports) != all_ports.as_ref()) {
                        whose += &match (ports.start(), ports.end()) {
                            (first, last) if first == last => format!(" port {first}"),
                            (first, last) => format!(" ports {first} to {last}"),
                        };
                    }
                    found.extend(self.found(finding, Some(&path), whose));
                }
            }
        }
        if let Some(stranger) = stranger(self.screen, &self.own, bindings, &interface) {
            let (first, last) = (stranger.clients.start(), stranger.clients.end());
            let who = if first == last { first.to_string() } else { format!("{first} to {last}") };
            found.extend(self.found(stranger.finding, None, format!("its packets (by {who}, for one)")));
        }
        let asked: Asked = std::mem::take(&mut *self.asked.borrow_mut()).into_iter().collect();
        if *self.last.borrow() != asked {
            self.last.replace(asked);
        }
        let asked = Rc::clone(&self.last.borrow());
        Known { forward: forward.r#ref.clone(), hash: forward.hash.clone(), asked, found }
    }

    /// What is found of any forward that might come.
    fn any(&self, family: Family) -> Vec<Found> {
        let path = ClientPath::any(family);
        let found = path.follow(self.screen).into_iter();
        found.filter_map(|finding| self.found(finding, None, String::new())).collect()
    }

    fn found(&self, mut finding: Finding, path: Option<&ClientPath<'_>>, whose: String) -> Option<Found> {
        let place = self.screen.stages.get(finding.stage)?.place?;
        finding.certain &= !passes_soon(self.firewall.tables.get(place.0)?);
        let conflict = conflict(self.firewall, self.screen, finding, path)?;
        Some(Found { whose, conflict })
    }
}

/// What was found, each place once.
#[derive(Default)]
struct Summary {
    conflicts: Vec<Conflict>,
    doubts: Vec<Conflict>,
    blocked: BTreeMap<ForwardRef, (Reason, String)>,
}

impl Summary {
    fn add(&mut self, found: &Found, forward: Option<&ForwardRef>) {
        let Found { whose, conflict } = found;
        let known = if conflict.certain { &mut self.conflicts } else { &mut self.doubts };
        let same = |other: &Conflict| other.place == conflict.place && other.reason == conflict.reason;
        if !known.iter().any(same) {
            known.push(conflict.clone());
        }
        if let Some(forward) = forward.filter(|_| conflict.certain) {
            let failure = || (conflict.reason, format!("{whose} {conflict}"));
            self.blocked.entry(forward.clone()).or_insert_with(failure);
        }
    }

    fn told(mut self, firewall: &HostFirewall) -> Assessment {
        // Of a place that is certain nothing else is to be said.
        self.doubts.retain(|doubt| !self.conflicts.iter().any(|conflict| conflict.place == doubt.place));
        // Whoever is let in is worse than whoever is kept out.
        self.conflicts.sort_by_key(|conflict| conflict.reason != Reason::HostFirewallBypass);
        let blocked = self.blocked.into_iter();
        let failure = |(forward, (reason, message))| Failure { forward, reason, message };
        Assessment {
            conflicts: self.conflicts,
            doubts: self.doubts,
            blocked: blocked.map(failure).collect(),
            unread: firewall.unread.clone(),
            mixed: firewall.is_mixed(),
        }
    }
}
