//! Owns running a contiguous range of a model's layers for many sessions, each with its key-value cache.
//! Must never choose a token or know the other stages: rows in, rows or logits out.
//!
//! Positions make replay safe: a forward at a position before the end of the cache first forgets everything from
//! there on, so a client may send any suffix of its history again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::gpt::{Gpt, LayerCache, upload};
use crate::limits::SESSIONS_MAX;
use crate::shape::ModelShape;

/// Why a stage could not be opened or did not compute. Caches are as they were before the call, except after
/// [`StageError::Device`], when the session is closed.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The checkpoint could not be read.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// The layers are not a range of the model.
    #[error("layers {start}..{end} are no part of a model with {layers} layers")]
    Layers {
        /// First layer.
        start: u16,
        /// One past the last layer.
        end: u16,
        /// Layers of the model.
        layers: usize,
    },
    /// The first stage takes tokens, every other takes rows.
    #[error("this stage starts at layer {start} and takes {wanted}")]
    Kind {
        /// First layer of the stage.
        start: usize,
        /// What it takes.
        wanted: &'static str,
    },
    /// No tokens, or not a whole number of finite rows.
    #[error("{values} values are not one or more finite rows of {width}")]
    Rows {
        /// Values sent.
        values: usize,
        /// Values per row.
        width: usize,
    },
    /// The position lies beyond what is cached.
    #[error("position {position} leaves a gap: {cached} tokens are cached for this session")]
    Gap {
        /// Where the input should start.
        position: u32,
        /// Tokens in the cache.
        cached: usize,
    },
    /// The sequence would exceed the model's context.
    #[error("{tokens} tokens at position {position} exceed the context of {context} tokens")]
    Context {
        /// Where the input should start.
        position: u32,
        /// Tokens sent.
        tokens: usize,
        /// The limit.
        context: usize,
    },
    /// Too many sessions.
    #[error("all {SESSIONS_MAX} sessions of this stage are taken; close one first")]
    Sessions,
    /// The device failed to compute or to hand back a result.
    #[error("the device failed: {0}")]
    Device(String),
}

/// What a stage is given.
#[derive(Clone, Debug, PartialEq, borsh::BorshSerialize, borsh::BorshDeserialize)]
pub enum StageInput {
    /// Tokens, for the stage that holds layer 0.
    Tokens(Vec<u8>),
    /// Rows `[tokens, width]`, row-major: the output of the stage before.
    Hidden(Vec<f32>),
}

/// What a stage gives.
#[derive(Clone, Debug, PartialEq, borsh::BorshSerialize, borsh::BorshDeserialize)]
pub enum StageOutput {
    /// Rows `[tokens, width]` for the next stage.
    Hidden(Vec<f32>),
    /// From the last stage: 256 logits for the byte after the last token given.
    Logits(Vec<f32>),
}

/// A range of layers on a device, with its sessions.
pub struct Stage {
    shape: ModelShape,
    layers: Range<usize>,
    device: Device,
    model: Gpt,
    sessions: BTreeMap<u64, Session>,
}

#[derive(Default)]
struct Session {
    length: usize,
    caches: Vec<LayerCache>,
}

impl Stage {
    /// Loads layers `start..end` of a checkpoint file.
    ///
    /// # Errors
    /// [`StageError`] for a bad file or range.
    pub fn open(device: &Device, checkpoint: &Path, start: u16, end: u16) -> Result<Self, StageError> {
        let layers = usize::from(start)..usize::from(end);
        let (shape, weights) = Checkpoint::read_part(checkpoint, |shape| {
            if layers.is_empty() || layers.end > shape.layers() {
                return Err(StageError::Layers { start, end, layers: shape.layers() });
            }
            Ok(shape.tensors_of(layers.clone()))
        })?;
        let device = device.clone().without_autodiff();
        let tensors = upload(shape, layers.clone(), weights, &device);
        let model = Gpt::new(shape, layers.clone(), &tensors);
        let model = model.ok_or_else(|| StageError::Device("tensors do not fit the layers".to_owned()))?;
        Ok(Self { shape, layers, device, model, sessions: BTreeMap::new() })
    }

    /// Shape of the whole model.
    #[must_use]
    pub fn shape(&self) -> ModelShape {
        self.shape
    }

    /// Extends `session`, new at position 0, by `input`, whose first token is at `position`. What the session held
    /// from `position` on is forgotten first.
    ///
    /// # Errors
    /// [`StageError`] when the input does not fit this stage or this session.
    pub fn forward(
        &mut self,
        session: u64,
        position: u32,
        input: StageInput,
    ) -> Result<StageOutput, StageError> {
        let tokens = self.check(&input)?;
        let start = position as usize;
        let cached = self.sessions.get(&session).map(|session| session.length);
        if cached.is_none() && self.sessions.len() >= SESSIONS_MAX {
            return Err(StageError::Sessions);
        }
        if start > cached.unwrap_or(0) {
            return Err(StageError::Gap { position, cached: cached.unwrap_or(0) });
        }
        if start + tokens > self.shape.context() {
            return Err(StageError::Context { position, tokens, context: self.shape.context() });
        }
        // Out of the map while it is worked on: a failure leaves no half-extended cache behind.
        let mut past = self.sessions.remove(&session).unwrap_or_default();
        past.truncate(start);
        let rows = self.rows(input, start)?;
        let rows = self.model.extend(rows, start, &mut past.caches, &self.device);
        past.length = start + tokens;
        let output = if self.layers.end == self.shape.layers() {
            let logits = self.model.logits(rows.narrow(0, tokens - 1, 1));
            let logits = logits.ok_or_else(|| StageError::Device("the head is missing".to_owned()))?;
            StageOutput::Logits(crate::device::read(logits).map_err(StageError::Device)?)
        } else {
            StageOutput::Hidden(crate::device::read(rows).map_err(StageError::Device)?)
        };
        self.sessions.insert(session, past);
        Ok(output)
    }

    /// Forgets a session; false when there was none.
    pub fn close(&mut self, session: u64) -> bool {
        self.sessions.remove(&session).is_some()
    }

    /// The number of tokens given, if the input is of the right kind and size.
    fn check(&self, input: &StageInput) -> Result<usize, StageError> {
        let kind = |wanted| StageError::Kind { start: self.layers.start, wanted };
        let width = self.shape.width();
        match (input, self.layers.start) {
            (StageInput::Tokens(_), 1..) => Err(kind("rows")),
            (StageInput::Hidden(_), 0) => Err(kind("tokens")),
            (StageInput::Tokens(tokens), 0) if tokens.is_empty() => {
                Err(StageError::Rows { values: 0, width })
            }
            (StageInput::Tokens(tokens), 0) => Ok(tokens.len()),
            (StageInput::Hidden(values), 1..) => {
                let whole = !values.is_empty() && values.len().is_multiple_of(width);
                if whole && values.iter().all(|value| value.is_finite()) {
                    Ok(values.len() / width)
                } else {
                    Err(StageError::Rows { values: values.len(), width })
                }
            }
        }
    }

    fn rows(&self, input: StageInput, start: usize) -> Result<Tensor<2>, StageError> {
        match input {
            StageInput::Tokens(tokens) => {
                let positions = (start..start + tokens.len()).map(|position| position as i32).collect();
                let rows = self.model.embed(&tokens, positions, &self.device);
                rows.ok_or_else(|| StageError::Device("the tables are missing".to_owned()))
            }
            StageInput::Hidden(values) => {
                let rows = values.len() / self.shape.width();
                Ok(Tensor::from_data(TensorData::new(values, [rows, self.shape.width()]), &self.device))
            }
        }
    }
}

impl Session {
    fn truncate(&mut self, length: usize) {
        if length == 0 {
            self.caches.clear();
        } else if length < self.length {
            for cache in &mut self.caches {
                cache.truncate(length);
            }
        }
        self.length = length;
    }
}
