//! What each node may carry: every revision of every slice since the oldest one that a node still has.
//!
//! A node reports the hash of the slice that it read back from its kernel. Between that revision and the newest one it may
//! be anywhere, so a forward is gone from a node only when the node reports a revision without it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sallyport_api::forward_slice::{ForwardSlice, ForwardSliceSpec, SliceForward};
use sallyport_api::gateway_node::{GatewayNodeStatus, ObservedSlice, SliceState};
use sallyport_api::id::{IntentHash, SliceHash, Uid};
use sallyport_api::intent::Intent;
use sallyport_policy::digest::slice_hash;
use sallyport_policy::observed::Outgoing;

/// Revisions of one slice that are remembered; a node that is further behind counts as unknown.
const MAX_REVISIONS: usize = 64;

/// What a node of a pool may carry, by its last report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeReport<'a> {
    /// Name of the pool whose slices it carries.
    pub(crate) pool: &'a str,
    /// What its agent reported last.
    pub(crate) status: &'a GatewayNodeStatus,
    /// Whether nobody waits for it: it carries nothing, or its node has not been ready for long.
    pub(crate) gone: bool,
}

/// What a node does for one forward, by its last report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Readback {
    /// Its kernel was read back with the intent of this hash.
    Hash(IntentHash),
    /// It reported that it cannot.
    Failed,
    /// Its kernel was read back without it.
    Nothing,
    /// It has not reported what it does.
    Unknown,
}

/// One forward in one revision of a slice.
#[derive(Debug, PartialEq)]
struct RevisedForward {
    hash: IntentHash,
    intent: Arc<Intent>,
}

/// One revision of a slice.
#[derive(Debug)]
struct Revision {
    generation: i64,
    hash: SliceHash,
    forwards: BTreeMap<Uid, Arc<RevisedForward>>,
}

impl Revision {
    /// Whether a report speaks of this revision. The hash alone would not do: a slice may return to one that it had before.
    fn is(&self, observed: &ObservedSlice) -> bool {
        self.generation == observed.generation && self.hash == observed.hash
    }
}

#[derive(Debug)]
struct Slice {
    pool: String,
    /// Oldest first; the last is the newest. Never empty.
    revisions: Vec<Revision>,
    /// Whether every live node reported the last one.
    settled: bool,
    /// The newest revision, whole: when the object vanishes, this still says who holds what.
    newest: Arc<ForwardSlice>,
}

/// The revisions of all slices.
#[derive(Debug, Default)]
pub(crate) struct SliceRevisions {
    slices: BTreeMap<String, Slice>,
    /// Pools with a live node of which it is not known what it carries.
    unknown: BTreeSet<String>,
    /// Pools with a live node that carries a slice which is not there any more. Its forwards may enter slices again at
    /// once: to make them wait would take their rules away.
    lost: BTreeSet<String>,
    /// For each forward, the slice whose newest revision has it, or else one that had it.
    slice_of: BTreeMap<Uid, String>,
}

impl SliceRevisions {
    /// Takes in the newest revisions of the slices, and forgets the revisions that no live node can have any more.
    pub(crate) fn update<'a>(
        &mut self,
        newest: impl Iterator<Item = &'a Arc<ForwardSlice>>,
        reports: &[NodeReport<'_>],
    ) {
        let mut existing = BTreeSet::new();
        for slice in newest {
            let name = slice.metadata.name.clone().unwrap_or_default();
            self.remember(&name, slice);
            existing.insert(name);
        }
        // A slice is deleted after every node reported it empty, so nothing can be left of it.
        self.slices.retain(|name, slice| {
            existing.contains(name) || slice.revisions.last().is_some_and(|f| !f.forwards.is_empty())
        });
        self.unknown.clear();
        for (name, slice) in &mut self.slices {
            let newest = slice.revisions.len() - 1;
            let mut oldest = newest;
            slice.settled = true;
            for report in reports.iter().filter(|report| report.pool == slice.pool && !report.gone) {
                let observed = report.status.observed_slices.iter().find(|observed| observed.name == *name);
                let at = observed.map(|observed| {
                    let at = slice.revisions.iter().rposition(|revision| revision.is(observed));
                    // Not yet read back: it may still be at any revision up to this one.
                    (at, observed.state == SliceState::Programmed)
                });
                if let Some((None, _)) = at {
                    self.unknown.insert(slice.pool.clone());
                }
                let at = if let Some((Some(at), true)) = at { Some(at) } else { None };
                slice.settled &= at == Some(newest);
                oldest = oldest.min(at.unwrap_or_default());
            }
            slice.revisions.drain(..oldest);
        }
        let lost = reports.iter().filter(|report| {
            !report.gone
                && report
                    .status
                    .observed_slices
                    .iter()
                    .any(|observed| observed.hash != slice_hash(&[]) && !self.slices.contains_key(&observed.name))
        });
        self.lost = lost.map(|report| report.pool.to_owned()).collect();
        // The newest revisions come last, so that they decide where a forward is.
        let old = self
            .slices
            .iter()
            .flat_map(|(name, slice)| slice.revisions.iter().rev().skip(1).map(move |revision| (name, revision)));
        let new = self.slices.iter().filter_map(|(name, slice)| Some((name, slice.revisions.last()?)));
        self.slice_of = old
            .chain(new)
            .flat_map(|(name, revision)| revision.forwards.keys().map(move |uid| (uid.clone(), name.clone())))
            .collect();
    }

    fn remember(&mut self, name: &str, object: &Arc<ForwardSlice>) {
        let spec = &object.spec;
        let slice = self.slices.entry(name.to_owned()).or_insert_with(|| Slice {
            pool: spec.pool.clone(),
            revisions: Vec::new(),
            settled: false,
            newest: Arc::clone(object),
        });
        slice.newest = Arc::clone(object);
        let last = slice.revisions.last();
        let generation = object.metadata.generation.unwrap_or_default();
        if last.is_some_and(|revision| revision.generation == generation && revision.hash == spec.hash) {
            return;
        }
        let carried = |forward: &Arc<SliceForward>| {
            let known = last.and_then(|revision| revision.forwards.get_key_value(&forward.uid));
            match known {
                Some((uid, carried)) if carried.hash == forward.hash => (uid.clone(), Arc::clone(carried)),
                _ => {
                    let carried =
                        RevisedForward { hash: forward.hash.clone(), intent: Arc::new(forward.intent.clone()) };
                    (forward.uid.clone(), Arc::new(carried))
                }
            }
        };
        let revision =
            Revision { generation, hash: spec.hash.clone(), forwards: spec.forwards.iter().map(carried).collect() };
        slice.revisions.push(revision);
        if slice.revisions.len() > MAX_REVISIONS {
            slice.revisions.remove(0);
        }
    }

    /// The newest revision of every slice, of those too that have vanished while a node may carry them.
    pub(crate) fn slices(&self) -> impl Iterator<Item = (&str, &ForwardSliceSpec)> {
        self.slices.iter().map(|(name, slice)| (name.as_str(), &slice.newest.spec))
    }

    /// Pools with a live node of which it is not known what it carries.
    pub(crate) fn unknown(&self) -> &BTreeSet<String> {
        &self.unknown
    }

    /// Every forward that a live node may still carry and no slice has any more, or not like this.
    pub(crate) fn outgoing(&self) -> Vec<Outgoing> {
        let mut outgoing = Vec::new();
        for slice in self.slices.values() {
            let mut seen = BTreeSet::new();
            for revision in slice.revisions.iter().rev().skip(1) {
                for (uid, carried) in &revision.forwards {
                    let wanted = self
                        .newest(uid)
                        .is_some_and(|(pool, newest)| *pool == slice.pool && newest.hash == carried.hash);
                    if !wanted && seen.insert((uid.clone(), carried.hash.clone())) {
                        outgoing.push(Outgoing {
                            pool: slice.pool.clone(),
                            uid: uid.clone(),
                            intent: Arc::clone(&carried.intent),
                        });
                    }
                }
            }
        }
        outgoing
    }

    /// Everything that a live node may carry: what is leaving, and what is in the slices.
    pub(crate) fn carried(&self) -> Vec<Outgoing> {
        let mut carried = self.outgoing();
        for slice in self.slices.values() {
            let newest = slice.revisions.last().into_iter().flat_map(|revision| &revision.forwards);
            carried.extend(newest.map(|(uid, carried)| Outgoing {
                pool: slice.pool.clone(),
                uid: uid.clone(),
                intent: Arc::clone(&carried.intent),
            }));
        }
        carried
    }

    /// Whether a live node may carry the forward in any revision. What a node of any pool does that is not known may be that:
    /// a forward may have asked for another pool before.
    pub(crate) fn may_be_carried(&self, uid: &Uid) -> bool {
        !self.unknown.is_empty()
            || !self.lost.is_empty()
            || self
                .slices
                .values()
                .flat_map(|slice| &slice.revisions)
                .any(|revision| revision.forwards.contains_key(uid))
    }

    /// Whether every live node has read back the newest revision of the slice.
    pub(crate) fn is_on_every_node(&self, slice: &str) -> bool {
        self.slices.get(slice).is_some_and(|slice| slice.settled)
    }

    /// The pool and the newest revision of a forward that is in a slice.
    fn newest(&self, uid: &Uid) -> Option<(&String, &RevisedForward)> {
        let slice = self.slices.get(self.slice_of.get(uid)?)?;
        Some((&slice.pool, slice.revisions.last()?.forwards.get(uid)?))
    }

    /// The forward in all revisions of its slice; `None` for one that no live node can carry.
    pub(crate) fn find<'a>(&'a self, uid: &'a Uid) -> Option<ForwardRevisions<'a>> {
        let slice = self.slice_of.get(uid)?;
        let revisions = self.slices.get(slice).map_or(&[][..], |slice| &slice.revisions);
        Some(ForwardRevisions { uid, slice, revisions })
    }
}

/// A forward in all revisions of its slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForwardRevisions<'a> {
    uid: &'a Uid,
    slice: &'a str,
    revisions: &'a [Revision],
}

impl ForwardRevisions<'_> {
    /// What a node does for it, by the node's last report.
    pub(crate) fn on(&self, status: &GatewayNodeStatus) -> Readback {
        let Some(observed) = status.observed_slices.iter().find(|observed| observed.name == self.slice) else {
            return Readback::Nothing;
        };
        if observed.state == SliceState::Pending {
            return Readback::Unknown;
        }
        let Some(revision) = self.revisions.iter().rfind(|revision| revision.is(observed)) else {
            return Readback::Unknown;
        };
        let failed = || !observed.failed.is_empty() && observed.failed.contains(&self.uid.prefix());
        match revision.forwards.get(self.uid) {
            None => Readback::Nothing,
            Some(_) if failed() => Readback::Failed,
            Some(carried) => Readback::Hash(carried.hash.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
