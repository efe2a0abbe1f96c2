//! The agent's `Lease`: says that the agent lives. Renewed beside everything else, whatever the kernel does.
//!
//! Nobody else writes it. If it is not as it was last written, the API server's storage has gone back to an older state,
//! and every watch follows a history that is no more.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use sallyport_api::names::{AGENT_LEASE_PREFIX, AGENT_LEASE_SECONDS, AGENT_NAME};
use sallyport_runtime::once::Once;
use tokio::sync::watch;

use crate::source::cluster::request::{RequestError, within};

/// Four renewals fit into what the lease lasts.
const EVERY: Duration = Duration::from_secs(10);
/// Time until the next try after a failed one.
const RETRY: Duration = Duration::from_secs(2);

/// Renews the lease of `node` for ever, and signals `restored` when it is not as it was last written.
pub(crate) async fn renew(client: Client, namespace: String, node: String, restored: watch::Sender<()>) {
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let mut failure: Once = Once::default();
    let mut written = None;
    loop {
        let mut lease = lease(&node, jiff::Timestamp::now());
        lease.metadata.resource_version.clone_from(&written);
        let name = lease.metadata.name.clone().unwrap_or_default();
        let params = PatchParams::apply(AGENT_NAME).force();
        let failed = match within(leases.patch(&name, &params, &Patch::Apply(&lease))).await {
            Ok(lease) => {
                written = lease.metadata.resource_version;
                None
            }
            // Gone, or at another version than was written.
            Err(RequestError::Failed(kube::Error::Api(status)))
                if written.is_some() && matches!(status.code, 400 | 404 | 409 | 422) =>
            {
                tracing::warn!(lease = name, "the lease is not as it was written; listing everything anew");
                written = None;
                restored.send_replace(());
                continue;
            }
            Err(error) => Some(error.to_string()),
        };
        match &failed {
            Some(error) if failure.is_news(error) => {
                tracing::warn!(error, lease = name, "cannot renew the lease");
            }
            Some(_) => {}
            None => _ = failure.clear(),
        }
        tokio::time::sleep(if failed.is_some() { RETRY } else { EVERY }).await;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_not_as_it_was_written_is_told_and_written_anew() {
        let (service, mut requests) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let (restored, mut receiver) = watch::channel(());
        tokio::spawn(renew(Client::new(service, "default"), "sallyport-system".into(), "gw1".into(), restored));
        let lease = |version: &str| {
            json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": { "name": "sallyport-agent-gw1", "resourceVersion": version } })
        };
        let conflict =
            json!({ "kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409, "message": "" });
        // What each write is based on, what it is answered, and whether that is signalled.
        let exchanges = [
            (Value::Null, 200, lease("907"), false),
            (json!("907"), 200, lease("908"), false),
            (json!("908"), 409, conflict, true),
            (Value::Null, 200, lease("12"), false),
            (json!("12"), 200, lease("13"), false),
        ];
        for (expected, code, answer, signalled) in exchanges {
            let (request, send) = requests.next_request().await.unwrap();
            let body = request.into_body().collect_bytes().await.unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["metadata"]["resourceVersion"], expected);
            let body = Body::from(answer.to_string().into_bytes());
            send.send_response(Response::builder().status(code).body(body).unwrap());
            if signalled {
                receiver.changed().await.unwrap();
            } else {
                assert!(!receiver.has_changed().unwrap());
            }
        }
    }
}
