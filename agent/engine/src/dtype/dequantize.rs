//! Owns what each block means, as ggml's reference defines it, in the same order of roundings.
//! Must never be fast at the price of being plain: kernels are tested against it.

use half::{bf16, f16};

use super::Dtype;

/// The bytes are not as many as the elements need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes of {} are not {elements} elements", .dtype.name())]
pub struct DequantizeError {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Bytes given.
    pub bytes: usize,
    /// Elements asked for.
    pub elements: usize,
}

/// Turns whole blocks into numbers.
///
/// # Errors
/// [`DequantizeError`] unless `bytes` are exactly the blocks of `out`.
pub fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), DequantizeError> {
    let wanted = dtype.row_bytes(out.len() as u64);
    if wanted != Some(bytes.len() as u64) {
        return Err(DequantizeError { dtype, bytes: bytes.len(), elements: out.len() });
    }
    match dtype {
        Dtype::F32 => blocks(bytes, out, |block, [out]| *out = f32::from_le_bytes(*block)),
        Dtype::F16 => blocks(bytes, out, |block, [out]| *out = f16::from_le_bytes(*block).to_f32()),
        Dtype::Bf16 => blocks(bytes, out, |block, [out]| *out = bf16::from_le_bytes(*block).to_f32()),
        Dtype::Q4_0 => blocks(bytes, out, q4_0),
        Dtype::Q4_1 => blocks(bytes, out, q4_1),
        Dtype::Q5_0 => blocks(bytes, out, q5_0),
        Dtype::Q5_1 => blocks(bytes, out, q5_1),
        Dtype::Q8_0 => blocks(bytes, out, q8_0),
        Dtype::Q2K => blocks(bytes, out, q2_k),
        Dtype::Q3K => blocks(bytes, out, q3_k),
        Dtype::Q4K => blocks(bytes, out, q4_k),
        Dtype::Q5K => blocks(bytes, out, q5_k),
        Dtype::Q6K => blocks(bytes, out, q6_k),
    }
    Ok(())
}

fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    dequantize: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, _) = bytes.as_chunks();
    let (outs, _) = out.as_chunks_mut();
    blocks.iter().zip(outs).for_each(|(block, out)| dequantize(block, out));
}

/// The f16 that begins at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The lower half of the elements is in the lower nibbles, the upper half in the upper ones.
fn nibble(packed: &[u8], index: usize) -> u8 {
    if index < 16 { packed[index] & 15 } else { packed[index - 16] >> 4 }
}

/// The fifth bits: one 32-bit word, the first element's lowest.
fn fifth_bit(bits: &[u8], index: usize) -> u8 {
    (bits[index / 8] >> (index % 8) & 1) << 4
}

/// f16 scale, 32 nibbles offset by 8.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    for (index, out) in out.iter_mut().enumerate() {
        *out = scale * (f32::from(nibble(&block[2..], index)) - 8.0);
    }
}

/// f16 scale, f16 minimum, 32 nibbles.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    for (index, out) in out.iter_mut().enumerate() {
        *out = scale * f32::from(nibble(&block[4..], index)) + least;
    }
}

/// f16 scale, 32 fifth bits, 32 nibbles; offset by 16.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    for (index, out) in out.iter_mut().enumerate() {
        let value = nibble(&block[6..], index) | fifth_bit(&block[2..6], index);
        *out = scale * (f32::from(value) - 16.0);
    }
}

/// f16 scale, f16 minimum, 32 fifth bits, 32 nibbles.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    for (index, out) in out.iter_mut().enumerate() {
        let value = nibble(&block[8..], index) | fifth_bit(&block[4..8], index);
        *out = scale * f32::from(value) + least;
    }
}

/// f16 scale, 32 signed bytes.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    for (out, value) in out.iter_mut().zip(&block[2..]) {
        *out = scale * f32::from(value.cast_signed());
    }
}

/// Sixteen groups of 16: a byte each with a 4-bit scale and a 4-bit minimum, 2-bit values, f16 scales of both. Four
/// pairs of groups share 32 bytes of values, two bits each.
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, values) = (&block[..16], &block[16..80]);
    let (scale, least) = (half(block, 80), half(block, 82));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let group_scale = scale * f32::from(scales[group] & 15);
        let group_least = least * f32::from(scales[group] >> 4);
        let (start, shift) = pair_of_groups(group);
        for (out, byte) in out.iter_mut().zip(&values[start..]) {
            *out = group_scale * f32::from(byte >> shift & 3) - group_least;
        }
    }
}

/// Sixteen groups of 16: third bits (set where nothing is subtracted), 2-bit values, 6-bit scales, f16 scale.
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (third_bits, values, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half(block, 108);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[group % 8] >> (4 * (group / 8)) & 15;
        let high = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        let group_scale = scale * (f32::from(low | high << 4) - 32.0);
        let (start, shift) = pair_of_groups(group);
        let bits = &third_bits[16 * (group % 2)..];
        for (index, out) in out.iter_mut().enumerate() {
            let missing = if bits[index] >> (group / 2) & 1 == 0 { 4.0 } else { 0.0 };
            *out = group_scale * (f32::from(values[start + index] >> shift & 3) - missing);
        }
    }
}

/// Where the 2-bit values of a group of 16 begin, and how far they are shifted.
fn pair_of_groups(group: usize) -> (usize, usize) {
    (32 * (group / 8) + 16 * (group % 2), 2 * (group % 8 / 2))
}

/// Eight groups of 32: f16 scale and minimum of the groups' 6-bit scales and minima, nibbles.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (group_scale, group_least) = six_bits(&block[4..16], group);
        let (group_scale, group_least) = (scale * group_scale, least * group_least);
        for (out, byte) in out.iter_mut().zip(&block[16 + 32 * (group / 2)..]) {
            *out = group_scale * f32::from(byte >> (4 * (group % 2)) & 15) - group_least;
        }
    }
}

/// Like [`q4_k`], with fifth bits: 32 bytes, one bit of each for every group.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    let fifth_bits = &block[16..48];
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (group_scale, group_least) = six_bits(&block[4..16], group);
        let (group_scale, group_least) = (scale * group_scale, least * group_least);
        let low = &block[48 + 32 * (group / 2)..];
        for (index, out) in out.iter_mut().enumerate() {
            let value = low[index] >> (4 * (group % 2)) & 15 | (fifth_bits[index] >> group & 1) << 4;
            *out = group_scale * f32::from(value) - group_least;
        }
    }
}

/// Scale and minimum of a group: six bits each. Those of the last four groups are spread: four bits in the last four
/// bytes, two in the top of the first eight.
fn six_bits(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, least) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
    };
    (f32::from(scale), f32::from(least))
}

/// Sixteen groups of 16 with signed 8-bit scales; 6-bit values offset by 32: nibbles, then the upper two bits.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half(block, 208);
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        // Four parts of 32 elements share 64 bytes of nibbles and 32 bytes of upper bits.
        let (side, quarter) = (part / 4, part % 4);
        for (index, out) in out.iter_mut().enumerate() {
            let nibble = low[64 * side + 32 * (quarter % 2) + index] >> (4 * (quarter / 2)) & 15;
            let upper = high[32 * side + index] >> (2 * quarter) & 3;
            let group_scale = scale * f32::from(scales[2 * part + index / 16].cast_signed());
            *out = group_scale * (f32::from(nibble | upper << 4) - 32.0);
        }
    }
}
