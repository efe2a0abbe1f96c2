//! What the API server accepts and what it refuses, with the message that the author reads.
//!
//! Each object is held to the generated schema (types, bounds, patterns) and then to its CEL rules, as the API server
//! does it. Rules that need another object are not here: no schema can hold them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test, its functions outside of #[test] included")]

mod addresses;
mod examples;
mod pool;
mod ports;
mod shape;

use std::collections::HashMap;
use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionVersion;
use kube::core::cel::{CompiledSchema, Validator, compile_schema};
use sallyport_api::manifest::crds;
use serde_json::{Value, json};

/// A kind's generated schema, made ready once for all tests.
struct Kind {
    schema: Value,
    bounds: jsonschema::Validator,
    rules: CompiledSchema,
}

impl Kind {
    fn of(object: &Value) -> &'static Self {
        static KINDS: LazyLock<HashMap<String, Kind>> = LazyLock::new(|| {
            crds().into_iter().map(|mut crd| (crd.spec.names.kind, Kind::new(crd.spec.versions.remove(0)))).collect()
        });
        &KINDS[object["kind"].as_str().unwrap()]
    }

    fn new(version: CustomResourceDefinitionVersion) -> Self {
        let schema = serde_json::to_value(version.schema.unwrap().open_api_v3_schema).unwrap();
        let bounds = jsonschema::validator_for(&schema).unwrap();
        let rules = compile_schema(&schema);
        assert!(!rules.has_errors(), "{:?}", rules.compilation_errors());
        Self { schema, bounds, rules }
    }
}

/// The errors that the API server would answer `object` with, each as `path: message`.
fn refusals(object: &Value) -> Vec<String> {
    let kind = Kind::of(object);
    let errors: Vec<String> =
        kind.bounds.iter_errors(object).map(|error| format!("{}: {error}", error.instance_path())).collect();
    if !errors.is_empty() {
        return errors;
    }
    match Validator::new().validate_compiled(&kind.rules, object, None) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// `object` with each JSON pointer of `edits` set to its value; null removes, `-` appends to a list.
fn edited(object: &Value, edits: &Value) -> Value {
    let mut object = object.clone();
    for (pointer, value) in edits.as_object().unwrap() {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match object.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer} is nowhere")) {
            Value::Object(map) if value.is_null() => drop(map.remove(key)),
            Value::Object(map) => drop(map.insert(key.to_owned(), value.clone())),
            Value::Array(list) if key == "-" => list.push(value.clone()),
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
            other => panic!("{pointer} is inside {other}"),
        }
    }
    object
}

/// Asserts that `object` is accepted, and refused with exactly one error, which contains the text, in each case
/// `[text, edits]`.
fn assert_refused(object: &Value, cases: &Value) {
    assert_eq!(refusals(object), Vec::<String>::new(), "the object that the edits start from");
    for case in cases.as_array().unwrap() {
        let expected = case[0].as_str().unwrap();
        let errors = refusals(&edited(object, &case[1]));
        let one = errors.len() == 1 && errors[0].contains(expected);
        assert!(one, "{}\n  want {expected}\n  got {errors:#?}", case[1]);
    }
}

/// Asserts that `object` is accepted with each of the edits.
fn assert_accepted(object: &Value, cases: &Value) {
    for edits in cases.as_array().unwrap() {
        assert_eq!(refusals(&edited(object, edits)), Vec::<String>::new(), "{edits}");
    }
}

/// `count` entries of a list, made by `entry` from 0 on.
fn list(count: usize, entry: impl Fn(usize) -> Value) -> Value {
    (0..count).map(entry).collect()
}

/// A forward with only what must be there.
fn forward() -> Value {
    json!({
        "apiVersion": "sallyport.dev/v1alpha1",
        "kind": "PortForward",
        "metadata": { "name": "mysql", "namespace": "payments" },
        "spec": {
            "ports": [{ "name": "mysql", "port": 3306 }],
            "sources": { "allow": [{ "cidr": "10.30.1.80/32" }] },
            "targets": [{ "name": "db1", "ip": "10.30.1.79" }],
        },
    })
}

/// A forward with every field that a user can write.
fn full_forward() -> Value {
    json!({
        "apiVersion": "sallyport.dev/v1alpha1",
        "kind": "PortForward",
        "metadata": { "name": "mysql", "namespace": "payments" },
        "spec": {
            "pool": "edge",
            "addresses": ["10.30.1.78", "fd00::78"],
            "ports": [
                { "name": "mysql", "protocol": "TCP", "port": 3306, "endPort": 3310, "targetPort": 13306 },
                { "name": "dns", "protocol": "UDP", "port": 53 },
            ],
            "sources": {
                "allow": [{ "cidr": "10.30.0.0/23" }, { "cidr": "fd00::/64" }],
                "deny": [{ "cidr": "10.30.1.99/32" }],
            },
            "targets": [
                { "name": "db1", "ip": "10.30.1.79", "weight": 3 },
                { "name": "db2", "ip": "fd00::79", "weight": 0 },
            ],
            "sourceNAT": { "mode": "Preserve" },
            "lifecycle": { "onTargetRemoved": "Sever" },
            "expiresAt": "2026-01-31T18:00:00Z",
            "mode": "Apply",
        },
    })
}

/// A pool with every field that a user can write.
fn full_pool() -> Value {
    json!({
        "apiVersion": "sallyport.dev/v1alpha1",
        "kind": "GatewayPool",
        "metadata": { "name": "default" },
        "spec": {
            "nodeSelector": { "matchLabels": { "sallyport.dev/gateway": "" } },
            "listen": { "addresses": [{ "type": "NodeInternalIP" }, { "type": "CIDR", "value": "10.30.0.0/23" }] },
            "ipForward": "Require",
            "firewall": { "backend": "IptablesLegacy", "order": "First" },
            "reservedPorts": [{ "protocol": "UDP", "port": 51820, "endPort": 51821 }, { "port": 9100 }],
            "grants": [{
                "name": "payments",
                "namespaceSelector": { "matchLabels": { "team": "payments" } },
                "ports": [{ "protocol": "TCP", "port": 3306, "endPort": 3310 }],
                "targetCIDRs": ["10.30.1.0/24"],
                "sourceCIDRs": ["10.30.0.0/23"],
                "sourceNATModes": ["Masquerade", "Preserve"],
                "maxForwards": 20,
                "maxLifetime": "24h",
            }],
        },
    })
}
