//! Owns the format of rows on the wire, to which the residual stream is rounded after every layer.
//! Must never let a value that is not finite through.
//!
//! A row is one signed byte e and `width` little-endian f16 values v, standing for v · 2^e. The exponent is chosen so
//! that the largest v lands in 2^14 to 2^15: large residuals (Gemma's reach 10^5) do not overflow, and small ones keep
//! all eleven bits over 28 binary orders below the largest. A row that was rounded once is encoded without loss, so a
//! split of layers changes no bit.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::step::row_bytes;

/// Exponents that occur: below the first, 2^-e is no f32; above the last, 2^15 · 2^e is none.
const EXPONENT_MIN: i32 = -126;
const EXPONENT_MAX: i32 = 113;

/// Bits of the first f32 that is not finite.
const INFINITE: u32 = 0x7f80_0000;

/// Values that are converted at once, on the stack.
const STRIDE: usize = 64;

/// Why rows are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRow {
    /// A value, or what it rounds to, is not finite.
    #[error("row {row} has values that are not finite")]
    NotFinite {
        /// Which row.
        row: usize,
    },
    /// The bytes are no whole number of rows.
    #[error("{bytes} bytes are no whole number of rows of {row_bytes} bytes")]
    Length {
        /// Given.
        bytes: usize,
        /// Of one row.
        row_bytes: usize,
    },
    /// An exponent that no encoder gives.
    #[error("row {row} has the exponent {exponent}, allowed are {EXPONENT_MIN} to {EXPONENT_MAX}")]
    Exponent {
        /// Which row.
        row: usize,
        /// As given.
        exponent: i8,
    },
}

/// Appends rows, `[rows, width]`, in the wire's format.
///
/// # Errors
/// [`BadRow::NotFinite`]; what was appended before is to be thrown away.
pub fn encode(rows: &[f32], width: usize, out: &mut Vec<u8>) -> Result<(), BadRow> {
    out.reserve(rows.len() / width.max(1) * row_bytes(width));
    for (number, row) in rows.chunks_exact(width).enumerate() {
        let exponent = exponent_of(row).ok_or(BadRow::NotFinite { row: number })?;
        out.extend((exponent as i8).to_le_bytes());
        let scale = power_of_two(-exponent);
        let (mut scaled, mut halves) = ([0.0_f32; STRIDE], [f16::ZERO; STRIDE]);
        for part in row.chunks(STRIDE) {
            let (scaled, halves) = (&mut scaled[..part.len()], &mut halves[..part.len()]);
            scaled.iter_mut().zip(part).for_each(|(scaled, value)| *scaled = value * scale);
            halves.convert_from_f32_slice(scaled);
            out.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
        }
    }
    Ok(())
}

/// Appends the values of rows in the wire's format.
///
/// # Errors
/// [`BadRow`]; what was appended before is to be thrown away.
pub fn decode(bytes: &[u8], width: usize, out: &mut Vec<f32>) -> Result<(), BadRow> {
    let row_bytes = row_bytes(width);
    if !bytes.len().is_multiple_of(row_bytes) {
        return Err(BadRow::Length { bytes: bytes.len(), row_bytes });
    }
    out.reserve(bytes.len() / row_bytes * width);
    for (number, row) in bytes.chunks_exact(row_bytes).enumerate() {
        let exponent = i8::from_le_bytes([row[0]]);
        if !(EXPONENT_MIN..=EXPONENT_MAX).contains(&i32::from(exponent)) {
            return Err(BadRow::Exponent { row: number, exponent });
        }
        let scale = power_of_two(i32::from(exponent));
        let start = out.len();
        out.extend(row[1..].chunks_exact(2).map(|v| f16::from_le_bytes([v[0], v[1]]).to_f32() * scale));
        if out[start..].iter().any(|value| !value.is_finite()) {
            return Err(BadRow::NotFinite { row: number });
        }
    }
    Ok(())
}

/// What encoding and decoding leaves of a row. One that has no encoding stays as it is, for whoever encodes it or looks
/// at its logits to refuse.
pub fn round_in_place(row: &mut [f32]) {
    let Some(exponent) = exponent_of(row) else { return };
    let (down, up) = (power_of_two(-exponent), power_of_two(exponent));
    let mut halves = [f16::ZERO; STRIDE];
    for part in row.chunks_mut(STRIDE) {
        let halves = &mut halves[..part.len()];
        part.iter_mut().for_each(|value| *value *= down);
        halves.convert_from_f32_slice(part);
        halves.convert_to_f32_slice(part);
        part.iter_mut().for_each(|value| *value *= up);
    }
}

/// The exponent by which a row is divided; `None` if it has no encoding.
///
/// It follows from the largest value *as f16 will round it*: were it taken from the value itself, one just below a
/// power of two would round up to it and be encoded differently the second time.
fn exponent_of(row: &[f32]) -> Option<i32> {
    let largest = row.iter().fold(0_u32, |largest, value| largest.max(value.abs().to_bits()));
    // Of 23 bits of the fraction 10 stay. All ones round up even at a tie, which is when the sum carries.
    let rounded = largest.checked_add(1 << 12).filter(|rounded| *rounded < INFINITE)?;
    if largest == 0 {
        return Some(0);
    }
    Some(((rounded >> 23) as i32 - 127 - 14).max(EXPONENT_MIN))
}

/// 2^exponent, for exponents of -126 to 127.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn through(row: &[f32]) -> Result<Vec<f32>, BadRow> {
        let (mut bytes, mut back) = (Vec::new(), Vec::new());
        encode(row, row.len(), &mut bytes)?;
        assert_eq!(bytes.len(), row_bytes(row.len()));
        decode(&bytes, row.len(), &mut back)?;
        Ok(back)
    }

    fn bits(row: &[f32]) -> Vec<u32> {
        row.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn the_largest_value_lands_below_two_to_the_fifteenth() {
        for largest in [1.0_f32, 1.999, 1.9999, 2.0, 65_504.0, 65_520.0, 1e30, 1e-30, 3e38] {
            let mut bytes = Vec::new();
            encode(&[0.0, -largest], 2, &mut bytes).unwrap();
            let half = f16::from_le_bytes([bytes[3], bytes[4]]).to_f32().abs();
            assert!((16_384.0..32_768.0).contains(&half), "{largest} became {half}");
        }
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::NAN] {
            assert_eq!(through(&[1.0, bad]), Err(BadRow::NotFinite { row: 0 }), "{bad}");
            let mut row = [1.000_01, bad];
            round_in_place(&mut row);
            assert_eq!(bits(&row), bits(&[1.000_01, bad]), "left for others to refuse");
        }
        let infinite = f16::INFINITY.to_le_bytes();
        assert_eq!(
            decode(&[0, infinite[0], infinite[1]], 1, &mut Vec::new()),
            Err(BadRow::NotFinite { row: 0 })
        );
        assert_eq!(
            decode(&[0, 0, 0, 0x80, 0, 0], 1, &mut Vec::new()),
            Err(BadRow::Exponent { row: 1, exponent: -128 })
        );
        assert_eq!(decode(&[0; 4], 1, &mut Vec::new()), Err(BadRow::Length { bytes: 4, row_bytes: 3 }));
    }

    #[test]
    fn zeros_and_the_smallest_values_survive() {
        let smallest = f32::from_bits(1);
        for row in [[0.0, -0.0], [smallest, -smallest], [f32::MIN_POSITIVE, smallest]] {
            assert_eq!(bits(&through(&row).unwrap()), bits(&row));
        }
    }

    proptest! {
        #[test]
        fn rounding_is_encoding_and_decoding_and_loses_nothing_twice(
            patterns in prop::collection::vec(any::<u32>(), 1..200), shift in 0_u32..24,
        ) {
            // Rows of one magnitude and rows of all of them.
            let row: Vec<f32> = patterns.iter().map(|bits| f32::from_bits(bits >> shift)).collect();
            let Ok(back) = through(&row) else {
                prop_assert!(row.iter().any(|value| !value.is_finite() || value.abs() > 3.4e38));
                return Ok(());
            };
            let mut rounded = row.clone();
            round_in_place(&mut rounded);
            prop_assert_eq!(bits(&rounded), bits(&back));
            prop_assert_eq!(bits(&through(&rounded).unwrap()), bits(&rounded));
        }

        #[test]
        fn the_error_is_half_a_unit_of_eleven_bits(row in prop::collection::vec(-2e4_f32..2e4, 1..100)) {
            let back = through(&row).unwrap();
            let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            for (value, back) in row.iter().zip(back) {
                let bound = (value.abs() / 2048.0).max(largest * 2.0_f32.powi(-38));
                prop_assert!((value - back).abs() <= bound, "{} became {}", value, back);
            }
        }

        #[test]
        fn strangers_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), width in 1_usize..9) {
            let mut rows = Vec::new();
            if decode(&bytes, width, &mut rows).is_ok() {
                prop_assert!(rows.iter().all(|value| value.is_finite()));
                prop_assert_eq!(rows.len(), bytes.len() / row_bytes(width) * width);
            }
        }
    }
}
