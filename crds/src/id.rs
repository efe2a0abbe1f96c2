//! What objects, intents and rules are told apart by, and when something is: each kind is a type, so that no two are compared
//! by mistake.
//!
//! On the wire and on disk they are plain strings and numbers, whatever these hold. How a hash is made is not here:
//! `sallyport-policy` does that.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
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
    /// Name of a Node, and of its `GatewayNode`.
    NodeName
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

/// A moment in whole seconds since 1970, as intents and decisions know time; what Kubernetes knows it as is a [`Time`].
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(transparent)]
pub struct Moment(pub i64);

impl Moment {
    /// Later than any other.
    pub const MAX: Self = Self(i64::MAX);

    /// So many seconds later.
    #[must_use]
    pub fn plus(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// As the API has it; `None` for one beyond the year 9999.
    #[must_use]
    pub fn to_time(self) -> Option<Time> {
        Timestamp::from_second(self.0).ok().map(Time)
    }
}

impl From<&Time> for Moment {
    fn from(time: &Time) -> Self {
        Self(time.0.as_second())
    }
}

/// As users write it, for example `2026-01-31T18:00:00Z`.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_time() {
            Some(time) => time.0.fmt(f),
            None => self.0.fmt(f),
        }
    }
}

impl JsonSchema for Moment {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Moment".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        i64::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_plain_text_to_others() {
        let (uid, text) = (Uid::from("0f1c7d42-5b1e-4a7e-9f63"), r#""0f1c7d42-5b1e-4a7e-9f63""#);
        assert_eq!((serde_json::to_string(&uid).unwrap().as_str(), uid.to_string().as_str()), (text, uid.as_str()));
        assert_eq!(serde_json::from_str::<Uid>(text).unwrap(), uid);
        assert_eq!(uid.prefix(), UidPrefix::from("0f1c7d42-5b1e"));
        assert_eq!(Uid::from("apps/é").prefix(), UidPrefix::from("apps/é"), "shorter than that");
    }

    #[test]
    fn a_moment_is_a_number_to_programs_and_a_time_to_people() {
        let moment = Moment(1_769_882_400);
        assert_eq!(serde_json::to_string(&moment).unwrap(), "1769882400");
        assert_eq!(serde_json::from_str::<Moment>("1769882400").unwrap(), moment);
        assert_eq!(moment.to_time().as_ref().map(Moment::from), Some(moment));
        assert_eq!(moment.to_string(), "2026-01-31T18:00:00Z");
        assert_eq!((Moment::MAX.to_string(), Moment::MAX.to_time()), (i64::MAX.to_string(), None));
        assert_eq!(Moment::MAX.plus(1), Moment::MAX);
    }
}
