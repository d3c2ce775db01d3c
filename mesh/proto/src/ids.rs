//! Ids and units as newtypes, so that a node can never be passed where a digest is meant.
//!
//! Must never hold behaviour beyond parsing, printing and ordering.

use std::fmt;
use std::str::FromStr;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a string is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: expected 64 hexadecimal digits")]
pub struct BadId {
    what: &'static str,
    text: String,
}

macro_rules! id32 {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The first eight hexadecimal digits: enough for a person to tell two apart.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }
        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes)
                    .map_err(|_| BadId { what: $what, text: text.chars().take(80).collect() })?;
                Ok(Self(bytes))
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&hex::encode(self.0))
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id32!(
    /// An agent: its ed25519 public key.
    NodeId,
    "node id"
);
id32!(
    /// BLAKE3 of some content: the address under which a blob is stored and fetched.
    Digest,
    "digest"
);
id32!(
    /// A job: BLAKE3 of its signed specification.
    JobId,
    "job id"
);
id32!(
    /// A lease: BLAKE3 of its signed statement.
    LeaseId,
    "lease id"
);
id32!(
    /// A network: BLAKE3 of its genesis. It is part of every signature, so nothing signed for one
    /// network means anything in another.
    NetworkId,
    "network id"
);

/// One of an agent's workers; each has a device of its own.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    BorshSerialize,
    BorshDeserialize,
    Serialize,
    Deserialize,
)]
pub struct WorkerId {
    /// The agent.
    pub node: NodeId,
    /// Its place in the agent's offer.
    pub index: u8,
}

impl WorkerId {
    /// `1a2b3c4d/2`: enough for a person to tell two apart.
    pub fn short(&self) -> String {
        format!("{}/{}", self.node.short(), self.index)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkerId({})", self.short())
    }
}

impl Digest {
    /// The address of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            BorshSerialize, BorshDeserialize, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// An instant of network time: milliseconds since 1970-01-01 UTC.
    Millis
);
number!(
    /// A coordinator's term of office. Only grows; an agent obeys the highest valid one.
    Term
);
number!(
    /// An hour of network time, counted from genesis; a test network may set it shorter.
    Epoch
);
number!(
    /// Work: millions of floating-point operations that the shard needs by its own arithmetic,
    /// whatever the device spent on it.
    Units
);

impl Millis {
    /// This instant plus `ms` milliseconds; the end of time if there is none later.
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this instant; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Units {
    /// The sum, clamped at the largest number of units.
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}
