//! A forward whose status is asked for, with all that its status is made from.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sallyport_api::ConditionType;
use sallyport_api::condition::{self, Stated};
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec, SliceForward};
use sallyport_api::gateway_node::{GatewayNode, GatewayNodeStatus};
use sallyport_api::id::Uid;
use sallyport_api::port_forward::PortForwardSpec;
use sallyport_policy::decide::Verdict;
use sallyport_runtime::text;

/// One gateway of a pool as its forwards see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gateway<'a> {
    /// Name of the node.
    pub(crate) name: &'a str,
    /// Its configuration and report.
    pub(crate) object: &'a GatewayNode,
    /// Whether its agent is silent.
    pub(crate) silent: bool,
}

impl<'a> Gateway<'a> {
    /// The report, if the agent has ever read the kernel back.
    pub(crate) fn report(&self) -> Option<&'a GatewayNodeStatus> {
        self.object.status.as_ref().filter(|status| status.state.is_some())
    }

    /// The condition `Synced` of the report.
    pub(crate) fn synced(&self) -> Option<Stated<'a>> {
        condition::of(&self.report()?.conditions, ConditionType::Synced)
    }
}

/// What the slices hold for a forward.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held<'a> {
    /// What is carried for it, and the pool whose nodes carry that.
    pub(crate) forward: Option<(&'a str, &'a SliceForward)>,
    /// Whether the agents are asked what it would change.
    pub(crate) planned: bool,
}

/// What the slices hold for each forward, by its uid.
pub(crate) fn held(slices: &BTreeMap<String, ForwardSliceSpec>) -> BTreeMap<&Uid, Held<'_>> {
    let mut all: BTreeMap<&Uid, Held<'_>> = BTreeMap::new();
    for slice in slices.values() {
        for forward in &slice.forwards {
            all.entry(&forward.uid).or_default().forward = Some((&slice.pool, forward));
        }
        for forward in &slice.planned {
            all.entry(&forward.uid).or_default().planned = true;
        }
    }
    all
}

/// A forward whose status is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Subject<'a> {
    /// Namespace and name.
    pub(crate) key: &'a ForwardRef,
    /// `metadata.uid`.
    pub(crate) uid: &'a Uid,
    /// `metadata.generation`.
    pub(crate) generation: Option<i64>,
    /// What it asks; `None` if that never could be read.
    pub(crate) spec: Option<&'a PortForwardSpec>,
    /// Why its newest form cannot be read, if it cannot.
    pub(crate) unreadable: Option<&'a str>,
    /// The verdict; `None` for one on its way out.
    pub(crate) verdict: Option<&'a Verdict>,
    /// When it expires or did.
    pub(crate) expires_at: Option<Time>,
    /// What the slices shall hold for it.
    pub(crate) held: Held<'a>,
    /// The gateways of the pool that it asks for; it may still be carried by those of another.
    pub(crate) asked: &'a [Gateway<'a>],
}

/// The first three names, and how many more there are.
pub(crate) fn names(all: &[&str]) -> String {
    text::listed(all, 3, ", ", " and ")
}
