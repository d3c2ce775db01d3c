//! Owns the content address of a model: which pieces make up which tensor.
//! Must never fetch: it names what is needed, and reads what is there.
//!
//! A model is a small *manifest* and many *pieces* of at most [`PIECE_BYTES`], each a blob named by its BLAKE3 digest.
//! The manifest's own digest names the model. An agent fetches only the pieces of its layers, from several holders at
//! once, each verified by its name; what is there already is not fetched again.

use std::collections::BTreeMap;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::config::ModelConfig;
use crate::source::TensorInfo;

/// A BLAKE3 digest.
pub type Digest = [u8; 32];

/// A model by the digests of its parts.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct Manifest {
    /// Hyperparameters.
    pub config: ModelConfig,
    /// The vocabulary, as pieces of the borsh encoding of `tokenizer::Vocabulary`.
    pub vocabulary: Vec<Digest>,
    /// Every tensor by its GGUF name.
    pub tensors: BTreeMap<String, Entry>,
}

/// A tensor by the digests of its pieces: all but the last are [`PIECE_BYTES`] long.
///
/// [`PIECE_BYTES`]: crate::limits::PIECE_BYTES
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Entry {
    /// Type and shape.
    pub info: TensorInfo,
    /// In order.
    pub pieces: Vec<Digest>,
}
