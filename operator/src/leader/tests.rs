//! Who leads, and until when, against an API server that refuses, forgets or does not answer.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::{Value, json};

use super::*;
use crate::fixture::{Requests, api_server, respond};

fn held_by(holder: &str) -> Value {
    json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "sallyport-operator", "resourceVersion": "7" },
        "spec": { "holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": "1999-01-01T00:00:00.000000Z" } })
}

fn leadership() -> (Leadership, Requests) {
    let (client, requests) = api_server();
    (Leadership::new(Api::namespaced(client, "sallyport"), "sallyport-operator", "me"), requests)
}

/// Answers one request, and says what it was and what it held.
async fn serve(requests: &mut Requests, code: u16, answer: &Value) -> (String, Value) {
    let (request, send) = requests.next_request().await.unwrap();
    let method = request.method().to_string();
    let body = request.into_body().collect_bytes().await.unwrap();
    respond(send, code, answer);
    (method, serde_json::from_slice(&body).unwrap_or_default())
}

fn refusal(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": "no" })
}

/// One try against a lease that is so, whose replacement is answered so; the request that wanted to replace it.
async fn replace(
    leader: &Leadership,
    requests: &mut Requests,
    lease: &Value,
    code: u16,
    answer: &Value,
) -> (bool, Value) {
    let server = async {
        serve(requests, 200, lease).await;
        serve(requests, code, answer).await.1
    };
    let (outcome, body) = tokio::join!(leader.round(), server);
    (outcome.unwrap().is_none(), body)
}

#[tokio::test(start_paused = true)]
async fn a_holder_is_gone_only_after_its_time_by_our_own_clock() {
    let (leader, mut requests) = leadership();
    for wait in [0, 14] {
        tokio::time::advance(Duration::from_secs(wait)).await;
        let lease = held_by("other");
        let (outcome, _) = tokio::join!(leader.round(), serve(&mut requests, 200, &lease));
        assert_eq!(outcome.unwrap().as_deref(), Some("other"), "whatever renewTime says");
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    let (ours, body) = replace(&leader, &mut requests, &held_by("other"), 200, &held_by("me")).await;
    assert!(ours && leader.is_valid());
    assert_eq!((&body["spec"]["holderIdentity"], &body["metadata"]["resourceVersion"]), (&json!("me"), &json!("7")));
    assert_eq!(body["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_race_is_no_leadership() {
    let (leader, mut requests) = leadership();
    let (ours, _) = replace(&leader, &mut requests, &held_by(""), 409, &refusal(409, "Conflict")).await;
    assert!(!ours && !leader.is_valid());
}

#[tokio::test(start_paused = true)]
async fn leadership_ends_by_itself_before_the_lease_does() {
    let (leader, mut requests) = leadership();
    assert!(!leader.is_valid());
    replace(&leader, &mut requests, &held_by("me"), 200, &held_by("me")).await;
    tokio::time::advance(DEADLINE.saturating_sub(Duration::from_millis(1))).await;
    assert!(leader.is_valid());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(!leader.is_valid());
    assert!(DEADLINE < LEASE, "nobody else can have it before");
}

#[tokio::test(start_paused = true)]
async fn a_released_lease_has_no_holder_and_is_fenced_at_once() {
    let (leader, mut requests) = leadership();
    replace(&leader, &mut requests, &held_by("me"), 200, &held_by("me")).await;
    let server = async {
        serve(&mut requests, 200, &held_by("me")).await;
        assert!(!leader.is_valid(), "before the lease is handed back");
        serve(&mut requests, 200, &held_by("")).await
    };
    let ((), (method, body)) = tokio::join!(leader.release(), server);
    assert_eq!(method, "PUT");
    assert!(body["spec"].get("holderIdentity").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_as_we_wrote_it_ends_our_leadership() {
    let (leader, mut requests) = leadership();
    let at = |version: &str| {
        let mut lease = held_by("me");
        lease["metadata"]["resourceVersion"] = version.into();
        lease
    };
    for (read, written) in [("906", "907"), ("907", "908")] {
        let (ours, _) = replace(&leader, &mut requests, &at(read), 200, &at(written)).await;
        assert!(ours);
    }
    // Storage went back: everything that was seen since is of a past that never was.
    let older = at("12");
    let (outcome, _) = tokio::join!(leader.round(), serve(&mut requests, 200, &older));
    assert!(outcome.unwrap().is_some_and(|why| why.contains("restored")));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_of_which_nothing_was_heard_may_have_worked() {
    let (leader, mut requests) = leadership();
    replace(&leader, &mut requests, &held_by("me"), 200, &held_by("me")).await;
    let server = async {
        serve(&mut requests, 200, &held_by("me")).await;
        serve(&mut requests, 500, &refusal(500, "InternalError")).await
    };
    let (outcome, _) = tokio::join!(leader.round(), server);
    assert!(outcome.is_err());
    let mut lease = held_by("me");
    lease["metadata"]["resourceVersion"] = "8".into();
    let (ours, _) = replace(&leader, &mut requests, &lease, 200, &lease).await;
    assert!(ours);
}

#[tokio::test(start_paused = true)]
async fn the_time_is_that_of_the_api_server() {
    let (leader, mut requests) = leadership();
    let ours = Timestamp::now().duration_since(leader.now());
    assert!(ours.as_secs().abs() < 5, "nothing was heard of another clock yet");
    let mut lease = held_by("me");
    lease["metadata"]["managedFields"] = json!([
        { "manager": "sallyport-operator", "operation": "Update", "time": "2001-02-03T04:05:06Z" },
        { "manager": "somebody", "operation": "Update", "time": "2000-01-01T00:00:00Z" },
    ]);
    replace(&leader, &mut requests, &held_by("me"), 200, &lease).await;
    tokio::time::advance(Duration::from_mins(1)).await;
    assert_eq!(leader.now().to_string(), "2001-02-03T04:06:06Z");
}
