//! Every bound on what a stranger's bytes can make the ledger hold or do, in one place.
//!
//! Must never hold behaviour.

/// Longest payload of one framed record, in bytes: what one control frame between agents can carry. Blocks
/// are the largest; log entries are far below.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// Longest encoded log entry, in bytes (C2SP tlog-tiles counts it in 16 bits).
pub const ENTRY_BYTES_MAX: usize = 65_535;
/// Entries appended by one call.
pub const APPEND_ENTRIES_MAX: usize = 1_024;
/// Longest signed checkpoint, cosignatures included, in bytes.
pub const NOTE_BYTES_MAX: usize = 16_384;
/// Signature lines on one checkpoint: the log's own and its cosigners'.
pub const NOTE_SIGNATURES_MAX: usize = 64;
/// Hashes in one Merkle proof; a tree of 2^64 leaves needs no more, and consistency one besides.
pub const PROOF_HASHES_MAX: usize = 65;
