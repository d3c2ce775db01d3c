//! Framing of append-only files: length (u32 LE), CRC-32 (u32 LE), payload.
//!
//! The CRC (ISO-HDLC, as in gzip) covers the four length bytes and the payload, so a tail of zeros,
//! which file systems leave after a power cut, is no record. It tells rot and torn writes from sound
//! records; it is no defence against a forger. Must never know what a payload means.

use std::ops::Range;

use crate::limits::RECORD_BYTES_MAX;

/// Bytes in front of every payload.
pub const FRAME_BYTES: usize = 8;

/// Where reading stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The bad record, counted from 0.
    pub index: usize,
    /// Where its frame begins, in bytes from the beginning of the scanned bytes.
    pub offset: usize,
    /// What is wrong, for people.
    pub why: String,
    /// Whether an append cut short by a crash explains it: no sound record follows anywhere.
    pub torn: bool,
}

/// What [`scan`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The payloads of all sound records before the first flaw, as ranges of the scanned bytes.
    pub records: Vec<Range<usize>>,
    /// The first flaw; none when the last record ends with the bytes.
    pub fault: Option<Flaw>,
}

impl Scan {
    /// Where the last sound record ends: the length to which a torn file is cut.
    pub fn good_bytes(&self) -> usize {
        self.records.last().map_or(0, |payload| payload.end)
    }
}

/// `payload` as one record.
///
/// # Panics
/// When `payload` is empty or above [`RECORD_BYTES_MAX`]: callers bound what they store.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    assert!(
        (1..=RECORD_BYTES_MAX).contains(&payload.len()),
        "a record holds 1 to {RECORD_BYTES_MAX} bytes, not {}",
        payload.len()
    );
    let length = (payload.len() as u32).to_le_bytes();
    let mut record = Vec::with_capacity(FRAME_BYTES + payload.len());
    record.extend_from_slice(&length);
    record.extend_from_slice(&checksum(length, payload).to_le_bytes());
    record.extend_from_slice(payload);
    record
}

/// Reads records until the bytes end or one is flawed. Copies nothing.
pub fn scan(bytes: &[u8]) -> Scan {
    let mut records = Vec::new();
    let mut offset = 0;
    while offset < bytes.len() {
        match read(bytes, offset) {
            Ok(payload) => {
                offset = payload.end;
                records.push(payload);
            }
            Err(why) => {
                let torn = !any_sound_after(bytes, offset);
                let index = records.len();
                return Scan { records, fault: Some(Flaw { index, offset, why, torn }) };
            }
        }
    }
    Scan { records, fault: None }
}

/// The payload of the record whose frame begins at `offset`.
fn read(bytes: &[u8], offset: usize) -> Result<Range<usize>, String> {
    let rest = bytes.get(offset..).unwrap_or_default();
    let Some((&length_bytes, after_length)) = rest.split_first_chunk::<4>() else {
        return Err(format!("the file ends after {} of {FRAME_BYTES} frame bytes", rest.len()));
    };
    let Some((&stored, body)) = after_length.split_first_chunk::<4>() else {
        return Err(format!("the file ends after {} of {FRAME_BYTES} frame bytes", rest.len()));
    };
    let length = u32::from_le_bytes(length_bytes) as usize;
    if !(1..=RECORD_BYTES_MAX).contains(&length) {
        return Err(format!("its length field says {length} bytes"));
    }
    let Some(payload) = body.get(..length) else {
        return Err(format!("its length field says {length} bytes but only {} follow", body.len()));
    };
    let computed = checksum(length_bytes, payload);
    if computed != u32::from_le_bytes(stored) {
        let stored = u32::from_le_bytes(stored);
        return Err(format!("its checksum is {computed:08x} where {stored:08x} is stored"));
    }
    let start = offset + FRAME_BYTES;
    Ok(start..start + length)
}

/// Whether a sound record begins anywhere after `offset`. Runs once per damaged file; almost every
/// offset is refused by its length field alone.
fn any_sound_after(bytes: &[u8], offset: usize) -> bool {
    (offset + 1..bytes.len()).any(|candidate| read(bytes, candidate).is_ok())
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&length);
    crc.update(payload);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Vec<u8> {
        [frame(b"one"), frame(b"two!"), frame(b"three")].concat()
    }

    #[test]
    fn golden_frame() {
        // The CRC-32 of 03000000 6f6e65 comes from Python's zlib.crc32.
        assert_eq!(hex::encode(frame(b"one")), "03000000009aa9296f6e65");
    }

    #[test]
    fn sound_records_are_read_in_order() {
        let bytes = three();
        let scan = scan(&bytes);
        assert_eq!(scan.fault, None);
        let payloads: Vec<&[u8]> = scan.records.iter().map(|range| &bytes[range.clone()]).collect();
        assert_eq!(payloads, [b"one".as_slice(), b"two!", b"three"]);
        assert_eq!(scan.good_bytes(), bytes.len());
    }

    #[test]
    fn every_flipped_byte_is_found_in_its_own_record() {
        let bytes = three();
        let ends = [11, 23, 36];
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[position] ^= 1 << bit;
                let fault = scan(&bad).fault.expect("found");
                let index = ends.iter().position(|end| position < *end).unwrap();
                assert_eq!(fault.index, index, "byte {position} bit {bit}");
                assert_eq!(fault.offset, if index == 0 { 0 } else { ends[index - 1] });
                assert_eq!(fault.torn, index == 2, "only the last record can be torn");
            }
        }
    }

    #[test]
    fn every_cut_is_torn_and_keeps_what_is_whole() {
        let bytes = three();
        for cut in 0..bytes.len() {
            let scan = scan(&bytes[..cut]);
            let whole = [11, 23, 36].iter().filter(|end| **end <= cut).count();
            assert_eq!(scan.records.len(), whole);
            match scan.fault {
                None => assert!([0, 11, 23].contains(&cut)),
                Some(flaw) => assert!(flaw.torn && flaw.index == whole),
            }
        }
    }

    #[test]
    fn a_tail_of_zeros_is_torn_not_a_record() {
        let mut bytes = three();
        let good = bytes.len();
        bytes.extend([0; 4096]);
        let scan = scan(&bytes);
        assert_eq!((scan.records.len(), scan.good_bytes()), (3, good));
        assert!(scan.fault.expect("found").torn);
    }

    #[test]
    fn a_length_out_of_range_is_refused_even_with_its_checksum() {
        for length in [0, RECORD_BYTES_MAX + 1] {
            let field = (length as u32).to_le_bytes();
            let payload = vec![7; length];
            let bytes = [&field[..], &checksum(field, &payload).to_le_bytes(), &payload].concat();
            let flaw = scan(&bytes).fault.expect("found");
            assert!(flaw.why.contains(&format!("says {length} bytes")), "{}", flaw.why);
        }
    }
}
