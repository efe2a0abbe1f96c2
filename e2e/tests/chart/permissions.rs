//! What the programs may do, as a table: a role that is widened, or bound to somebody else, fails here.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::helm::{self, NAMESPACE};

/// Role, API group, resource (with the names that it is limited to), verbs.
const PERMISSIONS: &[(&str, &str, &str, &str)] = &[
    ("ClusterRole sallyport-node-agent", "sallyport.dev", "gatewaynodes", "get list watch"),
    ("ClusterRole sallyport-node-agent", "sallyport.dev", "gatewaynodes/status", "patch"),
    ("ClusterRole sallyport-node-agent", "sallyport.dev", "forwardslices", "get list watch"),
    ("Role sallyport-system/sallyport-node-agent", "coordination.k8s.io", "leases", "create get patch update"),
    ("ClusterRole sallyport-operator", "sallyport.dev", "portforwards", "get list patch update watch"),
    ("ClusterRole sallyport-operator", "sallyport.dev", "portforwards/status", "patch update"),
    ("ClusterRole sallyport-operator", "sallyport.dev", "gatewaypools", "create get list patch watch"),
    ("ClusterRole sallyport-operator", "sallyport.dev", "gatewaypools/status", "patch"),
    ("ClusterRole sallyport-operator", "sallyport.dev", "forwardslices", "create delete get list patch update watch"),
    ("ClusterRole sallyport-operator", "sallyport.dev", "gatewaynodes", "create delete get list patch update watch"),
    ("ClusterRole sallyport-operator", "", "nodes", "get list patch watch"),
    ("ClusterRole sallyport-operator", "", "namespaces", "get list watch"),
    ("ClusterRole sallyport-operator", "apiextensions.k8s.io", "customresourcedefinitions", "list watch"),
    (
        "ClusterRole sallyport-operator",
        "apiextensions.k8s.io",
        "customresourcedefinitions forwardslices.sallyport.dev gatewaynodes.sallyport.dev gatewaypools.sallyport.dev \
         portforwards.sallyport.dev",
        "get",
    ),
    ("ClusterRole sallyport-operator", "networking.k8s.io", "servicecidrs", "get list watch"),
    ("ClusterRole sallyport-operator", "events.k8s.io", "events", "create patch"),
    ("Role default/sallyport-operator-api-server", "discovery.k8s.io", "endpointslices", "get list watch"),
    ("Role sallyport-system/sallyport-operator", "apps", "daemonsets", "create list watch"),
    ("Role sallyport-system/sallyport-operator", "apps", "daemonsets sallyport-node-agent", "delete get patch"),
    ("Role sallyport-system/sallyport-operator", "apps", "deployments/scale sallyport-operator", "get patch"),
    (
        "Role sallyport-system/sallyport-operator",
        "coordination.k8s.io",
        "leases",
        "create delete get list patch update watch",
    ),
];

type Table = BTreeMap<(String, String, String), BTreeSet<String>>;

/// `Kind name`, or `Kind namespace/name`.
fn title(kind: &str, object: &Value) -> Result<String> {
    let name = object["metadata"]["name"].as_str().context("a role has a name")?;
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    })
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The rules of all roles, one row a role, group and resource.
fn rendered(objects: &[Value]) -> Result<Table> {
    let mut table = Table::new();
    for role in objects {
        let kind = role["kind"].as_str().unwrap_or_default();
        if kind != "Role" && kind != "ClusterRole" {
            continue;
        }
        ensure!(role["aggregationRule"].is_null(), "{kind} grows by what others add");
        for rule in role["rules"].as_array().context("a role has rules")? {
            ensure!(rule["nonResourceURLs"].is_null(), "{rule}");
            let mut names = strings(&rule["resourceNames"]);
            names.sort();
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    let resource = [&[resource], names.as_slice()].concat().join(" ");
                    let row = table.entry((title(kind, role)?, group.clone(), resource)).or_default();
                    row.extend(strings(&rule["verbs"]));
                }
            }
        }
    }
    Ok(table)
}

#[test]
fn roles_permit_what_the_table_says_and_no_more() -> Result<()> {
    let expected: Table = PERMISSIONS
        .iter()
        .map(|(role, group, resource, verbs)| {
            let key = ((*role).to_owned(), (*group).to_owned(), (*resource).to_owned());
            (key, verbs.split(' ').map(str::to_owned).collect())
        })
        .collect();
    let found = rendered(&helm::objects(&helm::render(&json!({}))?)?)?;
    for (row, verbs) in &found {
        ensure!(expected.get(row) == Some(verbs), "not in the table: {row:?} {verbs:?}");
    }
    for (row, verbs) in &expected {
        ensure!(found.contains_key(row), "in the table only: {row:?} {verbs:?}");
    }
    Ok(())
}

#[test]
fn each_role_is_bound_to_the_one_account_that_it_is_for() -> Result<()> {
    let objects = helm::objects(&helm::render(&json!({}))?)?;
    let of_kind = |wanted: &'static str| objects.iter().filter(move |object| object["kind"] == wanted);
    for (role_kind, binding_kind) in [("Role", "RoleBinding"), ("ClusterRole", "ClusterRoleBinding")] {
        let mut bound = BTreeSet::new();
        for binding in of_kind(binding_kind) {
            let name = binding["metadata"]["name"].as_str().context("a binding has a name")?;
            let account = name.trim_end_matches("-api-server");
            let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": name });
            ensure!(binding["roleRef"] == role, "{}", binding["roleRef"]);
            let subject = json!([{ "kind": "ServiceAccount", "name": account, "namespace": NAMESPACE }]);
            ensure!(binding["subjects"] == subject, "{}", binding["subjects"]);
            bound.insert(title(role_kind, binding)?);
        }
        let roles: BTreeSet<String> = of_kind(role_kind).map(|role| title(role_kind, role)).collect::<Result<_>>()?;
        ensure!(bound == roles, "{roles:?} are bound as {bound:?}");
    }
    Ok(())
}
