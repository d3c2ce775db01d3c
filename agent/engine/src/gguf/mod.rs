//! Owns GGUF versions 2 and 3: metadata and tensors of a model in one file.
//! Must never trust a count, a length or an offset before it is checked against the file.
//!
//! `header` reads what precedes the elements, `config` turns its metadata into hyperparameters, `writer` makes small
//! files. Memory is bounded by the file: nothing is allocated for a count that the file is too short for.

mod config;
mod header;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::config::{BadConfig, ModelConfig};
use crate::dtype::Dtype;
use crate::source::{SourceError, TensorInfo, TensorSource};
use crate::tensors::{TensorsError, check_tensors};

pub(crate) use config::from_metadata;
pub use header::{Header, Place};
pub use writer::GgufWriter;
pub(crate) use writer::{ALIGNMENT, head};

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Llama 3's divisors of the rope frequencies: they become part of the hyperparameters, not of the tensors.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Metadata by key.
pub type Metadata = BTreeMap<String, Value>;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text. Vocabularies hold tokens that are no UTF-8, so text is bytes until it is looked at.
    Text(Vec<u8>),
    /// Unsigned integers.
    Unsigneds(Vec<u64>),
    /// Signed integers.
    Signeds(Vec<i64>),
    /// Floats.
    Floats(Vec<f32>),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Texts(Vec<Vec<u8>>),
}

/// Why a GGUF file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be opened or read.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: std::io::Error,
    },
    /// The bytes are no GGUF file, or a damaged one.
    #[error("at byte {at}: {problem}")]
    Malformed {
        /// Where in the file.
        at: u64,
        /// What is wrong there.
        problem: String,
    },
    /// The file says of a tensor what cannot be.
    #[error("tensor `{name}`: {problem}")]
    BadTensor {
        /// Which.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A metadata entry is missing or makes no sense.
    #[error("metadata `{key}`: {problem}")]
    BadKey {
        /// Which.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The file is sound, but asks for what this engine does not do.
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

/// An open GGUF file, or anything else that holds the bytes of one.
#[derive(Debug)]
pub struct Gguf<R = File> {
    config: ModelConfig,
    metadata: Metadata,
    tensors: BTreeMap<String, TensorInfo>,
    places: BTreeMap<String, Place>,
    // One reader at a time: positioned reads need another function on every platform.
    file: Mutex<R>,
}

impl Value {
    /// The text, if it is one and UTF-8.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(bytes) = self { std::str::from_utf8(bytes).ok() } else { None }
    }

    /// The number, if it is whole and not negative: files use either kind of integer.
    #[must_use]
    pub fn unsigned(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            Self::Float(_)
            | Self::Bool(_)
            | Self::Text(_)
            | Self::Unsigneds(_)
            | Self::Signeds(_)
            | Self::Floats(_)
            | Self::Bools(_)
            | Self::Texts(_) => None,
        }
    }

    /// The number, if it is a float.
    #[must_use]
    pub fn float(&self) -> Option<f64> {
        if let Self::Float(value) = self { Some(*value) } else { None }
    }

    /// The truth value, if it is one.
    #[must_use]
    pub fn bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }
}

impl Gguf {
    /// Opens a model and checks all of it but the elements.
    ///
    /// # Errors
    /// [`GgufError`].
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let (file, length) = open_file(path)?;
        Self::from_reader(file, length)
    }
}

impl Header {
    /// Reads the header of a file, which need not hold a model: some hold only a vocabulary.
    ///
    /// # Errors
    /// [`GgufError`].
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let (file, length) = open_file(path)?;
        Self::parse(BufReader::new(file), length)
    }
}

impl<R: Read + Seek> Gguf<R> {
    /// Opens a model of `length` bytes, of which `reader` stands at the first.
    ///
    /// # Errors
    /// [`GgufError`].
    pub fn from_reader(mut reader: R, length: u64) -> Result<Self, GgufError> {
        let mut header = Header::parse(BufReader::new(&mut reader), length)?;
        let mut factors = Vec::new();
        if let Some(place) = header.tensors.remove(ROPE_FACTORS) {
            factors = rope_factors(&mut reader, &place)?;
        }
        let config = config::from_metadata(&header.metadata, &header.tensors, factors)?;
        let tensors = header.tensors.iter().map(|(name, place)| (name.clone(), place.info)).collect();
        check_tensors(&config, &tensors)?;
        let Header { metadata, tensors: places } = header;
        Ok(Self { config, metadata, tensors, places, file: Mutex::new(reader) })
    }

    /// Everything that the file says beside tensors: its vocabulary, its chat template.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl<R: Read + Seek + Send> TensorSource for Gguf<R> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let place = self.places.get(name).ok_or_else(|| SourceError::Missing(name.to_owned()))?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        read_place(&mut *file, place)
            .map_err(|error| SourceError::Unreadable { name: name.to_owned(), reason: error.to_string() })
    }
}

fn open_file(path: &Path) -> Result<(File, u64), GgufError> {
    let unreadable = |reason| GgufError::Unreadable { path: path.to_owned(), reason };
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    Ok((file, length))
}

/// Reads the elements at a place, which was checked to lie inside the file.
fn read_place(reader: &mut (impl Read + Seek), place: &Place) -> std::io::Result<Vec<u8>> {
    let length = usize::try_from(place.bytes).map_err(std::io::Error::other)?;
    reader.seek(SeekFrom::Start(place.start))?;
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn rope_factors(reader: &mut (impl Read + Seek), place: &Place) -> Result<Vec<f32>, GgufError> {
    let bad = |problem: String| GgufError::BadTensor { name: ROPE_FACTORS.to_owned(), problem };
    if place.info.dtype != Dtype::F32 || place.info.rows != 1 || place.info.columns > 512 {
        return Err(bad("rope factors are one row of at most 512 F32 values".to_owned()));
    }
    let bytes = read_place(reader, place).map_err(|error| bad(error.to_string()))?;
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}
