//! Whether the host lets the packets of its forwards pass, by what its kernel says of each.
//!
//! The answers are kept, so that a pass costs none that was asked for before, and asked for anew when the kernel says that
//! addresses or forwarding have changed, and once in a while, since of routes it says nothing that could be listened to on a
//! busy router.

use std::time::{Duration, Instant};

use sallyport_engine::Engine;
use sallyport_engine::route::lookup::Lookups;
use sallyport_engine::route::routes::Interfaces;
use sallyport_ruleset::address::LocalAddress;
use sallyport_ruleset::routing::failures;
use sallyport_ruleset::table::Failure;

use crate::converge::Converger;

/// Answers are good for so long.
const FRESH: Duration = Duration::from_secs(10);
/// At most one part in so many of the time is spent on asking, however many forwards there are.
const SHARE: u32 = 100;

/// What is known of the host's routing.
#[derive(Default)]
pub(super) struct Routing {
    /// `None` before the first question, and where no kernel is involved.
    lookups: Option<Lookups>,
    /// When all is asked for anew, and when that may be at the earliest.
    due: Option<Instant>,
    earliest: Option<Instant>,
    /// The forwards whose packets did not pass at the end of the last pass.
    pub(super) failures: Vec<Failure>,
}

impl<E: Engine> Converger<E> {
    /// The kernel says that something about the host's network has changed.
    pub fn network_changed(&mut self) {
        self.routing.due = self.routing.earliest;
    }

    /// The forwards whose packets do not pass.
    pub(super) fn judge_routing(&mut self, addresses: &[LocalAddress]) -> Vec<Failure> {
        let begun = Instant::now();
        let is_due = self.routing.due.is_none_or(|due| begun >= due);
        if is_due {
            self.routing.lookups = self.network.lookups();
        }
        let Some(lookups) = &mut self.routing.lookups else { return Vec::new() };
        let found = failures(&self.table, addresses, &mut |question| lookups.ask(question));
        if is_due {
            let took = begun.elapsed() * SHARE;
            self.routing.earliest = begun.checked_add(took);
            self.routing.due = begun.checked_add(took.max(FRESH));
        }
        found
    }

    /// Whether other packets pass, or by other interfaces, than at the end of the last pass; looked at when answers are no longer fresh.
    pub(super) fn is_routed_otherwise(&mut self, addresses: &[LocalAddress]) -> bool {
        if !self.held || self.routing.due.is_some_and(|due| Instant::now() < due) {
            return false;
        }
        let interfaces = Interfaces::of(addresses);
        self.judge_routing(addresses) != self.routing.failures
            || self.paths.iter().any(|paths| paths.lead_elsewhere(&|net| interfaces.towards(net)))
    }
}
