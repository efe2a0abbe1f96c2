//! All that is known of the cluster, and how what the watches say becomes part of it.
//!
//! What we have told others is not here: that is remembered by those who told it.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Resource;
use kube::runtime::watcher;
use sallyport_api::{ForwardSlice, GatewayNode, GatewayPool, PortForward};

use crate::controller::cache::Cache;
use crate::controller::guard::DeserializeGuard;

/// All that is known of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// What users ask.
    pub(crate) forwards: Cache<PortForward>,
    /// Who may ask what, and which nodes carry it.
    pub(crate) pools: Cache<GatewayPool>,
    /// What the agents were told to carry.
    pub(crate) slices: Cache<ForwardSlice>,
    /// How each gateway is configured, and what its agent reports.
    pub(crate) gateways: Cache<GatewayNode>,
    /// The nodes that can be gateways.
    pub(crate) nodes: Cache<Node>,
    /// Labels that grants select by.
    pub(crate) namespaces: Cache<Namespace>,
    /// The agents' signs of life.
    pub(crate) leases: Cache<Lease>,
    /// The one that runs the agents.
    pub(crate) daemon_sets: Cache<DaemonSet>,
    /// Where the API server answers.
    pub(crate) api_server: Cache<EndpointSlice>,
    /// Ranges of Services' addresses, as the operator was started with.
    pub(crate) service_cidrs: Vec<IpNet>,
    /// The same, as the cluster tells.
    pub(crate) service_ranges: Cache<ServiceCIDR>,
    /// Resources that can be done without where somebody has deleted their definition.
    pub(crate) dispensable: &'static [&'static str],
}

/// What a watch says of one kind: an event, or why it does not work.
pub(crate) type Watched<K> = Box<Result<watcher::Event<DeserializeGuard<K>>, watcher::Error>>;

/// Something that was seen.
#[derive(Debug)]
pub(crate) enum Change {
    /// Of a forward.
    Forward(Watched<PortForward>),
    /// Of a pool.
    Pool(Watched<GatewayPool>),
    /// Of a slice.
    Slice(Watched<ForwardSlice>),
    /// Of the configuration of a node, or of what its agent reports.
    Gateway(Watched<GatewayNode>),
    /// Of a node.
    Node(Watched<Node>),
    /// Of a namespace.
    Namespace(Watched<Namespace>),
    /// Of an agent's sign of life.
    Lease(Watched<Lease>),
    /// Of the one that runs the agents.
    DaemonSet(Watched<DaemonSet>),
    /// Of the API server's addresses.
    ApiServer(Watched<EndpointSlice>),
    /// Of the ranges of Services' addresses.
    ServiceRange(Watched<ServiceCIDR>),
}

impl Store {
    /// Takes in what was seen; whether it may matter to a decision.
    pub(crate) fn observe(&mut self, change: Change) -> bool {
        let dispensable = self.dispensable;
        match change {
            Change::Forward(seen) => take(&mut self.forwards, *seen, dispensable),
            Change::Pool(seen) => take(&mut self.pools, *seen, dispensable),
            Change::Slice(seen) => take(&mut self.slices, *seen, dispensable),
            Change::Gateway(seen) => take(&mut self.gateways, *seen, dispensable),
            Change::Node(seen) => take(&mut self.nodes, *seen, dispensable),
            Change::Namespace(seen) => take(&mut self.namespaces, *seen, dispensable),
            Change::Lease(seen) => take(&mut self.leases, *seen, dispensable),
            Change::DaemonSet(seen) => take(&mut self.daemon_sets, *seen, dispensable),
            Change::ApiServer(seen) => take(&mut self.api_server, *seen, dispensable),
            Change::ServiceRange(seen) => {
                if seen.as_ref().as_ref().is_err_and(is_missing) && !self.service_ranges.is_complete() {
                    warn_of_unknown_ranges(&self.service_cidrs);
                }
                // Kubernetes before 1.33 has no other way to ask for the range of Services.
                take(&mut self.service_ranges, *seen, &["servicecidrs"])
            }
        }
    }

    /// What is not known yet, and why; empty when everything is.
    pub(crate) fn missing(&self) -> Vec<String> {
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
    pub(crate) fn forbidden(&self) -> Vec<IpNet> {
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

/// Takes in what the watch of one kind says. The cluster may have none of the resources that are `dispensable`.
fn take<K>(
    cache: &mut Cache<K>,
    seen: Result<watcher::Event<DeserializeGuard<K>>, watcher::Error>,
    dispensable: &[&str],
) -> bool
where
    K: Resource<DynamicType = ()> + Clone,
{
    let kind = K::plural(&());
    // Signs of life come all the time; whether one stays away is looked at by the clock.
    let unasked = kind == "leases" && cache.is_complete();
    match seen {
        Ok(event) => cache.feed(event) && !unasked,
        Err(error) if dispensable.contains(&&*kind) && is_missing(&error) => cache.does_not_exist(),
        Err(error) => {
            let error = error.to_string();
            if cache.failed(&error) {
                tracing::warn!(kind = %kind, error, "cannot watch; what is known of it may be old");
            }
            false
        }
    }
}

fn warn_of_unknown_ranges(given: &[IpNet]) {
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

#[cfg(test)]
mod tests;
