//! From what should be to the writes that make it so; nothing is written that is so already.
//!
//! What should be is not decided here, and when a write may start is not either: `writer` does that.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use sallyport_api::forward_slice::{ForwardRef, ForwardSlice, ForwardSliceSpec};
use sallyport_api::gateway_node::{GatewayNode, GatewayNodeSpec};
use sallyport_api::gateway_pool::{GatewayPool, GatewayPoolStatus};
use sallyport_api::names::{AGENT_LABEL, FINALIZER, OPERATOR_NAME, POOL_LABEL};
use sallyport_api::port_forward::{PortForward, PortForwardStatus};
use serde_json::json;

use crate::controller::decide::{Desired, finalizers};
use crate::controller::drift;
use crate::controller::gateways::has_label;
use crate::controller::guard::DeserializeGuard;
use crate::controller::observe::World;

/// One request that changes one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Creates a slice, or changes the one that is at this resource version.
    Slice(String, Option<String>, ForwardSliceSpec),
    /// Deletes a slice that every node has emptied.
    DeleteSlice(String),
    /// Creates or changes the configuration of a node, which this uid of a Node owns.
    Gateway(String, String, GatewayNodeSpec),
    /// Forgets a node that is clean.
    DeleteGateway(String),
    /// Lets the agent run on a node, or not.
    Label(String, bool),
    /// Sets the finalizers of a forward that is at this resource version.
    Finalizers(ForwardRef, String, Vec<String>),
    /// Reports what became of a forward.
    ForwardStatus(Box<ForwardReport>),
    /// Reports what became of a pool.
    PoolStatus(String, Box<GatewayPoolStatus>),
    /// Tells what was put back on a gateway, under a name that it has once and for all.
    Drift(Box<Event>),
}

/// What became of a forward.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardReport {
    /// Which forward.
    pub key: ForwardRef,
    /// Its `metadata.uid`: another one of the same name is not meant.
    pub uid: String,
    /// Its status now.
    pub status: PortForwardStatus,
    /// Its status before.
    pub before: PortForwardStatus,
    /// Whether its newest form cannot be read.
    pub unreadable: bool,
}

/// What a write changes: two writes with the same target never run at once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(pub &'static str, pub String);

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.1)
    }
}

/// The answer to a write: takes itself into the world.
pub type Answer = Box<dyn FnOnce(&mut World) + Send>;

impl Write {
    /// What it changes.
    pub fn subject(&self) -> Subject {
        match self {
            Self::Slice(name, ..) | Self::DeleteSlice(name) => Subject("forwardslices", name.clone()),
            Self::Gateway(name, ..) | Self::DeleteGateway(name) => Subject("gatewaynodes", name.clone()),
            Self::Label(name, _) => Subject("nodes", name.clone()),
            Self::Finalizers(key, ..) => Subject("portforwards", key.to_string()),
            // One after the other: the first one's answer has the resource version that the other needs.
            Self::ForwardStatus(report) => Subject("portforwards", report.key.to_string()),
            Self::PoolStatus(name, _) => Subject("gatewaypools", name.clone()),
            Self::Drift(event) => Subject("events", event.metadata.name.clone().unwrap_or_default()),
        }
    }

    /// The resource of the API that it is sent to.
    pub fn resource(&self) -> &'static str {
        match self {
            Self::ForwardStatus(_) => "portforwards/status",
            Self::PoolStatus(..) => "gatewaypools/status",
            _ => self.subject().0,
        }
    }

    /// Whether its answer can change a decision: a status of ours cannot, nor an event.
    pub fn matters(&self) -> bool {
        !matches!(self, Self::ForwardStatus(..) | Self::PoolStatus(..) | Self::Drift(..))
    }

    /// Sends it.
    pub async fn send(self, client: Client) -> Result<Answer, kube::Error> {
        let apply = PatchParams::apply(OPERATOR_NAME).force();
        let merge = PatchParams { field_manager: Some(OPERATOR_NAME.into()), ..PatchParams::default() };
        match self {
            Self::Slice(name, revision, spec) => {
                let labels = BTreeMap::from([(POOL_LABEL.to_owned(), spec.pool.clone())]);
                let mut slice = ForwardSlice::new(&name, spec);
                slice.metadata.labels = Some(labels);
                let api = Api::<DeserializeGuard<ForwardSlice>>::all(client.clone());
                // Whoever led before may still have a write under way: what it was decided upon must be what is there.
                let new = if revision.is_some() {
                    slice.metadata.resource_version = revision;
                    api.patch(&name, &apply, &Patch::Apply(&slice)).await?
                } else {
                    let params = PostParams { field_manager: Some(OPERATOR_NAME.into()), ..PostParams::default() };
                    DeserializeGuard(Ok(Api::<ForwardSlice>::all(client).create(&params, &slice).await?))
                };
                Ok(Box::new(|world| world.slices.wrote(new)))
            }
            Self::DeleteSlice(name) => {
                Api::<ForwardSlice>::all(client).delete(&name, &DeleteParams::default()).await?;
                Ok(Box::new(move |world| world.slices.deleted(&name)))
            }
            Self::Gateway(name, owner, spec) => {
                let mut gateway = GatewayNode::new(&name, spec);
                gateway.metadata.owner_references = Some(vec![owner_of(&name, owner)]);
                let new = Api::<DeserializeGuard<GatewayNode>>::all(client)
                    .patch(&name, &apply, &Patch::Apply(&gateway))
                    .await?;
                Ok(Box::new(|world| world.gateways.wrote(new)))
            }
            Self::DeleteGateway(name) => {
                Api::<GatewayNode>::all(client).delete(&name, &DeleteParams::default()).await?;
                Ok(Box::new(move |world| world.gateways.deleted(&name)))
            }
            Self::Label(name, wanted) => {
                let api = Api::<DeserializeGuard<Node>>::all(client);
                let new = if wanted {
                    let labels = BTreeMap::from([(AGENT_LABEL.to_owned(), String::new())]);
                    let node = Node {
                        metadata: ObjectMeta { labels: Some(labels), ..ObjectMeta::default() },
                        ..Node::default()
                    };
                    api.patch(&name, &apply, &Patch::Apply(&node)).await?
                } else {
                    // Also takes away one that somebody else put there.
                    let gone = json!({ "metadata": { "labels": { AGENT_LABEL: null } } });
                    api.patch(&name, &merge, &Patch::Merge(&gone)).await?
                };
                Ok(Box::new(|world| world.nodes.wrote(new)))
            }
            Self::Finalizers(key, revision, wanted) => {
                let api = Api::<DeserializeGuard<PortForward>>::namespaced(client, &key.namespace);
                let patch = json!({ "metadata": { "resourceVersion": revision, "finalizers": wanted } });
                let new = api.patch(&key.name, &merge, &Patch::Merge(&patch)).await?;
                Ok(Box::new(|world| world.forwards.wrote(new)))
            }
            Self::ForwardStatus(report) => {
                let ForwardReport { key, uid, status, unreadable, .. } = *report;
                let api = Api::<DeserializeGuard<PortForward>>::namespaced(client, &key.namespace);
                let patch = json!({
                    "apiVersion": PortForward::api_version(&()),
                    "kind": PortForward::kind(&()),
                    "metadata": { "uid": uid },
                    "status": status,
                });
                // Applying takes an object that is of its schema, which one that cannot be read is not: replace its status.
                let new = if unreadable {
                    let whole = json!([
                        { "op": "test", "path": "/metadata/uid", "value": uid },
                        { "op": "add", "path": "/status", "value": status },
                    ]);
                    let whole = serde_json::from_value(whole).expect("these are operations of a JSON patch");
                    api.patch_status(&key.name, &merge, &Patch::<()>::Json(whole)).await?
                } else {
                    api.patch_status(&key.name, &apply, &Patch::Apply(&patch)).await?
                };
                Ok(Box::new(move |world| {
                    if new.0.is_err() {
                        world.told.insert(uid, status);
                    } else {
                        world.told.remove(&uid);
                    }
                    world.forwards.wrote(new);
                }))
            }
            Self::PoolStatus(name, status) => {
                let patch = json!({
                    "apiVersion": GatewayPool::api_version(&()),
                    "kind": GatewayPool::kind(&()),
                    "status": status,
                });
                let new = Api::<DeserializeGuard<GatewayPool>>::all(client)
                    .patch_status(&name, &apply, &Patch::Apply(&patch))
                    .await?;
                Ok(Box::new(|world| world.pools.wrote(new)))
            }
            Self::Drift(event) => {
                drift::tell(client, &event).await?;
                Ok(Box::new(|world| world.drifts.told(*event)))
            }
        }
    }
}

fn owner_of(node: &str, uid: String) -> OwnerReference {
    OwnerReference {
        api_version: Node::api_version(&()).into_owned(),
        kind: Node::kind(&()).into_owned(),
        name: node.to_owned(),
        uid,
        ..OwnerReference::default()
    }
}

/// The writes of what the agents act upon, in the order in which they should start.
pub fn writes(world: &World, desired: &Desired) -> Vec<Write> {
    let mut writes = Vec::new();
    slice_writes(world, desired, &mut writes);
    for (name, spec) in &desired.gateways {
        if desired.done_gateways.contains(name) {
            writes.push(Write::DeleteGateway(name.clone()));
            continue;
        }
        let Some(uid) = world.nodes.get(name).and_then(|node| node.metadata.uid.clone()) else { continue };
        if world.gateways.get(name).is_none_or(|gateway| gateway.spec != *spec) {
            writes.push(Write::Gateway(name.clone(), uid, spec.clone()));
        }
    }
    for node in world.nodes.objects() {
        let name = node.metadata.name.clone().unwrap_or_default();
        let wanted = desired.labelled.contains(&name);
        if wanted != has_label(node) {
            writes.push(Write::Label(name, wanted));
        }
    }
    for (key, held) in in_turn(holds(desired).collect(), |(key, _)| key) {
        writes.extend(finalizer_write(world, key, held));
    }
    writes
}

/// Forwards whose finalizer has to come or to go.
fn holds(desired: &Desired) -> impl Iterator<Item = (&ForwardRef, bool)> {
    let hold = desired.to_hold.iter().map(|key| (key, true));
    hold.chain(desired.to_release.iter().map(|key| (key, false)))
}

/// Lets namespaces take turns: one with thousands of forwards must not hold up the others.
pub fn in_turn<T>(items: Vec<T>, key: impl Fn(&T) -> &ForwardRef) -> Vec<T> {
    let mut turns: BTreeMap<String, usize> = BTreeMap::new();
    let mut ranked = Vec::with_capacity(items.len());
    for item in items {
        let turn = turns.entry(key(&item).namespace.clone()).or_default();
        *turn += 1;
        ranked.push((*turn, item));
    }
    ranked.sort_by_key(|(turn, _)| *turn);
    ranked.into_iter().map(|(_, item)| item).collect()
}

fn slice_writes(world: &World, desired: &Desired, writes: &mut Vec<Write>) {
    let current: BTreeMap<&str, &ForwardSliceSpec> =
        world.slices.objects().map(|slice| (slice.metadata.name.as_deref().unwrap_or_default(), &slice.spec)).collect();
    let has = |slice: &str, uid: &str| {
        current.get(slice).is_some_and(|slice| slice.forwards.iter().any(|forward| forward.uid == uid))
    };
    let homes: BTreeMap<&str, &str> = desired
        .slices
        .iter()
        .flat_map(|(name, slice)| slice.forwards.iter().map(move |forward| (forward.uid.as_str(), name.as_str())))
        .collect();
    for (name, spec) in &desired.slices {
        if desired.done_slices.contains(name) {
            writes.push(Write::DeleteSlice(name.clone()));
            continue;
        }
        let Some(now) = current.get(name.as_str()) else {
            writes.push(Write::Slice(name.clone(), None, spec.clone()));
            continue;
        };
        // A forward that moves is in its new slice before it leaves the old one, so that no node ever misses it.
        let moving = now.forwards.iter().any(|forward| {
            homes.get(forward.uid.as_str()).is_some_and(|home| home != name && !has(home, &forward.uid))
        });
        if *now != spec && !moving {
            let revision = world.slices.get(name).and_then(|slice| slice.metadata.resource_version.clone());
            writes.push(Write::Slice(name.clone(), revision, spec.clone()));
        }
    }
}

fn finalizer_write(world: &World, key: &ForwardRef, wanted: bool) -> Option<Write> {
    let entry = world.forwards.entry(&key.namespace, &key.name)?;
    let mut list = finalizers(entry).to_vec();
    list.retain(|finalizer| finalizer != FINALIZER);
    if wanted {
        list.push(FINALIZER.to_owned());
    }
    Some(Write::Finalizers(key.clone(), entry.meta().resource_version.clone()?, list))
}

#[cfg(test)]
mod tests;
