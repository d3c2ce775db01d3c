//! What can be wrong with a log file, told to people: what, which entry, where, and what to do.
//!
//! Must never guess: an entry is named only when it is known to be the first bad one.

use std::ops::Range;

use skein_proto::ids::{NetworkId, NodeId};

use crate::entry::BadEntry;
use crate::log::HEADER_BYTES;
use crate::note::BadNote;
use crate::record::{FRAME_BYTES, Flaw};

/// Why a log file was not believed. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The header is damaged, or this is no log.
    #[error(
        "the log's header is bad: {why}\n\
         hint: restore the first {HEADER_BYTES} bytes from a copy of the file"
    )]
    Header {
        /// What is wrong with it.
        why: String,
    },
    /// The log of another network.
    #[error(
        "the log belongs to network {found}, not to {expected}\n\
         hint: each network needs its own data directory"
    )]
    OtherNetwork {
        /// In the header.
        found: NetworkId,
        /// Ours.
        expected: NetworkId,
    },
    /// The log of another agent.
    #[error(
        "the log belongs to node {found}, not to {expected}\n\
         hint: a log and its key belong together; was one of them copied without the other?"
    )]
    OtherNode {
        /// In the header.
        found: NodeId,
        /// Ours.
        expected: NodeId,
    },
    /// The checkpoint is damaged, forged, or of another log.
    #[error(
        "the log's checkpoint is bad: {0}\n\
         hint: restore the checkpoint file from a copy; the log file was not judged"
    )]
    Checkpoint(#[from] BadNote),
    /// An entry is damaged or forged. All entries before it are sound.
    #[error(
        "entry {index} of the log, at byte {offset}, is bad: {why}\n\
         hint: every entry before it is sound; restore the file from a copy"
    )]
    Entry {
        /// The first bad entry, from 0.
        index: u64,
        /// Where its record begins, in bytes from the beginning of the file.
        offset: usize,
        /// What is wrong with it.
        why: String,
    },
    /// Entries that the checkpoint covers are not there.
    #[error(
        "the log ends at byte {offset} with entry {index} missing: its checkpoint covers {size} entries\n\
         hint: the file was cut; restore it from a copy"
    )]
    Missing {
        /// The first missing entry, from 0.
        index: u64,
        /// The length of the file, in bytes.
        offset: usize,
        /// Entries under the checkpoint.
        size: u64,
    },
    /// Each entry is sound by itself, but together they are not what was signed.
    #[error(
        "the {size} entries have root {computed}, but the checkpoint says {signed}\n\
         hint: entries were replaced, left out or reordered by someone who holds the signing keys, \
         or the checkpoint is of another copy"
    )]
    Root {
        /// Entries under the checkpoint.
        size: u64,
        /// The root over the entries in the file, in hexadecimal.
        computed: String,
        /// The root in the checkpoint, in hexadecimal.
        signed: String,
    },
}

impl Fault {
    /// The first bad or missing entry, where the fault can be pinned on one.
    pub fn entry(&self) -> Option<u64> {
        match self {
            Self::Entry { index, .. } | Self::Missing { index, .. } => Some(*index),
            Self::Header { .. }
            | Self::OtherNetwork { .. }
            | Self::OtherNode { .. }
            | Self::Checkpoint(_)
            | Self::Root { .. } => None,
        }
    }
}

/// A record that cannot be read, as a fault of the file.
pub(crate) fn flaw_fault(flaw: &Flaw) -> Fault {
    Fault::Entry { index: flaw.index as u64, offset: HEADER_BYTES + flaw.offset, why: flaw.why.clone() }
}

/// An entry that may not stand where it does, as a fault of the file. `payload` is its place behind the
/// header.
pub(crate) fn entry_fault(index: u64, payload: &Range<usize>, why: &BadEntry) -> Fault {
    Fault::Entry { index, offset: HEADER_BYTES + payload.start - FRAME_BYTES, why: why.to_string() }
}
