//! Owns the file of an optimiser's moments, by which an agent commits to what its inner phase began with and another one
//! begins the same phase again.
//! Must never trust a file: sizes, names and every value are checked. The same moments always give the same bytes.

use std::collections::BTreeMap;
use std::path::Path;

use burn::optim::{AdamWState, AdaptiveMomentumState};
use safetensors::tensor::Dtype;

use crate::checkpoint::Digest;
use crate::limits::MOMENTS_STEPS_MAX;
use crate::optimiser::Moments;
use crate::passes::{Model, download};
use crate::tensor_file::{Header, Kind, TensorFile, Tensors, Writer, digest, dimensions, little_endian};
use crate::train::TrainError;
use crate::trainee::TensorSpec;

/// What there is of every tensor that learns.
#[derive(Clone, Copy)]
enum Part {
    /// AdamW's mean of the gradients.
    First,
    /// AdamW's mean of their squares.
    Second,
    /// What rounding kept back.
    Kept,
}

impl Part {
    const ALL: [Self; 3] = [Self::First, Self::Second, Self::Kept];

    /// Names of its tensors start with this.
    fn prefix(self) -> &'static str {
        match self {
            Self::First => "first.",
            Self::Second => "second.",
            Self::Kept => "kept.",
        }
    }
}

impl Moments {
    /// BLAKE3 of the file that [`Self::write`] would write. Moments that saw no step are as good as a file of zeros.
    ///
    /// # Errors
    /// [`TrainError::Device`] where they cannot be read back.
    pub fn digest(&self) -> Result<Digest, TrainError> {
        let places = places(&self.specs);
        let give = |name: &str| match places.get(name) {
            Some((part, place)) => self.bytes(*part, *place),
            None => Err(TrainError::Device(format!("there is no tensor {name}"))),
        };
        digest("moments", &self.header(), tensors(&self.specs, &places), give)
    }

    /// Writes them as they are, and returns the file's digest.
    ///
    /// # Errors
    /// [`TrainError::File`], or [`TrainError::Device`] where they cannot be read back.
    pub fn write(&self, path: &Path) -> Result<Digest, TrainError> {
        let places = places(&self.specs);
        let mut writer = Writer::create(path, &self.header(), tensors(&self.specs, &places))?;
        for (name, (part, place)) in &places {
            writer.put(name, &self.bytes(*part, *place)?)?;
        }
        Ok(writer.finish()?.publish()?)
    }

    /// Reads and checks moments for a model, onto its device.
    ///
    /// # Errors
    /// [`TrainError::File`] names the file and, where one is at fault, the tensor.
    pub fn read(path: &Path, model: &Model) -> Result<Self, TrainError> {
        let specs = model.trainee.tensors();
        let file = TensorFile::open(path, Kind::Moments)?;
        file.holds(Part::ALL.len() * specs.len())?;
        let steps = file.header.steps.filter(|steps| *steps <= MOMENTS_STEPS_MAX);
        let unknown = || file.content(format!("moments of {:?} steps", file.header.steps));
        let steps = steps.ok_or_else(unknown)?;
        let mut moments = Self { specs: specs.to_vec(), states: Vec::new(), kept_back: Vec::new() };
        for spec in specs {
            let values = |part: Part| file.values(part.prefix(), spec);
            let (first, second) = (values(Part::First)?, values(Part::Second)?);
            let wrong = |what| Err(file.content(format!("tensor {} has {what}", spec.name)).into());
            if second.iter().any(|value| *value < 0.0) {
                return wrong("a mean of squares that is negative");
            }
            if steps == 0 && first.iter().chain(&second).any(|value| value.to_bits() != 0) {
                return wrong("moments that are not zero before the first step");
            }
            let state = || {
                let (first, second) = (model.put(spec, first), model.put(spec, second));
                AdamWState::new(AdaptiveMomentumState::new(steps as usize, first, second))
            };
            moments.states.push((steps > 0).then(state));
            moments.kept_back.push(values(Part::Kept)?);
        }
        Ok(moments)
    }

    fn header(&self) -> Header {
        Header { kind: Kind::Moments, round: 0, bits: None, steps: Some(self.steps()) }
    }

    /// Optimiser steps, which all tensors take together.
    fn steps(&self) -> u32 {
        let steps = self.states.iter().flatten().map(|state| state.momentum.time).max().unwrap_or(0);
        u32::try_from(steps).unwrap_or(u32::MAX)
    }

    /// As the file has it.
    fn bytes(&self, part: Part, place: usize) -> Result<Vec<u8>, TrainError> {
        let spec = &self.specs[place];
        let momentum = self.states[place].as_ref().map(|state| &state.momentum);
        let tensor = match (part, momentum) {
            (Part::First, Some(momentum)) => &momentum.moment_1,
            (Part::Second, Some(momentum)) => &momentum.moment_2,
            (Part::First | Part::Second, None) => return Ok(vec![0; 4 * spec.elements()]),
            (Part::Kept, _) => return Ok(little_endian(&self.kept_back[place])),
        };
        Ok(little_endian(&download(tensor.clone(), spec)?))
    }
}

/// What the file's tensors are, by their names.
fn places(specs: &[TensorSpec]) -> BTreeMap<String, (Part, usize)> {
    let numbered = specs.iter().enumerate();
    let all = numbered.flat_map(|(place, spec)| {
        Part::ALL.map(|part| (format!("{}{}", part.prefix(), spec.name), (part, place)))
    });
    all.collect()
}

fn tensors(specs: &[TensorSpec], places: &BTreeMap<String, (Part, usize)>) -> Tensors {
    let tensor = |(name, (_, place)): (&String, &(Part, usize))| {
        (name.clone(), Dtype::F32, dimensions(&specs[*place]))
    };
    places.iter().map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::drawn::Drawn;
    use crate::optimiser::Optimiser;
    use crate::trainee::tests::config;
    use crate::trainee::{Method, Trainee};

    fn model() -> Model {
        let trainee = Trainee::new(config(), false, Method::Full).unwrap();
        Model::load(trainee, &Drawn::new(config(), false, 3), &Device::flex()).unwrap()
    }

    fn step(model: &Model, moments: &mut Moments) {
        let specs = model.trainee.tensors();
        let values = |by: f32| -> Vec<Vec<f32>> {
            let value = |at: usize| (at as f32 * by).sin();
            specs.iter().map(|spec| (0..spec.elements()).map(value).collect()).collect()
        };
        let mut weights = model.upload(&values(0.3));
        let gradients: Vec<Tensor<2>> = model.upload(&values(0.7));
        Optimiser::new(specs).step(&mut weights, moments, gradients, 0.5, 0.01);
        moments.kept_back = values(0.9);
    }

    #[test]
    fn the_digest_is_that_of_the_file_and_the_file_gives_the_same_moments() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m");
        let model = model();
        let mut moments = Moments::fresh(model.trainee.tensors());
        let mut digests = Vec::new();
        for steps in 0..3 {
            assert_eq!(moments.steps(), steps);
            let digest = moments.digest().unwrap();
            assert_eq!(moments.write(&path).unwrap(), digest);
            assert_eq!(*blake3::hash(&fs::read(&path).unwrap()).as_bytes(), digest);
            assert!(!digests.contains(&digest));
            digests.push(digest);
            let mut read = Moments::read(&path, &model).unwrap();
            assert_eq!(read.digest().unwrap(), digest);
            assert_eq!(read.states[0].is_some(), steps > 0);
            step(&model, &mut read);
            step(&model, &mut moments);
            assert_eq!(read.digest().unwrap(), moments.digest().unwrap(), "both go on alike");
        }
    }

    #[test]
    fn a_clone_stays_what_it_was_when_the_other_takes_a_step() {
        let model = model();
        let mut moments = Moments::fresh(model.trainee.tensors());
        step(&model, &mut moments);
        let (kept, digest) = (moments.clone(), moments.digest().unwrap());
        step(&model, &mut moments);
        assert_eq!(kept.digest().unwrap(), digest);
        assert_ne!(moments.digest().unwrap(), digest);
    }

    #[test]
    fn moments_that_cannot_be_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m");
        let model = model();
        let mut moments = Moments::fresh(model.trainee.tensors());
        step(&model, &mut moments);
        moments.write(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            Moments::read(&path, &model).err().map(|error| error.to_string())
        };
        assert_eq!(refused(&whole), None);
        for length in (0..whole.len()).step_by(61) {
            assert!(refused(&whole[..length]).is_some(), "{length} bytes");
        }
        // The last of the file is a mean of squares.
        let changed = |value: f32| {
            let mut bytes = whole.clone();
            let at = bytes.len() - 4;
            bytes[at..].copy_from_slice(&value.to_le_bytes());
            refused(&bytes).unwrap()
        };
        assert!(changed(f32::NAN).contains("holds NaN"));
        assert!(changed(-1.0).contains("negative"));
        let replaced = |from: &str, to: &str| {
            let at = whole.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            let mut bytes = whole.clone();
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            refused(&bytes).unwrap()
        };
        assert!(replaced("steps\\\":1", "steps\\\":0").contains("before the first step"));
        assert!(
            replaced("kept.output_norm", "kepT.output_norm").contains("kept.output_norm.weight is missing")
        );
        assert!(replaced("\\\"moments", "\\\"Moments").contains("metadata"));
        let checkpoint = directory.path().join("c");
        let zeros: Vec<Vec<f32>> = moments.specs.iter().map(|spec| vec![0.0; spec.elements()]).collect();
        let other = crate::checkpoint::Checkpoint { round: 0, weights: zeros.clone(), momentum: zeros };
        other.write(&checkpoint, &moments.specs).unwrap();
        let error = Moments::read(&checkpoint, &model).err().unwrap().to_string();
        assert!(error.contains("this is a Checkpoint, wanted a Moments"), "{error}");
    }
}
