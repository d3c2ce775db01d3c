//! Owns a Hugging Face folder as a source of weights: `config.json` and one or more safetensors files.
//! Must never open a file outside the folder, whatever its index says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::config::{self, FolderConfig};
use super::names::{Fate, fate};
use super::shard::{Shard, Stored};
use super::{HfError, malformed, read_small};
use crate::config::{Architecture, ModelConfig};
use crate::dtype::{Dtype, dequantize};
use crate::limits::{CONFIG_BYTES_MAX, SAFETENSORS_HEADER_BYTES_MAX, SHARDS_MAX};
use crate::source::{SourceError, TensorInfo, TensorSource};
use crate::tensors::{HEAD, TensorsError, check_tensors};

/// A model as Hugging Face's libraries save it.
pub struct HfFolder {
    path: PathBuf,
    config: ModelConfig,
    tensors: BTreeMap<String, TensorInfo>,
    parts: BTreeMap<String, Part>,
    shards: Vec<Shard>,
}

/// Where a tensor is.
struct Part {
    shard: usize,
    stored: Stored,
    dtype: Dtype,
    /// Gemma's norms store their gain less one.
    add_one: bool,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl HfFolder {
    /// Opens a folder and checks all of it but the elements.
    ///
    /// # Errors
    /// [`HfError`].
    pub fn open(path: &Path) -> Result<Self, HfError> {
        let shards = shards(path)?;
        let config_path = path.join("config.json");
        let text = read_small(&config_path, CONFIG_BYTES_MAX)?;
        let FolderConfig { model: config, tied } =
            config::read(&config_path, &text, embedding_rows(&shards))?;
        let mut tensors = BTreeMap::new();
        let mut parts = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            for (name, stored) in &shard.tensors {
                let name = match fate(name, config.architecture) {
                    Fate::Named(head) if head == HEAD && tied => continue,
                    Fate::Named(name) => name,
                    Fate::Ignored => continue,
                    Fate::Unknown => {
                        let (name, architecture) = (name.clone(), config.architecture);
                        return Err(TensorsError::Unknown { name, architecture }.into());
                    }
                };
                let (part, info) = part(shard, number, &name, stored, config.architecture)?;
                tensors.insert(name.clone(), info);
                if parts.insert(name.clone(), part).is_some() {
                    return Err(malformed(&shard.path, format!("tensor `{name}` is there twice")));
                }
            }
        }
        check_tensors(&config, &tensors)?;
        Ok(Self { path: path.to_owned(), config, tensors, parts, shards })
    }

    /// The folder, in which the tokenizer's files are too.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl TensorSource for HfFolder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let missing = || SourceError::Missing(name.to_owned());
        let part = self.parts.get(name).ok_or_else(missing)?;
        let shard = self.shards.get(part.shard).ok_or_else(missing)?;
        let unreadable = |reason| SourceError::Unreadable { name: name.to_owned(), reason };
        let bytes = shard.read(&part.stored).map_err(|error| unreadable(error.to_string()))?;
        if !part.add_one {
            return Ok(bytes);
        }
        let mut gains = vec![0.0; bytes.len() / part.dtype.block_bytes()];
        dequantize(part.dtype, &bytes, &mut gains).map_err(|error| unreadable(error.to_string()))?;
        Ok(gains.iter().flat_map(|gain| (gain + 1.0).to_le_bytes()).collect())
    }
}

/// Opens every safetensors file of the model: those that the index names, or the only one.
fn shards(folder: &Path) -> Result<Vec<Shard>, HfError> {
    let index_path = folder.join("model.safetensors.index.json");
    if !index_path.is_file() {
        let only = folder.join("model.safetensors");
        if !only.is_file() {
            return Err(HfError::Unsupported {
                what: format!("{}: a folder without model.safetensors or its index", folder.display()),
                hint: "download the model in safetensors, not as pytorch_model.bin",
            });
        }
        return Ok(vec![Shard::open(&only)?]);
    }
    let text = read_small(&index_path, SAFETENSORS_HEADER_BYTES_MAX)?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| malformed(&index_path, format!("it is no index of safetensors files: {error}")))?;
    let names: BTreeSet<_> = index.weight_map.values().collect();
    if names.len() > SHARDS_MAX {
        return Err(malformed(
            &index_path,
            format!("{} files, at most {SHARDS_MAX} are allowed", names.len()),
        ));
    }
    // A plain file name cannot lead out of the folder.
    let plain = |name: &str| !name.contains(['/', '\\', ':', '\0']) && name.ends_with(".safetensors");
    let mut shards = Vec::new();
    for name in names {
        if !plain(name) {
            return Err(malformed(&index_path, format!("`{name}` is no plain name of a safetensors file")));
        }
        shards.push(Shard::open(&folder.join(name))?);
    }
    let stored: BTreeSet<_> = shards.iter().flat_map(|shard| shard.tensors.keys()).collect();
    if let Some(name) = index.weight_map.keys().find(|name| !stored.contains(name)) {
        return Err(malformed(&index_path, format!("tensor `{name}` is in none of its files")));
    }
    Ok(shards)
}

/// Rows of the embedding, whatever it is called for this architecture.
fn embedding_rows(shards: &[Shard]) -> u64 {
    let mut all = shards.iter().flat_map(|shard| &shard.tensors);
    let found = all.find(|(name, _)| name.ends_with("embed_tokens.weight"));
    found.and_then(|(_, stored)| stored.shape.first()).map_or(0, |rows| *rows as u64)
}

fn part(
    shard: &Shard,
    number: usize,
    name: &str,
    stored: &Stored,
    architecture: Architecture,
) -> Result<(Part, TensorInfo), HfError> {
    let (rows, columns) = match stored.shape[..] {
        [columns] => (1, columns as u64),
        [rows, columns] => (rows as u64, columns as u64),
        _ => {
            return Err(malformed(&shard.path, format!("tensor `{name}` has dimensions {:?}", stored.shape)));
        }
    };
    let dtype = stored.dtype(name)?;
    let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
    let add_one = gemma && name.ends_with("norm.weight");
    let info = TensorInfo { dtype: if add_one { Dtype::F32 } else { dtype }, rows, columns };
    Ok((Part { shard: number, stored: stored.clone(), dtype, add_one }, info))
}
