//! What goes into the core, and what it wants done.

use crate::election::Reign;
use crate::holdings::{Executed, Trouble};
use crate::ids::{JobId, LeaseId, NodeId};
use crate::job::{JobSpec, Shard};
use crate::lease::{Acceptance, Pace, Receipt};
use crate::message::{JobStatus, Message};
use crate::offer::Offer;
use crate::signed::{Envelope, Signed};

/// Everything that can happen to the core.
#[derive(Clone, Debug)]
pub enum Input {
    /// The agent measured its workers: all of them, those that were offered before at their places. Which are open is
    /// for [`Input::Allow`] to say.
    Offer(Offer),
    /// An authenticated connection opened.
    Up(NodeId),
    /// It closed.
    Down(NodeId),
    /// A control frame arrived.
    Frame {
        /// From whom, by the channel's authentication.
        from: NodeId,
        /// An encoded [`Message`].
        bytes: Vec<u8>,
    },
    /// The local customer submits a job, which may have come as far as this already.
    Submit(Box<Signed<JobSpec>>, Option<Box<JobStatus>>),
    /// The local customer ends his job.
    Cancel(JobId),
    /// A worker reports life in a shard.
    Progress(LeaseId, Pace),
    /// A shard's execution ended.
    Finished(LeaseId, Result<Executed, Trouble>),
    /// The owner, or what he does with his machine, allows a worker more or less than before.
    Allow {
        /// Which; it may be offered later.
        worker: u8,
        /// What.
        allowance: Allowance,
    },
    /// The agent is about to end: its leases are to be stopped.
    Leave,
    /// The log holds these own receipts and no acceptance of them: their answers may have been lost in a crash.
    Unanswered(Vec<Envelope<Receipt>>),
    /// Round trips to the connected agents in microseconds, measured by the shell now and then.
    Links(Vec<(NodeId, u32)>),
    /// Time passed.
    Tick,
}

/// What the owner allows a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allowance {
    /// Any work.
    #[default]
    Work,
    /// What is under way may end; nothing new begins, and stages are given up, because they would never end.
    Finish,
    /// Nothing: whatever is under way stops.
    Nothing,
}

/// Everything that the core wants done, in this order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send a control message.
    Send(NodeId, Message),
    /// Close the connection: the peer is silent or speaks nonsense.
    Disconnect(NodeId, String),
    /// An agent is said to listen at these addresses; worth a try.
    Dial(NodeId, Vec<String>),
    /// Write to the log, durably, before going on.
    Append(Record),
    /// Execute a shard; report by [`Input::Progress`] and [`Input::Finished`].
    Execute(Execution),
    /// End the execution of a shard; report by [`Input::Finished`].
    Stop(LeaseId),
    /// A job's status changed.
    JobChanged(JobId),
    /// Another coordinator, or none.
    CoordinatorChanged(Option<Reign>),
    /// A line for the owner's log.
    Note(String),
}

/// What goes into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "receipts are the common case and records are short-lived")]
pub enum Record {
    /// The agent's own receipt.
    Receipt(Envelope<Receipt>),
    /// The coordinator's acceptance of it.
    Acceptance(Envelope<Acceptance>),
}

/// A shard to execute.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Under which lease.
    pub lease: LeaseId,
    /// On which worker.
    pub worker: u8,
    /// Of which job.
    pub job: JobId,
    /// What.
    pub shard: Shard,
    /// Who is said to hold the inputs.
    pub holders: Vec<NodeId>,
}
