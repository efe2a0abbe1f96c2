//! When the status is written, and that it lands in the end.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::{Arc, Mutex};

use kube::Client;
use kube::api::ApiResource;
use kube::client::Body;

use super::*;

fn status(failures: i32) -> GatewayNodeStatus {
    GatewayNodeStatus { failures_total: failures, ..GatewayNodeStatus::default() }
}

fn seen(listing: u64, version: u64, status: Option<GatewayNodeStatus>) -> Seen {
    Seen { there: true, listing, version, status }
}

#[test]
fn a_status_is_due_when_the_api_holds_another_one() {
    let wrote = |answer| Written { wanted: status(1), answer, listing: 1, version: 5 };
    let same = Some(status(1));
    let rows = [
        ("nothing there", Seen::default(), None, false),
        ("no status yet", seen(1, 1, None), None, true),
        ("as after a restart", seen(1, 1, same.clone()), None, false),
        ("the watch is behind", seen(1, 4, None), Some(wrote(same.clone())), false),
        ("our own echo", seen(1, 5, same.clone()), Some(wrote(same.clone())), false),
        ("somebody wiped it", seen(1, 6, None), Some(wrote(same.clone())), true),
        ("somebody changed it", seen(1, 6, Some(status(9))), Some(wrote(same.clone())), true),
        ("made anew and deleted again", Seen { there: false, ..seen(1, 6, None) }, Some(wrote(same.clone())), false),
        ("an API server put back to an older state", seen(2, 3, None), Some(wrote(same.clone())), true),
        ("an older schema drops fields", seen(1, 5, Some(status(0))), Some(wrote(Some(status(0)))), false),
    ];
    for (what, seen, written, due) in rows {
        assert_eq!(is_due(&status(1), &seen, written.as_ref()), due, "{what}");
    }
    assert!(is_due(&status(2), &seen(1, 5, same.clone()), Some(&wrote(same))), "another one is wanted");
}

/// An API server that refuses the first `refusals` writes, and remembers every body.
fn api(refusals: usize) -> (Api<DynamicObject>, Arc<Mutex<Vec<Value>>>) {
    let (service, mut handle) = tower_test::mock::pair::<http::Request<Body>, http::Response<Body>>();
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&bodies);
    tokio::spawn(async move {
        while let Some((request, send)) = handle.next_request().await {
            assert_eq!(request.uri().path(), "/apis/sallyport.dev/v1alpha1/gatewaynodes/gw1/status");
            let bytes = request.into_body().collect_bytes().await.unwrap();
            let mut object: Value = serde_json::from_slice(&bytes).unwrap();
            let count = {
                let mut bodies = record.lock().unwrap();
                bodies.push(object.clone());
                bodies.len()
            };
            let (code, answer) = if count <= refusals {
                (503, json!({ "status": "Failure", "message": "busy", "code": 503 }))
            } else {
                object["metadata"]["resourceVersion"] = json!((400 * count - 299).to_string());
                (200, object)
            };
            let body = Body::from(serde_json::to_vec(&answer).unwrap());
            send.send_response(http::Response::builder().status(code).body(body).unwrap());
        }
    });
    let nodes = Api::all_with(Client::new(service, "default"), &ApiResource::erase::<GatewayNode>(&()));
    (nodes, bodies)
}

/// Waits, in paused time, until that many writes were made.
async fn writes(bodies: &Arc<Mutex<Vec<Value>>>, count: usize) -> Vec<i64> {
    for _ in 0..1000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if bodies.lock().unwrap().len() >= count {
            break;
        }
    }
    bodies.lock().unwrap().iter().map(|body| body["status"]["failuresTotal"].as_i64().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_refused_write_is_repeated_and_the_newest_status_wins() {
    let (nodes, bodies) = api(2);
    let mut tasks = Tasks::default();
    let writer = StatusWriter::start(&mut tasks, nodes, "gw1".to_owned());
    writer.want(status(1));
    assert_eq!(writes(&bodies, 1).await, Vec::<i64>::new(), "nobody has seen the object yet");
    writer.saw(seen(1, 1, None));
    assert_eq!(writes(&bodies, 2).await[..2], [1, 1]);
    writer.want(status(2));
    assert_eq!(writes(&bodies, 3).await.last(), Some(&2));
    let settled = writes(&bodies, 4).await;
    assert_eq!(settled.last(), Some(&2));
    assert!(settled.len() <= 4, "{settled:?}");
}

#[tokio::test(start_paused = true)]
async fn a_status_is_written_once_and_again_when_the_object_was_made_anew() {
    let (nodes, bodies) = api(0);
    let mut tasks = Tasks::default();
    let writer = StatusWriter::start(&mut tasks, nodes, "gw1".to_owned());
    writer.saw(seen(1, 1, None));
    writer.want(status(1));
    assert_eq!(writes(&bodies, 1).await, [1]);
    let body = bodies.lock().unwrap()[0].clone();
    assert_eq!((&body["kind"], &body["metadata"]["name"]), (&json!("GatewayNode"), &json!("gw1")));

    writer.want(status(1));
    writer.saw(seen(1, 101, Some(status(1))));
    assert_eq!(writes(&bodies, 2).await, [1], "nothing new");
    writer.saw(seen(1, 300, None));
    assert_eq!(writes(&bodies, 2).await, [1, 1]);
}
