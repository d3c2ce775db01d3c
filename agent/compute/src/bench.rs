//! Owns the measurement of one device: matrix product, memory, and transfer rates.
//! Must never take long or much memory: it runs on the owner's machine before any consent to heavier work.

use std::time::{Duration, Instant};

use borsh::{BorshDeserialize, BorshSerialize};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::device::read;

/// Time for each of the three measurements.
const BUDGET: Duration = Duration::from_millis(350);

/// Elements moved per pass of the memory and transfer measurements: 16 MiB, beyond most caches.
const ELEMENTS: usize = 4 << 20;

/// Sides of the square matrices, each tried while the last was quick, so that fast devices are measured on products
/// that fill them.
const SIDES: [usize; 5] = [128, 512, 1_024, 2_048, 4_096];

/// What was measured. Rates are decimal (10⁶ per second) and rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct BenchResult {
    /// Dense f32 matrix product, in 10⁶ floating-point operations per second.
    pub matmul_mflops: u64,
    /// Side of the square matrices that gave it.
    pub matmul_side: u32,
    /// Memory traffic of adding two vectors (two reads, one write), in 10⁶ bytes per second.
    pub memory_mb_s: u64,
    /// Host to device, in 10⁶ bytes per second. On the CPU: a copy in memory.
    pub upload_mb_s: u64,
    /// Device to host, in 10⁶ bytes per second. On the CPU no copy may be needed.
    pub download_mb_s: u64,
    /// Wall time of the whole measurement.
    pub took_ms: u64,
}

/// Measures `device` in about 1.5 seconds, using at most 256 MiB on it.
///
/// # Errors
/// What the device said when it failed.
pub fn bench(device: &Device) -> Result<BenchResult, String> {
    let started = Instant::now();
    let device = device.clone().without_autodiff();
    let (matmul_mflops, matmul_side) = matmul(&device)?;
    let memory_mb_s = memory(&device)?;
    let (upload_mb_s, download_mb_s) = transfer(&device)?;
    let took_ms = started.elapsed().as_millis() as u64;
    Ok(BenchResult {
        matmul_mflops,
        matmul_side: matmul_side as u32,
        memory_mb_s,
        upload_mb_s,
        download_mb_s,
        took_ms,
    })
}

fn matmul(device: &Device) -> Result<(u64, usize), String> {
    let mut best = (0, 0);
    for side in SIDES {
        let left = filled(side * side, 1, device).reshape([side, side]);
        let right = filled(side * side, 2, device).reshape([side, side]);
        // The first product pays for kernels and allocations and is not timed.
        finish(device, left.clone().matmul(right.clone()))?;
        let work = 2 * (side as u64).pow(3);
        let started = Instant::now();
        let mut fastest = Duration::MAX;
        while started.elapsed() < BUDGET / 4 {
            let start = Instant::now();
            finish(device, left.clone().matmul(right.clone()))?;
            fastest = fastest.min(start.elapsed());
        }
        best = best.max((per_second(work, fastest), side));
        // The next side takes up to 64 times as long.
        if fastest * 16 > BUDGET {
            break;
        }
    }
    Ok(best)
}

fn memory(device: &Device) -> Result<u64, String> {
    let (left, right) = (filled(ELEMENTS, 1, device), filled(ELEMENTS, 2, device));
    let fastest = repeat(|| finish(device, left.clone() + right.clone()))?;
    Ok(per_second(3 * 4 * ELEMENTS as u64, fastest))
}

fn transfer(device: &Device) -> Result<(u64, u64), String> {
    let host = vec![1.0f32; ELEMENTS];
    let bytes = 4 * ELEMENTS as u64;
    let upload =
        repeat(|| finish(device, Tensor::<1>::from_data(TensorData::new(host.clone(), [ELEMENTS]), device)))?;
    let there = filled(ELEMENTS, 1, device);
    let download = repeat(|| read(there.clone()).map(drop))?;
    Ok((per_second(bytes, upload), per_second(bytes, download)))
}

/// The fastest of as many runs as fit the budget, after one that is not timed.
fn repeat(mut run: impl FnMut() -> Result<(), String>) -> Result<Duration, String> {
    run()?;
    let started = Instant::now();
    let mut fastest = Duration::MAX;
    while started.elapsed() < BUDGET / 2 {
        let start = Instant::now();
        run()?;
        fastest = fastest.min(start.elapsed());
    }
    Ok(fastest)
}

fn filled(elements: usize, seed: usize, device: &Device) -> Tensor<1> {
    let values: Vec<f32> = (0..elements).map(|i| ((i * seed) % 17) as f32 / 17.0).collect();
    Tensor::from_data(TensorData::new(values, [elements]), device)
}

/// Waits until the device has computed `tensor`.
fn finish<const D: usize>(device: &Device, tensor: Tensor<D>) -> Result<(), String> {
    device.sync().map_err(|error| format!("{error:?}"))?;
    drop(tensor);
    Ok(())
}

/// Millions per second.
fn per_second(amount: u64, time: Duration) -> u64 {
    (u128::from(amount) * 1_000 / time.as_nanos().max(1)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_amounts_over_time() {
        assert_eq!(per_second(2_000_000, Duration::from_secs(1)), 2);
        assert_eq!(per_second(5_000_000_000, Duration::from_millis(500)), 10_000);
    }

    #[test]
    fn the_processor_is_measured_quickly() {
        let result = bench(&Device::flex()).unwrap();
        assert!(result.matmul_mflops > 100, "{result:?}");
        assert!(
            result.memory_mb_s > 50 && result.upload_mb_s > 50 && result.download_mb_s > 50,
            "{result:?}"
        );
        assert!(result.took_ms < 10_000, "{result:?}");
    }
}
