//! Kernel tier: what the kernel says of addresses, rules and forwarding, in a network namespace of its own. Needs root and
//! iproute2.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::time::Duration;

#[path = "support/namespace.rs"]
mod namespace;

use namespace::{in_namespace, run};
use sallyport_engine::route::events::RouteEvents;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn every_change_of_addresses_rules_or_forwarding_is_heard_and_nothing_else() {
    in_namespace("every_change_of_addresses_rules_or_forwarding_is_heard_and_nothing_else", || {
        run("ip link add v0 type veth peer name v1");
        run("ip link set v0 addrgenmode none up");
        run("ip link set v1 addrgenmode none up");
        // A namespace copies the machine's setting.
        run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let notices = RouteEvents::open().unwrap();
            for change in [
                "ip address add 10.30.1.78/24 dev v0",
                "ip address delete 10.30.1.78/24 dev v0",
                "ip address add 2001:db8::78/64 nodad dev v0",
                "ip address delete 2001:db8::78/64 dev v0",
                "sysctl -qw net.ipv4.ip_forward=1",
                "sysctl -qw net.ipv4.ip_forward=0",
                "sysctl -qw net.ipv6.conf.all.forwarding=1",
                "sysctl -qw net.ipv4.conf.v0.forwarding=1",
                "sysctl -qw net.ipv4.conf.v0.rp_filter=1",
                "ip rule add fwmark 2/0xff table 2",
                "ip -6 rule add fwmark 2/0xff table 2",
            ] {
                run(change);
                assert!(timeout(SOON, notices.changed()).await.is_ok(), "{change}");
            }
            run("ip route add 10.99.0.0/24 dev v0");
            assert!(timeout(Duration::from_millis(200), notices.changed()).await.is_err(), "a route is none of them");
        });
    });
}
