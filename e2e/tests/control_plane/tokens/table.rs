//! The permissions of a token as the API server judges them: equal to the written table, and every verb of every
//! resource that is not in it refused.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use http::Method;
use sallyport_e2e::control_plane::Api;
use sallyport_e2e::control_plane::scene::{PAYMENTS, SYSTEM};
use sallyport_e2e::permissions::{self, Verbs};
use serde_json::{Value, json};

/// A resource or subresource that the API server serves.
struct Resource {
    group: String,
    version: String,
    name: String,
    namespaced: bool,
    verbs: Vec<String>,
}

/// Compares what `api` may do with the table, and tries everything else. How many requests were refused.
pub fn everything_else_is_refused(account: &str, api: &Api, powerless: &Api) -> Result<usize> {
    for namespace in [SYSTEM, "default", PAYMENTS] {
        let (mut found, anybody) = (rules(api, namespace)?, rules(powerless, namespace)?);
        found.retain(|row, verbs| anybody.get(row) != Some(verbs));
        let table = permissions::of(account, namespace);
        ensure!(found == table, "{account} may do in {namespace}: {found:#?}\nand should: {table:#?}");
    }
    let served = served(api)?;
    let mut refused = 0;
    for namespace in [SYSTEM, PAYMENTS] {
        let mut allowed = rules(powerless, namespace)?;
        for (row, verbs) in permissions::of(account, namespace) {
            allowed.entry(row).or_default().extend(verbs);
        }
        for resource in served.iter().filter(|resource| resource.namespaced || namespace == SYSTEM) {
            let may = allowed.get(&(resource.group.clone(), resource.name.clone()));
            for verb in resource.verbs.iter().filter(|verb| may.is_none_or(|may| !may.contains(*verb))) {
                let (method, path) = resource.request(verb, namespace)?;
                // Permissions are looked at before what is sent.
                let code = api.send(&method, &path, "application/json", None)?.code;
                ensure!(code == 403, "{account}: {verb} {} ({method} {path}) gave {code}, not 403", resource.name);
                refused += 1;
            }
        }
    }
    ensure!(refused > 400, "only {refused} requests: has the API server not told of all its resources?");
    Ok(refused)
}

fn strings(value: &Value) -> impl Iterator<Item = String> + '_ {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
}

/// What the API server says that `api` may do in a namespace.
fn rules(api: &Api, namespace: &str) -> Result<Verbs> {
    let review = json!({ "spec": { "namespace": namespace } });
    let answer = api.create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &review)?;
    let status = &answer["status"];
    ensure!(status["incomplete"] == false, "the API server does not know all rules: {status}");
    let mut verbs = Verbs::new();
    for rule in status["resourceRules"].as_array().context("read the rules")? {
        let mut names: Vec<String> = strings(&rule["resourceNames"]).collect();
        names.sort();
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                let row = [&[resource], names.as_slice()].concat().join(" ");
                verbs.entry((group.clone(), row)).or_default().extend(strings(&rule["verbs"]));
            }
        }
    }
    Ok(verbs)
}

/// All resources of all groups.
fn served(api: &Api) -> Result<Vec<Resource>> {
    let groups = api.get("/apis")?.context("ask for the groups")?;
    let mut places: BTreeSet<String> = BTreeSet::from(["v1".to_owned()]);
    for group in groups["groups"].as_array().context("read the groups")? {
        places.extend(group["preferredVersion"]["groupVersion"].as_str().map(str::to_owned));
    }
    let mut served = Vec::new();
    for place in places {
        let (group, version) = place.split_once('/').unwrap_or(("", &place));
        let list = api.get(&root(group, version))?.context("ask for the resources")?;
        for resource in list["resources"].as_array().context("read the resources")? {
            served.push(Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                name: resource["name"].as_str().context("read a resource's name")?.to_owned(),
                namespaced: resource["namespaced"] == true,
                verbs: strings(&resource["verbs"]).collect(),
            });
        }
    }
    Ok(served)
}

fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

impl Resource {
    /// The request that stands for a verb: for an object that does not exist, where it is for one.
    fn request(&self, verb: &str, namespace: &str) -> Result<(Method, String)> {
        let (method, named) = match verb {
            "get" => (Method::GET, true),
            "list" | "watch" => (Method::GET, false),
            "create" => (Method::POST, false),
            "update" => (Method::PUT, true),
            "patch" => (Method::PATCH, true),
            "delete" => (Method::DELETE, true),
            "deletecollection" => (Method::DELETE, false),
            other => anyhow::bail!("{} has the verb {other}", self.name),
        };
        let mut path = root(&self.group, &self.version);
        if self.namespaced {
            path += &format!("/namespaces/{namespace}");
        }
        match self.name.split_once('/') {
            Some((resource, sub)) => path += &format!("/{resource}/absent/{sub}"),
            None if named => path += &format!("/{}/absent", self.name),
            None => path += &format!("/{}", self.name),
        }
        Ok((method, if verb == "watch" { path + "?watch=true" } else { path }))
    }
}
