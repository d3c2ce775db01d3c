//! Owns the boundary between bookkeeping and computing: what a stage hands to a processor, and what it takes back.
//! Must never hold a session, a page or a weight itself.
//!
//! Two implementations: [`crate::cpu::graph`] and the GPU's. Both hold the weights and the cache of a stage's layers;
//! which page belongs to which session is [`crate::stage`]'s to know.
//!
//! One run, for every layer of the stage in order, on all rows of the batch:
//!
//! ```text
//! h   += post_attention_norm?(out · attend(cache ∪ rope(norm?(q)), rope(norm?(k)), v))    of attention_norm(h)
//! h   += post_feed_norm?(down · (act(gate) * up))                                         of feed_norm(h)
//! h    = round_in_place(h)                                                                see crate::rows
//! ```
//!
//! and on the last stage, for the rows asked for only: `x = output_norm(h)`, `logits = cap?(head · x)`.

/// Positions in a page of the cache. A page index stands for these positions in every layer of the stage, keys and
/// values alike.
pub const PAGE_POSITIONS: usize = 16;

/// Rows of many sequences, computed together.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// What is computed, in order; the rows of the batch are theirs, one sequence after the other. No two sequences
    /// share a page.
    pub sequences: &'a [Sequence<'a>],
    /// The rows: of every sequence in order, at most [`RUN_ROWS_MAX`](crate::limits::RUN_ROWS_MAX).
    pub input: Hidden<'a>,
}

/// Rows as they enter a stage.
#[derive(Clone, Copy, Debug)]
pub enum Hidden<'a> {
    /// On the stage that holds layer 0: tokens, all below the vocabulary.
    Tokens(&'a [u32]),
    /// Elsewhere: `[rows, width]`, decoded from the wire's format, all finite.
    Rows(&'a [f32]),
}

/// The part of a batch that belongs to one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Where its cache lies: position p in place `p % PAGE_POSITIONS` of page `pages[p / PAGE_POSITIONS]`. Covers
    /// `position + rows` at least. What it holds from `position` on is overwritten.
    pub pages: &'a [u32],
    /// Position of its first row; everything before it is in the cache.
    pub position: u32,
    /// Its rows, 1 or more.
    pub rows: u32,
    /// How many of them, counted from the end, are asked for. Above 0 on the last stage only; over the whole batch at most
    /// [`ASKED_ROWS_MAX`](crate::limits::ASKED_ROWS_MAX).
    pub asked: u32,
}

/// What a run gives, until the next one.
#[derive(Clone, Copy, Debug)]
pub enum Computed<'a> {
    /// From a stage that is not the last: `[rows, width]`, as [`crate::rows::round_in_place`] leaves them.
    Rows(&'a [f32]),
    /// From the last stage, of the rows asked for, in order.
    Asked {
        /// `[asked, vocabulary]`, capped where the model caps. May hold values that are not finite.
        logits: &'a [f32],
        /// `[asked, width]`: what the head was multiplied with, after the last norm.
        hidden: &'a [f32],
    },
}

/// A processor that holds the layers of a stage and their cache.
pub trait Graph: Send {
    /// Computes one batch and leaves its keys and values in the cache.
    ///
    /// # Errors
    /// In words, what the device said. The cache of every sequence in the batch is then unknown from its `position` on.
    fn run(&mut self, batch: &Batch<'_>) -> Result<Computed<'_>, String>;

    /// Bytes of memory that weights, cache and buffers take where they lie.
    fn resident_bytes(&self) -> u64;
}
