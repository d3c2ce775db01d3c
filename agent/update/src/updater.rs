//! The door of this crate: check, stage, recover, go back.
//!
//! Blocking throughout: a daemon calls it in `smol::unblock`. Must never change the installed binary; only
//! `Proven::promote` does, and back to the version before, `restore_old` and `recover`.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use semver::Version;

use crate::archive;
use crate::error::{Result, UpdateError, io_error};
use crate::fetch::{NetworkLimits, Server, kept_archive, newer};
use crate::keys::TrustedKeys;
use crate::manifest::{Manifest, ReleaseFile};
use crate::state::{InTrial, Outcome, Probation, State, now_ms};
use crate::swap::{Place, held, remove};
use crate::trial::{PROBATION_STARTS, Staged, is_trial};

/// The name of the program, and of its files in archives.
const PROGRAM: &str = "skein";

/// What an update has just done, in this order; for logs, and for tests that stop it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An empty `skein.new` holds the place.
    Reserved,
    /// The archive is being fetched.
    Downloading,
    /// Checksum and signature of the archive are right.
    Verified,
    /// The binary is unpacked in the data directory.
    Unpacked,
    /// `skein.new` is partly written.
    Writing,
    /// `skein.new` is whole, durable and executable.
    Staged,
    /// The trial is noted in `update.json`.
    TrialRecorded,
    /// The process on trial runs.
    TrialStarted,
    /// It is healthy.
    Healthy,
    /// The installed binary is `skein.old` too.
    OldKept,
    /// The new binary has the installed name.
    Installed,
    /// `update.json` says so.
    Recorded,
    /// The process on trial has ended.
    Stopped,
}

/// Hears each [`Step`].
pub type StepHook = Arc<dyn Fn(Step) + Send + Sync>;

/// What `recover` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// No update was interrupted.
    Nothing,
    /// Another process updates now, or this process is on trial: nothing was touched.
    Busy,
    /// The last update had installed its version before it was interrupted; leftovers are gone.
    Completed(Version),
    /// The last update was interrupted before its version was proven; leftovers are gone.
    Cleaned {
        /// The version on trial, if it came so far.
        version: Option<Version>,
        /// The files that were removed.
        removed: Vec<PathBuf>,
    },
    /// The version that runs ended too soon time and again since it was installed: the one before has the installed name
    /// again, which the caller executes.
    TakenBack(Version),
}

/// A verified release with an archive for this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The version.
    pub version: Version,
    /// When it was released, as `2026-11-23T00:00:00Z`.
    pub released_at: String,
    /// The archive.
    pub archive: ReleaseFile,
}

/// Where releases come from, whom they are believed from, and what they would replace.
#[derive(Clone)]
pub struct Updater {
    /// `https://…`, or `http://` and a loopback address.
    pub base_url: String,
    /// `stable` or `beta`.
    pub channel: String,
    /// Whose releases are believed.
    pub keys: TrustedKeys,
    /// This machine's platform, as Rust names it.
    pub target: String,
    /// The version of this process.
    pub current_version: Version,
    /// The installed binary.
    pub binary: PathBuf,
    /// Where `update.json` and downloads are.
    pub data_dir: PathBuf,
    /// How long the network may take.
    pub network: NetworkLimits,
    /// Hears each step, if somebody does.
    pub on_step: Option<StepHook>,
}

impl fmt::Debug for Updater {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Updater")
            .field("base_url", &self.base_url)
            .field("channel", &self.channel)
            .field("target", &self.target)
            .field("current_version", &self.current_version)
            .field("binary", &self.binary)
            .finish_non_exhaustive()
    }
}

impl Updater {
    /// An updater of the running executable, for the platform that this was built for.
    pub fn new(
        base_url: &str,
        channel: &str,
        keys: TrustedKeys,
        current_version: &str,
        data_dir: &Path,
    ) -> Result<Self> {
        let binary = this_binary().map_err(io_error("find", Path::new("the running executable")))?;
        Ok(Self {
            base_url: base_url.to_owned(),
            channel: channel.to_owned(),
            keys,
            target: self_update::get_target().to_owned(),
            current_version: crate::manifest::parse_version(current_version)?,
            binary,
            data_dir: data_dir.to_owned(),
            network: NetworkLimits::default(),
            on_step: None,
        })
    }

    /// Asks the channel for something newer that has not failed here before, and notes the check in `update.json`.
    /// `Ok(None)` is up to date. Where nobody could be asked, it is still due.
    pub fn check(&self) -> Result<Option<Release>> {
        let found = self.check_channel();
        let mut state = State::load(&self.data_dir);
        if !matches!(found, Err(UpdateError::Network { .. })) {
            state.last_check_ms = Some(now_ms());
        }
        match &found {
            Ok(None) => state.set_result(Outcome::UpToDate, Some(&self.current_version), None),
            Ok(Some(release)) => state.set_result(Outcome::Available, Some(&release.version), None),
            Err(error) => state.set_result(Outcome::Refused, None, Some(error.to_string())),
        }
        // A check is worth something even where it cannot be noted.
        let _ = state.save(&self.data_dir);
        found
    }

    fn check_channel(&self) -> Result<Option<Release>> {
        if !crate::manifest::is_file_name(&self.channel) {
            return Err(UpdateError::NotFound(format!("channel `{}`", self.channel)));
        }
        let manifest = Server::new(&self.base_url, self.network)?.manifest(&self.channel, &self.keys)?;
        let offered = manifest.version.clone();
        if self.channel == "stable" && !offered.pre.is_empty() {
            return Err(UpdateError::PreRelease(offered));
        }
        if offered == self.current_version {
            return Ok(None);
        }
        if !newer(&manifest, &self.base_url, &self.target, &self.current_version)? {
            return Err(UpdateError::Downgrade { current: self.current_version.clone(), offered });
        }
        if let Some(failed) = State::load(&self.data_dir).failure(&offered) {
            return Err(UpdateError::FailedBefore { version: offered, reason: failed.reason.clone() });
        }
        self.release(manifest).map(Some)
    }

    /// Asks for exactly one version: older ones and ones that failed here are given too. A failure is noted in
    /// `update.json`.
    pub fn find(&self, version: &Version) -> Result<Release> {
        self.noting(version, self.find_quietly(version))
    }

    fn find_quietly(&self, version: &Version) -> Result<Release> {
        let path = format!("{version}/manifest");
        let manifest = Server::new(&self.base_url, self.network)?.manifest(&path, &self.keys)?;
        if manifest.version != *version {
            return Err(UpdateError::WrongVersion { asked: version.clone(), found: manifest.version });
        }
        self.release(manifest)
    }

    fn release(&self, manifest: Manifest) -> Result<Release> {
        match manifest.archive(&self.target) {
            Some(archive) => Ok(Release {
                version: manifest.version.clone(),
                released_at: manifest.released_at.clone(),
                archive: archive.clone(),
            }),
            None => Err(UpdateError::NoArchive { version: manifest.version, target: self.target.clone() }),
        }
    }

    /// Whether this process may replace the installed binary; says who could if it may not. Changes nothing that
    /// stays.
    pub fn check_place(&self) -> Result<()> {
        let place = Place::find(&self.binary)?;
        place.check()?;
        let _locks = self.lock(&place)?;
        place.reserve()?;
        place.clean().map(|_| ())
    }

    /// Keeps other updates out of this data directory and away from this binary: several agents may share one. The locks
    /// end with the process that holds them.
    fn lock(&self, place: &Place) -> Result<[File; 2]> {
        let path = self.data_dir.join("update.lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        Ok([held(file.map_err(io_error("open", &path))?, &path)?, place.lock()?])
    }

    /// Fetches, verifies and unpacks a release into `skein.new` beside the installed binary. `progress` hears
    /// bytes done and bytes in all.
    pub fn stage(&self, release: &Release, progress: &mut dyn FnMut(u64, u64)) -> Result<Staged> {
        let staged = self.stage_quietly(release, progress).map(|(staged, _work)| staged);
        self.noting(&release.version, staged)
    }

    /// Whether a release could be staged here and now. Keeps its archive, so that the next [`Updater::stage`] of this
    /// data directory asks no server for it; that checks it again.
    pub fn prefetch(&self, release: &Release, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let kept = self.stage_quietly(release, progress).and_then(|(_staged, work)| {
            let (archive, kept) = (work.0.join(&release.archive.name), kept_path(&self.data_dir));
            fs::rename(archive, &kept).map_err(io_error("keep", &kept))
        });
        self.noting(&release.version, kept)
    }

    /// Notes in `update.json` why nothing came of this version.
    fn noting<T>(&self, version: &Version, done: Result<T>) -> Result<T> {
        if let Err(error) = &done
            && !matches!(error, UpdateError::Busy)
        {
            let mut state = State::load(&self.data_dir);
            state.set_result(Outcome::Refused, Some(version), Some(error.to_string()));
            let _ = state.save(&self.data_dir);
        }
        done
    }

    fn stage_quietly(
        &self,
        release: &Release,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Staged, WorkDirectory)> {
        let place = Place::find(&self.binary)?;
        place.check()?;
        let locks = self.lock(&place)?;
        let installed = place.identity()?;
        place.reserve()?;
        // From here on, leaving this function removes `skein.new` unless all went well.
        let mut staged = Staged::new(self.clone(), place.clone(), release.version.clone(), installed, locks);
        self.step(Step::Reserved);
        let work = WorkDirectory::create(&self.data_dir)?;
        let kept = kept_path(&self.data_dir);
        let archive = match kept_archive(&kept, &release.archive, &self.keys, &work.0) {
            Some(archive) => archive,
            None => {
                self.step(Step::Downloading);
                let server = Server::new(&self.base_url, self.network)?;
                server.archive(&release.version, &release.archive, &self.keys, &work.0, progress)?
            }
        };
        self.step(Step::Verified);
        let top = format!("{PROGRAM}-{}-{}", release.version, self.target);
        let program =
            if self.target.contains("windows") { format!("{PROGRAM}.exe") } else { PROGRAM.to_owned() };
        let unpacked = archive::unpack(&archive, &release.archive.name, &top, &program, &work.0)?;
        self.step(Step::Unpacked);
        place.write_new(&unpacked, &mut || self.step(Step::Writing))?;
        staged.written()?;
        self.step(Step::Staged);
        Ok((staged, work))
    }

    /// Called once when an agent starts: tells what an interrupted update left behind and removes it. The installed
    /// binary and `skein.old` stay as they are, unless the version that runs was installed by an update and ended within
    /// [`crate::PROBATION`] at each of its starts so far: then they change round. Whoever runs for longer calls
    /// [`State::end_probation`], and whoever was told to leave [`State::excuse_start`].
    pub fn recover(&self) -> Result<Recovery> {
        if is_trial() {
            return Ok(Recovery::Busy);
        }
        let place = Place::find(&self.binary)?;
        let _locks = match self.lock(&place) {
            Ok(locks) => locks,
            Err(UpdateError::Busy) => return Ok(Recovery::Busy),
            // Who may not write there has left nothing there.
            Err(UpdateError::NotWritable { .. }) => return Ok(Recovery::Nothing),
            Err(error) => return Err(error),
        };
        // Whole, and wanted by nobody any more: no sign of an interruption.
        let _ = remove(&kept_path(&self.data_dir));
        let unproven = place.new.exists();
        let mut removed = place.clean()?;
        let work = work_path(&self.data_dir);
        if work.exists() {
            fs::remove_dir_all(&work).map_err(io_error("remove", &work))?;
            removed.push(work);
        }
        let mut state = State::load(&self.data_dir);
        let before = state.clone();
        let recovery = self.note_interruption(&mut state, unproven, removed);
        if state.count_start(&self.current_version) >= PROBATION_STARTS {
            return self.take_back(&place, state);
        }
        if state != before {
            state.save(&self.data_dir)?;
        }
        Ok(recovery)
    }

    /// What became of an update that did not come to its end, if there was one.
    fn note_interruption(&self, state: &mut State, unproven: bool, removed: Vec<PathBuf>) -> Recovery {
        match state.in_trial.take() {
            // The name changes last: what is installed and no longer beside is what was on trial.
            Some(InTrial { version, .. }) if version == self.current_version && !unproven => {
                state.forget_failure(&version);
                state.set_result(Outcome::Updated, Some(&version), None);
                state.probation = Some(Probation { version: version.clone(), starts: 0 });
                Recovery::Completed(version)
            }
            Some(InTrial { version, .. }) => {
                let reason = "the agent or the machine stopped while the new version was on trial";
                if state.interrupted.as_ref() == Some(&version) {
                    state.add_failure(&version, &format!("{reason}, twice"));
                    state.interrupted = None;
                } else {
                    state.interrupted = Some(version.clone());
                }
                state.set_result(Outcome::Interrupted, Some(&version), Some(reason.to_owned()));
                Recovery::Cleaned { version: Some(version), removed }
            }
            None if removed.is_empty() => Recovery::Nothing,
            None => {
                let reason = "the agent or the machine stopped during the download".to_owned();
                state.set_result(Outcome::Interrupted, None, Some(reason));
                Recovery::Cleaned { version: None, removed }
            }
        }
    }

    /// Gives the installed name back to the version before the one that runs.
    fn take_back(&self, place: &Place, mut state: State) -> Result<Recovery> {
        let version = &self.current_version;
        let reason = format!("it ended within a minute of its start, {} times", PROBATION_STARTS - 1);
        // Before the name changes: from then on another version starts, and would install this one again.
        state.add_failure(version, &reason);
        state.save(&self.data_dir)?;
        let taken_back = match place.check().and_then(|()| place.swap_with_old()) {
            Ok(()) => {
                state.set_result(Outcome::Failed, Some(version), Some(reason));
                Recovery::TakenBack(version.clone())
            }
            // It is all there is.
            Err(UpdateError::NoOld { .. }) => {
                state.forget_failure(version);
                Recovery::Nothing
            }
            Err(error) => return Err(error),
        };
        state.probation = None;
        // The names tell it all the same.
        let _ = state.save(&self.data_dir);
        Ok(taken_back)
    }

    /// Puts the version before back in place, by hand; doing it again undoes it. The version that was left is not
    /// installed again by itself.
    pub fn restore_old(&self) -> Result<()> {
        let place = Place::find(&self.binary)?;
        place.check()?;
        let _locks = self.lock(&place)?;
        place.swap_with_old()?;
        let mut state = State::load(&self.data_dir);
        state.probation = None;
        state.add_failure(&self.current_version, "it was taken back by hand");
        state.set_result(Outcome::Restored, None, None);
        state.save(&self.data_dir)
    }

    /// What `update.json` says.
    pub fn state(&self) -> State {
        State::load(&self.data_dir)
    }

    pub(crate) fn step(&self, step: Step) {
        if let Some(hook) = &self.on_step {
            hook(step);
        }
    }
}

/// The running executable by its name, whatever has that name by now: Linux tells one that was replaced since as
/// `… (deleted)`.
pub fn this_binary() -> io::Result<PathBuf> {
    let binary = std::env::current_exe()?;
    let replaced = binary.to_string_lossy().strip_suffix(" (deleted)").map(PathBuf::from);
    Ok(replaced.unwrap_or(binary))
}

/// Where the archive is fetched to and unpacked; gone when this is dropped.
struct WorkDirectory(PathBuf);

impl WorkDirectory {
    fn create(data_dir: &Path) -> Result<Self> {
        let path = work_path(data_dir);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
        }
        fs::create_dir(&path).map_err(io_error("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn work_path(data_dir: &Path) -> PathBuf {
    data_dir.join("update-download")
}

/// Where a verified archive waits to be staged.
fn kept_path(data_dir: &Path) -> PathBuf {
    data_dir.join("update-archive")
}
