//! The agent's log on disk: nothing in it is ever rewritten, and nothing leaves before it is durable.
//!
//! `log/entries` grows by records and is flushed; then `log/checkpoint` is replaced whole; only then may
//! what was logged be sent. The index beside it (sled) can be lost at any time and is rebuilt.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ed25519_dalek::SigningKey;
use skein_ledger::entry::Entry;
use skein_ledger::log::{self, Log};
use skein_proto::genesis::Genesis;
use skein_proto::ids::{Epoch, NetworkId, NodeId, Units};
use skein_proto::lease::{End, Receipt};
use skein_proto::limits::RECEIPTS_PENDING_MAX;
use skein_proto::signed::Envelope;

use crate::identity::write_private;

/// The open log.
pub(crate) struct Journal {
    directory: PathBuf,
    file: File,
    good_bytes: u64,
    key: SigningKey,
    log: Log,
    index: Index,
}

impl Journal {
    /// Opens the log, or begins it; drops the torn end that a crash may have left.
    ///
    /// # Errors
    /// When the log was damaged or cannot be read or written; it is left as it is.
    pub(crate) fn open(data_dir: &Path, genesis: &Genesis, key: SigningKey) -> Result<Self> {
        let (network, node) = (genesis.network_id(), NodeId(key.verifying_key().to_bytes()));
        let directory = data_dir.join("log");
        fs::create_dir_all(&directory).map_err(|error| disk_trouble(&directory, &error))?;
        let path = directory.join("entries");
        let bytes = read_or_empty(&path)?;
        let checkpoint = String::from_utf8_lossy(&read_or_empty(&directory.join("checkpoint"))?).into_owned();
        let checkpoint = (!checkpoint.is_empty()).then_some(checkpoint);
        let (log, good_bytes) = replay(&path, &bytes, checkpoint.as_deref(), network, node)?;
        let file = open_cut(&path, good_bytes as u64)?;
        let index = Index::open(&data_dir.join("index"), genesis, &log)?;
        let mut journal = Self { directory, file, good_bytes: good_bytes as u64, key, log, index };
        if good_bytes == 0 {
            let header = journal.log.header_bytes();
            journal.write(&header)?;
        }
        journal.publish()?;
        Ok(journal)
    }

    /// Appends one entry; on return it is durable, under a signed checkpoint. An entry that the log's own
    /// rules refuse (a coordinator's nonsense) is left out, with a line for the owner.
    ///
    /// # Errors
    /// When the disk is full or read-only. What was logged before is untouched.
    pub(crate) fn append(&mut self, entry: Entry) -> Result<()> {
        let appended = match self.log.append(vec![entry.clone()]) {
            Ok(appended) => appended,
            Err(refused) => {
                tracing::warn!("not logged: {refused}");
                return Ok(());
            }
        };
        self.write(&appended.bytes)?;
        self.publish()?;
        self.index.note(appended.first_index, &entry)
    }

    /// The log as it stands.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// The latest receipts of finished work without an acceptance: their answers may have been lost in a crash.
    pub(crate) fn unanswered(&self) -> Vec<Envelope<Receipt>> {
        let mut waiting = VecDeque::new();
        for entry in self.log.entries() {
            match entry {
                Entry::Receipt(receipt) if receipt.unverified().end == End::Completed => {
                    if waiting.len() >= RECEIPTS_PENDING_MAX {
                        waiting.pop_front();
                    }
                    waiting.push_back(receipt.clone());
                }
                Entry::Receipt(_) => {}
                Entry::Acceptance(acceptance) => {
                    let answered = acceptance.unverified().receipt;
                    waiting.retain(|receipt| receipt.digest() != answered);
                }
            }
        }
        waiting.into()
    }

    /// Accepted work of one epoch.
    pub(crate) fn accepted(&self, epoch: Epoch) -> Units {
        self.index.accepted(epoch)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        written.map_err(|error| {
            // Half a record must not stay in front of the next.
            let _ = self.file.set_len(self.good_bytes).and_then(|()| self.file.seek(SeekFrom::End(0)));
            disk_trouble(&self.directory.join("entries"), &error)
        })?;
        self.good_bytes += bytes.len() as u64;
        Ok(())
    }

    fn publish(&self) -> Result<()> {
        let path = self.directory.join("checkpoint");
        write_private(&path, self.log.checkpoint(&self.key).as_bytes())
            .map_err(|error| disk_trouble(&path, &error))
    }
}

fn replay(
    path: &Path,
    bytes: &[u8],
    checkpoint: Option<&str>,
    network: NetworkId,
    node: NodeId,
) -> Result<(Log, usize)> {
    if bytes.is_empty() && checkpoint.is_none() {
        return Ok((Log::new(network, node), 0));
    }
    let (log, tail) = log::replay(bytes, checkpoint, &network, &node)
        .with_context(|| format!("the log {} cannot be used; it was left as it is", path.display()))?;
    if tail.bytes_dropped > 0 {
        tracing::warn!(
            bytes = tail.bytes_dropped,
            "dropped an entry that a crash had cut off; it had not been sent"
        );
    }
    Ok((log, tail.good_bytes))
}

/// The file's bytes; none if it does not exist.
///
/// # Errors
/// As the file system says, naming the path.
pub(crate) fn read_or_empty(path: &Path) -> Result<Vec<u8>> {
    match fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Opens a file to append to, cut to its first `good_bytes`.
///
/// # Errors
/// As the file system says, with what to do.
pub(crate) fn open_cut(path: &Path, good_bytes: u64) -> Result<File> {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let cut = opened.and_then(|mut file| {
        file.set_len(good_bytes)?;
        file.seek(SeekFrom::End(0))?;
        Ok(file)
    });
    cut.map_err(|error| disk_trouble(path, &error))
}

/// What to tell a person whose disk does not take what must not be lost.
pub(crate) fn disk_trouble(path: &Path, error: &io::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "cannot write {}: {error}\nhint: free some space or make the directory writable, then start the agent \
         again; everything acknowledged before is safe",
        path.display()
    )
}

/// Look-ups over the log, in sled; derived, never the truth.
struct Index {
    accepted: sled::Tree,
    genesis: Genesis,
}

/// Under this key (longer than an epoch's eight bytes): how many entries of the log the index covers.
const COVERED: &[u8] = b"entries covered";

impl Index {
    fn open(directory: &Path, genesis: &Genesis, log: &Log) -> Result<Self> {
        let index = Self::open_store(directory, genesis);
        let index = match index {
            Ok((index, covered)) if covered == log.size() => return Ok(index),
            // An index that will not open is as good as one that is behind.
            Ok(_) | Err(_) => {
                drop(index);
                if directory.exists() {
                    fs::remove_dir_all(directory).map_err(|error| disk_trouble(directory, &error))?;
                }
                Self::open_store(directory, genesis).context("cannot create the index")?.0
            }
        };
        for (place, entry) in (0..).zip(log.entries()) {
            index.note(place, entry)?;
        }
        Ok(index)
    }

    fn open_store(directory: &Path, genesis: &Genesis) -> Result<(Self, u64)> {
        // No flusher thread: a lost index is rebuilt, and an idle agent should be idle.
        let store =
            sled::Config::new().path(directory).cache_capacity(4 << 20).flush_every_ms(None).open()?;
        let accepted = store.open_tree("accepted units by epoch")?;
        let covered =
            accepted.get(COVERED)?.and_then(|value| value.as_ref().try_into().ok().map(u64::from_be_bytes));
        let index = Self { accepted, genesis: genesis.clone() };
        Ok((index, covered.unwrap_or(0)))
    }

    fn note(&self, place: u64, entry: &Entry) -> Result<()> {
        if let Entry::Acceptance(acceptance) = entry {
            let acceptance = acceptance.unverified();
            let epoch = self.genesis.epoch_at(acceptance.accepted_at);
            let sum = self.accepted(epoch).plus(acceptance.units);
            self.accepted.insert(epoch.0.to_be_bytes(), &sum.0.to_be_bytes())?;
        }
        self.accepted.insert(COVERED, &(place + 1).to_be_bytes())?;
        Ok(())
    }

    fn accepted(&self, epoch: Epoch) -> Units {
        let stored = self.accepted.get(epoch.0.to_be_bytes()).ok().flatten();
        Units(stored.and_then(|value| value.as_ref().try_into().ok().map(u64::from_be_bytes)).unwrap_or(0))
    }
}
