//! Owns exp, ln, sin and cos of single numbers, from IEEE operations alone, so that every machine gets the same bits.
//! Must never call the system's mathematics: its last bits differ from platform to platform.
//!
//! All are good to about 1e-15, relative to the result or, for sin and cos, to one.

use std::f64::consts::{FRAC_2_PI, LN_2, LOG2_E, SQRT_2};

/// ln 2 without its lower bits, so that its products with whole exponents are exact; and the rest.
const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// π/2 likewise.
const HALF_PI_HIGH: f64 = 1.570_796_326_734_125_6;
const HALF_PI_LOW: f64 = 6.077_100_506_506_192e-11;

/// e^x; 0 where that is below the normal numbers, infinity above them.
pub(crate) fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let exponent = (x * LOG2_E).round_ties_even();
    if exponent < -1_021.0 {
        return 0.0;
    }
    if exponent > 1_023.0 {
        return f64::INFINITY;
    }
    let rest = x - exponent * LN_2_HIGH - exponent * LN_2_LOW;
    let series = (1..=14).rev().fold(1.0, |sum, n| 1.0 + sum * rest / f64::from(n));
    series * power_of_two(exponent as i64)
}

/// The natural logarithm of a positive number; minus infinity of zero, and no number of anything else.
pub(crate) fn ln(x: f64) -> f64 {
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x.is_infinite() {
        return x;
    }
    if x < f64::MIN_POSITIVE {
        return ln(x * power_of_two(60)) - 60.0 * LN_2;
    }
    let bits = x.to_bits();
    let mut exponent = (bits >> 52).cast_signed() - 1_023;
    let mut mantissa = f64::from_bits(bits & !(0x7ff << 52) | 0x3ff << 52);
    if mantissa > SQRT_2 {
        (mantissa, exponent) = (mantissa / 2.0, exponent + 1);
    }
    // ln m = 2 artanh((m − 1) / (m + 1))
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let series = (0..=11).rev().fold(0.0, |sum, n| sum * s * s + 1.0 / f64::from(2 * n + 1));
    exponent as f64 * LN_2_HIGH + (exponent as f64 * LN_2_LOW + 2.0 * s * series)
}

/// Sine and cosine of angles up to a few million.
pub(crate) fn sin_cos(x: f64) -> (f64, f64) {
    let quarters = (x * FRAC_2_PI).round_ties_even();
    let rest = x - quarters * HALF_PI_HIGH - quarters * HALF_PI_LOW;
    let square = rest * rest;
    let series = |first: u32| {
        let terms = (1..=8).rev().map(|n| f64::from((2 * n + first - 1) * (2 * n + first)));
        terms.fold(1.0, |sum, factor| 1.0 - sum * square / factor)
    };
    let (sin, cos) = (rest * series(1), series(0));
    match (quarters as i64).rem_euclid(4) {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// 2^exponent of the normal numbers.
fn power_of_two(exponent: i64) -> f64 {
    f64::from_bits((exponent + 1_023).cast_unsigned() << 52)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exp_is_within_a_few_bits(x in -700.0..700.0_f64) {
            prop_assert!((exp(x) / x.exp() - 1.0).abs() < 1e-15);
        }

        #[test]
        fn ln_is_within_a_few_bits(x in -700.0..700.0_f64) {
            let x = x.exp();
            prop_assert!((ln(x) - x.ln()).abs() <= 1e-15 * x.ln().abs().max(1e-3));
        }

        #[test]
        fn sine_and_cosine_are_within_a_few_bits(x in -4e6..4e6_f64) {
            let (sin, cos) = sin_cos(x);
            prop_assert!((sin - x.sin()).abs() < 1e-14 && (cos - x.cos()).abs() < 1e-14, "{sin} {cos}");
        }
    }

    #[test]
    fn edges_are_what_they_should_be() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(f64::INFINITY), f64::INFINITY);
        assert!(exp(f64::NAN).is_nan());
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        assert_eq!(ln(f64::INFINITY), f64::INFINITY);
        assert!(ln(-1.0).is_nan() && ln(f64::NAN).is_nan());
        assert!((ln(5e-324) - 5e-324_f64.ln()).abs() < 1e-10);
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
    }
}
