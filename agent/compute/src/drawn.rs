//! Owns the weights of a model that nobody has trained yet.
//! Must never use a mathematical library beyond division and root, which IEEE 754 defines to the last bit: the same seed
//! draws the same weights on every machine.

use std::collections::BTreeMap;

use skein_engine::config::ModelConfig;
use skein_engine::dtype::Dtype;
use skein_engine::source::{SourceError, TensorInfo, TensorSource};
use skein_engine::tensors::{EMBEDDING, HEAD, expected};

use crate::random::{mix, mix_all, normal};
use crate::trainee::Role;

/// Deviation of an embedding that is not the head too. The first norm rescales rows, so only their size relative to what
/// the layers add matters.
const TABLE_DEVIATION: f32 = 0.2;

/// Deviation of matrices times the root of their inputs. 0.7 learned a megabyte of prose about twice as fast as GPT-2's
/// fixed deviation of 0.02 (held-out 2.32 nats instead of 2.48 after 300 steps at width 128).
const MATRIX_GAIN: f32 = 0.7;

/// Likewise for matrices that write into the residual stream, further divided by the root of their number.
const RESIDUAL_GAIN: f32 = 0.35;

/// A model drawn from a seed.
pub struct Drawn {
    config: ModelConfig,
    tensors: BTreeMap<String, TensorInfo>,
    seed: u64,
}

impl Drawn {
    /// A model of these hyperparameters, already validated. With `tied` the head is the embedding.
    #[must_use]
    pub fn new(config: ModelConfig, tied: bool, seed: u64) -> Self {
        let tensors = expected(&config).into_iter().filter(|tensor| !(tied && tensor.name == HEAD));
        let info = |rows, columns| TensorInfo { dtype: Dtype::F32, rows, columns };
        let tensors = tensors.map(|tensor| (tensor.name, info(tensor.rows, tensor.columns))).collect();
        Self { config, tensors, seed }
    }

    fn deviation(&self, name: &str, columns: f32) -> f32 {
        if name == EMBEDDING && self.tensors.contains_key(HEAD) {
            TABLE_DEVIATION
        } else if name.ends_with("attn_output.weight") || name.ends_with("ffn_down.weight") {
            RESIDUAL_GAIN / columns.sqrt() / (2.0 * self.config.layers as f32).sqrt()
        } else {
            MATRIX_GAIN / columns.sqrt()
        }
    }
}

impl TensorSource for Drawn {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let place = self.tensors.keys().position(|known| known == name);
        let (Some(place), Some(info)) = (place, self.tensors.get(name)) else {
            return Err(SourceError::Missing(name.to_owned()));
        };
        let elements = info.rows * info.columns;
        let value = match Role::of(name, info.rows) {
            Role::Vector => {
                let value: f32 = if name.ends_with(".bias") { 0.0 } else { 1.0 };
                return Ok((0..elements).flat_map(|_| value.to_le_bytes()).collect());
            }
            Role::Table | Role::Matrix => self.deviation(name, info.columns as f32),
        };
        let stream = mix_all(&[self.seed, place as u64]);
        Ok((0..elements).flat_map(|i| (value * normal(mix(stream ^ i))).to_le_bytes()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainee::tests::config;

    #[test]
    fn weights_are_pinned_for_every_machine() {
        let digest = |seed| {
            let drawn = Drawn::new(config(), false, seed);
            let mut hasher = blake3::Hasher::new();
            for name in drawn.tensors().keys() {
                hasher.update(&drawn.read(name).unwrap());
            }
            hasher.finalize().to_hex().to_string()
        };
        assert_ne!(digest(3), digest(4));
        assert_eq!(digest(3), GOLDEN);
    }

    /// Changing this digest changes what a seed means.
    const GOLDEN: &str = "967712a10fbbdb3ac4e59969fbbfcb8d823f33b7310eb0c87adf582fdb843ce5";
}
