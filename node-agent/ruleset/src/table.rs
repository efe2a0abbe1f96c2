//! The forwarding table: what a node forwards, a line a port and address, before it is said to any kernel.
//!
//! ```text
//! PortForward payments/mysql   10.30.1.78 tcp/3306  10.30.1.80/32 ─► 10.30.1.79:3306  Masquerade
//! ```
//! The only place that expands a forward into the addresses and families of a node. Rules, the flows that may go on, who
//! listens in the way, and the path of packets through other firewalls are all read off it.

use std::net::IpAddr;

use ipnet::IpNet;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, SliceForward};
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_api::intent::{IntentPort, IntentTarget};
use sallyport_api::{Protocol, SourceNatMode};
use sallyport_policy::claim::{Claim, ClaimTable};
use sallyport_policy::pool::Reserved;

use crate::facts::{LocalAddress, NodeFacts};
use crate::family::Family;
use crate::gate::refuse;

/// One port or range of ports of one forward, on one address of the node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Binding<'a> {
    /// Whose it is.
    pub forward: &'a SliceForward,
    /// The address of the node that clients connect to.
    pub listen: IpAddr,
    /// The ports there, and the first port of the targets.
    pub port: IntentPort,
}

impl<'a> Binding<'a> {
    /// The family of its packets.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.listen)
    }

    /// The protocol of its packets.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.port.protocol
    }

    /// What becomes of the client's address.
    #[must_use]
    pub fn source_nat(&self) -> SourceNatMode {
        self.forward.intent.source_nat
    }

    /// The clients that may connect, unless they are [denied](Self::denied).
    pub fn allowed(&self) -> impl Iterator<Item = IpNet> + use<'a> {
        of_family(&self.forward.intent.allow, self.family())
    }

    /// The clients that may not, whatever else allows them.
    pub fn denied(&self) -> impl Iterator<Item = IpNet> + use<'a> {
        of_family(&self.forward.intent.deny, self.family())
    }

    /// Where connections are delivered; a target of weight 0 takes no new ones.
    pub fn targets(&self) -> impl Iterator<Item = IntentTarget> + use<'a> {
        let family = self.family();
        self.forward.intent.targets.iter().copied().filter(move |target| Family::of(target.ip) == family)
    }
}

fn of_family(nets: &[IpNet], family: Family) -> impl Iterator<Item = IpNet> {
    nets.iter().copied().filter(move |net| Family::of(net.addr()) == family)
}

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
        let same = |a: &Binding<'_>, b: &Binding<'_>| a.forward.uid == b.forward.uid && a.family() == b.family();
        self.bindings.chunk_by(same).filter(move |bindings| bindings[0].family() == family)
    }

    /// The table as if only the forwards for which `keep` holds were in it.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&SliceForward) -> bool) -> Self {
        let mut table = self.clone();
        table.bindings.retain(|binding| keep(binding.forward));
        table
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

/// What `forward` asks of a node that listens on `listen`: by family, port and address. Empty where no listen address that
/// it names has the family of one of its targets.
pub fn bindings<'a>(forward: &'a SliceForward, listen: &[IpAddr]) -> impl Iterator<Item = Binding<'a>> {
    let intent = &forward.intent;
    Family::BOTH.into_iter().flat_map(move |family| {
        let named =
            |ip: &IpAddr| Family::of(*ip) == family && (intent.addresses.is_empty() || intent.addresses.contains(ip));
        let served = intent.targets.iter().any(|target| Family::of(target.ip) == family);
        let addresses: Vec<IpAddr> = listen.iter().copied().filter(|ip| served && named(ip)).collect();
        intent.ports.iter().flat_map(move |port| {
            let bind = |listen: &IpAddr| Binding { forward, listen: *listen, port: *port };
            addresses.iter().map(bind).collect::<Vec<_>>()
        })
    })
}
