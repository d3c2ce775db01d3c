//! Owns the model: a pre-norm decoder over bytes, written once in Burn for every device. The feed-forward layer squares
//! a ReLU, which is cheaper than GELU on a processor.
//! Must never know where weights come from, what trains them, or who asks: tensors in, tensors out.
//!
//! Activations are `[rows, width]`, a row being one token of one sequence. What is trained here is served by
//! `skein-engine`, which has the same model as its architecture `Skein`.

use burn::tensor::activation::{log_softmax, relu, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::data::Batch;
use crate::shape::{ModelShape, TensorSpec};

/// Added to the mean square before its root, so that a row of zeros has a norm.
const NORM_EPSILON: f32 = 1e-6;

/// What masked scores become: far below any score, yet finite, so that no subtraction gives NaN.
const MASKED: f32 = -1e9;

/// A model on one device.
#[derive(Clone)]
pub(crate) struct Gpt {
    shape: ModelShape,
    /// `[256, width]`
    embedding: Tensor<2>,
    /// `[context, width]`
    positions: Tensor<2>,
    layers: Vec<Layer>,
    /// `[1, width]`
    final_norm: Tensor<2>,
    /// `[width, 256]`
    head: Tensor<2>,
}

#[derive(Clone)]
struct Layer {
    /// `[1, width]`
    attention_norm: Tensor<2>,
    /// `[width, 3 · width]`
    query_key_value: Tensor<2>,
    /// `[width, width]`
    attention_out: Tensor<2>,
    /// `[1, width]`
    feed_norm: Tensor<2>,
    /// `[width, 4 · width]`
    feed_in: Tensor<2>,
    /// `[4 · width, width]`
    feed_out: Tensor<2>,
}

/// Uploads host weights in canonical order; vectors become `[1, n]`, so that every tensor has two dimensions.
pub(crate) fn upload(shape: ModelShape, weights: Vec<Vec<f32>>, device: &Device) -> Vec<Tensor<2>> {
    let specs = shape.tensors();
    debug_assert_eq!(specs.len(), weights.len(), "checked when the file was read");
    let upload = |(spec, values): (&TensorSpec, Vec<f32>)| {
        let columns = spec.dimensions.last().copied().unwrap_or(1);
        let rows = values.len() / columns;
        Tensor::from_data(TensorData::new(values, [rows, columns]), device)
    };
    specs.iter().zip(weights).map(upload).collect()
}

impl Gpt {
    /// Arranges tensors, given in the canonical order of [`ModelShape::tensors`]. `None` when their number does not
    /// fit.
    pub(crate) fn new(shape: ModelShape, tensors: &[Tensor<2>]) -> Option<Self> {
        let mut rest = tensors.iter().cloned();
        let (embedding, positions) = (rest.next()?, rest.next()?);
        let mut layers = Vec::with_capacity(shape.layers());
        for _ in 0..shape.layers() {
            layers.push(Layer {
                attention_norm: rest.next()?,
                query_key_value: rest.next()?,
                attention_out: rest.next()?,
                feed_norm: rest.next()?,
                feed_in: rest.next()?,
                feed_out: rest.next()?,
            });
        }
        let (final_norm, head) = (rest.next()?, rest.next()?);
        rest.next().is_none().then_some(Self { shape, embedding, positions, layers, final_norm, head })
    }

    /// Mean cross-entropy in nats per token over a batch, as `[1]`.
    pub(crate) fn loss(&self, batch: &Batch, device: &Device) -> Tensor<1> {
        let rows = batch.sequences * batch.context;
        let positions: Vec<i32> = (0..rows).map(|row| (row % batch.context) as i32).collect();
        let mut hidden = self.embed(&batch.inputs, positions, device);
        let mask = mask(self.shape.heads(), batch.context, device);
        for layer in &self.layers {
            hidden = layer.forward(self.shape, hidden, batch.sequences, &mask);
        }
        let logits = norm(hidden, &self.final_norm).matmul(self.head.clone());
        let targets = batch.targets.iter().map(|byte| i32::from(*byte)).collect::<Vec<_>>();
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [rows, 1]), device);
        log_softmax(logits, 1).gather(1, targets).mean().neg()
    }

    /// Rows for tokens at the given positions, `[tokens, width]`.
    fn embed(&self, tokens: &[u8], positions: Vec<i32>, device: &Device) -> Tensor<2> {
        let tokens: Vec<i32> = tokens.iter().map(|byte| i32::from(*byte)).collect();
        let rows = tokens.len();
        let tokens = Tensor::<1, Int>::from_data(TensorData::new(tokens, [rows]), device);
        let positions = Tensor::<1, Int>::from_data(TensorData::new(positions, [rows]), device);
        self.embedding.clone().select(0, tokens) + self.positions.clone().select(0, positions)
    }
}

impl Layer {
    fn forward(&self, shape: ModelShape, hidden: Tensor<2>, sequences: usize, mask: &Tensor<4>) -> Tensor<2> {
        let attended = self.attend(shape, norm(hidden.clone(), &self.attention_norm), sequences, mask);
        let hidden = hidden + attended;
        let inner = relu(norm(hidden.clone(), &self.feed_norm).matmul(self.feed_in.clone())).square();
        hidden + inner.matmul(self.feed_out.clone())
    }

    fn attend(&self, shape: ModelShape, rows: Tensor<2>, sequences: usize, mask: &Tensor<4>) -> Tensor<2> {
        let (width, heads, head_width) = (shape.width(), shape.heads(), shape.head_width());
        let count = rows.dims()[0];
        let time = count / sequences;
        let joined = rows.matmul(self.query_key_value.clone());
        let part = |number: usize| {
            let part = joined.clone().narrow(1, number * width, width);
            part.reshape([sequences, time, heads, head_width]).swap_dims(1, 2)
        };
        let (query, keys, values) = (part(0), part(1), part(2));
        let query = query.mul_scalar(1.0 / (head_width as f32).sqrt());
        let scores = query.matmul(keys.swap_dims(2, 3)) + mask.clone();
        let mixed = softmax(scores, 3).matmul(values);
        mixed.swap_dims(1, 2).reshape([count, width]).matmul(self.attention_out.clone())
    }
}

/// Root-mean-square norm of each row, times a gain.
fn norm(rows: Tensor<2>, gain: &Tensor<2>) -> Tensor<2> {
    let scale = rows.clone().square().mean_dim(1).add_scalar(NORM_EPSILON).sqrt();
    rows / scale * gain.clone()
}

/// What is added to the scores, `[1, heads, tokens, tokens]`: far below zero where a token would look into its future,
/// elsewhere less the further back it looks, at a slope of each head's own (ALiBi). With it a model finds its near past
/// sooner than by learned positions alone.
fn mask(heads: usize, tokens: usize, device: &Device) -> Tensor<4> {
    let mut values = Vec::with_capacity(heads * tokens * tokens);
    for head in 1..=heads {
        let slope = (-8.0 * head as f32 / heads as f32).exp2();
        for row in 0..tokens {
            let value = |column: usize| if column <= row { -slope * (row - column) as f32 } else { MASKED };
            values.extend((0..tokens).map(value));
        }
    }
    Tensor::from_data(TensorData::new(values, [1, heads, tokens, tokens]), device)
}
