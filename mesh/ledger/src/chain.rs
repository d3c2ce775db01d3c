//! The ledger's state machine: which blocks follow which, and what everybody owns after each.
//!
//! Who orders the blocks is no matter here: today the coordinator, later a committee. A block is applied
//! only if recomputing it from its claims gives the very same block, so a wrong proposer can stall the
//! ledger but neither mint nor pay for work that was not accepted. Must never read a clock: whether an
//! epoch is over is the orderer's question.
//!
//! Why nobody is paid twice for one lease:
//! - Within a block there is one claim per node, a lease names one node, and a claim names a lease once.
//! - One acceptance is of one instant, so of one epoch, and the epochs of a chain strictly increase.
//! - A second acceptance of the same lease in a later epoch (a granter that restarted, or lies) is stopped
//!   by [`State::paid`]: a lease granted in epoch g is payable in epochs g − 1 to g + `LEASE_EPOCHS_MAX`
//!   only, and paid leases are remembered for longer than that.
//!
//! An epoch without any valid claim has no block: its emission is never minted. Settling a later epoch
//! closes all earlier ones for good, whether they had a block or not.

use std::collections::BTreeMap;

use borsh::BorshSerialize;
use ed25519_dalek::SigningKey;
use skein_proto::genesis::Genesis;
use skein_proto::ids::{Digest, Epoch, LeaseId, NodeId, Units};
use skein_proto::signed::{Envelope, Forged, Signed, encode};

use crate::block::{BLOCK_BYTES_MAX, BLOCK_CLAIMS_MAX, Block};
use crate::claim::{self, CheckedClaim, Claim, ClaimFault, LEASE_EPOCHS_MAX};
use crate::emission::{self, Amount};
use crate::settlement::settle;

/// Paid leases are remembered for so many epochs: the widest span between the first and the last epoch
/// in which one lease is payable.
const PAID_EPOCHS: u64 = LEASE_EPOCHS_MAX + 1;

/// What everybody owns, and where the chain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Blocks applied.
    pub height: u64,
    /// Digest of the last block's envelope; before the first, the network's id.
    pub tip: Digest,
    /// The first epoch that may still be settled.
    pub next_epoch: Epoch,
    /// What everybody owns. Nobody is listed with nothing.
    pub balances: BTreeMap<NodeId, Amount>,
    /// All that was ever minted; the sum of the balances.
    pub minted: Amount,
    /// The leases that were paid lately, each with the epoch in which it was.
    pub paid: BTreeMap<LeaseId, Epoch>,
}

/// What applying one block did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The settled epoch.
    pub epoch: Epoch,
    /// What was minted: the epoch's whole emission.
    pub minted: Amount,
    /// Who got how much; adds up to `minted`.
    pub payouts: BTreeMap<NodeId, Amount>,
    /// Who signed the block.
    pub proposer: NodeId,
    /// The claims, in the block's order.
    pub claims: Vec<CheckedClaim>,
}

/// A block with the claims it names, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The block.
    pub block: Signed<Block>,
    /// Its claims.
    pub claims: Vec<Envelope<Claim>>,
}

/// Why a block was not applied. The state is what it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockFault {
    /// Its signature is bad.
    #[error(transparent)]
    Signature(#[from] Forged),
    /// It names more claims than a block may.
    #[error("the block names {claims} claims; at most {BLOCK_CLAIMS_MAX} are allowed")]
    TooManyClaims {
        /// How many.
        claims: usize,
    },
    /// It is longer than a block may be.
    #[error("the block has {bytes} bytes; at most {BLOCK_BYTES_MAX} are allowed")]
    TooLong {
        /// How long.
        bytes: usize,
    },
    /// It is not the next block.
    #[error("the block has height {height} where {expected} follows")]
    Height {
        /// Its height.
        height: u64,
        /// The height of the next block.
        expected: u64,
    },
    /// It continues another chain.
    #[error("the block follows {previous}, not our tip {tip}")]
    Parent {
        /// What it follows.
        previous: Digest,
        /// Our tip.
        tip: Digest,
    },
    /// Its epoch is settled or skipped already.
    #[error("the block settles epoch {epoch}; {next} is the first that is still open")]
    ClosedEpoch {
        /// Its epoch.
        epoch: Epoch,
        /// The first open epoch.
        next: Epoch,
    },
    /// The claims handed over are not those that it names.
    #[error("the block names other claims than were given: they differ at claim {index}")]
    OtherClaims {
        /// The first difference, from 0.
        index: usize,
    },
    /// One of its claims is bad.
    #[error("claim {index} of the block: {fault}")]
    Claim {
        /// Which, from 0.
        index: usize,
        /// Why.
        fault: ClaimFault,
    },
    /// One of its claims is good but not here.
    #[error("claim {index} of the block: {fault}")]
    Unpayable {
        /// Which, from 0.
        index: usize,
        /// Why.
        fault: Unpayable,
    },
    /// No work, nothing to settle.
    #[error("the block settles no work")]
    NoWork,
    /// What it says differs from what its claims give.
    #[error("the block's {0} differ from what its claims give")]
    Wrong(&'static str),
    /// Applying it would break conservation.
    #[error("the block breaks conservation: {0}")]
    Conservation(&'static str),
}

/// Why a claim that is good on its own cannot be paid here. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unpayable {
    /// It is for another epoch.
    #[error("it is for epoch {claimed}, not {settled}")]
    OtherEpoch {
        /// The claim's.
        claimed: Epoch,
        /// The one being settled.
        settled: Epoch,
    },
    /// A claim of the same node, or of one after it, precedes it.
    #[error("claims must come in the order of their nodes, one for each; {0} does not")]
    Order(NodeId),
    /// The lease was paid before.
    #[error("lease {lease} was paid in epoch {epoch}")]
    Paid {
        /// The lease.
        lease: LeaseId,
        /// When.
        epoch: Epoch,
    },
}

impl State {
    /// Nobody owns anything yet.
    pub fn new(genesis: &Genesis) -> Self {
        Self {
            height: 0,
            tip: Digest(genesis.network_id().0),
            next_epoch: Epoch(0),
            balances: BTreeMap::new(),
            minted: Amount(0),
            paid: BTreeMap::new(),
        }
    }

    /// Binds everything but the tip, which a block cannot name before it exists (but which binds this).
    pub fn digest(&self) -> Digest {
        #[derive(BorshSerialize)]
        struct Bound<'a>(u64, Epoch, &'a BTreeMap<NodeId, Amount>, Amount, &'a BTreeMap<LeaseId, Epoch>);
        Digest::of(&encode(&Bound(self.height, self.next_epoch, &self.balances, self.minted, &self.paid)))
    }

    /// The next block, of `claims` for `epoch`: invalid claims are dropped, of several by one node the
    /// first counts, and the rest is put in order. None if nothing is left, or the epoch is closed.
    pub fn propose(
        &self,
        genesis: &Genesis,
        epoch: Epoch,
        claims: &[Envelope<Claim>],
        key: &SigningKey,
    ) -> Option<Proposal> {
        let mut chosen: BTreeMap<NodeId, (&Envelope<Claim>, CheckedClaim)> = BTreeMap::new();
        for claim in claims {
            if chosen.len() >= BLOCK_CLAIMS_MAX {
                break;
            }
            let Ok(checked) = claim::check(claim, genesis) else { continue };
            if self.payable(&checked, epoch).is_ok() {
                chosen.entry(checked.node).or_insert((claim, checked));
            }
        }
        let (claims, checked): (Vec<&Envelope<Claim>>, Vec<CheckedClaim>) = chosen.into_values().unzip();
        let after = self.after(epoch, &checked).ok()?;
        let block = Block {
            height: after.state.height,
            previous: self.tip,
            epoch,
            claims: claims.iter().map(|claim| claim.digest()).collect(),
            payouts: after.payouts.into_iter().collect(),
            minted: after.minted,
            state: after.state.digest(),
        };
        let block = Signed::new(block, &genesis.network_id(), key);
        Some(Proposal { block, claims: claims.into_iter().cloned().collect() })
    }

    /// Applies `block` if recomputing it from `claims` (those it names, in its order) gives the same.
    ///
    /// # Errors
    /// [`BlockFault`]; the state is what it was.
    pub fn apply(
        &mut self,
        genesis: &Genesis,
        block: &Envelope<Block>,
        claims: &[Envelope<Claim>],
    ) -> Result<Applied, BlockFault> {
        self.follows(block.unverified())?;
        let bytes = encode(block).len();
        if bytes > BLOCK_BYTES_MAX {
            return Err(BlockFault::TooLong { bytes });
        }
        let named = &block.unverified().claims;
        let digests: Vec<Digest> = claims.iter().map(Envelope::digest).collect();
        if *named != digests {
            let index = named.iter().zip(&digests).take_while(|(left, right)| left == right).count();
            return Err(BlockFault::OtherClaims { index });
        }
        let signed = block.clone().open(&genesis.network_id())?;
        let mut checked = Vec::with_capacity(claims.len());
        for (index, claim) in claims.iter().enumerate() {
            checked.push(claim::check(claim, genesis).map_err(|fault| BlockFault::Claim { index, fault })?);
        }
        self.apply_checked(&signed, checked)
    }

    /// Applies a block whose signature and claims were checked before: what remains is arithmetic.
    ///
    /// # Errors
    /// [`BlockFault`]; the state is what it was.
    pub(crate) fn apply_checked(
        &mut self,
        block: &Signed<Block>,
        claims: Vec<CheckedClaim>,
    ) -> Result<Applied, BlockFault> {
        let said = block.statement();
        self.follows(said)?;
        let After { mut state, payouts, minted } = self.after(said.epoch, &claims)?;
        if said.minted != minted {
            return Err(BlockFault::Wrong("minted units"));
        }
        if !said.payouts.iter().copied().eq(payouts.iter().map(|(node, amount)| (*node, *amount))) {
            return Err(BlockFault::Wrong("payouts"));
        }
        if said.state != state.digest() {
            return Err(BlockFault::Wrong("balances afterwards"));
        }
        state.tip = block.digest();
        *self = state;
        Ok(Applied { epoch: said.epoch, minted, payouts, proposer: block.signer(), claims })
    }

    /// Whether `claim` may be paid for `epoch`.
    ///
    /// # Errors
    /// [`Unpayable`] says why not.
    pub fn payable(&self, claim: &CheckedClaim, epoch: Epoch) -> Result<(), Unpayable> {
        if claim.epoch != epoch {
            return Err(Unpayable::OtherEpoch { claimed: claim.epoch, settled: epoch });
        }
        match claim.leases.iter().find_map(|lease| self.paid.get(lease).map(|epoch| (*lease, *epoch))) {
            Some((lease, epoch)) => Err(Unpayable::Paid { lease, epoch }),
            None => Ok(()),
        }
    }

    /// Whether a block that says so comes next.
    fn follows(&self, block: &Block) -> Result<(), BlockFault> {
        let expected = self.height.saturating_add(1);
        if block.height != expected {
            return Err(BlockFault::Height { height: block.height, expected });
        }
        if block.previous != self.tip {
            return Err(BlockFault::Parent { previous: block.previous, tip: self.tip });
        }
        if block.epoch < self.next_epoch {
            return Err(BlockFault::ClosedEpoch { epoch: block.epoch, next: self.next_epoch });
        }
        Ok(())
    }

    /// The state after settling `epoch` with `claims`; its tip is still the old one.
    fn after(&self, epoch: Epoch, claims: &[CheckedClaim]) -> Result<After, BlockFault> {
        if epoch < self.next_epoch || epoch.0 == u64::MAX {
            return Err(BlockFault::ClosedEpoch { epoch, next: self.next_epoch });
        }
        if claims.len() > BLOCK_CLAIMS_MAX {
            return Err(BlockFault::TooManyClaims { claims: claims.len() });
        }
        let mut state = self.clone();
        let mut work: BTreeMap<NodeId, Units> = BTreeMap::new();
        for (index, claim) in claims.iter().enumerate() {
            // Against the new state, so that a lease counts once within the block too.
            state.payable(claim, epoch).map_err(|fault| BlockFault::Unpayable { index, fault })?;
            if work.last_key_value().is_some_and(|(last, _)| *last >= claim.node) {
                return Err(BlockFault::Unpayable { index, fault: Unpayable::Order(claim.node) });
            }
            work.insert(claim.node, claim.units);
            state.paid.extend(claim.leases.iter().map(|lease| (*lease, epoch)));
        }
        let payouts = settle(emission::of_epoch(epoch), &work);
        if payouts.is_empty() {
            return Err(BlockFault::NoWork);
        }
        let mut minted = Amount(0);
        for (node, amount) in &payouts {
            minted = sum(minted, *amount)?;
            if *amount > Amount(0) {
                let balance = state.balances.entry(*node).or_default();
                *balance = sum(*balance, *amount)?;
            }
        }
        state.minted = sum(state.minted, minted)?;
        state.height = state.height.saturating_add(1);
        state.next_epoch = Epoch(epoch.0 + 1);
        state.paid.retain(|_, paid| paid.0.saturating_add(PAID_EPOCHS) > epoch.0);
        state.conserves()?;
        Ok(After { state, payouts, minted })
    }

    /// Minted is owned, and never more than the epochs up to here allow (so never above the cap).
    fn conserves(&self) -> Result<(), BlockFault> {
        let owned = self.balances.values().try_fold(Amount(0), |total, balance| sum(total, *balance))?;
        if owned != self.minted {
            return Err(BlockFault::Conservation("what was minted is not what is owned"));
        }
        if self.minted > emission::cumulative(self.next_epoch.0) {
            return Err(BlockFault::Conservation("more was minted than the emission allows"));
        }
        Ok(())
    }
}

/// What [`State::after`] computes.
struct After {
    state: State,
    payouts: BTreeMap<NodeId, Amount>,
    minted: Amount,
}

fn sum(left: Amount, right: Amount) -> Result<Amount, BlockFault> {
    left.0
        .checked_add(right.0)
        .map(Amount)
        .ok_or(BlockFault::Conservation("the amounts exceed 2^64 - 1 base units"))
}

#[cfg(test)]
mod tests;
