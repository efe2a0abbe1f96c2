//! What this node shall do: the value that a source makes and everything else follows.

use std::collections::BTreeMap;

use sallyport_api::forward_slice::{ForwardSliceSpec, SliceForward};
use sallyport_api::gateway_node::GatewayNodeSpec;
use sallyport_ruleset::family::Family;
use serde::{Deserialize, Serialize};

/// Everything that this node shall do: its configuration and the slices of its pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intents {
    /// The node's configuration.
    pub node: GatewayNodeSpec,
    /// Slices by name.
    pub slices: BTreeMap<String, ForwardSliceSpec>,
}

impl Intents {
    /// The forwards of all slices.
    #[must_use]
    pub fn forwards(&self) -> Vec<&SliceForward> {
        self.slices.values().flat_map(|slice| &slice.forwards).collect()
    }

    /// The forwards that are only planned, each as it would be.
    pub fn planned(&self) -> impl Iterator<Item = &SliceForward> {
        self.slices.values().flat_map(|slice| &slice.planned)
    }
}

/// What the kernel holds rules of in families with a table that cannot be read, where that is not what the intents say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    /// For IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Intents>,
    /// For IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Intents>,
}

impl Carried {
    /// Those that there are.
    pub fn into_families(self) -> impl Iterator<Item = (Family, Intents)> {
        [(Family::V4, self.v4), (Family::V6, self.v6)]
            .into_iter()
            .filter_map(|(family, intents)| Some((family, intents?)))
    }
}
