//! What a `GatewayPool` may say.

use serde_json::json;

use crate::{assert_accepted, assert_refused, full_pool};

#[test]
fn a_listen_address_has_a_value_exactly_if_its_type_needs_one() {
    let message = "spec.listen.addresses[0]: value is required with type CIDR and must be left out with any other type";
    assert_refused(
        &full_pool(),
        &json!([
            [message, { "/spec/listen/addresses/0": { "type": "CIDR" } }],
            [message, { "/spec/listen/addresses/0": { "type": "NodeInternalIP", "value": "10.0.0.0/8" } }],
            ["\"VIP\" is not one of", { "/spec/listen/addresses/0/type": "VIP" }],
            ["has less than 1 item", { "/spec/listen/addresses": [] }],
            [
                "spec.listen.addresses[1].value: must be an address block",
                { "/spec/listen/addresses/1/value": "10.30.0.0" },
            ],
        ]),
    );
}

#[test]
fn ranges_run_forwards() {
    assert_refused(
        &full_pool(),
        &json!([
            ["spec.reservedPorts[0]: endPort 1 must not be below port 51820", { "/spec/reservedPorts/0/endPort": 1 }],
            [
                "spec.grants[0].ports[0]: endPort 1 must not be below port 3306",
                { "/spec/grants/0/ports/0/endPort": 1 },
            ],
            ["0 is less than the minimum of 1", { "/spec/grants/0/ports/0/port": 0 }],
            ["65536 is greater than the maximum of 65535", { "/spec/reservedPorts/1/port": 65536 }],
        ]),
    );
}

#[test]
fn grants_name_blocks_and_modes_that_exist() {
    assert_refused(
        &full_pool(),
        &json!([
            ["spec.grants[0].targetCIDRs: must be an address block", { "/spec/grants/0/targetCIDRs/-": "db1" }],
            ["spec.grants[0].sourceCIDRs: must be an address block", { "/spec/grants/0/sourceCIDRs/0": "10.30.1.0/33" }],
            ["\"Address\" is not one of", { "/spec/grants/0/sourceNATModes": ["Address"] }],
            ["-1 is less than the minimum of 0", { "/spec/grants/0/maxForwards": -1 }],
            ["\"Payments\" does not match", { "/spec/grants/0/name": "Payments" }],
            ["\"namespaceSelector\" is a required property", { "/spec/grants/0/namespaceSelector": null }],
        ]),
    );
    // An empty list grants nothing, which is for the admin to say.
    assert_accepted(&full_pool(), &json!([{ "/spec/grants/0/targetCIDRs": [] }, { "/spec/grants": [] }]));
}

#[test]
fn a_pool_says_which_nodes_and_programs_it_means() {
    assert_refused(
        &full_pool(),
        &json!([
            ["\"nodeSelector\" is a required property", { "/spec/nodeSelector": null }],
            ["\"Off\" is not one of", { "/spec/ipForward": "Off" }],
            ["\"Nftables\" is not one of", { "/spec/firewall/backend": "Nftables" }],
            ["\"Last\" is not one of", { "/spec/firewall/order": "Last" }],
        ]),
    );
    assert_accepted(&full_pool(), &json!([{ "/spec": { "nodeSelector": {} } }]));
}

#[test]
fn a_pool_has_a_name_that_forwards_can_write() {
    let message = "the name of a pool must have at most 63 characters and no dot, because forwards refer to it by name";
    assert_refused(
        &full_pool(),
        &json!([[message, { "/metadata/name": "a.b" }], [message, { "/metadata/name": "a".repeat(64) }]]),
    );
    assert_accepted(&full_pool(), &json!([{ "/metadata/name": "a".repeat(63) }]));
}

#[test]
fn a_lifetime_is_a_bounded_duration() {
    let message = "spec.grants[0].maxLifetime: must be a duration from 1s to 87600h, such as 24h or 1h30m";
    let at = "/spec/grants/0/maxLifetime";
    assert_refused(
        &full_pool(),
        &json!([
            [message, { at: "0s" }],
            [message, { at: "87600h1s" }],
            ["\"1d\" does not match", { at: "1d" }],
            ["\"-1h\" does not match", { at: "-1h" }],
            ["\"24\" does not match", { at: "24" }],
            ["\"1h1h1h1h\" does not match", { at: "1h1h1h1h" }],
            ["86400 is not of type \"string\"", { at: 86400 }],
        ]),
    );
    assert_accepted(&full_pool(), &json!([{ at: "1s" }, { at: "1h30m" }, { at: "87600h" }, { at: null }]));
}
