//! Addresses, blocks and families of a `PortForward`.

use serde_json::json;

use crate::{assert_accepted, assert_refused, edited, forward, refusals};

#[test]
fn an_address_is_nothing_but_that() {
    for ip in ["", "10.30.1", "10.30.1.79/32", "db1", "10.30.1.79 -j ACCEPT", "10.30.1.79\n", "010.0.0.1"] {
        let message = "spec.targets[0].ip: must be one IP address such as 10.30.1.79 or fd00::79, without port";
        assert_refused(&forward(), &json!([[message, { "/spec/targets/0/ip": ip }]]));
    }
    // With a colon it may be taken for IPv6 as well, and then more than one message is right.
    for ip in ["10.30.1.79:3306", "fe80::1%eth0", "[fd00::79]", "::ffff:10.30.1.79"] {
        let errors = refusals(&edited(&forward(), &json!({ "/spec/targets/0/ip": ip })));
        assert!(errors.iter().any(|error| error.contains("must be one IP address")), "{ip}: {errors:?}");
    }
    assert_refused(
        &forward(),
        &json!([
            ["spec.addresses: every entry must be one IP address", { "/spec/addresses": ["10.30.1.78/32"] }],
            ["longer than 45 characters", { "/spec/targets/0/ip": "1".repeat(46) }],
        ]),
    );
}

#[test]
fn a_block_is_nothing_but_that() {
    for cidr in ["", "10.30.1.80", "10.30.1.80/33", "10.30.1.80/", "any", "10.0.0.0/8; -j ACCEPT"] {
        assert_refused(
            &forward(),
            &json!([
                [
                    "spec.sources.allow[0].cidr: must be an address block such as 10.30.0.0/23 or fd00::/64; a single \
                     host is written 10.30.1.80/32 or fd00::80/128",
                    { "/spec/sources/allow/0/cidr": cidr },
                ],
                ["spec.sources.deny[0].cidr: must be an address block", { "/spec/sources/deny": [{ "cidr": cidr }] }],
            ]),
        );
    }
    assert_refused(
        &forward(),
        &json!([["longer than 49 characters", { "/spec/sources/allow/0/cidr": "1".repeat(50) }]]),
    );
    assert_accepted(
        &forward(),
        &json!([{ "/spec/sources/allow/0/cidr": "0.0.0.0/0" }, { "/spec/sources/allow/0/cidr": "10.30.1.80/23" }]),
    );
}

#[test]
fn targets_that_cannot_be_another_host_are_refused() {
    let ipv4 = [
        ("0.0.0.0", "an unspecified address"),
        ("0.1.2.3", "an unspecified address"),
        ("127.0.0.1", "a loopback address"),
        ("127.255.0.1", "a loopback address"),
        ("169.254.169.254", "a link-local address (cloud metadata lives there)"),
        ("169.254.0.1", "a link-local address (cloud metadata lives there)"),
        ("224.0.0.1", "a multicast address"),
        ("239.255.255.255", "a multicast address"),
        ("240.0.0.1", "a reserved or broadcast address"),
        ("255.255.255.255", "a reserved or broadcast address"),
        ("100.100.100.200", "a cloud metadata service"),
        ("168.63.129.16", "a cloud metadata service"),
        ("192.0.0.192", "a cloud metadata service"),
    ];
    let ipv6 = [
        ("::", "an unspecified or IPv4-compatible address"),
        ("::1", "a loopback address"),
        ("::10.30.1.79", "an unspecified or IPv4-compatible address"),
        ("fe80::1", "a link-local address"),
        ("febf::1", "a link-local address"),
        ("ff02::1", "a multicast address"),
        ("64:ff9b::a1e:14f", "an address that embeds an IPv4 address (NAT64)"),
        ("64:ff9b:1::1", "an address that embeds an IPv4 address (NAT64)"),
        ("2001::1", "an address that embeds an IPv4 address (Teredo)"),
        ("2002:a1e:14f::1", "an address that embeds an IPv4 address (6to4)"),
        ("fd00:ec2::254", "a cloud metadata service"),
        ("fd00:0ec2:0:0:0::0254", "a cloud metadata service"),
        ("fd20:ce::254", "a cloud metadata service"),
    ];
    let sources = [("10.30.1.80/32", &ipv4), ("fd00::/64", &ipv6)];
    for (source, (ip, what)) in sources.into_iter().flat_map(|(source, ips)| ips.iter().map(move |ip| (source, ip))) {
        let message = format!("spec.targets[0].ip: {ip} is {what}; a target must be another host's own address");
        let edits = json!({ "/spec/targets/0/ip": ip, "/spec/sources/allow/0/cidr": source });
        assert_refused(&forward(), &json!([[message, edits]]));
    }
}

#[test]
fn ordinary_targets_are_accepted() {
    for ip in
        ["1.0.0.1", "10.0.0.1", "100.64.0.1", "126.1.1.1", "169.253.0.1", "172.16.0.1", "192.0.0.191", "223.1.1.1"]
    {
        assert_accepted(&forward(), &json!([{ "/spec/targets/0/ip": ip }]));
    }
    for ip in ["fc00::1", "fd00::1", "2001:db8::1", "2a00::1", "fd00:ec2::253", "fec0::1"] {
        assert_accepted(&forward(), &json!([{ "/spec/targets/0/ip": ip, "/spec/sources/allow/0/cidr": "::/0" }]));
    }
}

#[test]
fn sources_targets_and_addresses_are_of_the_same_families() {
    assert_refused(
        &forward(),
        &json!([
            [
                "spec: a target is IPv6 but sources.allow has no IPv6 block; add one, or remove the target",
                { "/spec/targets/-": { "name": "db2", "ip": "fd00::79" } },
            ],
            [
                "spec: sources.allow has an IPv6 block but no target is IPv6; add a target, or remove the block",
                { "/spec/sources/allow/-": { "cidr": "fd00::/64" } },
            ],
            [
                "spec: an entry of addresses has no target of its address family; add a target, or remove the address",
                { "/spec/addresses": ["10.30.1.78", "fd00::78"] },
            ],
        ]),
    );
    let ipv6 = json!({ "/spec/targets/0/ip": "fd00::79", "/spec/sources/allow/0/cidr": "fd00::/64" });
    assert_refused(
        &edited(&forward(), &ipv6),
        &json!([
            [
                "a target is IPv4 but sources.allow has no IPv4 block",
                { "/spec/targets/-": { "name": "db2", "ip": "10.30.1.79" } },
            ],
            [
                "sources.allow has an IPv4 block but no target is IPv4",
                { "/spec/sources/allow/-": { "cidr": "10.0.0.0/8" } },
            ],
        ]),
    );
    // What is denied needs no target: it may be broader than what is allowed.
    assert_accepted(&forward(), &json!([{ "/spec/sources/deny": [{ "cidr": "::/0" }] }]));
}
