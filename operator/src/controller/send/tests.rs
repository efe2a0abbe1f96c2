//! What the API server gets of each kind of write.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use sallyport_api::id::Moment;
use sallyport_api::port_forward::PortForwardStatus;
use serde_json::Value;

use super::*;
use crate::controller::drift::Drifts;
use crate::controller::store::Store;
use crate::fixture::Scene;

/// Sends a write to an API server that answers with what it got; what it got.
async fn sent(write: Write) -> (String, Value) {
    let (client, mut handle) = crate::fixture::api_server();
    let served = async {
        let (request, answer) = handle.next_request().await.unwrap();
        let said = format!("{} {}", request.method(), request.uri());
        let body: Value = serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
        let mut object = if body.is_object() { body.clone() } else { json!({}) };
        object["metadata"]["name"] = "gw1".into();
        object["metadata"]["labels"] = json!({});
        crate::fixture::respond(answer, 200, &object);
        (said, body)
    };
    let (sent, served) = tokio::join!(send(write, client), served);
    assert!(sent.is_ok(), "{:?}", sent.err());
    served
}

#[tokio::test]
async fn labels_and_owners_are_what_the_api_server_gets() {
    let (said, body) = sent(Write::Label("gw1".into(), true)).await;
    assert_eq!(said, "PATCH /api/v1/nodes/gw1?&force=true&fieldManager=sallyport-operator");
    assert_eq!(body["metadata"], json!({ "labels": { AGENT_LABEL: "" } }), "and nothing else of the node");
    let (_, body) = sent(Write::Label("gw1".into(), false)).await;
    assert_eq!(body, json!({ "metadata": { "labels": { AGENT_LABEL: null } } }));
    let spec = Scene::settled(&["gw1"], &[]).gateway("gw1").spec;
    let (_, body) = sent(Write::Gateway("gw1".into(), "u".into(), spec)).await;
    assert_eq!(
        body["metadata"]["ownerReferences"],
        json!([{ "apiVersion": "v1", "kind": "Node", "name": "gw1", "uid": "u" }])
    );
}

#[tokio::test]
async fn a_status_is_for_the_object_of_this_uid_only() {
    let key = ForwardRef { namespace: "apps".into(), name: "a".into() };
    let report = |unreadable| ForwardReport {
        key: key.clone(),
        uid: "u".into(),
        status: PortForwardStatus::default(),
        before: PortForwardStatus::default(),
        unreadable,
    };
    let (said, body) = sent(Write::ForwardStatus(Box::new(report(false)))).await;
    assert!(said.starts_with("PATCH /apis/sallyport.dev/v1alpha1/namespaces/apps/portforwards/a/status?"), "{said}");
    assert_eq!(body["metadata"], json!({ "uid": "u" }));
    assert!(body.get("spec").is_none());
    // Of what cannot be read the whole status is replaced: nothing is left that was said of its better days.
    let (_, body) = sent(Write::ForwardStatus(Box::new(report(true)))).await;
    assert_eq!(body[0], json!({ "op": "test", "path": "/metadata/uid", "value": "u" }));
    assert_eq!(body[1], json!({ "op": "add", "path": "/status", "value": {} }));
}

#[tokio::test]
async fn a_repair_that_was_told_already_is_told() {
    let drift = json!({ "time": "2026-01-01T00:00:00Z", "message": "jump" });
    let (mut store, mut drifts) = (Store::default(), Drifts::default());
    let object = json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "GatewayNode", "metadata": { "name": "gw1", "resourceVersion": "1" },
        "spec": { "pool": "default", "state": "Active" }, "status": { "lastDrift": drift },
    });
    store.gateways.feed(kube::runtime::watcher::Event::Apply(crate::fixture::guard(object)));
    for code in [503, 409] {
        let write = drifts.writes(&store.gateways, Moment::default()).remove(0);
        let (client, mut handle) = crate::fixture::api_server();
        let refused = async {
            let (request, answer) = handle.next_request().await.unwrap();
            assert!(request.uri().path().ends_with("/namespaces/default/events"), "{}", request.uri());
            let reason = if code == 409 { "AlreadyExists" } else { "ServiceUnavailable" };
            let status = json!({ "kind": "Status", "status": "Failure", "reason": reason, "code": code });
            crate::fixture::respond(answer, code, &status);
        };
        let (answer, ()) = tokio::join!(send(write, client), refused);
        assert_eq!(answer.is_ok(), code == 409);
        if let Ok(Answer::Drift(event)) = answer {
            drifts.reported(*event);
        }
    }
    assert_eq!(drifts.writes(&store.gateways, Moment::default()), []);
}
