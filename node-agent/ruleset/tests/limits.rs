//! What no forward may ever ask for is refused by the operator and again by the agent, in the same words.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sallyport_api::condition::Reason;
use sallyport_api::id::Moment;
use sallyport_api::limits::{REFUSED_TARGETS, RESERVED_PORTS};
use sallyport_api::testing::Forward;
use sallyport_api::{GatewayNodeSpec, Protocol};
use sallyport_policy::digest::intent_hash;
use sallyport_policy::limits::refused_target;
use sallyport_policy::validate::validate;
use sallyport_ruleset::facts::{LocalAddress, NodeFacts};
use sallyport_ruleset::iptables::layout::lower;
use sallyport_ruleset::iptables::rule::Ruleset;
use sallyport_ruleset::table::ForwardingTable;
use serde_json::json;

/// Reason and words with which the operator and the agent refuse a forward of these ports to this target, the agent in
/// a slice with the right hash, whoever wrote it; that no rule comes of it.
fn refusals(protocol: Protocol, ports: (u16, u16), target: IpAddr) -> [(Reason, String); 2] {
    let (gateway, source) =
        if target.is_ipv4() { ("10.30.1.78", "10.30.1.80/32") } else { ("fd00::78", "fd00::80/128") };
    let (first, last) = ports;
    let forward =
        Forward::on(protocol, "payments/mysql", first).through(last).from([source]).to([target.to_string().as_str()]);
    let mut problems = validate(&forward.spec()).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    let operator = problems.remove(0);

    let forged = forward.slice_forward(intent_hash);
    let node: GatewayNodeSpec =
        serde_json::from_value(json!({ "pool": "default", "state": "Active", "addresses": [gateway] })).unwrap();
    let own = LocalAddress { ip: gateway.parse().unwrap(), prefix_len: 24, global: true };
    let table = ForwardingTable::new(&node, &[Arc::new(forged)], &NodeFacts::of(&[own], Moment::default()));
    assert_eq!(lower(&table), Ruleset::default(), "{target} {ports:?}/{protocol}");
    let agent = table.failures().next().unwrap().clone();
    [(operator.reason, operator.message), (agent.reason, agent.message)]
}

#[test]
fn every_refused_target_is_refused_by_the_operator_and_again_by_the_agent() {
    for (net, _) in REFUSED_TARGETS {
        let net: IpNet = net.parse().unwrap();
        for target in [net.network(), net.broadcast()] {
            let what = refused_target(target).unwrap();
            let words = format!("{target} is {what}; a target must be another host's own address");
            let expected = (Reason::InvalidTarget, words);
            assert_eq!(refusals(Protocol::Tcp, (3306, 3306), target), [expected.clone(), expected]);
        }
    }
}

#[test]
fn every_reserved_port_is_refused_by_the_operator_and_again_by_the_agent() {
    for (protocol, first, last, _) in RESERVED_PORTS {
        let kept = if first == last { first.to_string() } else { format!("{first}-{last}") };
        let words = format!("{kept}/{protocol} is kept for the gateway itself; choose another port");
        for ports in [(*first, *first), (*last, *last), (first - 1, *first), (*last, last + 1)] {
            for (reason, message) in refusals(*protocol, ports, "10.30.1.79".parse().unwrap()) {
                assert_eq!(reason, Reason::ReservedPort, "{ports:?}: {message}");
                assert!(message.ends_with(&words), "{ports:?}: {message}");
            }
        }
    }
}
