//! Every value is read by a template, nothing else is accepted, and what is wrong is named.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use sallyport_e2e::program;
use serde_json::{Map, Value, json};

use super::helm;

/// A pool with every field that a pool may have.
pub fn full_pool() -> Value {
    json!({
        "nodeSelector": {
            "matchLabels": { "site": "north" },
            "matchExpressions": [{ "key": "edge", "operator": "In", "values": ["yes"] }],
        },
        "listen": { "addresses": [{ "type": "NodeInternalIP" }, { "type": "CIDR", "value": "10.30.0.0/23" }] },
        "ipForward": "Require",
        "firewall": { "backend": "IptablesLegacy", "order": "First" },
        "reservedPorts": [{ "port": 8443 }, { "protocol": "UDP", "port": 9000, "endPort": 9010 }],
        "grants": [{
            "name": "payments",
            "namespaceSelector": { "matchLabels": { "team": "payments" } },
            "ports": [{ "protocol": "TCP", "port": 3306, "endPort": 3310 }],
            "targetCIDRs": ["10.30.1.0/24", "2001:db8::/64"],
            "sourceCIDRs": ["10.30.0.0/23"],
            "sourceNATModes": ["Masquerade", "Preserve"],
            "maxForwards": 3,
            "maxLifetime": "24h",
        }],
    })
}

/// Every value, by its JSON pointer, with another one that it may have.
fn changes() -> Vec<(&'static str, Value)> {
    let (pool, digest) = (full_pool(), format!("sha256:{}", "5a".repeat(32)));
    vec![
        ("/crds/install", json!(false)),
        ("/crds/keep", json!(false)),
        ("/operator/image/repository", json!("registry.example:5000/sallyport/operator")),
        ("/operator/image/tag", json!("1.2.3")),
        ("/operator/image/digest", json!(digest)),
        ("/operator/image/pullPolicy", json!("Always")),
        ("/operator/replicas", json!(3)),
        ("/operator/resources/requests/cpu", json!("1")),
        ("/operator/resources/requests/memory", json!("1Gi")),
        ("/operator/resources/limits/memory", json!("2Gi")),
        ("/operator/tolerations", json!([{ "key": "role", "operator": "Exists", "effect": "NoSchedule" }])),
        ("/agent/image/repository", json!("registry.example:5000/sallyport/node-agent")),
        ("/agent/image/tag", json!("1.2.3")),
        ("/agent/image/digest", json!(digest)),
        ("/agent/image/pullPolicy", json!("Never")),
        ("/agent/privileged", json!(true)),
        ("/imagePullSecrets", json!([{ "name": "my-registry" }])),
        ("/serviceCIDRs", json!(["10.96.0.0/16", "fd00:10:96::/112"])),
        ("/logFormat", json!("json")),
        ("/defaultPool/create", json!(false)),
        ("/defaultPool/nodeSelector/matchLabels/sallyport.dev~1gateway", json!("yes")),
        ("/defaultPool/listen/addresses", pool["listen"]["addresses"].clone()),
        ("/defaultPool/ipForward", pool["ipForward"].clone()),
        ("/defaultPool/firewall/backend", pool["firewall"]["backend"].clone()),
        ("/defaultPool/firewall/order", pool["firewall"]["order"].clone()),
        ("/defaultPool/reservedPorts", pool["reservedPorts"].clone()),
        ("/defaultPool/grants", pool["grants"].clone()),
    ]
}

/// JSON pointers of all values below `value` that are not maps.
fn leaves(pointer: &str, value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                leaves(&format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")), value, into);
            }
        }
        _ => {
            into.insert(pointer.to_owned());
        }
    }
}

/// Values that hold nothing but `value` at `pointer`.
fn only(pointer: &str, value: Value) -> Value {
    pointer.trim_start_matches('/').rsplit('/').fold(value, |inner, key| {
        let key = key.replace("~1", "/").replace("~0", "~");
        Value::Object(Map::from_iter([(key, inner)]))
    })
}

#[test]
fn every_value_changes_what_is_rendered() -> Result<()> {
    let mut known = BTreeSet::new();
    leaves("", &helm::default_values()?, &mut known);
    let changed: BTreeSet<String> = changes().into_iter().map(|(pointer, _)| pointer.to_owned()).collect();
    ensure!(
        known == changed,
        "values.yaml and the table of this test differ: {:?}",
        known.symmetric_difference(&changed)
    );
    let before = helm::render(&json!({}))?;
    for (pointer, value) in changes() {
        let after = helm::render(&only(pointer, value.clone()))?;
        ensure!(after != before, "{pointer} is read by no template: it may as well be {value}");
    }
    Ok(())
}

#[test]
fn every_value_is_documented() -> Result<()> {
    let path = program::repository()?.join("docs/install.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    for (pointer, _) in changes() {
        // What the keys of labels are is the user's choice.
        let key = pointer.split("/sallyport.dev").next().unwrap_or(pointer).trim_start_matches('/').replace('/', ".");
        ensure!(text.contains(&format!("| `{key}` |")), "docs/install.md has no row for {key}");
    }
    Ok(())
}

#[test]
fn a_value_of_another_type_is_refused_and_named() -> Result<()> {
    for (pointer, value) in changes() {
        let wrong = if value.is_string() { json!(["wrong"]) } else { json!("wrong") };
        let error = helm::refusal(&only(pointer, wrong), &[])?;
        ensure!(error.contains(&format!("'{pointer}'")), "{pointer} is not named: {error}");
    }
    Ok(())
}

#[test]
fn a_mistyped_key_is_refused_and_named() -> Result<()> {
    let mut everything = helm::default_values()?;
    for (pointer, value) in changes() {
        *everything.pointer_mut(pointer).with_context(|| format!("find {pointer}"))? = value;
    }
    everything["defaultPool"] = full_pool();
    helm::render(&everything)?;
    let mut maps = Vec::new();
    collect_maps(String::new(), &everything, &mut maps);
    ensure!(maps.len() > 20, "only {} maps were found", maps.len());
    for pointer in maps {
        let mut mistyped = everything.clone();
        mistyped.pointer_mut(&pointer).with_context(|| format!("find {pointer}"))?["mistyped"] = json!("x");
        let error = helm::refusal(&mistyped, &[])?;
        ensure!(error.contains("mistyped"), "a wrong key in {pointer:?} is not named: {error}");
    }
    Ok(())
}

/// JSON pointers of all maps whose keys are the chart's: those of labels are the user's.
fn collect_maps(pointer: String, value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter().filter(|(key, _)| *key != "matchLabels") {
                collect_maps(format!("{pointer}/{key}"), value, into);
            }
            into.push(pointer);
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                collect_maps(format!("{pointer}/{index}"), value, into);
            }
        }
        _ => {}
    }
}

/// Values with one grant that has these fields.
fn of_grant(fields: &Value) -> Value {
    let mut grant = json!({ "name": "a", "namespaceSelector": {} });
    for (key, value) in fields.as_object().into_iter().flatten() {
        grant[key] = value.clone();
    }
    json!({ "defaultPool": { "grants": [grant] } })
}

#[test]
fn impossible_values_are_refused_with_what_to_do() -> Result<()> {
    let grant = json!({ "name": "twin", "namespaceSelector": {} });
    for (values, named) in [
        (json!({ "operator": { "replicas": 0 } }), "/operator/replicas"),
        (json!({ "operator": { "image": { "repository": "" } } }), "/operator/image/repository"),
        (json!({ "agent": { "image": { "tag": "a b" } } }), "/agent/image/tag"),
        (json!({ "agent": { "image": { "digest": "sha256:5a" } } }), "/agent/image/digest"),
        (json!({ "agent": { "image": { "pullPolicy": "Sometimes" } } }), "'Always', 'IfNotPresent', 'Never'"),
        (json!({ "logFormat": "xml" }), "'text', 'json'"),
        (
            json!({ "operator": { "resources": { "limits": { "memory": "much" } } } }),
            "/operator/resources/limits/memory",
        ),
        (json!({ "defaultPool": { "reservedPorts": [{ "port": 70_000 }] } }), "/defaultPool/reservedPorts/0/port"),
        (json!({ "defaultPool": { "listen": { "addresses": [{ "type": "CIDR" }] } } }), "'value'"),
        (json!({ "defaultPool": { "grants": [grant, grant] } }), "there are two grants named twin"),
        (
            of_grant(&json!({ "ports": [{ "port": 3306, "endPort": 3300 }] })),
            "grant a: endPort 3300 is below port 3306",
        ),
        (of_grant(&json!({ "targetCIDRs": ["10.30.1.0/33"] })), "/defaultPool/grants/0/targetCIDRs/0"),
        (of_grant(&json!({ "targetCIDRs": ["10.30.1.256/32"] })), "/defaultPool/grants/0/targetCIDRs/0"),
        (of_grant(&json!({ "sourceCIDRs": ["fd00::/129"] })), "/defaultPool/grants/0/sourceCIDRs/0"),
        (
            json!({ "defaultPool": { "reservedPorts": [{ "port": 9, "endPort": 8 }] } }),
            "reservedPorts: endPort 8 is below port 9",
        ),
        (
            json!({ "defaultPool": { "nodeSelector": { "matchLabels": { "sallyport.dev/gateway": null } } } }),
            "give it matchLabels or matchExpressions",
        ),
    ] {
        let error = helm::refusal(&values, &[])?;
        ensure!(error.contains(named), "{values}: {named} is not in: {error}");
    }
    Ok(())
}

#[test]
fn a_cluster_that_is_too_old_or_has_no_policies_is_refused_and_told_why() -> Result<()> {
    let too_old = helm::refusal(&json!({}), &["--kube-version", "1.30.9"])?;
    ensure!(too_old.contains("chart requires kubeVersion: >=1.31.0-0"), "{too_old}");
    // Kinds are known when Helm speaks to a cluster only; this is one that has pods and no policies.
    let without = helm::refusal(&json!({}), &["--api-versions", "v1/Pod"])?;
    ensure!(without.contains("does not serve admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy"), "{without}");
    let with = ["v1/Pod", "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"];
    let chart = helm::chart()?;
    let args =
        ["template", "sallyport", &*chart.to_string_lossy(), "--api-versions", with[0], "--api-versions", with[1]];
    ensure!(helm::run(&args)?.is_ok(), "a cluster with policies is refused");
    Ok(())
}
