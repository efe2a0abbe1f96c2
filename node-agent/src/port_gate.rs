//! The gate before the ports of a host: a forward that this host never carried waits while somebody else holds them, a program
//! that listens or a rule that translates; of one that is carried, what an edit adds waits in the same way.
//!
//! Whoever comes later revokes nothing: a forward is admitted once, whatever becomes of it afterwards. Remembered are
//! those that never were admitted, so that all others count as admitted after a restart, and after a reboot, which empties the
//! kernel.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use sallyport_api::forward_slice::{ForwardSliceSpec, SliceForward};
use sallyport_api::id::{IntentHash, Uid};
use sallyport_engine::Engine;
use sallyport_policy::places::Places;
use sallyport_ruleset::facts::NodeFacts;
use sallyport_ruleset::iptables::installed::InstalledRuleset;
use sallyport_ruleset::iptables::layout::lower;
use sallyport_ruleset::table::ForwardingTable;
use sallyport_runtime::once::Once;

use crate::converge::{Converger, Error};
use crate::error_chain::chain_of;
use crate::holders::{Holders, cut};
use crate::intents::Intents;
use crate::port_gate::wait::Wait;
use crate::state::{NotAdmitted, StateDir};
use crate::waiting::Waiting;

/// The forwards of this host at the gate, by uid; one that is not here has not been seen yet.
#[derive(Debug, Default)]
pub(crate) struct PortGate {
    gates: BTreeMap<Uid, Gate>,
    /// Those of them that wait,
    waiting: BTreeSet<Uid>,
    /// and those that were looked at since a pass last came to its end.
    looked_at: BTreeSet<Uid>,
    /// The slices of which every forward is admitted, so that they need not be looked at again.
    admitted: BTreeMap<String, Arc<ForwardSliceSpec>>,
    /// The intents with which a pass last came to its end.
    carried: Option<Rc<Intents>>,
    /// Those that were not admitted, by uid, as they are on disk.
    kept: BTreeMap<Uid, NotAdmitted>,
    /// What cannot be seen or kept.
    failure: Once,
}

/// How a forward stands.
#[derive(Debug, Default)]
struct Gate {
    had: Had,
    /// Somebody was first where else it would be.
    wait: Option<Box<Wait>>,
}

/// Where a forward was admitted: whoever comes there from now on comes too late. Of ten thousand most are what they were when
/// they came, so their places are worked out when they are asked for.
#[derive(Debug)]
enum Had {
    /// Wherever this intent is, and nowhere else.
    Of(Arc<SliceForward>),
    At(Box<Places>),
}

impl Default for Had {
    fn default() -> Self {
        Self::At(Box::default())
    }
}

impl From<Places> for Had {
    fn from(places: Places) -> Self {
        Self::At(Box::new(places))
    }
}

impl Had {
    fn places(&self) -> Cow<'_, Places> {
        match self {
            Self::Of(forward) => Cow::Owned(Places::of(&forward.intent)),
            Self::At(places) => Cow::Borrowed(places),
        }
    }

    fn is_empty(&self) -> bool {
        self.places().is_empty()
    }
}

impl Gate {
    fn admits(&self, forward: &SliceForward) -> bool {
        matches!(&self.had, Had::Of(of) if of.hash == forward.hash) || self.had.places().hold(&forward.intent)
    }

    fn admit(&mut self, forward: &Arc<SliceForward>) {
        self.wait = None;
        if self.had.is_empty() {
            self.had = Had::Of(Arc::clone(forward));
        } else {
            let mut had = self.had.places().into_owned();
            had.add(&forward.intent);
            self.had = had.into();
        }
    }

    /// What is not wanted any more has left the kernel.
    fn leave(&mut self, forward: &Arc<SliceForward>) {
        self.had = if self.wait.is_none() && self.admits(forward) {
            Had::Of(Arc::clone(forward))
        } else {
            self.had.places().cut(&forward.intent).as_ref().map(Places::of).unwrap_or_default().into()
        };
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
            let mut gate = Gate::default();
            match self.kept.get(&forward.uid) {
                None => gate.admit(forward),
                Some(NotAdmitted { had, waits: true }) => {
                    gate.had = had.clone().into();
                    gate.wait = Some(Box::new(Wait::restored(forward, had, now)));
                    self.waiting.insert(forward.uid.clone());
                }
                Some(NotAdmitted { had, waits: false }) => gate.had = had.clone().into(),
            }
            if gate.wait.is_some() || !gate.had.is_empty() {
                self.gates.insert(forward.uid.clone(), gate);
            }
        }
    }

    /// Admits the forwards that come where nobody is; who has to wait is for the pass to leave out, as a whole or without what an
    /// edit adds. What the kernel holds already is admitted as well: state that was lost must not take away what runs.
    ///
    /// # Guarantees
    /// - Where one was admitted it stays so until a pass without that came to its end.
    /// - Sockets are read, and rules for this alone, only while there is something that was not admitted.
    /// - Where sockets cannot be read, nobody new waits, and whoever waits goes on waiting. Where rules cannot, nothing is decided.
    pub(crate) async fn admit<E: Engine>(
        &mut self,
        converger: &mut Converger<E>,
        intents: &Intents,
        facts: &NodeFacts<'_>,
        now: Instant,
    ) -> Result<Waiting, Error> {
        let outside = self.outside(intents);
        self.forget_waits_but_of(&outside);
        let expected = outside.iter().copied().chain(intents.planned());
        converger.expect(ForwardingTable::new(&intents.node, expected, facts));
        if outside.is_empty() {
            return Ok(Waiting::default());
        }
        // Whoever is admitted now and goes before a pass is good comes anew.
        self.looked_at.extend(outside.iter().map(|forward| forward.uid.clone()));
        match converger.network.listeners() {
            Ok(None) => {}
            Ok(Some(listeners)) => {
                let installed = converger.observe().await?;
                let facts = NodeFacts { listeners: &listeners, ..*facts };
                let holders = Holders::of(intents, &facts, &installed.firewall, outside.iter().copied());
                for forward in &outside {
                    self.judge(forward, &holders, installed, intents, &facts, now);
                }
            }
            Err(error) => {
                self.log("cannot see who listens on this host, so no new forward waits for anybody", &error);
                for forward in &outside {
                    let gate = self.gates.entry(forward.uid.clone()).or_default();
                    if gate.wait.is_none() {
                        gate.admit(forward);
                    }
                }
            }
        }
        let mut waiting = Waiting::default();
        for forward in outside {
            let is_waiting = self.gates.get(&forward.uid).is_some_and(|gate| gate.wait.is_some());
            if is_waiting {
                self.waiting.insert(forward.uid.clone());
            } else {
                self.waiting.remove(&forward.uid);
            }
            let Some(Gate { had, wait: Some(wait), .. }) = self.gates.get(&forward.uid) else { continue };
            waiting.failures.push(wait.failure.clone());
            waiting.instead.insert(forward.uid.clone(), cut(forward, &had.places()));
        }
        Ok(waiting)
    }

    /// Finds out how a forward stands that was not admitted, or not everywhere.
    fn judge(
        &mut self,
        forward: &Arc<SliceForward>,
        holders: &Holders<'_>,
        installed: &InstalledRuleset,
        intents: &Intents,
        facts: &NodeFacts<'_>,
        now: Instant,
    ) {
        let gate = self.gates.entry(forward.uid.clone()).or_default();
        let alone = || ForwardingTable::new(&intents.node, [forward], facts);
        let had = gate.had.places();
        if let Some(wait) = &mut gate.wait {
            wait.refresh(forward, &had, holders, now);
            // What was noted before the start may be older than what the kernel holds.
            if wait.is_over(now) || wait.is_open(now) && installed.delivers(&lower(&alone())) {
                gate.admit(forward);
            }
            return;
        }
        let there = holders.in_the_way(forward, &had);
        let alone = if there.is_empty() { None } else { Some(alone()) };
        match alone {
            // Nobody shall stop a program for the sake of a forward that cannot be carried anyway.
            Some(alone) if alone.failures().next().is_some() => {
                if had.is_empty() {
                    self.gates.remove(&forward.uid);
                }
            }
            Some(alone) if !installed.delivers(&lower(&alone)) => {
                gate.wait = Some(Box::new(Wait::new(forward, &had, &there, now)));
            }
            _ => gate.admit(forward),
        }
    }

    /// Whoever asks for something else while it waits, or goes, does not wait any more.
    fn forget_waits_but_of(&mut self, outside: &[&Arc<SliceForward>]) {
        let current: BTreeMap<&Uid, &IntentHash> = outside.iter().map(|f| (&f.uid, &f.hash)).collect();
        let Self { gates, waiting, .. } = self;
        waiting.retain(|uid| {
            let Some(gate) = gates.get_mut(uid) else { return false };
            gate.wait.take_if(|wait| current.get(uid) != Some(&&wait.hash));
            let (waits, has_places) = (gate.wait.is_some(), !gate.had.is_empty());
            if !waits && !has_places {
                gates.remove(uid);
            }
            waits
        });
    }

    /// The forwards that are not admitted, or not everywhere.
    fn outside<'a>(&mut self, intents: &'a Intents) -> Vec<&'a Arc<SliceForward>> {
        let mut outside = Vec::new();
        self.admitted.retain(|name, slice| intents.slices.get(name).is_some_and(|is| Arc::ptr_eq(is, slice)));
        for (name, slice) in &intents.slices {
            if self.admitted.contains_key(name) {
                continue;
            }
            let here = outside.len();
            let is_admitted =
                |forward: &SliceForward| self.gates.get(&forward.uid).is_some_and(|gate| gate.admits(forward));
            outside.extend(slice.forwards.iter().filter(|forward| !is_admitted(forward)));
            if outside.len() == here {
                self.admitted.insert(name.clone(), Arc::clone(slice));
            }
        }
        outside
    }

    /// Keeps who was not admitted. That is on disk before the intents are, so that a crash makes nobody look admitted.
    pub(crate) fn keep(&mut self, intents: &Intents, state: &StateDir) {
        let outside = self.outside(intents).into_iter();
        let noted = |forward: &Arc<SliceForward>| match self.gates.get(&forward.uid) {
            Some(gate) => NotAdmitted { had: gate.had.places().into_owned(), waits: gate.wait.is_some() },
            None => NotAdmitted::default(),
        };
        let outside: BTreeMap<Uid, NotAdmitted> =
            outside.map(|forward| (forward.uid.clone(), noted(forward))).collect();
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
        let before = self.carried.replace(Rc::clone(intents));
        let looked_at = std::mem::take(&mut self.looked_at);
        if looked_at.is_empty() && before.as_ref() == Some(intents) {
            return;
        }
        let nobody = BTreeMap::new();
        let changes = intents.changes_since(before.as_deref(), &nobody, &nobody);
        // Whoever was looked at and went before a pass was good is in none of the two.
        let mut gone: BTreeSet<&Uid> = changes.gone.iter().map(|forward| &forward.uid).chain(&looked_at).collect();
        let unchanged = (!looked_at.is_empty()).then(|| intents.forwards()).into_iter().flatten();
        let looked_at_again = unchanged.filter(|forward| looked_at.contains(&forward.uid));
        for forward in changes.come.iter().chain(looked_at_again) {
            gone.remove(&forward.uid);
            if let Some(gate) = self.gates.get_mut(&forward.uid) {
                gate.leave(forward);
            }
        }
        if before.is_none() {
            let wanted: BTreeSet<&Uid> = intents.forwards().map(|forward| &forward.uid).collect();
            self.gates.retain(|uid, _| wanted.contains(uid));
        }
        for uid in gone {
            self.gates.remove(uid);
        }
        let gates = &self.gates;
        self.waiting.retain(|uid| gates.contains_key(uid));
    }

    /// Whether one that waits may be admitted.
    pub(crate) fn is_freed<E: Engine>(
        &mut self,
        converger: &Converger<E>,
        intents: &Intents,
        facts: &NodeFacts<'_>,
        now: Instant,
    ) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let Ok(Some(listeners)) = converger.network.listeners() else { return false };
        let Some(installed) = converger.installed() else { return false };
        let facts = NodeFacts { listeners: &listeners, ..*facts };
        let waits = |forward: &&Arc<SliceForward>| self.waiting.contains(&forward.uid);
        let waiting: Vec<&Arc<SliceForward>> = intents.forwards().filter(waits).collect();
        let holders = Holders::of(intents, &facts, &installed.firewall, waiting.iter().copied());
        let mut freed = false;
        for forward in waiting {
            if let Some(Gate { had, wait: Some(wait), .. }) = self.gates.get_mut(&forward.uid) {
                wait.refresh(forward, &had.places(), &holders, now);
                freed |= wait.is_over(now);
            }
        }
        freed
    }

    fn log(&mut self, what: &str, error: &dyn std::error::Error) {
        let text = format!("{what}: {}", chain_of(error));
        if self.failure.is_news(&text) {
            tracing::warn!("{text}");
        }
    }
}

mod wait;

#[cfg(test)]
mod tests;
