//! What the agent knows of the cluster, and so what its node shall do. Pure: no client, no clock, no kernel.
//!
//! Fail-static: an intent changes only by complete knowledge. Nothing is decided before both lists were complete; a
//! slice that vanishes while there were forwards in it keeps them, since the operator empties a slice before it deletes
//! it; what cannot be understood keeps its last good form.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardSliceSpec, SliceForward};
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_api::id::Uid;

use crate::intents::{Intents, sharing};
use crate::source::cluster::slice::{Decoded, Entry, NotUnderstood, Unsupported};

/// The node's configuration and slices, with what is wrong with them.
#[derive(Debug, Default)]
pub(crate) struct Knowledge {
    name: String,
    /// The last good configuration.
    node: Option<GatewayNodeSpec>,
    /// Why that may not be the current one.
    node_problem: Option<String>,
    node_listed: bool,
    /// The pool whose slices were listed completely.
    listed_pool: Option<String>,
    slices: BTreeMap<String, Slice>,
    /// In how many slices each forward is: one is copied before it leaves its old slice.
    copies: HashMap<Uid, usize>,
    /// Those that are in several.
    moving: HashSet<Uid>,
}

/// A slice, and what is wrong with it.
#[derive(Clone, Debug)]
struct Slice {
    /// Generation of `content`; not known of what was taken up after a restart.
    generation: Option<i64>,
    /// Last good content; a forward that is not understood is there in its previous version, if it had one.
    content: Arc<ForwardSliceSpec>,
    unsupported: Vec<Unsupported>,
    /// Gone without having been emptied.
    missing: bool,
    /// Why its current content is not understood.
    problem: Option<String>,
}

impl Knowledge {
    /// Knows nothing but which node it is about.
    #[must_use]
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Takes up what was last known before a restart.
    pub(crate) fn restore(&mut self, intents: &Intents) {
        self.node = Some(intents.node.clone());
        for (name, content) in &intents.slices {
            self.set(name, Some(Slice::new(Arc::clone(content))));
        }
    }

    /// The pool whose slices concern this node.
    #[must_use]
    pub(crate) fn pool(&self) -> Option<&str> {
        self.node.as_ref().map(|node| node.pool.as_str())
    }

    /// The `GatewayNode` is there; whether that says something new.
    pub(crate) fn node_is(&mut self, spec: Result<GatewayNodeSpec, NotUnderstood>) -> bool {
        let problem = self.node_problem.take();
        let node = self.node.clone();
        match spec {
            Ok(spec) => self.node = Some(spec),
            Err(error) => {
                let message =
                    format!("GatewayNode {}: {error}; its last good form stays, upgrade the agent", self.name);
                self.node_problem = Some(message);
            }
        }
        (problem, node) != (self.node_problem.clone(), self.node.clone())
    }

    /// The `GatewayNode` is not there (any more).
    pub(crate) fn node_is_gone(&mut self) {
        let known = self.node.is_some();
        self.node_problem = known.then(|| {
            format!("GatewayNode {} is gone; what it last said stays until the operator writes it again", self.name)
        });
    }

    /// Whether there is a `GatewayNode` of the name is now known.
    pub(crate) fn node_is_listed(&mut self) {
        self.node_listed = true;
    }

    /// A slice of the node's pool is there.
    pub(crate) fn slice_is(&mut self, name: &str, content: Result<Decoded, NotUnderstood>) {
        self.put(name, content);
        self.prune();
    }

    /// A slice is not there any more.
    pub(crate) fn slice_is_gone(&mut self, name: &str) {
        if let Some(slice) = self.slices.get_mut(name) {
            slice.vanish();
        }
        self.prune();
    }

    /// These are all slices of `pool`.
    pub(crate) fn slices_are(&mut self, pool: &str, list: BTreeMap<String, Result<Decoded, NotUnderstood>>) {
        // A node that changed its pool carries nothing of the former one, from the moment that it knows the new one.
        let others = self.slices.iter().filter(|(_, slice)| slice.content.pool != pool);
        for name in others.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.set(&name, None);
        }
        for (name, slice) in &mut self.slices {
            if !list.contains_key(name) {
                slice.vanish();
            }
        }
        for (name, content) in list {
            self.put(&name, content);
        }
        self.listed_pool = Some(pool.to_owned());
        self.prune();
    }

    /// Whether everything that decides what the node shall do is known.
    #[must_use]
    pub(crate) fn is_complete(&self) -> bool {
        self.node_listed
            && self
                .node
                .as_ref()
                .is_some_and(|node| node.state == NodeState::Retired || self.listed_pool.as_ref() == Some(&node.pool))
    }

    /// What the node shall do; none until that is known completely.
    ///
    /// # Guarantees
    /// - Each forward is in one slice, also while it is on its way from one to another.
    /// - What vanished without having been emptied, or is not understood, is there as it was last good.
    /// - A node that is retired shall do nothing, whatever slices there are.
    #[must_use]
    pub(crate) fn intents(&self) -> Option<Intents> {
        let node = self.node.as_ref().filter(|_| self.is_complete())?;
        if node.state == NodeState::Retired {
            return Some(Intents { node: node.clone(), slices: BTreeMap::new() });
        }
        let places = self.places();
        let slices = self.slices.iter().map(|(name, slice)| {
            let elsewhere = |uid: &Uid| places.get(uid).is_some_and(|place| *place != name);
            if places.is_empty() || !slice.content.forwards.iter().any(|forward| elsewhere(&forward.uid)) {
                return (name.clone(), Arc::clone(&slice.content));
            }
            let mut content = ForwardSliceSpec::clone(&slice.content);
            content.forwards.retain(|forward| !elsewhere(&forward.uid));
            (name.clone(), Arc::new(content))
        });
        Some(Intents { node: node.clone(), slices: slices.collect() })
    }

    /// The generation of a slice as it was last seen.
    #[must_use]
    pub(crate) fn generation(&self, slice: &str) -> Option<i64> {
        self.slices.get(slice)?.generation
    }

    /// The forwards that are not understood, each with its slice.
    pub(crate) fn unsupported(&self) -> impl Iterator<Item = (&str, &Unsupported)> {
        self.slices.iter().flat_map(|(name, slice)| slice.unsupported.iter().map(move |found| (name.as_str(), found)))
    }

    /// What is wrong with the objects themselves, for people: gone, or not understood.
    #[must_use]
    pub(crate) fn problems(&self) -> Vec<(Reason, String)> {
        let mut problems: Vec<(Reason, String)> = Vec::new();
        for (name, slice) in &self.slices {
            if slice.missing {
                let count = slice.content.forwards.len();
                let message = format!(
                    "ForwardSlice {name} is gone without having been emptied; its {count} forwards stay, and the operator \
                     writes it again: restore the custom resource definitions if they are gone, and see that the operator runs"
                );
                problems.push((Reason::SliceMissing, message));
            }
            if let Some(error) = &slice.problem {
                let message = format!("ForwardSlice {name}: {error}; its last good form stays, upgrade the agent");
                problems.push((Reason::UnsupportedIntent, message));
            }
        }
        problems.extend(self.node_problem.iter().map(|message| (Reason::UnsupportedIntent, message.clone())));
        problems
    }

    fn put(&mut self, name: &str, content: Result<Decoded, NotUnderstood>) {
        let pool = self.pool().unwrap_or_default().to_owned();
        let content = content.and_then(|decoded| {
            if decoded.pool == pool {
                Ok(decoded)
            } else {
                Err(NotUnderstood::OtherPool { found: decoded.pool, expected: pool.clone() })
            }
        });
        let decoded = match content {
            Ok(decoded) => decoded,
            Err(error) => {
                let (hash, forwards, planned) = Default::default();
                let nothing = ForwardSliceSpec { pool, hash, forwards, planned };
                let slice = self.slices.entry(name.to_owned()).or_insert_with(|| Slice::new(Arc::new(nothing)));
                slice.problem = Some(error.to_string());
                slice.missing = false;
                return;
            }
        };
        let (mut forwards, mut unsupported) = (Vec::new(), Vec::new());
        for entry in decoded.forwards {
            match entry {
                Entry::Understood(forward) => forwards.push(forward),
                Entry::Unsupported(found) => {
                    forwards.extend(self.last_good(name, &found.uid).cloned());
                    unsupported.push(found);
                }
            }
        }
        let content = ForwardSliceSpec { pool, hash: decoded.hash, forwards, planned: decoded.planned };
        let content = sharing(content, self.slices.get(name).map(|before| &before.content));
        self.set(name, Some(Slice { generation: Some(decoded.generation), unsupported, ..Slice::new(content) }));
    }

    /// From now on, the slice of this name is this one, or none.
    fn set(&mut self, name: &str, slice: Option<Slice>) {
        for forward in slice.iter().flat_map(|slice| &slice.content.forwards) {
            let copies = self.copies.entry(forward.uid.clone()).or_default();
            *copies += 1;
            if *copies > 1 {
                self.moving.insert(forward.uid.clone());
            }
        }
        let before = match slice {
            Some(slice) => self.slices.insert(name.to_owned(), slice),
            None => self.slices.remove(name),
        };
        for forward in before.iter().flat_map(|before| &before.content.forwards) {
            if let Some(copies) = self.copies.get_mut(&forward.uid) {
                *copies -= 1;
                match *copies {
                    0 => drop(self.copies.remove(&forward.uid)),
                    1 => drop(self.moving.remove(&forward.uid)),
                    _ => {}
                }
            }
        }
    }

    /// The last good version of a forward: in the same slice, or wherever it lived before.
    fn last_good(&self, slice: &str, uid: &Uid) -> Option<&Arc<SliceForward>> {
        let same = self.slices.get(slice).into_iter();
        same.chain(self.slices.values())
            .find_map(|slice| slice.content.forwards.iter().find(|forward| forward.uid == *uid))
    }

    /// A missing slice holds nothing that lives elsewhere, and goes with its last forward.
    fn prune(&mut self) {
        let missing = self.slices.iter().filter(|(_, slice)| slice.missing);
        for name in missing.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            let present = self.slices.values().filter(|slice| !slice.missing);
            let living: HashSet<&Uid> =
                present.flat_map(|slice| &slice.content.forwards).map(|forward| &forward.uid).collect();
            let Some(slice) = self.slices.get(&name) else { continue };
            let mut content = ForwardSliceSpec::clone(&slice.content);
            content.forwards.retain(|forward| !living.contains(&forward.uid));
            if content.forwards.is_empty() {
                self.set(&name, None);
            } else if content.forwards.len() < slice.content.forwards.len() {
                let slice = Slice { content: Arc::new(content), ..slice.clone() };
                self.set(&name, Some(slice));
            }
        }
    }

    /// The slice that counts for each forward that is in several: the one where it is newest.
    fn places(&self) -> HashMap<&Uid, &String> {
        let mut best: HashMap<&Uid, (i64, &String)> = HashMap::new();
        for (name, slice) in self.slices.iter().filter(|_| !self.moving.is_empty()) {
            for forward in slice.content.forwards.iter().filter(|forward| self.moving.contains(&forward.uid)) {
                let place = best.entry(&forward.uid).or_insert((forward.generation, name));
                if forward.generation > place.0 {
                    *place = (forward.generation, name);
                }
            }
        }
        best.into_iter().map(|(uid, (_, name))| (uid, name)).collect()
    }
}

impl Slice {
    fn new(content: Arc<ForwardSliceSpec>) -> Self {
        Self { generation: None, content, unsupported: Vec::new(), missing: false, problem: None }
    }

    fn vanish(&mut self) {
        self.missing = true;
        self.problem = None;
        self.unsupported.clear();
        Arc::make_mut(&mut self.content).planned.clear();
    }
}

#[cfg(test)]
mod tests;
