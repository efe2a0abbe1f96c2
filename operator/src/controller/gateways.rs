//! How nodes join and leave: configuration before the agent, a clean kernel before it goes.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sallyport_api::gateway_node::{GatewayNode, GatewayNodeSpec, NodeState, ObservedNodeState};
use sallyport_api::gateway_pool::{FirewallBackend, IpForward};
use sallyport_api::id::NodeName;
use sallyport_api::names::{AGENT_LABEL, DEFAULT_POOL};

use crate::controller::store::Store;

/// What should be of the nodes.
#[derive(Debug, Default)]
pub(crate) struct Gateways {
    /// The configuration of every gateway, those included that are being cleaned.
    pub(crate) specs: BTreeMap<NodeName, GatewayNodeSpec>,
    /// Gateways that are clean, and can be forgotten.
    pub(crate) done: BTreeSet<NodeName>,
    /// Nodes that an agent shall run on.
    pub(crate) labelled: BTreeSet<NodeName>,
}

/// A node joins: configuration, then label. It leaves: retired, cleaned, label gone, configuration gone. The nodes of a
/// pool that is `frozen` stay as they are.
pub(crate) fn gateways(
    store: &Store,
    decided: BTreeMap<NodeName, GatewayNodeSpec>,
    frozen: impl Fn(&str) -> bool,
) -> Gateways {
    let mut gateways = Gateways::default();
    let retired = |spec: &GatewayNodeSpec| GatewayNodeSpec { state: NodeState::Retired, ..spec.clone() };
    for gateway in store.gateways.objects() {
        let name = node_name(&gateway.metadata);
        let spec = &gateway.spec;
        let clean = is_clean(gateway);
        let wanted = match decided.get(&name) {
            _ if frozen(&spec.pool) => spec.clone(),
            Some(wanted) if wanted.pool == spec.pool || clean => wanted.clone(),
            None if clean => {
                let label_is_gone = store.nodes.get(name.as_str()).is_none_or(|node| !has_label(node));
                if label_is_gone {
                    gateways.done.insert(name.clone());
                }
                spec.clone()
            }
            // It is cleaned before it leaves, and before it serves another pool.
            _ => retired(spec),
        };
        if !clean || decided.contains_key(&name) {
            gateways.labelled.insert(name.clone());
        }
        gateways.specs.insert(name, wanted);
    }
    for (name, spec) in decided {
        // Its agent runs already: the configuration has vanished and comes back.
        if store.nodes.get(name.as_str()).is_some_and(|node| has_label(node)) {
            gateways.labelled.insert(name.clone());
        }
        gateways.specs.entry(name).or_insert(spec);
    }
    // An agent runs where none is wanted and nothing says so: let it clean up before it goes.
    for node in store.nodes.objects().filter(|node| has_label(node)) {
        let name = node_name(&node.metadata);
        if let Entry::Vacant(vacant) = gateways.specs.entry(name) {
            gateways.labelled.insert(vacant.key().clone());
            vacant.insert(GatewayNodeSpec {
                pool: DEFAULT_POOL.to_owned(),
                state: NodeState::Retired,
                addresses: Vec::new(),
                listen_cidrs: Vec::new(),
                ip_forward: IpForward::default(),
                backend: FirewallBackend::default(),
                order: None,
                reserved_ports: Vec::new(),
            });
        }
    }
    gateways
}

/// Of a Node, or of the `GatewayNode` that is called like it.
pub(crate) fn node_name(meta: &ObjectMeta) -> NodeName {
    meta.name.as_deref().unwrap_or_default().into()
}

/// Whether a Node has the agent's label.
pub(crate) fn has_label(node: &Node) -> bool {
    node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(AGENT_LABEL))
}

/// Whether the agent reported that nothing of ours is left, in answer to the present configuration.
pub(crate) fn is_clean(gateway: &GatewayNode) -> bool {
    let retired = gateway.spec.state == NodeState::Retired;
    gateway.status.as_ref().filter(|_| retired).is_some_and(|status| {
        status.state == Some(ObservedNodeState::Cleaned)
            && status.conditions.iter().any(|condition| condition.observed_generation == gateway.metadata.generation)
    })
}

#[cfg(test)]
mod tests;
