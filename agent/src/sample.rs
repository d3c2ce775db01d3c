//! From scores to the next byte: greedy, or drawn with temperature and nucleus.
//!
//! Deterministic in its seed. Must never see the model.

/// Why scores or settings cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub(crate) enum BadSampling {
    #[error("temperature must be from 0 to 2")]
    Temperature,
    #[error("top_p must be above 0, at most 1")]
    TopP,
    #[error("the model gave {0} scores where 256 were due")]
    Width(usize),
    #[error("the model's scores are not finite")]
    NotFinite,
}

/// Draws bytes. Temperature 0 is greedy: the first of the highest scores.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    temperature: f32,
    top_p: f32,
    state: u64,
}

impl Sampler {
    /// # Errors
    /// Settings outside OpenAI's ranges.
    pub(crate) fn new(temperature: f32, top_p: f32, seed: u64) -> Result<Self, BadSampling> {
        if !(0.0..=2.0).contains(&temperature) {
            return Err(BadSampling::Temperature);
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(BadSampling::TopP);
        }
        Ok(Self { temperature, top_p, state: seed })
    }

    /// The next byte for these 256 scores.
    ///
    /// # Errors
    /// Scores of another width, or none that is finite.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Result<u8, BadSampling> {
        if logits.len() != 256 {
            return Err(BadSampling::Width(logits.len()));
        }
        if !logits.iter().all(|score| score.is_finite()) {
            return Err(BadSampling::NotFinite);
        }
        let mut order: Vec<u8> = (0..=255).collect();
        // Stable, so that equal scores are taken in the order of their bytes.
        order.sort_by(|&a, &b| logits[usize::from(b)].total_cmp(&logits[usize::from(a)]));
        if self.temperature == 0.0 {
            return Ok(order[0]);
        }
        let top = logits[usize::from(order[0])];
        let temperature = f64::from(self.temperature);
        let weight = |byte: u8| (f64::from(logits[usize::from(byte)] - top) / temperature).exp();
        let total: f64 = order.iter().map(|&byte| weight(byte)).sum();
        let mut kept = 0.0;
        let mut count = 0;
        for &byte in &order {
            kept += weight(byte);
            count += 1;
            if kept >= total * f64::from(self.top_p) {
                break;
            }
        }
        let mut left = self.uniform() * kept;
        for &byte in &order[..count] {
            left -= weight(byte);
            if left <= 0.0 {
                return Ok(byte);
            }
        }
        Ok(order[count - 1])
    }

    /// SplitMix64 (Steele, Lea, Flood 2014), mapped to [0, 1).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
        let uniform = (mixed >> 11) as f64 / (1u64 << 53) as f64;
        uniform
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(of: &[(u8, f32)]) -> Vec<f32> {
        let mut logits = vec![-10.0; 256];
        for &(byte, score) in of {
            logits[usize::from(byte)] = score;
        }
        logits
    }

    #[test]
    fn greedy_takes_the_first_of_the_highest() {
        let mut sampler = Sampler::new(0.0, 1.0, 1).unwrap();
        assert_eq!(sampler.choose(&scores(&[(7, 1.0), (9, 1.0), (8, 0.5)])), Ok(7));
    }

    #[test]
    fn frequencies_follow_the_scores_and_the_nucleus_cuts_the_tail() {
        let logits = scores(&[(b'a', 2f32.ln()), (b'b', 0.0)]);
        let mut drawn = [0u32; 256];
        let mut sampler = Sampler::new(1.0, 1.0, 42).unwrap();
        for _ in 0..30_000 {
            drawn[usize::from(sampler.choose(&logits).unwrap())] += 1;
        }
        let ratio = f64::from(drawn[usize::from(b'a')]) / f64::from(drawn[usize::from(b'b')]);
        assert!((1.85..2.15).contains(&ratio), "{ratio}");
        let mut narrow = Sampler::new(1.0, 0.5, 42).unwrap();
        assert!((0..1_000).all(|_| narrow.choose(&logits) == Ok(b'a')));
    }

    #[test]
    fn one_seed_gives_one_sequence_and_bad_input_is_refused() {
        let logits = scores(&[(1, 0.0), (2, 0.0), (3, 0.0)]);
        let draw = |seed| {
            let mut sampler = Sampler::new(1.0, 1.0, seed).unwrap();
            (0..20).map(|_| sampler.choose(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        assert_eq!(Sampler::new(f32::NAN, 1.0, 0).unwrap_err(), BadSampling::Temperature);
        assert_eq!(Sampler::new(1.0, 0.0, 0).unwrap_err(), BadSampling::TopP);
        let mut sampler = Sampler::new(1.0, 1.0, 0).unwrap();
        assert_eq!(sampler.choose(&[0.0; 3]), Err(BadSampling::Width(3)));
        assert_eq!(sampler.choose(&[f32::NAN; 256]), Err(BadSampling::NotFinite));
    }
}
