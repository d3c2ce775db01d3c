//! Owns the crate's only source of pseudo-random numbers: pure integer functions of their arguments.
//! Must never read a clock, the operating system's entropy, or call a mathematical library: the numbers are part of
//! what other machines recompute.

/// One step of SplitMix64: a bijection of `u64` whose outputs pass statistical tests even for consecutive inputs.
#[must_use]
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Folds several numbers into one; their order matters.
#[must_use]
pub(crate) fn mix_all(values: &[u64]) -> u64 {
    values.iter().fold(values.len() as u64, |state, value| mix(state ^ mix(*value)))
}

/// Maps a random `u64` onto `0..bound` by multiplication, without the bias of a remainder. Zero when `bound` is 0.
#[must_use]
pub(crate) fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

/// A value of mean 0 and deviation 1, near enough to normal for initial weights: the sum of twelve uniform values
/// (Irwin and Hall), in integers until the last division, so that every machine gets the same bits.
#[must_use]
pub(crate) fn normal(random: u64) -> f32 {
    let mut sum: i64 = 0;
    for part in 0..3u64 {
        let bits = mix(random ^ (part << 62));
        for lane in 0..4 {
            sum += ((bits >> (16 * lane)) & 0xffff) as i64;
        }
    }
    // Twelve uniform values in 0..65536: mean 6 * 65535, variance 12 * 65536² / 12.
    (sum - 6 * 65_535) as f32 / 65_536.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_has_mean_zero_and_deviation_one() {
        let samples: Vec<f64> = (0..20_000u64).map(|i| f64::from(normal(mix(i)))).collect();
        let mean = samples.iter().sum::<f64>() / samples.len() as f64;
        let variance = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / samples.len() as f64;
        assert!(mean.abs() < 0.03, "{mean}");
        assert!((variance - 1.0).abs() < 0.05, "{variance}");
    }

    #[test]
    fn below_covers_its_range_and_nothing_else() {
        let mut seen = [false; 7];
        for i in 0..1_000 {
            seen[below(mix(i), 7) as usize] = true;
        }
        assert_eq!(seen, [true; 7]);
        assert_eq!(below(u64::MAX, 0), 0);
    }

    #[test]
    fn order_and_length_matter() {
        assert_ne!(mix_all(&[1, 2]), mix_all(&[2, 1]));
        assert_ne!(mix_all(&[1]), mix_all(&[1, 0]));
    }
}
