//! Owns the way out: a model as files that other programs load.
//! Must never change what a model computes: what a format cannot say is an error, not an approximation.
//!
//! `hf` writes a Hugging Face folder, `gguf` a GGUF file, `adapter` LoRA adapters in PEFT's layout and in llama.cpp's.
//! Elements are written in F32, tensor by tensor, so that memory holds one at a time.

mod adapter;
mod gguf;
mod hf;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::config::{Architecture, ModelConfig, RopeStyle};
use crate::source::SourceError;
use crate::tensors::layer_of;
use crate::tokenizer::Vocabulary;

pub use adapter::{Adapter, Part, gguf_adapter, peft_adapter};
pub use gguf::gguf;
pub use hf::{hf, hf_tokenizer};

/// Why a model could not be written. What was begun is left behind under its final name.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The weights could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file could not be written.
    #[error("cannot write {path}: {reason}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: std::io::Error,
    },
    /// The format has no words for it.
    #[error("{format} cannot say {what}")]
    Unsayable {
        /// Which format.
        format: &'static str,
        /// What.
        what: String,
    },
}

/// A file that is being written.
struct Out {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Out {
    fn create(path: &Path) -> Result<Self, ExportError> {
        let failed = |reason| ExportError::Write { path: path.to_owned(), reason };
        Ok(Self { path: path.to_owned(), file: BufWriter::new(File::create(path).map_err(failed)?) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.file.write_all(bytes).map_err(|reason| ExportError::Write { path: self.path.clone(), reason })
    }

    fn finish(mut self) -> Result<(), ExportError> {
        let done = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        done.map_err(|reason| ExportError::Write { path: self.path, reason })
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ExportError> {
    let mut out = Out::create(path)?;
    out.write(bytes)?;
    out.finish()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// How GGUF's readers pair the elements of a head; those of Hugging Face's folders pair halves.
fn gguf_style(architecture: Architecture) -> RopeStyle {
    if architecture == Architecture::Llama { RopeStyle::Adjacent } else { RopeStyle::Halves }
}

/// Heads of a projection whose rows the rotary embedding pairs; none for other tensors.
fn paired_heads(config: &ModelConfig, name: &str) -> Option<u32> {
    layer_of(name)?;
    // An adapter's first part has no rows of the projection.
    let matrix = name.strip_suffix(".lora_b").unwrap_or(name);
    match matrix.rsplit_once('.')? {
        (layer, "weight") if layer.ends_with(".attn_q") => Some(config.heads),
        (layer, "weight") if layer.ends_with(".attn_k") => Some(config.kv_heads),
        _ => None,
    }
}

/// The rows of `values` (each `columns` long), as another style of rotary embedding pairs them.
fn restyled(config: &ModelConfig, name: &str, columns: u64, values: Vec<f32>, to: RopeStyle) -> Vec<f32> {
    let Some(heads) = paired_heads(config, name).filter(|_| config.rope.style != to) else { return values };
    let (width, half) = (config.head_width as usize, config.rope.dims as usize / 2);
    let columns = columns as usize;
    let mut out = values.clone();
    for head in 0..heads as usize {
        for pair in 0..half {
            for member in 0..2 {
                let (adjacent, halves) = (2 * pair + member, pair + member * half);
                let (from, into) = match to {
                    RopeStyle::Halves => (adjacent, halves),
                    RopeStyle::Adjacent => (halves, adjacent),
                };
                let row = |element: usize| (head * width + element) * columns;
                out[row(into)..row(into) + columns].copy_from_slice(&values[row(from)..row(from) + columns]);
            }
        }
    }
    out
}

fn is_gemma(config: &ModelConfig) -> bool {
    matches!(config.architecture, Architecture::Gemma2 | Architecture::Gemma3)
}

/// Whether a format's reader, which made out `read`, would compute the same model with heads paired in another style.
/// Factors of the frequencies are compared by whoever writes them: a format may keep what they are computed from.
fn is_same(config: &ModelConfig, read: ModelConfig, style: RopeStyle) -> bool {
    // Patterns may differ where they say the same of every layer that there is.
    if (0..config.layers).any(|layer| config.window_of(layer) != read.window_of(layer)) {
        return false;
    }
    let mut wanted = config.clone();
    (wanted.window, wanted.window_pattern) = (read.window, read.window_pattern);
    (wanted.rope.style, wanted.rope.factors) = (style, read.rope.factors.clone());
    wanted == read
}

/// Why a model that has fewer rows than its vocabulary has tokens cannot be written.
fn check_tokens(
    config: &ModelConfig,
    vocabulary: &Vocabulary,
    format: &'static str,
) -> Result<(), ExportError> {
    if vocabulary.len() <= config.vocabulary as usize {
        return Ok(());
    }
    let what = format!("{} tokens of a model that has rows for {}", vocabulary.len(), config.vocabulary);
    Err(ExportError::Unsayable { format, what })
}
