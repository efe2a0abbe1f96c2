//! The forwarding table: what a node forwards, a line a port and address, before it is said to any kernel.
//!
//! ```text
//! PortForward payments/mysql   10.30.1.78 tcp/3306  10.30.1.80/32 ─► 10.30.1.79:3306  Masquerade
//! ```
//! Rules, the flows that may go on, who listens in the way, and the path of packets through other firewalls are all read
//! off it.

use std::net::IpAddr;

use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, SliceForward};
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_policy::claim::{Claim, ClaimTable};
use sallyport_policy::pool::Reserved;

use crate::binding::{Binding, bindings};
use crate::facts::{LocalAddress, NodeFacts};
use crate::family::Family;
use crate::gate::refuse;

/// Why a forward is not programmed on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which forward.
    pub forward: ForwardRef,
    /// The kind of failure.
    pub reason: Reason,
    /// What is wrong here and what would help.
    pub message: String,
}

/// What a node forwards, and what it cannot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ForwardingTable<'a> {
    /// The listen addresses that are really on the node, in order.
    pub listen: Vec<IpAddr>,
    /// In order of the forwards' references; those of a forward by family, port and address.
    pub bindings: Vec<Binding<'a>>,
    /// The forwards without bindings here, in order of their references.
    pub failures: Vec<Failure>,
}

impl<'a> ForwardingTable<'a> {
    /// What the node forwards of the `forwards` of its pool.
    ///
    /// Total and deterministic: the order of the inputs changes nothing.
    #[must_use]
    pub fn new(node: &GatewayNodeSpec, forwards: &[&'a SliceForward], facts: &NodeFacts<'_>) -> Self {
        let mut table = Self::default();
        if node.state == NodeState::Retired {
            return table;
        }
        let mut local = facts.addresses.to_vec();
        local.sort_unstable();
        table.listen = listen_addresses(node, &local);
        let mut sorted = forwards.to_vec();
        sorted.sort_by(|a, b| (&a.r#ref, &a.uid).cmp(&(&b.r#ref, &b.uid)));
        let reserved = Reserved::of(&node.reserved_ports);
        let mut claims = ClaimTable::default();
        for (index, forward) in sorted.into_iter().enumerate() {
            let own = Claim::of(&forward.intent);
            let refusal = refuse(forward, &reserved, &table.listen, &local, facts.now).or_else(|| {
                let (claim, _) = claims.conflict(&own, index)?;
                let message = format!(
                    "{claim} is already programmed for another forward; wait until that one is gone, or choose another port"
                );
                Some((Reason::PortConflict, message))
            });
            if let Some((reason, message)) = refusal {
                table.failures.push(Failure { forward: forward.r#ref.clone(), reason, message });
                continue;
            }
            claims.insert(&own, index);
            table.bindings.extend(bindings(forward, &table.listen));
        }
        table
    }

    /// The bindings of `family`, a slice for each forward that has any, in order.
    pub fn by_forward(&self, family: Family) -> impl Iterator<Item = &[Binding<'a>]> {
        let same = |a: &Binding<'_>, b: &Binding<'_>| std::ptr::eq(a.forward, b.forward) && a.family() == b.family();
        self.bindings.chunk_by(same).filter(move |bindings| bindings[0].family() == family)
    }

    /// Whether nothing of `family` is forwarded.
    #[must_use]
    pub fn is_empty(&self, family: Family) -> bool {
        self.bindings.iter().all(|binding| binding.family() != family)
    }
}

/// The addresses of `local` on which the pool of `node` listens, in order.
#[must_use]
pub fn listen_addresses(node: &GatewayNodeSpec, local: &[LocalAddress]) -> Vec<IpAddr> {
    let wanted = |ip: &IpAddr| node.addresses.contains(ip) || node.listen_cidrs.iter().any(|net| net.contains(ip));
    let mut listen: Vec<IpAddr> = local.iter().filter(|own| own.global).map(|own| own.ip).filter(wanted).collect();
    listen.sort_unstable();
    listen.dedup();
    listen
}

#[cfg(test)]
mod tests {
    use sallyport_api::id::Moment;
    use sallyport_api::testing::Forward;
    use sallyport_policy::digest::intent_hash;
    use serde_json::json;

    use super::*;

    #[test]
    fn forwards_are_told_apart_even_where_a_forged_slice_gives_two_one_uid() {
        let forward = |name: &str, port: u16, target: &str| {
            let forward = Forward::tcp(name, port).to([target]).slice_forward(intent_hash);
            SliceForward { uid: "uid".into(), ..forward }
        };
        let both = [forward("payments/a", 8000, "10.30.1.79"), forward("payments/b", 8001, "10.30.1.81")];
        let node: GatewayNodeSpec =
            serde_json::from_value(json!({ "pool": "default", "state": "Active", "addresses": ["10.30.1.78"] }))
                .unwrap();
        let own = [LocalAddress { ip: "10.30.1.78".parse().unwrap(), prefix_len: 24, global: true }];
        let table = ForwardingTable::new(&node, &both.each_ref(), &NodeFacts::of(&own, Moment::default()));
        let targets =
            |bindings: &[Binding<'_>]| bindings[0].targets().map(|target| target.ip.to_string()).collect::<String>();
        let found: Vec<String> = table.by_forward(Family::V4).map(targets).collect();
        assert_eq!(found, ["10.30.1.79", "10.30.1.81"], "{table:?}");
    }
}
