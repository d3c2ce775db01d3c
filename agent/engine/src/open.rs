//! Owns the choice of a reader by what is found at a path.
//! Must never load weights: opening a model of any size is quick.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::gguf::{Gguf, GgufError, MAGIC};
use crate::hf::{HfError, HfFolder};
use crate::source::TensorSource;

/// An open model. Each kind has its tokenizer elsewhere: in the metadata, or in the folder.
pub enum Opened {
    /// A GGUF file.
    Gguf(Gguf),
    /// A Hugging Face folder.
    Folder(HfFolder),
}

/// Why nothing could be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file, or it cannot be read.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// As given.
        path: PathBuf,
        /// What the operating system said.
        reason: std::io::Error,
    },
    /// What is there is no model that we know.
    #[error(
        "{path} is no model; hint: name a GGUF file, or a Hugging Face folder (config.json, *.safetensors)"
    )]
    Unknown {
        /// As given.
        path: PathBuf,
    },
    /// A GGUF file that cannot be used.
    #[error("{path}: {reason}")]
    Gguf {
        /// As given.
        path: PathBuf,
        /// Why.
        reason: GgufError,
    },
    /// A safetensors file or folder that cannot be used.
    #[error(transparent)]
    Safetensors(#[from] HfError),
}

impl Opened {
    /// The model's weights.
    #[must_use]
    pub fn source(&self) -> &dyn TensorSource {
        match self {
            Self::Gguf(gguf) => gguf,
            Self::Folder(folder) => folder,
        }
    }
}

/// Opens the model at a path, whatever kind it is.
///
/// # Errors
/// [`OpenError`].
pub fn open(path: &Path) -> Result<Opened, OpenError> {
    let unreadable = |reason| OpenError::Unreadable { path: path.to_owned(), reason };
    let unknown = || OpenError::Unknown { path: path.to_owned() };
    if std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        if !path.join("config.json").is_file() {
            return Err(unknown());
        }
        return Ok(Opened::Folder(HfFolder::open(path)?));
    }
    let mut start = Vec::new();
    File::open(path).map_err(unreadable)?.take(4).read_to_end(&mut start).map_err(unreadable)?;
    if start.starts_with(&MAGIC) {
        let gguf = |reason| OpenError::Gguf { path: path.to_owned(), reason };
        return Ok(Opened::Gguf(Gguf::open(path).map_err(gguf)?));
    }
    Err(unknown())
}
