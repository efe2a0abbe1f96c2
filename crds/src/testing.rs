//! Forwards for tests, in one notation: the object that a user writes, the intent that it becomes, the entry of a slice.
//!
//! How the one becomes the other in earnest is not here, nor is anything that is wrong on purpose.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::forward_slice::{ForwardRef, SliceForward};
use crate::id::IntentHash;
use crate::intent::{Intent, IntentPort, IntentTarget};
use crate::port_forward::{OnTargetRemoved, PortForwardSpec, Protocol, SourceNatMode};

/// A forward of one port or range, of the pool `default`, with every other field as it is by default.
#[derive(Clone, Debug)]
pub struct Forward {
    key: ForwardRef,
    protocol: Protocol,
    port: u16,
    end_port: u16,
    sources: Vec<IpNet>,
    targets: Vec<IpAddr>,
}

impl Forward {
    /// The TCP port of a forward called `namespace/name`, for 10.30.1.80, to 10.30.1.79.
    pub fn tcp(key: &str, port: u16) -> Self {
        Self::on(Protocol::Tcp, key, port)
    }

    /// The same for any protocol.
    pub fn on(protocol: Protocol, key: &str, port: u16) -> Self {
        let (namespace, name) = key.split_once('/').unwrap();
        Self {
            key: ForwardRef { namespace: namespace.to_owned(), name: name.to_owned() },
            protocol,
            port,
            end_port: port,
            sources: vec!["10.30.1.80/32".parse().unwrap()],
            targets: vec!["10.30.1.79".parse().unwrap()],
        }
    }

    /// Not only the first port, but all up to this one.
    #[must_use]
    pub fn through(self, end_port: u16) -> Self {
        Self { end_port, ..self }
    }

    /// For these clients, as blocks of addresses.
    #[must_use]
    pub fn from<'a>(self, blocks: impl IntoIterator<Item = &'a str>) -> Self {
        Self { sources: blocks.into_iter().map(|block| block.parse().unwrap()).collect(), ..self }
    }

    /// To these addresses.
    #[must_use]
    pub fn to<'a>(self, targets: impl IntoIterator<Item = &'a str>) -> Self {
        Self { targets: targets.into_iter().map(|ip| ip.parse().unwrap()).collect(), ..self }
    }

    /// As slices carry it.
    pub fn intent(&self) -> Intent {
        let &Self { protocol, port, end_port, .. } = self;
        Intent {
            addresses: Vec::new(),
            ports: vec![IntentPort { protocol, port, end_port, target_port: port }],
            allow: self.sources.clone(),
            deny: Vec::new(),
            targets: self.targets.iter().map(|ip| IntentTarget { ip: *ip, weight: 1 }).collect(),
            source_nat: SourceNatMode::default(),
            on_target_removed: OnTargetRemoved::default(),
            expires_at: None,
        }
    }

    /// Its entry in a slice, where `hash` gives the hash of its intent. Its uid is its name.
    pub fn slice_forward(&self, hash: impl Fn(&Intent) -> IntentHash) -> SliceForward {
        let (intent, r#ref) = (self.intent(), self.key.clone());
        SliceForward { uid: r#ref.name.as_str().into(), r#ref, generation: 1, hash: hash(&intent), intent }
    }

    /// As a user writes it.
    pub fn spec(&self) -> PortForwardSpec {
        serde_json::from_value(self.object()["spec"].take()).unwrap()
    }

    /// The whole object, with nothing that a cluster adds.
    pub fn object(&self) -> Value {
        let mut object: Value = serde_saphyr::from_str(&self.manifest()).unwrap();
        // YAML takes some names for truth values.
        object["metadata"] = json!({ "namespace": self.key.namespace, "name": self.key.name });
        object
    }

    /// The object as a document, after which lines with more fields of the spec may follow.
    pub fn manifest(&self) -> String {
        let Self { key: ForwardRef { namespace, name }, port, .. } = self;
        let namespace = if namespace == "default" { String::new() } else { format!(", namespace: {namespace}") };
        let protocol = if self.protocol == Protocol::Tcp { "" } else { ", protocol: UDP" };
        let end_port = if self.end_port == *port { String::new() } else { format!(", endPort: {}", self.end_port) };
        let quoted = |text: String| if text.contains(':') { format!("{text:?}") } else { text };
        let sources = self.sources.iter().map(|block| format!("{{ cidr: {} }}", quoted(block.to_string())));
        let targets = self.targets.iter().enumerate().map(|(n, ip)| {
            let number = if n == 0 { String::new() } else { n.to_string() };
            format!("{{ name: t{number}, ip: {} }}", quoted(ip.to_string()))
        });
        format!(
            "apiVersion: sallyport.dev/v1alpha1\nkind: PortForward\nmetadata: {{ name: {name}{namespace} }}\nspec:\n  \
             ports: [ {{ name: p, port: {port}{protocol}{end_port} }} ]\n  sources: {{ allow: [ {} ] }}\n  \
             targets: [ {} ]\n",
            sources.collect::<Vec<_>>().join(", "),
            targets.collect::<Vec<_>>().join(", "),
        )
    }
}
