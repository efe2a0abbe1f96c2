//! `GatewayNode`: one gateway node's configuration, and what its agent found in the kernel.
//!
//! The operator writes the spec, that node's agent the status. Which forwards the node carries is not here: they are
//! in the `ForwardSlice`s of its pool.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::cel::MergeStrategy;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::forward_slice::ForwardRef;
use crate::gateway_pool::{FirewallBackend, FirewallOrder, IpForward, ReservedPort};
use crate::id::{IntentHash, RulesDigest, SliceHash, UidPrefix};
use crate::names::{
    MAX_ADDRESSES, MAX_CIDR_TEXT, MAX_DRAINING, MAX_NAME, MAX_PLAN_TEXT, MAX_PLANS, MAX_SLICE_FORWARDS, NAME_PATTERN,
};
use crate::port_forward::AddressValue;

/// All that an agent needs to know about its node and pool, apart from the forwards.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "sallyport.dev",
    version = "v1alpha1",
    kind = "GatewayNode",
    plural = "gatewaynodes",
    status = "GatewayNodeStatus",
    derive = "PartialEq",
    shortname = "gwn",
    doc = "A GatewayNode is one gateway node's configuration, written by the operator, and what that node's agent found in the kernel. It has the name of the Node. Do not edit it.",
    printcolumn(
        name = "Pool",
        type_ = "string",
        json_path = ".spec.pool",
        description = "GatewayPool that the node belongs to"
    ),
    printcolumn(
        name = "Wanted",
        type_ = "string",
        json_path = ".spec.state",
        description = "What the node is asked to do"
    ),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state", description = "What the node does"),
    printcolumn(
        name = "Synced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Synced\")].status",
        description = "Whether the kernel carries every slice seen"
    ),
    printcolumn(
        name = "Firewall",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"HostFirewallCompatible\")].status",
        description = "Whether the host's other firewalls let forwarded packets pass"
    ),
    printcolumn(
        name = "Failures",
        type_ = "integer",
        json_path = ".status.failuresTotal",
        description = "Forwards that the node cannot carry"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Backend",
        type_ = "string",
        json_path = ".status.backend",
        description = "Program that the rules are written through",
        priority = 1
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.agentVersion",
        description = "Version of the agent",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct GatewayNodeSpec {
    /// Name of the `GatewayPool` that the node belongs to.
    #[schemars(length(min = 1, max = MAX_NAME), regex(pattern = NAME_PATTERN))]
    pub pool: String,
    /// `Active`: carry the forwards of the pool. `Retired`: remove every rule of ours, read back and report `Cleaned`.
    pub state: NodeState,
    /// Listen addresses. The agent uses those that are really on its interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ADDRESSES))]
    pub addresses: Vec<IpAddr>,
    /// Blocks of listen addresses: each address on the node's interfaces inside one of them counts, whether Kubernetes
    /// knows it or not.
    #[serde(default, rename = "listenCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = MAX_ADDRESSES), inner(length(max = MAX_CIDR_TEXT)))]
    pub listen_cidrs: Vec<IpNet>,
    /// What the agent does about the kernel's `ip_forward` switch: `Manage` or `Require`.
    #[serde(default)]
    pub ip_forward: IpForward,
    /// Program that the rules are written through: `Auto`, `IptablesNft` or `IptablesLegacy`.
    #[serde(default)]
    pub backend: FirewallBackend,
    /// Who wins in `filter FORWARD`: what others deny by name (`AfterDenies`), or the forwards (`First`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<FirewallOrder>,
    /// Ports that no forward may take, added to the built-in list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub reserved_ports: Vec<ReservedPort>,
}

/// What a node is asked to do.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Carry the forwards of the pool.
    Active,
    /// Remove every rule of ours, read back and report `Cleaned`.
    Retired,
}

/// What the agent of a node found and did. Written by that agent only, on transitions only.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayNodeStatus {
    /// `Active`: the node carries forwards. `Cleaned`: no rule of ours is left. Absent until the agent first read the
    /// kernel back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ObservedNodeState>,
    /// The slices that the agent has seen, and how far each is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Map(vec!["name".into()])))]
    pub observed_slices: Vec<ObservedSlice>,
    /// The first 20 forwards that this node cannot carry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub failures: Vec<ForwardFailure>,
    /// How many forwards this node cannot carry.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failures_total: i32,
    /// The forwards with open connections to targets that take no new ones: removed, or of weight 0. At most 100, those
    /// with the most connections. Counted every few seconds while there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_DRAINING))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Map(vec!["uid".into()])))]
    pub draining: Vec<DrainingForward>,
    /// Digest of all our rules as the kernel returned them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub rules_digest: Option<RulesDigest>,
    /// `Synced`: the kernel carries every slice of the pool. `IPForwarding`: the kernel forwards.
    /// `HostFirewallCompatible`: no other firewall of the host drops what is forwarded. `AdminServing`: the agent answers
    /// probes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Map(vec!["type".into()])))]
    pub conditions: Vec<Condition>,
    /// Program in use, after `Auto` was resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<FirewallBackend>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,
    /// Version of the rendering, so that an upgraded agent is not taken for drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub format_version: Option<i32>,
    /// Addresses of this node that forwards listen on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ADDRESSES))]
    pub addresses: Vec<AddressValue>,
    /// Addresses of this node that masqueraded connections leave from, towards all targets taken together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ADDRESSES))]
    pub source_addresses: Vec<AddressValue>,
    /// The last time that somebody else changed our rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_drift: Option<Drift>,
    /// What would change here for forwards with mode `Plan`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PLANS))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Atomic))]
    pub plans: Vec<NodePlan>,
}

/// What would change on a node for a forward with mode `Plan`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodePlan {
    /// Which `PortForward` it is.
    pub r#ref: ForwardRef,
    /// Hash of the intent that the kernel was compared with.
    #[schemars(length(max = 80))]
    pub hash: IntentHash,
    /// The rules that would go (`-`) and come (`+`), as the node agent's `plan` prints them.
    #[schemars(length(max = MAX_PLAN_TEXT))]
    pub change: String,
}

/// What a node does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObservedNodeState {
    /// It carries forwards.
    Active,
    /// No rule of ours is left in its kernel.
    Cleaned,
}

/// How far a node is with one slice.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ObservedSlice {
    /// `metadata.name` of the `ForwardSlice`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// `metadata.generation` of the slice that `state` speaks of: a slice may return to a hash that it had before.
    pub generation: i64,
    /// Hash of the slice that `state` speaks of.
    #[schemars(length(max = 80))]
    pub hash: SliceHash,
    /// `Pending`: seen, not yet read back from the kernel. `Programmed`: read back, except for the forwards in
    /// `failed`.
    pub state: SliceState,
    /// First 13 characters of the uids of the forwards in it that this node cannot carry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SLICE_FORWARDS), inner(length(max = 36)))]
    pub failed: Vec<UidPrefix>,
}

/// How far a node is with a slice.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceState {
    /// Seen, not yet read back from the kernel.
    Pending,
    /// Read back from the kernel, except for the forwards listed in `failed`.
    Programmed,
}

/// A forward with connections that are left to end by themselves.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DrainingForward {
    /// First 13 characters of the forward's uid.
    #[schemars(length(max = 36))]
    pub uid: UidPrefix,
    /// How many they are on this node.
    #[schemars(range(min = 1))]
    pub connections: i32,
}

/// A forward that a node cannot carry.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ForwardFailure {
    /// Which `PortForward` it is.
    pub r#ref: ForwardRef,
    /// A reason of the forward's `Programmed` condition.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// What to do about it.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// Somebody else changed our rules.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// When the agent saw it.
    pub time: Time,
    /// What was different.
    #[schemars(length(max = 1024))]
    pub message: String,
}
