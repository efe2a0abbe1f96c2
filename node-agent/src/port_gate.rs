//! The gate before the ports of a host: a forward that this host never carried waits while somebody else listens on them.
//!
//! Whoever starts to listen later revokes nothing: a forward is admitted once, whatever becomes of it afterwards. Remembered are
//! those that never were admitted, so that all others count as admitted after a restart, and after a reboot, which empties the
//! kernel.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sallyport_api::forward_slice::{ForwardSliceSpec, SliceForward};
use sallyport_api::id::{IntentHash, Uid};
use sallyport_engine::Engine;
use sallyport_engine::network::Network;
use sallyport_ruleset::facts::NodeFacts;
use sallyport_ruleset::iptables::layout::lower;
use sallyport_ruleset::listener::{Endpoint, Listener};
use sallyport_ruleset::table::{Failure, ForwardingTable};
use sallyport_runtime::once::Once;

use crate::converge::Converger;
use crate::error_chain::chain_of;
use crate::intents::Intents;
use crate::sockets::{FREE, SocketView, in_use, refused};
use crate::state::StateDir;
use crate::waiting::Waiting;

/// So long after the agent's start, for those that waited before it: after a boot, others may start later than the agent.
const START: Duration = Duration::from_mins(1);

/// The forwards of this host at the gate, by uid; one that is nowhere here has not been seen yet.
#[derive(Debug, Default)]
pub(crate) struct PortGate {
    /// Whoever listens on their ports from now on comes too late.
    admitted: HashSet<Uid>,
    /// Somebody was there first.
    waiting: BTreeMap<Uid, Wait>,
    /// The slices of which every forward is admitted, so that they need not be looked at again.
    complete: BTreeMap<String, Arc<ForwardSliceSpec>>,
    /// The intents with which a pass last came to its end.
    carried: Option<Rc<Intents>>,
    /// Those that were admitted since then.
    fresh: BTreeSet<Uid>,
    /// Those that were not admitted, by uid, and whether they wait, as they are on disk.
    kept: BTreeMap<Uid, bool>,
    /// What cannot be seen or kept.
    failure: Once,
}

/// How a forward stands that was not admitted before.
enum Gate {
    Admitted,
    Waiting(Wait),
}

/// Why and for how long a forward waits.
#[derive(Debug)]
struct Wait {
    /// Hash of its intent: one that asks for something else is new again.
    hash: IntentHash,
    /// Where somebody listened when it came. Who listens elsewhere later is not waited for.
    endpoints: BTreeSet<Endpoint>,
    /// Until when more of them are found.
    open: Instant,
    /// When it is admitted if nobody listens there until then.
    free: Instant,
    /// Who was named as being in the way.
    listener: Option<Listener>,
    failure: Failure,
}

impl Wait {
    fn new(forward: &SliceForward, listener: &Listener, endpoints: BTreeSet<Endpoint>, now: Instant) -> Self {
        let failure = in_use(forward, listener);
        Self { hash: forward.hash.clone(), endpoints, open: now, free: now + FREE, listener: Some(*listener), failure }
    }

    /// One that waited when the agent ended.
    fn restored(forward: &SliceForward, now: Instant) -> Self {
        let message = "a program of this host listened on its ports before the agent started; a minute after the start \
                       the forward is programmed if none does any more";
        let failure = refused(forward, message.to_owned());
        let (open, free) = (now + START, now + START);
        Self { hash: forward.hash.clone(), endpoints: BTreeSet::new(), open, free, listener: None, failure }
    }

    /// Finds out who is in the way now.
    fn refresh(&mut self, forward: &SliceForward, sockets: &SocketView<'_>, now: Instant) {
        let there = sockets.in_the_way(forward);
        if now < self.open {
            self.endpoints.extend(there.iter().map(|listener| listener.endpoint()));
        }
        if let Some(first) = there.into_iter().find(|listener| self.endpoints.contains(&listener.endpoint())) {
            self.free = self.free.max(now + FREE);
            if self.listener != Some(*first) {
                self.listener = Some(*first);
                self.failure = in_use(forward, first);
            }
        }
    }
}

impl PortGate {
    /// Takes up what was known before a restart.
    pub(crate) fn restore(&mut self, intents: &Intents, state: &StateDir, now: Instant) {
        self.kept = state.not_admitted().unwrap_or_else(|error| {
            tracing::warn!(error = chain_of(&error), "which forwards wait is lost; all of them count as let in");
            BTreeMap::new()
        });
        for forward in intents.forwards() {
            match self.kept.get(&forward.uid) {
                Some(true) => drop(self.waiting.insert(forward.uid.clone(), Wait::restored(forward, now))),
                Some(false) => {}
                None => self.admitted.extend([forward.uid.clone()]),
            }
        }
    }

    /// Admits the forwards that come where nobody listens; who has to wait is for the pass to leave out. What the kernel holds
    /// already is admitted as well: state that was lost must not take away what runs.
    ///
    /// # Guarantees
    /// - One that was admitted stays so until a pass without it came to its end.
    /// - Sockets are read only while there is one that was not admitted.
    /// - Where they cannot be read, nobody new waits, and whoever waits goes on waiting.
    pub(crate) async fn admit<E: Engine>(
        &mut self,
        converger: &mut Converger<E>,
        intents: &Intents,
        facts: &NodeFacts<'_>,
        now: Instant,
    ) -> Waiting {
        let outside = self.outside(intents);
        let current: BTreeMap<&Uid, &IntentHash> = outside.iter().map(|f| (&f.uid, &f.hash)).collect();
        self.waiting.retain(|uid, wait| current.get(uid) == Some(&&wait.hash));
        let listeners = if outside.is_empty() { Ok(None) } else { converger.network.listeners() };
        match listeners {
            Ok(None) => {}
            Ok(Some(listeners)) => {
                let facts = NodeFacts { listeners: &listeners, ..*facts };
                let sockets = SocketView::of(intents, &facts);
                for forward in outside {
                    match self.gate_of(forward, &sockets, converger, intents, &facts, now).await {
                        Some(Gate::Admitted) => self.admit_one(&forward.uid),
                        Some(Gate::Waiting(wait)) => drop(self.waiting.insert(forward.uid.clone(), wait)),
                        None => {}
                    }
                }
                let freed = self.waiting.iter().filter(|(_, wait)| wait.free <= now);
                for uid in freed.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
                    self.admit_one(&uid);
                }
            }
            Err(error) => {
                self.log("cannot see who listens on this host, so no new forward waits for anybody", &error);
                for forward in outside {
                    if !self.waiting.contains_key(&forward.uid) {
                        self.admit_one(&forward.uid);
                    }
                }
            }
        }
        let (uids, failures) = self.waiting.iter().map(|(uid, wait)| (uid.clone(), wait.failure.clone())).unzip();
        Waiting { failures, uids }
    }

    fn admit_one(&mut self, uid: &Uid) {
        self.waiting.remove(uid);
        self.admitted.insert(uid.clone());
        self.fresh.insert(uid.clone());
    }

    /// How a forward that was not admitted stands from now on; `None` if that is as before.
    async fn gate_of<E: Engine>(
        &mut self,
        forward: &Arc<SliceForward>,
        sockets: &SocketView<'_>,
        converger: &mut Converger<E>,
        intents: &Intents,
        facts: &NodeFacts<'_>,
        now: Instant,
    ) -> Option<Gate> {
        if let Some(wait) = self.waiting.get_mut(&forward.uid) {
            wait.refresh(forward, sockets, now);
            if now >= wait.open {
                return None;
            }
            // What was noted before the start may be older than what the kernel holds.
            let alone = lower(&ForwardingTable::new(&intents.node, [forward], facts));
            let held = converger.observe().await.map_or(true, |installed| installed.delivers(&alone));
            return held.then_some(Gate::Admitted);
        }
        let there = sockets.in_the_way(forward);
        if let Some(first) = there.first() {
            let alone = ForwardingTable::new(&intents.node, [forward], facts);
            if alone.failures().next().is_some() {
                // Nobody shall stop a program for the sake of a forward that cannot be carried anyway.
                return None;
            }
            // What could not be read may be there.
            if converger.observe().await.is_ok_and(|installed| !installed.delivers(&lower(&alone))) {
                let endpoints = there.iter().map(|listener| listener.endpoint()).collect();
                return Some(Gate::Waiting(Wait::new(forward, first, endpoints, now)));
            }
        }
        Some(Gate::Admitted)
    }

    /// The forwards that are not admitted.
    fn outside<'a>(&mut self, intents: &'a Intents) -> Vec<&'a Arc<SliceForward>> {
        let mut outside = Vec::new();
        self.complete.retain(|name, slice| intents.slices.get(name).is_some_and(|is| Arc::ptr_eq(is, slice)));
        for (name, slice) in &intents.slices {
            if self.complete.contains_key(name) {
                continue;
            }
            let here = outside.len();
            outside.extend(slice.forwards.iter().filter(|forward| !self.admitted.contains(&forward.uid)));
            if outside.len() == here {
                self.complete.insert(name.clone(), Arc::clone(slice));
            }
        }
        outside
    }

    /// Keeps who was not admitted. That is on disk before the intents are, so that a crash makes nobody look admitted.
    pub(crate) fn keep(&mut self, intents: &Intents, state: &StateDir) {
        let outside = self.outside(intents).into_iter();
        let outside: BTreeMap<Uid, bool> =
            outside.map(|forward| (forward.uid.clone(), self.waiting.contains_key(&forward.uid))).collect();
        if self.kept == outside {
            return;
        }
        match state.keep_not_admitted(&outside) {
            Ok(()) => {
                self.kept = outside;
                self.failure.clear();
            }
            Err(error) => self.log("cannot note which forwards wait; after a restart they do not", &error),
        }
    }

    /// A pass came to its end: what was not wanted in it is no longer in the kernel, and comes anew.
    pub(crate) fn passed(&mut self, intents: &Rc<Intents>) {
        let fresh = std::mem::take(&mut self.fresh);
        let before = self.carried.replace(Rc::clone(intents));
        if fresh.is_empty() && before.as_ref() == Some(intents) {
            return;
        }
        let Some(before) = before else {
            let wanted: HashSet<&Uid> = intents.forwards().map(|forward| &forward.uid).collect();
            self.admitted.retain(|uid| wanted.contains(uid));
            return;
        };
        let nobody = BTreeSet::new();
        let changes = intents.changes_since(Some(&before), &nobody, &nobody);
        let come: HashSet<&Uid> = changes.come.iter().map(|forward| &forward.uid).collect();
        let gone = changes.gone.iter().map(|forward| &forward.uid).filter(|uid| !come.contains(uid));
        // Who was admitted and went before a pass was good is in none of the two.
        let mut never_carried = fresh;
        if !never_carried.is_empty() {
            let wanted: HashSet<&Uid> = intents.forwards().map(|forward| &forward.uid).collect();
            never_carried.retain(|uid| !wanted.contains(uid));
        }
        for uid in gone.chain(&never_carried) {
            self.admitted.remove(uid);
        }
    }

    /// Whether one that waits may be admitted.
    pub(crate) fn is_freed(
        &mut self,
        network: &dyn Network,
        intents: &Intents,
        facts: &NodeFacts<'_>,
        now: Instant,
    ) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let Ok(Some(listeners)) = network.listeners() else { return false };
        let sockets = SocketView::of(intents, &NodeFacts { listeners: &listeners, ..*facts });
        for forward in intents.forwards() {
            if let Some(wait) = self.waiting.get_mut(&forward.uid) {
                wait.refresh(forward, &sockets, now);
            }
        }
        self.waiting.values().any(|wait| wait.free <= now)
    }

    fn log(&mut self, what: &str, error: &dyn std::error::Error) {
        let text = format!("{what}: {}", chain_of(error));
        if self.failure.is_news(&text) {
            tracing::warn!("{text}");
        }
    }
}

#[cfg(test)]
mod tests;
