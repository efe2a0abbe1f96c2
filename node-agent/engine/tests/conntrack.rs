//! Kernel tier: tracked connections and the nftables generation of a real kernel, each test in a
//! network namespace of its own. Needs root, conntrack, nftables and iptables.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

#[path = "support/namespace.rs"]
mod namespace;

use std::collections::BTreeSet;

use namespace::{in_namespace, run};
use sallyport_engine::conntrack::Conntrack;
use sallyport_engine::generation::Generation;
use sallyport_ruleset::Protocol;
use sallyport_ruleset::flow::{Flow, Tuple};

/// Makes an entry: `conntrack -I` with the words of `entry`.
fn insert(entry: &str) {
    run(&format!("conntrack -I -t 600 {entry}"));
}

fn udp_entry(source_port: u16) -> String {
    format!(
        "-p udp -s 10.30.0.10 -d 10.30.1.78 --sport {source_port} --dport 53 \
         --dst-nat 10.30.2.20:5353"
    )
}

fn tuple(src: &str, dst: &str) -> Tuple {
    Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap() }
}

fn from_port(flows: &[Flow], port: u16) -> Flow {
    *flows.iter().find(|flow| flow.original.src.port() == port).unwrap()
}

#[test]
fn every_field_of_every_kind_of_flow_is_read() {
    in_namespace("every_field_of_every_kind_of_flow_is_read", || {
        insert(
            "-p tcp --state ESTABLISHED -u SEEN_REPLY -m 0x1005 \
             -s 10.30.0.10 -d 10.30.1.78 --sport 40000 --dport 3306 \
             --dst-nat 10.30.2.20:3307 --src-nat 10.30.1.78:41000",
        );
        insert(
            "-p tcp --state TIME_WAIT -u SEEN_REPLY -m 0x1000 -w 9 \
             -s 2001:db8::10 -d 2001:db8:1::78 --sport 40001 --dport 3306 \
             -r 2001:db8:1::78 -q 2001:db8::10 --reply-port-src 3306 --reply-port-dst 40001",
        );
        insert(&format!("{} -m 0x1000", udp_entry(40002)));
        insert(
            "-p udp -m 0x1000 -s 2001:db8::10 -d 2001:db8:1::78 --sport 40003 --dport 53 \
             --dst-nat 2001:db8:2::20",
        );
        insert("-p icmp -m 0x1000 -s 10.30.0.10 -d 10.30.1.78 --icmp-type 8 --icmp-code 0 --icmp-id 7");
        insert(&format!("{} -m 0x2000", udp_entry(40004)));
        insert(&udp_entry(40005));

        let conntrack = Conntrack::open().unwrap();
        let mut ours = conntrack.ours(0x1000, 0xf000).unwrap();
        ours.sort_unstable_by_key(|flow| flow.original.src.port());
        let ids: BTreeSet<u32> = ours.iter().map(|flow| flow.id).collect();
        assert_eq!(ids.len(), 4, "an id for each of four");
        let expected = [
            Flow {
                protocol: Protocol::Tcp,
                original: tuple("10.30.0.10:40000", "10.30.1.78:3306"),
                reply: tuple("10.30.2.20:3307", "10.30.1.78:41000"),
                mark: 0x1005,
                dnat: true,
                id: ours[0].id,
                zone: 0,
                is_over: false,
            },
            Flow {
                protocol: Protocol::Tcp,
                original: tuple("[2001:db8::10]:40001", "[2001:db8:1::78]:3306"),
                reply: tuple("[2001:db8:1::78]:3306", "[2001:db8::10]:40001"),
                mark: 0x1000,
                dnat: false,
                id: ours[1].id,
                zone: 9,
                is_over: true,
            },
            Flow {
                protocol: Protocol::Udp,
                original: tuple("10.30.0.10:40002", "10.30.1.78:53"),
                reply: tuple("10.30.2.20:5353", "10.30.0.10:40002"),
                mark: 0x1000,
                dnat: true,
                id: ours[2].id,
                zone: 0,
                is_over: false,
            },
            Flow {
                protocol: Protocol::Udp,
                original: tuple("[2001:db8::10]:40003", "[2001:db8:1::78]:53"),
                reply: tuple("[2001:db8:2::20]:53", "[2001:db8::10]:40003"),
                mark: 0x1000,
                dnat: true,
                id: ours[3].id,
                zone: 0,
                is_over: false,
            },
        ];
        assert_eq!(ours, expected);

        let mut udp: Vec<(u16, u32)> =
            conntrack.udp().unwrap().iter().map(|flow| (flow.original.src.port(), flow.mark)).collect();
        udp.sort_unstable();
        assert_eq!(udp, [(40002, 0x1000), (40003, 0x1000), (40004, 0x2000), (40005, 0)]);
    });
}

#[test]
fn of_two_flows_that_differ_in_source_port_one_is_deleted() {
    in_namespace("of_two_flows_that_differ_in_source_port_one_is_deleted", || {
        for port in [40000, 40001] {
            insert(&format!("{} -m 0x1000", udp_entry(port)));
        }
        let conntrack = Conntrack::open().unwrap();
        let both = conntrack.ours(0x1000, 0x1000).unwrap();
        let (gone, stays) = (from_port(&both, 40000), from_port(&both, 40001));
        assert!(conntrack.delete(&gone).unwrap());
        assert_eq!(conntrack.udp().unwrap(), [stays]);
        assert!(!conntrack.delete(&gone).unwrap(), "a second time there is nothing to delete");
        assert_eq!(conntrack.udp().unwrap(), [stays]);
    });
}

#[test]
fn each_family_protocol_and_zone_can_be_deleted() {
    in_namespace("each_family_protocol_and_zone_can_be_deleted", || {
        let tcp = "-p tcp --state ESTABLISHED -u SEEN_REPLY -m 1 --dport 443";
        let v6 = "-s 2001:db8::10 -d 2001:db8::78";
        let v4 = "-s 10.30.0.10 -d 10.30.1.78";
        insert(&format!("{tcp} {v4} --sport 1"));
        insert(&format!("{tcp} {v6} --sport 2"));
        insert(&format!("-p udp -m 1 --dport 53 {v4} --sport 3"));
        insert(&format!("-p udp -m 1 --dport 53 {v6} --sport 4"));
        insert(&format!("-p udp -m 1 --dport 53 {v4} --sport 5 -w 7"));
        insert(&format!("-p udp -m 1 --dport 53 {v4} --sport 6 --orig-zone 8"));
        let conntrack = Conntrack::open().unwrap();
        let mut left = conntrack.ours(1, u32::MAX).unwrap();
        assert_eq!(left.len(), 6);
        while let Some(flow) = left.pop() {
            assert!(conntrack.delete(&flow).unwrap(), "{flow:?}");
            assert_eq!(conntrack.ours(1, u32::MAX).unwrap().len(), left.len(), "{flow:?}");
        }
    });
}

#[test]
fn a_successor_with_the_same_tuple_is_not_deleted() {
    in_namespace("a_successor_with_the_same_tuple_is_not_deleted", || {
        let entry = format!("{} -m 0x1000", udp_entry(40000));
        insert(&entry);
        let conntrack = Conntrack::open().unwrap();
        let old = conntrack.udp().unwrap()[0];
        assert!(conntrack.delete(&old).unwrap());
        // The id comes from the entry's memory, which the kernel may use again at once; then the
        // successor has the same id and nobody can tell them apart.
        let mut attempts = 0..50;
        let successor = loop {
            insert(&entry);
            let successor = conntrack.udp().unwrap()[0];
            if successor.id != old.id {
                break successor;
            }
            assert!(conntrack.delete(&successor).unwrap());
            attempts.next().expect("an entry in other memory");
        };
        assert_eq!(Flow { id: old.id, ..successor }, old, "equal but for the id");
        assert!(!conntrack.delete(&old).unwrap());
        assert_eq!(conntrack.udp().unwrap(), [successor]);
    });
}

#[test]
fn the_generation_moves_with_nftables_and_only_then() {
    in_namespace("the_generation_moves_with_nftables_and_only_then", || {
        let generation = Generation::open().unwrap();
        let start = generation.current().unwrap();
        for _ in 0..1000 {
            assert_eq!(generation.current().unwrap(), start);
        }
        run("nft list ruleset");
        insert(&udp_entry(40000));
        assert_eq!(generation.current().unwrap(), start, "reading and conntrack are no change");

        run("nft add table inet other");
        let after_nft = generation.current().unwrap();
        assert_ne!(after_nft, start);
        run("iptables-nft -A FORWARD -j ACCEPT");
        let after_iptables = generation.current().unwrap();
        assert_ne!(after_iptables, after_nft);
        assert_eq!(generation.current().unwrap(), after_iptables);
    });
}
