//! The operator: decides which port-forwards of a cluster hold, and says in each status what the kernels really hold.

pub mod args;
pub mod controller;
pub mod daemonset;
#[cfg(test)]
mod fixture;
pub mod leader;
pub mod metrics;
pub mod run;

/// The custom resource definitions of this version, as one YAML stream for `kubectl apply --server-side -f -`.
pub fn crds() -> String {
    let documents: Vec<String> = sallyport_api::manifest::crds().iter().map(sallyport_api::manifest::yaml).collect();
    format!("---\n{}", documents.join("---\n"))
}
