//! Owns bringing in a model whole: its weights and its vocabulary, from wherever they are.
//! Must never load weights: what it returns reads them when asked.

use std::path::Path;

use crate::manifest::PieceSource;
use crate::open::{OpenError, Opened};
use crate::source::{SourceError, TensorSource};
use crate::tokenizer::{TokenizerError, Vocabulary};

/// A model with its vocabulary.
pub struct Imported {
    /// Its weights.
    pub source: Box<dyn TensorSource>,
    /// Its tokens.
    pub vocabulary: Vocabulary,
}

/// Why a model could not be brought in.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Its weights are not there or broken.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its vocabulary is not there or broken.
    #[error("{path} has no usable vocabulary: {reason}")]
    Vocabulary {
        /// The model.
        path: String,
        /// Why.
        reason: TokenizerError,
    },
    /// The pieces of its vocabulary cannot be read.
    #[error(transparent)]
    Pieces(#[from] SourceError),
    /// The vocabulary has more tokens than the model has rows for them.
    #[error(
        "the vocabulary has {tokens} tokens, the model has rows for {rows}\nhint: do the two belong together?"
    )]
    Mismatch {
        /// Of the vocabulary.
        tokens: usize,
        /// Of the embedding.
        rows: u32,
    },
}

/// Opens the GGUF file or Hugging Face folder at `path`.
///
/// # Errors
/// [`ImportError`].
pub fn open(path: &Path) -> Result<Imported, ImportError> {
    let opened = crate::open::open(path)?;
    let vocabulary = match &opened {
        Opened::Gguf(gguf) => Vocabulary::from_gguf(gguf.metadata()),
        Opened::Folder(folder) => Vocabulary::from_folder(folder.path()),
    };
    let vocabulary =
        vocabulary.map_err(|reason| ImportError::Vocabulary { path: path.display().to_string(), reason })?;
    let source: Box<dyn TensorSource> = match opened {
        Opened::Gguf(gguf) => Box::new(gguf),
        Opened::Folder(folder) => Box::new(folder),
    };
    fitting(source, vocabulary)
}

/// The model whose pieces are at hand.
///
/// # Errors
/// [`ImportError`].
pub fn from_pieces(pieces: PieceSource) -> Result<Imported, ImportError> {
    let vocabulary = decode(&pieces.vocabulary()?)?;
    fitting(Box::new(pieces), vocabulary)
}

/// The vocabulary in the bytes by which it travels.
///
/// # Errors
/// [`ImportError`].
pub fn decode(bytes: &[u8]) -> Result<Vocabulary, ImportError> {
    borsh::from_slice(bytes).map_err(|error| {
        SourceError::Unreadable { name: "the vocabulary".to_owned(), reason: error.to_string() }.into()
    })
}

/// The bytes by which a vocabulary travels.
///
/// # Errors
/// When it is larger than any that may travel.
pub fn encode(vocabulary: &Vocabulary) -> Result<Vec<u8>, std::io::Error> {
    borsh::to_vec(vocabulary)
}

fn fitting(source: Box<dyn TensorSource>, vocabulary: Vocabulary) -> Result<Imported, ImportError> {
    let rows = source.config().vocabulary;
    if vocabulary.len() > rows as usize {
        return Err(ImportError::Mismatch { tokens: vocabulary.len(), rows });
    }
    Ok(Imported { source, vocabulary })
}
