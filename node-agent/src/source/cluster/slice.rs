//! A `ForwardSlice` as it came over the wire → its forwards, each by itself.
//!
//! One forward that this version does not understand spoils neither its slice nor the others: its name, uid and hash
//! are read apart from its intent.

use std::sync::Arc;

use sallyport_api::forward_slice::{ForwardRef, SliceForward};
use sallyport_api::id::{IntentHash, SliceHash, Uid};
use sallyport_policy::digest::{intent_hash, slice_hash_of};
use serde::Deserialize;
use serde_json::Value;

/// Why an object of the cluster is not understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotUnderstood {
    /// Its form is not what this version knows.
    #[error(transparent)]
    Form(#[from] serde_json::Error),
    /// A slice that is not this node's.
    #[error("it is of pool {found}, not {expected}")]
    OtherPool {
        /// Whose it says it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
}

/// A slice whose outer form is as it should be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decoded {
    /// `metadata.generation` of the slice.
    pub generation: i64,
    /// `spec.pool`.
    pub pool: String,
    /// Recomputed from what is in it, so that a hash that is reported is that of these forwards.
    pub hash: SliceHash,
    /// In the order of the slice.
    pub forwards: Vec<Entry>,
    /// Those that are only planned and that this version understands; of the others nothing is reported.
    pub planned: Vec<Arc<SliceForward>>,
}

/// A forward of a slice.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Entry {
    /// Its hash was recomputed from the intent.
    Understood(Arc<SliceForward>),
    /// It is newer than this agent.
    Unsupported(Unsupported),
}

/// A forward whose intent this agent does not understand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsupported {
    /// `metadata.uid` of the `PortForward`.
    pub uid: Uid,
    /// Which `PortForward` it is.
    pub forward: ForwardRef,
    /// What is not understood.
    pub message: String,
}

#[derive(Deserialize)]
struct Outer {
    pool: String,
    #[serde(default)]
    forwards: Vec<Value>,
    #[serde(default)]
    planned: Vec<Value>,
}

#[derive(Deserialize)]
struct Head {
    uid: Uid,
    r#ref: ForwardRef,
    hash: IntentHash,
}

/// Reads `spec` of a slice of this `generation`; an error when even its outer form is not understood.
pub(crate) fn decode(spec: Value, generation: i64) -> Result<Decoded, NotUnderstood> {
    let outer: Outer = serde_json::from_value(spec)?;
    let mut pairs = Vec::with_capacity(outer.forwards.len());
    let mut forwards = Vec::with_capacity(outer.forwards.len());
    for value in outer.forwards {
        let head = Head::deserialize(&value)?;
        let unsupported =
            |message| Entry::Unsupported(Unsupported { uid: head.uid.clone(), forward: head.r#ref.clone(), message });
        forwards.push(match SliceForward::deserialize(&value) {
            Ok(forward) if intent_hash(&forward.intent) == forward.hash => Entry::Understood(Arc::new(forward)),
            Ok(_) => unsupported(
                "the intent does not match its hash: it has a field that this agent does not know; upgrade the agent"
                    .to_owned(),
            ),
            Err(error) => unsupported(format!("this agent does not understand the intent: {error}; upgrade the agent")),
        });
        pairs.push((head.uid, head.hash));
    }
    let hash = slice_hash_of(pairs.iter().map(|(uid, hash)| (uid, hash)).collect());
    let planned = outer.planned.iter().filter_map(|value| Some(Arc::new(SliceForward::deserialize(value).ok()?)));
    let planned = planned.collect();
    Ok(Decoded { generation, pool: outer.pool, hash, forwards, planned })
}

#[cfg(test)]
mod tests {
    use sallyport_policy::digest::slice_hash;
    use serde_json::json;

    use super::*;
    use crate::converge::fake::{forward, intents};

    fn two() -> Vec<Arc<SliceForward>> {
        intents(&(forward("a", 8000) + &forward("b", 8001))).forwards().cloned().collect()
    }

    fn decoded(change: impl Fn(&mut Value)) -> Decoded {
        let mut spec = json!({ "pool": "default", "hash": "ignored", "forwards": two() });
        change(&mut spec);
        decode(spec, 1).unwrap()
    }

    #[test]
    fn a_slice_as_the_operator_writes_it_is_understood() {
        let decoded = decoded(|_| {});
        assert_eq!(decoded.hash, slice_hash(&two()));
        assert_eq!(decoded.forwards, two().into_iter().map(Entry::Understood).collect::<Vec<_>>());
    }

    #[test]
    fn what_one_forward_has_new_leaves_the_other_as_it_is() {
        type Change = fn(&mut Value);
        let rows: [(Change, &str); 4] = [
            (|intent| intent["sourceNat"] = json!("Teleport"), "unknown variant `Teleport`"),
            (|intent| intent["targets"] = json!([{ "hostname": "db1" }]), "missing field `ip`"),
            (|intent| intent["ports"][0]["protocol"] = json!("SCTP"), "unknown variant `SCTP`"),
            (|intent| intent["ports"][0]["port"] = json!(1), "does not match its hash"),
        ];
        for (change, why) in rows {
            let decoded = decoded(|spec| change(&mut spec["forwards"][0]["intent"]));
            let Entry::Unsupported(found) = &decoded.forwards[0] else { panic!("{why}: {decoded:?}") };
            assert_eq!(found.uid, two()[0].uid);
            assert!(found.message.contains(why), "{why}: {found:?}");
            assert_eq!(decoded.forwards[1], Entry::Understood(two().remove(1)));
            assert_eq!(decoded.hash, slice_hash(&two()), "the hash speaks of what was declared");
        }
    }

    #[test]
    fn a_field_that_the_operator_hashed_and_we_do_not_know_is_noticed() {
        // The newer operator's hash covers the new field, ours cannot.
        let decoded = decoded(|spec| {
            spec["forwards"][0]["intent"]["rateLimit"] = json!(5);
            spec["forwards"][0]["hash"] = json!("v1:00000000000000000000000000000000");
        });
        assert!(
            matches!(&decoded.forwards[0], Entry::Unsupported(found) if found.message.contains("upgrade the agent"))
        );
    }

    #[test]
    fn what_is_planned_is_beside_the_forwards_and_not_in_the_hash() {
        let decoded = decoded(|spec| {
            let forward = spec["forwards"].as_array_mut().unwrap().pop().unwrap();
            spec["planned"] = json!([forward, { "uid": "of a newer operator" }]);
        });
        assert_eq!((decoded.hash, decoded.forwards.len()), (slice_hash(&two()[..1]), 1));
        assert_eq!(decoded.planned, [two().remove(1)]);
    }

    #[test]
    fn a_slice_without_its_outer_form_is_an_error() {
        for spec in [json!(null), json!({ "forwards": [] }), json!({ "pool": "p", "forwards": [{ "uid": "u" }] })] {
            assert!(decode(spec.clone(), 1).is_err(), "{spec}");
        }
    }
}
