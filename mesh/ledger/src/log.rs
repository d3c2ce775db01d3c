//! An agent's own append-only log: its bytes on disk, and its Merkle tree.
//!
//! A file is a header (magic `skein-log`, version, network id, node id, CRC-32) and then one record
//! ([`crate::record`]) per entry; entry `i` is leaf `i` of the tree. The shell does the files, in this
//! order and no other:
//!
//! 1. [`Log::append`], write the returned bytes at the end of the file, fdatasync;
//! 2. [`Log::checkpoint`], write it to a new file, fsync, rename over the old one, fsync the directory;
//! 3. only then release the checkpoint, or anything that the new entries must back.
//!
//! If step 1 or 2 fails, the `Log` is dropped and read back with [`replay`], because memory is then ahead
//! of the disk. So a crash loses only entries beyond the checkpoint, which nobody was told of, and no
//! second root for a released size can arise. Must never remove or change an entry, and never repair in
//! silence what a checkpoint covers.

use ed25519_dalek::SigningKey;
use skein_proto::ids::{NetworkId, NodeId};

use crate::entry::{BadEntry, Entry, Ties};
use crate::limits::{APPEND_ENTRIES_MAX, ENTRY_BYTES_MAX};
use crate::note::{Checkpoint, origin};
use crate::record;
use crate::tree::{Hash, Tree, leaf_hash};

pub use crate::audit::{Report, verify};
pub use crate::fault::Fault;
pub use crate::replay::{TornTail, replay};

const MAGIC: &[u8; 9] = b"skein-log";
const VERSION: u8 = 1;
/// Bytes of the header: magic, version, network id, node id, CRC-32 (LE) of all before it.
pub const HEADER_BYTES: usize = MAGIC.len() + 1 + 32 + 32 + 4;

/// An agent's log in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    network: NetworkId,
    node: NodeId,
    entries: Vec<Entry>,
    tree: Tree,
    ties: Ties,
}

/// What [`Log::append`] added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// To be written at the end of the file and made durable before anything else happens.
    pub bytes: Vec<u8>,
    /// The index of the first new entry, from 0; the others follow.
    pub first_index: u64,
}

/// Why nothing was appended. The log is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAppend {
    /// More entries than one call may bring.
    #[error("{0} entries at once; the limit is {APPEND_ENTRIES_MAX}; the log is unchanged")]
    TooMany(usize),
    /// One of them may not stand here.
    #[error("entry {position} of those to append may not stand in the log: {why}; the log is unchanged")]
    Entry {
        /// Its place among those to append, from 0.
        position: usize,
        /// What is wrong with it.
        #[source]
        why: BadEntry,
    },
}

impl Log {
    /// The empty log of `node` on `network`. Its file begins with [`Log::header_bytes`].
    pub fn new(network: NetworkId, node: NodeId) -> Self {
        Self { network, node, entries: Vec::new(), tree: Tree::new(), ties: Ties::default() }
    }

    /// The first [`HEADER_BYTES`] of the file, to be durable before the first append.
    pub fn header_bytes(&self) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.push(VERSION);
        header.extend_from_slice(&self.network.0);
        header.extend_from_slice(&self.node.0);
        let crc = crc32fast::hash(&header);
        header.extend_from_slice(&crc.to_le_bytes());
        header
    }

    /// Appends all of `entries` or none, after checking every signature and every tie to earlier entries.
    ///
    /// # Errors
    /// [`BadAppend`] names the first entry that may not stand here.
    pub fn append(&mut self, entries: Vec<Entry>) -> Result<Appended, BadAppend> {
        if entries.len() > APPEND_ENTRIES_MAX {
            return Err(BadAppend::TooMany(entries.len()));
        }
        let mut payloads = Vec::with_capacity(entries.len());
        for (position, entry) in entries.iter().enumerate() {
            match self.admit(entry) {
                Ok(payload) => payloads.push(payload),
                Err(why) => {
                    entries[..position].iter().rev().for_each(|tied| self.ties.untie(tied));
                    return Err(BadAppend::Entry { position, why });
                }
            }
        }
        let first_index = self.size();
        let bytes = payloads.iter().flat_map(|payload| record::frame(payload)).collect();
        payloads.iter().for_each(|payload| self.tree.push(leaf_hash(payload)));
        self.entries.extend(entries);
        Ok(Appended { bytes, first_index })
    }

    /// The signed head of the log as it is now, to be durable before it is shown to anyone. Equal logs
    /// give equal texts.
    ///
    /// # Panics
    /// When `key` is not the key of the log's owner.
    pub fn checkpoint(&self, key: &SigningKey) -> String {
        assert_eq!(key.verifying_key().to_bytes(), self.node.0, "a log is signed by the key of its owner");
        let origin = origin(&self.network, &self.node);
        Checkpoint { origin, size: self.size(), root: self.root() }.sign(key)
    }

    /// The network.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// Whose log it is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// How many entries it has.
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The Merkle root over all entries.
    pub fn root(&self) -> Hash {
        self.tree.root()
    }

    /// The proof that entry `index` is under the current root; none when there is no such entry.
    pub fn inclusion_proof(&self, index: u64) -> Option<Vec<Hash>> {
        self.tree.inclusion_proof(index, self.size())
    }

    /// The proof that the log of `old` entries is a prefix of this one; none when it was never so long.
    pub fn consistency_proof(&self, old: u64) -> Option<Vec<Hash>> {
        self.tree.consistency_proof(old, self.size())
    }

    /// Checks `entry` wholly, ties it to those before it, and returns its bytes.
    fn admit(&mut self, entry: &Entry) -> Result<Vec<u8>, BadEntry> {
        let payload = entry.encode();
        if payload.len() > ENTRY_BYTES_MAX {
            return Err(BadEntry::TooLong(payload.len()));
        }
        entry.check(&self.node, &self.network)?;
        self.ties.tie(entry)?;
        Ok(payload)
    }

    /// Takes an entry that was read from the file. Its signatures are looked at only if `check`.
    pub(crate) fn take_back(&mut self, data: &[u8], check: bool) -> Result<(), BadEntry> {
        let entry = Entry::decode(data)?;
        if check {
            entry.check(&self.node, &self.network)?;
        }
        self.ties.tie(&entry)?;
        self.tree.push(leaf_hash(data));
        self.entries.push(entry);
        Ok(())
    }
}

/// Whose log the file is, by its header.
pub(crate) fn read_header(bytes: &[u8]) -> Result<(NetworkId, NodeId), Fault> {
    let bad = |why: &str| Fault::Header { why: why.to_owned() };
    let header = bytes.get(..HEADER_BYTES).ok_or_else(|| Fault::Header {
        why: format!("the file has {} bytes, fewer than the {HEADER_BYTES} of a header", bytes.len()),
    })?;
    let (body, stored) = header.split_last_chunk::<4>().ok_or_else(|| bad("it is too short"))?;
    let rest = body.strip_prefix(MAGIC).ok_or_else(|| bad("it does not begin with `skein-log`"))?;
    let (version, ids) = rest.split_first().ok_or_else(|| bad("it is too short"))?;
    if *version != VERSION {
        return Err(Fault::Header { why: format!("its version is {version}; this program reads {VERSION}") });
    }
    if crc32fast::hash(body) != u32::from_le_bytes(*stored) {
        return Err(bad("its checksum is wrong"));
    }
    let (network, node) = ids.split_first_chunk::<32>().ok_or_else(|| bad("it is too short"))?;
    let node = node.try_into().map_err(|_| bad("it is too short"))?;
    Ok((NetworkId(*network), NodeId(node)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::samples::{
        NETWORK, acceptance, agent, entries, node, receipt, sign_acceptance, sign_receipt, written,
    };
    use crate::note::open_checkpoint;
    use crate::tree::{verify_consistency, verify_inclusion};
    use sha2::Digest as _;
    use skein_proto::ids::Units;

    #[test]
    fn golden_file() {
        let (log, file, _) = written(entries(1));
        assert_eq!(
            hex::encode(log.header_bytes()),
            "736b65696e2d6c6f6701abababababababababababababababababababababababababababababababab\
             8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c5bca2461"
        );
        assert_eq!(
            hex::encode(log.root()),
            "259c5c4c47b601bb935fdf5d8bbe2c7ea1b37f74aa12a9b0b56c59aa7c4b5b9f"
        );
        // The file, recomputed by Python's zlib and hashlib from tests/golden/entries.hex, as its SHA-256.
        let file = sha2::Sha256::digest(&file);
        assert_eq!(hex::encode(file), "23721ace8bb7cfbd28fd0121d70fa07abe63ddf9271250683b8f03a4b7f7274d");
    }

    #[test]
    fn proofs_lead_to_the_checkpoint() {
        let (early, _, _) = written(entries(1));
        let (log, _, _) = written(entries(3));
        let signed = open_checkpoint(&log.checkpoint(&agent()), &node(), &NETWORK).unwrap();
        for (index, entry) in (0..).zip(log.entries()) {
            let proof = log.inclusion_proof(index).unwrap();
            let leaf = leaf_hash(&entry.encode());
            assert_eq!(verify_inclusion(&leaf, index, signed.size, &proof, &signed.root), Ok(()));
        }
        assert_eq!(log.inclusion_proof(6), None);
        let proof = log.consistency_proof(2).unwrap();
        assert_eq!(verify_consistency(2, &early.root(), 6, &signed.root, &proof), Ok(()));
    }

    #[test]
    fn a_bad_append_changes_nothing() {
        let (mut log, _, _) = written(entries(1));
        let before = log.clone();
        let mut more = entries(2)[2..].to_vec();
        let mut greedy = acceptance(&sign_receipt(receipt(2)));
        greedy.units = Units(u64::MAX);
        let refused = log.append(vec![more[0].clone(), Entry::Acceptance(sign_acceptance(greedy))]);
        assert!(matches!(refused, Err(BadAppend::Entry { position: 1, why: BadEntry::TooMuchWork { .. } })));
        assert_eq!(log, before);
        more.push(more[1].clone());
        assert!(matches!(log.append(more.clone()), Err(BadAppend::Entry { position: 2, .. })));
        assert_eq!(log, before);
        let mut endless = receipt(2);
        endless.inputs = vec![endless.inputs[0]; 2_048];
        let refused = log.append(vec![Entry::Receipt(sign_receipt(endless))]);
        assert!(matches!(refused, Err(BadAppend::Entry { why: BadEntry::TooLong(_), .. })));
        assert_eq!(log.append(vec![more[0].clone(); 1_025]), Err(BadAppend::TooMany(1_025)));
        assert_eq!(log, before);
        more.pop();
        assert_eq!(log.append(more).map(|appended| appended.first_index), Ok(2));
    }

    #[test]
    fn however_it_is_cut_into_calls_the_file_is_the_same() {
        let (log, file, _) = written(entries(3));
        let mut at_once = Log::new(NETWORK, node());
        let appended = at_once.append(entries(3)).unwrap();
        assert_eq!([at_once.header_bytes(), appended.bytes].concat(), file);
        assert_eq!(at_once, log);
        assert_eq!(at_once.append(Vec::new()), Ok(Appended { bytes: Vec::new(), first_index: 6 }));
    }
}
