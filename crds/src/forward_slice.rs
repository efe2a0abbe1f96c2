//! `ForwardSlice`: a part of a pool's accepted forwards, on its way from the operator to the agents.
//!
//! Typed values only, never rule text. How forwards are cut into slices is not here: `sallyport-policy` does that.

use std::fmt;
use std::sync::Arc;

use kube::core::cel::MergeStrategy;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::id::{IntentHash, SliceHash, Uid};
use crate::intent::Intent;
use crate::names::{MAX_NAME, MAX_PLANS, MAX_SLICE_FORWARDS, NAME_PATTERN};

/// A part of a pool's accepted forwards.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "sallyport.dev",
    version = "v1alpha1",
    kind = "ForwardSlice",
    plural = "forwardslices",
    derive = "PartialEq",
    shortname = "fws",
    doc = "A ForwardSlice carries a part of a pool's accepted forwards to the agents. The operator writes it; do not edit it. To see what became of a forward, look at its PortForward.",
    printcolumn(
        name = "Pool",
        type_ = "string",
        json_path = ".spec.pool",
        description = "GatewayPool that carries these forwards"
    ),
    printcolumn(
        name = "Hash",
        type_ = "string",
        json_path = ".spec.hash",
        description = "Digest of the forwards in the slice"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ForwardSliceSpec {
    /// Name of the `GatewayPool` whose nodes carry these forwards.
    #[schemars(length(min = 1, max = MAX_NAME), regex(pattern = NAME_PATTERN))]
    pub pool: String,
    /// Digest of the uids and hashes below, in uid order.
    #[schemars(length(max = 80))]
    pub hash: SliceHash,
    /// The forwards of this slice, in the order of their uids.
    // Atomic: it has one writer, and tracking who owns which field of each entry would double the object's size.
    #[serde(default)]
    #[schemars(length(max = MAX_SLICE_FORWARDS))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Atomic))]
    pub forwards: Vec<Arc<SliceForward>>,
    /// Forwards with mode `Plan` as they would be with mode `Apply`: the agents report what that would change, and change
    /// nothing. Not part of `hash`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PLANS))]
    #[x_kube(merge_strategy = MergeStrategy::ListType(ListMerge::Atomic))]
    pub planned: Vec<Arc<SliceForward>>,
}

/// One accepted forward.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SliceForward {
    /// `metadata.uid` of the `PortForward`.
    #[schemars(length(min = 1, max = 64))]
    pub uid: Uid,
    /// Which `PortForward` it is.
    pub r#ref: ForwardRef,
    /// Generation of the `PortForward` that the intent was made from.
    pub generation: i64,
    /// Hash of `intent`.
    #[schemars(length(max = 80))]
    pub hash: IntentHash,
    /// What the agents make the kernel do.
    pub intent: Intent,
}

/// Name of a `PortForward`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "camelCase")]
pub struct ForwardRef {
    /// `metadata.namespace` of the `PortForward`.
    #[schemars(length(min = 1, max = MAX_NAME))]
    pub namespace: String,
    /// `metadata.name` of the `PortForward`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

impl fmt::Display for ForwardRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
