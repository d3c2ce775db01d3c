//! Owns the lanes of every machine: plain arrays, the reference for the others.
//! Must never be clever: what it computes is what the operations mean.

use half::{bf16, f16};

use super::{LANES, Lanes};

/// Needs nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

macro_rules! each {
    (|$lane:ident| $value:expr) => {{
        let mut out = [Default::default(); LANES];
        for $lane in 0..LANES {
            out[$lane] = $value;
        }
        out
    }};
}

impl Lanes for Scalar {
    type Floats = [f32; LANES];
    type Ints = [i32; LANES];
    type Bytes = [u8; 4 * LANES];

    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::Floats {
        *values
    }

    #[inline(always)]
    fn store(self, values: Self::Floats, to: &mut [f32; LANES]) {
        *to = values;
    }

    #[inline(always)]
    fn load_half(self, bytes: &[u8; 2 * LANES]) -> Self::Floats {
        each!(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn load_half_words(self, words: &[u16; LANES]) -> Self::Floats {
        each!(|i| f16::from_bits(words[i]).to_f32())
    }

    #[inline(always)]
    fn store_half_words(self, values: Self::Floats, to: &mut [u16; LANES]) {
        *to = each!(|i| f16::from_f32(values[i]).to_bits());
    }

    #[inline(always)]
    fn load_brain(self, bytes: &[u8; 2 * LANES]) -> Self::Floats {
        each!(|i| bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn load_single(self, bytes: &[u8; 4 * LANES]) -> Self::Floats {
        each!(|i| f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]))
    }

    #[inline(always)]
    fn load_signed(self, bytes: &[u8; LANES]) -> Self::Floats {
        each!(|i| f32::from(bytes[i].cast_signed()))
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        each!(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn round(self, a: Self::Floats) -> Self::Floats {
        each!(|i| a[i].round_ties_even())
    }

    #[inline(always)]
    fn power_of_two(self, a: Self::Floats) -> Self::Floats {
        each!(|i| f32::from_bits((a[i] as i32).wrapping_add(127).wrapping_shl(23).cast_unsigned()))
    }

    #[inline(always)]
    fn magnitude(self, a: Self::Floats) -> Self::Ints {
        each!(|i| a[i].abs().to_bits().cast_signed())
    }

    #[inline(always)]
    fn store_signed(self, a: Self::Floats, to: &mut [i8; LANES]) {
        *to = each!(|i| a[i] as i8);
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::Ints {
        [value; LANES]
    }

    #[inline(always)]
    fn max_int(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        each!(|i| a[i].max(b[i]))
    }

    #[inline(always)]
    fn shift_int(self, a: Self::Ints, by: u32) -> Self::Ints {
        each!(|i| a[i].wrapping_shl(by))
    }

    #[inline(always)]
    fn to_floats(self, a: Self::Ints) -> Self::Floats {
        each!(|i| a[i] as f32)
    }

    #[inline(always)]
    fn store_ints(self, a: Self::Ints, to: &mut [i32; LANES]) {
        *to = a;
    }

    #[inline(always)]
    fn load_bytes(self, bytes: &[u8; 4 * LANES]) -> Self::Bytes {
        *bytes
    }

    #[inline(always)]
    fn shift_right_and(self, bytes: Self::Bytes, right: u32, mask: u8) -> Self::Bytes {
        let mut out = bytes;
        for byte in &mut out {
            *byte = (*byte >> right) & mask;
        }
        out
    }

    #[inline(always)]
    fn shift_left_and(self, bytes: Self::Bytes, left: u32, mask: u8) -> Self::Bytes {
        let mut out = bytes;
        for byte in &mut out {
            *byte = (*byte << left) & mask;
        }
        out
    }

    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        let mut out = a;
        for (byte, other) in out.iter_mut().zip(b) {
            *byte |= other;
        }
        out
    }

    #[inline(always)]
    fn dot(self, sum: Self::Ints, bytes: Self::Bytes, by: i32) -> Self::Ints {
        let by = by.to_le_bytes();
        let mut out = sum;
        for (lane, four) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            for (byte, factor) in four.iter().zip(by) {
                *lane += i32::from(*byte) * i32::from(factor.cast_signed());
            }
        }
        out
    }

    #[inline(always)]
    fn dot_wide(self, sum: Self::Ints, bytes: Self::Bytes, by: i32) -> Self::Ints {
        self.dot(sum, bytes, by)
    }
}
