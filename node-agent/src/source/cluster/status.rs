//! What the agent reports: knowledge, the last pass and the previous status → the status of the `GatewayNode`. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sallyport_api::condition::{ConditionType, Reason, upsert};
use sallyport_api::forward_slice::{ForwardRef, SliceForward};
use sallyport_api::gateway_node::{
    DrainingForward, Drift, ForwardFailure, GatewayNodeStatus, NodePlan, NodeState, ObservedNodeState, ObservedSlice,
    SliceState,
};
use sallyport_api::id::{SliceHash, Uid, UidPrefix};
use sallyport_api::names::{MAX_ADDRESSES, MAX_DRAINING, MAX_PLAN_TEXT, MAX_PLANS};
use sallyport_api::port_forward::AddressValue;
use sallyport_policy::digest::FORMAT;
use sallyport_ruleset::table::Failure;
use sallyport_runtime::admin::Serving;
use sallyport_runtime::text::cut;

use crate::connections::Draining;
use crate::converge::Error;
use crate::converge::preview::PlannedChange;
use crate::error_chain::chain_of;
use crate::intents::Intents;
use crate::pass_report::PassReport;
use crate::source::cluster::knowledge::Knowledge;

/// Failures that are listed one by one.
const LISTED: usize = 20;
/// Characters of a message.
const MESSAGE: usize = 1024;
/// Bytes that are kept free for how many more lines there are.
const MORE: usize = 40;

/// Everything that a status is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// What the cluster said.
    pub knowledge: &'a Knowledge,
    /// What the kernel should hold.
    pub intents: &'a Intents,
    /// What it was last read back with.
    pub verified: Option<&'a Intents>,
    /// The last pass, and what is known besides.
    pub report: &'a PassReport,
    /// What the targets see.
    pub source_addresses: &'a [IpAddr],
    /// How the address for probes stands.
    pub admin: &'a Serving,
    /// Somebody else's last change.
    pub last_drift: Option<&'a Drift>,
    /// Generation of the `GatewayNode` that all this is about.
    pub generation: Option<i64>,
    /// Now, in whole seconds.
    pub now: &'a Time,
}

/// The status, given the `previous` one.
#[must_use]
pub(crate) fn compose(previous: &GatewayNodeStatus, facts: &Facts<'_>) -> GatewayNodeStatus {
    let report = facts.report.outcome.as_ref().ok();
    let failed = report.map(|report| report.failures.as_slice()).unwrap_or_default();
    let retired = facts.intents.node.state == NodeState::Retired;
    let state = if retired { ObservedNodeState::Cleaned } else { ObservedNodeState::Active };
    let failures = failures(facts, failed);
    let mut status = GatewayNodeStatus {
        // A node that is active again is not clean any more, even if its first pass failed: it may have written rules.
        state: if report.is_some() {
            Some(state)
        } else {
            previous.state.filter(|before| retired || *before == ObservedNodeState::Active)
        },
        observed_slices: observed_slices(previous, facts, failed),
        failures_total: i32::try_from(failures.len()).unwrap_or(i32::MAX),
        failures: failures.into_values().take(LISTED).collect(),
        draining: draining(&facts.report.draining),
        rules_digest: report.map(|report| report.digest.clone()),
        conditions: previous.conditions.clone(),
        backend: facts.report.backend,
        agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        format_version: FORMAT.trim_start_matches('v').parse().ok(),
        addresses: match report {
            Some(report) => report.listen.iter().take(MAX_ADDRESSES).map(|ip| AddressValue { value: *ip }).collect(),
            None => previous.addresses.clone(),
        },
        source_addresses: facts.source_addresses.iter().map(|ip| AddressValue { value: *ip }).collect(),
        last_drift: facts.last_drift.cloned().or_else(|| previous.last_drift.clone()),
        plans: plans(previous, facts),
    };
    let mut condition = |about, (reason, message): (Reason, String)| {
        let message = shortened(&message);
        upsert(&mut status.conditions, about, reason, message, facts.generation, facts.now.clone());
    };
    condition(ConditionType::Synced, synced(facts));
    if let Some(found) = forwarding(facts.report) {
        condition(ConditionType::IpForwarding, found);
    }
    if let Some(report) = report {
        condition(ConditionType::HostFirewallCompatible, (report.firewall.reason(), report.firewall.to_string()));
    }
    if let Some(found) = admin(facts.admin) {
        condition(ConditionType::AdminServing, found);
    }
    status
}

/// As much of a message as the schema takes.
#[must_use]
pub(crate) fn shortened(message: &str) -> String {
    cut(message, MESSAGE)
}

fn observed_slices(previous: &GatewayNodeStatus, facts: &Facts<'_>, failures: &[Failure]) -> Vec<ObservedSlice> {
    let failed: BTreeSet<&ForwardRef> = failures.iter().map(|failure| &failure.forward).collect();
    let known = |name: &str| {
        let verified = facts.verified.filter(|verified| verified.node == facts.intents.node)?;
        verified.slices.get(name)
    };
    let slices = facts.intents.slices.iter().filter(|(_, slice)| slice.hash != SliceHash::default());
    let mut observed: Vec<ObservedSlice> = slices
        .map(|(name, slice)| {
            let failed = |forward: &&Arc<SliceForward>| !failed.is_empty() && failed.contains(&forward.r#ref);
            let here = slice.forwards.iter().filter(failed).map(|forward| &forward.uid);
            let unsupported = facts.knowledge.unsupported().filter(|(slice, _)| slice == name);
            let prefixes: BTreeSet<UidPrefix> =
                here.chain(unsupported.map(|(_, found)| &found.uid)).map(Uid::prefix).collect();
            let state = if known(name) == Some(slice) { SliceState::Programmed } else { SliceState::Pending };
            let before = || previous.observed_slices.iter().find(|before| before.name == *name);
            ObservedSlice {
                name: name.clone(),
                generation: facts
                    .knowledge
                    .generation(name)
                    .or_else(|| before().map(|before| before.generation))
                    .unwrap_or_default(),
                hash: slice.hash.clone(),
                state,
                failed: prefixes.into_iter().collect(),
            }
        })
        .collect();
    observed.truncate(1024);
    observed
}

/// Those with the most connections, in the order of their uids.
fn draining(by_uid: &Draining) -> Vec<DrainingForward> {
    let mut by_prefix: BTreeMap<UidPrefix, usize> = BTreeMap::new();
    for (uid, connections) in by_uid {
        *by_prefix.entry(uid.prefix()).or_default() += connections;
    }
    let mut most: Vec<(UidPrefix, usize)> = by_prefix.into_iter().collect();
    most.sort_by_key(|(_, connections)| std::cmp::Reverse(*connections));
    most.truncate(MAX_DRAINING);
    most.sort();
    let entry =
        |(uid, connections)| DrainingForward { uid, connections: i32::try_from(connections).unwrap_or(i32::MAX) };
    most.into_iter().map(entry).collect()
}

/// By forward, so in order and each once.
fn failures(facts: &Facts<'_>, failed: &[Failure]) -> BTreeMap<ForwardRef, ForwardFailure> {
    let of = |forward: &ForwardRef, reason: Reason, message: &str| {
        let reason = reason.as_str().to_owned();
        (forward.clone(), ForwardFailure { r#ref: forward.clone(), reason, message: shortened(message) })
    };
    let retired = facts.intents.node.state == NodeState::Retired;
    let unsupported = facts.knowledge.unsupported().filter(|_| !retired);
    failed
        .iter()
        .map(|failure| of(&failure.forward, failure.reason, &failure.message))
        .chain(unsupported.map(|(_, found)| of(&found.forward, Reason::UnsupportedIntent, &found.message)))
        .collect()
}

/// Those that are still planned like this.
fn plans(previous: &GatewayNodeStatus, facts: &Facts<'_>) -> Vec<NodePlan> {
    let plan = |plan: &PlannedChange| NodePlan {
        r#ref: plan.forward.clone(),
        hash: plan.hash.clone(),
        change: first_lines(&plan.change),
    };
    let mut plans = match &facts.report.plans {
        Some(plans) => plans.iter().map(plan).collect(),
        None => previous.plans.clone(),
    };
    let wanted: BTreeSet<_> = facts.intents.planned().map(|forward| (&forward.r#ref, &forward.hash)).collect();
    plans.retain(|plan| wanted.contains(&(&plan.r#ref, &plan.hash)));
    plans.truncate(MAX_PLANS);
    plans
}

/// As many lines as a status takes, and how many more there are.
fn first_lines(text: &str) -> String {
    if text.len() <= MAX_PLAN_TEXT {
        return text.to_owned();
    }
    let (mut first, mut left) = (String::new(), text.lines().count());
    for line in text.split_inclusive('\n') {
        if first.len() + line.len() + MORE > MAX_PLAN_TEXT {
            break;
        }
        first.push_str(line);
        left -= 1;
    }
    first + &format!("# and {left} more lines\n")
}

/// A pass that failed matters most, then what somebody else does, then what is wrong with the objects.
fn synced(facts: &Facts<'_>) -> (Reason, String) {
    let report = match &facts.report.outcome {
        Ok(report) => report,
        Err(error) => return failed(error, facts.report.pending.as_deref()),
    };
    if let Some(what) = facts.report.drift() {
        return (Reason::Drifted, what);
    }
    if facts.intents.node.state == NodeState::Retired {
        return (Reason::Synced, "no rule of ours is left".to_owned());
    }
    if !report.unreadable.is_empty() {
        return (Reason::TableUnreadable, report.unreadable.join("; "));
    }
    let mut problems = facts.knowledge.problems();
    let unsupported = facts.knowledge.unsupported().count();
    if unsupported > 0 {
        let message = format!("{unsupported} forwards are newer than this agent, see failures; upgrade the agent");
        problems.push((Reason::UnsupportedIntent, message));
    }
    let Some((first, _)) = problems.first() else {
        return (Reason::Synced, "the kernel was read back and is as it should be".to_owned());
    };
    (*first, problems.iter().map(|(_, message)| message.as_str()).collect::<Vec<_>>().join("; "))
}

/// A pass that failed, after which `pending` is what somebody else has changed and is not put back yet.
fn failed(error: &Error, pending: Option<&str>) -> (Reason, String) {
    let drifted = pending.is_some() || matches!(error, Error::Different { .. });
    let reason = if drifted { Reason::Drifted } else { Reason::NodeFailed };
    let also = pending.map(|what| format!("; not put back yet: {what}")).unwrap_or_default();
    (reason, chain_of(error) + &also)
}

/// Nothing is known of forwarding after a pass that failed for another reason.
fn forwarding(report: &PassReport) -> Option<(Reason, String)> {
    match &report.outcome {
        Ok(_) => Some((Reason::Forwarding, "on for every address family that a forward needs".to_owned())),
        Err(error @ (Error::Forwarding { .. } | Error::ForwardingRequired { .. })) => {
            let (_, message) = failed(error, report.pending.as_deref());
            Some((Reason::NotForwarding, message))
        }
        Err(_) => None,
    }
}

/// What was said of the address for probes stays until it was tried to take it.
fn admin(serving: &Serving) -> Option<(Reason, String)> {
    match serving {
        Serving::NotYet => None,
        Serving::On(address) => Some((Reason::Serving, format!("probes are answered on {address}"))),
        Serving::Refused(why) => {
            let message = format!(
                "{why}; tried again each second, and forwarding goes on; end the program that has the address: \
                 `ss -ltnp` on the node names it"
            );
            Some((Reason::NotServing, message))
        }
    }
}

#[cfg(test)]
mod tests;
