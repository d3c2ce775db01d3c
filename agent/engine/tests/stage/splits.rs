//! Owns the engine's one rule: what a row is computed with, in how many chunks, and where the layers are split changes no
//! bit.
//! Must never compare with a tolerance.

use skein_engine::dtype::Dtype;
use skein_engine::source::TensorSource;
use skein_engine::step::{Chunk, Output, Pick};

use crate::real;
use crate::tiny::{ALL, Tiny, chunk, config, in_chunks, open, open_with, tokens};

/// A text whose picks after every row, with twenty alternatives each, stand for all of its logits.
fn whole(model: &dyn TensorSource, text: &[u32]) -> Vec<Pick> {
    in_chunks(&mut [open(model, 0..model.config().layers)], 1, text, &[text.len()])
}

fn check_splits(model: &dyn TensorSource, text: &[u32]) {
    let layers = model.config().layers;
    let expected = whole(model, text);
    for split in 1..layers {
        let mut stages = [open(model, 0..split), open(model, split..layers)];
        assert_eq!(in_chunks(&mut stages, 1, text, &[text.len()]), expected, "split at layer {split}");
    }
}

fn check_chunks(model: &dyn TensorSource, text: &[u32]) {
    let layers = 0..model.config().layers;
    let expected = whole(model, text);
    for sizes in [&[1][..], &[2, 1, 5], &[7], &[16], &[17, 3], &[33, 1]] {
        let found = in_chunks(&mut [open(model, layers.clone())], 1, text, sizes);
        assert_eq!(found, expected, "chunks of {sizes:?}");
    }
    for threads in [2, 3] {
        let found = in_chunks(&mut [open_with(model, layers.clone(), threads)], 1, text, &[text.len(), 1]);
        assert_eq!(found, expected, "{threads} threads");
    }
}

/// Sixteen sessions of different lengths, a few rows each at a time, against each alone.
fn check_batches(model: &dyn TensorSource, length: usize) {
    let config = model.config();
    let texts: Vec<Vec<u32>> =
        (0..16).map(|seed| tokens(length / 2 + seed * length / 32, config.vocabulary, seed as u64)).collect();
    let mut together = open(model, 0..config.layers);
    let mut picks: Vec<Vec<Pick>> = vec![Vec::new(); texts.len()];
    while texts.iter().zip(&picks).any(|(text, picks)| picks.len() < text.len()) {
        let (sessions, chunks): (Vec<usize>, Vec<Chunk>) = texts
            .iter()
            .zip(&picks)
            .enumerate()
            .filter(|(_, (text, picks))| picks.len() < text.len())
            .map(|(session, (text, picks))| {
                let end = (picks.len() + 1 + session % 3).min(text.len());
                (session, chunk(session as u64, picks.len(), &text[picks.len()..end]))
            })
            .unzip();
        for (session, answer) in sessions.into_iter().zip(together.step(&chunks)) {
            match answer.unwrap() {
                Output::Picks(more) => picks[session].extend(more),
                Output::Rows(_) | Output::Scores(_) => panic!("not what was asked for"),
            }
        }
    }
    let mut alone = open(model, 0..config.layers);
    for (session, (text, picks)) in texts.iter().zip(picks).enumerate() {
        let expected = in_chunks(std::slice::from_mut(&mut alone), session as u64, text, &[text.len()]);
        assert_eq!(picks, expected, "session {session}");
        alone.close(session as u64);
    }
}

/// A session that goes back and takes another way, and then the first way again.
fn check_rollback(model: &dyn TensorSource, text: &[u32]) {
    let layers = 0..model.config().layers;
    let expected = whole(model, text);
    let other = tokens(text.len(), model.config().vocabulary, 99);
    let mut stage = [open(model, layers.clone())];
    in_chunks(&mut stage, 1, text, &[text.len()]);
    for back in [text.len() - 1, text.len() / 2, 17, 16, 1, 0] {
        let strayed = crate::tiny::through(&mut stage, chunk(1, back, &other[back..]));
        assert_eq!(strayed.len(), other.len() - back);
        assert_eq!(stage[0].cached(1) as usize, other.len());
        let again = crate::tiny::through(&mut stage, chunk(1, back, &text[back..]));
        assert_eq!(again, expected[back..], "back to {back}");
    }
}

#[test]
fn tiny_models_of_all_architectures_keep_the_rule() {
    for architecture in ALL {
        for (dtype, tied) in [(Dtype::Q4_0, true), (Dtype::F16, false)] {
            let model = Tiny::new(config(architecture), dtype, tied);
            let text = tokens(60, model.config().vocabulary, 5);
            check_splits(&model, &text);
            check_chunks(&model, &text);
            check_batches(&model, 40);
            check_rollback(&model, &text);
        }
    }
}

#[test]
fn the_real_model_keeps_the_rule() {
    let Some(model) = real::model() else { return };
    let text = tokens(40, model.config().vocabulary, 5);
    check_splits(&model, &text);
    check_chunks(&model, &text);
    check_batches(&model, 24);
    check_rollback(&model, &text);
}
