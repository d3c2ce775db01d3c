//! Owns tiny models of every architecture as GGUF files in memory, for tests and for the fuzzers' seeds.
//! Must never be large: a test makes hundreds of them.

use skein_engine::config::{Architecture, ModelConfig};
use skein_engine::dtype::Dtype;
use skein_engine::gguf::{GgufWriter, Value};
use skein_engine::source::TensorInfo;
use skein_engine::tensors::{HEAD, expected};

/// The architectures that GGUF files hold.
pub(crate) const ARCHITECTURES: [(&str, Architecture); 5] = [
    ("llama", Architecture::Llama),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("gemma2", Architecture::Gemma2),
    ("gemma3", Architecture::Gemma3),
];

/// Tokens of the tiny vocabulary.
pub(crate) const VOCABULARY: u64 = 48;

/// The metadata of a tiny model: 2 layers, 4 heads over 2, width 32.
pub(crate) fn metadata(name: &str) -> GgufWriter {
    let key = |key: &str| format!("{name}.{key}");
    let tokens = (0..VOCABULARY).map(|token| format!("t{token}").into_bytes()).collect();
    let mut writer = GgufWriter::default()
        .with("general.architecture", Value::Text(name.into()))
        .with("tokenizer.ggml.tokens", Value::Texts(tokens))
        .with(&key("attention.layer_norm_rms_epsilon"), Value::Float(2_f64.powi(-17)))
        .with(&key("rope.freq_base"), Value::Float(10_000.0));
    let numbers = [
        ("block_count", 2),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ];
    for (number, value) in numbers {
        writer = writer.with(&key(number), Value::Unsigned(value));
    }
    if name.starts_with("gemma") {
        writer = writer.with(&key("attention.sliding_window"), Value::Unsigned(8));
    }
    writer
}

/// A whole tiny model with small pseudo-random elements, its matrices in F32 and its head tied.
pub(crate) fn model(name: &str) -> GgufWriter {
    let mut writer = metadata(name);
    let config = config(name);
    for tensor in expected(&config).into_iter().filter(|tensor| tensor.name != HEAD) {
        let info = TensorInfo { dtype: Dtype::F32, rows: tensor.rows, columns: tensor.columns };
        let elements = elements(&tensor.name, (tensor.rows * tensor.columns) as usize);
        writer = writer.tensor(&tensor.name, info, elements.iter().flat_map(|e| e.to_le_bytes()).collect());
    }
    writer
}

/// The hyperparameters that [`metadata`] stands for.
pub(crate) fn config(name: &str) -> ModelConfig {
    use skein_engine::config::{Activation, Rope, RopeStyle};
    let known = ARCHITECTURES.into_iter().find(|(known, _)| *known == name);
    let Some((_, architecture)) = known else { panic!("there is no tiny `{name}`") };
    let gemma = name.starts_with("gemma");
    ModelConfig {
        architecture,
        layers: 2,
        width: 32,
        feed_width: 64,
        heads: 4,
        kv_heads: 2,
        head_width: 8,
        vocabulary: VOCABULARY as u32,
        context: 64,
        norm_epsilon: 2_f32.powi(-17),
        rope: Rope {
            style: if name == "llama" { RopeStyle::Adjacent } else { RopeStyle::Halves },
            base: 10_000.0,
            window_base: 10_000.0,
            dims: 8,
            scale: 1.0,
            factors: Vec::new(),
        },
        activation: if gemma { Activation::GeluGated } else { Activation::SiluGated },
        embedding_scale: if gemma { 32_f32.sqrt() } else { 1.0 },
        query_scale: 1.0 / 8_f32.sqrt(),
        score_cap: (name == "gemma2").then_some(50.0),
        logit_cap: (name == "gemma2").then_some(30.0),
        window: gemma.then_some(8),
        window_pattern: match name {
            "gemma2" => 2,
            "gemma3" => 6,
            _ => 1,
        },
    }
}

/// Numbers from -0.5 to 0.5 that depend on the name alone; norms' gains are around 1.
fn elements(name: &str, count: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(7_u32, |state, byte| state.wrapping_mul(31) ^ u32::from(byte));
    let shift = if name.contains("norm") { 1.0 } else { 0.0 };
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5 + shift
    };
    (0..count).map(|_| next()).collect()
}
