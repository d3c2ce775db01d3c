//! Owns the inner phase of DiLoCo: AdamW steps from a checkpoint to a delta, and the held-out evaluation.
//! Must never keep weights between tasks: they come from the checkpoint each round. Only the optimiser's moments stay.

use std::path::Path;

use burn::optim::{AdamW, AdamWConfig, AdamWState, Optimizer};
use burn::tensor::{Device, Tensor};

use crate::checkpoint::{Checkpoint, CheckpointError, Delta};
use crate::data::{Batch, DataError, StepId, Text};
use crate::gpt::{Gpt, upload};
use crate::limits::{BATCH_MAX, BATCH_TOKENS_MAX, EVALUATE_TOKENS_AT_ONCE, INNER_STEPS_MAX};
use crate::packing::{Bits, pack, unpack};
use crate::shape::{ModelShape, Role};

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.95;
const EPSILON: f32 = 1e-8;
const WEIGHT_DECAY: f32 = 0.1;

/// The gradient's norm over all tensors is cut to this.
const GRADIENT_NORM_MAX: f32 = 1.0;

/// Why an inner phase or an evaluation gave no result. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The checkpoint or delta could not be read or written.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// The text cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A setting is outside its bounds.
    #[error("{what} is {value}, allowed are {least} to {most}")]
    Setting {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: u64,
        /// Smallest allowed.
        least: u64,
        /// Largest allowed.
        most: u64,
    },
    /// The checkpoint is of another round than the task.
    #[error("the checkpoint is of round {found}, the task of round {wanted}")]
    Round {
        /// Round of the checkpoint.
        found: u32,
        /// Round of the task.
        wanted: u32,
    },
    /// The loss left the numbers.
    #[error("the loss is {loss} at step {step} of round {round}; lower the learning rate")]
    Diverged {
        /// What the loss became.
        loss: f32,
        /// Inner step, from 0.
        step: u32,
        /// Outer round.
        round: u32,
    },
    /// The task was cancelled between steps.
    #[error("cancelled after {steps} steps")]
    Cancelled {
        /// Steps that were finished.
        steps: u32,
    },
    /// The device failed to compute or to hand back a result.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Settings of one inner phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inner {
    /// Seed of the job; with the three below and the step it decides every batch.
    pub seed: u64,
    /// Outer round; must be the checkpoint's.
    pub round: u32,
    /// Shard within the round, below `of`.
    pub index: u32,
    /// Shards in the round.
    pub of: u32,
    /// Optimiser steps.
    pub steps: u32,
    /// Sequences per step, each of the model's full context.
    pub batch: u32,
    /// Learning rate after the warm-up.
    pub learning_rate: f32,
    /// Steps, counted over all rounds, during which the learning rate rises linearly.
    pub warmup_steps: u32,
    /// Of an element of the delta.
    pub bits: Bits,
}

/// What one inner phase did.
#[derive(Clone, Debug)]
pub struct InnerResult {
    /// Weights before less weights after.
    pub delta: Delta,
    /// Mean training loss over the steps, in nats per token.
    pub loss: f64,
    /// Tokens trained on.
    pub tokens: u64,
}

/// What stays with a worker from one round of a job to the next: AdamW's moments, and what rounding kept back of the
/// deltas so far, which the next one makes good (error feedback). The default has no past.
#[derive(Default)]
pub struct Moments {
    shape: Option<ModelShape>,
    states: Vec<Option<AdamWState<2>>>,
    kept_back: Vec<Vec<f32>>,
}

impl Moments {
    /// Starts afresh unless these are moments of `shape`.
    fn fit(&mut self, shape: ModelShape) {
        if self.shape != Some(shape) {
            let specs = shape.tensors();
            let states = specs.iter().map(|_| None).collect();
            let kept_back = specs.iter().map(|spec| vec![0.0; spec.elements()]).collect();
            *self = Self { shape: Some(shape), states, kept_back };
        }
    }

    /// Rounds a delta to what so many bits tell, and keeps the rest for the next.
    fn round(&mut self, values: &mut [Vec<f32>], bits: Bits) -> Result<(), TrainError> {
        for (values, kept_back) in values.iter_mut().zip(&mut self.kept_back) {
            let wanted: Vec<f32> =
                values.iter().zip(kept_back.iter()).map(|(value, kept)| value + kept).collect();
            let packed = pack(&wanted, bits);
            *values = unpack(&packed.codes, &packed.scales, bits, wanted.len())
                .ok_or_else(|| TrainError::Device("the delta leaves the range of f32".to_owned()))?;
            for ((kept, wanted), sent) in kept_back.iter_mut().zip(wanted).zip(values.iter()) {
                *kept = wanted - sent;
            }
        }
        Ok(())
    }
}

/// Runs one inner phase from the checkpoint file `state` on the text file `data`. `after_step(steps, loss)` is called
/// after each step and returns false to cancel. `moments` of another shape are replaced.
///
/// # Errors
/// [`TrainError`]; after an error the moments are those of the steps that were finished.
pub fn inner_phase(
    device: &Device,
    state: &Path,
    data: &Path,
    inner: &Inner,
    moments: &mut Moments,
    mut after_step: impl FnMut(u32, f32) -> bool,
) -> Result<InnerResult, TrainError> {
    let checkpoint = Checkpoint::read(state)?;
    let shape = checkpoint.shape;
    check(inner, &checkpoint)?;
    let text = Text::read(data, shape.context())?;
    moments.fit(shape);
    let device = device.clone().without_autodiff();
    let mut weights = upload(shape, checkpoint.weights.clone(), &device);
    let optimiser = Optimiser::new(shape);
    let mut losses = 0.0;
    for step in 0..inner.steps {
        let id = StepId { seed: inner.seed, round: inner.round, index: inner.index, of: inner.of, step };
        let batch = text.batch(id, inner.batch as usize);
        let loss =
            optimiser.step(shape, &mut weights, &mut moments.states, &batch, inner.rate(step), &device)?;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { loss, step, round: inner.round });
        }
        losses += f64::from(loss);
        if !after_step(step + 1, loss) {
            return Err(TrainError::Cancelled { steps: step + 1 });
        }
    }
    let mut values = checkpoint.weights;
    for (before, after) in values.iter_mut().zip(weights) {
        for (before, after) in before.iter_mut().zip(download(after)?) {
            *before -= after;
        }
    }
    if !values.iter().flatten().all(|value| value.is_finite()) {
        return Err(TrainError::Diverged { loss: f32::NAN, step: inner.steps, round: inner.round });
    }
    let tokens = u64::from(inner.steps) * u64::from(inner.batch) * shape.context() as u64;
    moments.round(&mut values, inner.bits)?;
    let delta = Delta { shape, round: inner.round, bits: inner.bits, values };
    Ok(InnerResult { delta, loss: losses / f64::from(inner.steps), tokens })
}

/// Mean held-out loss in nats per token, and the number of tokens it was measured on.
///
/// # Errors
/// [`TrainError`] for unusable files or a failing device.
pub fn evaluate(device: &Device, checkpoint: &Checkpoint, data: &Path) -> Result<(f64, u64), TrainError> {
    let shape = checkpoint.shape;
    let text = Text::read(data, shape.context())?;
    let device = device.clone().without_autodiff();
    let weights = upload(shape, checkpoint.weights.clone(), &device);
    let model = Gpt::new(shape, &weights).ok_or_else(whole)?;
    let (mut sum, mut tokens) = (0.0, 0);
    for batch in text.held_out(EVALUATE_TOKENS_AT_ONCE / shape.context()) {
        let loss = scalar(model.loss(&batch, &device))?;
        let count = batch.inputs.len() as u64;
        sum += f64::from(loss) * count as f64;
        tokens += count;
    }
    Ok((sum / tokens as f64, tokens))
}

fn check(inner: &Inner, checkpoint: &Checkpoint) -> Result<(), TrainError> {
    let bounded = |what, value: u64, least: u64, most: u64| {
        if (least..=most).contains(&value) {
            Ok(())
        } else {
            Err(TrainError::Setting { what, value, least, most })
        }
    };
    let tokens = u64::from(inner.batch) * checkpoint.shape.context() as u64;
    bounded("inner steps", inner.steps.into(), 1, INNER_STEPS_MAX.into())?;
    bounded("batch", inner.batch.into(), 1, BATCH_MAX.into())?;
    bounded("tokens in a batch", tokens, 1, BATCH_TOKENS_MAX)?;
    bounded("shards", inner.of.into(), 1, u32::MAX.into())?;
    bounded("shard index", inner.index.into(), 0, u64::from(inner.of) - 1)?;
    if checkpoint.round != inner.round {
        return Err(TrainError::Round { found: checkpoint.round, wanted: inner.round });
    }
    Ok(())
}

impl Inner {
    fn rate(&self, step: u32) -> f64 {
        let done = u64::from(self.round) * u64::from(self.steps) + u64::from(step) + 1;
        let ramp = done as f64 / f64::from(self.warmup_steps.max(1));
        f64::from(self.learning_rate) * ramp.min(1.0)
    }
}

/// AdamW for matrices, and the same without decay for gains and tables.
struct Optimiser {
    decaying: AdamW,
    plain: AdamW,
    decays: Vec<bool>,
}

impl Optimiser {
    fn new(shape: ModelShape) -> Self {
        let config = |decay| {
            let config = AdamWConfig::new().with_beta_1(BETA_1).with_beta_2(BETA_2).with_epsilon(EPSILON);
            config.with_weight_decay(decay).build()
        };
        let decays = |role| match role {
            Role::Gain | Role::Table => false,
            Role::Matrix | Role::ResidualMatrix => true,
        };
        let decays = shape.tensors().iter().map(|spec| decays(spec.role)).collect();
        Self { decaying: config(WEIGHT_DECAY), plain: config(0.0), decays }
    }

    /// One step in place; returns the loss before it. A loss that is not finite changes nothing.
    fn step(
        &self,
        shape: ModelShape,
        weights: &mut [Tensor<2>],
        states: &mut [Option<AdamWState<2>>],
        batch: &Batch,
        rate: f64,
        device: &Device,
    ) -> Result<f32, TrainError> {
        let tracked: Vec<Tensor<2>> =
            weights.iter().map(|tensor| tensor.clone().autodiff().require_grad()).collect();
        let model = Gpt::new(shape, &tracked).ok_or_else(whole)?;
        let loss = model.loss(batch, &device.clone().autodiff());
        drop(model);
        let mut gradients = loss.backward();
        let loss = scalar(loss.inner())?;
        if !loss.is_finite() {
            return Ok(loss);
        }
        let mut found = Vec::with_capacity(tracked.len());
        for tensor in &tracked {
            let gradient = tensor.grad_remove(&mut gradients);
            found.push(gradient.ok_or_else(|| TrainError::Device("a tensor got no gradient".to_owned()))?);
        }
        drop(tracked);
        let squares = found.iter().map(|gradient| gradient.clone().square().sum()).collect();
        let norm = scalar(Tensor::cat(squares, 0).sum().sqrt())?;
        let scale = if norm > GRADIENT_NORM_MAX { GRADIENT_NORM_MAX / norm } else { 1.0 };
        for (number, gradient) in found.into_iter().enumerate() {
            let optimiser = if self.decays[number] { &self.decaying } else { &self.plain };
            let gradient = if scale == 1.0 { gradient } else { gradient.mul_scalar(scale) };
            let (weight, state) =
                optimiser.step(rate, weights[number].clone(), gradient, states[number].take());
            weights[number] = weight;
            states[number] = state;
        }
        Ok(loss)
    }
}

fn whole() -> TrainError {
    TrainError::Device("the model does not hold every layer".to_owned())
}

/// Reads one number back from the device.
fn scalar(tensor: Tensor<1>) -> Result<f32, TrainError> {
    let values = read(tensor)?;
    values.first().copied().ok_or_else(|| TrainError::Device("an empty tensor came back".to_owned()))
}

/// Reads a matrix back from the device, row-major.
fn download(tensor: Tensor<2>) -> Result<Vec<f32>, TrainError> {
    read(tensor)
}

fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, TrainError> {
    crate::device::read(tensor).map_err(TrainError::Device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounding_keeps_back_comes_with_the_next_delta() {
        let shape = ModelShape::new(1, 8, 2, 4).unwrap();
        let mut moments = Moments::default();
        moments.fit(shape);
        let meant: Vec<Vec<f32>> = shape
            .tensors()
            .iter()
            .map(|spec| (0..spec.elements()).map(|at| 1e-3 * (at as f32 * 0.7).sin()).collect())
            .collect();
        let mut sum = vec![0.0; meant.iter().map(Vec::len).sum()];
        let off = |sum: &[f32], times: f32| -> f32 {
            let differences =
                meant.iter().flatten().zip(sum).map(|(meant, sum)| (meant - sum / times).powi(2));
            differences.sum::<f32>().sqrt()
        };
        let mut first = 0.0;
        for time in 1..=10_u8 {
            let mut values = meant.clone();
            moments.round(&mut values, Bits::Four).unwrap();
            for (sum, sent) in sum.iter_mut().zip(values.iter().flatten()) {
                *sum += sent;
            }
            if time == 1 {
                first = off(&sum, 1.0);
            }
        }
        let last = off(&sum, 10.0);
        assert!(first > 0.0 && last < first / 5.0, "off by {first} once and by {last} on average over ten");
    }
}
