//! How the agent becomes a newer version of itself: look, fetch and check while work goes on, finish, and make room.
//!
//! The change itself is made by `skein update --apply` in this process's place, when nothing of the agent is left in
//! it; on Windows, where no process can be put in the place of another, by the agent's keeper (`cmd/keeper.rs`). Must
//! never end work for a version that was not fetched and checked already.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
#[cfg(not(windows))]
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use skein_update::schedule::is_due;
use skein_update::{Outcome, PROBATION, Recovery, State, TrustedKeys, UpdateError, Updater, Version};
use smol::channel;

use super::owner::unix_ms;
use super::{Daemon, Event};
use crate::config::{Config, UpdateConfig};
use crate::limits::{UPDATE_DRAIN_MAX, UPDATE_LOOK_EVERY};

/// Set to `1` in the environment of an agent that has a keeper.
pub(crate) const KEPT: &str = "SKEIN_KEPT";

/// By this exit code an agent has its keeper start what is installed.
#[cfg(any(windows, test))]
pub(crate) const AGAIN: u8 = 75;

/// Where an update stands.
#[derive(Debug)]
pub(super) struct Updating {
    started: Instant,
    /// Whether this version has run for so long that its end would be none of an update's.
    settled: bool,
    looked_at: Option<Instant>,
    /// When somebody could be asked, in Unix milliseconds: `update.json` cannot always be written.
    asked_ms: Option<u64>,
    stage: Stage,
    /// Why there was no update, as it was logged last: it comes up again every day.
    told: Option<String>,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    None,
    /// A version is looked for, or fetched and checked.
    Fetching,
    /// It is good; customers' answers under way come to their end, for which the stages of models have to stay.
    Answering { version: Version, since: Instant },
    /// The work at hand comes to its end.
    Finishing { version: Version, since: Instant },
    /// The agent leaves for it.
    Leaving(Version),
}

/// Why there is no version to change to.
pub(crate) struct Unfetched {
    why: String,
    /// Nobody could be asked, so that it is worth asking again soon.
    unasked: bool,
}

impl Default for Updating {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            settled: false,
            looked_at: None,
            asked_ms: None,
            stage: Stage::None,
            told: None,
        }
    }
}

impl Updating {
    /// For which version the agent left.
    pub(super) fn version(&self) -> Option<&Version> {
        match &self.stage {
            Stage::Leaving(version) => Some(version),
            Stage::None | Stage::Fetching | Stage::Answering { .. } | Stage::Finishing { .. } => None,
        }
    }

    /// Logs why there is no update, once for as long as it stays the same.
    fn tell(&mut self, why: String) {
        if self.told.as_ref() != Some(&why) {
            tracing::warn!("no update: {why}");
            self.told = Some(why);
        }
    }

    /// An agent that was told to leave has left: how soon it did says nothing about its version.
    pub(super) fn left(&self, data_dir: &Path) {
        if !self.settled && !skein_update::is_trial() {
            State::excuse_start(data_dir);
        }
    }

    /// Whether nothing new may be begun.
    pub(super) fn holds_work(&self) -> bool {
        matches!(self.stage, Stage::Finishing { .. } | Stage::Leaving(_))
    }

    /// A version that an update installed and that has run for a while is not taken back any more.
    fn settle(&mut self, data_dir: &Path) {
        if !self.settled && self.started.elapsed() >= PROBATION && !skein_update::is_trial() {
            self.settled = true;
            State::end_probation(data_dir);
        }
    }
}

/// What updates come from, as the owner configured it.
///
/// # Errors
/// When there is no place to fetch from, or no key to believe.
pub(crate) fn updater(config: &UpdateConfig, data_dir: &Path) -> Result<Updater> {
    let url = config.url.as_deref().context(
        "this build knows no place to fetch releases from\nhint: name one in config.toml: update_url = \"https://…\"",
    )?;
    let keys = match &config.keys {
        Some(keys) => TrustedKeys::from_hex(keys)?,
        None => TrustedKeys::built_in()?,
    };
    // Without being asked there is no update; who asks means what everybody gets.
    let channel = if config.channel == "off" { "stable" } else { &config.channel };
    Ok(Updater::new(url, channel, keys, crate::version(), data_dir)?)
}

/// Whether this process can be followed by another version of itself.
fn can_replace() -> bool {
    cfg!(unix) || is_kept()
}

/// Whether a keeper started this agent, and will start it again.
pub(crate) fn is_kept() -> bool {
    std::env::var_os(KEPT).is_some_and(|value| value == "1")
}

/// Of a service on Windows: its account may not write to its own program, and nobody would start the new one.
fn cannot(data_dir: &Path) -> String {
    format!(
        "a service of Windows cannot replace its own program\nhint: as an administrator say `sc stop Skein`, then `skein \
         update --data-dir \"{0}\"`, then `skein service install --headless --data-dir \"{0}\"`",
        data_dir.display()
    )
}

/// At the start of an agent: clears away what an update left that was cut off, and tells how the last one ended. Puts the
/// version before in the place of one that an update has installed and that ends again and again.
///
/// # Errors
/// When the version before has its name back and cannot be executed.
pub(super) fn recover(config: &Config) -> Result<()> {
    if skein_update::is_trial() {
        return Ok(());
    }
    if let Ok(updater) = updater(&config.update, &config.data_dir) {
        match updater.recover() {
            Ok(Recovery::Nothing | Recovery::Busy) => {}
            Ok(Recovery::Completed(version)) => tracing::info!(%version, "an update came to its end"),
            Ok(Recovery::Cleaned { .. }) => tracing::info!("cleared away what is left of an update"),
            Ok(Recovery::TakenBack(version)) => {
                tracing::error!(%version, "ended again and again since its installation: back to the version before");
                match start_again()? {}
            }
            Err(error) => tracing::warn!("cannot look after an update that was cut off: {error}"),
        }
    }
    let last = State::load(&config.data_dir).last_result;
    let went_wrong = last.filter(|last| matches!(last.outcome, Outcome::Failed | Outcome::Interrupted));
    if let Some(reason) = went_wrong.and_then(|last| last.reason) {
        tracing::warn!("the last update did not succeed: {reason}");
    }
    Ok(())
}

impl Daemon {
    /// Whether a version may be looked for without being asked.
    fn updates_itself(&self) -> bool {
        let update = &self.config.update;
        // Before the sensors were read, it is not known what the line costs.
        let sensed = self.owner.readings().is_some();
        update.url.is_some() && update.channel != "off" && sensed && !skein_update::is_trial()
    }

    /// Now and then: looks for a newer version; leaves for one that is good, when the work is done.
    pub(super) fn tick_update(&mut self, feed: &channel::Sender<Event>) -> Result<()> {
        self.updating.settle(&self.config.data_dir);
        match &self.updating.stage {
            Stage::None if self.updates_itself() => {
                if self.updating.looked_at.is_some_and(|at| at.elapsed() < UPDATE_LOOK_EVERY) {
                    return Ok(());
                }
                self.updating.looked_at = Some(Instant::now());
                let last = State::load(&self.config.data_dir).last_check_ms.max(self.updating.asked_ms);
                if is_due(last, &self.node.id().0, unix_ms())
                    && !self.stations.fetch_later()
                    && let Err(error) = self.fetch(None, feed)
                {
                    self.updating.tell(error);
                }
                Ok(())
            }
            // Whoever comes from then on is told that the agent leaves.
            Stage::Answering { version, since }
                if self.crowd.close() || since.elapsed() > UPDATE_DRAIN_MAX =>
            {
                self.updating.stage = Stage::Finishing { version: version.clone(), since: *since };
                self.hold_work()
            }
            Stage::Finishing { version, since }
                if !self.node.works() || since.elapsed() > UPDATE_DRAIN_MAX =>
            {
                tracing::info!(%version, "leaving for the new version");
                self.updating.stage = Stage::Leaving(version.clone());
                self.leave(None)
            }
            Stage::None
            | Stage::Fetching
            | Stage::Answering { .. }
            | Stage::Finishing { .. }
            | Stage::Leaving(_) => Ok(()),
        }
    }

    /// The owner or the system wants the agent gone, and no other version in its place.
    pub(super) fn told_to_leave(&mut self, answer: Option<channel::Sender<()>>) -> Result<()> {
        self.updating.stage = Stage::None;
        self.leave(answer)
    }

    /// Looks for the newest version, or for this one, and fetches and checks it beside the work.
    pub(super) fn update(
        &mut self,
        version: Option<Version>,
        feed: &channel::Sender<Event>,
    ) -> Result<(), String> {
        if self.leaving.is_some() && self.updating.version().is_none() {
            return Err("the agent is leaving\nhint: `skein update` works without an agent too".to_owned());
        }
        if !matches!(self.updating.stage, Stage::None) {
            return Err("an update is under way\nhint: `skein update` again shows how it ended".to_owned());
        }
        if !can_replace() {
            return Err(cannot(&self.config.data_dir));
        }
        let updater = self.updater()?;
        updater.check_place().map_err(|error| error.to_string())?;
        self.fetch(version, feed)
    }

    fn updater(&self) -> Result<Updater, String> {
        updater(&self.config.update, &self.config.data_dir).map_err(|error| format!("{error:#}"))
    }

    /// The same, whether or not this process may replace itself: that there is a newer version is worth knowing.
    fn fetch(&mut self, version: Option<Version>, feed: &channel::Sender<Event>) -> Result<(), String> {
        let updater = self.updater()?;
        self.updating.stage = Stage::Fetching;
        let feed = feed.clone();
        let fetch = move || -> Result<Option<Version>, Unfetched> {
            let release = match version {
                Some(version) => Some(updater.find(&version)),
                None => updater.check().transpose(),
            };
            let Some(release) = release.transpose().map_err(|error| Unfetched {
                unasked: matches!(error, UpdateError::Network { .. }),
                why: error.to_string(),
            })?
            else {
                return Ok(None);
            };
            let version = release.version.clone();
            let fetched = if can_replace() {
                // Whoever applies it looks for it again, and takes the archive that is kept here.
                updater.prefetch(&release, &mut |_, _| {}).map_err(|error| error.to_string())
            } else {
                Err(cannot(&updater.data_dir))
            };
            match fetched {
                Ok(()) => Ok(Some(version)),
                Err(why) => {
                    Err(Unfetched { why: format!("version {version} is there: {why}"), unasked: false })
                }
            }
        };
        skein_mesh::spawn(async move {
            let fetched = smol::unblock(fetch).await;
            let _ = feed.send(Event::Fetched(fetched)).await;
        })
        .detach();
        Ok(())
    }

    /// A version was fetched and checked, or there is none.
    pub(super) fn fetched(&mut self, fetched: Result<Option<Version>, Unfetched>) -> Result<()> {
        self.updating.stage = Stage::None;
        if !matches!(fetched, Err(Unfetched { unasked: true, .. })) {
            self.updating.asked_ms = Some(unix_ms());
        }
        match fetched {
            Ok(Some(version)) if self.leaving.is_none() => {
                tracing::info!(%version, "a new version is here: finishing the work at hand first");
                self.updating.stage = Stage::Answering { version, since: Instant::now() };
            }
            Ok(Some(_) | None) => {}
            Err(Unfetched { why, .. }) => self.updating.tell(why),
        }
        Ok(())
    }
}

/// Has `skein update --apply VERSION` follow this process in its place, and then `skein` with the arguments that this
/// process was started with.
///
/// # Errors
/// When it cannot be executed.
#[cfg(not(windows))]
pub(super) fn apply(version: &Version, data_dir: &Path) -> Result<Infallible> {
    let mut command = Command::new(this_binary()?);
    command.args(["update", "--apply"]).arg(version.to_string()).arg("--data-dir").arg(data_dir).arg("--");
    command.args(std::env::args_os().skip(1));
    replace_by(command)
}

/// Has the keeper do the same.
///
/// # Errors
/// When there is no keeper any more who would hear it.
#[cfg(windows)]
pub(super) fn apply(version: &Version, _data_dir: &Path) -> Result<Infallible> {
    crate::cmd::say(&version.to_string())?;
    start_again()
}

/// Has what is installed follow this process in its place, with the same arguments.
///
/// # Errors
/// When it cannot be executed.
#[cfg(not(windows))]
fn start_again() -> Result<Infallible> {
    let mut command = Command::new(this_binary()?);
    command.args(std::env::args_os().skip(1));
    replace_by(command)
}

/// Has the keeper do the same.
///
/// # Errors
/// Never.
#[cfg(windows)]
fn start_again() -> Result<Infallible> {
    std::process::exit(i32::from(AGAIN))
}

/// The installed binary: what has its name by now, even if that was replaced since this process began.
///
/// # Errors
/// When the system does not tell.
pub(crate) fn this_binary() -> Result<PathBuf> {
    skein_update::this_binary().context("cannot find this binary's own path")
}

/// Puts another program in this process's place, with the same process id: service managers notice nothing.
///
/// # Errors
/// When it cannot be executed.
#[cfg(not(windows))]
pub(crate) fn replace_by(mut command: Command) -> Result<Infallible> {
    let error = std::os::unix::process::CommandExt::exec(&mut command);
    Err(error).with_context(|| format!("cannot execute {}", command.get_program().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_of_windows_is_told_what_its_owner_can_do() {
        let told = cannot(Path::new("/data/skein"));
        let (what, hint) = told.split_once("\nhint: ").unwrap();
        assert!(what.contains("a service of Windows"), "{told}");
        let place = "--data-dir \"/data/skein\"";
        let verbs =
            ["sc stop Skein".to_owned(), format!("update {place}"), format!("install --headless {place}")];
        assert!(verbs.iter().all(|verb| hint.contains(verb)), "{told}");
    }

    #[test]
    fn who_wants_no_updates_by_themselves_still_gets_what_everybody_gets() {
        let config = |channel: &str| UpdateConfig {
            url: Some("https://releases.example.org".to_owned()),
            channel: channel.to_owned(),
            keys: Some(Vec::new()),
        };
        for (configured, asked) in [("off", "stable"), ("stable", "stable"), ("beta", "beta")] {
            assert_eq!(updater(&config(configured), Path::new("/data")).unwrap().channel, asked);
        }
    }
}
