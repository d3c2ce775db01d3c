//! Owns the making of blocks: rounding to the nearest, as ggml's reference does, and noise in the shape of blocks.
//! Must never be used to shrink a large model: better ways search for scales that lose less.

use half::{bf16, f16};

use super::Dtype;

/// Turns numbers into whole blocks, for small models made here and for tests. `None` for the K types, which have no
/// simple rounding, and unless `values` are whole blocks.
#[must_use]
pub fn quantize(dtype: Dtype, values: &[f32]) -> Option<Vec<u8>> {
    dtype.row_bytes(values.len() as u64)?;
    let (blocks, _) = values.as_chunks::<32>();
    match dtype {
        Dtype::F32 => Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Dtype::F16 => Some(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()),
        Dtype::Bf16 => Some(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()),
        Dtype::Q4_0 => Some(blocks.iter().flat_map(|block| offset_block(block, 4)).collect()),
        Dtype::Q5_0 => Some(blocks.iter().flat_map(|block| offset_block(block, 5)).collect()),
        Dtype::Q4_1 => Some(blocks.iter().flat_map(|block| minimum_block(block, 4)).collect()),
        Dtype::Q5_1 => Some(blocks.iter().flat_map(|block| minimum_block(block, 5)).collect()),
        Dtype::Q8_0 => Some(blocks.iter().flat_map(byte_block).collect()),
        Dtype::Q2K | Dtype::Q3K | Dtype::Q4K | Dtype::Q5K | Dtype::Q6K => None,
    }
}

/// Valid blocks of any type, whose elements lie between -2 and 2 and depend on `seed` alone; for tests and
/// benchmarks. `None` unless `elements` are whole blocks.
#[must_use]
pub fn noise(dtype: Dtype, elements: usize, seed: u64) -> Option<Vec<u8>> {
    let length = usize::try_from(dtype.row_bytes(elements as u64)?).ok()?;
    let mut random = Random(seed);
    let values = dtype.block_len() == 1;
    if values {
        let values: Vec<f32> = (0..elements).map(|_| 2.0 * random.unit() - 1.0).collect();
        return quantize(dtype, &values);
    }
    let mut bytes: Vec<u8> = (0..length).map(|_| random.next().to_le_bytes()[7]).collect();
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        for (at, most) in scales(dtype) {
            let scale = f16::from_f32(most * (0.5 + 0.5 * random.unit()));
            block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    Some(bytes)
}

/// Where the f16 scales and minima of a block are, and how large they are where the elements reach about ±1.
const fn scales(dtype: Dtype) -> &'static [(usize, f32)] {
    match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => &[],
        Dtype::Q4_0 => &[(0, 1.0 / 8.0)],
        Dtype::Q4_1 => &[(0, 2.0 / 15.0), (2, -1.0)],
        Dtype::Q5_0 => &[(0, 1.0 / 16.0)],
        Dtype::Q5_1 => &[(0, 2.0 / 31.0), (2, -1.0)],
        Dtype::Q8_0 => &[(0, 1.0 / 128.0)],
        Dtype::Q2K => &[(80, 2.0 / 45.0), (82, 1.0 / 15.0)],
        Dtype::Q3K => &[(108, 1.0 / 128.0)],
        Dtype::Q4K => &[(0, 2.0 / 945.0), (2, 1.0 / 63.0)],
        Dtype::Q5K => &[(0, 2.0 / 1_953.0), (2, 1.0 / 63.0)],
        Dtype::Q6K => &[(208, 1.0 / 4_096.0)],
    }
}

/// A scale by the value furthest from zero, which becomes the lowest integer; integers offset to be positive.
fn offset_block(values: &[f32; 32], bits: u32) -> Vec<u8> {
    let middle = (1 << (bits - 1)) as f32;
    let furthest =
        values.iter().fold(0.0_f32, |most, value| if value.abs() > most.abs() { *value } else { most });
    let scale = furthest / -middle;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    pack(&[scale], values.map(|value| value * inverse + middle + 0.5), bits)
}

/// A scale by the distance of the least from the greatest value.
fn minimum_block(values: &[f32; 32], bits: u32) -> Vec<u8> {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (most - least) / ((1 << bits) - 1) as f32;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    pack(&[scale, least], values.map(|value| (value - least) * inverse + 0.5), bits)
}

fn byte_block(values: &[f32; 32]) -> Vec<u8> {
    let furthest = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let scale = furthest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut block = f16::from_f32(scale).to_le_bytes().to_vec();
    // The cast saturates, and rounding came before it.
    block.extend(values.map(|value| ((value * inverse).round() as i8).cast_unsigned()));
    block
}

/// Scales as f16, fifth bits if there are any, then nibbles. Integers are cut, not rounded.
fn pack(scales: &[f32], integers: [f32; 32], bits: u32) -> Vec<u8> {
    let most = (1 << bits) - 1;
    let integers = integers.map(|value| (value as u8).min(most));
    let mut block: Vec<u8> = scales.iter().flat_map(|scale| f16::from_f32(*scale).to_le_bytes()).collect();
    if bits == 5 {
        let fifths = (0..32).fold(0_u32, |word, index| word | u32::from(integers[index] >> 4) << index);
        block.extend(fifths.to_le_bytes());
    }
    block.extend((0..16).map(|index| integers[index] & 15 | integers[index + 16] << 4));
    block
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// From 0 to below 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }
}
