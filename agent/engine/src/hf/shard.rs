//! Owns one safetensors file: what its header says, and reads of its tensors.
//! Must never load more than is asked for: such files are as large as models.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use safetensors::tensor::Metadata;

use super::{HfError, malformed};
use crate::dtype::Dtype;
use crate::limits::{SAFETENSORS_HEADER_BYTES_MAX, TENSORS_MAX};

/// An open safetensors file.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    pub(super) tensors: BTreeMap<String, Stored>,
    // One reader at a time: positioned reads need another function on every platform.
    file: Mutex<File>,
}

/// A tensor as the file has it.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) dtype: safetensors::Dtype,
    pub(super) shape: Vec<usize>,
    start: u64,
    bytes: usize,
}

impl Shard {
    /// Opens a file and checks that its header describes all of it.
    pub(super) fn open(path: &Path) -> Result<Self, HfError> {
        let unreadable = |reason| HfError::Unreadable { path: path.to_owned(), reason };
        let mut file = File::open(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(|_| malformed(path, "it is too short for a safetensors file"))?;
        let size = u64::from_le_bytes(size);
        if size > SAFETENSORS_HEADER_BYTES_MAX || size > length.saturating_sub(8) {
            let problem = format!("its header of {size} bytes exceeds the file, or what is allowed");
            return Err(malformed(path, problem));
        }
        let mut header = Vec::new();
        (&mut file).take(size).read_to_end(&mut header).map_err(unreadable)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| malformed(path, format!("its header is not safetensors': {error}")))?;
        let data = 8 + size;
        let end = data.checked_add(header.data_len() as u64);
        if end != Some(length) {
            let problem = format!("its tensors take {} bytes, its length is {length}", header.data_len());
            return Err(malformed(path, problem));
        }
        let all = header.tensors();
        if all.len() > TENSORS_MAX {
            return Err(malformed(path, format!("{} tensors, at most {TENSORS_MAX} are allowed", all.len())));
        }
        let stored = |info: &safetensors::tensor::TensorInfo| Stored {
            dtype: info.dtype,
            shape: info.shape.clone(),
            start: data + info.data_offsets.0 as u64,
            bytes: info.data_offsets.1 - info.data_offsets.0,
        };
        let tensors = all.into_iter().map(|(name, info)| (name, stored(info))).collect();
        Ok(Self { path: path.to_owned(), tensors, file: Mutex::new(file) })
    }

    /// The elements of a tensor.
    pub(super) fn read(&self, stored: &Stored) -> std::io::Result<Vec<u8>> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(stored.start))?;
        let mut bytes = vec![0; stored.bytes];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Stored {
    /// The element type, if it is one of ours.
    pub(super) fn dtype(&self, name: &str) -> Result<Dtype, HfError> {
        let known = [
            (safetensors::Dtype::F32, Dtype::F32),
            (safetensors::Dtype::F16, Dtype::F16),
            (safetensors::Dtype::BF16, Dtype::Bf16),
        ];
        let found = known.iter().find(|(theirs, _)| *theirs == self.dtype);
        found.map(|(_, ours)| *ours).ok_or_else(|| HfError::Unsupported {
            what: format!("tensor `{name}` has type {:?}, which", self.dtype),
            hint: "use the model in F32, F16 or BF16, or a quantised one as GGUF",
        })
    }
}
