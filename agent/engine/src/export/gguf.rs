//! Owns the writing of a model as GGUF, with all that llama.cpp asks for.
//! Must never write a file that `crate::gguf` would read as another model.

use std::collections::BTreeMap;
use std::path::Path;

use super::{ExportError, Out, bytes_of, check_tokens, gguf_style, is_gemma, is_same, restyled};
use crate::config::{Architecture, ModelConfig, Rope};
use crate::dtype::Dtype;
use crate::gguf::{ALIGNMENT, Metadata, ROPE_FACTORS, Value, from_metadata, head};
use crate::source::{TensorInfo, TensorSource};
use crate::tokenizer::Vocabulary;

/// Writes the model in F32.
///
/// # Errors
/// [`ExportError`].
pub fn gguf(
    name: &str,
    source: &dyn TensorSource,
    vocabulary: &Vocabulary,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), ExportError> {
    let config = source.config();
    check_tokens(config, vocabulary, "GGUF")?;
    let metadata = metadata(name, config, vocabulary)?;
    let factors = &config.rope.factors;
    let mut tensors: Vec<(&str, TensorInfo)> = Vec::new();
    if !factors.is_empty() {
        tensors.push((ROPE_FACTORS, full(1, factors.len() as u64)));
    }
    tensors
        .extend(source.tensors().iter().map(|(name, info)| (name.as_str(), full(info.rows, info.columns))));
    let length = |info: &TensorInfo| info.bytes().unwrap_or(0) as usize;
    let head = head(&metadata, tensors.iter().map(|(name, info)| (*name, *info, length(info))));
    let mut out = Out::create(path)?;
    let mut at = head.len();
    out.write(&head)?;
    let of: u64 = tensors.iter().map(|(_, info)| length(info) as u64).sum();
    let mut done = 0;
    for (name, info) in &tensors {
        let bytes = if *name == ROPE_FACTORS {
            bytes_of(factors)
        } else {
            let values = source.numbers(name)?;
            bytes_of(&restyled(config, name, info.columns, values, gguf_style(config.architecture)))
        };
        out.write(&vec![0; at.next_multiple_of(ALIGNMENT) - at])?;
        out.write(&bytes)?;
        at = at.next_multiple_of(ALIGNMENT) + bytes.len();
        done += bytes.len() as u64;
        progress(done, of);
    }
    out.finish()
}

fn full(rows: u64, columns: u64) -> TensorInfo {
    TensorInfo { dtype: Dtype::F32, rows, columns }
}

fn unsayable(what: &str) -> ExportError {
    ExportError::Unsayable { format: "GGUF", what: what.to_owned() }
}

/// All that the file says beside tensors.
fn metadata(name: &str, config: &ModelConfig, vocabulary: &Vocabulary) -> Result<Metadata, ExportError> {
    let mut metadata = hyperparameters(config);
    metadata.insert("general.name".to_owned(), Value::Text(name.into()));
    metadata.extend(vocabulary.to_gguf().map_err(|what| unsayable(&what))?);
    pad(&mut metadata, config.vocabulary);
    let read = from_metadata(&metadata, &BTreeMap::new(), config.rope.factors.clone());
    let same = read.is_ok_and(|read| is_same(config, read, gguf_style(config.architecture)));
    let what = || {
        unsayable(&format!(
            "the hyperparameters of this model of architecture {}",
            config.architecture.name()
        ))
    };
    same.then_some(metadata).ok_or_else(what)
}

/// Names the rows of the embedding that have no token, since readers count tokens to know how many rows there are.
fn pad(metadata: &mut Metadata, rows: u32) {
    /// The number by which GGUF knows tokens that no text becomes.
    const UNUSED: i64 = 5;
    for (key, value) in metadata {
        match (key.as_str(), value) {
            ("tokenizer.ggml.tokens", Value::Texts(texts)) => {
                let first = u32::try_from(texts.len()).unwrap_or(rows);
                texts.extend((first..rows).map(|id| format!("[PAD{id}]").into_bytes()));
            }
            ("tokenizer.ggml.token_type", Value::Signeds(types)) => types.resize(rows as usize, UNUSED),
            ("tokenizer.ggml.scores", Value::Floats(scores)) => scores.resize(rows as usize, -10_000.0),
            _ => {}
        }
    }
}

/// The metadata from which `crate::gguf` makes out the same model.
fn hyperparameters(config: &ModelConfig) -> Metadata {
    let architecture = config.architecture.name();
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture".to_owned(), Value::Text(architecture.into()));
    let mut set = |key: &str, value: Value| drop(metadata.insert(format!("{architecture}.{key}"), value));
    let whole = |value: u32| Value::Unsigned(u64::from(value));
    let real = |value: f32| Value::Float(f64::from(value));
    set("context_length", whole(config.context));
    set("embedding_length", whole(config.width));
    set("block_count", whole(config.layers));
    set("feed_forward_length", whole(config.feed_width));
    set("vocab_size", whole(config.vocabulary));
    set("attention.head_count", whole(config.heads));
    set("attention.head_count_kv", whole(config.kv_heads));
    set("attention.key_length", whole(config.head_width));
    set("attention.value_length", whole(config.head_width));
    set("attention.layer_norm_rms_epsilon", real(config.norm_epsilon));
    let Rope { base, window_base, dims, scale, .. } = config.rope;
    set("rope.dimension_count", whole(dims));
    set("rope.freq_base", real(base));
    // Without it, readers take Gemma 3's usual base.
    if window_base != base || config.architecture == Architecture::Gemma3 {
        set("rope.freq_base_swa", real(window_base));
    }
    if scale != 1.0 {
        set("rope.scaling.type", Value::Text("linear".into()));
        set("rope.scaling.factor", real(scale));
    }
    if let Some(cap) = config.score_cap {
        set("attn_logit_softcapping", real(cap));
    }
    if let Some(cap) = config.logit_cap {
        set("final_logit_softcapping", real(cap));
    }
    if let Some(window) = config.window.filter(|_| is_gemma(config)) {
        set("attention.sliding_window", whole(window));
        set("attention.sliding_window_pattern", whole(config.window_pattern));
    }
    metadata
}
