//! Claims: what a node asks to be paid for one epoch, with everything needed to check it alone.
//!
//! A claim carries every accepted receipt of the epoch beside its acceptance, and proves that both are
//! under a checkpoint of the node's own log. So it can be checked by anyone who has the genesis and
//! nothing else. Must never trust a field that it did not check, and never ask a clock which epoch it is.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use ed25519_dalek::SigningKey;
use skein_proto::genesis::Genesis;
use skein_proto::ids::{Epoch, LeaseId, NetworkId, NodeId, Units};
use skein_proto::lease::{Acceptance, End, Receipt};
use skein_proto::signed::{Envelope, Forged, Signed, Statement, encode};

use crate::entry::Entry;
use crate::limits::{NOTE_BYTES_MAX, PROOF_HASHES_MAX};
use crate::log::Log;
use crate::note::{BadNote, Checkpoint, open_checkpoint};
use crate::tree::{BadProof, Hash, leaf_hash, verify_inclusion};

/// Longest encoded claim, in bytes: with its header it fits a control frame of 1 MiB.
pub const CLAIM_BYTES_MAX: usize = 900 << 10;
/// Pieces of work in one claim.
pub const CLAIM_WORK_MAX: usize = 4_096;
/// A lease is paid at most so many epochs after its grant (31 days of hours). So the memory of paid
/// leases has an end.
pub const LEASE_EPOCHS_MAX: u64 = 744;

/// What a node asks to be paid for one epoch. The signer is the node.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Claim {
    /// The epoch in which all the work was accepted.
    pub epoch: Epoch,
    /// Who did it.
    pub node: NodeId,
    /// A signed checkpoint (C2SP tlog-checkpoint) of the node's log, under which every entry lies.
    pub checkpoint: String,
    /// The work, each piece under a lease of its own.
    pub work: Vec<ClaimedWork>,
}

impl Statement for Claim {
    const KIND: &'static str = "claim";
}

/// One accepted receipt, with the proofs that both halves are in the node's log.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ClaimedWork {
    /// The node's account of the work.
    pub receipt: Envelope<Receipt>,
    /// The coordinator's word for it.
    pub acceptance: Envelope<Acceptance>,
    /// The receipt's place in the log, from 0.
    pub receipt_index: u64,
    /// The acceptance's place in the log, from 0.
    pub acceptance_index: u64,
    /// RFC 6962 audit path of the receipt.
    pub receipt_proof: Vec<Hash>,
    /// RFC 6962 audit path of the acceptance.
    pub acceptance_proof: Vec<Hash>,
}

/// What is left of a claim once it is checked: all that a settlement needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedClaim {
    /// Who is to be paid.
    pub node: NodeId,
    /// For which epoch.
    pub epoch: Epoch,
    /// The accepted work; above zero.
    pub units: Units,
    /// The leases under which it was done. A lease is paid once.
    pub leases: BTreeSet<LeaseId>,
}

/// Why a claim is not paid. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimFault {
    /// It does not fit a control frame beside its header.
    #[error("the claim has {bytes} bytes; at most {CLAIM_BYTES_MAX} are allowed")]
    TooLong {
        /// Its encoded length.
        bytes: usize,
    },
    /// Too many pieces of work.
    #[error("the claim names {pieces} pieces of work; at most {CLAIM_WORK_MAX} are allowed")]
    TooManyPieces {
        /// How many.
        pieces: usize,
    },
    /// It claims nothing.
    #[error("the claim names no work")]
    Empty,
    /// Its own signature is bad.
    #[error(transparent)]
    Signature(#[from] Forged),
    /// Somebody claims in another's name.
    #[error("the claim of {node} is signed by {signer}")]
    ForeignClaim {
        /// In whose name.
        node: NodeId,
        /// By whom.
        signer: NodeId,
    },
    /// The checkpoint is not one of this node's log.
    #[error("its checkpoint is not the node's: {0}")]
    Checkpoint(#[from] BadNote),
    /// The checkpoint is too long to be one.
    #[error("its checkpoint has {bytes} bytes; at most {NOTE_BYTES_MAX} are allowed")]
    LongCheckpoint {
        /// How long.
        bytes: usize,
    },
    /// One piece of work is bad.
    #[error("work {index} of the claim: {fault}")]
    Work {
        /// Which, from 0.
        index: usize,
        /// Why.
        fault: WorkFault,
    },
    /// A lease is claimed twice.
    #[error("lease {0} is claimed twice")]
    DuplicateLease(LeaseId),
    /// All the work together is more than can be counted.
    #[error("the claimed units exceed 2^64 - 1")]
    Overflow,
}

/// Why one piece of work is not paid. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkFault {
    /// The signature of lease, receipt or acceptance is bad.
    #[error(transparent)]
    Signature(#[from] Forged),
    /// The receipt is another's, or the lease names another.
    #[error("the receipt of {signer} under a lease for {leased} is claimed by {node}")]
    ForeignReceipt {
        /// Who claims.
        node: NodeId,
        /// Whom the lease names.
        leased: NodeId,
        /// Who signed the receipt.
        signer: NodeId,
    },
    /// Only completed work is paid.
    #[error("the lease ended as {0:?}, not completed")]
    NotCompleted(End),
    /// The acceptance was signed by somebody who did not grant the lease.
    #[error("{granter} granted the lease but {signer} accepted the receipt")]
    ForeignAcceptance {
        /// Who signed the lease.
        granter: NodeId,
        /// Who signed the acceptance.
        signer: NodeId,
    },
    /// The acceptance speaks of another receipt, lease or agent.
    #[error("the acceptance is about another receipt: {0} differs")]
    OtherReceipt(&'static str),
    /// More is accepted than was stated, or than the lease could earn.
    #[error("{accepted} units are accepted where at most {earned} can be earned")]
    Inflated {
        /// What the acceptance says.
        accepted: Units,
        /// The most that lease and receipt allow.
        earned: Units,
    },
    /// Nothing was accepted.
    #[error("no units are accepted")]
    NoUnits,
    /// It was accepted in another epoch.
    #[error("the receipt was accepted in epoch {accepted}, not {claimed}")]
    OtherEpoch {
        /// The epoch of the acceptance.
        accepted: Epoch,
        /// The epoch of the claim.
        claimed: Epoch,
    },
    /// The lease is too old, or not yet granted: see [`LEASE_EPOCHS_MAX`].
    #[error("a lease granted in epoch {granted} is not paid in epoch {claimed}")]
    LeaseAge {
        /// The epoch of the grant.
        granted: Epoch,
        /// The epoch of the claim.
        claimed: Epoch,
    },
    /// The log does not hold the entry.
    #[error("the {entry} is not under the checkpoint: {fault}")]
    NotLogged {
        /// `receipt` or `acceptance`.
        entry: &'static str,
        /// What the proof lacks.
        fault: BadProof,
    },
    /// A proof longer than any can be.
    #[error("the proof of the {entry} has {hashes} hashes; at most {PROOF_HASHES_MAX} are allowed")]
    LongProof {
        /// `receipt` or `acceptance`.
        entry: &'static str,
        /// How many.
        hashes: usize,
    },
}

/// The claim of `key`'s node for `epoch`: its accepted receipts of that epoch, by place in the log.
/// None if there is nothing to claim.
///
/// The claim stays below [`CLAIM_BYTES_MAX`] and [`CLAIM_WORK_MAX`]: work is taken in the order of its
/// acceptances until the next piece would not fit; what comes after it is not claimed. Pieces that
/// [`check`] would refuse are left out, so that one bad acceptance does not void the others. Where a
/// lease was accepted more than once, only the first acceptance counts, also if it is of another epoch.
///
/// # Panics
/// When `key` is not the key of the log's owner.
pub fn assemble(log: &Log, epoch: Epoch, genesis: &Genesis, key: &SigningKey) -> Option<Signed<Claim>> {
    let network = genesis.network_id();
    let node = NodeId(key.verifying_key().to_bytes());
    let mut claim = Claim { epoch, node, checkpoint: log.checkpoint(key), work: Vec::new() };
    // The envelope adds signer and signature; 4 bytes more for good measure cost nothing.
    let mut bytes = encode(&claim).len() + 32 + 64 + 4;

    let mut receipts = BTreeMap::new();
    let mut leases = BTreeSet::new();
    for (index, entry) in (0_u64..).zip(log.entries()) {
        let acceptance = match entry {
            Entry::Receipt(receipt) => {
                receipts.insert(receipt.digest(), (index, receipt));
                continue;
            }
            Entry::Acceptance(acceptance) => acceptance,
        };
        let Some((receipt_index, receipt)) = receipts.get(&acceptance.unverified().receipt) else { continue };
        if !leases.insert(acceptance.unverified().lease)
            || genesis.epoch_at(acceptance.unverified().accepted_at) != epoch
            || claim.work.len() >= CLAIM_WORK_MAX
        {
            continue;
        }
        let proofs = (log.inclusion_proof(*receipt_index), log.inclusion_proof(index));
        let (Some(receipt_proof), Some(acceptance_proof)) = proofs else { continue };
        let work = ClaimedWork {
            receipt: (*receipt).clone(),
            acceptance: acceptance.clone(),
            receipt_index: *receipt_index,
            acceptance_index: index,
            receipt_proof,
            acceptance_proof,
        };
        if check_words(&work, node, epoch, genesis, &network).is_err() {
            continue;
        }
        bytes += encode(&work).len();
        if bytes > CLAIM_BYTES_MAX {
            break;
        }
        claim.work.push(work);
    }
    (!claim.work.is_empty()).then(|| Signed::new(claim, &network, key))
}

/// Checks `claim` on its own: signatures, words, proofs and bounds. Whether its epoch is still open and
/// its leases unpaid is for [`crate::chain::State`] to say.
///
/// # Errors
/// [`ClaimFault`]: the claim must not be paid, not even in part.
pub fn check(claim: &Envelope<Claim>, genesis: &Genesis) -> Result<CheckedClaim, ClaimFault> {
    let pieces = claim.unverified().work.len();
    if pieces > CLAIM_WORK_MAX {
        return Err(ClaimFault::TooManyPieces { pieces });
    }
    let bytes = encode(claim).len();
    if bytes > CLAIM_BYTES_MAX {
        return Err(ClaimFault::TooLong { bytes });
    }
    if claim.unverified().checkpoint.len() > NOTE_BYTES_MAX {
        return Err(ClaimFault::LongCheckpoint { bytes: claim.unverified().checkpoint.len() });
    }
    let network = genesis.network_id();
    let signed = claim.clone().open(&network)?;
    let Claim { epoch, node, checkpoint, work } = signed.statement();
    if signed.signer() != *node {
        return Err(ClaimFault::ForeignClaim { node: *node, signer: signed.signer() });
    }
    if work.is_empty() {
        return Err(ClaimFault::Empty);
    }
    let checkpoint = open_checkpoint(checkpoint, node, &network)?;
    let mut checked = CheckedClaim { node: *node, epoch: *epoch, units: Units(0), leases: BTreeSet::new() };
    for (index, piece) in work.iter().enumerate() {
        let at = |fault| ClaimFault::Work { index, fault };
        check_words(piece, *node, *epoch, genesis, &network).map_err(at)?;
        check_proofs(piece, &checkpoint).map_err(at)?;
        let acceptance = piece.acceptance.unverified();
        if !checked.leases.insert(acceptance.lease) {
            return Err(ClaimFault::DuplicateLease(acceptance.lease));
        }
        let units = checked.units.0.checked_add(acceptance.units.0).ok_or(ClaimFault::Overflow)?;
        checked.units = Units(units);
    }
    Ok(checked)
}

/// Checks what is signed: who says what about whom.
fn check_words(
    work: &ClaimedWork,
    node: NodeId,
    epoch: Epoch,
    genesis: &Genesis,
    network: &NetworkId,
) -> Result<(), WorkFault> {
    let receipt = work.receipt.clone().open(network)?;
    let lease = receipt.statement().lease.clone().open(network)?;
    let acceptance = work.acceptance.clone().open(network)?;
    let leased = lease.statement().agent;
    if receipt.signer() != node || leased != node {
        return Err(WorkFault::ForeignReceipt { node, leased, signer: receipt.signer() });
    }
    if receipt.statement().end != End::Completed {
        return Err(WorkFault::NotCompleted(receipt.statement().end));
    }
    if acceptance.signer() != lease.signer() {
        return Err(WorkFault::ForeignAcceptance { granter: lease.signer(), signer: acceptance.signer() });
    }
    let word = acceptance.statement();
    if word.receipt != receipt.digest() {
        return Err(WorkFault::OtherReceipt("the receipt's digest"));
    }
    if word.lease != lease.statement().id() {
        return Err(WorkFault::OtherReceipt("the lease"));
    }
    if word.agent != node {
        return Err(WorkFault::OtherReceipt("the agent"));
    }
    let earned = earned(receipt.statement(), lease.statement());
    if word.units > earned {
        return Err(WorkFault::Inflated { accepted: word.units, earned });
    }
    if word.units == Units(0) {
        return Err(WorkFault::NoUnits);
    }
    let accepted = genesis.epoch_at(word.accepted_at);
    if accepted != epoch || word.accepted_at.0 < genesis.started_at_ms {
        return Err(WorkFault::OtherEpoch { accepted, claimed: epoch });
    }
    // Together with the memory of paid leases in the state, this makes paying a lease twice impossible
    // even if its granter accepts it twice. One epoch of grace for a granter whose clock was set back.
    let granted = genesis.epoch_at(lease.statement().granted_at);
    if granted.0 > epoch.0.saturating_add(1) || epoch.0.saturating_sub(granted.0) > LEASE_EPOCHS_MAX {
        return Err(WorkFault::LeaseAge { granted, claimed: epoch });
    }
    Ok(())
}

/// The most that the receipt can earn: what it states, and no more than the lease's arithmetic gives.
fn earned(receipt: &Receipt, lease: &skein_proto::lease::Lease) -> Units {
    let leased = lease.units.min(lease.shard.units());
    let whole = if lease.shard.is_standing() { leased.0.saturating_mul(receipt.tokens) } else { leased.0 };
    receipt.units.min(Units(whole))
}

/// Checks that both entries are in the log of which `checkpoint` is the head.
fn check_proofs(work: &ClaimedWork, checkpoint: &Checkpoint) -> Result<(), WorkFault> {
    let halves = [
        ("receipt", Entry::Receipt(work.receipt.clone()), work.receipt_index, &work.receipt_proof),
        (
            "acceptance",
            Entry::Acceptance(work.acceptance.clone()),
            work.acceptance_index,
            &work.acceptance_proof,
        ),
    ];
    for (entry, logged, index, proof) in halves {
        if proof.len() > PROOF_HASHES_MAX {
            return Err(WorkFault::LongProof { entry, hashes: proof.len() });
        }
        verify_inclusion(&leaf_hash(&logged.encode()), index, checkpoint.size, proof, &checkpoint.root)
            .map_err(|fault| WorkFault::NotLogged { entry, fault })?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
