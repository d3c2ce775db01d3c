//! Owns the lanes of machines with AVX2, FMA and F16C: two registers each.
//! Must never exist where the machine lacks an instruction that is used here.

#![expect(unsafe_code, reason = "vector instructions; a value of the type proves that the machine has them")]

use std::arch::x86_64::*;

use super::{Kernel, LANES, Lanes};

/// AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enabled<K: Kernel>(lanes: Avx2, kernel: K) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: `self` exists, so `detect` has found every feature that is enabled.
        unsafe { enabled(self, kernel) }
    }
}

/// Every use: the features are there, since a value of the type exists; references are valid for the bytes that are
/// touched, nothing here needs alignment, and `add` stays within them.
macro_rules! vector {
    ($operation:expr) => {{
        // SAFETY: see the macro's own comment.
        unsafe { $operation }
    }};
}

/// The lower and the upper eight lanes.
type Floats = (__m256, __m256);
/// The same of integers, and of bytes.
type Ints = (__m256i, __m256i);

impl Lanes for Avx2 {
    type Floats = Floats;
    type Ints = Ints;
    type Bytes = Ints;

    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        vector!((_mm256_set1_ps(value), _mm256_set1_ps(value)))
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Floats {
        vector!((_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))))
    }

    #[inline(always)]
    fn store(self, values: Floats, to: &mut [f32; LANES]) {
        vector!({
            _mm256_storeu_ps(to.as_mut_ptr(), values.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), values.1);
        });
    }

    #[inline(always)]
    fn load_half(self, bytes: &[u8; 2 * LANES]) -> Floats {
        vector!({
            let low = _mm_loadu_si128(bytes.as_ptr().cast());
            let high = _mm_loadu_si128(bytes.as_ptr().add(16).cast());
            (_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        })
    }

    #[inline(always)]
    fn load_half_words(self, words: &[u16; LANES]) -> Floats {
        vector!({
            let low = _mm_loadu_si128(words.as_ptr().cast());
            let high = _mm_loadu_si128(words.as_ptr().add(8).cast());
            (_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        })
    }

    #[inline(always)]
    fn store_half_words(self, values: Floats, to: &mut [u16; LANES]) {
        vector!({
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values.0);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values.1);
            _mm_storeu_si128(to.as_mut_ptr().cast(), low);
            _mm_storeu_si128(to.as_mut_ptr().add(8).cast(), high);
        });
    }

    #[inline(always)]
    fn load_brain(self, bytes: &[u8; 2 * LANES]) -> Floats {
        vector!({
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.as_ptr().add(16).cast()));
            let (low, high) = (_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high));
            (_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        })
    }

    #[inline(always)]
    fn load_single(self, bytes: &[u8; 4 * LANES]) -> Floats {
        vector!((_mm256_loadu_ps(bytes.as_ptr().cast()), _mm256_loadu_ps(bytes.as_ptr().add(32).cast())))
    }

    #[inline(always)]
    fn load_signed(self, bytes: &[u8; LANES]) -> Floats {
        vector!({
            let all = _mm_loadu_si128(bytes.as_ptr().cast());
            let low = _mm256_cvtepi8_epi32(all);
            let high = _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(all));
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        })
    }

    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        vector!((_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn sub(self, a: Floats, b: Floats) -> Floats {
        vector!((_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        vector!((_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn div(self, a: Floats, b: Floats) -> Floats {
        vector!((_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn fma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        vector!((_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)))
    }

    #[inline(always)]
    fn max(self, a: Floats, b: Floats) -> Floats {
        vector!((_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn min(self, a: Floats, b: Floats) -> Floats {
        vector!((_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)))
    }

    #[inline(always)]
    fn round(self, a: Floats) -> Floats {
        vector!((
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.0),
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.1)
        ))
    }

    #[inline(always)]
    fn power_of_two(self, a: Floats) -> Floats {
        vector!({
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvttps_epi32(a.0), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvttps_epi32(a.1), bias));
            (_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        })
    }

    #[inline(always)]
    fn magnitude(self, a: Floats) -> Ints {
        vector!({
            let mask = _mm256_set1_epi32(i32::MAX);
            (
                _mm256_and_si256(_mm256_castps_si256(a.0), mask),
                _mm256_and_si256(_mm256_castps_si256(a.1), mask),
            )
        })
    }

    #[inline(always)]
    fn store_signed(self, a: Floats, to: &mut [i8; LANES]) {
        vector!({
            let words = _mm256_packs_epi32(_mm256_cvttps_epi32(a.0), _mm256_cvttps_epi32(a.1));
            // Packing works within halves: put the quarters back in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        });
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Ints {
        vector!((_mm256_set1_epi32(value), _mm256_set1_epi32(value)))
    }

    #[inline(always)]
    fn max_int(self, a: Ints, b: Ints) -> Ints {
        vector!((_mm256_max_epi32(a.0, b.0), _mm256_max_epi32(a.1, b.1)))
    }

    #[inline(always)]
    fn shift_int(self, a: Ints, by: u32) -> Ints {
        vector!({
            let by = _mm_cvtsi32_si128(by.cast_signed());
            (_mm256_sll_epi32(a.0, by), _mm256_sll_epi32(a.1, by))
        })
    }

    #[inline(always)]
    fn to_floats(self, a: Ints) -> Floats {
        vector!((_mm256_cvtepi32_ps(a.0), _mm256_cvtepi32_ps(a.1)))
    }

    #[inline(always)]
    fn store_ints(self, a: Ints, to: &mut [i32; LANES]) {
        vector!({
            _mm256_storeu_si256(to.as_mut_ptr().cast(), a.0);
            _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), a.1);
        });
    }

    #[inline(always)]
    fn load_bytes(self, bytes: &[u8; 4 * LANES]) -> Ints {
        vector!((
            _mm256_loadu_si256(bytes.as_ptr().cast()),
            _mm256_loadu_si256(bytes.as_ptr().add(32).cast())
        ))
    }

    #[inline(always)]
    fn shift_right_and(self, bytes: Ints, right: u32, mask: u8) -> Ints {
        vector!({
            let by = _mm_cvtsi32_si128(right.cast_signed());
            let mask = _mm256_set1_epi8(mask.cast_signed());
            (
                _mm256_and_si256(_mm256_srl_epi16(bytes.0, by), mask),
                _mm256_and_si256(_mm256_srl_epi16(bytes.1, by), mask),
            )
        })
    }

    #[inline(always)]
    fn shift_left_and(self, bytes: Ints, left: u32, mask: u8) -> Ints {
        vector!({
            let by = _mm_cvtsi32_si128(left.cast_signed());
            let mask = _mm256_set1_epi8(mask.cast_signed());
            (
                _mm256_and_si256(_mm256_sll_epi16(bytes.0, by), mask),
                _mm256_and_si256(_mm256_sll_epi16(bytes.1, by), mask),
            )
        })
    }

    #[inline(always)]
    fn or(self, a: Ints, b: Ints) -> Ints {
        vector!((_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1)))
    }

    #[inline(always)]
    fn dot(self, sum: Ints, bytes: Ints, by: i32) -> Ints {
        vector!({
            let by = _mm256_set1_epi32(by);
            let ones = _mm256_set1_epi16(1);
            // Pairs of products stay below 2 · 63 · 128, so that the 16-bit sums cannot saturate.
            let low = _mm256_madd_epi16(_mm256_maddubs_epi16(bytes.0, by), ones);
            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(bytes.1, by), ones);
            (_mm256_add_epi32(sum.0, low), _mm256_add_epi32(sum.1, high))
        })
    }

    #[inline(always)]
    fn dot_wide(self, sum: Ints, bytes: Ints, by: i32) -> Ints {
        (dot_wide(sum.0, bytes.0, by), dot_wide(sum.1, bytes.1, by))
    }
}

/// A pair of products with 255 would saturate 16 bits: seven bits and the eighth are multiplied apart.
#[inline(always)]
fn dot_wide(sum: __m256i, bytes: __m256i, by: i32) -> __m256i {
    vector!({
        let by = _mm256_set1_epi32(by);
        let ones = _mm256_set1_epi16(1);
        let top = _mm256_set1_epi8(i8::MIN);
        let lower = _mm256_maddubs_epi16(_mm256_andnot_si256(top, bytes), by);
        let upper = _mm256_maddubs_epi16(_mm256_and_si256(top, bytes), by);
        let both = _mm256_add_epi32(_mm256_madd_epi16(lower, ones), _mm256_madd_epi16(upper, ones));
        _mm256_add_epi32(sum, both)
    })
}
