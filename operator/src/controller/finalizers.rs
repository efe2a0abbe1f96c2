//! Which forwards get our finalizer, and which are let go.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec};
use sallyport_api::id::Uid;
use sallyport_policy::digest::slice_hash;

use crate::controller::cache::Entry;
use crate::controller::rollout::SliceRevisions;
use crate::controller::store::Store;

/// The slices without forwards that have to get our finalizer first, and those forwards: one enters a slice only once it
/// has the finalizer, so that it cannot vanish while a node carries it.
pub(crate) fn hold_first(
    store: &Store,
    held: &BTreeMap<String, ForwardSliceSpec>,
    mut slices: BTreeMap<String, ForwardSliceSpec>,
) -> (BTreeMap<String, ForwardSliceSpec>, BTreeSet<ForwardRef>) {
    let mut to_hold = BTreeSet::new();
    let has_finalizer =
        |key: &ForwardRef| store.forwards.entry(&key.namespace, &key.name).is_some_and(Entry::has_our_finalizer);
    for (name, slice) in &mut slices {
        let before = slice.forwards.len();
        let carried = |uid: &Uid| held.get(name).is_some_and(|slice| slice.forwards.iter().any(|f| f.uid == *uid));
        slice.forwards.retain(|forward| {
            let free = !has_finalizer(&forward.r#ref);
            if free {
                to_hold.insert(forward.r#ref.clone());
            }
            !free || carried(&forward.uid)
        });
        if slice.forwards.len() != before {
            slice.hash = slice_hash(&slice.forwards);
        }
    }
    slices.retain(|name, slice| !slice.forwards.is_empty() || !slice.planned.is_empty() || held.contains_key(name));
    (slices, to_hold)
}

/// The forwards that can be let go: they are `leaving`, and on no live node any more.
pub(crate) fn released(
    store: &Store,
    revisions: &SliceRevisions,
    leaving: impl Fn(&ObjectMeta) -> bool,
) -> BTreeSet<ForwardRef> {
    let free = store.forwards.entries().filter(|(_, entry)| {
        leaving(entry.meta()) && entry.has_our_finalizer() && !revisions.may_be_carried(&entry.uid())
    });
    free.map(|((namespace, name), _)| ForwardRef { namespace: namespace.clone(), name: name.clone() }).collect()
}
