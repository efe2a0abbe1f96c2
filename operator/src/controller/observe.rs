//! Watches everything that a decision depends on.
//!
//! ```text
//! watch of each kind ─► Change ─► World
//! ```
//! What follows from what is seen is not here.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use ipnet::IpNet;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Config, watcher};
use kube::{Client, Resource};
use sallyport_api::names::AGENT_NAME;
use sallyport_api::{ForwardSlice, GatewayNode, GatewayPool, PortForward, PortForwardStatus};
use sallyport_runtime::backoff::Backoff;
use serde::de::DeserializeOwned;

use crate::controller::cache::Cache;
use crate::controller::drift::Drifts;
use crate::controller::guard::DeserializeGuard;

/// How long a watch lasts before it is made anew, so that a connection that died silently is noticed.
pub const WATCH_SECONDS: u32 = 60;

/// Wait before a watch that failed is tried again; it doubles with each failure.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest wait. There is one operator, so it may ask often; users wait for it.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// After so long without a failure the next one is the first again.
const WITHOUT_FAILURE: Duration = Duration::from_mins(1);

/// All that is known of the cluster.
#[derive(Debug, Default)]
pub struct World {
    /// What users ask.
    pub forwards: Cache<PortForward>,
    /// Who may ask what, and which nodes carry it.
    pub pools: Cache<GatewayPool>,
    /// What the agents were told to carry.
    pub slices: Cache<ForwardSlice>,
    /// How each gateway is configured, and what its agent reports.
    pub gateways: Cache<GatewayNode>,
    /// The nodes that can be gateways.
    pub nodes: Cache<Node>,
    /// Labels that grants select by.
    pub namespaces: Cache<Namespace>,
    /// The agents' signs of life.
    pub leases: Cache<Lease>,
    /// The one that runs the agents.
    pub daemon_sets: Cache<DaemonSet>,
    /// Where the API server answers.
    pub api_server: Cache<EndpointSlice>,
    /// Ranges of Services' addresses, as the operator was started with.
    pub service_cidrs: Vec<IpNet>,
    /// The same, as the cluster tells.
    pub service_ranges: Cache<ServiceCIDR>,
    /// What was last written about forwards whose newest form, status included, cannot be read, by uid.
    pub told: BTreeMap<String, PortForwardStatus>,
    /// Which repairs of somebody's changes were told.
    pub drifts: Drifts,
    /// Whether all this is for an uninstallation.
    pub uninstalling: bool,
}

/// Something that was seen: takes itself into the world, and says whether it may matter to a decision.
pub type Change = Box<dyn FnOnce(&mut World) -> bool + Send>;

impl World {
    /// What is not known yet, and why; empty when everything is.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        note(&mut missing, "portforwards", &self.forwards);
        note(&mut missing, "gatewaypools", &self.pools);
        note(&mut missing, "forwardslices", &self.slices);
        note(&mut missing, "gatewaynodes", &self.gateways);
        note(&mut missing, "nodes", &self.nodes);
        note(&mut missing, "namespaces", &self.namespaces);
        note(&mut missing, "leases", &self.leases);
        note(&mut missing, "daemonsets", &self.daemon_sets);
        note(&mut missing, "endpointslices of the API server", &self.api_server);
        note(&mut missing, "servicecidrs", &self.service_ranges);
        missing
    }

    /// Networks that no target may be in: the API server's addresses and the Services'.
    pub fn forbidden(&self) -> Vec<IpNet> {
        let servers = self.api_server.objects().flat_map(|slice| &slice.endpoints).flat_map(|end| &end.addresses);
        let servers = servers.filter_map(|ip| ip.parse::<IpAddr>().ok()).map(IpNet::from);
        let ranges = self.service_ranges.objects().filter_map(|range| range.spec.as_ref()).flat_map(|spec| &spec.cidrs);
        let servers = servers.chain(self.service_cidrs.iter().copied());
        servers.chain(ranges.flatten().filter_map(|cidr| cidr.parse().ok())).collect()
    }
}

fn note<K: Resource<DynamicType = ()> + Clone>(missing: &mut Vec<String>, what: &str, cache: &Cache<K>) {
    if !cache.is_complete() {
        missing.push(format!("{what}: {}", cache.trouble().unwrap_or("not listed yet")));
    }
}

/// Watches all of it, for ever. `namespace` is the one that the agents run in.
pub fn watch(client: &Client, namespace: &str) -> BoxStream<'static, Change> {
    let all = Config::default;
    let named = |name: &str| all().fields(&format!("metadata.name={name}"));
    let ours = all().labels(&format!("app.kubernetes.io/name={AGENT_NAME}"));
    let server = all().labels("kubernetes.io/service-name=kubernetes");
    stream::select_all([
        follow(Api::all(client.clone()), all(), |world| &mut world.forwards),
        follow(Api::all(client.clone()), all(), |world| &mut world.pools),
        follow(Api::all(client.clone()), all(), |world| &mut world.slices),
        follow(Api::all(client.clone()), all(), |world| &mut world.gateways),
        follow(Api::all(client.clone()), all(), |world| &mut world.nodes),
        follow(Api::all(client.clone()), all(), |world| &mut world.namespaces),
        follow(Api::namespaced(client.clone(), namespace), ours, |world| &mut world.leases),
        follow(Api::namespaced(client.clone(), namespace), named(AGENT_NAME), |world| &mut world.daemon_sets),
        follow(Api::namespaced(client.clone(), "default"), server, |world| &mut world.api_server),
        follow(Api::all(client.clone()), all(), |world| &mut world.service_ranges),
    ])
    .boxed()
}

fn follow<K>(
    api: Api<DeserializeGuard<K>>,
    config: Config,
    cache: fn(&mut World) -> &mut Cache<K>,
) -> BoxStream<'static, Change>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    watcher(api, config.timeout(WATCH_SECONDS))
        .backoff(WatchBackoff(Backoff::new(FIRST_WAIT, LONGEST_WAIT).calm_after(WITHOUT_FAILURE)))
        .map(move |event| -> Change {
            Box::new(move |world| {
                let ranges = K::plural(&()) == "servicecidrs";
                if ranges && event.as_ref().is_err_and(is_missing) && !world.service_ranges.is_complete() {
                    tell_unknown_ranges(&world.service_cidrs);
                }
                let optional = ranges || (world.uninstalling && K::plural(&()) != "gatewaynodes");
                take(cache(world), event, optional)
            })
        })
        .boxed()
}

/// `optional` for a kind that the cluster may not have: Kubernetes before 1.33 has no other way to ask for the range of
/// Services, and an uninstallation can do without the kinds that somebody has deleted already, but for the one by
/// which agents are told to clean up.
fn take<K>(
    cache: &mut Cache<K>,
    event: Result<watcher::Event<DeserializeGuard<K>>, watcher::Error>,
    optional: bool,
) -> bool
where
    K: Resource<DynamicType = ()> + Clone,
{
    let kind = K::plural(&());
    // Signs of life come all the time; whether one stays away is looked at by the clock.
    let unasked = kind == "leases" && cache.is_complete();
    match event {
        Ok(event) => cache.feed(event) && !unasked,
        Err(error) if optional && is_missing(&error) => cache.does_not_exist(),
        Err(error) => {
            let error = error.to_string();
            if cache.failed(&error) {
                tracing::warn!(kind = %kind, error, "cannot watch; what is known of it may be old");
            }
            false
        }
    }
}

fn tell_unknown_ranges(given: &[IpNet]) {
    if given.is_empty() {
        tracing::warn!(
            "this cluster does not tell the ranges of its Services, as Kubernetes does from 1.33 on, so targets in them are not \
             refused: set serviceCIDRs of the chart"
        );
    }
}

fn is_missing(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.is_not_found())
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
    /// Called for every event, and a list begins with one that needs no answer: that is no sign of health.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use kube::runtime::watcher::Event;
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::fixture::{api_server, guard, respond};

    #[test]
    fn a_sign_of_life_is_no_reason_to_decide_but_the_first_list_is() {
        let lease = |revision: &str| guard(json!({ "metadata": { "name": "gw1", "resourceVersion": revision } }));
        let mut leases = Cache::<Lease>::default();
        let mut see = |event| take(&mut leases, Ok(event), false);
        assert!(!see(Event::Init) && !see(Event::InitApply(lease("1"))));
        assert!(see(Event::InitDone), "now that is known, too");
        assert!(!see(Event::Apply(lease("2"))));

        let mut nodes = Cache::<Node>::default();
        let mut see = |event| take(&mut nodes, Ok(event), false);
        assert!(see(Event::InitDone) && see(Event::Apply(guard(json!({ "metadata": { "name": "gw1" } })))));
    }

    #[test]
    fn ranges_of_services_are_those_that_were_given_and_those_that_the_cluster_tells() {
        let given: IpNet = "10.96.0.0/16".parse().unwrap();
        let mut world = World { service_cidrs: vec![given], ..World::default() };
        assert!(world.service_ranges.does_not_exist());
        assert_eq!(world.forbidden(), [given]);
        let told =
            guard(json!({ "metadata": { "name": "kubernetes" }, "spec": { "cidrs": ["10.97.0.0/16", "fd00::/108"] } }));
        for event in [Event::Init, Event::InitApply(told), Event::InitDone] {
            world.service_ranges.feed(event);
        }
        let more = ["10.97.0.0/16", "fd00::/108"].map(|cidr| cidr.parse().unwrap());
        assert_eq!(world.forbidden(), [&[given], &more[..]].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_refuses_is_asked_less_and_less_often_and_followed_once_it_answers() {
        for code in [429, 503] {
            let (client, mut requests) = api_server();
            let mut changes = watch(&client, "sallyport-system");
            let mut asked = BTreeMap::<String, u32>::new();
            let end = Instant::now() + Duration::from_mins(5);
            let serve = async {
                let mut watched = Vec::new();
                while let Some((request, send)) = requests.next_request().await {
                    let list = json!({ "metadata": { "resourceVersion": "1" }, "items": [] });
                    let busy = json!({ "kind": "Status", "status": "Failure", "code": code, "message": "too busy" });
                    match request.uri().query() {
                        _ if Instant::now() < end => {
                            *asked.entry(request.uri().path().to_owned()).or_default() += 1;
                            respond(send, code, &busy);
                        }
                        Some(query) if query.contains("watch=") => watched.push(send),
                        _ => respond(send, 200, &list),
                    }
                }
            };
            let mut world = World::default();
            let follow = async {
                while !world.missing().is_empty() {
                    changes.next().await.unwrap()(&mut world);
                }
            };
            tokio::select! { () = serve => {}, () = follow => {} }
            assert_eq!(world.missing(), Vec::<String>::new());
            assert!(Instant::now() >= end && end.elapsed() <= Duration::from_secs(4), "{:?} late", end.elapsed());
            assert_eq!(asked.len(), 10);
            // Every 4 s in the end.
            assert!(asked.values().all(|times| (60..90).contains(times)), "{code}: {asked:?} in 5 minutes");
        }
    }
}
