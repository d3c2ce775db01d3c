//! Owns a stage on a GPU: weights, cache, and one run from rows in to rows or logits out.
//! Must never know a session: pages are given with every batch.
//!
//! A run is one command buffer (one per layer for prompts) and one wait: the batch is written to small buffers, every
//! kernel is recorded, and only the result is read back. Buffers and bindings are made for as many rows as were ever
//! needed at once, and used again.

use std::ops::Range;

use super::angles::Angles;
use super::buffers::{Capacity, stride};
use super::device::Device;
use super::matrix::turned;
use super::operations::{CHUNK, Step};
use super::plan::Plan;
use super::weights::{Weights, page_bytes};
use crate::config::ModelConfig;
use crate::graph::{Batch, Computed, Graph, Hidden, PAGE_POSITIONS};
use crate::limits::{ASKED_ROWS_MAX, RUN_ROWS_MAX};
use crate::source::TensorSource;
use crate::stage::OpenError;

/// A stage on a GPU.
pub struct GpuGraph {
    // Everything below lives on the device, which goes last.
    plan: Option<Plan>,
    staging: Option<wgpu::Buffer>,
    weights: Weights,
    config: ModelConfig,
    layers: Range<u32>,
    angles: Angles,
    pages: u32,
    /// Of weights and cache.
    loaded_bytes: u64,
    rows: Vec<f32>,
    logits: Vec<f32>,
    device: Device,
}

impl GpuGraph {
    /// Loads layers of a model whose hyperparameters and tensors were checked, with a cache of `pages` pages.
    /// `progress` is told the bytes read and the bytes in all.
    ///
    /// # Errors
    /// [`OpenError`]; what was taken on the device is given back.
    pub fn open(
        device: Device,
        source: &dyn TensorSource,
        layers: Range<u32>,
        pages: u32,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, OpenError> {
        let config = source.config().clone();
        if layers.is_empty() || layers.end > config.layers {
            return Err(OpenError::Layers { range: layers, layers: config.layers });
        }
        let most = Self::pages_max(&device, &config);
        if pages > most {
            return Err(OpenError::Device(format!(
                "a cache of {pages} pages is more than the {most} that {} binds at once",
                device.name()
            )));
        }
        let before = device.allocated_bytes();
        let weights = Weights::load(&device, source, &layers, pages, progress)?;
        let loaded_bytes = device.allocated_bytes() - before;
        let angles = Angles::new(&config);
        let (plan, staging, rows, logits) = (None, None, Vec::new(), Vec::new());
        Ok(Self { plan, staging, weights, config, layers, angles, pages, loaded_bytes, rows, logits, device })
    }

    /// The most pages that a cache may have on this device: a layer's keys are one binding.
    #[must_use]
    pub fn pages_max(device: &Device, config: &ModelConfig) -> u32 {
        u32::try_from(device.binding_bytes_max() / page_bytes(config)).unwrap_or(u32::MAX)
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Writes the batch to the device and says what to record. `self.plan` is there and large enough.
    fn write(&mut self, batch: &Batch<'_>, facts: &Facts) -> Result<Step, String> {
        let plan = self.plan.as_ref().ok_or("no plan")?;
        let mut words = Vec::new();
        let mut angles = Vec::new();
        let mut tables = 4 * facts.rows;
        let mut row = 0;
        for sequence in batch.sequences {
            for position in sequence.position..sequence.position + sequence.rows {
                let token = match batch.input {
                    Hidden::Tokens(tokens) => tokens.get(row).copied().unwrap_or(0),
                    Hidden::Rows(_) => 0,
                };
                words.extend([position, tables, token, 0]);
                self.angles.extend(position, &mut angles);
                row += 1;
            }
            tables += used(sequence).len() as u32;
        }
        words.extend(batch.sequences.iter().flat_map(used));
        let asked_first = words.len() as u32;
        words.extend(&facts.asked);
        self.device.write(&plan.buffers.index, 0, bytemuck::cast_slice(&words));
        self.device.write(&plan.buffers.angles, 0, bytemuck::cast_slice(&angles));
        if let Hidden::Rows(rows) = batch.input {
            let (width, stride) = (self.config.width as usize, stride(self.config.width) as usize);
            let mut padded = vec![0.0; facts.rows as usize * stride];
            for (to, from) in padded.chunks_exact_mut(stride).zip(rows.chunks_exact(width)) {
                to[..width].copy_from_slice(from);
            }
            self.device.write(&plan.buffers.hidden, 0, bytemuck::cast_slice(&padded));
        }
        Ok(Step { rows: facts.rows, asked: 0, chunks: facts.chunks, asked_first })
    }

    /// Makes plan and staging buffer large enough.
    fn grow(&mut self, facts: &Facts) -> Result<(), String> {
        let asked_most = (self.device.binding_bytes_max() / (4 * u64::from(self.config.vocabulary)))
            .clamp(1, ASKED_ROWS_MAX as u64) as u32;
        let old = self.plan.as_ref().map(|plan| plan.capacity);
        let wanted = Capacity {
            rows: facts.rows.next_power_of_two().max(old.map_or(0, |old| old.rows)),
            asked: (facts.asked.len() as u32)
                .max(1)
                .next_power_of_two()
                .max(old.map_or(0, |old| old.asked))
                .min(asked_most),
            pages: self.pages,
        };
        if old == Some(wanted) {
            return Ok(());
        }
        // The old buffers go first.
        (self.plan, self.staging) = (None, None);
        let plan = Plan::new(&self.device, &self.config, &self.weights, self.layers.start, wanted)?;
        use wgpu::BufferUsages as Usage;
        let bytes = self.answer_bytes(wanted.asked).0.max(plan.buffers.hidden.size());
        self.staging = Some(self.device.buffer("staging", bytes, Usage::MAP_READ | Usage::COPY_DST));
        self.plan = Some(plan);
        self.device.check()
    }

    /// Bytes of an answer in the staging buffer, and where its logits begin.
    fn answer_bytes(&self, asked: u32) -> (u64, u64) {
        let hidden = 4 * u64::from(asked) * u64::from(stride(self.config.width));
        (hidden + 4 * u64::from(asked) * u64::from(self.config.vocabulary), hidden)
    }

    fn run_last(&mut self, step: Step, asked: u32) -> Result<Computed<'_>, String> {
        let plan = self.plan.as_ref().ok_or("no plan")?;
        let staging = self.staging.as_ref().ok_or("no staging buffer")?;
        let (width, padded) = (self.config.width as usize, stride(self.config.width) as usize);
        self.rows.clear();
        self.logits.clear();
        let mut back = Vec::new();
        let mut done = 0;
        // Usually once; more often only where so many logits do not fit a binding.
        loop {
            let part = (asked - done).min(plan.capacity.asked);
            let step = Step { asked: part, asked_first: step.asked_first + done, ..step };
            self.device.write(&plan.buffers.step, 0, bytemuck::cast_slice(&step.words()));
            let mut encoder = self.device.encoder();
            if done == 0 {
                plan.record_layers(&self.device, &mut encoder, step)?;
            }
            let (bytes, hidden) = self.answer_bytes(part);
            if part > 0 {
                plan.record_answer(&self.device, &mut encoder, step)?;
                encoder.copy_buffer_to_buffer(&plan.buffers.answer, 0, staging, 0, hidden);
                encoder.copy_buffer_to_buffer(&plan.buffers.logits, 0, staging, hidden, bytes - hidden);
            }
            self.device.submit(encoder);
            back.clear();
            self.device.read_back(staging, (bytes / 4) as usize, &mut back)?;
            let (rows, logits) = back.split_at((hidden / 4) as usize);
            let places = |row| (0..width).map(move |i| (row, turned(width as u32, i)));
            self.rows
                .extend(rows.chunks_exact(padded).flat_map(places).map(|(row, at): (&[f32], _)| row[at]));
            self.logits.extend(logits);
            done += part;
            if done == asked {
                return Ok(Computed::Asked { logits: &self.logits, hidden: &self.rows });
            }
        }
    }

    fn run_middle(&mut self, step: Step) -> Result<Computed<'_>, String> {
        let plan = self.plan.as_ref().ok_or("no plan")?;
        let staging = self.staging.as_ref().ok_or("no staging buffer")?;
        let (width, padded) = (self.config.width as usize, stride(self.config.width) as usize);
        self.device.write(&plan.buffers.step, 0, bytemuck::cast_slice(&step.words()));
        let mut encoder = self.device.encoder();
        plan.record_layers(&self.device, &mut encoder, step)?;
        let floats = step.rows as usize * padded;
        encoder.copy_buffer_to_buffer(&plan.buffers.hidden, 0, staging, 0, 4 * floats as u64);
        self.device.submit(encoder);
        let mut back = Vec::new();
        self.device.read_back(staging, floats, &mut back)?;
        self.rows.clear();
        self.rows.extend(back.chunks_exact(padded).flat_map(|row| &row[..width]));
        Ok(Computed::Rows(&self.rows))
    }
}

impl Graph for GpuGraph {
    fn run(&mut self, batch: &Batch<'_>) -> Result<Computed<'_>, String> {
        self.device.check()?;
        let last = self.weights.answer.is_some();
        let facts = Facts::of(batch, &self.config, self.pages, self.weights.embedding.is_some(), last)?;
        self.grow(&facts)?;
        let step = self.write(batch, &facts)?;
        if last { self.run_last(step, facts.asked.len() as u32) } else { self.run_middle(step) }
    }

    fn resident_bytes(&self) -> u64 {
        let plan = self.plan.as_ref().map_or(0, |plan| plan.bytes);
        self.loaded_bytes + plan + self.staging.as_ref().map_or(0, wgpu::Buffer::size)
    }
}

/// What a batch amounts to.
struct Facts {
    rows: u32,
    /// Chunks of attention of the longest row.
    chunks: u32,
    /// Numbers of the rows asked for.
    asked: Vec<u32>,
}

impl Facts {
    /// Checks that a batch is what the trait says, because a kernel would read and write beyond its buffers' meaning.
    fn of(
        batch: &Batch<'_>,
        config: &ModelConfig,
        pages: u32,
        first: bool,
        last: bool,
    ) -> Result<Self, String> {
        let given = match batch.input {
            Hidden::Tokens(tokens) if first => {
                if let Some(token) = tokens.iter().find(|token| **token >= config.vocabulary) {
                    return Err(format!("token {token} is beyond the vocabulary of {}", config.vocabulary));
                }
                tokens.len()
            }
            Hidden::Rows(values) if !first && values.len().is_multiple_of(config.width as usize) => {
                values.len() / config.width as usize
            }
            Hidden::Tokens(_) | Hidden::Rows(_) => {
                return Err("the input is not what this stage takes".to_owned());
            }
        };
        let mut facts = Self { rows: 0, chunks: 0, asked: Vec::new() };
        let mut tables = 0;
        for sequence in batch.sequences {
            let end = u64::from(sequence.position) + u64::from(sequence.rows);
            let covered = sequence.pages.len() as u64 * PAGE_POSITIONS as u64;
            let sound = sequence.rows > 0 && sequence.rows as usize <= RUN_ROWS_MAX && end <= covered;
            if !sound || sequence.asked > sequence.rows || (sequence.asked > 0 && !last) {
                return Err(format!(
                    "{} rows at position {} are no sequence",
                    sequence.rows, sequence.position
                ));
            }
            if end > u64::from(config.context) {
                return Err(format!("position {end} is beyond the context of {}", config.context));
            }
            if sequence.pages.iter().any(|page| *page >= pages) {
                return Err(format!("a page is beyond the cache of {pages}"));
            }
            facts.rows += sequence.rows;
            facts.chunks = facts.chunks.max((end as u32).div_ceil(CHUNK));
            facts.asked.extend(facts.rows - sequence.asked..facts.rows);
            tables += used(sequence).len();
        }
        let fits = facts.rows as usize <= RUN_ROWS_MAX && facts.asked.len() <= ASKED_ROWS_MAX;
        if facts.rows as usize != given || given == 0 || !fits || tables > pages as usize {
            return Err(format!("{given} rows are no batch of {} rows", facts.rows));
        }
        Ok(facts)
    }
}

/// The pages that a sequence's rows and what is before them lie in.
fn used<'a>(sequence: &crate::graph::Sequence<'a>) -> &'a [u32] {
    let end = (sequence.position + sequence.rows) as usize;
    &sequence.pages[..end.div_ceil(PAGE_POSITIONS)]
}
