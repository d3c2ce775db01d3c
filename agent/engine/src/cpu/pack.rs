//! Owns the unpacking of the files' blocks (ggml's `block_*` structures) into codes and factors, once, at load.
//! Must never compute with them: no rounding happens here.

use crate::dtype::Dtype;

/// A block of any quantised type: weight i is `scale · scales[i / group] · codes[i] + minimum · minimums[i / group]`,
/// with the inner factors only where the type nests them, and the constant zero of its layout subtracted.
pub(crate) struct Block {
    /// One per weight of the block.
    pub(crate) codes: [u8; 256],
    /// f16.
    pub(crate) scale: u16,
    /// f16.
    pub(crate) minimum: u16,
    /// One per group of 32 or 16 weights, the rest unused.
    pub(crate) scales: [i8; 16],
    /// The same.
    pub(crate) minimums: [i8; 16],
}

impl Block {
    pub(crate) const EMPTY: Self =
        Self { codes: [0; 256], scale: 0, minimum: 0, scales: [0; 16], minimums: [0; 16] };

    /// Reads one block, whose length is that of its type. Floats have no blocks.
    pub(crate) fn read(&mut self, dtype: Dtype, bytes: &[u8]) {
        match dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => {}
            Dtype::Q4_0 => {
                self.scale = word(bytes, 0);
                self.nibbles(&bytes[2..18]);
            }
            Dtype::Q4_1 => {
                (self.scale, self.minimum) = (word(bytes, 0), word(bytes, 2));
                self.nibbles(&bytes[4..20]);
            }
            Dtype::Q5_0 => {
                self.scale = word(bytes, 0);
                self.nibbles(&bytes[6..22]);
                self.fifth_bits(&bytes[2..6]);
            }
            Dtype::Q5_1 => {
                (self.scale, self.minimum) = (word(bytes, 0), word(bytes, 2));
                self.nibbles(&bytes[8..24]);
                self.fifth_bits(&bytes[4..8]);
            }
            Dtype::Q8_0 => {
                self.scale = word(bytes, 0);
                for (code, byte) in self.codes.iter_mut().zip(&bytes[2..34]) {
                    // From two's complement to counting from 128.
                    *code = byte ^ 0x80;
                }
            }
            Dtype::Q2K => self.q2_k(bytes),
            Dtype::Q3K => self.q3_k(bytes),
            Dtype::Q4K => {
                self.nested_minimums(bytes);
                self.pairs_of_nibbles(&bytes[16..144]);
            }
            Dtype::Q5K => {
                self.nested_minimums(bytes);
                self.pairs_of_nibbles(&bytes[48..176]);
                for (i, code) in self.codes.iter_mut().enumerate() {
                    *code |= ((bytes[16 + i % 32] >> (i / 32)) & 1) << 4;
                }
            }
            Dtype::Q6K => self.q6_k(bytes),
        }
    }

    /// Sixteen bytes: the first half of the block in the low nibbles, the second in the high ones.
    fn nibbles(&mut self, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            (self.codes[i], self.codes[i + 16]) = (byte & 0x0f, byte >> 4);
        }
    }

    /// Four bytes: bit i is the fifth of code i.
    fn fifth_bits(&mut self, bytes: &[u8]) {
        for (i, code) in self.codes[..32].iter_mut().enumerate() {
            *code |= ((bytes[i / 8] >> (i % 8)) & 1) << 4;
        }
    }

    /// 128 bytes: each 32 hold 64 codes, the first half in the low nibbles.
    fn pairs_of_nibbles(&mut self, bytes: &[u8]) {
        for (pair, bytes) in bytes.as_chunks::<32>().0.iter().enumerate() {
            for (i, byte) in bytes.iter().enumerate() {
                (self.codes[64 * pair + i], self.codes[64 * pair + 32 + i]) = (byte & 0x0f, byte >> 4);
            }
        }
    }

    /// Q4_K's and Q5_K's header: two f16 and twelve bytes with eight scales and eight minimums of six bits.
    fn nested_minimums(&mut self, bytes: &[u8]) {
        self.scale = word(bytes, 0);
        self.minimum = negated(word(bytes, 2));
        let packed = &bytes[4..16];
        for i in 0..4 {
            self.scales[i] = (packed[i] & 0x3f).cast_signed();
            self.minimums[i] = (packed[4 + i] & 0x3f).cast_signed();
            self.scales[4 + i] = (packed[8 + i] & 0x0f | packed[i] >> 2 & 0x30).cast_signed();
            self.minimums[4 + i] = (packed[8 + i] >> 4 | packed[4 + i] >> 2 & 0x30).cast_signed();
        }
    }

    fn q2_k(&mut self, bytes: &[u8]) {
        self.scale = word(bytes, 80);
        self.minimum = negated(word(bytes, 82));
        for (i, byte) in bytes[..16].iter().enumerate() {
            self.scales[i] = (byte & 0x0f).cast_signed();
            self.minimums[i] = (byte >> 4).cast_signed();
        }
        self.pairs_of_bits(&bytes[16..80]);
    }

    fn q3_k(&mut self, bytes: &[u8]) {
        self.scale = word(bytes, 108);
        self.pairs_of_bits(&bytes[32..96]);
        for (i, code) in self.codes.iter_mut().enumerate() {
            *code |= ((bytes[i % 32] >> (i / 32)) & 1) << 2;
        }
        let packed = &bytes[96..108];
        for i in 0..16 {
            let low = packed[i % 8] >> (4 * (i / 8)) & 0x0f;
            let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
            self.scales[i] = (low | high << 4).cast_signed() - 32;
        }
    }

    /// 64 bytes: each 32 hold 128 codes of two bits, 32 to each pair of bits.
    fn pairs_of_bits(&mut self, bytes: &[u8]) {
        for (i, code) in self.codes.iter_mut().enumerate() {
            *code = bytes[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3;
        }
    }

    fn q6_k(&mut self, bytes: &[u8]) {
        self.scale = word(bytes, 208);
        for i in 0..16 {
            self.scales[i] = bytes[192 + i].cast_signed();
        }
        for (i, code) in self.codes.iter_mut().enumerate() {
            let (half, i) = (i / 128, i % 128);
            let low = bytes[64 * half + i % 64] >> (4 * (i / 64)) & 0x0f;
            let high = bytes[128 + 32 * half + i % 32] >> (2 * (i / 32)) & 3;
            *code = low | high << 4;
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The K-quants subtract their minimums.
fn negated(half: u16) -> u16 {
    half ^ 0x8000
}
