//! What orderers say to each other, and what they keep: encodings and bounds, no decisions.
//!
//! Messages travel between authenticated peers, so who says something is known and only claims and
//! blocks are signed. Must never produce a message above [`MESSAGE_BYTES_MAX`].

use borsh::{BorshDeserialize, BorshSerialize};
use skein_proto::ids::{Digest, Epoch};
use skein_proto::signed::{Envelope, Malformed, decode, encode};

use super::limits::{
    BLOCKS_SENT_MAX, CLAIMS_ASKED_MAX, MESSAGE_BYTES_MAX, PLACES_MAX, SENT_BYTES_MAX, WHY_BYTES_MAX,
};
use crate::block::Block;
use crate::claim::Claim;

/// A place in a chain: a block, by height and digest. Height 0 is the network's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub(super) struct Place {
    pub(super) height: u64,
    pub(super) tip: Digest,
}

/// What one orderer says to another.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) enum Message {
    /// Where my chain ends.
    Tip {
        at: Place,
        /// I am the coordinator and have heard the members: this is the chain.
        settled: bool,
        /// I know that yours ends there and have decided about it.
        considered: Option<Digest>,
    },
    /// Send me what follows the highest of these places that you have too.
    Want { places: Vec<Place> },
    /// Blocks of my chain, each following the one before.
    Blocks { blocks: Vec<Envelope<Block>> },
    /// Send me these claims.
    WantClaims { digests: Vec<Digest> },
    /// Claims that you asked for.
    Claims { claims: Vec<Envelope<Claim>> },
    /// Settle this claim of mine.
    Submit { claim: Envelope<Claim> },
    /// I have nothing to claim for this epoch.
    Nothing { epoch: Epoch },
    /// I hold your word for this epoch; no need to repeat it.
    Held { epoch: Epoch },
    /// I shall not settle your claim for this epoch.
    Refused { epoch: Epoch, why: String },
}

/// Bytes that are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadMessage {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("{bytes} bytes are more than a message may have")]
    TooLong { bytes: usize },
    #[error("more {0} than a message may hold")]
    TooMany(&'static str),
}

impl Message {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, BadMessage> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(BadMessage::TooLong { bytes: bytes.len() });
        }
        let message: Self = decode(bytes)?;
        let within = |count: usize, most: usize, what| {
            if count > most { Err(BadMessage::TooMany(what)) } else { Ok(()) }
        };
        match &message {
            Self::Want { places } => within(places.len(), PLACES_MAX, "places")?,
            Self::Blocks { blocks } => within(blocks.len(), BLOCKS_SENT_MAX, "blocks")?,
            Self::WantClaims { digests } => within(digests.len(), CLAIMS_ASKED_MAX, "digests")?,
            Self::Claims { claims } => within(claims.len(), CLAIMS_ASKED_MAX, "claims")?,
            Self::Refused { why, .. } => within(why.len(), WHY_BYTES_MAX, "letters")?,
            Self::Tip { .. } | Self::Submit { .. } | Self::Nothing { .. } | Self::Held { .. } => {}
        }
        Ok(message)
    }

    /// A refusal whose reason is cut to what a message may hold.
    pub(super) fn refused(epoch: Epoch, why: &str) -> Self {
        let mut why = why.to_owned();
        let mut end = why.len().min(WHY_BYTES_MAX);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        why.truncate(end);
        Self::Refused { epoch, why }
    }
}

/// As many of `items`, from the first, as one answer may hold; one at least, if there is any.
pub(super) fn batch<'a, T: BorshSerialize + Clone + 'a>(
    items: impl Iterator<Item = &'a T>,
    most: usize,
) -> Vec<T> {
    let mut bytes = 0;
    let mut taken = Vec::new();
    for item in items.take(most) {
        bytes += encode(item).len();
        if bytes > SENT_BYTES_MAX && !taken.is_empty() {
            break;
        }
        taken.push(item.clone());
    }
    taken
}

/// One record of the ledger's file.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) enum Record {
    /// A claim of the block that follows.
    Claim(Envelope<Claim>),
    /// A block; its claims stand before it, since the block before.
    Block(Envelope<Block>),
    /// The blocks above this height count no more.
    Rollback(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oversized_and_overfull_messages_are_refused() {
        let places = vec![Place { height: 0, tip: Digest([0; 32]) }; PLACES_MAX + 1];
        let bytes = encode(&Message::Want { places: places.clone() });
        assert_eq!(Message::read(&bytes), Err(BadMessage::TooMany("places")));
        let bytes = encode(&Message::Want { places: places[1..].to_vec() });
        assert!(Message::read(&bytes).is_ok());
        let long = vec![0; MESSAGE_BYTES_MAX + 1];
        assert_eq!(Message::read(&long), Err(BadMessage::TooLong { bytes: long.len() }));
    }

    #[test]
    fn refusals_are_cut_between_letters() {
        let Message::Refused { why, .. } = Message::refused(Epoch(1), &"ä".repeat(400)) else {
            panic!("a refusal")
        };
        assert!(why.len() <= WHY_BYTES_MAX && why.chars().all(|letter| letter == 'ä'));
        let odd = format!("a{}", "ä".repeat(400));
        let bytes = encode(&Message::refused(Epoch(1), &odd));
        assert!(Message::read(&bytes).is_ok());
    }

    #[test]
    fn batches_respect_count_and_bytes_but_are_never_empty() {
        let big = vec![vec![0_u8; SENT_BYTES_MAX + 5]; 3];
        assert_eq!(batch(big.iter(), 8).len(), 1);
        let half = vec![vec![0_u8; SENT_BYTES_MAX / 2 - 4]; 3];
        assert_eq!(batch(half.iter(), 8).len(), 2);
        assert_eq!(batch(half.iter(), 1).len(), 1);
    }
}
