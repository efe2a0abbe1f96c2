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
    /// On a `GatewayNode`: whoever is listed gets through the host's other firewalls, and they let in nobody else.
    HostFirewallCompatible,
    /// On a `GatewayNode`: the agent answers probes and metrics on the address that it was told.
    AdminServing,
}

impl ConditionType {
    /// Every type.
    pub const ALL: [Self; 7] = [
        Self::Accepted,
        Self::Programmed,
        Self::Ready,
        Self::Synced,
        Self::IpForwarding,
        Self::HostFirewallCompatible,
        Self::AdminServing,
    ];

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

/// `status` of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// It is as it should be.
    True,
    /// It is not.
    False,
    /// Nobody knows, yet or any more.
    Unknown,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::True, Self::False, Self::Unknown];

    /// The word in `status` of a condition.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Makes [`Reason`] of a table: for each reason what it means, the status that a condition has with it, and the types of
/// condition that it may stand on.
macro_rules! reasons {
    ($($(#[$doc:meta])+ $reason:ident: $status:ident on $($about:ident),+;)+) => {
        /// Why a condition is as it is, and so also whether it is True.
        ///
        /// `Ready` carries, besides its own two, the first reason of the other conditions that is not True.
        #[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])+ $reason,)+
        }

        impl Reason {
            /// Every reason, in the order of the condition types, the good one of each type first.
            pub const ALL: [Self; [$(stringify!($reason)),+].len()] = [$(Self::$reason),+];

            /// The word in `reason` of a condition.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$reason => stringify!($reason),)+
                }
            }

            /// `status` of a condition with this reason: `True`, `Unknown` where nobody knows (yet), else `False`.
            #[must_use]
            pub fn status(self) -> Status {
                match self {
                    $(Self::$reason => Status::$status,)+
                }
            }

            /// The types of condition that it may stand on, not counting `Ready` of a `PortForward`, which repeats the others.
            #[must_use]
            pub fn stands_on(self) -> &'static [ConditionType] {
                match self {
                    $(Self::$reason => &[$(ConditionType::$about),+],)+
                }
            }
        }
    };
}

reasons! {
    /// The forward is valid, granted, and holds its ports. Nothing to do.
    Accepted: True on Accepted;
    /// No `GatewayPool` has the name in `spec.pool`. Correct the name, or ask for the pool to be created.
    PoolNotFound: False on Accepted, Programmed;
    /// No single grant of the pool covers the whole forward. Narrow what the message names, or ask the pool's admin for
    /// a grant.
    NotGranted: False on Accepted, Programmed;
    /// Another forward holds one of the ports on one of the addresses. Choose another port, or wait until it is free.
    PortConflict: False on Accepted, Programmed;
    /// A port is on the list that keeps the nodes themselves reachable. Choose another port.
    ReservedPort: False on Accepted, Programmed;
    /// A target is an address that is always refused, such as loopback or link-local. Choose another target.
    InvalidTarget: False on Accepted, Programmed;
    /// The moment in `spec.expiresAt` has passed, or the time that the grant allows. Set a later moment, or create the
    /// forward anew, as the message says.
    Expired: False on Accepted, Programmed;
    /// The namespace already has as many forwards as its grant allows. Delete one, or ask the pool's admin for more.
    QuotaExceeded: False on Accepted, Programmed;
    /// A value is out of its range or does not parse. Correct the field that the message names.
    UnsupportedValue: False on Accepted, Programmed, Ready;
    /// The rules were read back from the kernel of every required node and are the intended ones. Nothing to do.
    Verified: True on Programmed;
    /// The operator or an agent has not got to it yet. Wait; if it lasts, read the logs of the operator and the agents.
    Pending: Unknown on Accepted, Programmed, Ready;
    /// `spec.mode` is `Plan` and the spec is not what the gateways carry; `status.plan` shows the difference. Set it to
    /// `Apply` to program the spec.
    Planned: False on Programmed;
    /// `spec.mode` is `Paused` and the spec is not what the gateways carry. Set it to `Apply` to program the spec.
    Paused: False on Programmed;
    /// Somebody else changes our rules or settings on a node, and it lasts. The `GatewayNode` says what they do: stop that
    /// program.
    Drifted: False on Programmed, Synced;
    /// A node could not carry the forward. The message says which node and why.
    NodeFailed: False on Programmed, Synced;
    /// The agent of a node is silent, so what its kernel does is unknown; it keeps the rules it last had. Look at the
    /// agent's pod on that node, and at the node.
    AgentUnreachable: Unknown on Programmed, Ready;
    /// The pool has no node. Label a node so that the pool's `nodeSelector` matches it.
    NoGatewayNodes: False on Programmed, Ready;
    /// A gateway has no listen address of the forward's address family. Give the node such an address, or widen
    /// `spec.listen` of the pool.
    NoListenAddress: False on Programmed;
    /// A program of a node listens on one of the ports already, and would lose its clients. Stop it, or choose another port;
    /// a forward that the node has carried before is not affected.
    PortInUse: False on Programmed;
    /// iptables cannot read one of its tables on a node, because somebody put a rule of nftables into it: what is no longer
    /// allowed is taken away all the same, but nothing is verified and nothing new programmed. Move that rule to a table of
    /// another name; the `GatewayNode` names it.
    TableUnreadable: False on Programmed, Synced;
    /// With `Preserve`, a target would answer the client directly, past the gateway. Use `Masquerade`.
    AsymmetricReturnPath: False on Programmed;
    /// A gateway has no route to a target. Add one, or take the target out.
    NoRoute: False on Programmed;
    /// Answers to clients of a gateway do not leave by the interface that the clients came in by, or the kernel drops packets
    /// for that. Do what the message says.
    NoRouteBack: False on Programmed;
    /// Another firewall of the host drops the forward's packets. Do what the message says.
    HostFirewallConflict: False on Programmed, HostFirewallCompatible;
    /// Somebody has stopped all forwarding of a gateway by a first rule in `FORWARD` that drops everything; it is left alone.
    /// Take it out, as the message says, when forwarding is to go on.
    ForwardingStopped: False on Programmed, HostFirewallCompatible;
    /// A rule of somebody else on a gateway lets clients in to the forward's target through its port whom the forward does
    /// not list. Take that rule out, as the message says, or list those clients.
    HostFirewallBypass: False on Programmed, HostFirewallCompatible;
    /// A rule of somebody else on a gateway takes the forward's packets elsewhere before our rules see them. Take that rule
    /// out, as the message says, or choose another port.
    Diverted: False on Programmed, HostFirewallCompatible;
    /// A rule of somebody else on a gateway overwrites the bits of the connection mark by which our rules know the forward's
    /// connections. Write that rule with a mask, as the message says.
    MarkOverwritten: False on Programmed, HostFirewallCompatible;
    /// The agent of a node does not know a field of the intent and keeps the old rules. Upgrade the agent.
    UnsupportedIntent: False on Programmed, Synced;
    /// Every other condition is True. Nothing to do.
    Ready: True on Ready;
    /// A node that this pool selects belongs to an older pool. Change `nodeSelector` of either pool.
    NodeInOtherPool: False on Ready;
    /// The kernel carries every slice of the pool. Nothing to do.
    Synced: True on Synced;
    /// A slice that the node carries is gone without having been emptied first; its rules stay. Restore the custom
    /// resource definitions, and the operator writes it again.
    SliceMissing: False on Synced;
    /// The kernel forwards packets. Nothing to do.
    Forwarding: True on IpForwarding;
    /// The kernel does not forward packets, or not those that come in by one interface. With `ipForward: Require`, turn
    /// `ip_forward` on at the node; else the message says what failed.
    NotForwarding: False on IpForwarding, Programmed;
    /// Nothing of others on the host drops or diverts what is forwarded, or lets in who is not listed. Nothing to do.
    HostFirewallCompatible: True on HostFirewallCompatible;
    /// Rules of others on the host may drop or divert what is forwarded, or let in who is not listed, but that cannot be told
    /// from here. Try a forward; if it does not answer, do what the message says.
    HostFirewallUnclear: Unknown on HostFirewallCompatible;
    /// The agent answers probes and metrics. Nothing to do.
    Serving: True on AdminServing;
    /// The agent cannot have the address for probes and metrics, most likely since another program has it; forwarding goes
    /// on. Do what the message says.
    NotServing: False on AdminServing;
}

impl Reason {
    /// The reason of this name; `None` for one that this version does not know.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a condition says, as somebody wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stated<'a> {
    /// Whether it is so; a word that is none counts as `Unknown`.
    pub status: Status,
    /// Why; `None` for a reason that this version does not know.
    pub reason: Option<Reason>,
    /// The same for people.
    pub message: &'a str,
    /// Generation of the spec that it speaks of.
    pub generation: Option<i64>,
}

/// Reads the condition `about`, if it is there.
#[must_use]
pub fn of(conditions: &[Condition], about: ConditionType) -> Option<Stated<'_>> {
    let condition = conditions.iter().find(|condition| condition.type_ == about.as_str())?;
    let status = Status::ALL.into_iter().find(|status| status.as_str() == condition.status);
    Some(Stated {
        status: status.unwrap_or(Status::Unknown),
        reason: Reason::of_word(&condition.reason),
        message: &condition.message,
        generation: condition.observed_generation,
    })
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
        status: reason.status().to_string(),
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

    /// The rows of the tables of docs/conditions.md that begin with a name: that name, and the column beside it.
    fn rows(text: &'static str) -> Vec<(&'static str, &'static str)> {
        let row = |line: &'static str| line.strip_prefix("| `")?.split_once("` | ");
        text.lines().filter_map(row).map(|(name, rest)| (name, rest.split(" | ").next().unwrap())).collect()
    }

    /// Where users meet a reason, as docs/conditions.md says it.
    fn explained(reason: Reason) -> String {
        let kind = |about: &ConditionType| match about {
            ConditionType::Accepted | ConditionType::Programmed => "PortForward",
            ConditionType::Ready => "GatewayPool",
            _ => "GatewayNode",
        };
        let on = reason.stands_on();
        match (reason, reason.status()) {
            (Reason::Ready, _) => "`Ready` of a PortForward or a GatewayPool".to_owned(),
            (_, Status::True) => format!("`{}` of a {}", on[0], kind(&on[0])),
            _ => {
                let mut kinds: Vec<&str> = on.iter().map(kind).collect();
                kinds.dedup();
                kinds.join(", ")
            }
        }
    }

    #[test]
    fn every_reason_and_every_type_is_explained_to_users() {
        let text = include_str!("../../docs/conditions.md");
        let (types, reasons) = text.split_once("## All is well").unwrap();
        for about in ConditionType::ALL {
            assert!(types.contains(&format!("| `{about}` | ")), "docs/conditions.md does not explain {about}");
        }
        let mut explained: Vec<_> = Reason::ALL.map(|reason| (reason.to_string(), explained(reason))).to_vec();
        let mut rows: Vec<_> = rows(reasons).into_iter().map(|(name, on)| (name.to_owned(), on.to_owned())).collect();
        explained.sort_unstable();
        rows.sort_unstable();
        assert_eq!(rows, explained);
    }

    #[test]
    fn every_status_is_told_to_users() {
        let text = include_str!("../../docs/conditions.md");
        let sections: Vec<&str> = text.split("\n## ").collect();
        let [well, asked, said] = ["All is well", "What the forward or the pool says", "What the gateways say"]
            .map(|title| *sections.iter().find(|section| section.starts_with(title)).unwrap());
        for reason in Reason::ALL {
            let row = format!("\n| `{reason}` | ");
            let named_unknown = said.lines().any(|line| {
                line.ends_with("are `Unknown`, the others `False`.") && line.contains(&format!("`{reason}`"))
            });
            let expected = match reason.status() {
                Status::True => well.contains(&row),
                Status::Unknown => said.contains(&row) && named_unknown,
                Status::False => asked.contains(&row) || said.contains(&row) && !named_unknown,
            };
            assert!(expected, "docs/conditions.md tells another status of {reason}");
        }
    }

    #[test]
    fn every_type_is_spelled_as_it_is_serialised() {
        for about in ConditionType::ALL {
            assert_eq!(serde_json::to_value(about).unwrap(), about.as_str());
        }
    }

    #[test]
    fn a_condition_is_read_as_it_was_written() {
        let mut conditions = Vec::new();
        upsert(&mut conditions, ConditionType::Accepted, Reason::Expired, "at noon", Some(3), at(1));
        let stated =
            Stated { status: Status::False, reason: Some(Reason::Expired), message: "at noon", generation: Some(3) };
        assert_eq!(of(&conditions, ConditionType::Accepted), Some(stated));
        assert_eq!(of(&conditions, ConditionType::Programmed), None);
        conditions[0].status = "Perhaps".into();
        conditions[0].reason = "FromTheFuture".into();
        let unknown = Stated { status: Status::Unknown, reason: None, ..stated };
        assert_eq!(of(&conditions, ConditionType::Accepted), Some(unknown));
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
