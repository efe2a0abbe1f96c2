//! Which agents are heard of, and which nodes nobody waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use sallyport_api::id::NodeName;
use sallyport_api::names::{AGENT_LEASE_PREFIX, AGENT_LEASE_SECONDS};
use tokio::time::Instant;

use crate::controller::gateways::node_name;
use crate::controller::store::Store;

/// A node that is not ready for longer than this is not waited for.
const GONE_AFTER: Duration = Duration::from_mins(5);

/// Whether an agent gives signs of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agent {
    /// It has renewed its lease in time.
    Alive,
    /// It has not.
    Silent,
    /// There never was one.
    NeverStarted,
}

/// What is known of the gateways' lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Liveness {
    agents: BTreeMap<NodeName, Agent>,
    /// Nodes that are gone, or have not been ready for [`GONE_AFTER`], whatever their agents do.
    pub(crate) gone: BTreeSet<NodeName>,
}

impl Liveness {
    /// Whether the agent of a node has not renewed its lease in time.
    pub(crate) fn is_silent(&self, node: &NodeName) -> bool {
        self.agents.get(node) == Some(&Agent::Silent)
    }

    /// Whether a node never had an agent.
    pub(crate) fn never_started(&self, node: &NodeName) -> bool {
        self.agents.get(node) == Some(&Agent::NeverStarted)
    }
}

/// Remembers when each agent was last heard of.
#[derive(Debug, Default)]
pub(crate) struct LivenessTracker {
    renewals: BTreeMap<NodeName, (Option<MicroTime>, Instant)>,
    /// Whether a node counts as gone as soon as its agent does not answer.
    pub(crate) gives_up: bool,
}

impl LivenessTracker {
    /// Looks at the leases and the nodes. By our own clock: an agent counts from when its renewal was seen.
    pub(crate) fn track(&mut self, store: &Store, now: Timestamp) -> Liveness {
        let mut leases = BTreeMap::new();
        for lease in store.leases.objects() {
            let name = lease.metadata.name.as_deref().unwrap_or_default();
            if let Some(node) = name.strip_prefix(AGENT_LEASE_PREFIX) {
                leases.insert(NodeName::from(node), lease.spec.as_ref().and_then(|spec| spec.renew_time.clone()));
            }
        }
        // One that has reported was there, so its missing lease is as good as one that is not renewed.
        for gateway in store.gateways.objects().filter(|gateway| gateway.status.is_some()) {
            leases.entry(node_name(&gateway.metadata)).or_default();
        }
        self.renewals.retain(|node, _| leases.contains_key(node));
        for (node, renewed) in leases {
            let last = self.renewals.entry(node).or_insert_with(|| (renewed.clone(), Instant::now()));
            if last.0 != renewed {
                *last = (renewed, Instant::now());
            }
        }
        let lasts = Duration::from_secs(u64::try_from(AGENT_LEASE_SECONDS).unwrap_or_default());
        let mut liveness = Liveness::default();
        for gateway in store.gateways.objects() {
            let name = node_name(&gateway.metadata);
            let agent = match self.renewals.get(&name) {
                Some((_, since)) if since.elapsed() < lasts => Agent::Alive,
                Some(_) => Agent::Silent,
                None => Agent::NeverStarted,
            };
            let is_gone = store.nodes.get(name.as_str()).is_none_or(|node| is_gone(node, now));
            if is_gone || (self.gives_up && agent != Agent::Alive) {
                liveness.gone.insert(name.clone());
            }
            liveness.agents.insert(name, agent);
        }
        liveness
    }
}

fn is_gone(node: &Node, now: Timestamp) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    ready.filter(|ready| ready.status != "True").is_some_and(|ready| {
        let since = ready.last_transition_time.as_ref().map_or(now, |time| time.0);
        u64::try_from(now.duration_since(since).as_secs()).unwrap_or_default() > GONE_AFTER.as_secs()
    })
}

#[cfg(test)]
mod tests;
