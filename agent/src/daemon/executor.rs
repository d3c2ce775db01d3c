//! Executes shards: fetches their inputs, calls the worker, reports how it went.
//!
//! Knows blobs and the worker, never leases' terms or money: an execution is a shard and an id. Shards
//! with a result run one after the other; a stage stays until it is stopped.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skein_compute::protocol::{Reply, StageTask, Task};
use skein_engine::graph::PAGE_POSITIONS;
use skein_mesh::{BlobStore, FetchError, Fetched, Held, Mesh, fetch_blobs};
use skein_proto::group::Group;
use skein_proto::holdings::{Executed, Trouble};
use skein_proto::ids::{Digest, JobId, LeaseId, NodeId};
use skein_proto::job::{Method, Shard};
use skein_proto::lease::Pace;
use skein_proto::limits::OUTPUTS_MAX;
use skein_proto::node::Execution;
use smol::channel;

use super::group::{Groups, Place};
use super::lock;
use super::pipeline::{Pipeline, stage_number};
use super::training::{Tasks, train_size, trained};
use super::worker::Worker;
use crate::limits::{BLOB_BYTES_MAX, STAGE_SILENCE_MAX, TUNING_BEAT, TUNING_MAX, WORKER_STOP_WAIT};
use crate::serve::registry::size;
use crate::serve::served::manifest;

/// Why an execution ends that the coordinator took back.
const STOPPED: &str = "stopped";

/// A worker of another version, or a bug in this one.
const OUT_OF_TURN: &str = "the worker answered out of turn";

/// What the executor reports to the daemon's loop.
#[derive(Debug)]
pub(crate) enum Report {
    /// A shard made progress.
    Progress(LeaseId, Pace),
    /// A shard ended.
    Finished(LeaseId, Result<Executed, Trouble>),
}

/// Executes what the core asks for.
#[derive(Clone)]
pub(crate) struct Executor {
    shared: Arc<Shared>,
}

struct Shared {
    worker: Worker,
    pipeline: Pipeline,
    groups: Groups,
    mesh: Mesh,
    store: BlobStore,
    scratch: PathBuf,
    reports: channel::Sender<Report>,
    // Shards with a result take turns, in the order of their grants.
    turn: smol::lock::Mutex<()>,
    on_gpu: bool,
    /// What jobs may use of the device's memory.
    memory_bytes: u64,
    running: Mutex<BTreeMap<LeaseId, Running>>,
    kept: Kept,
}

/// Of each job, what members may still need and in which round it was made; all workers of an agent share it.
pub(crate) type Kept = Arc<Mutex<BTreeMap<JobId, VecDeque<(u32, Digest)>>>>;

/// What all workers of an agent share.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) mesh: Mesh,
    pub(crate) store: BlobStore,
    pub(crate) scratch: PathBuf,
    pub(crate) pipeline: Pipeline,
    pub(crate) groups: Groups,
    pub(crate) kept: Kept,
}

struct Running {
    stop: channel::Sender<()>,
    standing: bool,
}

impl Executor {
    pub(crate) fn new(
        worker: Worker,
        common: Common,
        on_gpu: bool,
        memory_bytes: u64,
    ) -> (Self, channel::Receiver<Report>) {
        let (reports, heard) = channel::unbounded();
        let Common { mesh, store, scratch, pipeline, groups, kept } = common;
        let (turn, running) = (smol::lock::Mutex::new(()), Mutex::default());
        let shared = Shared {
            worker,
            pipeline,
            groups,
            mesh,
            store,
            scratch,
            reports,
            turn,
            on_gpu,
            memory_bytes,
            running,
            kept,
        };
        (Self { shared: Arc::new(shared) }, heard)
    }

    /// Starts an execution; its end is reported exactly once.
    pub(crate) fn execute(&self, execution: Execution) {
        let (stop, stopped) = channel::bounded(1);
        let running = Running { stop, standing: execution.shard.is_standing() };
        lock(&self.shared.running).insert(execution.lease, running);
        let this = self.clone();
        skein_mesh::spawn(async move {
            let lease = execution.lease;
            let result = this.run(execution, stopped).await;
            lock(&this.shared.running).remove(&lease);
            let _ = this.shared.reports.send(Report::Finished(lease, result)).await;
        })
        .detach();
    }

    /// Ends an execution soon; unknown ones have ended already.
    pub(crate) fn stop(&self, lease: LeaseId) {
        if let Some(running) = lock(&self.shared.running).get(&lease) {
            let _ = running.stop.try_send(());
        }
    }

    /// Whether any stage is held, so that the worker must stay.
    pub(crate) fn holds_stages(&self) -> bool {
        lock(&self.shared.running).values().any(|running| running.standing)
    }

    async fn run(&self, execution: Execution, stopped: channel::Receiver<()>) -> Result<Executed, Trouble> {
        if let Shard::Stage { .. } = execution.shard {
            return self.run_stage(execution, stopped).await;
        }
        let at_work = AtomicBool::new(false);
        // Before its turn, so that the other members of a group find it.
        let take =
            |group: &Group| self.shared.groups.take(self.shared.worker.clone(), execution.job, group.clone());
        let place = execution.shard.group().map(take);
        let work = async {
            let _turn = self.shared.turn.lock().await;
            let received = AtomicU64::new(0);
            self.fetch_inputs(&execution, &received).await?;
            let _held = self.fetch_weights(&execution, &received).await?;
            at_work.store(true, Ordering::Relaxed);
            let executed = match place {
                None => self.run_finite(&execution).await?,
                Some(place) => self.run_grouped(&execution, place).await?,
            };
            let received_bytes = executed.received_bytes.saturating_add(received.into_inner());
            Ok(Executed { received_bytes, ..executed })
        };
        let stop = async {
            let _ = stopped.recv().await;
            Err(Trouble::from(STOPPED))
        };
        // Dropping the work cancels its call; a worker that does not obey is stuck, and goes. One that had
        // not come to this work is busy with another's.
        let result = smol::future::or(work, stop).await;
        if let Some(group) =
            execution.shard.group().filter(|_| at_work.load(Ordering::Relaxed) && result.is_err())
        {
            // Its layers are not to stay in memory.
            let forget = Task::GroupClose { group: group.number, out: None };
            let _ = self.shared.worker.call(forget, |_| {}).await;
        }
        if at_work.load(Ordering::Relaxed) && result.as_ref().is_err_and(|trouble| trouble.reason == STOPPED)
        {
            self.unstick().await;
        }
        result
    }

    /// Kills the worker unless it shows life soon.
    async fn unstick(&self) {
        let generation = self.shared.worker.generation();
        let alive = async { self.shared.worker.call(Task::Describe, |_| {}).await.is_ok() };
        let late = async {
            smol::Timer::after(WORKER_STOP_WAIT).await;
            false
        };
        if !smol::future::or(alive, late).await && self.shared.worker.generation() == generation {
            self.shared.worker.kill("it did not stop when told to");
        }
    }

    async fn run_finite(&self, execution: &Execution) -> Result<Executed, Trouble> {
        let out = self.shared.scratch.join(execution.lease.to_string());
        let task = self.tasks().task(execution, &out.to_string_lossy())?;
        let lease = execution.lease;
        let reports = self.shared.reports.clone();
        let progress = move |reply: Reply| {
            if let Reply::Progress { done, of, loss_micronats, .. } = reply {
                let _ = reports.try_send(Report::Progress(lease, Pace { done, of, loss_micronats }));
            }
        };
        let call = self.kept_alive(lease, self.shared.worker.call(task, progress)).await;
        let reply = call.map_err(|error| error.to_string())?;
        let mut more = Vec::new();
        let (measure, tokens) = if let Reply::Initialised { held_out_micronats, .. } = reply {
            (held_out_micronats, 0)
        } else if let Reply::Trained { loss_micronats, tokens, began, .. } = reply {
            more.push(Digest(began));
            (Some(loss_micronats), tokens)
        } else if let Reply::Shown { .. } = reply {
            (None, 0)
        } else if let Reply::Checked { distance_millionths } = reply {
            let verdict = format!("{{\"distance_millionths\":{distance_millionths}}}");
            smol::fs::write(&out, verdict).await.map_err(|error| error.to_string())?;
            (Some(i64::try_from(distance_millionths).unwrap_or(i64::MAX)), 0)
        } else if let Reply::Merged { held_out_micronats, tokens, refused, .. } = reply {
            let Shard::Merge { deltas, .. } = &execution.shard else { return Err(OUT_OF_TURN.into()) };
            for (slice, part, why) in refused {
                let delta = deltas.get(slice as usize).and_then(|parts| parts.get(part as usize));
                let Some(delta) = delta else { continue };
                tracing::warn!(delta = %delta.short(), why, "a pseudo-gradient is left out of the outer step");
                more.push(*delta);
            }
            ((tokens > 0).then_some(held_out_micronats), tokens)
        } else {
            return Err(OUT_OF_TURN.into());
        };
        let digest = self.shared.store.adopt(&out).await.map_err(|error| error.to_string())?;
        self.keep_only_recent(execution, digest).await;
        let inputs = execution.shard.inputs();
        let outputs = std::iter::once(digest).chain(more).take(OUTPUTS_MAX).collect();
        Ok(Executed { inputs, outputs, tokens, received_bytes: 0, loss_micronats: measure })
    }

    /// A member's part of what a group does.
    async fn run_grouped(&self, execution: &Execution, place: Place) -> Result<Executed, Trouble> {
        let out = self.shared.scratch.join(execution.lease.to_string());
        let out = out.to_string_lossy();
        let task = self.tasks().group(execution)?;
        let lease = execution.lease;
        let reports = &self.shared.reports;
        let pace = Mutex::new(Pace::default());
        let beat = |done, of, loss_micronats| {
            let mut pace = lock(&pace);
            if of > 0 {
                *pace = Pace { done, of, loss_micronats };
            }
            let _ = reports.try_send(Report::Progress(lease, *pace));
        };
        let done = self.kept_alive(lease, place.work(task, &out, beat)).await?;
        let digest = self.shared.store.adopt(&*out).await.map_err(|error| error.to_string())?;
        self.keep_only_recent(execution, digest).await;
        let last = execution.shard.group().is_some_and(Group::is_last);
        Ok(Executed {
            inputs: execution.shard.inputs(),
            outputs: vec![digest],
            tokens: done.tokens,
            received_bytes: done.received_bytes,
            loss_micronats: (last && done.tokens > 0).then_some(done.loss_micronats),
        })
    }

    fn tasks(&self) -> Tasks<'_> {
        Tasks { store: &self.shared.store, memory_bytes: self.shared.memory_bytes }
    }

    async fn run_stage(
        &self,
        execution: Execution,
        stopped: channel::Receiver<()>,
    ) -> Result<Executed, Trouble> {
        let lease = execution.lease;
        let stage = stage_number(lease);
        let received = AtomicU64::new(0);
        let opening = self.open_stage(&execution, stage, &received);
        let stop = async {
            let _ = stopped.recv().await;
            Err(STOPPED.to_owned())
        };
        let (width, _held) = smol::future::or(opening, stop).await?;
        let generation = self.shared.worker.generation();
        let tally = self.shared.pipeline.stage_opened(lease, self.shared.worker.clone(), width);
        let ready = Pace { done: 1, of: 1, loss_micronats: None };
        let _ = self.shared.reports.send(Report::Progress(lease, ready)).await;
        let worker_died = async {
            self.shared.worker.gone(generation).await;
            true
        };
        let released = async {
            let _ = stopped.recv().await;
            false
        };
        let stuck = async {
            loop {
                smol::Timer::after(TUNING_BEAT).await;
                if self.shared.worker.silent_for() >= self.silence_max() {
                    self.shared.worker.kill("it does not answer");
                }
            }
        };
        let died = smol::future::or(smol::future::or(released, worker_died), stuck).await;
        self.shared.pipeline.stage_closed(lease);
        if died {
            return Err("the worker died while it held the stage".into());
        }
        let _ = self.shared.worker.call(Task::StageClose { stage }, |_| {}).await;
        let totals =
            lock(&tally).totals().map_err(|error| format!("cannot keep the commitments: {error}"))?;
        let mut inputs = execution.shard.inputs();
        inputs.push(totals.inputs);
        let mut outputs = vec![totals.outputs];
        if let Some(file) = totals.commitments {
            outputs.push(self.shared.store.adopt(file).await.map_err(|error| error.to_string())?);
        }
        let received_bytes = received.into_inner();
        Ok(Executed { inputs, outputs, tokens: totals.tokens, received_bytes, loss_micronats: None })
    }

    /// Fetches the weights that a shard of training reads beside its checkpoint, after making sure that the model is the
    /// one that the job was counted for; and what keeps them on disk.
    async fn fetch_weights(
        &self,
        execution: &Execution,
        received: &AtomicU64,
    ) -> Result<Option<Held>, String> {
        let Some(spec) = trained(&execution.shard) else { return Ok(None) };
        let (mesh, store) = (&self.shared.mesh, &self.shared.store);
        let holders = self.holders(execution);
        let manifest = manifest(mesh, store, spec.model, &holders).await?;
        if train_size(&manifest, spec.method)? != spec.size {
            return Err(format!("the job states another size than model {} has", spec.model.short()));
        }
        let layers = execution.shard.group().map_or(spec.layers(), Group::layers);
        let reads = match (&execution.shard, spec.method) {
            (Shard::Show { .. }, _) => false,
            (Shard::Init { .. }, _) | (_, Method::Lora { .. }) => true,
            // All that learns is in the checkpoint.
            (_, Method::Full) => false,
        };
        let layers = u32::from(layers.start)..u32::from(layers.end);
        let pieces = if reads { manifest.pieces_of(layers) } else { Vec::new() };
        let wanted: Vec<(Digest, u64)> =
            pieces.iter().map(|(piece, bytes)| (Digest(*piece), *bytes)).collect();
        let held = store.hold(wanted.iter().map(|(piece, _)| *piece).chain([spec.model]));
        let fetched = fetch_blobs(mesh, store, &wanted, &holders, |blob| count(received, blob)).await;
        fetched.map_err(|error| error.to_string())?;
        Ok(Some(held))
    }

    /// Fetches the pieces of the stage's layers and loads them; the width of the model's rows, and what keeps the
    /// pieces on disk.
    async fn open_stage(
        &self,
        execution: &Execution,
        stage: u64,
        received: &AtomicU64,
    ) -> Result<(usize, Held), String> {
        let Shard::Stage { spec, start, end, .. } = &execution.shard else {
            return Err("not a stage".into());
        };
        let (mesh, store) = (&self.shared.mesh, &self.shared.store);
        let holders = self.holders(execution);
        let manifest = manifest(mesh, store, spec.model, &holders).await?;
        // What a token is paid follows from the size that the job states.
        if size(&manifest) != spec.size {
            return Err(format!("the job states another size than model {} has", spec.model.short()));
        }
        let config = &manifest.config;
        let layers = u32::from(*start)..u32::from(*end);
        if layers.end > config.layers {
            return Err(format!("layers {start}..{end} of a model that has {}", config.layers));
        }
        let pieces = manifest.pieces_of(layers.clone());
        let bytes: u64 = pieces.iter().map(|(_, bytes)| bytes).sum();
        let per_token = config.cache_bytes_per_token_and_layer() * u64::from(layers.end - layers.start);
        // Caches are made of pages.
        let context = u64::from(spec.context).next_multiple_of(PAGE_POSITIONS as u64);
        let cache_bytes = per_token * context * u64::from(spec.sessions);
        let needed = bytes.saturating_add(cache_bytes);
        if needed > self.shared.memory_bytes {
            return Err(format!(
                "the stage needs {} of memory, the owner allows {}",
                crate::cmd::bytes_text(needed),
                crate::cmd::bytes_text(self.shared.memory_bytes)
            ));
        }
        let wanted: Vec<(Digest, u64)> =
            pieces.iter().map(|(piece, bytes)| (Digest(*piece), *bytes)).collect();
        let held = store.hold(wanted.iter().map(|(piece, _)| *piece).chain([spec.model]));
        let fetched = fetch_blobs(mesh, store, &wanted, &holders, |blob| count(received, blob)).await;
        fetched.map_err(|error| error.to_string())?;
        let open = Task::StageOpen(StageTask {
            stage,
            manifest: store.path(&spec.model).to_string_lossy().into_owned(),
            pieces: store.directory().to_string_lossy().into_owned(),
            start: layers.start,
            end: layers.end,
            context: spec.context,
            cache_bytes,
        });
        let opened = self.kept_alive(execution.lease, self.shared.worker.call(open, |_| {})).await;
        let reply = opened.map_err(|error| error.to_string())?;
        let Reply::StageOpened { resident_bytes } = reply else { return Err(OUT_OF_TURN.into()) };
        tracing::info!(%start, %end, resident = crate::cmd::bytes_text(resident_bytes), "stage loaded");
        Ok((config.width as usize, held))
    }

    async fn fetch_inputs(&self, execution: &Execution, received: &AtomicU64) -> Result<(), Trouble> {
        let holders = self.holders(execution);
        let inputs = execution.shard.inputs();
        let wanted: Vec<(Digest, u64)> = inputs.iter().map(|digest| (*digest, BLOB_BYTES_MAX)).collect();
        let (mesh, store) = (&self.shared.mesh, &self.shared.store);
        let fetched = fetch_blobs(mesh, store, &wanted, &holders, |blob| count(received, blob)).await;
        fetched.map_err(|error| Trouble {
            reason: error.to_string(),
            missing: match error {
                FetchError::NoHolders { digest } | FetchError::Holders { digest, .. } => Some(digest),
                FetchError::Store(_) => None,
            },
        })
    }

    /// Who is said to hold the inputs, and after them everybody else.
    fn holders(&self, execution: &Execution) -> Vec<NodeId> {
        let mut holders = execution.holders.clone();
        let others: Vec<NodeId> = self.shared.mesh.peers().into_iter().map(|(node, _)| node).collect();
        holders.extend(others.into_iter().filter(|node| !execution.holders.contains(node)));
        holders
    }

    /// A GPU's first task tunes its kernels and is silent meanwhile: shows life for it, for a while. A worker
    /// that stays silent beyond any excuse is stuck, and goes.
    async fn kept_alive<T, E>(
        &self,
        lease: LeaseId,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let beats = async {
            let started = Instant::now();
            loop {
                smol::Timer::after(TUNING_BEAT).await;
                if self.shared.on_gpu && started.elapsed() < TUNING_MAX {
                    let _ = self.shared.reports.try_send(Report::Progress(lease, Pace::default()));
                }
                // A task that reports no steps keeps its lease while the agent lives, so nobody else would
                // notice that the worker hangs in it.
                if self.shared.worker.silent_for() >= TUNING_MAX {
                    self.shared.worker.kill("it does not answer");
                }
            }
        };
        smol::future::or(call, beats).await
    }

    /// So long may a worker be silent while somebody waits for the stage that it holds. One that is also at
    /// a shard with a result, or tunes its kernels, has better reasons to be silent than a hang.
    fn silence_max(&self) -> Duration {
        let finite = lock(&self.shared.running).values().any(|running| !running.standing);
        if self.shared.on_gpu || finite { TUNING_MAX } else { STAGE_SILENCE_MAX }
    }

    /// Removes what no member can still need: pseudo-gradients and checkpoints of rounds long merged.
    async fn keep_only_recent(&self, execution: &Execution, output: Digest) {
        let (round, mut named) = match &execution.shard {
            Shard::Init { .. } => (0, Vec::new()),
            Shard::Train { round, state, .. } | Shard::Judge { round, state, .. } => (*round, vec![*state]),
            Shard::Show { round, .. } => (*round, Vec::new()),
            Shard::Check { round, state, began, delta, .. } => (*round, vec![*state, *began, *delta]),
            Shard::Merge { round, state, deltas, .. } => {
                let mut named: Vec<Digest> = deltas.iter().flatten().copied().collect();
                named.push(*state);
                (*round, named)
            }
            Shard::Stage { .. } => return,
        };
        named.push(output);
        let (stale, recent): (Vec<Digest>, Vec<Digest>) = {
            let mut kept = lock(&self.shared.kept);
            let kept = kept.entry(execution.job).or_default();
            for digest in named {
                kept.retain(|(_, known)| *known != digest);
                kept.push_back((round, digest));
            }
            let old = |entry: &(u32, Digest)| entry.0 + 2 <= round;
            let stale = kept.iter().filter(|entry| old(entry)).map(|entry| entry.1).collect();
            kept.retain(|entry| !old(entry));
            (stale, kept.iter().map(|entry| entry.1).collect())
        };
        // A result is nobody's to remove for want of room: its owner may not have fetched it yet.
        let (store, name) = (self.shared.store.clone(), format!("job-{}", execution.job));
        if let Err(error) = smol::unblock(move || store.pin(&name, recent)).await {
            tracing::warn!(%error, "cannot pin the results of a job");
        }
        for digest in stale {
            if let Err(error) = self.shared.store.remove(digest).await {
                tracing::warn!(%error, "cannot remove an old checkpoint");
            }
        }
    }
}

/// Adds a blob that came from somebody else.
fn count(received: &AtomicU64, blob: Fetched) {
    if blob.from.is_some() {
        received.fetch_add(blob.bytes, Ordering::Relaxed);
    }
}
