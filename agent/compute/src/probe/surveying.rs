//! Owns the children of one survey, one after another, and the handle by which whoever ordered the survey ends it.
//! Must never let a child go on that was barred, or take how such a one ended for a word about its driver.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Verdict;
use crate::limits::PROBE_BYTES_MAX;

/// Why a survey tells nothing: it was ended before its time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the survey was ended: {0}")]
pub struct Barred(String);

/// A handle on one survey, cheap to clone: knows the child under way, and ends it.
#[derive(Clone, Default)]
pub struct Surveying {
    shared: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    /// Why no child may run any more.
    barred: Option<String>,
    /// The child under way, with the other end of its standard input: when that closes it ends by itself.
    child: Option<Child>,
}

/// What a child printed and how long it took, or how it failed.
pub(super) type Ended = Result<(Vec<u8>, Duration), Verdict>;

impl Surveying {
    /// Ends the child under way at once, and lets no other start; the survey ends as [`Barred`].
    pub fn bar(&self, why: &str) {
        let mut held = self.held();
        if held.barred.is_none() {
            held.barred = Some(why.to_owned());
        }
        held.kill();
    }

    /// Whether it was ended.
    #[must_use]
    pub fn is_barred(&self) -> bool {
        self.held().barred.is_some()
    }

    /// The process of the child under way.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.held().child.as_ref().map(Child::id)
    }

    /// Runs a child to its end, for at most `timeout`.
    pub(super) fn run(&self, command: &mut Command, timeout: Duration) -> Result<Ended, Barred> {
        self.may_go_on()?;
        let ended = self.run_child(command, timeout);
        self.held().child = None;
        self.may_go_on()?;
        Ok(ended)
    }

    fn may_go_on(&self) -> Result<(), Barred> {
        self.held().barred.clone().map_or(Ok(()), |why| Err(Barred(why)))
    }

    fn run_child(&self, command: &mut Command, timeout: Duration) -> Ended {
        let refused = |why: String| Verdict::Refused { why };
        let started = Instant::now();
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.map_err(|error| refused(format!("cannot start the probe: {error}")))?;
        let (sender, receiver) = channel();
        let pipe = child.stdout.take();
        self.hold(child);
        std::thread::spawn(move || {
            let mut output = Vec::new();
            if let Some(pipe) = pipe {
                // What could not be read shows as an unreadable answer.
                let _ = pipe.take(PROBE_BYTES_MAX).read_to_end(&mut output);
            }
            let _ = sender.send(output);
        });
        let late = started + timeout;
        let ended = self.wait(|held| held.barred.is_some() || Instant::now() >= late);
        let Some(status) = ended else {
            // A process stuck in its driver may not die even when killed: ask once and go on without it.
            self.held().kill();
            let late = Instant::now() + Duration::from_secs(1);
            let _ = self.wait(|_| Instant::now() >= late);
            return Err(Verdict::Hung { after_ms: timeout.as_millis() as u64 });
        };
        if status.success() {
            let output = receiver.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
            return Ok((output, started.elapsed()));
        }
        match signal(status) {
            Some(signal) => Err(Verdict::Crashed { signal }),
            None => Err(refused(format!("the probe ended with {status}"))),
        }
    }

    fn hold(&self, child: Child) {
        let mut held = self.held();
        held.child = Some(child);
        // Barred while it started: whoever barred it saw no process to end.
        if held.barred.is_some() {
            held.kill();
        }
    }

    /// Polls until the child has ended or is given up; the standard library has no wait with a limit. The lock is free
    /// in between, so that who ends the survey never waits for a driver.
    fn wait(&self, give_up: impl Fn(&Held) -> bool) -> Option<ExitStatus> {
        loop {
            {
                let mut held = self.held();
                if let Some(Ok(Some(status))) = held.child.as_mut().map(Child::try_wait) {
                    return Some(status);
                }
                if give_up(&held) {
                    return None;
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            // It fails for one that has ended, which is what was wanted.
            let _ = child.kill();
        }
    }
}

#[cfg(unix)]
fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

/// On Windows an exception shows as an exit code with its top bits set.
#[cfg(not(unix))]
fn signal(status: ExitStatus) -> Option<i32> {
    status.code().filter(|code| *code < 0)
}
