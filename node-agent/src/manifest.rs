//! The text of a manifest file → the objects in it, each document by itself.
//!
//! Stricter than an API server, which prunes what it does not know: here an unknown field or kind is an error, because
//! nobody else would tell its author. What an object may ask is `sallyport-policy`'s to judge.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::Resource as _;
use sallyport_api::forward_slice::ForwardRef;
use sallyport_api::gateway_pool::{GatewayPool, GatewayPoolSpec};
use sallyport_api::names::{GROUP, VERSION};
use sallyport_api::port_forward::{PortForward, PortForwardSpec};
use sallyport_policy::pool::validate_pool;
use sallyport_policy::validate::{Problem, validate, validate_metadata};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Broken documents after which the rest of a text is not read: it is no manifest, and each costs a message.
const MAX_BROKEN: usize = 1000;
/// Problems of one document that are reported.
const MAX_PROBLEMS: usize = 20;
/// Characters of a message; what a text holds may be quoted in it.
const MAX_MESSAGE: usize = 500;

/// An object of a manifest, without what only a cluster adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Object {
    /// A `PortForward`.
    Forward(ForwardRef, Arc<PortForwardSpec>),
    /// A `GatewayPool`.
    Pool(String, GatewayPoolSpec),
    /// A `Namespace` with its labels.
    Namespace(String, BTreeMap<String, String>),
}

/// Kind and name of an object, for people and to tell objects apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity(pub String);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Object {
    /// What it is called, for example `PortForward payments/mysql`.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity(match self {
            Self::Forward(key, _) => format!("PortForward {key}"),
            Self::Pool(name, _) => format!("GatewayPool {name}"),
            Self::Namespace(name, _) => format!("Namespace {name}"),
        })
    }
}

/// What is wrong with a document, or with the whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentProblem {
    /// The object, if that is known; otherwise the number of the document.
    pub object: Identity,
    /// What is wrong, with the field in front where there is one.
    pub message: String,
}

impl DocumentProblem {
    fn new(object: Identity, message: &str) -> Self {
        Self { object, message: printable(message) }
    }
}

/// Reads every document of `text`. A problem of one does not hide another, but for a syntax error, which ends the text,
/// and for a text in which too much is wrong.
pub fn read(text: &mut dyn Read) -> Vec<Result<Object, Vec<DocumentProblem>>> {
    let mut objects = Vec::new();
    let mut broken = 0;
    let options = serde_saphyr::options! {
        // A name may be y, n or on.
        strict_booleans: true,
    };
    for (index, document) in serde_saphyr::read_with_options::<_, Value>(&mut { text }, options).enumerate() {
        let place = Identity(format!("document {}", index + 1));
        if broken == MAX_BROKEN {
            let message = format!(
                "{MAX_BROKEN} documents before it have problems; it and the rest are not read, mend those first"
            );
            objects.push(Err(vec![DocumentProblem::new(place, &message)]));
            break;
        }
        let outcome = match document {
            Ok(value) => object(value, place),
            Err(error) => {
                let text = error.to_string().replace(", set DuplicateKeyPolicy in Options if acceptable", "");
                Err(vec![DocumentProblem::new(place, &format!("is not valid YAML: {}", first_line(&text)))])
            }
        };
        broken += usize::from(outcome.is_err());
        objects.push(outcome);
    }
    objects
}

fn object(mut value: Value, place: Identity) -> Result<Object, Vec<DocumentProblem>> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let metadata = |key: &str| value.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_str);
    let name = metadata("name").unwrap_or_default().to_owned();
    let namespace = metadata("namespace").unwrap_or("default").to_owned();
    let ours = format!("{GROUP}/{VERSION}");
    let (kind, namespaced) = match (text("apiVersion"), text("kind")) {
        (group, "PortForward") if group == ours => ("PortForward", true),
        (group, "GatewayPool") if group == ours => ("GatewayPool", false),
        ("v1", "Namespace") => ("Namespace", false),
        (group, kind) => {
            // A pool of another version is a pool all the same.
            let place = if kind == "GatewayPool" { Identity(format!("{kind} in {place}")) } else { place };
            let message = format!(
                "kind {kind:?} of apiVersion {group:?} does not belong here; use PortForward or GatewayPool of {ours}, or Namespace of v1"
            );
            return Err(vec![DocumentProblem::new(place, &message)]);
        }
    };
    let problems = |messages: Vec<String>, identity: &Identity| {
        let first = messages.iter().take(MAX_PROBLEMS);
        first.map(|message| DocumentProblem::new(identity.clone(), message)).collect::<Vec<_>>()
    };
    let named = match value.pointer("/metadata/name") {
        // As an unquoted 5; an absent one is reported below.
        Some(other) if !other.is_string() => vec!["metadata.name: is not text; put it in quotes".to_owned()],
        _ => lines(&validate_metadata(&name, namespaced.then_some(namespace.as_str()))),
    };
    if !named.is_empty() {
        let place = Identity(format!("{kind} in {place}"));
        return Err(problems(named, &place));
    }
    let identity = Identity(if namespaced { format!("{kind} {namespace}/{name}") } else { format!("{kind} {name}") });
    if kind != "Namespace"
        && let Some(fields) = value.as_object_mut()
    {
        // The derived types check these two and would then report them as unknown.
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    let typed = match kind {
        "PortForward" => strict::<PortForward>(&value).and_then(|forward| {
            validate(&forward.spec).map_err(|found| lines(&found))?;
            Ok(Object::Forward(ForwardRef { namespace, name }, forward.spec.into()))
        }),
        "GatewayPool" => strict::<GatewayPool>(&value).and_then(|pool| {
            validate_pool(&pool.spec).map_err(|found| lines(&found))?;
            Ok(Object::Pool(name, pool.spec))
        }),
        _ => strict::<Namespace>(&value).map(|namespace| {
            let mut labels = namespace.meta().labels.clone().unwrap_or_default();
            // The API server sets this label on every namespace.
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.clone());
            Object::Namespace(name, labels)
        }),
    };
    typed.map_err(|messages| problems(messages, &identity))
}

/// Decodes `value`, with an error for every field that `T` does not have.
fn strict<T: DeserializeOwned>(value: &Value) -> Result<T, Vec<String>> {
    let mut unknown = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(dotted(&path));
    let mut track = serde_path_to_error::Track::new();
    let reader = serde_path_to_error::Deserializer::new(value, &mut track);
    let decoded = T::deserialize(serde_ignored::Deserializer::new(reader, &mut note));
    match decoded {
        Err(error) => {
            let path = track.path().to_string();
            let message = error.to_string().replace("expected i32", "expected a whole number");
            Err(vec![if path == "." { message } else { format!("{path}: {message}") }])
        }
        Ok(typed) if unknown.is_empty() => Ok(typed),
        Ok(_) => Err(unknown
            .into_iter()
            .map(|path| format!("{path}: is not a field; check its spelling and indentation"))
            .collect()),
    }
}

/// `path` as other messages write it, for example `spec.ports[0].colour`.
fn dotted(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", dotted(parent)),
        Path::Map { parent, key } => match dotted(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => dotted(parent),
    }
}

fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// `text` as it may stand in a log: nothing in it can begin a line or fill the disk.
fn printable(text: &str) -> String {
    let mut safe = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == MAX_MESSAGE {
            safe.push('…');
            break;
        }
        match c {
            '"' | '\'' | '\\' => safe.push(c),
            _ => safe.extend(c.escape_debug()),
        }
    }
    safe
}

#[cfg(test)]
mod tests;
