//! From what was observed to what should be: the verdicts, and the objects that carry them out.
//!
//! The decision itself is that of `sallyport-policy`, the same as on a lone host. Only what the life of an object in a
//! cluster adds is here and beside it: `retention`, `finalizers`, `slices`, `gateways`. Each step returns its part.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec};
use sallyport_api::{GatewayPool, Mode, Moment, NodeName, Uid};
use sallyport_policy::decide::{self as policy, Verdict};
use sallyport_policy::observed::{Forward, Node as ObservedNode, Observed, PoolObject};
use sallyport_policy::validate::Problem;

use crate::controller::desired::Desired;
use crate::controller::finalizers::{hold_first, released};
use crate::controller::gateways::{Gateways, gateways, node_name};
use crate::controller::retention::{Retention, frozen, frozen_pool, unreadable};
use crate::controller::rollout::SliceRevisions;
use crate::controller::slices;
use crate::controller::store::Store;

/// Decides at `now`; `gone` are the nodes that nobody waits for.
pub(crate) fn decide(
    store: &Store,
    revisions: &SliceRevisions,
    gone: &BTreeSet<NodeName>,
    retention: Retention,
    now: Moment,
) -> Desired {
    let held = slices::held(revisions);
    let (forwards, mut verdicts) = forwards(store, &held, retention);
    let decision = policy::decide(&Observed {
        forwards: &forwards,
        pools: &pools(store),
        namespaces: &namespaces(store),
        nodes: &store.nodes.objects().map(|node| node_of(node)).collect::<Vec<_>>(),
        slices: &held,
        // A successor waits for those too that leave by this very decision.
        outgoing: &revisions.carried(),
        unknown: revisions.unknown(),
        forbidden: &store.forbidden(),
        now,
    });
    let (mut expiries, mut pools, mut slices) = (decision.expiries, decision.pools, decision.slices);
    verdicts.extend(decision.forwards);

    let frozen = frozen(store, &held, retention);
    expiries.extend(frozen.expiries);
    pools.extend(frozen.problems);
    slices.extend(frozen.slices);

    let (slices, to_hold) = hold_first(store, &held, slices);
    let (slices, done_slices) = slices::with_empty(slices, &held, store, revisions, gone);
    let leaving = |meta: &ObjectMeta| meta.deletion_timestamp.is_some() && !retention.keep_deleted;
    let Gateways { specs, done, labelled } =
        gateways(store, decision.nodes, |pool| frozen_pool(store, pool, retention).is_some());
    Desired {
        verdicts,
        expiries,
        pools,
        slices,
        done_slices,
        gateways: specs,
        done_gateways: done,
        labelled,
        to_hold,
        to_release: released(store, revisions, leaving),
    }
}

fn pools(store: &Store) -> Vec<PoolObject> {
    let pool = |pool: &Arc<GatewayPool>| PoolObject {
        name: pool.metadata.name.clone().unwrap_or_default(),
        created: created(&pool.metadata),
        spec: pool.spec.clone(),
    };
    store.pools.objects().map(pool).collect()
}

/// The labels of the namespaces, by name.
fn namespaces(store: &Store) -> BTreeMap<String, BTreeMap<String, String>> {
    let labels = |meta: &ObjectMeta| (meta.name.clone().unwrap_or_default(), meta.labels.clone().unwrap_or_default());
    store.namespaces.objects().map(|namespace| labels(&namespace.metadata)).collect()
}

/// When an object was created; 1970 where the API server does not say.
fn created(meta: &ObjectMeta) -> Moment {
    meta.creation_timestamp.as_ref().map(Moment::from).unwrap_or_default()
}

/// The forwards that a verdict is asked for, and the verdicts on those for which it is clear already.
fn forwards(
    store: &Store,
    held: &BTreeMap<String, ForwardSliceSpec>,
    retention: Retention,
) -> (Vec<Forward>, BTreeMap<ForwardRef, Verdict>) {
    let pools: BTreeMap<&Uid, &str> =
        held.values().flat_map(|slice| slice.forwards.iter().map(|f| (&f.uid, slice.pool.as_str()))).collect();
    let (mut forwards, mut verdicts) = (Vec::new(), BTreeMap::new());
    for ((namespace, name), entry) in store.forwards.entries() {
        let key = ForwardRef { namespace: namespace.clone(), name: name.clone() };
        let (meta, uid) = (entry.meta(), entry.uid());
        if meta.deletion_timestamp.is_some() && !retention.keep_deleted {
            continue;
        }
        let spec = match entry.object() {
            Some(object) => Ok(Arc::new(object.spec.clone())),
            None => Err(unreadable(entry.problem().unwrap_or_default())),
        };
        // One that is not to be applied, or cannot be read, stays where it is, whatever pool it asks for.
        let pool = match (&spec, pools.get(&uid).copied()) {
            (Ok(spec), holding) => holding.filter(|_| spec.mode != Mode::Apply).or(Some(spec.pool.as_str())),
            (Err(_), holding) => holding,
        };
        if let Some(problem) = pool.and_then(|pool| frozen_pool(store, pool, retention)) {
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
        let (generation, created) = (meta.generation.unwrap_or_default(), created(meta));
        forwards.push(Forward { key, uid, generation, created, spec });
    }
    (forwards, verdicts)
}

/// The addresses and labels of a Node.
fn node_of(node: &Node) -> ObservedNode {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    ObservedNode {
        name: node_name(&node.metadata),
        labels: Some(node.metadata.labels.clone().unwrap_or_default()),
        addresses: addresses
            .filter(|address| address.type_ == "InternalIP")
            .filter_map(|address| address.address.parse().ok())
            .collect(),
    }
}

#[cfg(test)]
mod tests;
