//! Owns the hyperparameters of a model: one flat description that every architecture fits into.
//! Must never touch weights. Where each value comes from is `gguf`'s and `hf`'s to know.
//!
//! Architectures differ only in what this structure says; the graph (`cpu::graph`, `gpu::graph`) is one. A decoder
//! layer is: `h += post_attention_norm?(attention(attention_norm(h)))`, then `h += post_feed_norm?(feed(feed_norm(h)))`.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::limits::{CONTEXT_MAX, HEADS_MAX, LAYERS_MAX, VOCABULARY_MAX, WIDTH_MAX};

/// What the model's author calls it; decides nothing by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Architecture {
    /// Llama 2 and 3, Mistral, SmolLM2.
    Llama,
    /// Qwen 2 and 2.5: biases on query, key and value.
    Qwen2,
    /// Qwen 3: norms on each head's query and key.
    Qwen3,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3 (text).
    Gemma3,
}

impl Architecture {
    /// The name by which files call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
        }
    }
}

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum RopeStyle {
    /// 2i with 2i + 1: GGUF's llama, whose converter permuted query and key.
    Adjacent,
    /// i with i + dims/2: everything else, and Hugging Face's llama.
    Halves,
}

/// How a token's place enters: rotary embedding of queries and keys.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct Rope {
    /// Which elements pair.
    pub style: RopeStyle,
    /// Base of the frequencies, on layers that see the whole context.
    pub base: f32,
    /// Base on layers with a sliding window (Gemma 3); elsewhere the same as `base`.
    pub window_base: f32,
    /// Rotated elements of each head, even.
    pub dims: u32,
    /// Positions are divided by this on layers that see the whole context (linear scaling); 1 for none.
    pub scale: f32,
    /// Frequencies are divided by these, `dims / 2` of them (Llama 3's scaling); empty for none.
    pub factors: Vec<f32>,
}

/// The function inside the feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Activation {
    /// `down(silu(gate(x)) * up(x))`
    SiluGated,
    /// `down(gelu_tanh(gate(x)) * up(x))`
    GeluGated,
}

/// Hyperparameters. Norms are all root-mean-square with a gain (Gemma's `1 +` is folded into the gain on import).
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct ModelConfig {
    /// By its author's name.
    pub architecture: Architecture,
    /// Decoder layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub width: u32,
    /// Width of the feed-forward layer.
    pub feed_width: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_width: u32,
    /// Tokens of the vocabulary: rows of the embedding and of the head.
    pub vocabulary: u32,
    /// Longest sequence that the model was made for.
    pub context: u32,
    /// Added to the mean square of every norm.
    pub norm_epsilon: f32,
    /// How places enter.
    pub rope: Rope,
    /// Feed-forward function.
    pub activation: Activation,
    /// Embeddings are multiplied by this (Gemma: √width); 1 for none.
    pub embedding_scale: f32,
    /// Queries are multiplied by this; usually 1/√head_width.
    pub query_scale: f32,
    /// Scores become `cap · tanh(score / cap)`; none if absent.
    pub score_cap: Option<f32>,
    /// The same for logits.
    pub logit_cap: Option<f32>,
    /// Sliding window in tokens (the query's own included), on the layers that `window_pattern` says.
    pub window: Option<u32>,
    /// Layer i slides unless `(i + 1) % window_pattern == 0`; 1 means that no layer slides, 0 that all do.
    pub window_pattern: u32,
}

/// Why hyperparameters are no model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the model's {what} is {value}, allowed are {allowed}")]
pub struct BadConfig {
    /// Which value.
    pub what: &'static str,
    /// As it was given.
    pub value: String,
    /// In words.
    pub allowed: String,
}

impl ModelConfig {
    /// Checks every value that a file or a stranger may have chosen.
    ///
    /// # Errors
    /// [`BadConfig`] names the first that is out of range.
    pub fn validate(&self) -> Result<(), BadConfig> {
        let whole = |what, value: u32, least: u32, most: u32| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(BadConfig { what, value: value.to_string(), allowed: format!("{least} to {most}") })
            }
        };
        whole("number of layers", self.layers, 1, LAYERS_MAX)?;
        whole("width", self.width, 1, WIDTH_MAX)?;
        whole("feed-forward width", self.feed_width, 1, 8 * WIDTH_MAX)?;
        whole("number of heads", self.heads, 1, HEADS_MAX)?;
        whole("number of key and value heads", self.kv_heads, 1, self.heads)?;
        whole("head width", self.head_width, 1, 1_024)?;
        whole("vocabulary", self.vocabulary, 1, VOCABULARY_MAX)?;
        whole("context", self.context, 1, CONTEXT_MAX)?;
        let finite = |what, value: f32, good: bool, allowed: &str| {
            if value.is_finite() && good {
                Ok(())
            } else {
                Err(BadConfig { what, value: value.to_string(), allowed: allowed.to_owned() })
            }
        };
        let positive = |what, value: f32| finite(what, value, value > 0.0, "finite and above 0");
        if !self.heads.is_multiple_of(self.kv_heads) {
            let allowed = format!("a divisor of {} heads", self.heads);
            return Err(BadConfig {
                what: "number of key and value heads",
                value: self.kv_heads.to_string(),
                allowed,
            });
        }
        finite("norm epsilon", self.norm_epsilon, (0.0..1.0).contains(&self.norm_epsilon), "0 to below 1")?;
        positive("embedding scale", self.embedding_scale)?;
        positive("query scale", self.query_scale)?;
        self.score_cap.map_or(Ok(()), |cap| positive("score cap", cap))?;
        self.logit_cap.map_or(Ok(()), |cap| positive("logit cap", cap))?;
        self.window.map_or(Ok(()), |window| whole("sliding window", window, 1, CONTEXT_MAX))?;
        let Rope { base, window_base, dims, scale, factors, .. } = &self.rope;
        positive("rope base", *base)?;
        positive("rope base of sliding layers", *window_base)?;
        positive("rope scale", *scale)?;
        let even = *dims >= 2 && dims.is_multiple_of(2) && *dims <= self.head_width;
        if !even {
            return Err(BadConfig {
                what: "number of rotated elements",
                value: dims.to_string(),
                allowed: format!("even, 2 to {}", self.head_width),
            });
        }
        let fits = factors.is_empty() || factors.len() == *dims as usize / 2;
        if !fits || factors.iter().any(|factor| !factor.is_finite() || *factor <= 0.0) {
            return Err(BadConfig {
                what: "list of rope factors",
                value: format!("{} values", factors.len()),
                allowed: format!("none, or {} finite ones above 0", dims / 2),
            });
        }
        Ok(())
    }

    /// The window of a layer; `None` where it sees the whole context.
    #[must_use]
    pub fn window_of(&self, layer: u32) -> Option<u32> {
        let slides = self.window_pattern == 0 || !(layer + 1).is_multiple_of(self.window_pattern);
        self.window.filter(|_| slides)
    }

    /// Bytes that one token takes in the cache of one layer: keys and values in f16.
    #[must_use]
    pub fn cache_bytes_per_token_and_layer(&self) -> u64 {
        2 * 2 * u64::from(self.kv_heads) * u64::from(self.head_width)
    }
}

/// The `window_pattern` by which exactly these layers slide; `None` if they follow none.
#[must_use]
pub fn window_pattern(slides: &[bool]) -> Option<u32> {
    let layers = u32::try_from(slides.len()).ok().filter(|layers| *layers <= LAYERS_MAX)?;
    let fits = |pattern: &u32| {
        let slides_by_it = |layer: u32| *pattern == 0 || !(layer + 1).is_multiple_of(*pattern);
        (0..layers).zip(slides).all(|(layer, slides)| *slides == slides_by_it(layer))
    };
    (0..=layers).find(fits)
}
