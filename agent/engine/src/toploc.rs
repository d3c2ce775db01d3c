//! Owns commitments to what a model computed (TOPLOC, arXiv 2501.16007), and the check of one against a re-run.
//! Must never need the weights: states go in, 258 bytes or a verdict come out.
//!
//! Of the last hidden states of up to 32 decoded tokens, the 128 largest elements stand for all: another model, another
//! quantisation or another prompt has other ones. A polynomial through (place, value) holds them in two bytes each; whoever
//! re-computed the states evaluates it at the places of *their* largest elements. Where both agree on a place, the
//! values nearly do; elsewhere the polynomial gives noise.
//!
//! Places are reduced by the largest modulus that keeps them apart, values are bf16 bits, and arithmetic is modulo the
//! prime 65,497. The finite ones of all 65,536 patterns are below it.

use borsh::{BorshDeserialize, BorshSerialize};

use crate::limits::WIDTH_MAX;

/// Tokens under one commitment.
pub const TOKENS: usize = 32;
/// Elements that stand for all.
const ELEMENTS: usize = 128;
/// The largest prime at which all finite bf16 patterns stay apart.
const PRIME: u32 = 65_497;
/// Lowest modulus that is tried; 128 places that collide under every one above do not occur.
const MODULUS_MIN: u32 = 1 << 15;

// The paper's thresholds are 90, 10 and 8. These lie between what `tests/stage/commitments.rs` shows on SmolLM2 with
// weights of about four bits: honest runs on another backend have at least 119 agreeing, a mean of at most 3.7 and a
// median of at most 3; the same weights in another four-bit type at most 111, at least 9.9 and at least 6.

/// Of 128 elements, those whose sign and exponent must agree.
pub const AGREEING_MIN: usize = 100;
/// Largest mean difference of the fractions (7 bits) of those that agree.
pub const MEAN_MAX: f32 = 6.0;
/// Largest median difference.
pub const MEDIAN_MAX: f32 = 5.0;

/// Big-endian: the modulus, and the coefficients from the constant one on.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Commitment(pub Vec<u8>);

/// Bytes of the longest commitment.
pub const COMMITMENT_BYTES_MAX: usize = 2 + 2 * ELEMENTS;

/// What an agent commits to of one session: the states at `first..first + count`.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Span {
    /// Position of the first state: that of the row whose answer is the first token.
    pub first: u32,
    /// States, 1 to [`TOKENS`].
    pub count: u8,
    /// To all of them.
    pub commitment: Commitment,
}

impl Span {
    /// Whether a stranger's span is small and within a sequence of `length` positions.
    #[must_use]
    pub fn is_bounded(&self, length: u32) -> bool {
        (1..=TOKENS).contains(&usize::from(self.count))
            && self.first.checked_add(u32::from(self.count)).is_some_and(|end| end <= length)
            && self.commitment.0.len() <= COMMITMENT_BYTES_MAX
    }
}

/// Gathers the states of one session's answered rows and commits to them once they are certain to stand: rows of a
/// draft that was wrong are computed again, and only what was chosen in the end is committed to.
#[derive(Debug, Default)]
pub struct Committer {
    /// Position of the first state gathered.
    first: u32,
    rows: u32,
    /// `[rows, width]`.
    states: Vec<f32>,
}

impl Committer {
    /// A step begins at `position`: what was observed before it stands, what was observed from there on is void.
    pub fn settle(&mut self, position: u32, spans: &mut Vec<Span>) {
        self.keep(position.saturating_sub(self.first));
        while self.rows as usize >= TOKENS {
            self.commit_to(TOKENS as u32, spans);
        }
        // Rows that nobody asks for follow, so the next state observed is not this one's neighbour.
        if position > self.first.saturating_add(self.rows) {
            self.commit_to(self.rows, spans);
        }
    }

    /// The state of an answered row. Rows of one step come in order.
    pub fn observe(&mut self, position: u32, state: &[f32]) {
        if position != self.first.saturating_add(self.rows) {
            self.keep(0);
        }
        if self.rows == 0 {
            self.first = position;
        }
        self.states.extend(state);
        self.rows += 1;
    }

    /// The session ends with the first `length` positions right: commits to what is left.
    pub fn end(&mut self, length: u32, spans: &mut Vec<Span>) {
        self.settle(length, spans);
        self.commit_to(self.rows, spans);
    }

    fn keep(&mut self, rows: u32) {
        if rows < self.rows {
            self.states.truncate(rows as usize * self.width());
            self.rows = rows;
        }
    }

    fn commit_to(&mut self, rows: u32, spans: &mut Vec<Span>) {
        if rows == 0 {
            return;
        }
        let values = rows as usize * self.width();
        if let Some(commitment) = self.states.get(..values).and_then(commit) {
            spans.push(Span { first: self.first, count: rows as u8, commitment });
        }
        self.states.drain(..values);
        self.first += rows;
        self.rows -= rows;
    }

    fn width(&self) -> usize {
        self.states.len() / self.rows.max(1) as usize
    }
}

/// How a re-run compares with what was committed to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Elements compared.
    pub elements: usize,
    /// Those whose sign and exponent agree.
    pub agreeing: usize,
    /// Mean difference of their fractions, in units of the last of 7 bits.
    pub mean: f32,
    /// Median of the same.
    pub median: f32,
}

impl Comparison {
    /// Whether that is what an honest agent's commitment gives.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.elements > 0
            && self.agreeing * ELEMENTS >= AGREEING_MIN * self.elements
            && self.mean <= MEAN_MAX
            && self.median <= MEDIAN_MAX
    }
}

/// Commits to states, `[tokens, width]`: up to [`TOKENS`] of them. `None` for none, too many, values that are not
/// finite, or places that no modulus keeps apart.
#[must_use]
pub fn commit(states: &[f32]) -> Option<Commitment> {
    let points = largest(states)?;
    let modulus = (MODULUS_MIN..=PRIME).rev().find(|modulus| are_apart(&points, *modulus))?;
    let reduced: Vec<(u32, u32)> =
        points.iter().map(|(place, bits)| (place % modulus, u32::from(*bits))).collect();
    let words = std::iter::once(modulus).chain(interpolate(&reduced));
    Some(Commitment(words.flat_map(|word| (word as u16).to_be_bytes()).collect()))
}

/// Compares states of one's own, from a re-run, with a stranger's commitment. `None` if those are no states, or the
/// commitment none to that many.
#[must_use]
pub fn compare(commitment: &Commitment, states: &[f32]) -> Option<Comparison> {
    let points = largest(states)?;
    if commitment.0.len() != 2 + 2 * points.len() {
        return None;
    }
    let mut words =
        commitment.0.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let modulus = words.next().filter(|modulus| (MODULUS_MIN..=PRIME).contains(modulus))?;
    let coefficients: Vec<u32> = words.collect();
    let mut differences: Vec<u16> = Vec::with_capacity(points.len());
    for (place, own) in &points {
        let claimed = evaluate(&coefficients, place % modulus) as u16;
        if claimed >> 7 == own >> 7 {
            differences.push((claimed & 0x7f).abs_diff(own & 0x7f));
        }
    }
    differences.sort_unstable();
    let agreeing = differences.len();
    let sum: f32 = differences.iter().map(|difference| f32::from(*difference)).sum();
    let middle = |index: usize| differences.get(index).map_or(128.0, |difference| f32::from(*difference));
    Some(Comparison {
        elements: points.len(),
        agreeing,
        // Where nothing agrees, both are beyond any threshold.
        mean: if agreeing == 0 { 128.0 } else { sum / agreeing as f32 },
        median: if agreeing == 0 { 128.0 } else { (middle((agreeing - 1) / 2) + middle(agreeing / 2)) / 2.0 },
    })
}

/// The places and bf16 patterns of the largest elements, of equals the first.
fn largest(states: &[f32]) -> Option<Vec<(u32, u16)>> {
    let whole = !states.is_empty() && states.len() <= TOKENS * WIDTH_MAX as usize;
    if !whole || states.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let bits = |value: f32| half::bf16::from_f32(value).to_bits();
    let mut points: Vec<(u32, u16)> = (0_u32..).zip(states.iter().map(|value| bits(*value))).collect();
    let key = |(place, bits): &(u32, u16)| (!(bits & 0x7fff), *place);
    let count = ELEMENTS.min(points.len());
    points.select_nth_unstable_by_key(count - 1, key);
    points.truncate(count);
    Some(points)
}

fn are_apart(points: &[(u32, u16)], modulus: u32) -> bool {
    let mut places: Vec<u32> = points.iter().map(|(place, _)| place % modulus).collect();
    places.sort_unstable();
    places.windows(2).all(|pair| pair[0] != pair[1])
}

/// Coefficients, the constant one first, of the polynomial through points of different x below the prime.
fn interpolate(points: &[(u32, u32)]) -> Vec<u32> {
    // Newton's divided differences, in place.
    let mut differences: Vec<u32> = points.iter().map(|(_, y)| y % PRIME).collect();
    for order in 1..points.len() {
        for index in (order..points.len()).rev() {
            let rise = PRIME + differences[index] - differences[index - 1];
            let run = PRIME + points[index].0 - points[index - order].0;
            differences[index] = multiply(rise % PRIME, inverse(run % PRIME));
        }
    }
    // From the nested form outwards: p ← p · (x - x_i) + d_i.
    let mut coefficients = vec![0; points.len()];
    for ((x, _), difference) in points.iter().zip(&differences).rev() {
        for power in (1..coefficients.len()).rev() {
            let lower = coefficients[power - 1];
            coefficients[power] = (lower + PRIME - multiply(coefficients[power], *x)) % PRIME;
        }
        coefficients[0] = (difference + PRIME - multiply(coefficients[0], *x)) % PRIME;
    }
    coefficients
}

/// Horner's rule. Coefficients and x may be any 16 bits.
fn evaluate(coefficients: &[u32], x: u32) -> u32 {
    coefficients.iter().rev().fold(0, |sum, coefficient| (multiply(sum, x) + coefficient) % PRIME)
}

fn multiply(one: u32, other: u32) -> u32 {
    (u64::from(one) * u64::from(other) % u64::from(PRIME)) as u32
}

/// x^(p-2), which is 1/x.
fn inverse(x: u32) -> u32 {
    let (mut power, mut square, mut exponent) = (1, x, PRIME - 2);
    while exponent > 0 {
        if exponent & 1 == 1 {
            power = multiply(power, square);
        }
        square = multiply(square, square);
        exponent >>= 1;
    }
    power
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// States whose elements follow no pattern, some much larger than most.
    fn states(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5;
            uniform * uniform * uniform * 100.0
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn the_size_is_the_papers() {
        assert_eq!(commit(&states(32 * 576, 1)).unwrap().0.len(), 258);
    }

    #[test]
    fn what_was_committed_to_agrees_with_itself_and_with_its_like() {
        let honest = states(32 * 4_096, 2);
        let commitment = commit(&honest).unwrap();
        let same = compare(&commitment, &honest).unwrap();
        assert_eq!(same, Comparison { elements: 128, agreeing: 128, mean: 0.0, median: 0.0 });
        let noisy: Vec<f32> = honest
            .iter()
            .zip(states(honest.len(), 3))
            .map(|(value, noise)| value * (1.0 + noise * 1e-4))
            .collect();
        let like = compare(&commitment, &noisy).unwrap();
        assert!(like.passes() && like.agreeing > 110, "{like:?}");
        let other = compare(&commitment, &states(honest.len(), 4)).unwrap();
        assert!(!other.passes() && other.agreeing < 30, "{other:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        let honest = states(1_000, 2);
        let commitment = commit(&honest).unwrap();
        for bad in [vec![], vec![f32::NAN; 200], vec![f32::INFINITY; 200]] {
            assert_eq!(commit(&bad), None);
            assert_eq!(compare(&commitment, &bad), None);
        }
        assert_eq!(compare(&Commitment(commitment.0[..256].to_vec()), &honest), None);
        assert_eq!(compare(&Commitment(vec![0; 258]), &honest), None, "a modulus of zero");
        let noise = compare(&Commitment(vec![0x80; 258]), &honest).unwrap();
        assert!(!noise.passes());
    }

    /// Observes as a stage would that computes rows `position..` of these states.
    fn step(committer: &mut Committer, all: &[f32], rows: std::ops::Range<u32>) -> Vec<Span> {
        let mut spans = Vec::new();
        committer.settle(rows.start, &mut spans);
        for row in rows {
            committer.observe(row, &all[row as usize * 64..][..64]);
        }
        spans
    }

    #[test]
    fn what_is_committed_to_is_what_stood() {
        let all = states(100 * 64, 6);
        let wrong = states(100 * 64, 7);
        let of = |first: u32, count: u8| {
            let values = first as usize * 64..(first as usize + usize::from(count)) * 64;
            Span { first, count, commitment: commit(&all[values]).unwrap() }
        };
        let mut committer = Committer::default();
        // One token a step from position 9 on, then a draft of which two were right.
        for row in 9..40 {
            assert_eq!(step(&mut committer, &all, row..row + 1), []);
        }
        assert_eq!(step(&mut committer, &wrong, 40..46), []);
        assert_eq!(step(&mut committer, &all, 40..43), [], "only 31 of them stand");
        assert_eq!(step(&mut committer, &wrong, 43..50), [of(9, 32)]);
        assert_eq!(step(&mut committer, &all, 43..44), []);
        // Rows that nobody asked for lie between.
        assert_eq!(step(&mut committer, &all, 60..61), [of(41, 3)]);
        let mut spans = Vec::new();
        committer.end(61, &mut spans);
        assert_eq!(spans, [of(60, 1)]);
        committer.end(61, &mut spans);
        assert_eq!(spans.len(), 1, "nothing is left");
    }

    #[test]
    fn a_session_that_begins_anew_commits_to_nothing_old() {
        let all = states(100 * 64, 8);
        let mut committer = Committer::default();
        for row in 5..30 {
            step(&mut committer, &all, row..row + 1);
        }
        assert_eq!(step(&mut committer, &all, 0..1), []);
        let mut spans = Vec::new();
        committer.end(1, &mut spans);
        assert_eq!((spans[0].first, spans[0].count), (0, 1));
    }

    #[test]
    fn a_span_of_a_stranger_is_bounded() {
        let span = |first, count, bytes| Span { first, count, commitment: Commitment(vec![0; bytes]) };
        assert!(span(3, 32, 258).is_bounded(35));
        for bad in
            [span(4, 32, 258), span(0, 0, 258), span(0, 33, 258), span(0, 1, 259), span(u32::MAX, 1, 2)]
        {
            assert!(!bad.is_bounded(35), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn the_polynomial_goes_through_its_points(
            points in prop::collection::btree_map(0_u32..PRIME, 0_u32..PRIME, 1..129),
        ) {
            let points: Vec<(u32, u32)> = points.into_iter().collect();
            let coefficients = interpolate(&points);
            for (x, y) in points {
                prop_assert_eq!(evaluate(&coefficients, x), y);
            }
        }

        #[test]
        fn strangers_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 250..262), count in 1_usize..300) {
            if let Some(comparison) = compare(&Commitment(bytes), &states(count, 5)) {
                prop_assert!(comparison.agreeing <= comparison.elements);
            }
        }
    }
}
