//! GGUF files: sound ones of every architecture, and lying ones, which must be refused by name and in little memory.

mod formats_tiny;

use std::io::Cursor;
use std::path::PathBuf;

use formats_tiny::{ARCHITECTURES, config, metadata, model};
use proptest::prelude::*;
use skein_engine::config::{Architecture, RopeStyle};
use skein_engine::dtype::Dtype;
use skein_engine::gguf::{Gguf, GgufError, GgufWriter, Header, Value};
use skein_engine::source::{TensorInfo, TensorSource};

fn open(bytes: &[u8]) -> Result<Gguf<Cursor<&[u8]>>, GgufError> {
    Gguf::from_reader(Cursor::new(bytes), bytes.len() as u64)
}

fn refusal(writer: &GgufWriter) -> String {
    open(&writer.bytes()).map_or_else(|error| error.to_string(), |_| "accepted".to_owned())
}

fn vector(columns: u64) -> TensorInfo {
    TensorInfo { dtype: Dtype::F32, rows: 1, columns }
}

#[test]
fn every_architecture_opens_with_its_hyperparameters_and_elements() {
    for (name, _) in ARCHITECTURES {
        let writer = model(name);
        let bytes = writer.bytes();
        let gguf = open(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(gguf.config(), &config(name), "{name}");
        assert_eq!(gguf.metadata(), &writer.metadata, "{name}");
        assert_eq!(gguf.tensors().len(), writer.tensors.len(), "{name}");
        for (tensor, info, elements) in &writer.tensors {
            assert_eq!(gguf.tensors()[tensor], *info, "{name} {tensor}");
            assert_eq!(gguf.read(tensor).unwrap(), *elements, "{name} {tensor}");
        }
        assert!(gguf.read("blk.9.attn_q.weight").is_err());
    }
}

#[test]
fn the_test_model_is_what_its_author_says() {
    let Some(path) = std::env::var_os("SKEIN_TEST_MODEL").map(PathBuf::from) else {
        return eprintln!("SKIPPED: SKEIN_TEST_MODEL names no GGUF file of SmolLM2-135M-Instruct Q4_1");
    };
    let gguf = Gguf::open(&path).unwrap();
    let found = gguf.config();
    let shape = (found.layers, found.width, found.feed_width, found.heads, found.kv_heads, found.head_width);
    assert_eq!(shape, (30, 576, 1_536, 9, 3, 64));
    assert_eq!((found.vocabulary, found.context, found.architecture), (49_152, 8_192, Architecture::Llama));
    let rope = &found.rope;
    assert_eq!((rope.style, rope.base, rope.scale), (RopeStyle::Adjacent, 100_000.0, 1.0));
    assert_eq!(gguf.tensors().len(), 272);
    assert!(!gguf.tensors().contains_key("output.weight"), "the head is tied");
    for (name, info) in gguf.tensors() {
        assert_eq!(gguf.read(name).unwrap().len() as u64, info.bytes().unwrap(), "{name}");
    }
}

#[test]
fn vocabularies_without_a_model_have_a_header() {
    let Some(folder) = std::env::var_os("SKEIN_TEST_VOCABS").map(PathBuf::from) else {
        return eprintln!("SKIPPED: SKEIN_TEST_VOCABS names no folder of llama.cpp's models");
    };
    let path = folder.join("ggml-vocab-llama-bpe.gguf");
    let header = Header::open(&path).unwrap();
    assert_eq!(header.metadata["tokenizer.ggml.model"].text(), Some("gpt2"));
    assert!(Gguf::open(&path).is_err(), "there are no tensors");
}

#[test]
fn what_architectures_say_beyond_the_usual() {
    let with = |name: &str, changes: &[(&str, Value)]| {
        let mut writer = model(name);
        for (key, value) in changes {
            writer = writer.with(&format!("{name}.{key}"), value.clone());
        }
        open(&writer.bytes()).unwrap().config().clone()
    };
    let linear =
        [("rope.scaling.type", Value::Text(b"linear".into())), ("rope.scaling.factor", Value::Float(8.0))];
    let gemma = with("gemma3", &linear);
    assert_eq!(gemma.rope.scale, 8.0);
    assert_eq!((gemma.window_of(0), gemma.window_of(1)), (Some(8), Some(8)), "five of six layers slide");

    let alternating = Value::Bools(vec![true, false]);
    assert_eq!(with("gemma3", &[("attention.sliding_window_pattern", alternating)]).window_pattern, 2);
    let plain = with("gemma3", &[("attention.sliding_window", Value::Unsigned(0))]);
    assert_eq!((plain.window, plain.window_pattern), (None, 1));
    let uncapped = with("gemma2", &[("attn_logit_softcapping", Value::Float(0.0))]);
    assert_eq!((uncapped.score_cap, uncapped.logit_cap), (None, Some(30.0)));
    let gemma = with("gemma2", &[]);
    assert_eq!((gemma.window_of(0), gemma.window_of(1)), (Some(8), None), "even layers slide");

    let heads = with("llama", &[("attention.head_count_kv", Value::Unsigneds(vec![2, 2]))]);
    assert_eq!(heads.kv_heads, 2);

    let factors = [1.0_f32, 1.0, 2.0, 8.0].iter().flat_map(|factor| factor.to_le_bytes()).collect();
    let writer = model("llama").tensor("rope_freqs.weight", vector(4), factors);
    let bytes = writer.bytes();
    let llama3 = open(&bytes).unwrap();
    assert_eq!(llama3.config().rope.factors, [1.0, 1.0, 2.0, 8.0]);
    assert!(!llama3.tensors().contains_key("rope_freqs.weight"), "they are hyperparameters now");

    let head = model("llama").tensors[0].clone();
    let untied = model("llama").tensor("output.weight", head.1, head.2).bytes();
    assert!(open(&untied).unwrap().tensors().contains_key("output.weight"));
}

#[test]
fn foreign_models_are_named() {
    let set = |key: &str, value: Value| refusal(&model("llama").with(key, value));
    let text = |text: &str| Value::Text(text.into());
    let cases = [
        (set("general.architecture", text("mamba")), "architecture `mamba` is not supported; hint: choose"),
        (set("llama.expert_count", Value::Unsigned(8)), "mixture of experts"),
        (set("split.count", Value::Unsigned(3)), "split over several GGUF files"),
        (set("llama.rope.scaling.type", text("yarn")), "rope scaling of type `yarn`"),
        (set("llama.rope.scaling.attn_factor", Value::Float(2.0)), "with `attn_factor`"),
        (set("llama.attention.value_length", Value::Unsigned(4)), "keys are 8 wide"),
        (set("llama.rope.dimension_count", Value::Unsigned(4)), "heads are 8 wide"),
        (set("llama.attention.head_count", Value::Unsigned(0)), "number of heads is 0"),
        (set("llama.attention.head_count", Value::Unsigneds(vec![4, 2])), "differs from layer to layer"),
        (set("llama.block_count", Value::Unsigned(3)), "`blk.2.attn_norm.weight` is missing"),
        (set("llama.block_count", Value::Unsigned(1)), "`blk.1.attn_k.weight` is no part"),
        (set("llama.block_count", Value::Unsigned(1 << 40)), "no whole number from 0 to"),
        (set("llama.context_length", text("long")), "`llama.context_length`: it is no whole number"),
        (set("tokenizer.ggml.tokens", Value::Texts(vec![b"a".into()])), "expected 1 rows of 32 columns"),
        (set("general.alignment", Value::Unsigned(3)), "powers of two"),
        (
            refusal(&model("llama").tensor("blk.0.attn_q.bias", vector(32), vec![0; 128])),
            "`blk.0.attn_q.bias` is no part of the architecture Llama",
        ),
        (
            refusal(&model("gemma2").tensor("rope_freqs.weight", vector(4), vec![0; 16])),
            "`rope_freqs.weight` in",
        ),
        (
            refusal(&model("llama").tensor("rope_freqs.weight", vector(4), vec![0; 16])),
            "list of rope factors",
        ),
    ];
    for (number, (found, expected)) in cases.iter().enumerate() {
        assert!(found.contains(expected), "case {number}: {found}");
    }
}

#[test]
fn lies_about_tensors_are_found() {
    let one = |info: TensorInfo, elements: usize| metadata("llama").tensor("t", info, vec![0; elements]);
    let zero = TensorInfo { dtype: Dtype::F32, rows: 1, columns: 0 };
    assert!(refusal(&one(zero, 0)).contains("its dimensions are [0, 1, 1, 1]"));
    let partial = TensorInfo { dtype: Dtype::Q4K, rows: 1, columns: 128 };
    assert!(refusal(&one(partial, 72)).contains("no whole Q4_K blocks"));
    let huge = TensorInfo { dtype: Dtype::F32, rows: 1 << 62, columns: 1 << 62 };
    assert!(refusal(&one(huge, 0)).contains("do not fit a file"));
    assert!(refusal(&one(vector(8), 31)).contains("exceed the file"));
    let twice = one(vector(8), 32).tensor("t", vector(8), vec![0; 32]);
    assert!(refusal(&twice).contains("it is there twice"));

    // The last 20 bytes of the entry of the only tensor: dimension, type, offset.
    let bytes = one(vector(8), 32).bytes();
    let end = bytes.windows(2).rposition(|pair| pair == [b't', 1]).unwrap() + 5;
    let changed = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        open(&bytes).map(|_| ()).unwrap_err().to_string()
    };
    assert!(
        changed(end + 8, &[23]).contains("`t` has type IQ4_XS (23), which is not supported; hint: quantise")
    );
    assert!(changed(end + 8, &[99]).contains("type unknown (99)"));
    assert!(changed(end + 12, &[7]).contains("no multiple of 32"));
    assert!(changed(end + 12, &[0xff; 8]).contains("no multiple of 32"));
    assert!(changed(end + 12, &(u64::MAX - 31).to_le_bytes()).contains("exceed the file"));
    assert!(changed(end - 4, &[5]).contains("it has 5 dimensions"));
    assert!(changed(end - 4, &[0]).contains("it has 0 dimensions"));

    let two = one(vector(16), 64).tensor("u", vector(8), vec![0; 32]).bytes();
    let at = two.windows(2).rposition(|pair| pair == [b'u', 1]).unwrap() + 17;
    let mut overlapping = two;
    overlapping[at] = 32;
    let found = open(&overlapping).map(|_| ()).unwrap_err().to_string();
    assert!(found.contains("tensor `u`: it overlaps tensor `t`"), "{found}");
}

#[test]
fn lies_about_counts_are_found_before_anything_is_allocated() {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend([0; 16]);
    let changed = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        open(&bytes).map(|_| ()).unwrap_err().to_string()
    };
    assert!(changed(0, b"GGML").contains("does not begin with `GGUF`"));
    assert!(changed(4, &[1]).contains("GGUF version 1 is not supported"));
    assert!(changed(4, &[0, 0, 0, 3]).contains("big-endian"));
    assert!(changed(8, &[0xff; 8]).contains("18446744073709551615 tensors do not fit"));
    assert!(changed(16, &[0xff; 8]).contains("metadata entries do not fit"));
    for length in 0..bytes.len() {
        assert!(open(&bytes[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = model("gemma3").bytes();
    for length in (0..bytes.len()).step_by(61) {
        assert!(open(&bytes[..length]).is_err(), "{length} bytes");
    }
}

/// Bytes that the values of metadata hold.
fn held(header: &Header) -> usize {
    let value = |value: &Value| match value {
        Value::Text(text) => text.capacity(),
        Value::Unsigneds(all) => 8 * all.capacity(),
        Value::Signeds(all) => 8 * all.capacity(),
        Value::Floats(all) => 4 * all.capacity(),
        Value::Bools(all) => all.capacity(),
        Value::Texts(all) => {
            size_of::<Vec<u8>>() * all.capacity() + all.iter().map(Vec::capacity).sum::<usize>()
        }
        Value::Unsigned(_) | Value::Signed(_) | Value::Float(_) | Value::Bool(_) => 0,
    };
    header.metadata.values().map(value).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    /// Whatever is changed, nothing panics, and what is held stays within a few times the file.
    #[test]
    fn mutations_never_panic_nor_cost_memory(
        name in 0..5_usize,
        changes in prop::collection::vec((0.0..1.0_f64, any::<u8>()), 1..6),
        in_header in any::<bool>(),
        length in 0.5..1.5_f64,
    ) {
        let writer = model(ARCHITECTURES[name].0);
        let elements: usize = writer.tensors.iter().map(|(_, _, elements)| elements.len()).sum();
        let mut bytes = writer.bytes();
        let end = if in_header { bytes.len() - elements } else { bytes.len() };
        for (place, byte) in changes {
            let at = (place * end as f64) as usize;
            bytes[at] = byte;
        }
        if length < 1.0 {
            bytes.truncate((bytes.len() as f64 * length) as usize);
        }
        if let Ok(header) = Header::parse(bytes.as_slice(), bytes.len() as u64) {
            prop_assert!(held(&header) <= 8 * bytes.len());
        }
        if let Ok(gguf) = open(&bytes) {
            for (tensor, info) in gguf.tensors() {
                prop_assert_eq!(gguf.read(tensor).unwrap().len() as u64, info.bytes().unwrap());
            }
        }
    }
}
