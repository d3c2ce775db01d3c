//! Owns the proof that products are right, and equal to the bit wherever and however they are computed.
//! Must never take a tolerance where equality is promised.

use half::f16;
use proptest::prelude::*;

use super::super::lanes::InstructionSet;
use super::super::layout::UNIT;
use super::*;
use crate::dtype::{dequantize, noise};
use crate::source::TensorInfo;

/// A generator of test numbers: SplitMix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// −1 to 1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn matrix(dtype: Dtype, rows: usize, columns: usize, numbers: &mut Numbers) -> Matrix {
    let info = TensorInfo { dtype, rows: rows as u64, columns: columns as u64 };
    Matrix::pack(info, &noise(dtype, rows * columns, numbers.next()).unwrap()).unwrap()
}

fn quantised(set: InstructionSet, values: &[f32], columns: usize) -> Quantised {
    let mut input = Quantised::default();
    input.fill(set, values, columns);
    input
}

/// What the product must be, in f64, from the weights read back and the activations as they were quantised; and the
/// sum of magnitudes, to which rounding is relative.
fn reference(matrix: &Matrix, input: &Quantised) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    let mut weights = vec![0.0; matrix.columns()];
    let exact = Layout::of(matrix.dtype()).is_none();
    for row in 0..input.rows() {
        let activation = |column: usize| {
            if exact {
                return f64::from(input.floats(row)[column]);
            }
            let group = &input.groups(row)[column / UNIT];
            let four = group.codes[column % UNIT / 4].to_le_bytes();
            f64::from(group.scale) * f64::from(four[column % 4].cast_signed())
        };
        for index in 0..matrix.rows() {
            matrix.row(index, &mut weights);
            let terms = (0..matrix.columns()).map(|column| f64::from(weights[column]) * activation(column));
            out.push(terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs())));
        }
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Sizes off the beaten path: rows that fill no tile, columns that fill no group where the type allows it.
fn sizes() -> impl Strategy<Value = (Dtype, usize, usize, usize, u64)> {
    (prop::sample::select(&Dtype::ALL[..]), 1..70_usize, 1..5_usize, 0..40_usize, 1..23_usize, any::<u64>())
        .prop_map(|(dtype, rows, blocks, more, inputs, seed)| {
            let columns =
                if dtype.block_len() == 1 { 32 * blocks + more } else { blocks * dtype.block_len() };
            (dtype, rows, columns, inputs, seed)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_product_is_right_and_the_same_everywhere((dtype, rows, columns, inputs, seed) in sizes()) {
        let mut numbers = Numbers(seed);
        let matrix = matrix(dtype, rows, columns, &mut numbers);
        let values: Vec<f32> = (0..inputs * columns).map(|_| numbers.float()).collect();
        let mut first: Option<Vec<f32>> = None;
        for set in InstructionSet::available() {
            for threads in [1, 3] {
                let pool = Pool::with(threads, set).unwrap();
                let input = quantised(set, &values, columns);
                let mut output = vec![f32::NAN; inputs * rows];
                multiply(&pool, &matrix, &input, &mut output);

                for (got, (want, size)) in output.iter().zip(reference(&matrix, &input)) {
                    let tolerance = 1e-6 * size + 1e-9;
                    prop_assert!((f64::from(*got) - want).abs() <= tolerance, "{dtype:?} {got} {want} {size}");
                }
                match &first {
                    None => first = Some(output.clone()),
                    Some(first) => prop_assert_eq!(bits(first), bits(&output), "{:?} {}", dtype, set.name()),
                }
                for row in 0..inputs {
                    let alone = quantised(set, &values[row * columns..][..columns], columns);
                    let mut again = vec![f32::NAN; rows];
                    multiply(&pool, &matrix, &alone, &mut again);
                    prop_assert_eq!(bits(&again), bits(&output[row * rows..][..rows]), "{:?} row {}", dtype, row);
                }
            }
        }
    }
}

#[test]
fn wide_matrices_are_split_among_threads_without_a_trace() {
    let mut numbers = Numbers(7);
    let matrix = matrix(Dtype::Q4_1, 1_003, 1_024, &mut numbers);
    let values: Vec<f32> = (0..5 * 1_024).map(|_| numbers.float()).collect();
    let results = [1, 2, 5].map(|threads| {
        let pool = Pool::new(threads).unwrap();
        let mut output = vec![f32::NAN; 5 * 1_003];
        pool.run(|| multiply(&pool, &matrix, &quantised(pool.set(), &values, 1_024), &mut output));
        let mut single = vec![f32::NAN; 1_003];
        multiply(&pool, &matrix, &quantised(pool.set(), &values[..1_024], 1_024), &mut single);
        assert_eq!(bits(&single), bits(&output[..1_003]));
        bits(&output)
    });
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

/// Where the f16 factors of a block are; floats are a factor themselves.
fn factors(dtype: Dtype) -> &'static [usize] {
    match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => &[],
        Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0 => &[0],
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4K | Dtype::Q5K => &[0, 2],
        Dtype::Q2K => &[80, 82],
        Dtype::Q3K => &[108],
        Dtype::Q6K => &[208],
    }
}

#[test]
fn extreme_codes_do_not_saturate() {
    // Every code at its greatest, every activation at its own: what AVX2 multiplies in 16 bits.
    for dtype in Dtype::ALL {
        let info = TensorInfo { dtype, rows: 16, columns: 256 };
        let mut bytes = vec![0xff; info.bytes().unwrap() as usize];
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            for at in factors(dtype) {
                block[*at..][..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
            }
            if factors(dtype).is_empty() {
                block.fill(0x3c);
            }
        }
        let matrix = Matrix::pack(info, &bytes).unwrap();
        for sign in [1.0, -1.0] {
            for set in InstructionSet::available() {
                let input = quantised(set, &[sign; 256], 256);
                let mut output = [0.0; 16];
                multiply(&Pool::with(1, set).unwrap(), &matrix, &input, &mut output);
                for (got, (want, size)) in output.iter().zip(reference(&matrix, &input)) {
                    assert!((f64::from(*got) - want).abs() <= 1e-6 * size, "{dtype:?} {got} {want}");
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_none() {
    let mut numbers = Numbers(3);
    let matrix = matrix(Dtype::Q8_0, 16, 64, &mut numbers);
    for set in InstructionSet::available() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [0.5; 64];
            values[40] = bad;
            let mut output = [0.0; 16];
            multiply(&Pool::with(1, set).unwrap(), &matrix, &quantised(set, &values, 64), &mut output);
            assert!(output.iter().all(|value| !value.is_finite()), "{bad} {} {output:?}", set.name());
        }
    }
}

#[test]
fn activations_are_within_half_a_step() {
    let mut numbers = Numbers(11);
    let mut values: Vec<f32> = (0..96).map(|_| numbers.float()).collect();
    values[64..].fill(1e-35);
    for set in InstructionSet::available() {
        let input = quantised(set, &values, 96);
        for (group, values) in input.groups(0).iter().zip(values.chunks(UNIT)) {
            for (column, value) in values.iter().enumerate() {
                let code = group.codes[column / 4].to_le_bytes()[column % 4].cast_signed();
                assert!((group.scale * f32::from(code) - value).abs() <= group.scale * 0.5001 + 1e-30);
            }
        }
    }
}

#[test]
fn packed_weights_are_no_larger_than_promised() {
    for dtype in Dtype::ALL {
        let info = TensorInfo { dtype, rows: 512, columns: 2_048 };
        let matrix = matrix(dtype, 512, 2_048, &mut Numbers(1));
        let most = info.bytes().unwrap() as f64 * 1.25;
        assert!(matrix.bytes() as f64 <= most, "{dtype:?}: {} above {most}", matrix.bytes());
    }
}

#[test]
fn bytes_that_are_no_such_tensor_are_refused() {
    let info = |rows, columns| TensorInfo { dtype: Dtype::Q4_0, rows, columns };
    assert!(Matrix::pack(info(2, 32), &[0; 35]).is_err());
    assert!(Matrix::pack(info(2, 33), &[0; 36]).is_err());
    assert!(Matrix::pack(info(0, 32), &[]).is_err());
    assert!(Matrix::pack(info(u64::MAX, 1 << 40), &[0; 36]).is_err());
    assert!(Matrix::pack(info(2, 32), &[0; 36]).is_ok());
}

#[test]
fn rows_come_back_exactly_as_the_reference_reads_them() {
    for dtype in Dtype::ALL {
        let (rows, columns) = (19, 768);
        let elements = noise(dtype, rows * columns, 5).unwrap();
        let info = TensorInfo { dtype, rows: rows as u64, columns: columns as u64 };
        let matrix = Matrix::pack(info, &elements).unwrap();
        for (index, bytes) in elements.chunks_exact(elements.len() / rows).enumerate() {
            let (mut got, mut want) = (vec![f32::NAN; columns], vec![0.0; columns]);
            matrix.row(index, &mut got);
            dequantize(dtype, bytes, &mut want).unwrap();
            assert_eq!(got, want, "{dtype:?} row {index}");
        }
    }
}
