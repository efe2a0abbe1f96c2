//! `GatewayPool`: which nodes are gateways together, and what each namespace may ask of them.
//!
//! Only the shape, the defaults and the rules that one object can be held to by itself. What a grant covers is not
//! decided here: `sallyport-policy` does.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::core::cel::MergeStrategy;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admission::{
    all_are_cidrs, end_port_not_below_port, is_cidr, lifetime_is_bounded, pool_name_is_a_label, value_goes_with_cidr,
};
use crate::names::{DURATION_PATTERN, MAX_ADDRESSES, MAX_CIDR_TEXT, MAX_DURATION_TEXT, MAX_NAME, NAME_PATTERN};
use crate::port_forward::{AddressValue, Protocol, SourceNatMode};

/// Which nodes are gateways, where they listen, and what each namespace may ask of them.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "sallyport.dev",
    version = "v1alpha1",
    kind = "GatewayPool",
    plural = "gatewaypools",
    status = "GatewayPoolStatus",
    derive = "PartialEq",
    shortname = "gwp",
    doc = "A GatewayPool is a set of nodes that carry the same PortForwards, and the grants that say which PortForwards those may be. Without a grant nothing is forwarded.",
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.matched", description = "Gateway nodes of the pool"),
    printcolumn(name = "Ready-Nodes", type_ = "integer", json_path = ".status.nodes.ready", description = "Gateway nodes that carry all forwards of the pool"),
    printcolumn(name = "Accepted", type_ = "integer", json_path = ".status.forwards.accepted", description = "Forwards accepted"),
    printcolumn(name = "Refused", type_ = "integer", json_path = ".status.forwards.refused", description = "Forwards refused"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether every node of the pool is ready"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is ready, or not", priority = 1),
    validation = pool_name_is_a_label()
)]
#[serde(rename_all = "camelCase")]
pub struct GatewayPoolSpec {
    /// Nodes that are gateways of this pool, by their labels. An empty selector means every node. A node that two pools
    /// select belongs to the older one.
    pub node_selector: LabelSelector,
    /// Where the nodes listen. Defaults to each node's `InternalIP` addresses.
    #[serde(default)]
    pub listen: Listen,
    /// What the agents do about the kernel's `ip_forward` switch, without which nothing is forwarded. `Manage`, the
    /// default: turn it on when a forward needs it. `Require`: never write it, report when it is off.
    #[serde(default)]
    pub ip_forward: IpForward,
    /// How the agents program the kernel.
    #[serde(default)]
    pub firewall: Firewall,
    /// Ports that no forward may take, because something else on the nodes needs them. Added to a built-in list (ssh,
    /// kubelet, API server, etcd, CNI, `NodePort` range), which cannot be shortened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub reserved_ports: Vec<ReservedPort>,
    /// What each namespace may ask of this pool. A forward is accepted only if one grant covers all of it; grants do
    /// not add up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Map(vec!["name".into()])))]
    pub grants: Vec<Grant>,
}

/// Where the nodes of a pool listen.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Listen {
    /// Which of a node's own addresses forwards listen on; an address chosen by any entry counts.
    #[schemars(length(min = 1, max = MAX_ADDRESSES))]
    pub addresses: Vec<ListenAddress>,
}

impl Default for Listen {
    fn default() -> Self {
        Self { addresses: vec![ListenAddress { r#type: ListenAddressType::NodeInternalIp, value: None }] }
    }
}

/// A choice of a node's own addresses.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = value_goes_with_cidr())]
pub struct ListenAddress {
    /// How the addresses are chosen. `NodeInternalIP`: those of type `InternalIP` in the status of the Node. `CIDR`:
    /// those inside `value`.
    pub r#type: ListenAddressType,
    /// Block to choose from, such as 10.30.0.0/23. Required with type `CIDR`, not allowed otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_CIDR_TEXT))]
    #[x_kube(validation = is_cidr())]
    pub value: Option<String>,
}

/// How a node's listen addresses are chosen.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenAddressType {
    /// The addresses of type `InternalIP` in the status of the Node.
    #[serde(rename = "NodeInternalIP")]
    NodeInternalIp,
    /// The node's own addresses inside `value`.
    #[serde(rename = "CIDR")]
    Cidr,
}

/// What an agent does about the kernel's `ip_forward` switch.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpForward {
    /// Turn it on when a forward needs it.
    #[default]
    Manage,
    /// Never write it; report when it is off.
    Require,
}

/// How the agents program the kernel.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Firewall {
    /// Program that the rules are written through: `IptablesNft`, `IptablesLegacy`, or `Auto`, the default, which
    /// takes the one that the host's own rules already use.
    #[serde(default)]
    pub backend: FirewallBackend,
    /// Who wins in `filter FORWARD`: what other firewalls of the host deny by name (`AfterDenies`), or the forwards
    /// (`First`). What they drop without naming anything never wins. Absent, a node has `AfterDenies`, and one that an agent
    /// older than this field has served keeps `First`, which it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<FirewallOrder>,
}

/// Where the jump to our rules stands in `filter FORWARD`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirewallOrder {
    /// Directly before the first rule of others that drops what it does not name, so behind what they deny by name.
    #[default]
    AfterDenies,
    /// Before every rule of others that would drop a packet of a forward.
    First,
}

/// Program that rules are written through.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirewallBackend {
    /// The one that the host's own rules already use.
    #[default]
    Auto,
    /// `iptables-nft`.
    IptablesNft,
    /// `iptables-legacy`.
    IptablesLegacy,
}

/// Ports that no forward may take.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = end_port_not_below_port())]
pub struct ReservedPort {
    /// Transport protocol, TCP or UDP. Without it, both are reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The port, 1 to 65535; the first one if `endPort` is set.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Last port of the range, inclusive. Without it, `port` alone is reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<i32>,
}

/// What the namespaces that a selector matches may ask of a pool. A list that is absent allows nothing.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// Name of the grant, unique in this pool.
    #[schemars(length(min = 1, max = MAX_NAME), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// Namespaces that the grant is given to, by their labels. An empty selector means every namespace. The label
    /// `kubernetes.io/metadata.name` holds a namespace's own name.
    pub namespace_selector: LabelSelector,
    /// Ports that may be listened on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ports: Vec<GrantPort>,
    /// Blocks that every target must be inside, such as 10.30.1.0/24.
    #[serde(default, rename = "targetCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = MAX_CIDR_TEXT)))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Set), validation = all_are_cidrs())]
    pub target_cidrs: Vec<String>,
    /// Blocks that every entry of `sources.allow` must be inside, such as 10.30.0.0/23.
    #[serde(default, rename = "sourceCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = MAX_CIDR_TEXT)))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Set), validation = all_are_cidrs())]
    pub source_cidrs: Vec<String>,
    /// Values of `sourceNAT.mode` that may be asked for. Defaults to `Masquerade` alone: with `Preserve` a client
    /// speaks to the targets under its own address.
    #[serde(default = "default_source_nat_modes", rename = "sourceNATModes")]
    #[schemars(length(max = 2))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Set))]
    pub source_nat_modes: Vec<SourceNatMode>,
    /// How many forwards each namespace may have under this grant. Without it there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_forwards: Option<i32>,
    /// How long a forward may last under this grant, from when it was created: a duration such as `24h` or `1h30m`, from 1s
    /// to 87600h. The forward expires then, also if its `expiresAt` says later or nothing. Of several grants that cover
    /// a forward, the one counts that lets it last longest. Without `maxLifetime` there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_DURATION_TEXT), regex(pattern = DURATION_PATTERN))]
    #[x_kube(validation = lifetime_is_bounded())]
    pub max_lifetime: Option<String>,
}

fn default_source_nat_modes() -> Vec<SourceNatMode> {
    vec![SourceNatMode::Masquerade]
}

/// Ports that a grant covers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = end_port_not_below_port())]
pub struct GrantPort {
    /// Transport protocol, TCP or UDP. Defaults to TCP.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port, 1 to 65535; the first one if `endPort` is set.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Last port of the range, inclusive. Without it, the grant covers `port` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<i32>,
}

/// What became of a `GatewayPool`. Written by the operator only.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayPoolStatus {
    /// `metadata.generation` of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: every node of the pool carries all its forwards. The message says what to do next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Map(vec!["type".into()])))]
    pub conditions: Vec<Condition>,
    /// Nodes of this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<PoolNodeCounts>,
    /// Forwards that name this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwards: Option<ForwardCounts>,
    /// Addresses that targets see connections through this pool come from, and that their firewalls must allow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ADDRESSES))]
    pub source_addresses: Vec<AddressValue>,
}

/// Nodes of a pool, by how far they are.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PoolNodeCounts {
    /// Nodes that `nodeSelector` matches and that belong to no older pool.
    #[schemars(range(min = 0))]
    pub matched: i32,
    /// Of these, nodes whose agent carries all the pool's forwards.
    #[schemars(range(min = 0))]
    pub ready: i32,
}

/// Forwards that name a pool, by verdict.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ForwardCounts {
    /// Forwards with `Accepted=True`.
    #[schemars(range(min = 0))]
    pub accepted: i32,
    /// Forwards with `Accepted=False`.
    #[schemars(range(min = 0))]
    pub refused: i32,
}
