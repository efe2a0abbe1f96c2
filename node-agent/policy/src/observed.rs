//! What a decision depends on: objects, nodes, and what the last decision gave to whom, as somebody observed them.
//!
//! Who observes them (the operator's watches, a lone host's manifests) is not here, nor what follows: `decide` says that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec};
use sallyport_api::gateway_pool::GatewayPoolSpec;
use sallyport_api::id::{Moment, NodeName, Uid};
use sallyport_api::intent::Intent;
use sallyport_api::port_forward::PortForwardSpec;

use crate::pool::Labels;
use crate::validate::Problem;

/// A `PortForward` as observed.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Namespace and name.
    pub key: ForwardRef,
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp`; orders candidates for a free port, and grants count from it.
    pub created: Moment,
    /// What it asks, shared with whoever observed it; or why that cannot be read. Then it asks for what the slices hold for it,
    /// and is refused for that reason where they hold nothing.
    pub spec: Result<Arc<PortForwardSpec>, Problem>,
}

/// A `GatewayPool` as observed.
#[derive(Clone, Debug)]
pub struct PoolObject {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.creationTimestamp`; the older pool keeps a node that two select.
    pub created: Moment,
    /// What it offers.
    pub spec: GatewayPoolSpec,
}

/// A node that pools may select.
#[derive(Clone, Debug)]
pub struct Node {
    /// `metadata.name`.
    pub name: NodeName,
    /// Its labels; `None` for a lone host, which every selector matches.
    pub labels: Option<Labels>,
    /// Addresses it could listen on.
    pub addresses: Vec<IpAddr>,
}

/// A forward that some node may still carry although no slice has it any more, or not like this.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// Name of the pool whose nodes carry it.
    pub pool: String,
    /// `metadata.uid` of the `PortForward`.
    pub uid: Uid,
    /// What the nodes may still do for it.
    pub intent: Arc<Intent>,
}

/// Everything a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Every `PortForward`.
    pub forwards: &'a [Forward],
    /// Every `GatewayPool`.
    pub pools: &'a [PoolObject],
    /// Labels of the namespaces, by name.
    pub namespaces: &'a BTreeMap<String, Labels>,
    /// Every node.
    pub nodes: &'a [Node],
    /// The slices of the last decision: they record who holds which claim.
    pub slices: &'a BTreeMap<String, ForwardSliceSpec>,
    /// What left the slices and has not left every node: its claims are given to nobody else yet.
    pub outgoing: &'a [Outgoing],
    /// Pools of which it is not known what every node carries: nobody is given a new claim there.
    pub unknown: &'a BTreeSet<String>,
    /// Networks of the cluster itself that no target may be in: its API server, its Services.
    pub forbidden: &'a [IpNet],
    /// What time it is.
    pub now: Moment,
}
