//! One request that changes one object, and what the API server answers to it.
//!
//! Data: how a request is sent is in `send`, when it may start in `writer`.

use std::fmt;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use sallyport_api::forward_slice::{ForwardRef, ForwardSlice, ForwardSliceSpec};
use sallyport_api::gateway_node::{GatewayNode, GatewayNodeSpec};
use sallyport_api::gateway_pool::{GatewayPool, GatewayPoolStatus};
use sallyport_api::id::{NodeName, Uid};
use sallyport_api::port_forward::{PortForward, PortForwardStatus};

use crate::controller::guard::DeserializeGuard;

/// One request that changes one object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Write {
    /// Creates a slice, or changes the one that is at this resource version.
    Slice(String, Option<String>, ForwardSliceSpec),
    /// Deletes a slice that every node has emptied.
    DeleteSlice(String),
    /// Creates or changes the configuration of a node, which this uid of a Node owns.
    Gateway(NodeName, Uid, GatewayNodeSpec),
    /// Forgets a node that is clean.
    DeleteGateway(NodeName),
    /// Lets the agent run on a node, or not.
    Label(NodeName, bool),
    /// Sets the finalizers of a forward that is at this resource version.
    Finalizers(ForwardRef, String, Vec<String>),
    /// Reports what became of a forward.
    ForwardStatus(Box<ForwardReport>),
    /// Reports what became of a pool.
    PoolStatus(String, Box<GatewayPoolStatus>),
    /// Tells what was put back on a gateway, under a name that it has once and for all.
    Drift(Box<Event>),
}

/// What became of a forward.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ForwardReport {
    /// Which forward.
    pub(crate) key: ForwardRef,
    /// Its `metadata.uid`: another one of the same name is not meant.
    pub(crate) uid: Uid,
    /// Its status now.
    pub(crate) status: PortForwardStatus,
    /// Its status before.
    pub(crate) before: PortForwardStatus,
    /// Whether its newest form cannot be read.
    pub(crate) unreadable: bool,
}

/// What a write changes, by resource and name: two writes of one object never run at once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKey(pub(crate) &'static str, pub(crate) String);

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.1)
    }
}

/// An object as the API server has it after a write.
pub(crate) type Written<K> = Box<DeserializeGuard<K>>;

/// The API server's answer to a write.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The slice is like this now.
    Slice(Written<ForwardSlice>),
    /// The slice of this name is gone.
    SliceDeleted(String),
    /// The configuration of a node is like this now.
    Gateway(Written<GatewayNode>),
    /// The configuration of the node of this name is gone.
    GatewayDeleted(NodeName),
    /// The node is like this now.
    Node(Written<Node>),
    /// The forward is like this now.
    Forward(Written<PortForward>),
    /// The forward is like this now, since this was written about it.
    ForwardStatus(Box<ForwardReport>, Written<PortForward>),
    /// The pool is like this now.
    Pool(Written<GatewayPool>),
    /// The event is there.
    Drift(Box<Event>),
}

impl Write {
    /// What it changes.
    pub(crate) fn object(&self) -> ObjectKey {
        match self {
            Self::Slice(name, ..) | Self::DeleteSlice(name) => ObjectKey("forwardslices", name.clone()),
            Self::Gateway(name, ..) | Self::DeleteGateway(name) => ObjectKey("gatewaynodes", name.to_string()),
            Self::Label(name, _) => ObjectKey("nodes", name.to_string()),
            Self::Finalizers(key, ..) => ObjectKey("portforwards", key.to_string()),
            // One after the other: the first one's answer has the resource version that the other needs.
            Self::ForwardStatus(report) => ObjectKey("portforwards", report.key.to_string()),
            Self::PoolStatus(name, _) => ObjectKey("gatewaypools", name.clone()),
            Self::Drift(event) => ObjectKey("events", event.metadata.name.clone().unwrap_or_default()),
        }
    }

    /// The resource of the API that it is sent to.
    pub(crate) fn resource(&self) -> &'static str {
        match self {
            Self::ForwardStatus(_) => "portforwards/status",
            Self::PoolStatus(..) => "gatewaypools/status",
            _ => self.object().0,
        }
    }

    /// Whether its answer can change a decision: a status of ours cannot, nor an event.
    pub(crate) fn matters(&self) -> bool {
        !matches!(self, Self::ForwardStatus(..) | Self::PoolStatus(..) | Self::Drift(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_object_is_is_written_one_after_the_other() {
        let key = ForwardRef { namespace: "apps".into(), name: "a".into() };
        let report = ForwardReport {
            key: key.clone(),
            uid: Uid::default(),
            status: PortForwardStatus::default(),
            before: PortForwardStatus::default(),
            unreadable: false,
        };
        let status = Write::ForwardStatus(Box::new(report));
        let finalizers = Write::Finalizers(key, String::new(), vec![]);
        assert_eq!(status.object(), finalizers.object());
        assert_eq!((status.resource(), finalizers.resource()), ("portforwards/status", "portforwards"));
        assert!(finalizers.matters() && !status.matters());
        assert_ne!(Write::Label("a".into(), true).object(), Write::DeleteGateway("a".into()).object());
    }
}
