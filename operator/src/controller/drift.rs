//! Which repairs of somebody's changes are new: each is told once.

use std::collections::BTreeMap;
use std::sync::Arc;

use sallyport_api::gateway_node::{Drift, GatewayNode};

/// The last drift of each node.
#[derive(Debug, Default)]
pub struct Drifts {
    known: BTreeMap<String, Option<Drift>>,
}

impl Drifts {
    /// The nodes whose last drift is another than before. What a node first seen reports was told by whoever led then.
    pub fn new_ones<'a>(
        &mut self,
        gateways: impl Iterator<Item = &'a Arc<GatewayNode>>,
    ) -> Vec<(&'a GatewayNode, &'a Drift)> {
        let mut known = BTreeMap::new();
        let mut found = Vec::new();
        for gateway in gateways {
            let name = gateway.metadata.name.clone().unwrap_or_default();
            let drift = gateway.status.as_ref().and_then(|status| status.last_drift.as_ref());
            if let (Some(drift), Some(before)) = (drift, self.known.get(&name))
                && before.as_ref() != Some(drift)
            {
                found.push((&**gateway, drift));
            }
            known.insert(name, drift.cloned());
        }
        self.known = known;
        found
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, drift: &Value) -> Arc<GatewayNode> {
        let object = json!({
            "apiVersion": "sallyport.dev/v1alpha1", "kind": "GatewayNode", "metadata": { "name": name },
            "spec": { "pool": "default", "state": "Active" },
            "status": { "lastDrift": drift },
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn each_repair_is_news_once() {
        let drift =
            |second: u8, what: &str| json!({ "time": format!("2026-01-01T00:00:{second:02}Z"), "message": what });
        let mut drifts = Drifts::default();
        let mut told = |nodes: &[Arc<GatewayNode>]| -> Vec<String> {
            drifts.new_ones(nodes.iter()).into_iter().map(|(_, drift)| drift.message.clone()).collect()
        };
        let nothing: [&str; 0] = [];
        assert_eq!(told(&[node("gw1", &drift(1, "old")), node("gw2", &Value::Null)]), nothing, "from before");
        let second = [node("gw1", &drift(1, "old")), node("gw2", &drift(2, "jump"))];
        assert_eq!(told(&second), ["jump"]);
        assert_eq!(told(&second), nothing);
        assert_eq!(told(&[node("gw1", &drift(3, "old")), second[1].clone()]), ["old"]);
    }
}
