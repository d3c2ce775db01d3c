//! How a job is cut into shards: what to grant next, given what came back.
//!
//! A plan knows slots and digests; it never knows leases, agents' health or time.

mod checks;
mod serve;
mod train;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

pub use serve::ServePlan;
pub use train::TrainPlan;

use crate::ids::{Digest, NodeId, WorkerId};
use crate::job::Shard;
use crate::placement::Hand;

/// The place of a shard in its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// The first weights.
    Init,
    /// One slice of a round's data, or what one member of a group does of it.
    Train {
        /// Which slice.
        slice: u16,
        /// Which member; 0 of an agent alone.
        stage: u16,
    },
    /// What one member of a group does to measure a loss.
    Judge {
        /// Which group.
        group: u16,
        /// Which member.
        stage: u16,
    },
    /// What an agent began a slice with, by the number of the check.
    Show(u16),
    /// The same slice once more.
    Check(u16),
    /// The outer step, on one given agent, whatever the number of its workers.
    Merge(NodeId),
    /// One stage of a pipeline.
    Stage(u16),
}

/// A shard that wants a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its place.
    pub slot: Slot,
    /// The shard.
    pub shard: Shard,
    /// Who is to take it; failing that another worker of the same agent, failing that anybody for whom it is.
    pub pinned: Option<WorkerId>,
    /// Workers on which it failed already.
    pub avoid: BTreeSet<WorkerId>,
    /// Agents of whom no worker is to have it.
    pub avoid_nodes: BTreeSet<NodeId>,
    /// How often a worker failed it; one that vanished did not fail.
    pub attempts: u8,
}

impl Slot {
    /// Whether the job goes on meanwhile.
    pub fn is_aside(self) -> bool {
        matches!(self, Self::Show(_) | Self::Check(_))
    }

    /// Whether it is better left undone than waited for, where nobody can take it now who may.
    pub fn is_dispensable(self) -> bool {
        matches!(self, Self::Merge(_) | Self::Show(_) | Self::Check(_))
    }

    /// Whether both belong to the same group, which is whole or of no use.
    pub fn is_beside(self, other: Self) -> bool {
        match (self, other) {
            (Self::Train { slice, .. }, Self::Train { slice: of, .. }) => slice == of,
            (Self::Judge { group, .. }, Self::Judge { group: of, .. }) => group == of,
            _ => false,
        }
    }
}

impl Task {
    fn new(slot: Slot, shard: Shard) -> Self {
        Self { slot, shard, pinned: None, avoid: BTreeSet::new(), avoid_nodes: BTreeSet::new(), attempts: 0 }
    }

    fn pinned(slot: Slot, shard: Shard, worker: WorkerId) -> Self {
        Self { pinned: Some(worker), ..Self::new(slot, shard) }
    }

    /// Whether this worker may have it at all. What an agent does for itself alone another cannot do in its place, and
    /// nobody is a witness of his own work.
    pub fn is_for(&self, worker: WorkerId) -> bool {
        match self.slot {
            Slot::Merge(_) | Slot::Show(_) => self.pinned.is_none_or(|pinned| pinned.node == worker.node),
            Slot::Check(_) => !self.avoid_nodes.contains(&worker.node),
            Slot::Init | Slot::Train { .. } | Slot::Judge { .. } | Slot::Stage(_) => true,
        }
    }

    /// Whether this worker gets it only if there is no other.
    pub fn avoids(&self, worker: WorkerId) -> bool {
        self.avoid.contains(&worker) || self.avoid_nodes.contains(&worker.node)
    }
}

/// What came of a finished shard.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// Its result.
    pub output: Digest,
    /// More of it: of a slice, the optimiser's state with which it began; of an outer step, the pseudo-gradients that were
    /// not what they should be.
    pub more: &'a [Digest],
    /// What it measured: a loss, or a distance.
    pub measure: Option<i64>,
    /// Tokens on which it was measured.
    pub tokens: u64,
    /// From the grant to the receipt, in milliseconds.
    pub took_ms: u64,
    /// A number that the agent could not foresee.
    pub draw: u64,
}

/// What follows from a finished or lost shard.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Others are still out.
    Wait,
    /// The step is complete: ask for the next tasks.
    Plan,
    /// The shard is to be granted again.
    Retry,
    /// The shard is to be granted again, to another worker of its agent.
    On(WorkerId),
    /// One more task, beside the others.
    Also(Box<Task>),
    /// The shard is of no use without the others of its group, nor they without it: all are given up.
    Dissolve,
    /// The job is finished.
    Done,
    /// The job cannot go on.
    Fail(String),
}

/// Of every agent the workers, the one with the most memory first: what an agent does once, whatever the number of its
/// workers, that one does.
fn ablest(hands: &[Hand]) -> BTreeMap<NodeId, Vec<Hand>> {
    let mut all: BTreeMap<NodeId, Vec<Hand>> = BTreeMap::new();
    for hand in hands {
        all.entry(hand.worker.node).or_default().push(*hand);
    }
    for workers in all.values_mut() {
        workers.sort_by_key(|hand| (Reverse(hand.memory_bytes), hand.worker));
    }
    all
}

/// The plan of one job.
#[derive(Debug)]
pub enum Plan {
    /// Training by DiLoCo.
    Train(Box<TrainPlan>),
    /// Serving.
    Serve(Box<ServePlan>),
}
