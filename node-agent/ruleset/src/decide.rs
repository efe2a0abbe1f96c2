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

use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec, SliceForward};
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_api::gateway_pool::GatewayPoolSpec;
use sallyport_api::intent::Intent;
use sallyport_api::port_forward::PortForwardSpec;

use crate::claim::{Claim, ClaimTable};
use crate::digest;
use crate::pool::{Grant, Labels, Pool, validate_pool};
use crate::slice;
use crate::validate::{Problem, validate};

/// A `PortForward` as observed.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Namespace and name.
    pub key: ForwardRef,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp` in seconds since 1970; orders contenders for a free port.
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
}

/// What becomes of one forward.
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
    /// The problems of every pool; empty for a pool that works.
    pub pools: BTreeMap<String, Vec<Problem>>,
    /// The configuration of every node that a pool selects.
    pub nodes: BTreeMap<String, GatewayNodeSpec>,
    /// The accepted intents, cut so that a change rewrites little.
    pub slices: BTreeMap<String, ForwardSliceSpec>,
}

/// Decides.
///
/// *Guarantees*: a claim is never given twice; who holds one keeps it while they want it; the order of the inputs
/// changes nothing; deciding again on the resulting slices changes nothing.
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
    let held = held_intents(observed.slices);
    let mut contenders: BTreeMap<&str, Vec<Contender<'_>>> = BTreeMap::new();
    for forward in observed.forwards {
        match contender(forward, &pools, observed, &gateways, &held) {
            Ok(contender) => contenders.entry(&forward.spec.pool).or_default().push(contender),
            Err(problems) => {
                decision.forwards.insert(forward.key.clone(), Verdict::Refused(problems));
            }
        }
    }

    let mut accepted: BTreeMap<String, Vec<SliceForward>> = BTreeMap::new();
    for (name, mut contenders) in contenders {
        contenders.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let outcome = arbitrate(&contenders, &pools[name]);
        let here = accepted.entry(name.to_owned()).or_default();
        for (contender, refusal) in contenders.into_iter().zip(outcome) {
            let key = contender.forward.key.clone();
            let verdict = if let Some(problem) = refusal {
                Verdict::Refused(vec![problem])
            } else {
                let hash = digest::intent_hash(&contender.intent);
                here.push(SliceForward {
                    uid: contender.forward.uid.clone(),
                    r#ref: key.clone(),
                    generation: contender.forward.generation,
                    hash: hash.clone(),
                    intent: contender.intent,
                });
                Verdict::Accepted(hash)
            };
            decision.forwards.insert(key, verdict);
        }
    }
    decision.slices = slice::cut(accepted, observed.slices);
    decision
}

/// Pools that have no problem of their own, by name, with their age.
fn usable_pools(pools: &[PoolObject], decision: &mut Decision) -> BTreeMap<String, (i64, Pool, GatewayPoolSpec)> {
    let mut usable = BTreeMap::new();
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
fn assign_nodes(nodes: &[Node], pools: &BTreeMap<String, (i64, Pool, GatewayPoolSpec)>, decision: &mut Decision) {
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

/// What each uid holds in a pool according to the slices.
type Held<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a Intent>>;

fn held_intents(slices: &BTreeMap<String, ForwardSliceSpec>) -> Held<'_> {
    let mut held = Held::new();
    for slice in slices.values() {
        for forward in &slice.forwards {
            held.entry((&slice.pool, &forward.uid)).or_default().push(&forward.intent);
        }
    }
    held
}

/// A forward that is acceptable but for the claims of others.
struct Contender<'a> {
    forward: &'a Forward,
    intent: Intent,
    /// Whether it was accepted like this already.
    unchanged: bool,
    claims: Vec<Claim>,
    /// What it holds of what it wants.
    held: Vec<Claim>,
    grants: Vec<usize>,
}

impl Contender<'_> {
    /// Who was accepted like this comes first, so that nobody's edit takes their quota; then holders of all that they
    /// want, then of a part, then the older, then by name.
    fn rank(&self) -> (bool, bool, bool, i64, &ForwardRef) {
        let all_held = self.claims.iter().all(|claim| self.held.iter().any(|held| claim.is_within(held)));
        (!self.unchanged, !all_held, self.held.is_empty(), self.forward.created, &self.forward.key)
    }
}

fn contender<'a>(
    forward: &'a Forward,
    pools: &BTreeMap<String, (i64, Pool, GatewayPoolSpec)>,
    observed: &Observed<'_>,
    gateways: &BTreeSet<IpAddr>,
    held: &Held<'_>,
) -> Result<Contender<'a>, Vec<Problem>> {
    let intent = validate(&forward.spec)?;
    let name = forward.spec.pool.as_str();
    let Some((_, pool, _)) = pools.get(name) else {
        let known = observed.pools.iter().any(|pool| pool.name == name);
        let message = if known {
            format!("pool {name} has problems of its own; its admin must mend it first")
        } else {
            format!("there is no GatewayPool {name}; correct the name or ask for the pool")
        };
        return Err(vec![Problem { field: "spec.pool".into(), reason: Reason::PoolNotFound, message }]);
    };
    let mut problems = pool.check(&intent);
    if let Some(target) = intent.targets.iter().find(|target| gateways.contains(&target.ip)) {
        problems.push(Problem {
            field: "spec.targets".into(),
            reason: Reason::InvalidTarget,
            message: format!("{} is an address of a gateway; a target must be another host", target.ip),
        });
    }
    let namespace = forward.key.namespace.as_str();
    let unlabelled = Labels::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
    let labels = observed.namespaces.get(namespace).unwrap_or(&unlabelled);
    match pool.covering(namespace, labels, &intent) {
        Ok(grants) if problems.is_empty() => {
            let claims = Claim::of(&intent);
            let before = held.get(&(name, forward.uid.as_str())).map_or(&[][..], Vec::as_slice);
            let unchanged = before.contains(&&intent);
            let held = before.iter().flat_map(|intent| Claim::of(intent));
            let held = held.filter(|held| claims.iter().any(|claim| claim.overlaps(held))).collect();
            Ok(Contender { forward, intent, unchanged, claims, held, grants })
        }
        Ok(_) => Err(problems),
        Err(problem) => {
            problems.push(problem);
            Err(problems)
        }
    }
}

/// Gives out the claims of one pool: for each contender, in their order, `None` or why it is refused.
fn arbitrate(contenders: &[Contender<'_>], pool: &(i64, Pool, GatewayPoolSpec)) -> Vec<Option<Problem>> {
    let grants = &pool.1.grants;
    let mut table = ClaimTable::default();
    let mut reserved = vec![false; contenders.len()];
    for (index, contender) in contenders.iter().enumerate() {
        if table.conflict(&contender.held, index).is_none() {
            table.insert(&contender.held, index);
            reserved[index] = true;
        }
    }
    let mut quota = Quota { contenders, grants, holders: BTreeMap::new() };
    let mut outcome: Vec<Option<Problem>> = vec![None; contenders.len()];
    let mut pending: Vec<usize> = (0..contenders.len()).collect();
    // A contender lets go of what it held when it is refused or takes something else instead, which may let in one that
    // was refused before it: try those again. Each round needs a release and nobody releases twice, so this ends.
    loop {
        let mut released = false;
        let mut refused = Vec::new();
        for index in pending {
            let contender = &contenders[index];
            outcome[index] = if let Some((claim, by)) = table.conflict(&contender.claims, index) {
                Some(conflict(contender, claim, contenders[by].forward))
            } else if quota.place(index, &mut BTreeSet::new()) {
                if std::mem::take(&mut reserved[index]) {
                    table.remove(&contender.held, index);
                    released |= contender.held != contender.claims;
                }
                table.insert(&contender.claims, index);
                None
            } else {
                Some(over_quota(contender, grants))
            };
            if outcome[index].is_some() {
                refused.push(index);
                if std::mem::take(&mut reserved[index]) {
                    table.remove(&contender.held, index);
                    released = true;
                }
            }
        }
        if !released {
            return outcome;
        }
        pending = refused;
    }
}

/// Which forwards count against which limited grant.
struct Quota<'a> {
    contenders: &'a [Contender<'a>],
    grants: &'a [Grant],
    /// By namespace and grant.
    holders: BTreeMap<(&'a str, usize), Vec<usize>>,
}

impl Quota<'_> {
    /// Finds room for a contender under one of its grants other than those `tried`. Holders move to another grant of
    /// theirs where that makes room, so whether all fit never depends on the order in which they came.
    fn place(&mut self, index: usize, tried: &mut BTreeSet<usize>) -> bool {
        let contender = &self.contenders[index];
        for grant in &contender.grants {
            let Some(max) = self.grants[*grant].max_forwards else { return true };
            if !tried.insert(*grant) {
                continue;
            }
            let key = (contender.forward.key.namespace.as_str(), *grant);
            let holders = self.holders.entry(key).or_default();
            if holders.len() < max {
                holders.push(index);
                return true;
            }
            for (at, holder) in holders.clone().into_iter().enumerate() {
                if self.place(holder, tried) {
                    self.holders.entry(key).or_default()[at] = index;
                    return true;
                }
            }
        }
        false
    }
}

fn conflict(loser: &Contender<'_>, claim: Claim, holder: &Forward) -> Problem {
    // Other namespaces' objects may be unreadable for the loser, so their names are not told.
    let holder = if holder.key.namespace == loser.forward.key.namespace {
        format!("PortForward {}", holder.key.name)
    } else {
        "a forward of another namespace".to_owned()
    };
    Problem {
        field: "spec.ports".into(),
        reason: Reason::PortConflict,
        message: format!("{claim} is held by {holder}; choose another port or address, or wait until it is free"),
    }
}

fn over_quota(contender: &Contender<'_>, grants: &[Grant]) -> Problem {
    let full: Vec<String> = contender
        .grants
        .iter()
        .map(|grant| {
            format!("grant {} allows {}", grants[*grant].name, grants[*grant].max_forwards.unwrap_or_default())
        })
        .collect();
    Problem {
        field: "spec".into(),
        reason: Reason::QuotaExceeded,
        message: format!(
            "namespace {} already has as many forwards as it may: {}; delete one or ask the pool's admin",
            contender.forward.key.namespace,
            full.join(", ")
        ),
    }
}
