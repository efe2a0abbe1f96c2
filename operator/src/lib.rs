//! The operator's program. Today it carries the API: watching a cluster is not here yet, and the README says so.

pub mod args;

/// The custom resource definitions of this version, as one YAML stream for `kubectl apply --server-side -f -`.
pub fn crds() -> String {
    let documents: Vec<String> = sallyport_api::manifest::crds().iter().map(sallyport_api::manifest::yaml).collect();
    format!("---\n{}", documents.join("---\n"))
}
