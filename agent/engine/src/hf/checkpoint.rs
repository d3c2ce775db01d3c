//! Owns the checkpoints that `skein run` trains, as a source of weights.
//! Must never know how they were trained: momentum and the like in the file are passed over.
//!
//! Training multiplies rows by matrices stored `[inputs, outputs]`, and keeps query, key and value in one; here they are
//! told apart and turned to `[outputs, inputs]`, as every other source has them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;

use super::shard::{Shard, Stored};
use super::{HfError, malformed};
use crate::config::{Activation, Architecture, ModelConfig, Positions};
use crate::dtype::Dtype;
use crate::source::{SourceError, TensorInfo, TensorSource};
use crate::tensors::{EMBEDDING, HEAD, OUTPUT_NORM, POSITIONS, check_tensors, layer_tensor};

/// The key of a checkpoint's metadata, by which it is told from other safetensors files.
const NOTE: &str = "skein";

/// Tokens are bytes.
const VOCABULARY: u32 = 256;

/// A byte-level model of our own.
pub struct SkeinCheckpoint {
    config: ModelConfig,
    tensors: BTreeMap<String, TensorInfo>,
    parts: BTreeMap<String, Part>,
    shard: Shard,
}

/// What the file says of itself.
#[derive(Deserialize)]
struct Note {
    kind: String,
    shape: Shape,
}

#[derive(Deserialize)]
struct Shape {
    layers: u16,
    width: u16,
    heads: u16,
    context: u16,
}

/// Where a tensor is.
struct Part {
    stored: Stored,
    /// For a matrix, the columns that become the rows; tables and gains are as they should be.
    columns: Option<Range<usize>>,
}

impl SkeinCheckpoint {
    /// Opens a checkpoint and checks all of it but the elements.
    ///
    /// # Errors
    /// [`HfError`].
    pub fn open(path: &Path) -> Result<Self, HfError> {
        let shard = Shard::open(path)?;
        let Some(note) = shard.notes.get(NOTE) else {
            return Err(HfError::Unsupported {
                what: format!("{}: a safetensors file that is no checkpoint of Skein's", path.display()),
                hint: "name the Hugging Face folder that holds it and its config.json",
            });
        };
        let note: Note = serde_json::from_str(note)
            .map_err(|error| malformed(path, format!("bad `{NOTE}` metadata: {error}")))?;
        if note.kind != "checkpoint" {
            return Err(malformed(path, format!("this is a {} of training, not a checkpoint", note.kind)));
        }
        let config = config(&note.shape);
        config.validate()?;
        let mut tensors = BTreeMap::new();
        let mut parts = BTreeMap::new();
        for (name, source, columns) in layout(&config) {
            let Some(stored) = shard.tensors.get(&source) else {
                return Err(malformed(path, format!("tensor `{source}` is missing")));
            };
            let (info, part) = part(path, &source, stored, columns)?;
            tensors.insert(name.clone(), info);
            parts.insert(name, part);
        }
        check_tensors(&config, &tensors)?;
        Ok(Self { config, tensors, parts, shard })
    }
}

impl TensorSource for SkeinCheckpoint {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let part = self.parts.get(name).ok_or_else(|| SourceError::Missing(name.to_owned()))?;
        let unreadable = |reason: String| SourceError::Unreadable { name: name.to_owned(), reason };
        let bytes = self.shard.read(&part.stored).map_err(|error| unreadable(error.to_string()))?;
        let Some(columns) = part.columns.clone() else { return Ok(bytes) };
        let (words, _) = bytes.as_chunks::<4>();
        let outputs = part.stored.shape.last().copied().unwrap_or(1);
        // Row `input` of the file holds one weight of each output.
        Ok(columns.flat_map(|output| words.iter().skip(output).step_by(outputs)).flatten().copied().collect())
    }
}

fn config(shape: &Shape) -> ModelConfig {
    let (width, heads) = (u32::from(shape.width), u32::from(shape.heads));
    let head_width = width.checked_div(heads).unwrap_or(0);
    ModelConfig {
        architecture: Architecture::Skein,
        layers: u32::from(shape.layers),
        width,
        feed_width: 4 * width,
        heads,
        kv_heads: heads,
        head_width,
        vocabulary: VOCABULARY,
        context: u32::from(shape.context),
        norm_epsilon: 1e-6,
        positions: Positions::LearnedAlibi,
        activation: Activation::ReluSquared,
        embedding_scale: 1.0,
        query_scale: 1.0 / (head_width as f32).sqrt(),
        score_cap: None,
        logit_cap: None,
        window: None,
        window_pattern: 1,
    }
}

/// Every tensor: GGUF's name, the file's name, and for matrices the columns that become the rows.
fn layout(config: &ModelConfig) -> Vec<(String, String, Option<Range<usize>>)> {
    let (width, feed) = (config.width as usize, config.feed_width as usize);
    let mut all = vec![
        (EMBEDDING.to_owned(), "embedding".to_owned(), None),
        (POSITIONS.to_owned(), "positions".to_owned(), None),
        (OUTPUT_NORM.to_owned(), "final_norm".to_owned(), None),
        (HEAD.to_owned(), "head".to_owned(), Some(0..VOCABULARY as usize)),
    ];
    for layer in 0..config.layers {
        let parts = [
            ("attn_norm.weight", "attention_norm", None),
            ("attn_q.weight", "query_key_value", Some(0..width)),
            ("attn_k.weight", "query_key_value", Some(width..2 * width)),
            ("attn_v.weight", "query_key_value", Some(2 * width..3 * width)),
            ("attn_output.weight", "attention_out", Some(0..width)),
            ("ffn_norm.weight", "feed_norm", None),
            ("ffn_up.weight", "feed_in", Some(0..feed)),
            ("ffn_down.weight", "feed_out", Some(0..width)),
        ];
        let named = |(name, source, columns)| {
            (layer_tensor(layer, name), format!("layers.{layer}.{source}"), columns)
        };
        all.extend(parts.map(named));
    }
    all
}

fn part(
    path: &Path,
    source: &str,
    stored: &Stored,
    columns: Option<Range<usize>>,
) -> Result<(TensorInfo, Part), HfError> {
    let bad = || malformed(path, format!("tensor `{source}` is {:?} {:?}", stored.dtype, stored.shape));
    if stored.dtype != safetensors::Dtype::F32 {
        return Err(bad());
    }
    let (rows, width) = match (&stored.shape[..], &columns) {
        ([width], None) => (1, *width),
        ([rows, width], None) => (*rows, *width),
        // Whether the shape is right for the model is checked with all others.
        ([inputs, outputs], Some(columns)) if columns.end <= *outputs => (columns.len(), *inputs),
        _ => return Err(bad()),
    };
    let info = TensorInfo { dtype: Dtype::F32, rows: rows as u64, columns: width as u64 };
    Ok((info, Part { stored: stored.clone(), columns }))
}
