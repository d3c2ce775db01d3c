//! The reference model beside the simulated agents: what must hold after each step, told in a few maps.
//!
//! It sees only what agents put out. Must never share code with the core that it judges, beyond the types.

use std::collections::{BTreeMap, BTreeSet};

use skein_proto::election::Reign;
use skein_proto::group::Group;
use skein_proto::ids::{Digest, JobId, LeaseId, Millis, NodeId, Term};
use skein_proto::job::{Shard, TrainSpec};
use skein_proto::lease::{Acceptance, End, Lease};
use skein_proto::message::Message;
use skein_proto::node::{Execution, Output, Record};
use skein_proto::signed::{Envelope, encode};

/// The broken promise, for people.
pub type Broken = String;

/// What one slot of a job was paid for, and under which lease when.
#[derive(Debug)]
struct Paid {
    lease: LeaseId,
    receipt: Digest,
    from: Millis,
    to: Millis,
}

/// One coordinator's place for exactly one live result.
type Place = (NodeId, JobId, String);

/// What one worker of one host did.
#[derive(Clone, Debug, Default)]
pub struct Deeds {
    /// Executions begun, by what was executed.
    pub begun: BTreeMap<String, u32>,
    /// Slices trained to their end.
    pub slices: u32,
    /// Leases completed.
    pub completed: u32,
    /// Executions that its core stopped.
    pub stopped: u32,
}

/// An execution under way: for which place of which coordinator's term, and on which worker.
#[derive(Debug)]
struct Running {
    place: (Option<Reign>, JobId, String),
    host: usize,
    worker: u8,
}

/// All that was seen so far.
#[derive(Debug, Default)]
pub struct Model {
    leases: BTreeMap<LeaseId, Lease>,
    executed: BTreeMap<LeaseId, usize>,
    receipted: BTreeMap<LeaseId, usize>,
    paid: BTreeMap<Place, Vec<Paid>>,
    made: BTreeMap<Digest, Shard>,
    makers: BTreeMap<Digest, BTreeSet<usize>>,
    running: BTreeMap<LeaseId, Running>,
    deeds: BTreeMap<(usize, u8), Deeds>,
    views_differ: bool,
}

impl Model {
    /// From now on a coordinator and a holder may believe different things of one lease, as in a split network.
    pub fn views_differ(&mut self) {
        self.views_differ = true;
    }

    /// Host `host` was ended, and whatever it executed.
    pub fn ended(&mut self, host: usize) {
        self.running.retain(|_, running| running.host != host);
    }

    /// What a worker did so far.
    pub fn deeds(&self, host: usize, worker: u8) -> Deeds {
        self.deeds.get(&(host, worker)).cloned().unwrap_or_default()
    }

    /// Host `host`, which obeys `reign`, put out `output` while its log held `log` (with this output, if it is an append).
    ///
    /// # Errors
    /// The promise that the output breaks.
    pub fn saw(
        &mut self,
        host: usize,
        id: NodeId,
        reign: Option<Reign>,
        output: &Output,
        log: &[Record],
    ) -> Result<(), Broken> {
        match output {
            Output::Send(_, message) => self.sent(id, message, log),
            Output::Append(Record::Receipt(receipt)) => {
                let statement = receipt.unverified();
                let lease = statement.lease.unverified();
                self.leases.insert(lease.id(), lease.clone());
                self.running.remove(&lease.id());
                if statement.end == End::Completed {
                    let deeds = self.deeds.entry((host, lease.worker)).or_default();
                    deeds.completed += 1;
                    if let (Shard::Train { .. }, Some(delta)) = (&lease.shard, statement.outputs.first()) {
                        deeds.slices += 1;
                        self.makers.entry(*delta).or_default().insert(host);
                    }
                }
                let count = self.receipted.entry(lease.id()).or_default();
                *count += 1;
                check(*count == 1, || format!("host {host} wrote {count} receipts for one lease"))?;
                check(self.executed.contains_key(&lease.id()), || {
                    format!("host {host} wrote a receipt for a lease that it never took")
                })?;
                check(statement.end == End::Completed || statement.units.0 == 0, || {
                    format!("host {host} asks for pay for a lease that ended as {:?}", statement.end)
                })
            }
            Output::Append(Record::Acceptance(acceptance)) => {
                let digest = acceptance.unverified().receipt;
                let earlier = log.iter().rev().any(|record| match record {
                    Record::Receipt(receipt) => receipt.digest() == digest,
                    Record::Acceptance(_) => false,
                });
                check(earlier, || format!("host {host} logged an acceptance before its receipt"))?;
                self.accepted(acceptance)
            }
            Output::Execute(execution) => {
                check(self.executed.insert(execution.lease, host).is_none(), || {
                    format!("host {host} executes lease {} a second time", execution.lease.short())
                })?;
                check(execution.shard.validate().is_ok(), || format!("host {host} executes nonsense"))?;
                self.begins(host, id, reign, execution)
            }
            Output::Stop(lease) => {
                if let Some(running) = self.running.get(lease) {
                    self.deeds.entry((host, running.worker)).or_default().stopped += 1;
                }
                Ok(())
            }
            Output::Disconnect(..)
            | Output::Dial(..)
            | Output::JobChanged(_)
            | Output::CoordinatorChanged(_)
            | Output::Note(_) => Ok(()),
        }
    }

    /// A worker begins with a shard: nobody else is at it, its group means this worker, and nobody is his own witness.
    fn begins(
        &mut self,
        host: usize,
        id: NodeId,
        reign: Option<Reign>,
        execution: &Execution,
    ) -> Result<(), Broken> {
        let Execution { lease, worker, job, shard, .. } = execution;
        let what = slot(shard, id);
        let place = (reign, *job, what.clone());
        let twice = self.running.values().find(|running| running.place == place);
        check(self.views_differ || twice.is_none(), || {
            format!("host {host} begins with {what} while {twice:?} is at it")
        })?;
        self.running.insert(*lease, Running { place, host, worker: *worker });
        *self.deeds.entry((host, *worker)).or_default().begun.entry(what.clone()).or_default() += 1;
        if let Some(group) = shard.group() {
            let member = group.members.get(usize::from(group.stage));
            check(member.is_some_and(|member| (member.node, member.worker) == (id, *worker)), || {
                format!("host {host} executes {what} on worker {worker}, which its group does not mean")
            })?;
        }
        let only_maker = |delta| self.makers.get(delta).is_some_and(|makers| makers.iter().eq([&host]));
        match shard {
            Shard::Check { delta, .. } => {
                check(!only_maker(delta), || format!("host {host} is to check what it made itself: {what}"))
            }
            Shard::Show { .. }
            | Shard::Init { .. }
            | Shard::Train { .. }
            | Shard::Judge { .. }
            | Shard::Merge { .. }
            | Shard::Stage { .. } => Ok(()),
        }
    }

    fn sent(&mut self, id: NodeId, message: &Message, log: &[Record]) -> Result<(), Broken> {
        match message {
            Message::Grant { lease, .. } => {
                let lease = lease.unverified();
                check(self.leases.insert(lease.id(), lease.clone()).is_none(), || {
                    format!("lease {} was granted twice", lease.id().short())
                })
            }
            Message::Receipt(receipt) => check(
                log.iter().rev().any(|record| match record {
                    Record::Receipt(logged) => logged == receipt,
                    Record::Acceptance(_) => false,
                }),
                || format!("agent {} sent a receipt that is not in its log", id.short()),
            ),
            Message::Accepted(acceptance) => self.accepted(acceptance),
            Message::Offers(_)
            | Message::Beat { .. }
            | Message::Submit { .. }
            | Message::Cancel(_)
            | Message::Job(_)
            | Message::Progress { .. }
            | Message::Renew(_)
            | Message::Release(_)
            | Message::Failed { .. }
            | Message::Declined(_)
            | Message::Refused { .. }
            | Message::Links(_) => Ok(()),
        }
    }

    /// A slot is paid once at a time: two accepted leases for it never overlapped.
    fn accepted(&mut self, acceptance: &Envelope<Acceptance>) -> Result<(), Broken> {
        let statement = acceptance.unverified();
        let Some(lease) = self.leases.get(&statement.lease) else {
            return Err("an acceptance names a lease that nobody granted".to_owned());
        };
        let what = slot(&lease.shard, lease.agent);
        let place = (acceptance.signer(), lease.job, what.clone());
        let paid = self.paid.entry(place).or_default();
        let (from, to) = (lease.granted_at, statement.accepted_at);
        for other in paid.iter() {
            if other.lease == statement.lease {
                return check(other.receipt == statement.receipt, || {
                    "two receipts were accepted for one lease".to_owned()
                });
            }
            check(other.to <= from || to <= other.from, || {
                format!("two leases for {} were in force at once and both were accepted", what)
            })?;
        }
        paid.push(Paid { lease: statement.lease, receipt: statement.receipt, from, to });
        Ok(())
    }

    /// An execution was reported as ended to the agent that took it.
    ///
    /// # Errors
    /// It is not in the agent's log now.
    pub fn finished(&self, lease: LeaseId) -> Result<(), Broken> {
        check(self.receipted.contains_key(&lease), || format!("lease {} ended unrecorded", lease.short()))
    }

    /// The digest that every worker makes of `shard`, and the memory of how it came about.
    pub fn make(&mut self, shard: &Shard) -> Digest {
        let mut same = shard.clone();
        // Who measures which part of the loss does not change the weights.
        match &mut same {
            Shard::Merge { part, .. } => *part = None,
            Shard::Init { judge, .. } => *judge = false,
            Shard::Train { .. }
            | Shard::Show { .. }
            | Shard::Check { .. }
            | Shard::Judge { .. }
            | Shard::Stage { .. } => {}
        }
        let digest = Digest::of(&encode(&same));
        self.made.insert(digest, same);
        digest
    }

    /// Whether `state` is what training by `spec` gives: every round merged all slices of that round, made
    /// from the state before it, back to the first weights; and every sequence of the data was taken once.
    ///
    /// # Errors
    /// Where the chain breaks.
    pub fn check_training(&self, spec: &TrainSpec, state: Digest) -> Result<(), Broken> {
        let mut state = state;
        // Of the round after this one.
        let mut follows: Option<u64> = None;
        for expected in (0..spec.rounds).rev() {
            let Some(Shard::Merge { state: before, deltas, round, .. }) = self.made.get(&state) else {
                return Err(format!("round {expected} is not a merge"));
            };
            check(*round == expected, || format!("round {round} stands where {expected} should"))?;
            let mut next: Option<u64> = None;
            let mut begins = None;
            for (place, parts) in deltas.iter().enumerate() {
                let mut joined = None;
                let mut layers = 0;
                for delta in parts {
                    let made = self.made.get(delta);
                    let Some(Shard::Train { state, round, index, of, first, steps, group, .. }) = made else {
                        return Err(format!("round {expected} merged something that is not trained"));
                    };
                    let fits = state == before
                        && round == &expected
                        && usize::from(*index) == place
                        && usize::from(*of) == deltas.len();
                    check(fits, || format!("round {expected} merged a foreign slice {index} of {of}"))?;
                    let held = group.as_ref().map_or(spec.layers(), Group::layers);
                    check(held.start == layers, || format!("slice {index} lacks the layers from {layers}"))?;
                    layers = held.end;
                    let of = (*first, *steps, group.as_ref().map(|group| group.number));
                    check(*joined.get_or_insert(of) == of, || {
                        format!("slice {index} of round {expected} mixes the parts of two groups")
                    })?;
                }
                check(layers == spec.size.layers, || format!("slice {place} ends at layer {layers}"))?;
                let Some((first, steps, _)) = joined else { return Err("a slice of no parts".to_owned()) };
                check(next.is_none_or(|next| next == first), || {
                    format!("slice {place} of round {expected} begins at sequence {first}, not {next:?}")
                })?;
                begins = begins.or(Some(first));
                next = Some(first + u64::from(steps) * u64::from(spec.batch));
            }
            check(follows.is_none_or(|follows| Some(follows) == next), || {
                format!("round {expected} ends at sequence {next:?}, the next begins at {follows:?}")
            })?;
            follows = begins;
            state = *before;
        }
        check(follows.is_none_or(|follows| follows == 0), || {
            format!("the first round begins at {follows:?}")
        })?;
        let first =
            matches!(self.made.get(&state), Some(Shard::Init { spec: begun, .. }) if begun.seed == spec.seed);
        check(first, || "training did not start from the job's first weights".to_owned())
    }
}

/// Terms of office as one agent sees them, in one life.
#[derive(Debug, Default)]
pub struct Terms(Option<Term>);

impl Terms {
    /// The agent obeys `reign` now.
    ///
    /// # Errors
    /// It obeyed a higher term before.
    pub fn saw(&mut self, reign: Option<Reign>) -> Result<(), Broken> {
        let Some(Reign { term, coordinator }) = reign else { return Ok(()) };
        let lower = self.0.is_some_and(|before| term < before);
        self.0 = self.0.max(Some(term));
        check(!lower, || format!("term went down to {term} under {}", coordinator.short()))
    }
}

fn slot(shard: &Shard, agent: NodeId) -> String {
    match shard {
        Shard::Init { .. } => "init".to_owned(),
        Shard::Train { round, index, of, state, group, .. } => {
            let part = group.as_ref().map_or_else(String::new, |group| {
                format!(", member {} of group {}", group.stage, group.number)
            });
            format!("round {round} slice {index} of {of} from {}{part}", state.short())
        }
        Shard::Show { round, began, .. } => format!("what {} began with in round {round}", began.short()),
        Shard::Check { round, delta, .. } => {
            format!("{} of round {round} again, by {}", delta.short(), agent.short())
        }
        Shard::Judge { round, state, part, group, .. } => {
            let (index, stage) = (part.index, group.stage);
            format!(
                "judging {index} by {stage} of round {round} of {}, group {}",
                state.short(),
                group.number
            )
        }
        Shard::Merge { round, state, .. } => {
            format!("outer step {round} of {} on {}", state.short(), agent.short())
        }
        Shard::Stage { index, .. } => format!("stage {index}"),
    }
}

fn check(holds: bool, broken: impl FnOnce() -> Broken) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(broken()) }
}
