//! Training by DiLoCo: the first weights, then rounds of slices and outer steps.
//!
//! A slice is trained by one worker, or by a group that holds the model together. Where no worker alone can hold it, groups
//! also measure the loss after every outer step.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::Range;

use super::checks::{Checks, Made};
use super::{Next, Outcome, Slot, Task, ablest};
use crate::group::{Team, may_be_split, teams};
use crate::ids::{Digest, Millis, NodeId, WorkerId};
use crate::job::{Part, Shard, TrainSpec};
use crate::limits::{ATTEMPTS_MAX, PACE_NOISE, REFUSED_MAX, ROUNDS_SAT_OUT_MAX};
use crate::links::Links;
use crate::message::{JobStatus, Trained, bounded_reason};
use crate::placement::{Hand, crowd};

/// Init, then rounds of train and merge.
#[derive(Debug)]
pub struct TrainPlan {
    spec: TrainSpec,
    owner: NodeId,
    round: u32,
    state: Option<Digest>,
    /// Round, state and samples before the last outer step.
    before: Option<(u32, Digest, u64)>,
    /// Nobody measured the loss of `state`.
    unjudged: bool,
    step: TrainStep,
    /// Outer steps, or tries to measure a loss, in a row that failed on every agent.
    failures: u8,
    /// Sequences of the data that earlier rounds took.
    samples: u64,
    /// Who made which pseudo-gradient of this round, from which sequences.
    makers: BTreeMap<Digest, (NodeId, Range<u64>)>,
    /// Microseconds of an inner step, fetching included, averaged over each team's last slices, by its leader.
    pace: BTreeMap<WorkerId, u64>,
    /// Which pseudo-gradient was refused, by whom.
    accused: BTreeMap<Digest, BTreeSet<NodeId>>,
    /// Workers that failed in training.
    failed: BTreeMap<WorkerId, Failed>,
    checks: Checks,
}

/// A worker failed, and does nothing for a while that others can do: twice as long each time.
#[derive(Clone, Copy, Debug)]
struct Failed {
    /// In a row.
    times: u32,
    /// The round from which it may try again.
    until: u32,
}

#[derive(Debug)]
enum TrainStep {
    Idle,
    Init,
    Training {
        samples: u64,
        slices: BTreeMap<u16, Slice>,
        deltas: BTreeMap<(u16, u16), Digest>,
    },
    Merging {
        /// Agents that are not done, and which of their workers could do it if the one at it fails.
        out: BTreeMap<NodeId, Vec<WorkerId>>,
        results: BTreeMap<NodeId, Digest>,
        failure: Option<String>,
        /// Pseudo-gradients that somebody could not get, and who.
        withheld: BTreeMap<Digest, BTreeSet<NodeId>>,
        samples: u64,
        /// Of a result: its loss on so many tokens.
        judged: Vec<(Digest, i64, u64)>,
    },
    Judging {
        /// Members of groups that are not done.
        out: BTreeSet<(u16, u16)>,
        /// Loss, on so many tokens.
        judged: Vec<(Digest, i64, u64)>,
    },
}

/// One team's part of a round's data.
#[derive(Clone, Copy, Debug)]
struct Slice {
    first: u64,
    steps: u32,
    /// Members of the team.
    stages: u16,
    /// How often a group failed it; one that lost a member did not fail.
    attempts: u8,
}

impl TrainPlan {
    /// Starts at the beginning or where an earlier coordinator left off.
    pub fn new(spec: TrainSpec, owner: NodeId, before: Option<Trained>) -> Self {
        let unjudged = before.as_ref().is_some_and(|before| before.held_out_micronats.is_none());
        let (round, state, samples) =
            before.map_or((0, None, 0), |before| (before.round, Some(before.state), before.samples));
        Self {
            spec,
            owner,
            round,
            state,
            before: None,
            unjudged,
            samples,
            pace: BTreeMap::new(),
            step: TrainStep::Idle,
            failures: 0,
            makers: BTreeMap::new(),
            accused: BTreeMap::new(),
            failed: BTreeMap::new(),
            checks: Checks::default(),
        }
    }

    /// The tasks of the next step, over the workers at hand (at least one); none, and a note, if neither one of them nor
    /// a group has the memory. Whoever gave a pseudo-gradient that most of the others refused gets none, and who failed
    /// lately trains nothing, unless nobody else is there.
    pub fn tasks(&mut self, now: Millis, hands: &[Hand], links: &Links, status: &mut JobStatus) -> Vec<Task> {
        let trusted: Vec<Hand> =
            hands.iter().filter(|hand| !status.refused.contains(&hand.worker.node)).copied().collect();
        let trusted = if trusted.is_empty() { hands } else { &trusted };
        let waits =
            |hand: &Hand| self.failed.get(&hand.worker).is_some_and(|failed| self.round < failed.until);
        let sound: Vec<Hand> = trusted.iter().filter(|hand| !waits(hand)).copied().collect();
        let mut formed = [sound.as_slice(), trusted, hands]
            .into_iter()
            .map(|hands| teams(&self.spec, self.owner, hands, links));
        let Some(teams) = formed.find(|teams| !teams.is_empty()) else {
            status.note = Some(self.no_memory(hands));
            return Vec::new();
        };
        status.note = None;
        let mut tasks = if self.is_finished() { Vec::new() } else { self.tasks_for(now, &teams, trusted) };
        let able = if sound.is_empty() { trusted } else { sound.as_slice() };
        let able = ablest(able).into_values().filter_map(|workers| workers.first().copied());
        let able = able.filter(|hand| self.can_judge(hand)).map(|hand| hand.worker).collect();
        tasks.extend(self.checks.tasks(&self.spec, able));
        for task in &mut tasks {
            task.avoid_nodes.extend(&status.refused);
        }
        tasks
    }

    /// Why nobody can train it, with the sum.
    fn no_memory(&self, hands: &[Hand]) -> String {
        let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
        let most = hands.iter().map(|hand| hand.memory_bytes).max().unwrap_or(0);
        let all = hands.iter().fold(0u64, |sum, hand| sum.saturating_add(hand.memory_bytes));
        let spec = &self.spec;
        let weights = spec.weights_bytes(&spec.layers());
        let group = if !may_be_split(spec) && spec.tied() {
            ", and a model whose head is its embedding cannot be split among them".to_owned()
        } else {
            format!(", and {} together have too little with {} MB", crowd(hands), megabytes(all))
        };
        bounded_reason(&format!(
            "training needs {} MB on one device: {} MB for weights, gradients and moments, {} MB for one sequence of {} tokens; the largest offer has {} MB{group}\nhint: a shorter context, an adapter (method = \"lora\") or a smaller model needs less",
            megabytes(spec.memory_bytes()),
            megabytes(weights),
            megabytes(spec.memory_bytes().saturating_sub(weights)),
            spec.context,
            megabytes(most)
        ))
    }

    /// Whether all that is left are checks.
    fn is_finished(&self) -> bool {
        self.round >= self.spec.rounds && !self.unjudged
    }

    /// Whether it failed lately, so that others are asked first.
    fn waits(&self, hand: &Hand) -> bool {
        self.failed.get(&hand.worker).is_some_and(|failed| self.round < failed.until)
    }

    fn can_judge(&self, hand: &Hand) -> bool {
        hand.memory_bytes >= self.spec.memory_bytes()
    }

    fn tasks_for(&mut self, now: Millis, teams: &[Team], hands: &[Hand]) -> Vec<Task> {
        let Some(state) = self.state else {
            return self.init_task(hands);
        };
        if self.unjudged {
            return self.judge_tasks(now, state, teams);
        }
        match &self.step {
            TrainStep::Training { slices, deltas, .. } => {
                let open: Vec<u16> = slices
                    .iter()
                    .filter(|(slice, of)| (0..of.stages).any(|stage| !deltas.contains_key(&(**slice, stage))))
                    .map(|(slice, _)| *slice)
                    .collect();
                if open.is_empty() {
                    let mut whole: BTreeMap<u16, Vec<Digest>> = BTreeMap::new();
                    for ((slice, _), delta) in deltas {
                        whole.entry(*slice).or_default().push(*delta);
                    }
                    self.merge_tasks(state, whole.into_values().collect(), hands)
                } else {
                    self.train_tasks(now, state, teams, &open)
                }
            }
            TrainStep::Idle | TrainStep::Init | TrainStep::Merging { .. } | TrainStep::Judging { .. } => {
                self.cut(teams);
                let all: Vec<u16> = (0..=u16::MAX).take(teams.len()).collect();
                self.train_tasks(now, state, teams, &all)
            }
        }
    }

    fn init_task(&mut self, hands: &[Hand]) -> Vec<Task> {
        self.step = TrainStep::Init;
        let able = hands.iter().find(|hand| self.can_judge(hand));
        let Some(hand) = able.or_else(|| hands.iter().max_by_key(|hand| hand.memory_bytes)) else {
            return Vec::new();
        };
        let shard = Shard::Init { spec: self.spec.clone(), judge: able.is_some() };
        vec![Task::pinned(Slot::Init, shard, hand.worker)]
    }

    /// Gives each team a slice; together they are the next sequences of the job's order, none left out.
    fn cut(&mut self, teams: &[Team]) {
        let pace = |team: &Team| team.leader().and_then(|leader| self.pace.get(&leader)).copied();
        let fastest = teams.iter().filter_map(pace).min();
        let mut slices = BTreeMap::new();
        let mut first = self.samples;
        for (index, team) in (0..=u16::MAX).zip(teams) {
            let steps = self.steps(pace(team), fastest);
            slices.insert(index, Slice { first, steps, stages: 1, attempts: 0 });
            first = first.saturating_add(self.sequences(steps));
        }
        self.step = TrainStep::Training { samples: first, slices, deltas: BTreeMap::new() };
        self.makers.clear();
        self.checks.round();
    }

    /// A team for each of these slices, as far as there are teams.
    fn train_tasks(&mut self, now: Millis, state: Digest, teams: &[Team], open: &[u16]) -> Vec<Task> {
        let TrainStep::Training { slices, .. } = &mut self.step else { return Vec::new() };
        let of = u16::try_from(slices.len()).unwrap_or(u16::MAX);
        let mut tasks = Vec::new();
        for (index, team) in open.iter().zip(teams) {
            let Some(slice) = slices.get_mut(index) else { continue };
            let members = team.members(number(now, *index));
            let alone = members.len() == 1;
            slice.stages = u16::try_from(members.len()).unwrap_or(u16::MAX);
            let Slice { first, steps, .. } = *slice;
            for (stage, (worker, group)) in (0..).zip(members) {
                let (spec, round, index) = (self.spec.clone(), self.round, *index);
                let group = (!alone).then_some(group);
                let shard = Shard::Train { state, spec, round, index, of, first, steps, group };
                tasks.push(Task::pinned(Slot::Train { slice: index, stage }, shard, worker));
            }
        }
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

    /// Whether the loss is measured after the outer step of this round.
    fn is_judged(&self, round: u32) -> bool {
        let every = self.spec.steps_between_losses();
        let times = |rounds: u32| u64::from(rounds) * u64::from(self.spec.inner_steps) / every;
        round + 1 >= self.spec.rounds || times(round) < times(round + 1)
    }

    fn sequences(&self, steps: u32) -> u64 {
        u64::from(steps).saturating_mul(u64::from(self.spec.batch))
    }

    fn merge_tasks(&mut self, state: Digest, deltas: Vec<Vec<Digest>>, hands: &[Hand]) -> Vec<Task> {
        let TrainStep::Training { samples, .. } = self.step else { return Vec::new() };
        let mut agents = ablest(hands);
        for workers in agents.values_mut() {
            workers.sort_by_key(|hand| (!self.can_judge(hand), self.waits(hand)));
        }
        // Who takes it over must be able to judge too, and the ablest of them comes first.
        let others = |workers: &[Hand]| {
            let judges = workers.first().is_some_and(|first| self.can_judge(first));
            let alike = workers.iter().skip(1).rev().filter(|hand| self.can_judge(hand) == judges);
            alike.map(|hand| hand.worker).collect()
        };
        self.step = TrainStep::Merging {
            out: agents.iter().map(|(node, workers)| (*node, others(workers))).collect(),
            results: BTreeMap::new(),
            failure: None,
            withheld: BTreeMap::new(),
            samples,
            judged: Vec::new(),
        };
        let due = self.is_judged(self.round);
        let mergers: Vec<Hand> =
            agents.into_values().filter_map(|workers| workers.first().copied()).collect();
        let judges = mergers.iter().filter(|hand| due && self.can_judge(hand));
        let judges: Vec<WorkerId> = judges.map(|hand| hand.worker).collect();
        let part = |worker| {
            let index = judges.iter().position(|judge| *judge == worker)?;
            Some(Part { index: u16::try_from(index).ok()?, of: u16::try_from(judges.len()).ok()? })
        };
        let task = |hand: &Hand| {
            let shard = Shard::Merge {
                state,
                deltas: deltas.clone(),
                spec: self.spec.clone(),
                round: self.round,
                part: part(hand.worker),
            };
            Task::pinned(Slot::Merge(hand.worker.node), shard, hand.worker)
        };
        mergers.iter().map(task).collect()
    }

    /// The loss of `state`, each team measuring a part of it.
    fn judge_tasks(&mut self, now: Millis, state: Digest, teams: &[Team]) -> Vec<Task> {
        let of = u16::try_from(teams.len()).unwrap_or(u16::MAX);
        let mut tasks = Vec::new();
        for (index, team) in (0..of).zip(teams) {
            for (stage, (worker, group)) in (0..).zip(team.members(number(now, index))) {
                let (spec, part) = (self.spec.clone(), Part { index, of });
                let shard = Shard::Judge { state, spec, round: self.round, part, group };
                tasks.push(Task::pinned(Slot::Judge { group: index, stage }, shard, worker));
            }
        }
        let place = |task: &Task| {
            let Slot::Judge { group, stage } = task.slot else { return None };
            Some((group, stage))
        };
        self.step = TrainStep::Judging { out: tasks.iter().filter_map(place).collect(), judged: Vec::new() };
        tasks
    }

    /// A shard was finished by `worker`.
    pub fn completed(
        &mut self,
        slot: Slot,
        worker: WorkerId,
        outcome: Outcome<'_>,
        status: &mut JobStatus,
    ) -> Next {
        let Outcome { output, more, measure, tokens, took_ms, draw } = outcome;
        match (&mut self.step, slot) {
            (TrainStep::Init, Slot::Init) => {
                self.state = Some(output);
                status.state = Some(output);
                status.start_loss_micronats = measure;
                status.held_out_micronats = measure;
                self.unjudged = measure.is_none();
                self.step = TrainStep::Idle;
                Next::Plan
            }
            (TrainStep::Training { slices, deltas, .. }, Slot::Train { slice, stage }) => {
                let Some(Slice { first, steps, stages, .. }) = slices.get(&slice).copied() else {
                    return Next::Wait;
                };
                deltas.insert((slice, stage), output);
                self.failed.remove(&worker);
                let sequences = u64::from(steps).saturating_mul(u64::from(self.spec.batch));
                self.makers.insert(output, (worker.node, first..first.saturating_add(sequences)));
                if let (1, Some(state), Some(began)) = (stages, self.state, more.first().copied()) {
                    let round = self.round;
                    let made = Made { maker: worker, state, round, first, steps, began, delta: output };
                    self.checks.consider(made, self.spec.check_millionths, draw);
                }
                if stage == 0 && !self.checks.disturbs(worker) {
                    // Other work on the machine makes single slices slow or quick.
                    let pace = took_ms.saturating_mul(1_000) / u64::from(steps.max(1));
                    let before = self.pace.get(&worker).copied().unwrap_or(pace);
                    self.pace.insert(worker, before.saturating_mul(3).saturating_add(pace) / 4);
                }
                if stage + 1 == stages {
                    status.tokens = status.tokens.saturating_add(tokens);
                    status.loss_micronats = measure;
                }
                let all: usize = slices.values().map(|slice| usize::from(slice.stages)).sum();
                if deltas.len() == all { Next::Plan } else { Next::Wait }
            }
            (TrainStep::Merging { out, results, judged, .. }, Slot::Merge(node)) => {
                out.remove(&node);
                results.insert(worker.node, output);
                for delta in more.iter().filter(|delta| self.makers.contains_key(delta)) {
                    self.accused.entry(*delta).or_default().insert(worker.node);
                }
                if let Some(loss) = measure {
                    judged.push((output, loss, tokens));
                }
                self.close_merge(status)
            }
            (TrainStep::Judging { out, judged }, Slot::Judge { group, stage }) => {
                out.remove(&(group, stage));
                if let Some(loss) = measure {
                    judged.push((output, loss, tokens));
                }
                if out.is_empty() { self.close_judging(status) } else { Next::Wait }
            }
            (_, Slot::Show(number)) => {
                let task = self.checks.shown(number, output, &self.spec, status);
                self.after_check(task)
            }
            (_, Slot::Check(number)) => {
                let task = self.checks.checked(number, worker.node, measure, &self.spec, status);
                self.after_check(task)
            }
            _ => Next::Wait,
        }
    }

    fn after_check(&self, task: Option<Task>) -> Next {
        match task {
            Some(task) => Next::Also(Box::new(task)),
            None if self.is_finished() && self.checks.are_done() => Next::Done,
            None => Next::Wait,
        }
    }

    /// An agent is gone, and whatever it made with it: nobody is to blame for that.
    pub fn vanished(&mut self, node: NodeId) {
        self.failed.retain(|worker, _| worker.node != node);
        self.makers.retain(|_, (maker, _)| *maker != node);
        if let TrainStep::Merging { out, .. } = &mut self.step {
            out.entry(node).and_modify(Vec::clear);
        }
    }

    /// Who had this shard says that nobody gave it one of its inputs.
    pub fn missed(&mut self, slot: Slot, input: Digest, status: &mut JobStatus) {
        match (&mut self.step, slot) {
            (TrainStep::Merging { withheld, out, .. }, Slot::Merge(node)) => {
                // Its other workers would have it from the same store.
                out.entry(node).and_modify(Vec::clear);
                withheld.entry(input).or_default().insert(node);
            }
            (_, Slot::Check(number)) => self.checks.missed(number, input, status),
            _ => {}
        }
    }

    /// A shard came back unfinished: its agent vanished, or a worker failed for some reason.
    pub fn lost(&mut self, slot: Slot, failure: Option<(WorkerId, &str)>, status: &mut JobStatus) -> Next {
        let reason = failure.map(|(_, reason)| reason);
        if let (Slot::Train { .. } | Slot::Judge { .. }, Some((worker, _))) = (slot, failure) {
            let failed = self.failed.entry(worker).or_insert(Failed { times: 0, until: 0 });
            let rounds = 1 << failed.times.min(ROUNDS_SAT_OUT_MAX.ilog2());
            *failed = Failed { times: failed.times + 1, until: self.round.saturating_add(rounds) };
        }
        match (&mut self.step, slot) {
            (TrainStep::Merging { out, failure, .. }, Slot::Merge(node)) => {
                if let Some(next) = out.get_mut(&node).and_then(Vec::pop) {
                    return Next::On(next);
                }
                out.remove(&node);
                if let Some(reason) = reason {
                    *failure = Some(reason.to_owned());
                }
                self.close_merge(status)
            }
            (TrainStep::Training { slices, deltas, .. }, Slot::Train { slice: index, .. }) => {
                let Some(slice) = slices.get_mut(&index).filter(|slice| slice.stages > 1) else {
                    return Next::Retry;
                };
                deltas.retain(|(of, _), _| *of != index);
                slice.attempts += u8::from(reason.is_some());
                match reason.filter(|_| slice.attempts >= ATTEMPTS_MAX) {
                    Some(reason) => {
                        Next::Fail(format!("a slice failed {ATTEMPTS_MAX} groups, last with: {reason}"))
                    }
                    None => Next::Dissolve,
                }
            }
            (TrainStep::Judging { .. }, Slot::Judge { .. }) => {
                self.failures += u8::from(reason.is_some());
                match reason.filter(|_| self.failures >= ATTEMPTS_MAX) {
                    Some(reason) => {
                        Next::Fail(format!("the loss could not be measured {ATTEMPTS_MAX} times: {reason}"))
                    }
                    None => Next::Dissolve,
                }
            }
            (_, Slot::Show(_) | Slot::Check(_)) => {
                self.checks.lost(slot, reason, status);
                self.after_check(None)
            }
            _ => Next::Retry,
        }
    }

    /// The job is given up, since nobody came to the end of one step of this slice: what it starts from may be of no use,
    /// as where training diverges in an outer step. What came before it is kept as the result.
    pub fn fall_back(&self, slot: Slot, status: &mut JobStatus) {
        if let (Slot::Train { .. }, Some((round, state, samples))) = (slot, self.before) {
            status.round = round;
            status.state = Some(state);
            status.samples = samples;
        }
    }

    /// All groups measured their parts.
    fn close_judging(&mut self, status: &mut JobStatus) -> Next {
        let TrainStep::Judging { judged, .. } = &self.step else { return Next::Wait };
        let loss = mean(judged.iter());
        status.held_out_micronats = loss;
        if self.round == 0 {
            status.start_loss_micronats = loss;
        }
        self.failures = 0;
        self.unjudged = false;
        self.step = TrainStep::Idle;
        self.after_step()
    }

    fn after_step(&self) -> Next {
        if self.is_finished() && self.checks.are_done() { Next::Done } else { Next::Plan }
    }

    /// Members that computed the present state, as far as the last merge tells.
    fn close_merge(&mut self, status: &mut JobStatus) -> Next {
        let TrainStep::Merging { out, results, failure, withheld, samples, judged } = &self.step else {
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
            let complaints: BTreeSet<&NodeId> = withheld.values().flatten().collect();
            let missed_by_most = withheld.iter().filter(|(_, by)| by.len() * 2 > complaints.len());
            let makers = missed_by_most.filter_map(|(delta, _)| self.makers.get(delta));
            let withholders: Vec<NodeId> = makers.map(|(maker, _)| *maker).collect();
            let room = REFUSED_MAX.saturating_sub(status.refused.len());
            let news = withholders.iter().filter(|maker| !status.refused.contains(maker)).take(room);
            let news: Vec<NodeId> = news.copied().collect();
            if !news.is_empty() {
                status.refused.extend(news);
                self.step = TrainStep::Idle;
                return Next::Plan;
            }
            self.step = TrainStep::Idle;
            let Some(reason) = failure else { return Next::Plan };
            self.failures += 1;
            return if self.failures < ATTEMPTS_MAX {
                Next::Plan
            } else {
                Next::Fail(format!("the outer step failed on every agent {ATTEMPTS_MAX} times: {reason}"))
            };
        };
        self.failures = 0;
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
        self.before = self.state.map(|state| (self.round, state, self.samples));
        self.samples = *samples;
        let loss = mean(judged.iter().filter(|(of, ..)| of == state));
        if self.is_judged(self.round) {
            status.held_out_micronats = loss;
            self.unjudged = loss.is_none();
        }
        status.samples = self.samples;
        status.digests_equal &= votes.len() == 1;
        self.state = Some(*state);
        self.round += 1;
        self.step = TrainStep::Idle;
        status.state = self.state;
        status.round = self.round;
        self.after_step()
    }
}

/// Groups of one job differ by when they were formed, and those of one moment by their place.
fn number(now: Millis, place: u16) -> u64 {
    now.0.wrapping_mul(1 << 16).wrapping_add(place.into())
}

/// The mean of losses, each over so many tokens; none of nothing.
fn mean<'a>(judged: impl Iterator<Item = &'a (Digest, i64, u64)>) -> Option<i64> {
    let (sum, tokens) = judged.fold((0i128, 0i128), |(sum, all), (_, loss, tokens)| {
        (sum + i128::from(*loss) * i128::from(*tokens), all + i128::from(*tokens))
    });
    sum.checked_div(tokens).and_then(|mean| i64::try_from(mean).ok())
}
