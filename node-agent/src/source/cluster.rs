//! The source of a cluster's node: its `GatewayNode` and the `ForwardSlice`s of its pool, watched.
//!
//! ```text
//! watches ─► knowledge ─► intents ─► (the loop) ─► what became of them ─► status ─► writer
//! ```
//! Here are only the plumbing and the order of things. An API server that is silent, slow or gone changes nothing at
//! all: what was last known is what holds.

pub(crate) mod knowledge;
pub(crate) mod lease;
mod reporter;
pub(crate) mod request;
pub(crate) mod slice;
pub(crate) mod status;
pub(crate) mod writer;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt as _};
use sallyport_api::forward_slice::ForwardSlice;
use sallyport_api::gateway_node::{GatewayNode, GatewayNodeSpec};
use sallyport_api::names::POOL_LABEL;
use sallyport_runtime::admin::Serving;
use sallyport_runtime::backoff::Backoff;
use sallyport_runtime::tasks::Tasks;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::sync::watch;

use crate::host::ThisHost;
use crate::intents::Intents;
use crate::pass_report::{PassReport, ReportSink};
use crate::source::cluster::knowledge::Knowledge;
use crate::source::cluster::reporter::Reporter;
use crate::source::cluster::request::{REQUEST, plainly};
use crate::source::cluster::slice::{Decoded, NotUnderstood, decode};
use crate::source::cluster::writer::{Seen, StatusWriter};
use crate::source::{News, Source};

/// How long a watch lasts before it is made anew, so that a connection that died silently is noticed.
const WATCH_SECONDS: u32 = 60;
/// Wait before a watch that failed is tried again; it doubles with each failure.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait before that.
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// After so long without a failure the next one is the first again.
const WITHOUT_FAILURE: Duration = Duration::from_mins(1);
/// Slices in one answer to a listing: they are large, and the memory for them is asked for at once.
const PAGE: u32 = 10;

type WatchEvent = watcher::Event<DynamicObject>;
type Events = BoxStream<'static, watcher::Result<WatchEvent>>;
type Listing = BTreeMap<String, Result<Decoded, NotUnderstood>>;

/// What the cluster may say at any time.
#[derive(Debug)]
enum Event {
    /// The watch of our `GatewayNode` did; `None` if it has ended.
    Node(Option<watcher::Result<WatchEvent>>),
    /// The watch of the slices did.
    Slice(Option<watcher::Result<WatchEvent>>),
    /// The API server's storage went back to an older state.
    Restored,
    /// The address for probes stands otherwise.
    Admin,
}

/// One node's view of the cluster.
pub(crate) struct Cluster {
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
    /// Whether that, or anything else that is reported, has changed since it was last decided upon.
    dirty: bool,
    intents: Option<Rc<Intents>>,
    reporter: Reporter,
    /// What each watch last failed with, that of our `GatewayNode` under true; logged when it changes.
    unanswered: BTreeMap<bool, String>,
    /// When a lost connection was last a reason to list everything anew.
    listed_anew: Option<tokio::time::Instant>,
}

/// The slices of one pool.
struct Slices {
    pool: String,
    events: Events,
    listing: Listing,
}

impl Cluster {
    /// Begins to watch, to renew the lease, and to write the status. Waits for nobody.
    /// `admin` says how the address for probes stands.
    pub(crate) async fn connect(
        tasks: &mut Tasks,
        node: &str,
        namespace: &str,
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
        let (restored, receiver) = watch::channel(());
        tasks.spawn("lease", lease::renew(client.clone(), namespace.to_owned(), node.to_owned(), restored));
        let mut cluster = Self::new(tasks, client, node, receiver);
        cluster.admin = admin.unwrap_or(cluster.admin);
        Ok(cluster)
    }

    fn new(tasks: &mut Tasks, client: Client, node: &str, restored: watch::Receiver<()>) -> Self {
        let nodes: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::erase::<GatewayNode>(&()));
        Self {
            client,
            name: node.to_owned(),
            restored,
            admin: watch::channel(Serving::default()).1,
            node: node_events(nodes.clone(), node),
            node_found: false,
            generation: None,
            slices: None,
            knowledge: Knowledge::new(node),
            dirty: false,
            intents: None,
            reporter: Reporter::new(StatusWriter::start(tasks, nodes, node.to_owned())),
            unanswered: BTreeMap::new(),
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

    fn take_node(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Init => self.node_found = false,
            WatchEvent::InitApply(node) => {
                self.node_found = true;
                let listing = self.reporter.writer.seen().listing + 1;
                self.node_is(&node, listing);
            }
            WatchEvent::Apply(node) => {
                let listing = self.reporter.writer.seen().listing;
                self.node_is(&node, listing);
            }
            WatchEvent::Delete(_) => self.node_is_gone(),
            WatchEvent::InitDone => {
                if !self.node_found {
                    self.node_is_gone();
                }
                self.knowledge.node_is_listed();
                self.dirty = true;
            }
        }
    }

    fn node_is(&mut self, node: &DynamicObject, listing: u64) {
        let spec = node.data.get("spec").unwrap_or(&Value::Null);
        // Our own status comes back as an event, too.
        self.dirty |= self.knowledge.node_is(GatewayNodeSpec::deserialize(spec).map_err(NotUnderstood::from));
        self.dirty |= self.generation != node.metadata.generation;
        self.generation = node.metadata.generation;
        self.reporter.writer.saw(Seen::of(node, listing));
        self.follow_pool();
    }

    fn node_is_gone(&mut self) {
        self.knowledge.node_is_gone();
        self.reporter.writer.saw(Seen { there: false, ..self.reporter.writer.seen() });
        self.dirty = true;
    }

    fn take_slice(&mut self, event: WatchEvent) {
        let Some(slices) = &mut self.slices else { return };
        match event {
            WatchEvent::Init => slices.listing.clear(),
            WatchEvent::InitApply(slice) => {
                slices.listing.insert(slice.name_any(), content(slice));
                return;
            }
            WatchEvent::InitDone => self.knowledge.slices_are(&slices.pool, std::mem::take(&mut slices.listing)),
            WatchEvent::Apply(slice) => self.knowledge.slice_is(&slice.name_any(), content(slice)),
            WatchEvent::Delete(slice) => self.knowledge.slice_is_gone(&slice.name_any()),
        }
        self.dirty = true;
    }

    /// The next event, whatever it is about. Cancel-safe.
    async fn next(&mut self) -> Event {
        let slices = async {
            match &mut self.slices {
                Some(slices) => slices.events.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = self.node.next() => Event::Node(event),
            event = slices => Event::Slice(event),
            Ok(()) = self.restored.changed() => Event::Restored,
            Ok(()) = self.admin.changed() => Event::Admin,
        }
    }

    /// Takes in an event.
    fn take(&mut self, event: Event) {
        match event {
            Event::Node(Some(Ok(event))) => {
                self.answered(true, &event);
                self.take_node(event);
            }
            Event::Slice(Some(Ok(event))) => {
                self.answered(false, &event);
                self.take_slice(event);
            }
            Event::Node(Some(Err(error))) => self.failed(true, &error),
            Event::Slice(Some(Err(error))) => self.failed(false, &error),
            Event::Restored => self.list_anew(),
            Event::Admin => self.dirty = true,
            // Watches never end; should one, spinning would be the worst answer.
            Event::Node(None) => self.node = futures::stream::pending().boxed(),
            Event::Slice(None) => {
                if let Some(slices) = &mut self.slices {
                    slices.events = futures::stream::pending().boxed();
                }
            }
        }
    }

    /// A watch was answered.
    fn answered(&mut self, of_node: bool, event: &WatchEvent) {
        // A listing begins before there is any answer.
        if !matches!(event, WatchEvent::Init)
            && self.unanswered.remove(&of_node).is_some()
            && self.unanswered.is_empty()
        {
            tracing::info!("the cluster answers again");
        }
    }

    /// A watch has failed; it tries again by itself.
    fn failed(&mut self, of_node: bool, error: &watcher::Error) {
        let lost = match error {
            watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
                !matches!(error, kube::Error::Api(_))
            }
            _ => false,
        };
        let error = match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => plainly(error),
            error => error.to_string(),
        };
        if !self.unanswered.values().any(|known| *known == error) {
            tracing::warn!(error, "cannot follow the cluster; what was last known holds");
        }
        self.unanswered.insert(of_node, error);
        // Whoever answers next may be of another history, in which a watch from here on would miss the difference.
        // A connection that is lost again and again is left to the watches, which are patient.
        if lost && self.listed_anew.is_none_or(|at| at.elapsed() > WITHOUT_FAILURE) {
            self.listed_anew = Some(tokio::time::Instant::now());
            self.list_anew();
        }
    }
}

impl Source for Cluster {
    const CAUSE: &'static str = "cluster";

    fn restore(&mut self, last_good: &Rc<Intents>) {
        self.intents = Some(Rc::clone(last_good));
        self.knowledge.restore(last_good);
        self.follow_pool();
    }

    async fn changed(&mut self) {
        let event = self.next().await;
        self.take(event);
        // What has already come belongs into the same pass.
        while let Some(event) = self.next().now_or_never() {
            self.take(event);
        }
    }

    fn tick(&mut self) {
        self.dirty |= self.reporter.is_due();
    }

    async fn decide(&mut self, _host: &mut ThisHost, moved: bool) -> News {
        if moved {
            self.reporter.forget_routes();
        }
        if !std::mem::take(&mut self.dirty) && !moved {
            return News::None;
        }
        match self.knowledge.intents() {
            None => News::None,
            Some(intents) if self.intents.as_deref() == Some(&intents) => News::Objects,
            Some(intents) => News::Intents(Rc::clone(self.intents.insert(Rc::new(intents)))),
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
}

impl ReportSink for Cluster {
    fn passed(&mut self, report: &PassReport) {
        if let Some(what) = report.repair() {
            self.reporter.repaired(&what);
        }
        self.updated(report);
    }

    /// Before everything is known, what was reported before the restart stays.
    fn updated(&mut self, report: &PassReport) {
        let Some(intents) = self.intents.as_deref().filter(|_| self.knowledge.is_complete()) else { return };
        self.reporter.report(&self.knowledge, self.generation, &self.admin.borrow(), intents, report);
    }
}

fn node_events(nodes: Api<DynamicObject>, name: &str) -> Events {
    events(nodes, watcher::Config::default().fields(&format!("metadata.name={name}")))
}

fn events(api: Api<DynamicObject>, config: watcher::Config) -> Events {
    let backoff = WatchBackoff(Backoff::new(FIRST_WAIT, LONGEST_WAIT).calm_after(WITHOUT_FAILURE));
    watcher(api, config.timeout(WATCH_SECONDS).page_size(PAGE)).backoff(backoff).boxed()
}

/// [`Backoff`] as kube asks for it.
struct WatchBackoff(Backoff);

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0.failed())
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    /// Called for every event, and a listing begins with one that needs no answer: that is no sign of health.
    fn reset(&mut self) {}
}

fn content(mut slice: DynamicObject) -> Result<Decoded, NotUnderstood> {
    let generation = slice.metadata.generation.unwrap_or_default();
    decode(slice.data.get_mut("spec").map(Value::take).unwrap_or_default(), generation)
}

#[cfg(test)]
mod tests;
