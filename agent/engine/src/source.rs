//! Owns the one way in which weights are read, whatever they are stored in.
//! Must never know a device or an architecture.
//!
//! Names are GGUF's (`token_embd.weight`, `blk.0.attn_q.weight`, …, `output_norm.weight`, `output.weight`), whatever
//! the file calls them. A tensor is a matrix `[rows, columns]`, row-major, `columns` being what it is multiplied over;
//! vectors have one row. `output.weight` is absent where the head is tied to the embedding.

use std::collections::BTreeMap;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::config::ModelConfig;
use crate::dtype::{Dtype, dequantize};

/// A tensor without its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct TensorInfo {
    /// How elements are stored.
    pub dtype: Dtype,
    /// Rows: outputs of the matrix; 1 for a vector.
    pub rows: u64,
    /// Columns: inputs of the matrix.
    pub columns: u64,
}

impl TensorInfo {
    /// Bytes of the tensor; `None` if that is no whole number or overflows.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        self.dtype.row_bytes(self.columns)?.checked_mul(self.rows)
    }
}

/// Why a tensor could not be read. Nothing else changed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The model has no such tensor.
    #[error("the model has no tensor `{0}`")]
    Missing(String),
    /// The disk failed, or the file changed.
    #[error("cannot read tensor `{name}`: {reason}")]
    Unreadable {
        /// Which tensor.
        name: String,
        /// Why.
        reason: String,
    },
}

/// Weights somewhere: a GGUF file, a folder of safetensors, or pieces in a store.
pub trait TensorSource: Send + Sync {
    /// Hyperparameters, already validated.
    fn config(&self) -> &ModelConfig;

    /// Every tensor by its GGUF name.
    fn tensors(&self) -> &BTreeMap<String, TensorInfo>;

    /// The elements of a tensor, exactly [`TensorInfo::bytes`] long.
    ///
    /// # Errors
    /// [`SourceError`].
    fn read(&self, name: &str) -> Result<Vec<u8>, SourceError>;

    /// The elements of a tensor as numbers, row-major.
    ///
    /// # Errors
    /// [`SourceError`].
    fn numbers(&self, name: &str) -> Result<Vec<f32>, SourceError> {
        let info = self.tensors().get(name).ok_or_else(|| SourceError::Missing(name.to_owned()))?;
        let mut values = vec![0.0; (info.rows * info.columns) as usize];
        dequantize(info.dtype, &self.read(name)?, &mut values)
            .map_err(|error| SourceError::Unreadable { name: name.to_owned(), reason: error.to_string() })?;
        Ok(values)
    }
}
