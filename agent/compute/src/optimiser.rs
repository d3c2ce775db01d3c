//! Owns the step from gradients to weights: AdamW, the cut of the gradient's norm, and what both keep from one round of a
//! job to the next.
//! Must never know a batch, a file or a layer: gradients and their squares in, weights out.

use burn::optim::{AdamW, AdamWConfig, AdamWState, Optimizer};
use burn::tensor::Tensor;

use crate::packing::{Bits, pack, unpack};
use crate::train::TrainError;
use crate::trainee::{Role, TensorSpec};

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.95;
const EPSILON: f32 = 1e-8;
const WEIGHT_DECAY: f32 = 0.1;

/// The gradient's norm over all tensors is cut to this.
const GRADIENT_NORM_MAX: f32 = 1.0;

/// What stays with a worker from one round of a job to the next: AdamW's moments, and what rounding kept back of the
/// deltas so far, which the next one makes good (error feedback). The default has no past.
#[derive(Default)]
pub struct Moments {
    specs: Vec<TensorSpec>,
    states: Vec<Option<AdamWState<2>>>,
    kept_back: Vec<Vec<f32>>,
}

impl Moments {
    /// Starts afresh unless these are moments of such tensors.
    pub(crate) fn fit(&mut self, specs: &[TensorSpec]) {
        if self.specs != specs {
            let states = specs.iter().map(|_| None).collect();
            let kept_back = specs.iter().map(|spec| vec![0.0; spec.elements()]).collect();
            *self = Self { specs: specs.to_vec(), states, kept_back };
        }
    }

    /// Rounds a delta to what so many bits tell, and keeps the rest for the next.
    pub(crate) fn round(&mut self, values: &mut [Vec<f32>], bits: Bits) -> Result<(), TrainError> {
        for (values, kept_back) in values.iter_mut().zip(&mut self.kept_back) {
            let wanted: Vec<f32> =
                values.iter().zip(kept_back.iter()).map(|(value, kept)| value + kept).collect();
            let packed = pack(&wanted, bits);
            *values = unpack(&packed.codes, &packed.scales, bits, wanted.len())
                .ok_or_else(|| TrainError::Device("the delta leaves the range of f32".to_owned()))?;
            for ((kept, wanted), sent) in kept_back.iter_mut().zip(wanted).zip(values.iter()) {
                *kept = wanted - sent;
            }
        }
        Ok(())
    }
}

/// AdamW for matrices, and the same without decay for gains and tables.
pub(crate) struct Optimiser {
    decaying: AdamW,
    plain: AdamW,
    decays: Vec<bool>,
}

impl Optimiser {
    pub(crate) fn new(specs: &[TensorSpec]) -> Self {
        let config = |decay| {
            let config = AdamWConfig::new().with_beta_1(BETA_1).with_beta_2(BETA_2).with_epsilon(EPSILON);
            config.with_weight_decay(decay).build()
        };
        let decays = |role| match role {
            Role::Vector | Role::Table => false,
            Role::Matrix => true,
        };
        let decays = specs.iter().map(|spec| decays(spec.role)).collect();
        Self { decaying: config(WEIGHT_DECAY), plain: config(0.0), decays }
    }

    /// One step in place. `norm` is that of all the model's gradients, of which these may be a part.
    pub(crate) fn step(
        &self,
        weights: &mut [Tensor<2>],
        moments: &mut Moments,
        gradients: Vec<Tensor<2>>,
        norm: f32,
        rate: f64,
    ) {
        let scale = if norm > GRADIENT_NORM_MAX { GRADIENT_NORM_MAX / norm } else { 1.0 };
        for (number, gradient) in gradients.into_iter().enumerate() {
            let optimiser = if self.decays[number] { &self.decaying } else { &self.plain };
            let gradient = if scale == 1.0 { gradient } else { gradient.mul_scalar(scale) };
            let state = moments.states[number].take();
            let (weight, state) = optimiser.step(rate, weights[number].clone(), gradient, state);
            weights[number] = weight;
            moments.states[number] = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainee::tests::config;
    use crate::trainee::{Method, Trainee};

    #[test]
    fn what_rounding_keeps_back_comes_with_the_next_delta() {
        let trainee = Trainee::new(config(), false, Method::Full).unwrap();
        let specs = trainee.tensors();
        let mut moments = Moments::default();
        moments.fit(specs);
        let meant: Vec<Vec<f32>> = specs
            .iter()
            .map(|spec| (0..spec.elements()).map(|at| 1e-3 * (at as f32 * 0.7).sin()).collect())
            .collect();
        let mut sum = vec![0.0; meant.iter().map(Vec::len).sum()];
        let off = |sum: &[f32], times: f32| -> f32 {
            let differences =
                meant.iter().flatten().zip(sum).map(|(meant, sum)| (meant - sum / times).powi(2));
            differences.sum::<f32>().sqrt()
        };
        let mut first = 0.0;
        for time in 1..=10_u8 {
            let mut values = meant.clone();
            moments.round(&mut values, Bits::Four).unwrap();
            for (sum, sent) in sum.iter_mut().zip(values.iter().flatten()) {
                *sum += sent;
            }
            if time == 1 {
                first = off(&sum, 1.0);
            }
        }
        let last = off(&sum, 10.0);
        assert!(first > 0.0 && last < first / 5.0, "off by {first} once and by {last} on average over ten");
    }
}
