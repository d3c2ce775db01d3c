//! One simulated machine: its core, its workers, what stays on its disk; and the wires between machines.
//!
//! Must never hold what the world decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ed25519_dalek::SigningKey;
use skein_proto::ids::{Digest, LeaseId, Millis, NodeId};
use skein_proto::job::{ModelSize, TrainSize};
use skein_proto::node::{Execution, Node, Record};
use skein_proto::offer::{Offer, WorkerOffer};

use crate::model::Terms;
use crate::prng::Prng;

/// One machine.
pub(crate) struct Host {
    pub(crate) key: SigningKey,
    pub(crate) id: NodeId,
    /// Counts starts: what was scheduled for an earlier life is void.
    pub(crate) life: u32,
    pub(crate) node: Option<Node>,
    pub(crate) terms: Terms,
    /// How far this machine's clock is ahead of virtual time.
    pub(crate) ahead_ms: u64,
    /// Its open connections by peer.
    pub(crate) wires: BTreeMap<usize, u64>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) work: BTreeMap<LeaseId, Labour>,
    pub(crate) log: Vec<Record>,
    pub(crate) blobs: BTreeSet<Digest>,
}

/// One of its workers.
pub(crate) struct Worker {
    pub(crate) memory_bytes: u64,
    /// Whether it fails whatever it is given.
    pub(crate) broken: bool,
    pub(crate) queue: VecDeque<LeaseId>,
}

/// A shard under execution.
pub(crate) struct Labour {
    pub(crate) execution: Execution,
    pub(crate) done: u32,
    pub(crate) of: u32,
    pub(crate) fetches: u32,
}

/// A connection.
pub(crate) struct Wire {
    pub(crate) ends: [usize; 2],
    pub(crate) broken: bool,
    /// When the last frame towards each end arrives.
    pub(crate) last: [u64; 2],
}

impl Host {
    pub(crate) fn new(prng: &mut Prng) -> Self {
        let mut secret = [0; 32];
        for chunk in secret.chunks_exact_mut(8) {
            chunk.copy_from_slice(&prng.bits().to_le_bytes());
        }
        let key = SigningKey::from_bytes(&secret);
        Self {
            id: NodeId(key.verifying_key().to_bytes()),
            key,
            life: 0,
            node: None,
            terms: Terms::default(),
            ahead_ms: prng.between(0, 20_000),
            wires: BTreeMap::new(),
            workers: vec![Worker::new(1 << 30)],
            work: BTreeMap::new(),
            log: Vec::new(),
            blobs: BTreeSet::new(),
        }
    }

    pub(crate) fn offer(&self, now: u64) -> Offer {
        let worker = |worker: &Worker| WorkerOffer {
            device: "simulated".into(),
            backend: "cpu".into(),
            matrix_mflops: u64::from(self.id.0[0]) + 1,
            memory_mbps: 1,
            transfer_mbps: 1,
            memory_bytes: worker.memory_bytes,
            open: true,
        };
        Offer {
            workers: self.workers.iter().map(worker).collect(),
            addresses: vec!["192.0.2.1:1".into()],
            issued_at: Millis(now + self.ahead_ms),
        }
    }
}

impl Worker {
    pub(crate) fn new(memory_bytes: u64) -> Self {
        Self { memory_bytes, broken: false, queue: VecDeque::new() }
    }
}

/// The size of every simulated model that is trained.
pub(crate) const TRAINED: TrainSize = TrainSize {
    layers: 6,
    width: 16,
    feed_width: 48,
    heads: 4,
    vocabulary: 256,
    weights: 220_000,
    resident: 236_000,
    trained: 236_000,
};

/// The size of one that no host could hold alone.
pub(crate) const LARGE: TrainSize =
    TrainSize { weights: 49_996_000, resident: 50_000_000, trained: 50_000_000, ..TRAINED };

/// The size of every simulated model that is served: six layers, so that pipelines can be cut.
pub(crate) const SIZE: ModelSize = ModelSize {
    layers: 6,
    width: 16,
    layer_weights: 3_000_000,
    head_weights: 1_000_000,
    layer_bytes: 2_000_000,
    embedding_bytes: 1_000_000,
    head_bytes: 1_000_000,
    tied: false,
    cache_bytes_per_token: 64,
};
