//! What stays as it is although nobody asks for it any more: its kind was deleted as a whole, which nobody means, or it
//! cannot be read.
//!
//! Whether a definition goes is asked in `definitions`.

use sallyport_api::condition::Reason;
use sallyport_policy::validate::Problem;

use crate::controller::store::Store;

/// What a decision is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purpose {
    /// Forwards that are on their way out stay as they are: nobody asked for that, their kind is deleted as a whole.
    pub keep_deleted: bool,
    /// Pools that are not there any more stay as they were, for the same reason.
    pub keep_pools: bool,
    /// No node shall carry anything, and nothing of ours shall be left but what users wrote.
    pub uninstall: bool,
}

/// Why the slices and nodes of a pool stay as they are: it cannot be read, or its definition was deleted.
pub fn frozen_pool(store: &Store, pool: &str, purpose: Purpose) -> Option<Problem> {
    match store.pools.entry("", pool) {
        _ if purpose.uninstall => None,
        Some(entry) if entry.object().is_some() => None,
        Some(entry) => Some(unreadable(entry.problem().unwrap_or_default())),
        None if purpose.keep_pools => Some(Problem {
            field: "spec.pool".into(),
            reason: Reason::PoolNotFound,
            message: format!("pool {pool} went with the definition of GatewayPool; apply both again"),
        }),
        None => None,
    }
}

/// Why an object is left as it is that this version cannot read.
pub fn unreadable(problem: &str) -> Problem {
    Problem {
        field: "spec".into(),
        reason: Reason::UnsupportedValue,
        message: format!("cannot be read by this version of the operator: {problem}; correct it, or upgrade"),
    }
}
