//! On which addresses a node listens, whether they are there just now or not.
//!
//! Only what is declared takes an address away from a forward: one that moves between gateways, or that its host loses for a
//! moment, keeps its rules, which bite while it is there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_api::intent::Intent;

use crate::address::LocalAddress;

/// The listen addresses of a node's pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listen {
    /// Those that are on the node, in order.
    here: Vec<IpAddr>,
    /// All that are known, in order.
    known: Vec<IpAddr>,
    /// Where all others would be that a forward may name.
    blocks: Vec<IpNet>,
}

impl Listen {
    /// Those of the pool of `node` on a host with the addresses `local`, on which the pool has `found` these, now or before.
    #[must_use]
    pub fn of(node: &GatewayNodeSpec, local: &[LocalAddress], found: &[IpAddr]) -> Self {
        if node.state == NodeState::Retired {
            return Self::default();
        }
        let here: BTreeSet<IpAddr> = local.iter().filter(|own| is_wanted(node, own)).map(|own| own.ip).collect();
        let mut known = here.clone();
        known.extend(node.addresses.iter().copied().filter(may_be_named));
        known.extend(found.iter().copied().filter(|ip| selects(node, ip)));
        let [here, known] = [here, known].map(|addresses| addresses.into_iter().collect());
        Self { here, known, blocks: node.listen_cidrs.clone() }
    }

    /// These, which are on the node, and no others.
    #[must_use]
    pub fn on(addresses: &[IpAddr]) -> Self {
        let here: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        let here: Vec<IpAddr> = here.into_iter().collect();
        Self { known: here.clone(), here, blocks: Vec::new() }
    }

    /// Those that are on the node, in order.
    #[must_use]
    pub fn here(&self) -> &[IpAddr] {
        &self.here
    }

    /// All that are known, in order.
    #[must_use]
    pub fn known(&self) -> &[IpAddr] {
        &self.known
    }

    /// Whether this one is on the node.
    #[must_use]
    pub fn is_here(&self, ip: IpAddr) -> bool {
        self.here.binary_search(&ip).is_ok()
    }

    /// Those on which a forward is served, in order.
    #[must_use]
    pub fn of_forward(&self, intent: &Intent) -> Vec<IpAddr> {
        if intent.addresses.is_empty() {
            return self.known.clone();
        }
        let is_ours = |ip: &IpAddr| {
            self.known.binary_search(ip).is_ok()
                || may_be_named(ip) && self.blocks.iter().any(|block| block.contains(ip))
        };
        let named: BTreeSet<IpAddr> = intent.addresses.iter().copied().filter(is_ours).collect();
        named.into_iter().collect()
    }
}

/// Whether the pool of `node` listens on this address of it.
pub(crate) fn is_wanted(node: &GatewayNodeSpec, own: &LocalAddress) -> bool {
    own.global && selects(node, &own.ip)
}

/// Whether the pool of `node` would listen on this address if it were one of the node's.
#[must_use]
pub fn selects(node: &GatewayNodeSpec, ip: &IpAddr) -> bool {
    node.addresses.contains(ip) || node.listen_cidrs.iter().any(|block| block.contains(ip))
}

/// Whether others can reach a host by an address like this one, wherever it is.
fn may_be_named(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast())
        }
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast()),
    }
}

#[cfg(test)]
mod tests {
    use sallyport_api::testing::Forward;
    use serde_json::json;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn node(addresses: &[&str], blocks: &[&str]) -> GatewayNodeSpec {
        let node = json!({ "pool": "default", "state": "Active", "addresses": addresses, "listenCIDRs": blocks });
        serde_json::from_value(node).unwrap()
    }

    /// Of a host with 10.30.1.78 and a loopback address, on which these were found before.
    fn listen(node: &GatewayNodeSpec, found: &[&str]) -> Listen {
        let local = [("10.30.1.78", true), ("127.0.0.1", false)];
        let local = local.map(|(address, global)| LocalAddress { ip: ip(address), prefix_len: 24, global });
        let found: Vec<IpAddr> = found.iter().map(|address| ip(address)).collect();
        Listen::of(node, &local, &found)
    }

    fn served(listen: &Listen, named: &[&str]) -> Vec<String> {
        let mut intent = Forward::tcp("payments/mysql", 3306).intent();
        intent.addresses = named.iter().map(|address| ip(address)).collect();
        listen.of_forward(&intent).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_was_found_stays_wanted_until_it_is_not_selected() {
        for (blocks, known) in [
            (&["10.30.0.0/16"][..], &["10.30.1.78", "10.30.1.100"][..]),
            (&["10.30.1.78/32"], &["10.30.1.78"]),
            (&["10.30.1.100/32"], &["10.30.1.100"]),
            (&[], &[]),
        ] {
            let listen = listen(&node(&[], blocks), &["10.30.1.100"]);
            assert_eq!(served(&listen, &[]), known, "{blocks:?}");
            assert!(!listen.is_here(ip("10.30.1.100")));
        }
        let by_the_node = listen(&node(&["10.30.1.77", "10.30.1.78"], &[]), &["10.30.1.100"]);
        assert_eq!(served(&by_the_node, &[]), ["10.30.1.77", "10.30.1.78"]);
        assert_eq!(by_the_node.here(), [ip("10.30.1.78")]);
        let retired = GatewayNodeSpec { state: NodeState::Retired, ..node(&["10.30.1.78"], &["0.0.0.0/0"]) };
        assert_eq!(listen(&retired, &["10.30.1.100"]), Listen::default());
    }

    #[test]
    fn a_forward_may_name_what_its_pool_would_listen_on_and_nothing_that_nobody_can_reach() {
        let any = listen(&node(&[], &["0.0.0.0/0", "::/0"]), &[]);
        let named = ["10.30.1.100", "127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1", "fd00::100"];
        assert_eq!(served(&any, &named), ["10.30.1.100", "fd00::100"]);
        assert_eq!(
            served(&listen(&node(&["10.30.1.78"], &["10.30.2.0/24"]), &[]), &["10.30.1.78", "10.30.1.100"]),
            ["10.30.1.78"]
        );
    }
}
