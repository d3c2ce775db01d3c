//! Owns the worker process: reads tasks from one pipe, executes them in order on one device, writes replies to the
//! other.
//! Must never outlive the daemon, print to stdout beside the protocol, or let a task's panic end the process.
//!
//! Three threads: the reader parses frames, notes cancels and notices the end of the pipe even while a task runs; one
//! executes training and measuring in order; one serves the stages of language models ([`crate::stages`]), so that
//! tokens do not wait for a training step. When the pipe ends the process exits at once, so that the device's memory
//! is free.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Device;
use skein_engine::manifest::{Manifest, PieceSource};

use crate::bench::bench;
use crate::check::{Claim, check_phase};
use crate::checkpoint::{Checkpoint, Digest};
use crate::child;
use crate::data::Dataset;
use crate::device::{DeviceChoice, DeviceError};
use crate::group::{Group, GroupError, Purpose};
use crate::limits::{BEGINNINGS_MAX, CANCELS_MAX, TASKS_QUEUED_MAX};
use crate::optimiser::Moments;
use crate::outer::{OuterRate, merge};
use crate::packing::Bits;
use crate::passes::Model;
use crate::protocol::{
    FrameError, GroupPurpose, GroupTask, InnerTask, Judge, ModelTask, PhaseTask, Reply, Request, Response,
    Task, read_frame, write_frame,
};
use crate::stages;
use crate::train::{Inner, TrainError, evaluate, inner_phase};
use crate::trainee::Trainee;

/// Said once per process on a GPU, where the first pass through a model compiles and times kernels.
const TUNING: &str = "tuning kernels, first run";

/// The number of threads that the CPU backend uses, by the name that rayon reads.
const THREADS_VARIABLE: &str = "RAYON_NUM_THREADS";

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The device could not be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device's driver panicked while it was opened.
    #[error("opening the device panicked: {0}")]
    Panicked(String),
    /// The daemon sent what is no frame, or a pipe failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The daemon sent more tasks than may wait.
    #[error("more than {TASKS_QUEUED_MAX} tasks are waiting")]
    Flooded,
    /// The reader could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// The command that starts a worker: `exe worker --device DEVICE`, with `threads` for the CPU backend.
///
/// It runs in `directory`, which should be the worker's own, so that no `burn.toml` of a stranger is found there. The
/// daemon adds pipes for stdin and stdout. Kernels are chosen by rule, not by timing, because timing differs between
/// runs and work that is checked by repeating it must not.
#[must_use]
pub fn command(exe: &Path, device: &DeviceChoice, directory: &Path, threads: u32) -> Command {
    let mut command = child::command(exe);
    command.arg("worker").arg("--device").arg(device.to_string()).current_dir(directory);
    command.env(THREADS_VARIABLE, threads.max(1).to_string()).env("CUBECL_AUTOTUNE_LEVEL", "minimal");
    command
}

/// Runs a worker until `input` ends, when it exits the process.
///
/// # Errors
/// [`WorkerError`] when the device cannot be opened or the daemon breaks the protocol.
pub fn run(
    choice: &DeviceChoice,
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
) -> Result<(), WorkerError> {
    run_until(choice, input, output, || std::process::exit(0))
}

/// Like [`run`], but `gone` is called on the reader's thread when `input` ends; if it returns, tasks that were read
/// are finished first.
///
/// # Errors
/// As [`run`].
pub fn run_until(
    choice: &DeviceChoice,
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    gone: impl FnOnce() + Send + 'static,
) -> Result<(), WorkerError> {
    let cancels = Cancels::default();
    let replies = Replies::new(output);
    let (sender, tasks) = sync_channel(TASKS_QUEUED_MAX);
    let (steps, stage_tasks) = sync_channel(TASKS_QUEUED_MAX);
    let reader = {
        let cancels = cancels.clone();
        move || read_tasks(input, &Queues { tasks: sender, stages: steps }, &cancels, gone)
    };
    // The reader starts before the device is opened: a driver may hang there, and the daemon may leave.
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    thread("reader").spawn(reader).map_err(WorkerError::Thread)?;
    let stages = {
        let (choice, replies) = (choice.clone(), replies.clone());
        move || stages::serve(&choice, threads(), &stage_tasks, &replies)
    };
    let stages = thread("stages").spawn(stages).map_err(WorkerError::Thread)?;
    let opened =
        catch_unwind(|| choice.open()).map_err(|panic| WorkerError::Panicked(panic_text(&*panic)))?;
    let mut worker =
        Worker { choice: choice.clone(), device: opened?, replies, cancels, warm: false, job: None };
    worker.serve(&tasks)?;
    // The reader has ended, and with it both queues.
    stages.join().map_err(|panic| WorkerError::Panicked(panic_text(&*panic)))?.map_err(WorkerError::Frame)
}

/// Where replies go, from both threads that have any.
pub(crate) struct Replies<W>(Arc<Mutex<W>>);

impl<W> Clone for Replies<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<W: Write> Replies<W> {
    fn new(output: W) -> Self {
        Self(Arc::new(Mutex::new(output)))
    }

    /// Sends a reply; one that cannot be encoded (values that are not numbers, or too many) becomes a failure.
    pub(crate) fn send(&self, id: u64, body: Reply) -> Result<(), FrameError> {
        let mut output = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = write_frame(&mut *output, &Response { id, body });
        match result {
            Err(error @ (FrameError::Unencodable(_) | FrameError::TooLong { .. })) => {
                write_frame(&mut *output, &Response { id, body: Reply::failed(error.to_string()) })
            }
            Ok(()) | Err(FrameError::Pipe(_) | FrameError::Torn | FrameError::Garbage(_)) => result,
        }
    }
}

/// The numbers of cancelled requests, the latest last.
#[derive(Clone, Default)]
struct Cancels(Arc<Mutex<VecDeque<u64>>>);

impl Cancels {
    fn add(&self, id: u64) {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.len() >= CANCELS_MAX {
            ids.pop_front();
        }
        ids.push_back(id);
    }

    fn has(&self, id: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }
}

type Incoming = Result<Request, WorkerError>;

struct Queues {
    tasks: SyncSender<Incoming>,
    stages: SyncSender<Request>,
}

impl Queues {
    /// To the thread that it concerns; false when a queue is full.
    fn send(&self, request: Request) -> Result<(), TrySendError<()>> {
        let forget = |full| if full { TrySendError::Full(()) } else { TrySendError::Disconnected(()) };
        if stages::concerns(&request.body) {
            self.stages.try_send(request).map_err(|error| forget(matches!(error, TrySendError::Full(_))))
        } else {
            self.tasks.try_send(Ok(request)).map_err(|error| forget(matches!(error, TrySendError::Full(_))))
        }
    }
}

fn read_tasks(mut input: impl Read, queues: &Queues, cancels: &Cancels, gone: impl FnOnce()) {
    loop {
        let sent = match read_frame::<Request>(&mut input) {
            Ok(Some(Request { body: Task::Cancel { id }, .. })) => {
                cancels.add(id);
                continue;
            }
            Ok(Some(request)) => queues.send(request),
            Ok(None) => break gone(),
            Err(error) => {
                let _ = queues.tasks.send(Err(WorkerError::Frame(error)));
                break;
            }
        };
        match sent {
            Ok(()) => {}
            Err(TrySendError::Disconnected(())) => break,
            Err(TrySendError::Full(())) => {
                // Waits for room, which is what tells the main thread; nothing more is read.
                let _ = queues.tasks.send(Err(WorkerError::Flooded));
                break;
            }
        }
    }
}

struct Worker<W> {
    choice: DeviceChoice,
    device: Device,
    replies: Replies<W>,
    cancels: Cancels,
    warm: bool,
    job: Option<Job>,
}

/// What stays from one task of a job to the next.
struct Job {
    task: ModelTask,
    source: PieceSource,
    /// The whole model, of which nothing is loaded.
    trainee: Trainee,
    model: Option<Model>,
    moments: Moments,
    /// The data that was used last, by its file, which never changes.
    data: Option<(String, Arc<Dataset>)>,
    /// With what the last inner phases began that came to an end, by its digest; the latest last.
    beginnings: VecDeque<(Digest, Moments)>,
    /// What is done with others with the layers of `model`.
    group: Option<Group>,
}

impl Job {
    fn open(task: &ModelTask) -> Result<Self, Stop> {
        let bytes = std::fs::read(&task.manifest)
            .map_err(|error| Stop::Failed(format!("cannot read the manifest {}: {error}", task.manifest)))?;
        let pieces = PathBuf::from(&task.pieces);
        let path =
            Box::new(move |piece: &[u8; 32]| pieces.join(blake3::Hash::from(*piece).to_hex().as_str()));
        let source = PieceSource::new(Manifest::decode(&bytes)?, path);
        let manifest = source.manifest();
        let trainee = Trainee::new(manifest.config.clone(), manifest.tied(), task.method)?;
        Ok(Self {
            task: task.clone(),
            source,
            trainee,
            model: None,
            moments: Moments::default(),
            data: None,
            beginnings: VecDeque::new(),
            group: None,
        })
    }

    /// Puts these layers on the device, unless they are there. Others make room for them, and with them goes a group; the
    /// moments stay, because a model is also loaded to judge it.
    fn load(&mut self, layers: Range<u32>, device: &Device) -> Result<(&Model, &mut Moments), Stop> {
        let known = self.model.take().filter(|model| model.trainee.layers() == layers);
        let model = match known {
            Some(model) => model,
            None => {
                self.group = None;
                Model::load(self.trainee.stage(layers)?, &self.source, device)?
            }
        };
        Ok((self.model.insert(model), &mut self.moments))
    }

    /// The data, read unless it was used last.
    fn data(&mut self, path: &str) -> Result<Arc<Dataset>, Stop> {
        let known = self.data.take().filter(|(known, _)| known == path);
        let (path, data) = match known {
            Some(known) => known,
            None => {
                let data = Dataset::read(Path::new(path), self.trainee.config().vocabulary)?;
                (path.to_owned(), Arc::new(data))
            }
        };
        self.data = Some((path, Arc::clone(&data)));
        Ok(data)
    }

    /// Remembers what an inner phase began with that came to an end.
    fn began(&mut self, digest: Digest, moments: Moments) {
        self.beginnings.retain(|(known, _)| *known != digest);
        if self.beginnings.len() >= BEGINNINGS_MAX {
            self.beginnings.pop_front();
        }
        self.beginnings.push_back((digest, moments));
    }

    fn load_whole(&mut self, device: &Device) -> Result<(&Model, &mut Moments), Stop> {
        self.load(self.trainee.layers(), device)
    }
}

/// How a task ends early: with a reply, or because the daemon cannot be reached.
enum Stop {
    Failed(String),
    Cancelled,
    Pipe(FrameError),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

impl<W: Write> Worker<W> {
    fn serve(&mut self, tasks: &Receiver<Incoming>) -> Result<(), WorkerError> {
        while let Ok(incoming) = tasks.recv() {
            let Request { id, body } = incoming?;
            let result = catch_unwind(AssertUnwindSafe(|| self.execute(id, body)));
            let reply = match result {
                Ok(Ok(reply)) => reply,
                Ok(Err(Stop::Cancelled)) => Reply::Cancelled,
                Ok(Err(Stop::Failed(message))) => Reply::failed(message),
                Ok(Err(Stop::Pipe(error))) => return Err(error.into()),
                Err(panic) => {
                    // What the task worked on may be half changed.
                    self.job = None;
                    Reply::failed(format!("the task panicked: {}", panic_text(&*panic)))
                }
            };
            self.replies.send(id, reply)?;
        }
        Ok(())
    }

    fn execute(&mut self, id: u64, task: Task) -> Result<Reply, Stop> {
        task.check().map_err(Stop::Failed)?;
        if self.cancels.has(id) {
            return Err(Stop::Cancelled);
        }
        match task {
            Task::Describe => Ok(self.describe()),
            Task::Bench => bench(&self.device).map(Reply::Benched).map_err(Stop::Failed),
            Task::Init { model, seed, out, evaluate } => {
                let job = self.job(&model)?;
                let checkpoint = Checkpoint::initial(&job.trainee, &job.source, seed)?;
                let written = checkpoint.prepare(Path::new(&out), job.trainee.tensors())?;
                drop(checkpoint);
                // Before the file appears, so that a failure has written nothing.
                let judged = self.judge(id, &model, written.place(), evaluate.as_ref())?;
                let held_out_micronats = judged.map(|(loss, _)| loss);
                Ok(Reply::Initialised { digest: written.publish()?, held_out_micronats })
            }
            Task::Train { phase, out } => self.train(id, &phase, Path::new(&out)),
            Task::Merge {
                model,
                state,
                deltas,
                outer_rate_millionths,
                momentum_millionths,
                out,
                evaluate,
            } => {
                let rate = OuterRate {
                    rate: millionths(outer_rate_millionths),
                    momentum: millionths(momentum_millionths),
                };
                let deltas: Vec<Vec<PathBuf>> =
                    deltas.into_iter().map(|parts| parts.into_iter().map(PathBuf::from).collect()).collect();
                let specs = self.job(&model)?.trainee.tensors();
                let merged = merge(specs, Path::new(&state), &deltas, rate, Path::new(&out))?;
                let judged = self.judge(id, &model, merged.place(), evaluate.as_ref())?;
                let (held_out_micronats, tokens) = judged.unwrap_or_default();
                let refused = merged.refused.iter();
                let refused =
                    refused.map(|(place, part, why)| (*place as u32, *part as u32, why.clone())).collect();
                let round = merged.round;
                Ok(Reply::Merged { digest: merged.publish()?, round, held_out_micronats, tokens, refused })
            }
            Task::GroupOpen(task) => self.group_open(id, task),
            Task::GroupForward { group, micro, rows } => {
                let passed = self.group(group, |open, model, _| open.forward(model, micro, &rows))?;
                Ok(Reply::GroupRows { rows: passed.rows, squares: passed.squares })
            }
            Task::GroupBackward { group, micro, rows } => {
                let passed = self.group(group, |open, model, _| open.backward(model, micro, &rows))?;
                Ok(Reply::GroupRows { rows: passed.rows, squares: passed.squares })
            }
            Task::GroupStep { group, squares } => {
                let loss = self.group(group, |open, _, moments| open.step(moments, squares))?;
                Ok(Reply::GroupStepped { loss_micronats: loss.map(f64::from).map(micronats).transpose()? })
            }
            Task::GroupClose { group, out } => self.group_close(group, out.as_deref()),
            Task::Show { model, began, out } => self.show(&model, &began, Path::new(&out)),
            Task::Check { phase, began, delta } => {
                let claim = Claim { began: Path::new(&began), delta: Path::new(&delta) };
                self.check(id, &phase, claim)
            }
            Task::StageOpen(_)
            | Task::StageStep { .. }
            | Task::SessionClose { .. }
            | Task::StageClose { .. } => Err(Stop::Failed("this is for the thread of the stages".to_owned())),
            Task::Cancel { id } => {
                self.cancels.add(id);
                Err(Stop::Cancelled)
            }
        }
    }

    fn describe(&self) -> Reply {
        Reply::Described {
            device: self.choice.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            threads: threads(),
        }
    }

    fn train(&mut self, id: u64, task: &PhaseTask, out: &Path) -> Result<Reply, Stop> {
        self.warm_up(id, task.inner.inner_steps)?;
        let inner = inner(&task.inner, task.context, task.at_once, task.recompute)?;
        self.job(&task.model)?;
        let Self { job: Some(job), device, replies, cancels, .. } = self else { return Err(lost()) };
        let data = job.data(&task.data)?;
        let (model, moments) = job.load_whole(device)?;
        moments.fit(model.trainee.tensors());
        let (began, beginning) = (moments.digest()?, moments.clone());
        let state = Path::new(&task.state);
        let result = told(replies, cancels, id, inner.steps, |after_step| {
            inner_phase(model, state, &data, &inner, moments, after_step)
        });
        let result = match result {
            Ok(result) => result,
            Err(stop) => {
                // The slice is trained again, here or elsewhere, from its beginning.
                *moments = beginning;
                return Err(stop);
            }
        };
        let digest = result.delta.write(out, model.trainee.tensors())?;
        job.began(began, beginning);
        Ok(Reply::Trained { digest, loss_micronats: micronats(result.loss)?, tokens: result.tokens, began })
    }

    fn show(&self, model: &ModelTask, began: &Digest, out: &Path) -> Result<Reply, Stop> {
        let job = self.job.as_ref().filter(|job| job.task == *model);
        let kept = job.and_then(|job| job.beginnings.iter().find(|(digest, _)| digest == began));
        let (_, moments) = kept.ok_or_else(|| {
            let wanted = blake3::Hash::from(*began).to_hex();
            Stop::Failed(format!(
                "the moments {wanted} are gone: the worker started anew, has another job, or trained more than {BEGINNINGS_MAX} phases since it began with them"
            ))
        })?;
        Ok(Reply::Shown { digest: moments.write(out)? })
    }

    fn check(&mut self, id: u64, task: &PhaseTask, claim: Claim<'_>) -> Result<Reply, Stop> {
        self.warm_up(id, task.inner.inner_steps)?;
        let inner = inner(&task.inner, task.context, task.at_once, task.recompute)?;
        // The job at hand keeps its moments while another one's phase is checked.
        let own = self.job.take_if(|job| job.task != task.model);
        let distance = self.check_in_job(id, task, &inner, claim);
        if own.is_some() {
            self.job = own;
        }
        // Saturates where the distance is infinite.
        Ok(Reply::Checked { distance_millionths: (distance? * 1e6).round() as u64 })
    }

    fn check_in_job(
        &mut self,
        id: u64,
        task: &PhaseTask,
        inner: &Inner,
        claim: Claim<'_>,
    ) -> Result<f64, Stop> {
        self.job(&task.model)?;
        let Self { job: Some(job), device, replies, cancels, .. } = self else { return Err(lost()) };
        let data = job.data(&task.data)?;
        let (model, _) = job.load_whole(device)?;
        let state = Path::new(&task.state);
        told(replies, cancels, id, inner.steps, |after_step| {
            check_phase(model, state, &data, inner, claim, after_step)
        })
    }

    fn group_open(&mut self, id: u64, task: GroupTask) -> Result<Reply, Stop> {
        let GroupTask { group, model, state, data, context, start, end, sequences, recompute, purpose } =
            task;
        let (purpose, steps) = match purpose {
            GroupPurpose::Train(task) => {
                (Purpose::Train(inner(&task, context, sequences, recompute)?), task.inner_steps)
            }
            GroupPurpose::Judge { part } => (Purpose::Judge { context, sequences, part }, 1),
        };
        self.warm_up(id, steps)?;
        self.job(&model)?;
        let Self { job: Some(job), device, .. } = self else { return Err(lost()) };
        // Its memory is free before the next one needs it.
        job.group = None;
        let data = job.data(&data)?;
        let (model, moments) = job.load(start..end, device)?;
        let open = Group::open(group, model, Path::new(&state), &data, purpose, moments)?;
        let micros = open.micros();
        job.group = Some(open);
        Ok(Reply::GroupOpened { micros })
    }

    fn group_close(&mut self, number: u64, out: Option<&str>) -> Result<Reply, Stop> {
        self.group(number, |open, _, _| if out.is_some() { open.complete() } else { Ok(()) })?;
        let Some(Job { model: Some(model), moments, group, .. }) = &mut self.job else { return Err(lost()) };
        let (Some(open), Some(out)) = (group.take(), out) else {
            return Ok(Reply::GroupClosed { digest: None, loss_micronats: 0, tokens: 0 });
        };
        let closed = open.close(model, moments, Path::new(out))?;
        let (digest, loss_micronats) = (Some(closed.digest), micronats(closed.loss)?);
        Ok(Reply::GroupClosed { digest, loss_micronats, tokens: closed.tokens })
    }

    /// Works with the open group of that number, which an error that spoils it ends.
    fn group<T>(
        &mut self,
        number: u64,
        work: impl FnOnce(&mut Group, &Model, &mut Moments) -> Result<T, GroupError>,
    ) -> Result<T, Stop> {
        let closed = || Stop::Failed(format!("group {number} is not open"));
        let Some(Job { model: Some(model), moments, group, .. }) = &mut self.job else {
            return Err(closed());
        };
        let open = group.as_mut().filter(|open| open.number == number).ok_or_else(closed)?;
        let result = work(open, model, moments);
        match &result {
            Ok(_) | Err(GroupError::Order(_) | GroupError::Rows(_)) => {}
            Err(GroupError::Train(_) | GroupError::File(_)) => *group = None,
        }
        Ok(result?)
    }

    /// The job, opened if it is not the last one's.
    fn job(&mut self, task: &ModelTask) -> Result<&mut Job, Stop> {
        let known = self.job.take().filter(|job| job.task == *task);
        let job = match known {
            Some(job) => job,
            None => Job::open(task)?,
        };
        Ok(self.job.insert(job))
    }

    /// Loss and tokens of a checkpoint, where they are asked for.
    fn judge(
        &mut self,
        id: u64,
        model: &ModelTask,
        state: &Path,
        judge: Option<&Judge>,
    ) -> Result<Option<(i64, u64)>, Stop> {
        let Some(Judge { data, context, part }) = judge else { return Ok(None) };
        self.warm_up(id, 1)?;
        self.job(model)?;
        let Self { job: Some(job), device, .. } = self else { return Err(lost()) };
        let data = job.data(data)?;
        let (model, _) = job.load_whole(device)?;
        let (loss, tokens) = evaluate(model, state, &data, *context, *part)?;
        Ok(Some((micronats(loss)?, tokens)))
    }

    /// Says why the first task on a GPU is slow.
    fn warm_up(&mut self, id: u64, of: u32) -> Result<(), Stop> {
        let first = !std::mem::replace(&mut self.warm, true);
        if first && self.choice != DeviceChoice::Cpu {
            let body = Reply::Progress { done: 0, of, loss_micronats: None, note: TUNING.to_owned() };
            self.replies.send(id, body).map_err(Stop::Pipe)?;
        }
        Ok(())
    }
}

/// Runs a phase whose every step is told, until somebody cancels it.
fn told<W: Write, T>(
    replies: &Replies<W>,
    cancels: &Cancels,
    id: u64,
    of: u32,
    phase: impl FnOnce(&mut dyn FnMut(u32, f32) -> bool) -> Result<T, TrainError>,
) -> Result<T, Stop> {
    let mut pipe = Ok(());
    let result = phase(&mut |done, loss| {
        let loss_micronats = micronats(f64::from(loss)).ok();
        pipe = replies.send(id, Reply::Progress { done, of, loss_micronats, note: String::new() });
        pipe.is_ok() && !cancels.has(id)
    });
    pipe.map_err(Stop::Pipe)?;
    match result {
        Err(TrainError::Cancelled { .. }) => Err(Stop::Cancelled),
        other => Ok(other?),
    }
}

fn lost() -> Stop {
    Stop::Failed("the model was not kept".to_owned())
}

/// The settings of a task; `at_once` sequences of `context` tokens are in memory at once.
fn inner(task: &InnerTask, context: u32, at_once: u32, recompute: bool) -> Result<Inner, Stop> {
    let bits = Bits::of(task.delta_bits);
    Ok(Inner {
        seed: task.seed,
        round: task.round,
        rounds: task.rounds,
        first: task.first,
        steps: task.inner_steps,
        batch: task.batch,
        context,
        at_once,
        recompute,
        learning_rate: millionths(task.learning_rate_millionths),
        warmup_steps: task.warmup_steps,
        bits: bits.ok_or_else(|| {
            Stop::Failed(format!("deltas of {} bits, known are 2, 4, 8 and 32", task.delta_bits))
        })?,
    })
}

/// Threads that the CPU may give to this process.
fn threads() -> u32 {
    let set = std::env::var(THREADS_VARIABLE).ok().and_then(|text| text.parse().ok());
    let all = || std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    set.filter(|threads| *threads > 0).unwrap_or_else(all)
}

/// A setting as it is written in jobs.
fn millionths(value: u32) -> f32 {
    (f64::from(value) / 1e6) as f32
}

/// A loss as it is reported: in integers, so that it can be signed.
fn micronats(loss: f64) -> Result<i64, Stop> {
    let scaled = (loss * 1e6).round();
    if scaled.is_finite() { Ok(scaled as i64) } else { Err(Stop::Failed(format!("the loss is {loss}"))) }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
