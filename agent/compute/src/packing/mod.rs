//! Owns the packing of pseudo-gradients into four or eight bits an element, or into the few that matter most, which is
//! most of what training sends.
//! Must never depend on the machine: what is packed is signed for by its digest.
//!
//! Blocks of [`BLOCK`] elements share one scale, a bf16: the largest magnitude over the largest code. A code is the
//! nearest whole multiple of it, from -7 to 7 or -127 to 127. Packing what was unpacked gives the same bytes.

mod sparse;

use std::ops::RangeInclusive;

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

/// Packs values, all finite.
#[must_use]
pub fn pack(values: &[f32], bits: Bits) -> Packed {
    if bits == Bits::Sparse {
        return sparse::pack(values);
    }
    let Some(largest) = bits.largest() else {
        return Packed {
            codes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            scales: Vec::new(),
        };
    };
    let mut packed = Packed::default();
    let mut codes = Vec::with_capacity(values.len());
    for block in values.chunks(BLOCK) {
        let magnitude = block.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let scale = half::bf16::from_f32(magnitude / largest);
        packed.scales.extend(scale.to_le_bytes());
        let scale = scale.to_f32();
        let code = |value: &f32| {
            let code = if scale > 0.0 { (value / scale).round() } else { 0.0 };
            code.clamp(-largest, largest) as i8
        };
        codes.extend(block.iter().map(code));
    }
    packed.codes = match bits {
        Bits::Four => codes
            .chunks(2)
            .map(|pair| (pair[0] & 15) as u8 | (pair.get(1).map_or(0, |high| *high << 4) as u8))
            .collect(),
        Bits::Sparse | Bits::Eight | Bits::All => codes.into_iter().map(|code| code as u8).collect(),
    };
    packed
}

/// The values again, all finite.
///
/// # Errors
/// [`UnpackError`] if these are not the codes and scales of so many elements.
pub fn unpack(codes: &[u8], scales: &[u8], bits: Bits, elements: usize) -> Result<Vec<f32>, UnpackError> {
    if !bits.code_bytes(elements).contains(&codes.len()) || scales.len() != 2 * bits.scales(elements) {
        return Err(UnpackError::Length { codes: codes.len(), scales: scales.len(), elements });
    }
    let scale = |at: usize| {
        let at = 2 * (at / BLOCK);
        half::bf16::from_le_bytes([scales[at], scales[at + 1]]).to_f32()
    };
    let values: Vec<f32> = match bits {
        Bits::Sparse => sparse::unpack(codes, scales, elements)?,
        Bits::Four => (0..elements)
            .map(|at| {
                let byte = codes[at / 2] as i8;
                // Shifts of signed numbers keep the sign.
                let code = if at % 2 == 0 { (byte << 4) >> 4 } else { byte >> 4 };
                f32::from(code) * scale(at)
            })
            .collect(),
        Bits::Eight => {
            codes.iter().enumerate().map(|(at, code)| f32::from(*code as i8) * scale(at)).collect()
        }
        Bits::All => codes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
    };
    if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(UnpackError::NotFinite) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn again(values: &[f32], bits: Bits) -> Vec<f32> {
        let packed = pack(values, bits);
        unpack(&packed.codes, &packed.scales, bits, values.len()).unwrap()
    }

    #[test]
    fn codes_are_where_they_should_be() {
        let packed = pack(&[7.0, -7.0, 1.0], Bits::Four);
        assert_eq!(
            packed,
            Packed { codes: vec![0x97, 0x01], scales: half::bf16::ONE.to_le_bytes().to_vec() }
        );
        assert_eq!(again(&[7.0, -7.0, 1.4], Bits::Four), [7.0, -7.0, 1.0]);
        assert_eq!(pack(&[0.0; 65], Bits::Eight).scales, [0; 4]);
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let packed = pack(&[1.0; 70], Bits::Four);
        assert!(unpack(&packed.codes, &packed.scales, Bits::Four, 70).is_ok());
        assert!(unpack(&packed.codes, &packed.scales, Bits::Four, 71).is_err());
        assert!(unpack(&packed.codes, &packed.scales[2..], Bits::Four, 70).is_err());
        let infinite = unpack(&packed.codes, &[0x80, 0x7f, 0, 0], Bits::Four, 70);
        assert_eq!(infinite, Err(UnpackError::NotFinite));
        assert_eq!(unpack(&f32::NAN.to_le_bytes(), &[], Bits::All, 1), Err(UnpackError::NotFinite));
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
