//! Which blobs stay: those that a pin names, those that are in use, and of the rest the ones used last, up to
//! the owner's disk cap.
//!
//! ```text
//! blobs/<digest>        content
//! blobs/pins/<name>     digests, one a line: a model's, a file's that the owner gave
//! ```
//! Must never remove anything while a list of pins cannot be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use skein_proto::ids::Digest;

use crate::rename::rename;
use crate::store::{BlobStore, StoreError};

const PINS: &str = "pins";
/// Unfinished lists begin with this, which no name does.
const UNFINISHED_PREFIX: &str = ".";

/// Blobs in use, and how often.
#[derive(Debug, Default)]
pub(crate) struct Holds(Mutex<BTreeMap<Digest, usize>>);

/// Keeps blobs from being trimmed until it is dropped.
#[derive(Debug)]
pub struct Held {
    holds: Arc<Holds>,
    digests: Vec<Digest>,
}

/// What a trim left and took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Bytes of all blobs that are left.
    pub bytes_used: u64,
    /// Bytes of the blobs that were removed.
    pub bytes_removed: u64,
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut holds = self.holds.lock();
        for digest in &self.digests {
            if let Some(count) = holds.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    holds.remove(digest);
                }
            }
        }
    }
}

impl BlobStore {
    /// Says that these blobs are in use, whether they are here yet or about to be fetched: hold first, then
    /// fetch, and nothing is trimmed in between.
    pub fn hold(&self, digests: impl IntoIterator<Item = Digest>) -> Held {
        let digests: Vec<Digest> = digests.into_iter().collect();
        let mut holds = self.holds.lock();
        for digest in &digests {
            *holds.entry(*digest).or_default() += 1;
        }
        Held { holds: self.holds.clone(), digests }
    }

    /// Keeps blobs until the name is unpinned, across restarts, in place of what the name pinned before. A
    /// blob that several names pin stays until the last of them is gone. Blocks.
    ///
    /// # Errors
    /// [`StoreError::BadName`], or the disk's.
    pub fn pin(&self, name: &str, digests: impl IntoIterator<Item = Digest>) -> Result<(), StoreError> {
        let path = self.pins_path(name)?;
        let unfinished = self.pins_directory().join(format!("{UNFINISHED_PREFIX}{name}"));
        let lines: String = digests.into_iter().map(|digest| format!("{digest}\n")).collect();
        let write = || {
            fs::create_dir_all(self.pins_directory())?;
            let mut file = File::create(&unfinished)?;
            file.write_all(lines.as_bytes())?;
            file.sync_all()?;
            // What is imported becomes durable before it is named.
            self.sync_directory()?;
            rename(&unfinished, &path)?;
            if cfg!(unix) { File::open(self.pins_directory())?.sync_all() } else { Ok(()) }
        };
        write().map_err(failed("write", &path))
    }

    /// Forgets a name; what no other name pins becomes cache. It is no error if it is not there. Blocks.
    ///
    /// # Errors
    /// [`StoreError::BadName`], or the disk's.
    pub fn unpin(&self, name: &str) -> Result<(), StoreError> {
        let path = self.pins_path(name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The names that pin something, in order. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub fn pins(&self) -> Result<Vec<String>, StoreError> {
        let directory = self.pins_directory();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &directory)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed("list", &directory))?.file_name().to_string_lossy().into_owned();
            if is_name(&name) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What a name pins; nothing if it is not there. Blocks.
    ///
    /// # Errors
    /// [`StoreError::BadName`], [`StoreError::BadPins`], or the disk's.
    pub fn pinned(&self, name: &str) -> Result<BTreeSet<Digest>, StoreError> {
        let path = self.pins_path(name)?;
        let lines = match fs::read_to_string(&path) {
            Ok(lines) => lines,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) if error.kind() == ErrorKind::InvalidData => return Err(StoreError::BadPins { path }),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        lines
            .lines()
            .map(|line| line.parse().map_err(|_| StoreError::BadPins { path: path.clone() }))
            .collect()
    }

    /// Bytes of all blobs, pinned ones included. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub fn bytes_used(&self) -> Result<u64, StoreError> {
        Ok(self.aged()?.iter().map(|(_, _, bytes)| bytes).sum())
    }

    /// Removes blobs that are neither pinned nor in use, the one first that was not used for longest, until
    /// all together have at most `bytes_max`, or none is left that may go. Blocks.
    ///
    /// # Errors
    /// [`StoreError::BadPins`] before anything was removed, or the disk's.
    pub fn trim(&self, bytes_max: u64) -> Result<Trimmed, StoreError> {
        let mut pinned = BTreeSet::new();
        for name in self.pins()? {
            pinned.append(&mut self.pinned(&name)?);
        }
        let blobs = self.aged()?;
        let bytes_used = blobs.iter().map(|(_, _, bytes)| bytes).sum();
        let mut trimmed = Trimmed { bytes_used, bytes_removed: 0 };
        for (_, digest, bytes) in blobs {
            if trimmed.bytes_used <= bytes_max {
                break;
            }
            // Locked, so that nobody begins to use it between the look and the removal.
            let holds = self.holds.lock();
            if pinned.contains(&digest) || holds.contains_key(&digest) {
                continue;
            }
            let path = self.path(&digest);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(failed("remove", &path)(error));
                }
                Ok(()) | Err(_) => {}
            }
            trimmed.bytes_used -= bytes;
            trimmed.bytes_removed += bytes;
        }
        Ok(trimmed)
    }

    /// All blobs, the one first that was not used for longest, with their lengths.
    fn aged(&self) -> Result<Vec<(SystemTime, Digest, u64)>, StoreError> {
        let aged = || {
            let mut blobs = Vec::new();
            for entry in fs::read_dir(&self.directory)? {
                let entry = entry?;
                let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                    continue;
                };
                // What is gone by now needs no removal.
                let Ok(metadata) = entry.metadata() else { continue };
                blobs.push((metadata.modified()?, digest, metadata.len()));
            }
            blobs.sort_unstable();
            Ok(blobs)
        };
        aged().map_err(failed("list the blob directory", &self.directory))
    }

    fn pins_directory(&self) -> PathBuf {
        self.directory.join(PINS)
    }

    fn pins_path(&self, name: &str) -> Result<PathBuf, StoreError> {
        if is_name(name) {
            Ok(self.pins_directory().join(name))
        } else {
            Err(StoreError::BadName { name: name.chars().take(80).collect() })
        }
    }
}

fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with(UNFINISHED_PREFIX)
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Blobs of ten bytes each, the first not used for longest.
    fn store(count: u8) -> (tempfile::TempDir, BlobStore, Vec<Digest>) {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        let digests: Vec<Digest> = (0..count).map(|number| store.import(&[number; 10]).unwrap()).collect();
        for (age, digest) in digests.iter().rev().enumerate() {
            let used = SystemTime::now() - Duration::from_secs(60 * (1 + age as u64));
            File::options().append(true).open(store.path(digest)).unwrap().set_modified(used).unwrap();
        }
        (directory, store, digests)
    }

    fn left(store: &BlobStore, digests: &[Digest]) -> Vec<usize> {
        (0..digests.len()).filter(|&at| store.has(&digests[at])).collect()
    }

    #[test]
    fn the_least_recently_used_go_first_and_only_as_many_as_must() {
        let (_directory, store, digests) = store(5);
        assert_eq!(store.bytes_used().unwrap(), 50);
        assert_eq!(store.trim(50).unwrap(), Trimmed { bytes_used: 50, bytes_removed: 0 });
        // Asked for again, the oldest becomes the youngest.
        assert_eq!(store.touch(&digests[0]), Some(10));
        assert_eq!(store.trim(25).unwrap(), Trimmed { bytes_used: 20, bytes_removed: 30 });
        assert_eq!(left(&store, &digests), [0, 4]);
        assert_eq!(store.trim(0).unwrap(), Trimmed { bytes_used: 0, bytes_removed: 20 });
        assert_eq!(store.touch(&digests[0]), None);
    }

    #[test]
    fn pins_survive_a_restart_and_shared_blobs_their_first_owner() {
        let (directory, store, digests) = store(5);
        store.pin("llama", digests[..2].to_vec()).unwrap();
        store.pin("its-sister", digests[1..3].to_vec()).unwrap();
        drop(store);
        let store = BlobStore::open(directory.path()).unwrap();
        assert_eq!(store.pins().unwrap(), ["its-sister", "llama"]);
        assert_eq!(store.pinned("llama").unwrap(), digests[..2].iter().copied().collect());
        store.trim(0).unwrap();
        assert_eq!(left(&store, &digests), [0, 1, 2]);
        store.unpin("llama").unwrap();
        store.unpin("llama").unwrap();
        store.trim(0).unwrap();
        assert_eq!(left(&store, &digests), [1, 2]);
        // A name pins what it was given last.
        store.pin("its-sister", [digests[2]]).unwrap();
        assert_eq!(store.trim(0).unwrap(), Trimmed { bytes_used: 10, bytes_removed: 10 });
        assert_eq!(left(&store, &digests), [2]);
        assert_eq!(smol::future::block_on(store.list()).unwrap(), [(digests[2], 10)], "lists are no blobs");
    }

    #[test]
    fn what_is_in_use_stays() {
        let (_directory, store, digests) = store(3);
        let (one, other) = (store.hold([digests[0]]), store.hold(digests[..2].to_vec()));
        store.trim(0).unwrap();
        assert_eq!(left(&store, &digests), [0, 1]);
        drop(other);
        store.trim(0).unwrap();
        assert_eq!(left(&store, &digests), [0]);
        drop(one);
        assert_eq!(store.trim(0).unwrap().bytes_used, 0);
    }

    #[test]
    fn nothing_goes_while_a_list_of_pins_cannot_be_read() {
        let (_directory, store, digests) = store(2);
        store.pin("good", [digests[0]]).unwrap();
        for garbage in [&b"not a digest\n"[..], b"\xff\xfe"] {
            fs::write(store.pins_directory().join("bad"), garbage).unwrap();
            let error = store.trim(0).unwrap_err();
            assert!(matches!(&error, StoreError::BadPins { path } if path.ends_with("bad")), "{error}");
            assert_eq!(left(&store, &digests), [0, 1]);
        }
        // A list that was being written when the machine died is none.
        fs::remove_file(store.pins_directory().join("bad")).unwrap();
        fs::write(store.pins_directory().join(".half"), b"12ab").unwrap();
        store.trim(0).unwrap();
        assert_eq!(left(&store, &digests), [0]);
    }

    #[test]
    fn names_stay_inside_their_directory() {
        let (_directory, store, digests) = store(1);
        for name in ["", ".", "..", ".hidden", "a/b", "a\\b", "a b", &"n".repeat(129)] {
            assert!(matches!(store.pin(name, digests.clone()), Err(StoreError::BadName { .. })), "{name}");
            assert!(matches!(store.unpin(name), Err(StoreError::BadName { .. })), "{name}");
        }
        store.pin("SmolLM2-135M-Instruct.Q4_1", digests).unwrap();
    }
}
