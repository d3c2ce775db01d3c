//! Owns the weights of a stage and its cache in the device's memory.
//! Must never compute.

use std::ops::Range;
use std::sync::Arc;

use super::device::Device;
use super::matrix::Matrix;
use crate::config::ModelConfig;
use crate::graph::PAGE_POSITIONS;
use crate::source::{SourceError, TensorInfo, TensorSource};
use crate::stage::OpenError;
use crate::tensors::{EMBEDDING, HEAD, OUTPUT_NORM, is_needed, layer_tensor};

/// What a stage computes with.
pub(crate) struct Weights {
    /// On the first stage.
    pub(crate) embedding: Option<Arc<Matrix>>,
    pub(crate) layers: Vec<Layer>,
    /// On the last stage.
    pub(crate) answer: Option<Answer>,
}

/// The end of the last stage.
pub(crate) struct Answer {
    pub(crate) norm: Vec<f32>,
    pub(crate) head: Arc<Matrix>,
}

/// Weights and cache of one layer.
pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) query: Matrix,
    pub(crate) key: Matrix,
    pub(crate) value: Matrix,
    /// Biases of query, key and value, then gains of query and key; empty where the model has none.
    pub(crate) biases: Vec<f32>,
    pub(crate) gains: Vec<f32>,
    pub(crate) output: Matrix,
    pub(crate) post_attention_norm: Option<Vec<f32>>,
    pub(crate) feed_norm: Vec<f32>,
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
    pub(crate) post_feed_norm: Option<Vec<f32>>,
    pub(crate) keys: wgpu::Buffer,
    pub(crate) values: wgpu::Buffer,
}

/// Bytes of the keys of one page in one layer, and of its values.
pub(crate) fn page_bytes(config: &ModelConfig) -> u64 {
    let words = u64::from(config.head_width.div_ceil(2));
    4 * PAGE_POSITIONS as u64 * u64::from(config.kv_heads) * words
}

impl Weights {
    /// Loads what the layers need. `progress` is told the bytes read and the bytes in all.
    pub(crate) fn load(
        device: &Device,
        source: &dyn TensorSource,
        layers: &Range<u32>,
        pages: u32,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, OpenError> {
        let config = source.config();
        let tied = !source.tensors().contains_key(HEAD);
        let needed = source.tensors().iter().filter(|(name, _)| is_needed(name, layers, config, tied));
        let total = needed.filter_map(|(_, info)| info.bytes()).sum();
        let mut reader = Reader { device, source, done: 0, total, progress };
        let (first, last) = (layers.start == 0, layers.end == config.layers);
        let embedding = first.then(|| reader.matrix(EMBEDDING)).transpose()?.map(Arc::new);
        let layers = layers.clone().map(|layer| reader.layer(layer, pages)).collect::<Result<_, _>>()?;
        let mut answer = None;
        if last {
            let norm = reader.vector(OUTPUT_NORM)?;
            let head = match &embedding {
                Some(embedding) if tied => Arc::clone(embedding),
                Some(_) | None => Arc::new(reader.matrix(if tied { EMBEDDING } else { HEAD })?),
            };
            answer = Some(Answer { norm, head });
        }
        Ok(Self { embedding, layers, answer })
    }
}

struct Reader<'a> {
    device: &'a Device,
    source: &'a dyn TensorSource,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Reader<'_> {
    fn layer(&mut self, layer: u32, pages: u32) -> Result<Layer, OpenError> {
        let name = |part: &str| layer_tensor(layer, part);
        let cache_bytes = u64::from(pages) * page_bytes(self.source.config());
        let made = Layer {
            attention_norm: self.vector(&name("attn_norm.weight"))?,
            query: self.matrix(&name("attn_q.weight"))?,
            key: self.matrix(&name("attn_k.weight"))?,
            value: self.matrix(&name("attn_v.weight"))?,
            biases: self.all(&["attn_q.bias", "attn_k.bias", "attn_v.bias"].map(name))?,
            gains: self.all(&["attn_q_norm.weight", "attn_k_norm.weight"].map(name))?,
            output: self.matrix(&name("attn_output.weight"))?,
            post_attention_norm: self.optional(&name("post_attention_norm.weight"))?,
            feed_norm: self.vector(&name("ffn_norm.weight"))?,
            gate: self.matrix(&name("ffn_gate.weight"))?,
            up: self.matrix(&name("ffn_up.weight"))?,
            down: self.matrix(&name("ffn_down.weight"))?,
            post_feed_norm: self.optional(&name("post_ffw_norm.weight"))?,
            keys: self.device.storage("keys", cache_bytes),
            values: self.device.storage("values", cache_bytes),
        };
        let no_memory =
            |error| OpenError::Device(format!("no memory for the cache of layer {layer}: {error}"));
        self.device.check().map_err(no_memory)?;
        Ok(made)
    }

    fn matrix(&mut self, name: &str) -> Result<Matrix, OpenError> {
        let missing = || SourceError::Missing(name.to_owned());
        let info = *self.source.tensors().get(name).ok_or_else(missing)?;
        let bytes = self.source.read(name)?;
        self.done += bytes.len() as u64;
        (self.progress)(self.done, self.total);
        Matrix::load(self.device, name, &info, &bytes).map_err(OpenError::Device)
    }

    fn vector(&mut self, name: &str) -> Result<Vec<f32>, OpenError> {
        let values = self.source.numbers(name)?;
        self.done += self.source.tensors().get(name).and_then(TensorInfo::bytes).unwrap_or(0);
        (self.progress)(self.done, self.total);
        Ok(values)
    }

    fn optional(&mut self, name: &str) -> Result<Option<Vec<f32>>, OpenError> {
        self.source.tensors().contains_key(name).then(|| self.vector(name)).transpose()
    }

    /// Those of the vectors that the model has, one after the other.
    fn all(&mut self, names: &[String]) -> Result<Vec<f32>, OpenError> {
        let mut values = Vec::new();
        for name in names {
            values.extend(self.optional(name)?.into_iter().flatten());
        }
        Ok(values)
    }
}
