//! Owns rotary embedding: the angles of a position, and the rotation of heads by them.
//! Must never call the system's sines: machines must agree on every bit.

use crate::config::RopeStyle;

use super::elementary;
use super::lanes::{InstructionSet, Kernel, Lanes};

/// How fast each pair of elements turns.
#[derive(Clone, Debug)]
pub struct Rope {
    style: RopeStyle,
    /// Radians per position.
    speeds: Vec<f64>,
}

/// Cosines and sines of one position.
#[derive(Clone, Debug)]
pub struct Angles {
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rope {
    /// `dims` elements of a head turn, by `base^(-2i/dims) / (scale · factors[i])`; no factors mean ones.
    pub fn new(style: RopeStyle, base: f32, dims: usize, scale: f32, factors: &[f32]) -> Self {
        let log_base = elementary::ln(f64::from(base));
        let speed = |pair: usize| {
            let factor = factors.get(pair).map_or(1.0, |factor| f64::from(*factor));
            elementary::exp(-2.0 * pair as f64 / dims as f64 * log_base) / (f64::from(scale) * factor)
        };
        Self { style, speeds: (0..dims / 2).map(speed).collect() }
    }

    /// Those of a position: the same for all layers and heads.
    pub fn angles(&self, position: u32) -> Angles {
        let turn = |speed: &f64| {
            let (sin, cos) = elementary::sin_cos(f64::from(position) * speed);
            (cos as f32, sin as f32)
        };
        let (cosines, sines) = self.speeds.iter().map(turn).unzip();
        Angles { cosines, sines }
    }

    /// Turns every head of one row.
    ///
    /// # Panics
    /// If `heads` is no whole number of heads, or more elements turn than a head has.
    pub fn rotate(&self, set: InstructionSet, angles: &Angles, heads: &mut [f32], head_width: usize) {
        let fits = 2 * self.speeds.len() <= head_width && heads.len().is_multiple_of(head_width);
        assert!(fits && angles.sines.len() == self.speeds.len(), "{} {head_width}", heads.len());
        set.run(Rotate { style: self.style, angles, heads, head_width });
    }
}

struct Rotate<'a> {
    style: RopeStyle,
    angles: &'a Angles,
    heads: &'a mut [f32],
    head_width: usize,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        let Angles { cosines, sines } = self.angles;
        let turns = cosines.iter().zip(sines);
        for head in self.heads.chunks_exact_mut(self.head_width) {
            match self.style {
                RopeStyle::Adjacent => {
                    for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns.clone()) {
                        let [a, b] = *pair;
                        *pair = [a * cos - b * sin, a * sin + b * cos];
                    }
                }
                RopeStyle::Halves => {
                    let (first, second) = head.split_at_mut(cosines.len());
                    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(turns.clone()) {
                        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_turns_by_its_angle_and_the_rest_stays() {
        for style in [RopeStyle::Adjacent, RopeStyle::Halves] {
            let (dims, width) = (12, 16);
            let factors: Vec<f32> = (0..6).map(|i| 1.0 + i as f32).collect();
            let rope = Rope::new(style, 10_000.0, dims, 2.0, &factors);
            let before: Vec<f32> = (0..3 * width).map(|i| (i as f32 * 0.7).sin()).collect();
            let mut results = Vec::new();
            for set in InstructionSet::available() {
                let mut after = before.clone();
                rope.rotate(set, &rope.angles(1_234), &mut after, width);
                results.push(after);
            }
            assert!(results.iter().all(|result| *result == results[0]));
            for (before, after) in before.chunks(width).zip(results[0].chunks(width)) {
                for pair in 0..6 {
                    let speed = 10_000_f64.powf(-2.0 * pair as f64 / 12.0) / 2.0 / (1.0 + pair as f64);
                    let (sin, cos) = (1_234.0 * speed).sin_cos();
                    let (a, b) = match style {
                        RopeStyle::Adjacent => (2 * pair, 2 * pair + 1),
                        RopeStyle::Halves => (pair, pair + 6),
                    };
                    let (x, y) = (f64::from(before[a]), f64::from(before[b]));
                    assert!((f64::from(after[a]) - (x * cos - y * sin)).abs() < 1e-6);
                    assert!((f64::from(after[b]) - (x * sin + y * cos)).abs() < 1e-6);
                }
                assert_eq!(before[12..], after[12..]);
            }
        }
    }
}
