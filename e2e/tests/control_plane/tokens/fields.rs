//! Every field that the spec of a `DaemonSet` may have, as the API server itself describes it: the operator's token can add none,
//! change none and take none away, not even one that the next version of Kubernetes brings.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use http::Method;
use sallyport_e2e::control_plane::Api;
use serde_json::{Map, Value, json};

/// Where the fields are described.
const OPENAPI: &str = "/openapi/v3/apis/apps/v1";
/// What is described there.
const SPEC: &str = "io.k8s.api.apps.v1.DaemonSetSpec";
/// Who has to refuse.
const POLICY: &str = "ValidatingAdmissionPolicy 'sallyport-operator-daemonsets'";

/// Fields that nobody can set on this `DaemonSet` by themselves: the API server allows one value, or needs another field.
const FIXED: &[&str] = &[
    "selector.matchExpressions",
    "selector.matchLabels.mine",
    "selector.matchLabels.app.kubernetes.io/name",
    "template.metadata.labels.app.kubernetes.io/name",
    "template.spec.activeDeadlineSeconds",
    "template.spec.containers[].env[].valueFrom.fieldRef.apiVersion",
    "template.spec.containers[].readinessProbe.terminationGracePeriodSeconds",
    "template.spec.containers[].resources.claims",
    "template.spec.containers[].volumeDevices",
    "template.spec.ephemeralContainers",
    "template.spec.restartPolicy",
    "template.spec.securityContext.seccompProfile.localhostProfile",
    "template.spec.tolerations[].operator",
    "template.spec.tolerations[].tolerationSeconds",
    "template.spec.tolerations[].value",
    "template.spec.volumes[].name",
    "updateStrategy.rollingUpdate.maxSurge",
];

/// Fields that the API server takes and does not keep: it has a feature turned off, or another field decides.
const IGNORED: &[&str] = &[
    "template.spec.containers[].env[].valueFrom.fileKeyRef",
    "template.spec.containers[].restartPolicy",
    "template.spec.containers[].restartPolicyRules",
    "template.spec.hostnameOverride",
    "template.spec.serviceAccount",
];

/// A value of each field, by its name (items of a list behind `[]`, of a map behind `{}`), whose type alone makes no valid one.
fn samples() -> Value {
    let container = json!({ "name": "mine", "image": "mine" });
    let exec = json!({ "exec": { "command": ["/bin/sh"] } });
    let (key, unconfined) = (json!({ "name": "mine", "key": "mine" }), json!({ "type": "Unconfined" }));
    json!({
        "containers[]": container, "initContainers[]": container, "ephemeralContainers[]": container,
        "exec": exec["exec"], "livenessProbe": exec, "startupProbe": exec, "lifecycle": { "postStart": exec },
        "configMapKeyRef": key, "secretKeyRef": key, "valueFrom": { "secretKeyRef": key },
        "resourceFieldRef": { "resource": "limits.cpu" }, "envFrom[]": { "secretRef": { "name": "mine" } },
        "appArmorProfile": unconfined, "seccompProfile": unconfined, "seLinuxChangePolicy": "Recursive",
        "resizePolicy[]": { "resourceName": "cpu", "restartPolicy": "NotRequired" },
        "limits{}": "1", "requests{}": "1", "overhead{}": "1",
        "resourceClaims[]": { "name": "mine", "resourceClaimName": "mine" },
        "tolerations[]": { "key": "mine", "operator": "Exists" },
        "hostAliases[]": { "ip": "10.0.0.1", "hostnames": ["mine"] }, "os": { "name": "linux" },
        "volumeMounts[]": { "name": "state", "mountPath": "/mine" }, "recursiveReadOnly": "Disabled", "subPath": "mine",
        "configMap": { "name": "mine" }, "secret": { "secretName": "mine" },
        "azureDisk": { "diskName": "mine", "diskURI": "https://mine.blob.core.windows.net/mine/mine.vhd" },
        "ephemeral": { "volumeClaimTemplate": { "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1" } },
        } } },
        "fc": { "targetWWNs": ["mine"], "lun": 1 }, "flocker": { "datasetName": "mine" },
        "iscsi": { "targetPortal": "mine", "iqn": "iqn.2026-01.com.example:mine", "lun": 1 },
        "quobyte": { "registry": "mine:1", "volume": "mine" }, "storageos": { "volumeName": "mine" },
        "scaleIO": { "gateway": "mine", "system": "mine", "secretRef": { "name": "mine" }, "volumeName": "mine" },
    })
}

/// One thing that is different, and specs with it: the first that the API server takes from its administrator counts.
struct Row {
    path: String,
    removes: bool,
    specs: Vec<Value>,
}

/// All rows of one spec.
struct Fields<'a> {
    schemas: &'a Value,
    samples: Value,
    spec: &'a Value,
    rows: Vec<Row>,
}

/// Tries everything with the operator's token. How many changes were refused.
pub fn none_can_be_changed(admin: &Api, operator: &Api, path: &str) -> Result<usize> {
    let mut set = admin.get(path)?.context("find the DaemonSet of the agents")?;
    let metadata = set["metadata"].as_object_mut().context("read its metadata")?;
    metadata.retain(|key, _| key != "resourceVersion" && key != "managedFields");
    let openapi = admin.get(OPENAPI)?.context("ask for the OpenAPI")?;
    let schemas = &openapi["components"]["schemas"];
    ensure!(schemas[SPEC].is_object(), "{OPENAPI} does not describe {SPEC}");
    let spec = set["spec"].clone();
    let mut fields = Fields { schemas, samples: samples(), spec: &spec, rows: Vec::new() };
    fields.walk("", "", &schemas[SPEC], &spec)?;

    let put = |api: &Api, spec: &Value| {
        let mut changed = set.clone();
        changed["spec"] = spec.clone();
        api.send(&Method::PUT, &format!("{path}?dryRun=All"), "application/json", Some(&changed))
    };
    let (mut refused, mut wrong) = (0, Vec::new());
    let (mut fixed, mut ignored) = (BTreeSet::new(), BTreeSet::new());
    for Row { path, removes, specs } in &fields.rows {
        let mut answers = specs.iter().map(|spec| anyhow::Ok((spec, put(admin, spec)?)));
        let taken = answers.find(|answer| answer.as_ref().map_or(true, |(_, answer)| answer.success())).transpose()?;
        let Some((changed, taken)) = taken else {
            if !removes {
                fixed.insert(path.as_str());
            }
            continue;
        };
        if taken.body["spec"] == spec {
            if !removes {
                ignored.insert(path.as_str());
            }
            continue;
        }
        let answer = put(operator, changed)?;
        if answer.code == 403 && answer.message().contains(POLICY) {
            refused += 1;
        } else {
            let verb = if *removes { "no " } else { "" };
            wrong.push(format!("{verb}{path}: {} {}", answer.code, answer.message()));
        }
    }
    ensure!(wrong.is_empty(), "{} changes are not refused by the policy:\n{}", wrong.len(), wrong.join("\n"));
    let found = |list: &[&'static str]| list.iter().copied().collect::<BTreeSet<_>>();
    ensure!(fixed == found(FIXED), "fields without a value that is valid here: {fixed:#?}\nand should be {FIXED:#?}");
    ensure!(ignored == found(IGNORED), "fields that are not kept: {ignored:#?}\nand should be {IGNORED:#?}");
    ensure!(refused > 250, "only {refused} changes: does {OPENAPI} not describe all fields?");
    Ok(refused)
}

impl Fields<'_> {
    /// The description itself, where there is a reference to it.
    fn resolve<'s>(&'s self, schema: &'s Value) -> &'s Value {
        match schema["allOf"][0]["$ref"].as_str().or_else(|| schema["$ref"].as_str()) {
            Some(name) => self.resolve(&self.schemas[name.rsplit('/').next().unwrap_or_default()]),
            None => schema,
        }
    }

    /// Values of a type, valid ones as far as that can be told.
    fn values(&self, name: &str, schema: &Value) -> Result<Vec<Value>> {
        if let Some(sample) = self.samples.get(name) {
            return Ok(vec![sample.clone()]);
        }
        let schema = self.resolve(schema);
        if let Some(all) = schema["enum"].as_array() {
            return Ok(all.clone());
        }
        let first = |name: &str, schema: &Value| anyhow::Ok(self.values(name, schema)?.swap_remove(0));
        Ok(vec![match kind(schema) {
            "string" if schema["format"] == "date-time" => json!("2026-01-01T00:00:00Z"),
            "string" if name.to_lowercase().ends_with("path") => json!("/mine"),
            "string" => json!("mine"),
            "integer" | "number" => json!(1),
            "boolean" => json!(true),
            "array" => json!([first(&format!("{name}[]"), &schema["items"])?]),
            "object" if schema["additionalProperties"].is_object() => {
                json!({ key_of(name): first(&format!("{name}{{}}"), &schema["additionalProperties"])? })
            }
            "object" => {
                let mut object = Map::new();
                for key in required(schema) {
                    object.insert(key.to_owned(), first(key, &schema["properties"][key])?);
                }
                object.into()
            }
            other => anyhow::bail!("{name} is of type {other:?}"),
        }])
    }

    /// Rows for everything that can be different from `there`, which is at `pointer` of the spec.
    fn walk(&mut self, pointer: &str, path: &str, schema: &Value, there: &Value) -> Result<()> {
        let schema = self.resolve(schema).clone();
        let name = path.rsplit('.').next().unwrap_or_default();
        match there {
            Value::Object(fields) if schema["additionalProperties"].is_object() => {
                let values = self.values(&format!("{name}{{}}"), &schema["additionalProperties"])?;
                self.row(&below(path, key_of(name)), with(there, key_of(name), values), pointer);
                for (key, value) in fields {
                    self.remove(pointer, path, key, there);
                    self.walk(&at(pointer, key), &below(path, key), &schema["additionalProperties"], value)?;
                }
            }
            Value::Object(fields) => {
                let required: Vec<&str> = required(&schema).collect();
                for (key, property) in schema["properties"].as_object().with_context(|| format!("read {path}"))? {
                    if let Some(value) = fields.get(key) {
                        if !required.contains(&key.as_str()) {
                            self.remove(pointer, path, key, there);
                        }
                        self.walk(&at(pointer, key), &below(path, key), property, value)?;
                        continue;
                    }
                    // Beside the others, or instead of all that may be left out.
                    let mut least = there.clone();
                    least.as_object_mut().context("an object")?.retain(|key, _| required.contains(&key.as_str()));
                    let values = self.values(key, property)?;
                    let both = [with(there, key, values.clone()), with(&least, key, values)].concat();
                    self.row(&below(path, key), both, pointer);
                }
            }
            Value::Array(items) => {
                for value in self.values(&format!("{name}[]"), &schema["items"])? {
                    let more = [items.as_slice(), &[value]].concat();
                    self.row(&format!("{path}[]"), vec![more.into()], pointer);
                }
                for (index, item) in items.iter().enumerate() {
                    self.walk(&at(pointer, &index.to_string()), &format!("{path}[]"), &schema["items"], item)?;
                }
            }
            Value::String(text) => {
                let (longer, other) = (format!("{text}x"), format!("1{text}"));
                let others = [&longer, &other, "state", "xtables-lock", "metadata.name"].map(|one| json!(one));
                let others = schema["enum"].as_array().cloned().unwrap_or_else(|| others.to_vec());
                self.row(path, others.into_iter().filter(|other| other != there).collect(), pointer);
            }
            Value::Number(number) => {
                self.row(path, vec![json!(number.as_i64().context("a whole number")? + 1)], pointer);
            }
            Value::Bool(value) => self.row(path, vec![json!(!value)], pointer),
            Value::Null => {}
        }
        Ok(())
    }

    fn row(&mut self, path: &str, values: Vec<Value>, pointer: &str) {
        let specs = values.into_iter().map(|value| put_at(self.spec, pointer, value)).collect();
        self.rows.push(Row { path: path.to_owned(), removes: false, specs });
    }

    fn remove(&mut self, pointer: &str, path: &str, key: &str, there: &Value) {
        let mut without = there.clone();
        without.as_object_mut().map(|fields| fields.remove(key));
        self.rows.push(Row { path: below(path, key), removes: true, specs: vec![put_at(self.spec, pointer, without)] });
    }
}

fn kind(schema: &Value) -> &str {
    schema["type"].as_str().or_else(|| schema["oneOf"][0]["type"].as_str()).unwrap_or_default()
}

fn required(schema: &Value) -> impl Iterator<Item = &str> {
    schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// A key that a map of this name may have.
fn key_of(map: &str) -> &'static str {
    if ["limits", "requests", "overhead"].contains(&map) { "ephemeral-storage" } else { "mine" }
}

fn at(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The object with each of the values under `key`.
fn with(object: &Value, key: &str, values: Vec<Value>) -> Vec<Value> {
    let one = |value| {
        let mut object = object.clone();
        object[key] = value;
        object
    };
    values.into_iter().map(one).collect()
}

fn put_at(spec: &Value, pointer: &str, value: Value) -> Value {
    let mut spec = spec.clone();
    if let Some(place) = spec.pointer_mut(pointer) {
        *place = value;
    }
    spec
}
