//! Blobs on disk: one file per content, named by its digest, whole or absent.
//!
//! Must never let a file that is not complete and verified stand under a digest's name, whatever
//! crashes; and never block the executor: file work runs on smol's blocking threads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use skein_proto::ids::Digest;

use crate::limits::BLOB_CHUNK_BYTES;
use crate::rename::rename;
use crate::retention::Holds;

/// Unfinished files begin with this, which no digest does.
const UNFINISHED_PREFIX: &str = "incoming-";

/// Why the store could not do what was asked. Nothing stands under a digest's name because of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system said no.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store has no such blob.
    #[error("blob {digest} is not in the store")]
    NotHeld {
        /// Its address.
        digest: Digest,
    },
    /// The file's content is not what its name says. It was removed.
    #[error(
        "blob {digest} was damaged on disk and is removed\nhint: fetch it again; check the disk's health"
    )]
    Damaged {
        /// Its address.
        digest: Digest,
    },
    /// The content is not what was expected. It is not kept.
    #[error("the content is blob {actual}, not {expected}")]
    Mismatch {
        /// The address that was asked for.
        expected: Digest,
        /// The address of what came.
        actual: Digest,
    },
    /// A name for pins that could be taken for something else.
    #[error(
        "`{name}` cannot name pinned blobs\nhint: 1 to 128 letters, digits, `-`, `_` or `.`, not `.` first"
    )]
    BadName {
        /// The name, shortened.
        name: String,
    },
    /// A list of pinned blobs cannot be read. Nothing is removed while that is so.
    #[error(
        "{} is no list of blobs\nhint: remove that file, and add again what it named", path.display()
    )]
    BadPins {
        /// The list.
        path: PathBuf,
    },
    /// The blob exceeds the caller's bound.
    #[error("blob {digest} has {bytes} bytes, more than the {bytes_max} allowed")]
    TooLarge {
        /// Its address.
        digest: Digest,
        /// Its length.
        bytes: u64,
        /// The caller's bound.
        bytes_max: u64,
    },
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the system has more errors than have a hint of their own"
)]
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "\nhint: the disk is full; free some space or choose another directory"
        }
        io::ErrorKind::ReadOnlyFilesystem => "\nhint: the file system is read-only; choose another directory",
        io::ErrorKind::PermissionDenied => "\nhint: this user may not write there; check the owner and mode",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "\nhint: a file stands where a directory is needed"
        }
        io::ErrorKind::NotFound => "\nhint: was the directory removed while skein runs?",
        _ => "",
    }
}

/// A directory of blobs. Clones share it. One process at a time may have it open.
///
/// A blob is *pinned* by name (`retention.rs`), or it is a cached one that [`BlobStore::trim`] may remove.
#[derive(Clone, Debug)]
pub struct BlobStore {
    pub(crate) directory: Arc<Path>,
    pub(crate) holds: Arc<Holds>,
}

impl BlobStore {
    /// Opens the directory, creating it if needed, and removes what a crash left unfinished. Blocks.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let directory: PathBuf = directory.into();
        let failed = |action| {
            let path = directory.clone();
            move |source| StoreError::Io { action, path, source }
        };
        fs::create_dir_all(&directory).map_err(failed("create the blob directory"))?;
        for entry in fs::read_dir(&directory).map_err(failed("list the blob directory"))? {
            let entry = entry.map_err(failed("list the blob directory"))?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED_PREFIX) {
                fs::remove_file(entry.path()).map_err(failed("remove an unfinished blob from"))?;
            }
        }
        Ok(Self { directory: directory.into(), holds: Arc::default() })
    }

    /// Where all blobs are, each a file named by its digest.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the blob is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.to_string())
    }

    /// Whether the blob is held. One look at the directory; its content is not read.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Stores bytes durably under their digest.
    pub async fn put_bytes(&self, bytes: Vec<u8>) -> Result<Digest, StoreError> {
        let store = self.clone();
        smol::unblock(move || {
            let mut incoming = Incoming::begin(&store)?;
            incoming.write(&bytes)?;
            incoming.commit(None)
        })
        .await
    }

    /// Stores bytes under their digest; what is here already is not written again. Durable once a pin names
    /// it, so that a model of ten thousand pieces does not wait for the disk's directory ten thousand times.
    /// Blocks.
    pub fn import(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.touch(&digest) == Some(bytes.len() as u64) {
            return Ok(digest);
        }
        let mut incoming = Incoming::begin(self)?;
        incoming.write(bytes)?;
        incoming.rename(Some(digest))
    }

    /// Moves a finished file into the store, by renaming where the file system allows it. Nobody may
    /// write to the file any more.
    pub async fn adopt(&self, file: impl Into<PathBuf>) -> Result<Digest, StoreError> {
        let (store, file) = (self.clone(), file.into());
        smol::unblock(move || adopt(&store, &file)).await
    }

    /// Reads a whole blob of at most `bytes_max` into memory, verified.
    pub async fn load(&self, digest: Digest, bytes_max: u64) -> Result<Vec<u8>, StoreError> {
        let store = self.clone();
        smol::unblock(move || load(&store, digest, bytes_max)).await
    }

    /// Forgets a blob. It is no error if it is not held.
    pub async fn remove(&self, digest: Digest) -> Result<(), StoreError> {
        let path = self.path(&digest);
        smol::unblock(move || match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StoreError::Io { action: "remove", path, source }),
        })
        .await
    }

    /// The length of a blob that is held, which counts as used now. Blocks.
    pub(crate) fn touch(&self, digest: &Digest) -> Option<u64> {
        let path = self.path(digest);
        let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        // A file that cannot be touched only looks older than it is.
        if let Ok(file) = OpenOptions::new().append(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(metadata.len())
    }

    /// The blobs that are held and their lengths in bytes, ordered by digest.
    pub async fn list(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let directory = self.directory.clone();
        smol::unblock(move || {
            list(&directory).map_err(|source| StoreError::Io {
                action: "list the blob directory",
                path: directory.to_path_buf(),
                source,
            })
        })
        .await
    }

    /// Opens a blob for reading; its file and length. Blocks.
    pub(crate) fn read(&self, digest: &Digest) -> Result<(File, u64), StoreError> {
        let path = self.path(digest);
        let opened = File::open(&path).and_then(|file| {
            let length = file.metadata()?.len();
            Ok((file, length))
        });
        opened.map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                StoreError::NotHeld { digest: *digest }
            } else {
                StoreError::Io { action: "read", path, source }
            }
        })
    }

    /// Makes the renames before it durable.
    pub(crate) fn sync_directory(&self) -> io::Result<()> {
        // Windows has no such call; NTFS journals the rename.
        if cfg!(unix) { File::open(&self.directory)?.sync_all() } else { Ok(()) }
    }
}

fn adopt(store: &BlobStore, path: &Path) -> Result<Digest, StoreError> {
    let failed = |action| move |source| StoreError::Io { action, path: path.to_path_buf(), source };
    // Opened for writing because Windows flushes no other.
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("open"))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&mut file).map_err(failed("read"))?;
    file.sync_all().map_err(failed("flush"))?;
    drop(file);
    let digest = Digest(*hasher.finalize().as_bytes());
    match rename(path, &store.path(&digest)) {
        Ok(()) => {
            store.sync_directory().map_err(failed("move"))?;
            Ok(digest)
        }
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let mut file = File::open(path).map_err(failed("open"))?;
            let mut incoming = Incoming::begin(store)?;
            let mut buffer = vec![0; BLOB_CHUNK_BYTES];
            loop {
                match file.read(&mut buffer).map_err(failed("read"))? {
                    0 => break,
                    count => incoming.write(&buffer[..count])?,
                }
            }
            incoming.commit(Some(digest))?;
            fs::remove_file(path).map_err(failed("remove"))?;
            Ok(digest)
        }
        Err(source) => {
            Err(StoreError::Io { action: "move into the store", path: path.to_path_buf(), source })
        }
    }
}

fn load(store: &BlobStore, digest: Digest, bytes_max: u64) -> Result<Vec<u8>, StoreError> {
    let (mut file, bytes) = store.read(&digest)?;
    if bytes > bytes_max {
        return Err(StoreError::TooLarge { digest, bytes, bytes_max });
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(|source| StoreError::Io {
        action: "read",
        path: store.path(&digest),
        source,
    })?;
    if Digest::of(&content) != digest {
        tracing::warn!(%digest, "a blob was damaged on disk");
        // If it cannot be removed either, the next load says so again.
        let _ = fs::remove_file(store.path(&digest));
        return Err(StoreError::Damaged { digest });
    }
    Ok(content)
}

fn list(directory: &Path) -> io::Result<Vec<(Digest, u64)>> {
    let mut blobs = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            blobs.push((digest, entry.metadata()?.len()));
        }
    }
    blobs.sort_unstable();
    Ok(blobs)
}

/// A blob that is being written under a name of its own. Dropped before `commit`, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Incoming {
    store: BlobStore,
    file: File,
    path: PathBuf,
    hasher: blake3::Hasher,
    committed: bool,
}

impl Incoming {
    /// Blocks, as every call here.
    pub(crate) fn begin(store: &BlobStore) -> Result<Self, StoreError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name =
            format!("{UNFINISHED_PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = store.directory.join(name);
        let opened = OpenOptions::new().write(true).create_new(true).open(&path);
        match opened {
            Ok(file) => {
                Ok(Self { store: store.clone(), file, path, hasher: blake3::Hasher::new(), committed: false })
            }
            Err(source) => Err(StoreError::Io { action: "create", path, source }),
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|source| self.failed("write to", source))
    }

    /// Makes the blob durable and gives it its name, if it is what was expected.
    pub(crate) fn commit(self, expected: Option<Digest>) -> Result<Digest, StoreError> {
        let (store, path) = (self.store.clone(), self.path.clone());
        let digest = self.rename(expected)?;
        let failed = |source| StoreError::Io { action: "flush the directory of", path, source };
        store.sync_directory().map_err(failed)?;
        Ok(digest)
    }

    /// Makes the content durable and gives it its name, which a crash of the machine may still take away.
    fn rename(mut self, expected: Option<Digest>) -> Result<Digest, StoreError> {
        let digest = Digest(*self.hasher.finalize().as_bytes());
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(StoreError::Mismatch { expected, actual: digest });
        }
        self.file.sync_all().map_err(|source| self.failed("flush", source))?;
        rename(&self.path, &self.store.path(&digest)).map_err(|source| self.failed("rename", source))?;
        self.committed = true;
        Ok(digest)
    }

    fn failed(&self, action: &'static str, source: io::Error) -> StoreError {
        StoreError::Io { action, path: self.path.clone(), source }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "an unfinished blob stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_or_adopted_is_found_and_removed() {
        smol::future::block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let store = BlobStore::open(directory.path().join("blobs")).unwrap();
            let put = store.put_bytes(b"put".to_vec()).await.unwrap();
            assert_eq!(put, Digest::of(b"put"));
            let file = directory.path().join("file");
            fs::write(&file, b"adopted").unwrap();
            let adopted = store.adopt(&file).await.unwrap();
            assert_eq!(adopted, Digest::of(b"adopted"));
            assert!(!file.exists() && store.has(&put) && store.has(&adopted));
            assert_eq!(store.load(adopted, 7).await.unwrap(), b"adopted");
            let mut expected = vec![(put, 3), (adopted, 7)];
            expected.sort_unstable();
            assert_eq!(store.list().await.unwrap(), expected);
            assert!(matches!(store.load(adopted, 6).await, Err(StoreError::TooLarge { bytes: 7, .. })));
            for _ in 0..2 {
                store.remove(put).await.unwrap();
            }
            assert!(!store.has(&put));
            assert!(matches!(store.load(put, 9).await, Err(StoreError::NotHeld { .. })));
        });
    }

    #[test]
    fn unfinished_files_vanish_at_drop_and_at_open() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        let mut incoming = Incoming::begin(&store).unwrap();
        incoming.write(b"half").unwrap();
        let error = incoming.commit(Some(Digest::of(b"whole"))).unwrap_err();
        assert!(matches!(error, StoreError::Mismatch { .. }));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

        // A crash runs no destructor.
        std::mem::forget(Incoming::begin(&store).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        BlobStore::open(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn damage_on_disk_is_noticed_and_removed() {
        smol::future::block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let store = BlobStore::open(directory.path()).unwrap();
            let digest = store.put_bytes(b"content".to_vec()).await.unwrap();
            fs::write(store.path(&digest), b"Content").unwrap();
            assert!(matches!(store.load(digest, 99).await, Err(StoreError::Damaged { .. })));
            assert!(!store.has(&digest));
        });
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_named_with_a_hint() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = BlobStore::open(file.join("blobs")).unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()) && error.contains("hint:"), "{error}");
    }
}
