//! Owns the check of somebody's inner phase: it is run again from what it began with, and what it gave is compared.
//! Must never touch the moments of the worker's own training, nor trust a claim's files.

use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::{CheckpointError, Delta};
use crate::data::Dataset;
use crate::limits::CHECK_DISTANCE_MAX_MILLIONTHS;
use crate::optimiser::Moments;
use crate::packing::Bits;
use crate::passes::Model;
use crate::train::{Inner, Phase, TrainError};

/// Two runs of a phase here that lie this part of the tolerance apart say nothing of a third one elsewhere.
const SPREAD_MAX: f64 = CHECK_DISTANCE_MAX_MILLIONTHS as f64 / 1e6 / 3.0;

/// What somebody claims, in files.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The moments with which the phase began.
    pub began: &'a Path,
    /// The delta that it gave.
    pub delta: &'a Path,
}

/// Runs an inner phase again, as [`crate::train::inner_phase`] does, from the moments of a claim: how far the claimed delta
/// is from what was found, in parts of the norm of what was found. Infinite where the phase gives no delta, or the claim's
/// files are not what they should be.
///
/// Rounding hides small differences and enlarges those at its edges: an honest value that lies between two codes may fall to
/// either side. So the claim is not compared with the rounded delta, but both are with what was to be rounded: by how much
/// the claim's squared error is above that of the rounding itself. A value on an edge is as far from one code as from the
/// other and adds nothing, whereas what differs before rounding adds its own square, whatever the step of the rounding. Of a
/// sparse delta the norm is that of the elements that are sent, because the others show nothing.
///
/// Training past the edge of stability makes much of the last bits, in which devices differ. So before a claim is called
/// false the phase is run once more, from weights that are changed by as much; `after_step` is told of its steps too.
///
/// # Errors
/// [`TrainError`] for unusable files and settings, where it was cancelled, and for a failing device;
/// [`TrainError::Unstable`] where the claim may be honest and nobody can tell.
pub fn check_phase(
    model: &Model,
    state: &Path,
    data: &Arc<Dataset>,
    inner: &Inner,
    claim: Claim<'_>,
    mut after_step: impl FnMut(u32, f32) -> bool,
) -> Result<f64, TrainError> {
    // Before the work, so that a claim that cannot be read costs none.
    let Some((claimed, began)) = read(model, inner, claim)? else { return Ok(f64::INFINITY) };
    let mut run = |shaken: bool| -> Result<Option<Found>, TrainError> {
        let mut moments = began.clone();
        let mut phase = Phase::begin(model, state, data, inner, &mut moments)?;
        if shaken {
            phase.shake(model);
        }
        let ran = phase.run(model, &mut moments, &mut after_step);
        let change = match ran.and_then(|()| phase.change(model)) {
            Err(TrainError::Diverged { .. }) => return Ok(None),
            other => other?.delta.values,
        };
        let mut rounded = change.clone();
        let sound = moments.round(&mut rounded, inner.bits).is_ok();
        Ok(sound.then_some(Found { change, rounded, kept: moments.kept_back }))
    };
    // Who claims a delta says that the phase gave one.
    let Some(found) = run(false)? else {
        let spread = f64::INFINITY;
        return run(true)?.map_or(Ok(f64::INFINITY), |_| Err(TrainError::Unstable { spread }));
    };
    let distance = found.distance(&claimed.values, inner.bits);
    if distance * 1e6 <= CHECK_DISTANCE_MAX_MILLIONTHS as f64 {
        return Ok(distance);
    }
    let spread = run(true)?.map_or(f64::INFINITY, |shaken| found.distance(&shaken.rounded, inner.bits));
    if spread > SPREAD_MAX { Err(TrainError::Unstable { spread }) } else { Ok(distance) }
}

/// What is claimed, and the moments to begin with; `None` where a file is not what it should be.
fn read(model: &Model, inner: &Inner, claim: Claim<'_>) -> Result<Option<(Delta, Moments)>, TrainError> {
    let claimed = Delta::read(claim.delta, model.trainee.tensors()).map_err(TrainError::from);
    match claimed.and_then(|claimed| Ok((claimed, Moments::read(claim.began, model)?))) {
        Ok((claimed, began)) => {
            let as_agreed = (claimed.round, claimed.bits) == (inner.round, inner.bits);
            Ok(as_agreed.then_some((claimed, began)))
        }
        Err(TrainError::File(
            CheckpointError::Format { .. }
            | CheckpointError::Content { .. }
            | CheckpointError::TooLarge { .. },
        )) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a phase gave, by tensors.
struct Found {
    change: Vec<Vec<f32>>,
    /// With what earlier deltas left.
    rounded: Vec<Vec<f32>>,
    /// What this one leaves.
    kept: Vec<Vec<f32>>,
}

impl Found {
    fn distance(&self, claimed: &[Vec<f32>], bits: Bits) -> f64 {
        let (mut excess, mut change) = (0.0, 0.0);
        for (((claimed, changed), rounded), kept) in
            claimed.iter().zip(&self.change).zip(&self.rounded).zip(&self.kept)
        {
            for (((claimed, changed), rounded), kept) in claimed.iter().zip(changed).zip(rounded).zip(kept) {
                let apart = f64::from(*claimed) - f64::from(*rounded);
                // (claimed - wanted)² - (rounded - wanted)², where what was wanted is what was rounded and what was kept.
                excess += apart * (apart - 2.0 * f64::from(*kept));
                if bits != Bits::Sparse || *rounded != 0.0 {
                    change += f64::from(*changed).powi(2);
                }
            }
        }
        if excess > 0.0 { (excess / change).sqrt() } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packing::{pack, unpack};
    use crate::random::{mix, normal};

    const ELEMENTS: usize = 40_960;

    fn drawn(stream: u64) -> Vec<f32> {
        (0..ELEMENTS as u64).map(|at| normal(mix(stream << 32 | at))).collect()
    }

    fn rounded(values: &[f32], bits: Bits) -> Vec<f32> {
        let packed = pack(values, bits).unwrap();
        unpack(&packed.codes, &packed.scales, bits, values.len()).unwrap()
    }

    #[test]
    fn the_distance_is_that_before_rounding() {
        let (change, noise) = (drawn(1), drawn(2));
        for bits in [Bits::Sparse, Bits::Four, Bits::Eight, Bits::All] {
            let sent = rounded(&change, bits);
            let kept = change.iter().zip(&sent).map(|(change, sent)| change - sent).collect();
            let found = Found { change: vec![change.clone()], rounded: vec![sent], kept: vec![kept] };
            for part in [0.0_f32, 1e-3, 1e-2, 0.1, 0.3] {
                let other: Vec<f32> =
                    change.iter().zip(&noise).map(|(one, other)| one + part * other).collect();
                let distance = found.distance(&[rounded(&other, bits)], bits);
                let allowed = 0.1 * f64::from(part) + 3e-3;
                assert!((distance - f64::from(part)).abs() < allowed, "{bits:?} {part}: {distance}");
            }
        }
    }
}
