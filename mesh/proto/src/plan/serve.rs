//! Serving: a pipeline of stages, each kept on a worker until it is released.

use std::collections::BTreeSet;

use super::{Next, Slot, Task};
use crate::ids::{NodeId, WorkerId};
use crate::job::{ServeSpec, Shard};
use crate::links::Links;
use crate::message::{JobStatus, Phase, StageAt, bounded_reason, cover};
use crate::placement::{Hand, NoRoom, Seat, place, substitute};

/// A pipeline of stages.
#[derive(Debug)]
pub struct ServePlan {
    spec: ServeSpec,
    owner: NodeId,
    /// The pipeline under an earlier coordinator, until it is planned anew.
    before: Vec<StageAt>,
    /// Where each stage is, or was last.
    seats: Vec<Seat>,
    /// The stages that can serve.
    ready: Vec<Option<StageAt>>,
    /// Those among whom no place was found; there is no use in trying again with the same.
    refused: Vec<Hand>,
}

impl ServePlan {
    /// No stage is placed yet. `before` is the pipeline that an earlier coordinator had, or empty.
    pub fn new(spec: ServeSpec, owner: NodeId, before: Vec<StageAt>) -> Self {
        let before = if cover(&before, spec.size.layers) { before } else { Vec::new() };
        Self { spec, owner, before, seats: Vec::new(), ready: Vec::new(), refused: Vec::new() }
    }

    /// Places every stage: where it was before, as far as its agent is here, or where it is best. Without
    /// room there is no task, and the status says what is missing.
    pub fn tasks(&mut self, hands: &[Hand], links: &Links, status: &mut JobStatus) -> Vec<Task> {
        if self.refused == hands {
            return Vec::new();
        }
        let before = std::mem::take(&mut self.before);
        let placed = match self.kept(&before, hands, links) {
            Some(seats) => Ok(seats),
            None => place(&self.spec, self.owner, hands, links),
        };
        self.seats = match placed {
            Ok(seats) => seats,
            Err(error) => {
                self.refuse(hands, &error, status);
                Vec::new()
            }
        };
        self.ready = vec![None; self.seats.len()];
        let of = u16::try_from(self.seats.len()).unwrap_or(u16::MAX);
        if of > 0 {
            status.note = None;
        }
        let task = |(index, seat): (u16, &Seat)| {
            let shard = Shard::Stage { spec: self.spec.clone(), start: seat.start, end: seat.end, index, of };
            Task::pinned(Slot::Stage(index), shard, seat.worker)
        };
        (0..of).zip(&self.seats).map(task).collect()
    }

    /// The worker that is to take a stage: the one for whom it was planned, or the best of those that are left.
    pub fn seat(&mut self, task: &Task, hands: &[Hand], links: &Links) -> Option<WorkerId> {
        let Slot::Stage(index) = task.slot else { return None };
        let index = usize::from(index);
        let planned = task.pinned.filter(|pinned| hands.iter().any(|hand| hand.worker == *pinned));
        let worker = planned
            .or_else(|| substitute(&self.spec, self.owner, &self.seats, index, hands, &task.avoid, links))?;
        self.seats.get_mut(index)?.worker = worker;
        Some(worker)
    }

    /// A stage found no seat. Whether all would find one if the others were given up: `hands` are without
    /// what this job holds now.
    pub fn would_fit_anew(&mut self, hands: &[Hand], links: &Links, status: &mut JobStatus) -> bool {
        if self.refused == hands {
            return false;
        }
        match place(&self.spec, self.owner, hands, links) {
            Ok(_) => true,
            Err(error) => {
                self.refuse(hands, &error, status);
                false
            }
        }
    }

    /// A stage is loaded and can serve. Returns whether the pipeline is complete by it.
    pub fn ready(&mut self, slot: Slot, stage: StageAt, status: &mut JobStatus) -> bool {
        let Slot::Stage(index) = slot else { return false };
        let Some(place) = self.ready.get_mut(usize::from(index)) else { return false };
        let news = *place != Some(stage);
        *place = Some(stage);
        self.publish(status);
        news && !status.stages.is_empty()
    }

    /// A stage came back: place it again, elsewhere.
    pub fn lost(&mut self, slot: Slot, status: &mut JobStatus) -> Next {
        if let Slot::Stage(index) = slot
            && let Some(place) = self.ready.get_mut(usize::from(index))
        {
            *place = None;
        }
        self.publish(status);
        Next::Retry
    }

    /// The seats of an earlier pipeline, with others in place of those who are gone; none if nobody is left
    /// or a layer finds no room.
    fn kept(&self, before: &[StageAt], hands: &[Hand], links: &Links) -> Option<Vec<Seat>> {
        let mut hands = hands.to_vec();
        let mut seats: Vec<Seat> = before
            .iter()
            .map(|stage| Seat { worker: stage.worker_id(), start: stage.start, end: stage.end })
            .collect();
        let mut lost = Vec::new();
        for (index, seat) in seats.iter().enumerate() {
            if !self.takes(seat, &mut hands) {
                lost.push(index);
            }
        }
        if lost.len() == seats.len() {
            return None;
        }
        for index in lost {
            seats[index].worker =
                substitute(&self.spec, self.owner, &seats, index, &hands, &BTreeSet::new(), links)?;
            self.takes(&seats[index], &mut hands);
        }
        Some(seats)
    }

    /// Whether the worker of `seat` is here and has the memory, which is then taken from it.
    fn takes(&self, seat: &Seat, hands: &mut [Hand]) -> bool {
        let bytes = self.spec.memory_bytes(seat.start, seat.end);
        let hand = hands.iter_mut().find(|hand| hand.worker == seat.worker && hand.memory_bytes >= bytes);
        hand.map(|hand| hand.memory_bytes -= bytes).is_some()
    }

    fn refuse(&mut self, hands: &[Hand], error: &NoRoom, status: &mut JobStatus) {
        self.refused = hands.to_vec();
        status.note = Some(bounded_reason(&error.to_string()));
    }

    fn publish(&self, status: &mut JobStatus) {
        let ready: Option<Vec<StageAt>> = self.ready.iter().copied().collect();
        status.stages = ready.unwrap_or_default();
        status.phase = if status.stages.is_empty() { Phase::Waiting } else { Phase::Running };
        if !status.stages.is_empty() {
            status.note = None;
        }
    }
}
