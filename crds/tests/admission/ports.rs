//! Ports and ranges of a `PortForward`, and how many rules they make.

use serde_json::json;

use crate::{assert_accepted, assert_refused, forward, list};

#[test]
fn a_range_runs_forwards_and_stays_within_the_port_numbers() {
    assert_refused(
        &forward(),
        &json!([
            [
                "spec.ports[0]: endPort 3300 must not be below port 3306; swap them, or remove endPort to use one port",
                { "/spec/ports/0": { "name": "a", "port": 3306, "endPort": 3300 } },
            ],
            [
                "spec.ports[0]: the range from targetPort 65500 must end at 65535 or below; it would end at 65600, so lower",
                { "/spec/ports/0": { "name": "a", "port": 100, "endPort": 200, "targetPort": 65500 } },
            ],
        ]),
    );
    assert_accepted(
        &forward(),
        &json!([
            { "/spec/ports/0": { "name": "a", "port": 3306, "endPort": 3306 } },
            { "/spec/ports/0": { "name": "a", "port": 100, "endPort": 200, "targetPort": 65435 } },
            { "/spec/ports/0": { "name": "a", "port": 1, "endPort": 65535 } },
            { "/spec/ports/0": { "name": "a", "port": 1, "targetPort": 65535 } },
        ]),
    );
}

#[test]
fn a_range_that_changes_port_numbers_is_short() {
    assert_refused(
        &forward(),
        &json!([[
            "spec.ports[0]: a range with another targetPort must span at most 256 ports, not 257; remove targetPort, or",
            { "/spec/ports/0": { "name": "a", "port": 1000, "endPort": 1256, "targetPort": 2000 } },
        ]]),
    );
    assert_accepted(
        &forward(),
        &json!([
            { "/spec/ports/0": { "name": "a", "port": 1000, "endPort": 1255, "targetPort": 2000 } },
            { "/spec/ports/0": { "name": "a", "port": 1, "endPort": 65535, "targetPort": 1 } },
        ]),
    );
}

#[test]
fn a_forward_listens_on_each_port_once() {
    let message = "spec.ports: ports of the same protocol must not overlap; list each port once";
    assert_refused(
        &forward(),
        &json!([
            [message, { "/spec/ports/-": { "name": "b", "port": 3306 } }],
            [message, { "/spec/ports/-": { "name": "b", "port": 3300, "endPort": 3306 } }],
            [message, { "/spec/ports/-": { "name": "b", "protocol": "TCP", "port": 3000, "endPort": 4000 } }],
        ]),
    );
    assert_accepted(
        &forward(),
        &json!([
            { "/spec/ports/-": { "name": "b", "protocol": "UDP", "port": 3306 } },
            { "/spec/ports/-": { "name": "b", "port": 3307, "endPort": 3310 } },
            { "/spec/ports/-": { "name": "b", "port": 3300, "endPort": 3305 } },
        ]),
    );
}

#[test]
fn a_forward_makes_a_bounded_number_of_rules() {
    let targets = |count| list(count, |i| json!({ "name": format!("t{i}"), "ip": format!("10.0.0.{i}") }));
    let shifted = json!({ "name": "a", "port": 1000, "endPort": 1255, "targetPort": 2000 });
    let single = json!({ "name": "b", "port": 1, "targetPort": 2 });
    assert_refused(
        &forward(),
        &json!([
            [
                "spec: ports times targets would make 1280 rules on each node, at most 1024 are allowed; use fewer \
                 targets, or leave out targetPort on ranges, or split the forward",
                { "/spec/ports": [shifted], "/spec/targets": targets(5) },
            ],
            ["would make 1028 rules", { "/spec/ports": [shifted, single], "/spec/targets": targets(4) }],
        ]),
    );
    assert_accepted(
        &forward(),
        &json!([
            { "/spec/ports": [shifted], "/spec/targets": targets(4) },
            { "/spec/ports": [{ "name": "a", "port": 1000, "endPort": 60000 }], "/spec/targets": targets(64) },
        ]),
    );
}
