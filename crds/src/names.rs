//! Every string and number that two programs, or a program and its manifests, agree on.
//!
//! Nothing here computes. Names of fields and enum values are not here: they are the types themselves.

/// API group of all four kinds.
pub const GROUP: &str = "sallyport.dev";
/// The one served and stored version.
pub const VERSION: &str = "v1alpha1";

/// Pool that a forward asks for when it names none.
pub const DEFAULT_POOL: &str = "default";

/// Finalizer on a `PortForward` that has a place in a slice: it goes when no live node carries the forward any more.
pub const FINALIZER: &str = "sallyport.dev/rules";
/// Label on a `ForwardSlice` with the name of its pool, so that an agent watches no other pool's slices.
pub const POOL_LABEL: &str = "sallyport.dev/pool";
/// Label on a Node, written by the operator alone, that lets the agent's pod run there.
pub const AGENT_LABEL: &str = "sallyport.dev/agent";
/// Name of the agents' `DaemonSet` and of their service account.
pub const AGENT_NAME: &str = "sallyport-node-agent";
/// Name of the operator's `Deployment`, of its service account and of the `Lease` that its leader holds.
pub const OPERATOR_NAME: &str = "sallyport-operator";
/// Name of an agent's `Lease`, in front of the name of its node.
pub const AGENT_LEASE_PREFIX: &str = "sallyport-agent-";
/// Seconds after which an agent whose `Lease` was not renewed counts as silent. Renewed four times as often.
pub const AGENT_LEASE_SECONDS: i32 = 40;
/// Characters of a uid that stand for it in the status of a `GatewayNode`.
pub const UID_PREFIX: usize = 13;

/// Every iptables chain of ours starts so; no other chain is ever changed, apart from our jumps in the built-in ones.
pub const CHAIN_PREFIX: &str = "SALLY-";

/// Connection mark bit (conntrack, not packet) of every connection that one of our DNAT rules took.
///
/// A connection mark has 32 bits that everybody on the host shares, so ours sit where nobody else's are known to be:
/// kube-proxy and the kubelet use 0x4000 and 0x8000, netavark 0x1000, Cilium 0x0f00, Tailscale 0xff0000. Each of
/// our rules tests and sets these two bits alone, through a mask.
pub const MARK_OURS: u32 = 0x1000_0000;
/// Connection mark bit of those of our connections whose source address is rewritten to the gateway's.
pub const MARK_MASQUERADE: u32 = 0x2000_0000;

/// Entries of `spec.ports` of one forward.
pub const MAX_PORTS: usize = 32;
/// Entries of `spec.sources.allow`, and of `spec.sources.deny`, of one forward.
pub const MAX_SOURCES: usize = 64;
/// Entries of `spec.targets` of one forward.
pub const MAX_TARGETS: usize = 64;
/// Largest `weight` of a target.
pub const MAX_WEIGHT: u16 = 1000;
/// Entries of `spec.addresses` of one forward, and of the address lists in statuses.
pub const MAX_ADDRESSES: usize = 16;
/// Ports in one range that reaches other port numbers at the targets: such a range needs one rule a port.
pub const MAX_SHIFTED_RANGE: usize = 256;
/// DNAT rules of one forward: over its ports, targets × (the range's length if shifted, else 1).
pub const MAX_RULES_PER_FORWARD: usize = 1024;
/// Forwards in one slice.
pub const MAX_SLICE_FORWARDS: usize = 200;
/// Forwards in `draining` of one node.
pub const MAX_DRAINING: usize = 100;
/// Bytes of one slice, as JSON.
pub const MAX_SLICE_BYTES: usize = 256 * 1024;
/// Forwards of one pool whose change with mode `Plan` the agents work out at a time.
pub const MAX_PLANS: usize = 16;
/// Characters of such a change in a status.
pub const MAX_PLAN_TEXT: usize = 4096;
/// Different changes in the status of one forward, and names of nodes beside each.
pub const MAX_PLAN_ENTRIES: usize = 8;
/// What every name in a spec must look like: an RFC 1123 label. Its length is bounded beside the pattern.
pub const NAME_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// Characters of a name in a spec.
pub const MAX_NAME: usize = 63;
/// Characters of a moment as text, nanoseconds and offset included.
pub const MAX_MOMENT_TEXT: usize = 35;
/// What a duration in a spec must look like: what Gateway API takes (GEP-2257), but for milliseconds.
pub const DURATION_PATTERN: &str = "^([0-9]{1,5}(h|m|s)){1,3}$";
/// Characters of such a duration.
pub const MAX_DURATION_TEXT: usize = 18;
/// Longest lifetime that a grant can allow, in hours: ten years.
pub const MAX_LIFETIME_HOURS: i64 = 87_600;
/// Characters of an IP address as text (`INET6_ADDRSTRLEN` of POSIX, without its NUL).
pub const MAX_IP_TEXT: usize = 45;
/// Characters of a CIDR as text: an address, `/`, and up to three digits.
pub const MAX_CIDR_TEXT: usize = MAX_IP_TEXT + 4;
