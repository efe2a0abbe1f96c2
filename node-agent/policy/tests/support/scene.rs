//! A scene: manifests and nodes as YAML, decided upon.
//!
//! What is expected of the result is not here but in the tests that use it.
#![allow(dead_code, reason = "each test uses what it needs")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sallyport_api::forward_slice::{ForwardRef, ForwardSliceSpec};
use sallyport_api::{GatewayPool, Moment, NodeName, PortForward};
use sallyport_policy::decide::{Decision, decide};
use sallyport_policy::observed::{Forward, Node, Observed, Outgoing, PoolObject};
use sallyport_policy::pool::Labels;
use serde::Deserialize;
use serde_json::Value;

/// Everything that a decision and a compilation depend on.
pub struct Scene {
    pub forwards: Vec<Forward>,
    pub pools: Vec<PoolObject>,
    pub namespaces: BTreeMap<String, Labels>,
    pub nodes: Vec<NodeFile>,
    pub slices: BTreeMap<String, ForwardSliceSpec>,
    pub outgoing: Vec<Outgoing>,
    pub unknown: BTreeSet<String>,
    pub forbidden: Vec<IpNet>,
    pub now: Moment,
}

/// A node as `node.yaml` describes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeFile {
    pub name: NodeName,
    /// Absent for a lone host.
    #[serde(default)]
    pub labels: Option<Labels>,
    /// Addresses that pools may choose from.
    pub listen: Vec<IpAddr>,
    /// Addresses on its interfaces, each with the prefix length of its network.
    pub local: Vec<String>,
}

impl Scene {
    /// Reads the documents of `manifests` and of `nodes`.
    pub fn parse(manifests: &str, nodes: &str) -> Self {
        let mut scene = Self {
            forwards: Vec::new(),
            pools: Vec::new(),
            namespaces: BTreeMap::new(),
            nodes: serde_saphyr::from_multiple(nodes).unwrap(),
            slices: BTreeMap::new(),
            outgoing: Vec::new(),
            unknown: BTreeSet::new(),
            forbidden: Vec::new(),
            now: Moment::default(),
        };
        for document in serde_saphyr::from_multiple::<Value>(manifests).unwrap() {
            match document["kind"].as_str().unwrap() {
                "PortForward" => scene.forwards.push(forward(serde_json::from_value(document).unwrap())),
                "GatewayPool" => scene.pools.push(pool(serde_json::from_value(document).unwrap())),
                "Namespace" => {
                    let name = document["metadata"]["name"].as_str().unwrap().to_owned();
                    let mut labels: Labels =
                        serde_json::from_value(document["metadata"]["labels"].clone()).unwrap_or_default();
                    labels.insert("kubernetes.io/metadata.name".into(), name.clone());
                    scene.namespaces.insert(name, labels);
                }
                other => panic!("a scene has no {other}"),
            }
        }
        scene
    }

    pub fn decide(&self) -> Decision {
        let nodes: Vec<Node> = self
            .nodes
            .iter()
            .map(|node| Node { name: node.name.clone(), labels: node.labels.clone(), addresses: node.listen.clone() })
            .collect();
        decide(&Observed {
            forwards: &self.forwards,
            pools: &self.pools,
            namespaces: &self.namespaces,
            nodes: &nodes,
            slices: &self.slices,
            outgoing: &self.outgoing,
            unknown: &self.unknown,
            forbidden: &self.forbidden,
            now: self.now,
        })
    }
}

fn forward(object: PortForward) -> Forward {
    let namespace = object.metadata.namespace.unwrap_or_else(|| "default".into());
    let name = object.metadata.name.unwrap();
    Forward {
        uid: object.metadata.uid.unwrap_or_else(|| format!("{namespace}/{name}")).into(),
        key: ForwardRef { namespace, name },
        generation: object.metadata.generation.unwrap_or(1),
        created: object.metadata.creation_timestamp.as_ref().map(Moment::from).unwrap_or_default(),
        spec: Ok(object.spec.into()),
    }
}

fn pool(object: GatewayPool) -> PoolObject {
    PoolObject {
        name: object.metadata.name.unwrap(),
        created: object.metadata.creation_timestamp.as_ref().map(Moment::from).unwrap_or_default(),
        spec: object.spec,
    }
}
