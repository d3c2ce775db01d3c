//! Owns the outer step of DiLoCo: the mean of the shards' deltas, Nesterov momentum, the next checkpoint.
//! Must never use a device or more than one thread of arithmetic per element: the result is compared between
//! machines by digest, so every sum is f32, in the order in which the deltas were given.
//!
//! A delta comes from a stranger. What is wrong with its bytes is the same for everybody, so all leave the same ones out
//! and come to the same result.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, CheckpointError, Delta};
use crate::limits::{DELTA_MEDIAN_RATIO_MAX, DELTA_NORM_RATIO_MAX, DELTAS_MAX};
use crate::trainee::TensorSpec;

/// Why no next checkpoint was made. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OuterError {
    /// A file could not be read or written, or is not what it should be.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// No delta, or too many.
    #[error("{count} deltas to merge, allowed are 1 to {DELTAS_MAX}")]
    Count {
        /// Deltas given.
        count: usize,
    },
    /// A delta belongs to another model or round.
    #[error("{path}: {problem}")]
    Mismatch {
        /// The delta at fault.
        path: PathBuf,
        /// How it differs from the checkpoint.
        problem: String,
    },
    /// A delta is far larger than the weights.
    #[error(
        "{path}: norm {norm:.3e} is more than {DELTA_NORM_RATIO_MAX} times the weights' norm {weights:.3e}"
    )]
    Absurd {
        /// The delta at fault.
        path: PathBuf,
        /// L2 norm of the delta.
        norm: f64,
        /// L2 norm of the weights.
        weights: f64,
    },
    /// A delta is far larger than those beside it.
    #[error("{path}: norm {norm:.3e} is more than {DELTA_MEDIAN_RATIO_MAX} times the others' {median:.3e}")]
    Outlier {
        /// The delta at fault.
        path: PathBuf,
        /// Its L2 norm.
        norm: f64,
        /// Median of all deltas' norms.
        median: f64,
    },
    /// No delta is left.
    #[error("every delta is refused, the first because of {0}")]
    Nothing(String),
    /// The step left the range of f32.
    #[error("the outer step gives values that are not finite; lower the outer rate or momentum")]
    Overflow,
}

/// Settings of the outer optimiser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OuterRate {
    /// η: how far to go.
    pub rate: f32,
    /// μ: how much of the past steps to keep.
    pub momentum: f32,
}

/// An outer step.
#[derive(Debug)]
pub struct Merged {
    /// The next checkpoint.
    pub next: Checkpoint,
    /// The deltas that were left out, by their places among those given, and why.
    pub refused: Vec<(usize, String)>,
}

/// Merges the delta files into the checkpoint: `b ← μb + mean(Δ)`, `θ ← θ − η(mean(Δ) + μb)`, `round ← round + 1`.
/// A delta that is not what it should be is left out.
///
/// # Errors
/// [`OuterError`] when the checkpoint or a delta cannot be read from the disk, or no delta is left.
pub fn merge(
    specs: &[TensorSpec],
    checkpoint: &Path,
    deltas: &[PathBuf],
    rate: OuterRate,
) -> Result<Merged, OuterError> {
    if deltas.is_empty() || deltas.len() > DELTAS_MAX {
        return Err(OuterError::Count { count: deltas.len() });
    }
    let mut state = Checkpoint::read(checkpoint, specs)?;
    let (good, refused) = sift(specs, &state, deltas)?;
    if good.is_empty() {
        return Err(OuterError::Nothing(refused.into_iter().map(|(_, why)| why).next().unwrap_or_default()));
    }
    let mut sum: Vec<Vec<f32>> = state.weights.iter().map(|tensor| vec![0.0; tensor.len()]).collect();
    for path in &good {
        // One delta is in memory at a time, however many there are.
        let delta = Delta::read(path, specs)?;
        for (sum, values) in sum.iter_mut().flatten().zip(delta.values.iter().flatten()) {
            *sum += values;
        }
    }
    step(&mut state, &sum, good.len(), rate);
    let finite = state.weights.iter().chain(&state.momentum).flatten().all(|value| value.is_finite());
    if finite { Ok(Merged { next: state, refused }) } else { Err(OuterError::Overflow) }
}

type Sifted<'a> = (Vec<&'a PathBuf>, Vec<(usize, String)>);

/// The deltas that are what they should be, and why the others are not.
fn sift<'a>(
    specs: &[TensorSpec],
    state: &Checkpoint,
    deltas: &'a [PathBuf],
) -> Result<Sifted<'a>, OuterError> {
    let weights = norm(&state.weights);
    let mut norms = Vec::new();
    let mut refused = Vec::new();
    for (place, path) in deltas.iter().enumerate() {
        let found = Delta::read(path, specs).map_err(OuterError::from);
        match found.and_then(|delta| check(state, &delta, path, weights)) {
            Ok(norm) => norms.push((place, path, norm)),
            // That is this machine's trouble, not the delta's.
            Err(error @ OuterError::File(CheckpointError::Read { .. })) => return Err(error),
            Err(error) => refused.push((place, error.to_string())),
        }
    }
    let mut sorted: Vec<f64> = norms.iter().map(|(_, _, norm)| *norm).collect();
    sorted.sort_by(f64::total_cmp);
    // The lower of the two in the middle: of any two, nobody can tell which is wrong.
    let median = if sorted.len() < 3 { f64::INFINITY } else { sorted[(sorted.len() - 1) / 2] };
    let mut good = Vec::new();
    for (place, path, norm) in norms {
        if norm > DELTA_MEDIAN_RATIO_MAX * median {
            let error = OuterError::Outlier { path: path.clone(), norm, median };
            refused.push((place, error.to_string()));
        } else {
            good.push(path);
        }
    }
    refused.sort_by_key(|(place, _)| *place);
    Ok((good, refused))
}

/// The delta's norm.
fn check(state: &Checkpoint, delta: &Delta, path: &Path, weights: f64) -> Result<f64, OuterError> {
    let mismatch = |problem| OuterError::Mismatch { path: path.to_owned(), problem };
    if delta.round != state.round {
        return Err(mismatch(format!(
            "the delta is of round {}, the checkpoint of {}",
            delta.round, state.round
        )));
    }
    let norm = norm(&delta.values);
    if norm > DELTA_NORM_RATIO_MAX * weights {
        return Err(OuterError::Absurd { path: path.to_owned(), norm, weights });
    }
    Ok(norm)
}

/// The arithmetic alone, element by element. Multiplications and additions are written apart so that no compiler
/// may fuse them: a fused one rounds once instead of twice.
fn step(state: &mut Checkpoint, sum: &[Vec<f32>], deltas: usize, rate: OuterRate) {
    let count = deltas as f32;
    let weights = state.weights.iter_mut().flatten();
    let momentum = state.momentum.iter_mut().flatten();
    for ((weight, momentum), sum) in weights.zip(momentum).zip(sum.iter().flatten()) {
        let mean = sum / count;
        *momentum = rate.momentum * *momentum + mean;
        *weight -= rate.rate * (mean + rate.momentum * *momentum);
    }
    state.round = state.round.saturating_add(1);
}

/// Euclidean norm over all tensors, in f64.
fn norm(tensors: &[Vec<f32>]) -> f64 {
    tensors.iter().flatten().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packing::Bits;
    use crate::trainee::tests::config;
    use crate::trainee::{Method, Trainee};
    use skein_engine::config::ModelConfig;

    fn specs() -> Vec<TensorSpec> {
        Trainee::new(config(), false, Method::Full).unwrap().tensors().to_vec()
    }

    /// All weights one half.
    fn state(specs: &[TensorSpec]) -> Checkpoint {
        let filled = |value: f32| specs.iter().map(|spec| vec![value; spec.elements()]).collect();
        Checkpoint { round: 0, weights: filled(0.5), momentum: filled(0.0) }
    }

    fn written(directory: &Path, name: &str, state: &Checkpoint, values: impl Fn(usize) -> f32) -> PathBuf {
        let mut counter = 0;
        let fill = |tensor: &Vec<f32>| {
            let mut next = || {
                counter += 1;
                values(counter - 1)
            };
            tensor.iter().map(|_| next()).collect::<Vec<f32>>()
        };
        let values = state.weights.iter().map(fill).collect();
        let path = directory.join(name);
        Delta { round: state.round, bits: Bits::All, values }.write(&path, &specs()).unwrap();
        path
    }

    #[test]
    fn agrees_with_two_steps_by_hand() {
        let directory = tempfile::tempdir().unwrap();
        let start = directory.path().join("start");
        let specs = specs();
        let mut state = state(&specs);
        state.weights[0][0] = 1.0;
        state.write(&start, &specs).unwrap();
        let rate = OuterRate { rate: 0.5, momentum: 0.75 };
        // First element: deltas 0.5 and 0.25, mean 0.375; b = 0.375; θ = 1 − 0.5(0.375 + 0.28125) = 0.671875.
        let a = written(directory.path(), "a", &state, |i| if i == 0 { 0.5 } else { 0.0 });
        let b = written(directory.path(), "b", &state, |i| if i == 0 { 0.25 } else { 0.0 });
        let next = merge(&specs, &start, &[a, b], rate).unwrap().next;
        assert_eq!((next.weights[0][0], next.momentum[0][0], next.round), (0.671_875, 0.375, 1));
        assert_eq!(next.weights[0][1..], state.weights[0][1..], "what no delta touches stays");
        // One delta −0.125: b = 0.75·0.375 − 0.125 = 0.15625; θ −= 0.5(−0.125 + 0.1171875) → 0.67578125.
        next.write(&start, &specs).unwrap();
        let c = written(directory.path(), "c", &next, |i| if i == 0 { -0.125 } else { 0.0 });
        let last = merge(&specs, &start, &[c], rate).unwrap().next;
        assert_eq!((last.weights[0][0], last.momentum[0][0], last.round), (0.675_781_25, 0.156_25, 2));
    }

    #[test]
    fn what_is_not_what_it_should_be_is_left_out_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let start = directory.path().join("start");
        let specs = specs();
        let state = state(&specs);
        state.write(&start, &specs).unwrap();
        let rate = OuterRate { rate: 0.7, momentum: 0.9 };
        let file = |name: &str, value: f32| written(directory.path(), name, &state, |_| value);
        let good = [file("one", 1e-3), file("two", 2e-3)];
        let without = merge(&specs, &start, &good, rate).unwrap();
        assert!(without.refused.is_empty());

        let cut = directory.path().join("cut");
        std::fs::write(&cut, &std::fs::read(&good[0]).unwrap()[..300]).unwrap();
        let old = Checkpoint { round: 3, ..state.clone() };
        let wider = ModelConfig { feed_width: 16, ..config() };
        let wider = Trainee::new(wider, false, Method::Full).unwrap().tensors().to_vec();
        let foreign = directory.path().join("foreign");
        let values = wider.iter().map(|spec| vec![0.0; spec.elements()]).collect();
        Delta { round: 0, bits: Bits::All, values }.write(&foreign, &wider).unwrap();
        for (bad, why) in [
            (file("absurd", 1e6), "absurd: norm"),
            (file("loud", 5e-2), "more than 10 times the others"),
            (
                written(directory.path(), "poison", &state, |i| if i == 7 { f32::NAN } else { 0.0 }),
                "poison: tensor",
            ),
            (written(directory.path(), "stale", &old, |_| 0.0), "stale: the delta is of round 3"),
            (foreign, "foreign: tensor"),
            (cut, "cut is not a safetensors file"),
        ] {
            let all = [good[0].clone(), bad.clone(), good[1].clone()];
            let merged = merge(&specs, &start, &all, rate).unwrap();
            assert_eq!(merged.next, without.next, "{why}");
            let [(1, reason)] = merged.refused.as_slice() else { panic!("{why}: {:?}", merged.refused) };
            assert!(reason.contains(why), "{reason}");
            if why != "more than 10 times the others" {
                assert!(matches!(merge(&specs, &start, &[bad], rate), Err(OuterError::Nothing(_))), "{why}");
            }
        }
        let missing = [good[0].clone(), directory.path().join("missing")];
        assert!(
            matches!(merge(&specs, &start, &missing, rate), Err(OuterError::File(_))),
            "it may be there tomorrow"
        );
        assert!(matches!(merge(&specs, &start, &[], rate), Err(OuterError::Count { count: 0 })));
    }

    #[test]
    fn merging_twice_gives_the_same_file() {
        let directory = tempfile::tempdir().unwrap();
        let start = directory.path().join("start");
        let specs = specs();
        let state = state(&specs);
        state.write(&start, &specs).unwrap();
        let deltas: Vec<PathBuf> = (0..3)
            .map(|n| written(directory.path(), &format!("d{n}"), &state, |i| 1e-3 / (1 + i * (n + 1)) as f32))
            .collect();
        let rate = OuterRate { rate: 0.7, momentum: 0.9 };
        let one = merge(&specs, &start, &deltas, rate)
            .unwrap()
            .next
            .write(&directory.path().join("one"), &specs)
            .unwrap();
        let two = merge(&specs, &start, &deltas, rate)
            .unwrap()
            .next
            .write(&directory.path().join("two"), &specs)
            .unwrap();
        assert_eq!(one, two);
    }
}
