//! What training costs an agent: memory and arithmetic, for a whole model or for some of its layers.
//!
//! Sums over shapes, in elements of four bytes; nothing here knows a device. The agent that works counts again with
//! the same sums, so coordinator and agent agree about what fits.

use std::ops::Range;

use crate::ids::Units;
use crate::job::{Method, TrainSize, TrainSpec};
use crate::limits::{JUDGE_STEPS, JUDGED_PART, JUDGED_TIMES, JUDGED_TOKENS};

/// How a step is cut so that it fits an agent's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Sequences whose activations are in memory at once; the gradients of all are added up.
    pub at_once: u32,
    /// Whether a layer's activations are computed again on the way back instead of being kept.
    pub recompute: bool,
}

/// What of a sequence is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// All that its way back needs.
    All,
    /// What enters each layer; the rest is computed again, one layer at a time.
    Inputs,
}

impl TrainSpec {
    /// All layers.
    pub fn layers(&self) -> Range<u16> {
        0..self.size.layers
    }

    /// Whether the head is the embedding once more: then no weight is only looked up.
    pub fn tied(&self) -> bool {
        self.size.weights == self.size.resident
    }

    /// Inner steps from one measurement of the loss to the next.
    pub fn steps_between_losses(&self) -> u64 {
        // A token is judged on its way forward alone, which is a third of what it costs to learn from it.
        let step = u64::from(self.batch).saturating_mul(self.context.into()).saturating_mul(3);
        let seldom = JUDGED_PART.saturating_mul(JUDGED_TOKENS).div_ceil(step.max(1));
        let all = u64::from(self.rounds).saturating_mul(self.inner_steps.into());
        seldom.min(all / JUDGED_TIMES).max(JUDGE_STEPS)
    }

    /// Elements of the embedding, and of the head.
    pub(crate) fn table(&self) -> u64 {
        u64::from(self.size.vocabulary).saturating_mul(u64::from(self.size.width))
    }

    fn layer_resident(&self) -> u64 {
        let tables = if self.tied() { self.table() } else { self.table().saturating_mul(2) };
        self.size.resident.saturating_sub(tables).div_ceil(u64::from(self.size.layers.max(1)))
    }

    /// Weights that an agent with these layers has in memory: the first holds the embedding too, the last the head.
    fn resident(&self, layers: &Range<u16>) -> u64 {
        let (first, last) = (layers.start == 0, layers.end == self.size.layers);
        let tables = match (first, last) {
            (true, true) => return self.size.resident,
            (false, false) => 0,
            (true, false) | (false, true) => self.table(),
        };
        self.layer_resident().saturating_mul(layers.len() as u64).saturating_add(tables)
    }

    fn trained(&self, layers: &Range<u16>) -> u64 {
        match self.method {
            Method::Full => self.resident(layers),
            // Adapters are in the layers alone.
            Method::Lora { .. } => {
                let layer = self.size.trained.div_ceil(u64::from(self.size.layers.max(1)));
                layer.saturating_mul(layers.len() as u64).min(self.size.trained)
            }
        }
    }

    /// Memory for the weights of these layers, and for gradients, moments and copies of those that learn.
    pub fn weights_bytes(&self, layers: &Range<u16>) -> u64 {
        // Who may be asked to show how its last two slices began keeps that too.
        let shown = if *layers == self.layers() && self.check_millionths > 0 { 24 } else { 0 };
        let trained = self.trained(layers).saturating_mul(28 + shown);
        self.resident(layers).saturating_mul(4).saturating_add(trained)
    }

    /// Memory for what `in_flight` sequences compute on their way forward, kept for their way back.
    fn sequences_bytes(&self, layers: &Range<u16>, in_flight: u64, kept: Kept) -> u64 {
        let TrainSize { layers: all, width, feed_width, heads, vocabulary, .. } = self.size;
        let (width, context) = (u64::from(width), u64::from(self.context));
        let scores = u64::from(heads) * context;
        // As counted with an allocator on the CPU, rounded up; two more tables of scores pass by on the way back.
        let within = 20 * width + 6 * u64::from(feed_width) + 4 * scores;
        let count = layers.len() as u64;
        // One sequence at a time is at the head.
        let logits = if layers.end == all { 6 * u64::from(vocabulary) } else { 0 };
        let token = match kept {
            Kept::All => count.saturating_mul(within).saturating_mul(in_flight),
            Kept::Inputs => count.saturating_mul(width).saturating_mul(in_flight).saturating_add(within),
        };
        token.saturating_add(2 * scores).saturating_add(logits).saturating_mul(4).saturating_mul(context)
    }

    /// The least memory with which one agent can hold the whole model and train it: one sequence at a time, each
    /// layer computed twice.
    pub fn memory_bytes(&self) -> u64 {
        self.stage_bytes(&self.layers(), 1)
    }

    /// The least memory with which one of a group can train these layers, `in_flight` sequences being between their
    /// way forward and their way back.
    pub fn stage_bytes(&self, layers: &Range<u16>, in_flight: u16) -> u64 {
        let kept = self.sequences_bytes(layers, in_flight.into(), Kept::Inputs);
        self.weights_bytes(layers).saturating_add(kept)
    }

    /// How much of a step of `sequences` fits `memory_bytes` at once, `in_flight` times over; nothing is computed twice
    /// unless it must be. `None` if not even one sequence fits.
    pub fn fit(&self, layers: &Range<u16>, sequences: u32, in_flight: u16, memory_bytes: u64) -> Option<Fit> {
        let room = memory_bytes.checked_sub(self.weights_bytes(layers))?;
        let most = |kept| {
            let one = self.sequences_bytes(layers, in_flight.into(), kept);
            u32::try_from(room / one.max(1)).unwrap_or(u32::MAX).min(sequences)
        };
        let fits = |(at_once, recompute)| (at_once > 0).then_some(Fit { at_once, recompute });
        fits((most(Kept::All), false)).or_else(|| fits((most(Kept::Inputs), true)))
    }

    /// Floating-point operations for one token in these layers, forward and backward; attention among tokens is not
    /// counted.
    fn flops_per_token(&self, layers: &Range<u16>) -> u64 {
        let weights = self.multiplied(layers);
        match self.method {
            Method::Full => weights.saturating_mul(6),
            // Frozen weights have no gradient of their own.
            Method::Lora { .. } => {
                weights.saturating_mul(4).saturating_add(self.trained(layers).saturating_mul(6))
            }
        }
    }

    /// The work of so many inner steps in these layers.
    pub(crate) fn slice_units(&self, steps: u32, layers: &Range<u16>) -> Units {
        let tokens =
            u64::from(steps).saturating_mul(u64::from(self.batch)).saturating_mul(u64::from(self.context));
        Units(tokens.saturating_mul(self.flops_per_token(layers)) / 1_000_000)
    }

    /// Weights with which every token is multiplied: an embedding is looked up.
    pub(crate) fn multiplied(&self, layers: &Range<u16>) -> u64 {
        if *layers == self.layers() {
            return self.size.weights;
        }
        let head = if layers.end == self.size.layers { self.table() } else { 0 };
        self.layer_resident().saturating_mul(layers.len() as u64).saturating_add(head)
    }

    /// What placement is to know of a layer and of both ends: `(layer, embedding, head)`, in bytes.
    pub(crate) fn part_bytes(&self) -> (u64, u64, u64) {
        let per_weight = match self.method {
            Method::Full => 32,
            Method::Lora { .. } => 4,
        };
        let table = self.table().saturating_mul(per_weight);
        (self.weights_bytes(&(1..2)).max(1), table, table)
    }

    /// What a layer keeps of one sequence in flight, and what a stage needs for the one at work, in bytes.
    pub(crate) fn work_bytes(&self) -> (u64, u64) {
        let kept = self.rows_bytes();
        let all = self.sequences_bytes(&self.layers(), 1, Kept::Inputs);
        (kept, all.saturating_sub(kept.saturating_mul(u64::from(self.size.layers))))
    }

    /// Bytes of the rows that one sequence sends from stage to stage.
    pub fn rows_bytes(&self) -> u64 {
        4 * u64::from(self.size.width) * u64::from(self.context)
    }
}
