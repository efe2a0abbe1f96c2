//! The loop of the leader: observe → decide → apply → status.
//!
//! ```text
//! watches ─► Store ─► decide ─► writes ─► Writer ─► API server
//!              ▲  └─► status ───┘            │
//!              └──────── answers ◄───────────┘
//! ```
//! One task owns everything that is known. A pass looks at all of it; what is as it should be costs no request.

pub mod agents;
pub mod apply;
pub mod cache;
pub mod carried;
pub mod decide;
pub mod desired;
pub mod drift;
pub mod events;
pub mod gateways;
pub mod guard;
pub mod observe;
pub mod pool_status;
pub mod report;
pub mod retention;
pub mod send;
pub mod status;
pub mod store;
pub mod subject;
pub mod suspended;
pub mod vital;
pub mod write;
pub mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use ipnet::IpNet;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams};
use kube::{Client, CustomResourceExt as _};
use sallyport_api::names::AGENT_NAME;
use sallyport_api::{GatewayNodeStatus, GatewayPool, NodeState, PortForward};
use sallyport_runtime::once::Once;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use crate::controller::agents::Agents;
use crate::controller::apply::writes;
use crate::controller::carried::{Carrier, History};
use crate::controller::decide::decide;
use crate::controller::desired::Desired;
use crate::controller::drift::Drifts;
use crate::controller::events::Events;
use crate::controller::gateways::{has_label, is_clean};
use crate::controller::guard::DeserializeGuard;
use crate::controller::observe::watch;
use crate::controller::report::Reporter;
use crate::controller::retention::Purpose;
use crate::controller::send::REQUEST_TIMEOUT;
use crate::controller::store::{Change, Store};
use crate::controller::vital::{Pulse, Vital};
use crate::controller::write::Answer;
use crate::controller::writer::Writer;
use crate::leader::Leadership;
use crate::metrics::Metrics;

/// Time between two looks at what changes by the clock alone: silent agents, nodes not ready for long, what expires.
const BEAT: Duration = Duration::from_secs(1);

/// What an uninstallation can do without: all but that by which agents are told to clean up.
const DISPENSABLE: [&str; 8] =
    ["portforwards", "gatewaypools", "forwardslices", "nodes", "namespaces", "leases", "daemonsets", "endpointslices"];

/// Why the leader cannot decide yet, for `/readyz`; of an uninstallation, what it still waits for.
pub type Readiness = Arc<Mutex<Option<String>>>;

/// What the loop is for.
#[derive(Clone, Debug)]
pub enum Aim {
    /// Keep the gateways configured.
    Serve {
        /// This runs their agents.
        agents: Box<DaemonSet>,
        /// Ranges of Services that the cluster itself may not tell.
        service_cidrs: Vec<IpNet>,
    },
    /// Leave nothing but what users wrote; with `force` without waiting for silent agents.
    Uninstall {
        /// Whether agents that are silent or gone are not waited for.
        force: bool,
    },
}

/// Why a definition may not be there to stay.
struct Going {
    /// Whether it goes, or that could not be asked.
    certain: bool,
    why: String,
}

/// The loop, with all that it knows.
pub struct Controller {
    client: Client,
    namespace: String,
    aim: Aim,
    changes: BoxStream<'static, Change>,
    store: Store,
    history: History,
    pulse: Pulse,
    vital: Vital,
    writer: Writer,
    leadership: Arc<Leadership>,
    reporter: Reporter,
    drifts: Drifts,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    agents: Agents,
    /// Seconds since 1970 by the API server's clock; never goes back.
    now: i64,
    /// When the next forward expires.
    next_expiry: Option<i64>,
    /// Whether to pass again at the next beat.
    again: bool,
    /// Why objects that are deleted are kept, as last told.
    keeping: BTreeMap<&'static str, Once>,
    /// Pools that went with their definition and have not come back.
    lost_pools: BTreeSet<String>,
    /// The pool that each gateway was last seen in.
    pools_of_nodes: BTreeMap<String, String>,
    /// What an uninstallation waits for, as last told.
    left: Once<Vec<String>>,
}

impl Controller {
    /// Starts to watch.
    pub fn new(
        client: Client,
        namespace: &str,
        aim: Aim,
        leadership: Arc<Leadership>,
        metrics: Arc<Metrics>,
        readiness: Readiness,
        events: Events,
    ) -> Self {
        Self {
            changes: watch(&client, namespace),
            agents: Agents::new(
                client.clone(),
                namespace,
                events.clone(),
                Arc::clone(&leadership),
                Arc::clone(&metrics),
            ),
            writer: Writer::new(client.clone(), events, Arc::clone(&leadership), Arc::clone(&metrics)),
            leadership,
            reporter: Reporter::default(),
            drifts: Drifts::default(),
            client,
            namespace: namespace.to_owned(),
            store: match &aim {
                Aim::Serve { service_cidrs, .. } => Store { service_cidrs: service_cidrs.clone(), ..Store::default() },
                Aim::Uninstall { .. } => Store { dispensable: &DISPENSABLE, ..Store::default() },
            },
            aim,
            history: History::default(),
            pulse: Pulse::default(),
            vital: Vital::default(),
            metrics,
            readiness,
            now: 0,
            next_expiry: None,
            again: false,
            keeping: BTreeMap::new(),
            lost_pools: BTreeSet::new(),
            pools_of_nodes: BTreeMap::new(),
            left: Once::default(),
        }
    }

    /// Runs for ever; an uninstallation returns when nothing of ours is left.
    pub async fn run(&mut self) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = false;
        let mut rest = Instant::now();
        loop {
            let again = [self.writer.next_try(), self.reporter.next_look(), self.agents.next_look()];
            let again = again.into_iter().flatten().min();
            tokio::select! {
                Some(change) = self.changes.next() => due |= self.store.observe(change),
                (answer, again) = self.writer.next() => {
                    if let Some(answer) = answer {
                        self.answered(answer);
                    }
                    due |= again;
                }
                _ = beat.tick() => {
                    due |= self.look_at_the_clock() | std::mem::take(&mut self.again) | !self.store.missing().is_empty();
                }
                () = until(again), if !due => due = true,
                () = tokio::time::sleep_until(rest), if due => {
                    let begun = Instant::now();
                    self.take_what_has_come();
                    due = false;
                    if self.pass().await {
                        return;
                    }
                    // At most half of the time is spent on deciding, however much happens.
                    rest = Instant::now() + begun.elapsed();
                }
            }
        }
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
            Answer::GatewayDeleted(name) => self.store.gateways.deleted(&name),
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

    fn look_at_the_clock(&mut self) -> bool {
        let now = self.leadership.now();
        self.now = self.now.max(now.as_second());
        let mut vital = self.pulse.feel(&self.store, now);
        if matches!(self.aim, Aim::Uninstall { force: true }) {
            vital.dead.extend(vital.silent.iter().chain(&vital.unborn).cloned());
        }
        let changed = vital != self.vital || self.next_expiry.is_some_and(|expiry| expiry <= self.now);
        self.vital = vital;
        changed
    }

    /// One pass; whether an uninstallation is finished.
    async fn pass(&mut self) -> bool {
        let missing = self.store.missing();
        let uninstall = matches!(self.aim, Aim::Uninstall { .. });
        if !missing.is_empty() {
            self.tell_readiness(Some(if uninstall {
                missing.join("; ")
            } else {
                format!("waiting for {}", missing.join("; "))
            }));
            if uninstall && self.left.is_news(&missing) {
                tracing::info!(
                    "waiting for {}; if a definition is missing, `helm upgrade` restores it",
                    missing.join("; ")
                );
            }
            return false;
        }
        if !uninstall {
            self.tell_readiness(None);
        }
        let purpose = Purpose {
            keep_deleted: !uninstall && self.keep_deleted().await,
            keep_pools: !uninstall && self.keep_pools().await,
            uninstall,
        };
        let begun = Instant::now();
        self.look_at_the_clock();
        self.update_history();
        let desired = decide(&self.store, &self.history, &self.vital.dead, purpose, self.now);
        self.next_expiry = desired.expiries.values().copied().filter(|expiry| *expiry > self.now).min();
        let mut wanted = writes(&self.store, &desired);
        wanted.extend(self.reporter.writes(&self.store, &self.history, &self.vital, &desired, &self.metrics));
        wanted.extend(self.drifts.writes(&self.store.gateways, self.now));
        self.metrics.passed(begun.elapsed());
        self.writer.want(wanted);
        self.settle_daemon_set(&desired).await;
        uninstall && self.nothing_is_left()
    }

    fn tell_readiness(&self, waits_for: Option<String>) {
        *self.readiness.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = waits_for;
    }

    fn update_history(&mut self) {
        let nothing = GatewayNodeStatus::default();
        for gateway in self.store.gateways.objects() {
            let name = gateway.metadata.name.clone().unwrap_or_default();
            self.pools_of_nodes.insert(name, gateway.spec.pool.clone());
        }
        let carriers: Vec<Carrier<'_>> = self
            .store
            .gateways
            .objects()
            .map(|gateway| {
                let name = gateway.metadata.name.as_deref().unwrap_or_default();
                let status = gateway.status.as_ref().unwrap_or(&nothing);
                // An agent that never was carries nothing; so does one that reported that it is clean.
                let empty = (status.state.is_none() && self.vital.unborn.contains(name)) || is_clean(gateway);
                Carrier { pool: &gateway.spec.pool, status, dead: empty || self.vital.dead.contains(name) }
            })
            .collect();
        // Whose configuration has vanished goes on with what it had.
        let orphans = self.store.nodes.objects().filter_map(|node| {
            let name = node
                .metadata
                .name
                .as_deref()
                .filter(|name| has_label(node) && self.store.gateways.get(name).is_none())?;
            let pool = self.pools_of_nodes.get(name)?;
            Some(Carrier { pool, status: &nothing, dead: false })
        });
        let carriers: Vec<Carrier<'_>> = carriers.into_iter().chain(orphans).collect();
        self.history.update(self.store.slices.objects(), &carriers);
    }

    /// Deleting the definition of `PortForward` deletes every forward of every user. Nobody who does that means to close
    /// them all, so they stay until they are deleted one by one, or Sallyport is uninstalled.
    async fn keep_deleted(&mut self) -> bool {
        let going = self
            .store
            .forwards
            .entries()
            .any(|(_, entry)| entry.meta().deletion_timestamp.is_some() && entry.has_our_finalizer());
        if !going {
            return false;
        }
        let trouble = self.definition_is_going(PortForward::crd_name()).await;
        self.keep("forwards", trouble.map(|trouble| trouble.why))
    }

    /// Nor does deleting the definition of `GatewayPool`: a pool that went with it stays as it was until it is back.
    async fn keep_pools(&mut self) -> bool {
        let carried = self.history.slices().map(|(_, slice)| slice.pool.as_str());
        let serving = self.store.gateways.objects().filter(|gateway| gateway.spec.state == NodeState::Active);
        let serving = serving.map(|gateway| gateway.spec.pool.as_str());
        let missing = |pool: &&str| self.store.pools.entry("", pool).is_none();
        let gone: BTreeSet<String> = carried.chain(serving).filter(missing).map(str::to_owned).collect();
        self.lost_pools.retain(|pool| gone.contains(pool));
        if gone.is_empty() || gone == self.lost_pools {
            return !gone.is_empty();
        }
        let trouble = self.definition_is_going(GatewayPool::crd_name()).await;
        // What could not be asked is asked again; only a definition that goes takes its pools along for good.
        if trouble.as_ref().is_some_and(|trouble| trouble.certain) {
            self.lost_pools = gone;
        }
        self.keep("pools", trouble.map(|trouble| trouble.why)) || !self.lost_pools.is_empty()
    }

    /// Why it is not certain that a definition is there to stay; `None` if it is.
    async fn definition_is_going(&self, name: &str) -> Option<Going> {
        let api = Api::<CustomResourceDefinition>::all(self.client.clone());
        let (certain, why) = match timeout(REQUEST_TIMEOUT, api.get_metadata(name)).await {
            Ok(Ok(definition)) if definition.metadata.deletion_timestamp.is_none() => return None,
            Ok(Ok(_)) => (true, format!("the definition {name} is being deleted")),
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => {
                (true, format!("the definition {name} is gone"))
            }
            Ok(Err(error)) => (false, format!("cannot read the definition {name}: {error}")),
            Err(_) => (false, format!("cannot read the definition {name}: no answer in time")),
        };
        Some(Going { certain, why })
    }

    /// Tells, once, that deleted objects are kept, and looks again at the next beat.
    fn keep(&mut self, what: &'static str, trouble: Option<String>) -> bool {
        let Some(trouble) = trouble else {
            self.keeping.remove(what);
            return false;
        };
        if self.keeping.entry(what).or_default().is_news(&trouble) {
            tracing::warn!(
                "{trouble}: all rules and {what} stay as they are. To take the rules off, uninstall the chart"
            );
        }
        self.again = true;
        true
    }

    /// Keeps the `DaemonSet` as it shall be; an uninstallation deletes it once every node is clean.
    async fn settle_daemon_set(&mut self, desired: &Desired) {
        if !self.leadership.is_valid() {
            return;
        }
        let existing = self.store.daemon_sets.entry(&self.namespace, AGENT_NAME).and_then(|entry| entry.object());
        if let Aim::Serve { agents: wanted, .. } = &self.aim {
            if let Some(written) = self.agents.settle(existing.map(Arc::as_ref), wanted).await {
                self.store.daemon_sets.wrote(DeserializeGuard(Ok(written)));
            }
        } else if existing.is_some() && desired.labelled.is_empty() {
            let api = Api::<DaemonSet>::namespaced(self.client.clone(), &self.namespace);
            // Refused or unanswered, it is tried again.
            let _ = timeout(REQUEST_TIMEOUT, api.delete(AGENT_NAME, &DeleteParams::default())).await;
            self.again = true;
        }
    }

    /// Whether an uninstallation is finished; tells what it waits for, and which rules it has to leave behind.
    fn nothing_is_left(&mut self) -> bool {
        let store = &self.store;
        let held = |(_, entry): &(_, &cache::Entry<PortForward>)| entry.has_our_finalizer();
        let mut left = Vec::new();
        for gateway in store.gateways.objects() {
            let name = gateway.metadata.name.as_deref().unwrap_or_default();
            left.push(match () {
                () if self.vital.dead.contains(name) => {
                    format!(
                        "{name} keeps its rules: when it is back, run `sallyport-node-agent cleanup --state-dir \
                         /var/lib/sallyport` of the agents' image on it, as docs/install.md says"
                    )
                }
                () if self.vital.silent.contains(name) || self.vital.unborn.contains(name) => {
                    format!("{name}: its agent does not answer; look at its pod, or give up on it with --force")
                }
                () => format!("{name}: its agent is taking the rules off"),
            });
        }
        let objects = [
            ("forwards with our finalizer", store.forwards.entries().filter(held).count()),
            ("forwardslices", store.slices.objects().count()),
            ("daemonsets", store.daemon_sets.objects().count()),
            ("nodes with our label", store.nodes.objects().filter(|node| has_label(node)).count()),
        ];
        left.extend(objects.iter().filter(|(_, number)| *number > 0).map(|(what, number)| format!("{number} {what}")));
        for line in self.left.news_of(&left) {
            tracing::info!("left: {line}");
        }
        self.tell_readiness((!left.is_empty()).then(|| left.join("; ")));
        left.is_empty() && self.writer.is_idle()
    }
}

/// Waits for a moment; for ever if there is none.
pub async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
