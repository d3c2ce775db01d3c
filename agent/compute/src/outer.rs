//! Owns the outer step of DiLoCo: the mean of the shards' deltas, Nesterov momentum, the next checkpoint.
//! Must never use a device or more than one thread of arithmetic per element: the result is compared between
//! machines by digest, so every sum is f32, in the order in which the deltas were given.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, CheckpointError, Delta};
use crate::limits::{DELTA_NORM_RATIO_MAX, DELTAS_MAX};

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

/// Merges the delta files into the checkpoint: `b ← μb + mean(Δ)`, `θ ← θ − η(mean(Δ) + μb)`, `round ← round + 1`.
///
/// # Errors
/// [`OuterError`] names the file at fault.
pub fn merge(checkpoint: &Path, deltas: &[PathBuf], rate: OuterRate) -> Result<Checkpoint, OuterError> {
    if deltas.is_empty() || deltas.len() > DELTAS_MAX {
        return Err(OuterError::Count { count: deltas.len() });
    }
    let mut state = Checkpoint::read(checkpoint)?;
    let weights = norm(&state.weights);
    let mut sum: Vec<Vec<f32>> = state.weights.iter().map(|tensor| vec![0.0; tensor.len()]).collect();
    for path in deltas {
        // One delta is in memory at a time, however many there are.
        let delta = Delta::read(path)?;
        check(&state, &delta, path, weights)?;
        for (sum, values) in sum.iter_mut().flatten().zip(delta.values.iter().flatten()) {
            *sum += values;
        }
    }
    step(&mut state, &sum, deltas.len(), rate);
    let finite = state.weights.iter().chain(&state.momentum).flatten().all(|value| value.is_finite());
    if finite { Ok(state) } else { Err(OuterError::Overflow) }
}

fn check(state: &Checkpoint, delta: &Delta, path: &Path, weights: f64) -> Result<(), OuterError> {
    let mismatch = |problem| OuterError::Mismatch { path: path.to_owned(), problem };
    if delta.shape != state.shape {
        return Err(mismatch(format!(
            "the delta is for {:?}, the checkpoint is {:?}",
            delta.shape, state.shape
        )));
    }
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
    Ok(())
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
    use crate::shape::ModelShape;

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
        Delta { shape: state.shape, round: state.round, bits: Bits::All, values }.write(&path).unwrap();
        path
    }

    #[test]
    fn agrees_with_two_steps_by_hand() {
        let directory = tempfile::tempdir().unwrap();
        let start = directory.path().join("start");
        let shape = ModelShape::new(1, 4, 1, 2).unwrap();
        let mut state = Checkpoint::initial(shape, 5);
        state.weights[0][0] = 1.0;
        state.write(&start).unwrap();
        let rate = OuterRate { rate: 0.5, momentum: 0.75 };
        // First element: deltas 0.5 and 0.25, mean 0.375; b = 0.375; θ = 1 − 0.5(0.375 + 0.28125) = 0.671875.
        let a = written(directory.path(), "a", &state, |i| if i == 0 { 0.5 } else { 0.0 });
        let b = written(directory.path(), "b", &state, |i| if i == 0 { 0.25 } else { 0.0 });
        let next = merge(&start, &[a, b], rate).unwrap();
        assert_eq!((next.weights[0][0], next.momentum[0][0], next.round), (0.671_875, 0.375, 1));
        assert_eq!(next.weights[0][1..], state.weights[0][1..], "what no delta touches stays");
        // One delta −0.125: b = 0.75·0.375 − 0.125 = 0.15625; θ −= 0.5(−0.125 + 0.1171875) → 0.67578125.
        next.write(&start).unwrap();
        let c = written(directory.path(), "c", &next, |i| if i == 0 { -0.125 } else { 0.0 });
        let last = merge(&start, &[c], rate).unwrap();
        assert_eq!((last.weights[0][0], last.momentum[0][0], last.round), (0.675_781_25, 0.156_25, 2));
    }

    #[test]
    fn the_file_at_fault_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let start = directory.path().join("start");
        let shape = ModelShape::new(1, 4, 1, 2).unwrap();
        let state = Checkpoint::initial(shape, 5);
        state.write(&start).unwrap();
        let rate = OuterRate { rate: 0.7, momentum: 0.9 };
        let good = written(directory.path(), "good", &state, |_| 1e-3);
        let refuse =
            |bad: &PathBuf| merge(&start, &[good.clone(), bad.clone()], rate).unwrap_err().to_string();

        let absurd = written(directory.path(), "absurd", &state, |_| 1e6);
        assert!(refuse(&absurd).contains("absurd: norm"));
        let nan = written(directory.path(), "poison", &state, |i| if i == 7 { f32::NAN } else { 0.0 });
        assert!(refuse(&nan).contains("poison: tensor"));
        let old = Checkpoint { round: 3, ..state.clone() };
        let stale = written(directory.path(), "stale", &old, |_| 0.0);
        assert!(refuse(&stale).contains("stale: the delta is of round 3"));
        let other = Checkpoint::initial(ModelShape::new(2, 4, 1, 2).unwrap(), 5);
        let foreign = written(directory.path(), "foreign", &other, |_| 0.0);
        assert!(refuse(&foreign).contains("foreign: the delta is for"));
        assert!(matches!(merge(&start, &[], rate), Err(OuterError::Count { count: 0 })));
    }

    #[test]
    fn merging_twice_gives_the_same_file() {
        let directory = tempfile::tempdir().unwrap();
        let start = directory.path().join("start");
        let state = Checkpoint::initial(ModelShape::new(1, 8, 2, 4).unwrap(), 5);
        state.write(&start).unwrap();
        let deltas: Vec<PathBuf> = (0..3)
            .map(|n| written(directory.path(), &format!("d{n}"), &state, |i| 1e-3 / (1 + i * (n + 1)) as f32))
            .collect();
        let rate = OuterRate { rate: 0.7, momentum: 0.9 };
        let one = merge(&start, &deltas, rate).unwrap().write(&directory.path().join("one")).unwrap();
        let two = merge(&start, &deltas, rate).unwrap().write(&directory.path().join("two")).unwrap();
        assert_eq!(one, two);
    }
}
