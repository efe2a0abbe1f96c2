//! Why and for how long one forward waits.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sallyport_api::forward_slice::SliceForward;
use sallyport_api::id::IntentHash;
use sallyport_policy::places::Places;
use sallyport_ruleset::listener::Endpoint;
use sallyport_ruleset::table::Failure;

use crate::holders::{FREE, Holder, Holders, in_use, refused};

/// So long after the agent's start, for those that waited before it: after a boot, others may start later than the agent.
const START: Duration = Duration::from_mins(1);

/// Why and for how long a forward waits.
#[derive(Debug)]
pub(super) struct Wait {
    /// Hash of its intent: one that asks for something else is new again.
    pub(super) hash: IntentHash,
    /// What somebody held when it came. Who holds others later is not waited for.
    endpoints: BTreeSet<Endpoint>,
    /// Until when more of them are found.
    open: Instant,
    /// When it is admitted if nobody is there until then.
    free: Instant,
    /// Who was named as being in the way.
    holder: Option<Holder>,
    pub(super) failure: Failure,
}

impl Wait {
    /// One that `had` other places when these were there first.
    pub(super) fn new(forward: &SliceForward, had: &Places, there: &[Holder], now: Instant) -> Self {
        let mut wait = Self::restored(forward, had, now);
        (wait.open, wait.free) = (now, now + FREE);
        wait.endpoints.extend(there.iter().map(Holder::endpoint));
        wait.name(forward, had, there.first());
        wait
    }

    /// One that waited when the agent ended.
    pub(super) fn restored(forward: &SliceForward, had: &Places, now: Instant) -> Self {
        let message = "somebody held its ports before the agent started, a program that listened or a rule that translated; a \
                       minute after the start the forward is programmed if nobody does any more";
        let failure = refused(forward, had, message.to_owned());
        let (open, free) = (now + START, now + START);
        Self { hash: forward.hash.clone(), endpoints: BTreeSet::new(), open, free, holder: None, failure }
    }

    fn name(&mut self, forward: &SliceForward, had: &Places, holder: Option<&Holder>) {
        if let Some(holder) = holder
            && self.holder.as_ref() != Some(holder)
        {
            self.failure = in_use(forward, had, holder);
            self.holder = Some(holder.clone());
        }
    }

    /// Finds out who is in the way now.
    pub(super) fn refresh(&mut self, forward: &SliceForward, had: &Places, holders: &Holders<'_>, now: Instant) {
        let there = holders.in_the_way(forward, had);
        if self.is_open(now) {
            self.endpoints.extend(there.iter().map(Holder::endpoint));
        }
        let first = there.iter().find(|holder| self.endpoints.contains(&holder.endpoint()));
        if first.is_some() {
            self.free = self.free.max(now + FREE);
        }
        self.name(forward, had, first);
    }

    /// Whether more of them may be found yet.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        now < self.open
    }

    /// Whether nobody is there any more.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.free <= now
    }
}
