//! What a customer submits, and the shards into which a coordinator cuts it.
//!
//! Jobs are data: shapes, digests and integers, never code. Rates are integers in millionths,
//! because they are signed. Must never know how a shard is executed.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Units};
use crate::limits;
use crate::signed::Statement;

/// The shape of a byte-level GPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Transformer blocks.
    pub layers: u16,
    /// Width of the residual stream.
    pub width: u16,
    /// Attention heads; divides `width`.
    pub heads: u16,
    /// Longest context in bytes.
    pub context: u16,
}

impl Shape {
    /// Parameters of the blocks, both embeddings and the head, without norms and biases: what a token
    /// costs in arithmetic.
    pub fn weights(&self) -> u64 {
        let (layers, width) = (u64::from(self.layers), u64::from(self.width));
        12 * layers * width * width + (2 * 256 + u64::from(self.context)) * width
    }
}

/// Train a byte-level GPT by DiLoCo.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct TrainSpec {
    /// The model.
    pub shape: Shape,
    /// The text, as a blob that the owner holds.
    pub data: Digest,
    /// Outer steps.
    pub rounds: u32,
    /// Inner steps per round and agent.
    pub inner_steps: u32,
    /// Sequences per inner step.
    pub batch: u32,
    /// Inner (AdamW) learning rate in millionths.
    pub learning_rate_millionths: u32,
    /// Outer (Nesterov) learning rate in millionths.
    pub outer_rate_millionths: u32,
    /// Outer momentum in millionths.
    pub outer_momentum_millionths: u32,
    /// Seed of the initial weights and of the order of the data.
    pub seed: u64,
}

/// Keep a model loaded, split by layers, and answer prompts.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct ServeSpec {
    /// The checkpoint, as a blob that some member holds.
    pub model: Digest,
    /// Its shape.
    pub shape: Shape,
    /// At most so many stages; fewer when fewer agents are present.
    pub stages_max: u16,
}

/// What a job does.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Work {
    /// Train.
    Train(TrainSpec),
    /// Serve.
    Serve(ServeSpec),
}

/// A job as its owner signs it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct JobSpec {
    /// A name for people; also the model's name at the OpenAI endpoint.
    pub name: String,
    /// Makes two equal submissions two jobs.
    pub nonce: u64,
    /// What to do.
    pub work: Work,
}

impl Statement for JobSpec {
    const KIND: &'static str = "job";
}

/// Why a job is refused before anything runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value} is out of range\nhint: {hint}")]
pub struct BadJob {
    field: &'static str,
    value: String,
    hint: &'static str,
}

impl JobSpec {
    /// Checks every field that a stranger may have chosen.
    ///
    /// # Errors
    /// [`BadJob`] names the first field that is out of range.
    pub fn validate(&self) -> Result<(), BadJob> {
        let name_ok = (1..=64).contains(&self.name.len())
            && self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        check(name_ok, "name", &self.name, "1 to 64 letters, digits, `-`, `_` or `.`")?;
        match &self.work {
            Work::Train(train) => train.validate(),
            Work::Serve(serve) => serve.validate(),
        }
    }
}

impl TrainSpec {
    fn validate(&self) -> Result<(), BadJob> {
        self.shape.validate()?;
        let rounds = self.rounds;
        check((1..=limits::ROUNDS_MAX).contains(&rounds), "rounds", rounds, "1 to 100000 outer steps")?;
        let steps = self.inner_steps;
        check((1..=10_000).contains(&steps), "inner_steps", steps, "1 to 10000 steps a round")?;
        check((1..=1_024).contains(&self.batch), "batch", self.batch, "1 to 1024 sequences")?;
        let rate = self.learning_rate_millionths;
        let hint = "above 0, at most 1; 0.003 is usual";
        check((1..=1_000_000).contains(&rate), "learning_rate", f64::from(rate) / 1e6, hint)?;
        let outer = self.outer_rate_millionths;
        let hint = "above 0, at most 2; 0.7 is usual";
        check((1..=2_000_000).contains(&outer), "outer_rate", f64::from(outer) / 1e6, hint)?;
        let momentum = self.outer_momentum_millionths;
        let hint = "from 0 to below 1; 0.9 is usual";
        check(momentum < 1_000_000, "outer_momentum", f64::from(momentum) / 1e6, hint)
    }
}

impl ServeSpec {
    fn validate(&self) -> Result<(), BadJob> {
        self.shape.validate()?;
        check(self.stages_max >= 1, "stages_max", self.stages_max, "at least 1")
    }
}

impl Shape {
    fn validate(&self) -> Result<(), BadJob> {
        check((1..=128).contains(&self.layers), "layers", self.layers, "1 to 128")?;
        check((8..=8_192).contains(&self.width), "width", self.width, "8 to 8192")?;
        check(
            self.heads >= 1 && self.width.is_multiple_of(self.heads),
            "heads",
            self.heads,
            "a divisor of width",
        )?;
        check((8..=8_192).contains(&self.context), "context", self.context, "8 to 8192 bytes")
    }
}

fn check(ok: bool, field: &'static str, value: impl ToString, hint: &'static str) -> Result<(), BadJob> {
    if ok { Ok(()) } else { Err(BadJob { field, value: value.to_string().chars().take(80).collect(), hint }) }
}

/// The unit that one agent executes. A pure function of the blobs it names, except a stage, which
/// lives until its lease ends.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Shard {
    /// Make the first weights.
    Init {
        /// The model.
        shape: Shape,
        /// Seed of the weights.
        seed: u64,
        /// The text whose held-out part gives the loss before training.
        data: Digest,
    },
    /// One DiLoCo inner phase over one slice of the data: checkpoint in, pseudo-gradient out.
    Train {
        /// The global weights to start from.
        state: Digest,
        /// What to train, on what, how.
        spec: TrainSpec,
        /// Outer step, from 0.
        round: u32,
        /// Which slice of the round's data.
        index: u16,
        /// Slices in this round.
        of: u16,
    },
    /// One outer step: checkpoint and pseudo-gradients in, next checkpoint out.
    Merge {
        /// The global weights before.
        state: Digest,
        /// The pseudo-gradients, in slice order; the order is part of the result.
        deltas: Vec<Digest>,
        /// Rates.
        spec: TrainSpec,
        /// Outer step, from 0.
        round: u32,
        /// Whether to measure the held-out loss of the result too.
        evaluate: bool,
    },
    /// Hold layers `start..end` of a model and serve sessions until released.
    Stage {
        /// The checkpoint.
        model: Digest,
        /// Its shape.
        shape: Shape,
        /// First layer.
        start: u16,
        /// One past the last layer.
        end: u16,
        /// Place in the pipeline, from 0.
        index: u16,
        /// Stages in the pipeline.
        of: u16,
    },
}

impl Shard {
    /// Checks every field that a coordinator may have chosen, by the same rules as a job's.
    ///
    /// # Errors
    /// [`BadJob`] names the first field that is out of range.
    pub fn validate(&self) -> Result<(), BadJob> {
        match self {
            Self::Init { shape, .. } => shape.validate(),
            Self::Train { spec, round, index, of, .. } => {
                spec.validate()?;
                check(*round < spec.rounds, "round", round, "below the job's rounds")?;
                check((1..=limits::SLICES_MAX).contains(&usize::from(*of)), "of", of, "1 to 513 slices")?;
                check(index < of, "index", index, "below the number of slices")
            }
            Self::Merge { deltas, spec, round, .. } => {
                spec.validate()?;
                check(*round < spec.rounds, "round", round, "below the job's rounds")?;
                let count = deltas.len();
                check((1..=limits::SLICES_MAX).contains(&count), "deltas", count, "1 to 513 slices")
            }
            Self::Stage { shape, start, end, index, of, .. } => {
                shape.validate()?;
                check(start < end && *end <= shape.layers, "end", end, "above start, at most the layers")?;
                check((1..=shape.layers).contains(of), "of", of, "1 to the number of layers")?;
                check(index < of, "index", index, "below the number of stages")
            }
        }
    }

    /// The blobs that must be at hand before execution.
    pub fn inputs(&self) -> Vec<Digest> {
        match self {
            Self::Init { data, .. } => vec![*data],
            Self::Train { state, spec, .. } => vec![*state, spec.data],
            Self::Merge { state, deltas, spec, evaluate, .. } => {
                let mut inputs = vec![*state];
                inputs.extend(deltas);
                if *evaluate {
                    inputs.push(spec.data);
                }
                inputs
            }
            Self::Stage { model, .. } => vec![*model],
        }
    }

    /// The work of the whole shard, by its arithmetic; for a stage, the work per token.
    pub fn units(&self) -> Units {
        match self {
            Self::Init { shape, .. } => Units(shape.weights() / 1_000_000),
            Self::Train { spec, .. } => {
                let tokens = u64::from(spec.inner_steps)
                    .saturating_mul(u64::from(spec.batch))
                    .saturating_mul(u64::from(spec.shape.context));
                Units(tokens.saturating_mul(6 * spec.shape.weights()) / 1_000_000)
            }
            Self::Merge { spec, deltas, .. } => {
                Units((deltas.len() as u64 + 4).saturating_mul(spec.shape.weights()) / 1_000_000)
            }
            Self::Stage { shape, start, end, .. } => {
                let layers = u64::from(end.saturating_sub(*start));
                Units((24 * layers * u64::from(shape.width).pow(2)).div_ceil(1_000_000))
            }
        }
    }

    /// Whether the lease is renewed until released, rather than ending with a result.
    pub fn is_standing(&self) -> bool {
        matches!(self, Self::Stage { .. })
    }

    /// One word for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Init { .. } => "init",
            Self::Train { .. } => "train",
            Self::Merge { .. } => "merge",
            Self::Stage { .. } => "stage",
        }
    }
}
