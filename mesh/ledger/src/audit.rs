//! The audit of a log file by anyone who has the file and its checkpoint, and nothing else.
//!
//! Every signature is verified: the checkpoint's, each receipt's, the lease's in it, and each
//! acceptance's. Must never take anything on trust that the file or the checkpoint could prove, and never
//! judge what lies behind the checkpoint: its owner has not vouched for it.

use skein_proto::ids::{NetworkId, NodeId};

use crate::entry::{BadEntry, Entry, Ties};
use crate::fault::{Fault, entry_fault, flaw_fault};
use crate::log::{HEADER_BYTES, read_header};
use crate::note::open_checkpoint;
use crate::record;
use crate::tree::{Hash, Tree, leaf_hash};

/// What a sound log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whose log it is.
    pub node: NodeId,
    /// The network.
    pub network: NetworkId,
    /// Entries under the checkpoint, all verified.
    pub entries: u64,
    /// How many of them are receipts.
    pub receipts: u64,
    /// How many of them are acceptances.
    pub acceptances: u64,
    /// The Merkle root over them, as signed.
    pub root: Hash,
    /// The size that the checkpoint names.
    pub size: u64,
    /// Bytes of the file behind the last entry under the checkpoint; nothing in them was verified.
    pub bytes_beyond: usize,
}

/// Verifies a whole log file against its checkpoint.
///
/// # Errors
/// [`Fault`] names the first bad entry, its place and what is wrong with it.
pub fn verify(bytes: &[u8], checkpoint: &str) -> Result<Report, Fault> {
    let (network, node) = read_header(bytes)?;
    let signed = open_checkpoint(checkpoint, &node, &network)?;
    let body = &bytes[HEADER_BYTES..];
    let scan = record::scan(body);

    let (mut receipts, mut acceptances, mut end) = (0, 0, 0);
    let (mut tree, mut ties) = (Tree::new(), Ties::default());
    for (index, payload) in (0..signed.size).zip(&scan.records) {
        let data = &body[payload.clone()];
        let place = |why: BadEntry| entry_fault(index, payload, &why);
        let entry = Entry::decode(data).map_err(place)?;
        entry.check(&node, &network).map_err(place)?;
        ties.tie(&entry).map_err(place)?;
        match entry {
            Entry::Receipt(_) => receipts += 1,
            Entry::Acceptance(_) => acceptances += 1,
        }
        tree.push(leaf_hash(data));
        end = payload.end;
    }
    if tree.size() < signed.size {
        let missing = Fault::Missing { index: tree.size(), offset: bytes.len(), size: signed.size };
        return Err(scan.fault.as_ref().map_or(missing, flaw_fault));
    }
    let root = tree.root();
    if root != signed.root {
        let (computed, signed_root) = (hex::encode(root), hex::encode(signed.root));
        return Err(Fault::Root { size: signed.size, computed, signed: signed_root });
    }
    Ok(Report {
        node,
        network,
        entries: tree.size(),
        receipts,
        acceptances,
        root,
        size: signed.size,
        bytes_beyond: body.len() - end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::samples::{NETWORK, agent, entries, node, receipt, sign_receipt, written};
    use crate::log::Log;

    /// Two receipts, one of them accepted, and where each record ends in the file.
    fn small() -> (Log, Vec<u8>, Vec<usize>) {
        written(entries(2).into_iter().take(3).collect())
    }

    #[test]
    fn a_sound_log_is_reported() {
        let (log, file, _) = small();
        let report = verify(&file, &log.checkpoint(&agent())).unwrap();
        let expected = Report {
            node: node(),
            network: NETWORK,
            entries: 3,
            receipts: 2,
            acceptances: 1,
            root: log.root(),
            size: 3,
            bytes_beyond: 0,
        };
        assert_eq!(report, expected);
        let empty = Log::new(NETWORK, node());
        let report = verify(&empty.header_bytes(), &empty.checkpoint(&agent())).unwrap();
        assert_eq!((report.entries, report.bytes_beyond), (0, 0));
    }

    #[test]
    fn every_flipped_byte_of_every_record_names_its_entry() {
        let (log, file, ends) = small();
        let checkpoint = log.checkpoint(&agent());
        for position in HEADER_BYTES..file.len() {
            let mut bad = file.clone();
            bad[position] ^= 1 << (position % 8);
            let index = ends.iter().filter(|end| **end <= position).count();
            let start = if index == 0 { HEADER_BYTES } else { ends[index - 1] };
            match verify(&bad, &checkpoint) {
                Err(Fault::Entry { index: found, offset, .. }) => {
                    assert_eq!((found, offset), (index as u64, start), "byte {position}");
                }
                other => panic!("byte {position}: {other:?}"),
            }
        }
    }

    #[test]
    fn flipped_bytes_with_a_fresh_checksum_name_their_entry() {
        let (log, file, ends) = small();
        let checkpoint = log.checkpoint(&agent());
        for (index, end) in ends.iter().enumerate() {
            let start = if index == 0 { HEADER_BYTES } else { ends[index - 1] };
            // Every fifth is enough here: entry.rs flips each byte under its signatures.
            for position in (start + record::FRAME_BYTES..*end).step_by(5) {
                let mut payload = file[start + record::FRAME_BYTES..*end].to_vec();
                payload[position - start - record::FRAME_BYTES] ^= 1 << (position % 8);
                let forged = [&file[..start], &record::frame(&payload), &file[*end..]].concat();
                let fault = verify(&forged, &checkpoint).unwrap_err();
                assert_eq!(fault.entry(), Some(index as u64), "byte {position}: {fault}");
            }
        }
    }

    #[test]
    fn flipped_bytes_elsewhere_blame_the_header_or_the_checkpoint() {
        let (log, file, _) = small();
        let checkpoint = log.checkpoint(&agent());
        for position in 0..HEADER_BYTES {
            let mut bad = file.clone();
            bad[position] ^= 1 << (position % 8);
            let fault = verify(&bad, &checkpoint).unwrap_err();
            assert!(matches!(fault, Fault::Header { .. }), "byte {position}: {fault}");
        }
        for position in 0..checkpoint.len() {
            let mut bad = checkpoint.clone().into_bytes();
            bad[position] ^= 1;
            let Ok(bad) = String::from_utf8(bad) else { continue };
            let fault = verify(&file, &bad).unwrap_err();
            assert!(matches!(fault, Fault::Checkpoint(_)), "byte {position}: {fault}");
        }
    }

    #[test]
    fn what_lies_behind_the_checkpoint_is_counted_and_not_judged() {
        let (mut log, mut file, _) = small();
        let checkpoint = log.checkpoint(&agent());
        let more = log.append(vec![Entry::Receipt(sign_receipt(receipt(9)))]).unwrap().bytes;
        file.extend(&more);
        file.extend(b"torn");
        let report = verify(&file, &checkpoint).unwrap();
        assert_eq!((report.entries, report.bytes_beyond), (3, more.len() + 4));
    }

    #[test]
    fn an_acceptance_without_its_receipt_is_named() {
        let (log, file, ends) = small();
        let checkpoint = log.checkpoint(&agent());
        let without = [&file[..HEADER_BYTES], &file[ends[0]..]].concat();
        let fault = verify(&without, &checkpoint).unwrap_err();
        assert_eq!(fault.entry(), Some(0));
        let text = fault.to_string();
        assert!(text.contains("does not stand before it") && text.contains("byte 78"), "{text}");
    }
}
