//! What the loop takes in, its clock, and how an uninstallation ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use kube::api::Api;
use prometheus_client::registry::Registry;
use sallyport_api::id::Moment;
use sallyport_api::names::OPERATOR_NAME;
use sallyport_api::{ForwardRef, PortForward, PortForwardStatus};
use sallyport_runtime::once::Once;
use sallyport_runtime::tasks::Tasks;
use serde_json::json;

use super::*;
use crate::controller::guard::DeserializeGuard;
use crate::controller::write::{ForwardReport, Write, Written};
use crate::fixture::{Scene, api_server, respond};

fn controller(client: Client, leadership: Arc<Leadership>, readiness: Readiness) -> Controller {
    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    let events = Events::start(&mut Tasks::default(), client.clone(), "me");
    Controller::new(client, "system", leadership, metrics, readiness, events)
}

#[tokio::test]
async fn every_answer_is_taken_in_where_it_belongs() {
    fn written<K: Clone>(object: Option<&Arc<K>>) -> Written<K> {
        Box::new(DeserializeGuard(Ok(K::clone(object.unwrap()))))
    }
    let (client, _silent) = api_server();
    let leadership = Arc::new(Leadership::new(Api::namespaced(client.clone(), "system"), OPERATOR_NAME, "me"));
    let mut controller = controller(client, leadership, Readiness::default());
    let mut scene = Scene::settled(&["gw1"], &[("a", 3306)]);
    let mut report = scene.done("gw1");
    report.last_drift = serde_json::from_value(json!({ "time": "2026-01-01T00:00:00Z", "message": "jump" })).unwrap();
    scene.report("gw1", report);
    let there = scene.store;
    let forward = there.forwards.objects().next();
    for answer in [
        Answer::Slice(written(there.slices.objects().next())),
        Answer::Gateway(written(there.gateways.get("gw1"))),
        Answer::Node(written(there.nodes.get("gw1"))),
        Answer::Forward(written(forward)),
        Answer::Pool(written(there.pools.get("default"))),
    ] {
        controller.answered(answer);
    }
    let now = &controller.store;
    let counted = [now.slices.objects().count(), now.gateways.objects().count(), now.nodes.objects().count()];
    assert_eq!((counted, now.forwards.objects().count(), now.pools.objects().count()), ([1; 3], 1, 1));

    let mut told = controller.drifts.writes(&controller.store.gateways, Moment::default());
    let Some(Write::Drift(event)) = told.pop() else { panic!("{told:?}") };
    controller.answered(Answer::Drift(event));
    assert_eq!(controller.drifts.writes(&controller.store.gateways, Moment::default()), []);

    let mut newer = PortForward::clone(forward.unwrap());
    newer.metadata.resource_version = Some("1000".into());
    let report = Box::new(ForwardReport {
        key: ForwardRef { namespace: "apps".into(), name: "a".into() },
        uid: crate::fixture::uid("a"),
        status: PortForwardStatus::default(),
        before: PortForwardStatus::default(),
        unreadable: false,
    });
    controller.answered(Answer::ForwardStatus(report, Box::new(DeserializeGuard(Ok(newer)))));
    let revision = controller.store.forwards.entry("apps", "a").unwrap().meta().resource_version.as_deref();
    assert_eq!(revision, Some("1000"));

    controller.answered(Answer::SliceDeleted("default-0000".into()));
    controller.answered(Answer::GatewayDeleted("gw1".into()));
    let now = &controller.store;
    assert_eq!((now.slices.objects().count(), now.gateways.objects().count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn forwards_expire_by_the_clock_of_the_api_server_and_it_never_goes_back() {
    let (client, mut requests) = api_server();
    let leadership = Arc::new(Leadership::new(Api::namespaced(client, "system"), OPERATOR_NAME, "me"));
    let serve = async {
        let (_, to) = requests.next_request().await.unwrap();
        respond(to, 404, &json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 }));
        let (_, to) = requests.next_request().await.unwrap();
        let noted = json!([{ "manager": "sallyport-operator", "operation": "Update", "time": "2001-02-03T04:05:06Z" }]);
        respond(to, 201, &json!({ "metadata": { "name": OPERATOR_NAME, "managedFields": noted } }));
    };
    tokio::join!(leadership.acquire(), serve);

    let (client, _silent) = api_server();
    let mut controller = controller(client, leadership, Readiness::default());
    controller.look_at_the_clock();
    let told = Moment("2001-02-03T04:05:06Z".parse::<jiff::Timestamp>().unwrap().as_second());
    assert_eq!(controller.now, told, "ours is decades ahead");
    controller.now = told.plus(3600);
    controller.look_at_the_clock();
    assert_eq!(controller.now, told.plus(3600));
}

#[tokio::test]
async fn an_uninstallation_says_what_it_still_waits_for() {
    let (client, _silent) = api_server();
    let leadership = Arc::new(Leadership::new(Api::namespaced(client.clone(), "system"), OPERATOR_NAME, "me"));
    let left = Readiness::default();
    let mut controller = controller(client, leadership, Arc::clone(&left));
    controller.store = Scene::settled(&["gw1", "gw2"], &[("a", 3306)]).store;
    assert!(!controller.is_uninstalled(&mut Once::default()));
    let said = left.lock().unwrap().clone().unwrap();
    assert!(said.contains("gw1: its agent is taking the rules off; gw2: "), "{said}");
    assert!(said.contains("1 forwards with our finalizer"), "{said}");
}
