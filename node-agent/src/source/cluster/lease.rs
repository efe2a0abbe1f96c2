//! The agent's `Lease`: says that the agent lives. Renewed beside everything else, whatever the kernel does.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use sallyport_api::names::{AGENT_LEASE_PREFIX, AGENT_LEASE_SECONDS, AGENT_NAME};

use crate::source::cluster::within;

/// Four renewals fit into what the lease lasts.
const EVERY: Duration = Duration::from_secs(10);
/// Time until the next try after a failed one.
const RETRY: Duration = Duration::from_secs(2);

/// Renews the lease of `node` for ever.
pub async fn renew(client: Client, namespace: String, node: String) {
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let mut told = None;
    loop {
        let lease = lease(&node, jiff::Timestamp::now());
        let name = lease.metadata.name.clone().unwrap_or_default();
        let params = PatchParams::apply(AGENT_NAME).force();
        let outcome = within(leases.patch(&name, &params, &Patch::Apply(&lease))).await;
        let failed = outcome.err();
        if failed.is_some() && failed != told {
            tracing::warn!(error = failed, lease = name, "cannot renew the lease");
        }
        tokio::time::sleep(if failed.is_some() { RETRY } else { EVERY }).await;
        told = failed;
    }
}

fn lease(node: &str, now: jiff::Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(format!("{AGENT_LEASE_PREFIX}{node}")),
            labels: Some([("app.kubernetes.io/name".to_owned(), AGENT_NAME.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(AGENT_LEASE_SECONDS),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}
