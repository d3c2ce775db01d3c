//! The updating process is killed at every step of an update. Afterwards the installed path holds a version that
//! works, the next start cleans up, and the next update succeeds.
//!
//! What a loss of power does to bytes that were not synchronised is not shown here; `swap` orders its writes.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{Machine, OLD, Server, archive, good, trial, version, wait_until};
use skein_update::{Outcome, Recovery, Step, Updater};

const STEPS: [Step; 13] = [
    Step::Reserved,
    Step::Downloading,
    Step::Verified,
    Step::Unpacked,
    Step::Writing,
    Step::Staged,
    Step::TrialRecorded,
    Step::TrialStarted,
    Step::Healthy,
    Step::OldKept,
    Step::Installed,
    Step::Recorded,
    Step::Stopped,
];

fn script() -> String {
    // More than one piece of writing, and a note of who runs.
    let text = good("0.2.0").replace("exec cat", "echo $$ > \"$1.pid\"\nexec cat");
    format!("{text}#{}\n", "x".repeat(200_000))
}

fn update(machine: &Machine, updater: &Updater) {
    let release = updater.check().unwrap().unwrap();
    let staged = updater.stage(&release, &mut |_, _| {}).unwrap();
    trial(machine, staged, Duration::from_secs(20)).unwrap().promote().unwrap();
}

/// Not a test: an update that kills its own process at one step.
#[test]
#[ignore = "run by other tests"]
fn an_update_that_is_cut_off() {
    let Some(folder) = std::env::var_os("UPDATE_FOLDER") else { return };
    let machine = Machine::at(Path::new(&folder));
    let mut updater = machine.updater(&std::env::var("UPDATE_URL").unwrap(), &[1]);
    let last = std::env::var("UPDATE_STEP").unwrap();
    if std::env::var_os("UPDATE_PREFETCHED").is_some() {
        updater.prefetch(&updater.check().unwrap().unwrap(), &mut |_, _| {}).unwrap();
    }
    updater.on_step = Some(Arc::new(move |step| {
        if format!("{step:?}") == last {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
        }
    }));
    update(&machine, &updater);
}

fn cut_off(server: &Server, machine: &Machine, step: Step, prefetched: bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    if prefetched {
        command.env("UPDATE_PREFETCHED", "1");
    }
    let status = command
        .args(["--exact", "an_update_that_is_cut_off", "--ignored", "--test-threads=1"])
        .env("UPDATE_URL", &server.url)
        .env("UPDATE_FOLDER", machine.folder())
        .env("UPDATE_STEP", format!("{step:?}"))
        .output()
        .unwrap()
        .status;
    assert_eq!(status.signal(), Some(9), "{step:?} was never reached");
}

#[test]
fn whatever_the_step_a_working_version_is_installed() {
    let server = Server::start();
    server.publish("0.2.0", &archive("0.2.0", &script()), &[1]);
    // From the server, and from an archive that was kept.
    let prefetched = STEPS.into_iter().filter(|step| *step != Step::Downloading).map(|step| (step, true));
    for (step, prefetched) in STEPS.into_iter().map(|step| (step, false)).chain(prefetched) {
        let machine = Machine::new();
        let mut updater = machine.updater(&server.url, &[1]);
        cut_off(&server, &machine, step, prefetched);

        let installed = machine.installed();
        let replaced = matches!(step, Step::Installed | Step::Recorded | Step::Stopped);
        assert_eq!(installed, if replaced { script() } else { OLD.to_owned() }, "{step:?}");
        // What is installed runs.
        let mut command = Command::new(machine.bin.join("skein"));
        let output =
            command.arg(machine.data.join("run")).stdin(std::process::Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{step:?}: {output:?}");

        // A process on trial does not outlive the one that watched it.
        if let Ok(pid) = fs::read_to_string(machine.data.join("healthy.pid")) {
            let line = format!("/proc/{}/cmdline", pid.trim());
            wait_until("the trial ends", || fs::read(&line).map_or(true, |line| line.is_empty()));
        }

        if replaced {
            updater.current_version = version("0.2.0");
        }
        let recovery = updater.recover().unwrap();
        match (step, &recovery) {
            (Step::Installed, Recovery::Completed(_)) => {}
            (Step::Recorded | Step::Stopped, Recovery::Nothing) => {}
            (_, Recovery::Cleaned { version: on_trial, removed }) if !replaced => {
                assert!(removed.iter().any(|path| path.ends_with("skein.new")), "{step:?}: {removed:?}");
                let was_on_trial =
                    matches!(step, Step::TrialRecorded | Step::TrialStarted | Step::Healthy | Step::OldKept);
                assert_eq!(on_trial.is_some(), was_on_trial, "{step:?}");
                assert_eq!(updater.state().last_result.unwrap().outcome, Outcome::Interrupted);
            }
            (_, other) => panic!("{step:?}: {other:?}"),
        }
        assert_eq!(machine.installed(), installed, "{step:?}: recovering changes nothing else");
        let old_kept = replaced || step == Step::OldKept;
        let names: &[&str] = if old_kept { &["skein", "skein.old"] } else { &["skein"] };
        assert_eq!(machine.names(), names, "{step:?}");
        assert!(!machine.data.join("update-download").exists(), "{step:?}");
        assert!(!machine.data.join("update-archive").exists(), "{step:?}");
        assert_eq!(updater.recover().unwrap(), Recovery::Nothing, "{step:?}: once suffices");

        if !replaced {
            update(&machine, &updater);
            assert_eq!(machine.installed(), script(), "{step:?}: the next attempt succeeds");
            assert_eq!(machine.names(), ["skein", "skein.old"], "{step:?}");
        }
    }
}
