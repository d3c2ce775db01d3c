//! The genesis of a network: what every agent must agree on before it can say anything.
//!
//! Must never hold what may change while a network lives.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Millis, NetworkId};
use crate::signed::encode;

/// The founding facts of a network. Its digest is the [`NetworkId`].
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// A name for people.
    pub name: String,
    /// The reward policy; `io` is the only one so far.
    pub policy: String,
    /// When epoch 0 began, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// The length of an epoch in milliseconds; 3,600,000 on a real network.
    pub epoch_ms: u64,
}

/// Why a genesis cannot found a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadGenesis {
    /// The name is empty or longer than 64 bytes.
    #[error("the network's name must have 1 to 64 bytes")]
    Name,
    /// Only `io` exists.
    #[error("unknown reward policy `{0}`\nhint: the only policy is `io`")]
    Policy(String),
    /// Shorter than a second or longer than a week.
    #[error("epoch_ms must be from 1000 to 604800000, not {0}")]
    EpochLength(u64),
}

impl Genesis {
    /// The network that this genesis founds.
    pub fn network_id(&self) -> NetworkId {
        NetworkId(*blake3::hash(&encode(self)).as_bytes())
    }

    /// Checks what a person may have typed.
    ///
    /// # Errors
    /// [`BadGenesis`] names the field.
    pub fn validate(&self) -> Result<(), BadGenesis> {
        if self.name.is_empty() || self.name.len() > 64 {
            return Err(BadGenesis::Name);
        }
        if self.policy != "io" {
            return Err(BadGenesis::Policy(self.policy.clone()));
        }
        if !(1_000..=604_800_000).contains(&self.epoch_ms) {
            return Err(BadGenesis::EpochLength(self.epoch_ms));
        }
        Ok(())
    }

    /// The epoch that contains `now`; instants before genesis belong to epoch 0.
    pub fn epoch_at(&self, now: Millis) -> Epoch {
        Epoch(now.since(Millis(self.started_at_ms)) / self.epoch_ms.max(1))
    }

    /// When `epoch` begins.
    pub fn epoch_start(&self, epoch: Epoch) -> Millis {
        Millis(self.started_at_ms.saturating_add(epoch.0.saturating_mul(self.epoch_ms)))
    }
}
