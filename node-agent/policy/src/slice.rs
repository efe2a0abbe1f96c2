//! Cuts the accepted intents of a pool into slices, so that one change rewrites one small object.
//!
//! A forward stays in its slice while it lives there; only newcomers, and forwards that outgrew their slice, look for
//! room. What is only planned takes what room is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sallyport_api::forward_slice::{ForwardSliceSpec, SliceForward};
use sallyport_api::id::Uid;
use sallyport_api::names::{MAX_SLICE_BYTES, MAX_SLICE_FORWARDS};

use crate::digest::slice_hash;

/// Cuts `accepted` and `planned` (by pool), keeping to `existing` (by slice name) where possible. No slice is empty.
#[must_use]
pub fn cut(
    mut accepted: BTreeMap<String, Vec<Arc<SliceForward>>>,
    mut planned: BTreeMap<String, Vec<Arc<SliceForward>>>,
    existing: &BTreeMap<String, ForwardSliceSpec>,
) -> BTreeMap<String, ForwardSliceSpec> {
    let homes: BTreeMap<(&str, &Uid), Home<'_>> = existing
        .iter()
        .flat_map(|(name, slice)| {
            slice.forwards.iter().map(move |f| ((slice.pool.as_str(), &f.uid), Home { slice: name, entry: f }))
        })
        .collect();
    let unchanged = |pool: &str, forward: &SliceForward| {
        homes.get(&(pool, &forward.uid)).is_some_and(|home| **home.entry == *forward)
    };
    let plans: BTreeMap<(&str, &Uid), &str> = existing
        .iter()
        .flat_map(|(name, slice)| slice.planned.iter().map(move |f| ((slice.pool.as_str(), &f.uid), name.as_str())))
        .collect();
    let pools: BTreeSet<String> = accepted.keys().chain(planned.keys()).cloned().collect();
    let mut slices = BTreeMap::new();
    for pool in pools {
        let mut forwards = accepted.remove(&pool).unwrap_or_default();
        // Who did not change comes first, so that one that grew is the one to leave a full slice.
        forwards.sort_by_cached_key(|forward| (!unchanged(&pool, forward), forward.r#ref.clone()));
        let mut open: BTreeMap<String, Open> = BTreeMap::new();
        let mut homeless = Vec::new();
        for forward in forwards {
            match homes.get(&(pool.as_str(), &forward.uid)) {
                Some(home) => homeless.extend(open.entry(home.slice.to_owned()).or_default().add(forward)),
                None => homeless.push(forward),
            }
        }
        let mut number = 0;
        for forward in homeless {
            let mut rest = Some(forward);
            while let Some(forward) = rest {
                rest = open.entry(format!("{pool}-{number:04}")).or_default().add(forward);
                number += u32::from(rest.is_some());
            }
        }
        for forward in planned.remove(&pool).unwrap_or_default() {
            let mut rest = match plans.get(&(pool.as_str(), &forward.uid)) {
                Some(home) => open.entry((*home).to_owned()).or_default().plan(forward),
                None => Some(forward),
            };
            for number in 0.. {
                let Some(forward) = rest else { break };
                rest = open.entry(format!("{pool}-{number:04}")).or_default().plan(forward);
            }
        }
        for (name, Open { mut forwards, mut planned, .. }) in open {
            forwards.sort_by(|a, b| a.uid.cmp(&b.uid));
            planned.sort_by(|a, b| a.uid.cmp(&b.uid));
            slices
                .insert(name, ForwardSliceSpec { pool: pool.clone(), hash: slice_hash(&forwards), forwards, planned });
        }
    }
    slices
}

/// Where a forward lives.
struct Home<'a> {
    /// Name of the slice.
    slice: &'a str,
    entry: &'a Arc<SliceForward>,
}

/// Bytes of a slice beside its forwards: pool, hash and punctuation.
const ENVELOPE: usize = 256;

#[derive(Default)]
struct Open {
    /// Of the forwards, as JSON with their commas.
    bytes: usize,
    forwards: Vec<Arc<SliceForward>>,
    planned: Vec<Arc<SliceForward>>,
}

impl Open {
    /// Takes `forward` in, or gives it back when there is no room.
    fn add(&mut self, forward: Arc<SliceForward>) -> Option<Arc<SliceForward>> {
        if self.is_full(&forward) {
            return Some(forward);
        }
        self.forwards.push(forward);
        None
    }

    /// Takes in `forward` as planned, or gives it back when there is no room.
    fn plan(&mut self, forward: Arc<SliceForward>) -> Option<Arc<SliceForward>> {
        if self.is_full(&forward) {
            return Some(forward);
        }
        self.planned.push(forward);
        None
    }

    /// Whether there is no room for one more; if there is, it counts from now on.
    fn is_full(&mut self, forward: &SliceForward) -> bool {
        let bytes = serde_json::to_vec(forward).map_or(MAX_SLICE_BYTES, |json| json.len() + 1);
        let entries = self.forwards.len() + self.planned.len();
        let full = entries >= MAX_SLICE_FORWARDS || self.bytes + bytes > MAX_SLICE_BYTES - ENVELOPE;
        if full && entries > 0 {
            return true;
        }
        self.bytes += bytes;
        false
    }
}
