//! The operator: decides which port-forwards of a cluster hold, and says in each status what the kernels really hold.

#![warn(unreachable_pub)]

pub mod args;
mod controller;
mod daemonset;
#[cfg(test)]
mod fixture;
mod leader;
mod metrics;
pub mod run;

/// The custom resource definitions of this version, as one YAML stream for `kubectl apply --server-side -f -`.
pub fn crds() -> String {
    let documents: Vec<String> = sallyport_api::manifest::crds().iter().map(sallyport_api::manifest::yaml).collect();
    format!("---\n{}", documents.join("---\n"))
}
