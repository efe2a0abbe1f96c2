//! Open connections: ends those that are no longer allowed, and counts those that are left to end by themselves.
//!
//! Which are which is decided in `sallyport_ruleset::flow`. While nothing drains, nothing is counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sallyport_api::Protocol;
use sallyport_api::id::Uid;
use sallyport_api::names::MARK_OURS;
use sallyport_engine::conntrack::Conntrack;
use sallyport_engine::netlink;
use sallyport_ruleset::flow::{Allowed, Flow};
use sallyport_ruleset::table::Failure;

use crate::intents::Intents;

/// Time between two counts while connections drain.
const RECOUNT: Duration = Duration::from_secs(5);
/// At most one part in so many of the time is spent on counting, however many connections there are.
const SHARE: u32 = 50;

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
}

/// Protocol, listen address and target.
type Way = (Protocol, SocketAddr, SocketAddr);

fn way(flow: &Flow) -> Way {
    (flow.protocol, flow.original.dst, flow.reply.src)
}

impl Connections {
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

    /// Ends our connections that are not allowed any more, and UDP flows that began before the rules they should go by;
    /// says how many. `None` where no kernel is involved.
    pub fn settle(
        &mut self,
        conntrack: Option<&Conntrack>,
        allowed: &Allowed<'_>,
        intents: &Rc<Intents>,
        failures: &[Failure],
    ) -> Result<usize, netlink::Error> {
        self.settled = None;
        let mut ended = 0;
        if let Some(conntrack) = conntrack {
            let begun = Instant::now();
            let mut doomed = conntrack.ours(MARK_OURS, MARK_OURS)?;
            self.ways.clear();
            self.draining.clear();
            doomed.retain(|flow| {
                if let Some(forward) = allowed.drains(flow) {
                    self.ways.insert(way(flow), forward.uid.clone());
                    *self.draining.entry(forward.uid.clone()).or_default() += 1;
                }
                allowed.forbids(flow)
            });
            self.recount = later(begun);
            if allowed.any_udp() {
                doomed.extend(conntrack.udp()?.into_iter().filter(|flow| allowed.bypasses(flow)));
            }
            for flow in &doomed {
                ended += usize::from(conntrack.delete(flow)?);
            }
        }
        self.settled = Some((Rc::clone(intents), failures.to_vec()));
        Ok(ended)
    }

    /// Whether those that drain are to be counted again.
    #[must_use]
    pub fn is_recount_due(&self) -> bool {
        !self.ways.is_empty() && self.recount.is_some_and(|at| Instant::now() >= at)
    }

    /// Counts them again. New ones cannot have come: their targets take none.
    pub fn recount(&mut self, conntrack: &Conntrack) -> Result<(), netlink::Error> {
        let begun = Instant::now();
        let flows = conntrack.ours(MARK_OURS, MARK_OURS)?;
        self.count(&flows);
        self.recount = later(begun);
        Ok(())
    }

    fn count(&mut self, flows: &[Flow]) {
        self.draining.clear();
        let mut left = BTreeMap::new();
        for flow in flows.iter().filter(|flow| flow.is_ours() && !flow.is_over) {
            if let Some((way, uid)) = self.ways.get_key_value(&way(flow)) {
                *self.draining.entry(uid.clone()).or_default() += 1;
                left.entry(*way).or_insert_with(|| uid.clone());
            }
        }
        self.ways = left;
    }
}

fn later(begun: Instant) -> Option<Instant> {
    let now = Instant::now();
    now.checked_add(RECOUNT.max(now.duration_since(begun) * SHARE))
}
