//! Slices that somebody else trains again, drawn when their receipts are in.
//!
//! First the maker shows the optimiser's state with which it began, which its receipt names; then another agent trains the
//! slice from there and measures how far the two results lie apart. One agent's word against another's is not enough
//! where there is a third. What was drawn is known to nobody before the receipt is accepted.

use std::collections::{BTreeMap, BTreeSet};

use super::{Slot, Task};
use crate::ids::{Digest, NodeId, WorkerId};
use crate::job::{Shard, TrainSpec};
use crate::limits::{CHECK_DISTANCE_MAX, CHECKS_TRUSTED, REFUSED_MAX, UNSHOWN_MAX};
use crate::message::JobStatus;

/// A slice as its agent made it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) maker: WorkerId,
    /// From this checkpoint of this round.
    pub(super) state: Digest,
    pub(super) round: u32,
    /// From these sequences.
    pub(super) first: u64,
    pub(super) steps: u32,
    /// From this state of the optimiser.
    pub(super) began: Digest,
    /// This pseudo-gradient.
    pub(super) delta: Digest,
}

#[derive(Debug)]
struct Open {
    made: Made,
    asked: bool,
    /// Who came to another result.
    against: BTreeSet<NodeId>,
}

/// The checks of one job.
#[derive(Debug, Default)]
pub(super) struct Checks {
    drawn: u16,
    open: BTreeMap<u16, Open>,
    /// How often in a row each was found honest.
    honest: BTreeMap<NodeId, u32>,
    unshown: BTreeMap<NodeId, u8>,
    /// Who can hold the model, and so check: of each agent one worker, since all its workers are one witness.
    able: Vec<WorkerId>,
    /// Who checks beside its slice, and so is slower in this round.
    disturbed: BTreeSet<WorkerId>,
}

impl Checks {
    /// A round begins: nobody is slower than usual yet.
    pub(super) fn round(&mut self) {
        self.disturbed.clear();
    }

    pub(super) fn disturbs(&self, worker: WorkerId) -> bool {
        self.disturbed.contains(&worker)
    }

    pub(super) fn are_done(&self) -> bool {
        self.open.is_empty()
    }

    /// Decides whether a slice is to be checked. `draw` is a number that its agent could not foresee.
    pub(super) fn consider(&mut self, made: Made, chance_millionths: u32, draw: u64) {
        let honest = self.honest.get(&made.maker.node).copied().unwrap_or(0).max(CHECKS_TRUSTED);
        let chance = u64::from(chance_millionths) * u64::from(CHECKS_TRUSTED) / u64::from(honest);
        if draw % 1_000_000 < chance {
            self.drawn = self.drawn.wrapping_add(1);
            self.open.insert(self.drawn, Open { made, asked: false, against: BTreeSet::new() });
        }
    }

    /// What is to be shown. `able` can hold the model, one worker of an agent; without two of them there is nobody
    /// to check anybody.
    pub(super) fn tasks(&mut self, spec: &TrainSpec, able: Vec<WorkerId>) -> Vec<Task> {
        self.able = able;
        if self.able.len() < 2 {
            self.open.retain(|_, open| open.asked);
        }
        let asked = |(number, open): (&u16, &mut Open)| {
            open.asked = true;
            let Made { maker, round, began, .. } = open.made;
            Task::pinned(Slot::Show(*number), Shard::Show { spec: spec.clone(), round, began }, maker)
        };
        self.open.iter_mut().filter(|(_, open)| !open.asked).map(asked).collect()
    }

    /// The maker showed something: the task of checking it.
    pub(super) fn shown(
        &mut self,
        number: u16,
        output: Digest,
        spec: &TrainSpec,
        status: &mut JobStatus,
    ) -> Option<Task> {
        let made = self.open.get(&number)?.made;
        if output == made.began {
            return self.another(number, spec);
        }
        self.reject(number, status);
        None
    }

    /// A check of what an agent made, by somebody else who did not check it yet.
    fn another(&mut self, number: u16, spec: &TrainSpec) -> Option<Task> {
        let open = self.open.get(&number)?;
        let Made { maker, state, round, first, steps, began, delta } = open.made;
        let other = |worker: &&WorkerId| worker.node != maker.node && !open.against.contains(&worker.node);
        let others: Vec<WorkerId> = self.able.iter().filter(other).copied().collect();
        // By turns, so that no agent has all the trouble.
        let Some(checker) = others.get(usize::from(number) % others.len().max(1)).copied() else {
            self.open.remove(&number);
            return None;
        };
        self.disturbed.insert(checker);
        let shard = Shard::Check { state, spec: spec.clone(), round, first, steps, began, delta };
        let mut task = Task::pinned(Slot::Check(number), shard, checker);
        task.avoid_nodes.extend(open.against.iter().copied().chain([maker.node]));
        Some(task)
    }

    /// `checker` trained the slice again; the task of checking that, if it is in doubt.
    pub(super) fn checked(
        &mut self,
        number: u16,
        checker: NodeId,
        distance: Option<i64>,
        spec: &TrainSpec,
        status: &mut JobStatus,
    ) -> Option<Task> {
        let open = self.open.get_mut(&number)?;
        let maker = open.made.maker;
        match distance.filter(|_| checker != maker.node) {
            None => {
                self.open.remove(&number);
                None
            }
            Some(distance) if distance <= CHECK_DISTANCE_MAX => {
                self.open.remove(&number);
                let honest = self.honest.entry(maker.node).or_default();
                *honest = honest.saturating_add(1);
                status.confirmed = status.confirmed.saturating_add(1);
                None
            }
            Some(_) => {
                open.against.insert(checker);
                let needed = if self.able.len() > 2 { 2 } else { 1 };
                if open.against.len() < needed {
                    return self.another(number, spec);
                }
                self.reject(number, status);
                None
            }
        }
    }

    /// A task came back unfinished. Who cannot show what it began with may have started anew, but not every time.
    pub(super) fn lost(&mut self, slot: Slot, reason: Option<&str>, status: &mut JobStatus) {
        let (Slot::Show(number) | Slot::Check(number)) = slot else { return };
        if matches!(slot, Slot::Show(_)) && reason.is_some() {
            self.not_shown(number, status);
        }
        self.open.remove(&number);
    }

    /// Who was to check says that nobody gave it an input.
    pub(super) fn missed(&mut self, number: u16, input: Digest, status: &mut JobStatus) {
        if self.open.get(&number).is_some_and(|open| open.made.began == input) {
            self.not_shown(number, status);
        }
    }

    fn not_shown(&mut self, number: u16, status: &mut JobStatus) {
        let Some(open) = self.open.get(&number) else { return };
        let times = self.unshown.entry(open.made.maker.node).or_default();
        *times = times.saturating_add(1);
        if *times >= UNSHOWN_MAX {
            self.reject(number, status);
        }
    }

    fn reject(&mut self, number: u16, status: &mut JobStatus) {
        let Some(open) = self.open.remove(&number) else { return };
        let maker = open.made.maker.node;
        self.honest.remove(&maker);
        status.rejected = status.rejected.saturating_add(1);
        if status.refused.len() < REFUSED_MAX && !status.refused.contains(&maker) {
            status.refused.push(maker);
        }
    }
}
