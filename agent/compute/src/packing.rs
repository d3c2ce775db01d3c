//! Owns the packing of pseudo-gradients into four or eight bits an element, which is most of what training sends.
//! Must never depend on the machine: what is packed is signed for by its digest.
//!
//! Blocks of [`BLOCK`] elements share one scale, a bf16: the largest magnitude over the largest code. A code is the
//! nearest whole multiple of it, from -7 to 7 or -127 to 127. Packing what was unpacked gives the same bytes.

/// Elements that share a scale. With its two bytes an element takes 4.25 or 8.25 bits.
pub const BLOCK: usize = 64;

/// Bits of one element of a pseudo-gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// Codes of four bits, two a byte, the first in the low half.
    Four,
    /// Codes of a byte.
    Eight,
    /// As it is: f32.
    All,
}

impl Bits {
    /// By their number: 4, 8 or 32.
    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        match number {
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
            Self::All => None,
        }
    }

    /// Bytes of the codes of so many elements.
    #[must_use]
    pub fn code_bytes(self, elements: usize) -> usize {
        match self {
            Self::Four => elements.div_ceil(2),
            Self::Eight => elements,
            Self::All => 4 * elements,
        }
    }
}

/// Packed values: codes, and a bf16 scale for each block, little-endian. For [`Bits::All`] the codes are the values
/// themselves and there are no scales.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// [`Bits::code_bytes`] of them.
    pub codes: Vec<u8>,
    /// Two bytes for every block begun.
    pub scales: Vec<u8>,
}

/// Packs values, all finite.
#[must_use]
pub fn pack(values: &[f32], bits: Bits) -> Packed {
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
        Bits::Eight | Bits::All => codes.into_iter().map(|code| code as u8).collect(),
    };
    packed
}

/// The values again; `None` if there are not as many codes and scales as that takes, or a value is not finite.
#[must_use]
pub fn unpack(codes: &[u8], scales: &[u8], bits: Bits, elements: usize) -> Option<Vec<f32>> {
    let blocks = if bits == Bits::All { 0 } else { elements.div_ceil(BLOCK) };
    if codes.len() != bits.code_bytes(elements) || scales.len() != 2 * blocks {
        return None;
    }
    let scale = |at: usize| {
        let at = 2 * (at / BLOCK);
        half::bf16::from_le_bytes([scales[at], scales[at + 1]]).to_f32()
    };
    let values: Vec<f32> = match bits {
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
    values.iter().all(|value| value.is_finite()).then_some(values)
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
        assert!(unpack(&packed.codes, &packed.scales, Bits::Four, 70).is_some());
        assert!(unpack(&packed.codes, &packed.scales, Bits::Four, 71).is_none());
        assert!(unpack(&packed.codes, &packed.scales[2..], Bits::Four, 70).is_none());
        assert!(unpack(&packed.codes, &[0x80, 0x7f, 0, 0], Bits::Four, 70).is_none(), "an infinite scale");
        assert!(unpack(&f32::NAN.to_le_bytes(), &[], Bits::All, 1).is_none());
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
