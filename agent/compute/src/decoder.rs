//! Owns the model that is trained: every decoder that `skein-engine` serves, written once in Burn for every device.
//! Must never know where weights come from, what trains them, or who asks: tensors in, tensors out.
//!
//! Activations are `[rows, width]`, a row being one token of one sequence. Matrices are `[inputs, outputs]` here, so that
//! rows are multiplied by them without a turn.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::activation::{gelu_approximate, log_softmax, silu, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};
use skein_engine::config::{Activation, ModelConfig, Rope, RopeStyle};
use skein_engine::tensors::{EMBEDDING, HEAD, OUTPUT_NORM, layer_tensor};

use crate::data::Batch;
use crate::trainee::{LORA_A, LORA_B, Method, Role, Trainee};

/// What masked scores become: far below any score, yet finite, so that no subtraction gives NaN.
const MASKED: f32 = -1e9;

/// Tensors on a device by name: matrices turned, vectors as `[1, n]`.
pub(crate) type Weights = BTreeMap<String, Tensor<2>>;

/// Puts `values` (`[rows, columns]`, row-major) on a device as the decoder wants them.
pub(crate) fn upload(
    role: Role,
    rows: usize,
    columns: usize,
    values: Vec<f32>,
    device: &Device,
) -> Tensor<2> {
    match role {
        Role::Vector | Role::Table => Tensor::from_data(TensorData::new(values, [rows, columns]), device),
        Role::Matrix => {
            Tensor::from_data(TensorData::new(turned(&values, rows, columns), [columns, rows]), device)
        }
    }
}

/// `[rows, columns]` to `[columns, rows]`, both row-major.
pub(crate) fn turned(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    // By blocks, so that both sides stay in the cache.
    const BLOCK: usize = 32;
    let mut out = vec![0.0; values.len()];
    for top in (0..rows).step_by(BLOCK) {
        for left in (0..columns).step_by(BLOCK) {
            for row in top..(top + BLOCK).min(rows) {
                for column in left..(left + BLOCK).min(columns) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

/// Layers of a model on one device.
pub(crate) struct Decoder<'a> {
    config: &'a ModelConfig,
    /// `[vocabulary, width]`; with the first layer only.
    embedding: Option<Tensor<2>>,
    layers: Vec<Layer>,
    /// With the last layer only.
    head: Option<Head>,
}

struct Head {
    norm: Tensor<2>,
    /// `[width, vocabulary]`
    matrix: Tensor<2>,
}

struct Layer {
    attention_norm: Tensor<2>,
    query: Linear,
    key: Linear,
    value: Linear,
    query_norm: Option<Tensor<2>>,
    key_norm: Option<Tensor<2>>,
    attention_out: Linear,
    post_attention_norm: Option<Tensor<2>>,
    feed_norm: Tensor<2>,
    gate: Linear,
    up: Linear,
    down: Linear,
    post_feed_norm: Option<Tensor<2>>,
    slides: bool,
}

struct Linear {
    /// `[inputs, outputs]`
    matrix: Tensor<2>,
    bias: Option<Tensor<2>>,
    adapter: Option<Adapter>,
}

struct Adapter {
    /// `[inputs, rank]`
    a: Tensor<2>,
    /// `[rank, outputs]`
    b: Tensor<2>,
    scale: f32,
}

/// What depends on a sequence's length alone.
pub(crate) struct Places {
    /// `[1, 1, group · time, time]`: 0 where a query may look, far below elsewhere.
    full: Tensor<4>,
    sliding: Option<Tensor<4>>,
    turns: Turns,
    window_turns: Option<Turns>,
}

/// The rotary embedding: `x · cos + (x · swap) · sin`, whatever elements pair.
struct Turns {
    /// `[1, 1, time, head width]`
    cosines: Tensor<4>,
    sines: Tensor<4>,
    /// `[head width, head width]`: each element's partner, with its sign.
    swap: Tensor<2>,
}

impl<'a> Decoder<'a> {
    /// Arranges the tensors of these layers of `trainee`, which `get` finds by name; `None` when one is missing.
    pub(crate) fn new(
        trainee: &'a Trainee,
        layers: Range<u32>,
        get: impl Fn(&str) -> Option<Tensor<2>>,
    ) -> Option<Self> {
        let config = trainee.config();
        let linear = |layer: u32, part: &str| {
            let name = layer_tensor(layer, &format!("{part}.weight"));
            let adapter = match trainee.method() {
                Method::Full => None,
                Method::Lora { rank, alpha } => Some(Adapter {
                    a: get(&format!("{name}{LORA_A}"))?,
                    b: get(&format!("{name}{LORA_B}"))?,
                    scale: alpha / rank as f32,
                }),
            };
            let bias = get(&layer_tensor(layer, &format!("{part}.bias")));
            Some(Linear { matrix: get(&name)?, bias, adapter })
        };
        let layer = |number: u32| {
            let vector = |part: &str| get(&layer_tensor(number, part));
            Some(Layer {
                attention_norm: vector("attn_norm.weight")?,
                query: linear(number, "attn_q")?,
                key: linear(number, "attn_k")?,
                value: linear(number, "attn_v")?,
                query_norm: vector("attn_q_norm.weight"),
                key_norm: vector("attn_k_norm.weight"),
                attention_out: linear(number, "attn_output")?,
                post_attention_norm: vector("post_attention_norm.weight"),
                feed_norm: vector("ffn_norm.weight")?,
                gate: linear(number, "ffn_gate")?,
                up: linear(number, "ffn_up")?,
                down: linear(number, "ffn_down")?,
                post_feed_norm: vector("post_ffw_norm.weight"),
                slides: config.window_of(number).is_some(),
            })
        };
        let embedding = if layers.start == 0 { Some(get(EMBEDDING)?) } else { None };
        let head = if layers.end == config.layers {
            let matrix = if trainee.tied() { get(EMBEDDING)?.transpose() } else { get(HEAD)? };
            Some(Head { norm: get(OUTPUT_NORM)?, matrix })
        } else {
            None
        };
        Some(Self { config, embedding, layers: layers.map(layer).collect::<Option<_>>()?, head })
    }

    /// The rows of a batch's inputs, `[sequences · context, width]`; `None` without the first layer.
    pub(crate) fn embed(&self, batch: &Batch, device: &Device) -> Option<Tensor<2>> {
        let rows = self.embedding.clone()?.select(0, integers(batch.inputs.iter().copied(), device));
        let scale = self.config.embedding_scale;
        Some(if scale == 1.0 { rows } else { rows.mul_scalar(scale) })
    }

    /// The rows after the last of these layers, of the same shape as those before the first.
    pub(crate) fn forward(&self, mut rows: Tensor<2>, sequences: usize, places: &Places) -> Tensor<2> {
        for layer in &self.layers {
            rows = layer.forward(self.config, rows, sequences, places);
        }
        rows
    }

    /// Sum of the cross-entropies in nats of the tokens of a batch that count, at least one, as `[1]`; `None` without the
    /// last layer.
    pub(crate) fn loss(&self, mut rows: Tensor<2>, batch: &Batch, device: &Device) -> Option<Tensor<1>> {
        let head = self.head.as_ref()?;
        // The head is the dearest product of small models: rows whose token does not count are spared.
        let (counted, targets) = batch.counted();
        let count = targets.len();
        if count < batch.inputs.len() {
            rows = rows.select(0, integers(counted.into_iter(), device));
        }
        let mut logits = norm(rows, &head.norm, self.config.norm_epsilon).matmul(head.matrix.clone());
        if let Some(cap) = self.config.logit_cap {
            logits = capped(logits, cap);
        }
        let targets = integers(targets.into_iter(), device).reshape([count, 1]);
        Some(log_softmax(logits, 1).gather(1, targets).sum().neg())
    }
}

fn integers(values: impl Iterator<Item = u32>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

fn capped<const D: usize>(values: Tensor<D>, cap: f32) -> Tensor<D> {
    values.div_scalar(cap).tanh().mul_scalar(cap)
}

impl Layer {
    fn forward(
        &self,
        config: &ModelConfig,
        hidden: Tensor<2>,
        sequences: usize,
        places: &Places,
    ) -> Tensor<2> {
        let epsilon = config.norm_epsilon;
        let post = |rows: Tensor<2>, gain: &Option<Tensor<2>>| match gain {
            Some(gain) => norm(rows, gain, epsilon),
            None => rows,
        };
        let normed = norm(hidden.clone(), &self.attention_norm, epsilon);
        let hidden = hidden + post(self.attend(config, normed, sequences, places), &self.post_attention_norm);
        let normed = norm(hidden.clone(), &self.feed_norm, epsilon);
        let gate = self.gate.forward(normed.clone());
        let gate = match config.activation {
            Activation::SiluGated => silu(gate),
            Activation::GeluGated => gelu_approximate(gate),
        };
        let inner = gate * self.up.forward(normed);
        hidden + post(self.down.forward(inner), &self.post_feed_norm)
    }

    fn attend(&self, config: &ModelConfig, rows: Tensor<2>, sequences: usize, places: &Places) -> Tensor<2> {
        let (heads, kv_heads) = (config.heads as usize, config.kv_heads as usize);
        let width = config.head_width as usize;
        let count = rows.dims()[0];
        let time = count / sequences;
        let (mask, turns) = match (&places.sliding, &places.window_turns) {
            (Some(mask), Some(turns)) if self.slides => (mask, turns),
            _ => (&places.full, &places.turns),
        };
        let split = |projected: Tensor<2>, heads: usize, gain: &Option<Tensor<2>>| {
            let projected = match gain {
                Some(gain) => norm(projected.reshape([count * heads, width]), gain, config.norm_epsilon),
                None => projected,
            };
            projected.reshape([sequences, time, heads, width]).swap_dims(1, 2)
        };
        let query = turns.rotate(split(self.query.forward(rows.clone()), heads, &self.query_norm));
        let keys = turns.rotate(split(self.key.forward(rows.clone()), kv_heads, &self.key_norm));
        let values = split(self.value.forward(rows), kv_heads, &None);
        // The queries that share a key head are rows of one product.
        let query = query.reshape([sequences, kv_heads, heads / kv_heads * time, width]);
        let mut scores = query.mul_scalar(config.query_scale).matmul(keys.swap_dims(2, 3));
        if let Some(cap) = config.score_cap {
            scores = capped(scores, cap);
        }
        let mixed = softmax(scores + mask.clone(), 3).matmul(values);
        let mixed = mixed.reshape([sequences, heads, time, width]).swap_dims(1, 2);
        self.attention_out.forward(mixed.reshape([count, heads * width]))
    }
}

impl Linear {
    fn forward(&self, rows: Tensor<2>) -> Tensor<2> {
        let mut out = match &self.adapter {
            None => rows.matmul(self.matrix.clone()),
            Some(Adapter { a, b, scale }) => {
                let added = rows.clone().matmul(a.clone()).mul_scalar(*scale).matmul(b.clone());
                rows.matmul(self.matrix.clone()) + added
            }
        };
        if let Some(bias) = &self.bias {
            out = out + bias.clone();
        }
        out
    }
}

/// Root-mean-square norm of each row, times a gain.
fn norm(rows: Tensor<2>, gain: &Tensor<2>, epsilon: f32) -> Tensor<2> {
    let scale = rows.clone().square().mean_dim(1).add_scalar(epsilon).sqrt();
    rows / scale * gain.clone()
}

impl Places {
    /// For sequences of `time` tokens.
    pub(crate) fn new(config: &ModelConfig, time: usize, device: &Device) -> Self {
        let group = (config.heads / config.kv_heads) as usize;
        let mask = |window: usize| {
            let mut values = Vec::with_capacity(group * time * time);
            for row in (0..group).flat_map(|_| 0..time) {
                let sees = |column: usize| column <= row && row - column < window;
                values.extend((0..time).map(|column| if sees(column) { 0.0 } else { MASKED }));
            }
            Tensor::from_data(TensorData::new(values, [1, 1, group * time, time]), device)
        };
        let window = config.window.filter(|_| config.window_pattern != 1);
        Self {
            full: mask(usize::MAX),
            sliding: window.map(|window| mask(window as usize)),
            turns: Turns::new(config, false, time, device),
            window_turns: window.map(|_| Turns::new(config, true, time, device)),
        }
    }
}

impl Turns {
    fn new(config: &ModelConfig, slides: bool, time: usize, device: &Device) -> Self {
        let width = config.head_width as usize;
        let mut swap = vec![0.0f32; width * width];
        let (mut cosines, mut sines) = (vec![1.0f32; time * width], vec![0.0f32; time * width]);
        let Rope { style, base, window_base, dims, scale, factors } = &config.rope;
        let pairs = *dims as usize / 2;
        let (base, scale) = if slides { (*window_base, 1.0) } else { (*base, *scale) };
        for pair in 0..pairs {
            let (first, second) = match style {
                RopeStyle::Adjacent => (2 * pair, 2 * pair + 1),
                RopeStyle::Halves => (pair, pair + pairs),
            };
            // Row i of `swap` says where element i goes, and with what sign.
            swap[first * width + second] = 1.0;
            swap[second * width + first] = -1.0;
            let factor = factors.get(pair).copied().unwrap_or(1.0);
            let frequency = f64::from(base).powf(-(pair as f64) / pairs as f64) / f64::from(factor);
            for position in 0..time {
                let angle = position as f64 / f64::from(scale) * frequency;
                for element in [first, second] {
                    cosines[position * width + element] = angle.cos() as f32;
                    sines[position * width + element] = angle.sin() as f32;
                }
            }
        }
        let table = |values| Tensor::from_data(TensorData::new(values, [1, 1, time, width]), device);
        let swap = Tensor::from_data(TensorData::new(swap, [width, width]), device);
        Self { cosines: table(cosines), sines: table(sines), swap }
    }

    /// `[sequences, heads, time, head width]`, turned by place.
    fn rotate(&self, rows: Tensor<4>) -> Tensor<4> {
        let [sequences, heads, time, width] = rows.dims();
        let swapped = rows.clone().reshape([sequences * heads * time, width]).matmul(self.swap.clone());
        let swapped = swapped.reshape([sequences, heads, time, width]);
        rows * self.cosines.clone() + swapped * self.sines.clone()
    }
}
