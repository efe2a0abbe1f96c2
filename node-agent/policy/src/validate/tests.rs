//! Each bad value, its field and its remedy.

use sallyport_api::Protocol;
use sallyport_api::testing::Forward;
use serde_json::{Value, json};

use super::*;

fn spec() -> Value {
    json!({
        "pool": "default",
        "addresses": [],
        "ports": [{ "name": "mysql", "port": 3306 }],
        "sources": { "allow": [{ "cidr": "10.30.1.80/32" }], "deny": [] },
        "targets": [{ "name": "db1", "ip": "10.30.1.79" }],
    })
}

fn problems(spec: Value) -> Vec<Problem> {
    validate(&serde_json::from_value(spec).unwrap()).err().unwrap_or_default()
}

/// A place, the bad value there, the field that is blamed, and what its author is told to do.
const BAD: &str = r#"
/pool | "" | spec.pool | lower case letters
/addresses | ["gw1"] | spec.addresses[0] | such as 10.30.1.79
/addresses | ["10.30.1.78", "10.30.1.78"] | spec.addresses[1] | listed twice
/addresses | ["127.0.0.1"] | spec.addresses[0] | name a listen address
/addresses | ["fd00::78"] | spec.addresses | add an IPv6 target or remove
/ports | [] | spec.ports | at least 1
/ports | [{ "name": "Mysql", "port": 3306 }] | spec.ports[0].name | lower case letters
/ports | [{ "name": "a", "port": 1 }, { "name": "a", "port": 2 }] | spec.ports[1].name | must be unique
/ports | [{ "name": "a", "port": 0 }] | spec.ports[0].port | use 1 to 65535
/ports | [{ "name": "a", "port": 65536 }] | spec.ports[0].port | use 1 to 65535
/ports | [{ "name": "a", "port": -3306 }] | spec.ports[0].port | use 1 to 65535
/ports | [{ "name": "a", "port": 8, "endPort": 7 }] | spec.ports[0].endPort | swap them
/ports | [{ "name": "a", "port": 8, "endPort": 65536 }] | spec.ports[0].endPort | use 1 to 65535
/ports | [{ "name": "a", "port": 8, "targetPort": 0 }] | spec.ports[0].targetPort | use 1 to 65535
/ports | [{ "name": "a", "port": 8, "endPort": 9, "targetPort": 65535 }] | spec.ports[0].targetPort | lower targetPort
/ports | [{ "name": "a", "port": 8000, "endPort": 8256, "targetPort": 9000 }] | spec.ports[0].endPort | split it
/ports | [{ "name": "a", "port": 80, "endPort": 85 }, { "name": "b", "port": 85 }] | spec.ports[1] | list each port once
/ports | [{ "name": "a", "port": 20, "endPort": 30 }] | spec.ports[0].port | choose another port
/sources/allow | [] | spec.sources.allow | at least 1
/sources/allow | [{ "cidr": "10.30.1.80" }] | spec.sources.allow[0].cidr | write 10.30.1.80/32
/sources/allow | [{ "cidr": "app1" }] | spec.sources.allow[0].cidr | such as 10.30.1.80/32
/sources/allow | [{ "cidr": "0.0.0.0/0" }, { "cidr": "::/0" }] | spec.sources.allow | add an IPv6 target or remove
/sources/deny | [{ "cidr": "fd00::1" }] | spec.sources.deny[0].cidr | write fd00::1/128
/sources/deny | [{ "cidr": "::ffff:10.0.0.0/104" }] | spec.sources.deny[0].cidr | write the IPv4 CIDR
/sources/deny | [{ "cidr": "10.30.0.0/16" }] | spec.sources.deny | narrow it or widen
/targets | [] | spec.targets | at least 1
/targets | [{ "name": "a.b", "ip": "10.30.1.79" }] | spec.targets[0].name | lower case letters
/targets | [{ "name": "a", "ip": "db1" }] | spec.targets[0].ip | such as 10.30.1.79
/targets | [{ "name": "a", "ip": "127.0.0.1" }] | spec.targets[0].ip | must be another host
/targets | [{ "name": "a", "ip": "10.30.1.79" }, { "name": "b", "ip": "10.30.1.79" }] | spec.targets[1].ip | raise its weight
/targets | [{ "name": "a", "ip": "10.30.1.79", "weight": 1001 }] | spec.targets[0].weight | use 0 to 1000
/targets | [{ "name": "a", "ip": "10.30.1.79", "weight": -1 }] | spec.targets[0].weight | use 0 to 1000
/targets | [{ "name": "a", "ip": "10.30.1.79" }, { "name": "b", "ip": "fd00::79" }] | spec.targets | add one or remove
"#;

#[test]
fn every_bad_value_is_named_by_its_field_with_what_to_do() {
    for row in BAD.trim().lines() {
        let [place, value, field, remedy] = row.split(" | ").collect::<Vec<_>>()[..] else { panic!("{row}") };
        blames(place, serde_json::from_str(value).unwrap(), field, remedy);
    }
}

#[test]
fn lists_and_names_have_a_limit_that_is_told() {
    let many = |count: usize, entry: fn(usize) -> Value| (0..count).map(entry).collect::<Value>();
    let rows = [
        ("/pool", json!("x".repeat(64)), "at most 63"),
        ("/addresses", many(17, |n| json!(format!("10.30.1.{}", n + 1))), "at most 16"),
        ("/ports", many(33, |n| json!({ "name": format!("p{n}"), "port": 8000 + n })), "at most 32"),
        ("/sources/allow", many(65, |_| json!({ "cidr": "10.30.1.80/32" })), "at most 64"),
        ("/sources/deny", many(65, |_| json!({ "cidr": "10.30.1.81/32" })), "at most 64"),
        ("/targets", many(65, |n| json!({ "name": format!("t{n}"), "ip": format!("10.30.0.{n}") })), "at most 64"),
    ];
    for (place, value, remedy) in rows {
        blames(place, value, &format!("spec{}", place.replace('/', ".")), remedy);
    }
}

/// With `value` at `place` there is exactly one problem: at `field`, and its message says `remedy`.
fn blames(place: &str, value: Value, field: &str, remedy: &str) {
    let mut spec = spec();
    *spec.pointer_mut(place).unwrap() = value;
    let problems = problems(spec);
    let [problem] = &problems[..] else { panic!("{place}: {problems:?}") };
    assert_eq!(problem.field, field, "{problem}");
    assert!(problem.message.contains(remedy), "{problem} does not say {remedy:?}");
}

#[test]
fn all_problems_come_at_once() {
    let problems = problems(json!({
        "pool": "No_Such",
        "ports": [{ "name": "a", "port": 0, "endPort": 70000 }],
        "sources": { "allow": [{ "cidr": "x" }], "deny": [{ "cidr": "z" }] },
        "targets": [{ "name": "t", "ip": "q", "weight": -1 }],
    }));
    let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "spec.pool",
            "spec.ports[0].port",
            "spec.ports[0].endPort",
            "spec.sources.allow[0].cidr",
            "spec.sources.deny[0].cidr",
            "spec.targets[0].weight",
            "spec.targets[0].ip",
        ]
    );
}

#[test]
fn spelling_and_order_do_not_change_the_intent() {
    let typed = |spec: Value| validate(&serde_json::from_value(spec).unwrap()).unwrap();
    let one = typed(json!({
        "ports": [{ "name": "a", "port": 80 }, { "name": "b", "port": 70, "endPort": 71 }],
        "sources": { "allow": [{ "cidr": "10.30.1.99/24" }, { "cidr": "FD00:0::/64" }] },
        "targets": [{ "name": "t", "ip": "fd00:0:0::9" }, { "name": "s", "ip": "10.30.1.79" }],
    }));
    let other = typed(json!({
        "pool": "elsewhere",
        "ports": [{ "name": "x", "port": 70, "endPort": 71, "targetPort": 70 }, { "name": "y", "protocol": "TCP", "port": 80, "endPort": 80 }],
        "sources": { "allow": [{ "cidr": "fd00::/64" }, { "cidr": "10.30.1.0/24" }, { "cidr": "10.30.1.1/24" }], "deny": [] },
        "targets": [{ "name": "u", "ip": "10.30.1.79", "weight": 1 }, { "name": "v", "ip": "FD00::9" }],
        "sourceNAT": { "mode": "Masquerade" },
    }));
    assert_eq!(one, other);
}

#[test]
fn the_number_of_rules_is_bounded_exactly() {
    let with = |targets: usize| {
        let mut spec = spec();
        spec["ports"] = json!([{ "name": "a", "port": 8000, "endPort": 8255, "targetPort": 9000 }]);
        spec["targets"] =
            (0..targets).map(|n| json!({ "name": format!("t{n}"), "ip": format!("10.30.0.{}", n + 1) })).collect();
        problems(spec)
    };
    assert_eq!(with(4), []);
    assert!(with(5)[0].message.contains("1280 rules"), "{:?}", with(5));
}

#[test]
fn messages_show_hostile_text_escaped_and_short() {
    let mut spec = spec();
    spec["targets"][0]["ip"] = json!(format!("\n\u{1b}[31m{}", "x".repeat(1000)));
    let message = problems(spec).remove(0).message;
    assert!(message.len() < 200 && !message.contains(['\n', '\u{1b}']), "{message:?}");
}

#[test]
fn metadata_is_held_to_what_an_api_server_takes() {
    for (name, namespace, fields) in [
        ("mysql", Some("payments"), &[][..]),
        ("a.b-c.9", None, &[]),
        ("a..b", None, &["metadata.name"]),
        ("Mysql", Some("Payments"), &["metadata.name", "metadata.namespace"]),
        ("a", Some("a.b"), &["metadata.namespace"]),
        ("a\n", None, &["metadata.name"]),
        (&"a".repeat(253), None, &[]),
        (&"a".repeat(254), None, &["metadata.name"]),
        ("a", Some(&"a".repeat(64)), &["metadata.namespace"]),
    ] {
        let problems = validate_metadata(name, namespace);
        assert_eq!(
            problems.iter().map(|problem| problem.field.as_str()).collect::<Vec<_>>(),
            fields,
            "{name} {namespace:?}"
        );
    }
}

#[test]
fn forwards_of_tests_are_what_is_made_of_their_specs() {
    let both = ["10.0.0.0/8", "fd00::/64"];
    let wide =
        Forward::on(Protocol::Udp, "n/y", 8053).through(8055).from(both).to(["10.1.2.3", "10.1.2.4", "fd00::79"]);
    for forward in [Forward::tcp("payments/mysql", 3306), wide] {
        assert_eq!(validate(&forward.spec()), Ok(forward.intent()));
    }
}
