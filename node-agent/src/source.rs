//! Where intents come from: a directory of manifests, decided upon right here, or the cluster's API server.
//!
//! The loop around a source is `agent`, which also owns the host; what becomes of the intents is `converge`'s.

pub(crate) mod cluster;
pub mod directory;
pub(crate) mod first_seen;
pub mod local;
pub(crate) mod manifests;
pub(crate) mod watch;

use std::rc::Rc;

use sallyport_ruleset::table::Failure;

use crate::host::ThisHost;
use crate::intents::Intents;
use crate::pass_report::ReportSink;

/// Says what this node shall do, and takes in what became of it.
pub(crate) trait Source: ReportSink {
    /// What makes it change its mind, for the log.
    const CAUSE: &'static str;

    /// Takes up what was last good before a restart.
    fn restore(&mut self, last_good: &Rc<Intents>);

    /// Waits until there may be something new. Cancel-safe.
    async fn changed(&mut self);

    /// Called several times a second, for what nobody reports.
    fn tick(&mut self);

    /// What the node shall do, on a host whose addresses have `moved` or not since this was last asked.
    async fn decide(&mut self, host: &mut ThisHost, moved: bool) -> News;

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
}

/// What a source has to say since it was last asked.
#[derive(Debug)]
pub(crate) enum News {
    /// Nothing.
    None,
    /// Something that changes no intent, but maybe what is wrong with the objects or what is reported.
    Objects,
    /// The node shall do this.
    Intents(Rc<Intents>),
}

/// A failure, for people.
#[must_use]
pub(crate) fn describe(failure: &Failure) -> String {
    format!("PortForward {}: {} ({:?})", failure.forward, failure.message, failure.reason)
}
