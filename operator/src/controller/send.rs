//! Sends a write to the API server, each kind as it is to be sent.
//!
//! When it is sent, and again after a failure, is up to `writer`.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use sallyport_api::forward_slice::{ForwardRef, ForwardSlice, ForwardSliceSpec};
use sallyport_api::gateway_node::{GatewayNode, GatewayNodeSpec};
use sallyport_api::gateway_pool::{GatewayPool, GatewayPoolStatus};
use sallyport_api::id::Uid;
use sallyport_api::names::{AGENT_LABEL, OPERATOR_NAME, POOL_LABEL};
use sallyport_api::port_forward::PortForward;
use serde_json::json;

use crate::controller::guard::DeserializeGuard;
use crate::controller::write::{Answer, ForwardReport, Write};

/// Longest time that one request may take.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends `write`, and returns with the answer.
pub(crate) async fn send(write: Write, client: Client) -> Result<Answer, kube::Error> {
    match write {
        Write::Slice(name, revision, spec) => {
            let new = send_slice(client, &name, revision, spec).await?;
            Ok(Answer::Slice(Box::new(new)))
        }
        Write::DeleteSlice(name) => {
            Api::<ForwardSlice>::all(client).delete(&name, &DeleteParams::default()).await?;
            Ok(Answer::SliceDeleted(name))
        }
        Write::Gateway(name, owner, spec) => {
            let new = send_gateway(client, name.as_str(), &owner, spec).await?;
            Ok(Answer::Gateway(Box::new(new)))
        }
        Write::DeleteGateway(name) => {
            Api::<GatewayNode>::all(client).delete(name.as_str(), &DeleteParams::default()).await?;
            Ok(Answer::GatewayDeleted(name))
        }
        Write::Label(name, wanted) => Ok(Answer::Node(Box::new(send_label(client, name.as_str(), wanted).await?))),
        Write::Finalizers(key, revision, wanted) => {
            let new = send_finalizers(client, &key, &revision, &wanted).await?;
            Ok(Answer::Forward(Box::new(new)))
        }
        Write::ForwardStatus(report) => {
            let new = send_forward_status(client, &report).await?;
            Ok(Answer::ForwardStatus(report, Box::new(new)))
        }
        Write::PoolStatus(name, status) => {
            let new = send_pool_status(client, &name, &status).await?;
            Ok(Answer::Pool(Box::new(new)))
        }
        Write::Drift(event) => {
            create_event(client, &event).await?;
            Ok(Answer::Drift(event))
        }
    }
}

/// Ours, whoever wrote it before.
fn apply() -> PatchParams {
    PatchParams::apply(OPERATOR_NAME).force()
}

/// Only the fields that are named.
fn merge() -> PatchParams {
    PatchParams { field_manager: Some(OPERATOR_NAME.into()), ..PatchParams::default() }
}

fn create() -> PostParams {
    PostParams { field_manager: Some(OPERATOR_NAME.into()), ..PostParams::default() }
}

async fn send_slice(
    client: Client,
    name: &str,
    revision: Option<String>,
    spec: ForwardSliceSpec,
) -> Result<DeserializeGuard<ForwardSlice>, kube::Error> {
    let labels = BTreeMap::from([(POOL_LABEL.to_owned(), spec.pool.clone())]);
    let mut slice = ForwardSlice::new(name, spec);
    slice.metadata.labels = Some(labels);
    // Whoever led before may still have a write under way: what it was decided upon must be what is there.
    if revision.is_some() {
        slice.metadata.resource_version = revision;
        return Api::all(client).patch(name, &apply(), &Patch::Apply(&slice)).await;
    }
    Ok(DeserializeGuard(Ok(Api::<ForwardSlice>::all(client).create(&create(), &slice).await?)))
}

async fn send_gateway(
    client: Client,
    name: &str,
    owner: &Uid,
    spec: GatewayNodeSpec,
) -> Result<DeserializeGuard<GatewayNode>, kube::Error> {
    let mut gateway = GatewayNode::new(name, spec);
    gateway.metadata.owner_references = Some(vec![OwnerReference {
        api_version: Node::api_version(&()).into_owned(),
        kind: Node::kind(&()).into_owned(),
        name: name.to_owned(),
        uid: owner.to_string(),
        ..OwnerReference::default()
    }]);
    Api::all(client).patch(name, &apply(), &Patch::Apply(&gateway)).await
}

async fn send_label(client: Client, name: &str, wanted: bool) -> Result<DeserializeGuard<Node>, kube::Error> {
    let api = Api::all(client);
    if wanted {
        let labels = BTreeMap::from([(AGENT_LABEL.to_owned(), String::new())]);
        let metadata = ObjectMeta { labels: Some(labels), ..ObjectMeta::default() };
        return api.patch(name, &apply(), &Patch::Apply(&Node { metadata, ..Node::default() })).await;
    }
    // Also takes away one that somebody else put there.
    let gone = json!({ "metadata": { "labels": { AGENT_LABEL: null } } });
    api.patch(name, &merge(), &Patch::Merge(&gone)).await
}

async fn send_finalizers(
    client: Client,
    key: &ForwardRef,
    revision: &str,
    wanted: &[String],
) -> Result<DeserializeGuard<PortForward>, kube::Error> {
    let patch = json!({ "metadata": { "resourceVersion": revision, "finalizers": wanted } });
    Api::namespaced(client, &key.namespace).patch(&key.name, &merge(), &Patch::Merge(&patch)).await
}

async fn send_forward_status(
    client: Client,
    ForwardReport { key, uid, status, unreadable, .. }: &ForwardReport,
) -> Result<DeserializeGuard<PortForward>, kube::Error> {
    let api = Api::<DeserializeGuard<PortForward>>::namespaced(client, &key.namespace);
    // Applying takes an object that is of its schema, which one that cannot be read is not: replace its status.
    if *unreadable {
        let whole = json!([
            { "op": "test", "path": "/metadata/uid", "value": uid },
            { "op": "add", "path": "/status", "value": status },
        ]);
        let whole = serde_json::from_value(whole).expect("these are operations of a JSON patch");
        return api.patch_status(&key.name, &merge(), &Patch::<()>::Json(whole)).await;
    }
    let patch = json!({
        "apiVersion": PortForward::api_version(&()),
        "kind": PortForward::kind(&()),
        "metadata": { "uid": uid },
        "status": status,
    });
    api.patch_status(&key.name, &apply(), &Patch::Apply(&patch)).await
}

async fn send_pool_status(
    client: Client,
    name: &str,
    status: &GatewayPoolStatus,
) -> Result<DeserializeGuard<GatewayPool>, kube::Error> {
    let patch = json!({
        "apiVersion": GatewayPool::api_version(&()),
        "kind": GatewayPool::kind(&()),
        "status": status,
    });
    Api::all(client).patch_status(name, &apply(), &Patch::Apply(&patch)).await
}

/// Creates an event, unless whoever led before has.
async fn create_event(client: Client, event: &Event) -> Result<(), kube::Error> {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    match Api::<Event>::namespaced(client, namespace).create(&create(), event).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        outcome => outcome.map(drop),
    }
}

#[cfg(test)]
mod tests;
