//! What the demo found, as `demo --json` prints it. The keys are stable.

use serde::Serialize;
use skein_ledger::emission::Amount;
use skein_proto::ids::{Epoch, NodeId};

use crate::daemon::status::Payout;

/// Everything, and whether all of it is as it should be.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) ok: bool,
    /// What is not as it should be.
    pub(super) failures: Vec<String>,
    pub(super) agents: u16,
    pub(super) devices: Vec<Device>,
    pub(super) train: Train,
    pub(super) serve: Serve,
    pub(super) log: Log,
    pub(super) settlement: Settlement,
    /// Where everything was left for inspection.
    pub(super) folder: String,
    pub(super) seconds: f64,
}

/// One agent's measured device.
#[derive(Debug, Serialize)]
pub(super) struct Device {
    pub(super) node: NodeId,
    pub(super) device: String,
    pub(super) backend: String,
    pub(super) matrix_gflops: f64,
    pub(super) memory_gb_per_s: f64,
    pub(super) transfer_gb_per_s: f64,
    pub(super) reason: String,
}

/// Losses are held-out, in nats per byte.
#[derive(Debug, Default, Serialize)]
pub(super) struct Train {
    pub(super) parameters: u64,
    pub(super) start_loss: f64,
    pub(super) val_loss: f64,
    pub(super) outer_steps: u32,
    pub(super) bytes_sent: u64,
    pub(super) tokens: u64,
    pub(super) tokens_per_s: f64,
    pub(super) digests_equal: bool,
    pub(super) seconds: f64,
}

/// Greedy generation.
#[derive(Debug, Default, Serialize)]
pub(super) struct Serve {
    pub(super) stages: usize,
    pub(super) tokens: usize,
    pub(super) tokens_per_s: f64,
    pub(super) unsharded_tokens_per_s: f64,
    pub(super) matches_unsharded: bool,
    pub(super) streamed_matches: bool,
    /// Greedy.
    pub(super) text: String,
    /// At temperature 0.7.
    pub(super) sampled: String,
}

/// All agents' logs together.
#[derive(Debug, Default, Serialize)]
pub(super) struct Log {
    pub(super) entries: u64,
    pub(super) leases: u64,
    pub(super) receipts: u64,
    pub(super) verified: bool,
    pub(super) tamper_detected: bool,
    pub(super) tampered_entry: Option<u64>,
}

/// The epoch in which most agents had a part, and all epochs together.
#[derive(Debug, Default, Serialize)]
pub(super) struct Settlement {
    pub(super) epoch: Epoch,
    pub(super) minted: Amount,
    pub(super) emission: Amount,
    pub(super) claims: Vec<Payout>,
    pub(super) epochs_settled: usize,
    /// By agent, over all settled epochs.
    pub(super) earned: Vec<Payout>,
}
