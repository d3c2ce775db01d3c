//! Owns the tests of matrices on the device: every type, odd sizes, any number of rows.
//! Must never compare with a tolerance what has to be equal.

use half::f16;

use super::*;
use crate::cpu;
use crate::dtype::Dtype;
use crate::gpu::matrix::{Form, Matrix};
use crate::gpu::operations::{Over, embedding};
use crate::gpu::product::{Kernels, Product, Rows};
use crate::source::TensorInfo;

/// Blocks of any bits, but with factors of the size that models have.
fn elements(dtype: Dtype, rows: usize, columns: usize, noise: &mut Noise) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rows * columns / dtype.block_len() {
        let mut block: Vec<u8> = (0..dtype.block_bytes()).map(|_| noise.bits() as u8).collect();
        let factors: &[usize] = match dtype {
            Dtype::F32 => {
                block = noise.real().to_le_bytes().to_vec();
                &[]
            }
            Dtype::Bf16 => {
                block = half::bf16::from_f32(noise.real()).to_le_bytes().to_vec();
                &[]
            }
            Dtype::F16 | Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0 => &[0],
            Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4K | Dtype::Q5K => &[0, 2],
            Dtype::Q2K => &[80, 82],
            Dtype::Q3K => &[108],
            Dtype::Q6K => &[208],
        };
        for at in factors {
            // Some of them subnormal as f16.
            let factor =
                f16::from_f32(noise.real() * if noise.bits().is_multiple_of(4) { 1e-5 } else { 0.01 });
            block[*at..at + 2].copy_from_slice(&factor.to_le_bytes());
        }
        bytes.extend(block);
    }
    bytes
}

/// The rows that the CPU multiplies with.
fn dequantised(info: TensorInfo, bytes: &[u8]) -> Vec<Vec<f32>> {
    let matrix = cpu::matrix::Matrix::pack(info, bytes).unwrap();
    let mut row = vec![0.0; info.columns as usize];
    (0..info.rows as usize)
        .map(|index| {
            matrix.row(index, &mut row);
            row.clone()
        })
        .collect()
}

/// K types multiply two factors, and the product is rounded to eleven bits.
fn tolerance(dtype: Dtype) -> f64 {
    if dtype.block_len() == 256 { 5e-4 } else { 2e-6 }
}

fn tensor(dtype: Dtype, rows: u64, columns: u64) -> TensorInfo {
    TensorInfo { dtype, rows, columns: columns.next_multiple_of(dtype.block_len() as u64) }
}

/// y of a product with each number of rows.
fn multiply(device: &Device, matrix: &Matrix, x: &[f32], columns: u32, counts: &[u32]) -> Vec<Vec<f32>> {
    let stride = columns.next_multiple_of(32);
    let most = counts.iter().max().unwrap();
    let mut config = config();
    config.vocabulary = matrix.rows();
    let buffers = buffers(device, &config, *most);
    let input = device.storage("x", u64::from(4 * stride * most));
    fill(device, &input, &turn(x, columns));
    let x = Rows { buffer: &input, stride };
    let y = Rows { buffer: &buffers.logits, stride: matrix.rows() };
    let kernels = Kernels::new(matrix.form, false);
    let product =
        [Operation::Product(Product::new(device, kernels, matrix, &buffers.step, x, y, 0), Over::All)];
    counts
        .iter()
        .map(|count| {
            let mut y = run(device, &buffers, &product, all(*count), y.buffer);
            y.truncate((count * matrix.rows()) as usize);
            y
        })
        .collect()
}

#[test]
fn products_are_those_of_the_cpus_weights_and_do_not_depend_on_other_rows() {
    let Some(device) = device() else { return };
    let mut noise = Noise(1);
    for dtype in Dtype::ALL {
        for (rows, columns) in [(70, 40), (9, 1_100)] {
            let info = tensor(dtype, rows, columns);
            let bytes = elements(dtype, rows as usize, info.columns as usize, &mut noise);
            let matrix = Matrix::load(&device, "test", &info, &bytes).unwrap();
            let x = noise.reals(66 * info.columns as usize);
            let counts = [1, 2, 3, 7, 11, 18, 66];
            let products = multiply(&device, &matrix, &x, info.columns as u32, &counts);
            let weights = dequantised(info, &bytes);
            let expected: Vec<f32> = x
                .chunks_exact(info.columns as usize)
                .flat_map(|x| {
                    weights.iter().map(move |row| {
                        row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32
                    })
                })
                .collect();
            for (product, count) in products.iter().zip(counts) {
                let error = relative_l2(product, &expected[..product.len()]);
                assert!(error < tolerance(dtype), "{dtype:?} {rows} by {columns}, {count} rows: {error:e}");
                assert_eq!(
                    *product,
                    products[6][..product.len()],
                    "{dtype:?} {rows} by {columns}, {count} rows"
                );
            }
        }
    }
}

#[test]
fn large_matrices_go_in_parts() {
    let Some(mut device) = device() else { return };
    let mut noise = Noise(2);
    let info = tensor(Dtype::Q5_1, 300, 64);
    let bytes = elements(info.dtype, 300, 64, &mut noise);
    let whole = Matrix::load(&device, "test", &info, &bytes).unwrap();
    assert_eq!(whole.parts.len(), 1);
    device.limit_bindings(6_000);
    let parts = Matrix::load(&device, "test", &info, &bytes).unwrap();
    assert!(parts.parts.len() > 2, "{}", parts.parts.len());
    device.limit_bindings(u64::MAX);
    let x = noise.reals(64);
    assert_eq!(multiply(&device, &parts, &x, 64, &[1]), multiply(&device, &whole, &x, 64, &[1]));
    device.limit_bindings(40);
    let error = Matrix::load(&device, "test", &info, &bytes).err().unwrap();
    assert!(error.contains("a row of tensor `test` takes"), "{error}");
}

#[test]
fn wrong_bytes_are_refused() {
    let Some(device) = device() else { return };
    let info = tensor(Dtype::Q4_0, 4, 32);
    assert!(Matrix::load(&device, "test", &info, &[0; 71]).is_err());
    assert!(Matrix::load(&device, "test", &TensorInfo { columns: 33, ..info }, &[0; 72]).is_err());
    assert!(Matrix::load(&device, "test", &TensorInfo { columns: 0, ..info }, &[]).is_err());
}

#[test]
fn embeddings_are_the_cpus_rows() {
    let Some(device) = device() else { return };
    let mut noise = Noise(3);
    for dtype in Dtype::ALL {
        let info = tensor(dtype, 50, 72);
        let bytes = elements(dtype, 50, info.columns as usize, &mut noise);
        let matrix = Matrix::load(&device, "test", &info, &bytes).unwrap();
        assert_eq!(matrix.form, Form::of(dtype));
        let config = ModelConfig { width: info.columns as u32, embedding_scale: 1.5, ..config() };
        let buffers = buffers(&device, &config, 3);
        let index: [u32; 12] = [7, 0, 0, 0, 8, 0, 49, 0, 9, 0, 20, 0];
        device.write(&buffers.index, 0, bytemuck::cast_slice(&index));
        let weights = dequantised(info, &bytes);
        let operations = embedding(&device, &buffers, &config, &matrix).unwrap();
        let stride = config.width.next_multiple_of(32) as usize;
        let made: Vec<f32> = run(&device, &buffers, &operations, all(3), &buffers.hidden)
            .chunks_exact(stride)
            .flat_map(|row| row[..config.width as usize].to_vec())
            .collect();
        let tokens: Vec<f32> =
            [0, 49, 20].iter().flat_map(|token| weights[*token].iter().map(|w| w * 1.5)).collect();
        let error = relative_l2(&made, &tokens);
        assert!(error < tolerance(dtype), "{dtype:?}: {error:e}");
    }
}
