//! The forwards that a pass carries otherwise than the intents say, because somebody else holds ports of theirs.

use std::sync::Arc;

use sallyport_api::forward_slice::SliceForward;
use sallyport_ruleset::table::Failure;

use crate::intents::{Instead, Intents};

/// What a pass leaves out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Waiting {
    /// Why, for each.
    pub failures: Vec<Failure>,
    /// What is carried of the forwards that wait.
    pub instead: Instead,
}

impl Waiting {
    /// What is carried of `intents`.
    #[must_use]
    pub fn carried<'a>(&'a self, intents: &'a Intents) -> Vec<&'a Arc<SliceForward>> {
        let carried = intents.forwards().filter_map(|forward| match self.instead.get(&forward.uid) {
            Some(instead) => instead.as_ref(),
            None => Some(forward),
        });
        carried.collect()
    }
}
