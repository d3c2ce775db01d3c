//! The daemon: waits for one event, applies it to the core and the ledger, performs what they ask for.
//!
//! No decision is made here. Everything that can happen is an [`Event`]; what must be durable is written
//! before anything queued after it is sent. Must never load a GPU driver: that is the worker's.

mod book;
pub(crate) mod curve;
mod device;
pub(crate) mod executor;
mod group;
pub(crate) mod history;
pub(crate) mod journal;
pub(crate) mod owner;
pub(crate) mod pipeline;
mod station;
pub(crate) mod status;
mod traffic;
pub(crate) mod training;
pub(crate) mod treasury;
pub(crate) mod updating;
pub(crate) mod worker;

mod start;

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use skein_compute::device::DeviceChoice;
use skein_ledger::entry::Entry;
use skein_mesh::{BlobStore, Event as MeshEvent, Mesh, PeerAddress, StreamKind, serve_blob};
use skein_policy::readings::Readings;
use skein_policy::{Settings, View};
use skein_proto::ids::{JobId, Millis, NodeId};
use skein_proto::job::{JobSpec, Work};
use skein_proto::limits::TICK_MS;
use skein_proto::message::{JobStatus, Phase};
use skein_proto::node::{Execution, Input, Node, Output, Record};
use skein_proto::offer::WorkerOffer;
use skein_proto::signed::encode;
use skein_update::{State, Version};
use smol::channel;

use self::book::{Book, Order};
use self::curve::Curves;
use self::device::Surveyed;
use self::executor::{Common, Executor, Report};
use self::history::Past;
use self::journal::Journal;
use self::owner::Owner;
use self::pipeline::Pipeline;
use self::station::{Bench, Stations};
use self::status::{ClaimState, Earned, HeldLease, LogState, Peer, Status, WorkerInfo};
use self::treasury::Treasury;
use self::updating::{Unfetched, Updating};
use self::worker::Worker;
use crate::api::Crowd;
use crate::config::Config;
use crate::fleet::{Fleet, plain};
use crate::host::Host;
use crate::limits::RIG_TEXT_CHARS_MAX;

pub(crate) use self::start::{RUNNING_FILE, Running, from_here, run, runs_nowhere};

/// Everything that can happen to the daemon.
pub(crate) enum Event {
    /// The network.
    Mesh(MeshEvent),
    /// The devices of this machine are known.
    Surveyed(Result<Surveyed>),
    /// One of them was measured.
    Measured { worker: u8, bench: Bench, measured: Result<Box<Measured>> },
    /// A newer version was fetched and checked, or there is none.
    Fetched(Result<Option<Version>, Unfetched>),
    /// The sensors were read; the machine may have slept before.
    Sensed { readings: Box<Readings>, woke: bool },
    /// A shard progressed or ended.
    Report(Report),
    /// The local API asks.
    Call(Call),
    /// Time passed.
    Tick,
    /// The operating system asks the agent to end.
    Signal,
}

/// What the benchmark of a device gave.
pub(crate) struct Measured {
    pub(crate) offer: WorkerOffer,
    pub(crate) reports: channel::Receiver<Report>,
    pub(crate) means: Means,
    pub(crate) device: DeviceChoice,
    /// Why this device.
    pub(crate) reason: String,
}

/// By what shards are executed on one device.
pub(crate) struct Means {
    pub(crate) worker: Worker,
    pub(crate) executor: Executor,
}

/// A question or order from the local API, with the place for its answer.
pub(crate) enum Call {
    Status(channel::Sender<Box<Status>>),
    Jobs(channel::Sender<Vec<JobStatus>>),
    Submit(JobSpec, channel::Sender<Result<JobId, String>>),
    /// Takes up a job that ended unfinished, as a new one.
    Resume(JobId, channel::Sender<Result<JobId, String>>),
    Cancel(JobId, channel::Sender<Result<(), String>>),
    Claim {
        dry_run: bool,
        answer: channel::Sender<ClaimState>,
    },
    /// The jobs that serve a model of this name, and the way to their stages.
    Serving {
        name: String,
        answer: channel::Sender<(Vec<JobStatus>, Pipeline)>,
    },
    /// The owner pauses, resumes, or wants the work finished.
    Owner(skein_policy::Event, channel::Sender<View>),
    /// When the owner's present day ends, in Unix milliseconds.
    Midnight(channel::Sender<u64>),
    Settings(channel::Sender<Settings>),
    Set {
        key: String,
        value: String,
        answer: channel::Sender<Result<Settings, String>>,
    },
    /// What this agent earned, epoch by epoch.
    Earnings(channel::Sender<Vec<Earned>>),
    /// What sensors said after that time.
    History {
        since_ms: u64,
        answer: channel::Sender<Past>,
    },
    /// The owner wants a newer version, or this one.
    Update(Option<Version>, channel::Sender<Result<(), String>>),
    /// For metrics.
    Gauges(channel::Sender<(Box<Status>, Option<Readings>)>),
    Down(channel::Sender<()>),
}

/// First byte of a control frame: for whom it is.
const CHANNEL_CORE: u8 = 0;
const CHANNEL_LEDGER: u8 = 1;

/// Network time: the wall clock at the start, and from there on the monotonic one, so that it never jumps.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    origin: Millis,
    started: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let since_1970 =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { origin: Millis(u64::try_from(since_1970.as_millis()).unwrap_or(0)), started: Instant::now() }
    }

    /// After a sleep of the machine, through which its monotonic clock stood still: goes on from the wall clock.
    fn catch_up(&mut self) {
        let wall = Self::new();
        if wall.origin > self.now() {
            *self = wall;
        }
    }

    pub(crate) fn now(&self) -> Millis {
        self.origin.plus(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

/// The agent's state and all its tools.
pub(crate) struct Daemon {
    config: Config,
    api: String,
    clock: Clock,
    node: Node,
    mesh: Mesh,
    store: BlobStore,
    journal: Journal,
    treasury: Treasury,
    curves: Curves,
    book: Book,
    owner: Owner,
    updating: Updating,
    /// The customers at the door.
    crowd: Crowd,
    fleet: Fleet,
    stations: Stations,
    /// What the workers share.
    common: Common,
    host: Host,
    leases_taken: u64,
    leaving: Option<Leaving>,
}

struct Leaving {
    since: Instant,
    answers: Vec<channel::Sender<()>>,
}

/// Whoever asked an agent to leave is answered within this.
const ANSWER_WAIT: Duration = Duration::from_millis(100);

/// Killed workers end within this, or the agent ends before them.
const WORKERS_END_WAIT: Duration = Duration::from_millis(500);

/// A leaving agent waits so long for its workers to let go and its receipts to be answered.
const LEAVE_WAIT: Duration = Duration::from_secs(3);

impl Daemon {
    /// Gives the core back what only the log remembers.
    fn recall(&mut self) -> Result<()> {
        self.core(Input::Unanswered(self.journal.unanswered()))?;
        for Order { spec, status } in self.book.orders() {
            let job = self.node.sign_job(spec);
            if JobId(job.digest().0) == status.id {
                self.core(Input::Submit(Box::new(job), Some(Box::new(status))))?;
            }
        }
        Ok(())
    }

    /// Applies events until the agent is told to leave.
    async fn serve(
        &mut self,
        events: &channel::Receiver<Event>,
        feed: &channel::Sender<Event>,
    ) -> Result<()> {
        while let Ok(event) = events.recv().await {
            self.apply(event, feed)?;
            self.note_work(feed)?;
            if let Some(leaving) = &self.leaving
                && (self.node.may_leave() || leaving.since.elapsed() > LEAVE_WAIT)
            {
                break;
            }
        }
        self.stations.end("the agent is leaving");
        self.owner.traffic.save();
        self.mesh.close().await;
        // Whoever asked may need the devices next.
        let gone = async {
            for Means { worker, .. } in self.stations.all_means() {
                worker.gone(worker.generation()).await;
            }
        };
        smol::future::or(gone, async {
            smol::Timer::after(WORKERS_END_WAIT).await;
        })
        .await;
        for answer in self.leaving.iter().flat_map(|leaving| &leaving.answers) {
            let _ = answer.try_send(());
        }
        if self.leaving.as_ref().is_some_and(|leaving| !leaving.answers.is_empty()) {
            // The API writes what it was just told while this waits; nobody else keeps the process.
            smol::Timer::after(ANSWER_WAIT).await;
        }
        Ok(())
    }

    fn apply(&mut self, event: Event, feed: &channel::Sender<Event>) -> Result<()> {
        match event {
            Event::Mesh(event) => self.mesh_event(event),
            Event::Surveyed(surveyed) => self.surveyed(surveyed, feed),
            Event::Measured { worker, bench, measured } => self.measured(worker, bench, measured, feed),
            Event::Sensed { readings, woke } => self.sensed(*readings, woke, feed),
            Event::Report(Report::Progress(lease, pace)) => self.core(Input::Progress(lease, pace)),
            Event::Report(Report::Finished(lease, result)) => self.core(Input::Finished(lease, result)),
            Event::Call(call) => self.call(call, feed),
            Event::Fetched(fetched) => self.fetched(fetched),
            Event::Tick => {
                self.tick()?;
                self.tick_update(feed)
            }
            Event::Signal => self.told_to_leave(None),
        }
    }

    fn mesh_event(&mut self, event: MeshEvent) -> Result<()> {
        match event {
            MeshEvent::Up { node, address, dialled } => {
                tracing::debug!(node = %node.short(), %address, dialled, "connected");
                self.core(Input::Up(node))?;
                let outputs = self.treasury.peer_up(self.clock.now(), node)?;
                self.treasury_outputs(outputs)
            }
            MeshEvent::Down { node, reason } => {
                tracing::debug!(node = %node.short(), %reason, "disconnected");
                self.fleet.gone(node);
                self.core(Input::Down(node))
            }
            MeshEvent::Control { from, frame } => match frame.split_first() {
                Some((&CHANNEL_CORE, bytes)) => self.core(Input::Frame { from, bytes: bytes.to_vec() }),
                Some((&CHANNEL_LEDGER, bytes)) => {
                    let outputs = self.treasury.message(self.clock.now(), from, bytes.to_vec())?;
                    self.treasury_outputs(outputs)
                }
                _ => {
                    self.mesh.disconnect(from, "a frame on no channel that this version knows");
                    Ok(())
                }
            },
            MeshEvent::Stream { from, kind, stream } => {
                match kind {
                    // Whoever fetches goes to another who holds it. What the owner ordered himself is worth its price.
                    StreamKind::Blob if self.stations.spare_the_line() && !self.has_orders() => drop(stream),
                    StreamKind::Blob => {
                        let store = self.store.clone();
                        skein_mesh::spawn(async move {
                            if let Err(error) = serve_blob(stream, &store).await {
                                tracing::debug!(to = %from.short(), %error, "a blob was not delivered");
                            }
                        })
                        .detach();
                    }
                    StreamKind::Stage => {
                        skein_mesh::spawn(self.common.pipeline.clone().accept(from, stream)).detach();
                    }
                    StreamKind::Group => {
                        skein_mesh::spawn(self.common.groups.clone().accept(from, stream)).detach();
                    }
                    StreamKind::Fleet => self.fleet.accept(from, stream),
                }
                Ok(())
            }
            MeshEvent::Refused { address, reason } => {
                tracing::warn!(%address, "refused: {reason}");
                Ok(())
            }
        }
    }

    fn core(&mut self, input: Input) -> Result<()> {
        let mut outputs = Vec::new();
        self.node.handle(self.clock.now(), input, &mut outputs);
        for output in outputs {
            self.perform(output)?;
        }
        Ok(())
    }

    fn perform(&mut self, output: Output) -> Result<()> {
        match output {
            Output::Send(to, message) => self.send(to, CHANNEL_CORE, &encode(&message)),
            Output::Disconnect(node, why) => self.mesh.disconnect(node, &why),
            Output::Dial(node, addresses) => {
                for address in addresses.iter().filter_map(|address| address.parse().ok()) {
                    self.mesh.hint(PeerAddress { node: Some(node), address });
                }
            }
            Output::Append(Record::Receipt(receipt)) => self.journal.append(Entry::Receipt(receipt))?,
            Output::Append(Record::Acceptance(acceptance)) => {
                self.journal.append(Entry::Acceptance(acceptance))?
            }
            Output::Execute(execution) => {
                self.leases_taken += 1;
                self.execute(execution)?;
            }
            Output::Stop(lease) => {
                for means in self.stations.all_means() {
                    means.executor.stop(lease);
                }
            }
            Output::JobChanged(id) => {
                if let Some(job) = self.node.jobs().get(&id).filter(|job| job.owner == self.node.id()) {
                    self.curves.follow(self.clock.now(), job);
                    self.book.follow(job);
                }
            }
            Output::CoordinatorChanged(reign) => match reign {
                Some(reign) if reign.coordinator == self.node.id() => {
                    tracing::info!(term = reign.term.0, "this agent is the coordinator now");
                }
                Some(reign) => {
                    tracing::info!(coordinator = %reign.coordinator.short(), term = reign.term.0, "coordinator");
                }
                None => tracing::info!("no coordinator"),
            },
            Output::Note(text) => tracing::info!("{text}"),
        }
        Ok(())
    }

    fn execute(&mut self, execution: Execution) -> Result<()> {
        let Some(Means { executor, .. }) = self.stations.means(execution.worker) else {
            let refusal = Err("this agent has no device to work on".into());
            return self.core(Input::Finished(execution.lease, refusal));
        };
        let Execution { lease, worker, .. } = &execution;
        tracing::info!(shard = execution.shard.kind(), lease = %lease.short(), worker, "working");
        executor.execute(execution);
        Ok(())
    }

    fn treasury_outputs(&mut self, outputs: Vec<treasury::Output>) -> Result<()> {
        for output in outputs {
            match output {
                treasury::Output::Send(to, bytes) => self.send(to, CHANNEL_LEDGER, &bytes),
                treasury::Output::ClaimDue(epoch) => {
                    let now = self.clock.now();
                    let more = self.treasury.claim(now, epoch, self.journal.log())?;
                    self.treasury_outputs(more)?;
                }
            }
        }
        Ok(())
    }

    fn send(&self, to: NodeId, channel: u8, bytes: &[u8]) {
        let mut frame = Vec::with_capacity(bytes.len() + 1);
        frame.push(channel);
        frame.extend_from_slice(bytes);
        match self.mesh.send(to, frame) {
            // Whoever is gone is reported as down; what it missed is said again when it is back.
            Ok(()) | Err(skein_mesh::SendError::NotConnected { .. }) => {}
            Err(error) => {
                tracing::warn!(to = %to.short(), %error, "cannot send");
                self.mesh.disconnect(to, "it does not take what it is sent");
            }
        }
    }

    fn tick(&mut self) -> Result<()> {
        self.core(Input::Tick)?;
        let links = self.mesh.round_trips();
        self.core(Input::Links(links))?;
        let coordinator = self.node.reign().map(|reign| reign.coordinator);
        let members: BTreeSet<NodeId> = self.node.offers().map(skein_proto::signed::Signed::signer).collect();
        let outputs = self.treasury.tick(self.clock.now(), coordinator, members)?;
        self.treasury_outputs(outputs)?;
        for Means { worker, executor } in self.stations.all_means() {
            let (worker, keep) = (worker.clone(), executor.holds_stages());
            skein_mesh::spawn(async move { worker.retire_if_idle(keep).await }).detach();
        }
        Ok(())
    }

    /// Orders a job, from where it stood `before`.
    fn submit(&mut self, spec: JobSpec, before: Option<JobStatus>) -> Result<JobId> {
        let job = self.node.sign_job(spec.clone());
        let id = JobId(job.digest().0);
        self.core(Input::Submit(Box::new(job), before.map(Box::new)))?;
        if let Some(status) = self.node.jobs().get(&id) {
            self.book.open(spec, status.clone());
        }
        Ok(id)
    }

    /// The job as a new one that goes on where it ended.
    fn to_resume(&self, id: JobId) -> Result<Order, String> {
        let mut order = self
            .book
            .order(id)
            .ok_or("no such training job was ordered here\nhint: ask the agent where it was submitted")?;
        let last = self.node.jobs().get(&id).unwrap_or(&order.status).clone();
        match last.phase {
            Phase::Waiting | Phase::Running => return Err("the job has not ended\nhint: `skein logs ID --follow` watches it, `skein cancel ID` ends it".to_owned()),
            Phase::Done => return Err("the job is done; there is nothing left to do\nhint: `skein result ID --output FOLDER` fetches what it made".to_owned()),
            Phase::Failed { .. } | Phase::Cancelled => {}
        }
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| format!("no randomness: {error}"))?;
        order.spec.nonce = u64::from_le_bytes(nonce);
        order.status = JobStatus { phase: Phase::Waiting, ..last };
        Ok(order)
    }

    fn call(&mut self, call: Call, feed: &channel::Sender<Event>) -> Result<()> {
        match call {
            Call::Status(answer) => {
                let _ = answer.try_send(Box::new(self.status()));
            }
            Call::Jobs(answer) => {
                let _ = answer.try_send(self.node.jobs().values().cloned().collect());
            }
            Call::Submit(spec, answer) => {
                let result = match spec.validate() {
                    Ok(()) => Ok(self.submit(spec, None)?),
                    Err(error) => Err(error.to_string()),
                };
                let _ = answer.try_send(result);
            }
            Call::Resume(id, answer) => {
                let result = match self.to_resume(id) {
                    Ok(Order { spec, status }) => Ok(self.submit(spec, Some(status))?),
                    Err(reason) => Err(reason),
                };
                let _ = answer.try_send(result);
            }
            Call::Cancel(id, answer) => {
                let known = self.node.jobs().get(&id).map(|job| job.owner);
                let result = match known {
                    Some(owner) if owner == self.node.id() => self.core(Input::Cancel(id)).map(Ok)?,
                    Some(owner) => Err(format!("the job belongs to agent {}", owner.short())),
                    None => Err("no such job".to_owned()),
                };
                let _ = answer.try_send(result);
            }
            Call::Claim { dry_run, answer } => {
                let now = self.clock.now();
                let (state, outputs) = self.treasury.claim_now(now, dry_run, &self.journal)?;
                let _ = answer.try_send(state);
                self.treasury_outputs(outputs)?;
            }
            Call::Serving { name, answer } => {
                let jobs = self.node.jobs().values();
                let named = jobs.filter(|job| job.name == name && !job.phase.is_final());
                let serving = named.filter(|job| matches!(job.work, Work::Serve(_))).cloned().collect();
                let _ = answer.try_send((serving, self.common.pipeline.clone()));
            }
            Call::Owner(told, answer) => {
                self.owner_said(&told, feed)?;
                let _ = answer.try_send(self.stations.view());
            }
            Call::Midnight(answer) => {
                let _ = answer.try_send(self.owner.midnight_ms() + 86_400_000);
            }
            Call::Settings(answer) => {
                let _ = answer.try_send(self.stations.settings().clone());
            }
            Call::Set { key, value, answer } => {
                let result = self.change_setting(&key, &value, feed)?;
                let _ = answer.try_send(result.map(|()| self.stations.settings().clone()));
            }
            Call::Earnings(answer) => {
                let _ = answer.try_send(self.treasury.earnings());
            }
            Call::History { since_ms, answer } => {
                let _ = answer.try_send(self.owner.history.since(since_ms));
            }
            Call::Update(version, answer) => {
                let _ = answer.try_send(self.update(version, feed));
            }
            Call::Gauges(answer) => {
                let _ = answer.try_send((Box::new(self.status()), self.owner.readings().cloned()));
            }
            Call::Down(answer) => self.told_to_leave(Some(answer))?,
        }
        Ok(())
    }

    fn leave(&mut self, answer: Option<channel::Sender<()>>) -> Result<()> {
        if self.leaving.is_none() {
            tracing::info!("leaving");
        }
        let leaving =
            self.leaving.get_or_insert_with(|| Leaving { since: Instant::now(), answers: Vec::new() });
        leaving.answers.extend(answer);
        self.core(Input::Leave)
    }

    fn status(&self) -> Status {
        let own = self.node.offer();
        let reign = self.node.reign();
        let held = self.node.held();
        let device_of = |node: NodeId| {
            let mut offers = self.node.offers();
            offers
                .find(|offer| offer.signer() == node)
                .map(|offer| plain(&status::devices(offer.statement()), RIG_TEXT_CHARS_MAX))
        };
        let peers = self.mesh.peers().into_iter().map(|(node, address)| Peer {
            node,
            address: address.to_string(),
            round_trip_us: self.mesh.round_trip(node).and_then(|time| u64::try_from(time.as_micros()).ok()),
            device: device_of(node),
        });
        let worker = self.stations.means(0).map(|means| means.worker.state());
        let gpu = |at| self.gpu_id(at, self.owner.readings()?);
        Status {
            node: self.node.id(),
            pid: std::process::id(),
            version: crate::version().to_owned(),
            network: self.config.genesis.name.clone(),
            network_id: self.config.genesis.network_id(),
            listen: self.mesh.local_address().to_string(),
            api: self.api.clone(),
            peers: peers.collect(),
            coordinator: reign.map(|reign| reign.coordinator),
            term: reign.map(|reign| reign.term.0),
            visible: own.is_some() && reign.is_some_and(|reign| self.reaches(reign.coordinator)),
            working: !held.is_empty(),
            reasons: self.reasons(),
            offer: own.and_then(|offer| status::Offered::of(offer.statement())),
            device_reason: self.stations.device_reason(),
            on_trial: skein_update::is_trial(),
            surveying: self.stations.is_surveying(),
            update: State::load(&self.config.data_dir).last_result,
            earned_today: self.treasury.earned_since(Millis(self.owner.midnight_ms())).to_string(),
            policy: self.stations.view(),
            leases: held
                .into_iter()
                .map(|held| HeldLease {
                    lease: held.id,
                    job: held.job,
                    worker: held.worker,
                    shard: held.shard.kind().to_owned(),
                    done: held.pace.done,
                    of: held.pace.of,
                })
                .collect(),
            leases_taken: self.leases_taken,
            log: LogState {
                path: self.config.data_dir.join("log").display().to_string(),
                entries: self.journal.log().size(),
            },
            ledger: self.treasury.state(self.clock.now(), &self.journal),
            worker: WorkerInfo {
                pid: worker.as_ref().and_then(|worker| worker.pid),
                deaths: worker.as_ref().map_or(0, |worker| worker.deaths),
            },
            workers: self.stations.told(|worker| self.node.works_on(worker), gpu),
            bytes_sent: self.mesh.bytes_sent(),
            bytes_received: self.mesh.bytes_received(),
            host: self.host.clone(),
        }
    }

    /// Whether a job of this agent's own owner goes on.
    fn has_orders(&self) -> bool {
        self.node.jobs().values().any(|job| job.owner == self.node.id() && !job.phase.is_final())
    }

    /// Whether `node` is this agent or connected to it.
    fn reaches(&self, node: NodeId) -> bool {
        node == self.node.id() || self.mesh.peers().iter().any(|(peer, _)| *peer == node)
    }

    fn reasons(&self) -> Vec<String> {
        let view = self.stations.view();
        let mut reasons: Vec<String> = view.reasons.into_iter().map(|reason| reason.line).collect();
        if !self.node.held().is_empty() {
            return reasons;
        }
        if self.stations.is_measuring() {
            reasons.push("still measuring the device".to_owned());
        }
        match self.node.reign() {
            None => reasons.push("no coordinator yet".to_owned()),
            Some(_) if self.node.offer().is_some_and(status::is_open) => {
                reasons.push("no lease: no job needs this agent at the moment".to_owned());
            }
            Some(_) => {}
        }
        if self.mesh.peers().is_empty() && !self.config.bootstrap.is_empty() {
            reasons.push("none of the bootstrap agents answers".to_owned());
        }
        reasons
    }
}

/// Locks what is never left half-changed, so that a panic elsewhere does not matter.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Feeds everything from one channel into the loop's.
fn forward<T: Send + 'static>(
    from: channel::Receiver<T>,
    to: channel::Sender<Event>,
    wrap: impl Fn(T) -> Event + Send + 'static,
) {
    skein_mesh::spawn(async move {
        while let Ok(item) = from.recv().await {
            if to.send(wrap(item)).await.is_err() {
                return;
            }
        }
    })
    .detach();
}

/// Paces the core.
fn tick_for_ever(to: channel::Sender<Event>) {
    skein_mesh::spawn(async move {
        loop {
            smol::Timer::after(Duration::from_millis(TICK_MS)).await;
            if to.send(Event::Tick).await.is_err() {
                return;
            }
        }
    })
    .detach();
}
