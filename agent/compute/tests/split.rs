//! Owns the promise that a chain of stages is the model: bit for bit on the CPU, however it is cut, and after replay.
//! Must never need a GPU.

#![expect(clippy::unwrap_used, reason = "a broken assumption should stop the test")]

use std::path::Path;

use burn::tensor::Device;
use proptest::prelude::*;
use skein_compute::checkpoint::Checkpoint;
use skein_compute::shape::ModelShape;
use skein_compute::stage::{Stage, StageError, StageInput, StageOutput};

/// Runs a chain of stages over the chunks of one session and returns the last logits.
fn run(stages: &mut [Stage], session: u64, chunks: &[(u32, &[u8])]) -> Vec<f32> {
    let mut logits = Vec::new();
    for (position, tokens) in chunks {
        let mut input = StageInput::Tokens(tokens.to_vec());
        for stage in stages.iter_mut() {
            match stage.forward(session, *position, input.clone()).unwrap() {
                StageOutput::Hidden(rows) => input = StageInput::Hidden(rows),
                StageOutput::Logits(last) => logits = last,
            }
        }
    }
    assert_eq!(logits.len(), 256);
    logits
}

fn chain(path: &Path, cuts: &[u16]) -> Vec<Stage> {
    let open = |pair: &[u16]| Stage::open(&Device::flex(), path, pair[0], pair[1]).unwrap();
    cuts.windows(2).map(open).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_bits(
        layers in 1u16..6,
        heads in 1u16..4,
        head_width in 1u16..9,
        seed: u64,
        cut_bits: u16,
        tokens in proptest::collection::vec(any::<u8>(), 1..12),
        prefill in 1usize..12,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model");
        let shape = ModelShape::new(layers, heads * head_width, heads, 12).unwrap();
        Checkpoint::initial(shape, seed).write(&path).unwrap();
        let inner = (1..layers).filter(|layer| cut_bits >> layer & 1 == 1);
        let cuts: Vec<u16> = [0].into_iter().chain(inner).chain([layers]).collect();

        let (head, tail) = tokens.split_at(prefill.min(tokens.len()));
        let mut chunks = vec![(0, head)];
        chunks.extend(tail.iter().enumerate().map(|(i, token)| ((head.len() + i) as u32, std::slice::from_ref(token))));

        let whole = run(&mut chain(&path, &[0, layers]), 1, &chunks);
        let mut split = chain(&path, &cuts);
        prop_assert_eq!(bits(&run(&mut split, 1, &chunks)), bits(&whole));

        // Replay from the middle, as after the death of a stage: the cache is cut back and built again.
        let from = chunks.len() / 2;
        prop_assert_eq!(bits(&run(&mut split, 1, &chunks[from..])), bits(&whole));
        prop_assert_eq!(bits(&run(&mut split, 1, &chunks)), bits(&whole));
    }
}

#[test]
fn sessions_do_not_see_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    Checkpoint::initial(ModelShape::new(2, 8, 2, 8).unwrap(), 1).write(&path).unwrap();
    let alone = run(&mut chain(&path, &[0, 2]), 1, &[(0, b"ab"), (2, b"c")]);
    let mut stages = chain(&path, &[0, 1, 2]);
    run(&mut stages, 1, &[(0, b"ab")]);
    run(&mut stages, 2, &[(0, b"xyz")]);
    assert_eq!(bits(&run(&mut stages, 1, &[(2, b"c")])), bits(&alone));
}

#[test]
fn the_past_decides_and_the_future_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    Checkpoint::initial(ModelShape::new(2, 8, 2, 8).unwrap(), 1).write(&path).unwrap();
    let mut first = Stage::open(&Device::flex(), &path, 0, 1).unwrap();
    let mut rows =
        |session, text: &[u8]| match first.forward(session, 0, StageInput::Tokens(text.to_vec())).unwrap() {
            StageOutput::Hidden(rows) => rows,
            StageOutput::Logits(_) => panic!("the first of two stages has no head"),
        };
    let (one, other) = (rows(1, b"abcd"), rows(2, b"abcX"));
    assert_eq!(bits(&one[..24]), bits(&other[..24]), "rows before the change");
    assert_ne!(bits(&one[24..]), bits(&other[24..]));
    let early = rows(3, b"Xbcd");
    assert_ne!(bits(&one[24..]), bits(&early[24..]), "the last row sees the first token");
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    Checkpoint::initial(ModelShape::new(2, 8, 2, 4).unwrap(), 1).write(&path).unwrap();
    let open = |start, end| Stage::open(&Device::flex(), &path, start, end);
    assert!(matches!(open(1, 1), Err(StageError::Layers { .. })));
    assert!(matches!(open(0, 3), Err(StageError::Layers { end: 3, layers: 2, .. })));

    let mut stage = open(0, 2).unwrap();
    let tokens = |text: &[u8]| StageInput::Tokens(text.to_vec());
    let before = stage.forward(9, 0, tokens(b"abc")).unwrap();
    assert!(matches!(stage.forward(9, 4, tokens(b"d")), Err(StageError::Gap { position: 4, cached: 3 })));
    assert!(matches!(stage.forward(8, 1, tokens(b"d")), Err(StageError::Gap { position: 1, cached: 0 })));
    let long = stage.forward(9, 3, tokens(b"de")).unwrap_err().to_string();
    assert!(long.contains("context of 4 tokens"), "{long}");
    assert!(matches!(stage.forward(9, 0, tokens(b"")), Err(StageError::Rows { .. })));
    assert!(matches!(stage.forward(9, 0, StageInput::Hidden(vec![0.0; 8])), Err(StageError::Kind { .. })));
    assert_eq!(stage.forward(9, 2, tokens(b"c")).unwrap(), stage.forward(9, 2, tokens(b"c")).unwrap());
    assert_eq!(stage.forward(9, 0, tokens(b"abc")).unwrap(), before);

    let mut second = open(1, 2).unwrap();
    for rows in [vec![], vec![0.0; 7], vec![f32::INFINITY; 8]] {
        assert!(matches!(second.forward(1, 0, StageInput::Hidden(rows)), Err(StageError::Rows { .. })));
    }
    for session in 0..256 {
        second.forward(session, 0, StageInput::Hidden(vec![0.5; 8])).unwrap();
    }
    assert!(matches!(second.forward(256, 0, StageInput::Hidden(vec![0.5; 8])), Err(StageError::Sessions)));
    assert!(second.close(3) && !second.close(3));
    assert!(second.forward(256, 0, StageInput::Hidden(vec![0.5; 8])).is_ok());
}
