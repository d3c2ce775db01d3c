//! How a job is cut into shards: what to grant next, given what came back.
//!
//! A plan knows slots and digests; it never knows leases, agents' health or time.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{Digest, NodeId};
use crate::job::{ServeSpec, Shard, TrainSpec};
use crate::limits::ATTEMPTS_MAX;
use crate::message::{JobStatus, Phase, Resume, StageAt};

/// The place of a shard in its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// The first weights.
    Init,
    /// One slice of a round's data.
    Train(u16),
    /// The outer step, on one given agent.
    Merge(NodeId),
    /// One stage of a pipeline.
    Stage(u16),
}

/// A shard that wants an agent.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its place.
    pub slot: Slot,
    /// The shard.
    pub shard: Shard,
    /// The only agent that may take it.
    pub pinned: Option<NodeId>,
    /// Agents on which it failed already.
    pub avoid: BTreeSet<NodeId>,
    /// How often an agent failed it; an agent that vanished did not fail.
    pub attempts: u8,
}

impl Task {
    fn new(slot: Slot, shard: Shard) -> Self {
        Self { slot, shard, pinned: None, avoid: BTreeSet::new(), attempts: 0 }
    }

    fn pinned(slot: Slot, shard: Shard, node: NodeId) -> Self {
        Self { pinned: Some(node), ..Self::new(slot, shard) }
    }
}

/// An agent as a plan sees it.
#[derive(Clone, Copy, Debug)]
pub struct Hand {
    /// Who.
    pub node: NodeId,
    /// How fast, in MFLOP/s.
    pub speed: u64,
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
    /// The job is finished.
    Done,
    /// The job cannot go on.
    Fail(String),
}

/// The plan of one job.
#[derive(Debug)]
pub enum Plan {
    /// Training by DiLoCo.
    Train(TrainPlan),
    /// Serving.
    Serve(ServePlan),
}

/// Init, then rounds of train and merge.
#[derive(Debug)]
pub struct TrainPlan {
    spec: TrainSpec,
    round: u32,
    state: Option<Digest>,
    step: TrainStep,
    /// Outer steps in a row that failed on every agent.
    failed_merges: u8,
}

#[derive(Debug)]
enum TrainStep {
    Idle,
    Init,
    Training { of: u16, deltas: BTreeMap<u16, Digest> },
    Merging { out: BTreeSet<NodeId>, results: BTreeMap<NodeId, Digest>, failure: Option<String> },
}

/// A pipeline of stages.
#[derive(Debug)]
pub struct ServePlan {
    spec: ServeSpec,
    stages: Vec<Option<StageAt>>,
}

impl TrainPlan {
    /// Starts at the beginning or where an earlier coordinator left off.
    pub fn new(spec: TrainSpec, resume: Option<Resume>) -> Self {
        let (round, state) = resume.map_or((0, None), |resume| (resume.round, Some(resume.state)));
        Self { spec, round, state, step: TrainStep::Idle, failed_merges: 0 }
    }

    /// The tasks of the next step, over the agents at hand (at least one).
    pub fn tasks(&mut self, hands: &[Hand]) -> Vec<Task> {
        let Some(state) = self.state else {
            self.step = TrainStep::Init;
            let shard = Shard::Init { shape: self.spec.shape, seed: self.spec.seed, data: self.spec.data };
            return vec![Task::new(Slot::Init, shard)];
        };
        let complete = match &self.step {
            TrainStep::Training { of, deltas } if deltas.len() == usize::from(*of) => {
                Some(deltas.values().copied().collect())
            }
            TrainStep::Training { .. } | TrainStep::Idle | TrainStep::Init | TrainStep::Merging { .. } => {
                None
            }
        };
        match complete {
            Some(deltas) => self.merge_tasks(state, deltas, hands),
            None => self.train_tasks(state, hands),
        }
    }

    fn train_tasks(&mut self, state: Digest, hands: &[Hand]) -> Vec<Task> {
        let of = u16::try_from(hands.len()).unwrap_or(u16::MAX);
        self.step = TrainStep::Training { of, deltas: BTreeMap::new() };
        let shard = |index| Shard::Train { state, spec: self.spec.clone(), round: self.round, index, of };
        (0..of).map(|index| Task::new(Slot::Train(index), shard(index))).collect()
    }

    fn merge_tasks(&mut self, state: Digest, deltas: Vec<Digest>, hands: &[Hand]) -> Vec<Task> {
        self.step = TrainStep::Merging {
            out: hands.iter().map(|hand| hand.node).collect(),
            results: BTreeMap::new(),
            failure: None,
        };
        let shard = |evaluate| Shard::Merge {
            state,
            deltas: deltas.clone(),
            spec: self.spec.clone(),
            round: self.round,
            evaluate,
        };
        let task = |(place, hand): (usize, &Hand)| {
            Task::pinned(Slot::Merge(hand.node), shard(place == 0), hand.node)
        };
        hands.iter().enumerate().map(task).collect()
    }

    /// A shard was finished by `agent`: its result, and the loss if the shard measures one.
    pub fn completed(
        &mut self,
        slot: Slot,
        agent: NodeId,
        output: Digest,
        loss_micronats: Option<i64>,
        status: &mut JobStatus,
    ) -> Next {
        match (&mut self.step, slot) {
            (TrainStep::Init, Slot::Init) => {
                self.state = Some(output);
                status.state = Some(output);
                status.start_loss_micronats = loss_micronats;
                status.held_out_micronats = loss_micronats;
                self.step = TrainStep::Idle;
                Next::Plan
            }
            (TrainStep::Training { of, deltas }, Slot::Train(index)) => {
                deltas.insert(index, output);
                if deltas.len() == usize::from(*of) { Next::Plan } else { Next::Wait }
            }
            (TrainStep::Merging { out, results, .. }, Slot::Merge(node)) => {
                out.remove(&node);
                results.insert(agent, output);
                if loss_micronats.is_some() {
                    status.held_out_micronats = loss_micronats;
                }
                self.close_merge(status)
            }
            _ => Next::Wait,
        }
    }

    /// A shard came back unfinished: its agent vanished, or failed with `reason`.
    pub fn lost(&mut self, slot: Slot, reason: Option<&str>, status: &mut JobStatus) -> Next {
        match (&mut self.step, slot) {
            (TrainStep::Merging { out, failure, .. }, Slot::Merge(node)) => {
                out.remove(&node);
                if let Some(reason) = reason {
                    *failure = Some(reason.to_owned());
                }
                self.close_merge(status)
            }
            _ => Next::Retry,
        }
    }

    /// Members that computed the present state, as far as the last merge tells.
    fn close_merge(&mut self, status: &mut JobStatus) -> Next {
        let TrainStep::Merging { out, results, failure } = &self.step else { return Next::Wait };
        if !out.is_empty() {
            return Next::Wait;
        }
        let mut votes: BTreeMap<Digest, usize> = BTreeMap::new();
        for digest in results.values() {
            *votes.entry(*digest).or_default() += 1;
        }
        // Ties go to the greater digest: any fixed rule will do, the disagreement is reported.
        let Some((state, _)) = votes.iter().max_by_key(|(digest, count)| (**count, **digest)) else {
            // Every agent was lost in the outer step: repeat the round from the state before it, since
            // the pseudo-gradients may be gone with those who made them. But not for ever.
            let failure = failure.clone();
            self.step = TrainStep::Idle;
            let Some(reason) = failure else { return Next::Plan };
            self.failed_merges += 1;
            return if self.failed_merges < ATTEMPTS_MAX {
                Next::Plan
            } else {
                Next::Fail(format!("the outer step failed on every agent {ATTEMPTS_MAX} times: {reason}"))
            };
        };
        self.failed_merges = 0;
        status.digests_equal &= votes.len() == 1;
        self.state = Some(*state);
        self.round += 1;
        self.step = TrainStep::Idle;
        status.state = self.state;
        status.round = self.round;
        if self.round >= self.spec.rounds { Next::Done } else { Next::Plan }
    }
}

impl ServePlan {
    /// No stage is placed yet.
    pub fn new(spec: ServeSpec) -> Self {
        Self { spec, stages: Vec::new() }
    }

    /// Splits the layers over the fastest agents, in proportion to speed.
    pub fn tasks(&mut self, hands: &[Hand]) -> Vec<Task> {
        let mut hands = hands.to_vec();
        hands.sort_by_key(|hand| (std::cmp::Reverse(hand.speed), hand.node));
        hands.truncate(usize::from(self.spec.stages_max.min(self.spec.shape.layers)));
        let counts = split_layers(self.spec.shape.layers, &hands);
        self.stages = vec![None; counts.len()];
        let of = u16::try_from(counts.len()).unwrap_or(u16::MAX);
        let mut start = 0;
        let mut tasks = Vec::new();
        for ((index, count), hand) in (0..of).zip(counts).zip(&hands) {
            let end = start + count;
            let shard =
                Shard::Stage { model: self.spec.model, shape: self.spec.shape, start, end, index, of };
            // Preferred, not pinned: a stage whose agent dies goes to another.
            tasks.push(Task::pinned(Slot::Stage(index), shard, hand.node));
            start = end;
        }
        tasks
    }

    /// A stage is loaded and can serve.
    pub fn ready(&mut self, slot: Slot, stage: StageAt, status: &mut JobStatus) {
        if let Slot::Stage(index) = slot
            && let Some(place) = self.stages.get_mut(usize::from(index))
        {
            *place = Some(stage);
        }
        self.publish(status);
    }

    /// A stage came back: place it again, elsewhere.
    pub fn lost(&mut self, slot: Slot, status: &mut JobStatus) -> Next {
        if let Slot::Stage(index) = slot
            && let Some(place) = self.stages.get_mut(usize::from(index))
        {
            *place = None;
        }
        self.publish(status);
        Next::Retry
    }

    fn publish(&self, status: &mut JobStatus) {
        let ready: Option<Vec<StageAt>> = self.stages.iter().copied().collect();
        status.stages = ready.unwrap_or_default();
        status.phase = if status.stages.is_empty() { Phase::Waiting } else { Phase::Running };
    }
}

/// Layers per agent: at least one each, the rest in proportion to speed by largest remainder.
fn split_layers(layers: u16, hands: &[Hand]) -> Vec<u16> {
    let count = hands.len() as u64;
    let spare = u64::from(layers).saturating_sub(count);
    let speed = |hand: &Hand| u128::from(hand.speed.max(1));
    let total: u128 = hands.iter().map(speed).sum::<u128>().max(1);
    let mut shares: Vec<(u64, u128)> = hands
        .iter()
        .map(|hand| {
            let exact = u128::from(spare) * speed(hand);
            (1 + u64::try_from(exact / total).unwrap_or(spare), exact % total)
        })
        .collect();
    let given: u64 = shares.iter().map(|share| share.0 - 1).sum();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by_key(|&place| (std::cmp::Reverse(shares[place].1), place));
    let left = usize::try_from(spare.saturating_sub(given)).unwrap_or(0);
    for &place in order.iter().take(left) {
        shares[place].0 += 1;
    }
    shares.iter().map(|share| u16::try_from(share.0).unwrap_or(layers)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_layer_has_exactly_one_agent(layers in 1u16..129, speeds in prop::collection::vec(0u64..u64::MAX, 1..9)) {
            let hands: Vec<Hand> = speeds.iter().enumerate()
                .map(|(place, &speed)| Hand { node: NodeId([u8::try_from(place).unwrap(); 32]), speed })
                .take(usize::from(layers)).collect();
            let counts = split_layers(layers, &hands);
            prop_assert_eq!(counts.iter().map(|&count| u32::from(count)).sum::<u32>(), u32::from(layers));
            prop_assert!(counts.iter().all(|&count| count >= 1));
        }
    }
}
