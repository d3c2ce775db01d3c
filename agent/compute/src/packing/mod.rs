//! Owns the packing of pseudo-gradients into four or eight bits an element, or into the few that matter most, which is
//! most of what training sends.
//! Must never depend on the machine: what is packed is signed for by its digest.
//!
//! Blocks of [`BLOCK`] elements share one scale, a bf16: the largest magnitude over the largest code. A code is the
//! nearest whole multiple of it, from -7 to 7 or -127 to 127. Packing what was unpacked gives the same bytes.

mod sparse;

use std::ops::RangeInclusive;

use crate::tensor_file::little_endian;

/// Elements that share a scale. With its two bytes an element takes 4.25 or 8.25 bits.
pub const BLOCK: usize = 64;

/// Bits of one element of a pseudo-gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// Two, of the few elements that are largest; the others are 0. With their places that is about a fifth of a bit for
    /// every element.
    Sparse,
    /// Codes of four bits, two a byte, the first in the low half.
    Four,
    /// Codes of a byte.
    Eight,
    /// As it is: f32.
    All,
}

impl Bits {
    /// By their number: 2, 4, 8 or 32.
    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        match number {
            2 => Some(Self::Sparse),
            4 => Some(Self::Four),
            8 => Some(Self::Eight),
            32 => Some(Self::All),
            _ => None,
        }
    }

    /// Their number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Sparse => 2,
            Self::Four => 4,
            Self::Eight => 8,
            Self::All => 32,
        }
    }

    /// Largest code; `None` where there are none.
    fn largest(self) -> Option<f32> {
        match self {
            Self::Four => Some(7.0),
            Self::Eight => Some(127.0),
            Self::Sparse | Self::All => None,
        }
    }

    /// Fewest and most bytes of the codes of so many elements; only where they are sparse are the two not the same.
    #[must_use]
    pub fn code_bytes(self, elements: usize) -> RangeInclusive<usize> {
        let bytes = match self {
            Self::Sparse => return sparse::code_bytes(elements),
            Self::Four => elements.div_ceil(2),
            Self::Eight => elements,
            Self::All => 4 * elements,
        };
        bytes..=bytes
    }

    /// Scales of so many elements, of two bytes each.
    #[must_use]
    pub fn scales(self, elements: usize) -> usize {
        match self {
            Self::Sparse => sparse::scales(elements),
            Self::Four | Self::Eight => elements.div_ceil(BLOCK),
            Self::All => 0,
        }
    }
}

/// Packed values: codes, and a bf16 scale for each block, little-endian. For [`Bits::Sparse`] the scales are the two
/// magnitudes of each chunk. For [`Bits::All`] the codes are the values themselves and there are no scales.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// [`Bits::code_bytes`] of them.
    pub codes: Vec<u8>,
    /// Two bytes for each of [`Bits::scales`].
    pub scales: Vec<u8>,
}

/// Why packed values are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// Not as many codes and scales as the elements take.
    #[error("is {codes} bytes of codes and {scales} of scales, not what {elements} elements take")]
    Length {
        /// Bytes of the codes.
        codes: usize,
        /// Bytes of the scales.
        scales: usize,
        /// Elements wanted.
        elements: usize,
    },
    /// A value is infinite or not a number.
    #[error("holds what is not finite")]
    NotFinite,
    /// A chunk of a sparse tensor is not what packing makes.
    #[error("is refused: chunk {chunk} {problem}")]
    Chunk {
        /// Its place among the chunks.
        chunk: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More follows a sparse tensor's last chunk than the zeros that fill its last byte.
    #[error("does not end where its codes do")]
    Rest,
}

/// Why values cannot be packed: codes have no way to say it.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("holds {value} at element {at}")]
pub struct NotFinite {
    /// The first element that is infinite or not a number.
    pub at: usize,
    /// What it is.
    pub value: f32,
}

/// Packs values.
///
/// # Errors
/// [`NotFinite`], whatever the bits.
pub fn pack(values: &[f32], bits: Bits) -> Result<Packed, NotFinite> {
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(NotFinite { at, value: values[at] });
    }
    let Some(largest) = bits.largest() else {
        let plain = || Packed { codes: little_endian(values), scales: Vec::new() };
        return Ok(if bits == Bits::Sparse { sparse::pack(values) } else { plain() });
    };
    let mut packed = Packed::default();
    packed.codes.reserve(*bits.code_bytes(values.len()).end());
    for block in values.chunks(BLOCK) {
        let magnitude = block.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let scale = half::bf16::from_f32(magnitude / largest);
        packed.scales.extend(scale.to_le_bytes());
        let mut codes = [0; BLOCK];
        if scale.to_f32() > 0.0 {
            codes
                .iter_mut()
                .zip(block)
                .for_each(|(code, value)| *code = nearest(value / scale.to_f32(), largest));
        }
        let codes = &codes[..block.len()];
        match bits {
            Bits::Four => packed.codes.extend(
                codes
                    .chunks(2)
                    .map(|pair| (pair[0] & 15) as u8 | (pair.get(1).map_or(0, |high| *high << 4) as u8)),
            ),
            Bits::Sparse | Bits::Eight | Bits::All => {
                packed.codes.extend(codes.iter().map(|code| *code as u8))
            }
        }
    }
    Ok(packed)
}

/// The nearest whole number up to `largest`, halves away from zero, as `f32::round` has it: that is a call of a function
/// for every element where the processor at hand is not known.
fn nearest(value: f32, largest: f32) -> i8 {
    let value = value.clamp(-largest, largest);
    let whole = value as i32;
    // Exact: both are below 2^23.
    let rest = value - whole as f32;
    (whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)) as i8
}

/// The values again, all finite.
///
/// # Errors
/// [`UnpackError`] if these are not the codes and scales of so many elements.
pub fn unpack(codes: &[u8], scales: &[u8], bits: Bits, elements: usize) -> Result<Vec<f32>, UnpackError> {
    if !bits.code_bytes(elements).contains(&codes.len()) || scales.len() != 2 * bits.scales(elements) {
        return Err(UnpackError::Length { codes: codes.len(), scales: scales.len(), elements });
    }
    let blocks = scales.as_chunks::<2>().0.iter().map(|scale| half::bf16::from_le_bytes(*scale).to_f32());
    let mut values = Vec::with_capacity(elements + 1);
    match bits {
        Bits::Sparse => values = sparse::unpack(codes, scales, elements)?,
        Bits::Four => {
            for (codes, scale) in codes.chunks(BLOCK / 2).zip(blocks) {
                // Shifts of signed numbers keep the sign.
                let both = codes.iter().map(|byte| [((*byte as i8) << 4) >> 4, *byte as i8 >> 4]);
                values.extend(both.flat_map(|pair| pair.map(|code| f32::from(code) * scale)));
            }
            // The last byte may have room for one more.
            values.truncate(elements);
        }
        Bits::Eight => {
            for (codes, scale) in codes.chunks(BLOCK).zip(blocks) {
                values.extend(codes.iter().map(|code| f32::from(*code as i8) * scale));
            }
        }
        Bits::All => values.extend(codes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word))),
    }
    if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(UnpackError::NotFinite) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn again(values: &[f32], bits: Bits) -> Vec<f32> {
        let packed = pack(values, bits).unwrap();
        unpack(&packed.codes, &packed.scales, bits, values.len()).unwrap()
    }

    #[test]
    fn codes_are_where_they_should_be() {
        let packed = pack(&[7.0, -7.0, 1.0], Bits::Four).unwrap();
        assert_eq!(
            packed,
            Packed { codes: vec![0x97, 0x01], scales: half::bf16::ONE.to_le_bytes().to_vec() }
        );
        assert_eq!(again(&[7.0, -7.0, 1.4], Bits::Four), [7.0, -7.0, 1.0]);
        assert_eq!(pack(&[0.0; 65], Bits::Eight).unwrap().scales, [0; 4]);
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let packed = pack(&[1.0; 70], Bits::Four).unwrap();
        assert!(unpack(&packed.codes, &packed.scales, Bits::Four, 70).is_ok());
        assert!(unpack(&packed.codes, &packed.scales, Bits::Four, 71).is_err());
        assert!(unpack(&packed.codes, &packed.scales[2..], Bits::Four, 70).is_err());
        let infinite = unpack(&packed.codes, &[0x80, 0x7f, 0, 0], Bits::Four, 70);
        assert_eq!(infinite, Err(UnpackError::NotFinite));
        assert_eq!(unpack(&f32::NAN.to_le_bytes(), &[], Bits::All, 1), Err(UnpackError::NotFinite));
    }

    #[test]
    fn what_is_not_finite_is_no_code() {
        for bits in [Bits::Sparse, Bits::Four, Bits::Eight, Bits::All] {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![1.0; 3 * BLOCK];
                values[BLOCK + 3] = bad;
                let error = pack(&values, bits).unwrap_err();
                assert_eq!((error.at, error.value.to_bits()), (BLOCK + 3, bad.to_bits()), "{bits:?}");
            }
        }
    }

    #[test]
    fn whole_numbers_are_as_round_has_them() {
        for largest in [7.0_f32, 127.0] {
            // Halves, their neighbours, and what lies beyond.
            for twice in -300_i16..=300 {
                let half = f32::from(twice) / 2.0;
                for value in [half.next_down(), half, half.next_up()] {
                    let wanted = value.round().clamp(-largest, largest) as i8;
                    assert_eq!(nearest(value, largest), wanted, "{value}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn an_element_is_off_by_half_a_unit_at_most(
            values in prop::collection::vec(-1e3_f32..1e3, 1..200),
        ) {
            for (bits, largest) in [(Bits::Four, 7.0), (Bits::Eight, 127.0)] {
                let found = again(&values, bits);
                for (block, found) in values.chunks(BLOCK).zip(found.chunks(BLOCK)) {
                    let most = block.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                    // A bf16 scale may be off by 2^-8, and so the largest value by that part of itself.
                    let allowed = most / largest * 0.51 + most / 256.0;
                    for (value, found) in block.iter().zip(found) {
                        prop_assert!((value - found).abs() <= allowed, "{value} became {found}");
                    }
                }
                prop_assert_eq!(pack(&found, bits), pack(&again(&found, bits), bits));
                prop_assert_eq!(again(&found, bits), found);
            }
            prop_assert_eq!(again(&values, Bits::All), values);
        }
    }
}
