//! Owns a folder with all that training needs: a tiny model and a text as tokens.
//! Must never be large: every test makes one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skein_compute::checkpoint::Checkpoint;
use skein_compute::data::{Dataset, Tokens};
use skein_compute::drawn::Drawn;
use skein_compute::trainee::{Method, Trainee};
use skein_engine::config::{Activation, Architecture, ModelConfig, Rope, RopeStyle};

/// A Llama over bytes with grouped heads.
pub(crate) fn config(layers: u32, width: u32, context: u32) -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        layers,
        width,
        feed_width: 2 * width,
        heads: 2,
        kv_heads: 1,
        head_width: width / 2,
        vocabulary: 256,
        context,
        norm_epsilon: 1e-5,
        rope: Rope {
            style: RopeStyle::Adjacent,
            base: 1e4,
            window_base: 1e4,
            dims: width / 2,
            scale: 1.0,
            factors: Vec::new(),
        },
        activation: Activation::SiluGated,
        embedding_scale: 1.0,
        query_scale: 1.0 / ((width / 2) as f32).sqrt(),
        score_cap: None,
        logit_cap: None,
        window: None,
        window_pattern: 1,
    }
}

/// A text as tokens in a file, its last tenth held out.
pub(crate) fn write_data(path: &Path, text: &str) {
    let tokens = |bytes: &[u8]| Tokens {
        ids: bytes.iter().map(|byte| u32::from(*byte)).collect(),
        counts: Vec::new(),
    };
    let (train, held_out) = text.as_bytes().split_at(text.len() - text.len() / 10);
    fs::write(path, Dataset::new(tokens(train), tokens(held_out)).encode().unwrap()).unwrap();
}

/// What is in such a file.
pub(crate) fn data(path: &Path) -> Arc<Dataset> {
    Arc::new(Dataset::read(path, 256).unwrap())
}

/// The model drawn from a seed, with all its weights to learn, and its first checkpoint.
pub(crate) fn begin(config: ModelConfig, seed: u64, path: PathBuf) -> (Trainee, Drawn, PathBuf) {
    let drawn = Drawn::new(config.clone(), false, seed);
    let trainee = Trainee::new(config, false, Method::Full).unwrap();
    Checkpoint::initial(&trainee, &drawn, seed).unwrap().write(&path, trainee.tensors()).unwrap();
    (trainee, drawn, path)
}
