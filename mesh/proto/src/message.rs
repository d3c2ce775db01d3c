//! Everything that one agent's core says to another's.
//!
//! Senders are authenticated by the channel; what must be shown to third parties is signed besides.
//! Must never carry tensors: those go over bulk streams.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::election::Reign;
use crate::ids::{Digest, JobId, LeaseId, NodeId};
use crate::job::{JobSpec, Work};
use crate::lease::{Acceptance, Lease, Pace, Receipt};
use crate::offer::Offer;
use crate::signed::Envelope;

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Message {
    /// Offers: the sender's own when a connection opens or its offer changes, then those of others.
    Offers(Vec<Envelope<Offer>>),
    /// I am here, and this is the coordinator that I obey.
    Beat {
        /// The sender's view; counts as a claim to office only where it names the sender.
        reign: Option<Reign>,
    },
    /// To the coordinator: run this job of mine.
    Submit {
        /// The job, signed by its owner.
        job: Envelope<JobSpec>,
        /// Where an earlier coordinator left off.
        resume: Option<Resume>,
    },
    /// To the coordinator: stop this job of mine.
    Cancel(JobId),
    /// From the coordinator: how a job stands.
    Job(JobStatus),
    /// From the coordinator: execute this.
    Grant {
        /// The lease, signed.
        lease: Envelope<Lease>,
        /// Members that are said to hold the inputs.
        holders: Vec<NodeId>,
    },
    /// To the coordinator: the lease is alive; asks for renewal.
    Progress {
        /// Which lease.
        lease: LeaseId,
        /// How far it is.
        pace: Pace,
    },
    /// From the coordinator: the lease runs for another full term from now.
    Renew(LeaseId),
    /// From the coordinator: end it; a stage that served ends as completed.
    Release(LeaseId),
    /// To the coordinator: how a lease ended.
    Receipt(Envelope<Receipt>),
    /// From the coordinator: the receipt counts.
    Accepted(Envelope<Acceptance>),
    /// From the coordinator: what you sent about this lease does not count.
    Refused {
        /// Which lease.
        lease: LeaseId,
        /// Why, for people.
        reason: String,
    },
}

/// From where a new coordinator may resume a job.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Resume {
    /// Outer steps finished.
    pub round: u32,
    /// The checkpoint after them.
    pub state: Digest,
}

/// Whether a job is under way, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "lowercase")]
pub enum Phase {
    /// No agent can take it at the moment.
    Waiting,
    /// Under way.
    Running,
    /// Finished; the result is `state`.
    Done,
    /// Given up.
    Failed {
        /// Why.
        reason: String,
    },
    /// Ended by its owner.
    Cancelled,
}

impl Phase {
    /// Whether nothing more will happen.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Waiting | Self::Running => false,
            Self::Done | Self::Failed { .. } | Self::Cancelled => true,
        }
    }
}

/// One stage of a serving pipeline, where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct StageAt {
    /// Who serves it.
    pub node: NodeId,
    /// Under which lease.
    pub lease: LeaseId,
    /// First layer.
    pub start: u16,
    /// One past the last layer.
    pub end: u16,
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct JobStatus {
    /// The job.
    pub id: JobId,
    /// Who submitted it.
    pub owner: NodeId,
    /// Its name.
    pub name: String,
    /// What it does.
    pub work: Work,
    /// Where it is.
    #[serde(flatten)]
    pub phase: Phase,
    /// Outer steps finished.
    pub round: u32,
    /// Inner steps done in the present round, over all agents.
    pub step: u32,
    /// Inner steps of the present round, over all agents.
    pub steps: u32,
    /// Agents at work on it.
    pub agents: u16,
    /// Mean of the latest training losses, in millionths of a nat per byte.
    pub loss_micronats: Option<i64>,
    /// Held-out loss before training.
    pub start_loss_micronats: Option<i64>,
    /// Held-out loss after the last outer step.
    pub held_out_micronats: Option<i64>,
    /// Tokens trained on, over all accepted receipts.
    pub tokens: u64,
    /// The latest checkpoint.
    pub state: Option<Digest>,
    /// Whether all agents computed the same digest at every outer step so far.
    pub digests_equal: bool,
    /// Shards that were granted again after an agent failed or vanished.
    pub regrants: u32,
    /// The pipeline of a serving job, complete and ready, or empty.
    pub stages: Vec<StageAt>,
}
