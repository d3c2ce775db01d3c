//! Owns the vector registers: sixteen lanes of f32 or i32, on whatever instruction set the machine has.
//! Must never let two instruction sets differ in a bit: every operation here is exact, or rounds once as IEEE 754 says.
//!
//! A kernel is written once over [`Lanes`] and compiled once per instruction set: [`InstructionSet::run`] calls it
//! inside a function that has the features enabled. A value of a type that implements [`Lanes`] is the proof that the
//! machine has them, so that its methods are safe to call.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512;
use scalar::Scalar;

/// Lanes of a vector, and so the rows of a tile and the positions of a page.
pub const LANES: usize = 16;

/// Operations on sixteen lanes. Where an operand is not a number, so is the result, unless stated otherwise.
pub(crate) trait Lanes: Copy {
    /// Sixteen f32.
    type Floats: Copy;
    /// Sixteen i32.
    type Ints: Copy;
    /// Sixty-four bytes, four to a lane.
    type Bytes: Copy;

    /// Whether some twenty vectors of sixteen lanes stay in registers.
    const MANY_REGISTERS: bool;

    /// The same value in all lanes.
    fn splat(self, value: f32) -> Self::Floats;
    /// From memory.
    fn load(self, values: &[f32; LANES]) -> Self::Floats;
    /// To memory.
    fn store(self, values: Self::Floats, to: &mut [f32; LANES]);
    /// From f16 as two little-endian bytes each.
    fn load_half(self, bytes: &[u8; 2 * LANES]) -> Self::Floats;
    /// From f16.
    fn load_half_words(self, words: &[u16; LANES]) -> Self::Floats;
    /// To f16, rounding to the nearest, ties to even.
    fn store_half_words(self, values: Self::Floats, to: &mut [u16; LANES]);
    /// From bf16 as two little-endian bytes each.
    fn load_brain(self, bytes: &[u8; 2 * LANES]) -> Self::Floats;
    /// From f32 as four little-endian bytes each.
    fn load_single(self, bytes: &[u8; 4 * LANES]) -> Self::Floats;
    /// From signed bytes.
    fn load_signed(self, bytes: &[u8; LANES]) -> Self::Floats;

    /// a + b
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a − b
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a · b
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a / b
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a · b + c, rounded once
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// a if a > b, else b; so b if either is not a number.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a if a < b, else b; so b if either is not a number.
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// To the nearest whole number, ties to even.
    fn round(self, a: Self::Floats) -> Self::Floats;
    /// 2^a for whole a from −126 to 127; anything else gives anything.
    fn power_of_two(self, a: Self::Floats) -> Self::Floats;
    /// Bits of |a| as integers: their order is that of |a|, with what is not a number above all.
    fn magnitude(self, a: Self::Floats) -> Self::Ints;
    /// Whole numbers from −128 to 127 as signed bytes; anything else gives anything.
    fn store_signed(self, a: Self::Floats, to: &mut [i8; LANES]);

    /// The same value in all lanes.
    fn splat_int(self, value: i32) -> Self::Ints;
    /// The greater of each pair.
    fn max_int(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// a · 2^by
    fn shift_int(self, a: Self::Ints, by: u32) -> Self::Ints;
    /// The nearest f32.
    fn to_floats(self, a: Self::Ints) -> Self::Floats;
    /// To memory.
    fn store_ints(self, a: Self::Ints, to: &mut [i32; LANES]);

    /// From memory.
    fn load_bytes(self, bytes: &[u8; 4 * LANES]) -> Self::Bytes;
    /// `(byte >> right) & mask` of every byte; `mask` keeps no bit that a neighbour could have shifted in.
    fn shift_right_and(self, bytes: Self::Bytes, right: u32, mask: u8) -> Self::Bytes;
    /// `(byte << left) & mask` of every byte; `mask` keeps no bit that a neighbour could have shifted in.
    fn shift_left_and(self, bytes: Self::Bytes, left: u32, mask: u8) -> Self::Bytes;
    /// a | b
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Adds, in every lane, the products of four unsigned bytes below 64 with the four signed bytes of `by`.
    fn dot(self, sum: Self::Ints, bytes: Self::Bytes, by: i32) -> Self::Ints;
    /// The same for any unsigned bytes.
    fn dot_wide(self, sum: Self::Ints, bytes: Self::Bytes, by: i32) -> Self::Ints;

    /// The sum of all lanes, always in the same order.
    #[inline(always)]
    fn sum(self, a: Self::Floats) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        lanes[0]
    }

    /// The greatest lane.
    #[inline(always)]
    fn greatest(self, a: Self::Floats) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        let mut greatest = lanes[0];
        for lane in lanes {
            greatest = if lane > greatest { lane } else { greatest };
        }
        greatest
    }

    /// The greatest lane.
    #[inline(always)]
    fn greatest_int(self, a: Self::Ints) -> i32 {
        let mut lanes = [0; LANES];
        self.store_ints(a, &mut lanes);
        let mut greatest = lanes[0];
        for lane in lanes {
            greatest = greatest.max(lane);
        }
        greatest
    }
}

/// What is compiled once per instruction set. `run` and all that it calls with vectors must be `#[inline(always)]`.
pub(crate) trait Kernel {
    /// What it gives back.
    type Output;

    /// Does the work.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Instructions that this machine has; there is no other way to make one.
#[derive(Clone, Copy, Debug)]
pub struct InstructionSet(Kind);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl InstructionSet {
    /// The fastest one here, or the one that the environment variable `SKEIN_CPU` names (`scalar`, `avx2`, `avx512`)
    /// if this machine has it.
    #[must_use]
    pub fn detect() -> Self {
        static FOUND: OnceLock<InstructionSet> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let available = Self::available();
            let wanted = std::env::var("SKEIN_CPU").unwrap_or_default();
            let named = available.iter().find(|set| set.name() == wanted);
            named.or(available.last()).copied().unwrap_or(Self(Kind::Scalar(Scalar)))
        })
    }

    /// All of this machine, the slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let all = [
            Some(Kind::Scalar(Scalar)),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Kind::Avx2),
            #[cfg(target_arch = "x86_64")]
            Avx512::detect().map(Kind::Avx512),
        ];
        all.into_iter().flatten().map(Self).collect()
    }

    /// As `SKEIN_CPU` names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
        }
    }

    /// Runs a kernel with these instructions.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Kind::Scalar(lanes) => kernel.run(lanes),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(lanes) => lanes.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(lanes) => lanes.run(kernel),
        }
    }
}
