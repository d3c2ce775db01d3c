//! Owns models in safetensors files, as Hugging Face folders hold them.
//! Must never trust a file name, a size or a shape that a file states before it is checked.
//!
//! `shard` reads one safetensors file, `folder` a Hugging Face folder of them (with `config` and `names`).

mod config;
mod folder;
mod names;
mod shard;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::config::BadConfig;
use crate::tensors::TensorsError;

pub(crate) use config::{llama3_factors, read as read_config};
pub use folder::HfFolder;
pub(crate) use names::hf_name;

/// Why a model in safetensors files could not be used.
#[derive(Debug, thiserror::Error)]
pub enum HfError {
    /// A file could not be opened or read.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: std::io::Error,
    },
    /// A file is damaged, or not what its name says.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The files are sound, but ask for what this engine does not do.
    #[error("{what} is not supported; hint: {hint}")]
    Unsupported {
        /// What.
        what: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// The hyperparameters are no model.
    #[error(transparent)]
    Config(#[from] BadConfig),
    /// The tensors are not those of the model.
    #[error(transparent)]
    Tensors(#[from] TensorsError),
}

fn malformed(path: &Path, problem: impl Into<String>) -> HfError {
    HfError::Malformed { path: path.to_owned(), problem: problem.into() }
}

/// Reads a whole file that should be small.
fn read_small(path: &Path, most: u64) -> Result<Vec<u8>, HfError> {
    let unreadable = |reason| HfError::Unreadable { path: path.to_owned(), reason };
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(most + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > most {
        return Err(malformed(path, format!("it is larger than {most} bytes")));
    }
    Ok(bytes)
}
