//! The contract of Sallyport: the Rust types of the `sallyport.dev` API and what is generated from them.
//!
//! A user writes a [`PortForward`] and a platform admin a [`GatewayPool`]; the operator turns the accepted ones into
//! [`Intent`]s, carries them in [`ForwardSlice`]s and gives each gateway node its [`GatewayNode`]. The YAML beside
//! this crate is [`manifest`]'s output, and a test keeps the two equal. Every string or number that two programs
//! agree on is in [`names`]. What an object means, whether it is accepted and which rules it becomes are not here:
//! `sallyport-policy` and `sallyport-ruleset` decide that.

#![allow(
    clippy::duplicated_attributes,
    reason = "kube's derive takes one printcolumn a column, each with the same keys"
)]

mod admission;
pub mod condition;
pub mod forward_slice;
pub mod gateway_node;
pub mod gateway_pool;
pub mod id;
pub mod intent;
pub mod limits;
pub mod manifest;
pub mod names;
pub mod port_forward;
#[cfg(feature = "testing")]
pub mod testing;

pub use condition::{ConditionType, Reason};
pub use forward_slice::{ForwardRef, ForwardSlice, ForwardSliceSpec, SliceForward};
pub use gateway_node::{GatewayNode, GatewayNodeSpec, GatewayNodeStatus, NodeState};
pub use gateway_pool::{
    Firewall, FirewallBackend, FirewallOrder, GatewayPool, GatewayPoolSpec, GatewayPoolStatus, Grant, GrantPort,
    IpForward, Listen, ListenAddress, ListenAddressType, ReservedPort,
};
pub use id::{IntentHash, Moment, NodeName, RulesDigest, SliceHash, Uid};
pub use intent::{Intent, IntentPort, IntentTarget};
pub use port_forward::{
    ForwardPort, Lifecycle, Mode, OnTargetRemoved, PlannedChange, PortForward, PortForwardSpec, PortForwardStatus,
    Protocol, Source, SourceNat, SourceNatMode, Sources, Target,
};
