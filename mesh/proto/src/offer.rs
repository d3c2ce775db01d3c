//! The offer: what an agent measured about its workers and what its owner allows each of them.
//!
//! Integers only, because it is signed. Must never hold what was not measured or configured.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::ids::Millis;
use crate::limits;
use crate::signed::Statement;

/// Signed advert of measured capacity. The signer is the agent.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct Offer {
    /// Its workers, each with a device of its own, known by their places here. At least one.
    pub workers: Vec<WorkerOffer>,
    /// Socket addresses at which the agent listens, as it knows them.
    pub addresses: Vec<String>,
    /// When it was signed; a later offer replaces an earlier one.
    pub issued_at: Millis,
}

/// What one worker offers.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct WorkerOffer {
    /// The device, for people: `NVIDIA GeForce RTX 3060` or the processor's name.
    pub device: String,
    /// `cpu`, or the GPU interface: `vulkan`, `dx12`, `metal`, `gl`.
    pub backend: String,
    /// Matrix product speed, in MFLOP/s, f32.
    pub matrix_mflops: u64,
    /// Memory bandwidth in MB/s.
    pub memory_mbps: u64,
    /// Host to device bandwidth in MB/s.
    pub transfer_mbps: u64,
    /// Memory that jobs may use, in bytes.
    pub memory_bytes: u64,
    /// Whether the owner lets it take work now.
    pub open: bool,
}

impl Statement for Offer {
    const KIND: &'static str = "offer";
}

impl Offer {
    /// Whether a stranger's offer is small enough to keep, and offers something.
    pub fn is_bounded(&self) -> bool {
        (1..=limits::WORKERS_MAX).contains(&self.workers.len())
            && self.workers.iter().all(WorkerOffer::is_bounded)
            && self.addresses.len() <= limits::ADDRESSES_MAX
            && self.addresses.iter().all(|address| address.len() <= limits::NAME_BYTES_MAX)
    }
}

impl WorkerOffer {
    /// Whether it is a GPU's.
    pub fn has_gpu(&self) -> bool {
        self.backend != "cpu"
    }

    fn is_bounded(&self) -> bool {
        self.device.len() <= limits::NAME_BYTES_MAX && self.backend.len() <= limits::NAME_BYTES_MAX
    }
}
