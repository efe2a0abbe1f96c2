//! What the host's own firewalls mean for the forwards: which of them cannot work, where, and what would help.
//!
//! No alarm where somebody merely drops what he names (a blocklist, a bridge of virtual machines, a rate): most of that
//! is about others. An alarm without a question mark only where every packet of a forward is dropped.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, SliceForward};

use crate::family::Family;
use crate::firewall::path::{any_packet, client_paths};
use crate::firewall::remedy::{Conflict, conflict, passes_soon};
use crate::firewall::walk::{Fate, fate};
use crate::firewall::{BaseChain, FirewallTable, HostFirewall};
use crate::table::{Failure, ForwardingTable};

/// What the host's own firewalls do with the packets of forwards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assessment {
    /// Chains that drop all packets of some forward, or of every one that there could be.
    pub conflicts: Vec<Conflict>,
    /// Chains of which that cannot be told.
    pub doubts: Vec<Conflict>,
    /// The forwards that cannot work here.
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
        if !self.conflicts.is_empty() {
            Reason::HostFirewallConflict
        } else if self.doubts.is_empty() && self.unread.is_empty() {
            Reason::HostFirewallCompatible
        } else {
            Reason::HostFirewallUnclear
        }
    }
}

impl fmt::Display for Assessment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.conflicts.is_empty() {
            write!(f, "forwarded packets are dropped by {}", some(&self.conflicts))?;
        } else if !self.doubts.is_empty() {
            write!(f, "forwarded packets may be dropped by {}", some(&self.doubts))?;
        } else if !self.unread.is_empty() {
            write!(
                f,
                "it cannot be told whether forwarded packets are dropped: cannot read {}",
                self.unread.join("; ")
            )?;
        } else {
            f.write_str("nothing else on this host drops forwarded packets")?;
        }
        if self.mixed {
            f.write_str("; others have rules in both iptables-nft and iptables-legacy, and packets pass both")?;
        }
        Ok(())
    }
}

/// The first two, and how many more there are.
fn some(conflicts: &[Conflict]) -> String {
    let named: Vec<_> = conflicts.iter().take(2).map(ToString::to_string).collect();
    let more = match conflicts.len().saturating_sub(2) {
        0 => String::new(),
        more => format!("; and by {more} more"),
    };
    named.join("; and by ") + &more
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
    let mut found = Assessment { unread: firewall.unread.clone(), mixed: firewall.is_mixed(), ..Assessment::default() };
    let mut blocked: BTreeMap<&ForwardRef, String> = BTreeMap::new();
    for table in &firewall.tables {
        for base in &table.base {
            let mut worst = (Fate::Pass, None);
            for family in table.families.iter().copied() {
                if !may_drop(table, base, family, forwarding) {
                    continue;
                }
                let mut any = false;
                for path in forwarding
                    .by_forward(family)
                    .filter(|bindings| concerned(bindings[0].forward))
                    .flat_map(|bindings| client_paths(&bindings, interface))
                {
                    any = true;
                    let fate = path.fate(table, base);
                    if fate == Fate::Dropped && !passes_soon(table) {
                        let message = || conflict(table, base, family, Some(&path)).to_string();
                        blocked.entry(path.forward).or_insert_with(message);
                    }
                    if fate > worst.0 {
                        worst = (fate, Some(conflict(table, base, family, Some(&path))));
                    }
                }
                // A family in which the node listens nowhere is nobody's concern yet.
                let listens = forwarding.listen().iter().any(|ip| Family::of(*ip) == family);
                if !any && listens {
                    let fate =
                        [false, true].into_iter().map(|reply| fate(table, base, &any_packet(family, base, reply)));
                    let fate = fate.max().unwrap_or(Fate::Pass);
                    if fate > worst.0 {
                        worst = (fate, Some(conflict(table, base, family, None)));
                    }
                }
            }
            match worst {
                (Fate::Dropped, Some(conflict)) if !passes_soon(table) => found.conflicts.push(conflict),
                (Fate::Dropped | Fate::Unclear, Some(conflict)) => found.doubts.push(conflict),
                _ => {}
            }
        }
    }
    found.blocked = blocked
        .into_iter()
        .map(|(forward, message)| Failure {
            forward: forward.clone(),
            reason: Reason::HostFirewallConflict,
            message: format!("its packets are dropped by {message}"),
        })
        .collect();
    found
}

/// Whether any packet that a forward could have might be dropped: most chains are done with here, whatever the number
/// of forwards.
fn may_drop(table: &FirewallTable, base: &BaseChain, family: Family, forwarding: &ForwardingTable) -> bool {
    // Our own accept comes into being with the first forward.
    if table.holds_our_accept() && forwarding.is_empty(family) {
        return false;
    }
    [false, true].into_iter().any(|reply| fate(table, base, &any_packet(family, base, reply)) != Fate::Pass)
}
