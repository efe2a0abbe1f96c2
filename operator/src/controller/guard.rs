//! An object that may not decode: then its metadata and the path of what is wrong are known all the same.

use std::borrow::Cow;
use std::error::Error;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An object without its `managedFields`, or what could be read of it.
///
/// Like `kube::core::DeserializeGuard`, but an error names the field.
#[derive(Clone, Debug)]
pub(crate) struct DeserializeGuard<K>(pub(crate) Result<K, InvalidObject>);

/// An object that does not decode.
#[derive(Clone, Debug)]
pub(crate) struct InvalidObject {
    /// What is wrong, with the path of the field in front.
    pub(crate) error: String,
    /// The metadata, which every object has.
    pub(crate) metadata: ObjectMeta,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for DeserializeGuard<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        // Who wrote which field is nothing to us, and more than all the rest of a small object.
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        let error = match serde_path_to_error::deserialize::<_, K>(&value) {
            Ok(object) => return Ok(Self(Ok(object))),
            Err(error) => error,
        };
        // A report in words of another version is none; what is asked for is clear all the same.
        if let Some(fields) = value.as_object_mut()
            && fields.remove("status").is_some()
            && let Ok(object) = K::deserialize(&value)
        {
            return Ok(Self(Ok(object)));
        }
        let metadata = ObjectMeta::deserialize(&value["metadata"]).map_err(D::Error::custom)?;
        let cause = error.source().map_or_else(|| error.inner().to_string(), ToString::to_string);
        Ok(Self(Err(InvalidObject { error: format!("{}: {cause}", error.path()), metadata })))
    }
}

impl<K: Resource> Resource for DeserializeGuard<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => object.meta(),
            Err(invalid) => &invalid.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(invalid) => &mut invalid.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use sallyport_api::{GatewayNode, PortForward};
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_that_does_not_decode_keeps_its_metadata_and_names_the_field() {
        let object = json!({
            "apiVersion": "sallyport.dev/v1alpha1",
            "kind": "PortForward",
            "metadata": { "name": "mysql", "resourceVersion": "7" },
            "spec": { "ports": [{ "name": "p", "port": "many" }], "sources": { "allow": [] }, "targets": [] },
        });
        let DeserializeGuard(read): DeserializeGuard<PortForward> = serde_json::from_value(object).unwrap();
        let invalid = read.unwrap_err();
        assert!(invalid.error.starts_with("spec.ports[0].port: "), "{}", invalid.error);
        assert_eq!(invalid.metadata.resource_version.as_deref(), Some("7"));
    }

    #[test]
    fn who_wrote_which_field_is_not_kept() {
        let object = json!({ "metadata": { "name": "gw1", "managedFields": [{ "manager": "kubectl" }] } });
        let DeserializeGuard(read): DeserializeGuard<k8s_openapi::api::core::v1::Node> =
            serde_json::from_value(object).unwrap();
        let metadata = read.unwrap().metadata;
        assert_eq!((metadata.name.as_deref(), metadata.managed_fields), (Some("gw1"), None));
    }

    #[test]
    fn a_status_of_another_version_counts_as_none() {
        let object = json!({
            "apiVersion": "sallyport.dev/v1alpha1",
            "kind": "GatewayNode",
            "metadata": { "name": "gw1" },
            "spec": { "pool": "default", "state": "Active", "addresses": [] },
            "status": { "state": "Teleported" },
        });
        let DeserializeGuard(read): DeserializeGuard<GatewayNode> = serde_json::from_value(object).unwrap();
        let gateway = read.unwrap();
        assert_eq!((gateway.spec.pool.as_str(), gateway.status), ("default", None));
    }

    #[test]
    fn an_object_without_readable_metadata_is_an_error() {
        assert!(serde_json::from_value::<DeserializeGuard<PortForward>>(json!({ "metadata": 7 })).is_err());
    }
}
