//! Owns a weight matrix in memory: packed once at load into tiles of sixteen rows, and read back a row at a time.
//! Must never hold the file's bytes besides its own.

use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::source::TensorInfo;

use super::lanes::LANES;
use super::layout::{Layout, Offset, PLANE, UNIT};
use super::pack::Block;

/// What tiles are aligned to: a cache line.
const ALIGNMENT: usize = 64;

/// Weights, ready to be multiplied with.
#[derive(Debug)]
pub struct Matrix {
    dtype: Dtype,
    rows: usize,
    columns: usize,
    tile_bytes: usize,
    /// Tiles one after the other, the last padded with zeros, from `start` on.
    bytes: Vec<u8>,
    start: usize,
}

impl Matrix {
    /// Packs the elements of a tensor as files hold them.
    ///
    /// # Errors
    /// In words, if the bytes are not those of such a tensor.
    pub fn pack(info: TensorInfo, elements: &[u8]) -> Result<Self, String> {
        let whole = |value: u64| usize::try_from(value).map_err(|_| format!("{value} is too large"));
        let (rows, columns) = (whole(info.rows)?, whole(info.columns)?);
        let expected = info.bytes().ok_or_else(|| {
            format!("{columns} columns of {} are no whole number of blocks", info.dtype.name())
        })?;
        if rows == 0 || columns == 0 || whole(expected)? != elements.len() {
            let name = info.dtype.name();
            return Err(format!("{} bytes are no {rows} × {columns} of {name}", elements.len()));
        }
        let tile_bytes = match Layout::of(info.dtype) {
            Some(layout) => columns / layout.chunk_columns() * layout.chunk_bytes(),
            None => columns * info.dtype.block_bytes() * LANES,
        };
        let tiles = rows.div_ceil(LANES);
        let bytes = vec![0; tiles * tile_bytes + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let mut matrix = Self { dtype: info.dtype, rows, columns, tile_bytes, bytes, start };

        let row_bytes = elements.len() / rows;
        let tiles = matrix.bytes[start..].chunks_exact_mut(tile_bytes);
        for (tile, rows) in tiles.zip(elements.chunks(LANES * row_bytes)) {
            for (row, elements) in rows.chunks_exact(row_bytes).enumerate() {
                match Layout::of(info.dtype) {
                    Some(layout) => pack_row(layout, info.dtype, elements, row, tile),
                    None => interleave(info.dtype.block_bytes(), elements, row, tile),
                }
            }
        }
        Ok(matrix)
    }

    /// Outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How the elements were stored in the file.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes that it takes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The tiles of the rows from `first` (a multiple of sixteen) on.
    pub(crate) fn tiles(&self, first: usize) -> &[u8] {
        let tiles = self.rows.div_ceil(LANES);
        &self.bytes[self.start..][..tiles * self.tile_bytes][first / LANES * self.tile_bytes..]
    }

    /// Bytes of sixteen rows.
    pub(crate) fn tile_bytes(&self) -> usize {
        self.tile_bytes
    }

    /// Writes one row as f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as a row.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.rows && out.len() == self.columns, "row {index} of {}", self.rows);
        let (tile, row) = (self.tiles(index / LANES * LANES), index % LANES);
        let element = |column: usize, bytes: usize| &tile[(column * LANES + row) * bytes..][..bytes];
        match Layout::of(self.dtype) {
            Some(layout) => unpack_row(layout, tile, row, out),
            None => {
                for (column, value) in out.iter_mut().enumerate() {
                    *value = match *element(column, self.dtype.block_bytes()) {
                        [a, b] if self.dtype == Dtype::F16 => f16::from_le_bytes([a, b]).to_f32(),
                        [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
                        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                        _ => 0.0,
                    };
                }
            }
        }
    }
}

/// Spreads a row of floats over its tile: one element of each row, column after column.
fn interleave(bytes: usize, elements: &[u8], row: usize, tile: &mut [u8]) {
    for (element, column) in elements.chunks_exact(bytes).zip(tile.chunks_exact_mut(bytes * LANES)) {
        column[row * bytes..][..bytes].copy_from_slice(element);
    }
}

fn pack_row(layout: Layout, dtype: Dtype, elements: &[u8], row: usize, tile: &mut [u8]) {
    let mut block = Block::EMPTY;
    let blocks = elements.chunks_exact(dtype.block_bytes());
    for (bytes, chunk) in blocks.zip(tile.chunks_exact_mut(layout.chunk_bytes())) {
        block.read(dtype, bytes);
        let halves = [block.scale, block.minimum];
        let (head, units) = chunk.split_at_mut(layout.head_bytes());
        put_halves(&halves, row, head);
        for (index, unit) in units.chunks_exact_mut(layout.unit_bytes()).enumerate() {
            let (factors, planes) = unit.split_at_mut(layout.factors_bytes());
            if layout.nested {
                for (kind, values) in [&block.scales, &block.minimums].into_iter().enumerate() {
                    for group in 0..layout.groups {
                        let at = (kind * layout.groups + group) * LANES + row;
                        if let Some(factor) = factors.get_mut(at) {
                            *factor = values[index * layout.groups + group].cast_unsigned();
                        }
                    }
                }
            } else {
                put_halves(&halves, row, factors);
            }
            for (column, code) in block.codes[index * UNIT..][..UNIT].iter().enumerate() {
                layout.put(planes, row, column, *code);
            }
        }
    }
}

/// As many of the two factors as there is room for.
fn put_halves(halves: &[u16; 2], row: usize, to: &mut [u8]) {
    for (half, lanes) in halves.iter().zip(to.chunks_exact_mut(2 * LANES)) {
        lanes[2 * row..][..2].copy_from_slice(&half.to_le_bytes());
    }
}

fn unpack_row(layout: Layout, tile: &[u8], row: usize, out: &mut [f32]) {
    let half = |bytes: &[u8], index: usize| {
        let at = 2 * (index * LANES + row);
        f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
    };
    let chunks = tile.chunks_exact(layout.chunk_bytes());
    for (chunk, out) in chunks.zip(out.chunks_exact_mut(layout.chunk_columns())) {
        let (head, units) = chunk.split_at(layout.head_bytes());
        for (unit, out) in units.chunks_exact(layout.unit_bytes()).zip(out.chunks_exact_mut(UNIT)) {
            let (factors, planes) = unit.split_at(layout.factors_bytes());
            debug_assert_eq!(planes.len(), PLANE * (layout.low + layout.high));
            let factor = |kind: usize, column: usize| {
                let index = kind * layout.groups + column * layout.groups / UNIT;
                if layout.nested {
                    half(head, kind) * f32::from(factors[index * LANES + row].cast_signed())
                } else {
                    half(factors, index)
                }
            };
            for (column, value) in out.iter_mut().enumerate() {
                let code = f32::from(layout.get(planes, row, column));
                *value = match layout.offset {
                    Offset::Minimum => factor(0, column) * code + factor(1, column),
                    Offset::ZeroBits(bits) => factor(0, column) * (code - (1_u32 << bits) as f32),
                };
            }
        }
    }
}
