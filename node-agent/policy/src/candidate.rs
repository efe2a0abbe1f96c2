//! Who wants what of a pool, once nothing but the wishes of others can be in the way.

use std::sync::Arc;

use sallyport_api::forward_slice::{ForwardRef, SliceForward};
use sallyport_api::id::Moment;

use crate::claim::Claim;
use crate::observed::Forward;

/// A forward that is acceptable but for the claims of others.
pub struct Candidate<'a> {
    /// Who wants it.
    pub forward: &'a Forward,
    /// What it asks, as a slice would carry it.
    pub entry: Arc<SliceForward>,
    /// Whether its spec asks for something else, and this is what it keeps.
    pub keeps: bool,
    /// Whether it was accepted like this already.
    pub unchanged: bool,
    /// What it wants.
    pub claims: Vec<Claim>,
    /// What it holds of what it wants.
    pub held: Vec<Claim>,
    /// What it wants and does not hold as a whole.
    pub fresh: Vec<Claim>,
    /// The grants of the pool that cover it, by index.
    pub grants: Vec<usize>,
}

impl Candidate<'_> {
    /// Who was accepted like this comes first, so that nobody's edit takes their quota; then holders of all that they
    /// want, then of a part, then the older, then by name.
    pub fn rank(&self) -> (bool, bool, bool, Moment, &ForwardRef) {
        (!self.unchanged, !self.fresh.is_empty(), self.held.is_empty(), self.forward.created, &self.forward.key)
    }
}
