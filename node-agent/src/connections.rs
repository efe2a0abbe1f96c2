//! Open connections: ends those that are no longer allowed, and counts those that are left to end by themselves.
//!
//! Which are which is decided in `sallyport_ruleset::flow`. Where rules that have gone led to is noted before they go, and
//! kept on disk until the last connection by them has ended: somebody may have overwritten its mark. While nothing drains,
//! nothing is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sallyport_api::Protocol;
use sallyport_api::forward_slice::SliceForward;
use sallyport_api::id::Uid;
use sallyport_api::names::MARK_OURS;
use sallyport_engine::conntrack::Conntrack;
use sallyport_engine::netlink;
use sallyport_ruleset::binding::Binding;
use sallyport_ruleset::facts::NodeFacts;
use sallyport_ruleset::flow::{Allowed, Flow, Review, Stage, Translations};
use sallyport_ruleset::table::{Entry, Failure, ForwardingTable, TableChange};

use crate::error_chain::chain_of;
use crate::holders::cut;
use crate::intents::Intents;
use crate::state::StateDir;

/// Time between two counts while connections drain.
const RECOUNT: Duration = Duration::from_secs(5);
/// At most one part in so many of the time is spent on counting, however many connections there are.
const SHARE: u32 = 50;
/// So many connections are ended before others may run.
const AT_ONCE: usize = 64;

/// Open connections to targets that take no new ones, by the uid of their forward.
pub type Draining = BTreeMap<Uid, usize>;

/// What was decided about the open connections, and when.
#[derive(Debug, Default)]
pub struct Connections {
    /// The intents that all of them were last looked at with, and what of these could not be carried; `None` after the
    /// rules changed.
    settled: Option<(Rc<Intents>, Vec<Failure>)>,
    /// Where those that drain go, and the uid of their forward.
    ways: BTreeMap<Way, Uid>,
    draining: Draining,
    /// When they are counted again.
    recount: Option<Instant>,
    /// Where rules lead to, or have led to since connections were last looked at.
    carried: Translations,
    /// Where rules led to that have gone, as far as connections by them may still be open.
    past: Translations,
    /// What of that is on disk.
    noted: Translations,
}

/// Protocol, listen address and target.
type Way = (Protocol, SocketAddr, SocketAddr);

fn way(flow: &Flow) -> Way {
    (flow.protocol, flow.original.dst, flow.reply.src)
}

/// Where the rules led to that an agent made for `intents` on a host with these `facts`, by what it kept in `state`. Who never
/// was admitted had no rules, and connections to the same place are somebody else's; so are those of what expired long ago.
#[must_use]
pub fn led_to(intents: &Intents, facts: &NodeFacts<'_>, state: &StateDir) -> Translations {
    // What has expired since may have some.
    let facts = NodeFacts { now: state.highest_time().unwrap_or_default(), ..*facts };
    let outside = state.not_admitted().unwrap_or_default();
    let admitted = |forward: &Arc<SliceForward>| match outside.get(&forward.uid) {
        Some(noted) => cut(forward, &noted.had),
        None => Some(Arc::clone(forward)),
    };
    let forwards: Vec<Arc<SliceForward>> = intents.forwards().filter_map(admitted).collect();
    Translations::of(ForwardingTable::new(&intents.node, &forwards, &facts).bindings())
}

impl Connections {
    /// Takes up what an agent before this one carried on a host with these `facts`, and what it noted in `state`.
    pub fn take_up<'i>(
        &mut self,
        carried: impl IntoIterator<Item = &'i Rc<Intents>>,
        facts: &NodeFacts<'_>,
        state: &StateDir,
    ) {
        for intents in carried {
            self.carried.append(led_to(intents, facts, state));
        }
        match state.past() {
            Ok(past) => {
                self.past.append(past.clone());
                self.noted = past;
            }
            Err(error) => tracing::warn!(error = chain_of(&error), "where rules led to that have gone is lost"),
        }
    }

    /// `table` was changed so, and its rules are about to.
    pub fn follow(&mut self, table: &ForwardingTable, change: &TableChange) {
        if *change == TableChange::default() {
            return;
        }
        self.settled = None;
        if change.is_new {
            let now = Translations::of(table.bindings());
            self.past.append(self.carried.without(&now));
            self.carried.append(now);
        } else {
            self.past.extend(bindings_of(&change.gone, table));
            self.carried.extend(bindings_of(&change.come, table));
        }
    }

    /// Keeps on disk what no intents on disk say any more.
    pub fn note(&mut self, state: &StateDir) {
        if self.past == self.noted {
            return;
        }
        match state.keep_past(&self.past) {
            Ok(()) => self.noted.clone_from(&self.past),
            Err(error) => tracing::warn!(
                error = chain_of(&error),
                "cannot note where rules that go led to; after a crash their connections are known by their marks alone"
            ),
        }
    }

    /// The rules are about to change, so each connection has to be looked at again.
    pub fn unsettle(&mut self) {
        self.settled = None;
    }

    /// Whether they were looked at with these intents and failures, and the rules have not changed since.
    #[must_use]
    pub fn is_settled(&self, intents: &Rc<Intents>, failures: &[Failure]) -> bool {
        self.settled.as_ref().is_some_and(|(known, failed)| known == intents && failed == failures)
    }

    /// Those that are left to end by themselves.
    #[must_use]
    pub fn draining(&self) -> &Draining {
        &self.draining
    }

    /// How many would be ended if `table` were all that is carried.
    pub async fn count_forbidden(
        &self,
        conntrack: &Conntrack,
        table: &ForwardingTable,
    ) -> Result<usize, netlink::Error> {
        let allowed = Allowed::new(table, &self.past);
        let mut review = Review::new(&allowed);
        conntrack.flows(MARK_OURS, &allowed.addresses(), &BTreeSet::new(), |flow| _ = review.see(flow)).await?;
        Ok(review.finish().doomed.len())
    }

    /// Ends our connections that `table` does not allow any more, and what is stuck because it began before the rules that it
    /// should go by; says how many. Without `conntrack` no kernel is involved.
    pub async fn settle(
        &mut self,
        conntrack: Option<&Conntrack>,
        table: &ForwardingTable,
        intents: &Rc<Intents>,
        failures: &[Failure],
    ) -> Result<usize, netlink::Error> {
        self.settled = None;
        let mut ended = 0;
        let mut still_led = Translations::default();
        if let Some(conntrack) = conntrack {
            let begun = Instant::now();
            let allowed = Allowed::new(table, &self.past);
            let mut review = Review::new(&allowed);
            self.ways.clear();
            self.draining.clear();
            let (ways, draining) = (&mut self.ways, &mut self.draining);
            let mut stuck = Vec::new();
            let look = |flow: &Flow| {
                if !flow.dnat {
                    stuck.extend(allowed.bypasses(flow).then_some(*flow));
                } else if review.see(flow)
                    && let Some(forward) = allowed.drains(flow)
                {
                    ways.insert(way(flow), forward.uid.clone());
                    *draining.entry(forward.uid.clone()).or_default() += 1;
                }
            };
            conntrack.flows(MARK_OURS, &allowed.addresses(), &allowed.kinds(), look).await?;
            self.recount = later(begun);
            let reviewed = review.finish();
            ended += end(conntrack, &reviewed.doomed).await?;
            still_led = reviewed.still_led;
            ended += end(conntrack, &stuck).await?;
        }
        self.carried = Translations::of(table.bindings());
        self.past = still_led.without(&self.carried);
        self.settled = Some((Rc::clone(intents), failures.to_vec()));
        Ok(ended)
    }

    /// Whether those that drain are to be counted again.
    #[must_use]
    pub fn is_recount_due(&self) -> bool {
        !self.ways.is_empty() && self.recount.is_some_and(|at| Instant::now() >= at)
    }

    /// Counts them again. New ones cannot have come: their targets take none.
    pub async fn recount(&mut self, conntrack: &Conntrack) -> Result<(), netlink::Error> {
        let begun = Instant::now();
        let (mut draining, mut left) = (Draining::new(), BTreeMap::new());
        let addresses: BTreeSet<IpAddr> = self.ways.keys().map(|(_, listen, _)| listen.ip()).collect();
        let count = |flow: &Flow| {
            if flow.stage != Stage::Over
                && flow.master.is_none()
                && let Some((way, uid)) = self.ways.get_key_value(&way(flow))
            {
                *draining.entry(uid.clone()).or_default() += 1;
                left.entry(*way).or_insert_with(|| uid.clone());
            }
        };
        conntrack.flows(MARK_OURS, &addresses, &BTreeSet::new(), count).await?;
        (self.draining, self.ways) = (draining, left);
        self.recount = later(begun);
        Ok(())
    }
}

fn bindings_of<'a>(entries: &'a [Entry], table: &'a ForwardingTable) -> impl Iterator<Item = Binding<'a>> {
    entries.iter().flat_map(|entry| table.bindings_of(entry))
}

/// Ends these; says how many were still there.
pub(crate) async fn end(conntrack: &Conntrack, flows: &[Flow]) -> Result<usize, netlink::Error> {
    let (mut ended, mut refused) = (0, None);
    for some in flows.chunks(AT_ONCE) {
        for flow in some {
            match conntrack.delete(flow) {
                Ok(is_gone) => ended += usize::from(is_gone),
                // It keeps none of the others alive.
                Err(error @ netlink::Error::Refused { .. }) => drop(refused.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        tokio::task::yield_now().await;
    }
    refused.map_or(Ok(ended), Err)
}

fn later(begun: Instant) -> Option<Instant> {
    let now = Instant::now();
    now.checked_add(RECOUNT.max(now.duration_since(begun) * SHARE))
}

#[cfg(test)]
mod tests;
