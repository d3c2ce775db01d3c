//! Owns the two files of training: the checkpoint (weights and outer momentum) and the delta (one shard's
//! pseudo-gradient), both in safetensors so that other tools read them.
//! Must never trust a file: it may come from a stranger, so size, names, dimensions and every value are checked.
//!
//! The same content always gives the same bytes, because machines compare the files' BLAKE3 digests.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensorError, View};
use safetensors::{SafeTensors, serialize};
use serde::{Deserialize, Serialize};

use skein_engine::dtype::dequantize;
use skein_engine::source::{SourceError, TensorSource};

use crate::limits::CHECKPOINT_BYTES_MAX;
use crate::packing::{BLOCK, Bits, Packed, pack, unpack};
use crate::random::{mix, mix_all, normal};
use crate::trainee::{LORA_A, LORA_B, Method, TensorSpec, Trainee};

/// BLAKE3 digest of a file.
pub type Digest = [u8; 32];

/// The only metadata key: safetensors keeps metadata in a hash map, and two keys would be written in any order.
const METADATA_KEY: &str = "skein";

/// Names of the outer momentum start with this.
const MOMENTUM_PREFIX: &str = "momentum.";

/// Names of a packed delta's scales start with this.
const SCALES_PREFIX: &str = "scales.";

/// Why a checkpoint or delta could not be read or written. Nothing was changed on disk under the final name.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file exceeds the bound.
    #[error("{path} is larger than {CHECKPOINT_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are not safetensors.
    #[error("{path} is not a safetensors file: {source}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: SafeTensorError,
    },
    /// The weights to start from could not be read.
    #[error("the model to train cannot be used: {0}")]
    Model(String),
    /// The file is safetensors, but not what was expected.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the name of the tensor at fault.
        problem: String,
    },
}

/// Weights and outer momentum between two rounds; both walk [`Trainee::tensors`].
#[derive(Clone, PartialEq)]
pub struct Checkpoint {
    /// Outer steps taken so far.
    pub round: u32,
    /// One row-major vector per tensor.
    pub weights: Vec<Vec<f32>>,
    /// The outer optimiser's momentum, likewise; zeros before the first outer step.
    pub momentum: Vec<Vec<f32>>,
}

/// The pseudo-gradient of one shard: weights before less weights after, per tensor.
#[derive(Clone, PartialEq)]
pub struct Delta {
    /// The round that the shard started from.
    pub round: u32,
    /// Of an element in the file, which holds no more than they tell.
    pub bits: Bits,
    /// One row-major vector per tensor of [`Trainee::tensors`].
    pub values: Vec<Vec<f32>>,
}

// Millions of numbers in a log or a failed assertion help nobody.
impl fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Checkpoint(round {})", self.round)
    }
}

impl fmt::Debug for Delta {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Delta(round {}, {:?})", self.round, self.bits)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Checkpoint,
    Delta,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kind: Kind,
    round: u32,
    /// Of a delta's elements; a checkpoint is always f32 and says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bits: Option<u8>,
}

impl Checkpoint {
    /// Round 0 of a job: the model's own weights, or an adapter that changes nothing yet, drawn from `seed` in exact
    /// integer arithmetic, so every machine draws the same.
    ///
    /// # Errors
    /// [`CheckpointError::Model`] when the model's weights cannot be read or are not finite.
    pub fn initial(trainee: &Trainee, source: &dyn TensorSource, seed: u64) -> Result<Self, CheckpointError> {
        let specs = trainee.tensors();
        let tensor = |(number, spec): (usize, &TensorSpec)| match trainee.method() {
            Method::Full => read_weights(source, &spec.name),
            Method::Lora { .. } if spec.name.ends_with(LORA_B) => Ok(vec![0.0; spec.elements()]),
            Method::Lora { .. } => {
                debug_assert!(spec.name.ends_with(LORA_A), "an adapter has two parts");
                let stream = mix_all(&[seed, number as u64]);
                // The deviation of PEFT's own initial values: uniform between -1/√inputs and 1/√inputs.
                let deviation = 1.0 / (3.0 * spec.columns as f32).sqrt();
                Ok((0..spec.elements() as u64).map(|i| deviation * normal(mix(stream ^ i))).collect())
            }
        };
        let weights = specs.iter().enumerate().map(tensor).collect::<Result<_, _>>()?;
        let momentum = specs.iter().map(|spec| vec![0.0; spec.elements()]).collect();
        Ok(Self { round: 0, weights, momentum })
    }

    /// Reads and checks a checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError`] names the file and, where one is at fault, the tensor.
    pub fn read(path: &Path, specs: &[TensorSpec]) -> Result<Self, CheckpointError> {
        let bytes = read_bounded(path)?;
        let (header, tensors) = open(path, &bytes, Kind::Checkpoint)?;
        let weights = take(path, &tensors, "", specs)?;
        let momentum = take(path, &tensors, MOMENTUM_PREFIX, specs)?;
        nothing_else(path, &tensors, 2 * specs.len())?;
        Ok(Self { round: header.round, weights, momentum })
    }

    /// Writes the checkpoint and returns the digest of the file, which is complete and on disk when it appears.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] or, for tensors that do not fit the shape, [`CheckpointError::Content`].
    pub fn write(&self, path: &Path, specs: &[TensorSpec]) -> Result<Digest, CheckpointError> {
        let mut views = views(path, "", specs, &self.weights)?;
        views.extend(self::views(path, MOMENTUM_PREFIX, specs, &self.momentum)?);
        let header = Header { kind: Kind::Checkpoint, round: self.round, bits: None };
        write(path, header, views)
    }
}

impl Delta {
    /// Reads and checks a delta.
    ///
    /// # Errors
    /// [`CheckpointError`] names the file and, where one is at fault, the tensor.
    pub fn read(path: &Path, specs: &[TensorSpec]) -> Result<Self, CheckpointError> {
        let bytes = read_bounded(path)?;
        let (header, tensors) = open(path, &bytes, Kind::Delta)?;
        let bits = header.bits.and_then(Bits::of).ok_or_else(|| CheckpointError::Content {
            path: path.to_owned(),
            problem: format!("elements of {:?} bits, known are 4, 8 and 32", header.bits),
        })?;
        let (values, expected) = match bits {
            Bits::All => (take(path, &tensors, "", specs)?, specs.len()),
            Bits::Four | Bits::Eight => (take_packed(path, &tensors, specs, bits)?, 2 * specs.len()),
        };
        nothing_else(path, &tensors, expected)?;
        Ok(Self { round: header.round, bits, values })
    }

    /// Writes the delta and returns the digest of the file, which is complete and on disk when it appears.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] or, for tensors that do not fit the shape, [`CheckpointError::Content`].
    pub fn write(&self, path: &Path, specs: &[TensorSpec]) -> Result<Digest, CheckpointError> {
        let whole = views(path, "", specs, &self.values)?;
        let bits = Some(self.bits.number());
        let header = Header { kind: Kind::Delta, round: self.round, bits };
        if self.bits == Bits::All {
            return write(path, header, whole);
        }
        let mut packed = Vec::with_capacity(2 * specs.len());
        for (spec, values) in specs.iter().zip(&self.values) {
            let Packed { codes, scales } = pack(values, self.bits);
            let (elements, blocks) = (codes.len(), scales.len() / 2);
            packed
                .push((spec.name.clone(), Bytes { dtype: Dtype::U8, dimensions: [elements], bytes: codes }));
            let scales = Bytes { dtype: Dtype::BF16, dimensions: [blocks], bytes: scales };
            packed.push((format!("{SCALES_PREFIX}{}", spec.name), scales));
        }
        write(path, header, packed)
    }
}

/// As it stands in files: vectors have one dimension.
fn dimensions(spec: &TensorSpec) -> Vec<usize> {
    if spec.rows == 1 { vec![spec.columns] } else { vec![spec.rows, spec.columns] }
}

/// A tensor of the model, as numbers.
pub(crate) fn read_weights(source: &dyn TensorSource, name: &str) -> Result<Vec<f32>, CheckpointError> {
    let unusable = |problem: String| CheckpointError::Model(problem);
    let info = source.tensors().get(name).ok_or_else(|| SourceError::Missing(name.to_owned()));
    let info = info.map_err(|error| unusable(error.to_string()))?;
    let bytes = source.read(name).map_err(|error| unusable(error.to_string()))?;
    let mut values = vec![0.0; (info.rows * info.columns) as usize];
    dequantize(info.dtype, &bytes, &mut values).map_err(|error| unusable(error.to_string()))?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(unusable(format!("tensor {name} holds {} at element {at}", values[at]))),
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let wrap = |source| CheckpointError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(wrap)?;
    let mut bytes = Vec::new();
    file.take(CHECKPOINT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(wrap)?;
    if bytes.len() as u64 > CHECKPOINT_BYTES_MAX {
        return Err(CheckpointError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

fn open<'a>(path: &Path, bytes: &'a [u8], kind: Kind) -> Result<(Header, SafeTensors<'a>), CheckpointError> {
    let format = |source| CheckpointError::Format { path: path.to_owned(), source };
    let content = |problem| CheckpointError::Content { path: path.to_owned(), problem };
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(format)?;
    let text = metadata.metadata().as_ref().and_then(|entries| entries.get(METADATA_KEY));
    let text = text.ok_or_else(|| content(format!("no `{METADATA_KEY}` entry in its metadata")))?;
    let header: Header = serde_json::from_str(text)
        .map_err(|error| content(format!("bad `{METADATA_KEY}` metadata: {error}")))?;
    if header.kind != kind {
        return Err(content(format!("this is a {:?}, wanted a {kind:?}", header.kind)));
    }
    Ok((header, SafeTensors::deserialize(bytes).map_err(format)?))
}

/// Copies the tensors of `specs` out of the file, checking type, dimensions and that every value is finite.
fn take(
    path: &Path,
    tensors: &SafeTensors<'_>,
    prefix: &str,
    specs: &[TensorSpec],
) -> Result<Vec<Vec<f32>>, CheckpointError> {
    let content = |problem| CheckpointError::Content { path: path.to_owned(), problem };
    let mut taken = Vec::with_capacity(specs.len());
    for spec in specs {
        let name = format!("{prefix}{}", spec.name);
        let view = tensors.tensor(&name).map_err(|_| content(format!("tensor {name} is missing")))?;
        if view.dtype() != Dtype::F32 || view.shape() != dimensions(spec) {
            return Err(content(format!(
                "tensor {name} is {:?} {:?}, wanted F32 {:?}",
                view.dtype(),
                view.shape(),
                dimensions(spec)
            )));
        }
        let (words, _) = view.data().as_chunks::<4>();
        let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(content(format!("tensor {name} holds {} at element {at}", values[at])));
        }
        taken.push(values);
    }
    Ok(taken)
}

/// Likewise for the tensors of a packed delta.
fn take_packed(
    path: &Path,
    tensors: &SafeTensors<'_>,
    specs: &[TensorSpec],
    bits: Bits,
) -> Result<Vec<Vec<f32>>, CheckpointError> {
    let content = |problem| CheckpointError::Content { path: path.to_owned(), problem };
    let part = |name: &str, dtype: Dtype, length: usize| {
        let view = tensors.tensor(name).map_err(|_| content(format!("tensor {name} is missing")))?;
        if view.dtype() == dtype && view.shape() == [length] {
            return Ok(view.data());
        }
        let (found, shape) = (view.dtype(), view.shape());
        Err(content(format!("tensor {name} is {found:?} {shape:?}, wanted {dtype:?} [{length}]")))
    };
    let taken = specs.iter().map(|spec| {
        let elements = spec.elements();
        let codes = part(&spec.name, Dtype::U8, bits.code_bytes(elements))?;
        let scales = part(&format!("{SCALES_PREFIX}{}", spec.name), Dtype::BF16, elements.div_ceil(BLOCK))?;
        unpack(codes, scales, bits, elements)
            .ok_or_else(|| content(format!("tensor {} holds what is not finite", spec.name)))
    });
    taken.collect()
}

fn nothing_else(path: &Path, tensors: &SafeTensors<'_>, expected: usize) -> Result<(), CheckpointError> {
    if tensors.len() == expected {
        return Ok(());
    }
    let problem = format!("{} tensors, wanted {expected}", tensors.len());
    Err(CheckpointError::Content { path: path.to_owned(), problem })
}

/// A tensor on its way to a file.
struct Source<'a> {
    dimensions: Vec<usize>,
    values: &'a [f32],
}

impl View for Source<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.dimensions
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

/// Packed bytes on their way to a file.
struct Bytes {
    dtype: Dtype,
    dimensions: [usize; 1],
    bytes: Vec<u8>,
}

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.dimensions
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn views<'a>(
    path: &Path,
    prefix: &str,
    specs: &'a [TensorSpec],
    values: &'a [Vec<f32>],
) -> Result<Vec<(String, Source<'a>)>, CheckpointError> {
    let fits = specs.len() == values.len()
        && specs.iter().zip(values).all(|(spec, values)| spec.elements() == values.len());
    if !fits {
        let problem = "the tensors in memory do not fit the shape".to_owned();
        return Err(CheckpointError::Content { path: path.to_owned(), problem });
    }
    let view = |(spec, values): (&'a TensorSpec, &'a Vec<f32>)| {
        (format!("{prefix}{}", spec.name), Source { dimensions: dimensions(spec), values })
    };
    Ok(specs.iter().zip(values).map(view).collect())
}

/// Writes beside the final name, syncs, then renames, so that a file under its final name is always whole.
fn write<V: View>(path: &Path, header: Header, views: Vec<(String, V)>) -> Result<Digest, CheckpointError> {
    let text = serde_json::to_string(&header)
        .map_err(|error| CheckpointError::Content { path: path.to_owned(), problem: error.to_string() })?;
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), text)]);
    let bytes = serialize(views, Some(metadata))
        .map_err(|source| CheckpointError::Format { path: path.to_owned(), source })?;
    let digest = *blake3::hash(&bytes).as_bytes();
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_directory(path)
    });
    written.map_err(|source| {
        // The error that matters is the first one; a left-over partial file is only untidy.
        let _ = fs::remove_file(&partial);
        CheckpointError::Write { path: path.to_owned(), source }
    })?;
    Ok(digest)
}

/// A rename is durable once its directory is. Windows has no handle to sync and orders renames itself.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drawn::Drawn;
    use crate::trainee::tests::config;

    fn begun() -> (Vec<TensorSpec>, Checkpoint) {
        let trainee = Trainee::new(config(), false, Method::Full).unwrap();
        let checkpoint = Checkpoint::initial(&trainee, &Drawn::new(config(), false, 3), 3).unwrap();
        (trainee.tensors().to_vec(), checkpoint)
    }

    #[test]
    fn round_trips_and_repeats_its_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("a"), directory.path().join("b"));
        let (specs, mut checkpoint) = begun();
        checkpoint.round = 9;
        checkpoint.momentum[1][0] = -0.5;
        let digest = checkpoint.write(&first, &specs).unwrap();
        assert_eq!(Checkpoint::read(&first, &specs).unwrap(), checkpoint);
        assert_eq!(checkpoint.write(&second, &specs).unwrap(), digest);
        let bytes = fs::read(&first).unwrap();
        assert_eq!(bytes, fs::read(&second).unwrap());
        assert_eq!(*blake3::hash(&bytes).as_bytes(), digest);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "no partial file is left");

        for bits in [Bits::All, Bits::Eight, Bits::Four] {
            let delta = Delta { round: 9, bits, values: checkpoint.weights.clone() };
            delta.write(&first, &specs).unwrap();
            let read = Delta::read(&first, &specs).unwrap();
            assert_eq!(read == delta, bits == Bits::All);
            read.write(&second, &specs).unwrap();
            assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap(), "what was rounded stays");
            assert_eq!(Delta::read(&second, &specs).unwrap(), read);
        }
        let refused = Checkpoint::read(&first, &specs).unwrap_err().to_string();
        assert!(refused.contains("this is a Delta"), "{refused}");
    }

    #[test]
    fn an_adapter_begins_as_nothing_and_is_the_same_for_a_seed() {
        let trainee = Trainee::new(config(), false, Method::Lora { rank: 2, alpha: 4.0 }).unwrap();
        let begin = |seed| Checkpoint::initial(&trainee, &Drawn::new(config(), false, 1), seed).unwrap();
        assert!(begin(1) == begin(1) && begin(1) != begin(2));
        for (spec, values) in trainee.tensors().iter().zip(begin(1).weights) {
            assert_eq!(
                values.iter().all(|value| *value == 0.0),
                spec.name.ends_with(LORA_B),
                "{}",
                spec.name
            );
        }
    }

    #[test]
    fn every_truncation_and_foreign_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c");
        let (specs, checkpoint) = begun();
        checkpoint.write(&path, &specs).unwrap();
        let bytes = fs::read(&path).unwrap();
        for length in (0..bytes.len()).step_by(97) {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(Checkpoint::read(&path, &specs).is_err(), "{length} bytes");
        }
        fs::write(&path, [0xff; 64]).unwrap();
        assert!(Checkpoint::read(&path, &specs).is_err());
        assert!(matches!(
            Checkpoint::read(directory.path().join("none").as_path(), &specs),
            Err(CheckpointError::Read { .. })
        ));
    }

    #[test]
    fn values_shapes_and_names_are_checked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c");
        let (specs, mut checkpoint) = begun();
        checkpoint.weights[3][1] = f32::NAN;
        checkpoint.write(&path, &specs).unwrap();
        let refused = Checkpoint::read(&path, &specs).unwrap_err().to_string();
        assert!(refused.contains("holds NaN at element 1"), "{refused}");

        checkpoint.weights[3][1] = 0.0;
        checkpoint.write(&path, &specs).unwrap();
        let bytes = fs::read(&path).unwrap();
        for (from, to) in [("blk.0.ffn_up", "blk.0.ffn_op"), ("[12,8]", "[8,12]"), ("\"F32\"", "\"I32\"")] {
            let text = bytes.windows(from.len()).position(|window| window == from.as_bytes());
            let at = text.unwrap_or_else(|| panic!("{from} is in the file"));
            let mut changed = bytes.clone();
            changed[at..at + to.len()].copy_from_slice(to.as_bytes());
            fs::write(&path, changed).unwrap();
            assert!(Checkpoint::read(&path, &specs).is_err(), "{from} -> {to}");
        }
    }

    #[test]
    fn an_unwritable_place_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (specs, checkpoint) = begun();
        let refused = checkpoint.write(&directory.path().join("missing").join("c"), &specs);
        assert!(matches!(refused, Err(CheckpointError::Write { .. })));
    }
}
