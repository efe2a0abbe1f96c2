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

use sallyport_api::Mode;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec, SliceForward};
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_api::id::{IntentHash, Moment, NodeName};
use sallyport_api::names::MAX_PLANS;

use crate::arbitrate::{arbitrate, blocked_by};
use crate::judge::{Candidates, Judge, Pools, UsablePool};
use crate::observed::{Node, Observed, PoolObject};
use crate::outgoing::OutgoingClaims;
use crate::pool::validate_pool;
use crate::slice;
use crate::validate::Problem;

/// The verdict on what a forward asks.
///
/// On one that is not to be applied it says what would become of its spec, or that what it keeps is not allowed any
/// more. Whether anything is carried for it, and what, is in the slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds; the hash of its intent.
    Accepted(IntentHash),
    /// It does not; never empty.
    Refused(Vec<Problem>),
}

/// What follows from what was observed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// The verdict on every forward.
    pub forwards: BTreeMap<ForwardRef, Verdict>,
    /// When forwards expire or did; those only that could hold otherwise.
    pub expiries: BTreeMap<ForwardRef, Moment>,
    /// The problems of every pool; empty for a pool that works.
    pub pools: BTreeMap<String, Vec<Problem>>,
    /// The configuration of every node that a pool selects.
    pub nodes: BTreeMap<NodeName, GatewayNodeSpec>,
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
    let mut candidates: BTreeMap<&str, Candidates<'_>> = BTreeMap::new();
    for forward in observed.forwards {
        if let Err(problems) = judge.evaluate(forward, &mut candidates) {
            decision.forwards.insert(forward.key.clone(), Verdict::Refused(problems));
        }
    }
    decision.expiries = judge.expiries;

    let mut accepted: BTreeMap<String, Vec<Arc<SliceForward>>> = BTreeMap::new();
    let mut planned: BTreeMap<String, Vec<Arc<SliceForward>>> = BTreeMap::new();
    for (name, Candidates { mut active, proposed }) in candidates {
        active.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let (unknown, outgoing) = (observed.unknown.contains(name), OutgoingClaims::of(name, observed.outgoing));
        let waiting: Vec<_> = active.iter().map(|candidate| blocked_by(candidate, unknown, &outgoing)).collect();
        let settled = arbitrate(&active, &waiting, &pools[name].typed.grants);
        let mut plans = Vec::new();
        for proposal in proposed {
            let verdict = match settled.refusal(&proposal, blocked_by(&proposal, unknown, &outgoing)) {
                Some(problem) => Verdict::Refused(vec![problem]),
                None => Verdict::Accepted(proposal.entry.hash.clone()),
            };
            let is_plan = proposal.forward.spec.as_ref().is_ok_and(|spec| spec.mode == Mode::Plan);
            if is_plan && matches!(verdict, Verdict::Accepted(_)) {
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
        for (candidate, refusal) in active.into_iter().zip(outcome) {
            let key = candidate.forward.key.clone();
            if let Some(problem) = refusal {
                decision.forwards.insert(key, Verdict::Refused(vec![problem]));
                continue;
            }
            if !candidate.keeps {
                decision.forwards.insert(key, Verdict::Accepted(candidate.entry.hash.clone()));
            }
            here.push(candidate.entry);
        }
    }
    decision.slices = slice::cut(accepted, planned, observed.slices);
    decision
}

/// Pools that have no problem of their own, by name.
fn usable_pools<'a>(pools: &'a [PoolObject], decision: &mut Decision) -> Pools<'a> {
    let mut usable = Pools::new();
    for pool in pools {
        let problems = match validate_pool(&pool.spec) {
            Ok(typed) => {
                usable.insert(pool.name.clone(), UsablePool { created: pool.created, typed, spec: &pool.spec });
                Vec::new()
            }
            Err(problems) => problems,
        };
        decision.pools.insert(pool.name.clone(), problems);
    }
    usable
}

/// Gives each node to the oldest pool that selects it, so that a node has one configuration.
fn assign_nodes(nodes: &[Node], pools: &Pools<'_>, decision: &mut Decision) {
    let mut by_age: Vec<_> = pools.iter().collect();
    by_age.sort_by_key(|(name, pool)| (pool.created, *name));
    for node in nodes {
        let selects = |pool: &UsablePool<'_>| node.labels.as_ref().is_none_or(|labels| pool.typed.selects(labels));
        let mut selecting = by_age.iter().filter(|(_, pool)| selects(pool));
        let Some((owner, UsablePool { typed: pool, spec, .. })) = selecting.next() else { continue };
        decision.nodes.insert(
            node.name.clone(),
            GatewayNodeSpec {
                pool: (*owner).clone(),
                state: NodeState::Active,
                addresses: pool.listen_addresses(&node.addresses),
                listen_cidrs: pool.listen_cidrs(),
                ip_forward: spec.ip_forward,
                backend: spec.firewall.backend,
                order: spec.firewall.order,
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
fn in_turn(mut plans: Vec<Arc<SliceForward>>) -> Vec<Arc<SliceForward>> {
    plans.sort_by(|a, b| a.r#ref.cmp(&b.r#ref));
    let mut before: BTreeMap<String, usize> = BTreeMap::new();
    let mut turns: Vec<(usize, Arc<SliceForward>)> = Vec::with_capacity(plans.len());
    for plan in plans {
        let turn = before.entry(plan.r#ref.namespace.clone()).or_default();
        turns.push((*turn, plan));
        *turn += 1;
    }
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().take(MAX_PLANS).map(|(_, plan)| plan).collect()
}
