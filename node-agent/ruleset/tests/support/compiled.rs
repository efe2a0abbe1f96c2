//! What is decided upon a scene, compiled for its nodes.
#![allow(dead_code, reason = "each test uses what it needs")]

use std::net::IpAddr;

use sallyport_api::forward_slice::SliceForward;
use sallyport_policy::decide::Decision;
use sallyport_ruleset::compile::{Compiled, compile};
use sallyport_ruleset::facts::LocalAddress;

use crate::scene::{NodeFile, Scene};

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
        Self::compile_at(decision, node, 0)
    }

    /// The same at `now`.
    pub fn compile_at(decision: &Decision, node: &NodeFile, now: i64) -> Option<Compiled> {
        let spec = decision.nodes.get(&node.name)?;
        let forwards: Vec<&SliceForward> = decision
            .slices
            .values()
            .filter(|slice| slice.pool == spec.pool)
            .flat_map(|slice| &slice.forwards)
            .collect();
        Some(compile(spec, &forwards, &node.local_addresses(), now))
    }
}
