//! The manifests in `examples/` are accepted and fit together.

use k8s_openapi::api::core::v1::Namespace;
use kube::core::cel::validate_cel;
use sallyport_api::{GatewayPool, PortForward};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::refusals;
use crate::shape::retyped;

fn example<T: DeserializeOwned>(name: &str) -> T {
    let path = format!("{}/../examples/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn the_examples_are_accepted() {
    for name in ["portforward.yaml", "gatewaypool.yaml"] {
        assert_eq!(refusals(&example(name)), Vec::<String>::new(), "{name}");
    }
    validate_cel(&example::<PortForward>("portforward.yaml")).unwrap();
    validate_cel(&example::<GatewayPool>("gatewaypool.yaml")).unwrap();
}

#[test]
fn the_examples_fit_together() {
    let forward: PortForward = example("portforward.yaml");
    let pool: GatewayPool = example("gatewaypool.yaml");
    let namespace: Namespace = example("namespace.yaml");
    assert_eq!(Some(forward.spec.pool), pool.metadata.name);
    assert_eq!(forward.metadata.namespace, namespace.metadata.name);
    assert_eq!(namespace.metadata.labels, pool.spec.grants[0].namespace_selector.match_labels);
}

#[test]
fn no_field_of_an_example_is_unknown_to_the_types() {
    for name in ["portforward.yaml", "gatewaypool.yaml"] {
        let written: Value = example(name);
        let read = retyped(&written);
        assert!(contains(&read, &written), "{name}: {read:#}");
    }
}

/// Whether everything in `part` is in `whole`, which may hold more keys.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, part)| whole.get(key).is_some_and(|whole| contains(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| contains(whole, part))
        }
        _ => whole == part,
    }
}
