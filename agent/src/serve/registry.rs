//! The models that this agent's owner added: a name each, and the digest of its manifest.
//!
//! One small JSON file per model, written whole or not at all. The weights lie in the blob store. Must never
//! fetch anything: a model is added only when every piece is here.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skein_engine::manifest::Manifest;
use skein_engine::tensors::layer_of;
use skein_mesh::BlobStore;
use skein_proto::ids::Digest;
use skein_proto::job::ModelSize;

use crate::identity::write_private;

/// A model as `skein model ls` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// By which jobs and API know it.
    pub(crate) name: String,
    /// Digest of its manifest.
    pub(crate) model: Digest,
    /// `llama`, `qwen2`, …
    pub(crate) architecture: String,
    /// How most of the weights are stored.
    pub(crate) weights: String,
    /// Bytes of all pieces.
    pub(crate) bytes: u64,
    /// Elements of all tensors.
    pub(crate) parameters: u64,
    /// Longest context in tokens.
    pub(crate) context: u32,
    /// What a coordinator needs to know to place it.
    pub(crate) size: ModelSize,
}

/// Why the registry did not do what was asked. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("`{0}` cannot be a model's name\nhint: 1 to 64 letters, digits, `-`, `_` or `.`")]
    Name(String),
    #[error(
        "no model `{0}` was added here\nhint: `skein model ls` lists them, `skein model add FILE` adds one"
    )]
    Missing(String),
    #[error(
        "a model `{0}` was added already\nhint: `skein model rm {0}` removes it, or add this one under another --name"
    )]
    Taken(String),
    #[error("{0}")]
    Model(String),
    #[error("cannot keep the list of models: {0}\nhint: is the disk full?")]
    Disk(#[from] std::io::Error),
}

/// The list of models. Clones share the directory.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    directory: PathBuf,
    store: BlobStore,
}

impl Registry {
    /// # Errors
    /// When the directory cannot be made.
    pub(crate) fn open(data_dir: &Path, store: BlobStore) -> std::io::Result<Self> {
        let directory = data_dir.join("models");
        fs::create_dir_all(&directory)?;
        Ok(Self { directory, store })
    }

    /// Every model by name; a file that cannot be read is left out and named in the log.
    pub(crate) fn list(&self) -> Vec<Entry> {
        let Ok(files) = fs::read_dir(&self.directory) else { return Vec::new() };
        let mut entries: Vec<Entry> = files.flatten().filter_map(|file| read(&file.path())).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    }

    /// # Errors
    /// [`RegistryError::Missing`].
    pub(crate) fn get(&self, name: &str) -> Result<Entry, RegistryError> {
        let missing = || RegistryError::Missing(name.to_owned());
        read(&self.path(name).ok_or_else(missing)?).ok_or_else(missing)
    }

    /// Adds the model of a manifest that is in the store, with all its pieces. Adding the same again is well.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub(crate) fn add(&self, name: &str, model: Digest) -> Result<Entry, RegistryError> {
        let path = self.path(name).ok_or_else(|| RegistryError::Name(name.to_owned()))?;
        if let Some(known) = read(&path) {
            return if known.model == model { Ok(known) } else { Err(RegistryError::Taken(name.to_owned())) };
        }
        let bytes = fs::read(self.store.path(&model)).map_err(|error| {
            RegistryError::Model(format!("the manifest {} is not held here: {error}", model.short()))
        })?;
        let manifest = Manifest::decode(&bytes).map_err(|error| RegistryError::Model(error.to_string()))?;
        let mut pieces = manifest.pieces_of(0..manifest.config.layers);
        pieces.extend(manifest.vocabulary_pieces());
        if let Some((missing, _)) = pieces.iter().find(|(piece, _)| !self.store.has(&Digest(*piece))) {
            let message =
                format!("piece {} is not held here\nhint: add the model again", Digest(*missing).short());
            return Err(RegistryError::Model(message));
        }
        let entry = Entry {
            name: name.to_owned(),
            model,
            architecture: manifest.config.architecture.name().to_owned(),
            weights: main_dtype(&manifest).to_owned(),
            bytes: pieces.iter().map(|(_, bytes)| bytes).sum(),
            parameters: weights(&manifest, |_| true),
            context: manifest.config.context,
            size: size(&manifest),
        };
        let pinned = pieces.iter().map(|(piece, _)| Digest(*piece)).chain([model]);
        self.store.pin(&pin_name(name), pinned).map_err(|error| RegistryError::Model(error.to_string()))?;
        write_private(&path, &serde_json::to_vec_pretty(&entry).map_err(std::io::Error::from)?)?;
        Ok(entry)
    }

    /// Forgets a model; its pieces become cached blobs, which are removed when room is needed.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub(crate) fn remove(&self, name: &str) -> Result<Entry, RegistryError> {
        let entry = self.get(name)?;
        if let Some(path) = self.path(name) {
            fs::remove_file(path)?;
        }
        self.store.unpin(&pin_name(name)).map_err(|error| RegistryError::Model(error.to_string()))?;
        Ok(entry)
    }

    /// Where a model's file is; `None` for what cannot be a name, such as a path.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let good = (1..=64).contains(&name.len())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !name.starts_with('.');
        good.then(|| self.directory.join(format!("{name}.json")))
    }
}

/// The name under which a model's pieces are kept in the store.
fn pin_name(model: &str) -> String {
    format!("model-{model}")
}

fn read(path: &Path) -> Option<Entry> {
    let parsed = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => Err(error.to_string()),
    };
    parsed.inspect_err(|error| tracing::warn!(path = %path.display(), "a model is left out: {error}")).ok()
}

/// How most of the weights are stored.
fn main_dtype(manifest: &Manifest) -> &'static str {
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in manifest.tensors.values() {
        *bytes.entry(entry.info.dtype.name()).or_default() += entry.info.bytes().unwrap_or(0);
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or("nothing", |(name, _)| name)
}

/// Elements of the tensors of such names.
fn weights(manifest: &Manifest, wanted: impl Fn(&str) -> bool) -> u64 {
    let tensors = manifest.tensors.iter().filter(|(name, _)| wanted(name));
    tensors.map(|(_, entry)| entry.info.rows.saturating_mul(entry.info.columns)).sum()
}

/// What placement needs to know of a model.
pub(crate) fn size(manifest: &Manifest) -> ModelSize {
    let config = &manifest.config;
    let layers = || 0..config.layers;
    let layer_weights = |layer| weights(manifest, |name| layer_of(name) == Some(layer));
    ModelSize {
        layers: u16::try_from(config.layers).unwrap_or(u16::MAX),
        width: config.width,
        layer_weights: layers().map(layer_weights).max().unwrap_or(0),
        // The embedding once more, or a matrix of its shape, and the last norm.
        head_weights: (u64::from(config.vocabulary) + 1) * u64::from(config.width),
        layer_bytes: layers().map(|layer| manifest.layer_bytes(layer)).max().unwrap_or(0),
        embedding_bytes: manifest.embedding_bytes(),
        head_bytes: manifest.head_bytes(),
        tied: manifest.tied(),
        cache_bytes_per_token: u32::try_from(config.cache_bytes_per_token_and_layer()).unwrap_or(u32::MAX),
    }
}
