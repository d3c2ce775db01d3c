//! A staged version proves itself as a child process before it gets the installed name.
//!
//! `Staged` is verified and lies in `skein.new`; `Proven` ran and said that it is healthy; only `Proven` can be
//! promoted. Dropping either removes `skein.new`. Must never leave a trial running, nor promote one that ended.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use semver::Version;

use crate::error::{Result, UpdateError, io_error};
use crate::state::{InTrial, Outcome, State, now_ms};
use crate::swap::{Identity, Place, remove};
use crate::updater::{Step, Updater};

/// How long a new version has to become healthy.
pub const TRIAL_LIMIT: Duration = Duration::from_secs(60);
/// How long it has to stay healthy, within that: one that answers and then crashes is not installed.
pub const TRIAL_STEADY: Duration = Duration::from_secs(10);
/// Set to `1` in the environment of a process on trial.
pub const TRIAL_VARIABLE: &str = "SKEIN_TRIAL";

const POLL: Duration = Duration::from_millis(100);
#[cfg(unix)]
const STOP_LIMIT: Duration = Duration::from_secs(5);
const TAIL_BYTES: usize = 2048;

/// Whether this process is a version on trial.
pub fn is_trial() -> bool {
    std::env::var_os(TRIAL_VARIABLE).is_some_and(|value| value == "1")
}

/// In a process on trial: calls `end` when the updating process is gone, so that a trial never outlives it. Standard
/// input is the sign: the updating process holds its other end. Does nothing in any other process.
pub fn end_with_updater(end: impl FnOnce() + Send + 'static) {
    if is_trial() {
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            let mut input = std::io::stdin();
            while matches!(input.read(&mut buffer), Ok(read) if read > 0) {}
            end();
        });
    }
}

/// What holds an update together: removes `skein.new` unless it became the installed binary, and keeps other
/// updates out as long as it lives.
#[derive(Debug)]
struct Attempt {
    updater: Updater,
    place: Place,
    version: Version,
    installed: Identity,
    done: bool,
    _lock: File,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.done {
            let _ = remove(&self.place.new);
        }
    }
}

/// A verified new version beside the installed one.
#[derive(Debug)]
pub struct Staged(Attempt);

/// A new version that runs, and is healthy.
#[derive(Debug)]
pub struct Proven {
    attempt: Attempt,
    child: Trial,
}

impl Staged {
    pub(crate) fn new(
        updater: Updater,
        place: Place,
        version: Version,
        installed: Identity,
        lock: File,
    ) -> Self {
        Self(Attempt { updater, place, version, installed, done: false, _lock: lock })
    }

    /// Which version it is.
    pub fn version(&self) -> &Version {
        &self.0.version
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0.place.new
    }

    /// A command of the staged binary with `SKEIN_TRIAL=1`; add the arguments of the running agent.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.path());
        command.env(TRIAL_VARIABLE, "1");
        command
    }

    /// Runs `command` and asks `health` again and again until it has answered `Ok` and nothing else for `steady`, the
    /// process ends, or `limit` is over; an `Err` of `health` says what is still missing. `health` must answer soon,
    /// whatever the process does. A version that fails is removed and remembered.
    ///
    /// The process gets a process group of its own, its standard input is a pipe that closes when this process
    /// ends (see [`end_with_updater`]), and the end of its standard error goes into the reason of a failure.
    pub fn trial(
        self,
        command: Command,
        health: &mut dyn FnMut() -> std::result::Result<(), String>,
        limit: Duration,
        steady: Duration,
    ) -> Result<Proven> {
        let attempt = self.0;
        let updater = &attempt.updater;
        let mut state = State::load(&updater.data_dir);
        state.in_trial = Some(InTrial { version: attempt.version.clone(), started_at_ms: now_ms() });
        state.save(&updater.data_dir)?;
        updater.step(Step::TrialRecorded);
        let outcome = Trial::start(command).and_then(|mut child| {
            updater.step(Step::TrialStarted);
            match child.watch(health, limit, steady) {
                Ok(()) => Ok(child),
                Err(reason) => {
                    child.kill();
                    Err(child.with_tail(reason))
                }
            }
        });
        match outcome {
            Ok(child) => {
                updater.step(Step::Healthy);
                Ok(Proven { attempt, child })
            }
            Err(reason) => Err(attempt.abandon(reason)),
        }
    }
}

impl Attempt {
    fn abandon(self, reason: String) -> UpdateError {
        let Self { updater, version, place, .. } = &self;
        // The removal comes first: it must happen even where nothing more can be written.
        let _ = remove(&place.new);
        let mut state = State::load(&updater.data_dir);
        state.in_trial = None;
        state.add_failure(version, &reason);
        state.set_result(Outcome::Failed, Some(version), Some(reason.clone()));
        let _ = state.save(&updater.data_dir);
        UpdateError::TrialFailed { version: version.clone(), reason }
    }
}

impl Proven {
    /// Which version it is.
    pub fn version(&self) -> &Version {
        &self.attempt.version
    }

    /// Makes it the installed version: keeps the old one as `skein.old`, changes the name, and ends the trial. After
    /// this the caller executes the installed path. On an error the installed binary is as it was.
    pub fn promote(self) -> Result<()> {
        let Self { mut attempt, mut child } = self;
        let promoted = attempt.promote(&mut child);
        // In every case: the process on trial is not the agent.
        child.stop();
        attempt.updater.step(Step::Stopped);
        match promoted {
            Err(UpdateError::TrialFailed { reason, .. }) => Err(attempt.abandon(reason)),
            Err(error) => {
                // The version proved itself; what failed is this machine's disk. It may be tried again.
                let mut state = State::load(&attempt.updater.data_dir);
                state.in_trial = None;
                state.set_result(Outcome::Failed, Some(&attempt.version), Some(error.to_string()));
                let _ = state.save(&attempt.updater.data_dir);
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }
}

impl Attempt {
    fn promote(&mut self, child: &mut Trial) -> Result<()> {
        if let Some(status) = child.ended() {
            let reason = child.with_tail(format!("it ended after it was healthy ({status})"));
            return Err(UpdateError::TrialFailed { version: self.version.clone(), reason });
        }
        if self.place.identity()? != self.installed {
            return Err(UpdateError::ChangedMeanwhile { binary: self.place.binary.clone() });
        }
        self.place.keep_old()?;
        self.updater.step(Step::OldKept);
        self.place.install(&self.place.new)?;
        self.done = true;
        self.updater.step(Step::Installed);
        let mut state = State::load(&self.updater.data_dir);
        state.in_trial = None;
        state.forget_failure(&self.version);
        state.set_result(Outcome::Updated, Some(&self.version), None);
        // The new version is installed; a state that cannot be written changes nothing about that, and the next
        // start corrects it.
        let _ = state.save(&self.updater.data_dir);
        self.updater.step(Step::Recorded);
        Ok(())
    }
}

/// The child process, its group and the end of what it says.
#[derive(Debug)]
struct Trial {
    child: Child,
    status: Option<ExitStatus>,
    killed: bool,
    tail: Arc<Mutex<Vec<u8>>>,
    tail_ended: mpsc::Receiver<()>,
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Trial {
    fn start(mut command: Command) -> std::result::Result<Self, String> {
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt as _;
            command.process_group(0);
        }
        let mut child = spawn(&mut command).map_err(|error| format!("it cannot be started: {error}"))?;
        let tail = Arc::new(Mutex::new(Vec::new()));
        let (ended, tail_ended) = mpsc::channel();
        if let Some(mut errors) = child.stderr.take() {
            let tail = Arc::clone(&tail);
            std::thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(read @ 1..) = errors.read(&mut buffer) {
                    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                    tail.extend(&buffer[..read]);
                    let surplus = tail.len().saturating_sub(TAIL_BYTES);
                    tail.drain(..surplus);
                }
                let _ = ended.send(());
            });
        }
        Ok(Self { child, status: None, killed: false, tail, tail_ended })
    }

    /// Waits for health that lasts; the error says why there is none.
    fn watch(
        &mut self,
        health: &mut dyn FnMut() -> std::result::Result<(), String>,
        limit: Duration,
        steady: Duration,
    ) -> std::result::Result<(), String> {
        let start = Instant::now();
        let mut healthy_since = None;
        loop {
            let answer = health();
            if let Some(status) = self.ended() {
                return Err(format!(
                    "it ended by itself after {:.1} s ({status})",
                    start.elapsed().as_secs_f64()
                ));
            }
            let missing = match answer {
                Ok(()) => {
                    let healthy = healthy_since.get_or_insert_with(Instant::now).elapsed();
                    if healthy >= steady {
                        return Ok(());
                    }
                    format!("it was for the last {:.1} s only", healthy.as_secs_f64())
                }
                Err(missing) => {
                    healthy_since = None;
                    missing
                }
            };
            if start.elapsed() >= limit {
                return Err(format!("it was not healthy within {} s: {missing}", limit.as_secs_f64()));
            }
            std::thread::sleep(POLL);
        }
    }

    /// The status, if the process has ended. A status that cannot be read counts as running.
    fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Asks the process to end, as a service manager would, and ends it after some seconds.
    fn stop(&mut self) {
        #[cfg(unix)]
        if self.ended().is_none() {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_child(&self.child),
                rustix::process::Signal::TERM,
            );
            let start = Instant::now();
            while self.ended().is_none() && start.elapsed() < STOP_LIMIT {
                std::thread::sleep(POLL / 10);
            }
        }
        self.kill();
    }

    /// Ends the process and its group at once; once only, as the group's number is free for others afterwards.
    fn kill(&mut self) {
        if std::mem::replace(&mut self.killed, true) {
            return;
        }
        #[cfg(unix)]
        let _ = rustix::process::kill_process_group(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::KILL,
        );
        if self.ended().is_none() {
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// `reason` and the last lines of standard error.
    fn with_tail(&self, reason: String) -> String {
        // A grandchild that left the group may hold the pipe open: do not wait for it.
        let _ = self.tail_ended.recv_timeout(Duration::from_secs(1));
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&tail);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        match lines[lines.len().saturating_sub(3)..].join(" | ") {
            last if last.is_empty() => reason,
            last => {
                let printable: String = last.chars().filter(|letter| !letter.is_control()).collect();
                format!("{reason}; it said: {printable}")
            }
        }
    }
}

/// Starts the command. Another thread that forks in this moment may still hold the new file open for writing.
fn spawn(command: &mut Command) -> std::io::Result<Child> {
    for _ in 0..20 {
        match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(POLL / 2)
            }
            done => return done,
        }
    }
    command.spawn()
}

/// Takes the lock that keeps updates apart; it ends with the process that holds it.
pub(crate) fn lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join("update.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(UpdateError::Busy),
        Err(std::fs::TryLockError::Error(error)) => Err(io_error("lock", &path)(error)),
    }
}
