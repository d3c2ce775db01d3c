//! Owns the tests of each kernel against its CPU twin. Must never need a real GPU: software will do, and without
//! any adapter they say so and pass.

mod attention;
mod model;
mod products;
mod rows;

use super::buffers::{Buffers, Capacity, stride};
use super::device::Device;
use super::matrix::turned;
use super::operations::{Operation, Step};
use crate::config::{Activation, Architecture, ModelConfig, Rope, RopeStyle};

/// The best adapter of this machine.
fn device() -> Option<Device> {
    match Device::open(None) {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            None
        }
    }
}

/// Numbers from -1 to 1 that look random and are the same every time.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    fn real(&mut self) -> f32 {
        self.bits() as f32 / 2_147_483_648.0 - 1.0
    }

    fn reals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.real()).collect()
    }
}

/// |a - b| / |b|
fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = sum(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / sum(&mut b.iter().map(|b| f64::from(*b))).max(1e-30)
}

/// A model whose sizes are odd.
fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        layers: 2,
        width: 72,
        feed_width: 100,
        heads: 6,
        kv_heads: 2,
        head_width: 20,
        vocabulary: 50,
        context: 2_000,
        norm_epsilon: 1e-5,
        rope: Rope {
            style: RopeStyle::Halves,
            base: 10_000.0,
            window_base: 500.0,
            dims: 12,
            scale: 1.0,
            factors: Vec::new(),
        },
        activation: Activation::SiluGated,
        embedding_scale: 1.0,
        query_scale: 0.25,
        score_cap: None,
        logit_cap: None,
        window: None,
        window_pattern: 1,
    }
}

fn buffers(device: &Device, config: &ModelConfig, rows: u32) -> Buffers {
    Buffers::new(device, config, Capacity { rows, asked: rows, pages: 200 })
}

/// Rows as products read them.
fn turn(rows: &[f32], columns: u32) -> Vec<f32> {
    let (columns, stride) = (columns as usize, stride(columns) as usize);
    let mut out = vec![0.0; rows.len() / columns * stride];
    for (row, out) in rows.chunks_exact(columns).zip(out.chunks_exact_mut(stride)) {
        row.iter().enumerate().for_each(|(i, value)| out[turned(columns as u32, i)] = *value);
    }
    out
}

/// Such rows as they are meant.
fn unturn(rows: &[f32], columns: u32) -> Vec<f32> {
    let row = |row: &[f32]| (0..columns as usize).map(|i| row[turned(columns, i)]).collect::<Vec<f32>>();
    rows.chunks_exact(stride(columns) as usize).flat_map(row).collect()
}

fn fill(device: &Device, buffer: &wgpu::Buffer, values: &[f32]) {
    device.write(buffer, 0, bytemuck::cast_slice(values));
}

/// Runs operations and gives what a buffer then holds.
fn run(
    device: &Device,
    buffers: &Buffers,
    operations: &[Operation],
    step: Step,
    result: &wgpu::Buffer,
) -> Vec<f32> {
    device.write(&buffers.step, 0, bytemuck::cast_slice(&step.words()));
    let mut encoder = device.encoder();
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    for operation in operations {
        operation.record(device, &mut pass, step).unwrap();
    }
    drop(pass);
    read(device, encoder, result)
}

fn read(device: &Device, mut encoder: wgpu::CommandEncoder, buffer: &wgpu::Buffer) -> Vec<f32> {
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let staging = device.buffer("staging", buffer.size(), usage);
    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
    device.submit(encoder);
    let mut back = Vec::new();
    device.read_back(&staging, (buffer.size() / 4) as usize, &mut back).unwrap();
    back
}

const fn all(rows: u32) -> Step {
    Step { rows, asked: 0, chunks: 1, asked_first: 0 }
}

#[test]
fn a_lost_device_is_an_error() {
    let Some(device) = device() else { return };
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let (before, staging) = (device.storage("before", 64), device.buffer("staging", 64, usage));
    device.lose();
    let after = device.storage("after", 64);
    fill(&device, &after, &[1.0]);
    let mut encoder = device.encoder();
    encoder.copy_buffer_to_buffer(&before, 0, &staging, 0, 64);
    device.submit(encoder);
    let error = device.read_back(&staging, 16, &mut Vec::new()).unwrap_err();
    assert!(!error.is_empty());
    assert!(device.check().is_err());
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    let Some(device) = device() else { return };
    let buffer = device.storage("huge", 1 << 50);
    let error = device.check().unwrap_err();
    assert!(device.read_back(&buffer, 1, &mut Vec::new()).is_err(), "{error}");
}

#[test]
fn a_kernel_that_does_not_compile_is_an_error() {
    let Some(device) = device() else { return };
    let error = device.pipeline("@compute @workgroup_size(1) fn wrong() { x }", "wrong", &[]).unwrap_err();
    assert!(error.contains("`wrong` was refused"), "{error}");
    assert_eq!(device.check(), Ok(()));
}
