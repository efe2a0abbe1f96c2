//! Whole passes of the loop: the time that forwards expire by, and what an uninstallation waits for.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use prometheus_client::registry::Registry;
use sallyport_api::names::OPERATOR_NAME;
use sallyport_runtime::tasks::Tasks;
use serde_json::json;

use super::*;
use crate::fixture::{Scene, api_server, respond};

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

    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    let (client, _silent) = api_server();
    let events = Events::start(&mut Tasks::default(), client.clone(), "me");
    let aim = Aim::Uninstall { force: false };
    let mut controller = Controller::new(client, "system", aim, leadership, metrics, Readiness::default(), events);
    controller.look_at_the_clock();
    let told = "2001-02-03T04:05:06Z".parse::<jiff::Timestamp>().unwrap().as_second();
    assert_eq!(controller.now, told, "ours is decades ahead");
    controller.now += 3600;
    controller.look_at_the_clock();
    assert_eq!(controller.now, told + 3600);
}

#[tokio::test]
async fn an_uninstallation_says_what_it_still_waits_for() {
    let (client, _silent) = api_server();
    let leadership = Arc::new(Leadership::new(Api::namespaced(client.clone(), "system"), OPERATOR_NAME, "me"));
    let (metrics, left) = (Arc::new(Metrics::new(&mut Registry::default())), Readiness::default());
    let events = Events::start(&mut Tasks::default(), client.clone(), "me");
    let aim = Aim::Uninstall { force: false };
    let mut controller = Controller::new(client, "system", aim, leadership, metrics, Arc::clone(&left), events);
    controller.world = Scene::settled(&["gw1", "gw2"], &[("a", 3306)]).world;
    assert!(!controller.nothing_is_left());
    let said = left.lock().unwrap().clone().unwrap();
    assert!(said.contains("gw1: its agent is taking the rules off; gw2: "), "{said}");
    assert!(said.contains("1 forwards with our finalizer"), "{said}");
}
