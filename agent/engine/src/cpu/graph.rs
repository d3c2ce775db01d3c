//! Owns the layers of a stage on the processor: one graph for every architecture, which differ only in what the
//! hyperparameters say and which tensors are there.
//! Must never know a session: pages and positions come with the batch.
//!
//! Activations are `[rows, width]`, a row being one token of one sequence. Every operation treats rows alone, so what a
//! row is computed with changes nothing.

use std::ops::Range;

use super::attention::{Attention, Row, attend};
use super::math::{gelu_gated, rms_norm, silu_gated, soft_cap};
use super::matrix::Matrix;
use super::multiply::multiply;
use super::pages::Pages;
use super::pool::Pool;
use super::quantised::Quantised;
use super::rope::{Angles, Rope};
use crate::config::{self, Activation, ModelConfig};
use crate::graph::{Batch, Computed, Graph, Hidden, PAGE_POSITIONS};
use crate::rows::round_in_place;
use crate::source::{SourceError, TensorInfo, TensorSource};
use crate::stage::OpenError;
use crate::tensors::{EMBEDDING, HEAD, OUTPUT_NORM, is_needed, layer_tensor};

/// Layers of a model, their cache, and what they compute with.
pub(crate) struct CpuGraph {
    config: ModelConfig,
    /// The embedding, where the first layer is, or the tied head.
    embedding: Option<Matrix>,
    layers: Vec<Layer>,
    /// Where the last layer is.
    output_norm: Option<Vec<f32>>,
    /// The head, unless it is tied.
    head: Option<Matrix>,
    pages: Pages,
    turns: Turns,
    pool: Pool,
    buffers: Buffers,
}

struct Layer {
    /// Whether it has a sliding window.
    slides: bool,
    attention: Attention,
    attention_norm: Vec<f32>,
    /// Of queries, keys and values.
    projections: [Projection; 3],
    query_norm: Option<Vec<f32>>,
    key_norm: Option<Vec<f32>>,
    out: Matrix,
    post_attention_norm: Option<Vec<f32>>,
    feed_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    post_feed_norm: Option<Vec<f32>>,
}

struct Projection {
    matrix: Matrix,
    bias: Option<Vec<f32>>,
}

/// What a run computes with; kept, so that a step allocates nothing once it has seen the largest batch.
#[derive(Default)]
struct Buffers {
    /// `[rows, width]`: the residual stream.
    hidden: Vec<f32>,
    /// `[rows, width]`
    normed: Vec<f32>,
    quantised: Quantised,
    /// `[rows, heads · head width]`
    queries: Vec<f32>,
    /// `[rows, kv heads · head width]`
    keys: Vec<f32>,
    /// `[rows, kv heads · head width]`
    values: Vec<f32>,
    /// `[rows, heads · head width]`
    attended: Vec<f32>,
    /// `[rows, width]`
    projected: Vec<f32>,
    /// `[rows, feed width]`
    gate: Vec<f32>,
    /// `[rows, feed width]`
    up: Vec<f32>,
    /// `[asked, vocabulary]`
    logits: Vec<f32>,
}

impl CpuGraph {
    /// Reads and packs what the layers need.
    pub(crate) fn open(
        source: &dyn TensorSource,
        layers: Range<u32>,
        pages: u32,
        threads: usize,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, OpenError> {
        let config = source.config().clone();
        if !config.head_width.is_multiple_of(2) {
            let width = config.head_width;
            return Err(OpenError::Device(format!(
                "heads are {width} wide, and the processor's kernels take even ones"
            )));
        }
        let tied = !source.tensors().contains_key(HEAD);
        let needed = source.tensors().iter().filter(|(name, _)| is_needed(name, &layers, &config, tied));
        let total = needed.clone().filter_map(|(_, info)| info.bytes()).sum();
        let mut reader = Reader { source, done: 0, total, progress };
        let (first, last) = (layers.start == 0, layers.end == config.layers);
        let embedding = (first || last && tied).then(|| reader.matrix(EMBEDDING)).transpose()?;
        let read =
            layers.clone().map(|layer| Layer::read(&mut reader, &config, layer)).collect::<Result<_, _>>()?;
        let output_norm = last.then(|| reader.vector(OUTPUT_NORM)).transpose()?;
        let head = (last && !tied).then(|| reader.matrix(HEAD)).transpose()?;
        let turns = Turns::new(&config, layers.clone());
        let (kv_heads, head_width) = (config.kv_heads as usize, config.head_width as usize);
        let pages = Pages::new(layers.len(), kv_heads, head_width, pages as usize);
        let pool = Pool::new(threads).map_err(OpenError::Device)?;
        let buffers = Buffers::default();
        Ok(Self { config, embedding, layers: read, output_norm, head, pages, turns, pool, buffers })
    }

    /// Fills the residual stream with the rows that enter the stage.
    fn enter(&mut self, batch: &Batch<'_>) -> Result<(), String> {
        let width = self.config.width as usize;
        let tokens = match batch.input {
            Hidden::Tokens(tokens) => tokens,
            Hidden::Rows(rows) => {
                self.buffers.hidden.clear();
                self.buffers.hidden.extend_from_slice(rows);
                return Ok(());
            }
        };
        let embedding = self.embedding.as_ref().ok_or("this stage has no embedding")?;
        self.buffers.hidden.resize(tokens.len() * width, 0.0);
        let hidden = self.buffers.hidden.chunks_exact_mut(width);
        for (hidden, token) in hidden.zip(tokens) {
            embedding.row(*token as usize, hidden);
            hidden.iter_mut().for_each(|value| *value *= self.config.embedding_scale);
        }
        Ok(())
    }

    /// Normed states and logits of the rows asked for.
    fn leave(&mut self, batch: &Batch<'_>) -> Result<Computed<'_>, String> {
        let width = self.config.width as usize;
        let Some(gain) = &self.output_norm else {
            return Ok(Computed::Rows(&self.buffers.hidden));
        };
        let head = self.head.as_ref().or(self.embedding.as_ref()).ok_or("this stage has no head")?;
        let Buffers { hidden, normed, quantised, logits, .. } = &mut self.buffers;
        normed.clear();
        let mut end = 0;
        for sequence in batch.sequences {
            end += sequence.rows as usize;
            normed.extend_from_slice(&hidden[(end - sequence.asked as usize) * width..end * width]);
        }
        let asked = normed.len() / width;
        logits.resize(asked * head.rows(), 0.0);
        if asked > 0 {
            let set = self.pool.set();
            rms_norm(set, normed, gain, self.config.norm_epsilon);
            quantised.fill(set, normed, width);
            multiply(&self.pool, head, quantised, logits);
            if let Some(cap) = self.config.logit_cap {
                soft_cap(set, logits, cap);
            }
        }
        Ok(Computed::Asked { logits, hidden: normed })
    }
}

impl Graph for CpuGraph {
    fn run(&mut self, batch: &Batch<'_>) -> Result<Computed<'_>, String> {
        let rows: Vec<Row<'_>> = rows_of(batch).collect();
        self.enter(batch)?;
        self.turns.place(&rows);
        let Self { config, layers, pages, turns, pool, buffers, .. } = self;
        for (index, layer) in layers.iter().enumerate() {
            layer.queries_keys_values(config, turns, pool, buffers);
            store(pool, pages, index, &rows, buffers);
            layer.attend(config, pool, pages, index, &rows, buffers);
            layer.feed(config, pool, buffers);
            buffers.hidden.chunks_exact_mut(config.width as usize).for_each(round_in_place);
        }
        self.leave(batch)
    }

    fn resident_bytes(&self) -> u64 {
        let matrices = [&self.embedding, &self.head].into_iter().flatten();
        let layers = self.layers.iter().flat_map(Layer::matrices);
        let weights: usize = matrices.chain(layers).map(Matrix::bytes).sum();
        (weights + self.pages.bytes() + self.buffers.bytes()) as u64
    }
}

impl Layer {
    fn read(reader: &mut Reader<'_>, config: &ModelConfig, number: u32) -> Result<Self, OpenError> {
        let name = |part: &str| layer_tensor(number, part);
        let mut projection = |kind: &str| -> Result<Projection, OpenError> {
            let matrix = reader.matrix(&name(&format!("attn_{kind}.weight")))?;
            Ok(Projection { matrix, bias: reader.optional(&name(&format!("attn_{kind}.bias")))? })
        };
        let projections = [projection("q")?, projection("k")?, projection("v")?];
        let window = config.window_of(number);
        Ok(Self {
            slides: window.is_some(),
            attention: Attention { scale: config.query_scale, cap: config.score_cap, window },
            attention_norm: reader.vector(&name("attn_norm.weight"))?,
            projections,
            query_norm: reader.optional(&name("attn_q_norm.weight"))?,
            key_norm: reader.optional(&name("attn_k_norm.weight"))?,
            out: reader.matrix(&name("attn_output.weight"))?,
            post_attention_norm: reader.optional(&name("post_attention_norm.weight"))?,
            feed_norm: reader.vector(&name("ffn_norm.weight"))?,
            gate: reader.matrix(&name("ffn_gate.weight"))?,
            up: reader.matrix(&name("ffn_up.weight"))?,
            down: reader.matrix(&name("ffn_down.weight"))?,
            post_feed_norm: reader.optional(&name("post_ffw_norm.weight"))?,
        })
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let attention = self.projections.iter().map(|projection| &projection.matrix);
        attention.chain([&self.out, &self.gate, &self.up, &self.down])
    }

    /// Queries, keys and values of the normed residual stream, placed.
    fn queries_keys_values(&self, config: &ModelConfig, turns: &Turns, pool: &Pool, buffers: &mut Buffers) {
        buffers.norm(&self.attention_norm, config, pool);
        let Buffers { quantised, queries, keys, values, .. } = buffers;
        for (projection, to) in self.projections.iter().zip([&mut *queries, &mut *keys, &mut *values]) {
            product(pool, &projection.matrix, quantised, to);
            if let Some(bias) = &projection.bias {
                to.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
            }
        }
        let heads = [(&self.query_norm, queries, config.heads), (&self.key_norm, keys, config.kv_heads)];
        for (gain, rows, heads) in heads {
            if let Some(gain) = gain {
                rms_norm(pool.set(), rows, gain, config.norm_epsilon);
            }
            turns.rotate(pool, self.slides, rows, heads as usize, config.head_width as usize);
        }
    }

    /// `h += post_norm?(out · attended)`
    fn attend(
        &self,
        config: &ModelConfig,
        pool: &Pool,
        pages: &Pages,
        index: usize,
        rows: &[Row<'_>],
        buffers: &mut Buffers,
    ) {
        let Buffers { hidden, quantised, queries, attended, projected, .. } = buffers;
        attended.resize(queries.len(), 0.0);
        attend(pool, pages, index, &self.attention, rows, queries, attended);
        quantised.fill(pool.set(), attended, self.out.columns());
        product(pool, &self.out, quantised, projected);
        if let Some(gain) = &self.post_attention_norm {
            rms_norm(pool.set(), projected, gain, config.norm_epsilon);
        }
        add(hidden, projected);
    }

    /// `h += post_norm?(down · (act(gate) * up))` of the normed h.
    fn feed(&self, config: &ModelConfig, pool: &Pool, buffers: &mut Buffers) {
        buffers.norm(&self.feed_norm, config, pool);
        let Buffers { hidden, quantised, gate, up, projected, .. } = buffers;
        product(pool, &self.gate, quantised, gate);
        product(pool, &self.up, quantised, up);
        match config.activation {
            Activation::SiluGated => silu_gated(pool.set(), gate, up),
            Activation::GeluGated => gelu_gated(pool.set(), gate, up),
        }
        quantised.fill(pool.set(), gate, self.down.columns());
        product(pool, &self.down, quantised, projected);
        if let Some(gain) = &self.post_feed_norm {
            rms_norm(pool.set(), projected, gain, config.norm_epsilon);
        }
        add(hidden, projected);
    }
}

/// The angles of a batch's rows.
#[derive(Default)]
struct Turns {
    /// On layers that see the whole context, and on those with a window; none that no layer uses.
    ropes: [Option<Rope>; 2],
    /// One per row.
    angles: [Vec<Angles>; 2],
}

impl Turns {
    fn new(config: &ModelConfig, mut layers: Range<u32>) -> Self {
        let config::Rope { style, base, window_base, dims, scale, ref factors } = config.rope;
        let whole = layers.clone().any(|layer| config.window_of(layer).is_none());
        let slides = layers.any(|layer| config.window_of(layer).is_some());
        let dims = dims as usize;
        let ropes = [
            whole.then(|| Rope::new(style, base, dims, scale, factors)),
            slides.then(|| Rope::new(style, window_base, dims, 1.0, factors)),
        ];
        Self { ropes, ..Self::default() }
    }

    fn place(&mut self, rows: &[Row<'_>]) {
        for (rope, angles) in self.ropes.iter().zip(&mut self.angles) {
            angles.clear();
            if let Some(rope) = rope {
                angles.extend(rows.iter().map(|row| rope.angles(row.position)));
            }
        }
    }

    fn rotate(&self, pool: &Pool, slides: bool, rows: &mut [f32], heads: usize, head_width: usize) {
        let kind = usize::from(slides);
        if let Some(rope) = &self.ropes[kind] {
            for (row, angles) in rows.chunks_exact_mut(heads * head_width).zip(&self.angles[kind]) {
                rope.rotate(pool.set(), angles, row, head_width);
            }
        }
    }
}

impl Buffers {
    /// The residual stream, normed, ready to be multiplied with.
    fn norm(&mut self, gain: &[f32], config: &ModelConfig, pool: &Pool) {
        self.normed.clear();
        self.normed.extend_from_slice(&self.hidden);
        rms_norm(pool.set(), &mut self.normed, gain, config.norm_epsilon);
        self.quantised.fill(pool.set(), &self.normed, gain.len());
    }

    fn bytes(&self) -> usize {
        let Self { hidden, normed, queries, keys, values, attended, projected, gate, up, logits, .. } = self;
        let all = [hidden, normed, queries, keys, values, attended, projected, gate, up, logits];
        4 * all.iter().map(|buffer| buffer.capacity()).sum::<usize>()
    }
}

/// `[rows, outputs]`
fn product(pool: &Pool, matrix: &Matrix, input: &Quantised, to: &mut Vec<f32>) {
    to.resize(input.rows() * matrix.rows(), 0.0);
    multiply(pool, matrix, input, to);
}

/// Writes the keys and values of rows into their pages.
fn store(pool: &Pool, pages: &mut Pages, layer: usize, rows: &[Row<'_>], buffers: &Buffers) {
    let width = buffers.keys.len() / rows.len().max(1);
    let entries = buffers.keys.chunks_exact(width).zip(buffers.values.chunks_exact(width));
    for (row, (key, value)) in rows.iter().zip(entries) {
        let position = row.position as usize;
        let page = row.pages[position / PAGE_POSITIONS];
        pages.write(pool.set(), layer, page, position % PAGE_POSITIONS, key, value);
    }
}

fn add(to: &mut [f32], more: &[f32]) {
    to.iter_mut().zip(more).for_each(|(value, more)| *value += more);
}

/// Where the rows of a batch lie.
fn rows_of<'a>(batch: &Batch<'a>) -> impl Iterator<Item = Row<'a>> {
    batch.sequences.iter().flat_map(|sequence| {
        let positions = sequence.position..sequence.position + sequence.rows;
        positions.map(|position| Row { pages: sequence.pages, position })
    })
}

/// Reads tensors and tells how far it is.
struct Reader<'a> {
    source: &'a dyn TensorSource,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Reader<'_> {
    fn has(&self, name: &str) -> bool {
        self.source.tensors().contains_key(name)
    }

    fn matrix(&mut self, name: &str) -> Result<Matrix, OpenError> {
        let missing = || SourceError::Missing(name.to_owned());
        let info = *self.source.tensors().get(name).ok_or_else(missing)?;
        let bytes = self.source.read(name)?;
        let unreadable = |reason| SourceError::Unreadable { name: name.to_owned(), reason };
        let matrix = Matrix::pack(info, &bytes).map_err(unreadable)?;
        self.done += bytes.len() as u64;
        (self.progress)(self.done, self.total);
        Ok(matrix)
    }

    fn vector(&mut self, name: &str) -> Result<Vec<f32>, OpenError> {
        let values = self.source.numbers(name)?;
        self.done += self.source.tensors().get(name).and_then(TensorInfo::bytes).unwrap_or(0);
        (self.progress)(self.done, self.total);
        Ok(values)
    }

    fn optional(&mut self, name: &str) -> Result<Option<Vec<f32>>, OpenError> {
        self.has(name).then(|| self.vector(name)).transpose()
    }
}
