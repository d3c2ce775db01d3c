//! Owns one member's part of what a group of agents does together with a model of which each holds some layers: an inner
//! phase, or an evaluation. It takes micro-batches in any order in which each goes forward before it goes back.
//! Must never know who holds the other layers, nor trust what comes from there: rows are checked for shape and numbers.
//!
//! ```text
//!             forward of each      backward of each       once squares are known
//!  open ──>  Waiting ──> Kept  ──>  Done (all: squares)  ──>  step ──> … ──> close
//!                  └── at the last stage, and where nothing counts ──> Done
//! ```

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::checkpoint::{CheckpointError, Digest};
use crate::data::{Dataset, Part};
use crate::limits::{BATCH_MAX, FRAME_BYTES_MAX, FRAME_OVERHEAD_BYTES_MAX};
use crate::optimiser::Moments;
use crate::passes::{self, Kept, Model, read};
use crate::tensor_file::{little_endian, write_note};
use crate::train::{Inner, Judging, Phase, Step, TrainError, bounded, finite};

/// Why a member cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    /// Training or judging failed; what is left of the group is of no use.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The result could not be written; likewise.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// This does not come now. Nothing changed.
    #[error("{0}")]
    Order(String),
    /// Rows are not what they should be. Nothing changed.
    #[error("{0}")]
    Rows(String),
}

/// What one member holds of a group.
pub(crate) struct Group {
    /// Chosen by the daemon.
    pub(crate) number: u64,
    work: Work,
}

enum Work {
    /// The step under way is there until the last one is finished.
    Train {
        phase: Box<Phase>,
        step: Option<Under>,
    },
    Judge {
        judging: Box<Judging>,
        done: Vec<bool>,
    },
}

/// A step under way.
struct Under {
    step: Step,
    micros: Vec<Micro>,
}

/// Where a micro-batch is.
enum Micro {
    Waiting,
    /// It went forward; nothing is kept where none of its tokens counts.
    Forward(Option<Kept>),
    Done,
}

/// What a member does for a group.
pub(crate) enum Purpose {
    /// One inner phase; its micro-batches have `at_once` sequences.
    Train(Inner),
    /// An evaluation.
    Judge {
        /// Tokens per sequence.
        context: u32,
        /// Sequences per micro-batch.
        sequences: u32,
        /// Of what is held out.
        part: Part,
    },
}

/// What a micro-batch gives.
#[derive(Debug)]
pub(crate) struct Passed {
    /// For the stage after or before, as frames have them.
    pub(crate) rows: Vec<u8>,
    /// With the last micro-batch of a step.
    pub(crate) squares: Option<f64>,
}

/// What a member has at the end.
#[derive(Debug, PartialEq)]
pub(crate) struct Closed {
    /// Of the file.
    pub(crate) digest: Digest,
    /// Nats per token; 0 where the model's last layer is elsewhere.
    pub(crate) loss: f64,
    /// Trained on; or judged by, likewise 0 elsewhere.
    pub(crate) tokens: u64,
}

impl Group {
    /// Reads the layers that `model` has from a checkpoint file.
    ///
    /// # Errors
    /// [`GroupError::Train`] for unusable files and settings, [`GroupError::Rows`] where rows would not fit a frame.
    pub(crate) fn open(
        number: u64,
        model: &Model,
        state: &Path,
        data: &Arc<Dataset>,
        purpose: Purpose,
        moments: &mut Moments,
    ) -> Result<Self, GroupError> {
        let (context, sequences) = match &purpose {
            Purpose::Train(inner) => (inner.context, inner.at_once.min(inner.batch)),
            Purpose::Judge { context, sequences, .. } => (*context, *sequences),
        };
        let trainee = &model.trainee;
        let width = u64::from(trainee.config().width);
        let bytes = 4 * u128::from(width) * u128::from(context) * u128::from(sequences);
        let alone = trainee.is_first() && trainee.is_last();
        if !alone && bytes > (FRAME_BYTES_MAX - FRAME_OVERHEAD_BYTES_MAX) as u128 {
            return Err(GroupError::Rows(format!(
                "a micro-batch of {sequences} sequences of {context} tokens is {bytes} bytes between stages, more than fit a frame of {FRAME_BYTES_MAX}\nhint: fewer sequences at once, or a shorter context"
            )));
        }
        let work = match purpose {
            Purpose::Train(inner) => {
                let phase = Box::new(Phase::begin(model, state, data, &inner, moments)?);
                Work::Train { step: Under::next(&phase)?, phase }
            }
            Purpose::Judge { part, .. } => {
                bounded("sequences at once", sequences.into(), 1, BATCH_MAX.into())?;
                let judging = Judging::begin(model, state, data, context, sequences as usize, part)?;
                Work::Judge { done: vec![false; judging.batches.len()], judging: Box::new(judging) }
            }
        };
        Ok(Self { number, work })
    }

    /// Micro-batches of a step, or of the whole evaluation.
    pub(crate) fn micros(&self) -> u32 {
        let count = match &self.work {
            Work::Train { step, .. } => step.as_ref().map_or(0, |under| under.micros.len()),
            Work::Judge { done, .. } => done.len(),
        };
        count as u32
    }

    /// Takes a micro-batch forward; at the model's last layer in training, back as well.
    ///
    /// # Errors
    /// [`GroupError`].
    pub(crate) fn forward(&mut self, model: &Model, micro: u32, rows: &[u8]) -> Result<Passed, GroupError> {
        let (first, last) = (model.trainee.is_first(), model.trainee.is_last());
        let at = micro as usize;
        match &mut self.work {
            Work::Train { phase, step } => {
                let Under { step, micros } = step.as_mut().ok_or_else(finished)?;
                let place = known(micros, micro)?;
                if !matches!(place, Micro::Waiting) {
                    return Err(GroupError::Order(format!("micro-batch {micro} went forward already")));
                }
                let tokens = step.parts[at].inputs.len();
                let input = if first { nothing(rows)? } else { Some(taken(model, tokens, rows)?) };
                let counts = step.counts(at);
                let (rows, after) = match (last, counts) {
                    (true, true) => (phase.learn(model, step, at, input)?, Micro::Done),
                    (true, false) => (None, Micro::Done),
                    (false, true) => {
                        let (rows, kept) = phase.forward(model, step, at, input)?;
                        (Some(rows), Micro::Forward(Some(kept)))
                    }
                    (false, false) => (None, Micro::Forward(None)),
                };
                let what = if last { "gradient of an activation" } else { "activation" };
                let rows = if first && last { Vec::new() } else { given(model, phase, what, tokens, rows)? };
                *place = after;
                Ok(Passed { rows, squares: squares(phase, step, micros)? })
            }
            Work::Judge { judging, done } => {
                let place = known(done, micro)?;
                if *place {
                    return Err(GroupError::Order(format!("micro-batch {micro} was judged already")));
                }
                let Judging { round, batches, passes, weights, sum } = &mut **judging;
                let batch = &batches[at];
                let input =
                    if first { nothing(rows)? } else { Some(taken(model, batch.inputs.len(), rows)?) };
                let through = passes::Micro { model, weights, batch };
                let rows = if last {
                    sum.add(finite("loss", passes.loss(through, input)?, *round)?, batch);
                    Vec::new()
                } else {
                    let rows = read(passes.rows(through, input)?)?;
                    for value in &rows {
                        finite("activation", *value, *round)?;
                    }
                    little_endian(&rows)
                };
                *place = true;
                Ok(Passed { rows, squares: None })
            }
        }
    }

    /// Takes a micro-batch back, given the gradient of the rows that [`Self::forward`] gave. Not for the model's last layer.
    ///
    /// # Errors
    /// [`GroupError`].
    pub(crate) fn backward(&mut self, model: &Model, micro: u32, rows: &[u8]) -> Result<Passed, GroupError> {
        let Work::Train { phase, step } = &mut self.work else {
            return Err(GroupError::Order("a model that is judged has no way back".to_owned()));
        };
        let Under { step, micros } = step.as_mut().ok_or_else(finished)?;
        let place = known(micros, micro)?;
        let at = micro as usize;
        let tokens = step.parts[at].inputs.len();
        let Micro::Forward(kept) = place else {
            let problem =
                if matches!(place, Micro::Done) { "is done already" } else { "has not gone forward" };
            return Err(GroupError::Order(format!("micro-batch {micro} {problem}")));
        };
        let upstream = taken(model, tokens, rows)?;
        let rows = match kept.take() {
            Some(kept) => phase.backward(model, step, at, kept, upstream)?,
            None => None,
        };
        *place = Micro::Done;
        let what = "gradient of an activation";
        let rows =
            if model.trainee.is_first() { Vec::new() } else { given(model, phase, what, tokens, rows)? };
        Ok(Passed { rows, squares: squares(phase, step, micros)? })
    }

    /// Ends a step, given the sum of the squares of all members' gradients: its mean loss, where it is known.
    ///
    /// # Errors
    /// [`GroupError`].
    pub(crate) fn step(&mut self, moments: &mut Moments, squares: f64) -> Result<Option<f32>, GroupError> {
        let Work::Train { phase, step } = &mut self.work else {
            return Err(GroupError::Order("a model that is judged takes no step".to_owned()));
        };
        let under = step.as_ref().ok_or_else(finished)?;
        if let Some(micro) = under.micros.iter().position(|micro| !matches!(micro, Micro::Done)) {
            return Err(GroupError::Order(format!("micro-batch {micro} of the step is not done")));
        }
        let Some(under) = step.take() else { return Err(finished()) };
        let loss = phase.update(under.step, squares, moments)?;
        *step = Under::next(phase)?;
        Ok(loss)
    }

    /// Writes the result of a group that is [complete](Self::complete): the delta of these layers, or a note of the
    /// judgement.
    ///
    /// # Errors
    /// [`GroupError`].
    pub(crate) fn close(
        self,
        model: &Model,
        moments: &mut Moments,
        out: &Path,
    ) -> Result<Closed, GroupError> {
        match self.work {
            Work::Train { phase, .. } => {
                let result = phase.finish(model, moments)?;
                let digest = result.delta.write(out, model.trainee.tensors())?;
                Ok(Closed { digest, loss: result.loss, tokens: result.tokens })
            }
            Work::Judge { judging, .. } => {
                let (loss, tokens) = judging.sum.mean();
                let (range, micronats) = (model.trainee.layers(), (loss * 1e6).round() as i64);
                let note = serde_json::json!({
                    "round": judging.round, "start": range.start, "end": range.end,
                    "tokens": tokens, "loss_micronats": micronats,
                });
                let digest = write_note(out, note.to_string().as_bytes())?;
                Ok(Closed { digest, loss, tokens })
            }
        }
    }

    /// Whether there is a result.
    ///
    /// # Errors
    /// [`GroupError::Order`] says what is left to do.
    pub(crate) fn complete(&self) -> Result<(), GroupError> {
        let left = match &self.work {
            Work::Train { step: None, .. } => return Ok(()),
            Work::Train { phase, .. } => format!("{} of {} steps are done", phase.steps, phase.inner.steps),
            Work::Judge { done, .. } => match done.iter().position(|done| !done) {
                None => return Ok(()),
                Some(micro) => format!("micro-batch {micro} was not judged"),
            },
        };
        Err(GroupError::Order(left))
    }
}

impl Under {
    fn next(phase: &Phase) -> Result<Option<Self>, TrainError> {
        let under = |step: Step| Self { micros: step.parts.iter().map(|_| Micro::Waiting).collect(), step };
        Ok(phase.next_step()?.map(under))
    }
}

fn finished() -> GroupError {
    GroupError::Order("all steps are done".to_owned())
}

fn known<T>(micros: &mut [T], micro: u32) -> Result<&mut T, GroupError> {
    let count = micros.len();
    let unknown = || GroupError::Order(format!("there is no micro-batch {micro}, there are {count}"));
    micros.get_mut(micro as usize).ok_or_else(unknown)
}

/// What the first stage is given.
fn nothing(rows: &[u8]) -> Result<Option<Tensor<2>>, GroupError> {
    if rows.is_empty() {
        return Ok(None);
    }
    Err(GroupError::Rows(format!(
        "{} bytes of rows for the first stage, which has no stage before it",
        rows.len()
    )))
}

/// Rows from another stage, one for each of so many tokens.
fn taken(model: &Model, tokens: usize, rows: &[u8]) -> Result<Tensor<2>, GroupError> {
    let width = model.trainee.config().width as usize;
    let (words, rest) = rows.as_chunks::<4>();
    if !rest.is_empty() || words.len() != tokens * width {
        let (found, wanted) = (rows.len(), 4 * tokens * width);
        return Err(GroupError::Rows(format!("{found} bytes of rows, wanted {wanted} for {tokens} tokens")));
    }
    let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(model.rows(values)),
        Some(at) => Err(GroupError::Rows(format!("rows hold {} at element {at}", values[at]))),
    }
}

/// Rows for another stage; zeros where nothing counted and nothing was computed.
fn given(
    model: &Model,
    phase: &Phase,
    what: &'static str,
    tokens: usize,
    rows: Option<Tensor<2>>,
) -> Result<Vec<u8>, GroupError> {
    let Some(rows) = rows else {
        return Ok(vec![0; 4 * tokens * model.trainee.config().width as usize]);
    };
    let values = read(rows)?;
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        phase.finite(what, f64::from(*value))?;
    }
    Ok(little_endian(&values))
}

/// Once every micro-batch of a step is done.
fn squares(phase: &Phase, step: &Step, micros: &[Micro]) -> Result<Option<f64>, GroupError> {
    if !micros.iter().all(|micro| matches!(micro, Micro::Done)) {
        return Ok(None);
    }
    let squares = step.gradients.squares()?;
    phase.finite("gradient's norm", squares)?;
    Ok(Some(squares))
}
