//! What the programs' tokens may do in a cluster, and what is added to users' roles, written down once. The chart's roles
//! are compared with it as they are rendered, and the tokens as an API server judges them: who widens a role has to widen
//! this table.

use std::collections::{BTreeMap, BTreeSet};

/// Role, API group, resource (with the names that it is limited to), verbs.
pub const PERMISSIONS: &[(&str, &str, &str, &str)] = &[
    ("ClusterRole sallyport-node-agent", "sallyport.dev", "gatewaynodes", "get list watch"),
    ("ClusterRole sallyport-node-agent", "sallyport.dev", "gatewaynodes/status", "patch"),
    ("ClusterRole sallyport-node-agent", "sallyport.dev", "forwardslices", "get list watch"),
    ("Role sallyport-system/sallyport-node-agent", "coordination.k8s.io", "leases", "create patch"),
    ("ClusterRole sallyport-operator", "sallyport.dev", "portforwards", "get list patch watch"),
    ("ClusterRole sallyport-operator", "sallyport.dev", "portforwards/status", "patch"),
    ("ClusterRole sallyport-operator", "sallyport.dev", "gatewaypools", "create get list patch watch"),
    ("ClusterRole sallyport-operator", "sallyport.dev", "gatewaypools/status", "patch"),
    ("ClusterRole sallyport-operator", "sallyport.dev", "forwardslices", "create delete get list patch watch"),
    ("ClusterRole sallyport-operator", "sallyport.dev", "gatewaynodes", "create delete get list patch watch"),
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
    ("Role sallyport-system/sallyport-operator", "apps", "daemonsets sallyport-node-agent", "delete get update"),
    ("Role sallyport-system/sallyport-operator", "apps", "deployments/scale sallyport-operator", "get patch"),
    (
        "Role sallyport-system/sallyport-operator",
        "coordination.k8s.io",
        "leases",
        "create delete get list update watch",
    ),
    (
        "ClusterRole sallyport-edit",
        "sallyport.dev",
        "portforwards",
        "create delete deletecollection get list patch update watch",
    ),
    ("ClusterRole sallyport-view", "sallyport.dev", "portforwards", "get list watch"),
];

/// The roles of users, and which roles of Kubernetes they are added to.
pub const USER_ROLES: &[(&str, &[&str])] = &[("sallyport-edit", &["admin", "edit"]), ("sallyport-view", &["view"])];

/// Verbs by API group and resource, which has the names that it is limited to behind it.
pub type Verbs = BTreeMap<(String, String), BTreeSet<String>>;

/// The account that a role is for.
#[must_use]
pub fn account(role: &str) -> &str {
    role.trim_end_matches("-api-server")
}

/// What the table says that an account may do in a namespace.
#[must_use]
pub fn of(wanted: &str, namespace: &str) -> Verbs {
    let mut verbs = Verbs::new();
    for (role, group, resource, may) in PERMISSIONS {
        let name = role.split([' ', '/']).next_back().unwrap_or_default();
        let here = role.starts_with("ClusterRole ") || role.starts_with(&format!("Role {namespace}/"));
        if here && account(name) == wanted {
            let row = verbs.entry(((*group).to_owned(), (*resource).to_owned())).or_default();
            row.extend(may.split(' ').map(str::to_owned));
        }
    }
    verbs
}
