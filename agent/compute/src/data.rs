//! Owns the way from a text to batches of bytes: what is held out, which windows a step trains on.
//! Must never draw randomness of its own: every window is a pure function of the job, so that a shard can be
//! executed again elsewhere and see the same bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::limits::{HELD_OUT_TOKENS, TEXT_BYTES_MAX};
use crate::random::{below, mix_all};

/// The share of the text that is never trained on: its last tenth.
const HELD_OUT_DIVISOR: usize = 10;

/// Why a text cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file could not be read.
    #[error("cannot read the text {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file exceeds the bound.
    #[error("the text {path} is larger than {TEXT_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        path: String,
    },
    /// Too little text for one window in both parts.
    #[error(
        "the text has {bytes} bytes; a context of {context} needs at least {least} (its last tenth is held out, and \
         both parts must fill a window)"
    )]
    TooShort {
        /// Bytes of the text.
        bytes: usize,
        /// Tokens per window.
        context: usize,
        /// Bytes that would do.
        least: usize,
    },
}

/// A text, divided into a part to train on and a held-out part, for windows of one context length.
pub struct Text {
    bytes: Vec<u8>,
    held_out_from: usize,
    context: usize,
}

/// Inputs and targets, each `[sequences, context]` tokens, row-major; a target is the byte after its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Rows in both vectors.
    pub sequences: usize,
    /// Tokens per row.
    pub context: usize,
    /// What the model sees.
    pub inputs: Vec<u8>,
    /// What it should say.
    pub targets: Vec<u8>,
}

/// Which step of which shard of which round a batch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepId {
    /// Seed of the job.
    pub seed: u64,
    /// Outer round.
    pub round: u32,
    /// Shard within the round, below `of`.
    pub index: u32,
    /// Shards in the round.
    pub of: u32,
    /// Inner step within the shard.
    pub step: u32,
}

impl Text {
    /// Reads a text file for windows of `context` tokens.
    ///
    /// # Errors
    /// [`DataError`] when the file cannot be read, is too large, or too short for one window in each part.
    pub fn read(path: &Path, context: usize) -> Result<Self, DataError> {
        let name = || path.display().to_string();
        let file = File::open(path).map_err(|source| DataError::Read { path: name(), source })?;
        let mut bytes = Vec::new();
        // The bound is enforced while reading: a length asked for beforehand may be a lie (a pipe, a growing file).
        let read = file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|source| DataError::Read { path: name(), source })?;
        if bytes.len() as u64 > TEXT_BYTES_MAX {
            return Err(DataError::TooLarge { path: name() });
        }
        Self::new(bytes, context)
    }

    /// Divides `bytes` for windows of `context` tokens.
    ///
    /// # Errors
    /// [`DataError::TooShort`] unless both parts hold at least one window and its last target.
    pub fn new(bytes: Vec<u8>, context: usize) -> Result<Self, DataError> {
        let held_out_from = bytes.len() - bytes.len() / HELD_OUT_DIVISOR;
        let window = context + 1;
        if context == 0 || bytes.len() - held_out_from < window || held_out_from < window {
            return Err(DataError::TooShort {
                bytes: bytes.len(),
                context,
                least: HELD_OUT_DIVISOR * window,
            });
        }
        Ok(Self { bytes, held_out_from, context })
    }

    /// The batch of one inner step, `[sequences, context]`: window starts are uniform over the training part.
    #[must_use]
    pub fn batch(&self, id: StepId, sequences: usize) -> Batch {
        let starts = (0..sequences).map(|sequence| self.start(id, sequence as u64));
        self.windows(starts)
    }

    /// The fixed held-out windows, evenly spaced over the held-out part, in batches of at most `sequences`.
    #[must_use]
    pub fn held_out(&self, sequences: usize) -> Vec<Batch> {
        let room = self.bytes.len() - self.held_out_from - (self.context + 1);
        let count = (HELD_OUT_TOKENS / self.context).clamp(1, room / self.context + 1);
        let starts: Vec<usize> = (0..count)
            .map(|window| self.held_out_from + if count == 1 { 0 } else { window * room / (count - 1) })
            .collect();
        starts.chunks(sequences.max(1)).map(|chunk| self.windows(chunk.iter().copied())).collect()
    }

    fn start(&self, id: StepId, sequence: u64) -> usize {
        let random = mix_all(&[
            id.seed,
            u64::from(id.round),
            u64::from(id.index),
            u64::from(id.of),
            u64::from(id.step),
            sequence,
        ]);
        let starts = self.held_out_from - self.context;
        below(random, starts as u64) as usize
    }

    fn windows(&self, starts: impl Iterator<Item = usize>) -> Batch {
        let mut batch =
            Batch { sequences: 0, context: self.context, inputs: Vec::new(), targets: Vec::new() };
        for start in starts {
            batch.sequences += 1;
            batch.inputs.extend_from_slice(&self.bytes[start..start + self.context]);
            batch.targets.extend_from_slice(&self.bytes[start + 1..start + 1 + self.context]);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn position_text(length: usize) -> Vec<u8> {
        // Every 3 bytes spell their own position, so a window betrays where it was cut.
        (0..length).map(|i| ((i / 3) >> (8 * (i % 3))) as u8).collect()
    }

    proptest! {
        #[test]
        fn windows_stay_in_their_part(length in 220usize..3_000, context in 1usize..21, seed: u64, step: u32) {
            let bytes = position_text(length);
            let text = Text::new(bytes.clone(), context).unwrap();
            let train = &bytes[..length - length / 10];
            let id = StepId { seed, round: 1, index: 0, of: 3, step };
            let batch = text.batch(id, 4);
            for (input, target) in batch.inputs.chunks(context).zip(batch.targets.chunks(context)) {
                let mut window = input.to_vec();
                window.push(target[context - 1]);
                prop_assert_eq!(&window[1..], target);
                prop_assert!(train.windows(context + 1).any(|w| w == window));
            }
            for batch in text.held_out(5) {
                for target in batch.targets.chunks(context) {
                    prop_assert!(bytes[length - length / 10..].windows(context).any(|w| w == target));
                }
            }
        }

        #[test]
        fn a_batch_is_a_function_of_its_step(seed: u64, round: u32, index in 0u32..8, step: u32) {
            let text = Text::new(position_text(50_000), 16).unwrap();
            let id = StepId { seed, round, index, of: 8, step };
            prop_assert_eq!(text.batch(id, 3), text.batch(id, 3));
            let others = [
                StepId { seed: seed ^ 1, ..id },
                StepId { round: round ^ 1, ..id },
                StepId { index: index + 1, ..id },
                StepId { of: 9, ..id },
                StepId { step: step ^ 1, ..id },
            ];
            for other in others {
                prop_assert_ne!(text.batch(id, 3), text.batch(other, 3));
            }
        }
    }

    #[test]
    fn windows_cover_the_whole_training_part() {
        let text = Text::new((0..=255).cycle().take(100).collect(), 5).unwrap();
        let starts: std::collections::BTreeSet<u8> = (0..2_000)
            .map(|step| text.batch(StepId { seed: 7, round: 0, index: 0, of: 1, step }, 1).inputs[0])
            .collect();
        assert_eq!(starts, (0..=84).collect());
    }

    #[test]
    fn held_out_windows_are_evenly_spaced_to_the_end() {
        let text = Text::new(position_text(40_000), 16).unwrap();
        let batches = text.held_out(7);
        let count: usize = batches.iter().map(|batch| batch.sequences).sum();
        assert_eq!(count, 3_983 / 16 + 1);
        let bytes = position_text(40_000);
        let last = batches.last().unwrap();
        assert_eq!(last.targets[last.targets.len() - 16..], bytes[40_000 - 16..]);
    }

    #[test]
    fn short_and_empty_texts_are_named() {
        assert!(matches!(
            Text::new(Vec::new(), 8),
            Err(DataError::TooShort { bytes: 0, context: 8, least: 90 })
        ));
        assert!(Text::new(vec![0; 89], 8).is_err());
        assert!(Text::new(vec![0; 90], 8).is_ok());
        let missing = Text::read(Path::new("no/such/text"), 8).err().unwrap();
        assert!(missing.to_string().contains("no/such/text"));
    }
}
