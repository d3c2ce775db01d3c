//! Owns the inner phase of DiLoCo: optimiser steps from a checkpoint to a delta, and the held-out evaluation; for a whole
//! model at once, and piece by piece for the members of a group (`group`).
//! Must never keep weights that learn between tasks: they come from the checkpoint each round. Only the optimiser's moments
//! stay, and what is frozen.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::checkpoint::{Checkpoint, CheckpointError, Delta};
use crate::data::{Batch, DataError, Dataset, Part};
use crate::limits::{
    BATCH_MAX, BATCH_TOKENS_MAX, EVALUATE_TOKENS_AT_ONCE, INNER_STEPS_MAX, LOSS_GUESSES_MAX,
};
use crate::optimiser::{Moments, Optimiser};
use crate::packing::Bits;
use crate::passes::{Gradients, Kept, Micro, Model, Passes, download};
use crate::random::mix;

/// The learning rate's last value, as a share of its first.
const FINAL_RATE: f64 = 0.2;

/// Half a dozen units in the last place of an f32, which is what devices differ by.
const SHAKE: f32 = 1.0 / (1 << 20) as f32;

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
    /// The loss, or what depends on it, left the numbers, or is far worse than that of guessing.
    #[error(
        "training diverged: the {what} is {value:.3} at step {step} of outer step {round}; lower the learning rate"
    )]
    Diverged {
        /// What left them.
        what: &'static str,
        /// What it became.
        value: f64,
        /// Inner step, from 0.
        step: u32,
        /// Outer round.
        round: u32,
    },
    /// What a checkpoint gives left the numbers.
    #[error("the {what} is {value} by the checkpoint of round {round}")]
    Worthless {
        /// What left them.
        what: &'static str,
        /// What it became.
        value: f32,
        /// Round of the checkpoint.
        round: u32,
    },
    /// A phase came to another result than was claimed, but comes to another one each time.
    #[error(
        "the phase cannot be checked: a change of a millionth in the weights changes what it gives by {spread:.4} of it"
    )]
    Unstable {
        /// Distance between the results of two runs here.
        spread: f64,
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
    /// Whether every layer is computed again for its gradients, so that only its input is kept until then.
    pub recompute: bool,
    /// Learning rate after the warm-up.
    pub learning_rate: f32,
    /// An agent's steps during which the learning rate rises linearly.
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

/// Runs one inner phase from the checkpoint file `state` on `data`. `after_step(steps, loss)` is called
/// after each step, with NaN where no token counted, and returns false to cancel. `moments` of other tensors are replaced.
///
/// # Errors
/// [`TrainError`]; after an error the moments are those of the steps that were finished.
pub fn inner_phase(
    model: &Model,
    state: &Path,
    data: &Arc<Dataset>,
    inner: &Inner,
    moments: &mut Moments,
    after_step: impl FnMut(u32, f32) -> bool,
) -> Result<InnerResult, TrainError> {
    let mut phase = Phase::begin(model, state, data, inner, moments)?;
    phase.run(model, moments, after_step)?;
    phase.finish(model, moments)
}

/// Mean loss in nats per token of the checkpoint file `state` over a part of what is held out, and the number of tokens it
/// was measured on; 0 of both where the part is empty.
///
/// # Errors
/// [`TrainError`] for unusable files or a failing device.
pub fn evaluate(
    model: &Model,
    state: &Path,
    data: &Dataset,
    context: u32,
    part: Part,
) -> Result<(f64, u64), TrainError> {
    let sequences = EVALUATE_TOKENS_AT_ONCE / context.max(1) as usize;
    let mut judging = Judging::begin(model, state, data, context, sequences, part)?;
    for batch in &judging.batches {
        let loss = judging.passes.loss(Micro { model, weights: &judging.weights, batch }, None)?;
        judging.sum.add(finite("loss", loss, judging.round)?, batch);
    }
    Ok(judging.sum.mean())
}

/// An inner phase under way, of a whole model or of some of its layers.
pub(crate) struct Phase {
    pub(crate) inner: Inner,
    /// Steps finished.
    pub(crate) steps: u32,
    before: Vec<Vec<f32>>,
    weights: Vec<Tensor<2>>,
    dataset: Arc<Dataset>,
    passes: Passes,
    optimiser: Optimiser,
    losses: f64,
    judged: u32,
    /// A step with a greater loss is the end.
    loss_max: f64,
}

/// A step under way: its micro-batches, and the gradients of those that are done.
pub(crate) struct Step {
    /// The batch, in parts that are in memory one at a time.
    pub(crate) parts: Vec<Batch>,
    /// Tokens of the whole batch that count.
    pub(crate) counted: usize,
    pub(crate) gradients: Gradients,
    /// The mean's part so far, where the model's last layer is.
    loss: Option<f32>,
}

impl Step {
    /// Whether any token of a part counts. Nothing is learnt from the others.
    pub(crate) fn counts(&self, part: usize) -> bool {
        self.parts.get(part).is_some_and(Batch::counts_any)
    }
}

impl Phase {
    /// Reads what the model's layers need of the checkpoint.
    ///
    /// # Errors
    /// [`TrainError`] for unusable files and settings.
    pub(crate) fn begin(
        model: &Model,
        state: &Path,
        data: &Arc<Dataset>,
        inner: &Inner,
        moments: &mut Moments,
    ) -> Result<Self, TrainError> {
        let specs = model.trainee.tensors();
        check(inner)?;
        let (round, before) = Checkpoint::read_weights(state, &model.trainee)?;
        if round != inner.round {
            return Err(TrainError::Round { found: round, wanted: inner.round });
        }
        let dataset = Arc::clone(data);
        dataset.windows(inner.context as usize)?;
        moments.fit(specs);
        let weights = model.upload(&before);
        let passes = Passes::new(model, inner.context as usize, inner.recompute);
        let optimiser = Optimiser::new(specs);
        let (inner, steps, losses, judged) = (*inner, 0, 0.0, 0);
        let loss_max = LOSS_GUESSES_MAX * f64::from(model.trainee.config().vocabulary).ln();
        Ok(Self { inner, steps, before, weights, dataset, passes, optimiser, losses, judged, loss_max })
    }

    /// Changes every weight to start from by about a millionth of itself, so that what comes of it tells how much a phase
    /// makes of such differences.
    pub(crate) fn shake(&mut self, model: &Model) {
        for (number, weight) in self.before.iter_mut().flatten().enumerate() {
            let up = mix(number as u64) & 1 == 0;
            *weight *= if up { 1.0 + SHAKE } else { 1.0 - SHAKE };
        }
        self.weights = model.upload(&self.before);
    }

    /// All steps, where the model is whole.
    ///
    /// # Errors
    /// As [`inner_phase`].
    pub(crate) fn run(
        &mut self,
        model: &Model,
        moments: &mut Moments,
        mut after_step: impl FnMut(u32, f32) -> bool,
    ) -> Result<(), TrainError> {
        while let Some(mut step) = self.next_step()? {
            for number in 0..step.parts.len() {
                if step.counts(number) {
                    self.learn(model, &mut step, number, None)?;
                }
            }
            let squares = step.gradients.squares()?;
            let loss = self.update(step, squares, moments)?;
            if !after_step(self.steps, loss.unwrap_or(f32::NAN)) {
                return Err(TrainError::Cancelled { steps: self.steps });
            }
        }
        Ok(())
    }

    /// The step that comes next, unless it was the last.
    ///
    /// # Errors
    /// [`TrainError::Data`], which [`Self::begin`] would have given.
    pub(crate) fn next_step(&self) -> Result<Option<Step>, TrainError> {
        let inner = &self.inner;
        if self.steps == inner.steps {
            return Ok(None);
        }
        let first = inner.first.saturating_add(u64::from(self.steps) * u64::from(inner.batch));
        let windows = self.dataset.windows(inner.context as usize)?;
        let batch = windows.batch(inner.seed, first, inner.batch as usize);
        let counted = batch.counted().1.len();
        let parts = batch.parts(inner.at_once as usize).collect();
        Ok(Some(Step { parts, counted, gradients: Gradients::default(), loss: None }))
    }

    /// Forward through layers that are not the model's last: their output rows, and what [`Self::backward`] needs.
    pub(crate) fn forward(
        &self,
        model: &Model,
        step: &Step,
        part: usize,
        rows: Option<Tensor<2>>,
    ) -> Result<(Tensor<2>, Kept), TrainError> {
        self.passes.forward(self.micro(model, &step.parts[part]), rows)
    }

    /// Backward through them, given the gradient of those rows: that of their input rows.
    pub(crate) fn backward(
        &self,
        model: &Model,
        step: &mut Step,
        part: usize,
        kept: Kept,
        upstream: Tensor<2>,
    ) -> Result<Option<Tensor<2>>, TrainError> {
        let Step { parts, gradients, .. } = step;
        self.passes.backward(self.micro(model, &parts[part]), kept, upstream, gradients)
    }

    /// Forward and backward through the model's last layers, for a part in which a token counts: the gradient of their input
    /// rows.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] for a loss that is not finite, [`TrainError::Device`].
    pub(crate) fn learn(
        &self,
        model: &Model,
        step: &mut Step,
        part: usize,
        rows: Option<Tensor<2>>,
    ) -> Result<Option<Tensor<2>>, TrainError> {
        let Step { parts, counted, gradients, loss } = step;
        let (more, upstream) =
            self.passes.learn(self.micro(model, &parts[part]), rows, *counted, gradients)?;
        let sum = loss.unwrap_or(0.0) + more;
        self.finite("loss", f64::from(sum))?;
        *loss = Some(sum);
        Ok(upstream)
    }

    /// Ends a step, whose gradients over the whole model have this sum of squares. Returns its mean loss where the model's
    /// last layer is. Where no token of the step counts, nothing is learnt.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] for a sum that is not finite and for a loss far beyond that of guessing,
    /// [`TrainError::Device`].
    pub(crate) fn update(
        &mut self,
        step: Step,
        squares: f64,
        moments: &mut Moments,
    ) -> Result<Option<f32>, TrainError> {
        let norm = squares.sqrt();
        self.finite("gradient's norm", norm)?;
        if let Some(value) = step.loss.map(f64::from).filter(|loss| *loss > self.loss_max) {
            let (step, round) = (self.steps, self.inner.round);
            return Err(TrainError::Diverged { what: "loss", value, step, round });
        }
        if step.counted > 0 {
            let gradients = step.gradients.whole(self.weights.len())?;
            let rate = self.inner.rate(self.steps);
            self.optimiser.step(&mut self.weights, moments, gradients, norm as f32, rate);
        }
        self.steps += 1;
        if let Some(loss) = step.loss {
            self.losses += f64::from(loss);
            self.judged += 1;
        }
        Ok(step.loss)
    }

    /// The change of the weights over the steps so far, rounded, and their mean loss, 0 where nothing was judged.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] for weights that are not finite, [`TrainError::Device`].
    pub(crate) fn finish(self, model: &Model, moments: &mut Moments) -> Result<InnerResult, TrainError> {
        let bits = self.inner.bits;
        let mut result = self.change(model)?;
        moments.round(&mut result.delta.values, bits)?;
        result.delta.bits = bits;
        Ok(result)
    }

    /// As [`Self::finish`], not rounded.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn change(self, model: &Model) -> Result<InnerResult, TrainError> {
        let Self { inner, steps, before: mut values, weights, losses, judged, .. } = self;
        for ((before, after), spec) in values.iter_mut().zip(weights).zip(model.trainee.tensors()) {
            let after = download(after, spec)?;
            before.iter_mut().zip(after).for_each(|(before, after)| *before -= after);
        }
        if let Some(value) = values.iter().flatten().find(|value| !value.is_finite()) {
            let (what, value) = ("change of a weight", f64::from(*value));
            return Err(TrainError::Diverged { what, value, step: steps, round: inner.round });
        }
        let tokens = u64::from(steps) * u64::from(inner.batch) * u64::from(inner.context);
        let delta = Delta { round: inner.round, bits: Bits::All, values };
        Ok(InnerResult { delta, loss: losses / f64::from(judged.max(1)), tokens })
    }

    fn micro<'a>(&'a self, model: &'a Model, batch: &'a Batch) -> Micro<'a> {
        Micro { model, weights: &self.weights, batch }
    }

    /// Passes a number of the step under way on if it is one.
    ///
    /// # Errors
    /// [`TrainError::Diverged`].
    pub(crate) fn finite(&self, what: &'static str, value: f64) -> Result<(), TrainError> {
        if value.is_finite() {
            return Ok(());
        }
        Err(TrainError::Diverged { what, value, step: self.steps, round: self.inner.round })
    }
}

/// An evaluation under way, by a whole model or by some of its layers.
pub(crate) struct Judging {
    pub(crate) round: u32,
    pub(crate) batches: Vec<Batch>,
    pub(crate) weights: Vec<Tensor<2>>,
    pub(crate) passes: Passes,
    pub(crate) sum: LossSum,
}

impl Judging {
    /// Reads what the model's layers need of the checkpoint, and cuts a part of what is held out into batches of so many
    /// `sequences`.
    ///
    /// # Errors
    /// [`TrainError`] for unusable files.
    pub(crate) fn begin(
        model: &Model,
        state: &Path,
        data: &Dataset,
        context: u32,
        sequences: usize,
        part: Part,
    ) -> Result<Self, TrainError> {
        let batches = data.held_out(context as usize, sequences, part)?;
        let (round, weights) = Checkpoint::read_weights(state, &model.trainee)?;
        let weights = model.upload(&weights);
        let passes = Passes::new(model, context as usize, false);
        Ok(Self { round, batches, weights, passes, sum: LossSum::default() })
    }
}

/// Passes on what a checkpoint of this round gives, if it is a number.
///
/// # Errors
/// [`TrainError::Worthless`].
pub(crate) fn finite(what: &'static str, value: f32, round: u32) -> Result<f32, TrainError> {
    if value.is_finite() { Ok(value) } else { Err(TrainError::Worthless { what, value, round }) }
}

/// Losses of tokens, on their way to a mean.
#[derive(Clone, Copy, Default)]
pub(crate) struct LossSum {
    nats: f64,
    tokens: u64,
}

impl LossSum {
    /// Adds the sum of the losses of a batch's tokens that count.
    pub(crate) fn add(&mut self, nats: f32, batch: &Batch) {
        self.nats += f64::from(nats);
        self.tokens += batch.counted().1.len() as u64;
    }

    /// The mean, and over how many tokens it is; 0 of both for none.
    pub(crate) fn mean(&self) -> (f64, u64) {
        (self.nats / (self.tokens as f64).max(1.0), self.tokens)
    }
}

fn check(inner: &Inner) -> Result<(), TrainError> {
    let tokens = u64::from(inner.batch) * u64::from(inner.context);
    bounded("inner steps", inner.steps.into(), 1, INNER_STEPS_MAX.into())?;
    bounded("batch", inner.batch.into(), 1, BATCH_MAX.into())?;
    bounded("tokens in a batch", tokens, 1, BATCH_TOKENS_MAX)?;
    bounded("sequences at once", inner.at_once.into(), 1, BATCH_MAX.into())?;
    bounded("round", inner.round.into(), 0, u64::from(inner.rounds).saturating_sub(1))
}

/// Passes a setting on that is within its bounds.
///
/// # Errors
/// [`TrainError::Setting`].
pub(crate) fn bounded(what: &'static str, value: u64, least: u64, most: u64) -> Result<(), TrainError> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(TrainError::Setting { what, value, least, most })
    }
}

impl Inner {
    /// Rises over the first steps, then falls by a cosine to a fifth over the job's rounds.
    fn rate(&self, step: u32) -> f64 {
        let within = f64::from(step) / f64::from(self.steps.max(1));
        let part = (f64::from(self.round) + within) / f64::from(self.rounds.max(1));
        let fall = FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + (std::f64::consts::PI * part).cos());
        // Of the agent's own steps; those of earlier rounds may have been more or fewer.
        let done = f64::from(self.round) * f64::from(self.steps) + f64::from(step);
        let ramp = (done + 1.0) / f64::from(self.warmup_steps.max(1));
        f64::from(self.learning_rate) * fall * ramp.min(1.0)
    }
}
