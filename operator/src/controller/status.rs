//! From verdicts and reports to the status of every forward and pool.
//!
//! Pure. `Programmed` is True only by what agents read back from their kernels.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sallyport_api::condition::{Stated, Status, upsert};
use sallyport_api::forward_slice::ForwardRef;
use sallyport_api::gateway_node::GatewayNodeStatus;
use sallyport_api::id::{IntentHash, Uid};
use sallyport_api::names::MAX_ADDRESSES;
use sallyport_api::port_forward::{
    AddressValue, NodeCounts, PortForwardSpec, PortForwardStatus, Summary, TargetCounts,
};
use sallyport_api::{ConditionType, Intent, Mode, Reason, SourceNatMode};
use sallyport_policy::decide::Verdict;
use sallyport_policy::family::Family;
use sallyport_policy::validate::{Problem, validate};
use sallyport_runtime::text;

use crate::controller::paused::{self, Paused};
use crate::controller::rollout::{Readback, SliceRevisions};
use crate::controller::subject::{Gateway, Subject, names};

/// How far the gateways are with a forward.
#[derive(Debug, Default)]
struct Progress<'a> {
    counts: NodeCounts,
    /// Nodes that have not reported what they do for it yet.
    pending: Vec<&'a str>,
    /// Nodes whose agent is silent.
    silent: Vec<&'a str>,
    /// Nodes whose agent has not reported anything ever.
    starting: Vec<&'a str>,
    /// The first thing that failed.
    failure: Option<(Reason, String)>,
    /// The hashes that the kernels were read back with; `None` for one without.
    hashes: BTreeSet<Option<IntentHash>>,
}

fn progress<'a>(
    subject: &Subject<'_>,
    want: Option<&IntentHash>,
    gateways: &[Gateway<'a>],
    revisions: &SliceRevisions,
) -> Progress<'a> {
    let mut progress = Progress::default();
    progress.counts.desired = count(gateways.len());
    let forward = revisions.find(subject.uid);
    for gateway in gateways {
        let Some(report) = gateway.report() else {
            progress.starting.push(gateway.name);
            continue;
        };
        // A report about an older configuration says nothing about this one.
        let current = gateway.synced().is_some_and(|synced| synced.generation == gateway.object.metadata.generation);
        let carries = match &forward {
            _ if !current => Readback::Unknown,
            None => Readback::Nothing,
            Some(forward) => forward.on(report),
        };
        let failure = (carries == Readback::Failed).then(|| failure_of(subject.key, gateway.name, report));
        match &carries {
            Readback::Unknown => {}
            Readback::Hash(hash) => drop(progress.hashes.insert(Some(hash.clone()))),
            // Its rules are there; it is another firewall that keeps them from working.
            Readback::Failed if failure.as_ref().is_some_and(|(reason, _)| is_of_host_firewall(*reason)) => {
                progress.hashes.insert(want.cloned());
            }
            Readback::Nothing | Readback::Failed => drop(progress.hashes.insert(None)),
        }
        if gateway.silent {
            progress.silent.push(gateway.name);
            continue;
        }
        // What was read back last is worth little where somebody keeps changing it.
        if let Some(drifted) = gateway.synced().and_then(|synced| drifted(gateway.name, synced)) {
            progress.counts.failed += 1;
            progress.failure.get_or_insert(drifted);
            continue;
        }
        match carries {
            Readback::Hash(hash) if Some(&hash) == want => progress.counts.programmed += 1,
            Readback::Failed => {
                progress.counts.failed += 1;
                progress.failure = progress.failure.or(failure);
            }
            _ => match gateway.synced().and_then(|synced| trouble(gateway.name, synced)) {
                Some(trouble) => {
                    progress.counts.failed += 1;
                    progress.failure.get_or_insert(trouble);
                }
                None => progress.pending.push(gateway.name),
            },
        }
    }
    progress.counts.unreachable = count(progress.silent.len());
    progress
}

/// What a report says about a forward that the node cannot carry.
fn failure_of(key: &ForwardRef, node: &str, report: &GatewayNodeStatus) -> (Reason, String) {
    match report.failures.iter().find(|failure| failure.r#ref == *key) {
        Some(failure) => {
            let reason = Reason::of_word(&failure.reason).unwrap_or(Reason::NodeFailed);
            (reason, format!("{node}: {}", failure.message))
        }
        None => (Reason::NodeFailed, format!("{node} cannot carry it; kubectl describe gatewaynode {node} says more")),
    }
}

/// Whether a reason is about what others do to packets on the way.
fn is_of_host_firewall(reason: Reason) -> bool {
    reason.stands_on().contains(&ConditionType::HostFirewallCompatible)
}

/// That somebody else's change lasts on a node. What it is, is for those who may look at nodes: it may name the rules of
/// other forwards.
fn drifted(node: &str, synced: Stated<'_>) -> Option<(Reason, String)> {
    let message = format!(
        "{node}: somebody else changes our rules or settings there, and it lasts; kubectl describe gatewaynode {node} says \
         what they do"
    );
    let lasts = synced.status == Status::False && synced.reason == Some(Reason::Drifted);
    lasts.then_some((Reason::Drifted, message))
}

/// What keeps a node from carrying anything new.
fn trouble(node: &str, synced: Stated<'_>) -> Option<(Reason, String)> {
    let reason = synced.reason.unwrap_or(Reason::NodeFailed);
    let serious = synced.status == Status::False && reason != Reason::SliceMissing;
    serious.then(|| (reason, format!("{node}: {}", synced.message)))
}

/// The status of one forward, made from its old one so that what did not change keeps its times.
pub(crate) fn forward_status(
    subject: &Subject<'_>,
    gateways: &[Gateway<'_>],
    revisions: &SliceRevisions,
    old: &PortForwardStatus,
    now: &Time,
) -> PortForwardStatus {
    let mut status = old.clone();
    let want = match subject.verdict {
        Some(Verdict::Accepted(hash)) => Some(hash),
        _ => None,
    };
    let mode = subject.spec.map_or(Mode::Apply, |spec| spec.mode);
    let paused = subject.held.forward.filter(|_| mode != Mode::Apply);
    let held = if mode == Mode::Apply { want } else { paused.map(|(_, forward)| &forward.hash) };
    let progress = progress(subject, held, gateways, revisions);
    status.plan = paused::plan(subject, want);
    let accepted = match (subject.verdict, subject.unreadable) {
        (Some(Verdict::Accepted(_)), Some(problem)) => Some((
            Reason::UnsupportedValue,
            format!("the newest form cannot be read, so the one before it holds: {problem}"),
        )),
        (Some(Verdict::Accepted(_)), None) if held != want => {
            Some((Reason::Accepted, "valid and granted, and its ports are free".to_owned()))
        }
        (Some(Verdict::Accepted(_)), None) => {
            Some((Reason::Accepted, "valid, granted, and holds its ports".to_owned()))
        }
        (Some(Verdict::Refused(problems)), _) => problems.first().map(|first| (first.reason, summarize(problems))),
        (None, _) => None,
    };
    let programmed = match (&accepted, want) {
        (None, _) => leaving(&progress),
        (Some(_), want) if mode != Mode::Apply && (held.is_some() || want.is_some()) => {
            let carried = progress.hashes.iter().any(Option::is_some);
            let paused = Paused { mode, want, held, carried, progress: verified(&progress) };
            paused.programmed(subject, &status.plan)
        }
        (Some((reason, _)), None) if progress.hashes.iter().any(Option::is_some) => {
            (*reason, "not accepted: it is being taken off the gateways".to_owned())
        }
        (Some((reason, _)), None) => (*reason, "not accepted, so no gateway carries it".to_owned()),
        (Some(_), Some(_)) => verified(&progress),
    };
    let mut set = |about, (reason, message): (Reason, String)| {
        upsert(&mut status.conditions, about, reason, message, subject.generation, now.clone());
    };
    let ready = match (&accepted, &programmed) {
        (Some((reason, message)), _) if reason.status() != Status::True => (*reason, message.clone()),
        (_, (reason, message)) if reason.status() != Status::True => (*reason, message.clone()),
        _ => (Reason::Ready, "accepted, and read back from the kernels".to_owned()),
    };
    if let Some(accepted) = accepted {
        set(ConditionType::Accepted, accepted);
    }
    set(ConditionType::Programmed, programmed);
    set(ConditionType::Ready, ready);

    status.observed_generation = subject.generation;
    status.hash = want.cloned();
    status.expires_at.clone_from(&subject.expires_at);
    let mut hashes = progress.hashes.into_iter();
    if let (Some(same), None) = (hashes.next(), hashes.next()) {
        status.applied_hash = same;
    }
    status.nodes = Some(progress.counts);
    let in_force = match paused {
        Some((_, held)) => Some(Cow::Borrowed(&held.intent)),
        None => want.filter(|_| mode == Mode::Apply).and_then(|hash| asked(subject, hash)),
    };
    (status.addresses, status.source_addresses) = match in_force {
        Some(intent) => (listening(&intent, gateways), leaving_from(&intent, gateways)),
        None => (Vec::new(), Vec::new()),
    };
    let draining = draining(subject.uid, gateways);
    status.targets = subject.spec.map(|spec| TargetCounts { total: count(spec.targets.len()), draining });
    status.summary = subject.spec.map(|spec| summary(spec, &progress.counts, want));
    status
}

fn summarize(problems: &[Problem]) -> String {
    text::cut(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "), 1024)
}

/// Where an accepted forward stands.
fn verified(progress: &Progress<'_>) -> (Reason, String) {
    let NodeCounts { desired, programmed, .. } = progress.counts;
    if desired == 0 {
        let message = "the pool has no gateway: label a node so that the pool's nodeSelector matches it";
        return (Reason::NoGatewayNodes, message.to_owned());
    }
    if let Some(failure) = &progress.failure {
        return failure.clone();
    }
    if !progress.silent.is_empty() {
        let message = format!(
            "the agent on {} is silent, so what its kernel does is unknown; it keeps the rules it last had: look at \
             its pod, and at the node",
            names(&progress.silent)
        );
        return (Reason::AgentUnreachable, message);
    }
    if !progress.pending.is_empty() {
        let message = format!(
            "waiting for {} to read it back from the kernel; if that lasts, look at the logs of the agent there and of the \
             operator",
            names(&progress.pending)
        );
        return (Reason::Pending, message);
    }
    if programmed == 0 {
        let message = format!(
            "waiting for the agent on {} to start; if that lasts, look at its pod with kubectl describe",
            names(&progress.starting)
        );
        return (Reason::Pending, message);
    }
    let starting = match progress.starting.as_slice() {
        [] => String::new(),
        starting => format!(
            "; not yet counted: {}, whose agent has never reported, look at its pod if that lasts",
            names(starting)
        ),
    };
    (Reason::Verified, format!("read back from the kernel of {programmed} of {desired} gateways{starting}"))
}

/// Where a forward on its way out stands.
fn leaving(progress: &Progress<'_>) -> (Reason, String) {
    if progress.silent.is_empty() {
        let message = "being deleted: waiting for the gateways to read back that it is gone; if that lasts, look at the \
                       agents' logs";
        return (Reason::Pending, message.to_owned());
    }
    let message = format!(
        "the deletion waits for the agent on {}, which is silent while its node is ready: look at its pod; the wait ends \
         when it answers, when the node has not been ready for 5 minutes, or when the Node is deleted",
        names(&progress.silent)
    );
    (Reason::AgentUnreachable, message)
}

/// The accepted intent whose hash this is: the one in the slices, or what is asked where it has to wait for its finalizer.
fn asked<'a>(subject: &Subject<'a>, hash: &IntentHash) -> Option<Cow<'a, Intent>> {
    let spec = subject.spec?;
    match subject.held.forward {
        Some((_, held)) if held.hash == *hash => Some(Cow::Borrowed(&held.intent)),
        _ => validate(spec).ok().map(Cow::Owned),
    }
}

/// The families that a forward's targets are of.
fn families(intent: &Intent) -> BTreeSet<Family> {
    intent.targets.iter().map(|target| Family::of(target.ip)).collect()
}

/// Where clients connect.
fn listening(intent: &Intent, gateways: &[Gateway<'_>]) -> Vec<AddressValue> {
    let (families, chosen) = (families(intent), &intent.addresses);
    // Only the agent knows which addresses of a block its host has; until it has spoken, those that Kubernetes knows.
    let all = gateways.iter().flat_map(|gateway| match gateway.report() {
        Some(report) => report.addresses.iter().map(|address| address.value).collect(),
        None => gateway.object.spec.addresses.clone(),
    });
    first(all.filter(|ip| families.contains(&Family::of(*ip)) && (chosen.is_empty() || chosen.contains(ip))))
}

/// What the targets see.
fn leaving_from(intent: &Intent, gateways: &[Gateway<'_>]) -> Vec<AddressValue> {
    if intent.source_nat == SourceNatMode::Preserve {
        return Vec::new();
    }
    let families = families(intent);
    let all = gateways.iter().filter_map(Gateway::report).flat_map(|report| &report.source_addresses);
    first(all.map(|address| address.value).filter(|ip| families.contains(&Family::of(*ip))))
}

/// Connections of a forward that are left to end by themselves, over all gateways.
fn draining(uid: &Uid, gateways: &[Gateway<'_>]) -> i32 {
    let prefix = uid.prefix();
    let listed = gateways.iter().filter_map(Gateway::report).flat_map(|report| &report.draining);
    listed.filter(|listed| listed.uid == prefix).fold(0, |sum: i32, listed| sum.saturating_add(listed.connections))
}

/// The first addresses, sorted, each once.
pub(crate) fn first(addresses: impl Iterator<Item = IpAddr>) -> Vec<AddressValue> {
    let sorted: BTreeSet<IpAddr> = addresses.collect();
    sorted.into_iter().take(MAX_ADDRESSES).map(|value| AddressValue { value }).collect()
}

fn summary(spec: &PortForwardSpec, counts: &NodeCounts, hash: Option<&IntentHash>) -> Summary {
    let range = |first: i32, last: i32| if first == last { first.to_string() } else { format!("{first}-{last}") };
    let ports = spec
        .ports
        .iter()
        .map(|port| format!("{}/{}", range(port.port, port.end_port.unwrap_or(port.port)), port.protocol));
    let target_port = match spec.ports.as_slice() {
        [port] => {
            let first = port.target_port.unwrap_or(port.port);
            format!(":{}", range(first, first.saturating_add(port.end_port.unwrap_or(port.port) - port.port)))
        }
        _ => String::new(),
    };
    let targets = spec.targets.iter().map(|target| {
        if target.ip.contains(':') && !target_port.is_empty() {
            format!("[{}]{target_port}", target.ip)
        } else {
            format!("{}{target_port}", target.ip)
        }
    });
    Summary {
        ports: listed(ports),
        targets: listed(targets),
        nodes: format!("{}/{}", counts.programmed, counts.desired),
        hash: hash
            .map(|hash| hash.as_str().rsplit(':').next().unwrap_or_default().chars().take(8).collect())
            .unwrap_or_default(),
    }
}

/// The first three, and how many more there are.
fn listed(items: impl Iterator<Item = String>) -> String {
    text::cut(text::listed(items, 3, ",", " and "), 256)
}

/// A number of things, for a status.
pub(crate) fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
