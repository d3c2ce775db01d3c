//! One fixed statement of each kind, one fixed key and one fixed network, shared by the tests.
//!
//! Must never change: the golden file holds their bytes.

use ed25519_dalek::SigningKey;
use skein_proto::genesis::Genesis;
use skein_proto::ids::{Digest, JobId, LeaseId, Millis, NetworkId, NodeId, Term, WorkerId};
use skein_proto::job::{JobSpec, Method, ModelSize, Requires, ServeSpec, Shard, TrainSize, TrainSpec, Work};
use skein_proto::lease::{Acceptance, End, Fence, Lease, Receipt};
use skein_proto::offer::{Offer, WorkerOffer};
use skein_proto::placement::Hand;
use skein_proto::signed::Signed;

/// A small language model that is trained.
pub(crate) const SIZE: TrainSize = TrainSize {
    layers: 4,
    width: 64,
    feed_width: 176,
    heads: 4,
    vocabulary: 256,
    weights: 220_000,
    resident: 236_000,
    trained: 236_000,
};

pub(crate) fn key(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

pub(crate) fn id(number: u8) -> NodeId {
    NodeId(key(number).verifying_key().to_bytes())
}

pub(crate) fn genesis() -> Genesis {
    Genesis {
        name: "golden".into(),
        policy: "io".into(),
        started_at_ms: 1_700_000_000_000,
        epoch_ms: 3_600_000,
    }
}

pub(crate) fn network() -> NetworkId {
    genesis().network_id()
}

pub(crate) fn offer() -> Offer {
    Offer {
        workers: vec![worker_offer()],
        addresses: vec!["192.0.2.7:4433".into(), "[2001:db8::7]:4433".into()],
        issued_at: Millis(1_700_000_001_000),
    }
}

pub(crate) fn worker_offer() -> WorkerOffer {
    WorkerOffer {
        device: "AMD Radeon RX 580".into(),
        backend: "vulkan".into(),
        matrix_mflops: 5_200_000,
        memory_mbps: 256_000,
        transfer_mbps: 12_000,
        memory_bytes: 8 << 30,
        open: true,
    }
}

pub(crate) fn train() -> TrainSpec {
    TrainSpec {
        model: Digest::of(b"model"),
        size: SIZE,
        method: Method::Full,
        context: 128,
        data: Digest::of(b"data"),
        rounds: 3,
        inner_steps: 50,
        batch: 8,
        learning_rate_millionths: 3_000,
        outer_rate_millionths: 700_000,
        outer_momentum_millionths: 900_000,
        delta_bits: 4,
        check_millionths: 0,
        seed: 42,
    }
}

pub(crate) fn job() -> JobSpec {
    JobSpec {
        name: "shakespeare".into(),
        nonce: 7,
        work: Work::Train(train()),
        requires: Requires::default(),
    }
}

/// A small language model of four layers.
pub(crate) fn serve(stages: Option<u16>) -> ServeSpec {
    let size = ModelSize {
        layers: 4,
        width: 576,
        layer_weights: 3_538_944,
        head_weights: 28_311_552,
        layer_bytes: 2_211_840,
        embedding_bytes: 17_694_720,
        head_bytes: 17_694_720,
        tied: true,
        cache_bytes_per_token: 768,
    };
    ServeSpec { model: Digest::of(b"model"), size, context: 2_048, sessions: 4, stages }
}

pub(crate) fn serve_job(stages: u16) -> JobSpec {
    let (work, requires) = (Work::Serve(serve(Some(stages))), Requires::default());
    JobSpec { name: "shakespeare".into(), nonce: 8, work, requires }
}

/// Layers `start..end` of it.
pub(crate) fn stage(start: u16, end: u16, index: u16, of: u16) -> Shard {
    Shard::Stage { spec: serve(None), start, end, index, of }
}

pub(crate) fn shard() -> Shard {
    Shard::Train {
        state: Digest::of(b"state"),
        spec: train(),
        round: 1,
        index: 0,
        of: 2,
        first: 800,
        steps: 50,
        group: None,
    }
}

/// The first worker of an agent.
pub(crate) fn first(node: NodeId) -> WorkerId {
    WorkerId { node, index: 0 }
}

/// It, with a gigabyte and a middling speed.
pub(crate) fn hand(node: NodeId) -> Hand {
    Hand {
        worker: first(node),
        matrix_mflops: 100_000,
        memory_mbps: 10_000,
        memory_bytes: 1 << 30,
        gpu: false,
    }
}

/// Granted by agent 1 to agent 2.
pub(crate) fn lease() -> Lease {
    Lease {
        job: JobId(Signed::new(job(), &network(), &key(3)).digest().0),
        shard: shard(),
        agent: id(2),
        worker: 0,
        fence: Fence { term: Term(5), sequence: 1_700_000_002_000 },
        granted_at: Millis(1_700_000_002_000),
        ttl_ms: 15_000,
        units: shard().units(),
    }
}

pub(crate) fn receipt() -> Receipt {
    Receipt {
        lease: Signed::new(lease(), &network(), &key(1)).into_envelope(),
        end: End::Completed,
        started_at: Millis(1_700_000_002_050),
        finished_at: Millis(1_700_000_009_000),
        inputs: vec![Digest::of(b"state"), Digest::of(b"data")],
        outputs: vec![Digest::of(b"delta")],
        tokens: 51_200,
        received_bytes: 1_048_576,
        units: shard().units(),
        loss_micronats: Some(-1),
    }
}

pub(crate) fn acceptance() -> Acceptance {
    Acceptance {
        receipt: Signed::new(receipt(), &network(), &key(2)).digest(),
        lease: LeaseId(lease().id().0),
        agent: id(2),
        units: shard().units(),
        accepted_at: Millis(1_700_000_009_100),
    }
}
