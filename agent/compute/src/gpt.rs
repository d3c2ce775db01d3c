//! Owns the model: a pre-norm decoder over bytes, written once in Burn for every device. The feed-forward layer squares
//! a ReLU, which is cheaper than GELU on a processor.
//! Must never know where weights come from, what trains them, or who asks: tensors in, tensors out.
//!
//! Activations are `[rows, width]`, a row being one token of one sequence. A [`Gpt`] holds a contiguous range of the
//! layers; the whole model is the range of all of them, so a chain of stages runs the same operations on the same
//! values as the whole.

use std::ops::Range;

use burn::tensor::activation::{log_softmax, relu, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::data::Batch;
use crate::shape::{ModelShape, TensorSpec};

/// Added to the mean square before its root, so that a row of zeros has a norm.
const NORM_EPSILON: f32 = 1e-6;

/// What masked scores become: far below any score, yet finite, so that no subtraction gives NaN.
const MASKED: f32 = -1e9;

/// A contiguous range of a model's layers on one device.
#[derive(Clone)]
pub(crate) struct Gpt {
    shape: ModelShape,
    tables: Option<Tables>,
    layers: Vec<Layer>,
    head: Option<Head>,
}

#[derive(Clone)]
struct Tables {
    /// `[256, width]`
    embedding: Tensor<2>,
    /// `[context, width]`
    positions: Tensor<2>,
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

#[derive(Clone)]
struct Head {
    /// `[1, width]`
    norm: Tensor<2>,
    /// `[width, 256]`
    matrix: Tensor<2>,
}

/// Keys and values of one layer for one sequence: each `[1, heads, cached, head width]`.
#[derive(Clone)]
pub(crate) struct LayerCache {
    keys: Tensor<4>,
    values: Tensor<4>,
}

/// Uploads host weights in canonical order; vectors become `[1, n]`, so that every tensor has two dimensions.
pub(crate) fn upload(
    shape: ModelShape,
    layers: Range<usize>,
    weights: Vec<Vec<f32>>,
    device: &Device,
) -> Vec<Tensor<2>> {
    let specs = shape.tensors_of(layers);
    debug_assert_eq!(specs.len(), weights.len(), "checked when the file was read");
    let upload = |(spec, values): (&TensorSpec, Vec<f32>)| {
        let columns = spec.dimensions.last().copied().unwrap_or(1);
        let rows = values.len() / columns;
        Tensor::from_data(TensorData::new(values, [rows, columns]), device)
    };
    specs.iter().zip(weights).map(upload).collect()
}

impl Gpt {
    /// Arranges tensors, given in the canonical order of [`ModelShape::tensors_of`] for `layers`. `None` when their
    /// number does not fit.
    pub(crate) fn new(shape: ModelShape, layers: Range<usize>, tensors: &[Tensor<2>]) -> Option<Self> {
        let mut rest = tensors.iter().cloned();
        let tables = match layers.start {
            0 => Some(Tables { embedding: rest.next()?, positions: rest.next()? }),
            _ => None,
        };
        let last = layers.end == shape.layers();
        let mut blocks = Vec::with_capacity(layers.len());
        for _ in layers {
            blocks.push(Layer {
                attention_norm: rest.next()?,
                query_key_value: rest.next()?,
                attention_out: rest.next()?,
                feed_norm: rest.next()?,
                feed_in: rest.next()?,
                feed_out: rest.next()?,
            });
        }
        let head = match last {
            true => Some(Head { norm: rest.next()?, matrix: rest.next()? }),
            false => None,
        };
        rest.next().is_none().then_some(Self { shape, tables, layers: blocks, head })
    }

    /// Mean cross-entropy in nats per token over a batch, as `[1]`. The model must hold every layer.
    pub(crate) fn loss(&self, batch: &Batch, device: &Device) -> Option<Tensor<1>> {
        let rows = batch.sequences * batch.context;
        let positions = (0..rows).map(|row| (row % batch.context) as i32).collect();
        let mut hidden = self.embed(&batch.inputs, positions, device)?;
        let mask = mask(self.shape.heads(), 0, batch.context, device);
        for layer in &self.layers {
            hidden = layer.forward(self.shape, hidden, batch.sequences, &mask, None);
        }
        let logits = self.logits(hidden)?;
        let targets = batch.targets.iter().map(|byte| i32::from(*byte)).collect::<Vec<_>>();
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [rows, 1]), device);
        Some(log_softmax(logits, 1).gather(1, targets).mean().neg())
    }

    /// Rows for tokens at the given positions, `[tokens, width]`; `None` unless this range holds the tables.
    pub(crate) fn embed(&self, tokens: &[u8], positions: Vec<i32>, device: &Device) -> Option<Tensor<2>> {
        let tables = self.tables.as_ref()?;
        let tokens: Vec<i32> = tokens.iter().map(|byte| i32::from(*byte)).collect();
        let rows = tokens.len();
        let tokens = Tensor::<1, Int>::from_data(TensorData::new(tokens, [rows]), device);
        let positions = Tensor::<1, Int>::from_data(TensorData::new(positions, [rows]), device);
        Some(tables.embedding.clone().select(0, tokens) + tables.positions.clone().select(0, positions))
    }

    /// Extends one sequence by `hidden`, `[tokens, width]`, whose first token is at `position`; the caches, one per
    /// layer and empty at position 0, hold exactly `position` tokens before and `position + tokens` after.
    pub(crate) fn extend(
        &self,
        mut hidden: Tensor<2>,
        position: usize,
        caches: &mut Vec<LayerCache>,
        device: &Device,
    ) -> Tensor<2> {
        let mask = mask(self.shape.heads(), position, hidden.dims()[0], device);
        let mut past = std::mem::take(caches).into_iter();
        for layer in &self.layers {
            let mut cache = past.next();
            hidden = layer.forward(self.shape, hidden, 1, &mask, Some(&mut cache));
            caches.extend(cache);
        }
        hidden
    }

    /// Logits `[rows, 256]`; `None` unless this range holds the head.
    pub(crate) fn logits(&self, hidden: Tensor<2>) -> Option<Tensor<2>> {
        let head = self.head.as_ref()?;
        Some(norm(hidden, &head.norm).matmul(head.matrix.clone()))
    }
}

impl LayerCache {
    /// Forgets every token from `length` on.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.keys = self.keys.clone().narrow(2, 0, length);
        self.values = self.values.clone().narrow(2, 0, length);
    }
}

impl Layer {
    fn forward(
        &self,
        shape: ModelShape,
        hidden: Tensor<2>,
        sequences: usize,
        mask: &Tensor<4>,
        cache: Option<&mut Option<LayerCache>>,
    ) -> Tensor<2> {
        let attended = self.attend(shape, norm(hidden.clone(), &self.attention_norm), sequences, mask, cache);
        let hidden = hidden + attended;
        let inner = relu(norm(hidden.clone(), &self.feed_norm).matmul(self.feed_in.clone())).square();
        hidden + inner.matmul(self.feed_out.clone())
    }

    fn attend(
        &self,
        shape: ModelShape,
        rows: Tensor<2>,
        sequences: usize,
        mask: &Tensor<4>,
        cache: Option<&mut Option<LayerCache>>,
    ) -> Tensor<2> {
        let (width, heads, head_width) = (shape.width(), shape.heads(), shape.head_width());
        let count = rows.dims()[0];
        let time = count / sequences;
        let joined = rows.matmul(self.query_key_value.clone());
        let part = |number: usize| {
            let part = joined.clone().narrow(1, number * width, width);
            part.reshape([sequences, time, heads, head_width]).swap_dims(1, 2)
        };
        let (query, mut keys, mut values) = (part(0), part(1), part(2));
        if let Some(cache) = cache {
            if let Some(past) = cache.take() {
                keys = Tensor::cat(vec![past.keys, keys], 2);
                values = Tensor::cat(vec![past.values, values], 2);
            }
            *cache = Some(LayerCache { keys: keys.clone(), values: values.clone() });
        }
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

/// What is added to the scores, `[1, heads, tokens, position + tokens]`: far below zero where a token would look into
/// its future, elsewhere less the further back it looks, at a slope of each head's own (ALiBi). With it a model finds
/// its near past sooner than by learned positions alone.
fn mask(heads: usize, position: usize, tokens: usize, device: &Device) -> Tensor<4> {
    let columns = position + tokens;
    let mut values = Vec::with_capacity(heads * tokens * columns);
    for head in 1..=heads {
        let slope = (-8.0 * head as f32 / heads as f32).exp2();
        for row in position..columns {
            let value = |column: usize| if column <= row { -slope * (row - column) as f32 } else { MASKED };
            values.extend((0..columns).map(value));
        }
    }
    Tensor::from_data(TensorData::new(values, [1, heads, tokens, columns]), device)
}
