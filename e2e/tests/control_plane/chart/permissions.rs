//! The roles of the chart: a role that is widened, or bound to somebody else, fails here.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use sallyport_e2e::permissions::{PERMISSIONS, USER_ROLES, account};
use serde_json::{Value, json};

use super::helm::{self, NAMESPACE};

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
            let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": name });
            ensure!(binding["roleRef"] == role, "{}", binding["roleRef"]);
            let subject = json!([{ "kind": "ServiceAccount", "name": account(name), "namespace": NAMESPACE }]);
            ensure!(binding["subjects"] == subject, "{}", binding["subjects"]);
            bound.insert(title(role_kind, binding)?);
        }
        let for_users = |role: &Value| USER_ROLES.iter().any(|(name, _)| role["metadata"]["name"] == *name);
        let roles = of_kind(role_kind).filter(|role| !for_users(role));
        let roles: BTreeSet<String> = roles.map(|role| title(role_kind, role)).collect::<Result<_>>()?;
        ensure!(bound == roles, "{roles:?} are bound as {bound:?}");
    }
    Ok(())
}

#[test]
fn roles_of_users_are_added_to_those_of_kubernetes_and_no_other_role_is() -> Result<()> {
    let objects = helm::objects(&helm::render(&json!({}))?)?;
    for role in objects.iter().filter(|object| object["kind"] == "ClusterRole" || object["kind"] == "Role") {
        let labels = role["metadata"]["labels"].as_object().context("a role has labels")?;
        let added = labels.iter().filter_map(|(label, value)| {
            let to = label.strip_prefix("rbac.authorization.k8s.io/aggregate-to-")?;
            (value == "true").then_some(to)
        });
        let added: BTreeSet<&str> = added.collect();
        let wanted = USER_ROLES.iter().find(|(name, _)| role["metadata"]["name"] == *name);
        let wanted: BTreeSet<&str> = wanted.into_iter().flat_map(|(_, to)| to.iter().copied()).collect();
        ensure!(added == wanted, "{} is added to {added:?}, not {wanted:?}", role["metadata"]["name"]);
    }
    Ok(())
}
