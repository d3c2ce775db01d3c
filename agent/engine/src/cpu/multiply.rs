//! Owns the product of activations with weights, y = W·x for each row x: nearly all the time of a model.
//! Must never add in an order that depends on how many rows there are, on the threads or on the instruction set.
//!
//! A tile's sixteen outputs are the lanes of a vector. For every group of columns, the codes' products are summed
//! exactly in integers, then scaled and added to the output's f32 in the order of the groups. Several rows share the
//! unpacking of a tile; each has its own sums.

use crate::dtype::Dtype;

use super::lanes::{Kernel, LANES, Lanes};
use super::layout::{Layout, Offset, PLANE};
use super::matrix::Matrix;
use super::pool::Pool;
use super::quantised::{Group, Quantised};

/// Multiplications below which another thread does not pay for its waking.
const TASK_PRODUCTS: usize = 1 << 18;

/// `output[r] = matrix · input[r]` for every row r, both row-major.
///
/// # Panics
/// If the sizes do not fit.
pub fn multiply(pool: &Pool, matrix: &Matrix, input: &Quantised, output: &mut [f32]) {
    assert_eq!(matrix.columns(), input.columns(), "columns of the matrix, and of the rows");
    assert_eq!(output.len(), input.rows() * matrix.rows(), "outputs, and rows times rows");
    if output.is_empty() {
        return;
    }
    let least = TASK_PRODUCTS / (matrix.columns() * input.rows()) + 1;
    pool.spans(output, matrix.rows(), LANES, least, |span, rows| {
        let tiles = matrix.tiles(span.start);
        let bytes = matrix.tile_bytes();
        let set = pool.set();
        match matrix.dtype() {
            Dtype::F32 => set.run(Floats::<F32> { tiles, bytes, input, rows, element: F32 }),
            Dtype::F16 => set.run(Floats { tiles, bytes, input, rows, element: F16 }),
            Dtype::Bf16 => set.run(Floats { tiles, bytes, input, rows, element: Bf16 }),
            Dtype::Q4_0 => set.run(Codes { tiles, bytes, input, rows, format: Q4_0 }),
            Dtype::Q4_1 => set.run(Codes { tiles, bytes, input, rows, format: Q4_1 }),
            Dtype::Q5_0 => set.run(Codes { tiles, bytes, input, rows, format: Q5_0 }),
            Dtype::Q5_1 => set.run(Codes { tiles, bytes, input, rows, format: Q5_1 }),
            Dtype::Q8_0 => set.run(Codes { tiles, bytes, input, rows, format: Q8_0 }),
            Dtype::Q2K => set.run(Codes { tiles, bytes, input, rows, format: Q2K }),
            Dtype::Q3K => set.run(Codes { tiles, bytes, input, rows, format: Q3K }),
            Dtype::Q4K => set.run(Codes { tiles, bytes, input, rows, format: Q4K }),
            Dtype::Q5K => set.run(Codes { tiles, bytes, input, rows, format: Q5K }),
            Dtype::Q6K => set.run(Codes { tiles, bytes, input, rows, format: Q6K }),
        }
    });
}

/// A quantised type, known when the kernel is compiled.
trait Format: Copy {
    const LAYOUT: Layout;
}

macro_rules! formats {
    ($($name:ident),*) => {$(
        #[derive(Clone, Copy)]
        struct $name;

        impl Format for $name {
            const LAYOUT: Layout = match Layout::of(Dtype::$name) {
                Some(layout) => layout,
                None => panic!("floats have no codes"),
            };
        }
    )*};
}

formats!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K);

/// The product with quantised weights.
struct Codes<'a, 'o, F> {
    tiles: &'a [u8],
    /// Of one tile.
    bytes: usize,
    input: &'a Quantised,
    /// Outputs of these tiles, of each row.
    rows: &'a mut [&'o mut [f32]],
    format: F,
}

impl<F: Format> Kernel for Codes<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { tiles, bytes, input, rows, format } = self;
        let width = rows.first().map_or(0, |row| row.len());
        for (index, tile) in tiles.chunks_exact(bytes).take(width.div_ceil(LANES)).enumerate() {
            let mut first = 0;
            while L::MANY_REGISTERS && first + 8 <= rows.len() {
                several::<L, F, 8>(lanes, format, tile, input, rows, first, index);
                first += 8;
            }
            while first + 4 <= rows.len() {
                several::<L, F, 4>(lanes, format, tile, input, rows, first, index);
                first += 4;
            }
            while first < rows.len() {
                several::<L, F, 1>(lanes, format, tile, input, rows, first, index);
                first += 1;
            }
        }
    }
}

/// One tile with `R` rows.
#[inline(always)]
fn several<L: Lanes, F: Format, const R: usize>(
    lanes: L,
    _format: F,
    tile: &[u8],
    input: &Quantised,
    rows: &mut [&mut [f32]],
    first: usize,
    index: usize,
) {
    let layout = F::LAYOUT;
    let mut groups: [&[Group]; R] = [&[]; R];
    for (r, groups) in groups.iter_mut().enumerate() {
        *groups = input.groups(first + r);
    }
    let mut sums = [lanes.splat(0.0); R];
    let mut at = 0;
    for chunk in tile.chunks_exact(layout.chunk_bytes()) {
        let (head, units) = chunk.split_at(layout.head_bytes());
        for unit in units.chunks_exact(layout.unit_bytes()) {
            let mut here = [&groups[0][at]; R];
            for r in 1..R {
                here[r] = &groups[r][at];
            }
            self::unit::<L, F, R>(lanes, head, unit, here, &mut sums);
            at += 1;
        }
    }
    for r in 0..R {
        put(lanes, sums[r], &mut rows[first + r][index * LANES..]);
    }
}

/// Adds what a unit of 32 columns contributes to `R` rows.
#[inline(always)]
fn unit<L: Lanes, F: Format, const R: usize>(
    lanes: L,
    head: &[u8],
    unit: &[u8],
    groups: [&Group; R],
    sums: &mut [L::Floats; R],
) {
    let layout = F::LAYOUT;
    let (factors, planes) = unit.split_at(layout.factors_bytes());
    let planes = planes.as_chunks::<PLANE>().0;
    let mut products = start::<L, F, R>(lanes, groups, 0);
    // Not a loop: the shifts are constants only where the quad is one.
    macro_rules! quad {
        ($quad:literal) => {
            let codes = quad::<L, F>(lanes, planes, $quad);
            for r in 0..R {
                let by = groups[r].codes[$quad];
                products[r] = if layout.low + layout.high > 6 {
                    lanes.dot_wide(products[r], codes, by)
                } else {
                    lanes.dot(products[r], codes, by)
                };
            }
        };
    }
    quad!(0);
    quad!(1);
    quad!(2);
    quad!(3);
    if layout.groups == 2 {
        finish::<L, F, R>(lanes, head, factors, groups, 0, products, sums);
        products = start::<L, F, R>(lanes, groups, 1);
    }
    quad!(4);
    quad!(5);
    quad!(6);
    quad!(7);
    finish::<L, F, R>(lanes, head, factors, groups, layout.groups - 1, products, sums);
}

/// The codes of one quad: four columns of each row of the tile.
#[inline(always)]
fn quad<L: Lanes, F: Format>(lanes: L, planes: &[[u8; PLANE]], quad: usize) -> L::Bytes {
    let layout = F::LAYOUT;
    let (plane, shift) = layout.low_place(quad);
    let low = lanes.load_bytes(&planes[plane]);
    if layout.low == 8 {
        return low;
    }
    let low = lanes.shift_right_and(low, shift, u8::MAX >> (8 - layout.low));
    if layout.high == 0 {
        return low;
    }
    let (plane, shift) = layout.high_place(quad);
    let high = lanes.load_bytes(&planes[plane]);
    let mask = (u8::MAX >> (8 - layout.high)) << layout.low;
    let to = layout.low as u32;
    let high = if shift < to {
        lanes.shift_left_and(high, to - shift, mask)
    } else {
        lanes.shift_right_and(high, shift - to, mask)
    };
    lanes.or(low, high)
}

/// What the integer sums of a group begin with: the share of the constant zero.
#[inline(always)]
fn start<L: Lanes, F: Format, const R: usize>(lanes: L, groups: [&Group; R], half: usize) -> [L::Ints; R] {
    let mut products = [lanes.splat_int(0); R];
    if let Offset::ZeroBits(bits) = F::LAYOUT.offset {
        for r in 0..R {
            let sum =
                if F::LAYOUT.groups == 1 { groups[r].minus_sum } else { groups[r].minus_half_sums[half] };
            products[r] = lanes.shift_int(lanes.splat_int(sum), bits);
        }
    }
    products
}

/// Scales the integer sums of a group and adds them to the outputs.
#[inline(always)]
fn finish<L: Lanes, F: Format, const R: usize>(
    lanes: L,
    head: &[u8],
    factors: &[u8],
    groups: [&Group; R],
    half: usize,
    products: [L::Ints; R],
    sums: &mut [L::Floats; R],
) {
    let layout = F::LAYOUT;
    let scales = factor::<L, F>(lanes, head, factors, 0, half);
    for r in 0..R {
        let scale = lanes.mul(scales, lanes.splat(groups[r].scale));
        sums[r] = lanes.fma(scale, lanes.to_floats(products[r]), sums[r]);
    }
    if layout.offset == Offset::Minimum {
        let minimums = factor::<L, F>(lanes, head, factors, 1, half);
        for r in 0..R {
            let total = if layout.groups == 1 { groups[r].total } else { groups[r].half_totals[half] };
            sums[r] = lanes.fma(minimums, lanes.splat(total), sums[r]);
        }
    }
}

/// The scales (kind 0) or minimums (kind 1) of a group.
#[inline(always)]
fn factor<L: Lanes, F: Format>(lanes: L, head: &[u8], factors: &[u8], kind: usize, half: usize) -> L::Floats {
    let layout = F::LAYOUT;
    let index = kind * layout.groups + half;
    if layout.nested {
        let outer = lanes.load_half(&head.as_chunks().0[kind]);
        lanes.mul(outer, lanes.load_signed(&factors.as_chunks().0[index]))
    } else {
        lanes.load_half(&factors.as_chunks().0[index])
    }
}

/// A float type, known when the kernel is compiled.
trait Element: Copy {
    const BYTES: usize;

    fn load<L: Lanes>(lanes: L, column: &[u8]) -> L::Floats;
}

#[derive(Clone, Copy)]
struct F32;
#[derive(Clone, Copy)]
struct F16;
#[derive(Clone, Copy)]
struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, column: &[u8]) -> L::Floats {
        lanes.load_single(&column.as_chunks().0[0])
    }
}

impl Element for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, column: &[u8]) -> L::Floats {
        lanes.load_half(&column.as_chunks().0[0])
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, column: &[u8]) -> L::Floats {
        lanes.load_brain(&column.as_chunks().0[0])
    }
}

/// The product with float weights.
struct Floats<'a, 'o, E> {
    tiles: &'a [u8],
    /// Of one tile.
    bytes: usize,
    input: &'a Quantised,
    /// Outputs of these tiles, of each row.
    rows: &'a mut [&'o mut [f32]],
    element: E,
}

impl<E: Element> Kernel for Floats<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { tiles, bytes, input, rows, element } = self;
        let width = rows.first().map_or(0, |row| row.len());
        for (index, tile) in tiles.chunks_exact(bytes).take(width.div_ceil(LANES)).enumerate() {
            let mut first = 0;
            while L::MANY_REGISTERS && first + 4 <= rows.len() {
                several_floats::<L, E, 4>(lanes, element, tile, input, rows, first, index);
                first += 4;
            }
            while first < rows.len() {
                several_floats::<L, E, 1>(lanes, element, tile, input, rows, first, index);
                first += 1;
            }
        }
    }
}

/// Sums per output of a float product: column c goes to sum c mod 4, so that additions need not wait for each other.
const CHAINS: usize = 4;

/// One tile with `R` rows.
#[inline(always)]
fn several_floats<L: Lanes, E: Element, const R: usize>(
    lanes: L,
    _element: E,
    tile: &[u8],
    input: &Quantised,
    rows: &mut [&mut [f32]],
    first: usize,
    index: usize,
) {
    let mut values: [&[f32]; R] = [&[]; R];
    for (r, values) in values.iter_mut().enumerate() {
        *values = input.floats(first + r);
    }
    let mut sums = [[lanes.splat(0.0); CHAINS]; R];
    let (whole, rest) = tile.split_at(tile.len() - tile.len() % (CHAINS * LANES * E::BYTES));
    let mut at = 0;
    for columns in whole.chunks_exact(CHAINS * LANES * E::BYTES) {
        for chain in 0..CHAINS {
            let weights = E::load(lanes, &columns[chain * LANES * E::BYTES..][..LANES * E::BYTES]);
            for r in 0..R {
                sums[r][chain] = lanes.fma(weights, lanes.splat(values[r][at + chain]), sums[r][chain]);
            }
        }
        at += CHAINS;
    }
    for column in rest.chunks_exact(LANES * E::BYTES) {
        let weights = E::load(lanes, column);
        for r in 0..R {
            sums[r][0] = lanes.fma(weights, lanes.splat(values[r][at]), sums[r][0]);
        }
        at += 1;
    }
    for r in 0..R {
        let [a, b, c, d] = sums[r];
        put(lanes, lanes.add(lanes.add(a, b), lanes.add(c, d)), &mut rows[first + r][index * LANES..]);
    }
}

/// Stores the outputs of a tile, as many as there are rows.
#[inline(always)]
fn put<L: Lanes>(lanes: L, sums: L::Floats, to: &mut [f32]) {
    if let Some(to) = to.first_chunk_mut::<LANES>() {
        lanes.store(sums, to);
    } else {
        let mut all = [0.0; LANES];
        lanes.store(sums, &mut all);
        to.copy_from_slice(&all[..to.len()]);
    }
}

#[cfg(test)]
mod tests;
