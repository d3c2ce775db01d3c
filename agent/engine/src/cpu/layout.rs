//! Owns how quantised weights lie in memory: tiles of sixteen rows, so that a vector holds one column group of all.
//! Must never know how files lay them out.
//!
//! A tile is a sequence of chunks, a chunk of units, a unit of 32 columns × 16 rows: its factors, then its codes.
//! Codes are unsigned, 2, 4 or 8 low bits and 0, 1 or 2 high bits, in planes of 64 bytes. Byte `4 · row + column % 4`
//! of a plane belongs to that row of the tile, and bits within it to `column / 4`, from 0 to 7, the *quad*. So a
//! plane shifted and masked is the operand of a dot product: four columns of each of sixteen rows.
//!
//! A weight is `scale · code + minimum`, or `scale · (code − zero)` with a constant zero. Factors are f16, sixteen to
//! a group of 32 or 16 columns; where they are nested, a chunk is eight units, begins with f16 factors, and the groups'
//! own are signed bytes to multiply those by: exactly the two levels of the K-quants.

use crate::dtype::Dtype;

use super::lanes::LANES;

/// Columns of a unit.
pub(crate) const UNIT: usize = 32;
/// Bytes of a plane: one bit or more of four columns of every row.
pub(crate) const PLANE: usize = 4 * LANES;

/// What is subtracted from or added to the scaled code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offset {
    /// A factor like the scale.
    Minimum,
    /// Codes count from two to this power.
    ZeroBits(u32),
}

/// The layout of one type of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Low bits of a code: 2, 4 or 8.
    pub(crate) low: usize,
    /// High bits: 0, 1 or 2.
    pub(crate) high: usize,
    /// Groups of a unit, each with its own factors: 1 or 2.
    pub(crate) groups: usize,
    /// Whether factors have two levels.
    pub(crate) nested: bool,
    /// Where codes count from.
    pub(crate) offset: Offset,
}

impl Layout {
    /// The layout of a type; `None` for floats.
    pub(crate) const fn of(dtype: Dtype) -> Option<Self> {
        let (low, high, groups, nested, offset) = match dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => return None,
            Dtype::Q4_0 => (4, 0, 1, false, Offset::ZeroBits(3)),
            Dtype::Q4_1 => (4, 0, 1, false, Offset::Minimum),
            Dtype::Q5_0 => (4, 1, 1, false, Offset::ZeroBits(4)),
            Dtype::Q5_1 => (4, 1, 1, false, Offset::Minimum),
            Dtype::Q8_0 => (8, 0, 1, false, Offset::ZeroBits(7)),
            Dtype::Q2K => (2, 0, 2, true, Offset::Minimum),
            Dtype::Q3K => (2, 1, 2, true, Offset::ZeroBits(2)),
            Dtype::Q4K => (4, 0, 1, true, Offset::Minimum),
            Dtype::Q5K => (4, 1, 1, true, Offset::Minimum),
            Dtype::Q6K => (4, 2, 2, true, Offset::ZeroBits(5)),
        };
        Some(Self { low, high, groups, nested, offset })
    }

    /// 2 with a minimum, else 1.
    pub(crate) const fn factors(self) -> usize {
        match self.offset {
            Offset::Minimum => 2,
            Offset::ZeroBits(_) => 1,
        }
    }

    /// Bytes of the factors that begin a chunk.
    pub(crate) const fn head_bytes(self) -> usize {
        if self.nested { self.factors() * 2 * LANES } else { 0 }
    }

    /// Units of a chunk.
    pub(crate) const fn units(self) -> usize {
        if self.nested { 8 } else { 1 }
    }

    /// Bytes of one factor of one group of all rows.
    pub(crate) const fn factor_bytes(self) -> usize {
        if self.nested { LANES } else { 2 * LANES }
    }

    /// Bytes of the factors that begin a unit: the scales of its groups, then their minimums.
    pub(crate) const fn factors_bytes(self) -> usize {
        self.factors() * self.groups * self.factor_bytes()
    }

    /// Bytes of a unit.
    pub(crate) const fn unit_bytes(self) -> usize {
        self.factors_bytes() + PLANE * (self.low + self.high)
    }

    /// Bytes of a chunk.
    pub(crate) const fn chunk_bytes(self) -> usize {
        self.head_bytes() + self.units() * self.unit_bytes()
    }

    /// Columns of a chunk.
    pub(crate) const fn chunk_columns(self) -> usize {
        self.units() * UNIT
    }

    /// Where the low bits of a quad are: plane, and shift.
    pub(crate) const fn low_place(self, quad: usize) -> (usize, u32) {
        (quad % self.low, (self.low * (quad / self.low)) as u32)
    }

    /// Where the high bits of a quad are, if any: plane, and shift.
    pub(crate) const fn high_place(self, quad: usize) -> (usize, u32) {
        (self.low + quad % self.high, (self.high * (quad / self.high)) as u32)
    }

    /// Puts a code into the planes of a unit, which were zero.
    pub(crate) fn put(self, planes: &mut [u8], row: usize, column: usize, code: u8) {
        let (quad, byte) = (column / 4, 4 * row + column % 4);
        let (plane, shift) = self.low_place(quad);
        let low_mask = u8::MAX >> (8 - self.low);
        planes[plane * PLANE + byte] |= (code & low_mask) << shift;
        if self.high > 0 {
            let (plane, shift) = self.high_place(quad);
            planes[plane * PLANE + byte] |= (code >> self.low) << shift;
        }
    }

    /// Takes it out again.
    pub(crate) fn get(self, planes: &[u8], row: usize, column: usize) -> u8 {
        let (quad, byte) = (column / 4, 4 * row + column % 4);
        let bits = |(plane, shift): (usize, u32), count: usize| {
            (planes[plane * PLANE + byte] >> shift) & (u8::MAX >> (8 - count))
        };
        let low = bits(self.low_place(quad), self.low);
        if self.high == 0 { low } else { low | bits(self.high_place(quad), self.high) << self.low }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back_from_its_place() {
        for dtype in [Dtype::Q4_0, Dtype::Q5_1, Dtype::Q8_0, Dtype::Q2K, Dtype::Q3K, Dtype::Q6K] {
            let layout = Layout::of(dtype).unwrap();
            let mut planes = vec![0; PLANE * (layout.low + layout.high)];
            let code = |row: usize, column: usize| {
                ((row * 37 + column * 101 + 13) % (1 << (layout.low + layout.high))) as u8
            };
            for row in 0..LANES {
                for column in 0..UNIT {
                    layout.put(&mut planes, row, column, code(row, column));
                }
            }
            for row in 0..LANES {
                for column in 0..UNIT {
                    assert_eq!(
                        layout.get(&planes, row, column),
                        code(row, column),
                        "{dtype:?} {row} {column}"
                    );
                }
            }
        }
    }
}
