//! The loop of the leader: observe → decide → apply → status.
//!
//! ```text
//! watches ─► Store ─► decide ─► writes ─► Writer ─► API server
//!              ▲  └─► status ───┘            │
//!              └──────── answers ◄───────────┘
//! ```
//! One task owns everything that is known. A pass looks at all of it; what is as it should be costs no request. What is
//! desired is decided by `serve`, or by `uninstall`.

mod agents;
pub(crate) mod apply;
pub(crate) mod cache;
pub(crate) mod decide;
mod definitions;
pub(crate) mod desired;
mod drift;
pub(crate) mod events;
mod finalizers;
pub(crate) mod gateways;
pub(crate) mod guard;
mod liveness;
pub(crate) mod observe;
mod paused;
mod pool_status;
mod report;
pub(crate) mod retention;
pub(crate) mod rollout;
mod send;
mod serve;
mod slices;
mod status;
pub(crate) mod store;
mod subject;
pub(crate) mod uninstall;
pub(crate) mod write;
mod writer;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Client;
use sallyport_api::GatewayNodeStatus;
use sallyport_api::id::{Moment, NodeName};
use sallyport_api::names::AGENT_NAME;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::controller::apply::writes;
use crate::controller::desired::Desired;
use crate::controller::drift::Drifts;
use crate::controller::events::Events;
use crate::controller::gateways::{has_label, is_clean, node_name};
use crate::controller::liveness::{Liveness, LivenessTracker};
use crate::controller::observe::watch;
use crate::controller::report::Reporter;
use crate::controller::rollout::{NodeReport, SliceRevisions};
use crate::controller::store::{Change, Store};
use crate::controller::write::Answer;
use crate::controller::writer::Writer;
use crate::leader::Leadership;
use crate::metrics::Metrics;

/// Time between two looks at what changes by the clock alone: silent agents, nodes not ready for long, what expires.
const TICK: Duration = Duration::from_secs(1);

/// Why the leader cannot decide yet, for `/readyz`; of an uninstallation, what it still waits for.
pub(crate) type Readiness = Arc<Mutex<Option<String>>>;

/// The loop, with all that it knows. What it is for is in `serve` and `uninstall`.
pub(crate) struct Controller {
    client: Client,
    namespace: String,
    changes: BoxStream<'static, Change>,
    store: Store,
    revisions: SliceRevisions,
    tracker: LivenessTracker,
    liveness: Liveness,
    writer: Writer,
    leadership: Arc<Leadership>,
    reporter: Reporter,
    drifts: Drifts,
    events: Events,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    /// The time by the API server's clock; never goes back.
    now: Moment,
    /// When the next forward expires.
    next_expiry: Option<Moment>,
    tick: Interval,
    /// Whether to pass again at the next tick.
    again: bool,
    /// When the last pass was begun.
    begun: Option<Instant>,
    /// The pool that each gateway was last seen in.
    pools_of_nodes: BTreeMap<NodeName, String>,
}

impl Controller {
    /// Starts to watch.
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        leadership: Arc<Leadership>,
        metrics: Arc<Metrics>,
        readiness: Readiness,
        events: Events,
    ) -> Self {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            changes: watch(&client, namespace),
            store: Store::default(),
            revisions: SliceRevisions::default(),
            tracker: LivenessTracker::default(),
            liveness: Liveness::default(),
            writer: Writer::new(client.clone(), events.clone(), Arc::clone(&leadership), Arc::clone(&metrics)),
            client,
            namespace: namespace.to_owned(),
            leadership,
            reporter: Reporter::default(),
            drifts: Drifts::default(),
            events,
            metrics,
            readiness,
            now: Moment::default(),
            next_expiry: None,
            tick,
            again: false,
            begun: None,
            pools_of_nodes: BTreeMap::new(),
        }
    }

    /// Takes in what is heard, until a pass is due: something has changed that may matter, or it is time to look again.
    /// `wake` says when, beside what is known here.
    async fn due(&mut self, wake: impl Fn() -> Option<Instant>) {
        // At most half of the time is spent on deciding, however much happens.
        let cooldown = Instant::now() + self.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        let mut due = false;
        loop {
            let again = [self.writer.next_try(), self.reporter.next_look(), wake()];
            let again = again.into_iter().flatten().min();
            tokio::select! {
                Some(change) = self.changes.next() => due |= self.store.observe(change),
                (answer, again) = self.writer.next() => {
                    if let Some(answer) = answer {
                        self.answered(answer);
                    }
                    due |= again;
                }
                _ = self.tick.tick() => {
                    due |= self.look_at_the_clock() | std::mem::take(&mut self.again) | !self.store.missing().is_empty();
                }
                () = until(again), if !due => due = true,
                () = tokio::time::sleep_until(cooldown), if due => break,
            }
        }
        self.begun = Some(Instant::now());
        self.take_what_has_come();
    }

    /// Takes in what is there already, so that a burst is decided upon at once.
    fn take_what_has_come(&mut self) {
        use futures::FutureExt as _;
        while let Some(Some(change)) = self.changes.next().now_or_never() {
            self.store.observe(change);
        }
    }

    /// Takes the answer to a write into what is known, so that nobody decides upon less than what was written.
    fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Slice(new) => self.store.slices.wrote(*new),
            Answer::SliceDeleted(name) => self.store.slices.deleted(&name),
            Answer::Gateway(new) => self.store.gateways.wrote(*new),
            Answer::GatewayDeleted(name) => self.store.gateways.deleted(name.as_str()),
            Answer::Node(new) => self.store.nodes.wrote(*new),
            Answer::Forward(new) => self.store.forwards.wrote(*new),
            Answer::ForwardStatus(report, new) => {
                self.reporter.written(*report, new.0.is_ok());
                self.store.forwards.wrote(*new);
            }
            Answer::Pool(new) => self.store.pools.wrote(*new),
            Answer::Drift(event) => self.drifts.reported(*event),
        }
    }

    /// Looks at what changes by the clock alone; whether something has.
    fn look_at_the_clock(&mut self) -> bool {
        let now = self.leadership.now();
        self.now = self.now.max(Moment(now.as_second()));
        let liveness = self.tracker.track(&self.store, now);
        let changed = liveness != self.liveness || self.next_expiry.is_some_and(|expiry| expiry <= self.now);
        self.liveness = liveness;
        changed
    }

    /// Looks at the clock, and at what each node may carry by now.
    fn observe(&mut self) {
        self.look_at_the_clock();
        self.update_revisions();
    }

    /// Has written what makes things as they are desired, and the statuses and events that say how far that is.
    fn apply_and_report(&mut self, desired: &Desired) {
        self.next_expiry = desired.expiries.values().copied().filter(|expiry| *expiry > self.now).min();
        let mut wanted = writes(&self.store, desired);
        wanted.extend(self.reporter.writes(&self.store, &self.revisions, &self.liveness, desired, &self.metrics));
        wanted.extend(self.drifts.writes(&self.store.gateways, self.now));
        self.writer.want(wanted);
    }

    /// Says for `/readyz` what is still waited for.
    fn set_readiness(&self, waits_for: Option<String>) {
        *self.readiness.lock().unwrap_or_else(PoisonError::into_inner) = waits_for;
    }

    /// The one that runs the agents, as it is.
    fn daemon_set(&self) -> Option<&DaemonSet> {
        self.store.daemon_sets.entry(&self.namespace, AGENT_NAME)?.object().map(Arc::as_ref)
    }

    fn update_revisions(&mut self) {
        let nothing = GatewayNodeStatus::default();
        for gateway in self.store.gateways.objects() {
            self.pools_of_nodes.insert(node_name(&gateway.metadata), gateway.spec.pool.clone());
        }
        let reports: Vec<NodeReport<'_>> = self
            .store
            .gateways
            .objects()
            .map(|gateway| {
                let name = &node_name(&gateway.metadata);
                let status = gateway.status.as_ref().unwrap_or(&nothing);
                // An agent that never was carries nothing; so does one that reported that it is clean.
                let empty = (status.state.is_none() && self.liveness.never_started(name)) || is_clean(gateway);
                NodeReport { pool: &gateway.spec.pool, status, gone: empty || self.liveness.gone.contains(name) }
            })
            .collect();
        // Whose configuration has vanished goes on with what it had.
        let orphans = self.store.nodes.objects().filter_map(|node| {
            let name = node_name(&node.metadata);
            let is_orphan = has_label(node) && self.store.gateways.get(name.as_str()).is_none();
            let pool = self.pools_of_nodes.get(&name).filter(|_| is_orphan)?;
            Some(NodeReport { pool, status: &nothing, gone: false })
        });
        let reports: Vec<NodeReport<'_>> = reports.into_iter().chain(orphans).collect();
        self.revisions.update(self.store.slices.objects(), &reports);
    }
}

/// Waits for a moment; for ever if there is none.
pub(crate) async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
