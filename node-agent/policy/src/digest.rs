//! Hashes: of an intent, of a slice, of lines of any kind. SHA-256, truncated to 128 bits, prefixed with the format version.
//!
//! Canonical bytes are the JSON of types whose lists are sorted and whose defaults are left out, so an optional field
//! added later changes no hash of an object that does not use it.

use std::sync::Arc;

use sallyport_api::forward_slice::SliceForward;
use sallyport_api::id::{IntentHash, SliceHash, Uid};
use sallyport_api::intent::Intent;
use sha2::{Digest as _, Sha256};

/// Version of the encoding of intents; part of every hash of them.
pub const FORMAT: &str = "v1";

/// The hash of one intent, for example `v1:9f2c…`.
#[must_use]
pub fn intent_hash(intent: &Intent) -> IntentHash {
    let canonical = serde_json::to_vec(intent).expect("an intent holds only strings, numbers and lists");
    finish(FORMAT, Sha256::new().chain_update(canonical)).into()
}

/// The hash of a slice: of each forward's uid and hash, in uid order.
#[must_use]
pub fn slice_hash(forwards: &[Arc<SliceForward>]) -> SliceHash {
    slice_hash_of(forwards.iter().map(|f| (&f.uid, &f.hash)).collect())
}

/// The hash of the slice whose forwards have these uids and hashes, whatever else is in it.
#[must_use]
pub fn slice_hash_of(mut pairs: Vec<(&Uid, &IntentHash)>) -> SliceHash {
    pairs.sort_unstable();
    hash_of_lines(FORMAT, pairs.into_iter().map(|(uid, hash)| format!("{uid} {hash}"))).into()
}

/// The hash of these lines, in this order, with this version of their format in front.
pub fn hash_of_lines(format: &str, lines: impl Iterator<Item = impl AsRef<str>>) -> String {
    let mut hasher = Sha256::new();
    for line in lines {
        hasher.update(line.as_ref());
        hasher.update(b"\n");
    }
    finish(format, hasher)
}

/// Sixteen hexadecimal digits that stand for `uid` in chain names, whatever characters it holds.
#[must_use]
pub fn short_id(uid: &str) -> String {
    hex(&Sha256::digest(uid.as_bytes())[..8])
}

fn finish(format: &str, hasher: Sha256) -> String {
    format!("{format}:{}", hex(&hasher.finalize()[..16]))
}

fn hex(bytes: &[u8]) -> String {
    let digit = |number: u8| char::from(if number < 10 { b'0' + number } else { b'a' + number - 10 });
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use sallyport_api::testing::Forward;
    use sallyport_api::{Moment, OnTargetRemoved, Protocol, SourceNatMode};

    use super::*;

    fn intent() -> Intent {
        Forward::tcp("payments/mysql", 3306).intent()
    }

    /// These values are in statuses and in state directories: if this fails, the format version has to change too.
    #[test]
    fn hashes_of_this_format_version_never_change() {
        let canonical = serde_json::to_string(&intent()).unwrap();
        let expected = r#"{"ports":[{"protocol":"TCP","port":3306,"endPort":3306,"targetPort":3306}],"allow":["10.30.1.80/32"],"targets":[{"ip":"10.30.1.79","weight":1}]}"#;
        assert_eq!(canonical, expected);
        assert_eq!(intent_hash(&intent()).as_str(), "v1:2a9cab620706c09f70886b72f01dcf62");
        assert_eq!(short_id("payments/mysql"), "b1eb8ff8d0a0ee31");
        assert_eq!(slice_hash(&[]).as_str(), "v1:e3b0c44298fc1c149afbf4c8996fb924");
    }

    #[test]
    fn every_field_of_an_intent_is_in_its_hash() {
        let changes: [fn(&mut Intent); 10] = [
            |intent| intent.addresses.push("10.30.1.78".parse().unwrap()),
            |intent| intent.ports[0].port = 3305,
            |intent| intent.ports[0].end_port = 3307,
            |intent| intent.ports[0].target_port = 3307,
            |intent| intent.ports[0].protocol = Protocol::Udp,
            |intent| intent.deny.push("10.30.1.81/32".parse().unwrap()),
            |intent| intent.targets[0].weight = 2,
            |intent| intent.source_nat = SourceNatMode::Preserve,
            |intent| intent.on_target_removed = OnTargetRemoved::Sever,
            |intent| intent.expires_at = Some(Moment(0)),
        ];
        let mut hashes: Vec<IntentHash> = changes
            .iter()
            .map(|change| {
                let mut altered = intent();
                change(&mut altered);
                intent_hash(&altered)
            })
            .collect();
        hashes.push(intent_hash(&intent()));
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), changes.len() + 1);
    }
}
