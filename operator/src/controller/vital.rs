//! Which agents are heard of, and which nodes nobody waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use sallyport_api::names::{AGENT_LEASE_PREFIX, AGENT_LEASE_SECONDS};
use tokio::time::Instant;

use crate::controller::store::Store;

/// A node that is not ready for longer than this is not waited for.
pub const PATIENCE: Duration = Duration::from_mins(5);

/// Remembers when each agent was last heard of.
#[derive(Debug, Default)]
pub struct Pulse {
    heard: BTreeMap<String, (Option<MicroTime>, Instant)>,
    /// Whether nobody waits for silent agents either.
    pub gives_up: bool,
}

/// What is known of the gateways' lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vital {
    /// Nodes whose agent has not renewed its lease in time.
    pub silent: BTreeSet<String>,
    /// Nodes that never had an agent.
    pub unborn: BTreeSet<String>,
    /// Nodes that are gone, or have not been ready for [`PATIENCE`].
    pub dead: BTreeSet<String>,
}

impl Pulse {
    /// Looks at the leases and the nodes. By our own clock: an agent counts from when its renewal was seen.
    pub fn feel(&mut self, store: &Store, now: Timestamp) -> Vital {
        let mut leases = BTreeMap::new();
        for lease in store.leases.objects() {
            let name = lease.metadata.name.as_deref().unwrap_or_default();
            if let Some(node) = name.strip_prefix(AGENT_LEASE_PREFIX) {
                leases.insert(node.to_owned(), lease.spec.as_ref().and_then(|spec| spec.renew_time.clone()));
            }
        }
        // One that has reported was there, so its missing lease is as good as one that is not renewed.
        for gateway in store.gateways.objects().filter(|gateway| gateway.status.is_some()) {
            leases.entry(gateway.metadata.name.clone().unwrap_or_default()).or_default();
        }
        self.heard.retain(|node, _| leases.contains_key(node));
        for (node, renewed) in leases {
            let heard = self.heard.entry(node).or_insert_with(|| (renewed.clone(), Instant::now()));
            if heard.0 != renewed {
                *heard = (renewed, Instant::now());
            }
        }
        let lasts = Duration::from_secs(u64::try_from(AGENT_LEASE_SECONDS).unwrap_or_default());
        let mut vital = Vital::default();
        for gateway in store.gateways.objects() {
            let name = gateway.metadata.name.clone().unwrap_or_default();
            if store.nodes.get(&name).is_none_or(|node| is_dead(node, now)) {
                vital.dead.insert(name.clone());
            }
            match self.heard.get(&name) {
                Some((_, since)) if since.elapsed() < lasts => {}
                Some(_) => {
                    vital.silent.insert(name);
                }
                None => {
                    vital.unborn.insert(name);
                }
            }
        }
        if self.gives_up {
            vital.dead.extend(vital.silent.iter().chain(&vital.unborn).cloned());
        }
        vital
    }
}

fn is_dead(node: &Node, now: Timestamp) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    ready.filter(|ready| ready.status != "True").is_some_and(|ready| {
        let since = ready.last_transition_time.as_ref().map_or(now, |time| time.0);
        u64::try_from(now.duration_since(since).as_secs()).unwrap_or_default() > PATIENCE.as_secs()
    })
}

#[cfg(test)]
mod tests;
