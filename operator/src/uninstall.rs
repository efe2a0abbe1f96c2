//! `uninstall`: takes Sallyport off the cluster, gateways first.
//!
//! It stops the operator, takes its lease, and runs the same loop with the aim that nothing is left. What users wrote
//! stays: forwards, pools and their definitions.

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use sallyport_api::names::{AGENT_LEASE_PREFIX, OPERATOR_NAME};
use serde_json::json;

/// Stops every replica of the operator, if there is any.
pub async fn stop_operator(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let api = Api::<Deployment>::namespaced(client.clone(), namespace);
    let none = json!({ "spec": { "replicas": 0 } });
    match api.patch_scale(OPERATOR_NAME, &PatchParams::default(), &Patch::Merge(&none)).await {
        Ok(_) => tracing::info!("the operator is stopped"),
        Err(kube::Error::Api(status)) if status.is_not_found() => tracing::info!("no operator is installed here"),
        Err(error) => return Err(error).context("failed to stop the operator"),
    }
    Ok(())
}

/// Deletes the leases of the operator and of the agents, which nobody renews any more.
pub async fn delete_leases(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let api = Api::<Lease>::namespaced(client.clone(), namespace);
    let leases = api.list_metadata(&ListParams::default()).await.context("failed to list the leases")?;
    let names = leases.items.into_iter().filter_map(|lease| lease.metadata.name);
    for name in names.filter(|name| name == OPERATOR_NAME || name.starts_with(AGENT_LEASE_PREFIX)) {
        match api.delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            deleted => drop(deleted.with_context(|| format!("failed to delete the lease {name}"))?),
        }
    }
    Ok(())
}
