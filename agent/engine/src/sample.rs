//! Owns the choice of a token from logits.
//! Must never keep state: a choice is a pure function of the logits, the sampling values, and the token's position, so
//! that a replayed or speculated step chooses what the first would have.
//!
//! Temperature first, then the nucleus (`top_p`), as Hugging Face's and OpenAI's do. The draw is one number from a keyed
//! hash of seed and position. Sums run in token order and in f64, so the choice depends on nothing else.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::limits::TOP_LOGPROBS_MAX;
use crate::step::{Pick, Sampling};

/// Highest temperature; OpenAI's.
pub const TEMPERATURE_MAX: f32 = 2.0;

/// What is wrong with sampling values, in words; `None` if nothing is.
#[must_use]
pub fn fault(sampling: &Sampling) -> Option<String> {
    let Sampling { temperature, top_p, top_logprobs, seed: _ } = sampling;
    if !(0.0..=TEMPERATURE_MAX).contains(temperature) {
        return Some(format!("the temperature is {temperature}, allowed are 0 to {TEMPERATURE_MAX}"));
    }
    if !(*top_p > 0.0 && *top_p <= 1.0) {
        return Some(format!("top_p is {top_p}, allowed are values above 0 up to 1"));
    }
    let asked = usize::from(*top_logprobs);
    (asked > TOP_LOGPROBS_MAX)
        .then(|| format!("{asked} alternatives are asked for, allowed are 0 to {TOP_LOGPROBS_MAX}"))
}

/// Chooses the token at `position`; `None` if a logit is not finite or there are none.
#[must_use]
pub fn choose(logits: &[f32], sampling: &Sampling, position: u32) -> Option<Pick> {
    let spread = Spread::of(logits)?;
    let token = if sampling.temperature > 0.0 {
        let uniform = uniform(sampling.seed, position);
        draw(logits, spread.largest, sampling, uniform)
    } else {
        first_at(logits, spread.largest)
    };
    let top = likeliest(logits, usize::from(sampling.top_logprobs));
    Some(Pick {
        token: token as u32,
        logprob: spread.logprob(logits[token]),
        top: top.into_iter().map(|(token, logit)| (token, spread.logprob(logit))).collect(),
    })
}

/// The log-probability of `target` at temperature 1, in nats; `None` if a logit is not finite or the target is none of
/// them.
#[must_use]
pub fn score(logits: &[f32], target: u32) -> Option<f32> {
    let spread = Spread::of(logits)?;
    Some(spread.logprob(*logits.get(target as usize)?))
}

/// What turns logits into log-probabilities.
struct Spread {
    largest: f32,
    /// ln Σ exp(logit - largest)
    log_sum: f64,
}

impl Spread {
    fn of(logits: &[f32]) -> Option<Self> {
        // The largest magnitude's bits: above every finite value's if one is not finite.
        let magnitude = logits.iter().fold(0_u32, |most, logit| most.max(logit.abs().to_bits()));
        if logits.is_empty() || magnitude >= f32::INFINITY.to_bits() {
            return None;
        }
        let largest = largest(logits);
        Some(Self { largest, log_sum: sum_of_exponentials(logits, largest, 1.0).ln() })
    }

    fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.largest) - self.log_sum) as f32
    }
}

/// Values that are summed side by side, so that the compiler can use vector units.
const LANES: usize = 16;

fn largest(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = logits.as_chunks::<LANES>();
    for part in whole {
        for (lane, value) in lanes.iter_mut().zip(part) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, value| most.max(*value))
}

/// Σ exp((logit - largest) · rate).
fn sum_of_exponentials(logits: &[f32], largest: f32, rate: f32) -> f64 {
    /// Terms per lane that are added in f32 before they go to f64.
    const RUN: usize = 64;
    let mut sum = 0.0;
    for run in logits.chunks(RUN * LANES) {
        let mut lanes = [0.0_f32; LANES];
        let (whole, rest) = run.as_chunks::<LANES>();
        for part in whole {
            for (lane, logit) in lanes.iter_mut().zip(part) {
                *lane += exponential((logit - largest) * rate);
            }
        }
        sum += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
        sum += rest.iter().map(|logit| f64::from(exponential((logit - largest) * rate))).sum::<f64>();
    }
    sum
}

/// e^x for x of 0 and below, to 2 units in the last place; 0 below -87. Plain arithmetic, unlike the library's, which
/// differs between platforms and is not vectorised.
fn exponential(x: f32) -> f32 {
    /// Adding and subtracting it rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let powers = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    // ln 2 in two parts, the first of few bits, so that nothing is lost in the product.
    let rest = (clamped - powers * 0.693_359_4) - powers * -2.121_944_4e-4;
    let mut sum = 1.987_569_2e-4_f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum * rest + coefficient;
    }
    let fraction = sum * rest * rest + rest + 1.0;
    let scale = f32::from_bits(((powers as i32 + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { fraction * scale }
}

fn first_at(logits: &[f32], value: f32) -> usize {
    logits.iter().position(|logit| *logit == value).unwrap_or(0)
}

/// The token at `uniform`, 0 to below 1, of the distribution.
fn draw(logits: &[f32], largest: f32, sampling: &Sampling, uniform: f64) -> usize {
    let rate = 1.0 / sampling.temperature;
    if !rate.is_finite() {
        return first_at(logits, largest);
    }
    let total = sum_of_exponentials(logits, largest, rate);
    let weight = |logit: f32| exponential((logit - largest) * rate);
    if sampling.top_p >= 1.0 {
        let weighted = logits.iter().enumerate().map(|(token, logit)| (token, f64::from(weight(*logit))));
        return walk(weighted, uniform * total).unwrap_or_else(|| first_at(logits, largest));
    }
    let nucleus = nucleus(logits, &weight, f64::from(sampling.top_p), total);
    let kept: f64 = nucleus.iter().map(|(_, weight)| weight).sum();
    walk(nucleus.into_iter(), uniform * kept).unwrap_or_else(|| first_at(logits, largest))
}

/// The first item at which the running sum exceeds `goal`; the last with any weight if rounding leaves the sum short.
fn walk(weighted: impl Iterator<Item = (usize, f64)>, goal: f64) -> Option<usize> {
    let (mut sum, mut last) = (0.0, None);
    for (token, weight) in weighted.filter(|(_, weight)| *weight > 0.0) {
        sum += weight;
        last = Some(token);
        if sum > goal {
            break;
        }
    }
    last
}

/// The fewest likeliest tokens that together weigh at least `top_p` of `total`, falling, at least one.
///
/// What weighs less than the (1 - top_p)/n-th part of the total cannot be among them: all n of such together are not
/// missed. That leaves few to order, out of which the heap gives only as many as are needed.
fn nucleus(logits: &[f32], weight: &impl Fn(f32) -> f32, top_p: f64, total: f64) -> Vec<(usize, f64)> {
    let least = ((1.0 - top_p) * total / logits.len() as f64) as f32 * 0.999;
    let candidates = logits.iter().enumerate().filter_map(|(token, logit)| {
        let weight = weight(*logit);
        (weight >= least).then_some(Candidate { token, logit: *logit, weight })
    });
    let mut heap: BinaryHeap<Candidate> = candidates.collect();
    let (mut kept, mut sum) = (Vec::new(), 0.0);
    while let Some(candidate) = heap.pop() {
        sum += f64::from(candidate.weight);
        kept.push((candidate.token, f64::from(candidate.weight)));
        if sum >= top_p * total {
            break;
        }
    }
    kept
}

/// The `count` likeliest tokens and their logits, falling; of equals the lowest first.
fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    if count == 0 {
        return top;
    }
    let mut bar = f32::NEG_INFINITY;
    for (token, logit) in logits.iter().enumerate().filter(|(_, logit)| logit.is_finite()) {
        if top.len() == count && *logit <= bar {
            continue;
        }
        let place = top.partition_point(|(_, other)| other >= logit);
        top.insert(place, (token as u32, *logit));
        top.truncate(count);
        bar = top.last().map_or(bar, |(_, logit)| *logit);
    }
    top
}

/// A token in the order of likelihood; of equals the lowest is the greatest.
struct Candidate {
    token: usize,
    logit: f32,
    weight: f32,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.logit.total_cmp(&other.logit).then_with(|| other.token.cmp(&self.token))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// A number of 0 to below 1, from 53 bits of a keyed hash of the position.
fn uniform(seed: u64, position: u32) -> f64 {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let digest = blake3::keyed_hash(&key, &position.to_le_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    (u64::from_le_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampling(temperature: f32, top_p: f32, seed: u64) -> Sampling {
        Sampling { temperature, top_p, seed, top_logprobs: 0 }
    }

    fn token(logits: &[f32], temperature: f32, top_p: f32, seed: u64) -> u32 {
        choose(logits, &sampling(temperature, top_p, seed), 7).unwrap().token
    }

    #[test]
    fn at_temperature_zero_the_lowest_of_the_likeliest_is_chosen() {
        let mut logits = vec![-1.0; 100];
        logits[41] = 2.0;
        logits[40] = 2.0;
        assert_eq!(token(&logits, 0.0, 1.0, 3), 40);
        assert_eq!(token(&logits, 1e-40, 1.0, 3), 40, "a temperature whose inverse overflows");
        assert_eq!(token(&[-0.0, 0.0], 0.0, 1.0, 3), 0);
    }

    #[test]
    fn what_is_not_finite_is_never_chosen_from() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(choose(&[1.0, bad], &sampling(0.0, 1.0, 0), 0), None);
            assert_eq!(score(&[1.0, bad], 0), None);
        }
        assert_eq!(choose(&[], &sampling(0.0, 1.0, 0), 0), None);
        assert_eq!(score(&[1.0], 1), None);
    }

    #[test]
    fn nonsense_is_named() {
        for (temperature, top_p, top_logprobs, word) in [
            (-0.1, 1.0, 0, "temperature"),
            (2.1, 1.0, 0, "temperature"),
            (f32::NAN, 1.0, 0, "temperature"),
            (f32::INFINITY, 1.0, 0, "temperature"),
            (1.0, 0.0, 0, "top_p"),
            (1.0, 1.1, 0, "top_p"),
            (1.0, f32::NAN, 0, "top_p"),
            (1.0, 1.0, 21, "alternatives"),
        ] {
            let found = fault(&Sampling { temperature, top_p, seed: 0, top_logprobs });
            assert!(found.as_deref().is_some_and(|fault| fault.contains(word)), "{found:?} lacks {word}");
        }
        assert_eq!(fault(&Sampling { temperature: 2.0, top_p: 1.0, seed: 0, top_logprobs: 20 }), None);
        assert_eq!(fault(&sampling(0.0, f32::MIN_POSITIVE, 0)), None);
    }

    #[test]
    fn exponentials_are_exact_to_two_units() {
        for step in 0..200_000 {
            let x = -(step as f32) * 0.000_435;
            let (found, exact) = (f64::from(exponential(x)), f64::from(x).exp());
            assert!((found - exact).abs() <= exact * 2.4e-7, "exp({x}) is {found}, not {exact}");
        }
        assert_eq!((exponential(0.0), exponential(-1e30)), (1.0, 0.0));
    }

    /// Draws by many seeds against the probabilities: chi-square, at a chance of 10^-6 or so to fail by luck, if the
    /// seeds were not fixed.
    fn check_distribution(logits: &[f32], temperature: f32, top_p: f32, expected: &[f64]) {
        const DRAWS: u64 = 40_000;
        let mut counts = vec![0_u64; logits.len()];
        for seed in 0..DRAWS {
            counts[token(logits, temperature, top_p, seed) as usize] += 1;
        }
        let mut chi_square = 0.0;
        for (count, probability) in counts.iter().zip(expected) {
            if *probability == 0.0 {
                assert_eq!(*count, 0, "a token outside the nucleus was drawn");
            } else {
                let mean = probability * DRAWS as f64;
                chi_square += (*count as f64 - mean).powi(2) / mean;
            }
        }
        let degrees = expected.iter().filter(|probability| **probability > 0.0).count() as f64 - 1.0;
        assert!(
            chi_square < degrees + 5.0 * (2.0 * degrees).sqrt() + 8.0,
            "{chi_square} for {degrees} degrees"
        );
    }

    fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let power = |logit: &f32| (f64::from(logit - greatest) / temperature).exp();
        let powers: Vec<f64> = logits.iter().map(power).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|power| power / sum).collect()
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0, 2.0, 1.0, -1.5, 0.5, 1.9, -0.2, 0.1, -2.0];
        for temperature in [0.5, 1.0, 2.0] {
            check_distribution(&logits, temperature, 1.0, &softmax(&logits, f64::from(temperature)));
        }
        // With temperature 1, the three likeliest have 0.77 of the probability, the two likeliest 0.65.
        let mut expected = softmax(&logits, 1.0);
        let kept = [1, 2, 5];
        let sum: f64 = kept.iter().map(|token| expected[*token]).sum();
        for (token, probability) in expected.iter_mut().enumerate() {
            *probability = if kept.contains(&token) { *probability / sum } else { 0.0 };
        }
        check_distribution(&logits, 1.0, 0.7, &expected);
    }

    #[test]
    fn the_nucleus_is_the_fewest_that_reach_top_p() {
        // Probabilities of exactly 1/4 each.
        let flat = [0.0; 4];
        let members = |top_p| {
            let weight = |logit: f32| exponential(logit);
            nucleus(&flat, &weight, top_p, 4.0).iter().map(|(token, _)| *token).collect::<Vec<_>>()
        };
        assert_eq!(members(1e-9), [0]);
        assert_eq!(members(0.25), [0]);
        assert_eq!(members(0.250_001), [0, 1]);
        assert_eq!(members(0.75), [0, 1, 2]);
        assert_eq!(members(0.76), [0, 1, 2, 3]);
    }

    #[test]
    fn positions_and_seeds_draw_apart() {
        let logits = [0.0; 16];
        let draws = |seed: u64| -> Vec<u32> {
            (0..64)
                .map(|position| choose(&logits, &sampling(1.0, 1.0, seed), position).unwrap().token)
                .collect()
        };
        assert_eq!(draws(5), draws(5));
        let equal = draws(5).iter().zip(draws(6)).filter(|(one, other)| **one == *other).count();
        assert!(equal < 16, "{equal} of 64 draws agree between seeds");
        let repeated = draws(5).windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!(repeated < 16, "{repeated} of 63 draws repeat the one before");
    }

    proptest! {
        #[test]
        fn logprobs_and_alternatives_are_those_of_a_full_sort(
            logits in prop::collection::vec(-30_f32..30.0, 1..300), count in 0_u8..21, seed in any::<u64>(),
            temperature in 0_f32..2.0, top_p in 0.01_f32..1.0,
        ) {
            let sampling = Sampling { temperature, top_p, seed, top_logprobs: count };
            let pick = choose(&logits, &sampling, 1).unwrap();
            let exact: Vec<f64> = softmax(&logits, 1.0).iter().map(|probability| probability.ln()).collect();
            prop_assert!((f64::from(pick.logprob) - exact[pick.token as usize]).abs() < 1e-4);
            prop_assert_eq!(score(&logits, pick.token), Some(pick.logprob));

            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|one, other| logits[*other].total_cmp(&logits[*one]).then(one.cmp(other)));
            let expected: Vec<u32> = order.iter().take(usize::from(count)).map(|token| *token as u32).collect();
            let found: Vec<u32> = pick.top.iter().map(|(token, _)| *token).collect();
            prop_assert_eq!(found, expected);
            for (token, logprob) in &pick.top {
                prop_assert!((f64::from(*logprob) - exact[*token as usize]).abs() < 1e-4);
            }

            // The nucleus by a full sort, a little generous at its edge.
            if temperature > 0.01 {
                let warm = softmax(&logits, f64::from(temperature));
                let before: f64 = order
                    .iter()
                    .take_while(|token| **token as u32 != pick.token)
                    .map(|token| warm[*token])
                    .sum();
                prop_assert!(before < f64::from(top_p) + 1e-5, "{} of the probability is before it", before);
            }
        }
    }
}
