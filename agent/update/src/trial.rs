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

use crate::error::{Result, UpdateError};
use crate::state::{InTrial, Outcome, Probation, State, now_ms};
use crate::swap::{Identity, Place};
use crate::updater::{Step, Updater};

/// How long a new version has to become healthy.
pub const TRIAL_LIMIT: Duration = Duration::from_secs(60);
/// How long it has to stay healthy, within that: one that answers and then crashes is not installed.
pub const TRIAL_STEADY: Duration = Duration::from_secs(10);
/// Set to `1` in the environment of a process on trial.
pub const TRIAL_VARIABLE: &str = "SKEIN_TRIAL";
/// The exit code of a version on trial that something of this machine hinders, such as a port in use: it is no worse for
/// that, and may be tried again.
pub const TRIAL_NOT_NOW: u8 = 75;
/// The exit code of a version on trial that was told to leave, and so has nobody in its place. Not 0: a version that ends
/// by itself at once would take its machine out of service.
pub const TRIAL_LEFT: u8 = 76;
/// A version that was installed and ends within this, time and again, is taken back.
pub const PROBATION: Duration = Duration::from_secs(60);
/// At this start of such a version.
pub(crate) const PROBATION_STARTS: u32 = 3;

const POLL: Duration = Duration::from_millis(100);
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

/// How a version on trial is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Well.
    Good,
    /// This is still missing.
    Missing(String),
    /// There is no time for it: the trial has to end, and says nothing about the version.
    Leave,
}

/// Why a trial ended without a proof.
#[derive(Debug)]
enum Ending {
    /// It was told to leave.
    Left,
    /// This machine was in the way.
    NotNow(String),
    /// The version is no good here.
    Failed(String),
}

impl Ending {
    /// Of a process that has ended, which was no part of the plan.
    fn of(status: ExitStatus, how: &str) -> Self {
        let reason = format!("{how} ({status})");
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        if code == Some(TRIAL_LEFT) {
            Self::Left
        } else if code == Some(TRIAL_NOT_NOW) {
            Self::NotNow(reason)
        } else {
            Self::Failed(reason)
        }
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
    /// What `skein.new` was when it was written.
    new: Option<Identity>,
    done: bool,
    _locks: [File; 2],
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.place.remove(&self.place.new);
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
        locks: [File; 2],
    ) -> Self {
        Self(Attempt { updater, place, version, installed, new: None, done: false, _locks: locks })
    }

    /// `skein.new` is whole from now on.
    pub(crate) fn written(&mut self) -> Result<()> {
        self.0.new = Some(self.0.place.new_identity()?);
        Ok(())
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

    /// Runs `command` and asks `health` again and again until it has answered `Good` and nothing else for `steady`, the
    /// process ends, or `limit` is over. `health` must answer soon, whatever the process does. A version that fails is
    /// removed and remembered; one that left or was hindered ([`TRIAL_LEFT`], [`TRIAL_NOT_NOW`]) is only removed.
    ///
    /// The process gets a process group of its own, its standard input is a pipe that closes when this process
    /// ends (see [`end_with_updater`]), and the end of its standard error goes into the reason of a failure.
    pub fn trial(
        self,
        command: Command,
        health: &mut dyn FnMut() -> Health,
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
                Err(ending) => Err(child.end(ending)),
            }
        });
        match outcome {
            Ok(child) => {
                updater.step(Step::Healthy);
                Ok(Proven { attempt, child })
            }
            Err(ending) => Err(attempt.abandon(ending)),
        }
    }
}

impl Attempt {
    fn abandon(self, ending: Ending) -> UpdateError {
        let Self { updater, place, .. } = &self;
        let version = self.version.clone();
        // The removal comes first: it must happen even where nothing more can be written.
        let _ = place.remove(&place.new);
        let mut state = State::load(&updater.data_dir);
        state.in_trial = None;
        let (outcome, reason, error) = match ending {
            Ending::Left => {
                let reason = "the agent was told to leave while the new version was on trial".to_owned();
                (Outcome::Interrupted, reason, UpdateError::Left { version })
            }
            Ending::NotNow(reason) => {
                (Outcome::Interrupted, reason.clone(), UpdateError::NotNow { version, reason })
            }
            Ending::Failed(reason) => {
                state.add_failure(&version, &reason);
                (Outcome::Failed, reason.clone(), UpdateError::TrialFailed { version, reason })
            }
        };
        state.set_result(outcome, Some(&self.version), Some(reason));
        let _ = state.save(&updater.data_dir);
        error
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
        if let Some(status) = child.ended() {
            let ending = child.end(Ending::of(status, "it ended after it was healthy"));
            return Err(attempt.abandon(ending));
        }
        let promoted = attempt.promote();
        // In every case: the process on trial is not the agent.
        child.stop();
        attempt.updater.step(Step::Stopped);
        if let Err(error) = &promoted {
            // The version proved itself; what failed is this machine's disk. It may be tried again.
            let mut state = State::load(&attempt.updater.data_dir);
            state.in_trial = None;
            state.set_result(Outcome::Failed, Some(&attempt.version), Some(error.to_string()));
            let _ = state.save(&attempt.updater.data_dir);
        }
        promoted
    }
}

impl Attempt {
    fn promote(&mut self) -> Result<()> {
        if self.place.identity()? != self.installed {
            return Err(UpdateError::ChangedMeanwhile { binary: self.place.binary.clone() });
        }
        if Some(self.place.new_identity()?) != self.new {
            return Err(UpdateError::ChangedMeanwhile { binary: self.place.new.clone() });
        }
        // Another agent of the same binary may have installed this version: what to go back to is the one before.
        if !self.place.is_installed()? {
            self.place.keep_old()?;
        }
        self.updater.step(Step::OldKept);
        self.place.install(&self.place.new)?;
        self.done = true;
        self.updater.step(Step::Installed);
        let mut state = State::load(&self.updater.data_dir);
        state.in_trial = None;
        state.forget_failure(&self.version);
        state.set_result(Outcome::Updated, Some(&self.version), None);
        state.probation = Some(Probation { version: self.version.clone(), starts: 0 });
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
    fn start(mut command: Command) -> std::result::Result<Self, Ending> {
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt as _;
            command.process_group(0);
        }
        let mut child =
            spawn(&mut command).map_err(|error| Ending::Failed(format!("it cannot be started: {error}")))?;
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
        health: &mut dyn FnMut() -> Health,
        limit: Duration,
        steady: Duration,
    ) -> std::result::Result<(), Ending> {
        let start = Instant::now();
        let mut healthy_since = None;
        loop {
            let answer = health();
            if let Some(status) = self.ended() {
                let how = format!("it ended by itself after {:.1} s", start.elapsed().as_secs_f64());
                return Err(Ending::of(status, &how));
            }
            let missing = match answer {
                Health::Good => {
                    let healthy = healthy_since.get_or_insert_with(Instant::now).elapsed();
                    if healthy >= steady {
                        return Ok(());
                    }
                    format!("it was for the last {:.1} s only", healthy.as_secs_f64())
                }
                Health::Missing(missing) => {
                    healthy_since = None;
                    missing
                }
                Health::Leave => return Err(Ending::Left),
            };
            if start.elapsed() >= limit {
                let reason = format!("it was not healthy within {} s: {missing}", limit.as_secs_f64());
                return Err(Ending::Failed(reason));
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

    /// Asks the process to end, as a service manager would or, on Windows, by the end of its standard input, and ends
    /// it after some seconds.
    fn stop(&mut self) {
        if self.ended().is_none() {
            #[cfg(unix)]
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_child(&self.child),
                rustix::process::Signal::TERM,
            );
            #[cfg(not(unix))]
            drop(self.child.stdin.take());
            let start = Instant::now();
            while self.ended().is_none() && start.elapsed() < STOP_LIMIT {
                std::thread::sleep(POLL / 10);
            }
        }
        self.kill();
    }

    /// Makes sure that it has ended, and lets its last words tell more of why.
    fn end(&mut self, ending: Ending) -> Ending {
        match ending {
            Ending::Left => {
                self.stop();
                Ending::Left
            }
            Ending::NotNow(reason) => {
                self.kill();
                Ending::NotNow(self.with_tail(reason))
            }
            Ending::Failed(reason) => {
                self.kill();
                Ending::Failed(self.with_tail(reason))
            }
        }
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
