//! What is taken in, and what is known then.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use kube::runtime::watcher::Event;
use serde_json::json;

use super::*;
use crate::fixture::guard;

#[test]
fn a_sign_of_life_is_no_reason_to_decide_but_the_first_list_is() {
    let lease = |revision: &str| guard(json!({ "metadata": { "name": "gw1", "resourceVersion": revision } }));
    let mut leases = Cache::<Lease>::default();
    let mut see = |event| take(&mut leases, Ok(event), &[]);
    assert!(!see(Event::Init) && !see(Event::InitApply(lease("1"))));
    assert!(see(Event::InitDone), "now that is known, too");
    assert!(!see(Event::Apply(lease("2"))));

    let mut nodes = Cache::<Node>::default();
    let mut see = |event| take(&mut nodes, Ok(event), &[]);
    assert!(see(Event::InitDone) && see(Event::Apply(guard(json!({ "metadata": { "name": "gw1" } })))));
}

#[test]
fn ranges_of_services_are_those_that_were_given_and_those_that_the_cluster_tells() {
    let given: IpNet = "10.96.0.0/16".parse().unwrap();
    let mut store = Store { service_cidrs: vec![given], ..Store::default() };
    assert!(store.service_ranges.does_not_exist());
    assert_eq!(store.forbidden(), [given]);
    let told =
        guard(json!({ "metadata": { "name": "kubernetes" }, "spec": { "cidrs": ["10.97.0.0/16", "fd00::/108"] } }));
    for event in [Event::Init, Event::InitApply(told), Event::InitDone] {
        store.service_ranges.feed(event);
    }
    let more = ["10.97.0.0/16", "fd00::/108"].map(|cidr| cidr.parse().unwrap());
    assert_eq!(store.forbidden(), [&[given], &more[..]].concat());
}

/// That a list of a resource was refused because there is none of that kind.
fn no_such_kind<K>() -> Watched<K> {
    let status = kube::core::Status { code: 404, reason: "NotFound".into(), ..kube::core::Status::default() };
    Box::new(Err(watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))))
}

#[test]
fn every_change_is_taken_in_where_it_belongs() {
    fn list<K>(object: Option<K>) -> impl Iterator<Item = Watched<K>> {
        let object = object.map(|object| Event::InitApply(DeserializeGuard(Ok(object))));
        [Some(Event::Init), object, Some(Event::InitDone)].into_iter().flatten().map(|event| Box::new(Ok(event)))
    }
    let mut store = Store::default();
    let mut left = store.missing().len();
    assert_eq!(left, 10);
    let mut see = |changes: Vec<Change>| {
        let shown = format!("{:?}", changes[0]);
        let mattered: Vec<bool> = changes.into_iter().map(|change| store.observe(change)).collect();
        assert_eq!(mattered.last(), Some(&true), "{shown}");
        assert_eq!(store.missing().len(), left - 1, "{shown}");
        left -= 1;
    };
    see(list(None).map(Change::Forward).collect());
    see(list(None).map(Change::Pool).collect());
    see(list(None).map(Change::Slice).collect());
    see(list(None).map(Change::Gateway).collect());
    see(list(Some(Node::default())).map(Change::Node).collect());
    see(list(None).map(Change::Namespace).collect());
    see(list(None).map(Change::Lease).collect());
    see(list(None).map(Change::DaemonSet).collect());
    see(list(None).map(Change::ApiServer).collect());
    see(list(None).map(Change::ServiceRange).collect());
    assert_eq!(store.nodes.objects().count(), 1);
}

#[test]
fn a_kind_that_is_not_there_is_waited_for_unless_it_can_be_done_without() {
    let mut store = Store::default();
    assert!(store.observe(Change::ServiceRange(no_such_kind())), "Kubernetes before 1.33");
    assert!(!store.observe(Change::Pool(no_such_kind())) && !store.pools.is_complete());
    store.dispensable = &["gatewaypools"];
    assert!(store.observe(Change::Pool(no_such_kind())) && store.pools.is_complete());
    assert!(!store.observe(Change::Pool(no_such_kind())), "that is known");
    assert!(!store.observe(Change::Gateway(no_such_kind())) && !store.gateways.is_complete());
}
