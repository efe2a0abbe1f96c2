//! What stays as it is although nobody asks for it any more: its kind was deleted as a whole, which nobody means, or it
//! cannot be read.
//!
//! Whether a definition goes is asked in `definitions`.

use std::collections::BTreeMap;

use sallyport_api::condition::Reason;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec};
use sallyport_api::id::Moment;
use sallyport_policy::validate::Problem;

use crate::controller::store::Store;

/// What is kept although it was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retention {
    /// Forwards that are on their way out stay as they are: nobody asked for that, their kind is deleted as a whole.
    pub(crate) keep_deleted: bool,
    /// Pools that are not there any more stay as they were, for the same reason.
    pub(crate) keep_pools: bool,
}

/// What stays of the pools that stay as they are.
#[derive(Debug, Default)]
pub(crate) struct Frozen {
    /// Their slices.
    pub(crate) slices: BTreeMap<String, ForwardSliceSpec>,
    /// When the forwards in there expire.
    pub(crate) expiries: BTreeMap<ForwardRef, Moment>,
    /// Why, by pool.
    pub(crate) problems: BTreeMap<String, Vec<Problem>>,
}

/// The slices of pools that stay as they are.
pub(crate) fn frozen(store: &Store, held: &BTreeMap<String, ForwardSliceSpec>, retention: Retention) -> Frozen {
    let mut frozen = Frozen::default();
    for (name, slice) in held {
        if let Some(problem) = frozen_pool(store, &slice.pool, retention) {
            let expiries = slice.forwards.iter().filter_map(|f| Some((f.r#ref.clone(), f.intent.expires_at?)));
            frozen.expiries.extend(expiries);
            frozen.problems.insert(slice.pool.clone(), vec![problem]);
            frozen.slices.insert(name.clone(), slice.clone());
        }
    }
    frozen
}

/// Why the slices and nodes of a pool stay as they are: it cannot be read, or its definition was deleted.
pub(crate) fn frozen_pool(store: &Store, pool: &str, retention: Retention) -> Option<Problem> {
    match store.pools.entry("", pool) {
        Some(entry) if entry.object().is_some() => None,
        Some(entry) => Some(unreadable(entry.problem().unwrap_or_default())),
        None if retention.keep_pools => Some(Problem {
            field: "spec.pool".into(),
            reason: Reason::PoolNotFound,
            message: format!("pool {pool} went with the definition of GatewayPool; apply both again"),
        }),
        None => None,
    }
}

/// Why an object is left as it is that this version cannot read.
pub(crate) fn unreadable(problem: &str) -> Problem {
    Problem {
        field: "spec".into(),
        reason: Reason::UnsupportedValue,
        message: format!("cannot be read by this version of the operator: {problem}; correct it, or upgrade"),
    }
}
