//! The forwards that a pass leaves out, because somebody else listens on their ports.

use std::collections::BTreeSet;
use std::sync::Arc;

use sallyport_api::forward_slice::SliceForward;
use sallyport_api::id::Uid;
use sallyport_ruleset::table::Failure;

use crate::intents::Intents;

/// What a pass leaves out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Waiting {
    /// Why, for each.
    pub failures: Vec<Failure>,
    /// Uids of the forwards that wait.
    pub uids: BTreeSet<Uid>,
}

impl Waiting {
    /// The forwards that do not wait.
    #[must_use]
    pub fn others<'a>(&self, intents: &'a Intents) -> Vec<&'a Arc<SliceForward>> {
        intents.forwards().filter(|forward| !self.uids.contains(&forward.uid)).collect()
    }
}
