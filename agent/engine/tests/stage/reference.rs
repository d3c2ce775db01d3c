//! Owns a second way to compute a decoder: slow, in f64, one sequence from its start, written from the models' papers.
//! Must never share code with the graph: what both get wrong alike goes unseen.

use skein_engine::config::{Activation, ModelConfig, Rope, RopeStyle};
use skein_engine::dtype::dequantize;
use skein_engine::source::TensorSource;

type Rows = Vec<Vec<f64>>;

/// Log-probabilities of every token after every token.
pub(crate) fn logprobs(source: &dyn TensorSource, tokens: &[u32]) -> Rows {
    let model = Reference { source, config: source.config() };
    let mut hidden = model.embed(tokens);
    for layer in 0..model.config.layers {
        hidden = model.layer(layer, &hidden);
    }
    let head =
        if source.tensors().contains_key("output.weight") { "output.weight" } else { "token_embd.weight" };
    let head = model.matrix(head);
    let gain = model.vector("output_norm.weight");
    let log_softmax = |row: &Vec<f64>| {
        let mut logits = times(&head, &model.norm(row, &gain));
        if let Some(cap) = model.config.logit_cap {
            logits.iter_mut().for_each(|logit| *logit = soft_cap(*logit, f64::from(cap)));
        }
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        logits.iter().map(|logit| logit - sum.ln()).collect()
    };
    hidden.iter().map(log_softmax).collect()
}

struct Reference<'a> {
    source: &'a dyn TensorSource,
    config: &'a ModelConfig,
}

impl Reference<'_> {
    fn matrix(&self, name: &str) -> Rows {
        let info = self.source.tensors()[name];
        let mut values = vec![0.0; (info.rows * info.columns) as usize];
        dequantize(info.dtype, &self.source.read(name).unwrap(), &mut values).unwrap();
        let row = |row: &[f32]| row.iter().map(|value| f64::from(*value)).collect();
        values.chunks(info.columns as usize).map(row).collect()
    }

    fn vector(&self, name: &str) -> Vec<f64> {
        self.matrix(name).remove(0)
    }

    fn optional(&self, name: &str) -> Option<Vec<f64>> {
        self.source.tensors().contains_key(name).then(|| self.vector(name))
    }

    fn norm(&self, row: &[f64], gain: &[f64]) -> Vec<f64> {
        let mean = row.iter().map(|value| value * value).sum::<f64>() / row.len() as f64;
        let root = (mean + f64::from(self.config.norm_epsilon)).sqrt();
        row.iter().zip(gain).map(|(value, gain)| value / root * gain).collect()
    }

    fn embed(&self, tokens: &[u32]) -> Rows {
        let table = self.matrix("token_embd.weight");
        let scale = f64::from(self.config.embedding_scale);
        let row = |token: &u32| table[*token as usize].iter().map(|value| value * scale).collect();
        tokens.iter().map(row).collect()
    }

    fn layer(&self, layer: u32, hidden: &Rows) -> Rows {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (attention_gain, feed_gain) =
            (self.vector(&name("attn_norm.weight")), self.vector(&name("ffn_norm.weight")));
        let normed: Rows = hidden.iter().map(|row| self.norm(row, &attention_gain)).collect();
        let mut attended = self.attention(layer, &normed);
        if let Some(gain) = self.optional(&name("post_attention_norm.weight")) {
            attended = attended.iter().map(|row| self.norm(row, &gain)).collect();
        }
        let hidden: Rows = hidden.iter().zip(&attended).map(|(row, more)| plus(row, more)).collect();

        let [gate, up, down] =
            ["gate", "up", "down"].map(|part| self.matrix(&name(&format!("ffn_{part}.weight"))));
        let post = self.optional(&name("post_ffw_norm.weight"));
        let feed = |row: &Vec<f64>| {
            let normed = self.norm(row, &feed_gain);
            let mut inner = times(&up, &normed);
            let gate = times(&gate, &normed);
            inner.iter_mut().zip(gate).for_each(|(value, gate)| *value *= self.activation(gate));
            let mut out = times(&down, &inner);
            if let Some(gain) = &post {
                out = self.norm(&out, gain);
            }
            plus(row, &out)
        };
        hidden.iter().map(feed).collect()
    }

    fn activation(&self, x: f64) -> f64 {
        match self.config.activation {
            Activation::SiluGated => x / (1.0 + (-x).exp()),
            Activation::GeluGated => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
        }
    }

    fn attention(&self, layer: u32, normed: &Rows) -> Rows {
        let config = self.config;
        let width = config.head_width as usize;
        let project = |kind: &str| -> Vec<Rows> {
            let matrix = self.matrix(&format!("blk.{layer}.attn_{kind}.weight"));
            let bias = self.optional(&format!("blk.{layer}.attn_{kind}.bias"));
            let gain = self.optional(&format!("blk.{layer}.attn_{kind}_norm.weight"));
            let heads = |(position, row): (usize, &Vec<f64>)| -> Rows {
                let mut values = times(&matrix, row);
                if let Some(bias) = &bias {
                    values = plus(&values, bias);
                }
                let head = |head: &[f64]| {
                    let normed = gain.as_ref().map_or_else(|| head.to_vec(), |gain| self.norm(head, gain));
                    if kind == "v" { normed } else { self.rotate(layer, position, &normed) }
                };
                values.chunks(width).map(head).collect()
            };
            normed.iter().enumerate().map(heads).collect()
        };
        let (queries, keys, values) = (project("q"), project("k"), project("v"));
        let out = self.matrix(&format!("blk.{layer}.attn_output.weight"));
        let group = config.heads / config.kv_heads;
        let row = |position: usize| {
            let mut joined = Vec::new();
            for head in 0..config.heads {
                let kv = (head / group) as usize;
                let seen = match config.window_of(layer) {
                    Some(window) => (position + 1).saturating_sub(window as usize)..position + 1,
                    None => 0..position + 1,
                };
                let query = &queries[position][head as usize];
                let score = |past: usize| {
                    let mut score = dot(query, &keys[past][kv]) * f64::from(config.query_scale);
                    if let Some(cap) = config.score_cap {
                        score = soft_cap(score, f64::from(cap));
                    }
                    score.exp()
                };
                let weights: Vec<f64> = seen.clone().map(score).collect();
                let sum: f64 = weights.iter().sum();
                let mut mixed = vec![0.0; width];
                for (past, weight) in seen.zip(&weights) {
                    for (mixed, value) in mixed.iter_mut().zip(&values[past][kv]) {
                        *mixed += weight / sum * value;
                    }
                }
                joined.extend(mixed);
            }
            times(&out, &joined)
        };
        (0..normed.len()).map(row).collect()
    }

    fn rotate(&self, layer: u32, position: usize, head: &[f64]) -> Vec<f64> {
        let Rope { style, base, window_base, dims, scale, factors } = &self.config.rope;
        let slides = self.config.window_of(layer).is_some();
        let (base, scale) = if slides { (*window_base, 1.0) } else { (*base, *scale) };
        let mut out = head.to_vec();
        for pair in 0..*dims as usize / 2 {
            let factor = factors.get(pair).copied().unwrap_or(1.0);
            let frequency = f64::from(base).powf(-2.0 * pair as f64 / f64::from(*dims)) / f64::from(factor);
            let (sine, cosine) = (position as f64 / f64::from(scale) * frequency).sin_cos();
            let (one, other) = match style {
                RopeStyle::Adjacent => (2 * pair, 2 * pair + 1),
                RopeStyle::Halves => (pair, pair + *dims as usize / 2),
            };
            out[one] = head[one] * cosine - head[other] * sine;
            out[other] = head[one] * sine + head[other] * cosine;
        }
        out
    }
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

fn times(matrix: &Rows, row: &[f64]) -> Vec<f64> {
    matrix.iter().map(|weights| dot(weights, row)).collect()
}

fn plus(one: &[f64], other: &[f64]) -> Vec<f64> {
    one.iter().zip(other).map(|(one, other)| one + other).collect()
}

fn soft_cap(value: f64, cap: f64) -> f64 {
    cap * (value / cap).tanh()
}
