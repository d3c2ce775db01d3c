//! Owns what goes into one step of a stage and what comes out of it, and the format of rows between stages.
//! Must never compute.
//!
//! A stage holds layers `start..end`. The first embeds tokens, every later one takes the rows of the one before; the
//! last chooses tokens. A row is a token's residual stream: one signed byte e and `width` f16 values v, little-endian,
//! standing for v · 2^e. Every stage rounds to this format after every layer, so where the layers are split changes no
//! bit of the result.

use borsh::{BorshDeserialize, BorshSerialize};

/// What one session brings to a step.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct Chunk {
    /// The session, chosen by the caller; new ones begin at position 0.
    pub session: u64,
    /// Position of the first row. What the session held from there on is forgotten first, so any suffix of its history
    /// may be sent again.
    pub position: u32,
    /// The rows.
    pub input: Input,
    /// What the last stage is to answer.
    pub want: Want,
}

/// Rows as a stage takes them.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Input {
    /// For the stage that holds layer 0.
    Tokens(Vec<u32>),
    /// For every other: rows in the wire's format.
    Rows(Vec<u8>),
}

impl Input {
    /// How many rows these are at this width; a broken last one counts.
    #[must_use]
    pub fn rows(&self, width: usize) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Rows(bytes) => bytes.len().div_ceil(row_bytes(width)),
        }
    }
}

/// What the last stage is to answer; others pass it on.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub enum Want {
    /// Nothing: the rows only fill the cache.
    Nothing,
    /// The token that follows each row from the `from`-th of this chunk on. With draft tokens in the chunk, those
    /// that equal what is chosen before them are accepted by the caller.
    Picks {
        /// First row of the chunk that is answered.
        from: u32,
        /// How to choose.
        sampling: Sampling,
    },
    /// The log-probability of each of these tokens after the rows from the `from`-th on.
    Scores {
        /// First row of the chunk that is answered.
        from: u32,
        /// One per row answered.
        targets: Vec<u32>,
    },
}

/// How to choose a token. The choice is a pure function of the logits, these values and the token's position, so a
/// replayed or speculated step chooses what the first would have.
#[derive(Clone, Copy, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct Sampling {
    /// 0 for the likeliest token.
    pub temperature: f32,
    /// Only the likeliest tokens that together have this probability, 0 exclusive to 1.
    pub top_p: f32,
    /// Randomness, mixed with the position.
    pub seed: u64,
    /// Alternatives to report with each token.
    pub top_logprobs: u8,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct Pick {
    /// The token.
    pub token: u32,
    /// Its log-probability at temperature 1, in nats.
    pub logprob: f32,
    /// The likeliest tokens and their log-probabilities, falling.
    pub top: Vec<(u32, f32)>,
}

/// What a stage gives back.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub enum Output {
    /// Rows for the next stage, in the wire's format.
    Rows(Vec<u8>),
    /// From the last stage: one per row asked for; none for [`Want::Nothing`].
    Picks(Vec<Pick>),
    /// From the last stage: log-probabilities in nats.
    Scores(Vec<f32>),
}

/// Why a session's part of a step failed. Its cache is as before, except after [`StepError::Device`], when the session
/// is closed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StepError {
    /// The first stage takes tokens, every other takes rows.
    #[error("this stage starts at layer {start} and takes {wanted}")]
    Kind {
        /// First layer of the stage.
        start: u32,
        /// What it takes.
        wanted: &'static str,
    },
    /// Not one or more whole, finite rows, or more than a step takes.
    #[error("{bytes} bytes are not 1 to {rows_max} finite rows of {row_bytes} bytes")]
    Rows {
        /// Sent.
        bytes: usize,
        /// Of one row.
        row_bytes: usize,
        /// Most rows of a chunk.
        rows_max: usize,
    },
    /// No tokens, too many, or one that is not in the vocabulary.
    #[error("{reason}")]
    Tokens {
        /// What is wrong.
        reason: String,
    },
    /// The sampling values are nonsense, or rows are asked for that are not there.
    #[error("{reason}")]
    Want {
        /// What is wrong.
        reason: String,
    },
    /// The position lies beyond what is cached.
    #[error("position {position} leaves a gap: {cached} tokens are cached for this session")]
    Gap {
        /// Where the chunk should start.
        position: u32,
        /// Tokens in the cache.
        cached: u32,
    },
    /// The sequence would exceed the model's context.
    #[error("{rows} tokens at position {position} exceed the context of {context} tokens")]
    Context {
        /// Where the chunk should start.
        position: u32,
        /// Tokens sent.
        rows: usize,
        /// The limit.
        context: u32,
    },
    /// No room for another session or for more of this one.
    #[error("the cache is full: {reason}")]
    Full {
        /// What there is, and what to do.
        reason: String,
    },
    /// The result is not finite, or the device failed.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Bytes of one row in the wire's format.
#[must_use]
pub const fn row_bytes(width: usize) -> usize {
    1 + 2 * width
}
