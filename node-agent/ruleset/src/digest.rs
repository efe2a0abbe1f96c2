//! Hashes: of an intent, of a slice, of rules. SHA-256, truncated to 128 bits, prefixed with the format version.
//!
//! Canonical bytes are the JSON of types whose lists are sorted and whose defaults are left out, so an optional field
//! added later changes no hash of an object that does not use it.

use sallyport_api::forward_slice::SliceForward;
use sallyport_api::intent::Intent;
use sha2::{Digest as _, Sha256};

/// Version of the encoding and of the rendered rules; part of every hash.
pub const FORMAT: &str = "v1";

/// The hash of one intent, for example `v1:9f2c…`.
pub fn intent_hash(intent: &Intent) -> String {
    let canonical = serde_json::to_vec(intent).expect("an intent holds only strings, numbers and lists");
    finish(Sha256::new().chain_update(canonical))
}

/// The hash of a slice: of each forward's uid and hash, in uid order.
pub fn slice_hash(forwards: &[SliceForward]) -> String {
    let mut pairs: Vec<(&str, &str)> = forwards.iter().map(|f| (f.uid.as_str(), f.hash.as_str())).collect();
    pairs.sort_unstable();
    let mut hasher = Sha256::new();
    for (uid, hash) in pairs {
        hasher.update(format!("{uid} {hash}\n"));
    }
    finish(hasher)
}

/// The digest of rules in their canonical lines, in order.
pub fn rules_digest<'a>(lines: impl Iterator<Item = std::borrow::Cow<'a, str>>) -> String {
    let mut hasher = Sha256::new();
    for line in lines {
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
    }
    finish(hasher)
}

/// Sixteen hexadecimal digits that stand for `uid` in chain names, whatever characters it holds.
pub fn short_id(uid: &str) -> String {
    hex(&Sha256::digest(uid.as_bytes())[..8])
}

fn finish(hasher: Sha256) -> String {
    format!("{FORMAT}:{}", hex(&hasher.finalize()[..16]))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}
