//! The agent's side of leases: what it holds, when it asks for renewal, how each one ends.
//!
//! Every lease that was taken ends in exactly one receipt. A receipt stays pending until the coordinator
//! answered it, and is sent again when the coordinator comes back. Must never execute anything.

use std::collections::{BTreeMap, VecDeque};

use crate::election::Reign;
use crate::ids::{Digest, JobId, LeaseId, Millis, NodeId, Units};
use crate::job::Shard;
use crate::lease::{BadLease, End, Fence, Lease, Pace, Receipt};
use crate::limits::{LEASES_HELD_MAX, RECEIPTS_PENDING_MAX, RENEW_MS};
use crate::signed::{Envelope, Signed};

/// Why a shard could not be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// For people.
    pub reason: String,
    /// An input that nobody gave.
    pub missing: Option<Digest>,
}

impl From<String> for Trouble {
    fn from(reason: String) -> Self {
        Self { reason, missing: None }
    }
}

impl From<&str> for Trouble {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

/// What the shell reports of a finished shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// Digests of what went in.
    pub inputs: Vec<Digest>,
    /// Digests of what came out.
    pub outputs: Vec<Digest>,
    /// Tokens trained on or served.
    pub tokens: u64,
    /// Bytes that came from other agents for it.
    pub received_bytes: u64,
    /// What the shard measured: mean loss, or a check's distance.
    pub loss_micronats: Option<i64>,
}

/// A held lease as `status` shows it.
#[derive(Clone, Debug)]
pub struct HeldLease {
    /// The lease.
    pub id: LeaseId,
    /// Its job.
    pub job: JobId,
    /// Which worker executes it.
    pub worker: u8,
    /// What it executes.
    pub shard: Shard,
    /// How far it is.
    pub pace: Pace,
}

#[derive(Debug)]
struct Held {
    lease: Signed<Lease>,
    taken_at: Millis,
    expires_at: Millis,
    asked_at: Millis,
    pace: Pace,
    moved: bool,
    stopping: Option<End>,
}

impl Held {
    /// To stop serving is how serving ends well; any other shard is lost half-way.
    fn end_when_stopped(&self) -> End {
        if self.lease.statement().shard.is_standing() { End::Completed } else { End::Cancelled }
    }
}

/// All leases of one agent.
#[derive(Debug, Default)]
pub struct Holdings {
    held: BTreeMap<LeaseId, Held>,
    /// Oldest first.
    pending: VecDeque<(LeaseId, Envelope<Receipt>)>,
    /// The last fence taken, and from whom: a coordinator's fences only grow, so an old grant that is
    /// played again is known without remembering every lease.
    last_fence: Option<(NodeId, Fence)>,
}

/// Why a lease is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// It names another agent.
    #[error("the lease is for another agent")]
    NotMine,
    /// A later coordinator is in office.
    #[error("the lease's term is over")]
    Fenced,
    /// It cannot be executed, by anybody.
    #[error(transparent)]
    Nonsense(#[from] BadLease),
    /// Already held, or already ended here.
    #[error("the lease was granted before")]
    Repeated,
    /// Too many.
    #[error("this worker holds as many leases as it can")]
    Full,
}

impl Holdings {
    /// Takes a lease from the coordinator in office, for one of so many workers.
    ///
    /// # Errors
    /// [`NotTaken`]; nothing was changed.
    pub fn take(
        &mut self,
        now: Millis,
        me: NodeId,
        workers: usize,
        office: Reign,
        lease: Signed<Lease>,
    ) -> Result<LeaseId, NotTaken> {
        let statement = lease.statement();
        if statement.agent != me {
            return Err(NotTaken::NotMine);
        }
        if statement.fence.term != office.term || lease.signer() != office.coordinator {
            return Err(NotTaken::Fenced);
        }
        statement.validate(workers)?;
        let id = statement.id();
        let fence = statement.fence;
        if self.last_fence.is_some_and(|(signer, last)| signer == lease.signer() && fence <= last) {
            return Err(NotTaken::Repeated);
        }
        if self.held_by(statement.worker).count() >= LEASES_HELD_MAX {
            return Err(NotTaken::Full);
        }
        let expires_at = now.plus(u64::from(statement.ttl_ms));
        self.last_fence = Some((lease.signer(), fence));
        let held = Held {
            lease,
            taken_at: now,
            expires_at,
            asked_at: now,
            pace: Pace::default(),
            moved: true,
            stopping: None,
        };
        self.held.insert(id, held);
        Ok(id)
    }

    fn held_by(&self, worker: u8) -> impl Iterator<Item = &Held> {
        self.held.values().filter(move |held| held.lease.statement().worker == worker)
    }

    /// The shell reports life in a shard. Returns the coordinator if it should hear of it at once.
    pub fn progressed(&mut self, id: LeaseId, pace: Pace) -> Option<NodeId> {
        let held = self.held.get_mut(&id)?;
        let first_ready = held.pace.of == 0 && pace.of > 0 && pace.done == pace.of;
        held.pace = pace;
        held.moved = true;
        (first_ready && held.stopping.is_none()).then(|| held.lease.signer())
    }

    /// Leases whose coordinator should hear of them now: queued, standing, or moved since last asked.
    pub fn to_renew(&mut self, now: Millis) -> Vec<(LeaseId, NodeId, Pace)> {
        let mut due = Vec::new();
        for (id, held) in &mut self.held {
            let waiting = held.pace.of == 0 || held.lease.statement().shard.is_standing();
            if (held.moved || waiting) && now.since(held.asked_at) >= RENEW_MS && held.stopping.is_none() {
                held.asked_at = now;
                held.moved = false;
                due.push((*id, held.lease.signer(), held.pace));
            }
        }
        due
    }

    /// The coordinator renewed.
    pub fn renewed(&mut self, now: Millis, id: LeaseId, from: NodeId) {
        if let Some(held) = self.held.get_mut(&id)
            && held.lease.signer() == from
        {
            held.expires_at = now.plus(u64::from(held.lease.statement().ttl_ms));
        }
    }

    /// Leases that ran out just now; each is returned once, to be stopped.
    pub fn expired(&mut self, now: Millis) -> Vec<LeaseId> {
        let mut out = Vec::new();
        for (id, held) in &mut self.held {
            if now >= held.expires_at && held.stopping.is_none() {
                held.stopping = Some(End::Expired);
                out.push(*id);
            }
        }
        out
    }

    /// The coordinator releases a lease: a stage has served well, any other shard is cancelled. Returns
    /// whether it is to be stopped now.
    pub fn released(&mut self, id: LeaseId, from: NodeId) -> bool {
        let end = self.held.get(&id).map_or(End::Cancelled, Held::end_when_stopped);
        self.end(id, from, end)
    }

    /// The coordinator does not know a lease any more. Returns whether it is to be stopped now.
    pub fn disowned(&mut self, id: LeaseId, from: NodeId) -> bool {
        self.end(id, from, End::Cancelled)
    }

    fn end(&mut self, id: LeaseId, from: NodeId, end: End) -> bool {
        let Some(held) = self.held.get_mut(&id) else { return false };
        if held.lease.signer() != from || held.stopping.is_some() {
            return false;
        }
        held.stopping = Some(end);
        true
    }

    /// Leases that the coordinator now in office did not grant, to be stopped.
    pub fn fenced(&mut self, office: Reign) -> Vec<LeaseId> {
        let mut out = Vec::new();
        for (id, held) in &mut self.held {
            let theirs =
                held.lease.signer() == office.coordinator && held.lease.statement().fence.term == office.term;
            if !theirs && held.stopping.is_none() {
                held.stopping = Some(End::Cancelled);
                out.push(*id);
            }
        }
        out
    }

    /// Every such lease that is not being stopped yet, to be stopped now: the agent leaves, or its owner needs the device.
    pub fn give_up(&mut self, which: impl Fn(&Lease) -> bool) -> Vec<LeaseId> {
        let mut out = Vec::new();
        for (id, held) in &mut self.held {
            if held.stopping.is_none() && which(held.lease.statement()) {
                held.stopping = Some(held.end_when_stopped());
                out.push(*id);
            }
        }
        out
    }

    /// Execution ended, one way or another: the lease becomes a receipt.
    pub fn finish(&mut self, now: Millis, id: LeaseId, result: Result<Executed, Trouble>) -> Option<Receipt> {
        let held = self.held.remove(&id)?;
        let lease = held.lease.statement();
        let end = match (&result, held.stopping) {
            // A result that arrives although the lease was being taken back is a result all the same,
            // except of a stage, whose end is what its stop said.
            (Ok(_), Some(stop)) if lease.shard.is_standing() => stop,
            (Ok(_), _) => End::Completed,
            (Err(_), Some(stop)) if stop != End::Completed => stop,
            (Err(_), _) => End::Failed,
        };
        let executed = result.ok();
        let tokens = executed.as_ref().map_or(0, |executed| executed.tokens);
        let received_bytes = executed.as_ref().map_or(0, |executed| executed.received_bytes);
        let units = match end {
            End::Completed if lease.shard.is_standing() => Units(lease.units.0.saturating_mul(tokens)),
            End::Completed => lease.units,
            End::Failed | End::Cancelled | End::Expired => Units(0),
        };
        let (inputs, outputs, loss_micronats) = executed.map_or_else(Default::default, |executed| {
            (executed.inputs, executed.outputs, executed.loss_micronats)
        });
        Some(Receipt {
            lease: held.lease.into_envelope(),
            end,
            started_at: held.taken_at,
            finished_at: now,
            inputs,
            outputs,
            tokens,
            received_bytes,
            units,
            loss_micronats,
        })
    }

    /// Keeps a receipt until it is answered; the log keeps it for ever.
    pub fn await_answer(&mut self, id: LeaseId, receipt: Envelope<Receipt>) {
        let worker = |receipt: &Envelope<Receipt>| receipt.unverified().lease.unverified().worker;
        let like = |(_, other): &(LeaseId, Envelope<Receipt>)| worker(other) == worker(&receipt);
        if self.pending.iter().filter(|pending| like(pending)).count() >= RECEIPTS_PENDING_MAX
            && let Some(oldest) = self.pending.iter().position(like)
        {
            self.pending.remove(oldest);
        }
        self.pending.push_back((id, receipt));
    }

    /// The coordinator answered. Returns the receipt that was waiting.
    pub fn answered(&mut self, id: LeaseId) -> Option<Envelope<Receipt>> {
        let place = self.pending.iter().position(|(lease, _)| *lease == id)?;
        self.pending.remove(place).map(|(_, receipt)| receipt)
    }

    /// The receipt that waits for an answer about `id`.
    pub fn awaiting(&self, id: LeaseId) -> Option<&Envelope<Receipt>> {
        self.pending.iter().find(|(lease, _)| *lease == id).map(|(_, receipt)| receipt)
    }

    /// Receipts to send again to `coordinator`, which just came back.
    pub fn unanswered(&self, coordinator: NodeId) -> Vec<Envelope<Receipt>> {
        let from = |receipt: &&Envelope<Receipt>| receipt.unverified().lease.signer() == coordinator;
        self.pending.iter().map(|(_, receipt)| receipt).filter(from).cloned().collect()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether this worker holds any.
    pub fn any_on(&self, worker: u8) -> bool {
        self.held_by(worker).next().is_some()
    }

    /// What is held, for `status`.
    pub fn list(&self) -> Vec<HeldLease> {
        self.held
            .iter()
            .map(|(id, held)| HeldLease {
                id: *id,
                job: held.lease.statement().job,
                worker: held.lease.statement().worker,
                shard: held.lease.statement().shard.clone(),
                pace: held.pace,
            })
            .collect()
    }
}
