//! Owns which tensors an architecture consists of, their shapes, and which of them a range of layers needs.
//! Must never read elements: a file, a folder and a stranger's list are all checked here before anything is loaded.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::config::{Architecture, ModelConfig};
use crate::limits::TENSORS_MAX;
use crate::source::TensorInfo;

/// The embedding, and the head where that is tied to it.
pub const EMBEDDING: &str = "token_embd.weight";
/// The norm before the head.
pub const OUTPUT_NORM: &str = "output_norm.weight";
/// The head, unless it is tied to the embedding.
pub const HEAD: &str = "output.weight";

/// A tensor that an architecture has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// GGUF's name.
    pub name: String,
    /// Rows: outputs of the matrix; 1 for a vector.
    pub rows: u64,
    /// Columns: inputs of the matrix.
    pub columns: u64,
    /// Whether the model is whole without it. Only the head is optional.
    pub optional: bool,
}

/// Why tensors do not make up the model that its hyperparameters describe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorsError {
    /// More tensors than any model has.
    #[error("the model has {0} tensors, at most {TENSORS_MAX} are allowed")]
    TooMany(usize),
    /// One is not there.
    #[error("tensor `{name}` is missing; expected {rows} rows of {columns} columns")]
    Missing {
        /// Which.
        name: String,
        /// Rows that it must have.
        rows: u64,
        /// Columns that it must have.
        columns: u64,
    },
    /// One has another shape than the hyperparameters say.
    #[error(
        "tensor `{name}` has {found_rows} rows of {found_columns} columns; expected {rows} rows of {columns} columns"
    )]
    Shape {
        /// Which.
        name: String,
        /// Rows found.
        found_rows: u64,
        /// Columns found.
        found_columns: u64,
        /// Rows that it must have.
        rows: u64,
        /// Columns that it must have.
        columns: u64,
    },
    /// A row is no whole number of the type's blocks.
    #[error("tensor `{name}` has rows of {columns} columns, which are no whole number of {dtype} blocks")]
    Blocks {
        /// Which.
        name: String,
        /// Columns found.
        columns: u64,
        /// Name of the type.
        dtype: &'static str,
    },
    /// One that the architecture does not know: to ignore it would silently compute another model.
    #[error(
        "tensor `{name}` is no part of the architecture {architecture:?}; this variant of it is not supported"
    )]
    Unknown {
        /// Which.
        name: String,
        /// What the file says that it is.
        architecture: Architecture,
    },
}

/// Every tensor of the model, layer by layer.
#[must_use]
pub fn expected(config: &ModelConfig) -> Vec<Expected> {
    let width = u64::from(config.width);
    let tensor =
        |name: &str, rows, columns| Expected { name: name.to_owned(), rows, columns, optional: false };
    let mut all = vec![tensor(EMBEDDING, u64::from(config.vocabulary), width)];
    for layer in 0..config.layers {
        all.extend(layer_parts(config).into_iter().map(|(part, rows, columns)| Expected {
            name: layer_tensor(layer, part),
            rows,
            columns,
            optional: false,
        }));
    }
    all.push(tensor(OUTPUT_NORM, 1, width));
    all.push(Expected { optional: true, ..tensor(HEAD, u64::from(config.vocabulary), width) });
    all
}

/// The name of a layer's tensor: `layer_tensor(3, "attn_q.weight")` is `blk.3.attn_q.weight`.
#[must_use]
pub fn layer_tensor(layer: u32, part: &str) -> String {
    format!("blk.{layer}.{part}")
}

/// The layer that a tensor belongs to; `None` for the embedding, the head and their like.
#[must_use]
pub fn layer_of(name: &str) -> Option<u32> {
    let (layer, _) = name.strip_prefix("blk.")?.split_once('.')?;
    layer.parse().ok()
}

/// Whether a stage that holds `layers` needs the tensor. The embedding goes with the first layer; the final norm and the
/// head with the last, where a tied head is the embedding once more.
#[must_use]
pub fn is_needed(name: &str, layers: &Range<u32>, config: &ModelConfig, tied: bool) -> bool {
    let (first, last) = (layers.start == 0, layers.end == config.layers);
    match name {
        EMBEDDING => first || (last && tied),
        OUTPUT_NORM | HEAD => last,
        _ => layer_of(name).is_some_and(|layer| layers.contains(&layer)),
    }
}

/// Checks that every tensor that the model needs is there in the right shape, and no other.
///
/// # Errors
/// [`TensorsError`] names the first tensor at fault.
pub fn check_tensors(
    config: &ModelConfig,
    tensors: &BTreeMap<String, TensorInfo>,
) -> Result<(), TensorsError> {
    if tensors.len() > TENSORS_MAX {
        return Err(TensorsError::TooMany(tensors.len()));
    }
    let mut known = 0;
    let all = expected(config);
    for Expected { name, rows, columns, optional } in &all {
        let (name, rows, columns) = (name.clone(), *rows, *columns);
        let Some(found) = tensors.get(&name) else {
            if *optional {
                continue;
            }
            return Err(TensorsError::Missing { name, rows, columns });
        };
        known += 1;
        if (found.rows, found.columns) != (rows, columns) {
            let (found_rows, found_columns) = (found.rows, found.columns);
            return Err(TensorsError::Shape { name, found_rows, found_columns, rows, columns });
        }
        if found.bytes().is_none() {
            return Err(TensorsError::Blocks { name, columns, dtype: found.dtype.name() });
        }
    }
    if known == tensors.len() {
        return Ok(());
    }
    let unknown = tensors.keys().find(|name| !all.iter().any(|expected| expected.name == **name));
    let name = unknown.cloned().unwrap_or_default();
    Err(TensorsError::Unknown { name, architecture: config.architecture })
}

/// Name, rows and columns of each tensor of one layer.
fn layer_parts(config: &ModelConfig) -> Vec<(&'static str, u64, u64)> {
    let (width, feed) = (u64::from(config.width), u64::from(config.feed_width));
    let head = u64::from(config.head_width);
    let (queries, keys) = (u64::from(config.heads) * head, u64::from(config.kv_heads) * head);
    let mut parts = vec![
        ("attn_norm.weight", 1, width),
        ("attn_q.weight", queries, width),
        ("attn_k.weight", keys, width),
        ("attn_v.weight", keys, width),
        ("attn_output.weight", width, queries),
        ("ffn_norm.weight", 1, width),
        ("ffn_up.weight", feed, width),
        ("ffn_down.weight", width, feed),
        ("ffn_gate.weight", feed, width),
    ];
    if config.architecture == Architecture::Qwen2 {
        parts.extend([("attn_q.bias", 1, queries), ("attn_k.bias", 1, keys), ("attn_v.bias", 1, keys)]);
    }
    if matches!(config.architecture, Architecture::Qwen3 | Architecture::Gemma3) {
        parts.extend([("attn_q_norm.weight", 1, head), ("attn_k_norm.weight", 1, head)]);
    }
    if matches!(config.architecture, Architecture::Gemma2 | Architecture::Gemma3) {
        parts.extend([("post_attention_norm.weight", 1, width), ("post_ffw_norm.weight", 1, width)]);
    }
    parts
}
