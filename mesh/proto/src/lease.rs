//! Lease, receipt, acceptance: the three signed steps between work asked for and work paid.
//!
//! A lease is the coordinator's grant, a receipt the agent's account of it, an acceptance the
//! coordinator's word that the receipt came in time under a lease still in force. Only accepted
//! receipts are paid. Must never hold floats.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::group::Member;
use crate::ids::{Digest, JobId, LeaseId, Millis, NodeId, Term, Units, WorkerId};
use crate::job::{BadJob, Shard};
use crate::limits::{LEASE_TTL_MS_MAX, OUTPUTS_MAX, SLICES_MAX};
use crate::signed::{Envelope, Statement, encode};

/// Fences a late holder out: the greater token wins, wherever two leases for one shard meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Fence {
    /// The coordinator's term.
    pub term: Term,
    /// Grows with every grant; never below the coordinator's clock in milliseconds, so that it grows even
    /// if the coordinator starts anew within the same term.
    pub sequence: u64,
}

/// The grant of one shard to one worker of one agent. The signer is the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// What to execute.
    pub shard: Shard,
    /// Who may execute it.
    pub agent: NodeId,
    /// On which of its workers.
    pub worker: u8,
    /// The fencing token.
    pub fence: Fence,
    /// When it was granted.
    pub granted_at: Millis,
    /// It expires so long after it was granted or last renewed, on either side's own clock.
    pub ttl_ms: u32,
    /// The work of the shard (per token for a stage).
    pub units: Units,
}

impl Statement for Lease {
    const KIND: &'static str = "lease";
}

/// Why a lease is nonsense, whoever signed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLease {
    /// The shard cannot be executed.
    #[error("the shard is out of bounds: {0}")]
    Shard(#[from] BadJob),
    /// It would end at once or never.
    #[error("a lease of {0} ms is shorter than a second or longer than ten minutes")]
    Ttl(u32),
    /// The price is not what the shard's arithmetic says.
    #[error("the lease names {named} units of work where the shard has {has}")]
    Units {
        /// In the lease.
        named: Units,
        /// By the shard's arithmetic.
        has: Units,
    },
    /// The agent has no such worker.
    #[error("the lease is for worker {worker}, and this agent offers {offered}, counted from 0")]
    Worker {
        /// In the lease.
        worker: u8,
        /// By the agent.
        offered: usize,
    },
    /// The group of the shard means another worker, or another agent.
    #[error("the lease is for another than its group means")]
    Member,
}

impl Lease {
    /// Checks every field that a coordinator may have chosen, for an agent that offers so many workers.
    ///
    /// # Errors
    /// [`BadLease`]; the lease must not be executed.
    pub fn validate(&self, workers: usize) -> Result<(), BadLease> {
        if usize::from(self.worker) >= workers {
            return Err(BadLease::Worker { worker: self.worker, offered: workers });
        }
        self.shard.validate()?;
        let member = self.shard.group().map(|group| group.members.get(usize::from(group.stage)));
        if member.is_some_and(|member| member.map(Member::worker_id) != Some(self.worker_id())) {
            return Err(BadLease::Member);
        }
        if !(1_000..=LEASE_TTL_MS_MAX).contains(&self.ttl_ms) {
            return Err(BadLease::Ttl(self.ttl_ms));
        }
        let has = self.shard.units();
        if self.units == has { Ok(()) } else { Err(BadLease::Units { named: self.units, has }) }
    }

    /// Who may execute it.
    pub fn worker_id(&self) -> WorkerId {
        WorkerId { node: self.agent, index: self.worker }
    }

    /// The id by which everything later refers to this lease.
    pub fn id(&self) -> LeaseId {
        LeaseId(Digest::of(&encode(self)).0)
    }
}

/// How far the execution of a shard is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Pace {
    /// Steps done.
    pub done: u32,
    /// Steps in all; zero while queued. A stage is ready when both are 1.
    pub of: u32,
    /// Latest training loss in millionths of a nat.
    pub loss_micronats: Option<i64>,
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum End {
    /// The shard was executed, or a stage served until it was released.
    Completed,
    /// The worker failed, died or hung.
    Failed,
    /// The coordinator took the lease back before the shard was done.
    Cancelled,
    /// It ran out before the shard was done.
    Expired,
}

/// The agent's statement of what it executed. The signer is the agent.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Receipt {
    /// The lease, whole, so that a receipt can be checked on its own.
    pub lease: Envelope<Lease>,
    /// How it ended.
    pub end: End,
    /// When execution began.
    pub started_at: Millis,
    /// When it ended.
    pub finished_at: Millis,
    /// Digests of what went in: the shard's blobs; for a stage, one rolling digest of its inputs.
    pub inputs: Vec<Digest>,
    /// Digests of what came out. For an outer step, after the next checkpoint, the pseudo-gradients that were refused. For a
    /// stage, one rolling digest of its outputs, and that of what it committed to.
    pub outputs: Vec<Digest>,
    /// Tokens trained on or served.
    pub tokens: u64,
    /// Bytes that came from other agents for it.
    pub received_bytes: u64,
    /// Work done; zero unless the lease completed.
    pub units: Units,
    /// What the shard measured: mean loss in millionths of a nat per token; of a check, the distance in millionths.
    pub loss_micronats: Option<i64>,
}

impl Statement for Receipt {
    const KIND: &'static str = "receipt";
}

impl Receipt {
    /// Whether a stranger's receipt is small enough to keep.
    pub fn is_bounded(&self) -> bool {
        // A merge has the most inputs: every slice, the state before and the data.
        self.inputs.len() <= SLICES_MAX + 2 && self.outputs.len() <= OUTPUTS_MAX
    }

    /// What the shard made; nothing unless it was executed to its end and has a result.
    pub fn result(&self) -> Option<Digest> {
        self.outputs.first().copied().filter(|_| self.end == End::Completed)
    }
}

/// The coordinator's word that a receipt came in time under a lease in force. The signer must be the
/// signer of the lease.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Acceptance {
    /// Digest of the receipt's envelope.
    pub receipt: Digest,
    /// The lease.
    pub lease: LeaseId,
    /// Who did the work.
    pub agent: NodeId,
    /// Work to be paid.
    pub units: Units,
    /// When it was accepted: decides the epoch in which it is paid.
    pub accepted_at: Millis,
}

impl Statement for Acceptance {
    const KIND: &'static str = "acceptance";
}
