//! Owns tiny random models of every architecture, in memory, and how tests open and feed stages.
//! Must never need a file.

use std::collections::BTreeMap;
use std::ops::Range;

use skein_engine::config::{Activation, Architecture, ModelConfig, Rope, RopeStyle};
use skein_engine::dtype::{Dtype, quantize};
use skein_engine::source::{SourceError, TensorInfo, TensorSource};
use skein_engine::stage::{Device, Options, Stage};
use skein_engine::step::{Chunk, Input, Output, Pick, Sampling, Want};
use skein_engine::tensors::expected;

/// Every architecture.
pub(crate) const ALL: [Architecture; 5] = [
    Architecture::Llama,
    Architecture::Qwen2,
    Architecture::Qwen3,
    Architecture::Gemma2,
    Architecture::Gemma3,
];

/// Few enough that alternatives show all of them, and no whole number of vectors.
pub(crate) const VOCABULARY: u32 = 20;

/// Small hyperparameters that use everything an architecture has.
pub(crate) fn config(architecture: Architecture) -> ModelConfig {
    let rope = |style, base, window_base, scale, factors| Rope {
        style,
        base,
        window_base,
        dims: 16,
        scale,
        factors,
    };
    let plain = ModelConfig {
        architecture,
        layers: 3,
        width: 64,
        feed_width: 96,
        heads: 4,
        kv_heads: 2,
        head_width: 16,
        vocabulary: VOCABULARY,
        context: 128,
        norm_epsilon: 1e-5,
        rope: rope(RopeStyle::Halves, 1e4, 1e4, 1.0, Vec::new()),
        activation: Activation::SiluGated,
        embedding_scale: 1.0,
        query_scale: 0.25,
        score_cap: None,
        logit_cap: None,
        window: None,
        window_pattern: 1,
    };
    match architecture {
        Architecture::Llama => ModelConfig {
            rope: rope(RopeStyle::Adjacent, 1e4, 1e4, 1.0, (1..9).map(|i| i as f32 / 2.0).collect()),
            ..plain
        },
        Architecture::Qwen2 => ModelConfig { kv_heads: 1, ..plain },
        Architecture::Qwen3 => ModelConfig { head_width: 32, query_scale: 0.2, ..plain },
        Architecture::Gemma2 => ModelConfig {
            activation: Activation::GeluGated,
            embedding_scale: 8.0,
            score_cap: Some(2.0),
            logit_cap: Some(3.0),
            window: Some(7),
            window_pattern: 2,
            ..plain
        },
        Architecture::Gemma3 => ModelConfig {
            layers: 4,
            activation: Activation::GeluGated,
            embedding_scale: 8.0,
            head_width: 24,
            window: Some(18),
            window_pattern: 3,
            rope: rope(RopeStyle::Halves, 1e5, 1e3, 8.0, Vec::new()),
            ..plain
        },
    }
}

/// A model in memory.
pub(crate) struct Tiny {
    config: ModelConfig,
    infos: BTreeMap<String, TensorInfo>,
    elements: BTreeMap<String, Vec<u8>>,
}

impl Tiny {
    /// Random weights: vectors in f32, matrices as `dtype`.
    pub(crate) fn new(config: ModelConfig, dtype: Dtype, tied: bool) -> Self {
        let mut tiny = Self { config, infos: BTreeMap::new(), elements: BTreeMap::new() };
        for (seed, tensor) in expected(&tiny.config).into_iter().enumerate() {
            if tensor.optional && tied {
                continue;
            }
            let count = (tensor.rows * tensor.columns) as usize;
            let noise = noise(count, seed as u64 + 1);
            let values: Vec<f32> = match () {
                () if tensor.name.contains("norm") => noise.iter().map(|value| 1.0 + 0.3 * value).collect(),
                () if tensor.rows == 1 => noise.iter().map(|value| 0.5 * value).collect(),
                () => {
                    let deviation = 1.5 / (tensor.columns as f32).sqrt();
                    noise.iter().map(|value| deviation * value).collect()
                }
            };
            let dtype = if tensor.rows == 1 { Dtype::F32 } else { dtype };
            let info = TensorInfo { dtype, rows: tensor.rows, columns: tensor.columns };
            tiny.elements.insert(tensor.name.clone(), quantize(dtype, &values).unwrap());
            tiny.infos.insert(tensor.name, info);
        }
        tiny
    }

    /// The same with other elements in one tensor.
    pub(crate) fn with(mut self, name: &str, dtype: Dtype, values: &[f32]) -> Self {
        let info = self.infos.get_mut(name).unwrap();
        info.dtype = dtype;
        self.elements.insert(name.to_owned(), quantize(dtype, values).unwrap());
        self
    }
}

impl TensorSource for Tiny {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        self.elements.get(name).cloned().ok_or_else(|| SourceError::Missing(name.to_owned()))
    }
}

/// Values from -√3 to √3, of mean 0 and deviation 1.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 12.0_f32.sqrt()
    };
    (0..count).map(next).collect()
}

/// Any tokens.
pub(crate) fn tokens(count: usize, vocabulary: u32, seed: u64) -> Vec<u32> {
    noise(count, seed + 1_000).iter().map(|value| (value.to_bits() >> 3) % vocabulary).collect()
}

/// Opens layers on one thread with room for much.
pub(crate) fn open(source: &dyn TensorSource, layers: Range<u32>) -> Stage {
    open_with(source, layers, 1)
}

/// The same on some threads.
pub(crate) fn open_with(source: &dyn TensorSource, layers: Range<u32>, threads: usize) -> Stage {
    let options = Options { layers, device: Device::Cpu { threads }, cache_bytes: 1 << 28, context: 1 << 20 };
    Stage::open(source, &options, &mut |_, _| {}).unwrap()
}

/// Greedy, with all alternatives that are reported.
pub(crate) const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0, top_logprobs: 20 };

/// Asks for the token after every row.
pub(crate) fn chunk(session: u64, position: usize, tokens: &[u32]) -> Chunk {
    let want = Want::Picks { from: 0, sampling: GREEDY };
    Chunk { session, position: position as u32, input: Input::Tokens(tokens.to_vec()), want }
}

/// What a chain of stages picks for one chunk.
pub(crate) fn through(stages: &mut [Stage], mut chunk: Chunk) -> Vec<Pick> {
    for stage in stages {
        match stage.step(std::slice::from_ref(&chunk)).pop().unwrap().unwrap() {
            Output::Rows(rows) => chunk.input = Input::Rows(rows),
            Output::Picks(picks) => return picks,
            Output::Scores(_) => panic!("scores were not asked for"),
        }
    }
    panic!("no stage was the last")
}

/// Picks after every row of a text sent in chunks of these sizes, over and over.
pub(crate) fn in_chunks(stages: &mut [Stage], session: u64, text: &[u32], sizes: &[usize]) -> Vec<Pick> {
    let (mut picks, mut position) = (Vec::new(), 0);
    for size in sizes.iter().cycle() {
        let end = (position + size).min(text.len());
        picks.extend(through(stages, chunk(session, position, &text[position..end])));
        position = end;
        if position == text.len() {
            break;
        }
    }
    picks
}
