//! Owns the way to the real model.
//! Must never fail where there is none.

use std::fs::File;
use std::path::Path;

use skein_engine::gguf::Gguf;
use skein_engine::source::TensorSource;
use skein_engine::stage::Stage;
use skein_engine::tokenizer::{Tokenizer, Vocabulary};

/// The model that `SKEIN_TEST_MODEL` names; says that a test is skipped if it names none.
pub(crate) fn model() -> Option<Gguf<File>> {
    let Some(path) = std::env::var_os("SKEIN_TEST_MODEL") else {
        eprintln!("SKIPPED: SKEIN_TEST_MODEL names no SmolLM2-135M-Instruct.Q4_1.gguf");
        return None;
    };
    Some(Gguf::open(Path::new(&path)).unwrap())
}

/// All of it on one stage, and its tokenizer.
pub(crate) fn stage() -> Option<(Stage, Tokenizer)> {
    let model = model()?;
    let tokenizer = Tokenizer::new(Vocabulary::from_gguf(model.metadata()).unwrap()).unwrap();
    Some((crate::tiny::open(&model, 0..model.config().layers), tokenizer))
}
