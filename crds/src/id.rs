//! What objects, intents and rules are told apart by: each kind of identity is a type, so that no two are compared by mistake.
//!
//! On the wire and on disk they are plain strings, whatever these hold. How a hash is made is not here: `sallyport-policy`
//! does that.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};

use crate::names::UID_PREFIX;

/// Declares types of which each is a text of its own kind, cheap to clone.
macro_rules! texts {
    ($($(#[$doc:meta])+ $name:ident)+) => {$(
        $(#[$doc])+
        #[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[serde(from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text, for people and for what is made from it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                String::json_schema(generator)
            }
        }
    )+};
}

texts! {
    /// `metadata.uid` of an object; of a forward on a lone host, its namespace and name.
    Uid
    /// As much of a forward's uid as statuses hold.
    UidPrefix
    /// The hash of an intent: equal hashes mean equal behaviour.
    IntentHash
    /// The hash of a slice: of each forward's uid and hash.
    SliceHash
    /// The digest of all our rules in a kernel.
    RulesDigest
}

impl Uid {
    /// As much of it as statuses hold.
    #[must_use]
    pub fn prefix(&self) -> UidPrefix {
        self.0.chars().take(UID_PREFIX).collect::<String>().into()
    }
}
