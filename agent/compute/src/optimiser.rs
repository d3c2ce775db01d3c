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

/// What a round leaves of what was kept back, where deltas are sparse: old news counts for less, which stands in for the
/// outer momentum. β of SparseLoCo (arXiv 2508.15706). Dense rounding keeps back less than a step of its codes,
/// and none of that fades.
const SPARSE_DECAY: f32 = 0.95;

/// What stays with a worker from one round of a job to the next: AdamW's moments, and what rounding kept back of the
/// deltas so far, which the next one makes good (error feedback). The default has no past.
///
/// A clone shares the device's memory until the next step, which replaces every tensor: Burn changes one in place only where
/// nobody else holds it.
#[derive(Clone, Default)]
pub struct Moments {
    pub(crate) specs: Vec<TensorSpec>,
    /// None before the first step.
    pub(crate) states: Vec<Option<AdamWState<2>>>,
    pub(crate) kept_back: Vec<Vec<f32>>,
}

impl Moments {
    /// Those of such tensors before anything was learnt.
    #[must_use]
    pub fn fresh(specs: &[TensorSpec]) -> Self {
        let mut moments = Self::default();
        moments.fit(specs);
        moments
    }

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
        let decay = match bits {
            Bits::Sparse => SPARSE_DECAY,
            Bits::Four | Bits::Eight | Bits::All => 1.0,
        };
        for (values, kept_back) in values.iter_mut().zip(&mut self.kept_back) {
            let wanted: Vec<f32> =
                values.iter().zip(kept_back.iter()).map(|(value, kept)| value + decay * kept).collect();
            let beyond =
                |what: String| TrainError::Device(format!("the delta leaves the range of f32: it {what}"));
            let packed = pack(&wanted, bits).map_err(|error| beyond(error.to_string()))?;
            *values = unpack(&packed.codes, &packed.scales, bits, wanted.len())
                .map_err(|error| beyond(error.to_string()))?;
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

    /// Moments of one tensor with nothing kept back.
    fn of_one_tensor(elements: usize) -> Moments {
        let spec = TensorSpec { name: "one".to_owned(), rows: 1, columns: elements, role: Role::Vector };
        let mut moments = Moments::default();
        moments.fit(&[spec]);
        moments
    }

    #[test]
    fn what_is_not_sent_of_a_sparse_delta_is_kept_and_fades() {
        let mut moments = of_one_tensor(10);
        let mut round = |values: [f32; 10], bits| {
            let mut values = vec![values.to_vec()];
            moments.round(&mut values, bits).unwrap();
            (values.remove(0), moments.kept_back[0].clone())
        };
        let nothing = [0.0; 10];
        let mut first = nothing;
        (first[2], first[5]) = (-2.0, 1.0);
        let (sent, kept) = round(first, Bits::Sparse);
        assert_eq!((sent[2], sent[5], kept[2], kept[5]), (-2.0, 0.0, 0.0, 1.0));
        let mut second = nothing;
        second[0] = 4.0;
        let (sent, kept) = round(second, Bits::Sparse);
        assert_eq!((sent[0], sent[5], kept[5]), (4.0, 0.0, 0.95));
        let (sent, kept) = round(nothing, Bits::Sparse);
        let wanted = 0.95 * 0.95_f32;
        assert!((sent[5] - wanted).abs() < 0.01 && sent[5] + kept[5] == wanted, "{} {}", sent[5], kept[5]);
        // Nothing fades where all is told.
        let (_, kept) = round(first, Bits::Sparse);
        let (sent, _) = round(nothing, Bits::All);
        assert_eq!((sent[5], kept[5] > 1.0), (kept[5], true));
    }

    #[test]
    fn sparse_deltas_add_up_to_what_was_meant() {
        const ELEMENTS: usize = 10_000;
        const ROUNDS: u8 = 200;
        // A few elements matter most, as in training; each delta is one part the same and one part its own.
        let noise =
            |seed: u64| move |at: usize| crate::random::normal(crate::random::mix(seed << 32 | at as u64));
        let main: Vec<f32> = (0..ELEMENTS).map(noise(0)).map(|value| value.powi(3)).collect();
        let mut moments = of_one_tensor(ELEMENTS);
        let (mut meant, mut told, mut alone) =
            (vec![0.0; ELEMENTS], vec![0.0; ELEMENTS], vec![0.0; ELEMENTS]);
        let mut faded = vec![0.0; ELEMENTS];
        let add = |sum: &mut [f32], values: &[f32]| {
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value)
        };
        for seed in 1..=ROUNDS {
            let delta: Vec<f32> = main
                .iter()
                .zip((0..ELEMENTS).map(noise(seed.into())))
                .map(|(main, own)| main + own)
                .collect();
            add(&mut meant, &delta);
            for (lost, kept) in faded.iter_mut().zip(&moments.kept_back[0]) {
                *lost += (1.0 - SPARSE_DECAY) * kept;
            }
            let mut sent = vec![delta.clone()];
            moments.round(&mut sent, Bits::Sparse).unwrap();
            add(&mut told, &sent[0]);
            let mut sent = vec![delta];
            of_one_tensor(ELEMENTS).round(&mut sent, Bits::Sparse).unwrap();
            add(&mut alone, &sent[0]);
        }
        let norm = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
        let off = |sum: &[f32]| {
            let differences: Vec<f32> = meant.iter().zip(sum).map(|(meant, sum)| meant - sum).collect();
            norm(&differences) / norm(&meant)
        };
        // Nothing is lost but what fades.
        let mut all = told.clone();
        add(&mut all, &moments.kept_back[0]);
        add(&mut all, &faded);
        assert!(off(&all) < 1e-5, "off by {}", off(&all));
        assert!(off(&told) < 0.25 && off(&alone) > 0.5, "{} and {}", off(&told), off(&alone));
    }

    #[test]
    fn a_sparse_delta_that_is_not_finite_is_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let refused = of_one_tensor(100).round(&mut [vec![bad; 100]], Bits::Sparse);
            assert!(matches!(refused, Err(TrainError::Device(_))), "{bad}");
        }
    }
}
