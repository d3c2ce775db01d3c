//! Owns the outer step of DiLoCo: the mean of the shards' deltas, Nesterov momentum, the next checkpoint.
//! Must never use a device or more than one thread of arithmetic per element: the result is compared between
//! machines by digest, so every sum is f32, in the order in which the deltas were given.
//!
//! A delta comes from a stranger. What is wrong with its bytes is the same for everybody, so all leave the same ones out
//! and come to the same result.

use std::path::{Path, PathBuf};

use skein_engine::tensors::layer_of;

use crate::checkpoint::{CheckpointError, DeltaFile, Digest, MOMENTUM_PREFIX};
use crate::limits::{DELTA_MEDIAN_RATIO_MAX, DELTA_NORM_RATIO_MAX, DELTAS_MAX};
use crate::packing::Bits;
use crate::tensor_file::{TensorFile, Writer, Written, little_endian};
use crate::trainee::TensorSpec;

/// Why no next checkpoint was made. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OuterError {
    /// A file could not be read or written, or is not what it should be.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// No delta, or too many; a delta without a file counts as none at all.
    #[error("{count} files of deltas to merge, allowed are 1 to {DELTAS_MAX}")]
    Count {
        /// Files given.
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

/// An outer step, on disk but not yet under its name; what is not published disappears.
pub struct Merged {
    /// Round of the next checkpoint.
    pub round: u32,
    /// The deltas that were left out, by their places among those given and that of the part at fault, and why.
    pub refused: Vec<(usize, usize, String)>,
    written: Written,
}

impl Merged {
    /// Where the next checkpoint lies.
    #[must_use]
    pub fn place(&self) -> &Path {
        self.written.place()
    }

    /// Gives the next checkpoint its name.
    ///
    /// # Errors
    /// [`CheckpointError::Write`].
    pub fn publish(self) -> Result<Digest, CheckpointError> {
        self.written.publish()
    }
}

/// Merges deltas into the checkpoint and writes the next one to `out`: `b ← μb + mean(Δ)`, `θ ← θ − η(mean(Δ) + μb)`,
/// `round ← round + 1`. Each delta is one file, or several that hold its tensors in the order of layers. One that is not
/// what it should be is left out.
///
/// A few tensors are in memory at a time, however large the model and however many deltas.
///
/// # Errors
/// [`OuterError`] when the checkpoint or a delta cannot be read from the disk, or no delta is left.
pub fn merge(
    specs: &[TensorSpec],
    checkpoint: &Path,
    deltas: &[Vec<PathBuf>],
    rate: OuterRate,
    out: &Path,
) -> Result<Merged, OuterError> {
    let count = if deltas.iter().any(Vec::is_empty) { 0 } else { deltas.iter().map(Vec::len).sum() };
    if count == 0 || count > DELTAS_MAX {
        return Err(OuterError::Count { count });
    }
    let state = TensorFile::open_checkpoint(checkpoint, specs)?;
    let (good, refused) = sift(specs, &state, deltas)?;
    if good.is_empty() {
        let why = refused.into_iter().map(|(_, _, why)| why).next();
        return Err(OuterError::Nothing(why.unwrap_or_default()));
    }
    let round = state.round().saturating_add(1);
    let mut next = Writer::checkpoint(out, round, specs)?;
    for (number, spec) in specs.iter().enumerate() {
        let mut weights = state.values("", spec)?;
        let mut momentum = state.values(MOMENTUM_PREFIX, spec)?;
        let mut sum = vec![0.0; spec.elements()];
        for delta in &good {
            let values = delta.holder(number).values(spec)?;
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        step(&mut weights, &mut momentum, &sum, good.len(), rate);
        if !weights.iter().chain(&momentum).all(|value| value.is_finite()) {
            return Err(OuterError::Overflow);
        }
        next.put(&spec.name, &little_endian(&weights))?;
        next.put(&format!("{MOMENTUM_PREFIX}{}", spec.name), &little_endian(&momentum))?;
    }
    Ok(Merged { round, refused, written: next.finish()? })
}

/// A delta whose parts hold every tensor once.
struct Slice {
    parts: Vec<DeltaFile>,
    /// The part that holds each tensor.
    holders: Vec<usize>,
}

impl Slice {
    fn holder(&self, tensor: usize) -> &DeltaFile {
        &self.parts[self.holders[tensor]]
    }
}

/// What is wrong with a delta, and with which of its parts.
struct Fault {
    part: usize,
    why: OuterError,
}

type Sifted = (Vec<Slice>, Vec<(usize, usize, String)>);

/// The deltas that are what they should be, and why the others are not.
fn sift(specs: &[TensorSpec], state: &TensorFile, deltas: &[Vec<PathBuf>]) -> Result<Sifted, OuterError> {
    let mut squares = 0.0;
    for spec in specs {
        squares += sum_of_squares(&state.values("", spec)?);
    }
    let weights = squares.sqrt();
    let mut judged = Vec::new();
    let mut refused = Vec::new();
    for (place, paths) in deltas.iter().enumerate() {
        let found = open(specs, state.round(), paths).and_then(|slice| {
            let (norm, loudest) = norms(specs, &slice.parts, &slice.holders)?;
            if norm > DELTA_NORM_RATIO_MAX * weights {
                let why = OuterError::Absurd { path: paths[loudest].clone(), norm, weights };
                return Err(Fault { part: loudest, why });
            }
            Ok((place, slice, norm, loudest))
        });
        match found {
            Ok(slice) => judged.push(slice),
            // That is this machine's trouble, not the delta's.
            Err(Fault { why: error @ OuterError::File(CheckpointError::Read { .. }), .. }) => {
                return Err(error);
            }
            Err(Fault { part, why }) => refused.push((place, part, why.to_string())),
        }
    }
    let mut sorted: Vec<f64> = judged.iter().map(|(_, _, norm, _)| *norm).collect();
    sorted.sort_by(f64::total_cmp);
    // The lower of the two in the middle: of any two, nobody can tell which is wrong.
    let median = if sorted.len() < 3 { f64::INFINITY } else { sorted[(sorted.len() - 1) / 2] };
    let mut good = Vec::new();
    for (place, slice, norm, loudest) in judged {
        if norm > DELTA_MEDIAN_RATIO_MAX * median {
            let error = OuterError::Outlier { path: deltas[place][loudest].clone(), norm, median };
            refused.push((place, loudest, error.to_string()));
        } else {
            good.push(slice);
        }
    }
    refused.sort_by_key(|(place, _, _)| *place);
    Ok((good, refused))
}

/// Opens a delta's parts, of this round, and finds who holds what.
fn open(specs: &[TensorSpec], round: u32, paths: &[PathBuf]) -> Result<Slice, Fault> {
    let mismatch = |part: usize, problem: String| Fault {
        part,
        why: OuterError::Mismatch { path: paths[part].clone(), problem },
    };
    let mut parts: Vec<DeltaFile> = Vec::with_capacity(paths.len());
    for (part, path) in paths.iter().enumerate() {
        let file = DeltaFile::open(path).map_err(|error| Fault { part, why: error.into() })?;
        if file.round() != round {
            let found = file.round();
            return Err(mismatch(part, format!("the delta is of round {found}, the checkpoint of {round}")));
        }
        parts.push(file);
    }
    let alike = |bits: Bits| parts.iter().filter(|file| file.bits == bits).count();
    // Where half says this and half that, the later ones are at fault.
    let usual = parts.iter().rev().map(|file| file.bits).max_by_key(|bits| alike(*bits));
    if let Some(part) = parts.iter().position(|file| Some(file.bits) != usual) {
        let bits = parts[part].bits.number();
        return Err(mismatch(part, format!("elements of {bits} bits, the other parts have others")));
    }
    let mut holders = Vec::with_capacity(specs.len());
    let mut missing = None;
    let mut own = vec![Vec::new(); parts.len()];
    for (number, spec) in specs.iter().enumerate() {
        let mut having = (0..parts.len()).filter(|part| parts[*part].has(spec));
        match (having.next(), having.next()) {
            (Some(holder), None) => {
                own[holder].push(spec.clone());
                holders.push(Some(holder));
            }
            (Some(_), Some(part)) => {
                return Err(mismatch(part, format!("tensor {} is in an earlier part too", spec.name)));
            }
            (None, _) => {
                missing.get_or_insert(number);
                holders.push(None);
            }
        }
    }
    for (part, specs) in own.iter().enumerate() {
        parts[part].holds_only(specs).map_err(|error| Fault { part, why: error.into() })?;
    }
    match (missing, holders.iter().copied().collect::<Option<Vec<usize>>>()) {
        (None, Some(holders)) => Ok(Slice { parts, holders }),
        (number, _) => {
            let number = number.unwrap_or_default();
            let part = lacks(specs, number, &parts, &holders)?;
            Err(mismatch(part, format!("tensor {} is missing", specs[number].name)))
        }
    }
}

/// The part that a tensor which none has is missing from: that which has others of its layer; what comes before or after
/// all that is there is the first's or the last's; else the one with the largest norm.
fn lacks(
    specs: &[TensorSpec],
    tensor: usize,
    parts: &[DeltaFile],
    holders: &[Option<usize>],
) -> Result<usize, Fault> {
    let layer = layer_of(&specs[tensor].name);
    let beside =
        specs.iter().zip(holders).filter(|(spec, _)| layer.is_some() && layer_of(&spec.name) == layer);
    if let Some(part) = beside.filter_map(|(_, holder)| *holder).next() {
        return Ok(part);
    }
    if holders[..tensor].iter().all(Option::is_none) {
        return Ok(0);
    }
    if holders[tensor..].iter().all(Option::is_none) {
        return Ok(parts.len().saturating_sub(1));
    }
    let there = specs.iter().zip(holders).filter_map(|(spec, holder)| Some((spec.clone(), (*holder)?)));
    let (specs, holders): (Vec<TensorSpec>, Vec<usize>) = there.unzip();
    norms(&specs, parts, &holders).map(|(_, loudest)| loudest)
}

/// The norm of these tensors together, and the part with the largest norm.
fn norms(specs: &[TensorSpec], parts: &[DeltaFile], holders: &[usize]) -> Result<(f64, usize), Fault> {
    let mut all = 0.0;
    let mut each = vec![0.0; parts.len()];
    for (spec, part) in specs.iter().zip(holders) {
        let values = parts[*part].values(spec).map_err(|error| Fault { part: *part, why: error.into() })?;
        let squares = sum_of_squares(&values);
        all += squares;
        each[*part] += squares;
    }
    let loudest = (0..each.len()).rev().max_by(|one, other| each[*one].total_cmp(&each[*other]));
    Ok((all.sqrt(), loudest.unwrap_or_default()))
}

/// In f64, in eight sums that are added up at last: their order is part of the result.
fn sum_of_squares(values: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    let (eights, rest) = values.as_chunks::<8>();
    let mut add = |values: &[f32]| {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(*value) * f64::from(*value));
    };
    eights.iter().for_each(|eight| add(eight));
    add(rest);
    sums.iter().sum()
}

/// The arithmetic alone, element by element. Multiplications and additions are written apart so that no compiler
/// may fuse them: a fused one rounds once instead of twice.
fn step(weights: &mut [f32], momentum: &mut [f32], sum: &[f32], deltas: usize, rate: OuterRate) {
    let count = deltas as f32;
    for ((weight, momentum), sum) in weights.iter_mut().zip(momentum).zip(sum) {
        let mean = sum / count;
        *momentum = rate.momentum * *momentum + mean;
        *weight -= rate.rate * (mean + rate.momentum * *momentum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, Delta};
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

    /// One file for each delta.
    fn whole(deltas: &[PathBuf]) -> Vec<Vec<PathBuf>> {
        deltas.iter().map(|delta| vec![delta.clone()]).collect()
    }

    type Refused = Vec<(usize, usize, String)>;

    /// The next checkpoint and what was left out.
    fn merged(
        start: &Path,
        deltas: &[Vec<PathBuf>],
        rate: OuterRate,
    ) -> Result<(Checkpoint, Refused), OuterError> {
        let out = start.with_extension("next");
        let _ = std::fs::remove_file(&out);
        let merged = merge(&specs(), start, deltas, rate, &out)?;
        assert!(!out.exists(), "it has its name once it is published");
        let (round, refused) = (merged.round, merged.refused.clone());
        let written = Checkpoint::read(merged.place(), &specs()).unwrap();
        let digest = merged.publish().unwrap();
        assert_eq!(digest, *blake3::hash(&std::fs::read(&out).unwrap()).as_bytes());
        let next = Checkpoint::read(&out, &specs()).unwrap();
        assert_eq!((next.round, &next), (round, &written));
        Ok((next, refused))
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
        let (next, _) = merged(&start, &whole(&[a, b]), rate).unwrap();
        assert_eq!((next.weights[0][0], next.momentum[0][0], next.round), (0.671_875, 0.375, 1));
        assert_eq!(next.weights[0][1..], state.weights[0][1..], "what no delta touches stays");
        // One delta −0.125: b = 0.75·0.375 − 0.125 = 0.15625; θ −= 0.5(−0.125 + 0.1171875) → 0.67578125.
        next.write(&start, &specs).unwrap();
        let c = written(directory.path(), "c", &next, |i| if i == 0 { -0.125 } else { 0.0 });
        let (last, _) = merged(&start, &whole(&[c]), rate).unwrap();
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
        let (without, refused) = merged(&start, &whole(&good), rate).unwrap();
        assert!(refused.is_empty());

        let cut = directory.path().join("cut");
        std::fs::write(&cut, &std::fs::read(&good[0]).unwrap()[..300]).unwrap();
        let old = Checkpoint { round: 3, ..state.clone() };
        let wider = ModelConfig { feed_width: 16, ..config() };
        let wider = Trainee::new(wider, false, Method::Full).unwrap().tensors().to_vec();
        let foreign = directory.path().join("foreign");
        let values = wider.iter().map(|spec| vec![0.0; spec.elements()]).collect();
        Delta { round: 0, bits: Bits::All, values }.write(&foreign, &wider).unwrap();
        // Nobody's writer does so, but a stranger's file may.
        let poison = written(directory.path(), "poison", &state, |i| if i == 7 { 0.125 } else { 0.0 });
        let mut bytes = std::fs::read(&poison).unwrap();
        let at = bytes.windows(4).position(|window| window == 0.125_f32.to_le_bytes()).unwrap();
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&poison, bytes).unwrap();
        for (bad, why) in [
            (file("absurd", 1e6), "absurd: norm"),
            (file("loud", 5e-2), "more than 10 times the others"),
            (poison, "poison: tensor"),
            (written(directory.path(), "stale", &old, |_| 0.0), "stale: the delta is of round 3"),
            (foreign, "foreign: tensor"),
            (cut, "cut is not a safetensors file"),
        ] {
            let all = [good[0].clone(), bad.clone(), good[1].clone()];
            let (next, refused) = merged(&start, &whole(&all), rate).unwrap();
            assert_eq!(next, without, "{why}");
            let [(1, 0, reason)] = refused.as_slice() else { panic!("{why}: {refused:?}") };
            assert!(reason.contains(why), "{reason}");
            if why != "more than 10 times the others" {
                let alone = merged(&start, &whole(&[bad]), rate);
                assert!(matches!(alone, Err(OuterError::Nothing(_))), "{why}");
            }
        }
        let missing = [good[0].clone(), directory.path().join("missing")];
        assert!(
            matches!(merged(&start, &whole(&missing), rate), Err(OuterError::File(_))),
            "it may be there tomorrow"
        );
        assert!(matches!(merged(&start, &[], rate), Err(OuterError::Count { count: 0 })));
        assert!(matches!(merged(&start, &[Vec::new()], rate), Err(OuterError::Count { count: 0 })));
    }

    /// A delta of 1e-3 everywhere, in two files that are cut before this tensor.
    fn cut_before(directory: &Path, name: &str, tensor: &str, bits: [Bits; 2], round: u32) -> Vec<PathBuf> {
        let specs = specs();
        let at = specs.iter().position(|spec| spec.name == tensor).unwrap();
        let parts = [&specs[..at], &specs[at..]];
        let write = |part: usize| {
            let values =
                parts[part].iter().map(|spec| vec![1e-3 + 1e-3 * part as f32; spec.elements()]).collect();
            let path = directory.join(format!("{name}.{part}"));
            let delta = Delta { round, bits: bits[part], values };
            delta.write(&path, parts[part]).unwrap();
            path
        };
        vec![write(0), write(1)]
    }

    #[test]
    fn a_delta_in_parts_is_as_good_as_whole_and_a_bad_part_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let start = place.join("start");
        let specs = specs();
        let state = state(&specs);
        state.write(&start, &specs).unwrap();
        let rate = OuterRate { rate: 0.7, momentum: 0.9 };
        let all = [Bits::All; 2];
        let in_parts = cut_before(place, "good", "blk.1.attn_norm.weight", all, 0);
        let at = specs.iter().position(|spec| spec.name == "blk.1.attn_norm.weight").unwrap();
        let value = |place: usize| if place < at { 1e-3 } else { 2e-3 };
        let values =
            specs.iter().enumerate().map(|(place, spec)| vec![value(place); spec.elements()]).collect();
        let one_file = place.join("one");
        Delta { round: 0, bits: Bits::All, values }.write(&one_file, &specs).unwrap();
        let other = vec![written(place, "other", &state, |i| 1e-3 * (i as f32).sin())];
        let (wanted, _) = merged(&start, &[vec![one_file], other.clone()], rate).unwrap();
        let (found, refused) = merged(&start, &[in_parts.clone(), other.clone()], rate).unwrap();
        assert_eq!((found, refused), (wanted, Vec::new()));

        let (without, _) = merged(&start, std::slice::from_ref(&other), rate).unwrap();
        let cut = |name: &str, tensor: &str| cut_before(place, name, tensor, all, 0);
        let (early, late) = (cut("early", "blk.0.ffn_up.weight"), cut("late", "output_norm.weight"));
        let stale = cut_before(place, "stale", "blk.1.attn_norm.weight", all, 3);
        let packed = cut_before(place, "packed", "blk.1.attn_norm.weight", [Bits::All, Bits::Eight], 0);
        let loud = written(place, "loud", &state, |_| 1e6);
        let loud = Delta::read(&loud, &specs).unwrap();
        let loud_part = place.join("loud.1");
        Delta { values: loud.values[at..].to_vec(), ..loud }.write(&loud_part, &specs[at..]).unwrap();
        let middle = place.join("middle");
        let first_only = Delta { round: 0, bits: Bits::All, values: vec![vec![1e-3; 128]] };
        first_only.write(&middle, &specs[..1]).unwrap();
        for (parts, part, why) in [
            // What is missing belongs to the rest of its layer, or to the end at which nothing else is, or to the loudest.
            (vec![early[0].clone(), in_parts[1].clone()], 0, "tensor blk.0.ffn_up.weight is missing"),
            (vec![in_parts[0].clone(), late[1].clone()], 0, "tensor blk.1.attn_norm.weight is missing"),
            (vec![in_parts[0].clone()], 0, "tensor blk.1.attn_norm.weight is missing"),
            (vec![in_parts[1].clone()], 0, "tensor token_embd.weight is missing"),
            (vec![middle, in_parts[1].clone()], 1, "tensor blk.0.attn_norm.weight is missing"),
            (vec![late[0].clone(), in_parts[1].clone()], 1, "is in an earlier part too"),
            (
                vec![in_parts[0].clone(), in_parts[0].clone(), in_parts[1].clone()],
                1,
                "is in an earlier part too",
            ),
            (vec![in_parts[0].clone(), stale[1].clone()], 1, "the delta is of round 3"),
            (packed, 1, "elements of 8 bits"),
            (vec![in_parts[0].clone(), loud_part], 1, "times the weights' norm"),
            (vec![in_parts[0].clone(), start.clone()], 1, "this is a Checkpoint"),
        ] {
            let (next, refused) = merged(&start, &[other.clone(), parts], rate).unwrap();
            assert_eq!(next, without, "{why}: left out as a whole");
            let [(1, found, reason)] = refused.as_slice() else { panic!("{why}: {refused:?}") };
            assert_eq!((*found, reason.contains(why)), (part, true), "{why}: {reason}");
        }

        // Far from the others', though not from the weights: the loudest part of it is.
        let far = written(place, "far", &state, |_| 0.2);
        let far = Delta::read(&far, &specs).unwrap();
        let far_part = place.join("far.1");
        Delta { values: far.values[at..].to_vec(), ..far }.write(&far_part, &specs[at..]).unwrap();
        let third = vec![written(place, "third", &state, |i| 1e-3 * (i as f32).cos())];
        let all = [vec![in_parts[0].clone(), far_part], other, third];
        let (_, refused) = merged(&start, &all, rate).unwrap();
        let [(0, 1, reason)] = refused.as_slice() else { panic!("{refused:?}") };
        assert!(reason.contains("far.1: norm") && reason.contains("times the others'"), "{reason}");
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
        let run = |name: &str| {
            let out = directory.path().join(name);
            merge(&specs, &start, &whole(&deltas), rate, &out).unwrap().publish().unwrap()
        };
        let digest = run("one");
        assert_eq!(run("two"), digest);
        let one = Checkpoint::read(&directory.path().join("one"), &specs).unwrap();
        assert_eq!(
            one.write(&directory.path().join("three"), &specs).unwrap(),
            digest,
            "as checkpoints are written"
        );
        // What is not published disappears.
        drop(merge(&specs, &start, &whole(&deltas), rate, &directory.path().join("four")).unwrap());
        let left = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 1 + 3 + 3, "the start, the deltas and what was published");
    }
}
