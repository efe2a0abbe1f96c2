//! The slices that nothing is wanted in any more: they are emptied, and go when every node has read that back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sallyport_api::forward_slice::ForwardSliceSpec;
use sallyport_api::gateway_node::GatewayNode;
use sallyport_api::id::NodeName;
use sallyport_policy::digest::slice_hash;

use crate::controller::gateways::node_name;
use crate::controller::rollout::SliceRevisions;
use crate::controller::store::Store;

/// The slices as they were last written, those included that have vanished while a node may carry them.
pub(crate) fn held(revisions: &SliceRevisions) -> BTreeMap<String, ForwardSliceSpec> {
    revisions.slices().map(|(name, spec)| (name.to_owned(), spec.clone())).collect()
}

/// The slices that are `wanted`, with an empty one for each that should go; and those that every node has emptied.
pub(crate) fn with_empty(
    wanted: BTreeMap<String, ForwardSliceSpec>,
    held: &BTreeMap<String, ForwardSliceSpec>,
    store: &Store,
    revisions: &SliceRevisions,
    gone: &BTreeSet<NodeName>,
) -> (BTreeMap<String, ForwardSliceSpec>, BTreeSet<String>) {
    let (mut slices, mut done) = (wanted, BTreeSet::new());
    for (name, slice) in held.iter().filter(|(name, _)| !slices.contains_key(*name)).collect::<Vec<_>>() {
        let empty = empty(&slice.pool);
        if slice.hash == empty.hash && revisions.is_on_every_node(name) {
            done.insert(name.clone());
        }
        slices.insert(name.clone(), empty);
    }
    for (name, empty) in lost(store, held, gone) {
        slices.entry(name).or_insert(empty);
    }
    (slices, done)
}

/// A slice that vanished while nobody led is carried until it comes back: it does, with what is still wanted or empty.
fn lost(
    store: &Store,
    held: &BTreeMap<String, ForwardSliceSpec>,
    gone: &BTreeSet<NodeName>,
) -> Vec<(String, ForwardSliceSpec)> {
    let hash = slice_hash(&[]);
    let live = |gateway: &&Arc<GatewayNode>| !gone.contains(&node_name(&gateway.metadata));
    let carried = store.gateways.objects().filter(live).flat_map(|gateway| {
        let observed = gateway.status.iter().flat_map(|status| &status.observed_slices);
        observed.map(|observed| (observed, &gateway.spec.pool))
    });
    carried
        .filter(|(observed, _)| observed.hash != hash && !held.contains_key(&observed.name))
        .map(|(observed, pool)| (observed.name.clone(), empty(pool)))
        .collect()
}

fn empty(pool: &str) -> ForwardSliceSpec {
    ForwardSliceSpec { pool: pool.to_owned(), hash: slice_hash(&[]), forwards: Vec::new(), planned: Vec::new() }
}
