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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Device;
use skein_engine::manifest::{Manifest, PieceSource};

use crate::bench::bench;
use crate::checkpoint::Checkpoint;
use crate::device::{DeviceChoice, DeviceError};
use crate::limits::{CANCELS_MAX, TASKS_QUEUED_MAX};
use crate::outer::{Merged, OuterRate, merge};
use crate::packing::Bits;
use crate::protocol::{
    FrameError, Judge, ModelTask, Reply, Request, Response, Task, TrainTask, read_frame, write_frame,
};
use crate::stages;
use crate::train::{Inner, Model, Moments, TrainError, evaluate, inner_phase};
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
    let mut command = Command::new(exe);
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
    model: Model,
    source: PieceSource,
    moments: Moments,
}

impl Job {
    fn open(task: &ModelTask, device: &Device) -> Result<Self, Stop> {
        let bytes = std::fs::read(&task.manifest)
            .map_err(|error| Stop::Failed(format!("cannot read the manifest {}: {error}", task.manifest)))?;
        let pieces = PathBuf::from(&task.pieces);
        let path =
            Box::new(move |piece: &[u8; 32]| pieces.join(blake3::Hash::from(*piece).to_hex().as_str()));
        let source = PieceSource::new(Manifest::decode(&bytes)?, path);
        let manifest = source.manifest();
        let trainee = Trainee::new(manifest.config.clone(), manifest.tied(), task.method)?;
        let model = Model::load(trainee, &source, device)?;
        Ok(Self { task: task.clone(), model, source, moments: Moments::default() })
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
                let checkpoint = Checkpoint::initial(&job.model.trainee, &job.source, seed)?;
                // Before the file appears, so that a failure has written nothing.
                let (held_out_micronats, _) = self.evaluate(id, &model, &checkpoint, &evaluate)?;
                let digest = checkpoint.write(Path::new(&out), self.job(&model)?.model.trainee.tensors())?;
                Ok(Reply::Initialised { digest, held_out_micronats })
            }
            Task::Train(task) => self.train(id, &task),
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
                let deltas: Vec<PathBuf> = deltas.into_iter().map(PathBuf::from).collect();
                let specs = self.job(&model)?.model.trainee.tensors();
                let Merged { next, refused } = merge(specs, Path::new(&state), &deltas, rate)?;
                let (held_out_micronats, tokens) = self.evaluate(id, &model, &next, &evaluate)?;
                let digest = next.write(Path::new(&out), self.job(&model)?.model.trainee.tensors())?;
                let refused = refused.into_iter().map(|(place, why)| (place as u32, why)).collect();
                Ok(Reply::Merged { digest, round: next.round, held_out_micronats, tokens, refused })
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

    fn train(&mut self, id: u64, task: &TrainTask) -> Result<Reply, Stop> {
        self.warm_up(id, task.inner_steps)?;
        let inner = Inner {
            seed: task.seed,
            round: task.round,
            rounds: task.rounds,
            first: task.first,
            steps: task.inner_steps,
            batch: task.batch,
            context: task.context,
            at_once: task.at_once,
            learning_rate: millionths(task.learning_rate_millionths),
            warmup_steps: task.warmup_steps,
            bits: Bits::of(task.delta_bits).ok_or_else(|| {
                Stop::Failed(format!("deltas of {} bits, known are 4, 8 and 32", task.delta_bits))
            })?,
        };
        self.job(&task.model)?;
        let Some(job) = &mut self.job else { return Err(Stop::Failed("the model was not kept".to_owned())) };
        let (replies, cancels) = (&self.replies, &self.cancels);
        let mut pipe = Ok(());
        let result = inner_phase(
            &job.model,
            Path::new(&task.state),
            Path::new(&task.data),
            &inner,
            &mut job.moments,
            |done, loss| {
                let loss_micronats = micronats(f64::from(loss)).ok();
                let body = Reply::Progress { done, of: inner.steps, loss_micronats, note: String::new() };
                pipe = replies.send(id, body);
                pipe.is_ok() && !cancels.has(id)
            },
        );
        pipe.map_err(Stop::Pipe)?;
        let result = match result {
            Err(TrainError::Cancelled { .. }) => return Err(Stop::Cancelled),
            other => other?,
        };
        let digest = result.delta.write(Path::new(&task.out), job.model.trainee.tensors())?;
        Ok(Reply::Trained { digest, loss_micronats: micronats(result.loss)?, tokens: result.tokens })
    }

    /// The job's model, loaded if it is not there yet.
    fn job(&mut self, task: &ModelTask) -> Result<&mut Job, Stop> {
        let known = self.job.take().filter(|job| job.task == *task);
        let job = match known {
            Some(job) => job,
            None => Job::open(task, &self.device)?,
        };
        Ok(self.job.insert(job))
    }

    fn evaluate(
        &mut self,
        id: u64,
        model: &ModelTask,
        checkpoint: &Checkpoint,
        judge: &Judge,
    ) -> Result<(i64, u64), Stop> {
        self.warm_up(id, 1)?;
        let job = self.job(model)?;
        let Judge { data, context, part } = judge;
        let (loss, tokens) = evaluate(&job.model, checkpoint, Path::new(data), *context, *part)?;
        Ok((micronats(loss)?, tokens))
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
