//! Owns the way from a file of tokens to batches: what is held out, which windows a step trains on.
//! Must never draw randomness of its own: which window is the n-th of a job is a pure function of the job's seed, so that
//! every window of an epoch is trained on once, whoever does it, and can be trained on again elsewhere.
//!
//! The file is in safetensors: `train.tokens` and `held_out.tokens`, each `[n]` in U8, U16 or U32; and where not every token
//! is to be learnt, `train.counts` and `held_out.counts`, `[n]` in U8, 1 for those that are.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use borsh::{BorshDeserialize, BorshSerialize};
use safetensors::tensor::{Dtype, SafeTensorError, View};
use safetensors::{SafeTensors, serialize};

use crate::limits::{DATA_BYTES_MAX, HELD_OUT_TOKENS};
use crate::random::{below, mix, mix_all};

const TRAIN: &str = "train";
const HELD_OUT: &str = "held_out";

/// Why a file cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file could not be read.
    #[error("cannot read the data {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file exceeds the bound.
    #[error("the data {path} is larger than {DATA_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are not safetensors.
    #[error("{path} is not a safetensors file: {source}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: SafeTensorError,
    },
    /// The file is safetensors, but not what was expected.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Too few tokens for one window.
    #[error(
        "there are {tokens} tokens to {purpose}; a context of {context} needs at least {}\nhint: give more data, or a shorter context",
        context + 1
    )]
    TooShort {
        /// So many.
        tokens: usize,
        /// What for.
        purpose: &'static str,
        /// Tokens per window.
        context: usize,
    },
    /// Nothing is to be learnt.
    #[error("no token of the data counts towards the loss to {purpose}")]
    NothingCounts {
        /// What for.
        purpose: &'static str,
    },
}

/// Tokens, and which of them are to be learnt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Ids.
    pub ids: Vec<u32>,
    /// One per id; empty if all count.
    pub counts: Vec<bool>,
}

/// What a job learns from, and what it is judged by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    train: Tokens,
    held_out: Tokens,
}

/// One of several parts of the held-out windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Part {
    /// Which, below `of`.
    pub index: u32,
    /// How many there are.
    pub of: u32,
}

impl Part {
    /// All of them.
    pub const WHOLE: Self = Self { index: 0, of: 1 };
}

/// Inputs and targets, each `[sequences, context]` tokens, row-major; a target is the token after its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Rows in both vectors.
    pub sequences: usize,
    /// Tokens per row.
    pub context: usize,
    /// What the model sees.
    pub inputs: Vec<u32>,
    /// What it should say.
    pub targets: Vec<u32>,
    /// Whether it is judged by a target; empty if by all.
    pub counts: Vec<bool>,
}

impl Tokens {
    fn counts_at(&self, at: usize) -> bool {
        self.counts.get(at).copied().unwrap_or(true)
    }

    fn counts_none(&self) -> bool {
        if self.counts.is_empty() { self.ids.is_empty() } else { !self.counts.contains(&true) }
    }
}

impl Dataset {
    /// Takes tokens as they are to be written.
    #[must_use]
    pub fn new(train: Tokens, held_out: Tokens) -> Self {
        Self { train, held_out }
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// When safetensors refuses, which it does for sizes beyond all bounds only.
    pub fn encode(&self) -> Result<Vec<u8>, SafeTensorError> {
        let most = self.train.ids.iter().chain(&self.held_out.ids).max().copied().unwrap_or(0);
        let width = match most {
            0..=0xff => 1,
            0x100..=0xffff => 2,
            _ => 4,
        };
        let dtype = [Dtype::U8, Dtype::U16, Dtype::U32][width / 2];
        let mut columns = Vec::new();
        for (name, tokens) in [(TRAIN, &self.train), (HELD_OUT, &self.held_out)] {
            // Little-endian: what is left off is zero.
            let bytes: Vec<u8> =
                tokens.ids.iter().flat_map(|id| id.to_le_bytes().into_iter().take(width)).collect();
            columns.push((format!("{name}.tokens"), Column { dtype, shape: [tokens.ids.len()], bytes }));
            if !tokens.counts.is_empty() {
                let bytes = tokens.counts.iter().map(|counts| u8::from(*counts)).collect();
                let shape = [tokens.counts.len()];
                columns.push((format!("{name}.counts"), Column { dtype: Dtype::U8, shape, bytes }));
            }
        }
        serialize(columns, None::<HashMap<String, String>>)
    }

    /// Reads and checks a file whose tokens must be below `vocabulary`.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn read(path: &Path, vocabulary: u32) -> Result<Self, DataError> {
        let wrap = |source| DataError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(wrap)?;
        let mut bytes = Vec::new();
        // The bound is enforced while reading: a length asked for beforehand may be a lie (a pipe, a growing file).
        file.take(DATA_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(wrap)?;
        if bytes.len() as u64 > DATA_BYTES_MAX {
            return Err(DataError::TooLarge { path: path.to_owned() });
        }
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|source| DataError::Format { path: path.to_owned(), source })?;
        let part = |name| {
            part(&tensors, name, vocabulary)
                .map_err(|problem| DataError::Content { path: path.to_owned(), problem })
        };
        Ok(Self { train: part(TRAIN)?, held_out: part(HELD_OUT)? })
    }

    /// The tokens to train on.
    #[must_use]
    pub fn train(&self) -> &Tokens {
        &self.train
    }

    /// Windows of `context` tokens to train on.
    ///
    /// # Errors
    /// [`DataError`] when there is not one, or nothing in them counts.
    pub fn windows(&self, context: usize) -> Result<Windows<'_>, DataError> {
        let purpose = "train on";
        let tokens = self.train.ids.len();
        if context == 0 || tokens < context + 1 {
            return Err(DataError::TooShort { tokens, purpose, context });
        }
        if self.train.counts_none() {
            return Err(DataError::NothingCounts { purpose });
        }
        // One less than would fit, so that the windows of each epoch can begin elsewhere.
        let count = ((tokens - 1) / context - 1).max(1);
        Ok(Windows { tokens: &self.train, context, count, slack: tokens - 1 - count * context })
    }

    /// A part of the fixed held-out windows, which are evenly spaced over the held-out tokens, in batches of at most
    /// `sequences`. Those in which nothing counts are left out.
    ///
    /// # Errors
    /// [`DataError`] when there is no window at all, or nothing counts.
    pub fn held_out(&self, context: usize, sequences: usize, part: Part) -> Result<Vec<Batch>, DataError> {
        let purpose = "judge the model by";
        let tokens = self.held_out.ids.len();
        if context == 0 || tokens < context + 1 {
            return Err(DataError::TooShort { tokens, purpose, context });
        }
        if self.held_out.counts_none() {
            return Err(DataError::NothingCounts { purpose });
        }
        let room = tokens - (context + 1);
        let count = (HELD_OUT_TOKENS / context).clamp(1, room / context + 1);
        let windows = (0..count).skip(part.index as usize).step_by(part.of.max(1) as usize);
        let starts: Vec<usize> =
            windows.map(|window| if count == 1 { 0 } else { window * room / (count - 1) }).collect();
        Ok(starts
            .chunks(sequences.max(1))
            .map(|chunk| cut(&self.held_out, context, chunk.iter().copied()))
            .filter(Batch::counts_any)
            .collect())
    }
}

/// The windows of an epoch, in the order of each epoch.
#[derive(Clone, Copy, Debug)]
pub struct Windows<'a> {
    tokens: &'a Tokens,
    context: usize,
    count: usize,
    slack: usize,
}

impl Windows<'_> {
    /// Windows in an epoch.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The windows numbered `first..first + sequences` of a job.
    #[must_use]
    pub fn batch(&self, seed: u64, first: u64, sequences: usize) -> Batch {
        let starts = (0..sequences as u64).map(|number| self.start(seed, first.saturating_add(number)));
        cut(self.tokens, self.context, starts)
    }

    fn start(&self, seed: u64, number: u64) -> usize {
        let count = self.count as u64;
        let (epoch, place) = (number / count, number % count);
        let offset = below(mix_all(&[seed, epoch]), self.slack as u64 + 1) as usize;
        permuted(mix_all(&[seed, epoch, 1]), place, count) as usize * self.context + offset
    }
}

impl Batch {
    /// Rows by whose targets the model is judged, and these targets.
    #[must_use]
    pub fn counted(&self) -> (Vec<u32>, Vec<u32>) {
        let counts = |at: &usize| self.counts.get(*at).copied().unwrap_or(true);
        let rows: Vec<usize> = (0..self.targets.len()).filter(counts).collect();
        let targets = rows.iter().map(|row| self.targets[*row]).collect();
        (rows.into_iter().map(|row| row as u32).collect(), targets)
    }

    /// Whether the model is judged by any of them.
    #[must_use]
    pub fn counts_any(&self) -> bool {
        if self.counts.is_empty() { !self.targets.is_empty() } else { self.counts.contains(&true) }
    }

    /// The sequences in parts of at most so many.
    pub fn parts(&self, sequences: usize) -> impl Iterator<Item = Batch> {
        let tokens = sequences.max(1) * self.context;
        let range = move |at: usize| at * tokens..((at + 1) * tokens).min(self.inputs.len());
        (0..self.inputs.len().div_ceil(tokens)).map(move |at| Batch {
            sequences: range(at).len() / self.context,
            context: self.context,
            inputs: self.inputs[range(at)].to_vec(),
            targets: self.targets[range(at)].to_vec(),
            counts: if self.counts.is_empty() { Vec::new() } else { self.counts[range(at)].to_vec() },
        })
    }
}

fn cut(tokens: &Tokens, context: usize, starts: impl Iterator<Item = usize>) -> Batch {
    let mut batch =
        Batch { sequences: 0, context, inputs: Vec::new(), targets: Vec::new(), counts: Vec::new() };
    for start in starts {
        batch.sequences += 1;
        batch.inputs.extend_from_slice(&tokens.ids[start..start + context]);
        batch.targets.extend_from_slice(&tokens.ids[start + 1..start + 1 + context]);
        if !tokens.counts.is_empty() {
            batch.counts.extend((start + 1..start + 1 + context).map(|at| tokens.counts_at(at)));
        }
    }
    batch
}

/// A bijection of `0..count`: four rounds of Feistel's network over the next power of four, walked until it lands
/// inside.
fn permuted(key: u64, place: u64, count: u64) -> u64 {
    let half_bits = (64 - count.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half_bits) - 1;
    let mut value = place;
    loop {
        let (mut left, mut right) = (value >> half_bits, value & mask);
        for round in 0..4u64 {
            (left, right) = (right, left ^ (mix(key ^ mix(right ^ (round << 56))) & mask));
        }
        value = left << half_bits | right;
        if value < count {
            return value;
        }
    }
}

fn part(tensors: &SafeTensors<'_>, name: &str, vocabulary: u32) -> Result<Tokens, String> {
    let column = |column: &str| {
        let view = tensors.tensor(&format!("{name}.{column}")).ok();
        view.map(|view| match view.shape() {
            [_] => Ok(view),
            shape => Err(format!("tensor {name}.{column} is {shape:?}, wanted one dimension")),
        })
    };
    let ids = column("tokens").ok_or_else(|| format!("tensor {name}.tokens is missing"))??;
    let bytes = ids.data();
    let dtype = ids.dtype();
    let width = [(Dtype::U8, 1), (Dtype::U16, 2), (Dtype::U32, 4)].iter().find(|(known, _)| *known == dtype);
    let Some((_, width)) = width else {
        return Err(format!("tensor {name}.tokens is {dtype:?}, wanted U8, U16 or U32"));
    };
    let id = |bytes: &[u8]| bytes.iter().rev().fold(0, |id, byte| id << 8 | u32::from(*byte));
    let ids: Vec<u32> = bytes.chunks_exact(*width).map(id).collect();
    if let Some(at) = ids.iter().position(|id| *id >= vocabulary) {
        return Err(format!(
            "token {} at place {at} of {name}.tokens, the model has {vocabulary}\nhint: was the data made for another model?",
            ids[at]
        ));
    }
    let counts = match column("counts") {
        None => Vec::new(),
        Some(counts) => {
            let counts = counts?;
            if counts.dtype() != Dtype::U8 || counts.data().len() != ids.len() {
                return Err(format!("tensor {name}.counts is not one U8 for each of {} tokens", ids.len()));
            }
            counts.data().iter().map(|byte| *byte != 0).collect()
        }
    };
    Ok(Tokens { ids, counts })
}

/// A column on its way to a file.
struct Column {
    dtype: Dtype,
    shape: [usize; 1],
    bytes: Vec<u8>,
}

impl View for Column {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn numbered(count: u32) -> Tokens {
        Tokens { ids: (0..count).collect(), counts: Vec::new() }
    }

    fn dataset(train: u32, held_out: u32) -> Dataset {
        Dataset::new(numbered(train), numbered(held_out))
    }

    proptest! {
        #[test]
        fn an_epoch_sees_every_window_once(tokens in 12u32..3_000, context in 1usize..11, seed: u64, epoch in 0u64..5) {
            let data = dataset(tokens, 0);
            let windows = data.windows(context).unwrap();
            let count = windows.count() as u64;
            let batch = windows.batch(seed, epoch * count, windows.count());
            let mut starts: Vec<u32> = batch.inputs.chunks(context).map(|window| window[0]).collect();
            starts.sort_unstable();
            for pair in starts.windows(2) {
                prop_assert_eq!(pair[1] - pair[0], context as u32, "side by side");
            }
            prop_assert!(batch.inputs.iter().zip(&batch.targets).all(|(input, target)| input + 1 == *target));
            prop_assert!(batch.targets.iter().all(|target| *target < tokens));
        }

        #[test]
        fn a_batch_is_a_function_of_seed_and_number(seed: u64, first in 0u64..100_000) {
            let data = dataset(50_000, 0);
            let windows = data.windows(16).unwrap();
            let batch = windows.batch(seed, first, 3);
            prop_assert_eq!(&batch, &windows.batch(seed, first, 3));
            prop_assert_ne!(&batch, &windows.batch(seed ^ 1, first, 3));
            prop_assert_ne!(&batch, &windows.batch(seed, first + 3, 3));
            prop_assert_eq!(&batch.inputs[16..], &windows.batch(seed, first + 1, 2).inputs[..]);
        }

        #[test]
        fn what_is_written_is_read(ids in prop::collection::vec(0u32..100_000, 1..200), masked: bool, most in 1u32..100_000) {
            let ids: Vec<u32> = ids.into_iter().map(|id| id % most).collect();
            let counts = if masked { ids.iter().map(|id| id % 2 == 0).collect() } else { Vec::new() };
            let data = Dataset::new(Tokens { ids, counts }, numbered(1));
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("data");
            std::fs::write(&path, data.encode().unwrap()).unwrap();
            prop_assert_eq!(Dataset::read(&path, most).unwrap(), data);
        }
    }

    #[test]
    fn epochs_differ_in_order_and_in_where_windows_begin() {
        let data = dataset(4_000, 0);
        let windows = data.windows(7).unwrap();
        let starts = |epoch: u64| -> Vec<u32> {
            let batch = windows.batch(3, epoch * windows.count() as u64, windows.count());
            batch.inputs.chunks(7).map(|window| window[0]).collect()
        };
        let offsets: BTreeSet<u32> = (0..10).map(|epoch| starts(epoch)[0] % 7).collect();
        assert!(offsets.len() > 3, "{offsets:?}");
        assert_ne!(starts(0), starts(1));
    }

    #[test]
    fn held_out_windows_are_evenly_spaced_to_the_end() {
        let data = dataset(100, 4_000);
        let batches = data.held_out(16, 7, Part::WHOLE).unwrap();
        let count = |batches: &[Batch]| batches.iter().map(|batch| batch.sequences).sum::<usize>();
        assert_eq!(count(&batches), 3_983 / 16 + 1);
        let parts = (0..3).map(|index| count(&data.held_out(16, 7, Part { index, of: 3 }).unwrap()));
        assert_eq!(parts.sum::<usize>(), count(&batches), "parts make the whole");
        assert_eq!(*batches.last().unwrap().targets.last().unwrap(), 3_999);
    }

    #[test]
    fn only_what_counts_is_judged() {
        let tokens = Tokens { ids: (0..10).collect(), counts: (0..10).map(|at| at % 3 == 0).collect() };
        let data = Dataset::new(tokens.clone(), tokens);
        let batch = data.windows(9).unwrap().batch(1, 0, 1);
        assert_eq!(batch.counted(), (vec![2, 5, 8], vec![3, 6, 9]));
        let parts: Vec<Batch> = data.windows(4).unwrap().batch(1, 0, 3).parts(2).collect();
        assert_eq!(parts.iter().map(|part| part.sequences).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn what_cannot_be_trained_on_is_named() {
        let none = Tokens { ids: vec![1; 20], counts: vec![false; 20] };
        let error = Dataset::new(none.clone(), none.clone()).windows(8).unwrap_err();
        assert!(matches!(error, DataError::NothingCounts { .. }), "{error}");
        assert!(Dataset::new(none.clone(), none).held_out(8, 1, Part::WHOLE).is_err());
        let error = dataset(8, 0).windows(8).unwrap_err();
        assert!(
            error.to_string().contains("there are 8 tokens to train on; a context of 8 needs at least 9")
        );
        assert!(dataset(9, 0).windows(8).is_ok());
        assert!(dataset(9, 8).held_out(8, 1, Part::WHOLE).is_err());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        assert!(Dataset::read(&path, 9).unwrap_err().to_string().contains("data"), "it names the file");
        std::fs::write(&path, b"nonsense").unwrap();
        assert!(matches!(Dataset::read(&path, 9), Err(DataError::Format { .. })));
        std::fs::write(&path, dataset(20, 3).encode().unwrap()).unwrap();
        let error = Dataset::read(&path, 19).unwrap_err().to_string();
        assert!(error.contains("token 19 at place 19") && error.contains("another model"), "{error}");
    }
}
