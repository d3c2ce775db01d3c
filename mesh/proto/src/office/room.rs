//! What workers can still take: their leases and their memory, within one look at all jobs.
//!
//! Must never know jobs beyond what they require.

use std::collections::BTreeMap;

use crate::ids::WorkerId;
use crate::job::{Requires, Shard};
use crate::limits::LEASES_HELD_MAX;
use crate::placement::Hand;
use crate::plan::Task;

/// What the hands can still take.
#[derive(Clone, Debug)]
pub(super) struct Room {
    spaces: BTreeMap<WorkerId, Space>,
}

/// What one of them can.
#[derive(Clone, Copy, Debug)]
struct Space {
    /// As it is offered.
    hand: Hand,
    /// Memory that is promised to no stage yet, in bytes.
    memory_bytes: u64,
    leases: usize,
}

impl Space {
    fn is_free(&self) -> bool {
        self.leases < LEASES_HELD_MAX
    }
}

impl Room {
    pub(super) fn new(hands: &[Hand]) -> Self {
        let space = |hand: &Hand| {
            let space = Space { hand: *hand, memory_bytes: hand.memory_bytes, leases: 0 };
            (hand.worker, space)
        };
        Self { spaces: hands.iter().map(space).collect() }
    }

    pub(super) fn take(&mut self, worker: WorkerId, shard: &Shard) {
        if let Some(space) = self.spaces.get_mut(&worker) {
            space.leases += 1;
            space.memory_bytes = space.memory_bytes.saturating_sub(memory_bytes(shard));
        }
    }

    pub(super) fn give_back(&mut self, worker: WorkerId, shard: &Shard) {
        if let Some(space) = self.spaces.get_mut(&worker) {
            space.memory_bytes = space.memory_bytes.saturating_add(memory_bytes(shard));
        }
    }

    /// Those that offer what a job requires.
    fn able(&self, requires: Requires) -> impl Iterator<Item = &Space> {
        self.spaces.values().filter(move |space| space.hand.fulfils(requires))
    }

    /// Those that offer what a job requires and can take another lease, with the memory that is left.
    pub(super) fn free(&self, requires: Requires) -> Vec<Hand> {
        let free = self.able(requires).filter(|space| space.is_free());
        free.map(|space| Hand { memory_bytes: space.memory_bytes, ..space.hand }).collect()
    }

    /// Whether this one offers what a job requires.
    pub(super) fn has(&self, worker: WorkerId, requires: Requires) -> bool {
        self.spaces.get(&worker).is_some_and(|space| space.hand.fulfils(requires))
    }

    pub(super) fn is_free(&self, worker: WorkerId) -> bool {
        self.spaces.get(&worker).is_some_and(Space::is_free)
    }

    /// Who is to take the task: for whom it is meant, or the least loaded. One that failed it before comes last, and before
    /// others one beside that for whom it is meant, which has the same store.
    pub(super) fn least_loaded(&self, task: &Task, requires: Requires) -> Option<WorkerId> {
        let pinned = task.pinned.filter(|pinned| self.is_free(*pinned));
        pinned.or_else(|| {
            let apart = |worker: WorkerId| task.pinned.is_some_and(|pinned| pinned.node != worker.node);
            let may = |space: &&Space| space.is_free() && task.is_for(space.hand.worker);
            let free = self.able(requires).filter(may);
            let order = |space: &&Space| {
                let worker = space.hand.worker;
                (task.avoids(worker), apart(worker), space.leases, worker)
            };
            free.min_by_key(order).map(|space| space.hand.worker)
        })
    }
}

/// Memory that a worker must keep for `shard`, besides the passing need of what ends by itself.
fn memory_bytes(shard: &Shard) -> u64 {
    match shard {
        Shard::Stage { spec, start, end, .. } => spec.memory_bytes(*start, *end),
        Shard::Init { .. }
        | Shard::Train { .. }
        | Shard::Show { .. }
        | Shard::Check { .. }
        | Shard::Judge { .. }
        | Shard::Merge { .. } => 0,
    }
}
