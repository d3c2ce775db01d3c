//! The fuzzers' seeds (`tests/fuzz/corpus`): small sound inputs from which they start. Checked here, so that a change
//! of a format cannot quietly leave the fuzzers with seeds that fail at the first byte.
//!
//! After such a change: `SKEIN_WRITE_SEEDS=1 cargo test -p skein-engine --test formats_seeds`.

#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod formats_tiny;

use std::io::Cursor;
use std::path::Path;

use formats_tiny::ARCHITECTURES;
use skein_engine::dtype::{Dtype, noise};
use skein_engine::gguf::{Gguf, GgufWriter, Value};
use skein_engine::manifest::Manifest;
use skein_engine::source::TensorInfo;
use skein_engine::step::{Chunk, Input, Output, Pick, Sampling, Want};
use skein_engine::tensors::{Expected, HEAD, expected};

/// A model of one layer, as small as its type of elements allows.
fn model(name: &str, dtype: Dtype) -> GgufWriter {
    let width = dtype.block_len().max(4) as u64;
    let key = |key: &str| format!("{name}.{key}");
    let mut writer = formats_tiny::model(name)
        .with("tokenizer.ggml.tokens", Value::Texts(vec![b"a".into(), b"b".into()]))
        .with(&key("embedding_length"), Value::Unsigned(width))
        .with(&key("feed_forward_length"), Value::Unsigned(width))
        .with(&key("attention.head_count"), Value::Unsigned(2))
        .with(&key("attention.head_count_kv"), Value::Unsigned(1))
        .with(&key("attention.key_length"), Value::Unsigned(width / 2))
        .with(&key("attention.value_length"), Value::Unsigned(width / 2))
        .with(&key("block_count"), Value::Unsigned(1));
    let mut config = formats_tiny::config(name);
    (config.width, config.feed_width, config.head_width) = (width as u32, width as u32, width as u32 / 2);
    (config.heads, config.kv_heads, config.layers, config.vocabulary) = (2, 1, 1, 2);
    writer.tensors.clear();
    for Expected { name, rows, columns, .. } in expected(&config).into_iter().filter(|it| it.name != HEAD) {
        let dtype = if rows == 1 { Dtype::F32 } else { dtype };
        let elements = noise(dtype, (rows * columns) as usize, 1).unwrap();
        writer = writer.tensor(&name, TensorInfo { dtype, rows, columns }, elements);
    }
    writer
}

fn manifest(file: Vec<u8>) -> Vec<u8> {
    let length = file.len() as u64;
    let source = Gguf::from_reader(Cursor::new(file), length).unwrap();
    let mut put = |piece: &[u8]| Ok(*blake3::hash(piece).as_bytes());
    Manifest::build(&source, b"words", &mut put, &mut |_, _| {}).unwrap().encode().unwrap()
}

/// The first byte tells the target which of two messages follows.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let sampling = Sampling { temperature: 0.7, top_p: 0.9, seed: 3, top_logprobs: 2 };
    let chunk = |input, want| {
        [vec![0], borsh::to_vec(&Chunk { session: 1, position: 2, input, want }).unwrap()].concat()
    };
    let output = |output: &Output| [vec![1], borsh::to_vec(output).unwrap()].concat();
    let pick = Pick { token: 4, logprob: -0.5, top: vec![(4, -0.5), (7, -2.0)] };
    vec![
        ("tokens", chunk(Input::Tokens(vec![1, 2, 3]), Want::Picks { from: 2, sampling })),
        ("rows", chunk(Input::Rows(vec![0; 9]), Want::Nothing)),
        ("targets", chunk(Input::Tokens(vec![5]), Want::Scores { from: 0, targets: vec![6] })),
        ("picks", output(&Output::Picks(vec![pick]))),
        ("rows_out", output(&Output::Rows(vec![0; 9]))),
        ("scores", output(&Output::Scores(vec![-1.0]))),
    ]
}

#[test]
fn seeds_are_sound_and_current() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
    let mut seeds = Vec::new();
    for (name, _) in ARCHITECTURES {
        seeds.push(("gguf", name.to_owned(), model(name, Dtype::F32).bytes()));
    }
    for dtype in [Dtype::Bf16, Dtype::Q4_0, Dtype::Q8_0] {
        seeds.push(("gguf", dtype.name().to_lowercase(), model("llama", dtype).bytes()));
    }
    for name in ["llama", "gemma3"] {
        seeds.push(("manifest", name.to_owned(), manifest(model(name, Dtype::F32).bytes())));
    }
    seeds.extend(messages().into_iter().map(|(name, bytes)| ("step", name.to_owned(), bytes)));
    for (target, name, bytes) in seeds {
        let path = corpus.join(target).join(&name);
        if std::env::var_os("SKEIN_WRITE_SEEDS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let found = std::fs::read(&path).unwrap_or_default();
        assert!(found == bytes, "{target}/{name} is not current: see the head of this file");
        match target {
            "gguf" => drop(Gguf::from_reader(Cursor::new(&bytes), bytes.len() as u64).unwrap()),
            "manifest" => drop(Manifest::decode(&bytes).unwrap()),
            _ => {}
        }
    }
}
