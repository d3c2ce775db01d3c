//! Work, receipts and claims for tests: sound ones, and the parts from which to forge others.
//!
//! Must never be compiled into the product.

use ed25519_dalek::SigningKey;
use skein_proto::genesis::Genesis;
use skein_proto::ids::{Digest, Epoch, JobId, Millis, NodeId, Term, Units};
use skein_proto::job::{ModelSize, ServeSpec, Shard};
use skein_proto::lease::{Acceptance, End, Fence, Lease, Receipt};
use skein_proto::signed::{Envelope, Signed};

use super::{Claim, ClaimedWork};
use crate::entry::Entry;
use crate::note::{Checkpoint, origin};
use crate::tree::{Tree, leaf_hash};

pub(crate) const EPOCH_MS: u64 = 10_000;
/// Units per token of a lease below.
pub(crate) const UNITS: u64 = 24;

pub(crate) fn genesis() -> Genesis {
    Genesis { name: "test".into(), policy: "io".into(), started_at_ms: 1_000_000, epoch_ms: EPOCH_MS }
}

pub(crate) fn key(index: u64) -> SigningKey {
    SigningKey::from_bytes(&Digest::of(&index.to_le_bytes()).0)
}

pub(crate) fn node(key: &SigningKey) -> NodeId {
    NodeId(key.verifying_key().to_bytes())
}

/// An instant in the middle of `epoch`.
pub(crate) fn amid(epoch: Epoch) -> Millis {
    genesis().epoch_start(epoch).plus(EPOCH_MS / 2)
}

/// The statements behind one piece of work, to be changed before they are signed.
#[derive(Clone)]
pub(crate) struct Story {
    pub(crate) granter: SigningKey,
    pub(crate) accepter: SigningKey,
    pub(crate) worker: SigningKey,
    pub(crate) lease: Lease,
    pub(crate) end: End,
    pub(crate) tokens: u64,
    pub(crate) stated: Units,
    pub(crate) accepted: Units,
    pub(crate) accepted_at: Millis,
}

impl Story {
    /// `tokens` tokens served under lease `sequence`, accepted in `epoch`.
    pub(crate) fn new(
        granter: &SigningKey,
        worker: &SigningKey,
        sequence: u64,
        tokens: u64,
        epoch: Epoch,
    ) -> Self {
        let size = ModelSize {
            layers: 2,
            width: 1_000,
            layer_weights: 1_000_000 * UNITS / 2,
            head_weights: 1,
            layer_bytes: 1_000_000 * UNITS / 2,
            embedding_bytes: 1,
            head_bytes: 1,
            tied: false,
            cache_bytes_per_token: 1,
        };
        let spec = ServeSpec { model: Digest([7; 32]), size, context: 64, sessions: 1, stages: None };
        let shard = Shard::Stage { spec, start: 0, end: 1, index: 0, of: 1 };
        assert_eq!(shard.units(), Units(UNITS));
        let lease = Lease {
            job: JobId([8; 32]),
            shard,
            agent: node(worker),
            worker: 0,
            fence: Fence { term: Term(1), sequence },
            granted_at: genesis().epoch_start(epoch),
            ttl_ms: 15_000,
            units: Units(UNITS),
        };
        Self {
            granter: granter.clone(),
            accepter: granter.clone(),
            worker: worker.clone(),
            lease,
            end: End::Completed,
            tokens,
            stated: Units(UNITS * tokens),
            accepted: Units(UNITS * tokens),
            accepted_at: amid(epoch),
        }
    }

    pub(crate) fn receipt(&self) -> Envelope<Receipt> {
        let network = genesis().network_id();
        let receipt = Receipt {
            lease: Signed::new(self.lease.clone(), &network, &self.granter).into_envelope(),
            end: self.end,
            started_at: self.lease.granted_at,
            finished_at: self.accepted_at,
            inputs: vec![Digest([1; 32])],
            outputs: vec![Digest([2; 32])],
            tokens: self.tokens,
            units: self.stated,
            received_bytes: 0,
            loss_micronats: None,
        };
        Signed::new(receipt, &network, &self.worker).into_envelope()
    }

    pub(crate) fn acceptance(&self) -> Acceptance {
        Acceptance {
            receipt: self.receipt().digest(),
            lease: self.lease.id(),
            agent: self.lease.agent,
            units: self.accepted,
            accepted_at: self.accepted_at,
        }
    }

    pub(crate) fn pair(&self) -> (Envelope<Receipt>, Envelope<Acceptance>) {
        let acceptance = Signed::new(self.acceptance(), &genesis().network_id(), &self.accepter);
        (self.receipt(), acceptance.into_envelope())
    }
}

/// A claim over `pairs`, which stand one after the other in the log of `key`'s node.
pub(crate) fn unsigned(
    key: &SigningKey,
    epoch: Epoch,
    pairs: &[(Envelope<Receipt>, Envelope<Acceptance>)],
) -> Claim {
    let mut tree = Tree::new();
    for (receipt, acceptance) in pairs {
        tree.push(leaf_hash(&Entry::Receipt(receipt.clone()).encode()));
        tree.push(leaf_hash(&Entry::Acceptance(acceptance.clone()).encode()));
    }
    let origin = origin(&genesis().network_id(), &node(key));
    let checkpoint = Checkpoint { origin, size: tree.size(), root: tree.root() }.sign(key);
    let piece = |(index, (receipt, acceptance)): (u64, &(Envelope<Receipt>, Envelope<Acceptance>))| {
        let proof = |index| tree.inclusion_proof(index, tree.size()).unwrap();
        ClaimedWork {
            receipt: receipt.clone(),
            acceptance: acceptance.clone(),
            receipt_index: 2 * index,
            acceptance_index: 2 * index + 1,
            receipt_proof: proof(2 * index),
            acceptance_proof: proof(2 * index + 1),
        }
    };
    let work = (0..).zip(pairs).map(piece).collect();
    Claim { epoch, node: node(key), checkpoint, work }
}

pub(crate) fn signed(key: &SigningKey, claim: Claim) -> Signed<Claim> {
    Signed::new(claim, &genesis().network_id(), key)
}

/// A sound claim of `worker` for `epoch` over one lease of `tokens` tokens.
pub(crate) fn sound(
    granter: &SigningKey,
    worker: &SigningKey,
    sequence: u64,
    tokens: u64,
    epoch: Epoch,
) -> Signed<Claim> {
    let pair = Story::new(granter, worker, sequence, tokens, epoch).pair();
    signed(worker, unsigned(worker, epoch, &[pair]))
}
