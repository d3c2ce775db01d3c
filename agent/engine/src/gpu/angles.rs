//! Owns the angles by which rotary embeddings turn queries and keys.
//! Must never run on a device: of an angle of thousands, a GPU's sine is worth little.

use super::buffers::TABLES;
use crate::config::{ModelConfig, Rope};

/// Radians per position of each pair, rounded as `cpu::rope` rounds them, for layers that see the whole context and
/// for those that slide.
pub(crate) struct Angles {
    frequencies: [Vec<f32>; TABLES as usize],
}

impl Angles {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let Rope { base, window_base, dims, scale, factors, .. } = &config.rope;
        let table = |base: f32, scale: f32| {
            let frequency = |pair: u32| {
                let factor = factors.get(pair as usize).copied().unwrap_or(1.0);
                let turns = f64::from(base).powf(-f64::from(2 * pair) / f64::from(*dims));
                (turns / f64::from(factor) / f64::from(scale)) as f32
            };
            (0..dims / 2).map(frequency).collect()
        };
        Self { frequencies: [table(*base, *scale), table(*window_base, 1.0)] }
    }

    /// Appends a row's tables of cosines and sines.
    pub(crate) fn extend(&self, position: u32, out: &mut Vec<[f32; 2]>) {
        for table in &self.frequencies {
            out.extend(table.iter().map(|frequency| {
                let (sine, cosine) = (f64::from(position) * f64::from(*frequency)).sin_cos();
                [cosine as f32, sine as f32]
            }));
        }
    }
}
