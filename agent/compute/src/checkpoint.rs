//! Owns the two files of training: the checkpoint (weights and outer momentum) and the delta (one shard's
//! pseudo-gradient), both in safetensors so that other tools read them.
//! Must never trust a file: it may come from a stranger, so size, names, dimensions and every value are checked.
//!
//! The same content always gives the same bytes, because machines compare the files' BLAKE3 digests.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensorError};

use skein_engine::dtype::dequantize;
use skein_engine::source::{SourceError, TensorSource};

use crate::packing::{Bits, NotFinite, Packed, pack, unpack};
use crate::random::{mix, mix_all, normal};
use crate::tensor_file::{Header, Kind, TensorFile, Writer, Written, dimensions, little_endian};
use crate::trainee::{LORA_A, LORA_B, Method, TensorSpec, Trainee};

/// BLAKE3 digest of a file.
pub type Digest = [u8; 32];

/// Names of the outer momentum start with this.
pub(crate) const MOMENTUM_PREFIX: &str = "momentum.";

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
    #[error("cannot write {path}: {source}{}", hint(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file exceeds the bound.
    #[error("{path} is larger than {most} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Most bytes that such a file may have.
        most: u64,
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

fn hint(error: &std::io::Error) -> &'static str {
    let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
    if full.contains(&error.kind()) {
        "\nhint: the disk is full; free some space, or give the agent another --data-dir"
    } else {
        ""
    }
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
        let file = TensorFile::open_checkpoint(path, specs)?;
        let all = |prefix: &str| specs.iter().map(|spec| file.values(prefix, spec)).collect::<Result<_, _>>();
        Ok(Self { round: file.header.round, weights: all("")?, momentum: all(MOMENTUM_PREFIX)? })
    }

    /// The round of a whole model's checkpoint, and the weights that `trainee` has of it; nothing else is read.
    ///
    /// # Errors
    /// As [`Self::read`], where a stage does not notice what the others lack.
    pub(crate) fn read_weights(
        path: &Path,
        trainee: &Trainee,
    ) -> Result<(u32, Vec<Vec<f32>>), CheckpointError> {
        let specs = trainee.tensors();
        let whole = trainee.is_first() && trainee.is_last();
        let file = if whole {
            TensorFile::open_checkpoint(path, specs)?
        } else {
            TensorFile::open(path, Kind::Checkpoint)?
        };
        let weights = specs.iter().map(|spec| file.values("", spec)).collect::<Result<_, _>>()?;
        Ok((file.header.round, weights))
    }

    /// Writes the checkpoint and returns the digest of the file, which is complete and on disk when it appears.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] or, for tensors that do not fit the shape, [`CheckpointError::Content`].
    pub fn write(&self, path: &Path, specs: &[TensorSpec]) -> Result<Digest, CheckpointError> {
        self.prepare(path, specs)?.publish()
    }

    /// Writes all of it, yet not under its name.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(crate) fn prepare(&self, path: &Path, specs: &[TensorSpec]) -> Result<Written, CheckpointError> {
        fits(path, specs, &self.weights)?;
        fits(path, specs, &self.momentum)?;
        let mut writer = Writer::checkpoint(path, self.round, specs)?;
        for (prefix, tensors) in [("", &self.weights), (MOMENTUM_PREFIX, &self.momentum)] {
            for (spec, values) in specs.iter().zip(tensors) {
                writer.put(&format!("{prefix}{}", spec.name), &little_endian(values))?;
            }
        }
        writer.finish()
    }
}

impl Delta {
    /// Reads and checks a delta.
    ///
    /// # Errors
    /// [`CheckpointError`] names the file and, where one is at fault, the tensor.
    pub fn read(path: &Path, specs: &[TensorSpec]) -> Result<Self, CheckpointError> {
        let file = DeltaFile::open(path)?;
        file.holds_only(specs)?;
        let values = specs.iter().map(|spec| file.values(spec)).collect::<Result<_, _>>()?;
        Ok(Self { round: file.round(), bits: file.bits, values })
    }

    /// Writes the delta and returns the digest of the file, which is complete and on disk when it appears.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] or, for tensors that do not fit the shape, [`CheckpointError::Content`].
    pub fn write(&self, path: &Path, specs: &[TensorSpec]) -> Result<Digest, CheckpointError> {
        fits(path, specs, &self.values)?;
        let header =
            Header { kind: Kind::Delta, round: self.round, bits: Some(self.bits.number()), steps: None };
        // How long sparse codes are is known once they are packed. All of them take a hundredth of the values' memory.
        let sparse = if self.bits == Bits::Sparse { self.values.as_slice() } else { &[] };
        let pack = |(spec, values): (&TensorSpec, &Vec<f32>)| {
            let problem = |error: NotFinite| format!("tensor {} {error}", spec.name);
            let content = |problem| CheckpointError::Content { path: path.to_owned(), problem };
            pack(values, self.bits).map_err(|error| content(problem(error)))
        };
        let sparse = specs.iter().zip(sparse).map(pack).collect::<Result<Vec<Packed>, _>>()?;
        let mut tensors = Vec::with_capacity(2 * specs.len());
        for (number, spec) in specs.iter().enumerate() {
            if self.bits == Bits::All {
                tensors.push((spec.name.clone(), Dtype::F32, dimensions(spec)));
            } else {
                let elements = spec.elements();
                let known = || *self.bits.code_bytes(elements).end();
                let codes = sparse.get(number).map_or_else(known, |packed| packed.codes.len());
                tensors.push((spec.name.clone(), Dtype::U8, vec![codes]));
                tensors.push((scales_of(spec), Dtype::BF16, vec![self.bits.scales(elements)]));
            }
        }
        let mut writer = Writer::create(path, &header, tensors)?;
        let mut sparse = sparse.into_iter();
        for (spec, values) in specs.iter().zip(&self.values) {
            let Packed { codes, scales } = match sparse.next() {
                Some(packed) => packed,
                None => pack((spec, values))?,
            };
            writer.put(&spec.name, &codes)?;
            if self.bits != Bits::All {
                writer.put(&scales_of(spec), &scales)?;
            }
        }
        writer.finish()?.publish()
    }
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

impl TensorFile {
    /// A checkpoint with weights and momentum for every one of `specs` and nothing else.
    pub(crate) fn open_checkpoint(path: &Path, specs: &[TensorSpec]) -> Result<Self, CheckpointError> {
        let file = Self::open(path, Kind::Checkpoint)?;
        for (prefix, spec) in
            ["", MOMENTUM_PREFIX].into_iter().flat_map(|p| specs.iter().map(move |s| (p, s)))
        {
            file.find(&format!("{prefix}{}", spec.name), Dtype::F32, &dimensions(spec))?;
        }
        file.holds(2 * specs.len())?;
        Ok(file)
    }
}

impl Writer {
    /// A checkpoint that is to hold weights and momentum for every one of `specs`.
    pub(crate) fn checkpoint(path: &Path, round: u32, specs: &[TensorSpec]) -> Result<Self, CheckpointError> {
        let header = Header { kind: Kind::Checkpoint, round, bits: None, steps: None };
        let tensors = ["", MOMENTUM_PREFIX].into_iter().flat_map(|prefix| {
            specs.iter().map(move |spec| (format!("{prefix}{}", spec.name), Dtype::F32, dimensions(spec)))
        });
        Self::create(path, &header, tensors.collect())
    }
}

/// A delta, or a part of one, of which the header alone was read.
pub(crate) struct DeltaFile {
    file: TensorFile,
    pub(crate) bits: Bits,
}

impl DeltaFile {
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = TensorFile::open(path, Kind::Delta)?;
        let known = file.header.bits.and_then(Bits::of);
        let unknown =
            || file.content(format!("elements of {:?} bits, known are 2, 4, 8 and 32", file.header.bits));
        let bits = known.ok_or_else(unknown)?;
        Ok(Self { file, bits })
    }

    pub(crate) fn round(&self) -> u32 {
        self.file.round()
    }

    /// Whether it holds a tensor, be it as it should be or not.
    pub(crate) fn has(&self, spec: &TensorSpec) -> bool {
        self.file.has(&spec.name)
    }

    /// Checks that these tensors are there and no others.
    pub(crate) fn holds_only(&self, specs: &[TensorSpec]) -> Result<(), CheckpointError> {
        for spec in specs {
            self.check(spec)?;
        }
        self.file.holds(if self.bits == Bits::All { specs.len() } else { 2 * specs.len() })
    }

    fn check(&self, spec: &TensorSpec) -> Result<(), CheckpointError> {
        if self.bits == Bits::All {
            return self.file.find(&spec.name, Dtype::F32, &dimensions(spec)).map(|_| ());
        }
        self.file.find(&spec.name, Dtype::U8, &[self.code_bytes(spec)?])?;
        self.file.find(&scales_of(spec), Dtype::BF16, &[self.bits.scales(spec.elements())]).map(|_| ())
    }

    /// Bytes of a tensor's codes, as many as there may be.
    fn code_bytes(&self, spec: &TensorSpec) -> Result<usize, CheckpointError> {
        let allowed = self.bits.code_bytes(spec.elements());
        let (least, most) = (*allowed.start(), *allowed.end());
        // Only of a sparse delta is there anything to find out.
        match self.file.length(&spec.name).filter(|_| self.bits == Bits::Sparse) {
            Some(found) if !allowed.contains(&found) => {
                let problem =
                    format!("tensor {} has {found} bytes of codes, allowed are {least} to {most}", spec.name);
                Err(self.file.content(problem))
            }
            found => Ok(found.unwrap_or(most)),
        }
    }

    /// A tensor's values, all finite.
    pub(crate) fn values(&self, spec: &TensorSpec) -> Result<Vec<f32>, CheckpointError> {
        if self.bits == Bits::All {
            return self.file.values("", spec);
        }
        let elements = spec.elements();
        let codes = self.file.bytes(&spec.name, Dtype::U8, &[self.code_bytes(spec)?])?;
        let scales = self.file.bytes(&scales_of(spec), Dtype::BF16, &[self.bits.scales(elements)])?;
        unpack(&codes, &scales, self.bits, elements)
            .map_err(|error| self.file.content(format!("tensor {} {error}", spec.name)))
    }
}

fn scales_of(spec: &TensorSpec) -> String {
    format!("{SCALES_PREFIX}{}", spec.name)
}

fn fits(path: &Path, specs: &[TensorSpec], values: &[Vec<f32>]) -> Result<(), CheckpointError> {
    let fits = specs.len() == values.len()
        && specs.iter().zip(values).all(|(spec, values)| spec.elements() == values.len());
    if fits {
        return Ok(());
    }
    let problem = "the tensors in memory do not fit the shape".to_owned();
    Err(CheckpointError::Content { path: path.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::drawn::Drawn;
    use crate::trainee::tests::config;
    use safetensors::SafeTensors;

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

        for bits in [Bits::All, Bits::Eight, Bits::Four, Bits::Sparse] {
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
    fn files_are_written_as_safetensors_writes_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d");
        let (specs, checkpoint) = begun();
        for bits in [Bits::All, Bits::Eight, Bits::Four, Bits::Sparse] {
            let delta = Delta { round: 4, bits, values: checkpoint.weights.clone() };
            delta.write(&path, &specs).unwrap();
            let bytes = fs::read(&path).unwrap();
            let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let again = safetensors::serialize(tensors.tensors(), metadata.metadata().clone()).unwrap();
            assert!(again == bytes, "{bits:?}");
        }
    }

    #[test]
    fn sparse_codes_that_are_too_long_or_wrong_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d");
        let (specs, checkpoint) = begun();
        let delta = Delta { round: 4, bits: Bits::Sparse, values: checkpoint.weights };
        delta.write(&path, &specs).unwrap();
        let whole = fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&whole).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&whole).unwrap();
        let name = &specs[0].name;
        let codes = tensors.tensor(name).unwrap().data().to_vec();
        let refused = |codes: Vec<u8>| {
            let mut changed = tensors.tensors();
            let place = changed.iter_mut().find(|(found, _)| found == name).unwrap();
            place.1 = safetensors::tensor::TensorView::new(Dtype::U8, vec![codes.len()], &codes).unwrap();
            let bytes = safetensors::serialize(changed, metadata.metadata().clone()).unwrap();
            fs::write(&path, &bytes).unwrap();
            let file = DeltaFile::open(&path).unwrap();
            let by_header = file.holds_only(&specs).err().map(|error| error.to_string());
            (by_header, Delta::read(&path, &specs).err().map(|error| error.to_string()))
        };
        assert_eq!(refused(codes.clone()), (None, None), "before anything is changed");
        for length in [0, Bits::Sparse.code_bytes(specs[0].elements()).start() - 1, 1 << 20] {
            let (by_header, why) = refused(vec![0; length]);
            let why = why.unwrap();
            assert_eq!(by_header.as_ref(), Some(&why), "without a look at the codes");
            assert!(why.contains(&format!("{length} bytes of codes, allowed are")), "{why}");
        }
        let (by_header, why) = refused(vec![0xff; codes.len()]);
        let why = why.unwrap();
        assert_eq!(by_header, None);
        assert!(why.contains(&format!("tensor {name} is refused: chunk 0 names an element")), "{why}");
        for length in (0..whole.len()).step_by(31) {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Delta::read(&path, &specs).is_err(), "{length} bytes");
        }
    }

    /// A ring all-reduce of f32 among three agents moves 2 · 2/3 · 4 bytes for every weight, and each of them, in every step.
    /// Of a sparse delta each agent gets two, after five steps.
    #[test]
    fn a_sparse_delta_is_less_than_a_four_hundredth_of_all_reducing() {
        let mut shape = config();
        (shape.layers, shape.width, shape.feed_width, shape.heads, shape.kv_heads) = (6, 128, 344, 4, 4);
        (shape.head_width, shape.rope.dims, shape.vocabulary, shape.context) = (32, 32, 256, 128);
        let trainee = Trainee::new(shape.clone(), false, Method::Full).unwrap();
        let specs = trainee.tensors();
        let checkpoint = Checkpoint::initial(&trainee, &Drawn::new(shape, false, 3), 3).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d");
        let delta = Delta { round: 1_000, bits: Bits::Sparse, values: checkpoint.weights };
        delta.write(&path, specs).unwrap();
        let bytes = fs::metadata(&path).unwrap().len() as f64;
        let weights = trainee.parameters() as f64;
        let less = 5.0 * (16.0 / 3.0) * weights / (2.0 * bytes);
        assert!(less > 410.0, "{bytes} bytes for {weights} weights, {less} times less");
    }

    #[test]
    fn a_stage_reads_its_own_of_the_whole_model() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c");
        let (specs, checkpoint) = begun();
        checkpoint.write(&path, &specs).unwrap();
        let whole = Trainee::new(config(), false, Method::Full).unwrap();
        let stages = [whole.stage(0..1).unwrap(), whole.stage(1..2).unwrap()];
        let read = |trainee: &Trainee| Checkpoint::read_weights(&path, trainee);
        let parts = stages.iter().flat_map(|stage| read(stage).unwrap().1).collect::<Vec<_>>();
        assert_eq!(parts, checkpoint.weights);
        assert_eq!(read(&whole).unwrap().1, checkpoint.weights);
        // A file of one stage is no whole model's, and the other's tensors are not in it.
        let own = Checkpoint { round: 0, weights: parts[..10].to_vec(), momentum: parts[..10].to_vec() };
        own.write(&path, stages[0].tensors()).unwrap();
        assert!(read(&stages[0]).is_ok());
        assert!(read(&whole).is_err() && read(&stages[1]).is_err());
    }

    #[test]
    fn an_unwritable_place_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (specs, checkpoint) = begun();
        let refused = checkpoint.write(&directory.path().join("missing").join("c"), &specs);
        assert!(matches!(refused, Err(CheckpointError::Write { .. })));
    }
}
