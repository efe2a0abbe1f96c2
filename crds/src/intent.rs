//! The typed form of an accepted forward: what slices carry, rules are made of and hashes cover.
//!
//! Values only, no user text: addresses, ports and enums. Lists are sorted and free of duplicates, host bits are
//! masked, and a field equal to its default is left out when serialised, so that a new optional field changes no
//! existing hash. How a `PortForward` becomes an `Intent` is not here: `sallyport-policy` decides that.

use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::Moment;
use crate::names::{MAX_ADDRESSES, MAX_CIDR_TEXT, MAX_PORTS, MAX_SOURCES, MAX_TARGETS};
use crate::port_forward::{OnTargetRemoved, Protocol, SourceNatMode};

/// A forward that was accepted, defaulted and typed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// Listen addresses it is limited to; empty means every listen address of the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ADDRESSES))]
    pub addresses: Vec<IpAddr>,
    /// What it listens on, sorted.
    #[schemars(length(min = 1, max = MAX_PORTS))]
    pub ports: Vec<IntentPort>,
    /// Clients that may use it.
    #[schemars(with = "Vec<String>", length(min = 1, max = MAX_SOURCES), inner(length(max = MAX_CIDR_TEXT)))]
    pub allow: Vec<IpNet>,
    /// Clients that may not, even where `allow` covers them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = MAX_SOURCES), inner(length(max = MAX_CIDR_TEXT)))]
    pub deny: Vec<IpNet>,
    /// Where connections go.
    #[schemars(length(min = 1, max = MAX_TARGETS))]
    pub targets: Vec<IntentTarget>,
    /// Whose address the targets see.
    #[serde(default, skip_serializing_if = "is_default")]
    pub source_nat: SourceNatMode,
    /// What becomes of open TCP connections to a removed target.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_target_removed: OnTargetRemoved,
    /// When it expires, in seconds since 1970; absent if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub expires_at: Option<Moment>,
}

/// One listened port or range of an intent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct IntentPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// First port listened on.
    pub port: u16,
    /// Last port listened on, inclusive; never below `port`.
    pub end_port: u16,
    /// Port of the targets that `port` is delivered to; the rest of the range follows in step.
    pub target_port: u16,
}

/// One target of an intent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct IntentTarget {
    /// Address connections are delivered to.
    pub ip: IpAddr,
    /// Share of new connections relative to the other targets of its family; 0 takes no new ones.
    pub weight: u16,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
