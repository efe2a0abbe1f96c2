//! Objects of manifests → intents of this one host: the operator's decision, made without a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec};
use sallyport_api::gateway_node::{GatewayNodeSpec, NodeState};
use sallyport_api::gateway_pool::{
    FirewallBackend, GatewayPoolSpec, Grant, GrantPort, IpForward, Listen, ListenAddress, ListenAddressType,
};
use sallyport_api::id::{Moment, Uid};
use sallyport_api::names::DEFAULT_POOL;
use sallyport_api::{Mode, Protocol, SourceNatMode};
use sallyport_policy::decide::{Verdict, decide};
use sallyport_policy::observed::{Forward, Node, Observed, PoolObject};

use crate::intents::{Intents, sharing};
use crate::manifest::{Identity, Object};
use crate::source::directory::FileProblem;

/// What was decided.
#[derive(Debug, PartialEq)]
pub struct Decided {
    /// What this host shall do.
    pub intents: Intents,
    /// What is wrong with the objects, in no particular order.
    pub problems: Vec<FileProblem>,
    /// When forwards expire or did.
    pub expiries: Vec<Moment>,
}

/// Decides upon `objects`, each with the name of its file, for a host with these addresses, at `now`.
///
/// `first_seen` says since when forwards are there, those without it since now. `held` are the slices of the last decision. With no pool among the objects a default one grants everything, unless
/// a pool is there but not understood (`broken_pool` names its file): then nothing new is granted, and what is held stays.
#[must_use]
pub fn decide_here(
    objects: &[(&str, &Object)],
    node_name: &str,
    addresses: Vec<IpAddr>,
    held: &BTreeMap<String, Arc<ForwardSliceSpec>>,
    broken_pool: Option<&str>,
    first_seen: &BTreeMap<Uid, Moment>,
    now: Moment,
) -> Decided {
    let mut problems = Vec::new();
    let mut files = BTreeMap::new();
    let (mut forwards, mut pools, mut namespaces) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (file, object) in objects {
        match object {
            Object::Forward(key, spec) => {
                files.insert(object.identity(), *file);
                // Without an API server nobody gives out uids; the name is as lasting as the file.
                let uid = Uid::from(key.to_string());
                forwards.push(Forward {
                    key: key.clone(),
                    generation: 1,
                    created: first_seen.get(&uid).copied().unwrap_or(now),
                    uid,
                    spec: Ok(Arc::clone(spec)),
                });
            }
            Object::Pool(name, spec) => {
                files.insert(object.identity(), *file);
                pools.push(PoolObject { name: name.clone(), created: Moment::default(), spec: spec.clone() });
            }
            Object::Namespace(name, labels) => {
                namespaces.insert(name.clone(), labels.clone());
            }
        }
    }
    if pools.is_empty() {
        if let Some(broken) = broken_pool {
            let holders: BTreeMap<&Uid, Option<Moment>> = held
                .values()
                .flat_map(|slice| &slice.forwards)
                .map(|forward| (&forward.uid, forward.intent.expires_at))
                .collect();
            forwards.retain_mut(|forward| {
                if let Some(expiry) = holders.get(&forward.uid) {
                    // A grant that limited its lifetime is not there to be asked, so it expires as it would have.
                    let expiry = expiry.and_then(Moment::to_time);
                    if let (Some(expiry), Ok(spec)) = (expiry, &mut forward.spec) {
                        let spec = Arc::make_mut(spec);
                        spec.expires_at = spec.expires_at.take().into_iter().chain([expiry]).min();
                    }
                    true
                } else {
                    let object = Identity(format!("PortForward {}", forward.key));
                    let message = format!("spec.pool: the GatewayPool in {broken:?} has problems; mend it first");
                    let file = files.get(&object).map_or("", |file| *file).to_owned();
                    problems.push(FileProblem { file, object: Some(object.0), message });
                    false
                }
            });
        }
        pools.push(PoolObject { name: DEFAULT_POOL.to_owned(), created: Moment::default(), spec: open_pool() });
    }
    let slices = held.iter().map(|(name, slice)| (name.clone(), ForwardSliceSpec::clone(slice))).collect();
    let nodes = [Node { name: node_name.into(), labels: None, addresses }];
    let mut decision = decide(&Observed {
        forwards: &forwards,
        pools: &pools,
        namespaces: &namespaces,
        nodes: &nodes,
        slices: &slices,
        // One host changes all its rules in one step and belongs to no cluster.
        outgoing: &[],
        unknown: &BTreeSet::new(),
        forbidden: &[],
        now,
    });

    let mut report = |object: String, found: &[sallyport_policy::validate::Problem]| {
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
    let node = node_of(decision.nodes.remove(&node_name.into()), &pools);
    let ours = decision.slices.into_iter().filter(|(_, slice)| slice.pool == node.pool);
    let shared = |(name, slice): (String, ForwardSliceSpec)| {
        let slice = sharing(slice, held.get(&name));
        (name, slice)
    };
    let intents = Intents { slices: ours.map(shared).collect(), node };
    Decided { intents, problems, expiries: decision.expiries.into_values().collect() }
}

/// The forwards whose spec is not applied, for people.
#[must_use]
pub fn unapplied(objects: &[(&str, &Object)], intents: &Intents) -> Vec<String> {
    let held: BTreeSet<&ForwardRef> = intents.forwards().map(|forward| &forward.r#ref).collect();
    let note = |(_, object): &(&str, &Object)| match object {
        Object::Forward(key, spec) if spec.mode != Mode::Apply => {
            let stays =
                if held.contains(key) { "what this host carries for it stays" } else { "nothing is carried for it" };
            Some(format!("PortForward {key}: mode {:?}, so {stays}", spec.mode))
        }
        _ => None,
    };
    objects.iter().filter_map(note).collect()
}

/// What was decided of this host as a node. Each address that a lone host has is its own, and which these are changes without
/// anybody's deciding.
fn node_of(decided: Option<GatewayNodeSpec>, pools: &[PoolObject]) -> GatewayNodeSpec {
    let Some(node) = decided else {
        return GatewayNodeSpec {
            pool: DEFAULT_POOL.to_owned(),
            state: NodeState::Active,
            addresses: Vec::new(),
            listen_cidrs: Vec::new(),
            ip_forward: IpForward::default(),
            backend: FirewallBackend::default(),
            order: None,
            reserved_ports: Vec::new(),
        };
    };
    let chosen = pools.iter().find(|pool| pool.name == node.pool).map(|pool| &pool.spec.listen.addresses);
    let all = chosen.into_iter().flatten().any(|chosen| chosen.r#type == ListenAddressType::NodeInternalIp);
    let everything =
        || [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()].map(|ip| IpNet::new_assert(ip, 0));
    let listen_cidrs = if all { everything().to_vec() } else { node.listen_cidrs };
    GatewayNodeSpec { addresses: Vec::new(), listen_cidrs, ..node }
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
            max_lifetime: None,
        }],
    }
}

#[cfg(test)]
mod tests;
