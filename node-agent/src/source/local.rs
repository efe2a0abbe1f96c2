//! Objects of manifests → intents of this one host: the operator's decision, made without a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sallyport_api::forward_slice::ForwardSliceSpec;
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_api::gateway_pool::{
    FirewallBackend, GatewayPoolSpec, Grant, GrantPort, IpForward, Listen, ListenAddress, ListenAddressType,
};
use sallyport_api::names::DEFAULT_POOL;
use sallyport_api::{Protocol, SourceNatMode};
use sallyport_ruleset::decide::{Forward, Node, Observed, PoolObject, Verdict, decide};

use crate::manifest::{Identity, Object};
use crate::source::directory::FileProblem;
use crate::state::Intents;

/// Decides upon `objects`, each with the name of its file, for a host with these addresses.
///
/// `held` are the slices of the last decision. With no pool among the objects a default one grants everything, unless
/// a pool is there but not understood (`broken_pool` names its file): then nothing new is granted, and what is held stays.
#[must_use]
pub fn decide_here(
    objects: &[(&str, &Object)],
    node_name: &str,
    addresses: Vec<IpAddr>,
    held: &BTreeMap<String, ForwardSliceSpec>,
    broken_pool: Option<&str>,
) -> (Intents, Vec<FileProblem>) {
    let mut problems = Vec::new();
    let mut files = BTreeMap::new();
    let (mut forwards, mut pools, mut namespaces) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (file, object) in objects {
        match object {
            Object::Forward(key, spec) => {
                files.insert(object.identity(), *file);
                forwards.push(Forward {
                    key: key.clone(),
                    // Without an API server nobody gives out uids; the name is as lasting as the file.
                    uid: key.to_string(),
                    generation: 1,
                    created: 0,
                    spec: Arc::clone(spec),
                });
            }
            Object::Pool(name, spec) => {
                files.insert(object.identity(), *file);
                pools.push(PoolObject { name: name.clone(), created: 0, spec: spec.clone() });
            }
            Object::Namespace(name, labels) => {
                namespaces.insert(name.clone(), labels.clone());
            }
        }
    }
    if pools.is_empty() {
        if let Some(broken) = broken_pool {
            let holders: BTreeSet<&str> =
                held.values().flat_map(|slice| &slice.forwards).map(|f| f.uid.as_str()).collect();
            forwards.retain(|forward| {
                holders.contains(forward.uid.as_str()) || {
                    let object = Identity(format!("PortForward {}", forward.key));
                    let message = format!("spec.pool: the GatewayPool in {broken:?} has problems; mend it first");
                    let file = files.get(&object).map_or("", |file| *file).to_owned();
                    problems.push(FileProblem { file, object: Some(object.0), message });
                    false
                }
            });
        }
        pools.push(PoolObject { name: DEFAULT_POOL.to_owned(), created: 0, spec: open_pool() });
    }
    let nodes = [Node { name: node_name.to_owned(), labels: None, addresses }];
    let mut decision = decide(&Observed {
        forwards: &forwards,
        pools: &pools,
        namespaces: &namespaces,
        nodes: &nodes,
        slices: held,
        // One host changes all its rules in one step and belongs to no cluster.
        leaving: &[],
        unknown: &BTreeSet::new(),
        forbidden: &[],
    });

    let mut report = |object: String, found: &[sallyport_ruleset::validate::Problem]| {
        let file = files.get(&Identity(object.clone())).map_or("", |file| *file);
        problems.extend(found.iter().map(|problem| FileProblem {
            file: file.to_owned(),
            object: Some(object.clone()),
            message: format!("{problem} ({:?})", problem.reason),
        }));
    };
    for (name, found) in &decision.pools {
        report(format!("GatewayPool {name}"), found);
    }
    for (key, verdict) in &decision.forwards {
        if let Verdict::Refused(found) = verdict {
            report(format!("PortForward {key}"), found);
        }
    }
    let node = decision.nodes.remove(node_name).unwrap_or_else(|| GatewayNodeSpec {
        pool: DEFAULT_POOL.to_owned(),
        state: NodeState::Active,
        addresses: Vec::new(),
        listen_cidrs: Vec::new(),
        ip_forward: IpForward::default(),
        backend: FirewallBackend::default(),
        reserved_ports: Vec::new(),
    });
    decision.slices.retain(|_, slice| slice.pool == node.pool);
    (Intents { node, slices: decision.slices }, problems)
}

/// The pool of a host whose admin wrote none: whoever may write manifests may forward anything that is not always
/// refused.
fn open_pool() -> GatewayPoolSpec {
    let any = || vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()];
    GatewayPoolSpec {
        node_selector: LabelSelector::default(),
        listen: Listen { addresses: vec![ListenAddress { r#type: ListenAddressType::NodeInternalIp, value: None }] },
        ip_forward: IpForward::default(),
        firewall: sallyport_api::gateway_pool::Firewall::default(),
        reserved_ports: Vec::new(),
        grants: vec![Grant {
            name: "everything".to_owned(),
            namespace_selector: LabelSelector::default(),
            ports: [Protocol::Tcp, Protocol::Udp]
                .into_iter()
                .map(|protocol| GrantPort { protocol, port: 1, end_port: Some(65535) })
                .collect(),
            target_cidrs: any(),
            source_cidrs: any(),
            source_nat_modes: vec![SourceNatMode::Masquerade, SourceNatMode::Preserve],
            max_forwards: None,
        }],
    }
}

#[cfg(test)]
mod tests;
