//! Owns the measurement of the products: bytes per second with one row (decoding), multiplications per second with
//! 128 rows (a prompt), per type of weights and instruction set, on one thread.
//!
//! `cargo run --release -p skein-engine --example kernels [TYPE…]`
#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]

use std::time::{Duration, Instant};

use skein_engine::cpu::lanes::InstructionSet;
use skein_engine::cpu::matrix::Matrix;
use skein_engine::cpu::multiply::multiply;
use skein_engine::cpu::pool::Pool;
use skein_engine::cpu::quantised::Quantised;
use skein_engine::dtype::{Dtype, noise};
use skein_engine::source::TensorInfo;

/// Rows and columns of the matrix, and how many of it: together no cache holds them, as no cache holds a model.
const SHAPE: (u64, u64, usize) = (1_536, 768, 100);
const PROMPT_ROWS: usize = 128;
const LEAST: Duration = Duration::from_millis(400);
const ROUNDS: usize = 5;

fn main() -> Result<(), String> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    println!("{:8} {:7} {:>12} {:>14} {:>9}", "weights", "set", "decode GB/s", "prompt GMAC/s", "size");
    for dtype in Dtype::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == dtype.name()) {
            continue;
        }
        let info = TensorInfo { dtype, rows: SHAPE.0, columns: SHAPE.1 };
        let count = (SHAPE.0 * SHAPE.1) as usize;
        let elements = noise(dtype, count, 1).ok_or("the shape is no whole number of blocks")?;
        let pack = || Matrix::pack(info, &elements);
        let matrices = (0..SHAPE.2).map(|_| pack()).collect::<Result<Vec<_>, _>>()?;
        for set in InstructionSet::available() {
            let pool = Pool::with(1, set)?;
            let bytes = matrices.iter().map(Matrix::bytes).sum::<usize>();
            let weights = matrices.len() * matrices[0].rows() * matrices[0].columns();
            // The scalar lanes are a reference: a tenth of the work tells enough.
            let part = if set.name() == "scalar" { 10 } else { 1 };
            let decode = best(|| pass(&pool, &matrices[..SHAPE.2 / part], 1));
            let prompt = best(|| pass(&pool, &matrices[..1], PROMPT_ROWS));
            println!(
                "{:8} {:7} {:12.2} {:14.2} {:8.2}×",
                dtype.name(),
                set.name(),
                bytes as f64 / part as f64 / decode / 1e9,
                (weights / matrices.len() * PROMPT_ROWS) as f64 / prompt / 1e9,
                matrices[0].bytes() as f64 / elements.len() as f64,
            );
        }
    }
    Ok(())
}

/// Multiplies once with every matrix.
fn pass(pool: &Pool, matrices: &[Matrix], rows: usize) {
    let columns = matrices[0].columns();
    let values: Vec<f32> = (0..rows * columns).map(|i| (i % 17) as f32 - 8.0).collect();
    let mut input = Quantised::default();
    input.fill(pool.set(), &values, columns);
    let mut output = vec![0.0; rows * matrices[0].rows()];
    for matrix in matrices {
        multiply(pool, matrix, &input, &mut output);
    }
    std::hint::black_box(output);
}

/// Seconds of the fastest of several rounds; others of this machine's tenants are in the slower ones.
fn best(mut work: impl FnMut()) -> f64 {
    work();
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let (start, mut times) = (Instant::now(), 0);
        while start.elapsed() < LEAST / ROUNDS as u32 || times == 0 {
            let start = Instant::now();
            work();
            best = best.min(start.elapsed().as_secs_f64());
            times += 1;
        }
    }
    best
}
