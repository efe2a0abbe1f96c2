//! Forwards that this host never carried: one of them waits while somebody else listens on its ports.
//!
//! Whoever starts to listen later revokes nothing: a forward is let in once, whatever becomes of it afterwards. Remembered are
//! those that never were let in, so that all others count as let in after a restart, and after a reboot, which empties the
//! kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sallyport_api::forward_slice::SliceForward;
use sallyport_engine::Engine;
use sallyport_ruleset::compile::{Failure, compile};
use sallyport_ruleset::facts::NodeFacts;
use sallyport_ruleset::listener::{Listener, Place};

use crate::converge::Converger;
use crate::error_chain::chain_of;
use crate::intents::Intents;
use crate::sockets::{FREE, Sight, in_use, refused};
use crate::state::StateDir;
use crate::waiting::Waiting;

/// So long after the agent's start, for those that waited before it: after a boot, others may start later than the agent.
const START: Duration = Duration::from_mins(1);

/// The forwards that were let in, and those that wait.
#[derive(Debug, Default)]
pub struct Newcomers {
    /// Uids of the forwards that were let in and are wanted.
    admitted: BTreeSet<String>,
    /// Those that wait, by uid.
    waiting: BTreeMap<String, Wait>,
    /// Those that were not let in, by uid, and whether they wait, as they are on disk.
    kept: BTreeMap<String, bool>,
    /// What was last told of what cannot be seen or kept.
    told: Option<String>,
}

/// Why and for how long a forward waits.
#[derive(Debug)]
struct Wait {
    /// Hash of its intent: whoever asks for something else is a newcomer again.
    hash: String,
    /// Where somebody listened when it came. Who listens elsewhere later is not waited for.
    places: BTreeSet<Place>,
    /// Until when more of them are found.
    open: Instant,
    /// When it is let in if nobody listens there until then.
    free: Instant,
    /// Who was told to be in the way.
    listener: Option<Listener>,
    failure: Failure,
}

impl Wait {
    fn new(forward: &SliceForward, listener: &Listener, places: BTreeSet<Place>, now: Instant) -> Self {
        let failure = in_use(forward, listener);
        Self { hash: forward.hash.clone(), places, open: now, free: now + FREE, listener: Some(*listener), failure }
    }

    /// One that waited when the agent ended.
    fn restored(forward: &SliceForward, now: Instant) -> Self {
        let message = "a program of this host listened on its ports before the agent started; a minute after the start \
                       the forward is programmed if none does any more";
        let failure = refused(forward, message.to_owned());
        let (open, free) = (now + START, now + START);
        Self { hash: forward.hash.clone(), places: BTreeSet::new(), open, free, listener: None, failure }
    }

    /// Looks who is in the way now.
    fn look(&mut self, forward: &SliceForward, sight: &Sight, now: Instant) {
        let there = sight.in_the_way(forward);
        if now < self.open {
            self.places.extend(there.iter().map(|listener| listener.place()));
        }
        if let Some(first) = there.into_iter().find(|listener| self.places.contains(&listener.place())) {
            self.free = self.free.max(now + FREE);
            if self.listener != Some(*first) {
                self.listener = Some(*first);
                self.failure = in_use(forward, first);
            }
        }
    }
}

impl Newcomers {
    /// Takes up what was known before a restart.
    pub fn restore(&mut self, intents: &Intents, state: &StateDir, now: Instant) {
        self.kept = state.newcomers().unwrap_or_else(|error| {
            tracing::warn!(error = chain_of(&error), "which forwards wait is lost; all of them count as let in");
            BTreeMap::new()
        });
        for forward in intents.forwards() {
            match self.kept.get(&forward.uid) {
                Some(true) => drop(self.waiting.insert(forward.uid.clone(), Wait::restored(forward, now))),
                Some(false) => {}
                None => _ = self.admitted.insert(forward.uid.clone()),
            }
        }
    }

    /// Lets in who comes where nobody listens, and says to `converger` who has to wait. What the kernel holds already is let in
    /// as well: state that was lost must not take away what runs.
    pub async fn admit<E: Engine>(
        &mut self,
        converger: &mut Converger<E>,
        intents: &Intents,
        facts: &NodeFacts<'_>,
        now: Instant,
    ) {
        let forwards = intents.forwards();
        let current: BTreeMap<&str, &str> = forwards.iter().map(|f| (f.uid.as_str(), f.hash.as_str())).collect();
        self.waiting.retain(|uid, wait| current.get(uid.as_str()) == Some(&wait.hash.as_str()));
        let newcomers = forwards.into_iter().filter(|forward| !self.admitted.contains(&forward.uid));
        let newcomers: Vec<&SliceForward> = newcomers.collect();
        let sight = if newcomers.is_empty() { Ok(None) } else { Sight::of(&converger.engine, intents, facts) };
        match sight {
            Ok(None) => {}
            Ok(Some(sight)) => {
                for forward in newcomers {
                    self.look_at(forward, &sight, converger, intents, facts, now).await;
                }
                let free = self.waiting.extract_if(.., |_, wait| wait.free <= now);
                self.admitted.extend(free.map(|(uid, _)| uid));
            }
            Err(error) => {
                self.tell("cannot see who listens on this host, so no new forward waits for anybody", &error);
                let new = newcomers.iter().map(|forward| &forward.uid).filter(|uid| !self.waiting.contains_key(*uid));
                self.admitted.extend(new.cloned().collect::<Vec<_>>());
            }
        }
        let failures = self.waiting.values().map(|wait| wait.failure.clone()).collect();
        converger.waiting = Waiting { failures, uids: self.waiting.keys().cloned().collect() };
    }

    async fn look_at<E: Engine>(
        &mut self,
        forward: &SliceForward,
        sight: &Sight,
        converger: &mut Converger<E>,
        intents: &Intents,
        facts: &NodeFacts<'_>,
        now: Instant,
    ) {
        if let Some(wait) = self.waiting.get_mut(&forward.uid) {
            wait.look(forward, sight, now);
            if now >= wait.open {
                return;
            }
            // What was noted before the start may be older than what the kernel holds.
            let alone = compile(&intents.node, &[forward], facts).ruleset;
            if converger.observe().await.map_or(true, |installed| installed.delivers(&alone)) {
                self.waiting.remove(&forward.uid);
                self.admitted.insert(forward.uid.clone());
            }
            return;
        }
        let there = sight.in_the_way(forward);
        if let Some(first) = there.first() {
            let alone = compile(&intents.node, &[forward], facts);
            if !alone.failures.is_empty() {
                // Nobody shall stop a program for the sake of a forward that cannot be carried anyway.
                return;
            }
            // What could not be read may be there.
            if converger.observe().await.is_ok_and(|installed| !installed.delivers(&alone.ruleset)) {
                let places = there.iter().map(|listener| listener.place()).collect();
                self.waiting.insert(forward.uid.clone(), Wait::new(forward, first, places, now));
                return;
            }
        }
        self.admitted.insert(forward.uid.clone());
    }

    /// Keeps who was not let in. That is on disk before the intents are, so that a crash makes nobody look let in.
    pub fn keep(&mut self, intents: &Intents, state: &StateDir) {
        let outside =
            intents.forwards().into_iter().map(|forward| &forward.uid).filter(|uid| !self.admitted.contains(*uid));
        let outside: BTreeMap<String, bool> =
            outside.map(|uid| (uid.clone(), self.waiting.contains_key(uid))).collect();
        if self.kept == outside {
            return;
        }
        match state.keep_newcomers(&outside) {
            Ok(()) => (self.kept, self.told) = (outside, None),
            Err(error) => self.tell("cannot note which forwards wait; after a restart they do not", &error),
        }
    }

    /// Hears that a pass came to its end: who was not wanted in it is no longer in the kernel, and comes anew.
    pub fn passed(&mut self, intents: &Intents) {
        let wanted: BTreeSet<&str> = intents.forwards().into_iter().map(|forward| forward.uid.as_str()).collect();
        self.admitted.retain(|uid| wanted.contains(uid.as_str()));
    }

    /// Whether somebody who waits may be let in.
    pub fn is_freed<E: Engine>(
        &mut self,
        converger: &Converger<E>,
        intents: &Intents,
        facts: &NodeFacts<'_>,
        now: Instant,
    ) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let Ok(Some(sight)) = Sight::of(&converger.engine, intents, facts) else { return false };
        for forward in intents.forwards() {
            if let Some(wait) = self.waiting.get_mut(&forward.uid) {
                wait.look(forward, &sight, now);
            }
        }
        self.waiting.values().any(|wait| wait.free <= now)
    }

    fn tell(&mut self, what: &str, error: &dyn std::error::Error) {
        let text = format!("{what}: {}", chain_of(error));
        if self.told.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            self.told = Some(text);
        }
    }
}

#[cfg(test)]
mod tests;
