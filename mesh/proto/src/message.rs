//! Everything that one agent's core says to another's.
//!
//! Senders are authenticated by the channel; what must be shown to third parties is signed besides.
//! Must never carry tensors: those go over bulk streams.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::election::Reign;
use crate::ids::{Digest, JobId, LeaseId, NodeId, WorkerId};
use crate::job::{JobSpec, Requires, Work};
use crate::lease::{Acceptance, Lease, Pace, Receipt};
use crate::limits::{REASON_BYTES_MAX, REFUSED_MAX};
use crate::offer::Offer;
use crate::signed::{Envelope, Signed};

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Message {
    /// Offers: the sender's own when a connection opens or its offer changes; those of others in answer to
    /// a newcomer's first, so that of two that meet a third at once the later hears of the earlier; and now
    /// and then again, in case they did not reach each other.
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
    /// To the coordinator: the shard cannot be executed under this lease. Goes before the receipt; a lease
    /// that makes no sense is never taken and has no receipt.
    Failed {
        /// Which lease.
        lease: LeaseId,
        /// Why, for people.
        reason: String,
        /// An input that nobody gave.
        missing: Option<Digest>,
    },
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
    /// To the coordinator: round trips to other members in microseconds, the shortest ones. Replaces what was
    /// said before.
    Links(Vec<(NodeId, u32)>),
    /// To the coordinator: the lease is not taken, because its agent leaves or the owner needs the device, as the offer
    /// that went before says. Nobody failed; there is no receipt.
    Declined(LeaseId),
}

/// From where a new coordinator may resume a job: what its owner knows of it. False claims harm nobody
/// but the owner.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Resume {
    /// Training.
    Train(Trained),
    /// Serving: the last complete pipeline. Who still has its layers loaded is to keep them.
    Serve(Vec<StageAt>),
}

/// How far a training job came.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Trained {
    /// Outer steps finished.
    pub round: u32,
    /// The checkpoint after them.
    pub state: Digest,
    /// Held-out loss before training.
    pub start_loss_micronats: Option<i64>,
    /// Held-out loss as it was measured last; not after every outer step, nor at once after every one that asks for it.
    pub held_out_micronats: Option<i64>,
    /// Tokens trained on.
    pub tokens: u64,
    /// Bytes that agents sent each other for it.
    pub sent_bytes: u64,
    /// Sequences of the data trained on.
    pub samples: u64,
    /// Of these, those that came to nothing.
    pub left_out: Vec<(u64, u64)>,
    /// Whether all agents agreed so far.
    pub digests_equal: bool,
    /// Shards granted again so far.
    pub regrants: u32,
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
    /// On which of its workers.
    #[serde(default)]
    pub worker: u8,
    /// Under which lease.
    pub lease: LeaseId,
    /// First layer.
    pub start: u16,
    /// One past the last layer.
    pub end: u16,
}

impl StageAt {
    /// Who serves it.
    pub fn worker_id(&self) -> WorkerId {
        WorkerId { node: self.node, index: self.worker }
    }
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
    /// Workers of these that are at work on it.
    #[serde(default)]
    pub workers: u16,
    /// Mean of the latest training losses, in millionths of a nat per token.
    pub loss_micronats: Option<i64>,
    /// Held-out loss before training.
    pub start_loss_micronats: Option<i64>,
    /// Held-out loss as it was measured last; not after every outer step, nor at once after every one that asks for it.
    pub held_out_micronats: Option<i64>,
    /// Tokens trained on, over all accepted receipts.
    pub tokens: u64,
    /// Bytes that agents sent each other for it: data, weights, pseudo-gradients and, within groups, activations. Of shards
    /// that came to an end, as their receipts have it.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Sequences of the data trained on, counted in the job's own order: of numbers 0 to this one.
    pub samples: u64,
    /// Of these, those whose pseudo-gradient was refused: from one number to below the other.
    pub left_out: Vec<(u64, u64)>,
    /// The latest checkpoint.
    pub state: Option<Digest>,
    /// Whether all agents computed the same digest at every outer step so far.
    pub digests_equal: bool,
    /// Shards that were granted again after an agent failed or vanished.
    pub regrants: u32,
    /// Slices that another agent trained again with the same result.
    pub confirmed: u32,
    /// Slices that came out otherwise.
    pub rejected: u32,
    /// Agents whose work was found wanting; they get no more shards of the job.
    pub refused: Vec<NodeId>,
    /// The pipeline of a serving job, complete and ready, or empty.
    pub stages: Vec<StageAt>,
    /// Why it waits, for people, where that is known.
    pub note: Option<String>,
}

impl JobStatus {
    /// A job of which nothing is done yet.
    pub fn new(job: &Signed<JobSpec>) -> Self {
        let spec = job.statement();
        Self {
            id: JobId(job.digest().0),
            owner: job.signer(),
            name: spec.name.clone(),
            work: spec.work.clone(),
            phase: Phase::Waiting,
            round: 0,
            step: 0,
            steps: 0,
            agents: 0,
            workers: 0,
            loss_micronats: None,
            start_loss_micronats: None,
            held_out_micronats: None,
            tokens: 0,
            sent_bytes: 0,
            samples: 0,
            left_out: Vec::new(),
            state: None,
            digests_equal: true,
            regrants: 0,
            confirmed: 0,
            rejected: 0,
            refused: Vec::new(),
            stages: Vec::new(),
            note: None,
        }
    }

    /// What another coordinator needs to go on from here.
    pub fn resume(&self) -> Option<Resume> {
        match &self.work {
            Work::Serve(_) => (!self.stages.is_empty()).then(|| Resume::Serve(self.stages.clone())),
            Work::Train(_) => self.state.map(|state| {
                Resume::Train(Trained {
                    round: self.round,
                    state,
                    start_loss_micronats: self.start_loss_micronats,
                    held_out_micronats: self.held_out_micronats,
                    tokens: self.tokens,
                    sent_bytes: self.sent_bytes,
                    samples: self.samples,
                    left_out: self.left_out.clone(),
                    digests_equal: self.digests_equal,
                    regrants: self.regrants,
                })
            }),
        }
    }

    /// Goes on from where an earlier coordinator left off.
    pub(crate) fn resume_from(&mut self, trained: &Trained) {
        self.round = trained.round;
        self.state = Some(trained.state);
        self.start_loss_micronats = trained.start_loss_micronats;
        self.held_out_micronats = trained.held_out_micronats;
        self.tokens = trained.tokens;
        self.sent_bytes = trained.sent_bytes;
        self.samples = trained.samples;
        self.left_out.clone_from(&trained.left_out);
        self.digests_equal = trained.digests_equal;
        self.regrants = trained.regrants;
    }

    /// Whether a coordinator's word about a job is small enough to keep and its pipeline can be walked.
    pub fn is_bounded(&self) -> bool {
        let (name, work) = (self.name.clone(), self.work.clone());
        let spec = JobSpec { name, nonce: 0, work, requires: Requires::default() };
        let reason_fits = match &self.phase {
            Phase::Failed { reason } => reason.len() <= REASON_BYTES_MAX,
            Phase::Waiting | Phase::Running | Phase::Done | Phase::Cancelled => true,
        };
        let stages_join = match &self.work {
            Work::Train(_) => self.stages.is_empty(),
            Work::Serve(serve) => self.stages.is_empty() || cover(&self.stages, serve.size.layers),
        };
        let note_fits = self.note.as_ref().is_none_or(|note| note.len() <= REASON_BYTES_MAX);
        // A job that was refused for its specification is told as failed, with that specification.
        let refused = matches!(self.phase, Phase::Failed { .. }) && self.name.len() <= REASON_BYTES_MAX;
        let few = self.refused.len() <= REFUSED_MAX && self.left_out.len() <= REFUSED_MAX;
        (refused || spec.validate().is_ok()) && reason_fits && stages_join && note_fits && few
    }
}

/// Whether `stages` hold each of the model's layers once, in order.
pub(crate) fn cover(stages: &[StageAt], layers: u16) -> bool {
    let mut reached = 0;
    for stage in stages {
        if stage.start != reached || stage.end <= stage.start {
            return false;
        }
        reached = stage.end;
    }
    reached == layers
}

/// `reason`, cut to what may travel.
pub fn bounded_reason(reason: &str) -> String {
    reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned()
}
