//! The daemon's end of its worker process: start, call, cancel, kill, start again with back-off.
//!
//! The worker is this same binary as `skein worker`, so that a driver crash, an abort for want of memory
//! or a stuck shader costs one lease and never the daemon. Must never load a GPU driver itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use skein_compute::device::DeviceChoice;
use skein_compute::protocol::{self, Reply, Request, Response, Task};
use skein_compute::worker;
use smol::channel;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::process::{Child, ChildStdin, ChildStdout, Command};

use super::lock;
use crate::limits::{
    WORKER_BACKOFF_MAX, WORKER_BACKOFF_MIN, WORKER_END_MAX, WORKER_FAILURES_TOLD, WORKER_FORGIVEN,
    WORKER_IDLE,
};

/// How to start the worker.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// This binary.
    pub(crate) executable: PathBuf,
    /// The device that was chosen.
    pub(crate) device: DeviceChoice,
    /// The worker's own directory.
    pub(crate) directory: PathBuf,
    /// Processor threads for the CPU backend.
    pub(crate) threads: u32,
}

/// Why a call had no result.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallFailed {
    /// The process could not be started.
    #[error("cannot start the worker: {0}")]
    NotStarted(String),
    /// The process died before it answered.
    #[error("the worker died: {0}")]
    Died(String),
    /// The task failed; the worker lives.
    #[error("{0}")]
    Task(String),
}

/// Why a worker is killed that has no input any more.
const UNENDED: &str = "it was told to end and did not";

/// A handle on the worker process, cheap to clone.
#[derive(Clone)]
pub(crate) struct Worker {
    shared: Arc<Shared>,
}

struct Shared {
    launch: Launch,
    process: smol::lock::Mutex<Option<Process>>,
    // Outside of `process`, so that a kill never waits for a call that is stuck in a full pipe.
    calls: Mutex<Calls>,
}

struct Process {
    stdin: ChildStdin,
    generation: u64,
}

#[derive(Default)]
struct Calls {
    next: u64,
    generation: u64,
    pid: Option<u32>,
    kill: Option<channel::Sender<()>>,
    life: Option<channel::Receiver<()>>,
    killed: bool,
    /// When it was told to end by itself, having had nothing to do; if it does not, it can still be killed.
    retired: Option<Instant>,
    /// Why no process may run now.
    barred: Option<String>,
    waiting: BTreeMap<u64, channel::Sender<Reply>>,
    epitaph: String,
    /// Deaths within [`WORKER_FORGIVEN`] of a start: each makes the next start wait longer, whatever it did in between.
    failures: u32,
    /// Of these, the ones since it did some work.
    in_vain: u32,
    not_before: Option<Instant>,
    used_at: Option<Instant>,
    /// The last word of the worker, or when a call began to wait while no other did.
    heard_at: Option<Instant>,
    restarts: u64,
}

/// What `status` tells about the worker.
#[derive(Clone, Debug)]
pub(crate) struct WorkerState {
    /// Its process id while it runs.
    pub(crate) pid: Option<u32>,
    /// How often it died.
    pub(crate) deaths: u64,
}

impl Worker {
    /// A worker that is started at the first call.
    pub(crate) fn new(launch: Launch) -> Self {
        let shared = Shared { launch, process: smol::lock::Mutex::new(None), calls: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// What became of the process so far.
    pub(crate) fn state(&self) -> WorkerState {
        let calls = self.calls();
        WorkerState { pid: calls.pid, deaths: calls.restarts }
    }

    /// What is wrong with a worker that dies again and again.
    pub(crate) fn trouble(&self) -> Option<String> {
        let calls = self.calls();
        let in_vain = calls.in_vain;
        (in_vain >= WORKER_FAILURES_TOLD)
            .then(|| format!("the worker died {in_vain} times in a row: {}", calls.epitaph))
    }

    /// The number of the process that runs now or ran last; a stage opened in one is gone in the next.
    pub(crate) fn generation(&self) -> u64 {
        self.calls().generation
    }

    /// Waits until the process of `generation` has ended.
    pub(crate) async fn gone(&self, generation: u64) {
        let life = {
            let calls = self.calls();
            calls.life.clone().filter(|_| calls.generation == generation)
        };
        if let Some(life) = life {
            // Nothing is ever sent: the channel closes when the process has ended.
            let _ = life.recv().await;
        }
    }

    /// How long calls have waited without a word from the process; nothing when none waits.
    pub(crate) fn silent_for(&self) -> Duration {
        let calls = self.calls();
        calls
            .heard_at
            .filter(|_| !calls.waiting.is_empty())
            .map_or(Duration::ZERO, |heard_at| heard_at.elapsed())
    }

    /// Runs one task to its end; `progress` hears of its steps.
    ///
    /// # Errors
    /// [`CallFailed`]; after [`CallFailed::Died`] the next call starts a new process.
    pub(crate) async fn call(
        &self,
        task: Task,
        mut progress: impl FnMut(Reply),
    ) -> Result<Reply, CallFailed> {
        let (id, replies) = self.send(task).await?;
        let mut call = Call { worker: self, id, done: false };
        while let Ok(reply) = replies.recv().await {
            if let Reply::Progress { .. } = reply {
                progress(reply);
                continue;
            }
            call.done = true;
            if let Reply::Failed { message } = reply {
                return Err(CallFailed::Task(message));
            }
            if reply == Reply::Cancelled {
                return Err(CallFailed::Task("cancelled".into()));
            }
            return Ok(reply);
        }
        call.done = true;
        Err(CallFailed::Died(self.calls().epitaph.clone()))
    }

    async fn send(&self, task: Task) -> Result<(u64, channel::Receiver<Reply>), CallFailed> {
        let mut process = self.shared.process.lock().await;
        self.may_start()?;
        self.last_ended().await?;
        self.may_start()?;
        if process
            .as_ref()
            .is_none_or(|process| process.generation != self.calls().generation || self.calls().pid.is_none())
        {
            *process = Some(self.start().await?);
        }
        let (sender, replies) = channel::unbounded();
        let id = {
            let mut calls = self.calls();
            calls.next += 1;
            let id = calls.next;
            if calls.waiting.is_empty() {
                calls.heard_at = Some(Instant::now());
            }
            calls.waiting.insert(id, sender);
            calls.used_at = Some(Instant::now());
            id
        };
        if let Some(process) = process.as_mut() {
            self.write(process, &Request { id, body: task }, id).await?;
        }
        Ok((id, replies))
    }

    fn may_start(&self) -> Result<(), CallFailed> {
        self.calls().barred.clone().map_or(Ok(()), |why| Err(CallFailed::NotStarted(why)))
    }

    /// Waits for a process that was told to end: it answers nothing any more, and holds the device's memory.
    async fn last_ended(&self) -> Result<(), CallFailed> {
        let ending = {
            let calls = self.calls();
            (calls.pid.is_some() && (calls.killed || calls.retired.is_some())).then_some(calls.generation)
        };
        let Some(generation) = ending else { return Ok(()) };
        let gone = async {
            self.gone(generation).await;
            true
        };
        let late = async {
            smol::Timer::after(WORKER_END_MAX).await;
            false
        };
        if smol::future::or(gone, late).await {
            return Ok(());
        }
        self.kill(UNENDED);
        Err(CallFailed::NotStarted("the one before it has not ended yet".to_owned()))
    }

    async fn write(&self, process: &mut Process, request: &Request, id: u64) -> Result<(), CallFailed> {
        let frame = protocol::encode(request).map_err(|error| CallFailed::Task(error.to_string()))?;
        let written = async {
            process.stdin.write_all(&frame).await?;
            process.stdin.flush().await
        };
        written.await.map_err(|error| {
            self.calls().waiting.remove(&id);
            CallFailed::Died(error.to_string())
        })
    }

    /// Asks the worker to drop a running task; it ends as failed at its next step.
    async fn cancel(&self, id: u64) {
        let mut process = self.shared.process.lock().await;
        if let Some(process) = process.as_mut()
            && let Ok(frame) = protocol::encode(&Request { id: 0, body: Task::Cancel { id } })
        {
            let _ = process.stdin.write_all(&frame).await;
            let _ = process.stdin.flush().await;
        }
    }

    /// Ends the process at once; calls under way fail, the next call starts another.
    pub(crate) fn kill(&self, why: &str) {
        let mut calls = self.calls();
        if let Some(pid) = calls.pid.filter(|_| !calls.killed) {
            tracing::info!(pid, why, "killing the worker");
            calls.killed = true;
            if let Some(kill) = &calls.kill {
                let _ = kill.try_send(());
            }
        }
    }

    /// Ends the process at once and lets none start until [`Worker::unbar`].
    pub(crate) fn bar(&self, why: &str) {
        self.calls().barred = Some(why.to_owned());
        self.kill(why);
    }

    /// Lets a process start at the next call.
    pub(crate) fn unbar(&self) {
        self.calls().barred = None;
    }

    /// Ends a process that has had nothing to do for a while, unless `keep`; asked again and again, it also ends one that
    /// was told to and did not.
    pub(crate) async fn retire_if_idle(&self, keep: bool) {
        // Held to the end, so that no call starts another process in between.
        let mut process = self.shared.process.lock().await;
        let (idle, retired) = {
            let calls = self.calls();
            let since = calls.used_at.map(|at| at.elapsed());
            let idle = calls.waiting.is_empty() && since.is_some_and(|since| since >= WORKER_IDLE);
            (calls.pid.is_some() && idle, calls.retired)
        };
        if retired.is_some_and(|at| at.elapsed() >= WORKER_END_MAX) {
            // It hangs in its driver, with the device's memory, and no call may ever come that would need its place.
            self.kill(UNENDED);
        } else if idle && !keep && retired.is_none() {
            // At the end of its input the worker exits.
            self.calls().retired = Some(Instant::now());
            process.take();
        }
    }

    async fn start(&self) -> Result<Process, CallFailed> {
        let wait = self.calls().not_before.map(|at| at.saturating_duration_since(Instant::now()));
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            tracing::info!(?wait, "the worker died; starting another after a while");
            smol::Timer::after(wait).await;
        }
        let launch = &self.shared.launch;
        let command = worker::command(&launch.executable, &launch.device, &launch.directory, launch.threads);
        let mut child = Command::from(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| CallFailed::NotStarted(error.to_string()))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(CallFailed::NotStarted("it has no pipes".into()));
        };
        let (kill, killed) = channel::bounded(1);
        let (alive, life) = channel::bounded(1);
        let generation = {
            let mut calls = self.calls();
            calls.generation += 1;
            calls.pid = Some(child.id());
            calls.kill = Some(kill);
            calls.life = Some(life);
            (calls.killed, calls.retired) = (false, None);
            calls.generation
        };
        tracing::debug!(pid = child.id(), generation, "worker started");
        let listening = self.clone().listen(child, stdout, generation, killed);
        skein_mesh::spawn(async move {
            listening.await;
            drop(alive);
        })
        .detach();
        // Barred while it started: whoever barred it saw no process to end.
        let barred = self.calls().barred.clone();
        if let Some(why) = barred {
            self.kill(&why);
            return Err(CallFailed::NotStarted(why));
        }
        Ok(Process { stdin, generation })
    }

    async fn listen(
        self,
        mut child: Child,
        mut stdout: ChildStdout,
        generation: u64,
        killed: channel::Receiver<()>,
    ) {
        let started = Instant::now();
        let said = loop {
            let killed = async {
                match killed.recv().await {
                    Ok(()) => Err("it was killed".to_owned()),
                    Err(_) => smol::future::pending().await,
                }
            };
            match smol::future::or(read_response(&mut stdout), killed).await {
                Ok(Some(response)) => self.deliver(response),
                Ok(None) => break None,
                Err(error) => {
                    let _ = child.kill();
                    break Some(error);
                }
            }
        };
        // One that closed its pipe may still hang in its driver.
        let ended = child.status();
        let killed = async {
            if killed.recv().await.is_ok() {
                let _ = child.kill();
            }
            smol::future::pending().await
        };
        let status = smol::future::or(ended, killed).await;
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let mut calls = self.calls();
        if calls.generation != generation {
            // What stands there is the next process's.
            return;
        }
        calls.pid = None;
        calls.epitaph = said.map_or_else(|| status.clone(), |said| format!("{said} ({status})"));
        calls.waiting.clear();
        if calls.killed || calls.retired.is_some() {
            tracing::debug!(%status, "worker ended");
        } else {
            calls.restarts += 1;
            if started.elapsed() >= WORKER_FORGIVEN {
                (calls.failures, calls.in_vain) = (0, 0);
            }
            calls.failures += 1;
            calls.in_vain += 1;
            let wait = backoff(calls.failures);
            calls.not_before = Some(Instant::now() + wait);
            tracing::warn!(status = %calls.epitaph, "the worker died");
        }
    }

    fn deliver(&self, response: Response) {
        let last = !matches!(response.body, Reply::Progress { .. });
        let done = last && !matches!(response.body, Reply::Failed { .. } | Reply::Cancelled);
        let mut calls = self.calls();
        calls.used_at = Some(Instant::now());
        calls.heard_at = calls.used_at;
        if let Some(waiting) = calls.waiting.get(&response.id) {
            let _ = waiting.try_send(response.body);
        }
        if last {
            calls.waiting.remove(&response.id);
        }
        if done {
            calls.in_vain = 0;
        }
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker of a measurement under way, which the owner may end like any other.
#[derive(Clone, Default)]
pub(super) struct Trial {
    inner: Arc<Mutex<(Option<String>, Option<Worker>)>>,
}

impl Trial {
    /// Notes the worker.
    ///
    /// # Errors
    /// When it may not start any more.
    pub(super) fn begin(&self, worker: &Worker) -> anyhow::Result<()> {
        let mut inner = lock(&self.inner);
        if let Some(why) = &inner.0 {
            anyhow::bail!("{why}");
        }
        inner.1 = Some(worker.clone());
        Ok(())
    }

    /// Ends it, at once, and lets none start.
    pub(super) fn bar(&self, why: &str) {
        let mut inner = lock(&self.inner);
        inner.0 = Some(why.to_owned());
        if let Some(worker) = &inner.1 {
            worker.bar(why);
        }
    }

    /// Whether it was ended.
    pub(super) fn is_barred(&self) -> bool {
        lock(&self.inner).0.is_some()
    }

    /// Its process.
    pub(super) fn pid(&self) -> Option<u32> {
        lock(&self.inner).1.as_ref().and_then(|worker| worker.state().pid)
    }
}

/// A call that was dropped before its end is cancelled in the worker.
struct Call<'a> {
    worker: &'a Worker,
    id: u64,
    done: bool,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.done {
            let (worker, id) = (self.worker.clone(), self.id);
            skein_mesh::spawn(async move { worker.cancel(id).await }).detach();
        }
    }
}

fn backoff(failures: u32) -> Duration {
    WORKER_BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(WORKER_BACKOFF_MAX)
}

async fn read_response(stdout: &mut ChildStdout) -> Result<Option<Response>, String> {
    let mut length = [0; 4];
    match stdout.read_exact(&mut length).await {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(format!("its pipe broke: {error}")),
    }
    let length = protocol::frame_length(length).map_err(|error| error.to_string())?;
    let mut body = vec![0; length];
    stdout.read_exact(&mut body).await.map_err(|error| format!("its pipe broke: {error}"))?;
    protocol::decode(&body).map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What no step of a test takes, however busy the machine is.
    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn back_off_doubles_up_to_its_limit() {
        assert_eq!(backoff(1), WORKER_BACKOFF_MIN);
        assert_eq!(backoff(2), WORKER_BACKOFF_MIN * 2);
        assert_eq!(backoff(1_000), WORKER_BACKOFF_MAX);
    }

    /// A worker whose process is this shell script: `sh worker …`, in that folder.
    #[cfg(unix)]
    fn script(folder: &std::path::Path, text: &str) -> Worker {
        std::fs::write(folder.join("worker"), text).unwrap();
        let (executable, directory) = (PathBuf::from("/bin/sh"), folder.to_owned());
        Worker::new(Launch { executable, device: DeviceChoice::Cpu, directory, threads: 1 })
    }

    #[cfg(unix)]
    async fn in_time<T>(future: impl Future<Output = T>) -> T {
        let late = async {
            smol::Timer::after(PATIENCE).await;
            panic!("it takes longer than {PATIENCE:?}");
        };
        smol::future::or(future, late).await
    }

    #[test]
    #[cfg(unix)]
    fn work_that_is_done_ends_the_trouble() {
        let folder = tempfile::tempdir().unwrap();
        let worker = script(folder.path(), "exit 3");
        smol::future::block_on(in_time(async {
            for _ in 0..WORKER_FAILURES_TOLD {
                assert!(worker.trouble().is_none());
                assert!(matches!(worker.call(Task::Bench, drop).await, Err(CallFailed::Died(_))));
                worker.gone(worker.generation()).await;
            }
        }));
        assert!(worker.trouble().unwrap().contains("3 times in a row"));
        let says = |body| worker.deliver(Response { id: 1, body });
        says(Reply::Failed { message: "no".to_owned() });
        says(Reply::Cancelled);
        assert!(worker.trouble().is_some(), "nothing was done yet");
        says(Reply::Described { device: "cpu".to_owned(), version: String::new(), threads: 1 });
        assert_eq!(worker.trouble(), None);
        assert_eq!(worker.calls().failures, WORKER_FAILURES_TOLD, "the next start waits as long");
    }

    #[test]
    #[cfg(unix)]
    fn a_call_after_a_kill_has_a_process_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let worker = script(folder.path(), "exec sleep 600");
        smol::future::block_on(in_time(async {
            let (_, first) = worker.send(Task::Bench).await.unwrap();
            let (pid, generation) = (worker.state().pid, worker.generation());
            worker.kill("a test");
            let (_, second) = worker.send(Task::Bench).await.unwrap();
            assert!(worker.state().pid.is_some_and(|next| Some(next) != pid));
            assert_eq!(worker.generation(), generation + 1);
            assert!(first.recv().await.is_err(), "its process is gone");
            assert!(second.try_recv().is_err_and(|error| error.is_empty()), "the next one's call goes on");
            assert_eq!((worker.state().deaths, worker.trouble()), (0, None));
            worker.kill("the end of a test");
            worker.gone(worker.generation()).await;
        }));
    }

    /// As if it had answered, and nothing had been asked of it since.
    #[cfg(unix)]
    fn rest(worker: &Worker) {
        let mut calls = worker.calls();
        calls.waiting.clear();
        calls.used_at = Instant::now().checked_sub(WORKER_IDLE);
    }

    #[test]
    #[cfg(unix)]
    fn a_worker_that_does_not_retire_is_killed_although_nobody_calls() {
        let folder = tempfile::tempdir().unwrap();
        let worker = script(folder.path(), "exec sleep 600");
        smol::future::block_on(in_time(async {
            worker.send(Task::Bench).await.unwrap();
            rest(&worker);
            let told = Instant::now();
            while worker.state().pid.is_some() {
                worker.retire_if_idle(false).await;
                smol::Timer::after(Duration::from_millis(50)).await;
            }
            assert!(told.elapsed() >= WORKER_END_MAX, "it had no time to end by itself");
            assert_eq!((worker.state().deaths, worker.trouble()), (0, None));
        }));
    }

    #[test]
    #[cfg(unix)]
    fn a_worker_that_does_not_retire_can_be_killed() {
        for text in ["exec sleep 600", "exec sleep 600 > /dev/null"] {
            let folder = tempfile::tempdir().unwrap();
            let worker = script(folder.path(), text);
            smol::future::block_on(in_time(async {
                worker.send(Task::Bench).await.unwrap();
                rest(&worker);
                worker.retire_if_idle(false).await;
                worker.kill("a test");
                worker.gone(worker.generation()).await;
                assert_eq!((worker.state().pid, worker.state().deaths), (None, 0));
            }));
        }
    }
}
