//! Owns the matrices of a stage in the device's memory: how they are laid out, and getting them there.
//! Must never keep them in the host's.
//!
//! Weights stay quantised. A file's blocks are taken apart into planes that neighbouring threads read side by side:
//! codes, high bits of codes, and a scale (and a minimum) as f16 per group of 32 or 16. Every type becomes one of
//! six forms of a weight, `scale * code + minimum`. Scales are stored times 2^shift, chosen so that the largest
//! fills f16: the product of a K type's nested factors then keeps eleven bits, and no scale is subnormal on a device
//! that knows no such numbers.
//!
//! A binding may be limited to 128 MiB, so a large matrix is several parts, each some of its rows.

use half::f16;
use rayon::prelude::*;

use super::device::Device;
use super::kernels::{BYTES, Constant, FLOATS, NIBBLES};
use crate::cpu::pack::Block;
use crate::dtype::Dtype;
use crate::source::TensorInfo;

/// Columns of a block of the device.
pub(crate) const BLOCK: usize = 32;
/// Lanes that share a row of a matrix-vector product; the most spans of a row, see `matvec.wgsl`.
pub(crate) const LANES: u32 = 16;
/// Rows of a part: what one dispatch of matrix-vector products reaches.
const PART_ROWS_MAX: u64 = 1 << 18;

/// How weights lie on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// 4 bits and `high` more; `groups` scales per block, with minimums or around `zero`.
    Nibbles { high: u32, groups: u32, affine: bool, zero: u8 },
    /// 8 bits, one scale per block, around 128.
    Bytes,
    /// f32.
    Single,
    /// f16.
    Half,
    /// bf16.
    Brain,
}

impl Form {
    pub(crate) fn of(dtype: Dtype) -> Self {
        let nibbles = |high, groups, affine, zero| Self::Nibbles { high, groups, affine, zero };
        match dtype {
            Dtype::F32 => Self::Single,
            Dtype::F16 => Self::Half,
            Dtype::Bf16 => Self::Brain,
            Dtype::Q8_0 => Self::Bytes,
            Dtype::Q4_0 => nibbles(0, 1, false, 8),
            Dtype::Q4_1 | Dtype::Q4K => nibbles(0, 1, true, 0),
            Dtype::Q5_0 => nibbles(1, 1, false, 16),
            Dtype::Q5_1 | Dtype::Q5K => nibbles(1, 1, true, 0),
            Dtype::Q2K => nibbles(0, 2, true, 0),
            Dtype::Q3K => nibbles(0, 2, false, 4),
            Dtype::Q6K => nibbles(2, 2, false, 32),
        }
    }

    /// The kernel part that reads it, with its constants.
    pub(crate) fn kernel(self) -> (&'static str, Vec<(&'static str, Constant)>) {
        use Constant::{Real, Truth, Whole};
        let floats = |words, brain| (FLOATS, vec![("WORDS", Whole(words)), ("BRAIN", Truth(brain))]);
        match self {
            Self::Nibbles { high, groups, affine, zero } => (
                NIBBLES,
                vec![
                    ("HIGH", Whole(high)),
                    ("GROUPS", Whole(groups)),
                    ("AFFINE", Truth(affine)),
                    ("ZERO", Real(f32::from(zero))),
                ],
            ),
            Self::Bytes => (BYTES, Vec::new()),
            Self::Single => floats(2, false),
            Self::Half => floats(1, false),
            Self::Brain => floats(1, true),
        }
    }

    /// Words of codes, words of high bits and f16 factors of a block.
    const fn sizes(self) -> (usize, usize, usize) {
        match self {
            Self::Nibbles { high, groups, affine, .. } => {
                (4, high as usize, groups as usize * if affine { 2 } else { 1 })
            }
            Self::Bytes => (8, 0, 1),
            Self::Single => (32, 0, 0),
            Self::Half | Self::Brain => (16, 0, 0),
        }
    }
}

/// A matrix on the device.
pub(crate) struct Matrix {
    pub(crate) form: Form,
    /// Of 32 columns, in a row.
    pub(crate) blocks: u32,
    pub(crate) parts: Vec<Part>,
}

/// Some rows of a matrix, in one buffer.
pub(crate) struct Part {
    pub(crate) first: u32,
    pub(crate) rows: u32,
    /// 2^-shift.
    pub(crate) unshift: f32,
    buffer: wgpu::Buffer,
    /// Where codes, high bits and factors begin and how long they are, in bytes; an empty plane is bound as the
    /// first.
    planes: [(u64, u64); 3],
}

impl Part {
    /// The planes as bindings 2, 3 and 4 of the kernels.
    pub(crate) fn bindings(&self) -> [wgpu::BufferBinding<'_>; 3] {
        self.planes.map(|(offset, bytes)| {
            let (offset, bytes) = if bytes == 0 { self.planes[0] } else { (offset, bytes) };
            wgpu::BufferBinding { buffer: &self.buffer, offset, size: wgpu::BufferSize::new(bytes) }
        })
    }
}

impl Matrix {
    /// Puts the elements of a tensor, as long as `info` says, on the device.
    ///
    /// # Errors
    /// When they do not fit or the device fails, in words.
    pub(crate) fn load(device: &Device, name: &str, info: &TensorInfo, bytes: &[u8]) -> Result<Self, String> {
        let mismatch = || format!("tensor `{name}` is no {} by {} matrix", info.rows, info.columns);
        let row_bytes = info.dtype.row_bytes(info.columns).and_then(|bytes| usize::try_from(bytes).ok());
        let row_bytes = row_bytes.filter(|bytes| *bytes > 0).ok_or_else(mismatch)?;
        if info.bytes() != Some(bytes.len() as u64) {
            return Err(mismatch());
        }
        u32::try_from(info.rows).map_err(|_| mismatch())?;
        let blocks = u32::try_from(info.columns.div_ceil(BLOCK as u64)).map_err(|_| mismatch())?;
        let form = Form::of(info.dtype);
        let (codes, high, factors) = form.sizes();
        let laid_out = u64::from(blocks) * (4 * (codes + high) + 2 * factors) as u64;
        let gaps = 3 * device.alignment();
        let fit = device.binding_bytes_max().saturating_sub(gaps) / laid_out;
        let part_rows = usize::try_from(fit.min(PART_ROWS_MAX)).unwrap_or(0);
        if part_rows == 0 {
            return Err(format!(
                "a row of tensor `{name}` takes {laid_out} bytes, more than {} binds",
                device.name()
            ));
        }
        let mut parts = Vec::new();
        let mut first = 0;
        for part in bytes.chunks(part_rows * row_bytes) {
            let planes = Planes::of(form, info.dtype, blocks as usize, part, row_bytes);
            let part = planes.upload(device, name, first, (part.len() / row_bytes) as u32)?;
            first += part.rows;
            parts.push(part);
        }
        Ok(Self { form, blocks, parts })
    }

    /// Outputs.
    #[cfg(test)]
    pub(crate) fn rows(&self) -> u32 {
        self.parts.iter().map(|part| part.rows).sum()
    }
}

/// Blocks that are added in one go, of a row of so many columns.
pub(crate) const fn span(columns: u32) -> u32 {
    columns.div_ceil(BLOCK as u32).div_ceil(LANES)
}

/// Where block `at` of a row lies: `place` of the kernels.
fn place(at: usize, blocks: usize) -> usize {
    let span = blocks.div_ceil(LANES as usize);
    let spans = blocks.div_ceil(span);
    let short = blocks - (spans - 1) * span;
    let (lane, i) = (at / span, at % span);
    i * spans + lane + short - i.max(short)
}

/// Where element `i` of a row of so many columns lies in a row that products read: `turned_element` of the kernels.
pub(crate) fn turned(columns: u32, i: usize) -> usize {
    let (blocks, span) = (columns.div_ceil(BLOCK as u32) as usize, span(columns) as usize);
    let spans = blocks.div_ceil(span);
    let short = blocks - (spans - 1) * span;
    let (lane, row, k) = (i / BLOCK / span, i / BLOCK % span, i % BLOCK / 4);
    let wide = if row < short { spans } else { spans - 1 };
    4 * (8 * (row * spans + short - row.max(short)) + k * wide + lane) + i % 4
}

/// A part of a matrix, laid out for the device.
struct Planes {
    codes: Vec<u32>,
    high: Vec<u32>,
    /// f16
    factors: Vec<u16>,
    unshift: f32,
}

impl Planes {
    fn of(form: Form, dtype: Dtype, blocks: usize, bytes: &[u8], row_bytes: usize) -> Self {
        let rows = bytes.len() / row_bytes;
        let (codes, high, factors) = form.sizes();
        let mut made = Self {
            codes: vec![0; rows * blocks * codes],
            high: vec![0; rows * blocks * high],
            factors: Vec::new(),
            unshift: 1.0,
        };
        let mut reals = vec![0.0_f32; rows * blocks * factors];
        let half_shift = if form == Form::Half { shift(halves(bytes).map(f16::to_f32)) } else { 0 };
        // A plane that is empty still has one part for every row.
        let part = |words: usize| (blocks * words).max(1);
        made.high.resize(made.high.len().max(rows), 0);
        reals.resize(reals.len().max(rows), 0.0);
        made.codes
            .par_chunks_mut(part(codes))
            .zip(made.high.par_chunks_mut(part(high)))
            .zip(reals.par_chunks_mut(part(factors)))
            .zip(bytes.par_chunks(row_bytes))
            .for_each(|(((codes, high), factors), row)| {
                let mut out = Row { form, blocks, codes, high, factors };
                match form {
                    Form::Nibbles { .. } | Form::Bytes => out.quantised(dtype, row),
                    Form::Single => out.singles(row),
                    Form::Half => out.halves(halves(row).map(|half| scaled(half.to_f32(), half_shift))),
                    Form::Brain => out.halves(halves(row)),
                }
            });
        let shift = if factors == 0 { half_shift } else { shift(reals.iter().copied()) };
        made.unshift = power_of_two(-shift);
        if factors > 0 {
            made.factors = reals.into_par_iter().map(|real| scaled(real, shift).to_bits()).collect();
            made.factors.resize(made.factors.len().next_multiple_of(2), 0);
        }
        if high == 0 {
            made.high.clear();
        }
        made
    }

    fn upload(&self, device: &Device, name: &str, first: u32, rows: u32) -> Result<Part, String> {
        let contents: [&[u8]; 3] = [
            bytemuck::cast_slice(&self.codes),
            bytemuck::cast_slice(&self.high),
            bytemuck::cast_slice(&self.factors),
        ];
        let mut end = 0;
        let planes = contents.map(|content| {
            let begin = end;
            end = (begin + content.len() as u64).next_multiple_of(device.alignment());
            (begin, content.len() as u64)
        });
        let buffer = device.storage(name, end);
        device.check().map_err(|error| format!("no memory for tensor `{name}`: {error}"))?;
        for ((offset, _), content) in planes.iter().zip(contents) {
            device.upload(&buffer, *offset, content)?;
        }
        Ok(Part { first, rows, unshift: self.unshift, buffer, planes })
    }
}

/// A row of a matrix that is laid out.
struct Row<'a> {
    form: Form,
    blocks: usize,
    codes: &'a mut [u32],
    high: &'a mut [u32],
    factors: &'a mut [f32],
}

impl Row<'_> {
    fn quantised(&mut self, dtype: Dtype, row: &[u8]) {
        let mut block = Block::EMPTY;
        let parts = dtype.block_len() / BLOCK;
        for (number, bytes) in row.chunks_exact(dtype.block_bytes()).enumerate() {
            block.read(dtype, bytes);
            for part in 0..parts {
                let to = place(number * parts + part, self.blocks);
                self.put_codes(to, &block.codes[BLOCK * part..][..BLOCK]);
                self.put_factors(to, &block, part, dtype.block_len() > BLOCK);
            }
        }
    }

    fn put_codes(&mut self, to: usize, codes: &[u8]) {
        for (i, code) in codes.iter().enumerate() {
            let code = u32::from(*code);
            match self.form {
                Form::Bytes => self.codes[8 * to + i / 4] |= code << (8 * (i % 4)),
                Form::Nibbles { high, .. } => {
                    self.codes[4 * to + i / 8] |= (code & 15) << (4 * (i % 8));
                    if high > 0 {
                        let bit = high as usize * i;
                        self.high[high as usize * to + bit / 32] |= (code >> 4) << (bit % 32);
                    }
                }
                Form::Single | Form::Half | Form::Brain => {}
            }
        }
    }

    fn put_factors(&mut self, to: usize, block: &Block, part: usize, nested: bool) {
        let (groups, affine) = match self.form {
            Form::Nibbles { groups, affine, .. } => (groups as usize, affine),
            Form::Bytes | Form::Single | Form::Half | Form::Brain => (1, false),
        };
        let (scale, minimum) = (f16::from_bits(block.scale).to_f32(), f16::from_bits(block.minimum).to_f32());
        for group in 0..groups {
            let inner = groups * part + group;
            let (inner_scale, inner_minimum) = if nested {
                (f32::from(block.scales[inner]), f32::from(block.minimums[inner]))
            } else {
                (1.0, 1.0)
            };
            let at = groups * to + group;
            if affine {
                self.factors[2 * at] = scale * inner_scale;
                self.factors[2 * at + 1] = minimum * inner_minimum;
            } else {
                self.factors[at] = scale * inner_scale;
            }
        }
    }

    fn singles(&mut self, row: &[u8]) {
        for (i, value) in row.chunks_exact(4).enumerate() {
            let to = place(i / BLOCK, self.blocks);
            self.codes[BLOCK * to + i % BLOCK] = u32::from_le_bytes([value[0], value[1], value[2], value[3]]);
        }
    }

    fn halves(&mut self, row: impl Iterator<Item = f16>) {
        for (i, value) in row.enumerate() {
            let to = place(i / BLOCK, self.blocks);
            self.codes[16 * to + i % BLOCK / 2] |= u32::from(value.to_bits()) << (16 * (i % 2));
        }
    }
}

/// Two bytes each, whatever they stand for.
fn halves(bytes: &[u8]) -> impl Iterator<Item = f16> {
    bytes.chunks_exact(2).map(|half| f16::from_bits(u16::from_le_bytes([half[0], half[1]])))
}

/// The power of two that brings the largest magnitude to 2^14 to 2^15; 0 if there is none.
fn shift(values: impl Iterator<Item = f32>) -> i32 {
    let largest = values.fold(0.0_f32, |largest, value| largest.max(value.abs()));
    if largest > 0.0 && largest.is_finite() { 14 - largest.log2().floor() as i32 } else { 0 }
}

fn scaled(value: f32, shift: i32) -> f16 {
    f16::from_f32(value * power_of_two(shift))
}

fn power_of_two(exponent: i32) -> f32 {
    (exponent as f32).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_and_element_has_its_own_place() {
        for blocks in 1..400 {
            let mut places: Vec<usize> = (0..blocks).map(|at| place(at, blocks)).collect();
            places.sort_unstable();
            assert_eq!(places, (0..blocks).collect::<Vec<_>>());
            let columns = BLOCK * blocks;
            let mut elements: Vec<usize> = (0..columns).map(|i| turned(columns as u32, i)).collect();
            elements.sort_unstable();
            assert_eq!(elements, (0..columns).collect::<Vec<_>>());
        }
    }
}
