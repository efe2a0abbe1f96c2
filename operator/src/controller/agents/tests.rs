//! The agents' `DaemonSet`, kept by an API server that takes, compares or refuses what it is sent.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use prometheus_client::registry::Registry;
use sallyport_runtime::tasks::Tasks;
use serde_json::{Value, json};

use super::*;
use crate::fixture::{Requests, api_server, respond};

fn wanted() -> DaemonSet {
    let pod = json!({ "containers": [{ "name": "agent", "image": "wanted" }] });
    let spec = json!({ "selector": {}, "template": { "spec": pod } });
    let metadata = json!({ "name": AGENT_NAME, "labels": { "ours": "1" } });
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
}

/// An API server with one `DaemonSet`, whose generation rises with each change of the spec.
struct Server {
    requests: Requests,
    _tasks: Tasks,
    set: Value,
    /// What was asked of it: `create`, `compare`, `replace`, or an event's reason.
    asked: Vec<String>,
    /// What it answers to everything about `DaemonSet`s, if not what it should.
    refuses: Option<u16>,
}

impl Server {
    async fn serve(&mut self) {
        loop {
            let (request, to) = self.requests.next_request().await.unwrap();
            let dry = request.uri().query().is_some_and(|query| query.contains("dryRun=All"));
            let (path, method) = (request.uri().path().to_owned(), request.method().as_str().to_owned());
            let body = request.into_body().collect_bytes().await.unwrap();
            let mut sent: Value = serde_json::from_slice(&body).unwrap();
            if path.contains("/events") {
                // One that repeats itself is counted in the first.
                self.asked.push(sent["reason"].as_str().unwrap_or("again").to_owned());
                respond(to, 201, &sent);
                continue;
            }
            self.asked.push(
                if dry {
                    "compare"
                } else if method == "POST" {
                    "create"
                } else {
                    "replace"
                }
                .to_owned(),
            );
            if let Some(code) = self.refuses {
                respond(
                    to,
                    code,
                    &json!({
                        "kind": "Status", "status": "Failure", "message": "no", "code": code,
                        "reason": if code == 409 { "Conflict" } else { "Forbidden" },
                    }),
                );
                continue;
            }
            let generation = self.set["metadata"]["generation"].as_i64().unwrap_or_default();
            let changed = i64::from(sent["spec"] != self.set["spec"]);
            sent["metadata"]["generation"] = (generation + changed).into();
            sent["metadata"]["uid"] = "u".into();
            if !dry {
                self.set = sent.clone();
            }
            respond(to, 200, &sent);
        }
    }

    /// Somebody changes the spec.
    fn change(&mut self) {
        self.set["spec"]["template"]["spec"]["hostPID"] = true.into();
        self.set["metadata"]["generation"] = (self.set["metadata"]["generation"].as_i64().unwrap() + 1).into();
    }
}

async fn scene() -> (Agents, Server) {
    let (client, mut requests) = api_server();
    let leadership = Arc::new(Leadership::new(Api::namespaced(client.clone(), "n"), "l", "me"));
    let lease = json!({ "metadata": { "name": "l", "resourceVersion": "1" }, "spec": { "holderIdentity": "me" } });
    let server = async {
        for _ in 0..2 {
            let (_, to) = requests.next_request().await.unwrap();
            respond(to, 200, &lease);
        }
    };
    tokio::join!(leadership.acquire(), server);
    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    let mut tasks = Tasks::default();
    let events = Events::start(&mut tasks, client.clone(), "me");
    let agents = Agents::new(client, "n", events, leadership, metrics);
    (agents, Server { requests, _tasks: tasks, set: Value::Null, asked: Vec::new(), refuses: None })
}

/// One pass; what was asked of the API server in it.
async fn pass(agents: &mut Agents, server: &mut Server) -> Vec<String> {
    let existing: Option<DaemonSet> = serde_json::from_value(server.set.clone()).unwrap();
    let work = async {
        let written = agents.settle(existing.as_ref(), &wanted()).await;
        // Events are sent beside everything else.
        tokio::time::sleep(Duration::from_millis(1)).await;
        written
    };
    // It has led all the time.
    let written = tokio::select! { written = work => written, () = server.serve() => None };
    if let Some(written) = written {
        assert_eq!(json!(written)["metadata"], server.set["metadata"]);
    }
    std::mem::take(&mut server.asked)
}

const NOTHING: [&str; 0] = [];

#[tokio::test(start_paused = true)]
async fn what_is_right_is_compared_once_and_then_left_alone() {
    let (mut agents, mut server) = scene().await;
    assert_eq!(pass(&mut agents, &mut server).await, ["create"]);
    assert_eq!(pass(&mut agents, &mut server).await, NOTHING);
    // Whoever leads next does not know it yet.
    let set = std::mem::take(&mut server.set);
    (agents, server) = scene().await;
    server.set = set;
    assert_eq!(pass(&mut agents, &mut server).await, ["compare"]);
    assert_eq!(pass(&mut agents, &mut server).await, NOTHING);
    server.set["metadata"]["labels"] = json!({ "theirs": "2" });
    assert_eq!(pass(&mut agents, &mut server).await, ["compare", "replace", "DaemonSetRestored"]);
    assert_eq!(server.set["metadata"]["labels"], json!({ "ours": "1", "theirs": "2" }));
    assert_eq!(pass(&mut agents, &mut server).await, NOTHING);
}

#[tokio::test(start_paused = true)]
async fn a_template_of_another_version_is_replaced_without_alarm() {
    let (mut agents, mut server) = scene().await;
    server.set = json!(wanted());
    server.set["metadata"]["uid"] = "u".into();
    server.set["metadata"]["generation"] = 7.into();
    server.change();
    assert_eq!(pass(&mut agents, &mut server).await, ["compare", "replace"]);
    assert_eq!(server.set["spec"], json!(wanted().spec));
    assert_eq!(pass(&mut agents, &mut server).await, NOTHING);
}

#[tokio::test(start_paused = true)]
async fn what_returns_three_times_within_a_minute_is_left_alone_and_taken_up_again_later() {
    let (mut agents, mut server) = scene().await;
    pass(&mut agents, &mut server).await;
    for _ in 0..2 {
        for _ in 0..TIMES {
            server.change();
            assert_eq!(pass(&mut agents, &mut server).await[..2], ["compare", "replace"]);
        }
        server.change();
        let contested = pass(&mut agents, &mut server).await;
        assert!(contested.len() == 2 && contested[0] == "compare", "told, and no more: {contested:?}");
        assert_eq!(pass(&mut agents, &mut server).await, NOTHING);
        assert_eq!(server.set["spec"]["template"]["spec"]["hostPID"], true);
        // One that is gone is made again all the same.
        let set = std::mem::take(&mut server.set);
        assert_eq!(pass(&mut agents, &mut server).await, ["create"]);
        server.set = set;
        tokio::time::advance(TRUCE + WINDOW).await;
        lead(&mut agents, &mut server).await;
    }
}

#[tokio::test(start_paused = true)]
async fn changes_further_apart_are_all_put_back() {
    let (mut agents, mut server) = scene().await;
    pass(&mut agents, &mut server).await;
    for _ in 0..3 * TIMES {
        tokio::time::advance(WINDOW / 2).await;
        lead(&mut agents, &mut server).await;
        server.change();
        assert_eq!(pass(&mut agents, &mut server).await[..2], ["compare", "replace"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_write_is_tried_again_less_and_less_often() {
    let (mut agents, mut server) = scene().await;
    server.refuses = Some(403);
    assert_eq!(pass(&mut agents, &mut server).await, ["create"]);
    assert_eq!(pass(&mut agents, &mut server).await, NOTHING);
    let first = agents.next_look().unwrap();
    tokio::time::sleep_until(first).await;
    assert_eq!(pass(&mut agents, &mut server).await, ["create"]);
    assert!(agents.next_look().unwrap() - first >= 2 * FIRST_WAIT);
    server.refuses = None;
    tokio::time::sleep_until(agents.next_look().unwrap()).await;
    assert_eq!(pass(&mut agents, &mut server).await, ["create"]);
    assert_eq!((agents.next_look(), agents.backoff), (None, Backoff::new(FIRST_WAIT, LONGEST_WAIT)));
}

#[tokio::test(start_paused = true)]
async fn an_outdated_write_is_no_failure_and_is_tried_again_soon() {
    let (mut agents, mut server) = scene().await;
    pass(&mut agents, &mut server).await;
    server.change();
    for _ in 0..5 {
        server.refuses = Some(409);
        assert_eq!(pass(&mut agents, &mut server).await, ["compare"]);
        assert_eq!((&agents.backoff, agents.trouble.last()), (&Backoff::new(FIRST_WAIT, LONGEST_WAIT), None));
        tokio::time::advance(FIRST_WAIT).await;
    }
    server.refuses = None;
    assert_eq!(pass(&mut agents, &mut server).await, ["compare", "replace", "DaemonSetRestored"]);
}

/// Renews the lease, which has run out while the clock was moved.
async fn lead(agents: &mut Agents, server: &mut Server) {
    let lease = json!({ "metadata": { "name": "l", "resourceVersion": "1" }, "spec": { "holderIdentity": "me" } });
    let renew = async {
        for _ in 0..2 {
            let (_, to) = server.requests.next_request().await.unwrap();
            respond(to, 200, &lease);
        }
    };
    tokio::join!(agents.leadership.acquire(), renew);
}
