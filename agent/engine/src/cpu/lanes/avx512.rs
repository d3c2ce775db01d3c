//! Owns the lanes of machines with AVX-512 and its integer dot product: one register each.
//! Must never exist where the machine lacks an instruction that is used here.

#![expect(unsafe_code, reason = "vector instructions; a value of the type proves that the machine has them")]

use std::arch::x86_64::*;

use super::{Kernel, LANES, Lanes};

/// AVX-512 F, BW, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn enabled<K: Kernel>(lanes: Avx512, kernel: K) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: `self` exists, so `detect` has found every feature that is enabled.
        unsafe { enabled(self, kernel) }
    }
}

/// Every use: the features are there, since `self` exists; references are valid for the bytes that are touched, and
/// nothing here needs alignment.
macro_rules! vector {
    ($operation:expr) => {{
        // SAFETY: see the macro's own comment.
        unsafe { $operation }
    }};
}

impl Lanes for Avx512 {
    type Floats = __m512;
    type Ints = __m512i;
    type Bytes = __m512i;

    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        vector!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> __m512 {
        vector!(_mm512_loadu_ps(values.as_ptr()))
    }

    #[inline(always)]
    fn store(self, values: __m512, to: &mut [f32; LANES]) {
        vector!(_mm512_storeu_ps(to.as_mut_ptr(), values));
    }

    #[inline(always)]
    fn load_half(self, bytes: &[u8; 2 * LANES]) -> __m512 {
        vector!(_mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_half_words(self, words: &[u16; LANES]) -> __m512 {
        vector!(_mm512_cvtph_ps(_mm256_loadu_si256(words.as_ptr().cast())))
    }

    #[inline(always)]
    fn store_half_words(self, values: __m512, to: &mut [u16; LANES]) {
        vector!({
            let words = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(values);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), words);
        });
    }

    #[inline(always)]
    fn load_brain(self, bytes: &[u8; 2 * LANES]) -> __m512 {
        vector!({
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        })
    }

    #[inline(always)]
    fn load_single(self, bytes: &[u8; 4 * LANES]) -> __m512 {
        vector!(_mm512_loadu_ps(bytes.as_ptr().cast()))
    }

    #[inline(always)]
    fn load_signed(self, bytes: &[u8; LANES]) -> __m512 {
        vector!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        vector!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        vector!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn power_of_two(self, a: __m512) -> __m512 {
        vector!({
            let biased = _mm512_add_epi32(_mm512_cvttps_epi32(a), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        })
    }

    #[inline(always)]
    fn magnitude(self, a: __m512) -> __m512i {
        vector!(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(i32::MAX)))
    }

    #[inline(always)]
    fn store_signed(self, a: __m512, to: &mut [i8; LANES]) {
        vector!({
            let narrow = _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(a));
            _mm_storeu_si128(to.as_mut_ptr().cast(), narrow);
        });
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> __m512i {
        vector!(_mm512_set1_epi32(value))
    }

    #[inline(always)]
    fn max_int(self, a: __m512i, b: __m512i) -> __m512i {
        vector!(_mm512_max_epi32(a, b))
    }

    #[inline(always)]
    fn shift_int(self, a: __m512i, by: u32) -> __m512i {
        vector!(_mm512_sll_epi32(a, _mm_cvtsi32_si128(by.cast_signed())))
    }

    #[inline(always)]
    fn to_floats(self, a: __m512i) -> __m512 {
        vector!(_mm512_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn store_ints(self, a: __m512i, to: &mut [i32; LANES]) {
        vector!(_mm512_storeu_si512(to.as_mut_ptr().cast(), a));
    }

    #[inline(always)]
    fn load_bytes(self, bytes: &[u8; 4 * LANES]) -> __m512i {
        vector!(_mm512_loadu_si512(bytes.as_ptr().cast()))
    }

    #[inline(always)]
    fn shift_right_and(self, bytes: __m512i, right: u32, mask: u8) -> __m512i {
        vector!({
            let shifted = _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(right.cast_signed()));
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask.cast_signed()))
        })
    }

    #[inline(always)]
    fn shift_left_and(self, bytes: __m512i, left: u32, mask: u8) -> __m512i {
        vector!({
            let shifted = _mm512_sll_epi16(bytes, _mm_cvtsi32_si128(left.cast_signed()));
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask.cast_signed()))
        })
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        vector!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn dot(self, sum: __m512i, bytes: __m512i, by: i32) -> __m512i {
        vector!(_mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi32(by)))
    }

    #[inline(always)]
    fn dot_wide(self, sum: __m512i, bytes: __m512i, by: i32) -> __m512i {
        self.dot(sum, bytes, by)
    }
}
