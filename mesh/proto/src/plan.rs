//! How a job is cut into shards: what to grant next, given what came back.
//!
//! A plan knows slots and digests; it never knows leases, agents' health or time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::ids::{Digest, NodeId};
use crate::job::{ServeSpec, Shard, TrainSpec};
use crate::limits::{ATTEMPTS_MAX, PACE_NOISE, REFUSED_MAX};
use crate::links::Links;
use crate::message::{JobStatus, Phase, StageAt, Trained, bounded_reason, cover};
use crate::placement::{Hand, NoRoom, Seat, place, substitute};

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

/// What came of a finished shard.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// Its result.
    pub output: Digest,
    /// Of an outer step: the pseudo-gradients that were not what they should be.
    pub refused: &'a [Digest],
    /// The loss, if the shard measures one.
    pub loss_micronats: Option<i64>,
    /// Tokens on which it was measured.
    pub tokens: u64,
    /// From the grant to the receipt, in milliseconds.
    pub took_ms: u64,
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
    /// Sequences of the data that earlier rounds took.
    samples: u64,
    /// Who made which pseudo-gradient of this round, from which sequences.
    makers: BTreeMap<Digest, (NodeId, Range<u64>)>,
    /// Microseconds of an inner step, fetching included, averaged over each agent's last slices.
    pace: BTreeMap<NodeId, u64>,
    /// Which pseudo-gradient was refused, by whom.
    accused: BTreeMap<Digest, BTreeSet<NodeId>>,
}

#[derive(Debug)]
enum TrainStep {
    Idle,
    Init,
    Training {
        of: u16,
        samples: u64,
        slices: BTreeMap<u16, Slice>,
        deltas: BTreeMap<u16, Digest>,
    },
    Merging {
        out: BTreeSet<NodeId>,
        results: BTreeMap<NodeId, Digest>,
        failure: Option<String>,
        samples: u64,
        /// Of a result: its loss on so many tokens.
        judged: Vec<(Digest, i64, u64)>,
    },
}

/// One agent's part of a round's data.
#[derive(Clone, Copy, Debug)]
struct Slice {
    first: u64,
    steps: u32,
}

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

impl TrainPlan {
    /// Starts at the beginning or where an earlier coordinator left off.
    pub fn new(spec: TrainSpec, before: Option<Trained>) -> Self {
        let (round, state, samples) =
            before.map_or((0, None, 0), |before| (before.round, Some(before.state), before.samples));
        Self {
            spec,
            round,
            state,
            samples,
            pace: BTreeMap::new(),
            step: TrainStep::Idle,
            failed_merges: 0,
            makers: BTreeMap::new(),
            accused: BTreeMap::new(),
        }
    }

    /// The tasks of the next step, over the agents at hand (at least one) that have the memory; none, and a note, if
    /// nobody has. Whoever gave a pseudo-gradient that most of the others refused gets none, unless nobody else is there.
    pub fn tasks(&mut self, hands: &[Hand], status: &mut JobStatus) -> Vec<Task> {
        let able: Vec<Hand> =
            hands.iter().filter(|hand| hand.memory_bytes >= self.spec.memory_bytes()).copied().collect();
        if able.is_empty() {
            status.note = Some(self.no_memory(hands));
            return Vec::new();
        }
        status.note = None;
        let trusted: Vec<Hand> =
            able.iter().filter(|hand| !status.refused.contains(&hand.node)).copied().collect();
        let mut tasks = self.tasks_for(if trusted.is_empty() { &able } else { &trusted });
        for task in &mut tasks {
            task.avoid.extend(&status.refused);
        }
        tasks
    }

    /// Why nobody can train it, with the sum.
    fn no_memory(&self, hands: &[Hand]) -> String {
        let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
        let most = hands.iter().map(|hand| hand.memory_bytes).max().unwrap_or(0);
        bounded_reason(&format!(
            "training needs {} MB on each agent: {} MB for weights, gradients and moments, {} MB for one sequence of {} tokens; the largest offer has {} MB\nhint: a shorter context, an adapter (method = \"lora\") or a smaller model needs less",
            megabytes(self.spec.memory_bytes()),
            megabytes(self.spec.weights_bytes()),
            megabytes(self.spec.sequence_bytes()),
            self.spec.context,
            megabytes(most)
        ))
    }

    fn tasks_for(&mut self, hands: &[Hand]) -> Vec<Task> {
        let Some(state) = self.state else {
            self.step = TrainStep::Init;
            return vec![Task::new(Slot::Init, Shard::Init { spec: self.spec.clone() })];
        };
        let complete = match &self.step {
            TrainStep::Training { of, deltas, .. } if deltas.len() == usize::from(*of) => {
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

    /// A slice for each agent; together they are the next sequences of the job's order, none left out.
    fn train_tasks(&mut self, state: Digest, hands: &[Hand]) -> Vec<Task> {
        let of = u16::try_from(hands.len()).unwrap_or(u16::MAX);
        let fastest = hands.iter().filter_map(|hand| self.pace.get(&hand.node)).min().copied();
        let mut slices = BTreeMap::new();
        let mut tasks = Vec::new();
        let mut first = self.samples;
        for (index, hand) in (0..of).zip(hands) {
            let steps = self.steps(self.pace.get(&hand.node).copied(), fastest);
            slices.insert(index, Slice { first, steps });
            let spec = self.spec.clone();
            let shard = Shard::Train { state, spec, round: self.round, index, of, first, steps };
            tasks.push(Task::pinned(Slot::Train(index), shard, hand.node));
            first = first.saturating_add(self.sequences(steps));
        }
        self.step = TrainStep::Training { of, samples: first, slices, deltas: BTreeMap::new() };
        self.makers.clear();
        tasks
    }

    /// Fewer steps for who is slower, so that all end together (DyLU, Liu et al. 2024). A small difference is noise.
    fn steps(&self, pace: Option<u64>, fastest: Option<u64>) -> u32 {
        let (Some(pace), Some(fastest)) = (pace, fastest) else { return self.spec.inner_steps };
        if fastest.saturating_mul(PACE_NOISE.1) >= pace.saturating_mul(PACE_NOISE.0) {
            return self.spec.inner_steps;
        }
        let steps = u64::from(self.spec.inner_steps).saturating_mul(fastest) / pace.max(1);
        u32::try_from(steps).unwrap_or(u32::MAX).clamp(1, self.spec.inner_steps)
    }

    fn sequences(&self, steps: u32) -> u64 {
        u64::from(steps).saturating_mul(u64::from(self.spec.batch))
    }

    fn merge_tasks(&mut self, state: Digest, deltas: Vec<Digest>, hands: &[Hand]) -> Vec<Task> {
        let TrainStep::Training { samples, .. } = self.step else { return Vec::new() };
        self.step = TrainStep::Merging {
            out: hands.iter().map(|hand| hand.node).collect(),
            results: BTreeMap::new(),
            failure: None,
            samples,
            judged: Vec::new(),
        };
        let of = u16::try_from(hands.len()).unwrap_or(u16::MAX);
        let shard = |index| Shard::Merge {
            state,
            deltas: deltas.clone(),
            spec: self.spec.clone(),
            round: self.round,
            index,
            of,
        };
        let task =
            |(index, hand): (u16, &Hand)| Task::pinned(Slot::Merge(hand.node), shard(index), hand.node);
        (0..of).zip(hands).map(task).collect()
    }

    /// A shard was finished by `agent`.
    pub fn completed(
        &mut self,
        slot: Slot,
        agent: NodeId,
        outcome: Outcome<'_>,
        status: &mut JobStatus,
    ) -> Next {
        let Outcome { output, refused, loss_micronats, tokens, took_ms } = outcome;
        match (&mut self.step, slot) {
            (TrainStep::Init, Slot::Init) => {
                self.state = Some(output);
                status.state = Some(output);
                status.start_loss_micronats = loss_micronats;
                status.held_out_micronats = loss_micronats;
                self.step = TrainStep::Idle;
                Next::Plan
            }
            (TrainStep::Training { of, slices, deltas, .. }, Slot::Train(index)) => {
                let Some(Slice { first, steps }) = slices.get(&index).copied() else { return Next::Wait };
                deltas.insert(index, output);
                let sequences = u64::from(steps).saturating_mul(u64::from(self.spec.batch));
                self.makers.insert(output, (agent, first..first.saturating_add(sequences)));
                // Other work on the machine makes single slices slow or quick.
                let pace = took_ms.saturating_mul(1_000) / u64::from(steps.max(1));
                let before = self.pace.get(&agent).copied().unwrap_or(pace);
                self.pace.insert(agent, before.saturating_mul(3).saturating_add(pace) / 4);
                if deltas.len() == usize::from(*of) { Next::Plan } else { Next::Wait }
            }
            (TrainStep::Merging { out, results, judged, .. }, Slot::Merge(node)) => {
                out.remove(&node);
                results.insert(agent, output);
                for delta in refused.iter().filter(|delta| self.makers.contains_key(delta)) {
                    self.accused.entry(*delta).or_default().insert(agent);
                }
                if let Some(loss) = loss_micronats {
                    judged.push((output, loss, tokens));
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
        let TrainStep::Merging { out, results, failure, samples, judged } = &self.step else {
            return Next::Wait;
        };
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
        // A single merger may lie about another's work; most of them do not.
        let agreed = results.len() / 2;
        for (delta, accusers) in std::mem::take(&mut self.accused) {
            let Some((maker, sequences)) = self.makers.get(&delta).filter(|_| accusers.len() > agreed) else {
                continue;
            };
            if status.refused.len() < REFUSED_MAX && !status.refused.contains(maker) {
                status.refused.push(*maker);
            }
            if status.left_out.len() < REFUSED_MAX {
                status.left_out.push((sequences.start, sequences.end));
            }
        }
        self.samples = *samples;
        if let Some(loss) = mean(judged.iter().filter(|(of, ..)| of == state)) {
            status.held_out_micronats = Some(loss);
        }
        status.samples = self.samples;
        status.digests_equal &= votes.len() == 1;
        self.state = Some(*state);
        self.round += 1;
        self.step = TrainStep::Idle;
        status.state = self.state;
        status.round = self.round;
        if self.round >= self.spec.rounds { Next::Done } else { Next::Plan }
    }
}

/// The mean of losses, each over so many tokens; none of nothing.
fn mean<'a>(judged: impl Iterator<Item = &'a (Digest, i64, u64)>) -> Option<i64> {
    let (sum, tokens) = judged.fold((0i128, 0i128), |(sum, all), (_, loss, tokens)| {
        (sum + i128::from(*loss) * i128::from(*tokens), all + i128::from(*tokens))
    });
    sum.checked_div(tokens).and_then(|mean| i64::try_from(mean).ok())
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
            Task::pinned(Slot::Stage(index), shard, seat.node)
        };
        (0..of).zip(&self.seats).map(task).collect()
    }

    /// The agent that is to take a stage: the one for whom it was planned, or the best of those that are left.
    pub fn seat(&mut self, task: &Task, hands: &[Hand], links: &Links) -> Option<NodeId> {
        let Slot::Stage(index) = task.slot else { return None };
        let index = usize::from(index);
        let planned = task.pinned.filter(|pinned| hands.iter().any(|hand| hand.node == *pinned));
        let node = planned
            .or_else(|| substitute(&self.spec, self.owner, &self.seats, index, hands, &task.avoid, links))?;
        self.seats.get_mut(index)?.node = node;
        Some(node)
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
            .map(|stage| Seat { node: stage.node, start: stage.start, end: stage.end })
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
            seats[index].node =
                substitute(&self.spec, self.owner, &seats, index, &hands, &BTreeSet::new(), links)?;
            self.takes(&seats[index], &mut hands);
        }
        Some(seats)
    }

    /// Whether the agent of `seat` is here and has the memory, which is then taken from it.
    fn takes(&self, seat: &Seat, hands: &mut [Hand]) -> bool {
        let bytes = self.spec.memory_bytes(seat.start, seat.end);
        let hand = hands.iter_mut().find(|hand| hand.node == seat.node && hand.memory_bytes >= bytes);
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
