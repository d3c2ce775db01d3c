//! `update.json` in the data directory: what updates did last, and which versions did not work here.
//!
//! A convenience, never a proof: whether a binary is good is decided by signatures and by the trial. A missing or
//! damaged file is an empty state, so it can never keep an agent from starting.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::error::{Result, io_error};
use crate::swap::rename;

const STATE_BYTES_MAX: u64 = 64 << 10;
const FAILED_MAX: usize = 16;
const REASON_CHARS_MAX: usize = 1000;

/// How the last check or update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing newer.
    UpToDate,
    /// A newer version is there.
    Available,
    /// A new version runs.
    Updated,
    /// The new version was not healthy; the old one goes on.
    Failed,
    /// The process or the machine stopped in the middle of an update.
    Interrupted,
    /// The previous version was put back by hand.
    Restored,
    /// The check or the download did not succeed.
    Refused,
}

/// The last result, for `skein status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastResult {
    /// How it ended.
    pub outcome: Outcome,
    /// Of which version.
    pub version: Option<Version>,
    /// In words, where there is something to say.
    pub reason: Option<String>,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// A version whose trial has begun and not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InTrial {
    /// The version.
    pub version: Version,
    /// Since when, in milliseconds since 1970.
    pub started_at_ms: u64,
}

/// A version that is not tried again by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedVersion {
    /// The version.
    pub version: Version,
    /// Why.
    pub reason: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// A version that was installed and has not run for long yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probation {
    /// The version.
    pub version: Version,
    /// How often it was started, without those starts after which it left because it was told to.
    pub starts: u32,
}

/// What `update.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// When the server was asked last, in milliseconds since 1970.
    pub last_check_ms: Option<u64>,
    /// How the last check or update ended.
    pub last_result: Option<LastResult>,
    /// The version on trial now, or when the machine stopped.
    pub in_trial: Option<InTrial>,
    /// A version whose trial was interrupted once; a second time counts as a failure.
    pub interrupted: Option<Version>,
    /// Versions that failed here, the newest last.
    pub failed: Vec<FailedVersion>,
    /// The version that was installed last, until it has run for [`crate::PROBATION`].
    pub probation: Option<Probation>,
}

impl State {
    /// Reads the state; what cannot be read is empty.
    pub fn load(data_dir: &Path) -> Self {
        let read = || {
            let mut text = String::new();
            File::open(state_path(data_dir)).ok()?.take(STATE_BYTES_MAX).read_to_string(&mut text).ok()?;
            serde_json::from_str::<Self>(&text).ok()
        };
        read().unwrap_or_default()
    }

    /// Writes the state durably: a new file, then a rename.
    pub fn save(&self, data_dir: &Path) -> Result<()> {
        let path = state_path(data_dir);
        let part = data_dir.join("update.json.part");
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| io_error("write", &path)(std::io::Error::other(error)))?;
        let mut file = File::create(&part).map_err(io_error("write", &part))?;
        file.write_all(text.as_bytes()).map_err(io_error("write", &part))?;
        file.sync_all().map_err(io_error("write", &part))?;
        rename(&part, &path).map_err(io_error("write", &path))?;
        sync_directory(data_dir)
    }

    /// Why `version` is not tried again by itself.
    pub fn failure(&self, version: &Version) -> Option<&FailedVersion> {
        self.failed.iter().find(|failed| failed.version == *version)
    }

    /// The version that runs has run for long: its end would be none of the update's.
    pub fn end_probation(data_dir: &Path) {
        let mut state = Self::load(data_dir);
        if state.probation.take().is_some() {
            // What cannot be noted now is noted after the next start.
            let _ = state.save(data_dir);
        }
    }

    /// The version that runs leaves because it was told to: this start says nothing about it.
    pub fn excuse_start(data_dir: &Path) {
        let mut state = Self::load(data_dir);
        if let Some(probation) = &mut state.probation {
            probation.starts = probation.starts.saturating_sub(1);
            let _ = state.save(data_dir);
        }
    }

    /// Counts a start of `version`; gives how many there were, or 0 if it is not on probation.
    pub(crate) fn count_start(&mut self, version: &Version) -> u32 {
        // Where another one is installed, somebody has decided.
        self.probation = self.probation.take().filter(|probation| probation.version == *version);
        let Some(probation) = &mut self.probation else { return 0 };
        probation.starts = probation.starts.saturating_add(1);
        probation.starts
    }

    pub(crate) fn set_result(&mut self, outcome: Outcome, version: Option<&Version>, reason: Option<String>) {
        let reason = reason.map(|reason| reason.chars().take(REASON_CHARS_MAX).collect());
        self.last_result = Some(LastResult { outcome, version: version.cloned(), reason, at_ms: now_ms() });
    }

    pub(crate) fn add_failure(&mut self, version: &Version, reason: &str) {
        let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
        self.failed.retain(|failed| failed.version != *version);
        self.failed.push(FailedVersion { version: version.clone(), reason, at_ms: now_ms() });
        let surplus = self.failed.len().saturating_sub(FAILED_MAX);
        self.failed.drain(..surplus);
    }

    pub(crate) fn forget_failure(&mut self, version: &Version) {
        self.failed.retain(|failed| failed.version != *version);
        self.interrupted = None;
    }
}

/// Makes the names in a directory durable. Windows has no such call; NTFS journals them.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(directory).and_then(|file| file.sync_all()).map_err(io_error("write", directory))?;
    #[cfg(not(unix))]
    let _ = directory;
    Ok(())
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn state_path(data_dir: &Path) -> PathBuf {
    data_dir.join("update.json")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn it_comes_back_and_damage_is_an_empty_state() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(State::load(folder.path()), State::default());
        let mut state = State { last_check_ms: Some(5), ..State::default() };
        for minor in 0..20 {
            state.add_failure(&Version::new(0, minor, 0), &"crashed ".repeat(1000));
        }
        state.set_result(Outcome::Failed, Some(&Version::new(0, 19, 0)), Some("crashed".to_owned()));
        state.probation = Some(Probation { version: Version::new(0, 20, 0), starts: 1 });
        state.save(folder.path()).unwrap();
        let back = State::load(folder.path());
        assert_eq!(back, state);
        assert!(back.failure(&Version::new(0, 19, 0)).is_some());
        assert!(back.failure(&Version::new(0, 1, 0)).is_none(), "the list is bounded");
        assert!(fs::metadata(state_path(folder.path())).unwrap().len() < STATE_BYTES_MAX);
        fs::write(state_path(folder.path()), "{\"failed\": 7").unwrap();
        assert_eq!(State::load(folder.path()), State::default());
    }

    #[test]
    fn starts_are_counted_until_it_has_run_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let installed = Version::new(0, 2, 0);
        let mut state = State::default();
        assert_eq!(state.count_start(&installed), 0, "it was installed by hand");
        state.probation = Some(Probation { version: installed.clone(), starts: 0 });
        assert_eq!((state.count_start(&installed), state.count_start(&installed)), (1, 2));
        state.save(folder.path()).unwrap();
        State::excuse_start(folder.path());
        let mut state = State::load(folder.path());
        assert_eq!(state.count_start(&installed), 2);
        state.save(folder.path()).unwrap();
        State::end_probation(folder.path());
        assert_eq!(State::load(folder.path()).probation, None);
        assert_eq!(state.count_start(&Version::new(0, 3, 0)), 0);
        assert_eq!(state.probation, None, "another one is installed");
    }
}
