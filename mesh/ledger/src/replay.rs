//! Reading a log file back when an agent starts: what a crash left is cut off, what rot or a stranger did
//! is a fault.
//!
//! The checkpoint draws the line: behind it nothing was ever released, so an append that was cut short may
//! be dropped; under it every byte must be as it was signed. Must never drop what a checkpoint covers.

use std::ops::Range;

use skein_proto::ids::{NetworkId, NodeId};

use crate::fault::{Fault, entry_fault, flaw_fault};
use crate::log::{HEADER_BYTES, Log, read_header};
use crate::note::{Checkpoint, open_checkpoint};
use crate::record;

/// What a crash left behind the last sound record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Bytes that were not taken; zero after an orderly end.
    pub bytes_dropped: usize,
    /// The file must be cut to so many bytes before it is appended to. Zero means that not even the header
    /// is whole: write [`Log::header_bytes`] first.
    pub good_bytes: usize,
}

/// Reads a log file back, as after a crash. `checkpoint` is the last one made durable; none if there never
/// was one. What it covers must be whole. Behind it, an append that a crash cut short is left out and
/// reported; entries that were written whole are kept, and need a new checkpoint.
///
/// Signatures under the checkpoint are not checked again: they were before it was signed, and its root
/// shows that nothing has changed since.
///
/// # Errors
/// [`Fault`] names the first bad entry, its place and what is wrong with it.
pub fn replay(
    bytes: &[u8],
    checkpoint: Option<&str>,
    network: &NetworkId,
    node: &NodeId,
) -> Result<(Log, TornTail), Fault> {
    let mut log = Log::new(*network, *node);
    if checkpoint.is_none() && is_torn_header(bytes, &log.header_bytes()) {
        return Ok((log, TornTail { bytes_dropped: bytes.len(), good_bytes: 0 }));
    }
    check_owner(bytes, network, node)?;
    let signed = checkpoint.map(|text| open_checkpoint(text, node, network)).transpose()?;
    let size = signed.as_ref().map_or(0, |signed| signed.size);

    let body = &bytes[HEADER_BYTES..];
    let scan = record::scan(body);
    for (index, payload) in (0..).zip(&scan.records) {
        if index == size {
            check_root(&log, signed.as_ref(), &scan.records)?;
        }
        let data = &body[payload.clone()];
        if let Err(why) = log.take_back(data, index >= size) {
            return Err(blame(&log, &scan.records, entry_fault(index, payload, &why)));
        }
    }
    if let Some(flaw) = &scan.fault
        && (log.size() < size || (signed.is_none() && !flaw.torn))
    {
        return Err(blame(&log, &scan.records, flaw_fault(flaw)));
    }
    if log.size() < size {
        let missing = Fault::Missing { index: log.size(), offset: bytes.len(), size };
        return Err(blame(&log, &scan.records, missing));
    }
    if log.size() == size {
        check_root(&log, signed.as_ref(), &scan.records)?;
    }
    let good_bytes = HEADER_BYTES + scan.good_bytes();
    Ok((log, TornTail { bytes_dropped: bytes.len() - good_bytes, good_bytes }))
}

/// Whether a crash while the file was created explains it: the beginning of our own header, or zeros.
fn is_torn_header(bytes: &[u8], header: &[u8]) -> bool {
    bytes.len() <= header.len()
        && bytes != header
        && (header.starts_with(bytes) || bytes.iter().all(|byte| *byte == 0))
}

fn check_owner(bytes: &[u8], network: &NetworkId, node: &NodeId) -> Result<(), Fault> {
    let found = read_header(bytes)?;
    if found.0 != *network {
        return Err(Fault::OtherNetwork { found: found.0, expected: *network });
    }
    if found.1 != *node {
        return Err(Fault::OtherNode { found: found.1, expected: *node });
    }
    Ok(())
}

/// Called when exactly the entries under the checkpoint were read.
fn check_root(log: &Log, signed: Option<&Checkpoint>, records: &[Range<usize>]) -> Result<(), Fault> {
    let Some(signed) = signed else { return Ok(()) };
    let computed = log.root();
    if computed == signed.root {
        return Ok(());
    }
    let (computed, signed_root) = (hex::encode(computed), hex::encode(signed.root));
    Err(blame(log, records, Fault::Root { size: signed.size, computed, signed: signed_root }))
}

/// `fault`, unless an earlier entry was rewritten, checksum and all, and its signatures show it.
fn blame(log: &Log, records: &[Range<usize>], fault: Fault) -> Fault {
    let rewritten = (0..).zip(log.entries()).zip(records).find_map(|((index, entry), payload)| {
        let why = entry.check(&log.node(), &log.network()).err()?;
        Some(entry_fault(index, payload, &why))
    });
    rewritten.unwrap_or(fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::verify;
    use crate::entry::Entry;
    use crate::entry::samples::{NETWORK, agent, coordinator, entries, id_of, node, receipt, written};
    use crate::note::BadNote;
    use skein_proto::ids::Units;
    use skein_proto::signed::Signed;

    fn reread(file: &[u8], checkpoint: Option<&str>) -> Result<(Log, TornTail), Fault> {
        replay(file, checkpoint, &NETWORK, &node())
    }

    #[test]
    fn what_was_written_is_read_back() {
        let (log, file, _) = written(entries(3));
        let checkpoint = log.checkpoint(&agent());
        let orderly = TornTail { bytes_dropped: 0, good_bytes: file.len() };
        assert_eq!(reread(&file, Some(&checkpoint)), Ok((log.clone(), orderly)));
        assert_eq!(reread(&file, None), Ok((log, orderly)));
    }

    #[test]
    fn a_cut_behind_the_checkpoint_is_a_crash_and_within_it_a_fault() {
        let (log, file, ends) = written(entries(2));
        let (early, _, _) = written(entries(1));
        let checkpoint = early.checkpoint(&agent());
        // Every seventh cut is enough here: record.rs cuts everywhere.
        for cut in (HEADER_BYTES..file.len()).step_by(7).chain(ends.clone()) {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let outcome = reread(&file[..cut], Some(&checkpoint));
            if whole < 2 {
                assert_eq!(outcome.unwrap_err().entry(), Some(whole as u64), "cut at {cut}");
                continue;
            }
            let (read, tail) = outcome.unwrap();
            assert_eq!(read.entries(), &log.entries()[..whole]);
            assert_eq!(tail, TornTail { bytes_dropped: cut - ends[whole - 1], good_bytes: ends[whole - 1] });
        }
        for cut in 0..HEADER_BYTES {
            assert!(matches!(reread(&file[..cut], Some(&checkpoint)), Err(Fault::Header { .. })));
        }
    }

    #[test]
    fn flipped_bytes_are_found_behind_the_checkpoint_too() {
        let (log, file, ends) = written(entries(2));
        let (early, _, _) = written(entries(1));
        let checkpoint = early.checkpoint(&agent());
        // Every seventh is enough here: record.rs flips each bit.
        for position in (HEADER_BYTES..file.len()).step_by(7) {
            let mut bad = file.clone();
            bad[position] ^= 1 << (position % 8);
            let index = ends.iter().filter(|end| **end <= position).count();
            match reread(&bad, Some(&checkpoint)) {
                Err(fault) => assert!(index < 2 && fault.entry() == Some(index as u64), "{fault}"),
                Ok((read, tail)) => {
                    assert!(index >= 2, "byte {position} is under the checkpoint");
                    assert_eq!(read.entries(), &log.entries()[..index]);
                    assert_eq!(tail.good_bytes, ends[index - 1]);
                }
            }
        }
    }

    #[test]
    fn without_a_checkpoint_only_a_torn_end_is_a_crash() {
        let (log, file, ends) = written(entries(1));
        for cut in 0..HEADER_BYTES {
            let nothing = TornTail { bytes_dropped: cut, good_bytes: 0 };
            assert_eq!(reread(&file[..cut], None), Ok((Log::new(NETWORK, node()), nothing)));
        }
        assert!(reread(&[0; HEADER_BYTES], None).is_ok());
        assert!(matches!(reread(b"another file", None), Err(Fault::Header { .. })));
        let mut bad = file.clone();
        bad[ends[0] - 1] ^= 1;
        assert_eq!(reread(&bad, None).unwrap_err().entry(), Some(0), "a sound entry follows: no crash");
        let mut bad = file;
        bad[ends[0] + 20] ^= 1;
        let (read, tail) = reread(&bad, None).unwrap();
        assert_eq!((read.entries(), tail.good_bytes), (&log.entries()[..1], ends[0]));
    }

    #[test]
    fn strangers_logs_are_refused_by_name() {
        let (log, file, _) = written(entries(1));
        let checkpoint = log.checkpoint(&agent());
        let stranger = id_of(&coordinator());
        let fault = replay(&file, Some(&checkpoint), &NETWORK, &stranger).unwrap_err();
        assert_eq!(fault, Fault::OtherNode { found: node(), expected: stranger });
        let elsewhere = NetworkId([1; 32]);
        let fault = replay(&file, None, &elsewhere, &node()).unwrap_err();
        assert_eq!(fault, Fault::OtherNetwork { found: NETWORK, expected: elsewhere });
        assert!(fault.to_string().contains("\nhint: "), "{fault}");
        let foreign = Log::new(NETWORK, stranger).checkpoint(&coordinator());
        let fault = reread(&file, Some(&foreign)).unwrap_err();
        assert!(matches!(fault, Fault::Checkpoint(BadNote::Origin { .. })), "{fault}");
    }

    #[test]
    fn a_rewritten_entry_with_a_fresh_checksum_is_named() {
        let (log, file, ends) = written(entries(2));
        let checkpoint = log.checkpoint(&agent());
        let mut forged = receipt(2);
        forged.units = Units(1_000_000);
        let payload = Entry::Receipt(Signed::new(forged, &NETWORK, &coordinator()).into_envelope());
        let bytes = [&file[..ends[1]], &record::frame(&payload.encode()), &file[ends[2]..]].concat();
        for fault in
            [reread(&bytes, Some(&checkpoint)).unwrap_err(), verify(&bytes, &checkpoint).unwrap_err()]
        {
            assert_eq!(fault.entry(), Some(2), "{fault}");
            assert!(fault.to_string().contains("signed by"), "{fault}");
        }
    }

    #[test]
    fn the_owner_cannot_change_what_it_signed() {
        // Its own key makes any entry sound by itself; only the root shows the change.
        let receipts: Vec<Entry> = entries(3).into_iter().step_by(2).collect();
        let (log, _, _) = written(receipts.clone());
        let checkpoint = log.checkpoint(&agent());
        let reordered = vec![receipts[0].clone(), receipts[2].clone(), receipts[1].clone()];
        let (_, bytes, _) = written(reordered);
        let read = reread(&bytes, Some(&checkpoint)).unwrap_err();
        assert!(matches!(read, Fault::Root { size: 3, .. }), "{read}");
        assert_eq!(verify(&bytes, &checkpoint), Err(read));
        let (_, bytes, _) = written(receipts[..2].to_vec());
        let missing = Fault::Missing { index: 2, offset: bytes.len(), size: 3 };
        assert_eq!(reread(&bytes, Some(&checkpoint)), Err(missing.clone()));
        assert_eq!(verify(&bytes, &checkpoint), Err(missing));
    }

    #[test]
    fn a_forged_entry_behind_the_checkpoint_is_no_crash() {
        let (early, mut file, _) = written(entries(1));
        let forged = Signed::new(receipt(2), &NETWORK, &coordinator()).into_envelope();
        file.extend(record::frame(&Entry::Receipt(forged).encode()));
        for checkpoint in [Some(early.checkpoint(&agent())), None] {
            let fault = reread(&file, checkpoint.as_deref()).unwrap_err();
            assert_eq!(fault.entry(), Some(2), "{fault}");
        }
    }
}
