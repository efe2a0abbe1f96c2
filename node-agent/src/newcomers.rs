//! Forwards that this host never carried: one of them waits while somebody else listens on its ports.
//!
//! Whoever starts to listen later revokes nothing. What is remembered of the forwards are those that never were in the
//! kernel, so that all others count as carried after a restart, and after a reboot, which empties the kernel.

use std::collections::BTreeSet;

use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::SliceForward;
use sallyport_engine::Engine;
use sallyport_engine::listeners::process_of;
use sallyport_ruleset::compile::{Failure, compile};
use sallyport_ruleset::facts::LocalAddress;
use sallyport_ruleset::listener::{Listener, in_the_way};

use crate::converge::{Converger, chain_of};
use crate::state::{Intents, StateDir};

/// The forwards that this host carries or did, and those that wait.
#[derive(Debug, Default)]
pub struct Newcomers {
    /// Uids of the forwards that were read back from the kernel while they were wanted.
    carried: BTreeSet<String>,
    /// Uids of those that were not, as they are on disk.
    kept: BTreeSet<String>,
}

/// Newcomers that have to wait.
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    /// Why, for each.
    pub failures: Vec<Failure>,
    /// Their uids.
    pub uids: BTreeSet<String>,
    /// Who is in their way.
    pub listeners: BTreeSet<Listener>,
}

impl Waiting {
    /// The forwards that do not wait.
    #[must_use]
    pub fn others<'a>(&self, intents: &'a Intents) -> Vec<&'a SliceForward> {
        intents.forwards().into_iter().filter(|forward| !self.uids.contains(&forward.uid)).collect()
    }
}

impl Newcomers {
    /// Takes up what was known before a restart.
    pub fn restore(&mut self, intents: &Intents, state: &StateDir) {
        self.kept = state.newcomers().unwrap_or_else(|error| {
            tracing::warn!(error = chain_of(&error), "which forwards wait is lost; all of them count as carried");
            BTreeSet::new()
        });
        let uids = intents.forwards().into_iter().map(|forward| forward.uid.clone());
        self.carried = uids.filter(|uid| !self.kept.contains(uid)).collect();
    }

    /// Those among the forwards that this host never carried.
    #[must_use]
    pub fn among<'a>(&self, intents: &'a Intents) -> Vec<&'a SliceForward> {
        intents.forwards().into_iter().filter(|forward| !self.carried.contains(&forward.uid)).collect()
    }

    /// Hears who waits. They are on disk before their intents are, so that a crash makes none of them look carried; who
    /// did not get in before for another reason stays there until a pass lets them in.
    pub fn wait(&mut self, newcomers: &[&SliceForward], waiting: &Waiting, state: &StateDir) {
        let mut uids = waiting.uids.clone();
        uids.extend(newcomers.iter().map(|forward| &forward.uid).filter(|uid| self.kept.contains(*uid)).cloned());
        self.keep(uids, state);
    }

    fn keep(&mut self, uids: BTreeSet<String>, state: &StateDir) {
        if self.kept == uids {
            return;
        }
        match state.keep_newcomers(&uids) {
            Ok(()) => self.kept = uids,
            Err(error) => {
                tracing::warn!(
                    error = chain_of(&error),
                    "cannot note which forwards wait; after a restart they do not"
                );
            }
        }
    }

    /// Hears which forwards a pass could not program; `None` if it did not come to its end.
    pub fn passed(&mut self, intents: &Intents, failures: Option<&[Failure]>, state: &StateDir) {
        let failed: Option<BTreeSet<_>> = failures.map(|all| all.iter().map(|failure| &failure.forward).collect());
        let mut waiting = BTreeSet::new();
        let before = std::mem::take(&mut self.carried);
        for forward in intents.forwards() {
            let done = failed.as_ref().is_some_and(|failed| !failed.contains(&forward.r#ref));
            if done || before.contains(&forward.uid) {
                self.carried.insert(forward.uid.clone());
            } else {
                waiting.insert(forward.uid.clone());
            }
        }
        self.keep(waiting, state);
    }
}

impl<E: Engine> Converger<E> {
    /// Makes those of the `newcomers` among the forwards wait in the next pass where somebody listens where they would,
    /// unless the kernel holds them already: state that was lost must not take away what runs.
    pub async fn admit(&mut self, newcomers: &[&SliceForward], intents: &Intents, local: &[LocalAddress], now: i64) {
        let mut waiting = self.who_waits(newcomers, intents, local);
        let mut held = BTreeSet::new();
        for forward in newcomers {
            if !waiting.uids.contains(&forward.uid) {
                continue;
            }
            let alone = compile(&intents.node, &[*forward], local, now).ruleset;
            if self.observe().await.is_ok_and(|installed| installed.delivers(&alone)) {
                held.insert(&forward.r#ref);
                waiting.uids.remove(&forward.uid);
            }
        }
        waiting.failures.retain(|failure| !held.contains(&failure.forward));
        self.waiting = waiting;
    }

    /// Which of these forwards are to listen where somebody listens already.
    pub(crate) fn who_waits(&self, forwards: &[&SliceForward], intents: &Intents, local: &[LocalAddress]) -> Waiting {
        let mut waiting = Waiting::default();
        if forwards.is_empty() {
            return waiting;
        }
        let listeners = match self.engine.listeners() {
            Ok(listeners) => listeners,
            Err(error) => {
                tracing::warn!(error = chain_of(&error), "cannot see who listens on this host; nobody has to wait");
                return waiting;
            }
        };
        let listen = compile(&intents.node, &[], local, 0).listen;
        for forward in forwards {
            let Some(listener) = in_the_way(&forward.intent, &listen, &listeners) else { continue };
            waiting.uids.insert(forward.uid.clone());
            waiting.listeners.insert(*listener);
            waiting.failures.push(in_use(forward, listener));
        }
        waiting
    }

    /// Whether somebody who was in the way of those who wait is not any more.
    pub fn is_freed(&self) -> bool {
        let gone = |now: Vec<Listener>| self.waiting.listeners.iter().any(|listener| !now.contains(listener));
        !self.waiting.uids.is_empty() && self.engine.listeners().is_ok_and(gone)
    }
}

fn in_use(forward: &SliceForward, listener: &Listener) -> Failure {
    let protocol = if listener.protocol == 6 { "TCP" } else { "UDP" };
    let who = process_of(listener.inode).unwrap_or_else(|| "a program of this host".to_owned());
    let place = if listener.ip.is_unspecified() { "every address".to_owned() } else { listener.ip.to_string() };
    let port = listener.port;
    let message = format!(
        "{who} listens on port {port}/{protocol} on {place} and would lose its clients; stop it, or let it listen on another port or address, and the forward follows by itself (`ss -lntup 'sport = :{port}'` shows it)"
    );
    Failure { forward: forward.r#ref.clone(), reason: Reason::PortInUse, message }
}

#[cfg(test)]
mod tests;
