//! A small cluster for tests: objects as JSON, an API server that takes every write, and agents that do what they are
//! told when a test says so.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeSet;

use kube::Resource;
use kube::runtime::watcher::Event;
use sallyport_api::gateway_node::{GatewayNode, GatewayNodeStatus, NodeState};
use sallyport_api::id::{Moment, NodeName, Uid};
use sallyport_api::names::{AGENT_LABEL, FINALIZER};
use sallyport_api::testing::Forward;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::controller::apply::writes;
use crate::controller::cache::Cache;
use crate::controller::decide::decide;
use crate::controller::desired::Desired;
use crate::controller::gateways::{is_clean, node_name};
use crate::controller::guard::DeserializeGuard;
use crate::controller::retention::Retention;
use crate::controller::rollout::{NodeReport, SliceRevisions};
use crate::controller::store::Store;
use crate::controller::uninstall;
use crate::controller::write::Write;

/// The uid of the forward called `name`, longer than the part of it that reports hold.
pub(crate) fn uid(name: &str) -> Uid {
    format!("{name:x<13}-0001").into()
}

/// A forward of the namespace `apps`.
pub(crate) fn forward(name: &str, port: u16) -> Value {
    let mut object = Forward::tcp(&format!("apps/{name}"), port).object();
    object["metadata"] = json!({
        "namespace": "apps", "name": name, "uid": uid(name), "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/other"],
    });
    object
}

/// A pool of the nodes with the label `gateway: <name>`, which grants everything to everybody.
pub(crate) fn pool(name: &str) -> Value {
    json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "GatewayPool",
        "metadata": { "name": name, "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": {
            "nodeSelector": { "matchLabels": { "gateway": name } },
            "grants": [{
                "name": "all", "namespaceSelector": {}, "ports": [{ "port": 1, "endPort": 65535 }],
                "targetCIDRs": ["10.0.0.0/8"], "sourceCIDRs": ["10.0.0.0/8"],
            }],
        },
    })
}

/// A node that is ready and that `pool` selects.
pub(crate) fn node(name: &str, pool: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "uid": format!("uid-of-{name}"), "labels": { "gateway": pool } },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": "10.30.1.78" }, { "type": "Hostname", "address": name }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// The condition `Synced` of a report.
pub(crate) fn synced(status: &str, reason: &str, message: &str, generation: i64) -> Value {
    json!({
        "type": "Synced", "status": status, "reason": reason, "message": message,
        "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

/// An object as a watch delivers it.
pub(crate) fn guard<K: DeserializeOwned + Resource>(object: Value) -> DeserializeGuard<K> {
    serde_json::from_value(object).unwrap()
}

/// A cluster.
#[derive(Default)]
pub(crate) struct Scene {
    pub(crate) store: Store,
    pub(crate) revisions: SliceRevisions,
    /// Nodes that nobody waits for.
    pub(crate) gone: BTreeSet<NodeName>,
    pub(crate) retention: Retention,
    /// Whether all this is to go.
    pub(crate) uninstalling: bool,
    /// What time it is.
    pub(crate) now: Moment,
    revision: u64,
}

impl Scene {
    /// The pool `default` with these nodes, and no forward.
    pub(crate) fn with_nodes(names: &[&str]) -> Self {
        let mut scene = Self::default();
        scene.see(pool("default"));
        for name in names {
            scene.see(node(name, "default"));
        }
        scene
    }

    /// As above with these forwards, everything settled and read back.
    pub(crate) fn settled(nodes: &[&str], forwards: &[(&str, u16)]) -> Self {
        let mut scene = Self::with_nodes(nodes);
        for (name, port) in forwards {
            scene.see(forward(name, *port));
        }
        scene.settle();
        scene
    }

    /// An object was created or changed.
    pub(crate) fn see(&mut self, mut object: Value) {
        fn put<K: Resource<DynamicType = ()> + Clone + DeserializeOwned>(cache: &mut Cache<K>, object: Value) {
            cache.feed(Event::Apply(guard(object)));
        }
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let store = &mut self.store;
        match object["kind"].as_str().unwrap() {
            "PortForward" => put(&mut store.forwards, object),
            "GatewayPool" => put(&mut store.pools, object),
            "ForwardSlice" => put(&mut store.slices, object),
            "GatewayNode" => put(&mut store.gateways, object),
            "Node" => put(&mut store.nodes, object),
            "Lease" => put(&mut store.leases, object),
            "EndpointSlice" => put(&mut store.api_server, object),
            "ServiceCIDR" => put(&mut store.service_ranges, object),
            other => panic!("no cache for {other}"),
        }
    }

    /// The forward as it is now.
    pub(crate) fn forward(&self, name: &str) -> Value {
        serde_json::to_value(self.store.forwards.entry("apps", name).unwrap().object().unwrap()).unwrap()
    }

    /// A user deletes a forward.
    pub(crate) fn delete_forward(&mut self, name: &str) {
        let mut object = self.forward(name);
        object["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z".into();
        self.see(object);
    }

    /// The configuration and report of a node as they are now.
    pub(crate) fn gateway(&self, name: &str) -> GatewayNode {
        GatewayNode::clone(self.store.gateways.get(name).unwrap())
    }

    /// The agent on a node reports this.
    pub(crate) fn report(&mut self, name: &str, status: GatewayNodeStatus) {
        let mut gateway = self.gateway(name);
        gateway.status = Some(status);
        self.see(serde_json::to_value(gateway).unwrap());
    }

    /// What the agent on a node reports when it has done all that it was told.
    pub(crate) fn done(&self, name: &str) -> GatewayNodeStatus {
        let gateway = self.gateway(name);
        let active = gateway.spec.state == NodeState::Active;
        let slices = self.store.slices.objects().filter(|slice| active && slice.spec.pool == gateway.spec.pool);
        let slices: Vec<Value> = slices
            .map(|slice| json!({ "name": slice.metadata.name, "generation": slice.metadata.generation, "hash": slice.spec.hash, "state": "Programmed" }))
            .collect();
        let generation = gateway.metadata.generation.unwrap();
        serde_json::from_value(json!({
            "state": if active { "Active" } else { "Cleaned" },
            "observedSlices": slices,
            "conditions": [synced("True", "Synced", "all slices", generation)],
            "addresses": gateway.spec.addresses.iter().map(|ip| json!({ "value": ip })).collect::<Vec<_>>(),
            "sourceAddresses": [{ "value": "10.30.1.78" }],
        }))
        .unwrap()
    }

    /// The agent on a node does what it was told, and reports it.
    pub(crate) fn obey(&mut self, name: &str) {
        self.report(name, self.done(name));
    }

    /// What should be.
    pub(crate) fn decide(&mut self) -> Desired {
        let nothing = GatewayNodeStatus::default();
        let gateways: Vec<GatewayNode> = self.store.gateways.objects().map(|gateway| (**gateway).clone()).collect();
        let reports: Vec<NodeReport<'_>> = gateways
            .iter()
            .map(|gateway| NodeReport {
                pool: &gateway.spec.pool,
                status: gateway.status.as_ref().unwrap_or(&nothing),
                gone: is_clean(gateway) || self.gone.contains(&node_name(&gateway.metadata)),
            })
            .collect();
        self.revisions.update(self.store.slices.objects(), &reports);
        if self.uninstalling {
            return uninstall::desired(&self.store, &self.revisions, &self.gone);
        }
        decide(&self.store, &self.revisions, &self.gone, self.retention, self.now)
    }

    /// One pass: decides, and the API server takes every write. Says which.
    pub(crate) fn pass(&mut self) -> Vec<String> {
        let desired = self.decide();
        writes(&self.store, &desired).into_iter().map(|write| self.serve(write)).collect()
    }

    /// Passes, and all agents obey, until nothing is written any more.
    pub(crate) fn settle(&mut self) {
        for _ in 0..20 {
            let names: Vec<String> =
                self.store.gateways.objects().map(|gateway| gateway.metadata.name.clone().unwrap()).collect();
            for name in names {
                self.obey(&name);
            }
            if self.pass().is_empty() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn serve(&mut self, write: Write) -> String {
        match write {
            Write::Slice(name, _, spec) => {
                let names: Vec<String> = spec.forwards.iter().map(|forward| forward.r#ref.name.clone()).collect();
                let old = self.store.slices.get(&name).and_then(|old| old.metadata.generation);
                self.see(json!({ "kind": "ForwardSlice", "apiVersion": "sallyport.dev/v1alpha1",
                    "metadata": { "name": name, "generation": old.unwrap_or_default() + 1 }, "spec": spec }));
                format!("slice {name} [{}]", names.join(" "))
            }
            Write::DeleteSlice(name) => {
                self.store.slices.deleted(&name);
                format!("delete slice {name}")
            }
            Write::Gateway(name, _, spec) => {
                let old = self.store.gateways.get(name.as_str());
                let generation = old.and_then(|old| old.metadata.generation).unwrap_or_default() + 1;
                let status = old.and_then(|old| old.status.clone());
                let said = format!("gateway {name} {:?} {}", spec.state, spec.pool);
                self.see(json!({ "kind": "GatewayNode", "apiVersion": "sallyport.dev/v1alpha1",
                    "metadata": { "name": name, "generation": generation }, "spec": spec, "status": status }));
                said
            }
            Write::DeleteGateway(name) => {
                self.store.gateways.deleted(name.as_str());
                format!("delete gateway {name}")
            }
            Write::Label(name, wanted) => {
                let mut node = serde_json::to_value(self.store.nodes.get(name.as_str()).unwrap()).unwrap();
                let labels = node["metadata"]["labels"].as_object_mut().unwrap();
                if wanted {
                    labels.insert(AGENT_LABEL.to_owned(), "".into());
                } else {
                    labels.remove(AGENT_LABEL);
                }
                self.see(node);
                format!("{} {name}", if wanted { "label" } else { "unlabel" })
            }
            Write::Finalizers(key, revision, list) => {
                let mut object = self.forward(&key.name);
                assert_eq!(object["metadata"]["resourceVersion"], revision, "a write must be to what was read");
                let held = list.iter().any(|finalizer| finalizer == FINALIZER);
                object["metadata"]["finalizers"] = list.into();
                self.see(object);
                format!("{} {}", if held { "hold" } else { "release" }, key.name)
            }
            Write::ForwardStatus(report) => panic!("a status of {}", report.key),
            Write::PoolStatus(name, _) => panic!("a status of {name}"),
            Write::Drift(event) => panic!("an event {:?}", event.note),
        }
    }
}

/// The requests that a client made with [`api_server`] sends, to be answered by hand.
pub(crate) type Requests =
    tower_test::mock::Handle<http::Request<kube::client::Body>, http::Response<kube::client::Body>>;

/// A client, and where its requests arrive.
pub(crate) fn api_server() -> (kube::Client, Requests) {
    let (service, requests) = tower_test::mock::pair();
    (kube::Client::new(service, "default"), requests)
}

/// Answers one request.
pub(crate) fn respond(to: tower_test::mock::SendResponse<http::Response<kube::client::Body>>, code: u16, body: &Value) {
    let body = kube::client::Body::from(serde_json::to_vec(body).unwrap());
    to.send_response(http::Response::builder().status(code).body(body).unwrap());
}
