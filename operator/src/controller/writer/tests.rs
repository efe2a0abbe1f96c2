//! How writes are sent: one at a time an object, later and later after failures, none without the lease.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use kube::api::Api;
use prometheus_client::registry::Registry;
use sallyport_api::ForwardSliceSpec;
use sallyport_runtime::tasks::Tasks;
use serde_json::{Value, json};

use super::*;
use crate::fixture::{Requests, api_server, respond};

fn slice(name: &str, hash: &str) -> Write {
    Write::Slice(
        name.into(),
        Some("1".into()),
        ForwardSliceSpec { pool: "default".into(), hash: hash.into(), forwards: Vec::new(), planned: Vec::new() },
    )
}

fn lease() -> Value {
    json!({ "metadata": { "name": "l", "resourceVersion": "1" }, "spec": { "holderIdentity": "me" } })
}

/// A writer whose replica leads.
async fn writer() -> (Writer, Requests) {
    let (client, mut requests) = api_server();
    let leadership = Arc::new(Leadership::new(Api::namespaced(client.clone(), "n"), "l", "me"));
    let server = async {
        for _ in 0..2 {
            let (_, send) = requests.next_request().await.unwrap();
            respond(send, 200, &lease());
        }
    };
    tokio::join!(leadership.acquire(), server);
    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    let events = Events::start(&mut Tasks::default(), client.clone(), "me");
    (Writer::new(client, events, leadership, metrics), requests)
}

/// Answers the next request with success or a refusal; says what it was sent to.
async fn serve(requests: &mut Requests, code: u16) -> String {
    let (request, send) = requests.next_request().await.unwrap();
    let path = request.uri().path().to_owned();
    let spec = json!({ "pool": "default", "hash": "h", "forwards": [] });
    let good = json!({ "metadata": { "name": "s", "resourceVersion": "5" }, "spec": spec });
    let bad = json!({ "kind": "Status", "status": "Failure", "reason": "Invalid", "code": code, "message": "no" });
    respond(send, code, if code == 200 { &good } else { &bad });
    path.rsplit('/').next().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn one_object_is_written_by_one_request_at_a_time() {
    let (mut writer, mut requests) = writer().await;
    writer.want(vec![slice("a", "1"), slice("b", "1")]);
    writer.want(vec![slice("a", "2"), slice("b", "1")]);
    for _ in 0..2 {
        let (_, (answer, _)) = tokio::join!(serve(&mut requests, 200), writer.next());
        assert!(answer.is_some());
    }
    assert!(writer.is_idle(), "what was left out comes with the next pass, which the answer asks for");
}

#[tokio::test(start_paused = true)]
async fn the_answer_asks_for_a_pass_when_something_was_left_out() {
    let (mut writer, mut requests) = writer().await;
    let status = |words: &str| {
        let status = sallyport_api::GatewayPoolStatus {
            conditions: vec![
                serde_json::from_value(json!({ "type": "Ready", "status": "True", "reason": "Ready",
                "message": words, "lastTransitionTime": "2026-01-01T00:00:00Z" }))
                .unwrap(),
            ],
            ..Default::default()
        };
        Write::PoolStatus("s".into(), Box::new(status))
    };
    writer.want(vec![status("one")]);
    let (_, (_, again)) = tokio::join!(serve(&mut requests, 200), writer.next());
    assert!(!again, "a status of ours changes no decision");
    writer.want(vec![status("one")]);
    writer.want(vec![status("two")]);
    let (_, (_, again)) = tokio::join!(serve(&mut requests, 200), writer.next());
    assert!(again);
}

#[tokio::test(start_paused = true)]
async fn what_failed_waits_longer_each_time_and_holds_nobody_up() {
    let (mut writer, mut requests) = writer().await;
    let mut last = Duration::ZERO;
    for _ in 0..3 {
        writer.want(vec![slice("a", "1")]);
        let (_, (answer, _)) = tokio::join!(serve(&mut requests, 422), writer.next());
        assert!(answer.is_none());
        let wait = writer.next_try().unwrap() - Instant::now();
        assert!(wait > last, "{wait:?}");
        last = wait;
        writer.want(vec![slice("a", "1"), slice("b", "1")]);
        let (path, _) = tokio::join!(serve(&mut requests, 200), writer.next());
        assert_eq!(path, "b");
        tokio::time::advance(wait).await;
    }
    // Another write to the same object is not what failed.
    writer.want(vec![slice("a", "2")]);
    let (path, _) = tokio::join!(serve(&mut requests, 200), writer.next());
    assert_eq!(path, "a");
    assert!(writer.is_idle());
}

#[tokio::test(start_paused = true)]
async fn who_does_not_lead_for_certain_writes_nothing() {
    let (mut writer, mut requests) = writer().await;
    tokio::time::advance(Duration::from_secs(11)).await;
    writer.want(vec![slice("a", "1")]);
    tokio::select! {
        biased;
        _ = writer.next() => panic!("nothing can have been written"),
        _ = requests.next_request() => panic!("a request was sent"),
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
}
