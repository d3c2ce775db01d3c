//! Owns the functions between the products: norms, gates, soft caps, softmax.
//! Must never call the system's mathematics, nor add in an order that depends on anything but a row's length.

use super::elementary;
use super::lanes::{InstructionSet, Kernel, LANES, Lanes};

/// Elements that are added as f32 before the sum goes on in f64.
const BLOCK: usize = 64 * LANES;

/// Root-mean-square norm of each row of `gain.len()` elements: x · gain / √(mean(x²) + epsilon).
///
/// # Panics
/// If `values` is no whole number of rows.
pub fn rms_norm(set: InstructionSet, values: &mut [f32], gain: &[f32], epsilon: f32) {
    assert!(!gain.is_empty() && values.len().is_multiple_of(gain.len()), "{} {}", values.len(), gain.len());
    set.run(RmsNorm { values, gain, epsilon });
}

struct RmsNorm<'a> {
    values: &'a mut [f32],
    gain: &'a [f32],
    epsilon: f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { values, gain, epsilon } = self;
        for row in values.chunks_exact_mut(gain.len()) {
            let (whole, rest) = row.as_chunks::<LANES>();
            let mut squares = lanes.splat(0.0);
            for values in whole {
                let values = lanes.load(values);
                squares = lanes.fma(values, values, squares);
            }
            let mut sum = lanes.sum(squares);
            for value in rest {
                sum += value * value;
            }
            let scale = 1.0 / (sum / gain.len() as f32 + epsilon).sqrt();
            for (value, gain) in row.iter_mut().zip(gain) {
                *value = *value * scale * gain;
            }
        }
    }
}

/// A function of two elements, over vectors.
trait Pairwise {
    fn apply<L: Lanes>(lanes: L, a: L::Floats, b: L::Floats) -> L::Floats;
}

/// `a[i] = f(a[i], b[i])`.
struct Each<'a, P> {
    a: &'a mut [f32],
    b: &'a [f32],
    _function: P,
}

impl<P: Pairwise> Kernel for Each<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (whole, rest) = self.a.as_chunks_mut::<LANES>();
        let (other, other_rest) = self.b.as_chunks::<LANES>();
        for (a, b) in whole.iter_mut().zip(other) {
            let result = P::apply(lanes, lanes.load(a), lanes.load(b));
            lanes.store(result, a);
        }
        let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
        a[..rest.len()].copy_from_slice(rest);
        b[..rest.len()].copy_from_slice(other_rest);
        let result = P::apply(lanes, lanes.load(&a), lanes.load(&b));
        lanes.store(result, &mut a);
        rest.copy_from_slice(&a[..rest.len()]);
    }
}

/// `gate = silu(gate) · up`
///
/// # Panics
/// If they differ in length.
pub fn silu_gated(set: InstructionSet, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up");
    set.run(Each { a: gate, b: up, _function: SiluGated });
}

struct SiluGated;

impl Pairwise for SiluGated {
    #[inline(always)]
    fn apply<L: Lanes>(lanes: L, gate: L::Floats, up: L::Floats) -> L::Floats {
        lanes.mul(logistic_times(lanes, gate, gate), up)
    }
}

/// `gate = gelu(gate) · up`, with the approximation by tanh.
///
/// # Panics
/// If they differ in length.
pub fn gelu_gated(set: InstructionSet, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up");
    set.run(Each { a: gate, b: up, _function: GeluGated });
}

struct GeluGated;

impl Pairwise for GeluGated {
    /// ½x(1 + tanh u) is x · logistic(2u), with u = √(2/π) · (x + 0.044715 x³).
    #[inline(always)]
    fn apply<L: Lanes>(lanes: L, gate: L::Floats, up: L::Floats) -> L::Floats {
        let square = lanes.mul(gate, gate);
        let inner = lanes.fma(square, lanes.splat(0.044_715), lanes.splat(1.0));
        let twice = lanes.mul(lanes.mul(gate, inner), lanes.splat(1.595_769));
        lanes.mul(logistic_times(lanes, twice, gate), up)
    }
}

/// `values = cap · tanh(values / cap)`
pub fn soft_cap(set: InstructionSet, values: &mut [f32], cap: f32) {
    set.run(SoftCap { values, cap });
}

struct SoftCap<'a> {
    values: &'a mut [f32],
    cap: f32,
}

impl Kernel for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (whole, rest) = self.values.as_chunks_mut::<LANES>();
        for values in whole {
            lanes.store(capped(lanes, lanes.load(values), self.cap), values);
        }
        let mut values = [0.0; LANES];
        values[..rest.len()].copy_from_slice(rest);
        lanes.store(capped(lanes, lanes.load(&values), self.cap), &mut values);
        rest.copy_from_slice(&values[..rest.len()]);
    }
}

/// ln Σ e^value; no number if any value is none.
pub fn log_sum_exp(set: InstructionSet, values: &[f32]) -> f64 {
    let greatest = set.run(Greatest { values });
    let sum = set.run(SumExp { values, greatest });
    f64::from(greatest) + elementary::ln(sum)
}

struct Greatest<'a> {
    values: &'a [f32],
}

impl Kernel for Greatest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f32 {
        let (whole, rest) = self.values.as_chunks::<LANES>();
        let mut greatest = lanes.splat(f32::NEG_INFINITY);
        for values in whole {
            greatest = lanes.max(lanes.load(values), greatest);
        }
        let mut greatest = lanes.greatest(greatest);
        for value in rest {
            greatest = if *value > greatest { *value } else { greatest };
        }
        greatest
    }
}

/// Σ e^(value − greatest)
struct SumExp<'a> {
    values: &'a [f32],
    greatest: f32,
}

impl Kernel for SumExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f64 {
        let greatest = lanes.splat(self.greatest);
        let mut total = 0.0;
        for block in self.values.chunks(BLOCK) {
            let (whole, rest) = block.as_chunks::<LANES>();
            let mut sums = lanes.splat(0.0);
            for values in whole {
                sums = lanes.add(sums, exp(lanes, lanes.sub(lanes.load(values), greatest)));
            }
            let mut last = [f32::NEG_INFINITY; LANES];
            last[..rest.len()].copy_from_slice(rest);
            if !rest.is_empty() {
                sums = lanes.add(sums, exp(lanes, lanes.sub(lanes.load(&last), greatest)));
            }
            total += f64::from(lanes.sum(sums));
        }
        total
    }
}

/// e^x, to two units in the last place; about 1e-38 below the normal numbers, about 2e38 above them.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(lanes: L, x: L::Floats) -> L::Floats {
    // The order of operands lets what is not a number through.
    let x = lanes.min(lanes.splat(88.0), lanes.max(lanes.splat(-87.3), x));
    let exponent = lanes.round(lanes.mul(x, lanes.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, of which the first has so few bits that its products are exact.
    let rest = lanes.fma(exponent, lanes.splat(-0.693_359_4), x);
    let rest = lanes.fma(exponent, lanes.splat(2.121_944_4e-4), rest);
    let mut series = lanes.splat(1.0 / 5_040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = lanes.fma(series, rest, lanes.splat(coefficient));
    }
    lanes.mul(series, lanes.power_of_two(exponent))
}

/// cap · tanh(x / cap), to 2e-7 of the cap.
#[inline(always)]
pub(crate) fn capped<L: Lanes>(lanes: L, x: L::Floats, cap: f32) -> L::Floats {
    // tanh u = (e^2u − 1) / (e^2u + 1)
    let power = exp(lanes, lanes.mul(x, lanes.splat(2.0 / cap)));
    let one = lanes.splat(1.0);
    let tanh = lanes.div(lanes.sub(power, one), lanes.add(power, one));
    lanes.mul(lanes.splat(cap), tanh)
}

/// y / (1 + e^−x)
#[inline(always)]
fn logistic_times<L: Lanes>(lanes: L, x: L::Floats, y: L::Floats) -> L::Floats {
    let power = exp(lanes, lanes.sub(lanes.splat(0.0), x));
    lanes.div(y, lanes.add(lanes.splat(1.0), power))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The result of every instruction set, equal to the bit.
    fn everywhere<T: PartialEq + std::fmt::Debug>(work: impl Fn(InstructionSet) -> T) -> T {
        let results: Vec<T> = InstructionSet::available().into_iter().map(work).collect();
        assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
        results.into_iter().next().unwrap()
    }

    proptest! {
        #[test]
        fn norms_are_right(rows in 1..4_usize, width in 1..100_usize, seed in prop::collection::vec(-9.0..9.0_f32, 400)) {
            let (values, gain) = (&seed[..rows * width], &seed[300..][..width]);
            let got = everywhere(|set| {
                let mut out = values.to_vec();
                rms_norm(set, &mut out, gain, 1e-5);
                out
            });
            for (row, got) in values.chunks(width).zip(got.chunks(width)) {
                let square: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                for ((x, gain), got) in row.iter().zip(gain).zip(got) {
                    let want = f64::from(*x) * f64::from(*gain) / (square + f64::from(1e-5_f32)).sqrt();
                    prop_assert!((f64::from(*got) - want).abs() <= 1e-6 * want.abs(), "{got} {want}");
                }
            }
        }

        #[test]
        fn gates_are_right(values in prop::collection::vec((-30.0..30.0_f32, -3.0..3.0_f32), 1..40)) {
            let (gate, up): (Vec<f32>, Vec<f32>) = values.into_iter().unzip();
            let silu = everywhere(|set| {
                let mut out = gate.clone();
                silu_gated(set, &mut out, &up);
                out
            });
            let gelu = everywhere(|set| {
                let mut out = gate.clone();
                gelu_gated(set, &mut out, &up);
                out
            });
            for i in 0..gate.len() {
                let (x, up) = (f64::from(gate[i]), f64::from(up[i]));
                let want = x / (1.0 + (-x).exp()) * up;
                prop_assert!((f64::from(silu[i]) - want).abs() <= 1e-6 * want.abs(), "{} {want}", silu[i]);
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                let want = 0.5 * x * (1.0 + u.tanh()) * up;
                prop_assert!((f64::from(gelu[i]) - want).abs() <= 1e-5 * want.abs() + 1e-7, "{} {want}", gelu[i]);
            }
        }

        #[test]
        fn caps_are_right(values in prop::collection::vec(-300.0..300.0_f32, 1..40), cap in 1.0..60.0_f32) {
            let got = everywhere(|set| {
                let mut out = values.clone();
                soft_cap(set, &mut out, cap);
                out
            });
            for (x, got) in values.iter().zip(got) {
                let want = f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh();
                prop_assert!((f64::from(got) - want).abs() <= 2e-7 * f64::from(cap), "{got} {want}");
            }
        }

        #[test]
        fn sums_of_exponentials_are_right(values in prop::collection::vec(-80.0..80.0_f32, 1..3000)) {
            let got = everywhere(|set| log_sum_exp(set, &values).to_bits());
            let most = f64::from(values.iter().copied().fold(f32::MIN, f32::max));
            let want = most + values.iter().map(|x| (f64::from(*x) - most).exp()).sum::<f64>().ln();
            prop_assert!((f64::from_bits(got) - want).abs() < 1e-6, "{} {want}", f64::from_bits(got));
        }

        #[test]
        fn exponentials_are_within_two_units(x in -87.0..88.0_f32) {
            struct Exp(f32);
            impl Kernel for Exp {
                type Output = f32;
                #[inline(always)]
                fn run<L: Lanes>(self, lanes: L) -> f32 {
                    lanes.greatest(exp(lanes, lanes.splat(self.0)))
                }
            }
            let got = everywhere(|set| set.run(Exp(x)));
            prop_assert!((f64::from(got) / f64::from(x).exp() - 1.0).abs() < 2.4e-7, "{got}");
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for set in InstructionSet::available() {
            let bad = [1.0, f32::NAN, 2.0];
            let functions: [fn(InstructionSet, &mut [f32]); 3] = [
                |set, values| silu_gated(set, values, &[1.0; 3]),
                |set, values| gelu_gated(set, values, &[1.0; 3]),
                |set, values| soft_cap(set, values, 30.0),
            ];
            for function in functions {
                let mut values = bad;
                function(set, &mut values);
                assert!(values[1].is_nan() && values[0].is_finite() && values[2].is_finite(), "{values:?}");
            }
            assert!(log_sum_exp(set, &bad).is_nan());
            let mut values = bad;
            rms_norm(set, &mut values, &[1.0; 3], 0.0);
            assert!(values.iter().all(|value| value.is_nan()));
        }
    }
}
