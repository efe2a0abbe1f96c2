//! From what was observed to what should be: the verdicts, and the objects that carry them out.
//!
//! The decision itself is that of `sallyport-policy`, the same as on a lone host. Only what the life of an object in a
//! cluster adds is here: finalizers, objects that are on their way out, and nodes that are cleaned before they leave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec};
use sallyport_api::gateway_node::GatewayNode;
use sallyport_api::{Intent, Mode};
use sallyport_policy::decide::{Forward, Node as RulesetNode, Observed, PoolObject, Verdict, decide as verdicts};
use sallyport_policy::digest::slice_hash;
use sallyport_policy::kept::spec_of;
use sallyport_policy::validate::Problem;

use crate::controller::cache;
use crate::controller::carried::History;
use crate::controller::desired::Desired;
use crate::controller::gateways::gateways;
use crate::controller::retention::{Purpose, frozen_pool, unreadable};
use crate::controller::store::Store;

/// Decides at `now`, in seconds since 1970; `dead` are the nodes that nobody waits for.
pub fn decide(store: &Store, history: &History, dead: &BTreeSet<String>, purpose: Purpose, now: i64) -> Desired {
    let held: BTreeMap<String, ForwardSliceSpec> =
        history.slices().map(|(name, spec)| (name.to_owned(), spec.clone())).collect();
    let mut desired = Desired::default();
    let forwards = forwards(store, &held, purpose, &mut desired.verdicts);
    let pools: Vec<PoolObject> = store
        .pools
        .objects()
        .map(|pool| PoolObject {
            name: pool.metadata.name.clone().unwrap_or_default(),
            created: pool.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            spec: pool.spec.clone(),
        })
        .filter(|_| !purpose.uninstall)
        .collect();
    let namespaces = store
        .namespaces
        .objects()
        .map(|object| {
            let meta = &object.metadata;
            (meta.name.clone().unwrap_or_default(), meta.labels.clone().unwrap_or_default())
        })
        .collect();
    let nodes: Vec<RulesetNode> = store.nodes.objects().map(|node| node_of(node)).collect();
    let decision = verdicts(&Observed {
        forwards: &forwards,
        pools: &pools,
        namespaces: &namespaces,
        nodes: &nodes,
        slices: &held,
        // A successor waits for those too that leave by this very decision.
        leaving: &history.carried(),
        unknown: history.unknown(),
        forbidden: &store.forbidden(),
        now,
    });
    desired.expiries = decision.expiries;
    desired.verdicts.extend(decision.forwards);
    desired.pools = decision.pools;
    desired.slices = decision.slices;
    for (name, slice) in &held {
        if let Some(problem) = frozen_pool(store, &slice.pool, purpose) {
            let expiries = slice.forwards.iter().filter_map(|f| Some((f.r#ref.clone(), f.intent.expires_at?)));
            desired.expiries.extend(expiries);
            desired.pools.insert(slice.pool.clone(), vec![problem]);
            desired.slices.insert(name.clone(), slice.clone());
        }
    }
    hold_first(store, &held, &mut desired);
    for (name, slice) in &held {
        desired.slices.entry(name.clone()).or_insert_with(|| {
            let hash = slice_hash(&[]);
            if slice.hash == hash && history.is_on_every_node(name) {
                desired.done_slices.insert(name.clone());
            }
            ForwardSliceSpec { pool: slice.pool.clone(), hash, forwards: Vec::new(), planned: Vec::new() }
        });
    }
    empty_what_is_lost(store, &held, dead, &mut desired);
    release(store, history, purpose, &mut desired);
    gateways(store, decision.nodes, purpose, &mut desired);
    if purpose.uninstall {
        // Their rules are out of reach; when they come back, `sallyport-node-agent cleanup` removes them.
        desired.done_gateways.extend(desired.gateways.keys().filter(|name| dead.contains(*name)).cloned());
        desired.labelled.retain(|name| !dead.contains(name));
    }
    desired
}

/// The forwards that a verdict is asked for; those whose verdict is clear already get it here.
fn forwards(
    store: &Store,
    held: &BTreeMap<String, ForwardSliceSpec>,
    purpose: Purpose,
    verdicts: &mut BTreeMap<ForwardRef, Verdict>,
) -> Vec<Forward> {
    let intents: BTreeMap<&str, (&str, &Intent)> = held
        .values()
        .flat_map(|slice| slice.forwards.iter().map(|f| (f.uid.as_str(), (slice.pool.as_str(), &f.intent))))
        .collect();
    let mut forwards = Vec::new();
    for ((namespace, name), entry) in store.forwards.entries() {
        let key = ForwardRef { namespace: namespace.clone(), name: name.clone() };
        let (meta, uid) = (entry.meta(), uid_of(entry));
        if meta.deletion_timestamp.is_some() && !purpose.keep_deleted {
            continue;
        }
        if purpose.uninstall {
            verdicts.insert(key, Verdict::Refused(vec![uninstalled()]));
            continue;
        }
        let spec = if let Some(object) = entry.object() {
            Arc::new(object.spec.clone())
        } else {
            let Some((pool, intent)) = intents.get(uid.as_str()) else {
                verdicts.insert(key, Verdict::Refused(vec![unreadable(entry.problem().unwrap_or_default())]));
                continue;
            };
            Arc::new(spec_of(pool, intent))
        };
        // One that is not to be applied stays where it is, whatever pool it asks for.
        let pool = match intents.get(uid.as_str()) {
            Some((pool, _)) if spec.mode != Mode::Apply => pool,
            _ => spec.pool.as_str(),
        };
        if let Some(problem) = frozen_pool(store, pool, purpose) {
            let held = held.values().flat_map(|slice| &slice.forwards).find(|forward| forward.uid == uid);
            let verdict = match held {
                Some(forward) => Verdict::Accepted(forward.hash.clone()),
                None => Verdict::Refused(vec![Problem {
                    field: "spec.pool".into(),
                    reason: Reason::PoolNotFound,
                    ..problem
                }]),
            };
            verdicts.insert(key, verdict);
            continue;
        }
        let created = meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        forwards.push(Forward { key, uid, generation: meta.generation.unwrap_or_default(), created, spec });
    }
    forwards
}

fn uid_of<K: kube::Resource<DynamicType = ()>>(entry: &cache::Entry<K>) -> String {
    entry.meta().uid.clone().unwrap_or_default()
}

fn uninstalled() -> Problem {
    Problem {
        field: "spec".into(),
        reason: Reason::Pending,
        message: "Sallyport is uninstalled: no gateway carries any forward until it is installed again".into(),
    }
}

/// The addresses and labels of a Node.
fn node_of(node: &Node) -> RulesetNode {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    RulesetNode {
        name: node.metadata.name.clone().unwrap_or_default(),
        labels: Some(node.metadata.labels.clone().unwrap_or_default()),
        addresses: addresses
            .filter(|address| address.type_ == "InternalIP")
            .filter_map(|address| address.address.parse().ok())
            .collect(),
    }
}

/// A forward enters a slice only once it has our finalizer, so that it cannot vanish while a node carries it.
fn hold_first(store: &Store, held: &BTreeMap<String, ForwardSliceSpec>, desired: &mut Desired) {
    let has_finalizer =
        |key: &ForwardRef| store.forwards.entry(&key.namespace, &key.name).is_some_and(cache::Entry::has_our_finalizer);
    for (name, slice) in &mut desired.slices {
        let before = slice.forwards.len();
        let carried = |uid: &str| held.get(name).is_some_and(|slice| slice.forwards.iter().any(|f| f.uid == uid));
        slice.forwards.retain(|forward| {
            let free = !has_finalizer(&forward.r#ref);
            if free {
                desired.to_hold.insert(forward.r#ref.clone());
            }
            !free || carried(&forward.uid)
        });
        if slice.forwards.len() != before {
            slice.hash = slice_hash(&slice.forwards);
        }
    }
    desired
        .slices
        .retain(|name, slice| !slice.forwards.is_empty() || !slice.planned.is_empty() || held.contains_key(name));
}

/// A slice that vanished while nobody led is carried until it comes back: it does, with what is still wanted or empty.
fn empty_what_is_lost(
    store: &Store,
    held: &BTreeMap<String, ForwardSliceSpec>,
    dead: &BTreeSet<String>,
    desired: &mut Desired,
) {
    let hash = slice_hash(&[]);
    let live = |gateway: &&Arc<GatewayNode>| !dead.contains(gateway.metadata.name.as_deref().unwrap_or_default());
    for gateway in store.gateways.objects().filter(live) {
        let observed = gateway.status.iter().flat_map(|status| &status.observed_slices);
        for lost in observed.filter(|observed| observed.hash != hash && !held.contains_key(&observed.name)) {
            desired.slices.entry(lost.name.clone()).or_insert_with(|| ForwardSliceSpec {
                pool: gateway.spec.pool.clone(),
                hash: hash.clone(),
                forwards: Vec::new(),
                planned: Vec::new(),
            });
        }
    }
}

/// Lets go of forwards that are on their way out and on no live node.
fn release(store: &Store, history: &History, purpose: Purpose, desired: &mut Desired) {
    for ((namespace, name), entry) in store.forwards.entries() {
        let going = purpose.uninstall || (entry.meta().deletion_timestamp.is_some() && !purpose.keep_deleted);
        if !going || !entry.has_our_finalizer() {
            continue;
        }
        if !history.may_be_carried(&uid_of(entry)) {
            desired.to_release.insert(ForwardRef { namespace: namespace.clone(), name: name.clone() });
        }
    }
}

#[cfg(test)]
mod tests;
