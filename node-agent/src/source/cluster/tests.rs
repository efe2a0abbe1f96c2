//! From events of the watches to intents and a status; the API server is a mock that answers nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use kube::client::Body;
use sallyport_ruleset::iptables::drift::{Difference, Kind};
use serde_json::json;

use super::*;
use crate::converge::fake::{forward, intents};
use crate::converge::{Error, Report};
use crate::state::StateDir;

struct Scene {
    _guard: tempfile::TempDir,
    /// Kept open, so that requests stay without an answer.
    _silent: tower_test::mock::Handle<http::Request<Body>, http::Response<Body>>,
    tasks: Tasks,
    host: ThisHost,
    cluster: Cluster,
    /// What became of the last pass.
    last: Option<PassReport>,
}

fn scene() -> Scene {
    let guard = tempfile::tempdir().unwrap();
    let state = Rc::new(StateDir::lock(&guard.path().join("state")).unwrap());
    let (service, silent) = tower_test::mock::pair();
    let mut tasks = Tasks::default();
    let cluster = new(&mut tasks, Client::new(service, "default"));
    Scene { _guard: guard, _silent: silent, tasks, host: ThisHost::new(state), cluster, last: None }
}

fn new(tasks: &mut Tasks, client: Client) -> Cluster {
    Cluster::new(tasks, client, "gw1", watch::channel(()).1)
}

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn node(generation: i64, state: &str) -> DynamicObject {
    object(json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "GatewayNode",
        "metadata": { "name": "gw1", "generation": generation, "resourceVersion": generation.to_string() },
        "spec": { "pool": "default", "state": state, "addresses": ["10.30.1.78"] },
    }))
}

fn slice(name: &str, manifests: &str) -> DynamicObject {
    let forwards: Vec<_> = intents(manifests).forwards().cloned().collect();
    object(json!({
        "apiVersion": "sallyport.dev/v1alpha1", "kind": "ForwardSlice", "metadata": { "name": name },
        "spec": { "pool": "default", "hash": "", "forwards": forwards },
    }))
}

impl Scene {
    fn list_node(&mut self, node: Option<DynamicObject>) {
        self.cluster.take_node(WatchEvent::Init);
        if let Some(node) = node {
            self.cluster.take_node(WatchEvent::InitApply(node));
        }
        self.cluster.take_node(WatchEvent::InitDone);
    }

    fn list_slices(&mut self, slices: Vec<DynamicObject>) {
        self.cluster.take_slice(WatchEvent::Init);
        for slice in slices {
            self.cluster.take_slice(WatchEvent::InitApply(slice));
        }
        self.cluster.take_slice(WatchEvent::InitDone);
    }

    /// As the loop asks.
    async fn look(&mut self) -> Option<Rc<Intents>> {
        let moved = self.host.refresh_addresses();
        match self.cluster.decide(&mut self.host, moved).await {
            News::Intents(decided) => return Some(decided),
            News::Objects => self.update(|_| {}),
            News::None => {}
        }
        None
    }

    fn pass(&mut self, intents: &Rc<Intents>, drift: Option<&str>, outcome: Result<Report, Error>) {
        let mut report = PassReport::of(intents, outcome);
        if report.outcome.is_ok() {
            let difference = |text: &str| Difference { kind: Kind::Rules, text: text.to_owned() };
            report.repaired = drift.map(difference).into_iter().collect();
        } else {
            report.pending = drift.map(str::to_owned);
        }
        self.cluster.passed(&report);
        self.last = Some(report);
    }

    fn update(&mut self, change: impl FnOnce(&mut PassReport)) {
        if let Some(report) = &mut self.last {
            change(report);
            self.cluster.updated(report);
        }
    }

    fn synced(&self) -> String {
        self.cluster.reporter.reported.as_ref().unwrap().conditions[0].reason.clone()
    }
}

fn report(changed: Option<&str>) -> Report {
    Report { digest: "v1:d".into(), changed: changed.map(str::to_owned), ..Report::default() }
}

fn names(intents: &Intents) -> Vec<String> {
    intents.forwards().map(|forward| forward.r#ref.name.clone()).collect()
}

#[tokio::test]
async fn intents_come_when_everything_is_known_and_only_when_they_change() {
    let mut scene = scene();
    assert_eq!(scene.look().await, None);
    scene.list_node(Some(node(1, "Active")));
    assert_eq!(scene.look().await, None);
    scene.cluster.take_slice(WatchEvent::Init);
    scene.cluster.take_slice(WatchEvent::InitApply(slice("s0", &forward("a", 8000))));
    assert_eq!(scene.look().await, None, "the list is not complete");
    scene.cluster.take_slice(WatchEvent::InitDone);
    let decided = scene.look().await.unwrap();
    assert_eq!(names(&decided), ["a"]);
    scene.pass(&decided, None, Ok(report(Some("nat"))));
    scene.cluster.take_slice(WatchEvent::Apply(slice("s0", &forward("a", 8000))));
    assert_eq!(scene.look().await, None, "the same again");
    scene.cluster.take_slice(WatchEvent::Apply(slice("s0", &forward("a", 8001))));
    assert_eq!(scene.look().await.unwrap().forwards().next().unwrap().intent.ports[0].port, 8001);
}

#[tokio::test]
async fn a_list_that_breaks_off_takes_nothing_away() {
    let mut scene = scene();
    scene.list_node(Some(node(1, "Active")));
    scene.list_slices(vec![slice("s0", &forward("a", 8000)), slice("s1", &forward("b", 8001))]);
    let decided = scene.look().await.unwrap();
    scene.pass(&decided, None, Ok(report(None)));
    scene.cluster.take_slice(WatchEvent::Init);
    scene.cluster.take_slice(WatchEvent::InitApply(slice("s0", &forward("a", 8000))));
    scene.list_slices(vec![slice("s0", &forward("a", 8000)), slice("s1", &forward("b", 8001))]);
    assert_eq!((scene.look().await, scene.synced().as_str()), (None, "Synced"));
}

#[tokio::test]
async fn what_changes_no_rule_is_reported_without_a_pass() {
    let mut scene = scene();
    scene.list_node(Some(node(1, "Active")));
    scene.list_slices(vec![slice("s0", &forward("a", 8000))]);
    let decided = scene.look().await.unwrap();
    scene.pass(&decided, None, Ok(report(None)));
    scene.cluster.take_slice(WatchEvent::Delete(slice("s0", &forward("a", 8000))));
    assert_eq!((scene.look().await, scene.synced().as_str()), (None, "SliceMissing"));
    scene.cluster.take_node(WatchEvent::Apply(node(2, "Active")));
    assert_eq!(scene.look().await, None);
    assert_eq!(scene.cluster.reporter.reported.as_ref().unwrap().conditions[0].observed_generation, Some(2));
}

#[tokio::test]
async fn the_cached_intents_are_enforced_and_nothing_is_reported_until_the_lists_are_complete() {
    let mut scene = scene();
    scene.list_node(Some(node(1, "Active")));
    scene.list_slices(vec![slice("s0", &forward("a", 8000))]);
    let decided = scene.look().await.unwrap();
    scene.host.keep(&decided);

    let client = scene.cluster.client.clone();
    scene.cluster = new(&mut scene.tasks, client);
    scene.host = ThisHost::new(Rc::clone(&scene.host.state));
    assert_eq!(scene.host.last_good(), Some(Rc::clone(&decided)));
    scene.cluster.restore(&decided);
    scene.pass(&decided, None, Ok(report(None)));
    assert_eq!(scene.cluster.reporter.reported, None);
    // A node that is gone by now, and a slice too: the rules stay.
    scene.list_node(None);
    scene.list_slices(Vec::new());
    assert_eq!(scene.look().await, None);
    assert_eq!(scene.cluster.knowledge.intents().unwrap(), *decided);
    scene.pass(&decided, None, Ok(report(None)));
    assert_eq!(scene.synced(), "SliceMissing");
}

#[tokio::test]
async fn a_retired_node_reports_cleaned_and_forgets_its_forwards_on_disk() {
    let mut scene = scene();
    scene.list_node(Some(node(1, "Active")));
    scene.list_slices(vec![slice("s0", &forward("a", 8000))]);
    let decided = scene.look().await.unwrap();
    scene.pass(&decided, None, Ok(report(None)));
    scene.cluster.take_node(WatchEvent::Apply(node(2, "Retired")));
    let retired = scene.look().await.unwrap();
    scene.host.keep(&retired);
    assert_eq!(scene.host.last_good().unwrap().forwards().count(), 0);
    scene.pass(&retired, None, Ok(report(None)));
    let state = scene.cluster.reporter.reported.as_ref().unwrap().state;
    assert_eq!(state, Some(sallyport_api::gateway_node::ObservedNodeState::Cleaned));
    scene.cluster.take_node(WatchEvent::Apply(node(3, "Active")));
    assert_eq!(names(&scene.look().await.unwrap()), ["a"]);
}

#[tokio::test]
async fn drift_is_told_when_it_was_repaired_and_while_it_cannot_be() {
    let mut scene = scene();
    scene.list_node(Some(node(1, "Active")));
    scene.list_slices(vec![slice("s0", &forward("a", 8000))]);
    let decided = scene.look().await.unwrap();
    scene.pass(&decided, None, Ok(report(Some("all new"))));
    assert_eq!(scene.cluster.reporter.reported.as_ref().unwrap().last_drift, None);

    let different = Error::Different { difference: "nat".to_owned() };
    scene.pass(&decided, Some("the jump is missing"), Err(different));
    let status = scene.cluster.reporter.reported.clone().unwrap();
    assert_eq!(scene.synced(), "Drifted");
    assert!(status.conditions[0].message.ends_with("not put back yet: the jump is missing"), "{:?}", status.conditions);
    assert_eq!(status.observed_slices[0].state, sallyport_api::gateway_node::SliceState::Pending);
    scene.pass(&decided, Some("the jump is missing"), Ok(report(Some("nat SALLY-PRE"))));
    let status = scene.cluster.reporter.reported.clone().unwrap();
    assert_eq!(status.last_drift.unwrap().message, "the jump is missing");
    assert_eq!(scene.synced(), "Synced");
}

#[tokio::test]
async fn what_lasts_is_told_until_it_is_over() {
    let mut scene = scene();
    scene.list_node(Some(node(1, "Active")));
    scene.list_slices(vec![slice("s0", &forward("a", 8000))]);
    let decided = scene.look().await.unwrap();
    scene.pass(&decided, None, Ok(report(None)));
    scene.update(|report| report.persistent_drift = Some("they keep at it".to_owned()));
    let status = scene.cluster.reporter.reported.clone().unwrap();
    assert_eq!((scene.synced().as_str(), status.conditions[0].message.as_str()), ("Drifted", "they keep at it"));
    // The kernel was read back all the same: nobody who waits for a forward to go is held up.
    assert_eq!(status.observed_slices[0].state, sallyport_api::gateway_node::SliceState::Programmed);
    scene.update(|report| report.persistent_drift = None);
    assert_eq!(scene.synced(), "Synced");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_refuses_is_asked_less_and_less_often_and_followed_once_it_answers() {
    for code in [429, 503] {
        let guard = tempfile::tempdir().unwrap();
        let mut host = ThisHost::new(Rc::new(StateDir::lock(&guard.path().join("state")).unwrap()));
        let (service, mut requests) = tower_test::mock::pair::<http::Request<Body>, http::Response<Body>>();
        let mut tasks = Tasks::default();
        let mut cluster = new(&mut tasks, Client::new(service, "default"));
        let mut asked = 0;
        let end = tokio::time::Instant::now() + Duration::from_mins(5);
        let serve = async {
            let mut watched = Vec::new();
            while let Some((request, send)) = requests.next_request().await {
                let items = match request.uri().path() {
                    path if path.ends_with("gatewaynodes") => vec![node(1, "Active")],
                    _ => vec![slice("s0", &forward("a", 8000))],
                };
                let list = json!({ "metadata": { "resourceVersion": "1" }, "items": items });
                let (code, body) = match request.uri().query() {
                    _ if tokio::time::Instant::now() < end => {
                        asked += 1;
                        (code, json!({ "kind": "Status", "status": "Failure", "code": code, "message": "too busy" }))
                    }
                    Some(query) if query.contains("watch=true") => {
                        watched.push(send);
                        continue;
                    }
                    _ => (200, list),
                };
                let body = Body::from(body.to_string().into_bytes());
                send.send_response(http::Response::builder().status(code).body(body).unwrap());
            }
        };
        let follow = async {
            loop {
                cluster.changed().await;
                if let News::Intents(intents) = cluster.decide(&mut host, false).await {
                    return names(&intents);
                }
            }
        };
        tokio::select! {
            () = serve => panic!("the agent gave up"),
            followed = follow => assert_eq!(followed, ["a"]),
        }
        assert!(tokio::time::Instant::now() >= end && end.elapsed() <= Duration::from_secs(8), "{:?}", end.elapsed());
        // Every 8 s in the end.
        assert!((30..50).contains(&asked), "{code}: asked {asked} times in 5 minutes");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_connection_everything_is_listed_anew_but_not_again_and_again() {
    let (service, mut requests) = tower_test::mock::pair::<http::Request<Body>, http::Response<Body>>();
    let mut tasks = Tasks::default();
    let mut cluster = new(&mut tasks, Client::new(service, "default"));
    let mut asked = Vec::new();
    let serve = async {
        while let Some((request, send)) = requests.next_request().await {
            let watches = request.uri().query().unwrap().contains("watch=true");
            asked.push(if watches { "watch" } else { "list" });
            if watches {
                send.send_error(std::io::Error::other("connection reset"));
            } else {
                let list = json!({ "kind": "GatewayNodeList", "apiVersion": "sallyport.dev/v1alpha1",
                    "metadata": { "resourceVersion": "450" }, "items": [] });
                send.send_response(http::Response::new(Body::from(list.to_string().into_bytes())));
            }
        }
    };
    let follow = async {
        loop {
            cluster.changed().await;
        }
    };
    let minutes = Duration::from_mins(5);
    let _ = tokio::time::timeout(minutes, async { tokio::join!(serve, follow) }).await;
    assert_eq!(asked[..3], ["list", "watch", "list"]);
    // A list a minute, and a watch every 8 s in the end.
    let lists = asked.iter().filter(|what| **what == "list").count();
    assert!((5..8).contains(&lists) && asked.len() < 100, "{lists} lists of {} requests in 5 minutes", asked.len());
}

#[tokio::test]
async fn whether_probes_are_answered_is_told_at_once_and_changes_no_rule() {
    let mut scene = scene();
    let (admin, told) = watch::channel(Serving::NotYet);
    scene.cluster.admin = told;
    scene.list_node(Some(node(1, "Active")));
    scene.list_slices(vec![slice("s0", &forward("a", 8000))]);
    let decided = scene.look().await.unwrap();
    scene.pass(&decided, None, Ok(report(None)));
    let serving = Serving::On("127.0.0.1:9478".parse().unwrap());
    let refused = Serving::Refused("cannot listen on 127.0.0.1:9478: Address already in use".to_owned());
    for (now, expected) in [(refused, "NotServing"), (serving, "Serving")] {
        admin.send_replace(now);
        tokio::time::timeout(Duration::from_secs(30), scene.cluster.changed()).await.unwrap();
        assert_eq!(scene.look().await, None);
        let reported = scene.cluster.reporter.reported.clone().unwrap();
        let told = reported.conditions.iter().find(|condition| condition.type_ == "AdminServing").unwrap();
        assert_eq!((told.reason.as_str(), scene.synced().as_str()), (expected, "Synced"));
    }
    // Whoever told is gone: nothing to hear, nothing to do.
    drop(admin);
    assert!(scene.cluster.changed().now_or_never().is_none());
}
