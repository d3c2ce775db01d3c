//! Owns the translation of Hugging Face's tensor names to GGUF's.
//! Must never drop a name that it does not know: that would silently compute another model.

use crate::config::Architecture;
use crate::tensors::{EMBEDDING, HEAD, OUTPUT_NORM, layer_tensor};

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is this one of GGUF's names.
    Named(String),
    /// It plays no part in text: the tower of a model that also sees, or what is computed from hyperparameters.
    Ignored,
    /// It is nothing that we know.
    Unknown,
}

/// What becomes of the tensor that Hugging Face calls `name`.
pub(super) fn fate(name: &str, architecture: Architecture) -> Fate {
    let ignored =
        ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];
    if ignored.iter().any(|prefix| name.starts_with(prefix)) || name.ends_with("rotary_emb.inv_freq") {
        return Fate::Ignored;
    }
    // Gemma 3's text model sits inside a model that sees, under either of two names.
    let text = name.strip_prefix("language_model.").unwrap_or(name);
    let text = text.strip_prefix("model.").unwrap_or(text);
    let text = text.strip_prefix("language_model.").unwrap_or(text);
    match text {
        "embed_tokens.weight" => return Fate::Named(EMBEDDING.to_owned()),
        "norm.weight" => return Fate::Named(OUTPUT_NORM.to_owned()),
        "lm_head.weight" => return Fate::Named(HEAD.to_owned()),
        _ => {}
    }
    let found = || {
        let (layer, part) = text.strip_prefix("layers.")?.split_once('.')?;
        Some(layer_tensor(layer.parse().ok()?, layer_part(part, architecture)?))
    };
    found().map_or(Fate::Unknown, Fate::Named)
}

/// What Hugging Face calls the tensor that GGUF calls `name`; none for what it does not know.
pub(crate) fn hf_name(name: &str, architecture: Architecture) -> Option<String> {
    let outside = match name {
        EMBEDDING => Some("model.embed_tokens.weight"),
        OUTPUT_NORM => Some("model.norm.weight"),
        HEAD => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(name) = outside {
        return Some(name.to_owned());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let theirs = LAYER_PARTS.iter().find(|theirs| layer_part(theirs, architecture) == Some(part))?;
    Some(format!("model.layers.{layer}.{theirs}"))
}

/// Hugging Face's names of a layer's tensors.
const LAYER_PARTS: [&str; 16] = [
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.q_proj.bias",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.bias",
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "pre_feedforward_layernorm.weight",
    "post_feedforward_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
];

fn layer_part(part: &str, architecture: Architecture) -> Option<&'static str> {
    let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
    Some(match part {
        "input_layernorm.weight" => "attn_norm.weight",
        "self_attn.q_proj.weight" => "attn_q.weight",
        "self_attn.k_proj.weight" => "attn_k.weight",
        "self_attn.v_proj.weight" => "attn_v.weight",
        "self_attn.q_proj.bias" => "attn_q.bias",
        "self_attn.k_proj.bias" => "attn_k.bias",
        "self_attn.v_proj.bias" => "attn_v.bias",
        "self_attn.q_norm.weight" => "attn_q_norm.weight",
        "self_attn.k_norm.weight" => "attn_k_norm.weight",
        "self_attn.o_proj.weight" => "attn_output.weight",
        // Gemma norms what attention adds; everyone else has this name for the norm of the feed-forward layer.
        "post_attention_layernorm.weight" if gemma => "post_attention_norm.weight",
        "post_attention_layernorm.weight" => "ffn_norm.weight",
        "pre_feedforward_layernorm.weight" if gemma => "ffn_norm.weight",
        "post_feedforward_layernorm.weight" if gemma => "post_ffw_norm.weight",
        "mlp.gate_proj.weight" => "ffn_gate.weight",
        "mlp.up_proj.weight" => "ffn_up.weight",
        "mlp.down_proj.weight" => "ffn_down.weight",
        _ => return None,
    })
}
