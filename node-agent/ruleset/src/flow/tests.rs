//! Which connections end, and which bypass their forward.

use std::sync::Arc;

use sallyport_api::id::{IntentHash, Moment};
use sallyport_api::names::MARK_MASQUERADE;
use sallyport_api::testing::Forward;
use sallyport_policy::digest::intent_hash;
use serde_json::json;

use super::*;
use crate::facts::{LocalAddress, NodeFacts};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A forward of both protocols: 3306 as it is, 8000-8009 to 9000-9009, from 10.30.1.0/24 but 10.30.1.66.
fn forward() -> SliceForward {
    let ports = [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|protocol| {
        [(3306, 3306, 3306), (8000, 8009, 9000)].map(|(port, end_port, target_port)| IntentPort {
            protocol,
            port,
            end_port,
            target_port,
        })
    });
    let mut forward = Forward::tcp("payments/mysql", 3306)
        .from(["10.30.1.0/24", "fd00:30::/64"])
        .to(["10.30.1.79", "10.30.1.81", "fd00:30::79"])
        .slice_forward(|_| IntentHash::default());
    forward.intent.ports = ports.collect();
    forward.intent.deny = vec!["10.30.1.66/32".parse().unwrap()];
    forward.intent.targets[1].weight = 0;
    forward
}

/// The table of a node with these two addresses.
fn table(forwards: &[&SliceForward]) -> ForwardingTable {
    let listen = ["10.30.1.78", "fd00:30::78"];
    let node = json!({ "pool": "default", "state": "Active", "addresses": listen });
    let own = listen.map(|listen| LocalAddress { ip: ip(listen), prefix_len: 32, global: true });
    let signed = |forward: &&SliceForward| {
        Arc::new(SliceForward { hash: intent_hash(&forward.intent), ..SliceForward::clone(forward) })
    };
    let forwards: Vec<_> = forwards.iter().map(signed).collect();
    ForwardingTable::new(&serde_json::from_value(node).unwrap(), &forwards, &NodeFacts::of(&own, Moment::default()))
}

/// A connection of ours from `client` to `listen`, answered by `server`.
fn flow(protocol: Protocol, client: &str, listen: &str, server: &str) -> Flow {
    let client = SocketAddr::new(ip(client), 40000);
    let listen: SocketAddr = listen.parse().unwrap();
    Flow {
        protocol,
        original: Tuple { src: client, dst: listen },
        reply: Tuple { src: server.parse().unwrap(), dst: client },
        mark: MARK_OURS | MARK_MASQUERADE,
        dnat: true,
        id: 7,
        zone: 0,
        is_over: false,
    }
}

const TCP: Protocol = Protocol::Tcp;
const UDP: Protocol = Protocol::Udp;

/// What becomes of a flow of ours when its target's removal drains, and when it severs: its protocol, client, listen
/// address and server, and what it is.
const FATES: &str = "\
kept   TCP 10.30.1.80   10.30.1.78:3306     10.30.1.79:3306     as declared
kept   UDP 10.30.1.80   10.30.1.78:3306     10.30.1.79:3306     as declared
kept   UDP fd00:30::80  [fd00:30::78]:3306  [fd00:30::79]:3306  as declared
kept   UDP 10.30.1.80   10.30.1.78:8000     10.30.1.79:9000     first of a shifted range
kept   UDP 10.30.1.80   10.30.1.78:8009     10.30.1.79:9009     last of a shifted range
ended  TCP 10.30.1.80   10.30.1.78:7999     10.30.1.79:8999     below the range
ended  TCP 10.30.1.80   10.30.1.78:8010     10.30.1.79:9010     above the range
ended  UDP 10.30.1.80   10.30.1.78:8001     10.30.1.79:9000     another port of the target
severs TCP 10.30.1.80   10.30.1.78:8001     10.30.1.79:9000     another port of the target, TCP
drains UDP 10.30.1.80   10.30.1.78:3306     10.30.1.81:3306     a target of weight 0
drains TCP 10.30.1.80   10.30.1.78:3306     10.30.1.81:3306     a target of weight 0, TCP
ended  UDP 10.30.1.80   10.30.1.78:3306     10.30.1.82:3306     a target that is gone
severs TCP 10.30.1.80   10.30.1.78:3306     10.30.1.82:3306     a target that is gone, TCP
severs TCP fd00:30::80  [fd00:30::78]:3306  [fd00:30::82]:3306  a target that is gone, TCP
ended  UDP fd00:30::80  [fd00:30::78]:3306  [fd00:30::82]:3306  a target that is gone
ended  TCP 10.30.1.66   10.30.1.78:3306     10.30.1.79:3306     a denied client
ended  TCP 10.30.2.0    10.30.1.78:3306     10.30.1.79:3306     a client beyond the block
ended  TCP 10.30.1.80   10.30.1.77:3306     10.30.1.79:3306     another listen address
ended  TCP 10.30.1.80   10.30.1.78:3307     10.30.1.79:3307     an unforwarded port";

#[test]
fn a_flow_ends_with_what_allowed_it() {
    for on_target_removed in [OnTargetRemoved::Drain, OnTargetRemoved::Sever] {
        let mut forward = forward();
        forward.intent.on_target_removed = on_target_removed;
        let table = table(&[&forward]);
        let allowed = Allowed::new(&table);
        for row in FATES.lines() {
            let words: Vec<&str> = row.split_whitespace().collect();
            let flow = flow(if words[1] == "TCP" { TCP } else { UDP }, words[2], words[3], words[4]);
            let fate = match words[0] {
                "severs" if on_target_removed == OnTargetRemoved::Sever => "ended",
                "severs" => "drains",
                other => other,
            };
            assert_eq!(allowed.forbids(&flow), fate == "ended", "{on_target_removed:?}: {row}");
            let drained = allowed.drains(&flow).map(|forward| forward.uid.as_str());
            assert_eq!(drained, (fate == "drains").then_some("mysql"), "{on_target_removed:?}: {row}");
        }
    }
}

#[test]
fn a_flow_of_another_protocol_ends() {
    let mut forward = forward();
    forward.intent.ports.retain(|port| port.protocol == TCP);
    let table = table(&[&forward]);
    let allowed = Allowed::new(&table);
    for (protocol, ends) in [(TCP, false), (UDP, true)] {
        let flow = flow(protocol, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306");
        assert_eq!((allowed.forbids(&flow), allowed.drains(&flow).is_some()), (ends, false), "{protocol}");
    }
}

#[test]
fn flows_of_others_are_left_alone() {
    let table = table(&[]);
    let allowed = Allowed::new(&table);
    let ours = flow(TCP, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306");
    assert!(allowed.forbids(&ours));
    let others = [
        Flow { mark: 0, ..ours },
        Flow { mark: MARK_MASQUERADE, ..ours },
        Flow { mark: 0x4000, ..ours },
        Flow { dnat: false, ..ours },
    ];
    for other in others {
        assert!(!allowed.forbids(&other) && allowed.drains(&other).is_none(), "{other:?}");
    }
    assert!(allowed.forbids(&Flow { mark: ours.mark | 0x4000, ..ours }), "foreign bits beside ours");
}

#[test]
fn a_forward_without_rules_here_allows_nothing() {
    let mut forward = forward();
    forward.intent.targets[0].ip = ip("10.30.1.78");
    let table = table(&[&forward]);
    assert_eq!(table.failures().count(), 1);
    let allowed = Allowed::new(&table);
    assert!(allowed.forbids(&flow(TCP, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306")));
    assert!(!allowed.any_udp());
}

#[test]
fn only_the_listed_addresses_of_a_forward_count() {
    let mut forward = forward();
    forward.intent.addresses = vec![ip("fd00:30::78")];
    let table = table(&[&forward]);
    let allowed = Allowed::new(&table);
    assert!(allowed.forbids(&flow(TCP, "10.30.1.80", "10.30.1.78:3306", "10.30.1.79:3306")));
    assert!(!allowed.forbids(&flow(TCP, "fd00:30::80", "[fd00:30::78]:3306", "[fd00:30::79]:3306")));
}

#[test]
fn udp_from_before_the_forward_bypasses_it() {
    let forward = forward();
    let table = table(&[&forward]);
    let allowed = Allowed::new(&table);
    let stale = Flow { mark: 0, dnat: false, ..flow(UDP, "10.30.1.80", "10.30.1.78:8003", "10.30.1.78:8003") };
    assert!(allowed.any_udp() && allowed.bypasses(&stale));
    let at = |text: &str| Tuple { dst: text.parse().unwrap(), ..stale.original };
    let from = |text: &str| Tuple { src: SocketAddr::new(ip(text), 40000), ..stale.original };
    let kept = [
        ("TCP begins anew by itself", Flow { protocol: TCP, ..stale }),
        ("one that goes through it", Flow { mark: MARK_OURS, dnat: true, ..stale }),
        ("a denied client's", Flow { original: from("10.30.1.66"), ..stale }),
        ("a client's beyond the block", Flow { original: from("10.30.2.1"), ..stale }),
        ("to another port", Flow { original: at("10.30.1.78:8010"), ..stale }),
        ("to another host, merely routed", Flow { original: at("10.30.1.90:8003"), ..stale }),
    ];
    for (what, flow) in kept {
        assert!(!allowed.bypasses(&flow), "{what}");
    }
}
