//! Forwards of a gateway that listens on 10.30.1.78, as rules and as the packets that they carry.

use std::sync::Arc;

use sallyport_api::forward_slice::SliceForward;
use sallyport_api::gateway_node::GatewayNodeSpec;
use sallyport_api::id::Moment;
use sallyport_api::testing::Forward;
use sallyport_engine::Engine as _;
use sallyport_engine::iptables::Iptables;
use sallyport_policy::digest::intent_hash;
use sallyport_ruleset::facts::{LocalAddress, NodeFacts};
use sallyport_ruleset::iptables::layout::lower;
use sallyport_ruleset::iptables::plan::plan;
use sallyport_ruleset::iptables::rule::Ruleset;
use sallyport_ruleset::iptables::shadow::Packets;
use sallyport_ruleset::table::ForwardingTable;
use serde_json::json;

/// So many forwards, the last of which leads to `last`. Every fourth has chains of its own.
pub fn forwards(number: usize, last: &str) -> (Ruleset, Packets) {
    let forward = |n: usize| {
        let target = format!("10.31.{}.{}", n / 250 % 250, n % 250 + 1);
        let target = if n + 1 == number { last } else { target.as_str() };
        let forward = Forward::tcp(&format!("payments/f{n:05}"), u16::try_from(3000 + n).unwrap()).to([target]);
        let forward = if n % 4 == 3 { forward.from(["10.30.1.80/32", "10.32.0.0/16"]) } else { forward };
        forward.slice_forward(intent_hash)
    };
    let forwards: Vec<Arc<SliceForward>> = (0..number).map(|n| Arc::new(forward(n))).collect();
    let local = ["10.30.1.78".parse().unwrap()].map(|ip| LocalAddress { ip, prefix_len: 23, global: true });
    let node: GatewayNodeSpec =
        serde_json::from_value(json!({ "pool": "default", "state": "Active", "addresses": ["10.30.1.78"] })).unwrap();
    let facts = NodeFacts::of(&local, Moment::default());
    let table = ForwardingTable::new(&node, &forwards, &facts);
    (lower(&table), Packets::of(&table))
}

/// Makes the kernel hold them.
pub async fn converge(engine: &mut Iptables, (wanted, packets): &(Ruleset, Packets)) {
    engine.attend_to(packets);
    let ops = plan(wanted, packets, &engine.observe().await.unwrap());
    engine.apply(&ops).await.unwrap();
}
