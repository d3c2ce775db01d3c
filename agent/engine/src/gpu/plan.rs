//! Owns the order of a stage's kernels, bound once to buffers for up to so many rows.
//! Must never know a sequence: what a step computes is in the buffers when it runs.

use std::collections::BTreeMap;

use super::buffers::{Buffers, Capacity, qkv_stride, stride};
use super::device::Device;
use super::matrix::{Form, Matrix};
use super::operations::{Joint, Operation, Over, Step, activate, attend, cap, embedding, joint, prepare};
use super::product::{Kernels, MATVEC_ROWS_MAX, Product, Rows};
use super::weights::{Layer, Weights};
use crate::config::ModelConfig;
use crate::dtype::Dtype;

/// A stage's kernels in order, and their buffers.
pub(crate) struct Plan {
    pub(crate) capacity: Capacity,
    pub(crate) buffers: Buffers,
    /// Of the buffers.
    pub(crate) bytes: u64,
    /// Before the first layer, then each layer.
    layers: Vec<Vec<Operation>>,
    answer: Vec<Operation>,
}

impl Plan {
    /// Makes the buffers and binds every kernel.
    ///
    /// # Errors
    /// No memory, or a kernel that does not compile, in words.
    pub(crate) fn new(
        device: &Device,
        config: &ModelConfig,
        weights: &Weights,
        first_layer: u32,
        capacity: Capacity,
    ) -> Result<Self, String> {
        let before = device.allocated_bytes();
        let buffers = Buffers::new(device, config, capacity);
        let bytes = device.allocated_bytes() - before;
        let kernels = Dtype::ALL.map(Form::of).map(|form| (form, Kernels::new(form, false)));
        let builder = Builder { device, config, buffers: &buffers, kernels: kernels.into() };
        let mut start = Vec::new();
        if let Some(matrix) = weights.embedding.as_deref() {
            start.extend(embedding(device, &buffers, config, matrix)?);
        }
        let mut norms = weights.layers.iter().map(|layer| layer.attention_norm.as_slice());
        start.push(joint(device, &buffers, config, Joint { next: norms.next(), ..Joint::NONE })?);
        let mut layers = vec![start];
        for (number, layer) in (first_layer..).zip(&weights.layers) {
            layers.push(builder.layer(number, layer, norms.next())?);
        }
        let answer = builder.answer(weights)?;
        device.check()?;
        Ok(Self { capacity, buffers, bytes, layers, answer })
    }

    /// Records the embedding, where tokens come in, and all layers. Few rows are left in the encoder; many are
    /// handed to the device layer by layer, since an operating system may take a device that answers nobody for
    /// seconds for a broken one.
    ///
    /// # Errors
    /// When a kernel does not compile, in words.
    pub(crate) fn record_layers(
        &self,
        device: &Device,
        encoder: &mut wgpu::CommandEncoder,
        step: Step,
    ) -> Result<(), String> {
        for layer in &self.layers {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            layer.iter().try_for_each(|operation| operation.record(device, &mut pass, step))?;
            drop(pass);
            if step.rows > MATVEC_ROWS_MAX {
                device.submit(std::mem::replace(encoder, device.encoder()));
            }
        }
        Ok(())
    }

    /// Records the final norm and the head, on the last stage, for the rows asked for.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn record_answer(
        &self,
        device: &Device,
        encoder: &mut wgpu::CommandEncoder,
        step: Step,
    ) -> Result<(), String> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        self.answer.iter().try_for_each(|operation| operation.record(device, &mut pass, step))
    }
}

struct Builder<'a> {
    device: &'a Device,
    config: &'a ModelConfig,
    buffers: &'a Buffers,
    kernels: BTreeMap<Form, Kernels>,
}

impl Builder<'_> {
    /// One layer: see `crate::graph`. The last joint also makes the next layer's input.
    fn layer(&self, number: u32, layer: &Layer, next: Option<&[f32]>) -> Result<Vec<Operation>, String> {
        let Self { device, config, buffers, .. } = *self;
        let normed = Rows { buffer: &buffers.normed, stride: stride(config.width) };
        let added = Rows { buffer: &buffers.added, stride: stride(config.width) };
        let heads = config.heads * config.head_width;
        let attended = Rows { buffer: &buffers.attended, stride: stride(heads) };
        let qkv = Rows { buffer: &buffers.qkv, stride: qkv_stride(config) };
        let gate = Rows { buffer: &buffers.gate, stride: stride(config.feed_width) };
        let up = Rows { buffer: &buffers.up, ..gate };
        let fed = Rows { buffer: &buffers.fed, ..gate };

        let post = layer.post_attention_norm.as_deref();
        let into_feed = Joint { add: true, post, next: Some(&layer.feed_norm), ..Joint::NONE };
        let post = layer.post_feed_norm.as_deref();
        let out = Joint { add: true, post, round: true, next, ..Joint::NONE };

        let values = heads + config.kv_heads * config.head_width;
        Ok(vec![
            self.product(&layer.query, normed, qkv, 0),
            self.product(&layer.key, normed, qkv, heads),
            self.product(&layer.value, normed, qkv, values),
            prepare(device, buffers, config, number, layer)?,
            Operation::Attend(attend(device, buffers, config, number, layer)?),
            self.product(&layer.output, attended, added, 0),
            joint(device, buffers, config, into_feed)?,
            self.product(&layer.gate, normed, gate, 0),
            self.product(&layer.up, normed, up, 0),
            activate(device, buffers, config)?,
            self.product(&layer.down, fed, added, 0),
            joint(device, buffers, config, out)?,
        ])
    }

    fn answer(&self, weights: &Weights) -> Result<Vec<Operation>, String> {
        let Self { device, config, buffers, .. } = *self;
        let Some(answer) = &weights.answer else { return Ok(Vec::new()) };
        let x = Rows { buffer: &buffers.answer, stride: stride(config.width) };
        let y = Rows { buffer: &buffers.logits, stride: config.vocabulary };
        let kernels = Kernels::new(answer.head.form, true);
        let product = Product::new(device, kernels, &answer.head, &buffers.step, x, y, 0);
        let norm = Joint { next: Some(&answer.norm), head: true, ..Joint::NONE };
        let mut operations =
            vec![joint(device, buffers, config, norm)?, Operation::Product(product, Over::Asked)];
        if let Some(most) = config.logit_cap {
            operations.push(cap(device, buffers, config, most)?);
        }
        Ok(operations)
    }

    fn product(&self, matrix: &Matrix, x: Rows<'_>, y: Rows<'_>, first: u32) -> Operation {
        let kernels = self.kernels[&matrix.form].clone();
        let product = Product::new(self.device, kernels, matrix, &self.buffers.step, x, y, first);
        Operation::Product(product, Over::All)
    }
}
