//! Owns the content address of a model: which pieces make up which tensor.
//! Must never fetch: it names what is needed, and reads what is there.
//!
//! A model is a small *manifest* and many *pieces* of at most [`PIECE_BYTES`], each a blob named by its BLAKE3 digest.
//! The manifest's own digest names the model. An agent fetches only the pieces of its layers, from several holders at
//! once, each verified by its name; what is there already is not fetched again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;

use borsh::{BorshDeserialize, BorshSerialize};

use crate::config::{BadConfig, ModelConfig};
use crate::limits::{MANIFEST_BYTES_MAX, PIECE_BYTES, VOCABULARY_BYTES_MAX};
use crate::source::{SourceError, TensorInfo, TensorSource};
use crate::tensors::{EMBEDDING, HEAD, OUTPUT_NORM, TensorsError, check_tensors, is_needed, layer_of};

/// A BLAKE3 digest.
pub type Digest = [u8; 32];

/// A model by the digests of its parts.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct Manifest {
    /// Hyperparameters.
    pub config: ModelConfig,
    /// Bytes of the borsh encoding of `tokenizer::Vocabulary`; 0 where tokens are bytes.
    pub vocabulary_bytes: u64,
    /// That encoding, in pieces: all but the last are [`PIECE_BYTES`] long.
    pub vocabulary: Vec<Digest>,
    /// Every tensor by its GGUF name.
    pub tensors: BTreeMap<String, Entry>,
}

/// A tensor by the digests of its pieces: all but the last are [`PIECE_BYTES`] long.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Entry {
    /// Type and shape.
    pub info: TensorInfo,
    /// In order.
    pub pieces: Vec<Digest>,
}

/// Why bytes are no manifest.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// More bytes than any model needs.
    #[error("a manifest of {0} bytes, at most {MANIFEST_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// The bytes are not the one encoding of a manifest.
    #[error("not a manifest: {0}")]
    Malformed(String),
    /// The hyperparameters are no model.
    #[error(transparent)]
    Config(#[from] BadConfig),
    /// The tensors are not those of the model.
    #[error(transparent)]
    Tensors(#[from] TensorsError),
    /// Something has not the pieces that its size needs.
    #[error("{what} of {bytes} bytes has {found} pieces")]
    Pieces {
        /// What.
        what: String,
        /// Its size.
        bytes: u64,
        /// Pieces that the manifest gives it.
        found: usize,
    },
    /// One piece is said to have two lengths.
    #[error("the last piece of {0} is elsewhere said to be of another length")]
    Lengths(String),
}

/// Why a manifest could not be built. Pieces that were stored before stay stored.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A tensor could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A piece could not be stored.
    #[error("cannot store a piece of {what}: {reason}")]
    Store {
        /// Of what.
        what: String,
        /// Why.
        reason: io::Error,
    },
    /// The model is one that no agent would accept.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl Manifest {
    /// Cuts a model into pieces and gives each to `put`, which stores it and returns its digest. `progress` is told the
    /// bytes done, and of how many.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn build(
        source: &dyn TensorSource,
        vocabulary: &[u8],
        put: &mut dyn FnMut(&[u8]) -> io::Result<Digest>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, BuildError> {
        let of: u64 = source.tensors().values().filter_map(TensorInfo::bytes).sum();
        let mut done = 0;
        let mut cut = |what: &str, bytes: &[u8]| {
            let stored = bytes.chunks(PIECE_BYTES).map(|piece| {
                let digest = put(piece);
                done += piece.len() as u64;
                progress(done, of + vocabulary.len() as u64);
                digest.map_err(|reason| BuildError::Store { what: what.to_owned(), reason })
            });
            stored.collect::<Result<Vec<_>, _>>()
        };
        let mut tensors = BTreeMap::new();
        for (name, info) in source.tensors() {
            let pieces = cut(name, &source.read(name)?)?;
            tensors.insert(name.clone(), Entry { info: *info, pieces });
        }
        let pieces = cut("the vocabulary", vocabulary)?;
        let vocabulary_bytes = vocabulary.len() as u64;
        let manifest =
            Self { config: source.config().clone(), vocabulary_bytes, vocabulary: pieces, tensors };
        manifest.validate()?;
        Ok(manifest)
    }

    /// Reads what a stranger may have written, and checks all of it.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let manifest: Self =
            borsh::from_slice(bytes).map_err(|error| ManifestError::Malformed(error.to_string()))?;
        manifest.validate()?;
        // A manifest's digest names the model, so there must be one encoding only.
        if manifest.encode()? != bytes {
            return Err(ManifestError::Malformed("its entries are not in order".to_owned()));
        }
        Ok(manifest)
    }

    /// The bytes whose digest names the model.
    ///
    /// # Errors
    /// [`ManifestError`] if no agent would accept it.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        let bytes = borsh::to_vec(self).map_err(|error| ManifestError::Malformed(error.to_string()))?;
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// Every piece that a stage which holds `layers` needs, once, with its length; without the vocabulary.
    #[must_use]
    pub fn pieces_of(&self, layers: Range<u32>) -> Vec<(Digest, u64)> {
        let needed = |name: &str| is_needed(name, &layers, &self.config, self.tied());
        let tensors = self.tensors.iter().filter(|(name, _)| needed(name));
        distinct(tensors.flat_map(|(_, entry)| lengths(&entry.pieces, entry.bytes())))
    }

    /// Every piece of the vocabulary, once, with its length.
    #[must_use]
    pub fn vocabulary_pieces(&self) -> Vec<(Digest, u64)> {
        distinct(lengths(&self.vocabulary, self.vocabulary_bytes))
    }

    /// Whether the head is the embedding once more.
    #[must_use]
    pub fn tied(&self) -> bool {
        !self.tensors.contains_key(HEAD)
    }

    /// Bytes of a layer's weights.
    #[must_use]
    pub fn layer_bytes(&self, layer: u32) -> u64 {
        self.sum(|name| layer_of(name) == Some(layer))
    }

    /// Bytes that the first stage holds beside its layers.
    #[must_use]
    pub fn embedding_bytes(&self) -> u64 {
        self.sum(|name| name == EMBEDDING)
    }

    /// Bytes that the last stage holds beside its layers. One that is the first too holds a tied head only once.
    #[must_use]
    pub fn head_bytes(&self) -> u64 {
        let head = if self.tied() { EMBEDDING } else { HEAD };
        self.sum(|name| name == head || name == OUTPUT_NORM)
    }

    fn sum(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        self.tensors.iter().filter(|(name, _)| wanted(name)).map(|(_, entry)| entry.bytes()).sum()
    }

    fn validate(&self) -> Result<(), ManifestError> {
        self.config.validate()?;
        check_tensors(&self.config, &self.infos())?;
        let mut known = BTreeMap::new();
        let mut check = |what: &str, bytes: u64, pieces: &[Digest]| {
            if bytes.div_ceil(PIECE_BYTES as u64) != pieces.len() as u64 {
                return Err(ManifestError::Pieces { what: what.to_owned(), bytes, found: pieces.len() });
            }
            for (digest, length) in lengths(pieces, bytes) {
                if *known.entry(digest).or_insert(length) != length {
                    return Err(ManifestError::Lengths(what.to_owned()));
                }
            }
            Ok(())
        };
        for (name, entry) in &self.tensors {
            check(&format!("tensor `{name}`"), entry.bytes(), &entry.pieces)?;
        }
        if self.vocabulary_bytes > VOCABULARY_BYTES_MAX {
            let problem = format!("its vocabulary of {} bytes is too large", self.vocabulary_bytes);
            return Err(ManifestError::Malformed(problem));
        }
        check("the vocabulary", self.vocabulary_bytes, &self.vocabulary)
    }

    fn infos(&self) -> BTreeMap<String, TensorInfo> {
        self.tensors.iter().map(|(name, entry)| (name.clone(), entry.info)).collect()
    }
}

impl Entry {
    /// Bytes of the tensor; its size was found to exist when the manifest was checked.
    fn bytes(&self) -> u64 {
        self.info.bytes().unwrap_or(0)
    }
}

/// Where a piece lies that was fetched before.
pub type PathOf = Box<dyn Fn(&Digest) -> PathBuf + Send + Sync>;

/// Pieces on disk as a source of weights. Only tensors all of whose pieces are there can be read.
pub struct PieceSource {
    manifest: Manifest,
    tensors: BTreeMap<String, TensorInfo>,
    path_of: PathOf,
}

impl PieceSource {
    /// A model whose manifest was checked, with its pieces where `path_of` says. What is stored there was verified
    /// when it was fetched; here, only lengths are checked again.
    #[must_use]
    pub fn new(manifest: Manifest, path_of: PathOf) -> Self {
        Self { tensors: manifest.infos(), manifest, path_of }
    }

    /// What the pieces are.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The borsh encoding of the vocabulary.
    ///
    /// # Errors
    /// [`SourceError`] unless all its pieces are there.
    pub fn vocabulary(&self) -> Result<Vec<u8>, SourceError> {
        self.join("the vocabulary", &self.manifest.vocabulary, self.manifest.vocabulary_bytes)
    }

    fn join(&self, name: &str, pieces: &[Digest], bytes: u64) -> Result<Vec<u8>, SourceError> {
        let unreadable = |reason: String| SourceError::Unreadable { name: name.to_owned(), reason };
        let mut files = Vec::with_capacity(pieces.len());
        // All lengths are checked before memory is taken for the whole.
        for (digest, length) in lengths(pieces, bytes) {
            let path = (self.path_of)(&digest);
            let found = std::fs::metadata(&path).map(|metadata| metadata.len());
            let found = found.map_err(|error| unreadable(format!("{}: {error}", path.display())))?;
            if found != length {
                let reason = format!("{} has {found} bytes, not {length}", path.display());
                return Err(unreadable(reason));
            }
            files.push((path, length));
        }
        let mut joined =
            Vec::with_capacity(usize::try_from(bytes).map_err(|error| unreadable(error.to_string()))?);
        for (path, length) in files {
            let read = File::open(&path).and_then(|file| file.take(length).read_to_end(&mut joined));
            read.map_err(|error| unreadable(format!("{}: {error}", path.display())))?;
        }
        if joined.len() as u64 == bytes {
            Ok(joined)
        } else {
            Err(unreadable(format!("its pieces gave {} bytes, not {bytes}", joined.len())))
        }
    }
}

impl TensorSource for PieceSource {
    fn config(&self) -> &ModelConfig {
        &self.manifest.config
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let entry = self.manifest.tensors.get(name).ok_or_else(|| SourceError::Missing(name.to_owned()))?;
        self.join(name, &entry.pieces, entry.bytes())
    }
}

/// The pieces of something `bytes` long, with the length of each.
fn lengths(pieces: &[Digest], bytes: u64) -> impl Iterator<Item = (Digest, u64)> {
    let piece = PIECE_BYTES as u64;
    let length = move |number: usize| bytes.saturating_sub(piece.saturating_mul(number as u64)).min(piece);
    pieces.iter().enumerate().map(move |(number, digest)| (*digest, length(number)))
}

/// Each piece once, in the order in which they came.
fn distinct(pieces: impl Iterator<Item = (Digest, u64)>) -> Vec<(Digest, u64)> {
    let mut seen = BTreeSet::new();
    pieces.filter(|(digest, _)| seen.insert(*digest)).collect()
}
