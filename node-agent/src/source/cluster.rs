//! The source of a cluster's node: its `GatewayNode` and the `ForwardSlice`s of its pool, watched.
//!
//! ```text
//! watches ─► knowledge ─► intents ─► (the loop) ─► what became of them ─► status ─► writer
//! ```
//! Here are only the plumbing and the order of things. An API server that is silent, slow or gone changes nothing at
//! all: what was last known is what holds.

pub mod knowledge;
pub mod lease;
pub mod slice;
pub mod status;
pub mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use sallyport_api::SourceNatMode;
use sallyport_api::forward_slice::ForwardSlice;
use sallyport_api::gateway_node::{Drift, GatewayNode, GatewayNodeSpec, GatewayNodeStatus};
use sallyport_api::gateway_pool::FirewallBackend;
use sallyport_api::names::{MAX_ADDRESSES, POOL_LABEL};
use sallyport_runtime::admin::Serving;
use sallyport_runtime::tasks::Tasks;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::sync::watch;

use crate::connections::Draining;
use crate::converge::preview::PlannedChange;
use crate::error_chain::chain_of;
use crate::intents::Intents;
use crate::source::cluster::knowledge::Knowledge;
use crate::source::cluster::slice::{Decoded, decode};
use crate::source::cluster::status::{Facts, Outcome, compose, shortened};
use crate::source::cluster::writer::{Seen, StatusWriter};
use crate::source::host::ThisHost;
use crate::source::{Pass, Source};
use crate::state::StateDir;
use sallyport_engine::route::masquerade;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// How long a watch lasts before it is made anew, so that a connection that died silently is noticed.
const WATCH_SECONDS: u32 = 60;
/// After so long without a failure the next one is the first again.
const WITHOUT_TROUBLE: Duration = Duration::from_mins(1);
/// Slices in one answer to a listing: they are large, and the memory for them is asked for at once.
const PAGE: u32 = 10;
/// Routes may change without anybody telling us: the source addresses are looked up at least this often.
const ROUTES: Duration = Duration::from_secs(30);

type Events = BoxStream<'static, Result<Event<DynamicObject>, watcher::Error>>;
type Listing = BTreeMap<String, Result<Decoded, String>>;

/// One node's view of the cluster.
pub struct Cluster {
    host: ThisHost,
    client: Client,
    name: String,
    /// Says that the API server's storage went back to an older state.
    restored: watch::Receiver<()>,
    /// How the address for probes stands.
    admin: watch::Receiver<Serving>,
    node: Events,
    /// Whether the list of `GatewayNode`s that is under way had ours in it.
    node_found: bool,
    generation: Option<i64>,
    slices: Option<Slices>,
    knowledge: Knowledge,
    /// Whether that has changed since the last look.
    fresh: bool,
    intents: Option<Rc<Intents>>,
    /// What the kernel was last read back with, and what came of the last pass.
    verified: Option<Rc<Intents>>,
    outcome: Option<Outcome>,
    /// What somebody else does to our rules that lasts.
    amiss: Option<String>,
    backend: Option<FirewallBackend>,
    last_drift: Option<Drift>,
    /// What would change for forwards that are only planned; unknown until that was first worked out.
    plans: Option<Vec<PlannedChange>>,
    routes: Option<Routes>,
    draining: Draining,
    reported: Option<GatewayNodeStatus>,
    writer: StatusWriter,
    /// What each watch last failed with, that of our `GatewayNode` under true; told when it changes.
    silent: BTreeMap<bool, String>,
    /// When a lost connection was last a reason to list everything anew.
    listed_anew: Option<tokio::time::Instant>,
}

/// The slices of one pool.
struct Slices {
    pool: String,
    events: Events,
    listing: Listing,
}

/// Where masqueraded connections leave from.
struct Routes {
    at: Instant,
    targets: BTreeSet<IpAddr>,
    sources: Vec<IpAddr>,
}

impl Cluster {
    /// Begins to watch, to renew the lease, and to write the status. Waits for nobody.
    /// `admin` says how the address for probes stands.
    pub async fn connect(
        tasks: &mut Tasks,
        node: &str,
        namespace: &str,
        state: Rc<StateDir>,
        admin: Option<watch::Receiver<Serving>>,
    ) -> anyhow::Result<Self> {
        let mut config = kube::Config::infer()
            .await
            .context("cannot tell which cluster to follow; set KUBECONFIG, or give --manifests")?;
        config.connect_timeout = Some(REQUEST);
        // More than a watch is ever silent; else a dead connection would hold a listing for ever.
        config.read_timeout = Some(Duration::from_secs(u64::from(WATCH_SECONDS)) + REQUEST);
        config.default_retry = false;
        let client = Client::try_from(config).context("cannot use the cluster's configuration")?;
        let (restored, hears) = watch::channel(());
        tasks.spawn("lease", lease::renew(client.clone(), namespace.to_owned(), node.to_owned(), restored));
        let mut cluster = Self::new(tasks, client, node, state, hears);
        cluster.admin = admin.unwrap_or(cluster.admin);
        Ok(cluster)
    }

    fn new(tasks: &mut Tasks, client: Client, node: &str, state: Rc<StateDir>, restored: watch::Receiver<()>) -> Self {
        let nodes: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::erase::<GatewayNode>(&()));
        Self {
            host: ThisHost::new(state),
            client,
            name: node.to_owned(),
            restored,
            admin: watch::channel(Serving::default()).1,
            node: node_events(nodes.clone(), node),
            node_found: false,
            generation: None,
            slices: None,
            knowledge: Knowledge::new(node),
            fresh: false,
            intents: None,
            verified: None,
            outcome: None,
            amiss: None,
            backend: None,
            last_drift: None,
            plans: None,
            routes: None,
            draining: Draining::new(),
            reported: None,
            writer: StatusWriter::start(tasks, nodes, node.to_owned()),
            silent: BTreeMap::new(),
            listed_anew: None,
        }
    }

    /// Watches the slices of the pool that the node is in now.
    fn follow_pool(&mut self) {
        let pool = self.knowledge.pool();
        if self.slices.as_ref().map(|slices| slices.pool.as_str()) == pool {
            return;
        }
        self.slices = pool.map(|pool| {
            let slices = Api::all_with(self.client.clone(), &ApiResource::erase::<ForwardSlice>(&()));
            let of_pool = watcher::Config::default().labels(&format!("{POOL_LABEL}={pool}"));
            Slices { pool: pool.to_owned(), events: events(slices, of_pool), listing: Listing::new() }
        });
    }

    /// Follows what there is now; what was known holds until that is.
    fn list_anew(&mut self) {
        let nodes: Api<DynamicObject> = Api::all_with(self.client.clone(), &ApiResource::erase::<GatewayNode>(&()));
        self.node = node_events(nodes, &self.name);
        self.slices = None;
        self.follow_pool();
    }

    fn take_node(&mut self, event: Event<DynamicObject>) {
        match event {
            Event::Init => self.node_found = false,
            Event::InitApply(node) => {
                self.node_found = true;
                let listing = self.writer.seen().listing + 1;
                self.node_is(&node, listing);
            }
            Event::Apply(node) => {
                let listing = self.writer.seen().listing;
                self.node_is(&node, listing);
            }
            Event::Delete(_) => self.node_is_gone(),
            Event::InitDone => {
                if !self.node_found {
                    self.node_is_gone();
                }
                self.knowledge.node_is_listed();
                self.fresh = true;
            }
        }
    }

    fn node_is(&mut self, node: &DynamicObject, listing: u64) {
        let spec = node.data.get("spec").unwrap_or(&Value::Null);
        // Our own status comes back as an event, too.
        self.fresh |= self.knowledge.node_is(GatewayNodeSpec::deserialize(spec).map_err(|error| error.to_string()));
        self.fresh |= self.generation != node.metadata.generation;
        self.generation = node.metadata.generation;
        self.writer.saw(Seen::of(node, listing));
        self.follow_pool();
    }

    fn node_is_gone(&mut self) {
        self.knowledge.node_is_gone();
        self.writer.saw(Seen { there: false, ..self.writer.seen() });
        self.fresh = true;
    }

    fn take_slice(&mut self, event: Event<DynamicObject>) {
        let Some(slices) = &mut self.slices else { return };
        match event {
            Event::Init => slices.listing.clear(),
            Event::InitApply(slice) => {
                slices.listing.insert(slice.name_any(), content(slice));
                return;
            }
            Event::InitDone => self.knowledge.slices_are(&slices.pool, std::mem::take(&mut slices.listing)),
            Event::Apply(slice) => self.knowledge.slice_is(&slice.name_any(), content(slice)),
            Event::Delete(slice) => self.knowledge.slice_is_gone(&slice.name_any()),
        }
        self.fresh = true;
    }

    /// The next event of either watch, taken in.
    async fn next(&mut self) {
        let slices = async {
            match &mut self.slices {
                Some(slices) => slices.events.next().await,
                None => std::future::pending().await,
            }
        };
        let (event, of_node) = tokio::select! {
            event = self.node.next() => (event, true),
            event = slices => (event, false),
            Ok(()) = self.restored.changed() => return self.list_anew(),
            Ok(()) = self.admin.changed() => return self.fresh = true,
        };
        match event {
            Some(Ok(event)) => {
                // A listing begins before anything has been heard.
                if !matches!(event, Event::Init) && self.silent.remove(&of_node).is_some() && self.silent.is_empty() {
                    tracing::info!("the cluster answers again");
                }
                if of_node { self.take_node(event) } else { self.take_slice(event) }
            }
            Some(Err(error)) => {
                let lost = match &error {
                    watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
                        !matches!(error, kube::Error::Api(_))
                    }
                    _ => false,
                };
                let error = match &error {
                    watcher::Error::InitialListFailed(error)
                    | watcher::Error::WatchStartFailed(error)
                    | watcher::Error::WatchFailed(error) => plainly(error),
                    error => error.to_string(),
                };
                if !self.silent.values().any(|told| *told == error) {
                    tracing::warn!(error, "cannot follow the cluster; what was last known holds");
                }
                self.silent.insert(of_node, error);
                // Whoever answers next may be of another history, in which a watch from here on would miss the difference.
                // A connection that is lost again and again is left to the watches, which are patient.
                if lost && self.listed_anew.is_none_or(|at| at.elapsed() > WITHOUT_TROUBLE) {
                    self.listed_anew = Some(tokio::time::Instant::now());
                    self.list_anew();
                }
            }
            // Watches never end; should one, spinning would be the worst answer.
            None => std::future::pending().await,
        }
    }

    /// Reports what is known now. Before everything is known, what was reported before the restart stays.
    fn report(&mut self) {
        let (Some(intents), Some(outcome)) = (self.intents.clone(), self.outcome.clone()) else { return };
        if !self.knowledge.is_complete() {
            return;
        }
        self.look_up_routes(&intents, &outcome);
        let previous = self.reported.clone().or_else(|| self.writer.seen().status).unwrap_or_default();
        let now = now();
        let facts = Facts {
            knowledge: &self.knowledge,
            intents: &intents,
            verified: self.verified.as_deref(),
            outcome: &outcome,
            amiss: self.amiss.as_deref(),
            backend: self.backend,
            source_addresses: self.routes.as_ref().map_or(&[], |routes| &routes.sources),
            draining: &self.draining,
            admin: &self.admin.borrow(),
            last_drift: self.last_drift.as_ref(),
            plans: self.plans.as_deref(),
            generation: self.generation,
            now: &now,
        };
        let status = compose(&previous, &facts);
        self.writer.want(status.clone());
        self.reported = Some(status);
    }

    fn look_up_routes(&mut self, intents: &Intents, outcome: &Outcome) {
        let Outcome::Verified(report) = outcome else { return };
        let failed: BTreeSet<_> = report.failures.iter().map(|failure| &failure.forward).collect();
        let forwards = intents.forwards().into_iter().filter(|forward| !failed.contains(&forward.r#ref));
        let masqueraded = forwards.filter(|forward| forward.intent.source_nat == SourceNatMode::Masquerade);
        let targets: BTreeSet<IpAddr> =
            masqueraded.flat_map(|forward| forward.intent.targets.iter().map(|target| target.ip)).collect();
        if self.routes.as_ref().is_some_and(|routes| routes.targets == targets && routes.at.elapsed() < ROUTES) {
            return;
        }
        match masquerade::source_addresses(&targets) {
            Ok(sources) => {
                let sources = sources.into_iter().take(MAX_ADDRESSES).collect();
                self.routes = Some(Routes { at: Instant::now(), targets, sources });
            }
            Err(error) => tracing::debug!(error = chain_of(&error), "cannot look up the way to the targets"),
        }
    }
}

impl Source for Cluster {
    const CAUSE: &'static str = "cluster";

    fn host(&mut self) -> &mut ThisHost {
        &mut self.host
    }

    fn last_good(&mut self) -> Option<Rc<Intents>> {
        self.intents = self.host.last_good();
        if let Some(intents) = &self.intents {
            self.knowledge.restore(intents);
            self.follow_pool();
        }
        self.intents.clone()
    }

    async fn changed(&mut self) {
        self.next().await;
        // What has already come belongs into the same pass.
        while self.next().now_or_never().is_some() {}
    }

    fn beat(&mut self) {
        self.fresh |= self.routes.as_ref().is_some_and(|routes| routes.at.elapsed() >= ROUTES);
    }

    async fn look(&mut self) -> Option<Rc<Intents>> {
        let moved = self.host.look();
        if moved {
            self.routes = None;
        }
        if !std::mem::take(&mut self.fresh) && !moved {
            return None;
        }
        match self.knowledge.intents() {
            None => self.intents.clone().filter(|_| moved),
            Some(intents) if self.intents.as_deref() == Some(&intents) && !moved => {
                self.report();
                self.host.tell(self.problems());
                None
            }
            Some(intents) => {
                self.intents = Some(Rc::new(intents));
                self.intents.clone()
            }
        }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.knowledge.problems().into_iter().map(|(_, message)| message).collect();
        problems.extend(
            self.knowledge.unsupported().map(|(_, found)| format!("PortForward {}: {}", found.forward, found.message)),
        );
        problems.sort();
        problems
    }

    fn draining(&mut self, draining: &Draining) {
        self.fresh |= self.draining != *draining;
        self.draining.clone_from(draining);
    }

    fn passed(&mut self, pass: &Pass<'_>) {
        self.backend = pass.backend;
        self.amiss = pass.amiss.map(str::to_owned);
        // How far a pass came that failed is not known, so neither is what the kernel holds.
        self.verified = pass.outcome.is_ok().then(|| Rc::clone(pass.intents));
        if let Some(what) = pass.repaired {
            self.last_drift = Some(Drift { time: now(), message: shortened(what.to_owned()) });
        }
        self.outcome = Some(Outcome::of(pass.outcome, pass.pending));
        self.report();
    }

    fn amiss(&mut self, what: Option<&str>) {
        self.amiss = what.map(str::to_owned);
        self.report();
    }

    fn planned(&mut self, plans: Vec<PlannedChange>) {
        if self.plans.as_ref() != Some(&plans) {
            self.plans = Some(plans);
            self.report();
        }
    }
}

fn node_events(nodes: Api<DynamicObject>, name: &str) -> Events {
    events(nodes, watcher::Config::default().fields(&format!("metadata.name={name}")))
}

fn events(api: Api<DynamicObject>, config: watcher::Config) -> Events {
    watcher(api, config.timeout(WATCH_SECONDS).page_size(PAGE)).backoff(Patience::default()).boxed()
}

/// How long to wait before the next try: half a second, and twice as long each time, up to 8 s.
#[derive(Default)]
struct Patience {
    failures: u32,
    last: Option<tokio::time::Instant>,
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.last.replace(tokio::time::Instant::now()).is_some_and(|last| last.elapsed() > WITHOUT_TROUBLE) {
            self.failures = 0;
        }
        let wait = Duration::from_millis(500 << self.failures);
        self.failures = (self.failures + 1).min(4);
        Some(wait)
    }
}

impl Backoff for Patience {
    /// Called for every event, and a listing begins with one that needs no answer: that is no sign of health.
    fn reset(&mut self) {}
}

fn content(mut slice: DynamicObject) -> Result<Decoded, String> {
    let generation = slice.metadata.generation.unwrap_or_default();
    decode(slice.data.get_mut("spec").map(Value::take).unwrap_or_default(), generation)
}

/// In whole seconds, as the API keeps it, so that a status read back equals the one written.
fn now() -> Time {
    let now = jiff::Timestamp::now();
    Time(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// The outcome of a request, or that it took too long; errors as text, to be told when they change.
pub(crate) async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(outcome) => outcome.map_err(|error| plainly(&error)),
        Err(_) => Err(format!("no answer within {} s", REQUEST.as_secs())),
    }
}

/// The API server's own words where it answered; kube repeats them together with their encoding.
fn plainly(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        error => chain_of(error),
    }
}

#[cfg(test)]
mod tests;
