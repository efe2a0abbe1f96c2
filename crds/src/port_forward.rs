//! `PortForward`: what a user asks for.
//!
//! Only the shape, the defaults and the rules that one object can be held to by itself. Rules that need another
//! object (grants, claims, reserved ports) are not here: `sallyport-policy` decides them.

use std::fmt;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::cel::MergeStrategy;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admission::{
    Family, addresses_have_targets, all_are_ips, end_port_not_below_port, is_cidr, is_ip, is_moment,
    ports_do_not_overlap, rules_are_bounded, shifted_range_is_short, sources_have_targets, target_is_allowed,
    target_range_within_ports, targets_have_sources,
};
use crate::id::IntentHash;
use crate::names::{
    DEFAULT_POOL, MAX_ADDRESSES, MAX_CIDR_TEXT, MAX_IP_TEXT, MAX_MOMENT_TEXT, MAX_NAME, MAX_PLAN_ENTRIES,
    MAX_PLAN_TEXT, MAX_PORTS, MAX_SOURCES, MAX_TARGETS, MAX_WEIGHT, NAME_PATTERN,
};

/// What is asked for: on which ports the gateways listen, who may connect, and where connections go.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "sallyport.dev",
    version = "v1alpha1",
    kind = "PortForward",
    plural = "portforwards",
    namespaced,
    status = "PortForwardStatus",
    derive = "PartialEq",
    shortname = "pf",
    doc = "A PortForward lets chosen clients reach chosen targets through the gateway nodes of a pool. It takes effect only where a grant of the pool covers it.",
    printcolumn(
        name = "Pool",
        type_ = "string",
        json_path = ".spec.pool",
        description = "GatewayPool that carries the forward"
    ),
    printcolumn(
        name = "Ports",
        type_ = "string",
        json_path = ".status.summary.ports",
        description = "Ports listened on"
    ),
    printcolumn(
        name = "Targets",
        type_ = "string",
        json_path = ".status.summary.targets",
        description = "Where connections go"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether clients can connect on every gateway node"
    ),
    printcolumn(
        name = "Nodes",
        type_ = "string",
        json_path = ".status.summary.nodes",
        description = "Gateway nodes programmed and verified, out of those desired"
    ),
    printcolumn(
        name = "Hash",
        type_ = "string",
        json_path = ".status.summary.hash",
        description = "First characters of the hash of the intent"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready, or not",
        priority = 1
    ),
    printcolumn(
        name = "Expires",
        type_ = "string",
        json_path = ".status.expiresAt",
        description = "When it is closed by itself",
        priority = 1
    ),
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".spec.mode",
        description = "Whether the gateways do what the spec says",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = targets_have_sources(Family::V4),
    validation = targets_have_sources(Family::V6),
    validation = sources_have_targets(Family::V4),
    validation = sources_have_targets(Family::V6),
    validation = addresses_have_targets(),
    validation = rules_are_bounded(),
)]
pub struct PortForwardSpec {
    /// Name of the `GatewayPool` whose nodes carry this forward. One of its grants must cover the forward for this
    /// namespace.
    #[serde(default = "default_pool")]
    #[schemars(length(min = 1, max = MAX_NAME), regex(pattern = NAME_PATTERN))]
    pub pool: String,
    /// IP addresses to listen on. Every node of the pool needs one of them among its listen addresses, of the family of a
    /// target; a node that has none cannot carry the forward. Empty means all of the pool's listen addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ADDRESSES), inner(length(max = MAX_IP_TEXT)))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Set), validation = all_are_ips())]
    pub addresses: Vec<String>,
    /// Ports and port ranges the gateways listen on. Ranges of the same protocol must not overlap. What a gateway needs for
    /// itself (ssh, the kubelet, etcd and the like) is refused.
    #[schemars(length(min = 1, max = MAX_PORTS))]
    #[x_kube(
        merge_strategy = MergeStrategy::ListType(ListMerge::Map(vec!["name".into()])),
        validation = ports_do_not_overlap(),
    )]
    pub ports: Vec<ForwardPort>,
    /// Who may connect.
    pub sources: Sources,
    /// Where connections go. New connections are spread over the targets of the client's address family by weight.
    #[schemars(length(min = 1, max = MAX_TARGETS))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Map(vec!["name".into()])))]
    pub targets: Vec<Target>,
    /// Whose address the targets see.
    #[serde(default, rename = "sourceNAT")]
    pub source_nat: SourceNat,
    /// What becomes of open connections when the forward changes.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// When the forward expires, as RFC 3339, such as 2026-01-31T18:00:00Z: from then on it is closed and its connections
    /// are ended, on time also while the API server is away. Without it the forward lasts until it is deleted,
    /// or as long as `maxLifetime` of the grant allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_MOMENT_TEXT))]
    #[x_kube(validation = is_moment())]
    pub expires_at: Option<Time>,
    /// `Apply`, the default: the gateways do what this spec says. `Paused`: they keep what they carry for this forward, with
    /// its ports, and edits wait; what is no longer allowed goes all the same, and one that was created paused is not
    /// programmed and holds no port. `Plan`: like `Paused`, and `status.plan` shows what `Apply` would change.
    #[serde(default)]
    pub mode: Mode,
}

fn default_pool() -> String {
    DEFAULT_POOL.to_owned()
}

/// One port, or one range of ports, that the gateways listen on.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = end_port_not_below_port(),
    validation = target_range_within_ports(),
    validation = shifted_range_is_short(),
)]
pub struct ForwardPort {
    /// Name of the port, unique in this forward.
    #[schemars(length(min = 1, max = MAX_NAME), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// Transport protocol, TCP or UDP. Defaults to TCP.
    #[serde(default)]
    pub protocol: Protocol,
    /// Port to listen on, 1 to 65535; the first one if `endPort` is set.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Last port of the range to listen on, inclusive. Without it, `port` alone is listened on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<i32>,
    /// Port of the targets that `port` is delivered to. The rest of a range follows in step: the third port listened
    /// on is delivered to the third port from here. Defaults to `port`. A range for which it differs from `port` spans
    /// at most 256 ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: Option<i32>,
}

/// Transport protocol.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP (RFC 9293).
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP (RFC 768).
    #[serde(rename = "UDP")]
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Who may connect. Everybody else's packets are left to the gateway's own firewall.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Sources {
    /// Clients that may connect. There is no default: everybody has to be written out, as `0.0.0.0/0` or `::/0`.
    #[schemars(length(min = 1, max = MAX_SOURCES))]
    pub allow: Vec<Source>,
    /// Clients that may not connect, even where `allow` covers them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SOURCES))]
    pub deny: Vec<Source>,
}

/// A set of clients.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Block of client addresses, such as 10.30.0.0/23; a single host is 10.30.1.80/32. Bits below the prefix length
    /// are ignored.
    #[schemars(length(max = MAX_CIDR_TEXT))]
    #[x_kube(validation = is_cidr())]
    pub cidr: String,
}

/// One place that connections go to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Name of the target, unique in this forward.
    #[schemars(length(min = 1, max = MAX_NAME), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// IP address that connections are delivered to: another host's own. Loopback, link-local, multicast, broadcast, cloud
    /// metadata and the like are refused.
    #[schemars(length(max = MAX_IP_TEXT))]
    #[x_kube(validation = is_ip(), validation = target_is_allowed())]
    pub ip: String,
    /// Share of new connections, 0 to 1000, relative to the other targets of the same address family. Defaults to 1.
    /// 0 takes no new connections and leaves the open ones alone: the graceful way to take a target out.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 0, max = MAX_WEIGHT))]
    pub weight: i32,
}

fn default_weight() -> i32 {
    1
}

/// Whose address the targets see.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SourceNat {
    /// `Masquerade`, the default: targets see the gateway's address, so their replies always come back through it.
    /// `Preserve`: targets see the client's address, and their replies must be routed through the gateway.
    #[serde(default)]
    pub mode: SourceNatMode,
}

/// How source addresses are rewritten.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceNatMode {
    /// Targets see the gateway's own address, so their replies always come back through it.
    #[default]
    Masquerade,
    /// Targets see the client's address; their replies must be routed through the gateway.
    Preserve,
}

impl fmt::Display for SourceNatMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Masquerade => "Masquerade",
            Self::Preserve => "Preserve",
        })
    }
}

/// What becomes of open connections when a forward changes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// What becomes of the open TCP connections to a target that is taken out of `targets`. `Drain`, the default: they go
    /// on until they end by themselves. `Sever`: they are ended. UDP flows leave a removed target at once in both cases. A
    /// target of weight 0 keeps all its connections in both cases.
    #[serde(default)]
    pub on_target_removed: OnTargetRemoved,
}

/// What becomes of the open TCP connections to a removed target.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnTargetRemoved {
    /// They go on until they end by themselves.
    #[default]
    Drain,
    /// They are ended.
    Sever,
}

/// What the gateways do with a spec.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The gateways do what the spec says.
    #[default]
    Apply,
    /// The gateways keep what they carry, and edits are only shown: `status.plan`.
    Plan,
    /// The gateways keep what they carry, and edits wait.
    Paused,
}

/// What became of a `PortForward`. Written by the operator only.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PortForwardStatus {
    /// `metadata.generation` of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`: the forward is valid, granted, and holds its ports. `Programmed`: the kernel of every gateway node whose
    /// agent has ever reported was read back and carries it; a node that is new counts from its first report on. `Ready`:
    /// both. Each message says what to do next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Map(vec!["type".into()])))]
    pub conditions: Vec<Condition>,
    /// Hash of the intent at `observedGeneration`: equal hashes mean equal behaviour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub hash: Option<IntentHash>,
    /// Hash that was last read back from the kernel of every required node. Equal to `hash` when `Programmed` is True.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub applied_hash: Option<IntentHash>,
    /// When the forward expires, or did: the moment in `spec.expiresAt`, or the one that the grant's `maxLifetime` leads to,
    /// whichever is earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// How many gateway nodes carry this forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// Where clients connect; the first 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ADDRESSES))]
    pub addresses: Vec<AddressValue>,
    /// Addresses that the targets see connections come from, and that their firewalls must allow; the first 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ADDRESSES))]
    pub source_addresses: Vec<AddressValue>,
    /// How many targets there are, and how many connections are left to those on their way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<TargetCounts>,
    /// The same in short strings, for the columns of `kubectl get`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// With mode `Plan`: what `Apply` would change on the gateways. Equal changes are one entry; the first 8 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PLAN_ENTRIES))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Atomic))]
    pub plan: Vec<PlannedChange>,
}

/// What `Apply` would change on some gateways.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PlannedChange {
    /// The nodes whose change this is; the first 8.
    #[schemars(length(max = MAX_PLAN_ENTRIES), inner(length(max = 253)))]
    pub nodes: Vec<String>,
    /// How many nodes that are.
    #[schemars(range(min = 1))]
    pub nodes_total: i32,
    /// The rules that would go (`-`) and come (`+`), as the node agent's `plan` prints them.
    #[schemars(length(max = MAX_PLAN_TEXT))]
    pub change: String,
}

/// Gateway nodes of a forward, by how far they are.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Nodes that should carry the forward.
    #[schemars(range(min = 0))]
    pub desired: i32,
    /// Nodes whose kernel was read back and carries it.
    #[schemars(range(min = 0))]
    pub programmed: i32,
    /// Nodes that reported that they cannot carry it.
    #[schemars(range(min = 0))]
    pub failed: i32,
    /// Nodes whose agent is silent; they keep the rules they last had.
    #[schemars(range(min = 0))]
    pub unreachable: i32,
}

/// An address in a status.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct AddressValue {
    /// The IP address.
    #[x_kube(validation = is_ip())]
    pub value: IpAddr,
}

/// Targets of a forward.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TargetCounts {
    /// Targets in the intent.
    #[schemars(range(min = 0))]
    pub total: i32,
    /// Open connections, over all gateway nodes, to targets that take no new ones: those that were removed, and those of
    /// weight 0. Counted every few seconds while there are any; absent when there are none.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub draining: i32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// What the columns of `kubectl get` show, since a column cannot compute.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Ports listened on, such as `3306/TCP`.
    #[schemars(length(max = 256))]
    pub ports: String,
    /// Where connections go, such as `10.30.1.79:3306`.
    #[schemars(length(max = 256))]
    pub targets: String,
    /// Nodes programmed out of nodes desired, such as `2/2`.
    #[schemars(length(max = 32))]
    pub nodes: String,
    /// First characters of `hash`.
    #[schemars(length(max = 16))]
    pub hash: String,
}
