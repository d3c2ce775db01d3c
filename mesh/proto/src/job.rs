//! What a customer submits, and the shards into which a coordinator cuts it.
//!
//! Jobs are data: shapes, digests and integers, never code. Rates are integers in millionths,
//! because they are signed. Must never know how a shard is executed.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::group::Group;
use crate::ids::{Digest, Units};
use crate::limits;
use crate::signed::Statement;

/// Which weights learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum Method {
    /// All of them.
    Full,
    /// A low-rank addition to every matrix of every layer (LoRA, Hu et al. 2021); the rest is frozen.
    Lora {
        /// Of the addition.
        rank: u16,
        /// Its scale times the rank, in millionths.
        alpha_millionths: u32,
    },
}

/// What training a model asks of an agent, as the job's owner counts it from the model's manifest.
///
/// It decides who gets shards and what a token is worth. An agent counts again before it works, and takes nothing of
/// another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSize {
    /// Decoder layers.
    pub layers: u16,
    /// Width of the residual stream.
    pub width: u32,
    /// Width of the feed-forward layer.
    pub feed_width: u32,
    /// Query heads.
    pub heads: u32,
    /// Tokens of the vocabulary.
    pub vocabulary: u32,
    /// Weights with which every token is multiplied: all but an embedding that is not the head too.
    pub weights: u64,
    /// Weights in memory.
    pub resident: u64,
    /// Weights that learn.
    pub trained: u64,
}

/// Train a decoder language model by DiLoCo.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct TrainSpec {
    /// The manifest of the model to start from, as a blob that some member holds; it names the pieces of its weights.
    pub model: Digest,
    /// What it asks of an agent.
    pub size: TrainSize,
    /// Which weights learn.
    #[serde(flatten)]
    pub method: Method,
    /// The tokens, as a blob that the owner holds.
    pub data: Digest,
    /// Tokens per sequence.
    pub context: u32,
    /// Outer steps.
    pub rounds: u32,
    /// Inner steps per round of the fastest agent; slower ones take fewer.
    pub inner_steps: u32,
    /// Sequences per inner step.
    pub batch: u32,
    /// Inner (AdamW) learning rate in millionths.
    pub learning_rate_millionths: u32,
    /// Outer (Nesterov) learning rate in millionths.
    pub outer_rate_millionths: u32,
    /// Outer momentum in millionths.
    pub outer_momentum_millionths: u32,
    /// Seed of the order of the data, and of an adapter's first weights.
    pub seed: u64,
    /// Bits of an element of the pseudo-gradients that agents send each other: 4, 8 or 32; or 2, of the largest elements
    /// alone, while the others wait.
    pub delta_bits: u8,
    /// The chance that a slice is trained again by another agent and compared, in millionths, for an agent that was not
    /// found honest often yet.
    pub check_millionths: u32,
}

/// What a language model asks of the agents that serve it, as its owner counts it from the model's manifest.
///
/// It decides where stages go and what a token is worth. A stage reads the manifest itself before it loads
/// anything, so what is overstated or understated here makes a worse placement and harms nobody else's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSize {
    /// Decoder layers.
    pub layers: u16,
    /// Width of the residual stream.
    pub width: u32,
    /// Weights of the largest layer: each costs a multiplication and an addition per token.
    pub layer_weights: u64,
    /// Weights of the head, counted in the same way.
    pub head_weights: u64,
    /// Bytes of the largest layer, as it lies in memory.
    pub layer_bytes: u64,
    /// Bytes of the embedding, which the first stage holds.
    pub embedding_bytes: u64,
    /// Bytes of the head, which the last stage holds.
    pub head_bytes: u64,
    /// Whether the head is the embedding, so that who holds both holds it once.
    pub tied: bool,
    /// Bytes of cache that one layer keeps for one token.
    pub cache_bytes_per_token: u32,
}

/// Keep a language model loaded, split by layers, and answer prompts.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
pub struct ServeSpec {
    /// The model's manifest, as a blob that some member holds; the manifest names the pieces of its weights.
    pub model: Digest,
    /// What it asks of an agent.
    pub size: ModelSize,
    /// Tokens of each session for which there is to be room in memory.
    pub context: u32,
    /// Sessions at once for which there is to be room in memory.
    pub sessions: u16,
    /// Exactly so many stages, where there are so many agents; otherwise as few as possible.
    pub stages: Option<u16>,
}

impl ServeSpec {
    /// Memory that a stage of layers `start..end` needs: its weights, the cache of all sessions, and a tenth
    /// more for what a step computes.
    pub fn memory_bytes(&self, start: u16, end: u16) -> u64 {
        let layers = u64::from(end.saturating_sub(start));
        let ends = self.ends_bytes(start == 0, end == self.size.layers);
        let bytes = self.layer_and_cache_bytes().saturating_mul(layers).saturating_add(ends);
        bytes.saturating_add(bytes / 10)
    }

    /// Layers that fit into `memory_bytes`, beside the embedding of the first stage and the head of the last.
    pub(crate) fn layers_within(&self, memory_bytes: u64, first: bool, last: bool) -> u16 {
        // The greatest number of bytes that with its tenth is at most the memory.
        let bytes = memory_bytes / 11 * 10 + (memory_bytes % 11).min(9);
        let left = bytes.saturating_sub(self.ends_bytes(first, last));
        let layers = left / self.layer_and_cache_bytes().max(1);
        u16::try_from(layers).unwrap_or(u16::MAX).min(self.size.layers)
    }

    fn layer_and_cache_bytes(&self) -> u64 {
        let tokens = u64::from(self.context).saturating_mul(u64::from(self.sessions));
        let cache = u64::from(self.size.cache_bytes_per_token).saturating_mul(tokens);
        self.size.layer_bytes.saturating_add(cache)
    }

    fn ends_bytes(&self, first: bool, last: bool) -> u64 {
        let ModelSize { embedding_bytes, head_bytes, tied, .. } = self.size;
        match (first, last) {
            (true, true) if tied => embedding_bytes.max(head_bytes),
            (true, true) => embedding_bytes.saturating_add(head_bytes),
            (true, false) => embedding_bytes,
            (false, true) => head_bytes,
            (false, false) => 0,
        }
    }
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

/// What an agent must offer to get shards of a job, whatever they need by themselves.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields, default)]
pub struct Requires {
    /// Memory that jobs may use, in bytes.
    pub memory_bytes: u64,
    /// That it is a GPU's.
    pub gpu: bool,
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
    /// By whom.
    #[serde(default)]
    pub requires: Requires,
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
        self.size.validate(self.method)?;
        let context = self.context;
        check((1..=limits::TRAIN_CONTEXT_MAX).contains(&context), "context", context, "1 to 65536 tokens")?;
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
        check(momentum < 1_000_000, "outer_momentum", f64::from(momentum) / 1e6, hint)?;
        check([2, 4, 8, 32].contains(&self.delta_bits), "delta_bits", self.delta_bits, "2, 4, 8 or 32")?;
        let chance = self.check_millionths;
        check(chance <= 1_000_000, "check", f64::from(chance) / 1e6, "from 0 (never) to 1 (always)")
    }
}

impl ServeSpec {
    fn validate(&self) -> Result<(), BadJob> {
        self.size.validate()?;
        check(
            (1..=limits::CONTEXT_MAX).contains(&self.context),
            "context",
            self.context,
            "1 to 1048576 tokens",
        )?;
        let sessions = self.sessions;
        check((1..=limits::SESSIONS_MAX).contains(&sessions), "sessions", sessions, "1 to 256")?;
        let stages = self.stages.unwrap_or(1);
        let stages_max = self.size.layers.min(limits::STAGES_MAX);
        check((1..=stages_max).contains(&stages), "stages", stages, "1 to the number of layers, at most 128")
    }
}

impl ModelSize {
    fn validate(&self) -> Result<(), BadJob> {
        check((1..=limits::LAYERS_MAX).contains(&self.layers), "layers", self.layers, "1 to 512")?;
        check((1..=limits::WIDTH_MAX).contains(&self.width), "width", self.width, "1 to 32768")?;
        for (field, weights, bytes) in [
            ("layer_weights", self.layer_weights, self.layer_bytes),
            ("head_weights", self.head_weights, self.head_bytes),
        ] {
            // Or a token could be made as dear as one likes.
            let hint = "at least 1, and no more than the bits of what holds them";
            check((1..=bytes.saturating_mul(8)).contains(&weights), field, weights, hint)?;
        }
        for (field, bytes) in [
            ("layer_bytes", self.layer_bytes),
            ("embedding_bytes", self.embedding_bytes),
            ("head_bytes", self.head_bytes),
        ] {
            check((1..=limits::PART_BYTES_MAX).contains(&bytes), field, bytes, "1 byte to 64 GiB")?;
        }
        let cache = self.cache_bytes_per_token;
        check((1..=1 << 24).contains(&cache), "cache_bytes_per_token", cache, "1 byte to 16 MiB")
    }
}

impl TrainSize {
    fn validate(&self, method: Method) -> Result<(), BadJob> {
        let wide = |field, value| check((1..=limits::WIDTH_MAX).contains(&value), field, value, "1 to 32768");
        check((1..=limits::LAYERS_MAX).contains(&self.layers), "layers", self.layers, "1 to 512")?;
        wide("width", self.width)?;
        wide("heads", self.heads)?;
        check((1..=1 << 20).contains(&self.feed_width), "feed_width", self.feed_width, "1 to 1048576")?;
        check((1..=1 << 20).contains(&self.vocabulary), "vocabulary", self.vocabulary, "1 to 1048576")?;
        for (field, weights) in
            [("weights", self.weights), ("resident", self.resident), ("trained", self.trained)]
        {
            let hint = "1 to a trillion";
            check((1..=limits::TRAINED_WEIGHTS_MAX).contains(&weights), field, weights, hint)?;
        }
        match method {
            Method::Full => Ok(()),
            Method::Lora { rank, alpha_millionths } => {
                check((1..=1_024).contains(&rank), "rank", rank, "1 to 1024; 8 to 64 are usual")?;
                let hint = "above 0; one or two times the rank is usual";
                check(alpha_millionths > 0, "alpha", f64::from(alpha_millionths) / 1e6, hint)
            }
        }
    }
}

pub(crate) fn check(
    ok: bool,
    field: &'static str,
    value: impl ToString,
    hint: &'static str,
) -> Result<(), BadJob> {
    if ok { Ok(()) } else { Err(BadJob { field, value: value.to_string().chars().take(80).collect(), hint }) }
}

/// A part of the held-out sequences. Together, the agents of a round judge by all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Part {
    /// Which, below `of`.
    pub index: u16,
    /// Parts.
    pub of: u16,
}

impl Part {
    fn validate(self) -> Result<(), BadJob> {
        let Self { index, of } = self;
        check((1..=limits::SLICES_MAX).contains(&usize::from(of)), "of", of, "1 to 513 parts")?;
        check(index < of, "index", index, "below the number of parts")
    }
}

/// The unit that one agent executes. A pure function of the blobs it names, except a stage, which
/// lives until its lease ends.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Shard {
    /// Make the first checkpoint.
    Init {
        /// What to train, on what.
        spec: TrainSpec,
        /// Whether to measure its loss too: not where the model does not fit one agent.
        judge: bool,
    },
    /// One DiLoCo inner phase over one slice of the data: checkpoint in, pseudo-gradient out. A member of a group gives
    /// the part of its layers.
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
        /// Number of the slice's first sequence, in the job's order of all sequences.
        first: u64,
        /// Inner steps; each takes the next `spec.batch` sequences.
        steps: u32,
        /// With whom, if this agent alone cannot hold the model.
        group: Option<Group>,
    },
    /// Give out the optimiser's state with which a slice began, which its receipt names.
    Show {
        /// What is trained.
        spec: TrainSpec,
        /// Outer step of the slice.
        round: u32,
        /// The optimiser's state.
        began: Digest,
    },
    /// Train a slice again and compare with what its agent made of it.
    Check {
        /// The global weights that it started from.
        state: Digest,
        /// What is trained, on what, how.
        spec: TrainSpec,
        /// Outer step, from 0.
        round: u32,
        /// Number of the slice's first sequence.
        first: u64,
        /// Inner steps.
        steps: u32,
        /// The optimiser's state with which its agent began.
        began: Digest,
        /// The pseudo-gradient that its agent made.
        delta: Digest,
    },
    /// Measure a checkpoint's loss, as one of a group: the last member does.
    Judge {
        /// The checkpoint.
        state: Digest,
        /// What is trained, on what.
        spec: TrainSpec,
        /// Outer steps that led to it.
        round: u32,
        /// On which of the held-out sequences.
        part: Part,
        /// With whom.
        group: Group,
    },
    /// One outer step: checkpoint and pseudo-gradients in, next checkpoint out.
    Merge {
        /// The global weights before.
        state: Digest,
        /// Of every slice its pseudo-gradient, or the parts of it that the members of a group made, in the order of
        /// their layers. The order of the slices is part of the result.
        deltas: Vec<Vec<Digest>>,
        /// Rates.
        spec: TrainSpec,
        /// Outer step, from 0.
        round: u32,
        /// By which of the held-out sequences this agent judges the result; by none where the model does not fit it.
        part: Option<Part>,
    },
    /// Hold layers `start..end` of a model and serve sessions until released.
    Stage {
        /// The model, and for how much to keep room.
        spec: ServeSpec,
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
            Self::Init { spec, .. } => spec.validate(),
            Self::Train { spec, round, index, of, steps, group, .. } => {
                spec.validate()?;
                check(*round < spec.rounds, "round", round, "below the job's rounds")?;
                check((1..=limits::SLICES_MAX).contains(&usize::from(*of)), "of", of, "1 to 513 slices")?;
                check(index < of, "index", index, "below the number of slices")?;
                check((1..=spec.inner_steps).contains(steps), "steps", steps, "1 to the job's inner steps")?;
                group.as_ref().map_or(Ok(()), |group| group.validate(spec))
            }
            Self::Show { spec, round, .. } => {
                spec.validate()?;
                check(*round < spec.rounds, "round", round, "below the job's rounds")
            }
            Self::Check { spec, round, steps, .. } => {
                spec.validate()?;
                check(*round < spec.rounds, "round", round, "below the job's rounds")?;
                check((1..=spec.inner_steps).contains(steps), "steps", steps, "1 to the job's inner steps")
            }
            Self::Judge { spec, round, part, group, .. } => {
                spec.validate()?;
                part.validate()?;
                check(*round <= spec.rounds, "round", round, "at most the job's rounds")?;
                group.validate(spec)
            }
            Self::Merge { deltas, spec, round, part, .. } => {
                spec.validate()?;
                part.map_or(Ok(()), Part::validate)?;
                check(*round < spec.rounds, "round", round, "below the job's rounds")?;
                // Parts are made by one agent each, and no agent is in two slices.
                let (slices, parts) = (deltas.len(), deltas.iter().map(Vec::len).sum::<usize>());
                let few = slices >= 1 && parts <= limits::SLICES_MAX;
                check(few && deltas.iter().all(|parts| !parts.is_empty()), "deltas", parts, "1 to 513 in all")
            }
            Self::Stage { spec, start, end, index, of } => {
                spec.validate()?;
                let layers = spec.size.layers;
                check(start < end && *end <= layers, "end", end, "above start, at most the layers")?;
                check((1..=layers).contains(of), "of", of, "1 to the number of layers")?;
                check(index < of, "index", index, "below the number of stages")
            }
        }
    }

    /// The blobs that must be at hand before execution. A manifest names more.
    pub fn inputs(&self) -> Vec<Digest> {
        match self {
            Self::Init { spec, .. } => vec![spec.model, spec.data],
            Self::Train { state, spec, .. } | Self::Judge { state, spec, .. } => {
                vec![spec.model, *state, spec.data]
            }
            Self::Show { spec, .. } => vec![spec.model],
            Self::Check { state, spec, began, delta, .. } => {
                vec![spec.model, *state, spec.data, *delta, *began]
            }
            Self::Merge { state, deltas, spec, .. } => {
                let mut inputs = vec![spec.model, *state, spec.data];
                inputs.extend(deltas.iter().flatten());
                inputs
            }
            Self::Stage { spec, .. } => vec![spec.model],
        }
    }

    /// The work of the whole shard, by its arithmetic; for a stage, the work per token.
    pub fn units(&self) -> Units {
        match self {
            Self::Init { spec, .. } => Units(spec.size.resident / 1_000_000),
            Self::Train { spec, steps, group, .. } => {
                spec.slice_units(*steps, &group.as_ref().map_or(spec.layers(), Group::layers))
            }
            Self::Check { spec, steps, .. } => spec.slice_units(*steps, &spec.layers()),
            // To be able to show what one did is part of having done it.
            Self::Show { .. } => Units(0),
            Self::Judge { spec, part, group, .. } => {
                let tokens = limits::JUDGED_TOKENS / u64::from(part.of.max(1));
                let flops = spec.multiplied(&group.layers()).saturating_mul(2);
                Units(tokens.saturating_mul(flops) / 1_000_000)
            }
            Self::Merge { spec, deltas, .. } => {
                Units((deltas.len() as u64 + 4).saturating_mul(spec.size.trained) / 1_000_000)
            }
            Self::Stage { spec, start, end, .. } => {
                // A multiplication and an addition per weight. An embedding is looked up and costs nothing;
                // attention to earlier tokens is not counted, as its share depends on the session.
                let size = &spec.size;
                let layers = u64::from(end.saturating_sub(*start));
                let head = if *end == size.layers { size.head_weights } else { 0 };
                let weights = size.layer_weights.saturating_mul(layers).saturating_add(head);
                Units(weights.saturating_mul(2).div_ceil(1_000_000))
            }
        }
    }

    /// Whether the lease is renewed until released, rather than ending with a result.
    pub fn is_standing(&self) -> bool {
        matches!(self, Self::Stage { .. })
    }

    /// With whom it is executed, if not alone.
    pub fn group(&self) -> Option<&Group> {
        match self {
            Self::Train { group, .. } => group.as_ref(),
            Self::Judge { group, .. } => Some(group),
            Self::Init { .. }
            | Self::Show { .. }
            | Self::Check { .. }
            | Self::Merge { .. }
            | Self::Stage { .. } => None,
        }
    }

    /// One word for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Init { .. } => "init",
            Self::Train { .. } => "train",
            Self::Show { .. } => "show",
            Self::Check { .. } => "check",
            Self::Judge { .. } => "judge",
            Self::Merge { .. } => "merge",
            Self::Stage { .. } => "stage",
        }
    }
}
