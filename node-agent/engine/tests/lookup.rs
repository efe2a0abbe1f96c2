//! Kernel tier: what a kernel says of packets that it would forward, in a network namespace of its own. Needs root and
//! iproute2.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::net::IpAddr;

#[path = "support/namespace.rs"]
mod namespace;

use namespace::{in_namespace, run};
use sallyport_engine::route::lookup::Lookups;
use sallyport_ruleset::family::Family;
use sallyport_ruleset::routing::{Answer, Question};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Asked anew.
fn ask(question: Question) -> Answer {
    Lookups::default().ask(question)
}

fn sends(from: Option<&str>, to: &str) -> Answer {
    ask(Question::Sends { from: from.map(ip), to: ip(to) })
}

fn forwards(by: &str, from: &str, to: &str) -> Answer {
    ask(Question::Forwards { by: by.to_owned(), from: ip(from), to: ip(to) })
}

fn by(interface: &str) -> Answer {
    Answer::By(interface.to_owned())
}

#[test]
fn a_kernel_with_two_uplinks_says_what_becomes_of_each_packet() {
    in_namespace("a_kernel_with_two_uplinks_says_what_becomes_of_each_packet", || {
        for (interface, address, six) in
            [("eth0", "10.30.1.78/23", "fd00:30::78/64"), ("eth1", "192.0.2.1/24", "fd00:40::1/64")]
        {
            run(&format!("ip link add {interface} type veth peer name p{interface}"));
            run(&format!("ip link set {interface} up"));
            run(&format!("ip link set p{interface} up"));
            run(&format!("ip address add {address} dev {interface}"));
            run(&format!("ip address add {six} nodad dev {interface}"));
        }
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0");
        run("sysctl -qw net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0");
        let (client, target) = ("198.51.100.9", "10.30.1.79");
        assert_eq!(sends(None, target), by("eth0"));
        assert_eq!(sends(None, client), Answer::NoRoute);
        assert_eq!(sends(None, "fd00:30::79"), by("eth0"));
        assert_eq!(sends(None, "fd00:50::1"), Answer::NoRoute);
        run("ip route add unreachable 203.0.113.0/24");
        assert_eq!(sends(None, "203.0.113.1"), Answer::NoRoute);

        run("ip route add default via 10.30.1.1");
        run("ip route add default via 192.0.2.254 table 2");
        run("ip rule add from 192.0.2.1 table 2 pref 100");
        assert_eq!(sends(Some("10.30.1.78"), client), by("eth0"));
        assert_eq!(sends(Some("192.0.2.1"), client), by("eth1"));
        assert_eq!(forwards("eth1", client, target), by("eth0"));
        assert_eq!(forwards("eth0", target, client), by("eth0"), "past the uplink that the client came in by");
        assert_eq!(forwards("eth0", "fd00:30::79", "fd00:40::9"), by("eth1"));
        assert_eq!(forwards("wg0", client, target), Answer::Unclear);

        run("sysctl -qw net.ipv4.conf.eth1.rp_filter=1");
        assert_eq!(forwards("eth1", client, target), Answer::Filtered);
        assert_eq!(forwards("eth1", "192.0.2.9", target), by("eth0"));
        run("sysctl -qw net.ipv4.conf.eth1.rp_filter=2");
        assert_eq!(forwards("eth1", client, target), by("eth0"));

        run("sysctl -qw net.ipv4.conf.eth1.forwarding=0");
        assert_eq!(forwards("eth1", client, target), Answer::NotForwarding);
        assert_eq!(forwards("eth0", target, client), by("eth0"), "the other one forwards");

        let by_mark = || ask(Question::ByMark(Family::V4));
        assert_eq!(by_mark(), Answer::NoRoute);
        run("ip rule add fwmark 2/0xff table 2 pref 90");
        assert_eq!(by_mark(), Answer::Unclear);
        assert_eq!(ask(Question::ByMark(Family::V6)), Answer::NoRoute);
    });
}
