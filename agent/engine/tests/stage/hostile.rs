//! Owns what strangers send that is no step: each is refused by name, alone, and leaves the cache as it was.
//! Must never need the real model.

use std::ops::Range;

use skein_engine::dtype::Dtype;
use skein_engine::limits::{CHUNK_ROWS_MAX, SESSIONS_MAX};
use skein_engine::source::TensorSource;
use skein_engine::stage::{Device, OpenError, Options, Stage};
use skein_engine::step::{Chunk, Input, Output, Sampling, StepError, Want, row_bytes};

use crate::tiny::{ALL, GREEDY, Tiny, VOCABULARY, chunk, config, in_chunks, open, tokens};

fn model() -> Tiny {
    Tiny::new(config(ALL[0]), Dtype::F32, true)
}

fn options(cache_bytes: u64) -> Options {
    Options { layers: 0..3, device: Device::Cpu { threads: 1 }, cache_bytes, context: 1 << 20 }
}

fn with(input: Input, want: Want) -> Chunk {
    Chunk { session: 7, position: 4, input, want }
}

#[test]
fn nonsense_is_refused_alone_and_changes_nothing() {
    let mut stage = open(&model(), 0..3);
    let text = tokens(12, VOCABULARY, 1);
    let expected = in_chunks(&mut [open(&model(), 0..3)], 1, &text, &[12]);
    stage.step(&[chunk(7, 0, &text[..4])]);

    let two = || Input::Tokens(vec![1, 2]);
    let picks = |from, sampling| Want::Picks { from, sampling };
    let cases: Vec<(Chunk, fn(&StepError) -> bool)> = vec![
        (with(Input::Rows(vec![0; row_bytes(64)]), Want::Nothing), |error| {
            matches!(error, StepError::Kind { start: 0, wanted: "tokens" })
        }),
        (with(Input::Tokens(vec![]), Want::Nothing), |error| matches!(error, StepError::Tokens { .. })),
        (with(Input::Tokens(vec![1; CHUNK_ROWS_MAX + 1]), Want::Nothing), |error| {
            matches!(error, StepError::Tokens { .. })
        }),
        (with(Input::Tokens(vec![1, VOCABULARY]), Want::Nothing), |error| {
            matches!(error, StepError::Tokens { .. })
        }),
        (with(Input::Tokens(vec![u32::MAX]), Want::Nothing), |error| {
            matches!(error, StepError::Tokens { .. })
        }),
        (with(two(), picks(2, GREEDY)), |error| matches!(error, StepError::Want { .. })),
        (with(two(), picks(u32::MAX, GREEDY)), |error| matches!(error, StepError::Want { .. })),
        (with(two(), picks(0, Sampling { temperature: f32::NAN, ..GREEDY })), |error| {
            matches!(error, StepError::Want { .. })
        }),
        (with(two(), picks(0, Sampling { top_p: 0.0, ..GREEDY })), |error| {
            matches!(error, StepError::Want { .. })
        }),
        (with(two(), picks(0, Sampling { top_logprobs: 255, ..GREEDY })), |error| {
            matches!(error, StepError::Want { .. })
        }),
        (with(two(), Want::Scores { from: 0, targets: vec![1] }), |error| {
            matches!(error, StepError::Want { .. })
        }),
        (with(two(), Want::Scores { from: 1, targets: vec![VOCABULARY] }), |error| {
            matches!(error, StepError::Want { .. })
        }),
        (Chunk { position: 9, ..with(two(), Want::Nothing) }, |error| {
            matches!(error, StepError::Gap { position: 9, cached: 4 | 8 })
        }),
        (Chunk { position: u32::MAX, ..with(two(), Want::Nothing) }, |error| {
            matches!(error, StepError::Gap { .. })
        }),
        (Chunk { session: 8, position: 1, ..with(two(), Want::Nothing) }, |error| {
            matches!(error, StepError::Gap { position: 1, cached: 0 })
        }),
        (with(Input::Tokens(vec![1; 125]), Want::Nothing), |error| {
            matches!(error, StepError::Context { position: 4, rows: 125, context: 128 })
        }),
    ];
    let (chunks, checks): (Vec<Chunk>, Vec<_>) = cases.into_iter().unzip();
    for (chunk, check) in chunks.iter().zip(&checks) {
        let error = stage.step(std::slice::from_ref(chunk)).pop().unwrap().unwrap_err();
        assert!(check(&error), "{error:?} for {chunk:?}");
        assert_eq!((stage.cached(7), stage.cached(8)), (4, 0));
    }
    // All at once, with honest ones between.
    let mut mixed = chunks.clone();
    mixed.insert(3, chunk(7, 4, &text[4..8]));
    mixed.push(chunk(7, 8, &text[8..]));
    let mut answers = stage.step(&mixed);
    assert_eq!(answers.pop().unwrap().unwrap(), Output::Picks(expected[8..].to_vec()));
    assert_eq!(answers.remove(3).unwrap(), Output::Picks(expected[4..8].to_vec()));
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
}

#[test]
fn rows_of_strangers_are_checked() {
    let mut stage = open(&model(), 1..3);
    let send = |stage: &mut Stage, rows: Vec<u8>| {
        let input = Input::Rows(rows);
        stage.step(&[Chunk { session: 1, position: 0, input, want: Want::Nothing }]).pop().unwrap()
    };
    let row = row_bytes(64);
    let mut infinite = vec![0; row];
    infinite[row - 1] = 0x7c;
    let mut exponent = vec![0; row];
    exponent[0] = 127;
    for bad in
        [vec![], vec![0; row - 1], vec![0; row + 1], vec![0; row * (CHUNK_ROWS_MAX + 1)], infinite, exponent]
    {
        let error = send(&mut stage, bad).unwrap_err();
        assert!(matches!(error, StepError::Rows { row_bytes: 129, .. }), "{error:?}");
    }
    assert_eq!(stage.cached(1), 0);
    let kind = stage.step(&[chunk(1, 0, &[1])]).pop().unwrap().unwrap_err();
    assert!(matches!(kind, StepError::Kind { start: 1, wanted: "rows" }));
    assert_eq!(send(&mut stage, vec![0; row]), Ok(Output::Picks(Vec::new())));
}

#[test]
fn the_cache_is_bounded_and_full_is_an_error_of_one_session() {
    // A page of 16 positions takes 2 · 2 · 2 · 16 bytes per position and layer.
    let mut stage = Stage::open(&model(), &options(3 * 16 * 3 * 128 + 100), &mut |_, _| {}).unwrap();
    let text = tokens(40, VOCABULARY, 1);
    let answers = stage.step(&[chunk(1, 0, &text[..20]), chunk(2, 0, &text[..20]), chunk(3, 0, &text[..16])]);
    assert!(answers[0].is_ok() && matches!(answers[1], Err(StepError::Full { .. })) && answers[2].is_ok());
    assert_eq!((stage.cached(1), stage.cached(2), stage.cached(3)), (20, 0, 16));
    assert!(matches!(stage.step(&[chunk(3, 16, &text[16..17])])[0], Err(StepError::Full { .. })));
    assert_eq!(stage.cached(3), 16);
    // What goes back frees its pages.
    assert!(
        stage.step(&[chunk(1, 10, &text[10..16]), chunk(3, 16, &text[16..17])]).iter().all(Result::is_ok)
    );
    assert!(stage.close(1) && !stage.close(1));
    let expected = in_chunks(&mut [open(&model(), 0..3)], 1, &text[..32], &[32]);
    stage.close(3);
    assert_eq!(in_chunks(std::slice::from_mut(&mut stage), 4, &text[..32], &[32]), expected);
}

#[test]
fn sessions_are_bounded() {
    let mut stage = open(&model(), 0..3);
    let chunks: Vec<Chunk> = (0..SESSIONS_MAX as u64 + 1).map(|session| chunk(session, 0, &[3])).collect();
    let answers = stage.step(&chunks);
    assert!(answers[..SESSIONS_MAX].iter().all(|answer| *answer == answers[0] && answer.is_ok()));
    assert!(matches!(answers[SESSIONS_MAX], Err(StepError::Full { .. })));
}

#[test]
fn long_chunks_that_ask_for_everything_are_answered_in_full() {
    let text = tokens(128, VOCABULARY, 1);
    let expected = in_chunks(&mut [open(&model(), 0..3)], 1, &text, &[10]);
    let mut stage = open(&model(), 0..3);
    let chunks: Vec<Chunk> = (0..9).map(|session| chunk(session, 0, &text)).collect();
    for answer in stage.step(&chunks) {
        assert_eq!(answer, Ok(Output::Picks(expected.clone())));
    }
    // The same as scores, from the middle on.
    let targets: Vec<u32> = expected[50..].iter().map(|pick| pick.token).collect();
    let scores: Vec<f32> = expected[50..].iter().map(|pick| pick.logprob).collect();
    let want = Want::Scores { from: 50, targets };
    let answer = stage.step(&[Chunk { want, ..chunk(3, 0, &text) }]).pop().unwrap();
    assert_eq!(answer, Ok(Output::Scores(scores)));
}

#[test]
fn weights_that_give_no_number_close_the_session_that_met_them() {
    let mut values = vec![0.1; 20 * 64];
    values[5 * 64] = f32::NAN;
    values[6 * 64] = f32::INFINITY;
    let bad = model().with("token_embd.weight", Dtype::F32, &values);
    let mut embedding = open(&bad, 0..1);
    for token in [5, 6] {
        let chunks = [chunk(1, 0, &[1, token]), chunk(2, 0, &[1, 2])];
        let answers = embedding.step(&chunks);
        assert!(matches!(answers[0], Err(StepError::Device(_))), "{:?}", answers[0]);
        assert!(answers[1].is_ok(), "{:?}", answers[1]);
        assert_eq!((embedding.cached(1), embedding.cached(2)), (0, 2));
        assert!(matches!(embedding.step(&[chunk(1, 2, &[1])])[0], Err(StepError::Gap { .. })));
    }
    // The tied head has the same rows, so every logit of theirs is none.
    let mut whole = open(&bad, 0..3);
    assert!(matches!(whole.step(&[chunk(1, 0, &[1, 2])])[0], Err(StepError::Device(_))));
    assert_eq!(whole.cached(1), 0);
}

#[test]
fn stages_that_cannot_be_are_not_opened() {
    let open = |options: &Options| Stage::open(&model(), options, &mut |_, _| {}).err();
    let backwards = Range { start: 5, end: 2 };
    for layers in [0..0, 2..2, 0..4, 3..4, backwards] {
        let found = open(&Options { layers: layers.clone(), ..options(1 << 20) });
        assert!(matches!(found, Some(OpenError::Layers { .. })), "{layers:?} gives {found:?}");
    }
    assert!(matches!(open(&options(100)), Some(OpenError::Cache { .. })));
    let mut odd = config(ALL[0]);
    odd.head_width = 17;
    let found = Stage::open(&Tiny::new(odd, Dtype::F32, true), &options(1 << 20), &mut |_, _| {}).err();
    assert!(matches!(found, Some(OpenError::Device(_))), "{found:?}");
}

#[test]
fn progress_ends_at_the_whole() {
    let mut told = Vec::new();
    Stage::open(&model(), &options(1 << 20), &mut |done, all| told.push((done, all))).unwrap();
    let expected: u64 = model().tensors().values().filter_map(|info| info.bytes()).sum();
    assert_eq!(told.last(), Some(&(expected, expected)));
    assert!(told.is_sorted());
}
