//! From what should be to the writes that make it so; nothing is written that is so already.
//!
//! What should be is not decided here, and when a write may start is not either: `writer` does that.

use std::collections::BTreeMap;

use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec};
use sallyport_api::id::Uid;
use sallyport_api::names::FINALIZER;

use crate::controller::desired::Desired;
use crate::controller::gateways::{has_label, node_name};
use crate::controller::store::Store;
use crate::controller::write::Write;

/// The writes of what the agents act upon, in the order in which they should start.
pub(crate) fn writes(store: &Store, desired: &Desired) -> Vec<Write> {
    let mut writes = Vec::new();
    slice_writes(store, desired, &mut writes);
    for (name, spec) in &desired.gateways {
        if desired.done_gateways.contains(name) {
            writes.push(Write::DeleteGateway(name.clone()));
            continue;
        }
        let Some(uid) = store.nodes.get(name.as_str()).and_then(|node| node.metadata.uid.as_deref()) else { continue };
        if store.gateways.get(name.as_str()).is_none_or(|gateway| gateway.spec != *spec) {
            writes.push(Write::Gateway(name.clone(), uid.into(), spec.clone()));
        }
    }
    for node in store.nodes.objects() {
        let name = node_name(&node.metadata);
        let wanted = desired.labelled.contains(&name);
        if wanted != has_label(node) {
            writes.push(Write::Label(name, wanted));
        }
    }
    for (key, held) in in_turn(holds(desired).collect(), |(key, _)| key) {
        writes.extend(finalizer_write(store, key, held));
    }
    writes
}

/// Forwards whose finalizer has to come or to go.
fn holds(desired: &Desired) -> impl Iterator<Item = (&ForwardRef, bool)> {
    let hold = desired.to_hold.iter().map(|key| (key, true));
    hold.chain(desired.to_release.iter().map(|key| (key, false)))
}

/// Lets namespaces take turns: one with thousands of forwards must not hold up the others.
pub(crate) fn in_turn<T>(items: Vec<T>, key: impl Fn(&T) -> &ForwardRef) -> Vec<T> {
    let mut turns: BTreeMap<String, usize> = BTreeMap::new();
    let mut ranked = Vec::with_capacity(items.len());
    for item in items {
        let turn = turns.entry(key(&item).namespace.clone()).or_default();
        *turn += 1;
        ranked.push((*turn, item));
    }
    ranked.sort_by_key(|(turn, _)| *turn);
    ranked.into_iter().map(|(_, item)| item).collect()
}

fn slice_writes(store: &Store, desired: &Desired, writes: &mut Vec<Write>) {
    let current: BTreeMap<&str, &ForwardSliceSpec> =
        store.slices.objects().map(|slice| (slice.metadata.name.as_deref().unwrap_or_default(), &slice.spec)).collect();
    let has = |slice: &str, uid: &Uid| {
        current.get(slice).is_some_and(|slice| slice.forwards.iter().any(|forward| forward.uid == *uid))
    };
    let slice_of: BTreeMap<&Uid, &str> = desired
        .slices
        .iter()
        .flat_map(|(name, slice)| slice.forwards.iter().map(move |forward| (&forward.uid, name.as_str())))
        .collect();
    for (name, spec) in &desired.slices {
        if desired.done_slices.contains(name) {
            writes.push(Write::DeleteSlice(name.clone()));
            continue;
        }
        let Some(now) = current.get(name.as_str()) else {
            writes.push(Write::Slice(name.clone(), None, spec.clone()));
            continue;
        };
        // A forward that moves is in its new slice before it leaves the old one, so that no node ever misses it.
        let moving = now
            .forwards
            .iter()
            .any(|forward| slice_of.get(&forward.uid).is_some_and(|slice| slice != name && !has(slice, &forward.uid)));
        if *now != spec && !moving {
            let revision = store.slices.get(name).and_then(|slice| slice.metadata.resource_version.clone());
            writes.push(Write::Slice(name.clone(), revision, spec.clone()));
        }
    }
}

fn finalizer_write(store: &Store, key: &ForwardRef, wanted: bool) -> Option<Write> {
    let entry = store.forwards.entry(&key.namespace, &key.name)?;
    let mut list = entry.finalizers().to_vec();
    list.retain(|finalizer| finalizer != FINALIZER);
    if wanted {
        list.push(FINALIZER.to_owned());
    }
    Some(Write::Finalizers(key.clone(), entry.meta().resource_version.clone()?, list))
}

#[cfg(test)]
mod tests;
