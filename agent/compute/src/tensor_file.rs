//! Owns files of tensors on disk, in safetensors: the header is read once and each tensor when it is wanted; they are
//! written tensor by tensor, complete and on disk before they have their name.
//! Must never trust a file, nor need memory for more than one of its tensors.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, SafeTensorError, TensorInfo};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointError, Digest};
use crate::limits::{CHECKPOINT_BYTES_MAX, MOMENTS_BYTES_MAX};
use crate::trainee::TensorSpec;

/// The only metadata key: safetensors keeps metadata in a hash map, and two keys would be written in any order.
const METADATA_KEY: &str = "skein";

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Checkpoint,
    Delta,
    Moments,
}

impl Kind {
    fn bytes_max(self) -> u64 {
        match self {
            Self::Checkpoint | Self::Delta => CHECKPOINT_BYTES_MAX,
            Self::Moments => MOMENTS_BYTES_MAX,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    /// 0 in moments, which are of no round.
    pub(crate) round: u32,
    /// Of a delta's elements; a checkpoint is always f32 and says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bits: Option<u8>,
    /// Of AdamW, in moments alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) steps: Option<u32>,
}

/// A file of tensors of which the header alone was read. It is opened anew for every tensor, because an outer step looks
/// at more files than a process may hold open.
pub(crate) struct TensorFile {
    path: PathBuf,
    pub(crate) header: Header,
    metadata: Metadata,
    /// Where the tensors begin.
    start: u64,
}

impl TensorFile {
    /// Reads the header and checks that the file is as long as it says.
    pub(crate) fn open(path: &Path, kind: Kind) -> Result<Self, CheckpointError> {
        let read = |source| CheckpointError::Read { path: path.to_owned(), source };
        let format = |source| CheckpointError::Format { path: path.to_owned(), source };
        let content = |problem| CheckpointError::Content { path: path.to_owned(), problem };
        let mut file = File::open(path).map_err(read)?;
        let bytes = file.metadata().map_err(read)?.len();
        let most = kind.bytes_max();
        if bytes > most {
            return Err(CheckpointError::TooLarge { path: path.to_owned(), most });
        }
        if bytes < 8 {
            return Err(format(SafeTensorError::HeaderTooSmall));
        }
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(read)?;
        let length = u64::from_le_bytes(length);
        // Of a file that ends here nothing more is allocated than it has.
        if length > bytes - 8 {
            return Err(format(SafeTensorError::InvalidHeaderLength));
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(read)?;
        let metadata: Metadata = serde_json::from_slice(&text)
            .map_err(|source| format(SafeTensorError::InvalidHeaderDeserialization(source)))?;
        let start = 8 + length;
        if start.checked_add(metadata.data_len() as u64) != Some(bytes) {
            return Err(format(SafeTensorError::MetadataIncompleteBuffer));
        }
        let text = metadata.metadata().as_ref().and_then(|entries| entries.get(METADATA_KEY));
        let text = text.ok_or_else(|| content(format!("no `{METADATA_KEY}` entry in its metadata")))?;
        let header: Header = serde_json::from_str(text)
            .map_err(|error| content(format!("bad `{METADATA_KEY}` metadata: {error}")))?;
        if header.kind != kind {
            return Err(content(format!("this is a {:?}, wanted a {kind:?}", header.kind)));
        }
        Ok(Self { path: path.to_owned(), header, metadata, start })
    }

    pub(crate) fn round(&self) -> u32 {
        self.header.round
    }

    pub(crate) fn content(&self, problem: String) -> CheckpointError {
        CheckpointError::Content { path: self.path.clone(), problem }
    }

    /// Whether it holds a tensor, of whatever shape.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// Bytes of a tensor, of whatever shape.
    pub(crate) fn length(&self, name: &str) -> Option<usize> {
        self.metadata.info(name).map(|info| info.data_offsets.1.saturating_sub(info.data_offsets.0))
    }

    /// Checks that it holds so many tensors.
    pub(crate) fn holds(&self, tensors: usize) -> Result<(), CheckpointError> {
        let found = self.metadata.offset_keys().len();
        if found == tensors {
            Ok(())
        } else {
            Err(self.content(format!("{found} tensors, wanted {tensors}")))
        }
    }

    /// A tensor of that type and these dimensions.
    pub(crate) fn find(
        &self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<&TensorInfo, CheckpointError> {
        let info = self.metadata.info(name);
        let info = info.ok_or_else(|| self.content(format!("tensor {name} is missing")))?;
        if info.dtype == dtype && info.shape == shape {
            return Ok(info);
        }
        let (found, dimensions) = (info.dtype, &info.shape);
        Err(self.content(format!("tensor {name} is {found:?} {dimensions:?}, wanted {dtype:?} {shape:?}")))
    }

    pub(crate) fn bytes(
        &self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Vec<u8>, CheckpointError> {
        let (from, to) = self.find(name, dtype, shape)?.data_offsets;
        let read = |source| CheckpointError::Read { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(read)?;
        file.seek(SeekFrom::Start(self.start + from as u64)).map_err(read)?;
        let mut bytes = vec![0; to - from];
        file.read_exact(&mut bytes).map_err(read)?;
        Ok(bytes)
    }

    /// A tensor in f32, whose every value is finite.
    pub(crate) fn values(&self, prefix: &str, spec: &TensorSpec) -> Result<Vec<f32>, CheckpointError> {
        let name = format!("{prefix}{}", spec.name);
        let bytes = self.bytes(&name, Dtype::F32, &dimensions(spec))?;
        let (words, _) = bytes.as_chunks::<4>();
        let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => Err(self.content(format!("tensor {name} holds {} at element {at}", values[at]))),
        }
    }
}

/// Names of the tensors that a file is to hold, with their types and dimensions.
pub(crate) type Tensors = Vec<(String, Dtype, Vec<usize>)>;

/// The head of a file that is to be written, and where its tensors go.
struct Layout {
    head: Vec<u8>,
    metadata: Metadata,
}

impl Layout {
    /// Byte for byte as `safetensors::serialize` does: the widest types first, then by name.
    fn new(header: &Header, mut tensors: Tensors) -> Result<Self, SafeTensorError> {
        tensors.sort_by(|(one, dtype, _), (other, than, _)| than.cmp(dtype).then(one.cmp(other)));
        let mut at = 0;
        let infos = tensors.into_iter().map(|(name, dtype, shape)| {
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let data_offsets = (at, at + bytes);
            at += bytes;
            (name, TensorInfo { dtype, shape, data_offsets })
        });
        let text = serde_json::to_string(header)?;
        let entries = HashMap::from([(METADATA_KEY.to_owned(), text)]);
        let metadata = Metadata::new(Some(entries), infos.collect())?;
        let mut text = serde_json::to_string(&metadata)?.into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        Ok(Self { head: [&(text.len() as u64).to_le_bytes()[..], &text].concat(), metadata })
    }
}

/// The digest of the file that a [`Writer`] would write, without writing it. `give` tells a tensor's bytes by its name and
/// is asked in the order of the file; `name` stands for the file in errors.
pub(crate) fn digest<E: From<CheckpointError>>(
    name: &str,
    header: &Header,
    tensors: Tensors,
    mut give: impl FnMut(&str) -> Result<Vec<u8>, E>,
) -> Result<Digest, E> {
    let format = |source| CheckpointError::Format { path: PathBuf::from(name), source };
    let Layout { head, metadata } = Layout::new(header, tensors).map_err(format)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head);
    for name in metadata.offset_keys() {
        hasher.update(&give(&name)?);
    }
    Ok(*hasher.finalize().as_bytes())
}

/// A file of tensors that is being written beside its final name, tensor by tensor in any order. What is not published
/// disappears with it.
pub(crate) struct Writer {
    written: Written,
    file: File,
    metadata: Metadata,
    start: u64,
    left: usize,
}

impl Writer {
    /// Writes the header.
    pub(crate) fn create(path: &Path, header: &Header, tensors: Tensors) -> Result<Self, CheckpointError> {
        let format = |source| CheckpointError::Format { path: path.to_owned(), source };
        let left = tensors.len();
        let Layout { head, metadata } = Layout::new(header, tensors).map_err(format)?;
        let (written, mut file) = Written::create(path)?;
        file.write_all(&head).map_err(|source| written.failed(source))?;
        Ok(Self { written, file, metadata, start: head.len() as u64, left })
    }

    /// Writes a tensor of the header.
    pub(crate) fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let place = self.metadata.info(name).map(|info| info.data_offsets);
        let Some((from, to)) = place.filter(|(from, to)| to - from == bytes.len()) else {
            let problem = format!("tensor {name} of {} bytes is not in its header", bytes.len());
            return Err(CheckpointError::Content { path: self.written.path.clone(), problem });
        };
        debug_assert!(to <= self.metadata.data_len(), "the header was checked");
        self.left -= 1;
        let at = SeekFrom::Start(self.start + from as u64);
        let done = self.file.seek(at).and_then(|_| self.file.write_all(bytes));
        done.map_err(|source| self.written.failed(source))
    }

    /// Once every tensor is there: brings them to the disk and reads them back for their digest.
    pub(crate) fn finish(self) -> Result<Written, CheckpointError> {
        debug_assert_eq!(self.left, 0, "every tensor is written once");
        let Self { mut written, mut file, .. } = self;
        let mut hasher = blake3::Hasher::new();
        let read = file.sync_all().and_then(|()| {
            file.seek(SeekFrom::Start(0))?;
            hasher.update_reader(&mut file).map(|_| ())
        });
        read.map_err(|source| written.failed(source))?;
        written.digest = *hasher.finalize().as_bytes();
        Ok(written)
    }
}

/// A whole file beside its final name.
pub(crate) struct Written {
    path: PathBuf,
    partial: PathBuf,
    digest: Digest,
}

impl Written {
    pub(crate) fn create(path: &Path) -> Result<(Self, File), CheckpointError> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let written =
            Self { path: path.to_owned(), partial: PathBuf::from(partial), digest: Digest::default() };
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&written.partial);
        match file {
            Ok(file) => Ok((written, file)),
            Err(source) => Err(written.failed(source)),
        }
    }

    fn failed(&self, source: std::io::Error) -> CheckpointError {
        CheckpointError::Write { path: self.path.clone(), source }
    }

    /// Where it lies now.
    pub(crate) fn place(&self) -> &Path {
        &self.partial
    }

    /// Gives it its name, durably, so that a file under its final name is always whole.
    pub(crate) fn publish(self) -> Result<Digest, CheckpointError> {
        let renamed = fs::rename(&self.partial, &self.path).and_then(|()| sync_directory(&self.path));
        renamed.map_err(|source| self.failed(source))?;
        Ok(self.digest)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // After a rename there is nothing left; a left-over partial file is only untidy.
        let _ = fs::remove_file(&self.partial);
    }
}

/// Writes a small file as checkpoints are written.
pub(crate) fn write_note(path: &Path, bytes: &[u8]) -> Result<Digest, CheckpointError> {
    let (mut written, mut file) = Written::create(path)?;
    let done = file.write_all(bytes).and_then(|()| file.sync_all());
    done.map_err(|source| written.failed(source))?;
    drop(file);
    written.digest = *blake3::hash(bytes).as_bytes();
    written.publish()
}

/// A rename is durable once its directory is. Windows has no handle to sync and orders renames itself.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// As it stands in files: vectors have one dimension.
pub(crate) fn dimensions(spec: &TensorSpec) -> Vec<usize> {
    if spec.rows == 1 { vec![spec.columns] } else { vec![spec.rows, spec.columns] }
}

pub(crate) fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().map(|value| value.to_le_bytes()).collect::<Vec<_>>().into_flattened()
}
