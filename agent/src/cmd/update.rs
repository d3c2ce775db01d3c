//! `skein update`: to a newer version, or to one that is named; what does not prove itself never gets the installed name.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use serde_json::json;
use skein_update::{
    Health, NetworkLimits, Release, Staged, State, TRIAL_LIMIT, TRIAL_STEADY, UpdateError, Updater, Version,
};

use super::{bytes_text, say};
use crate::cli::{UpArgs, UpdateArgs};
use crate::client::Client;
use crate::config::{Config, data_dir};
use crate::daemon::runs_nowhere;
use crate::daemon::updating::{this_binary, updater};
use crate::limits::{TRIAL_ANSWER_MAX, TRIAL_SURVEY_MAX, UPDATE_DRAIN_MAX};

/// What an update must know of an agent of any version; later ones may tell everything else in other words.
#[derive(Deserialize)]
struct Told {
    version: String,
    #[serde(default)]
    on_trial: bool,
    #[serde(default)]
    surveying: bool,
}

/// # Errors
/// When there is no newer version, or none that is signed, fits, and works.
pub(crate) fn run(args: UpdateArgs) -> Result<ExitCode> {
    let directory = data_dir(args.data_dir.data_dir.clone())?;
    let config = Config::load(UpArgs { data_dir: Some(directory.clone()), ..UpArgs::default() })?;
    let updater = updater(&config.update, &directory)?;
    if let Some(version) = &args.apply {
        return apply(&updater, version, &args.then);
    }
    if args.back {
        return back(&updater, &directory);
    }
    let release = match &args.version {
        Some(version) => Some(updater.find(version)?),
        None => updater.check()?,
    };
    let Some(release) = release else {
        say(&format!("{} is the newest version", updater.current_version))?;
        return Ok(ExitCode::SUCCESS);
    };
    if args.dry_run {
        updater.check_place()?;
        let (version, size) = (&release.version, bytes_text(release.archive.bytes));
        say(&format!(
            "would update {} to {version} ({size}, released {})",
            updater.current_version, release.released_at
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create the data directory {}", directory.display()))?;
    match Client::of(&directory).and_then(|client| client.get::<Told>("/api/status").map(|_| client)) {
        Ok(client) => ask(&client, &directory, &release.version),
        Err(_) if runs_nowhere(&directory) => alone(&updater, &release),
        Err(_) => bail!(
            "an agent runs in {} and does not answer\nhint: try again in a minute; if it stays so, stop the agent first",
            directory.display()
        ),
    }
}

/// The running agent changes itself; this watches.
fn ask(client: &Client, directory: &Path, version: &Version) -> Result<ExitCode> {
    let before = State::load(directory).last_result.map(|result| result.at_ms);
    let first = client.running().token.clone();
    let _: serde_json::Value = client.post("/api/update", &json!({ "version": version }))?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}")?);
    bar.set_message("fetching, checking, and finishing the work at hand");
    let asked = Instant::now();
    let (limit, wanted) = (longest(), version.to_string());
    loop {
        bar.tick();
        let now = client.again().and_then(|client| {
            let status = client.get_within::<Told>("/api/status", TRIAL_ANSWER_MAX)?;
            Ok((status, client.running().token != first))
        });
        let now = now.ok().filter(|(status, _)| !status.on_trial);
        if now.as_ref().is_some_and(|(status, _)| status.version == wanted) {
            bar.finish_and_clear();
            say(&format!("updated to {version}"))?;
            return Ok(ExitCode::SUCCESS);
        }
        // What the agent noted before it came back is there by now.
        let ended = State::load(directory).last_result;
        if let Some(result) = ended.filter(|result| Some(result.at_ms) != before)
            && let Some(reason) = result.reason
        {
            bar.finish_and_clear();
            bail!("no update: {reason}");
        }
        if let Some((status, true)) = now {
            bar.finish_and_clear();
            bail!("no update: the agent was started again as version {}\n{STORY_HINT}", status.version);
        }
        if asked.elapsed() > limit {
            bar.finish_and_clear();
            bail!("no update within {} minutes\n{STORY_HINT}", limit.as_secs() / 60);
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

const STORY_HINT: &str =
    "hint: `skein status` tells which version runs; story.log in the data directory tells why";

/// What an agent may take at most: to find and fetch, to finish its work, and to try the new version.
fn longest() -> Duration {
    let network = NetworkLimits::default();
    // It looks for the manifest twice, and for two files each time.
    network.manifest * 4 + network.archive + UPDATE_DRAIN_MAX + TRIAL_LIMIT * 2
}

/// The version before, by hand. Nothing is stopped: what runs goes on until it is started again.
fn back(updater: &Updater, directory: &Path) -> Result<ExitCode> {
    updater.restore_old()?;
    let binary = this_binary()?;
    let said = std::process::Command::new(&binary).arg("--version").output();
    let version =
        said.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned()).unwrap_or_default();
    say(&format!(
        "{} is {} again; the same once more undoes this",
        binary.display(),
        if version.is_empty() { "the version before" } else { &version }
    ))?;
    match Client::of(directory) {
        Ok(_) => say(
            "the agent that runs is still the one before: start it again, as a service or by `skein down` and `skein up`",
        )?,
        Err(_) => say("`skein up` starts it")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// No agent runs: the new version is tried in an empty directory.
fn alone(updater: &Updater, release: &Release) -> Result<ExitCode> {
    let staged = stage(updater, release)?;
    let place = tempdir()?;
    let arguments = ["up", "--headless", "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--data-dir"];
    let mut arguments: Vec<OsString> = arguments.map(OsString::from).into();
    arguments.push(place.0.clone().into());
    let version = release.version.clone();
    try_out(staged, &arguments, &place.0)?;
    say(&format!("updated to {version}"))?;
    Ok(ExitCode::SUCCESS)
}

/// In the place of an agent that left for this: tries the new version on the agent's own data, and is followed by what is
/// installed then, the new version or the old, unless the agent was told to leave meanwhile.
fn apply(updater: &Updater, version: &Version, then: &[OsString]) -> Result<ExitCode> {
    #[cfg(windows)]
    crate::os::leave_when_input_ends();
    let changed = updater.find(version).map_err(anyhow::Error::from).and_then(|release| {
        let staged = stage(updater, &release)?;
        try_out(staged, then, &updater.data_dir)
    });
    match &changed {
        Ok(()) => eprintln!("updated to {version}"),
        Err(error) => eprintln!("error: still version {}: {error:#}", updater.current_version),
    }
    if changed.is_err_and(|error| was_told_to_leave(&error)) {
        return Ok(ExitCode::SUCCESS);
    }
    go_on(then)
}

fn was_told_to_leave(error: &Error) -> bool {
    matches!(error.downcast_ref::<UpdateError>(), Some(UpdateError::Left { .. }))
}

/// Becomes what is installed.
#[cfg(not(windows))]
fn go_on(then: &[OsString]) -> Result<ExitCode> {
    let mut command = std::process::Command::new(this_binary()?);
    command.args(then);
    match crate::daemon::updating::replace_by(command)? {}
}

/// Has the keeper, who started this, start what is installed.
#[cfg(windows)]
fn go_on(_then: &[OsString]) -> Result<ExitCode> {
    Ok(ExitCode::from(crate::daemon::updating::AGAIN))
}

fn stage(updater: &Updater, release: &Release) -> Result<Staged> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("fetching {bar:30} {bytes}/{total_bytes}")?);
    let staged = updater.stage(release, &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(staged?)
}

/// Starts the new version as an agent on `directory`, and gives it the installed name once that answers and goes on
/// answering.
fn try_out(staged: Staged, arguments: &[OsString], directory: &Path) -> Result<()> {
    let wanted = staged.version().to_string();
    let mut command = staged.command();
    command.args(arguments);
    let start = Instant::now();
    let leaves = leave_requests()?;
    let mut health = || if leaves() { Health::Leave } else { health(directory, &wanted, start.elapsed()) };
    staged.trial(command, &mut health, TRIAL_LIMIT, TRIAL_STEADY)?.promote()?;
    Ok(())
}

/// Whether this process was asked to end. On Windows that would otherwise end it in the midst of an installation; elsewhere
/// it does, which leaves one version or the other.
#[cfg(windows)]
fn leave_requests() -> Result<impl Fn() -> bool> {
    let requests = crate::os::leave_requests()?;
    Ok(move || !requests.is_empty())
}

#[cfg(not(windows))]
fn leave_requests() -> Result<impl Fn() -> bool> {
    Ok(|| false)
}

/// What an agent lacks that has been on trial for so long. Answers soon, whatever that agent does: the trial's own limit
/// depends on it.
fn health(directory: &Path, wanted: &str, tried: Duration) -> Health {
    let told =
        Client::of(directory).and_then(|client| client.get_within::<Told>("/api/status", TRIAL_ANSWER_MAX));
    match told {
        Ok(told) if told.version != wanted || !told.on_trial => {
            Health::Missing(format!("version {} answers", told.version))
        }
        Ok(told) if told.surveying && tried < TRIAL_SURVEY_MAX => {
            Health::Missing("it is still looking for its devices".to_owned())
        }
        Ok(_) => Health::Good,
        Err(error) => Health::Missing(format!("it does not answer yet: {error}")),
    }
}

/// A directory that goes with its name.
struct Gone(std::path::PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn tempdir() -> Result<Gone> {
    let mut name = [0; 8];
    getrandom::fill(&mut name).map_err(|error| anyhow!("no randomness: {error}"))?;
    let path = std::env::temp_dir().join(format!("skein-update-{}", hex::encode(name)));
    std::fs::create_dir(&path)?;
    Ok(Gone(path))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_agent_that_listens_and_never_answers_does_not_hold_the_trial_up() {
        let folder = tempfile::tempdir().unwrap();
        // The kernel takes the connection; nobody reads from it.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = silent.local_addr().unwrap();
        let node = "00".repeat(32);
        let running = json!({ "pid": 1, "node": node, "listen": api, "api": api, "token": "" });
        std::fs::write(folder.path().join(crate::daemon::RUNNING_FILE), running.to_string()).unwrap();
        let start = Instant::now();
        let health = health(folder.path(), "0.2.0", Duration::ZERO);
        let Health::Missing(missing) = &health else { panic!("{health:?}") };
        assert!(missing.contains("does not answer"), "{missing}");
        assert!(start.elapsed() < 3 * TRIAL_ANSWER_MAX, "{:?}", start.elapsed());
    }
}
