//! What should be: the outcome of a decision, before it is compared with what is.

use std::collections::{BTreeMap, BTreeSet};

use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec};
use sallyport_api::gateway_node::GatewayNodeSpec;
use sallyport_api::id::{Moment, NodeName};
use sallyport_policy::decide::Verdict;
use sallyport_policy::validate::Problem;

/// What should be.
#[derive(Debug, Default)]
pub(crate) struct Desired {
    /// The verdict on every forward that is not on its way out.
    pub(crate) verdicts: BTreeMap<ForwardRef, Verdict>,
    /// When forwards expire or did.
    pub(crate) expiries: BTreeMap<ForwardRef, Moment>,
    /// The problems of every pool.
    pub(crate) pools: BTreeMap<String, Vec<Problem>>,
    /// Every slice, and empty ones for those that should go.
    pub(crate) slices: BTreeMap<String, ForwardSliceSpec>,
    /// Slices that every node has emptied.
    pub(crate) done_slices: BTreeSet<String>,
    /// The configuration of every gateway, those included that are being cleaned.
    pub(crate) gateways: BTreeMap<NodeName, GatewayNodeSpec>,
    /// Gateways that are clean, and can be forgotten.
    pub(crate) done_gateways: BTreeSet<NodeName>,
    /// Nodes that an agent shall run on.
    pub(crate) labelled: BTreeSet<NodeName>,
    /// Forwards that need our finalizer before they can be carried.
    pub(crate) to_hold: BTreeSet<ForwardRef>,
    /// Forwards on their way out that no live node carries any more.
    pub(crate) to_release: BTreeSet<ForwardRef>,
}
