//! Owns the reading of hyperparameters from a Hugging Face `config.json`.
//! Must never guess: what is not understood is an error that names it.

use std::f32::consts::TAU;
use std::path::Path;

use serde::Deserialize;

use super::{HfError, malformed};
use crate::config::{Activation, Architecture, ModelConfig, Rope, RopeStyle, window_pattern};

/// The hyperparameters, and whether a head in the files is to be ignored because it is the embedding.
pub(crate) struct FolderConfig {
    pub(crate) model: ModelConfig,
    pub(crate) tied: bool,
}

/// Makes out the model that the text of a `config.json` describes. `rows` are those of the embedding in the files.
pub(crate) fn read(path: &Path, text: &[u8], rows: u64) -> Result<FolderConfig, HfError> {
    let parse = |error| malformed(path, format!("it is no configuration of a model: {error}"));
    let outer: Outer = serde_json::from_slice(text).map_err(parse)?;
    let mut fields: Fields = serde_json::from_slice(text).map_err(parse)?;
    if let Some(inner) = outer.text_config {
        fields = Fields { model_type: fields.model_type, ..inner };
    }
    if outer.quantization_config.is_some() {
        return Err(HfError::Unsupported {
            what: format!("{}: a model with `quantization_config`", path.display()),
            hint: "use the unquantised folder, or a GGUF file",
        });
    }
    model(path, &fields, rows)
}

/// What surrounds the model of text in one that also sees.
#[derive(Deserialize)]
struct Outer {
    text_config: Option<Fields>,
    quantization_config: Option<serde::de::IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    model_type: String,
    hidden_size: u32,
    num_hidden_layers: u32,
    intermediate_size: u32,
    num_attention_heads: Option<u32>,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    vocab_size: Option<u32>,
    max_position_embeddings: Option<u32>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    rope_local_base_freq: Option<f32>,
    rope_scaling: Option<RopeScaling>,
    rope_parameters: Option<RopeParameters>,
    partial_rotary_factor: Option<f32>,
    sliding_window: Option<u32>,
    sliding_window_pattern: Option<u32>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    query_pre_attn_scalar: Option<f32>,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    tie_word_embeddings: Option<bool>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct RopeScaling {
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
}

/// Newer files state the base here too, and Gemma's for both kinds of layers.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum RopeParameters {
    ByLayer { full_attention: RopeScaling, sliding_attention: RopeScaling },
    One(RopeScaling),
}

fn model(path: &Path, fields: &Fields, rows: u64) -> Result<FolderConfig, HfError> {
    let architecture = architecture(&fields.model_type)?;
    let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
    let missing = |name: &str| malformed(path, format!("`{name}` is missing"));
    // Published Gemma 3 leaves out what its library takes for granted.
    let usual = |value: Option<u32>, name: &str, gemma3: u32| match (value, architecture) {
        (Some(value), _) => Ok(value),
        (None, Architecture::Gemma3) => Ok(gemma3),
        (None, _) => Err(missing(name)),
    };
    let heads = usual(fields.num_attention_heads, "num_attention_heads", 8)?;
    let by_width = fields.hidden_size.checked_div(heads).unwrap_or(0);
    let head_width = match (fields.head_dim, architecture) {
        (Some(width), _) => width,
        (None, Architecture::Gemma2 | Architecture::Gemma3) => 256,
        (None, _) => by_width,
    };
    check_activation(fields, gemma)?;
    let query_width = match fields.query_pre_attn_scalar {
        Some(width) if gemma => width,
        None if gemma => 256.0,
        _ => head_width as f32,
    };
    let (window, pattern) = window(fields, architecture)?;
    let usual_kv_heads = if architecture == Architecture::Gemma3 { 4 } else { heads };
    let model = ModelConfig {
        architecture,
        layers: fields.num_hidden_layers,
        width: fields.hidden_size,
        feed_width: fields.intermediate_size,
        heads,
        kv_heads: fields.num_key_value_heads.unwrap_or(usual_kv_heads),
        head_width,
        vocabulary: fields.vocab_size.unwrap_or(u32::try_from(rows).unwrap_or(u32::MAX)),
        context: usual(fields.max_position_embeddings, "max_position_embeddings", 131_072)?,
        norm_epsilon: fields.rms_norm_eps.unwrap_or(1e-6),
        rope: rope(fields, architecture, head_width)?,
        activation: if gemma { Activation::GeluGated } else { Activation::SiluGated },
        embedding_scale: if gemma { (fields.hidden_size as f32).sqrt() } else { 1.0 },
        query_scale: 1.0 / query_width.sqrt(),
        score_cap: fields.attn_logit_softcapping.filter(|_| architecture == Architecture::Gemma2),
        logit_cap: fields.final_logit_softcapping.filter(|_| gemma),
        window,
        window_pattern: pattern,
    };
    model.validate()?;
    Ok(FolderConfig { model, tied: fields.tie_word_embeddings.unwrap_or(gemma) })
}

fn architecture(model_type: &str) -> Result<Architecture, HfError> {
    match model_type {
        "llama" | "mistral" => Ok(Architecture::Llama),
        "qwen2" => Ok(Architecture::Qwen2),
        "qwen3" => Ok(Architecture::Qwen3),
        "gemma2" => Ok(Architecture::Gemma2),
        "gemma3" | "gemma3_text" => Ok(Architecture::Gemma3),
        other => Err(HfError::Unsupported {
            what: format!("a model of type `{other}`"),
            hint: "choose one of type llama, mistral, qwen2, qwen3, gemma2 or gemma3",
        }),
    }
}

fn check_activation(fields: &Fields, gemma: bool) -> Result<(), HfError> {
    let wanted = if gemma { "gelu_pytorch_tanh" } else { "silu" };
    let given = fields.hidden_activation.as_deref().or(fields.hidden_act.as_deref()).unwrap_or(wanted);
    if given == wanted {
        return Ok(());
    }
    Err(HfError::Unsupported {
        what: format!("activation `{given}` in a model of type `{}`", fields.model_type),
        hint: "use the model as its author published it",
    })
}

/// The sliding window, and which layers have it.
fn window(fields: &Fields, architecture: Architecture) -> Result<(Option<u32>, u32), HfError> {
    let unsupported = |what: &str| HfError::Unsupported {
        what: format!("{what} in a model of type `{}`", fields.model_type),
        hint: "choose a model whose layers all see the whole context",
    };
    let slides = fields
        .layer_types
        .as_ref()
        .map(|kinds| kinds.iter().map(|kind| kind == "sliding_attention").collect::<Vec<_>>());
    let foreign = |kind: &String| kind != "sliding_attention" && kind != "full_attention";
    if let Some(kind) = fields.layer_types.iter().flatten().find(|kind| foreign(kind)) {
        return Err(unsupported(&format!("layers of type `{kind}`")));
    }
    let (window, usual) = match architecture {
        Architecture::Gemma2 => (Some(fields.sliding_window.unwrap_or(4_096)), 2),
        Architecture::Gemma3 => {
            (Some(fields.sliding_window.unwrap_or(4_096)), fields.sliding_window_pattern.unwrap_or(6))
        }
        // Only the first Mistral slides, on every layer.
        Architecture::Llama => (fields.sliding_window.filter(|_| fields.model_type == "mistral"), 0),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            if fields.use_sliding_window == Some(true) {
                return Err(unsupported("`use_sliding_window`"));
            }
            (None, 1)
        }
    };
    let Some(window) = window else { return Ok((None, 1)) };
    let pattern = match slides {
        Some(slides) => {
            window_pattern(&slides).ok_or_else(|| unsupported("an irregular list of `layer_types`"))?
        }
        None => usual,
    };
    Ok((Some(window), pattern))
}

fn rope(fields: &Fields, architecture: Architecture, head_width: u32) -> Result<Rope, HfError> {
    let (full, sliding) = match fields.rope_parameters.clone() {
        Some(RopeParameters::ByLayer { full_attention, sliding_attention }) => {
            (full_attention, sliding_attention)
        }
        Some(RopeParameters::One(one)) => (one, RopeScaling::default()),
        None => (fields.rope_scaling.clone().unwrap_or_default(), RopeScaling::default()),
    };
    let usual = if architecture == Architecture::Gemma3 { 1_000_000.0 } else { 10_000.0 };
    let base = full.rope_theta.or(fields.rope_theta).unwrap_or(usual);
    let window_base = if architecture == Architecture::Gemma3 {
        sliding.rope_theta.or(fields.rope_local_base_freq).unwrap_or(10_000.0)
    } else {
        base
    };
    let unsupported = |what: String| HfError::Unsupported {
        what: format!("{what} in a model of type `{}`", fields.model_type),
        hint: "choose a model whose rope scaling is none, linear or Llama 3's",
    };
    if fields.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
        return Err(unsupported("`partial_rotary_factor`".to_owned()));
    }
    let kind = full.rope_type.as_deref().or(full.r#type.as_deref()).unwrap_or("default");
    let (scale, factors) = match (kind, architecture) {
        ("default", _) => (1.0, Vec::new()),
        ("linear", Architecture::Gemma2) => return Err(unsupported("linear rope scaling".to_owned())),
        ("linear", _) => (full.factor.unwrap_or(1.0), Vec::new()),
        ("llama3", Architecture::Llama) => {
            let low = full.low_freq_factor.unwrap_or(1.0);
            let high = full.high_freq_factor.unwrap_or(4.0);
            let context = full.original_max_position_embeddings.unwrap_or(8_192.0);
            (1.0, llama3_factors(full.factor.unwrap_or(8.0), low, high, context, base, head_width))
        }
        (other, _) => return Err(unsupported(format!("rope scaling of type `{other}`"))),
    };
    let style = RopeStyle::Halves;
    Ok(Rope { style, base, window_base, dims: head_width, scale, factors })
}

/// Llama 3's scaling: long waves are slowed by the whole factor, short ones not at all, those between in part.
pub(crate) fn llama3_factors(
    factor: f32,
    low: f32,
    high: f32,
    context: f32,
    base: f32,
    head_width: u32,
) -> Vec<f32> {
    let factor_of = |pair: u32| {
        let wave = TAU * base.powf((2 * pair) as f32 / head_width as f32);
        if wave < context / high {
            1.0
        } else if wave > context / low {
            factor
        } else {
            let smooth = (context / wave - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    // A head of absurd width is refused later, but its list is made before.
    (0..(head_width / 2).min(512)).map(factor_of).collect()
}
