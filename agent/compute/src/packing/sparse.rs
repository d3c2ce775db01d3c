//! Owns the sparse form of a pseudo-gradient: of every chunk of a tensor the few largest elements, each told by a gap, a
//! sign and one of two magnitudes; all others are 0.
//! Must never accept two forms of one content, nor let a stranger's bytes decide how much time or memory they take.
//!
//! The method is SparseLoCo's (arXiv 2508.15706): the largest of every chunk, two bits each, and what is not sent comes
//! with the next delta.
//!
//! The codes are one stream of bits for the whole tensor, the lowest bit of a byte first, chunk after chunk. For each
//! element that is kept, in their order: the elements left out since the one before (or since the chunk's start), in
//! Rice's code (that number / 32 as so many ones and a zero, then the five low bits, the lowest first); a one if it has
//! the greater magnitude; a one if it is negative. Zeros fill the last byte. The scales are the smaller and the greater
//! magnitude of each chunk.
//!
//! One content has one form. Of equally large elements the first are kept. Where one magnitude is enough both are it, and
//! no element has the greater. An element that becomes 0 is positive, and as early as can be.

use std::ops::RangeInclusive;

use super::{Packed, UnpackError};

/// Elements of which the largest are kept.
pub(super) const CHUNK: usize = 4_096;

/// Of so many elements one is kept, or of a chunk's last few. Three agents that take five steps a round then move 413 times
/// less than all-reducing f32 in every step would, for a model of 1.25 M weights, whose file is a fifth header.
pub(super) const ONE_OF: usize = 48;

/// Bits of a gap that are not unary. With 2^5 below the gaps' mean of 47, they take 7.04 bits of the 7.02 that they must; with
/// 2^6, 7.35.
const RICE_BITS: usize = 5;

/// Bits of an element without the unary ones: the zero that ends them, the rest of the gap, magnitude and sign.
const ELEMENT_BITS: usize = RICE_BITS + 3;

/// Rounds of two-means, after which the magnitudes hardly move.
const ROUNDS: usize = 6;

/// Bits of the smallest bf16 that is not finite. Those of positive ones sort as they do, and negative ones come after.
const INFINITE: u16 = 0x7f80;

/// Elements that are kept of a chunk of so many.
fn kept(elements: usize) -> usize {
    elements.div_ceil(ONE_OF)
}

/// Fewest and most bytes of the codes of so many elements: the gaps of a chunk together are no longer than what it leaves
/// out.
pub(super) fn code_bytes(elements: usize) -> RangeInclusive<usize> {
    let (whole, rest) = (elements / CHUNK, elements % CHUNK);
    let least = |chunk: usize| ELEMENT_BITS * kept(chunk);
    let most = |chunk: usize| least(chunk) + ((chunk - kept(chunk)) >> RICE_BITS);
    (whole * least(CHUNK) + least(rest)).div_ceil(8)..=(whole * most(CHUNK) + most(rest)).div_ceil(8)
}

/// Magnitudes of so many elements: two of every chunk.
pub(super) fn scales(elements: usize) -> usize {
    2 * elements.div_ceil(CHUNK)
}

/// Packs a tensor. A value that is not finite makes a magnitude that is not.
pub(super) fn pack(values: &[f32]) -> Packed {
    let mut stream = Writer::default();
    let mut scales = Vec::with_capacity(2 * self::scales(values.len()));
    let mut ranked = Vec::with_capacity(CHUNK.min(values.len()));
    for chunk in values.chunks(CHUNK) {
        let told = Told::of(chunk, &mut ranked);
        scales.extend(told.low.to_le_bytes());
        scales.extend(told.high.to_le_bytes());
        let mut next = 0;
        for (at, upper) in told.elements {
            stream.put_gap(at - next);
            stream.put(upper);
            let zero = !upper && told.low == half::bf16::ZERO;
            stream.put(chunk[at] < 0.0 && !zero);
            next = at + 1;
        }
    }
    Packed { codes: stream.bytes, scales }
}

/// The values again, of codes and scales whose lengths are possible.
pub(super) fn unpack(codes: &[u8], scales: &[u8], elements: usize) -> Result<Vec<f32>, UnpackError> {
    let mut stream = Reader { bytes: codes, at: 0 };
    let mut values = vec![0.0; elements];
    let magnitudes = scales.as_chunks::<4>().0;
    for (number, (chunk, magnitudes)) in values.chunks_mut(CHUNK).zip(magnitudes).enumerate() {
        let [low, also_low, high, also_high] = *magnitudes;
        let (low, high) = (u16::from_le_bytes([low, also_low]), u16::from_le_bytes([high, also_high]));
        fill(chunk, low, high, &mut stream)
            .map_err(|problem| UnpackError::Chunk { chunk: number, problem })?;
    }
    if stream.ends() { Ok(values) } else { Err(UnpackError::Rest) }
}

/// What is told of a chunk.
struct Told {
    /// The smaller magnitude, and the greater one.
    low: half::bf16,
    high: half::bf16,
    /// Places of the elements that are kept, in their order, and whether each has the greater magnitude.
    elements: Vec<(usize, bool)>,
}

impl Told {
    /// `ranked` is room to work in.
    fn of(chunk: &[f32], ranked: &mut Vec<u64>) -> Self {
        let places = largest(chunk, ranked);
        let magnitude = |at: usize| f64::from(chunk[at].abs());
        let magnitudes: Vec<f64> = places.iter().map(|at| magnitude(*at)).collect();
        let (low, high) = two_means(&magnitudes);
        let cut = f64::midpoint(low, high);
        let [low, high] = [low, high].map(|mean| half::bf16::from_f32(mean as f32));
        let upper = |at: usize| low != high && magnitude(at) > cut;
        let mut elements: Vec<(usize, bool)> = places.into_iter().map(|at| (at, upper(at))).collect();
        if low == half::bf16::ZERO {
            // What becomes 0 is nowhere to be seen in the values, and so the first of all that do stand for it.
            let count = elements.len();
            elements.retain(|(_, upper)| *upper);
            let others = (0..chunk.len()).filter(|at| !upper(*at)).map(|at| (at, false));
            elements.extend(others.take(count - elements.len()));
            elements.sort_unstable();
        }
        Self { low, high, elements }
    }
}

/// Places of the elements of a chunk that are kept, in their order.
fn largest(chunk: &[f32], ranked: &mut Vec<u64>) -> Vec<usize> {
    // Bits of |a| sort as |a| does, with what is not a number above all. The greatest comes first, of equals the lowest
    // place, and no two are the same.
    let rank = |(at, value): (usize, &f32)| (u64::from(!value.abs().to_bits()) << 32) | at as u64;
    ranked.clear();
    ranked.extend(chunk.iter().enumerate().map(rank));
    let kept = kept(chunk.len());
    if kept < ranked.len() {
        ranked.select_nth_unstable(kept);
    }
    let mut places: Vec<usize> = ranked[..kept].iter().map(|rank| *rank as u32 as usize).collect();
    places.sort_unstable();
    places
}

/// The two values that stand best for these, as Lloyd finds them from the least and the greatest. In f64, one after the
/// other: the order is part of the result.
fn two_means(magnitudes: &[f64]) -> (f64, f64) {
    let mut low = magnitudes.iter().copied().fold(f64::INFINITY, f64::min);
    let mut high = magnitudes.iter().copied().fold(0.0, f64::max);
    for _ in 0..ROUNDS {
        let cut = f64::midpoint(low, high);
        let mut sums = [0.0, 0.0];
        let mut counts = [0.0, 0.0];
        for magnitude in magnitudes {
            let side = usize::from(*magnitude > cut);
            sums[side] += magnitude;
            counts[side] += 1.0;
        }
        low = sums[0] / counts[0];
        if counts[1] == 0.0 {
            // All are the same, or not all are finite.
            break;
        }
        high = sums[1] / counts[1];
    }
    (low, high)
}

/// Reads the elements of a chunk, which is all 0.
fn fill(chunk: &mut [f32], low: u16, high: u16, stream: &mut Reader<'_>) -> Result<(), &'static str> {
    const ENDS: &str = "ends too early";
    const BEYOND: &str = "names an element beyond its end";
    if low >= INFINITE || high >= INFINITE {
        return Err("has a magnitude that is negative or not finite");
    }
    if low > high {
        return Err("has its greater magnitude first");
    }
    let kept = kept(chunk.len());
    let mut next = 0;
    let mut uppers = 0;
    for told in 0..kept {
        let at = next + stream.gap(chunk.len() - next).ok_or(ENDS)?;
        let upper = stream.bit().ok_or(ENDS)?;
        let negative = stream.bit().ok_or(ENDS)?;
        let bits = if upper { high } else { low };
        if bits == 0 && (negative || at != told) {
            return Err("has a 0 that is negative, or later than need be");
        }
        let magnitude = half::bf16::from_bits(bits).to_f32();
        *chunk.get_mut(at).ok_or(BEYOND)? = if negative { -magnitude } else { magnitude };
        uppers += usize::from(upper);
        next = at + 1;
    }
    let used = if low == high { uppers == 0 } else { 0 < uppers && uppers < kept };
    if used { Ok(()) } else { Err("tells a magnitude that no element has") }
}

/// Bits on their way into bytes.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    bits: usize,
}

impl Writer {
    fn put(&mut self, bit: bool) {
        if self.bits.is_multiple_of(8) {
            self.bytes.push(0);
        }
        if let Some(byte) = self.bytes.last_mut() {
            *byte |= u8::from(bit) << (self.bits % 8);
        }
        self.bits += 1;
    }

    fn put_gap(&mut self, gap: usize) {
        for _ in 0..gap >> RICE_BITS {
            self.put(true);
        }
        self.put(false);
        for bit in 0..RICE_BITS {
            self.put(gap >> bit & 1 == 1);
        }
    }
}

/// Bits on their way out of bytes.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bit(&mut self) -> Option<bool> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = byte >> (self.at % 8) & 1 == 1;
        self.at += 1;
        Some(bit)
    }

    /// A gap. One of `most` or more leads beyond the chunk, and its ones are not counted on.
    fn gap(&mut self, most: usize) -> Option<usize> {
        let mut gap = 0;
        while self.bit()? && gap < most {
            gap += 1 << RICE_BITS;
        }
        for bit in 0..RICE_BITS {
            gap += usize::from(self.bit()?) << bit;
        }
        Some(gap)
    }

    /// Whether what is left fills a byte with zeros.
    fn ends(mut self) -> bool {
        let left = 8 * self.bytes.len() - self.at;
        left < 8 && (0..left).all(|_| self.bit() == Some(false))
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::packing::{Bits, unpack};

    fn read(packed: &Packed, elements: usize) -> Result<Vec<f32>, UnpackError> {
        unpack(&packed.codes, &packed.scales, Bits::Sparse, elements)
    }

    /// What should be left of a chunk, found in the plainest way: everything is sorted.
    fn plain(chunk: &[f32]) -> Vec<f32> {
        let mut places: Vec<usize> = (0..chunk.len()).collect();
        places.sort_by(|one, other| chunk[*other].abs().total_cmp(&chunk[*one].abs()));
        places.truncate(chunk.len().div_ceil(ONE_OF));
        let mut sorted = places.clone();
        sorted.sort_unstable();
        let of = |at: &usize| f64::from(chunk[*at].abs());
        let (mut low, mut high) = (of(&places[places.len() - 1]), of(&places[0]));
        for _ in 0..6 {
            let middle = (low + high) / 2.0;
            let mean = |above: bool, otherwise: f64| {
                let side: Vec<f64> = sorted.iter().map(of).filter(|m| (*m > middle) == above).collect();
                if side.is_empty() { otherwise } else { side.iter().sum::<f64>() / side.len() as f64 }
            };
            (low, high) = (mean(false, low), mean(true, high));
        }
        let mut left = vec![0.0; chunk.len()];
        for at in places {
            let magnitude = if of(&at) > (low + high) / 2.0 { high } else { low };
            left[at] = bf16::from_f32(magnitude as f32).to_f32() * if chunk[at] < 0.0 { -1.0 } else { 1.0 };
        }
        left
    }

    /// Normally distributed numbers, by the sum of twelve uniform ones.
    fn normal(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    /// Bits, as they are written in a comment: the first is the lowest of the first byte.
    fn bytes(bits: &str) -> Vec<u8> {
        let mut stream = Writer::default();
        bits.chars().filter(|bit| !bit.is_whitespace()).for_each(|bit| stream.put(bit == '1'));
        stream.bytes
    }

    fn scales_of(low: f32, high: f32) -> Vec<u8> {
        [low, high].iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
    }

    #[test]
    fn every_bit_is_where_it_should_be() {
        let mut values = vec![0.0; 2 * ONE_OF];
        (values[3], values[3 + 1 + 33]) = (2.0, -1.0);
        let packed = pack(&values);
        // Gaps of 3 and 33: 0 ones, then 3; one of them, then 1.
        let wanted = Packed { codes: bytes("0 11000 1 0  10 10000 0 1"), scales: scales_of(1.0, 2.0) };
        assert_eq!(packed, wanted);
        assert_eq!(read(&packed, values.len()).unwrap(), values);

        // Of equals the first; zeros and a chunk of nothing else are told like anything.
        let equal = pack(&vec![-1.5; 2 * ONE_OF]);
        assert_eq!(equal, Packed { codes: bytes("0 00000 0 1  0 00000 0 1"), scales: scales_of(1.5, 1.5) });
        let nothing = pack(&vec![-0.0; 2 * ONE_OF]);
        assert_eq!(nothing, Packed { codes: bytes("0 00000 0 0  0 00000 0 0"), scales: scales_of(0.0, 0.0) });
        assert_eq!(read(&nothing, 2 * ONE_OF).unwrap(), vec![0.0; 2 * ONE_OF]);
        assert_eq!(pack(&[]), Packed::default());
        assert_eq!(read(&Packed::default(), 0).unwrap(), [0.0; 0]);
    }

    #[test]
    fn what_is_too_small_for_a_bf16_leaves_no_trace() {
        let mut values = vec![0.0; 4 * ONE_OF];
        (values[0], values[9], values[50], values[90]) = (-1e-44, -3.0, 1e-43, 1e-42);
        let packed = pack(&values);
        let mut wanted = vec![0.0; values.len()];
        wanted[9] = -3.0;
        let found = read(&packed, values.len()).unwrap();
        assert_eq!(found, wanted);
        assert_eq!(pack(&found), packed);
        // Nor does what only f32 tells apart.
        let two = |other: f32| {
            let mut values = vec![0.0; 2 * ONE_OF];
            (values[5], values[70]) = (1.0, other);
            pack(&values)
        };
        assert_eq!(two(-1.0001), two(-1.0));
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let mut values = normal(CHUNK + 100, 1);
            values[CHUNK + 50] = bad;
            let refused = read(&pack(&values), values.len()).unwrap_err();
            assert!(matches!(refused, UnpackError::Chunk { chunk: 1, .. }), "{bad}: {refused}");
        }
    }

    #[test]
    fn each_way_to_be_wrong_has_its_words() {
        let elements = 2 * ONE_OF;
        let refused = |codes: &str, low: f32, high: f32| {
            let packed = Packed { codes: bytes(codes), scales: scales_of(low, high) };
            read(&packed, elements).expect_err(codes).to_string()
        };
        let good = "0 11000 1 0  10 10000 0 1";
        assert!(
            read(&Packed { codes: bytes(good), scales: scales_of(1.0, 2.0) }, elements).is_ok(),
            "before anything is changed"
        );
        for (codes, low, high, why) in [
            (good, 2.0, 1.0, "greater magnitude first"),
            (good, -1.0, 2.0, "negative or not finite"),
            (good, -0.0, 2.0, "negative or not finite"),
            (good, f32::INFINITY, 2.0, "negative or not finite"),
            (good, 1.0, f32::INFINITY, "negative or not finite"),
            (good, 1.0, f32::NAN, "negative or not finite"),
            (good, 1.0, 1.0, "a magnitude that no element has"),
            ("0 11000 1 0  10 10000 1 1", 1.0, 2.0, "a magnitude that no element has"),
            ("0 11000 0 0  10 10000 0 1", 1.0, 2.0, "a magnitude that no element has"),
            (good, 0.0, 2.0, "a 0 that is negative, or later than need be"),
            ("0 11000 1 0  0 00000 0 0", 0.0, 2.0, "a 0 that is negative, or later than need be"),
            ("0 00000 0 1  0 00000 1 0", 0.0, 2.0, "a 0 that is negative, or later than need be"),
            ("0 11000 1 0  110 11111 0 1", 1.0, 2.0, "beyond its end"),
            ("0 11111 1 0  1111 1111", 1.0, 2.0, "ends too early"),
            ("1111 1111 1111 1111", 1.0, 2.0, "beyond its end"),
            ("0 11000 1 0  0 10000 0 1  1", 1.0, 2.0, "does not end where its codes do"),
            ("0 11000 1 0  0 10000 0 1  0000 0000", 1.0, 2.0, "does not end where its codes do"),
            ("0 11000 1 0  10 10000 0 1  01", 1.0, 2.0, "does not end where its codes do"),
            ("0 11000 1 0", 1.0, 2.0, "1 bytes of codes"),
            ("0 11000 1 0  0 10000 0 1  0000 0000  0000 0000", 1.0, 2.0, "4 bytes of codes"),
        ] {
            let refused = refused(codes, low, high);
            assert!(refused.contains(why), "{codes} {low} {high}: {refused}, not {why}");
        }
    }

    #[test]
    fn so_few_bytes_are_enough() {
        let values = normal(100 * CHUNK, 7);
        let packed = pack(&values);
        let bits = 8.0 * (packed.codes.len() + packed.scales.len()) as f32 / values.len() as f32;
        // 9.04 bits for each of 86 elements, and two magnitudes, are 0.1977 bits a weight.
        assert!(bits < 0.2, "{bits} bits a weight");
        assert_eq!(
            read(&packed, values.len()).unwrap().iter().filter(|value| **value != 0.0).count(),
            100 * kept(CHUNK)
        );
        // The longest codes there can be: one gap takes all that is left out.
        let last = |at: usize| if at >= CHUNK - kept(CHUNK) { 1.0 } else { 0.0 };
        let packed = pack(&(0..9 * CHUNK).map(|at| last(at % CHUNK)).collect::<Vec<f32>>());
        assert_eq!(packed.codes.len(), *code_bytes(9 * CHUNK).end());
        assert_eq!(pack(&[0.0; CHUNK]).codes.len(), *code_bytes(CHUNK).start());
    }

    /// Tensors of every kind: many equal, many zeros, far apart, of several chunks.
    fn tensors() -> impl Strategy<Value = Vec<f32>> {
        let number = prop_oneof![
            4 => -1.0_f32..1.0,
            1 => Just(0.0),
            1 => Just(-0.0),
            1 => (-3_i8..3).prop_map(f32::from),
            1 => any::<f32>().prop_filter("bf16 has it", |value| value.abs() < 3e38),
            1 => (0_u32..1 << 20).prop_map(f32::from_bits),
        ];
        let dense = prop::collection::vec(number.clone(), 1..400);
        let thin = (1..3 * CHUNK, prop::collection::vec((0..3 * CHUNK, number), 0..300)).prop_map(
            |(length, numbers)| {
                let mut values = vec![0.0; length];
                numbers.into_iter().for_each(|(at, number)| values[at % length] = number);
                values
            },
        );
        let normal = (1..3 * CHUNK, any::<u64>()).prop_map(|(length, seed)| self::normal(length, seed));
        prop_oneof![dense, thin, normal]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_024))]

        #[test]
        fn what_comes_back_is_what_sorting_would_have_left(values in tensors()) {
            let packed = pack(&values);
            prop_assert!(code_bytes(values.len()).contains(&packed.codes.len()));
            let found = read(&packed, values.len()).unwrap();
            let wanted: Vec<f32> = values.chunks(CHUNK).flat_map(plain).collect();
            prop_assert_eq!(&found, &wanted);
            prop_assert_eq!(pack(&found), packed, "what was rounded stays");
        }

        #[test]
        fn a_strangers_bytes_are_refused_or_are_the_only_ones_for_their_values(
            values in tensors(),
            flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 0..4),
            scale_flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 0..2),
            length in prop::option::weighted(0.2, any::<prop::sample::Index>()),
            tail in prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(any::<u8>(), 1..3)],
        ) {
            let Packed { mut codes, mut scales } = pack(&values);
            flips.iter().for_each(|(at, bit)| { let at = at.index(codes.len()); codes[at] ^= 1 << bit });
            scale_flips.iter().for_each(|(at, bit)| { let at = at.index(scales.len()); scales[at] ^= 1 << bit });
            if let Some(length) = length {
                codes.truncate(length.index(codes.len()));
            }
            codes.extend(tail);
            let changed = Packed { codes, scales };
            if let Ok(found) = read(&changed, values.len()) {
                prop_assert!(found.iter().all(|value| value.is_finite()));
                prop_assert_eq!(pack(&found), changed);
            }
        }

        #[test]
        fn noise_is_refused_or_is_the_only_form_of_its_values(
            elements in 1..=2 * ONE_OF,
            codes in prop::collection::vec(any::<u8>(), 1..4),
            scales in prop::collection::vec(0..4_u8, 4),
        ) {
            let noise = Packed { codes, scales };
            if let Ok(found) = read(&noise, elements) {
                prop_assert_eq!(pack(&found), noise);
            }
        }
    }
}
