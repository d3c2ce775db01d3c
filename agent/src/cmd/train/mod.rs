//! What a training job is made of, from a customer's files, and what becomes of its result.
//!
//! The files are read here, by the user who owns them; the agent gets tokens and weights, never a path.

pub(crate) mod data;
pub(crate) mod result;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use skein_compute::data::Part;
use skein_compute::drawn::Drawn;
use skein_engine::chat::ChatTemplate;
use skein_engine::config::{Activation, Architecture, ModelConfig, Rope, RopeStyle};
use skein_engine::import;
use skein_engine::manifest::Manifest;
use skein_engine::tokenizer::{Tokenizer, Vocabulary};
use skein_proto::ids::Digest;
use skein_proto::job::{JobSpec, Method, Requires, TrainSpec, Work};

use crate::client::Client;
use crate::daemon::training::train_size;
use crate::limits::MANIFEST_BYTES_MAX;
use crate::serve::registry::Entry;

/// The learning rates that usually do: for weights that were just drawn, for an adapter, and for weights that others
/// trained, which a large one would spoil.
const LEARNING_RATE: f64 = 0.003;
const LEARNING_RATE_LORA: f64 = 0.000_3;
const LEARNING_RATE_TUNED: f64 = 0.000_05;

/// A training job as its customer writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainFile {
    #[serde(rename = "kind")]
    _kind: super::run::Kind,
    name: String,
    data: PathBuf,
    pub(crate) output: Option<PathBuf>,
    /// The name of a model that was added, or a path.
    model: Option<String>,
    /// A model that nobody trained yet.
    shape: Option<Shape>,
    #[serde(default)]
    method: MethodName,
    rank: Option<u16>,
    alpha: Option<f64>,
    context: Option<u32>,
    rounds: Option<u32>,
    /// Instead of `rounds`: what one agent alone is to train on.
    tokens: Option<u64>,
    inner_steps: u32,
    batch: u32,
    learning_rate: Option<f64>,
    outer_rate: Option<f64>,
    outer_momentum: Option<f64>,
    #[serde(default = "delta_bits")]
    delta_bits: u8,
    #[serde(default)]
    seed: u64,
    #[serde(default = "check")]
    check: f64,
    #[serde(default)]
    requires: RequiresTable,
}

/// Who may work on it.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RequiresTable {
    /// In bytes.
    memory: u64,
    gpu: bool,
}

fn check() -> f64 {
    0.02
}

/// The outer rate and momentum that usually do; what is sent sparsely, and often, is averaged plainly.
const OUTER: (f64, f64) = (0.7, 0.7);
const OUTER_SPARSE: (f64, f64) = (1.0, 0.0);

fn delta_bits() -> u8 {
    4
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MethodName {
    #[default]
    Full,
    Lora,
}

/// A Llama whose weights are drawn from the job's seed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shape {
    pub(crate) layers: u32,
    pub(crate) width: u32,
    pub(crate) heads: u32,
    pub(crate) context: u32,
    /// As many as there are heads, if absent.
    pub(crate) kv_heads: Option<u32>,
    /// Eight thirds of the width, if absent.
    pub(crate) feed_width: Option<u32>,
    /// The name or path of a model whose tokens are used; bytes if absent.
    pub(crate) vocabulary: Option<String>,
    /// Whether the head is the embedding.
    #[serde(default)]
    pub(crate) tied: bool,
}

/// A model to start from.
pub(crate) struct Start {
    pub(crate) digest: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) tokenizer: Tokenizer,
}

impl TrainFile {
    /// Gives the agent model and data, and says what is to be done with them.
    ///
    /// # Errors
    /// When a file is wrong, a setting is out of range, or the agent does not take them.
    pub(crate) fn job(self, client: &Client, beside: &Path) -> Result<JobSpec> {
        let method = self.method()?;
        let start = match (&self.model, &self.shape) {
            (Some(model), None) => given(client, beside, model)?,
            (None, Some(shape)) => drawn(client, beside, shape, self.seed)?,
            (None, None) => {
                bail!("the job names no model\nhint: `model` is one to start from, [shape] makes a new one")
            }
            (Some(_), Some(_)) => bail!("the job has both `model` and [shape]\nhint: keep one of the two"),
        };
        let config = &start.manifest.config;
        let context = self.context.unwrap_or(config.context.min(CONTEXT));
        if context > config.context {
            bail!(
                "context = {context}, the model was made for {} tokens\nhint: ask for less",
                config.context
            );
        }
        let learning_rate = self.learning_rate.unwrap_or(match (self.method, &self.shape) {
            (MethodName::Full, Some(_)) => LEARNING_RATE,
            (MethodName::Full, None) => LEARNING_RATE_TUNED,
            (MethodName::Lora, _) => LEARNING_RATE_LORA,
        });
        let (outer_rate, outer_momentum) = if self.delta_bits == 2 { OUTER_SPARSE } else { OUTER };
        let (outer_rate, outer_momentum) =
            (self.outer_rate.unwrap_or(outer_rate), self.outer_momentum.unwrap_or(outer_momentum));
        let dataset = data::read(&beside.join(&self.data), &start.tokenizer)?;
        dataset.windows(context as usize)?;
        dataset.held_out(context as usize, 1, Part::WHOLE)?;
        let work = Work::Train(TrainSpec {
            model: start.digest,
            size: train_size(&start.manifest, method).map_err(anyhow::Error::msg)?,
            method,
            data: client.put_blob(dataset.encode()?.as_slice())?,
            context,
            rounds: self.rounds(context)?,
            inner_steps: self.inner_steps,
            batch: self.batch,
            learning_rate_millionths: millionths("learning_rate", learning_rate)?,
            outer_rate_millionths: millionths("outer_rate", outer_rate)?,
            outer_momentum_millionths: millionths("outer_momentum", outer_momentum)?,
            seed: self.seed,
            delta_bits: self.delta_bits,
            check_millionths: millionths("check", self.check)?,
        });
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
        let requires = self.requires();
        Ok(JobSpec { name: self.name, nonce: u64::from_le_bytes(nonce), work, requires })
    }

    pub(crate) fn requires(&self) -> Requires {
        Requires { memory_bytes: self.requires.memory, gpu: self.requires.gpu }
    }

    /// Outer steps, as they are given or as so many tokens take.
    fn rounds(&self, context: u32) -> Result<u32> {
        match (self.rounds, self.tokens) {
            (Some(rounds), None) => Ok(rounds),
            (None, Some(tokens)) => {
                let step = u64::from(self.batch) * u64::from(context);
                let round = step.saturating_mul(self.inner_steps.into()).max(1);
                let rounds = (tokens / round).max(1);
                u32::try_from(rounds).with_context(|| {
                    format!("tokens = {tokens} are {rounds} outer steps of {round} tokens\nhint: more inner_steps, or a larger batch")
                })
            }
            (Some(_), Some(_)) => {
                bail!(
                    "the job has both `rounds` and `tokens`\nhint: keep one of the two; `tokens` is the number of outer steps in other words"
                )
            }
            (None, None) => {
                bail!(
                    "the job does not say how long to train\nhint: `rounds` is a number of outer steps; or `tokens`, what an agent alone is to train on"
                )
            }
        }
    }

    fn method(&self) -> Result<Method> {
        match (self.method, self.rank, self.alpha) {
            (MethodName::Full, None, None) => Ok(Method::Full),
            (MethodName::Full, _, _) => {
                bail!("`rank` and `alpha` are an adapter's\nhint: add method = \"lora\", or leave them out")
            }
            (MethodName::Lora, rank, alpha) => {
                let rank = rank.unwrap_or(16);
                let alpha = alpha.unwrap_or(2.0 * f64::from(rank));
                Ok(Method::Lora { rank, alpha_millionths: millionths("alpha", alpha)? })
            }
        }
    }
}

/// Sequences are so long unless the job says otherwise: as long as most texts that models are tuned with.
const CONTEXT: u32 = 512;

/// A model that was added, or is added now from a path.
fn given(client: &Client, beside: &Path, model: &str) -> Result<Start> {
    let path = beside.join(model);
    let entry = if path.exists() {
        super::model::add(client, &path, None)?
    } else {
        let entries: Vec<Entry> = client.get("/api/models")?;
        entries.into_iter().find(|entry| entry.name == model).with_context(|| {
            format!(
                "there is no file {}, and no model `{model}` was added\nhint: `skein model ls` lists them",
                path.display()
            )
        })?
    };
    let (manifest, vocabulary) = describe(client, entry.model)?;
    Ok(Start { digest: entry.model, manifest, tokenizer: Tokenizer::new(vocabulary)? })
}

/// Manifest and vocabulary of a model that the agent holds.
///
/// # Errors
/// When it does not, or they are broken.
pub(crate) fn describe(client: &Client, model: Digest) -> Result<(Manifest, Vocabulary)> {
    let manifest = Manifest::decode(&client.get_bytes(model, MANIFEST_BYTES_MAX)?)?;
    let mut bytes = Vec::new();
    for (piece, length) in manifest.vocabulary_pieces() {
        bytes.extend(client.get_bytes(Digest(piece), length)?);
    }
    let vocabulary = if bytes.is_empty() { Vocabulary::bytes() } else { import::decode(&bytes)? };
    Ok((manifest, vocabulary))
}

/// A model that nobody trained yet, given to the agent.
///
/// # Errors
/// When the shape is none, or the agent does not take it.
pub(crate) fn drawn(client: &Client, beside: &Path, shape: &Shape, seed: u64) -> Result<Start> {
    let vocabulary = match &shape.vocabulary {
        None => Vocabulary::bytes(),
        Some(model) => given(client, beside, model)?.tokenizer.vocabulary().clone(),
    };
    let config = shape.config(&vocabulary)?;
    let weights = Drawn::new(config, shape.tied, seed);
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("drawing weights {bar:30} {bytes}/{total_bytes}")?);
    let mut put =
        |bytes: &[u8]| client.put_piece(bytes).map(|digest| digest.0).map_err(std::io::Error::other);
    let manifest = Manifest::build(&weights, &import::encode(&vocabulary)?, &mut put, &mut |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let manifest = manifest?;
    let digest = client.put_blob(manifest.encode()?.as_slice())?;
    Ok(Start { digest, manifest, tokenizer: Tokenizer::new(vocabulary)? })
}

impl Shape {
    fn config(&self, vocabulary: &Vocabulary) -> Result<ModelConfig> {
        let head_width = self.width.checked_div(self.heads).unwrap_or(0);
        if head_width * self.heads != self.width || !head_width.is_multiple_of(2) || head_width == 0 {
            bail!(
                "[shape]: {} heads do not share a width of {} in even parts\nhint: 64 per head is usual",
                self.heads,
                self.width
            );
        }
        let config = ModelConfig {
            architecture: Architecture::Llama,
            layers: self.layers,
            width: self.width,
            feed_width: self.feed_width.unwrap_or((self.width * 8 / 3).next_multiple_of(8)),
            heads: self.heads,
            kv_heads: self.kv_heads.unwrap_or(self.heads),
            head_width,
            vocabulary: u32::try_from(vocabulary.len())?,
            context: self.context,
            norm_epsilon: 1e-5,
            rope: Rope {
                style: RopeStyle::Adjacent,
                base: 10_000.0,
                window_base: 10_000.0,
                dims: head_width,
                scale: 1.0,
                factors: Vec::new(),
            },
            activation: Activation::SiluGated,
            embedding_scale: 1.0,
            #[expect(clippy::cast_precision_loss, reason = "far below 2^24")]
            query_scale: 1.0 / (head_width as f32).sqrt(),
            score_cap: None,
            logit_cap: None,
            window: None,
            window_pattern: 1,
        };
        config.validate().context("[shape] is no model\nhint: `skein run --example` has one that is")?;
        Ok(config)
    }
}

/// The template of a model that converses, if it has one.
pub(crate) fn template(tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    Ok(ChatTemplate::new(tokenizer.vocabulary())?)
}

pub(crate) fn millionths(field: &str, value: f64) -> Result<u32> {
    let scaled = (value * 1e6).round();
    if !(0.0..=f64::from(u32::MAX)).contains(&scaled) {
        bail!("{field} = {value} is out of range\nhint: from 0 to {}", f64::from(u32::MAX) / 1e6);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    let scaled = scaled as u32;
    Ok(scaled)
}
