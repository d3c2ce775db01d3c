//! Owns the writing of a model as a Hugging Face folder: `config.json`, `model.safetensors` and the tokenizer's files.
//! Must never write a folder that `crate::hf` would read as another model.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{ExportError, Out, bytes_of, check_tokens, is_gemma, is_same, restyled, write_whole};
use crate::config::{Architecture, ModelConfig, Rope, RopeStyle};
use crate::hf::{hf_name, llama3_factors, read_config};
use crate::source::{TensorInfo, TensorSource};
use crate::tensors::HEAD;
use crate::tokenizer::Vocabulary;

const FORMAT: &str = "a Hugging Face folder";

/// Writes the model in F32 into a folder that exists, without its tokenizer.
///
/// # Errors
/// [`ExportError`].
pub fn hf(
    source: &dyn TensorSource,
    vocabulary: &Vocabulary,
    folder: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), ExportError> {
    let config = source.config();
    check_tokens(config, vocabulary, FORMAT)?;
    let path = folder.join("config.json");
    let tied = !source.tensors().contains_key(HEAD);
    write_whole(&path, &description(config, tied, vocabulary, &path)?)?;
    let named = |(name, info): (&String, &TensorInfo)| {
        let shape = if info.rows == 1 { vec![info.columns] } else { vec![info.rows, info.columns] };
        let theirs = hf_name(name, config.architecture);
        let theirs = theirs.ok_or_else(|| unsayable(&format!("tensor `{name}`")))?;
        Ok((theirs, name.clone(), shape, info.columns))
    };
    let tensors = source.tensors().iter().map(named).collect::<Result<Vec<_>, ExportError>>()?;
    let listed = tensors.iter().map(|(theirs, _, shape, _)| (theirs.as_str(), shape.as_slice()));
    let mut out = Out::create(&folder.join("model.safetensors"))?;
    out.write(&safetensors_head(listed))?;
    let of: u64 = tensors.iter().map(|(_, _, shape, _)| 4 * shape.iter().product::<u64>()).sum();
    let mut done = 0;
    for (_, name, _, columns) in &tensors {
        let mut values = restyled(config, name, *columns, source.numbers(name)?, RopeStyle::Halves);
        if is_gemma(config) && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|gain| *gain -= 1.0);
        }
        let bytes = bytes_of(&values);
        out.write(&bytes)?;
        done += bytes.len() as u64;
        progress(done, of);
    }
    out.finish()
}

/// Writes the tokenizer's files into the folder of its model.
///
/// # Errors
/// [`ExportError`].
pub fn hf_tokenizer(vocabulary: &Vocabulary, folder: &Path) -> Result<(), ExportError> {
    for (name, value) in vocabulary.to_folder().map_err(|what| unsayable(&what))? {
        write_whole(&folder.join(name), &pretty(&value))?;
    }
    Ok(())
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// What precedes the elements of F32 tensors, which follow in the order given: a length, and a JSON object.
pub(super) fn safetensors_head<'a>(tensors: impl Iterator<Item = (&'a str, &'a [u64])>) -> Vec<u8> {
    let mut header = Map::new();
    // Libraries ask for it.
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut at = 0;
    for (name, shape) in tensors {
        let end = at + 4 * shape.iter().product::<u64>();
        header.insert(name.to_owned(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let mut text = Value::Object(header).to_string();
    // Elements begin at a multiple of eight.
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend(text.as_bytes());
    head
}

fn unsayable(what: &str) -> ExportError {
    ExportError::Unsayable { format: FORMAT, what: what.to_owned() }
}

/// The text of `config.json`, which will be at `path`.
fn description(
    config: &ModelConfig,
    tied: bool,
    vocabulary: &Vocabulary,
    path: &Path,
) -> Result<Vec<u8>, ExportError> {
    let mut fields = hyperparameters(config, tied)?;
    fields.insert("bos_token_id".to_owned(), json!(vocabulary.bos()));
    fields.insert("eos_token_id".to_owned(), json!(vocabulary.eos()));
    fields.insert("pad_token_id".to_owned(), json!(vocabulary.padding()));
    let text = pretty(&Value::Object(fields));
    let read = read_config(path, &text, u64::from(config.vocabulary));
    let same = read.is_ok_and(|read| read.tied == tied && is_same(config, read.model, RopeStyle::Halves));
    let architecture = config.architecture.name();
    let what = || unsayable(&format!("the hyperparameters of this model of architecture {architecture}"));
    same.then_some(text).ok_or_else(what)
}

/// A number as people write it: the shortest that is read as the same f32.
fn real(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}

/// `config.json`, from which `crate::hf` makes out the same model.
fn hyperparameters(config: &ModelConfig, tied: bool) -> Result<Map<String, Value>, ExportError> {
    let (class, kind) = match config.architecture {
        Architecture::Llama if config.window.is_some() => ("MistralForCausalLM", "mistral"),
        Architecture::Llama => ("LlamaForCausalLM", "llama"),
        Architecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Architecture::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        Architecture::Gemma2 => ("Gemma2ForCausalLM", "gemma2"),
        Architecture::Gemma3 => ("Gemma3ForCausalLM", "gemma3_text"),
    };
    let mut fields = Map::new();
    let mut set = |key: &str, value: Value| drop(fields.insert(key.to_owned(), value));
    set("architectures", json!([class]));
    set("model_type", json!(kind));
    set("torch_dtype", json!("float32"));
    set("hidden_size", json!(config.width));
    set("intermediate_size", json!(config.feed_width));
    set("num_hidden_layers", json!(config.layers));
    set("num_attention_heads", json!(config.heads));
    set("num_key_value_heads", json!(config.kv_heads));
    set("head_dim", json!(config.head_width));
    set("vocab_size", json!(config.vocabulary));
    set("max_position_embeddings", json!(config.context));
    set("rms_norm_eps", real(config.norm_epsilon));
    set("tie_word_embeddings", json!(tied));
    set("rope_theta", real(config.rope.base));
    set("rope_scaling", rope_scaling(config)?);
    if is_gemma(config) {
        set("hidden_activation", json!("gelu_pytorch_tanh"));
        set("query_pre_attn_scalar", json!((1.0 / config.query_scale.powi(2)).round() as u64));
        set("attn_logit_softcapping", config.score_cap.map_or(Value::Null, real));
        set("final_logit_softcapping", config.logit_cap.map_or(Value::Null, real));
    } else {
        set("hidden_act", json!("silu"));
        set("attention_bias", json!(config.architecture == Architecture::Qwen2));
    }
    if let Some(window) = config.window {
        set("sliding_window", json!(window));
        if config.architecture == Architecture::Gemma3 && config.window_pattern > 0 {
            set("sliding_window_pattern", json!(config.window_pattern));
        } else {
            let kind = |layer| match config.window_of(layer) {
                Some(_) => "sliding_attention",
                None => "full_attention",
            };
            set("layer_types", json!((0..config.layers).map(kind).collect::<Vec<_>>()));
        }
    }
    if config.architecture == Architecture::Gemma3 {
        set("rope_local_base_freq", real(config.rope.window_base));
    }
    Ok(fields)
}

fn rope_scaling(config: &ModelConfig) -> Result<Value, ExportError> {
    let Rope { base, scale, factors, .. } = &config.rope;
    if factors.is_empty() {
        return Ok(if *scale == 1.0 {
            Value::Null
        } else {
            json!({ "rope_type": "linear", "factor": real(*scale) })
        });
    }
    // GGUF keeps what follows from these settings, not the settings; the families that there are have one of two.
    let same = |(one, other): (&f32, &f32)| (one - other).abs() <= 1e-3 * other;
    for factor in [8.0, 32.0] {
        let theirs = llama3_factors(factor, 1.0, 4.0, 8_192.0, *base, config.head_width);
        if theirs.len() == factors.len() && factors.iter().zip(&theirs).all(same) {
            return Ok(json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8_192,
            }));
        }
    }
    Err(unsayable("these factors of the rotary embedding"))
}
