//! Grants at their borders, and what a refusal says.

use sallyport_api::testing::Forward;
use serde_json::{Value, json};

use super::*;

fn spec(grant: &Value) -> GatewayPoolSpec {
    serde_json::from_value(json!({ "nodeSelector": {}, "grants": [grant] })).unwrap()
}

fn grant() -> Value {
    json!({
        "name": "mysql",
        "namespaceSelector": { "matchLabels": { "team": "payments" } },
        "ports": [{ "port": 3306, "endPort": 3310 }],
        "targetCIDRs": ["10.30.1.0/25"],
        "sourceCIDRs": ["10.30.0.0/23"],
    })
}

/// 3306/TCP from 10.30.1.80 to 10.30.1.79, with the fields of `change`.
fn intent(change: &Value) -> Intent {
    let mut intent = serde_json::to_value(Forward::tcp("payments/mysql", 3306).intent()).unwrap();
    intent.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    serde_json::from_value(intent).unwrap()
}

fn payments() -> Labels {
    Labels::from([("team".to_owned(), "payments".to_owned())])
}

#[test]
fn a_refusal_names_the_grant_the_clause_and_what_would_be_allowed() {
    let pool = validate_pool(&spec(&grant())).unwrap();
    assert_eq!(pool.covering("payments", &payments(), &intent(&json!({}))), Ok(vec![0]));
    let port = |protocol: &str, first: u16, last: u16| json!({ "ports": [{ "protocol": protocol, "port": first, "endPort": last, "targetPort": first }] });
    let rows = [
        (port("TCP", 3305, 3306), "grant mysql allows ports [3306-3310/TCP], not 3305-3306/TCP"),
        (port("TCP", 3310, 3311), "grant mysql allows ports [3306-3310/TCP], not 3310-3311/TCP"),
        (port("UDP", 3306, 3306), "grant mysql allows ports [3306-3310/TCP], not 3306/UDP"),
        (
            json!({ "targets": [{ "ip": "10.30.1.128", "weight": 1 }] }),
            "grant mysql allows targetCIDRs [10.30.1.0/25], not 10.30.1.128",
        ),
        (
            json!({ "allow": ["10.30.1.80/32", "10.30.2.0/32"] }),
            "grant mysql allows sourceCIDRs [10.30.0.0/23], not 10.30.2.0/32",
        ),
        (json!({ "allow": ["10.30.0.0/22"] }), "grant mysql allows sourceCIDRs [10.30.0.0/23], not 10.30.0.0/22"),
        (json!({ "sourceNat": "Preserve" }), "grant mysql allows sourceNATModes [Masquerade], not Preserve"),
    ];
    for (change, message) in rows {
        let problem = pool.covering("payments", &payments(), &intent(&change)).unwrap_err();
        assert_eq!((problem.reason, problem.field.as_str()), (Reason::NotGranted, "spec"));
        assert_eq!(problem.message, format!("{message}; one grant must cover the whole forward"));
    }
}

#[test]
fn a_namespace_that_no_grant_selects_is_told_so_and_learns_nothing_else() {
    let pool = validate_pool(&spec(&grant())).unwrap();
    let problem = pool.covering("shop", &Labels::new(), &intent(&json!({}))).unwrap_err();
    assert_eq!(problem.message, "no grant of the pool selects namespace shop; ask the pool's admin for one");
}

#[test]
fn an_absent_list_allows_nothing() {
    for list in ["ports", "targetCIDRs", "sourceCIDRs"] {
        let mut grant = grant();
        grant.as_object_mut().unwrap().remove(list);
        let pool = validate_pool(&spec(&grant)).unwrap();
        let problem = pool.covering("payments", &payments(), &intent(&json!({}))).unwrap_err();
        assert!(problem.message.contains("[], not "), "{problem}");
    }
}

#[test]
fn every_mistake_in_a_pool_is_named_with_its_field() {
    let rows = [
        (json!({ "name": "My Grant" }), "spec.grants[0].name"),
        (
            json!({ "namespaceSelector": { "matchExpressions": [{ "key": "a", "operator": "Near", "values": [] }] } }),
            "spec.grants[0].namespaceSelector",
        ),
        (json!({ "ports": [{ "port": 0 }] }), "spec.grants[0].ports[0].port"),
        (json!({ "ports": [{ "port": 5, "endPort": 4 }] }), "spec.grants[0].ports[0].endPort"),
        (json!({ "ports": [{ "port": 5, "endPort": 65536 }] }), "spec.grants[0].ports[0].endPort"),
        (json!({ "targetCIDRs": ["10.30.1.0/24", "10.30.1.79"] }), "spec.grants[0].targetCIDRs[1]"),
        (json!({ "sourceCIDRs": ["anywhere"] }), "spec.grants[0].sourceCIDRs[0]"),
        (json!({ "maxForwards": -1 }), "spec.grants[0].maxForwards"),
        (json!({ "maxLifetime": "1d" }), "spec.grants[0].maxLifetime"),
        (json!({ "maxLifetime": "0s" }), "spec.grants[0].maxLifetime"),
    ];
    for (change, field) in rows {
        let mut grant = grant();
        grant.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let problems = validate_pool(&spec(&grant)).unwrap_err();
        assert_eq!(problems.iter().map(|problem| problem.field.as_str()).collect::<Vec<_>>(), [field], "{change}");
    }
}

#[test]
fn a_pool_listens_on_those_of_a_nodes_addresses_that_it_chooses() {
    let node: Vec<IpAddr> =
        ["fd00::1", "10.30.1.78", "192.168.1.78", "10.30.1.78"].map(|ip| ip.parse().unwrap()).into();
    let chosen = |addresses: Value| {
        let mut spec = spec(&grant());
        spec.listen = serde_json::from_value(json!({ "addresses": addresses })).unwrap();
        validate_pool(&spec)
            .map(|pool| pool.listen_addresses(&node).iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(chosen(json!([{ "type": "NodeInternalIP" }])).unwrap(), ["10.30.1.78", "192.168.1.78", "fd00::1"]);
    assert_eq!(chosen(json!([{ "type": "CIDR", "value": "10.0.0.0/8" }])).unwrap(), ["10.30.1.78"]);
    assert_eq!(chosen(json!([{ "type": "CIDR", "value": "172.16.0.0/12" }])).unwrap(), [""; 0]);
    let fields =
        |addresses| chosen(addresses).unwrap_err().into_iter().map(|problem| problem.field).collect::<Vec<_>>();
    assert_eq!(fields(json!([{ "type": "CIDR" }])), ["spec.listen.addresses[0].value"]);
    assert_eq!(
        fields(json!([{ "type": "NodeInternalIP", "value": "10.0.0.0/8" }])),
        ["spec.listen.addresses[0].value"]
    );
    assert_eq!(fields(json!([])), ["spec.listen.addresses"]);
}

#[test]
fn reserved_ports_of_a_pool_are_refused_at_their_borders() {
    let mut spec = spec(&grant());
    spec.reserved_ports =
        serde_json::from_value(json!([{ "protocol": "TCP", "port": 9100, "endPort": 9109 }])).unwrap();
    let pool = validate_pool(&spec).unwrap();
    let touches = |protocol: &str, first: u16, last: u16| {
        let change =
            json!({ "ports": [{ "protocol": protocol, "port": first, "endPort": last, "targetPort": first }] });
        !pool.check(&intent(&change)).is_empty()
    };
    assert!(touches("TCP", 9000, 9100) && touches("TCP", 9109, 9200) && touches("TCP", 9000, 9200));
    assert!(!touches("TCP", 9000, 9099) && !touches("TCP", 9110, 9200) && !touches("UDP", 9100, 9109));
}
