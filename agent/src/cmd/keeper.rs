//! `skein up` on Windows: starts the agent and stays, so that something is there while the agent's program is changed.
//!
//! What started `skein up`, a task or a terminal, sees this process alone: its end is the agent's, and so is its exit code.
//! A keeper goes on as it is until the log-off, whatever versions come and go below it, so this is a contract: an agent
//! with `SKEIN_KEPT=1` leaves when its standard input ends; by the exit code 75 it asks to be started again, and its last
//! line of output, if it has one, names a version to be applied before. `update --apply VERSION --data-dir DIR -- ARGUMENTS`
//! ends with 0 where the agent shall stay away. Must never start anything after it was told to leave.

use std::io::{BufRead, BufReader};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use smol::channel::Receiver;

use crate::daemon::lock;
use crate::daemon::updating::AGAIN;

/// What a child said last is waited for so long after its end: whatever it has started may hold the pipe for longer.
const WORDS_WAIT: Duration = Duration::from_secs(2);

/// An agent that dies is started again, as a service would be, since no task of Windows does that.
#[derive(Clone, Copy)]
struct Patience {
    /// If it ran for so long: one that cannot start says why and ends.
    steady: Duration,
    /// And then after this.
    wait: Duration,
}

/// Keeps an agent with the arguments of this process.
///
/// # Errors
/// When it cannot be started.
#[cfg(windows)]
pub(crate) fn run(args: &crate::cli::UpArgs) -> Result<std::process::ExitCode> {
    use std::os::windows::process::CommandExt;
    use std::process::ExitCode;

    use crate::daemon::updating::{KEPT, this_binary};
    use crate::limits::TRIAL_END_WAIT;
    use crate::{daemon, os};

    /// `CREATE_NO_WINDOW`: else Windows opens a console for the child of a process that let go of its own.
    const NO_WINDOW: u32 = 0x0800_0000;

    let data_dir = crate::config::data_dir(args.data_dir.clone())?;
    let binary = this_binary()?;
    let given: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let told = os::leave_requests()?;
    let flags = if os::leave_own_console() { NO_WINDOW } else { 0 };
    let command = || {
        let mut command = Command::new(&binary);
        command.creation_flags(flags);
        command
    };
    let agent = |again: bool| -> Result<Command> {
        skein_update::mend(&binary)?;
        // A version on trial ends a moment after whoever tried it, if that was killed.
        let since = Instant::now();
        while again && !daemon::runs_nowhere(&data_dir) && since.elapsed() < TRIAL_END_WAIT {
            thread::sleep(Duration::from_millis(50));
        }
        let mut command = command();
        command.args(&given).env(KEPT, "1");
        Ok(command)
    };
    let apply = |version: &str| {
        let mut command = command();
        command.args(["update", "--apply", version, "--data-dir"]).arg(&data_dir).arg("--").args(&given);
        command
    };
    let patience = Patience { steady: Duration::from_secs(60), wait: Duration::from_secs(5) };
    let code = keep(told, agent, apply, patience)?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// What is shared with the thread that hears when to leave.
#[derive(Default)]
struct Kept {
    leaves: bool,
    /// The child's standard input, by whose end it is told.
    input: Option<ChildStdin>,
}

/// Starts agents one after the other, and between them what changes the version; gives the exit code of the last. `agent`
/// is told whether there was one before.
fn keep(
    told: Receiver<()>,
    agent: impl Fn(bool) -> Result<Command>,
    apply: impl Fn(&str) -> Command,
    patience: Patience,
) -> Result<i32> {
    let kept = Arc::new(Mutex::new(Kept::default()));
    let shared = Arc::clone(&kept);
    let hear = move || {
        while told.recv_blocking().is_ok() {
            let mut kept = lock(&shared);
            kept.leaves = true;
            drop(kept.input.take());
        }
    };
    thread::Builder::new().name("leave".into()).spawn(hear).context("cannot start a thread")?;
    let mut again = false;
    loop {
        let since = Instant::now();
        let (code, version) = run_to_its_end(agent(again)?, &kept)?;
        if code != i32::from(AGAIN) {
            if code == 0 || since.elapsed() < patience.steady || lock(&kept).leaves {
                return Ok(code);
            }
            thread::sleep(patience.wait);
        }
        if lock(&kept).leaves {
            return Ok(0);
        }
        if code == i32::from(AGAIN) && !version.is_empty() {
            // Whatever else becomes of it, the installed name leads to a version that works.
            let (code, _) = run_to_its_end(apply(&version), &kept)?;
            if code == 0 || lock(&kept).leaves {
                return Ok(0);
            }
        }
        again = true;
    }
}

/// The exit code of a child, and the last line that it said.
fn run_to_its_end(mut command: Command, kept: &Mutex<Kept>) -> Result<(i32, String)> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let input = child.stdin.take();
    {
        let mut kept = lock(kept);
        // Of one that is to leave already it ends here.
        kept.input = input.filter(|_| !kept.leaves);
    }
    let last = Arc::new(Mutex::new(String::new()));
    let (said, silent) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        let last = Arc::clone(&last);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                *lock(&last) = line;
            }
            let _ = said.send(());
        });
    }
    let status = child.wait().context("cannot wait for the agent")?;
    let _ = silent.recv_timeout(WORDS_WAIT);
    let words = lock(&last).trim().to_owned();
    Ok((status.code().unwrap_or(1), words))
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::fs;
    use std::path::Path;

    use smol::channel;

    use super::*;

    fn shell(script: &str, folder: &Path, argument: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", argument]).current_dir(folder);
        command
    }

    /// What became of an agent and of what changes its version, both by these scripts; and what they noted.
    fn kept(agent: &str, apply: &str) -> (i32, String) {
        kept_with(PATIENT, agent, apply)
    }

    const PATIENT: Patience = Patience { steady: Duration::from_secs(60), wait: Duration::ZERO };

    fn kept_with(patience: Patience, agent: &str, apply: &str) -> (i32, String) {
        let folder = tempfile::tempdir().unwrap();
        let (_told, requests) = channel::bounded(1);
        let start = |again: bool| Ok(shell(agent, folder.path(), if again { "again" } else { "first" }));
        let code = keep(requests, start, |version| shell(apply, folder.path(), version), patience).unwrap();
        (code, fs::read_to_string(folder.path().join("notes")).unwrap_or_default())
    }

    /// The first agent wants another version, the second ends by itself.
    const AGENT: &str = "echo $1 >> notes; [ $1 = again ] && exit 7; echo noise; echo 0.2.0; exit 75";

    #[test]
    fn an_agent_is_started_again_when_its_version_was_changed_or_was_not() {
        assert_eq!(kept(AGENT, "echo $1 >> notes; exit 75"), (7, "first\n0.2.0\nagain\n".to_owned()));
        let died = kept(AGENT, "echo $1 >> notes; kill -9 $$");
        assert_eq!(died, (7, "first\n0.2.0\nagain\n".to_owned()), "the old version works");
        let again = "echo $1 >> notes; [ $1 = again ] && exit 3; exit 75";
        assert_eq!(kept(again, "echo $1 >> notes"), (3, "first\nagain\n".to_owned()), "no version was named");
    }

    #[test]
    fn an_agent_that_ran_well_and_died_is_started_again() {
        let dies = "echo $1 >> notes; [ $1 = again ] && exit 0; kill -9 $$";
        let steady = Patience { steady: Duration::ZERO, ..PATIENT };
        assert_eq!(kept_with(steady, dies, "exit 75"), (0, "first\nagain\n".to_owned()));
        assert_eq!(kept(dies, "exit 75"), (1, "first\n".to_owned()), "it never ran well");
    }

    #[test]
    fn an_agent_that_was_told_to_leave_stays_away() {
        assert_eq!(kept("exit 0", "echo $1 >> notes"), (0, String::new()));
        assert_eq!(kept(AGENT, "exit 0"), (0, "first\n".to_owned()), "while its version was changed");
    }

    #[test]
    fn whoever_runs_hears_that_it_is_to_leave_and_nobody_starts_after_it() {
        for (agent, apply, code) in [
            ("touch runs; cat; exit 5", "exit 75", 5),
            ("touch runs; cat; echo 0.2.0; exit 75", "touch applied; exit 75", 0),
            ("echo 0.2.0; exit 75", "touch runs; cat; exit 75", 0),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let (tell, requests) = channel::bounded(1);
            let at = folder.path().to_owned();
            thread::spawn(move || {
                while !at.join("runs").exists() {
                    thread::sleep(Duration::from_millis(5));
                }
                tell.send_blocking(()).unwrap();
            });
            let start = |again: bool| {
                assert!(!again);
                Ok(shell(agent, folder.path(), ""))
            };
            let ended = keep(requests, start, |_| shell(apply, folder.path(), ""), PATIENT).unwrap();
            assert_eq!(ended, code, "{agent}");
            assert!(!folder.path().join("applied").exists());
        }
    }

    #[test]
    fn what_outlives_an_agent_does_not_hold_its_keeper_up() {
        let agent = "[ $1 = again ] && exit 7; sleep 60 & echo $! > notes; echo 0.2.0; exit 75";
        let (code, pid) = kept(agent, "exit 75");
        assert_eq!(code, 7);
        let _ = Command::new("kill").arg(pid.trim()).status();
    }
}
