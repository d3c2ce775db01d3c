//! What a new version does on trial, and what the machine looks like afterwards. Real processes throughout.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Machine, OLD, STEADY, Server, archive, good, trial, version, wait_until};
use skein_update::{Health, Outcome, Probation, Recovery, Staged, State, UpdateError, Updater};

const LONG: Duration = Duration::from_secs(20);

fn published(script: &str) -> (Server, Machine, Updater) {
    let (server, machine) = (Server::start(), Machine::new());
    server.publish("0.2.0", &archive("0.2.0", script), &[1]);
    let updater = machine.updater(&server.url, &[1]);
    (server, machine, updater)
}

fn staged(updater: &Updater) -> Staged {
    updater.stage(&updater.check().unwrap().unwrap(), &mut |_, _| {}).unwrap()
}

fn alive(pid: &str) -> bool {
    // A zombie has a directory too, but no longer a command line.
    fs::read(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|line| !line.is_empty())
}

/// Runs a trial that must fail; gives the reason.
fn failure(machine: &Machine, updater: &Updater, limit: Duration) -> String {
    let error = trial(machine, staged(updater), limit).unwrap_err();
    machine.assert_untouched();
    let UpdateError::TrialFailed { reason, .. } = &error else { panic!("{error}") };
    let state = updater.state();
    assert_eq!(state.in_trial, None);
    let last = state.last_result.clone().unwrap();
    assert_eq!(
        (last.outcome, last.version, last.reason.as_ref()),
        (Outcome::Failed, Some(version("0.2.0")), Some(reason))
    );
    assert_eq!(state.failure(&version("0.2.0")).unwrap().reason, *reason);
    reason.clone()
}

#[test]
fn a_good_version_is_installed_and_can_be_taken_back() {
    let script = good("0.2.0");
    let (_server, machine, mut updater) = published(&script);
    let proven = trial(&machine, staged(&updater), LONG).unwrap();
    assert_eq!(machine.installed(), OLD, "not before it is promoted");
    assert_eq!(updater.state().in_trial.unwrap().version, version("0.2.0"));
    proven.promote().unwrap();
    assert_eq!(machine.installed(), script);
    assert_eq!(machine.names(), ["skein", "skein.old"]);
    assert_eq!(fs::read_to_string(machine.bin.join("skein.old")).unwrap(), OLD);
    let state = updater.state();
    assert_eq!((state.last_result.unwrap().outcome, state.in_trial), (Outcome::Updated, None));
    updater.current_version = version("0.2.0");
    assert_eq!(updater.recover().unwrap(), Recovery::Nothing);
    assert_eq!(updater.check().unwrap(), None);
    updater.restore_old().unwrap();
    assert_eq!(machine.installed(), OLD);
    assert_eq!(fs::read_to_string(machine.bin.join("skein.old")).unwrap(), script);
    // It is not installed again by itself.
    updater.current_version = version("0.1.0");
    assert!(matches!(updater.check(), Err(UpdateError::FailedBefore { .. })));
    updater.restore_old().unwrap();
    assert_eq!(machine.installed(), script);
}

#[test]
fn the_trial_is_over_when_it_is_promoted() {
    let script = good("0.2.0").replace("exec cat", "echo $$ > \"$1.pid\"\nexec cat");
    let (_server, machine, updater) = published(&script);
    let proven = trial(&machine, staged(&updater), LONG).unwrap();
    let pid_file = machine.data.join("healthy.pid");
    wait_until("the trial says its id", || {
        fs::read_to_string(&pid_file).is_ok_and(|text| text.ends_with('\n'))
    });
    let pid = fs::read_to_string(pid_file).unwrap();
    assert!(alive(&pid));
    proven.promote().unwrap();
    assert!(!alive(&pid));
}

#[test]
fn a_crash_at_start_is_told_in_its_own_words() {
    let (_server, machine, updater) = published("#!/bin/sh\necho 'no GPU was found' >&2\nexit 3\n");
    let reason = failure(&machine, &updater, LONG);
    assert!(reason.contains("exit status: 3") && reason.contains("no GPU was found"), "{reason}");
    // Not again by itself; by exact version, yes.
    assert!(matches!(updater.check(), Err(UpdateError::FailedBefore { .. })));
    let release = updater.find(&version("0.2.0")).unwrap();
    drop(updater.stage(&release, &mut |_, _| {}).unwrap());
    machine.assert_untouched();
}

#[test]
fn a_version_that_hangs_is_ended_with_all_its_processes() {
    let (_server, machine, updater) =
        published("#!/bin/sh\nsleep 600 &\necho $! > \"$1.worker\"\necho $$ > \"$1.pid\"\nwait\n");
    let start = Instant::now();
    let reason = failure(&machine, &updater, Duration::from_secs(2));
    assert!(start.elapsed() < Duration::from_secs(15));
    assert!(reason.contains("within 2 s: its API does not answer"), "{reason}");
    for name in ["healthy.pid", "healthy.worker"] {
        let pid = fs::read_to_string(machine.data.join(name)).unwrap();
        wait_until("the process is gone", || !alive(&pid));
    }
}

#[test]
fn a_version_that_is_another_than_it_should_be_fails() {
    let (_server, machine, updater) = published(&good("0.1.9"));
    let reason = failure(&machine, &updater, Duration::from_secs(1));
    assert!(reason.contains("it says it is 0.1.9"), "{reason}");
}

#[test]
fn a_version_that_answers_and_then_crashes_is_not_proven() {
    let script =
        good("0.2.0").replace("exec cat > /dev/null", "sleep 0.1; echo the survey crashed >&2; exit 7");
    let (_server, machine, updater) = published(&script);
    let reason = failure(&machine, &updater, LONG);
    assert!(reason.contains("exit status: 7") && reason.contains("the survey crashed"), "{reason}");
}

#[test]
fn a_version_that_is_healthy_now_and_then_is_not_proven() {
    let (_server, machine, updater) = published(&good("0.2.0"));
    let (mut asked, staged) = (0, staged(&updater));
    let mut command = staged.command();
    command.arg(machine.health_file());
    let mut health = || {
        asked += 1;
        if asked % 3 == 0 { Health::Missing("it stutters".to_owned()) } else { Health::Good }
    };
    let limit = STEADY * 4;
    let error = staged.trial(command, &mut health, limit, STEADY).unwrap_err();
    assert!(error.to_string().contains("it was not healthy within 1.2 s: "), "{error}");
    machine.assert_untouched();
}

#[test]
fn what_cannot_be_executed_fails() {
    let (_server, machine, updater) = published("#!/nowhere/interpreter\n");
    let reason = failure(&machine, &updater, LONG);
    assert!(reason.contains("cannot be started"), "{reason}");
}

#[test]
fn a_version_that_dies_after_it_was_healthy_is_not_installed() {
    let (_server, machine, updater) = published(&good("0.2.0").replace("exec cat > /dev/null", "read line"));
    let path = machine.health_file();
    let staged = staged(&updater);
    let mut command = staged.command();
    command.arg(&path);
    let mut health = || if path.exists() { Health::Good } else { Health::Missing("not yet".to_owned()) };
    let proven = staged.trial(command, &mut health, LONG, STEADY).unwrap();
    // It waits for a line that never comes: end it as a crash would.
    let pid = children_of_this_process()
        .into_iter()
        .find(|(_, line)| line.contains("skein.new") && line.contains(path.to_str().unwrap()));
    let (pid, _) = pid.unwrap();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    // Its command line goes a moment before its parent can hear of its end, which is what counts here.
    let stat = format!("/proc/{pid}/stat");
    wait_until("the trial is dead", || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z ")));
    let error = proven.promote().unwrap_err();
    assert!(matches!(error, UpdateError::TrialFailed { .. }), "{error}");
    machine.assert_untouched();
    assert!(updater.state().failure(&version("0.2.0")).is_some());
}

fn children_of_this_process() -> Vec<(String, String)> {
    let me = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let pid = entry.file_name().into_string().unwrap();
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap_or("").to_owned();
        if parent == me {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

#[test]
fn what_somebody_else_installed_meanwhile_stays() {
    let (_server, machine, updater) = published(&good("0.2.0"));
    let proven = trial(&machine, staged(&updater), LONG).unwrap();
    machine.install("#!/bin/sh\necho by hand\n");
    assert!(matches!(proven.promote(), Err(UpdateError::ChangedMeanwhile { .. })));
    assert!(machine.installed().contains("by hand"));
    assert_eq!(machine.names(), ["skein"]);
}

#[test]
fn what_was_not_proven_is_not_installed_whoever_put_it_there() {
    let (_server, machine, updater) = published(&good("0.2.0"));
    let proven = trial(&machine, staged(&updater), LONG).unwrap();
    // Another agent of the same binary, as soon as it is asked to update.
    let elsewhere = Updater { data_dir: machine.folder().join("other"), ..updater.clone() };
    fs::create_dir(&elsewhere.data_dir).unwrap();
    let release = elsewhere.check().unwrap().unwrap();
    assert!(matches!(elsewhere.stage(&release, &mut |_, _| {}), Err(UpdateError::Busy)));
    assert!(matches!(elsewhere.check_place(), Err(UpdateError::Busy)));
    assert_eq!(elsewhere.recover().unwrap(), Recovery::Busy);
    assert!(machine.bin.join("skein.new").exists());
    // And whoever does not ask.
    fs::write(machine.bin.join("skein.new"), "").unwrap();
    let error = proven.promote().unwrap_err();
    assert!(matches!(error, UpdateError::ChangedMeanwhile { .. }), "{error}");
    machine.assert_untouched();
    assert!(updater.state().failed.is_empty(), "the version is not to blame");
    drop(elsewhere.stage(&release, &mut |_, _| {}).unwrap());
}

#[test]
fn agents_that_share_a_binary_go_back_to_the_version_before() {
    let (_server, machine, updater) = published(&good("0.2.0"));
    let elsewhere = Updater { data_dir: machine.folder().join("other"), ..updater.clone() };
    fs::create_dir(&elsewhere.data_dir).unwrap();
    trial(&machine, staged(&updater), LONG).unwrap().promote().unwrap();
    // The other still runs the old version, and does not know.
    trial(&machine, staged(&elsewhere), LONG).unwrap().promote().unwrap();
    assert_eq!(machine.installed(), good("0.2.0"));
    assert_eq!(fs::read_to_string(machine.bin.join("skein.old")).unwrap(), OLD);
}

#[test]
fn a_version_that_ends_again_and_again_is_taken_back() {
    let script = good("0.2.0");
    let (_server, machine, mut updater) = published(&script);
    trial(&machine, staged(&updater), LONG).unwrap().promote().unwrap();
    updater.current_version = version("0.2.0");
    assert_eq!(updater.recover().unwrap(), Recovery::Nothing);
    // It is told to leave: that is no crash.
    State::excuse_start(&machine.data);
    for _ in 0..2 {
        assert_eq!(updater.recover().unwrap(), Recovery::Nothing);
    }
    assert_eq!(machine.installed(), script);
    assert_eq!(updater.recover().unwrap(), Recovery::TakenBack(version("0.2.0")));
    assert_eq!(machine.installed(), OLD);
    assert_eq!(machine.names(), ["skein", "skein.old"]);
    let state = updater.state();
    assert!(state.failure(&version("0.2.0")).is_some());
    assert_eq!(state.last_result.unwrap().outcome, Outcome::Failed);
    // And not once more by itself.
    updater.current_version = version("0.1.0");
    assert_eq!(updater.recover().unwrap(), Recovery::Nothing);
    assert!(matches!(updater.check(), Err(UpdateError::FailedBefore { .. })));
    assert_eq!(machine.installed(), OLD);
}

#[test]
fn a_version_that_has_run_for_long_stays() {
    let script = good("0.2.0");
    let (_server, machine, mut updater) = published(&script);
    trial(&machine, staged(&updater), LONG).unwrap().promote().unwrap();
    updater.current_version = version("0.2.0");
    updater.recover().unwrap();
    State::end_probation(&machine.data);
    for _ in 0..5 {
        assert_eq!(updater.recover().unwrap(), Recovery::Nothing);
    }
    assert_eq!(machine.installed(), script);
    // Where there is nothing to go back to, it has to stay too.
    fs::remove_file(machine.bin.join("skein.old")).unwrap();
    let probation = Some(Probation { version: version("0.2.0"), starts: 2 });
    State { probation, ..updater.state() }.save(&machine.data).unwrap();
    assert_eq!(updater.recover().unwrap(), Recovery::Nothing);
    assert_eq!(machine.installed(), script);
    assert!(updater.state().failed.is_empty());
}

#[test]
fn a_version_that_is_told_to_leave_or_hindered_may_be_tried_again() {
    let (_server, machine, updater) = published("#!/bin/sh\nexit 76\n");
    let error = trial(&machine, staged(&updater), LONG).unwrap_err();
    assert!(matches!(error, UpdateError::Left { .. }), "{error}");
    machine.assert_untouched();
    let (_server, machine, updater) = published("#!/bin/sh\necho the port is in use >&2\nexit 75\n");
    let error = trial(&machine, staged(&updater), LONG).unwrap_err();
    assert!(matches!(error, UpdateError::NotNow { .. }), "{error}");
    assert!(error.to_string().contains("the port is in use"), "{error}");
    machine.assert_untouched();
    // Nor has whoever tries it always the time.
    let (_server, machine, updater) = published(&good("0.2.0"));
    let staged = staged(&updater);
    let mut command = staged.command();
    command.arg(machine.health_file());
    let error = staged.trial(command, &mut || Health::Leave, LONG, STEADY).unwrap_err();
    assert!(matches!(error, UpdateError::Left { .. }), "{error}");
    machine.assert_untouched();
    let state = updater.state();
    assert!(state.failed.is_empty() && state.in_trial.is_none() && state.interrupted.is_none(), "{state:?}");
    assert_eq!(state.last_result.unwrap().outcome, Outcome::Interrupted);
    assert!(updater.check().unwrap().is_some());
}

#[test]
fn a_dropped_trial_leaves_nothing() {
    let (_server, machine, updater) = published(&good("0.2.0"));
    let proven = trial(&machine, staged(&updater), LONG).unwrap();
    drop(proven);
    machine.assert_untouched();
    assert_eq!(
        updater.recover().unwrap(),
        Recovery::Cleaned { version: Some(version("0.2.0")), removed: Vec::new() }
    );
    // Interrupted once it may be tried again, twice it may not.
    drop(trial(&machine, staged(&updater), LONG).unwrap());
    updater.recover().unwrap();
    assert!(matches!(updater.check(), Err(UpdateError::FailedBefore { .. })));
}

/// Runs the ignored test `as_another_process` of this file in a process made by `command`; gives what it found.
fn elsewhere(mut command: Command, server: &Server, machine: &Machine) -> String {
    let report = machine.data.join("report");
    let output = command
        .args(["--exact", "as_another_process", "--ignored", "--nocapture", "--test-threads=1"])
        .env("UPDATE_URL", &server.url)
        .env("UPDATE_FOLDER", machine.folder())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    fs::read_to_string(report).unwrap()
}

/// Not a test: what the tests below run in another process, with other rights and limits.
#[test]
#[ignore = "run by other tests"]
fn as_another_process() {
    let Some(folder) = std::env::var_os("UPDATE_FOLDER") else { return };
    let machine = Machine::at(Path::new(&folder));
    let updater = machine.updater(&std::env::var("UPDATE_URL").unwrap(), &[1]);
    let release = updater.check().unwrap().unwrap();
    let error = updater.stage(&release, &mut |_, _| {}).unwrap_err();
    machine.assert_untouched();
    fs::write(machine.data.join("report"), error.to_string()).unwrap();
}

fn this_test() -> std::path::PathBuf {
    std::env::current_exe().unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A version that hardly needs room in an archive, and a lot beside the binary.
fn large() -> String {
    format!("{}#{}\n", good("0.2.0"), " ".repeat(1 << 20))
}

#[test]
fn a_file_that_may_not_grow_leaves_the_old_binary() {
    let (server, machine, _) = published(&large());
    let mut shell = Command::new("sh");
    // 128 KiB; without the signal, writing fails as it does on a full disk.
    shell.args(["-c", "trap '' XFSZ; ulimit -f 256; exec \"$0\" \"$@\""]).arg(this_test());
    let report = elsewhere(shell, &server, &machine);
    assert!(report.starts_with("no space left"), "{report}");
    machine.assert_untouched();
}

#[test]
fn a_full_disk_leaves_the_old_binary() {
    let (server, machine, _) = published(&large());
    let mut shell = Command::new("unshare");
    let bin = machine.bin.to_str().unwrap();
    let script =
        format!("mount -t tmpfs -o size=256k none {bin} && cp {bin}.copy {bin}/skein && exec \"$0\" \"$@\"");
    fs::copy(machine.bin.join("skein"), machine.folder().join("bin.copy")).unwrap();
    let possible = Command::new("unshare")
        .args(["-m", "mount", "-t", "tmpfs", "none", bin])
        .output()
        .is_ok_and(|output| output.status.success());
    if !possible {
        eprintln!("left out: this user cannot mount a small disk");
        return;
    }
    shell.args(["-m", "sh", "-c", &script]).arg(this_test());
    let report = elsewhere(shell, &server, &machine);
    assert!(report.starts_with("no space left") && report.contains("skein.new"), "{report}");
}

#[test]
fn a_directory_or_binary_of_somebody_else_is_left_alone() {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    use std::os::unix::process::CommandExt as _;
    let (server, machine, updater) = published(&good("0.2.0"));
    if is_root() {
        fs::set_permissions(machine.folder(), fs::Permissions::from_mode(0o755)).unwrap();
        chown(&machine.data, Some(65_534), None).unwrap();
        // Where it was built, another user may not be let in.
        let program = machine.folder().join("this_test");
        fs::copy(this_test(), &program).unwrap();
        let nobody = || {
            let mut command = Command::new(&program);
            command.uid(65_534).gid(65_534).current_dir("/");
            command
        };
        let report = elsewhere(nobody(), &server, &machine);
        assert!(report.contains("belongs to user 0, this process runs as user 65534"), "{report}");
        assert!(report.contains("hint: run the installer again as root"), "{report}");
        chown(machine.bin.join("skein"), Some(65_534), None).unwrap();
        let report = elsewhere(nobody(), &server, &machine);
        assert!(report.starts_with("cannot write to "), "{report}");
        // Nor does root make a user's binary its own.
        let error = updater.check_place().unwrap_err();
        assert!(matches!(error, UpdateError::OtherOwner { owner: 65_534, .. }), "{error}");
    } else {
        fs::set_permissions(&machine.bin, fs::Permissions::from_mode(0o555)).unwrap();
        let error = updater.check_place().unwrap_err();
        fs::set_permissions(&machine.bin, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(error, UpdateError::NotWritable { .. }), "{error}");
    }
    machine.assert_untouched();
}

#[test]
fn a_place_that_can_be_written_stays_as_it_is() {
    let (_server, machine, updater) = published(&good("0.2.0"));
    updater.check_place().unwrap();
    machine.assert_untouched();
}
