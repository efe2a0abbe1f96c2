//! Kernel tier: the addresses of a real host, in a network namespace of its own. Needs root and
//! iproute2.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

#[path = "support/namespace.rs"]
mod namespace;

use namespace::{in_namespace, run};
use sallyport_engine::route::addresses::local_addresses;
use sallyport_ruleset::facts::LocalAddress;

fn address(ip: &str, prefix_len: u8, global: bool) -> LocalAddress {
    LocalAddress { ip: ip.parse().unwrap(), prefix_len, global }
}

#[test]
fn addresses_of_every_interface_are_listed_in_order() {
    in_namespace("addresses_of_every_interface_are_listed_in_order", || {
        assert_eq!(local_addresses().unwrap(), []);

        run("ip link add v0 type veth peer name v1");
        run("ip link set lo up");
        run("ip link set v0 addrgenmode none up");
        run("ip link set v1 addrgenmode none up");
        run("ip address add 10.30.1.78/24 dev v0");
        run("ip address add 10.30.1.9/24 dev v0");
        run("ip address add 10.9.0.1 peer 10.9.0.2/32 dev v1");
        run("ip address add 10.7.0.1/32 dev lo");
        run("ip address add 10.8.0.1/24 scope link dev v1");
        run("ip address add 2001:db8::78/64 nodad dev v0");
        run("ip address add 2001:db8::79/64 nodad preferred_lft 0 dev v0");
        run("ip address add fe80::1/64 nodad dev v0");
        // The same twice, on another interface, is one address.
        run("ip address add fe80::1/64 nodad dev v1");
        assert_eq!(
            local_addresses().unwrap(),
            [
                address("10.7.0.1", 32, false),
                address("10.8.0.1", 24, false),
                address("10.9.0.1", 32, true),
                address("10.30.1.9", 24, true),
                address("10.30.1.78", 24, true),
                address("127.0.0.1", 8, false),
                address("::1", 128, false),
                address("2001:db8::78", 64, true),
                address("2001:db8::79", 64, true),
                address("fe80::1", 64, false),
            ]
        );

        run("ip address delete 10.30.1.9/24 dev v0");
        assert!(!local_addresses().unwrap().contains(&address("10.30.1.9", 24, true)));
    });
}
