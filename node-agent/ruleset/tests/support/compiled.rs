//! What is decided upon a scene, as a forwarding table and as the rules of its nodes.
#![allow(dead_code, reason = "each test uses what it needs")]

use std::net::IpAddr;
use std::sync::Arc;

use sallyport_api::GatewayNodeSpec;
use sallyport_api::forward_slice::SliceForward;
use sallyport_api::id::Moment;
use sallyport_policy::decide::Decision;
use sallyport_ruleset::facts::{LocalAddress, NodeFacts};
use sallyport_ruleset::iptables::layout::lower;
use sallyport_ruleset::iptables::rule::Ruleset;
use sallyport_ruleset::table::ForwardingTable;

use crate::scene::{NodeFile, Scene};

/// A table and what becomes of it.
#[derive(Debug)]
pub struct Compiled {
    pub table: ForwardingTable,
    pub ruleset: Ruleset,
}

/// What a node that has `facts` makes of `forwards`.
pub fn compile(node: &GatewayNodeSpec, forwards: &[&Arc<SliceForward>], facts: &NodeFacts<'_>) -> Compiled {
    let table = ForwardingTable::new(node, forwards.iter().copied(), facts);
    Compiled { ruleset: lower(&table), table }
}

impl NodeFile {
    pub fn local_addresses(&self) -> Vec<LocalAddress> {
        let parse = |text: &String| {
            let (ip, prefix_len) = text.split_once('/').unwrap();
            let ip: IpAddr = ip.parse().unwrap();
            LocalAddress { ip, prefix_len: prefix_len.parse().unwrap(), global: !ip.is_loopback() }
        };
        self.local.iter().map(parse).collect()
    }
}

impl Scene {
    /// Compiles `decision` for `node`, before anything expires; `None` where no pool selects it.
    pub fn compile(decision: &Decision, node: &NodeFile) -> Option<Compiled> {
        Self::compile_at(decision, node, Moment::default())
    }

    /// The same at `now`.
    pub fn compile_at(decision: &Decision, node: &NodeFile, now: Moment) -> Option<Compiled> {
        let spec = decision.nodes.get(&node.name)?;
        let forwards: Vec<&Arc<SliceForward>> = decision
            .slices
            .values()
            .filter(|slice| slice.pool == spec.pool)
            .flat_map(|slice| &slice.forwards)
            .collect();
        Some(compile(spec, &forwards, &NodeFacts::of(&node.local_addresses(), now)))
    }
}
