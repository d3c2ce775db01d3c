//! How the agent becomes a newer version of itself: look, fetch and check while work goes on, finish, and make room.
//!
//! The change itself is made by `skein update --apply` in this process's place, when nothing of the agent is left in
//! it. Must never end work for a version that was not fetched and checked already.

use std::convert::Infallible;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use skein_update::schedule::is_due;
use skein_update::{State, TrustedKeys, Updater, Version};
use smol::channel;

use super::owner::unix_ms;
use super::{Daemon, Event};
use crate::config::UpdateConfig;
use crate::limits::{UPDATE_DRAIN_MAX, UPDATE_LOOK_EVERY};

/// Where an update stands.
#[derive(Debug, Default)]
pub(super) struct Updating {
    looked_at: Option<Instant>,
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
    /// It is good; the work at hand comes to its end.
    Finishing { version: Version, since: Instant },
    /// The agent leaves for it.
    Leaving(Version),
}

impl Updating {
    /// For which version the agent left.
    pub(super) fn version(&self) -> Option<&Version> {
        match &self.stage {
            Stage::Leaving(version) => Some(version),
            Stage::None | Stage::Fetching | Stage::Finishing { .. } => None,
        }
    }

    /// Logs why there is no update, once for as long as it stays the same.
    fn tell(&mut self, why: String) {
        if self.told.as_ref() != Some(&why) {
            tracing::warn!("no update: {why}");
            self.told = Some(why);
        }
    }

    /// Whether nothing new may be begun.
    pub(super) fn holds_work(&self) -> bool {
        matches!(self.stage, Stage::Finishing { .. } | Stage::Leaving(_))
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
    Ok(Updater::new(url, &config.channel, keys, crate::version(), data_dir)?)
}

/// Of Windows, where a file that runs cannot be replaced.
const CANNOT: &str = "a running agent cannot replace itself on this system\nhint: run install.ps1 again";

impl Daemon {
    /// Whether a version may be looked for without being asked.
    fn updates_itself(&self) -> bool {
        let update = &self.config.update;
        update.url.is_some() && update.channel != "off" && !skein_update::is_trial()
    }

    /// Now and then: looks for a newer version; leaves for one that is good, when the work is done.
    pub(super) fn tick_update(&mut self, feed: &channel::Sender<Event>) -> Result<()> {
        match &self.updating.stage {
            Stage::None if self.updates_itself() => {
                if self.updating.looked_at.is_some_and(|at| at.elapsed() < UPDATE_LOOK_EVERY) {
                    return Ok(());
                }
                self.updating.looked_at = Some(Instant::now());
                let last = State::load(&self.config.data_dir).last_check_ms;
                if is_due(last, &self.node.id().0, unix_ms())
                    && !self.stations.fetch_later()
                    && let Err(error) = self.fetch(None, feed)
                {
                    self.updating.tell(error);
                }
                Ok(())
            }
            Stage::Finishing { version, since }
                if !self.node.works() || since.elapsed() > UPDATE_DRAIN_MAX =>
            {
                tracing::info!(%version, "leaving for the new version");
                self.updating.stage = Stage::Leaving(version.clone());
                self.leave(None)
            }
            Stage::None | Stage::Fetching | Stage::Finishing { .. } | Stage::Leaving(_) => Ok(()),
        }
    }

    /// Looks for the newest version, or for this one, and fetches and checks it beside the work.
    pub(super) fn update(
        &mut self,
        version: Option<Version>,
        feed: &channel::Sender<Event>,
    ) -> Result<(), String> {
        if !matches!(self.updating.stage, Stage::None) {
            return Err("an update is under way\nhint: `skein update` again shows how it ended".to_owned());
        }
        if !cfg!(unix) {
            return Err(CANNOT.to_owned());
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
        let fetch = move || -> Result<Option<Version>, String> {
            let release = match version {
                Some(version) => Some(updater.find(&version)),
                None => updater.check().transpose(),
            };
            let Some(release) = release.transpose().map_err(|error| error.to_string())? else {
                return Ok(None);
            };
            let version = release.version.clone();
            if !cfg!(unix) {
                return Err(format!("version {version} is there: {CANNOT}"));
            }
            // Whoever applies it looks for it again, and takes the archive that is kept here.
            match updater.prefetch(&release, &mut |_, _| {}) {
                Ok(()) => Ok(Some(version)),
                Err(error) => Err(format!("version {version} is there: {error}")),
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
    pub(super) fn fetched(&mut self, fetched: Result<Option<Version>, String>) -> Result<()> {
        self.updating.stage = match fetched {
            Ok(Some(version)) => {
                tracing::info!(%version, "a new version is here: finishing the work at hand first");
                Stage::Finishing { version, since: Instant::now() }
            }
            Ok(None) => Stage::None,
            Err(error) => {
                self.updating.tell(error);
                Stage::None
            }
        };
        if self.updating.holds_work() { self.hold_work() } else { Ok(()) }
    }
}

/// Puts `skein update --apply VERSION` in this process's place, to be followed by `skein` with the arguments that this
/// process was started with.
///
/// # Errors
/// When it cannot be executed.
pub(super) fn apply(version: &Version, data_dir: &Path) -> Result<Infallible> {
    let mut command = this_binary()?;
    command.args(["update", "--apply"]).arg(version.to_string()).arg("--data-dir").arg(data_dir).arg("--");
    command.args(std::env::args_os().skip(1));
    replace_by(command)
}

/// The installed binary, as a command.
pub(crate) fn this_binary() -> Result<Command> {
    let binary = std::env::current_exe().context("cannot find this binary's own path")?;
    // An executable that was replaced is told as `… (deleted)`; the new one has its name.
    let name = binary.to_string_lossy();
    Ok(Command::new(name.strip_suffix(" (deleted)").unwrap_or(&name)))
}

/// Puts another program in this process's place, with the same process id: service managers notice nothing.
///
/// # Errors
/// When it cannot be executed.
#[cfg(unix)]
pub(crate) fn replace_by(mut command: Command) -> Result<Infallible> {
    let error = std::os::unix::process::CommandExt::exec(&mut command);
    Err(error).with_context(|| format!("cannot execute {}", command.get_program().display()))
}

/// # Errors
/// Always: this system has no such thing.
#[cfg(not(unix))]
pub(crate) fn replace_by(command: Command) -> Result<Infallible> {
    anyhow::bail!("cannot put {} in this process's place here", command.get_program().display())
}
