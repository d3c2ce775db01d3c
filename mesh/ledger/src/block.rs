//! Blocks: what a proposer says one epoch settled, in a form that never outgrows a message.
//!
//! A block names its claims by digest and does not hold them: one claim may be almost 1 MiB long, and a
//! block has one for every node that was paid. Whoever lacks a claim asks for it by digest; whoever
//! stores a block stores its claims beside it, so that an auditor needs nothing else. Must never decide
//! whether a block is right: that is [`crate::chain`].

use borsh::{BorshDeserialize, BorshSerialize};
use skein_proto::ids::{Digest, Epoch, NodeId};
use skein_proto::signed::Statement;

use crate::emission::Amount;

/// Claims in one block. With 32 bytes for each and 40 for its payout, a block stays below
/// [`BLOCK_BYTES_MAX`].
pub const BLOCK_CLAIMS_MAX: usize = 4_096;
/// Longest encoded block, in bytes.
pub const BLOCK_BYTES_MAX: usize = 512 << 10;

/// The settlement of one epoch. The signer is its proposer.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Block {
    /// Its place in the chain; the first block has height 1.
    pub height: u64,
    /// Digest of the block before it; before the first, the network's id.
    pub previous: Digest,
    /// The settled epoch; above that of the block before.
    pub epoch: Epoch,
    /// Digests of the claims' envelopes, in the order of their nodes; at most one for each node.
    pub claims: Vec<Digest>,
    /// Who is paid how much, in the order of nodes. The amounts add up to `minted`.
    pub payouts: Vec<(NodeId, Amount)>,
    /// What the epoch mints: its whole emission.
    pub minted: Amount,
    /// [`crate::chain::State::digest`] after this block.
    pub state: Digest,
}

impl Statement for Block {
    const KIND: &'static str = "block";
}

#[cfg(test)]
mod tests {
    use skein_proto::ids::NetworkId;
    use skein_proto::signed::{Signed, encode};

    use super::*;

    #[test]
    fn the_largest_block_fits() {
        let block = Block {
            height: u64::MAX,
            previous: Digest([1; 32]),
            epoch: Epoch(u64::MAX),
            claims: vec![Digest([2; 32]); BLOCK_CLAIMS_MAX],
            payouts: vec![(NodeId([3; 32]), Amount(u64::MAX)); BLOCK_CLAIMS_MAX],
            minted: Amount(u64::MAX),
            state: Digest([4; 32]),
        };
        let key = ed25519_dalek::SigningKey::from_bytes(&[5; 32]);
        let signed = Signed::new(block, &NetworkId([6; 32]), &key);
        assert!(encode(signed.envelope()).len() <= BLOCK_BYTES_MAX);
    }

    #[test]
    fn golden_signed_bytes() {
        let block = Block {
            height: 1,
            previous: Digest([1; 32]),
            epoch: Epoch(2),
            claims: vec![Digest([3; 32])],
            payouts: vec![(NodeId([4; 32]), Amount(5))],
            minted: Amount(5),
            state: Digest([6; 32]),
        };
        // Written out by hand from the Borsh specification: integers little-endian, vectors with a u32 count.
        let by_hand = [
            "0100000000000000",
            &"01".repeat(32),
            "0200000000000000",
            "01000000",
            &"03".repeat(32),
            "01000000",
            &"04".repeat(32),
            "0500000000000000",
            "0500000000000000",
            &"06".repeat(32),
        ]
        .concat();
        assert_eq!(hex::encode(encode(&block)), by_hand);
    }
}
