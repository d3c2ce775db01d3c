//! The coordinator's side: jobs, their pending shards, and the table of leases.
//!
//! Exists only while this agent is in office. Every shard of a running job is at any time pending,
//! granted, or done; a grant that expires or whose agent vanishes makes the shard pending again. Must
//! never execute anything itself: its own agent is one member among the others.

mod room;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ed25519_dalek::SigningKey;

use self::room::Room;
use crate::group::Member;
use crate::holdings::Trouble;
use crate::ids::{Digest, JobId, LeaseId, Millis, NetworkId, NodeId, Term, Units, WorkerId};
use crate::job::{JobSpec, Requires, Shard, Work};
use crate::lease::{Acceptance, End, Fence, Lease, Pace, Receipt};
use crate::limits::{
    ACCEPTANCES_KEPT_MAX, ATTEMPTS_MAX, JOBS_MAX, LEASE_TTL_MS, LINKS_WAIT_MS, REFUSED_MAX, STATUS_MS,
};
use crate::links::Links;
use crate::message::{JobStatus, Message, Phase, Resume, StageAt, bounded_reason};
use crate::placement::{Hand, unfulfilled};
use crate::plan::{Next, Outcome, Plan, ServePlan, Slot, Task, TrainPlan};
use crate::signed::{Envelope, Signed, encode};

/// One outgoing message.
pub type Letter = (NodeId, Message);

/// The office and all that depends on holding it.
#[derive(Debug)]
pub struct Office {
    network: NetworkId,
    key: SigningKey,
    term: Term,
    sequence: u64,
    jobs: BTreeMap<JobId, Job>,
    grants: BTreeMap<LeaseId, Grant>,
    accepted: VecDeque<(LeaseId, Envelope<Acceptance>)>,
    links: Links,
    began_at: Option<Millis>,
}

#[derive(Debug)]
struct Job {
    plan: Plan,
    pending: VecDeque<Task>,
    requires: Requires,
    /// Nobody here offers what it requires, as its note says.
    unmet: bool,
    status: JobStatus,
    told_at: Millis,
    changed: bool,
}

#[derive(Debug)]
struct Grant {
    job: JobId,
    task: Task,
    lease: Signed<Lease>,
    expires_at: Millis,
    pace: Pace,
    released: bool,
}

/// Why a job is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotHired {
    /// Too many are under way; the owner may ask again later.
    Full,
    /// It can never run: its status says so, for its owner.
    Refused(Box<JobStatus>),
}

impl Office {
    /// Takes office for `term`.
    pub fn new(network: NetworkId, key: SigningKey, term: Term) -> Self {
        Self {
            network,
            key,
            term,
            sequence: 0,
            jobs: BTreeMap::new(),
            grants: BTreeMap::new(),
            accepted: VecDeque::new(),
            links: Links::default(),
            began_at: None,
        }
    }

    /// Takes a job. A job that is known already is left as it is, and told again at the next tick.
    ///
    /// # Errors
    /// [`NotHired`]; nothing was changed.
    pub fn submit(&mut self, job: &Signed<JobSpec>, resume: Option<Resume>) -> Result<(), NotHired> {
        let id = JobId(job.digest().0);
        if let Some(known) = self.jobs.get_mut(&id) {
            known.changed = true;
            return Ok(());
        }
        let mut status = JobStatus::new(job);
        if let Err(error) = job.statement().validate() {
            status.phase = Phase::Failed { reason: bounded_reason(&error.to_string()) };
            return Err(NotHired::Refused(Box::new(status)));
        }
        if self.jobs.len() >= JOBS_MAX {
            let Some(ended) = self.jobs.iter().find(|(_, job)| job.status.phase.is_final()) else {
                return Err(NotHired::Full);
            };
            let ended = *ended.0;
            self.jobs.remove(&ended);
        }
        let plan = match job.statement().work.clone() {
            Work::Train(train) => {
                let trained = match resume {
                    Some(Resume::Train(trained))
                        if trained.round <= train.rounds && trained.left_out.len() <= REFUSED_MAX =>
                    {
                        Some(trained)
                    }
                    Some(Resume::Train(_) | Resume::Serve(_)) | None => None,
                };
                if let Some(trained) = &trained {
                    status.resume_from(trained);
                    if trained.round == train.rounds && trained.held_out_micronats.is_some() {
                        status.phase = Phase::Done;
                    }
                }
                Plan::Train(Box::new(TrainPlan::new(train, status.owner, trained)))
            }
            Work::Serve(serve) => {
                let before = match resume {
                    Some(Resume::Serve(stages)) => stages,
                    Some(Resume::Train(_)) | None => Vec::new(),
                };
                Plan::Serve(Box::new(ServePlan::new(serve, status.owner, before)))
            }
        };
        let job = Job {
            plan,
            pending: VecDeque::new(),
            requires: job.statement().requires,
            unmet: false,
            status,
            told_at: Millis(0),
            changed: true,
        };
        self.jobs.insert(id, job);
        Ok(())
    }

    /// Ends a job at its owner's word; its leases are released.
    pub fn cancel(&mut self, from: NodeId, id: JobId, letters: &mut Vec<Letter>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.status.owner != from || job.status.phase.is_final() {
            return;
        }
        // To stop serving is how serving ends well.
        let phase = match job.plan {
            Plan::Serve(_) => Phase::Done,
            Plan::Train(_) => Phase::Cancelled,
        };
        self.end(id, phase, letters);
    }

    /// A connected agent told of its links.
    pub fn links_told(&mut self, from: NodeId, links: Vec<(NodeId, u32)>) {
        self.links.told(from, links);
    }

    /// An agent reports life in a lease.
    pub fn progress(&mut self, now: Millis, from: NodeId, id: LeaseId, pace: Pace) -> Message {
        let Some(grant) = self.grants.get_mut(&id).filter(|grant| grant.lease.statement().agent == from)
        else {
            return refused(id, "the lease is not in force");
        };
        if grant.released {
            return Message::Release(id);
        }
        grant.expires_at = now.plus(u64::from(LEASE_TTL_MS));
        grant.pace = pace;
        if let Some(job) = self.jobs.get_mut(&grant.job) {
            job.changed = true;
            let lease = grant.lease.statement();
            if let (Plan::Serve(plan), Shard::Stage { start, end, .. }) = (&mut job.plan, &lease.shard)
                && pace.done == 1
                && pace.of == 1
            {
                // It loaded: what failed before is over, or a long service would end by its fifth failure.
                grant.task.attempts = 0;
                let stage = StageAt { node: from, worker: lease.worker, lease: id, start: *start, end: *end };
                if plan.ready(grant.task.slot, stage, &mut job.status) {
                    job.told_at = Millis(0);
                }
            }
        }
        Message::Renew(id)
    }

    /// A receipt arrived: accepts it if its lease is in force.
    pub fn receipt(&mut self, now: Millis, receipt: &Signed<Receipt>, letters: &mut Vec<Letter>) -> Message {
        let statement = receipt.statement();
        let id = statement.lease.unverified().id();
        if let Some((_, acceptance)) = self.accepted.iter().find(|(lease, _)| *lease == id) {
            return Message::Accepted(acceptance.clone());
        }
        let from = receipt.signer();
        let unpaid = "the lease ended without its result; nothing is owed for it";
        let in_force = self.grants.get(&id).is_some_and(|grant| {
            *grant.lease.envelope() == statement.lease && grant.lease.statement().agent == from
        });
        let Some(grant) = in_force.then(|| self.grants.remove(&id)).flatten() else {
            let late = "the lease is not in force: it expired, or its shard was granted to another";
            return refused(id, if statement.end == End::Completed { late } else { unpaid });
        };
        let lease = grant.lease.statement();
        // A stage has no result; what any other shard is owed is owed for its result.
        let result = if lease.shard.is_standing() {
            (statement.end == End::Completed).then_some(None)
        } else {
            statement.result().map(Some)
        };
        let Some(result) = result.filter(|_| statement.is_bounded()) else {
            // Who gives a shard back because his owner needs the machine has not failed in it.
            let failed = statement.end != End::Cancelled;
            self.lost(grant, failed.then_some("the agent gave back no result and no reason"), letters);
            return refused(id, unpaid);
        };
        let earned = if lease.shard.is_standing() {
            Units(lease.units.0.saturating_mul(statement.tokens))
        } else {
            lease.units
        };
        let acceptance = Acceptance {
            receipt: receipt.digest(),
            lease: id,
            agent: from,
            units: earned.min(statement.units),
            accepted_at: now,
        };
        let acceptance = Signed::new(acceptance, &self.network, &self.key).into_envelope();
        if self.accepted.len() >= ACCEPTANCES_KEPT_MAX {
            self.accepted.pop_front();
        }
        self.accepted.push_back((id, acceptance.clone()));
        // Nobody but this agent could have signed it, and it signs the same way every time.
        let drawn = Digest::of(&encode(&acceptance));
        let draw = drawn.0.iter().take(8).fold(0, |draw, byte| draw << 8 | u64::from(*byte));
        self.completed(now, grant, result, statement, draw, letters);
        Message::Accepted(acceptance)
    }

    /// An agent says that it cannot execute what it was granted.
    pub fn failed(&mut self, from: NodeId, id: LeaseId, trouble: &Trouble, letters: &mut Vec<Letter>) {
        let theirs = |grant: &Grant| grant.lease.statement().agent == from;
        if self.grants.get(&id).is_some_and(theirs)
            && let Some(grant) = self.grants.remove(&id)
        {
            if let (Some(missing), Some(Job { plan: Plan::Train(plan), status, .. })) =
                (trouble.missing, self.jobs.get_mut(&grant.job))
            {
                plan.missed(grant.task.slot, missing, status);
            }
            self.lost(grant, Some(&trouble.reason), letters);
        }
    }

    /// An agent did not take what it was granted, because its owner needs the device or it leaves.
    pub fn declined(&mut self, from: NodeId, id: LeaseId, letters: &mut Vec<Letter>) {
        let theirs = |grant: &Grant| grant.lease.statement().agent == from;
        if self.grants.get(&id).is_some_and(theirs)
            && let Some(grant) = self.grants.remove(&id)
        {
            self.lost(grant, None, letters);
        }
    }

    fn completed(
        &mut self,
        now: Millis,
        grant: Grant,
        result: Option<Digest>,
        receipt: &Receipt,
        draw: u64,
        letters: &mut Vec<Letter>,
    ) {
        let Some(job) = self.jobs.get_mut(&grant.job) else { return };
        job.changed = true;
        if grant.released || job.status.phase.is_final() {
            return;
        }
        let worker = grant.lease.statement().worker_id();
        job.status.sent_bytes = job.status.sent_bytes.saturating_add(receipt.received_bytes);
        let next = match (&mut job.plan, result) {
            (Plan::Train(plan), Some(result)) => {
                let outcome = Outcome {
                    output: result,
                    more: receipt.outputs.get(1..).unwrap_or_default(),
                    measure: receipt.loss_micronats,
                    tokens: receipt.tokens,
                    took_ms: now.since(grant.lease.statement().granted_at),
                    draw,
                };
                plan.completed(grant.task.slot, worker, outcome, &mut job.status)
            }
            // A stage ended although nobody released it.
            (Plan::Serve(plan), _) => plan.lost(grant.task.slot, &mut job.status),
            (Plan::Train(_), None) => Next::Retry,
        };
        self.follow(grant.job, grant.task, next, None, letters);
    }

    /// A granted shard will not be finished under its lease: its agent vanished, or failed with `reason`.
    fn lost(&mut self, grant: Grant, reason: Option<&str>, letters: &mut Vec<Letter>) {
        let Some(job) = self.jobs.get_mut(&grant.job) else { return };
        job.changed = true;
        if grant.released || job.status.phase.is_final() {
            return;
        }
        job.status.regrants = job.status.regrants.saturating_add(1);
        let mut task = grant.task;
        let worker = grant.lease.statement().worker_id();
        let next = match &mut job.plan {
            Plan::Train(plan) => plan.lost(task.slot, reason.map(|reason| (worker, reason)), &mut job.status),
            Plan::Serve(plan) => {
                job.told_at = Millis(0);
                plan.lost(task.slot, &mut job.status)
            }
        };
        if reason.is_some() {
            task.attempts += 1;
            task.avoid.insert(worker);
            let hopeless = task.attempts >= ATTEMPTS_MAX && grant.pace.done == 0;
            if let (Plan::Train(plan), Next::Retry, true) = (&job.plan, &next, hopeless) {
                plan.fall_back(task.slot, &mut job.status);
            }
        }
        task.pinned = None;
        let last = reason.map(|reason| format!("last on worker {}: {reason}", worker.short()));
        self.follow(grant.job, task, next, last, letters);
    }

    fn follow(
        &mut self,
        id: JobId,
        task: Task,
        next: Next,
        last_failure: Option<String>,
        letters: &mut Vec<Letter>,
    ) {
        match next {
            Next::Wait | Next::Plan => {}
            Next::Also(task) => {
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.pending.push_back(*task);
                }
            }
            Next::Dissolve => {
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.pending.retain(|other| !other.slot.is_beside(task.slot));
                }
                self.release(id, |grant| grant.task.slot.is_beside(task.slot), letters);
            }
            Next::Retry if task.attempts >= ATTEMPTS_MAX => {
                let last = last_failure.unwrap_or_default();
                let kind = task.shard.kind();
                let reason = bounded_reason(&format!("a {kind} shard failed {ATTEMPTS_MAX} times, {last}"));
                self.end(id, Phase::Failed { reason }, letters);
            }
            Next::Retry => {
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.pending.push_front(task);
                }
            }
            Next::On(worker) => {
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.pending.push_front(Task { pinned: Some(worker), ..task });
                }
            }
            Next::Done => self.end(id, Phase::Done, letters),
            Next::Fail(reason) => {
                self.end(id, Phase::Failed { reason: bounded_reason(&reason) }, letters);
            }
        }
    }

    fn end(&mut self, id: JobId, phase: Phase, letters: &mut Vec<Letter>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.status.phase = phase;
        job.status.stages.clear();
        job.status.note = None;
        job.pending.clear();
        job.changed = true;
        self.release(id, |_| true, letters);
    }

    fn release(&mut self, id: JobId, which: impl Fn(&Grant) -> bool, letters: &mut Vec<Letter>) {
        for (lease, grant) in self.grants.iter_mut().filter(|(_, grant)| grant.job == id && which(grant)) {
            grant.released = true;
            letters.push((grant.lease.statement().agent, Message::Release(*lease)));
        }
    }

    /// An agent is gone: its shards are pending again.
    pub fn vanished(&mut self, node: NodeId, letters: &mut Vec<Letter>) {
        self.links.forget(node);
        for job in self.jobs.values_mut() {
            if let Plan::Train(plan) = &mut job.plan {
                plan.vanished(node);
            }
        }
        self.take_back(|grant| grant.lease.statement().agent == node, None, letters);
    }

    /// Lets time pass: expires leases, plans, grants, and tells how jobs stand.
    ///
    /// `members` hear of jobs and hold their blobs; `hands` are those among them that take work now.
    pub fn tick(&mut self, now: Millis, members: &[NodeId], hands: &[Hand], letters: &mut Vec<Letter>) {
        // Its agent is here and yet gave no sign of life: that is a failure, or a hung worker would be given
        // the same shard for ever.
        let silent = format!("no sign of life for {LEASE_TTL_MS} ms");
        self.take_back(|grant| now >= grant.expires_at, Some(&silent), letters);
        self.plan_and_grant(now, members, hands, letters);
        for (id, job) in &mut self.jobs {
            if job.changed && now.since(job.told_at) >= STATUS_MS {
                summarise(&mut job.status, *id, &self.grants);
                job.told_at = now;
                job.changed = false;
                letters.extend(members.iter().map(|&node| (node, Message::Job(job.status.clone()))));
                // The owner may be connected without being a hand: it has not measured itself yet.
                if !members.contains(&job.status.owner) {
                    letters.push((job.status.owner, Message::Job(job.status.clone())));
                }
            }
        }
    }

    /// Tells a newcomer about all jobs at the next tick.
    pub fn newcomer(&mut self) {
        for job in self.jobs.values_mut() {
            job.changed = true;
        }
    }

    fn take_back(&mut self, gone: impl Fn(&Grant) -> bool, reason: Option<&str>, letters: &mut Vec<Letter>) {
        let ids: Vec<LeaseId> =
            self.grants.iter().filter(|(_, grant)| gone(grant)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(grant) = self.grants.remove(&id) {
                self.lost(grant, reason, letters);
            }
        }
    }

    fn plan_and_grant(&mut self, now: Millis, members: &[NodeId], hands: &[Hand], letters: &mut Vec<Letter>) {
        let mut room = Room::new(hands);
        for grant in self.grants.values() {
            let lease = grant.lease.statement();
            room.take(lease.worker_id(), &lease.shard);
        }
        let in_step = self.grants.values().filter(|grant| !grant.task.slot.is_aside());
        let busy: BTreeSet<JobId> = in_step.map(|grant| grant.job).collect();
        let began_at = *self.began_at.get_or_insert(now);
        // Who was in office before had a table of links; this one is about to be told.
        let links_known = now.since(began_at) >= LINKS_WAIT_MS
            || hands.iter().all(|hand| self.links.knows(hand.worker.node));
        let mut grouped: BTreeMap<WorkerId, JobId> = BTreeMap::new();
        for grant in self.grants.values().filter(|grant| grant.task.shard.group().is_some()) {
            grouped.insert(grant.lease.statement().worker_id(), grant.job);
        }
        let (mut grants, mut unseated, mut broken) = (Vec::new(), Vec::new(), Vec::new());
        for (id, job) in &mut self.jobs {
            if job.status.phase.is_final() || hands.is_empty() {
                continue;
            }
            let able = job.able(hands);
            if able.is_empty() {
                continue;
            }
            if job.pending.is_empty() && !busy.contains(id) {
                let noted = job.status.note.clone();
                job.pending = match &mut job.plan {
                    Plan::Train(plan) => plan.tasks(now, &able, &self.links, &mut job.status).into(),
                    Plan::Serve(plan) if links_known => {
                        plan.tasks(&room.free(job.requires), &self.links, &mut job.status).into()
                    }
                    Plan::Serve(_) => continue,
                };
                job.changed |= job.status.note != noted;
            }
            while let Some(task) = job.pending.pop_front() {
                let members = || {
                    let group = task.shard.group().into_iter();
                    group.flat_map(|group| &group.members).map(Member::worker_id)
                };
                if members().any(|member| !room.has(member, job.requires)) {
                    job.pending.retain(|other| !other.slot.is_beside(task.slot));
                    broken.push((*id, task));
                    continue;
                }
                let worker = match &mut job.plan {
                    // Two groups that share members could wait for each other for ever.
                    Plan::Train(_) if members().any(|m| grouped.get(&m).is_some_and(|of| of != id)) => None,
                    Plan::Train(_) if task.shard.group().is_some() => {
                        task.pinned.filter(|worker| room.is_free(*worker))
                    }
                    Plan::Train(_) => room.least_loaded(&task, job.requires),
                    Plan::Serve(plan) => plan.seat(&task, &room.free(job.requires), &self.links),
                };
                let Some(worker) = worker else {
                    if task.slot.is_dispensable() {
                        broken.push((*id, task));
                        continue;
                    }
                    // All hands are full: it waits for a lease to end, or a stage for memory.
                    unseated.push(*id);
                    job.pending.push_front(task);
                    break;
                };
                room.take(worker, &task.shard);
                grouped.extend(task.shard.group().map(|_| (worker, *id)));
                grants.push((*id, task, worker));
            }
        }
        for (job, task, worker) in grants {
            self.grant(now, job, task, worker, members, letters);
        }
        for job in unseated {
            self.place_anew(job, room.clone(), letters);
        }
        for (id, task) in broken {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if let Plan::Train(plan) = &mut job.plan {
                let mut next = plan.lost(task.slot, None, &mut job.status);
                // The agent is not here, or full, with all its workers.
                while let Next::On(_) = next {
                    next = plan.lost(task.slot, None, &mut job.status);
                }
                self.follow(id, task, next, None, letters);
            }
        }
    }

    /// A stage finds no room beside the others: gives them up, if all would then fit in another way.
    fn place_anew(&mut self, id: JobId, mut room: Room, letters: &mut Vec<Letter>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Plan::Serve(plan) = &mut job.plan else { return };
        for grant in self.grants.values().filter(|grant| grant.job == id) {
            let lease = grant.lease.statement();
            room.give_back(lease.worker_id(), &lease.shard);
        }
        let noted = job.status.note.clone();
        if plan.would_fit_anew(&room.free(job.requires), &self.links, &mut job.status) {
            job.pending.clear();
            self.release(id, |_| true, letters);
        } else {
            job.changed |= job.status.note != noted;
        }
    }

    fn grant(
        &mut self,
        now: Millis,
        id: JobId,
        task: Task,
        worker: WorkerId,
        holders: &[NodeId],
        letters: &mut Vec<Letter>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if matches!(job.plan, Plan::Train(_)) {
            job.status.phase = Phase::Running;
        }
        job.changed = true;
        self.sequence = self.sequence.saturating_add(1).max(now.0);
        let lease = Lease {
            job: id,
            shard: task.shard.clone(),
            agent: worker.node,
            worker: worker.index,
            fence: Fence { term: self.term, sequence: self.sequence },
            granted_at: now,
            ttl_ms: LEASE_TTL_MS,
            units: task.shard.units(),
        };
        let lease = Signed::new(lease, &self.network, &self.key);
        // The owner holds the data, whoever else may: it is named first.
        let owner = job.status.owner;
        let others = holders.iter().copied().filter(|&node| node != owner);
        let holders = std::iter::once(owner).chain(others).filter(|&node| node != worker.node).collect();
        letters.push((worker.node, Message::Grant { lease: lease.envelope().clone(), holders }));
        let grant = Grant {
            job: id,
            task,
            expires_at: now.plus(u64::from(LEASE_TTL_MS)),
            pace: Pace::default(),
            released: false,
            lease,
        };
        self.grants.insert(grant.lease.statement().id(), grant);
    }
}

impl Job {
    /// Those who offer what it requires; where nobody does, its note says so.
    fn able(&mut self, hands: &[Hand]) -> Vec<Hand> {
        let able: Vec<Hand> = hands.iter().filter(|hand| hand.fulfils(self.requires)).copied().collect();
        let unmet = able.is_empty() && !hands.is_empty();
        if unmet || self.unmet {
            let note = unmet.then(|| unfulfilled(self.requires, hands));
            self.changed |= self.status.note != note;
            self.status.note = note;
            self.unmet = unmet;
        }
        able
    }
}

fn summarise(status: &mut JobStatus, id: JobId, grants: &BTreeMap<LeaseId, Grant>) {
    let live = || grants.values().filter(|grant| grant.job == id && !grant.released);
    // Of a job that ended it tells who was at it last.
    if !status.phase.is_final() {
        let workers: BTreeSet<WorkerId> = live().map(|grant| grant.lease.statement().worker_id()).collect();
        let agents: BTreeSet<NodeId> = workers.iter().map(|worker| worker.node).collect();
        status.workers = u16::try_from(workers.len()).unwrap_or(u16::MAX);
        status.agents = u16::try_from(agents.len()).unwrap_or(u16::MAX);
    }
    let training = || live().filter(|grant| matches!(grant.task.slot, Slot::Train { .. }));
    // A group takes its steps together.
    let slices = || training().filter(|grant| matches!(grant.task.slot, Slot::Train { stage: 0, .. }));
    status.step = slices().map(|grant| grant.pace.done).fold(0, u32::saturating_add);
    status.steps = slices().map(|grant| grant.pace.of).fold(0, u32::saturating_add);
    let losses: Vec<i64> = training().filter_map(|grant| grant.pace.loss_micronats).collect();
    if !losses.is_empty() {
        let sum = losses.iter().fold(0i64, |sum, loss| sum.saturating_add(*loss));
        status.loss_micronats = Some(sum / i64::try_from(losses.len()).unwrap_or(i64::MAX));
    }
}

fn refused(lease: LeaseId, reason: &str) -> Message {
    Message::Refused { lease, reason: reason.to_owned() }
}
