//! Where intents come from: a directory of manifests, decided upon right here, or the cluster's API server.
//!
//! The loop around a source is `run`; what becomes of the intents is `converge`'s.

pub mod cluster;
pub mod directory;
pub mod first_seen;
pub mod host;
pub mod local;
pub mod manifests;
pub mod watch;

use std::rc::Rc;

use sallyport_api::gateway_pool::FirewallBackend;
use sallyport_ruleset::compile::Failure;

use crate::connections::Draining;
use crate::converge::preview::PlannedChange;
use crate::converge::{Error, Report};
use crate::intents::Intents;
use crate::source::host::ThisHost;

/// Says what this node shall do, and hears what became of it.
#[expect(async_fn_in_trait, reason = "the agent runs on one thread, so no future has to be Send")]
pub trait Source {
    /// What makes it change its mind, for the log.
    const CAUSE: &'static str;

    /// What every source knows of this host.
    fn host(&mut self) -> &mut ThisHost;

    /// Takes up the last good intents from the state directory.
    fn last_good(&mut self) -> Option<Rc<Intents>>;

    /// Waits until there may be something new. Cancel-safe.
    async fn changed(&mut self);

    /// Called several times a second, for what nobody reports.
    fn beat(&mut self);

    /// The intents, if they are others than last time.
    async fn look(&mut self) -> Option<Rc<Intents>>;

    /// What is wrong with what it was given, sorted, for people.
    fn problems(&self) -> Vec<String>;

    /// Why it cannot be read at all, if it cannot.
    fn unreadable(&self) -> Option<&str> {
        None
    }

    /// A failure, for people, with where to look in front.
    fn locate(&self, failure: &Failure) -> String {
        describe(failure)
    }

    /// Hears how many connections are left to end by themselves: with every pass, and when they were counted again.
    fn draining(&mut self, _draining: &Draining) {}

    /// Hears of a pass that has ended.
    fn passed(&mut self, _pass: &Pass<'_>) {}

    /// Hears, apart from passes, what somebody else does to our rules that lasts; `None` when that is over.
    fn amiss(&mut self, _what: Option<&str>) {}
    /// Hears what would change for the forwards that are only planned.
    fn planned(&mut self, _plans: Vec<PlannedChange>) {}
}

/// A pass that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// What the kernel should hold.
    pub intents: &'a Rc<Intents>,
    /// What somebody else had changed and this pass has put back.
    pub repaired: Option<&'a str>,
    /// What somebody else has changed and is not put back yet.
    pub pending: Option<&'a str>,
    /// What somebody else does to our rules that lasts, although the pass was good.
    pub amiss: Option<&'a str>,
    /// What came of it.
    pub outcome: Result<&'a Report, &'a Error>,
    /// The program in use; none where no kernel is involved.
    pub backend: Option<FirewallBackend>,
}

/// A failure, for people.
#[must_use]
pub fn describe(failure: &Failure) -> String {
    format!("PortForward {}: {} ({:?})", failure.forward, failure.message, failure.reason)
}
