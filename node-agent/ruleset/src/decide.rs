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
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec, SliceForward};
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_api::gateway_pool::GatewayPoolSpec;
use sallyport_api::intent::Intent;
use sallyport_api::port_forward::PortForwardSpec;

use crate::arbitrate::{Contender, Lingering, arbitrate, waits};
use crate::claim::Claim;
use crate::digest;
use crate::expiry::{has_expired, moment};
use crate::pool::{Labels, Lifetime, Pool, validate_pool};
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
    /// When forwards expire or did, in seconds since 1970; those only that could hold otherwise.
    pub expiries: BTreeMap<ForwardRef, i64>,
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
        let outcome = contender(forward, &pools, observed, &gateways, &held).and_then(|(contender, limit)| {
            decision.expiries.extend(contender.intent.expires_at.map(|expiry| (forward.key.clone(), expiry)));
            if has_expired(&contender.intent, observed.now) {
                Err(vec![expired(&contender.intent, limit)])
            } else {
                Ok(contender)
            }
        });
        match outcome {
            Ok(contender) => contenders.entry(&forward.spec.pool).or_default().push(contender),
            Err(problems) => {
                decision.forwards.insert(forward.key.clone(), Verdict::Refused(problems));
            }
        }
    }

    let mut accepted: BTreeMap<String, Vec<SliceForward>> = BTreeMap::new();
    for (name, mut contenders) in contenders {
        contenders.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let (unknown, lingering) = (observed.unknown.contains(name), Lingering::of(name, observed.leaving));
        let waiting: Vec<_> = contenders.iter().map(|contender| waits(contender, unknown, &lingering)).collect();
        let outcome = arbitrate(&contenders, &waiting, &pools[name].1.grants);
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

/// `limit` is that of the grant, if not the forward itself says when.
fn expired(intent: &Intent, limit: Option<String>) -> Problem {
    let at = intent.expires_at.map(moment).unwrap_or_default();
    let (field, message) = match limit {
        None => ("spec.expiresAt", format!("expired at {at}; set a later moment, or delete the forward")),
        Some(limit) => (
            "spec",
            format!("expired at {at}: {limit} from its creation; create it anew, or ask the pool's admin for longer"),
        ),
    };
    Problem { field: field.into(), reason: Reason::Expired, message }
}

/// What a forward asks for, if nothing but other forwards can be in its way, and the limit of its lifetime in words.
fn contender<'a>(
    forward: &'a Forward,
    pools: &BTreeMap<String, (i64, Pool, GatewayPoolSpec)>,
    observed: &Observed<'_>,
    gateways: &BTreeSet<IpAddr>,
    held: &Held<'_>,
) -> Result<(Contender<'a>, Option<String>), Vec<Problem>> {
    let mut intent = validate(&forward.spec)?;
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
    if let Some((target, net)) = intent
        .targets
        .iter()
        .find_map(|target| Some((target, observed.forbidden.iter().find(|net| net.contains(&target.ip))?)))
    {
        problems.push(Problem {
            field: "spec.targets".into(),
            reason: Reason::InvalidTarget,
            message: format!(
                "{} is in {net}, which belongs to the cluster itself (API server, Services); choose another target",
                target.ip
            ),
        });
    }
    let namespace = forward.key.namespace.as_str();
    let unlabelled = Labels::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
    let labels = observed.namespaces.get(namespace).unwrap_or(&unlabelled);
    match pool.covering(namespace, labels, &intent) {
        Ok(covering) if problems.is_empty() => {
            let Lifetime { grants, expires_at, limit } = pool.lifetime(&covering, forward.created, intent.expires_at);
            intent.expires_at = expires_at;
            let claims = Claim::of(&intent);
            let before = held.get(&(name, forward.uid.as_str())).map_or(&[][..], Vec::as_slice);
            let unchanged = before.contains(&&intent);
            let held = before.iter().flat_map(|intent| Claim::of(intent));
            let held = held.filter(|held| claims.iter().any(|claim| claim.overlaps(held))).collect();
            Ok((Contender { forward, intent, unchanged, claims, held, grants }, limit))
        }
        Ok(_) => Err(problems),
        Err(problem) => {
            problems.push(problem);
            Err(problems)
        }
    }
}
