//! Owns the writing of LoRA adapters: PEFT's folder (`adapter_config.json`, `adapter_model.safetensors`), and the GGUF
//! file that llama.cpp takes with `--lora`.
//! Must never touch the model that an adapter is for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;

use super::hf::safetensors_head;
use super::{ExportError, Out, bytes_of, gguf_style, restyled, write_whole};
use crate::config::{ModelConfig, RopeStyle};
use crate::dtype::Dtype;
use crate::gguf::{ALIGNMENT, Metadata, Value, head};
use crate::hf::hf_name;
use crate::source::TensorInfo;
use crate::tensors::EMBEDDING;

/// An adapter in memory.
pub struct Adapter<'a> {
    /// Of the model that it is for.
    pub config: &'a ModelConfig,
    /// What that model is called.
    pub base: &'a str,
    /// Rows of its first parts.
    pub rank: u32,
    /// Scale of what it adds, times the rank.
    pub alpha: f32,
    /// `NAME.lora_a` (`[rank, inputs]`) and `NAME.lora_b` (`[outputs, rank]`) by GGUF's names, row-major.
    pub tensors: BTreeMap<String, Part>,
}

/// One of an adapter's tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub columns: u64,
    /// Row-major.
    pub values: Vec<f32>,
}

/// Writes the adapter as PEFT does, into a folder that exists.
///
/// # Errors
/// [`ExportError`].
pub fn peft_adapter(adapter: &Adapter<'_>, folder: &Path) -> Result<(), ExportError> {
    let mut targets = BTreeSet::new();
    let mut tensors = Vec::new();
    for (name, part) in &adapter.tensors {
        let (matrix, first) = adapted(adapter, name, part, "PEFT")?;
        let theirs = hf_name(matrix, adapter.config.architecture);
        let module = theirs.as_deref().and_then(|theirs| theirs.strip_suffix(".weight"));
        let module = module.ok_or_else(|| unsayable("PEFT", name))?;
        targets.extend(module.rsplit('.').next().map(str::to_owned));
        let kind = if first { "lora_A" } else { "lora_B" };
        let theirs = format!("base_model.model.{module}.{kind}.weight");
        tensors.push((theirs, [part.rows, part.columns], name, part));
    }
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": adapter.base,
        "r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": false, "inference_mode": true, "use_rslora": false, "use_dora": false,
        "target_modules": targets,
    });
    write_whole(&folder.join("adapter_config.json"), format!("{config:#}\n").as_bytes())?;
    let mut out = Out::create(&folder.join("adapter_model.safetensors"))?;
    out.write(&safetensors_head(
        tensors.iter().map(|(theirs, shape, ..)| (theirs.as_str(), shape.as_slice())),
    ))?;
    for (_, _, name, part) in tensors {
        out.write(&elements(adapter, name, part, RopeStyle::Halves))?;
    }
    out.finish()
}

/// Writes the adapter as llama.cpp reads it.
///
/// # Errors
/// [`ExportError`].
pub fn gguf_adapter(adapter: &Adapter<'_>, path: &Path) -> Result<(), ExportError> {
    for (name, part) in &adapter.tensors {
        adapted(adapter, name, part, "GGUF")?;
    }
    let text = |value: &str| Value::Text(value.into());
    let metadata = Metadata::from([
        ("general.type".to_owned(), text("adapter")),
        ("general.architecture".to_owned(), text(adapter.config.architecture.name())),
        ("adapter.type".to_owned(), text("lora")),
        ("adapter.lora.alpha".to_owned(), Value::Float(f64::from(adapter.alpha))),
    ]);
    let info = |part: &Part| TensorInfo { dtype: Dtype::F32, rows: part.rows, columns: part.columns };
    let listed =
        adapter.tensors.iter().map(|(name, part)| (name.as_str(), info(part), 4 * part.values.len()));
    let head = head(&metadata, listed);
    let mut out = Out::create(path)?;
    let mut at = head.len();
    out.write(&head)?;
    for (name, part) in &adapter.tensors {
        let bytes = elements(adapter, name, part, gguf_style(adapter.config.architecture));
        out.write(&vec![0; at.next_multiple_of(ALIGNMENT) - at])?;
        out.write(&bytes)?;
        at = at.next_multiple_of(ALIGNMENT) + bytes.len();
    }
    out.finish()
}

/// The matrix that a part adapts, and whether it is the first of the two.
fn adapted<'a>(
    adapter: &Adapter<'_>,
    name: &'a str,
    part: &Part,
    format: &'static str,
) -> Result<(&'a str, bool), ExportError> {
    let found = match (name.strip_suffix(".lora_a"), name.strip_suffix(".lora_b")) {
        (Some(matrix), _) => Some((matrix, true, part.rows)),
        (_, Some(matrix)) => Some((matrix, false, part.columns)),
        (None, None) => None,
    };
    // Both formats lay out adapters of embeddings otherwise.
    let whole = part.rows.checked_mul(part.columns) == Some(part.values.len() as u64);
    let fits = |(matrix, _, rank): &(&str, bool, u64)| {
        whole && *rank == u64::from(adapter.rank) && *matrix != EMBEDDING
    };
    let (matrix, first, _) = found.filter(fits).ok_or_else(|| unsayable(format, name))?;
    Ok((matrix, first))
}

/// The elements of a part, its rows in the order that the format's readers expect.
fn elements(adapter: &Adapter<'_>, name: &str, part: &Part, style: RopeStyle) -> Vec<u8> {
    bytes_of(&restyled(adapter.config, name, part.columns, part.values.clone(), style))
}

fn unsayable(format: &'static str, name: &str) -> ExportError {
    ExportError::Unsayable { format, what: format!("the adapter's tensor `{name}`") }
}
