//! Owns the inner phase of DiLoCo: AdamW steps from a checkpoint to a delta, and the held-out evaluation.
//! Must never keep weights that learn between tasks: they come from the checkpoint each round. Only the optimiser's moments
//! stay, and what is frozen.

use std::path::Path;

use burn::optim::{AdamW, AdamWConfig, AdamWState, Optimizer};
use burn::tensor::{Device, Tensor};
use skein_engine::source::TensorSource;

use crate::checkpoint::{Checkpoint, CheckpointError, Delta, read_weights};
use crate::data::{Batch, DataError, Dataset, Part};
use crate::decoder::{Decoder, Weights, turned, upload};
use crate::limits::{BATCH_MAX, BATCH_TOKENS_MAX, EVALUATE_TOKENS_AT_ONCE, INNER_STEPS_MAX};
use crate::packing::{Bits, pack, unpack};
use crate::trainee::{Role, TensorSpec, Trainee};

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.95;
const EPSILON: f32 = 1e-8;
const WEIGHT_DECAY: f32 = 0.1;

/// The gradient's norm over all tensors is cut to this.
const GRADIENT_NORM_MAX: f32 = 1.0;

/// The learning rate's last value, as a share of its first.
const FINAL_RATE: f64 = 0.2;

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
    /// Seed of the job; with the number of a window it decides which it is.
    pub seed: u64,
    /// Outer round; must be the checkpoint's.
    pub round: u32,
    /// Outer rounds of the job, over which the learning rate falls.
    pub rounds: u32,
    /// Number of the first window; those that follow are taken one after the other.
    pub first: u64,
    /// Optimiser steps.
    pub steps: u32,
    /// Sequences per step.
    pub batch: u32,
    /// Tokens per sequence.
    pub context: u32,
    /// Sequences whose activations are in memory at once; their gradients add up to the step's.
    pub at_once: u32,
    /// Learning rate after the warm-up.
    pub learning_rate: f32,
    /// Steps of the first round during which the learning rate rises linearly.
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

/// A model to be trained, and where it is.
pub struct Model {
    /// What learns.
    pub trainee: Trainee,
    /// What does not, on the device.
    frozen: Weights,
    device: Device,
}

impl Model {
    /// Puts what is frozen on the device.
    ///
    /// # Errors
    /// [`TrainError`] when it cannot be read.
    pub fn load(trainee: Trainee, source: &dyn TensorSource, device: &Device) -> Result<Self, TrainError> {
        let device = device.clone().without_autodiff();
        let mut frozen = Weights::new();
        for tensor in trainee.frozen() {
            let values = read_weights(source, &tensor.name)?;
            let role = Role::of(&tensor.name, tensor.rows);
            let (rows, columns) = (tensor.rows as usize, tensor.columns as usize);
            frozen.insert(tensor.name, upload(role, rows, columns, values, &device));
        }
        Ok(Self { trainee, frozen, device })
    }

    pub(crate) fn upload(&self, weights: &[Vec<f32>]) -> Vec<Tensor<2>> {
        let specs = self.trainee.tensors();
        debug_assert_eq!(specs.len(), weights.len(), "checked when the file was read");
        let upload = |(spec, values): (&TensorSpec, &Vec<f32>)| {
            upload(spec.role, spec.rows, spec.columns, values.clone(), &self.device)
        };
        specs.iter().zip(weights).map(upload).collect()
    }

    /// The decoder of these tensors, given in canonical order, with what is frozen.
    pub(crate) fn decoder(&self, learning: &[Tensor<2>], tracked: bool) -> Result<Decoder<'_>, TrainError> {
        let frozen = self.frozen.iter().map(|(name, tensor)| {
            let tensor = if tracked { tensor.clone().autodiff() } else { tensor.clone() };
            (name.clone(), tensor)
        });
        let names = self.trainee.tensors().iter().map(|spec| spec.name.clone());
        let weights: Weights = frozen.chain(names.zip(learning.iter().cloned())).collect();
        let incomplete = || TrainError::Device("the model does not hold every tensor".to_owned());
        Decoder::new(&self.trainee, &weights).ok_or_else(incomplete)
    }
}

/// What stays with a worker from one round of a job to the next: AdamW's moments, and what rounding kept back of the
/// deltas so far, which the next one makes good (error feedback). The default has no past.
#[derive(Default)]
pub struct Moments {
    specs: Vec<TensorSpec>,
    states: Vec<Option<AdamWState<2>>>,
    kept_back: Vec<Vec<f32>>,
}

impl Moments {
    /// Starts afresh unless these are moments of such tensors.
    fn fit(&mut self, specs: &[TensorSpec]) {
        if self.specs != specs {
            let states = specs.iter().map(|_| None).collect();
            let kept_back = specs.iter().map(|spec| vec![0.0; spec.elements()]).collect();
            *self = Self { specs: specs.to_vec(), states, kept_back };
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

/// Runs one inner phase from the checkpoint file `state` on the data file `data`. `after_step(steps, loss)` is called
/// after each step and returns false to cancel. `moments` of other tensors are replaced.
///
/// # Errors
/// [`TrainError`]; after an error the moments are those of the steps that were finished.
pub fn inner_phase(
    model: &Model,
    state: &Path,
    data: &Path,
    inner: &Inner,
    moments: &mut Moments,
    mut after_step: impl FnMut(u32, f32) -> bool,
) -> Result<InnerResult, TrainError> {
    let specs = model.trainee.tensors();
    check(inner)?;
    let checkpoint = Checkpoint::read(state, specs)?;
    if checkpoint.round != inner.round {
        return Err(TrainError::Round { found: checkpoint.round, wanted: inner.round });
    }
    let dataset = Dataset::read(data, model.trainee.config().vocabulary)?;
    let windows = dataset.windows(inner.context as usize)?;
    moments.fit(specs);
    let mut weights = model.upload(&checkpoint.weights);
    let optimiser = Optimiser::new(specs);
    let (mut losses, mut judged) = (0.0, 0u32);
    for step in 0..inner.steps {
        let first = inner.first.saturating_add(u64::from(step) * u64::from(inner.batch));
        let batch = windows.batch(inner.seed, first, inner.batch as usize);
        let rate = inner.rate(step);
        let loss = optimiser.step(model, &mut weights, &mut moments.states, &batch, inner.at_once, rate)?;
        let Some(loss) = loss else {
            if !after_step(step + 1, f32::NAN) {
                return Err(TrainError::Cancelled { steps: step + 1 });
            }
            continue;
        };
        if !loss.is_finite() {
            return Err(TrainError::Diverged { loss, step, round: inner.round });
        }
        losses += f64::from(loss);
        judged += 1;
        if !after_step(step + 1, loss) {
            return Err(TrainError::Cancelled { steps: step + 1 });
        }
    }
    let mut values = checkpoint.weights;
    for ((before, after), spec) in values.iter_mut().zip(weights).zip(specs) {
        let after = download(after, spec)?;
        before.iter_mut().zip(after).for_each(|(before, after)| *before -= after);
    }
    if !values.iter().flatten().all(|value| value.is_finite()) {
        return Err(TrainError::Diverged { loss: f32::NAN, step: inner.steps, round: inner.round });
    }
    let tokens = u64::from(inner.steps) * u64::from(inner.batch) * u64::from(inner.context);
    moments.round(&mut values, inner.bits)?;
    let delta = Delta { round: inner.round, bits: inner.bits, values };
    Ok(InnerResult { delta, loss: losses / f64::from(judged.max(1)), tokens })
}

/// Mean loss in nats per token over a part of what is held out, and the number of tokens it was measured on; 0 of both
/// where the part is empty.
///
/// # Errors
/// [`TrainError`] for unusable files or a failing device.
pub fn evaluate(
    model: &Model,
    checkpoint: &Checkpoint,
    data: &Path,
    context: u32,
    part: Part,
) -> Result<(f64, u64), TrainError> {
    let dataset = Dataset::read(data, model.trainee.config().vocabulary)?;
    let weights = model.upload(&checkpoint.weights);
    let decoder = model.decoder(&weights, false)?;
    let (mut sum, mut tokens) = (0.0, 0);
    let sequences = EVALUATE_TOKENS_AT_ONCE / context.max(1) as usize;
    for batch in dataset.held_out(context as usize, sequences, part)? {
        sum += f64::from(scalar(decoder.loss(&batch, &model.device))?);
        tokens += batch.counted().1.len() as u64;
    }
    Ok((sum / (tokens as f64).max(1.0), tokens))
}

fn check(inner: &Inner) -> Result<(), TrainError> {
    let bounded = |what, value: u64, least: u64, most: u64| {
        if (least..=most).contains(&value) {
            Ok(())
        } else {
            Err(TrainError::Setting { what, value, least, most })
        }
    };
    let tokens = u64::from(inner.batch) * u64::from(inner.context);
    bounded("inner steps", inner.steps.into(), 1, INNER_STEPS_MAX.into())?;
    bounded("batch", inner.batch.into(), 1, BATCH_MAX.into())?;
    bounded("tokens in a batch", tokens, 1, BATCH_TOKENS_MAX)?;
    bounded("sequences at once", inner.at_once.into(), 1, BATCH_MAX.into())?;
    bounded("round", inner.round.into(), 0, u64::from(inner.rounds).saturating_sub(1))
}

impl Inner {
    /// Rises over the first steps, then falls by a cosine to a fifth over the job's rounds.
    fn rate(&self, step: u32) -> f64 {
        let within = f64::from(step) / f64::from(self.steps.max(1));
        let part = (f64::from(self.round) + within) / f64::from(self.rounds.max(1));
        let fall = FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + (std::f64::consts::PI * part).cos());
        let ramp =
            if self.round == 0 { f64::from(step + 1) / f64::from(self.warmup_steps.max(1)) } else { 1.0 };
        f64::from(self.learning_rate) * fall * ramp.min(1.0)
    }
}

/// AdamW for matrices, and the same without decay for gains and tables.
struct Optimiser {
    decaying: AdamW,
    plain: AdamW,
    decays: Vec<bool>,
}

impl Optimiser {
    fn new(specs: &[TensorSpec]) -> Self {
        let config = |decay| {
            let config = AdamWConfig::new().with_beta_1(BETA_1).with_beta_2(BETA_2).with_epsilon(EPSILON);
            config.with_weight_decay(decay).build()
        };
        let decays = |role| match role {
            Role::Vector | Role::Table => false,
            Role::Matrix => true,
        };
        let decays = specs.iter().map(|spec| decays(spec.role)).collect();
        Self { decaying: config(WEIGHT_DECAY), plain: config(0.0), decays }
    }

    /// One step in place; returns the mean loss before it, or nothing if no token of the batch counts. A loss that is not
    /// finite changes nothing.
    fn step(
        &self,
        model: &Model,
        weights: &mut [Tensor<2>],
        states: &mut [Option<AdamWState<2>>],
        batch: &Batch,
        at_once: u32,
        rate: f64,
    ) -> Result<Option<f32>, TrainError> {
        let parts: Vec<Batch> = batch.parts(at_once as usize).collect();
        let counted: usize = parts.iter().map(|part| part.counted().1.len()).sum();
        let mut total = 0.0;
        let mut sum: Option<Vec<Tensor<2>>> = None;
        for part in parts.iter().filter(|part| !part.counted().1.is_empty()) {
            let (loss, gradients) = gradients(model, weights, part, counted)?;
            total += loss;
            sum = Some(match sum {
                None => gradients,
                Some(sum) => sum.into_iter().zip(gradients).map(|(sum, more)| sum + more).collect(),
            });
        }
        let Some(gradients) = sum else { return Ok(None) };
        if !total.is_finite() {
            return Ok(Some(total));
        }
        let squares = gradients.iter().map(|gradient| gradient.clone().square().sum()).collect();
        let norm = scalar(Tensor::cat(squares, 0).sum().sqrt())?;
        let scale = if norm > GRADIENT_NORM_MAX { GRADIENT_NORM_MAX / norm } else { 1.0 };
        for (number, gradient) in gradients.into_iter().enumerate() {
            let optimiser = if self.decays[number] { &self.decaying } else { &self.plain };
            let gradient = if scale == 1.0 { gradient } else { gradient.mul_scalar(scale) };
            let (weight, state) =
                optimiser.step(rate, weights[number].clone(), gradient, states[number].take());
            weights[number] = weight;
            states[number] = state;
        }
        Ok(Some(total))
    }
}

/// The loss of a part of a batch of which `counted` tokens count, as its share of the batch's mean, and its gradients by
/// the tensors that learn.
pub(crate) fn gradients(
    model: &Model,
    weights: &[Tensor<2>],
    part: &Batch,
    counted: usize,
) -> Result<(f32, Vec<Tensor<2>>), TrainError> {
    let tracked: Vec<Tensor<2>> =
        weights.iter().map(|tensor| tensor.clone().autodiff().require_grad()).collect();
    let decoder = model.decoder(&tracked, true)?;
    let loss = decoder.loss(part, &model.device.clone().autodiff()).div_scalar(counted as f32);
    drop(decoder);
    let mut gradients = loss.backward();
    let loss = scalar(loss.inner())?;
    let mut found = Vec::with_capacity(tracked.len());
    for tensor in &tracked {
        let gradient = tensor.grad_remove(&mut gradients);
        found.push(gradient.ok_or_else(|| TrainError::Device("a tensor got no gradient".to_owned()))?);
    }
    Ok((loss, found))
}

/// Reads one number back from the device.
fn scalar(tensor: Tensor<1>) -> Result<f32, TrainError> {
    let values = read(tensor)?;
    values.first().copied().ok_or_else(|| TrainError::Device("an empty tensor came back".to_owned()))
}

/// Reads a tensor back from the device, as files have it.
pub(crate) fn download(tensor: Tensor<2>, spec: &TensorSpec) -> Result<Vec<f32>, TrainError> {
    let values = read(tensor)?;
    Ok(match spec.role {
        Role::Matrix => turned(&values, spec.columns, spec.rows),
        Role::Vector | Role::Table => values,
    })
}

fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, TrainError> {
    crate::device::read(tensor).map_err(TrainError::Device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainee::Method;
    use crate::trainee::tests::config;

    #[test]
    fn what_rounding_keeps_back_comes_with_the_next_delta() {
        let trainee = Trainee::new(config(), false, Method::Full).unwrap();
        let specs = trainee.tensors();
        let mut moments = Moments::default();
        moments.fit(specs);
        let meant: Vec<Vec<f32>> = specs
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
