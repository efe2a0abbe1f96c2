//! Which statuses to write: those that differ, and what is only on its way after a moment or once a second.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sallyport_api::condition::{self, Status};
use sallyport_api::gateway_node::NodeState;
use sallyport_api::gateway_pool::ForwardCounts;
use sallyport_api::id::{Moment, Uid};
use sallyport_api::port_forward::PortForwardStatus;
use sallyport_api::{ConditionType, ForwardRef, Mode, Reason};
use sallyport_policy::decide::Verdict;
use tokio::time::Instant;

use crate::controller::apply::in_turn;
use crate::controller::cache::Entry;
use crate::controller::desired::Desired;
use crate::controller::liveness::Liveness;
use crate::controller::pool_status::pool_status;
use crate::controller::rollout::SliceRevisions;
use crate::controller::status::forward_status;
use crate::controller::store::Store;
use crate::controller::subject::{Gateway, Subject, held};
use crate::controller::write::{ForwardReport, Write};
use crate::metrics::Metrics;

/// Time between two reports that differ only in how many nodes are done, or how many connections drain.
const PROGRESS: Duration = Duration::from_secs(1);
/// Time before it is told that a forward is on its way. Most have arrived by then, and one report will do.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// Remembers what was reported when.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    /// Forwards that are on their way, and when that was last written, or first seen.
    progress: BTreeMap<ForwardRef, Instant>,
    next_look: Option<Instant>,
    /// What was last written about forwards whose newest form, status included, cannot be read, by uid.
    unreadable: BTreeMap<Uid, PortForwardStatus>,
}

impl Reporter {
    /// When a report is due that was put off.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    /// Takes in that a status is written; whether it can be read off the forward is told by `readable`.
    pub(crate) fn written(&mut self, report: ForwardReport, readable: bool) {
        if readable {
            self.unreadable.remove(&report.uid);
        } else {
            self.unreadable.insert(report.uid, report.status);
        }
    }

    /// The statuses that have to be written.
    pub(crate) fn writes(
        &mut self,
        store: &Store,
        revisions: &SliceRevisions,
        liveness: &Liveness,
        desired: &Desired,
        metrics: &Metrics,
    ) -> Vec<Write> {
        let now = Time(Timestamp::now());
        let gateways = by_pool(store, liveness);
        let reports = self.forward_reports(store, revisions, &gateways, desired, metrics, &now);
        let mut writes = pool_writes(store, &gateways, desired, &now);
        let reports = in_turn(reports, |report| &report.key);
        writes.extend(reports.into_iter().map(|report| Write::ForwardStatus(Box::new(report))));
        writes
    }

    /// The statuses of forwards that differ, and need not wait.
    fn forward_reports(
        &mut self,
        store: &Store,
        revisions: &SliceRevisions,
        gateways: &ByPool<'_>,
        desired: &Desired,
        metrics: &Metrics,
        now: &Time,
    ) -> Vec<ForwardReport> {
        let all_held = held(&desired.slices);
        let mut reports = Vec::new();
        let mut ready: BTreeMap<String, i64> = Status::ALL.into_iter().map(|status| (status.to_string(), 0)).collect();
        let before = std::mem::take(&mut self.progress);
        self.next_look = None;
        for ((namespace, name), entry) in store.forwards.entries() {
            let key = ForwardRef { namespace: namespace.clone(), name: name.clone() };
            let verdict = desired.verdicts.get(&key);
            if desired.to_release.contains(&key) && verdict.is_none() {
                continue;
            }
            let spec = entry.object().map(|object| &object.spec);
            let uid = entry.uid();
            let held = all_held.get(&uid).copied().unwrap_or_default();
            let asked = of_pool(gateways, spec.map_or("", |spec| spec.pool.as_str()));
            let subject = Subject {
                key: &key,
                uid: &uid,
                generation: entry.meta().generation,
                spec,
                unreadable: entry.problem(),
                verdict,
                expires_at: desired.expiries.get(&key).copied().and_then(Moment::to_time),
                held,
                asked,
            };
            let known = match entry {
                Entry::Good(object) => object.status.as_ref(),
                _ => self.unreadable.get(&uid),
            };
            let old = known.cloned().unwrap_or_default();
            let here = match held.forward {
                Some((pool, _)) if spec.is_some_and(|spec| spec.mode != Mode::Apply) => of_pool(gateways, pool),
                _ => asked,
            };
            let new = forward_status(&subject, here, revisions, &old, now);
            if let Some(stated) = condition::of(&new.conditions, ConditionType::Ready) {
                *ready.entry(stated.status.to_string()).or_default() += 1;
            }
            if new == old {
                continue;
            }
            let waits = may_wait(&old, &new).is_some_and(|wait| self.waits(&key, before.get(&key).copied(), wait));
            if !waits {
                let unreadable = entry.problem().is_some();
                reports.push(ForwardReport { key, uid, status: new, before: old, unreadable });
            }
        }
        for (status, number) in &ready {
            metrics.forwards(status, *number);
        }
        reports
    }

    /// Whether a forward that was last written, or first seen, to be on its way at `since` is not to be reported yet.
    fn waits(&mut self, key: &ForwardRef, since: Option<Instant>, wait: Duration) -> bool {
        let now = Instant::now();
        let since = since.unwrap_or(now);
        let due = since + wait;
        let waits = due > now;
        self.progress.insert(key.clone(), if waits { since } else { now });
        if waits {
            self.next_look = Some(self.next_look.map_or(due, |next| next.min(due)));
        }
        waits
    }
}

/// The statuses of pools that differ.
fn pool_writes(store: &Store, gateways: &ByPool<'_>, desired: &Desired, now: &Time) -> Vec<Write> {
    let counts = count_forwards(store, desired);
    let mut writes = Vec::new();
    for pool in store.pools.objects() {
        let name = pool.metadata.name.clone().unwrap_or_default();
        let problems = desired.pools.get(&name).map(Vec::as_slice).unwrap_or_default();
        let counted = counts.get(name.as_str()).copied().unwrap_or_default();
        let old = pool.status.clone().unwrap_or_default();
        let new = pool_status(pool.metadata.generation, problems, of_pool(gateways, &name), counted, &old, now);
        if new != old {
            writes.push(Write::PoolStatus(name, Box::new(new)));
        }
    }
    writes
}

/// How many forwards ask for each pool, by verdict.
fn count_forwards<'a>(store: &'a Store, desired: &Desired) -> BTreeMap<&'a str, ForwardCounts> {
    let mut counts: BTreeMap<&str, ForwardCounts> = BTreeMap::new();
    for (key, verdict) in &desired.verdicts {
        let object = store.forwards.entry(&key.namespace, &key.name).and_then(Entry::object);
        let counts = counts.entry(object.map_or("", |object| object.spec.pool.as_str())).or_default();
        match verdict {
            Verdict::Accepted(_) => counts.accepted += 1,
            Verdict::Refused(_) => counts.refused += 1,
        }
    }
    counts
}

/// The gateways of each pool that carry its forwards.
type ByPool<'a> = BTreeMap<&'a str, Vec<Gateway<'a>>>;

fn of_pool<'a>(gateways: &'a ByPool<'_>, pool: &str) -> &'a [Gateway<'a>] {
    gateways.get(pool).map(Vec::as_slice).unwrap_or_default()
}

/// The gateways that are to carry the forwards of each pool.
fn by_pool<'a>(store: &'a Store, liveness: &Liveness) -> ByPool<'a> {
    let mut pools = ByPool::new();
    for object in store.gateways.objects().filter(|gateway| gateway.spec.state == NodeState::Active) {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let gateway = Gateway { name, object, silent: liveness.is_silent(&name.into()) };
        pools.entry(object.spec.pool.as_str()).or_default().push(gateway);
    }
    pools
}

/// Whether `Programmed` is as it is for this reason.
fn is_programmed_by(status: &PortForwardStatus, reason: Reason) -> bool {
    condition::of(&status.conditions, ConditionType::Programmed).is_some_and(|stated| stated.reason == Some(reason))
}

/// How long it can wait to be told that an accepted form is on its way, how far it or its plan is, or how many connections
/// are left to drain; `None` for anything else.
///
/// The status before it speaks of another generation or says the same, so meanwhile it claims nothing that is not so.
fn may_wait(old: &PortForwardStatus, new: &PortForwardStatus) -> Option<Duration> {
    let total = |status: &PortForwardStatus| status.targets.map(|targets| targets.total);
    if total(old) == total(new) && (PortForwardStatus { targets: new.targets, ..old.clone() }) == *new {
        return Some(PROGRESS);
    }
    // What the other gateways would change is on its way, too.
    let plan = |status: &PortForwardStatus| is_programmed_by(status, Reason::Planned);
    if plan(old) && plan(new) && old.hash == new.hash && old.observed_generation == new.observed_generation {
        return Some(PROGRESS);
    }
    let pending = |status: &PortForwardStatus| is_programmed_by(status, Reason::Pending);
    let accepted = condition::of(&new.conditions, ConditionType::Accepted).map(|stated| stated.status);
    if !pending(new) || accepted != Some(Status::True) {
        return None;
    }
    if old.observed_generation != new.observed_generation {
        Some(ON_ITS_WAY)
    } else if pending(old) {
        Some(PROGRESS)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
