//! The decision: which forwards hold, why the others do not, and what each gateway node gets.
//!
//! ```text
//! forwards, pools, namespaces, nodes ─► validate ─► pool ─► grants ─► claims ─► slices
//! ```
//! Pure and total: every forward gets a verdict. A cluster's operator and a lone host call the same function, so both
//! refuse the same object for the same reason in the same words.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sallyport_api::Mode;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec, SliceForward};
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_api::gateway_pool::GatewayPoolSpec;
use sallyport_api::intent::Intent;
use sallyport_api::names::MAX_PLANS;
use sallyport_api::port_forward::PortForwardSpec;

use crate::arbitrate::{Lingering, arbitrate, waits};
use crate::judge::{Contest, Judge, Pools};
use crate::pool::{Labels, validate_pool};
use crate::slice;
use crate::validate::Problem;

/// A `PortForward` as observed.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Namespace and name.
    pub key: ForwardRef,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp` in seconds since 1970; orders contenders for a free port, and grants count from it.
    pub created: i64,
    /// What it asks; shared with whoever observed it.
    pub spec: Arc<PortForwardSpec>,
}

/// A `GatewayPool` as observed.
#[derive(Clone, Debug)]
pub struct PoolObject {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.creationTimestamp` in seconds since 1970; the older pool keeps a node that two select.
    pub created: i64,
    /// What it offers.
    pub spec: GatewayPoolSpec,
}

/// A node that pools may select.
#[derive(Clone, Debug)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// Its labels; `None` for a lone host, which every selector matches.
    pub labels: Option<Labels>,
    /// Addresses it could listen on.
    pub addresses: Vec<IpAddr>,
}

/// A forward that some node may still carry although no slice has it any more, or not like this.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaving {
    /// Name of the pool whose nodes carry it.
    pub pool: String,
    /// `metadata.uid` of the `PortForward`.
    pub uid: String,
    /// What the nodes may still do for it.
    pub intent: Arc<Intent>,
}

/// Everything a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Every `PortForward`.
    pub forwards: &'a [Forward],
    /// Every `GatewayPool`.
    pub pools: &'a [PoolObject],
    /// Labels of the namespaces, by name.
    pub namespaces: &'a BTreeMap<String, Labels>,
    /// Every node.
    pub nodes: &'a [Node],
    /// The slices of the last decision: they record who holds which claim.
    pub slices: &'a BTreeMap<String, ForwardSliceSpec>,
    /// What left the slices and has not left every node: its claims are given to nobody else yet.
    pub leaving: &'a [Leaving],
    /// Pools of which it is not known what every node carries: nobody is given a new claim there.
    pub unknown: &'a BTreeSet<String>,
    /// Networks of the cluster itself that no target may be in: its API server, its Services.
    pub forbidden: &'a [IpNet],
    /// What time it is, in seconds since 1970.
    pub now: i64,
}

/// The verdict on what a forward asks.
///
/// On one that is not to be applied it says what would become of its spec, or that what it keeps is not allowed any
/// more. Whether anything is carried for it, and what, is in the slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds; the hash of its intent.
    Accepted(String),
    /// It does not; never empty.
    Refused(Vec<Problem>),
}

/// What follows from what was observed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// The verdict on every forward.
    pub forwards: BTreeMap<ForwardRef, Verdict>,
    /// When forwards expire or did, in seconds since 1970; those only that could hold otherwise.
    pub expiries: BTreeMap<ForwardRef, i64>,
    /// The problems of every pool; empty for a pool that works.
    pub pools: BTreeMap<String, Vec<Problem>>,
    /// The configuration of every node that a pool selects.
    pub nodes: BTreeMap<String, GatewayNodeSpec>,
    /// The accepted intents and those that are only planned, cut so that a change rewrites little.
    pub slices: BTreeMap<String, ForwardSliceSpec>,
}

/// Decides.
///
/// *Guarantees*: a claim is never given twice; who holds one keeps it while they want it, or are paused; what is paused or
/// planned takes nothing from anybody; the order of the inputs changes nothing; deciding again on the resulting slices
/// changes nothing.
#[must_use]
pub fn decide(observed: &Observed<'_>) -> Decision {
    let mut decision = Decision::default();
    let pools = usable_pools(observed.pools, &mut decision);
    assign_nodes(observed.nodes, &pools, &mut decision);

    let gateways: BTreeSet<IpAddr> = observed
        .nodes
        .iter()
        .filter(|node| decision.nodes.contains_key(&node.name))
        .flat_map(|node| node.addresses.iter().copied())
        .collect();
    let mut judge = Judge::new(&pools, observed, &gateways);
    let mut contests: BTreeMap<&str, Contest<'_>> = BTreeMap::new();
    for forward in observed.forwards {
        if let Err(problems) = judge.enter(forward, &mut contests) {
            decision.forwards.insert(forward.key.clone(), Verdict::Refused(problems));
        }
    }
    decision.expiries = judge.expiries;

    let mut accepted: BTreeMap<String, Vec<SliceForward>> = BTreeMap::new();
    let mut planned: BTreeMap<String, Vec<SliceForward>> = BTreeMap::new();
    for (name, Contest { mut contenders, proposals }) in contests {
        contenders.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let (unknown, lingering) = (observed.unknown.contains(name), Lingering::of(name, observed.leaving));
        let waiting: Vec<_> = contenders.iter().map(|contender| waits(contender, unknown, &lingering)).collect();
        let settled = arbitrate(&contenders, &waiting, &pools[name].1.grants);
        let mut plans = Vec::new();
        for proposal in proposals {
            let verdict = match settled.refusal(&proposal, waits(&proposal, unknown, &lingering)) {
                Some(problem) => Verdict::Refused(vec![problem]),
                None => Verdict::Accepted(proposal.entry.hash.clone()),
            };
            if proposal.forward.spec.mode == Mode::Plan && matches!(verdict, Verdict::Accepted(_)) {
                plans.push(proposal.entry);
            }
            // That what it keeps is refused is said first.
            decision.forwards.entry(proposal.forward.key.clone()).or_insert(verdict);
        }
        if !plans.is_empty() {
            planned.insert(name.to_owned(), in_turn(plans));
        }
        let outcome = settled.outcome;
        let here = accepted.entry(name.to_owned()).or_default();
        for (contender, refusal) in contenders.into_iter().zip(outcome) {
            let key = contender.forward.key.clone();
            if let Some(problem) = refusal {
                decision.forwards.insert(key, Verdict::Refused(vec![problem]));
                continue;
            }
            if !contender.keeps {
                decision.forwards.insert(key, Verdict::Accepted(contender.entry.hash.clone()));
            }
            here.push(contender.entry);
        }
    }
    decision.slices = slice::cut(accepted, planned, observed.slices);
    decision
}

/// Pools that have no problem of their own, by name, with their age.
fn usable_pools(pools: &[PoolObject], decision: &mut Decision) -> Pools {
    let mut usable = Pools::new();
    for pool in pools {
        let problems = match validate_pool(&pool.spec) {
            Ok(typed) => {
                usable.insert(pool.name.clone(), (pool.created, typed, pool.spec.clone()));
                Vec::new()
            }
            Err(problems) => problems,
        };
        decision.pools.insert(pool.name.clone(), problems);
    }
    usable
}

/// Gives each node to the oldest pool that selects it, so that a node has one configuration.
fn assign_nodes(nodes: &[Node], pools: &Pools, decision: &mut Decision) {
    let mut by_age: Vec<_> = pools.iter().collect();
    by_age.sort_by_key(|(name, (created, _, _))| (*created, *name));
    for node in nodes {
        let mut selecting =
            by_age.iter().filter(|(_, (_, pool, _))| node.labels.as_ref().is_none_or(|labels| pool.selects(labels)));
        let Some((owner, (_, pool, spec))) = selecting.next() else { continue };
        decision.nodes.insert(
            node.name.clone(),
            GatewayNodeSpec {
                pool: (*owner).clone(),
                state: NodeState::Active,
                addresses: pool.listen_addresses(&node.addresses),
                listen_cidrs: pool.listen_cidrs(),
                ip_forward: spec.ip_forward,
                backend: spec.firewall.backend,
                reserved_ports: spec.reserved_ports.clone(),
            },
        );
        for (younger, _) in selecting {
            decision.pools.entry((*younger).clone()).or_default().push(Problem {
                field: "spec.nodeSelector".into(),
                reason: Reason::NodeInOtherPool,
                message: format!("node {} belongs to pool {owner}; a node serves one pool", node.name),
            });
        }
    }
}

/// The plans that the agents look at: as many as they may, of each namespace in turn, so that nobody takes all the places.
fn in_turn(mut plans: Vec<SliceForward>) -> Vec<SliceForward> {
    plans.sort_by(|a, b| a.r#ref.cmp(&b.r#ref));
    let mut before: BTreeMap<String, usize> = BTreeMap::new();
    let mut turns: Vec<(usize, SliceForward)> = Vec::with_capacity(plans.len());
    for plan in plans {
        let turn = before.entry(plan.r#ref.namespace.clone()).or_default();
        turns.push((*turn, plan));
        *turn += 1;
    }
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().take(MAX_PLANS).map(|(_, plan)| plan).collect()
}
