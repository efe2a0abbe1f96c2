//! Condition types and reasons: the words in which every status explains itself.
//!
//! They are an API: scripts and alerts match on them. When one applies is not decided here.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a condition speaks of. `True` is always the good state.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The object is valid, granted, and holds its ports.
    Accepted,
    /// The kernel of every required node was read back and carries it: of every node of the pool that has ever reported.
    Programmed,
    /// All the others are True.
    Ready,
    /// On a `GatewayNode`: the kernel was read back and carries every slice of the pool.
    Synced,
    /// On a `GatewayNode`: the kernel forwards packets of every family that a forward needs.
    #[serde(rename = "IPForwarding")]
    IpForwarding,
    /// On a `GatewayNode`: no other firewall of the host drops what is forwarded.
    HostFirewallCompatible,
    /// On a `GatewayNode`: the agent answers probes and metrics on the address that it was told.
    AdminServing,
}

impl ConditionType {
    /// The word in `type` of a condition.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Programmed => "Programmed",
            Self::Ready => "Ready",
            Self::Synced => "Synced",
            Self::IpForwarding => "IPForwarding",
            Self::HostFirewallCompatible => "HostFirewallCompatible",
            Self::AdminServing => "AdminServing",
        }
    }
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a condition is as it is, and so also whether it is True.
///
/// `Ready` carries, besides its own two, the first reason of the other conditions that is not True.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The forward is valid, granted, and holds its ports. Nothing to do.
    Accepted,
    /// No `GatewayPool` has the name in `spec.pool`. Correct the name, or ask for the pool to be created.
    PoolNotFound,
    /// No single grant of the pool covers the whole forward. Narrow what the message names, or ask the pool's admin for
    /// a grant.
    NotGranted,
    /// Another forward holds one of the ports on one of the addresses. Choose another port, or wait until it is free.
    PortConflict,
    /// A port is on the list that keeps the nodes themselves reachable. Choose another port.
    ReservedPort,
    /// A target is an address that is always refused, such as loopback or link-local. Choose another target.
    InvalidTarget,
    /// The moment in `spec.expiresAt` has passed, or the time that the grant allows. Set a later moment, or create the
    /// forward anew, as the message says.
    Expired,
    /// The namespace already has as many forwards as its grant allows. Delete one, or ask the pool's admin for more.
    QuotaExceeded,
    /// A value is out of its range or does not parse. Correct the field that the message names.
    UnsupportedValue,
    /// The rules were read back from the kernel of every required node and are the intended ones. Nothing to do.
    Verified,
    /// The operator or an agent has not got to it yet. Wait; if it lasts, read the logs of the operator and the agents.
    Pending,
    /// `spec.mode` is `Plan` and the spec is not what the gateways carry; `status.plan` shows the difference. Set it to
    /// `Apply` to program the spec.
    Planned,
    /// `spec.mode` is `Paused` and the spec is not what the gateways carry. Set it to `Apply` to program the spec.
    Paused,
    /// Somebody else changes our rules or settings on a node, and it lasts. The `GatewayNode` says what they do: stop that
    /// program.
    Drifted,
    /// A node could not carry the forward. The message says which node and why.
    NodeFailed,
    /// The agent of a node is silent, so what its kernel does is unknown; it keeps the rules it last had. Look at the
    /// agent's pod on that node, and at the node.
    AgentUnreachable,
    /// The pool has no node. Label a node so that the pool's `nodeSelector` matches it.
    NoGatewayNodes,
    /// A gateway has no listen address of the forward's address family. Give the node such an address, or widen
    /// `spec.listen` of the pool.
    NoListenAddress,
    /// A program of a node listens on one of the ports already, and would lose its clients. Stop it, or choose another port;
    /// a forward that the node has carried before is not affected.
    PortInUse,
    /// iptables cannot read one of its tables on a node, because somebody put a rule of nftables into it: what is no longer
    /// allowed is taken away all the same, but nothing is verified and nothing new programmed. Move that rule to a table of
    /// another name; the `GatewayNode` names it.
    TableUnreadable,
    /// With `Preserve`, a target would answer the client directly, past the gateway. Use `Masquerade`.
    AsymmetricReturnPath,
    /// Another firewall of the host drops the forward's packets. Do what the message says.
    HostFirewallConflict,
    /// The agent of a node does not know a field of the intent and keeps the old rules. Upgrade the agent.
    UnsupportedIntent,
    /// Every other condition is True. Nothing to do.
    Ready,
    /// A node that this pool selects belongs to an older pool. Change `nodeSelector` of either pool.
    NodeInOtherPool,
    /// The kernel carries every slice of the pool. Nothing to do.
    Synced,
    /// A slice that the node carries is gone without having been emptied first; its rules stay. Restore the custom
    /// resource definitions, and the operator writes it again.
    SliceMissing,
    /// The kernel forwards packets. Nothing to do.
    Forwarding,
    /// The kernel does not forward packets. With `ipForward: Require`, turn `ip_forward` on at the node; else the message
    /// says what failed.
    NotForwarding,
    /// No other firewall of the host drops what is forwarded. Nothing to do.
    HostFirewallCompatible,
    /// Another firewall of the host may drop what is forwarded, but that cannot be told from here. Try a forward; if it
    /// does not answer, do what the message says.
    HostFirewallUnclear,
    /// The agent answers probes and metrics. Nothing to do.
    Serving,
    /// The agent cannot have the address for probes and metrics, most likely since another program has it; forwarding goes
    /// on. Do what the message says.
    NotServing,
}

impl Reason {
    /// Every reason, in the order of the condition types, the good one of each type first.
    pub const ALL: [Self; 33] = [
        Self::Accepted,
        Self::PoolNotFound,
        Self::NotGranted,
        Self::PortConflict,
        Self::ReservedPort,
        Self::InvalidTarget,
        Self::Expired,
        Self::QuotaExceeded,
        Self::UnsupportedValue,
        Self::Verified,
        Self::Pending,
        Self::Planned,
        Self::Paused,
        Self::Drifted,
        Self::NodeFailed,
        Self::AgentUnreachable,
        Self::NoGatewayNodes,
        Self::NoListenAddress,
        Self::PortInUse,
        Self::TableUnreadable,
        Self::AsymmetricReturnPath,
        Self::HostFirewallConflict,
        Self::UnsupportedIntent,
        Self::Ready,
        Self::NodeInOtherPool,
        Self::Synced,
        Self::SliceMissing,
        Self::Forwarding,
        Self::NotForwarding,
        Self::HostFirewallCompatible,
        Self::HostFirewallUnclear,
        Self::Serving,
        Self::NotServing,
    ];

    /// The word in `reason` of a condition.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::PoolNotFound => "PoolNotFound",
            Self::NotGranted => "NotGranted",
            Self::PortConflict => "PortConflict",
            Self::ReservedPort => "ReservedPort",
            Self::InvalidTarget => "InvalidTarget",
            Self::Expired => "Expired",
            Self::QuotaExceeded => "QuotaExceeded",
            Self::UnsupportedValue => "UnsupportedValue",
            Self::Verified => "Verified",
            Self::Pending => "Pending",
            Self::Planned => "Planned",
            Self::Paused => "Paused",
            Self::Drifted => "Drifted",
            Self::NodeFailed => "NodeFailed",
            Self::AgentUnreachable => "AgentUnreachable",
            Self::NoGatewayNodes => "NoGatewayNodes",
            Self::NoListenAddress => "NoListenAddress",
            Self::PortInUse => "PortInUse",
            Self::TableUnreadable => "TableUnreadable",
            Self::AsymmetricReturnPath => "AsymmetricReturnPath",
            Self::HostFirewallConflict => "HostFirewallConflict",
            Self::UnsupportedIntent => "UnsupportedIntent",
            Self::Ready => "Ready",
            Self::NodeInOtherPool => "NodeInOtherPool",
            Self::Synced => "Synced",
            Self::SliceMissing => "SliceMissing",
            Self::Forwarding => "Forwarding",
            Self::NotForwarding => "NotForwarding",
            Self::HostFirewallCompatible => "HostFirewallCompatible",
            Self::HostFirewallUnclear => "HostFirewallUnclear",
            Self::Serving => "Serving",
            Self::NotServing => "NotServing",
        }
    }

    /// `status` of a condition with this reason: `True`, `Unknown` where nobody knows (yet), else `False`.
    #[must_use]
    pub fn status(self) -> &'static str {
        match self {
            Self::Accepted
            | Self::Verified
            | Self::Ready
            | Self::Synced
            | Self::Forwarding
            | Self::HostFirewallCompatible
            | Self::Serving => "True",
            Self::Pending | Self::AgentUnreachable | Self::HostFirewallUnclear => "Unknown",
            _ => "False",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Writes the condition `about` into `conditions`, replacing the one of that type.
///
/// `generation` is that of the spec it speaks of. `lastTransitionTime` becomes `now` only if the status changes, so
/// writing the same again leaves `conditions` equal to what they were.
pub fn upsert(
    conditions: &mut Vec<Condition>,
    about: ConditionType,
    reason: Reason,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Time,
) {
    let mut new = Condition {
        type_: about.as_str().to_owned(),
        status: reason.status().to_owned(),
        reason: reason.as_str().to_owned(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: now,
    };
    match conditions.iter_mut().find(|old| old.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        serde_json::from_value(serde_json::json!(format!("2026-01-01T00:00:{seconds:02}Z"))).unwrap()
    }

    #[test]
    fn every_reason_is_listed_once_under_its_own_name() {
        let schema = serde_json::to_value(schemars::schema_for!(Reason)).unwrap();
        let mut declared: Vec<_> =
            schema["oneOf"].as_array().unwrap().iter().map(|v| v["const"].as_str().unwrap().to_owned()).collect();
        let mut listed = Reason::ALL.map(|reason| reason.to_string()).to_vec();
        declared.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, declared);
    }

    #[test]
    fn every_reason_and_every_type_is_explained_to_users() {
        let text = include_str!("../../docs/conditions.md");
        for reason in Reason::ALL {
            assert!(text.contains(&format!("\n| `{reason}` | ")), "docs/conditions.md has no row for {reason}");
        }
        for about in
            ["Accepted", "Programmed", "Ready", "Synced", "IPForwarding", "HostFirewallCompatible", "AdminServing"]
        {
            assert!(text.contains(&format!("| `{about}` | ")), "docs/conditions.md does not explain {about}");
        }
    }

    #[test]
    fn every_type_is_spelled_as_it_is_serialised() {
        for about in [
            ConditionType::Accepted,
            ConditionType::Programmed,
            ConditionType::Ready,
            ConditionType::Synced,
            ConditionType::IpForwarding,
            ConditionType::HostFirewallCompatible,
            ConditionType::AdminServing,
        ] {
            assert_eq!(serde_json::to_value(about).unwrap(), about.as_str());
        }
    }

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        upsert(&mut conditions, ConditionType::Programmed, Reason::NodeFailed, "one", Some(1), at(1));
        upsert(&mut conditions, ConditionType::Programmed, Reason::Drifted, "two", Some(2), at(2));
        assert_eq!(conditions.len(), 1);
        let condition = &conditions[0];
        assert_eq!((condition.reason.as_str(), condition.message.as_str()), ("Drifted", "two"));
        assert_eq!(condition.observed_generation, Some(2));
        assert_eq!(condition.last_transition_time, at(1));

        upsert(&mut conditions, ConditionType::Programmed, Reason::Verified, "three", Some(2), at(3));
        assert_eq!(conditions[0].status, "True");
        assert_eq!(conditions[0].last_transition_time, at(3));
    }

    #[test]
    fn another_type_gets_its_own_condition() {
        let mut conditions = Vec::new();
        upsert(&mut conditions, ConditionType::Accepted, Reason::Accepted, "", None, at(1));
        upsert(&mut conditions, ConditionType::Programmed, Reason::AgentUnreachable, "gw1", None, at(1));
        let statuses: Vec<_> = conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
        assert_eq!(statuses, [("Accepted", "True"), ("Programmed", "Unknown")]);
    }
}
