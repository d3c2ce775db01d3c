//! Owns activations as the products take them: groups of 32 in signed bytes, and as they were for float weights.
//! Must never allocate in the steady state: one value of it serves all products of a step.

use super::lanes::{InstructionSet, Kernel, LANES, Lanes};
use super::layout::UNIT;

/// Below this, a group counts as zero: its reciprocal would not be finite.
const SMALLEST: f32 = 1e-30;

/// A group of 32 activations: element i is `scale · codes[i]`. One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Group {
    /// Signed bytes, four to a word, the first lowest.
    pub(crate) codes: [i32; UNIT / 4],
    /// What a code of one stands for.
    pub(crate) scale: f32,
    /// Minus the sum of the codes.
    pub(crate) minus_sum: i32,
    /// The same of each half.
    pub(crate) minus_half_sums: [i32; 2],
    /// The sum of the codes times the scale.
    pub(crate) total: f32,
    /// The same of each half.
    pub(crate) half_totals: [f32; 2],
}

impl Group {
    const ZERO: Self = Self {
        codes: [0; UNIT / 4],
        scale: 0.0,
        minus_sum: 0,
        minus_half_sums: [0; 2],
        total: 0.0,
        half_totals: [0.0; 2],
    };
}

/// Rows of activations, quantised to eight bits and as f32.
#[derive(Debug, Default)]
pub struct Quantised {
    columns: usize,
    groups: Vec<Group>,
    floats: Vec<f32>,
}

impl Quantised {
    /// Replaces what it holds by these rows of `columns` elements.
    ///
    /// # Panics
    /// If `values` is no whole number of rows.
    pub fn fill(&mut self, set: InstructionSet, values: &[f32], columns: usize) {
        assert!(columns > 0 && values.len().is_multiple_of(columns), "{} by {columns}", values.len());
        self.columns = columns;
        self.floats.clear();
        self.floats.extend_from_slice(values);
        self.groups.clear();
        self.groups.resize(self.rows() * columns.div_ceil(UNIT), Group::ZERO);
        set.run(Fill { columns, values, groups: &mut self.groups });
    }

    /// How many rows it holds.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.floats.len().checked_div(self.columns).unwrap_or(0)
    }

    /// Elements of each row.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The groups of a row.
    pub(crate) fn groups(&self, row: usize) -> &[Group] {
        let groups = self.columns.div_ceil(UNIT);
        &self.groups[row * groups..][..groups]
    }

    /// A row as it was given.
    pub(crate) fn floats(&self, row: usize) -> &[f32] {
        &self.floats[row * self.columns..][..self.columns]
    }
}

struct Fill<'a> {
    columns: usize,
    values: &'a [f32],
    groups: &'a mut [Group],
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let rows = self.values.chunks_exact(self.columns);
        let groups = self.groups.chunks_exact_mut(self.columns.div_ceil(UNIT));
        for (row, groups) in rows.zip(groups) {
            let (whole, rest) = row.as_chunks::<UNIT>();
            for (values, group) in whole.iter().zip(&mut *groups) {
                *group = quantise(lanes, values);
            }
            if let Some(last) = groups.last_mut()
                && !rest.is_empty()
            {
                let mut padded = [0.0; UNIT];
                padded[..rest.len()].copy_from_slice(rest);
                *last = quantise(lanes, &padded);
            }
        }
    }
}

#[inline(always)]
fn quantise<L: Lanes>(lanes: L, values: &[f32; UNIT]) -> Group {
    let halves = values.as_chunks::<LANES>().0;
    let (first, second) = (lanes.load(&halves[0]), lanes.load(&halves[1]));
    let greatest = lanes.greatest_int(lanes.max_int(lanes.magnitude(first), lanes.magnitude(second)));
    // What is not a number is the greatest of all and so makes the scale, and with it every product, the same.
    let greatest = f32::from_bits(greatest.cast_unsigned());
    if greatest < SMALLEST {
        return Group::ZERO;
    }
    let (scale, reciprocal) = (greatest / 127.0, 127.0 / greatest);
    let mut codes = [[0; LANES]; 2];
    let factor = lanes.splat(reciprocal);
    lanes.store_signed(lanes.round(lanes.mul(first, factor)), &mut codes[0]);
    lanes.store_signed(lanes.round(lanes.mul(second, factor)), &mut codes[1]);

    let mut group = Group { scale, ..Group::ZERO };
    for (half, codes) in codes.iter().enumerate() {
        let mut sum = 0;
        for quad in 0..4 {
            let four = [0, 1, 2, 3].map(|i| codes[4 * quad + i]);
            sum += four.iter().map(|code| i32::from(*code)).sum::<i32>();
            group.codes[4 * half + quad] = i32::from_le_bytes(four.map(i8::cast_unsigned));
        }
        group.minus_half_sums[half] = -sum;
        group.half_totals[half] = scale * sum as f32;
    }
    group.minus_sum = group.minus_half_sums[0] + group.minus_half_sums[1];
    group.total = scale * -group.minus_sum as f32;
    group
}
