//! Owns a stage's arithmetic on a GPU: kernels in WGSL on wgpu, weights that stay quantised, the cache in its memory.
//! Must never know a session, a file or a model's name, and never panic on what a driver says.
//!
//! Why WGSL of our own, and not CubeCL: a decoder needs about a dozen kernels; a step of decoding is one command
//! buffer, recorded from bindings made once, with nothing of a framework between tokens; the text is what the driver
//! compiles, so a wrong number can be looked for in it; and it shares wgpu with whatever else uses the device. The
//! choice was not made by a measurement: no real GPU was at hand, only Mesa's software Vulkan, whose speed says
//! nothing about one. Nor could the sizes of workgroups and tiles be tuned; they follow from what devices are known
//! to share.
//!
//! The engine's rule holds here as far as a driver compiles `fma` as one operation, or at least alike in two
//! kernels: sums go in an order that depends on a row's own place only. Between GPU and CPU it does not hold: the
//! CPU quantises activations, the GPU does not. Measured on software Vulkan, against the same model in f64 and after
//! centring: log-probabilities of SmolLM2 (Q4_1) differ by a relative L2 of 1.6e-3 (`tests/gpu.rs` holds it below
//! 1e-2).

pub(crate) mod angles;
pub(crate) mod buffers;
pub mod device;
pub mod graph;
pub(crate) mod kernels;
pub(crate) mod matrix;
pub(crate) mod operations;
pub(crate) mod plan;
pub(crate) mod product;
pub(crate) mod weights;

pub use device::{Device, DeviceError};
pub use graph::GpuGraph;

#[cfg(test)]
mod tests;
