//! Owns the reading of hyperparameters from GGUF metadata, architecture by architecture.
//! Must never guess: what is not understood is an error that names it.

use std::collections::BTreeMap;

use super::{GgufError, Metadata, Place, Value};
use crate::config::{Activation, Architecture, ModelConfig, Rope, RopeStyle, window_pattern};
use crate::tensors::EMBEDDING;

/// Makes out the model that the metadata describes.
pub(crate) fn from_metadata(
    metadata: &Metadata,
    tensors: &BTreeMap<String, Place>,
    factors: Vec<f32>,
) -> Result<ModelConfig, GgufError> {
    let key = "general.architecture";
    let name = metadata.get(key).and_then(Value::text);
    let name = name.ok_or_else(|| bad(key, "it is missing or no text"))?;
    let keys = Keys { metadata, architecture: name };
    let architecture = match name {
        "llama" => Architecture::Llama,
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        "gemma2" => Architecture::Gemma2,
        "gemma3" => Architecture::Gemma3,
        _ => {
            return Err(GgufError::Unsupported {
                what: format!("architecture `{name}`"),
                hint: "choose a model of architecture llama, qwen2, qwen3, gemma2 or gemma3",
            });
        }
    };
    refuse_variants(&keys)?;
    let width = keys.whole("embedding_length")?;
    let layers = keys.whole("block_count")?;
    let heads = keys.per_layer("attention.head_count", layers, None)?;
    let by_width = width.checked_div(heads).unwrap_or(0);
    let head_width = keys.whole_or("attention.key_length", by_width)?;
    let value_width = keys.whole_or("attention.value_length", by_width)?;
    if value_width != head_width {
        let problem = format!("it is {value_width}, but keys are {head_width} wide; they must be the same");
        return Err(bad(&keys.full("attention.value_length"), &problem));
    }
    let (window, pattern) = window(&keys, architecture, layers)?;
    let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
    // The largest of both Gemmas scale queries by the width per head, which is not their heads' width.
    let query_width = match (architecture, layers) {
        (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62) => by_width,
        _ => head_width,
    };
    let (score_cap, logit_cap) = match architecture {
        Architecture::Gemma2 => {
            (keys.cap("attn_logit_softcapping", 50.0)?, keys.cap("final_logit_softcapping", 30.0)?)
        }
        Architecture::Gemma3 => (None, keys.cap("final_logit_softcapping", 0.0)?),
        Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen3 => (None, None),
    };
    let config = ModelConfig {
        architecture,
        layers,
        width,
        feed_width: keys.per_layer("feed_forward_length", layers, None)?,
        heads,
        kv_heads: keys.per_layer("attention.head_count_kv", layers, Some(heads))?,
        head_width,
        vocabulary: vocabulary(metadata, tensors)?,
        context: keys.whole("context_length")?,
        norm_epsilon: keys
            .float("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| bad(&keys.full("attention.layer_norm_rms_epsilon"), "it is missing"))?,
        rope: rope(&keys, architecture, head_width, factors)?,
        activation: if gemma { Activation::GeluGated } else { Activation::SiluGated },
        embedding_scale: if gemma { (width as f32).sqrt() } else { 1.0 },
        query_scale: 1.0 / (query_width as f32).sqrt(),
        score_cap,
        logit_cap,
        window,
        window_pattern: pattern,
    };
    config.validate()?;
    Ok(config)
}

/// Names what makes a file of a known architecture another model than the one that we compute.
fn refuse_variants(keys: &Keys<'_>) -> Result<(), GgufError> {
    if keys.whole_or("expert_count", 0)? > 0 {
        return Err(GgufError::Unsupported {
            what: "a mixture of experts (`expert_count`)".to_owned(),
            hint: "choose a dense model",
        });
    }
    if keys.metadata.get("split.count").and_then(Value::unsigned).is_some_and(|count| count > 1) {
        return Err(GgufError::Unsupported {
            what: "a model split over several GGUF files".to_owned(),
            hint: "join the parts with `llama-gguf-split --merge` first",
        });
    }
    Ok(())
}

fn rope(
    keys: &Keys<'_>,
    architecture: Architecture,
    head_width: u32,
    factors: Vec<f32>,
) -> Result<Rope, GgufError> {
    let base = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
    let window_base = match architecture {
        Architecture::Gemma3 => keys.float("rope.freq_base_swa")?.unwrap_or(10_000.0),
        Architecture::Gemma2 => keys.float("rope.freq_base_swa")?.unwrap_or(base),
        Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen3 => base,
    };
    let dims = keys.whole_or("rope.dimension_count", head_width)?;
    if architecture == Architecture::Llama && dims != head_width {
        let problem = format!("it is {dims}, but heads are {head_width} wide; llama rotates whole heads");
        return Err(bad(&keys.full("rope.dimension_count"), &problem));
    }
    if architecture != Architecture::Llama && !factors.is_empty() {
        return Err(GgufError::Unsupported {
            what: format!("`rope_freqs.weight` in a model of architecture `{}`", keys.architecture),
            hint: "convert the model again with a current converter",
        });
    }
    let style = if architecture == Architecture::Llama { RopeStyle::Adjacent } else { RopeStyle::Halves };
    let scale = rope_scale(keys)?;
    if architecture == Architecture::Gemma2 && scale != 1.0 {
        return Err(GgufError::Unsupported {
            what: "rope scaling in a model of architecture `gemma2`".to_owned(),
            hint: "use the model as its author published it",
        });
    }
    Ok(Rope { style, base, window_base, dims, scale, factors })
}

/// What positions are divided by.
fn rope_scale(keys: &Keys<'_>) -> Result<f32, GgufError> {
    let kind = keys.text("rope.scaling.type")?.unwrap_or("linear");
    let factor = match keys.float("rope.scaling.factor")? {
        Some(factor) => factor,
        None => keys.float("rope.scale_linear")?.unwrap_or(1.0),
    };
    let stretched = keys.float("rope.scaling.attn_factor")?.is_some_and(|factor| factor != 1.0);
    match kind {
        "none" => Ok(1.0),
        "linear" if !stretched => Ok(if factor == 0.0 { 1.0 } else { factor }),
        _ => Err(GgufError::Unsupported {
            what: format!(
                "rope scaling of type `{kind}`{}",
                if stretched { " with `attn_factor`" } else { "" }
            ),
            hint: "choose a model whose rope scaling is none, linear or Llama 3's",
        }),
    }
}

/// The sliding window, and which layers have it.
fn window(keys: &Keys<'_>, architecture: Architecture, layers: u32) -> Result<(Option<u32>, u32), GgufError> {
    let given = keys.whole_or("attention.sliding_window", 0)?;
    let (window, usual_pattern) = match (architecture, given) {
        (Architecture::Gemma2, 0) => (4_096, 2),
        (Architecture::Gemma2, given) => (given, 2),
        (Architecture::Gemma3, given) if given > 0 => (given, 6),
        _ => return Ok((None, 1)),
    };
    let key = "attention.sliding_window_pattern";
    let pattern = match keys.get(key) {
        Some(Value::Bools(slides)) => {
            let found = window_pattern(slides).filter(|_| slides.len() == layers as usize);
            let problem = "its layers slide in no regular pattern, which is not supported";
            found.ok_or_else(|| bad(&keys.full(key), problem))?
        }
        _ => keys.whole_or(key, usual_pattern)?,
    };
    Ok((Some(window), pattern))
}

/// Tokens: the tokenizer's where the file has one, so that an embedding for another tokenizer is refused by its shape.
fn vocabulary(metadata: &Metadata, tensors: &BTreeMap<String, Place>) -> Result<u32, GgufError> {
    let rows = match metadata.get("tokenizer.ggml.tokens") {
        Some(Value::Texts(tokens)) => tokens.len() as u64,
        Some(_) => return Err(bad("tokenizer.ggml.tokens", "it is no list of texts")),
        None => tensors.get(EMBEDDING).map_or(0, |place| place.info.rows),
    };
    u32::try_from(rows).map_err(|_| bad("tokenizer.ggml.tokens", "there are too many tokens"))
}

/// The metadata of one architecture: its keys begin with its name.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.metadata.get(&self.full(key))
    }

    fn optional(&self, key: &str) -> Result<Option<u32>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let whole = value.unsigned().and_then(|value| u32::try_from(value).ok());
        let problem = "it is no whole number from 0 to 4294967295";
        whole.map(Some).ok_or_else(|| bad(&self.full(key), problem))
    }

    fn whole(&self, key: &str) -> Result<u32, GgufError> {
        self.optional(key)?.ok_or_else(|| bad(&self.full(key), "it is missing"))
    }

    fn whole_or(&self, key: &str, default: u32) -> Result<u32, GgufError> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    /// A number that some files give once and some for each layer; it must be the same for all.
    fn per_layer(&self, key: &str, layers: u32, default: Option<u32>) -> Result<u32, GgufError> {
        let all: Vec<Option<u64>> = match self.get(key) {
            Some(Value::Unsigneds(all)) => all.iter().map(|value| Some(*value)).collect(),
            Some(Value::Signeds(all)) => all.iter().map(|value| u64::try_from(*value).ok()).collect(),
            _ => match (self.optional(key)?, default) {
                (Some(value), _) | (None, Some(value)) => return Ok(value),
                (None, None) => return Err(bad(&self.full(key), "it is missing")),
            },
        };
        let first = all.first().copied().flatten().and_then(|value| u32::try_from(value).ok());
        let same = all.windows(2).all(|pair| pair.first() == pair.last()) && all.len() == layers as usize;
        let problem = "it differs from layer to layer, which is not supported";
        first.filter(|_| same).ok_or_else(|| bad(&self.full(key), problem))
    }

    fn float(&self, key: &str) -> Result<Option<f32>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let float = value.float().ok_or_else(|| bad(&self.full(key), "it is no float"))?;
        Ok(Some(float as f32))
    }

    /// A soft cap; 0 stands for none.
    fn cap(&self, key: &str, default: f32) -> Result<Option<f32>, GgufError> {
        let cap = self.float(key)?.unwrap_or(default);
        Ok(Some(cap).filter(|cap| *cap != 0.0))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.text().map(Some).ok_or_else(|| bad(&self.full(key), "it is no text"))
    }
}

fn bad(key: &str, problem: &str) -> GgufError {
    GgufError::BadKey { key: key.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file says of a Gemma, without its tensors.
    fn gemma(name: &str, layers: u64) -> ModelConfig {
        let mut metadata = Metadata::new();
        let mut set = |key: &str, value| drop(metadata.insert(key.to_owned(), value));
        set("general.architecture", Value::Text(name.into()));
        set("tokenizer.ggml.tokens", Value::Texts(vec![b"a".into()]));
        let numbers = [
            ("block_count", layers),
            ("context_length", 8_192),
            ("embedding_length", 4_608),
            ("feed_forward_length", 36_864),
            ("attention.head_count", 32),
            ("attention.head_count_kv", 16),
            ("attention.key_length", 128),
            ("attention.value_length", 128),
            ("attention.sliding_window", 4_096),
        ];
        for (key, value) in numbers {
            set(&format!("{name}.{key}"), Value::Unsigned(value));
        }
        set(&format!("{name}.attention.layer_norm_rms_epsilon"), Value::Float(1e-6));
        set(&format!("{name}.rope.freq_base"), Value::Float(1e6));
        from_metadata(&metadata, &BTreeMap::new(), Vec::new()).unwrap()
    }

    #[test]
    fn the_largest_gemmas_scale_queries_by_the_width_per_head() {
        let (by_head, by_width) = (1.0 / 128_f32.sqrt(), 1.0 / 144_f32.sqrt());
        assert_eq!((gemma("gemma2", 46).query_scale, gemma("gemma2", 42).query_scale), (by_width, by_head));
        assert_eq!((gemma("gemma3", 62).query_scale, gemma("gemma3", 48).query_scale), (by_width, by_head));
    }

    #[test]
    fn sliding_layers_of_gemma_3_have_a_base_of_their_own() {
        let bases = |config: ModelConfig| (config.rope.base, config.rope.window_base);
        assert_eq!(bases(gemma("gemma3", 26)), (1e6, 1e4));
        assert_eq!(bases(gemma("gemma2", 26)), (1e6, 1e6));
    }
}
