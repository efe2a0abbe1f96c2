//! The CRDs as Kubernetes objects, as YAML, and as templates of the Helm chart.
//!
//! Only text is made here. Which files hold it, and that they do, is checked by `tests/manifest.rs`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::names::MAX_IP_TEXT;
use crate::{ForwardSlice, GatewayNode, GatewayPool, PortForward};

const HEADER: &str = "# Generated from the Rust types in crds/src; do not edit. To write it anew:\n\
                      # UPDATE=1 cargo test -p sallyport-api --test manifest\n";

/// The definitions of all four kinds, as the API server gets them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    [PortForward::crd(), GatewayPool::crd(), ForwardSlice::crd(), GatewayNode::crd()].map(polished).into()
}

/// `crd` as a YAML document under a line that says where it comes from.
#[must_use]
pub fn yaml(crd: &CustomResourceDefinition) -> String {
    format!("{HEADER}{}", body(crd))
}

/// `crd` as a template of the Helm chart: there if `crds.install`, kept on uninstall if `crds.keep`.
#[must_use]
pub fn helm_template(crd: &CustomResourceDefinition) -> String {
    const KEEP: &str = "metadata:\n  {{- if .Values.crds.keep }}\n  annotations:\n    \
                        helm.sh/resource-policy: keep\n  {{- end }}\n";
    // Descriptions are prose, but a brace pair in one would be run by Helm.
    let body = body(crd).replace("{{", "{{ \"{{\" }}").replacen("metadata:\n", KEEP, 1);
    format!("{HEADER}{{{{- if .Values.crds.install }}}}\n{body}{{{{- end }}}}\n")
}

fn body(crd: &CustomResourceDefinition) -> String {
    let mut value = serde_json::to_value(crd).expect("a CRD is plain data");
    whole_numbers(&mut value);
    serde_saphyr::to_string(&value).expect("a JSON value is valid YAML")
}

fn polished(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a CRD is plain data");
    polish(&mut value["spec"]["versions"]);
    serde_json::from_value(value).expect("polishing keeps the shape of a CRD")
}

/// Takes out of a schema what Rust's types bring along and Kubernetes has no use for.
fn polish(value: &mut Value) {
    match value {
        Value::Object(schema) => {
            // With `nullable` an explicit null would reach the CEL rules, whose `has` takes it for a value.
            schema.retain(|key, value| key != "nullable" || !value.is_boolean());
            // Rust's line breaks are not the reader's: a paragraph becomes one line.
            if let Some(Value::String(text)) = schema.get_mut("description") {
                *text =
                    text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
            }
            match schema.get("format").and_then(Value::as_str) {
                Some("ip") => {
                    schema.remove("format");
                    schema.insert("maxLength".into(), MAX_IP_TEXT.into());
                }
                // The API server knows int32, int64 and date-time; it warns about formats it does not know.
                Some("uint8" | "uint16" | "uint32" | "uint64" | "uint" | "int8" | "int16" | "int") => {
                    schema.remove("format");
                }
                _ => {}
            }
            schema.values_mut().for_each(polish);
        }
        Value::Array(values) => values.iter_mut().for_each(polish),
        _ => {}
    }
}

/// Writes 65535.0 as 65535: bounds are floating point in the Kubernetes types.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        Value::Array(values) => values.iter_mut().for_each(whole_numbers),
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|n| n.fract() == 0.0) {
                // Formatting and parsing avoids a cast that could truncate.
                if let Ok(whole) = format!("{whole:.0}").parse::<i64>() {
                    *value = whole.into();
                }
            }
        }
        _ => {}
    }
}
