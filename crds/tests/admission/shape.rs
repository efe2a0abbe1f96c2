//! Types, bounds, defaults and names of a `PortForward`.

use kube::core::cel::apply_defaults;
use sallyport_api::{GatewayPool, PortForward};
use serde_json::{Value, json};

use crate::{Kind, assert_accepted, assert_refused, edited, forward, full_forward, full_pool, list, refusals};

/// `object` as it looks after the types have read it.
pub(crate) fn retyped(object: &Value) -> Value {
    fn through<K: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> Value {
        serde_json::to_value(serde_json::from_value::<K>(object.clone()).unwrap()).unwrap()
    }
    if object["kind"] == "PortForward" { through::<PortForward>(object) } else { through::<GatewayPool>(object) }
}

#[test]
fn whatever_a_user_can_write_survives_a_round_trip() {
    for object in [full_forward(), full_pool()] {
        assert_eq!(refusals(&object), Vec::<String>::new());
        assert_eq!(retyped(&object), object);
    }
}

#[test]
fn the_schema_fills_in_the_defaults_that_the_types_do() {
    let grant = json!({ "name": "all", "namespaceSelector": {}, "ports": [{ "port": 1 }] });
    let pool = edited(&full_pool(), &json!({ "/spec": { "nodeSelector": {}, "grants": [grant] } }));
    for object in [forward(), pool] {
        let filled = apply_defaults(&Kind::of(&object).schema, &object);
        assert_ne!(filled, object);
        assert_eq!(retyped(&object), filled);
    }
}

#[test]
fn numbers_and_words_out_of_bounds_are_refused() {
    assert_refused(
        &full_forward(),
        &json!([
            ["/spec/ports/0/port: 0 is less than the minimum of 1", { "/spec/ports/0/port": 0 }],
            ["/spec/ports/1/port: 65536 is greater than the maximum of 65535", { "/spec/ports/1/port": 65536 }],
            ["65536 is greater than the maximum of 65535", { "/spec/ports/0/endPort": 65536 }],
            ["0 is less than the minimum of 1", { "/spec/ports/0/targetPort": 0 }],
            ["is not of type \"integer\"", { "/spec/ports/0/port": "3306" }],
            ["\"port\" is a required property", { "/spec/ports/0/port": null }],
            ["\"SCTP\" is not one of", { "/spec/ports/0/protocol": "SCTP" }],
            ["\"tcp\" is not one of", { "/spec/ports/0/protocol": "tcp" }],
            ["-1 is less than the minimum of 0", { "/spec/targets/0/weight": -1 }],
            ["1001 is greater than the maximum of 1000", { "/spec/targets/0/weight": 1001 }],
            ["\"None\" is not one of", { "/spec/sourceNAT": { "mode": "None" } }],
            ["\"Keep\" is not one of", { "/spec/lifecycle": { "onTargetRemoved": "Keep" } }],
            ["\"apply\" is not one of", { "/spec/mode": "apply" }],
        ]),
    );
    assert_accepted(
        &forward(),
        &json!([
            { "/spec/ports/0/port": 1 },
            { "/spec/ports/0/port": 65535 },
            { "/spec/targets/0/weight": 0 },
            { "/spec/targets/0/weight": 1000 },
            { "/spec/sourceNAT": {} },
            { "/spec/lifecycle": {} },
            { "/spec/mode": "Plan" },
            { "/spec/mode": "Paused" },
        ]),
    );
}

#[test]
fn lists_that_are_empty_absent_or_too_long_are_refused() {
    let ports = |count| list(count, |i| json!({ "name": format!("p{i}"), "port": 1000 + i }));
    let cidrs = |count| list(count, |i| json!({ "cidr": format!("10.0.0.{i}/32") }));
    let targets = |count| list(count, |i| json!({ "name": format!("t{i}"), "ip": format!("10.0.0.{i}") }));
    let addresses = |count| list(count, |i| json!(format!("10.0.0.{i}")));
    assert_refused(
        &forward(),
        &json!([
            ["\"sources\" is a required property", { "/spec/sources": null }],
            ["\"allow\" is a required property", { "/spec/sources": { "deny": cidrs(1) } }],
            ["/spec/sources/allow: [] has less than 1 item", { "/spec/sources/allow": [] }],
            ["/spec/ports: [] has less than 1 item", { "/spec/ports": [] }],
            ["/spec/targets: [] has less than 1 item", { "/spec/targets": [] }],
            ["has more than 32 items", { "/spec/ports": ports(33) }],
            ["has more than 64 items", { "/spec/sources/allow": cidrs(65) }],
            ["has more than 64 items", { "/spec/sources/deny": cidrs(65) }],
            ["has more than 64 items", { "/spec/targets": targets(65) }],
            ["has more than 16 items", { "/spec/addresses": addresses(17) }],
        ]),
    );
    assert_accepted(
        &forward(),
        &json!([
            { "/spec/ports": ports(32) },
            { "/spec/sources/allow": cidrs(64), "/spec/sources/deny": cidrs(64) },
            { "/spec/targets": targets(64) },
            { "/spec/addresses": addresses(16) },
        ]),
    );
}

#[test]
fn names_are_dns_labels() {
    for name in ["", "MySQL", "-a", "a-", "a.b", "a b", "mysql\n-j ACCEPT", "x; -j ACCEPT", "ü", &"a".repeat(64)] {
        for field in ["/spec/pool", "/spec/ports/0/name", "/spec/targets/0/name"] {
            let errors = refusals(&edited(&forward(), &json!({ field: name })));
            assert!(!errors.is_empty(), "{field} {name:?}");
            assert!(errors.iter().all(|error| error.starts_with(field)), "{field} {name:?}: {errors:?}");
        }
    }
    assert_accepted(&forward(), &json!([{ "/spec/pool": "a".repeat(63) }, { "/spec/pool": "1-a" }]));
}

#[test]
fn a_moment_is_one_that_every_program_can_read() {
    let message = "spec.expiresAt: must be a moment from 1970 to 9998, such as 2026-01-31T18:00:00Z";
    assert_refused(
        &forward(),
        &json!([
            [message, { "/spec/expiresAt": "1969-12-31T23:59:59Z" }],
            [message, { "/spec/expiresAt": "9999-01-01T00:00:00Z" }],
            ["is not of type \"string\"", { "/spec/expiresAt": 1_769_882_400 }],
        ]),
    );
    // Whether it has passed is for the operator to say.
    assert_accepted(
        &forward(),
        &json!([
            { "/spec/expiresAt": "1970-01-01T00:00:00Z" },
            { "/spec/expiresAt": "2026-01-31T19:00:00.5+01:00" },
            { "/spec/expiresAt": "9998-12-31T23:59:59Z" },
        ]),
    );
}
