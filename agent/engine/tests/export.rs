//! Owns the proof that what is written for other programs is the model that was given: GGUF files, Hugging Face
//! folders, vocabularies and adapters, read back by the crate's own readers.
//! Must never need a file from outside but the model that `SKEIN_TEST_MODEL` names.

#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod formats_tiny;
#[path = "stage/tiny.rs"]
#[expect(dead_code, reason = "only some of what the tests of stages share is needed here")]
mod tiny;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use formats_tiny::{ARCHITECTURES, model};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::json;
use skein_engine::config::{ModelConfig, RopeStyle};
use skein_engine::dtype::Dtype;
use skein_engine::export::{Adapter, Part, gguf, gguf_adapter, hf, hf_tokenizer, peft_adapter};
use skein_engine::gguf::{Gguf, GgufWriter, Header, Metadata, Value};
use skein_engine::hf::HfFolder;
use skein_engine::import;
use skein_engine::source::{TensorInfo, TensorSource};
use skein_engine::step::{Chunk, Input, Output, Want};
use skein_engine::tensors::HEAD;
use skein_engine::tokenizer::{Tokenizer, Vocabulary};

/// Rows of the tiny embedding: more than there are bytes, so that some have no token.
const ROWS: u64 = 300;

fn vector(columns: u64) -> TensorInfo {
    TensorInfo { dtype: Dtype::F32, rows: 1, columns }
}

fn waves(count: u64, step: f32) -> Vec<f32> {
    (0..count).map(|index| 0.5 * (index as f32 * step).sin()).collect()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The tiny model of an architecture with rows for [`ROWS`] tokens.
fn writer(name: &str) -> GgufWriter {
    let mut writer = model(name);
    writer.metadata.remove("tokenizer.ggml.tokens");
    let info = TensorInfo { dtype: Dtype::F32, rows: ROWS, columns: 32 };
    writer.tensors[0] = ("token_embd.weight".to_owned(), info, bytes_of(&waves(ROWS * 32, 1.7)));
    writer
}

fn write(writer: &GgufWriter, folder: &Path) -> Gguf {
    let path = folder.join("original.gguf");
    std::fs::write(&path, writer.bytes()).unwrap();
    Gguf::open(&path).unwrap()
}

fn to_gguf(source: &dyn TensorSource, folder: &Path) -> Result<Gguf, String> {
    let path = folder.join("written.gguf");
    let mut steps = Vec::new();
    let done = gguf("tiny", source, &Vocabulary::bytes(), &path, &mut |done, of| steps.push((done, of)));
    done.map_err(|error| error.to_string())?;
    assert!(steps.is_sorted() && steps.last().is_some_and(|(done, of)| done == of), "{steps:?}");
    Ok(Gguf::open(&path).unwrap())
}

fn to_folder(source: &dyn TensorSource, folder: &Path) -> Result<HfFolder, String> {
    let mut steps = Vec::new();
    let done = hf(source, &Vocabulary::bytes(), folder, &mut |done, of| steps.push((done, of)));
    done.and_then(|()| hf_tokenizer(&Vocabulary::bytes(), folder)).map_err(|error| error.to_string())?;
    assert!(steps.is_sorted() && steps.last().is_some_and(|(done, of)| done == of), "{steps:?}");
    Ok(HfFolder::open(folder).unwrap())
}

/// Log-probabilities that the model gives to many tokens after each token of a short text.
fn scores(source: &dyn TensorSource) -> Vec<f32> {
    let text: Vec<u32> = (0..20).map(|index| index * 53 % ROWS as u32).collect();
    let mut stage = tiny::open(source, 0..source.config().layers);
    let mut all = Vec::new();
    for session in 0..30 {
        let targets = (0..20).map(|index| (index * 37 + session as u32 * 10) % ROWS as u32).collect();
        let (input, want) = (Input::Tokens(text.clone()), Want::Scores { from: 0, targets });
        match stage.step(&[Chunk { session, position: 0, input, want }]).pop().unwrap().unwrap() {
            Output::Scores(scores) => all.extend(scores),
            Output::Rows(_) | Output::Picks(_) => panic!("scores were asked for"),
        }
    }
    all
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    let square =
        |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
    let mean = expected.iter().sum::<f32>() / expected.len() as f32;
    let spread = square(&mut expected.iter().map(|value| value - mean));
    let error = square(&mut found.iter().zip(expected).map(|(one, other)| one - other));
    assert!(found.len() == expected.len() && error < 1e-3 * spread, "{what}: {error} of {spread}");
}

/// The same hyperparameters as a folder has them.
fn in_halves(config: &ModelConfig) -> ModelConfig {
    let mut config = config.clone();
    config.rope.style = RopeStyle::Halves;
    config
}

#[test]
fn models_of_every_architecture_come_back() {
    for (name, _) in ARCHITECTURES {
        for tied in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let mut writer = writer(name);
            if !tied {
                let info = TensorInfo { dtype: Dtype::F32, rows: ROWS, columns: 32 };
                writer = writer.tensor(HEAD, info, bytes_of(&waves(ROWS * 32, 2.3)));
            }
            let original = write(&writer, directory.path());
            let expected = scores(&original);

            let again = to_gguf(&original, directory.path()).unwrap();
            assert_eq!(again.config(), original.config(), "{name}");
            assert_eq!(again.tensors(), original.tensors(), "{name}");
            for tensor in original.tensors().keys() {
                assert_eq!(again.read(tensor).unwrap(), original.read(tensor).unwrap(), "{name} {tensor}");
            }
            assert_eq!(again.metadata()["general.name"].text(), Some("tiny"));

            let folder = to_folder(&original, directory.path()).unwrap();
            assert_eq!(folder.config(), &in_halves(original.config()), "{name}");
            assert_eq!(folder.tensors(), original.tensors(), "{name}");
            assert_close(&scores(&folder), &expected, name);

            // From the folder back, which turns llama's heads around again.
            let back = to_gguf(&folder, directory.path()).unwrap();
            assert_eq!(back.config(), original.config(), "{name}");
            assert_close(&scores(&back), &expected, name);
            let query = "blk.1.attn_q.weight";
            assert_eq!(back.read(query).unwrap(), original.read(query).unwrap(), "{name}");

            for path in [directory.path().join("written.gguf"), directory.path().to_owned()] {
                let imported = import::open(&path).unwrap();
                let tokenizer = Tokenizer::new(imported.vocabulary).unwrap();
                assert_eq!(tokenizer.prompt("é"), [0xC3, 0xA9], "{name}");
            }
        }
    }
}

#[test]
fn quantised_models_are_written_in_full() {
    let directory = tempfile::tempdir().unwrap();
    let mut quantised = writer("qwen3");
    let (_, info, elements) = &mut quantised.tensors[0];
    let values: Vec<f32> = elements.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    info.dtype = Dtype::Q8_0;
    *elements = skein_engine::dtype::quantize(Dtype::Q8_0, &values).unwrap();
    let mut exact = vec![0.0; values.len()];
    skein_engine::dtype::dequantize(Dtype::Q8_0, elements, &mut exact).unwrap();
    let original = write(&quantised, directory.path());
    for source in [
        &to_gguf(&original, directory.path()).unwrap() as &dyn TensorSource,
        &to_folder(&original, directory.path()).unwrap(),
    ] {
        assert_eq!(source.tensors()["token_embd.weight"].dtype, Dtype::F32);
        assert_eq!(source.read("token_embd.weight").unwrap(), bytes_of(&exact));
    }
}

/// What becomes of a tiny model with other metadata: as GGUF, and as a folder.
fn with(name: &str, changes: &[(&str, Value)]) -> (ModelConfig, [Result<ModelConfig, String>; 2]) {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(name);
    for (key, value) in changes {
        writer = writer.with(&format!("{name}.{key}"), value.clone());
    }
    let original = write(&writer, directory.path());
    let file = to_gguf(&original, directory.path()).map(|gguf| gguf.config().clone());
    let folder = to_folder(&original, directory.path()).map(|folder| folder.config().clone());
    (original.config().clone(), [file, folder])
}

#[test]
fn what_hyperparameters_say_beyond_the_usual_comes_back() {
    let linear =
        [("rope.scaling.type", Value::Text(b"linear".into())), ("rope.scaling.factor", Value::Float(8.0))];
    let bases = [("rope.freq_base", Value::Float(1e6)), ("rope.freq_base_swa", Value::Float(1e6))];
    let cases: [(&str, &[(&str, Value)]); 8] = [
        ("llama", &linear),
        ("gemma3", &linear),
        ("gemma3", &bases),
        ("gemma2", &bases),
        ("gemma3", &[("attention.sliding_window_pattern", Value::Bools(vec![true, false]))]),
        ("gemma3", &[("attention.sliding_window_pattern", Value::Unsigned(0))]),
        ("gemma3", &[("final_logit_softcapping", Value::Float(20.0))]),
        ("gemma2", &[("attn_logit_softcapping", Value::Float(7.5))]),
    ];
    for (name, changes) in cases {
        let (original, [file, folder]) = with(name, changes);
        assert_eq!(file.unwrap(), original, "{name} {changes:?}");
        assert_eq!(folder.unwrap(), in_halves(&original), "{name} {changes:?}");
    }
}

#[test]
fn what_a_format_cannot_say_is_an_error() {
    // Readers of GGUF take Gemma 2's usual cap for one that is not there.
    let (_, [file, folder]) = with("gemma2", &[("attn_logit_softcapping", Value::Float(0.0))]);
    assert!(file.unwrap_err().contains("GGUF cannot say the hyperparameters"));
    assert_eq!(folder.unwrap().score_cap, None);
    // A folder of Gemma 3 always slides.
    let (_, [file, folder]) = with("gemma3", &[("attention.sliding_window", Value::Unsigned(0))]);
    assert_eq!(file.unwrap().window, None);
    assert!(folder.unwrap_err().contains("a Hugging Face folder cannot say the hyperparameters"));

    let directory = tempfile::tempdir().unwrap();
    let small = write(&model("llama"), directory.path());
    assert!(to_gguf(&small, directory.path()).unwrap_err().contains("256 tokens"));
    assert!(to_folder(&small, directory.path()).err().unwrap().contains("256 tokens"));
    let nowhere = directory.path().join("no such folder");
    let original = write(&writer("llama"), directory.path());
    assert!(to_folder(&original, &nowhere).err().unwrap().contains("cannot write"));
}

#[test]
fn llama_3_scales_frequencies_in_both_formats() {
    let directory = tempfile::tempdir().unwrap();
    to_folder(&write(&writer("llama"), directory.path()), directory.path()).unwrap();
    let path = directory.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["rope_scaling"] = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8_192});
    std::fs::write(&path, config.to_string()).unwrap();
    let folder = HfFolder::open(directory.path()).unwrap();
    assert_eq!(folder.config().rope.factors.len(), 4);
    let file = to_gguf(&folder, directory.path()).unwrap();
    assert_eq!(file.config().rope.factors, folder.config().rope.factors);
    let again = tempfile::tempdir().unwrap();
    assert_eq!(to_folder(&file, again.path()).unwrap().config(), folder.config());

    let factors = bytes_of(&[1.0, 1.0, 2.0, 9.0]);
    let odd = write(&writer("llama").tensor("rope_freqs.weight", vector(4), factors), directory.path());
    assert_eq!(to_gguf(&odd, directory.path()).unwrap().config(), odd.config());
    assert!(to_folder(&odd, again.path()).err().unwrap().contains("these factors"));
}

/// A vocabulary through the files of a folder; `change` sees the text of `tokenizer.json`.
fn through_folder(vocabulary: &Vocabulary, change: impl Fn(String) -> String) -> Vocabulary {
    let directory = tempfile::tempdir().unwrap();
    for (name, value) in vocabulary.to_folder().unwrap() {
        let text = if name == "tokenizer.json" { change(value.to_string()) } else { value.to_string() };
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    Vocabulary::from_folder(directory.path()).unwrap()
}

fn both_ways(vocabulary: &Vocabulary) -> [Vocabulary; 2] {
    let file = Vocabulary::from_gguf(&vocabulary.to_gguf().unwrap()).unwrap();
    [file, through_folder(vocabulary, |text| text)]
}

proptest! {
    #[test]
    fn bytes_stay_bytes(text in any::<String>(), dense in "[ a\n'1é<]{0,40}") {
        for vocabulary in both_ways(&Vocabulary::bytes()) {
            prop_assert_eq!(vocabulary.len(), 256);
            let tokenizer = Tokenizer::new(vocabulary).unwrap();
            for text in [&text, &dense] {
                let expected: Vec<u32> = text.bytes().map(u32::from).collect();
                prop_assert_eq!(&tokenizer.encode(text, true), &expected);
                let bytes: Vec<u8> =
                    expected.iter().flat_map(|token| tokenizer.bytes_of(*token).to_vec()).collect();
                prop_assert_eq!(bytes, text.as_bytes());
            }
        }
    }
}

fn texts<T: AsRef<str>>(texts: &[T]) -> Value {
    Value::Texts(texts.iter().map(|text| text.as_ref().as_bytes().to_vec()).collect())
}

/// A few merges of letters, a word that no merge leads to, special tokens in front, and a gap.
fn byte_level(pre: &str) -> Metadata {
    let bytes = Vocabulary::bytes().to_gguf().unwrap();
    let Value::Texts(letters) = &bytes["tokenizer.ggml.tokens"] else { panic!("no tokens") };
    let mut tokens: Vec<String> =
        ["<unk>", "<|start|>", "<|im_end|>", "<tool>", "<halt>"].map(str::to_owned).into();
    let mut types = vec![2, 3, 3, 4, 3];
    tokens.extend(letters.iter().map(|letter| String::from_utf8(letter.clone()).unwrap()));
    let merges = ["Ġ t", "h e", "Ġt he", "a a", "aa aa", "Ġ Ġ", "Ã ©"];
    tokens.extend(merges.map(|merge| merge.replace(' ', "")));
    tokens.extend(["hello".to_owned()]);
    types.resize(tokens.len(), 1);
    tokens.extend(["two words", "<last>"].map(str::to_owned));
    types.extend([5, 3]);
    let id = |id: u64| Value::Unsigned(id);
    let entries = [
        ("model", Value::Text(b"gpt2".to_vec())),
        ("pre", Value::Text(pre.into())),
        ("tokens", texts(&tokens)),
        ("token_type", Value::Signeds(types)),
        ("merges", texts(&merges)),
        ("bos_token_id", id(1)),
        ("eos_token_id", id(2)),
        ("eom_token_id", id(4)),
        ("unknown_token_id", id(0)),
        ("padding_token_id", id(2)),
        ("add_bos_token", Value::Bool(true)),
        ("add_eos_token", Value::Bool(true)),
    ];
    let mut metadata: Metadata =
        entries.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
    metadata.insert("tokenizer.chat_template".to_owned(), Value::Text(b"{{ messages }}".to_vec()));
    metadata
}

const TEXTS: [&str; 8] = [
    "The house stood at the end of a long lane, and nobody had lived in it for thirty years.\n\n  Nobody?",
    "fn main() {\n    let x: Vec<u32> = (0..10).map(|i| i * 2).collect(); // don't\n\treturn;\n}\r\n",
    "1234567890, 3.14159e-10 and 0xFF; 2025-11-23",
    "naïve café 日本語 \u{1f999}\u{200d}\u{1f469} ё \u{0} ½",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    "<|start|>aaaaaaa hello the<tool> <|im_end|>  <last> <unk>",
    "   ",
    "",
];

/// That both encode alike, and mean the same by their special tokens.
fn assert_alike(found: Vocabulary, expected: &Vocabulary) {
    let told = |vocabulary: &Vocabulary| {
        let special = [vocabulary.bos(), vocabulary.eos(), vocabulary.padding()];
        (special, vocabulary.ends().clone(), vocabulary.chat_template().map(str::to_owned))
    };
    assert_eq!(told(&found), told(expected));
    let (found, expected) = (Tokenizer::new(found).unwrap(), Tokenizer::new(expected.clone()).unwrap());
    for text in TEXTS {
        assert_eq!(found.prompt(text), expected.prompt(text), "{text:?}");
        for special in [false, true] {
            let tokens = expected.encode(text, special);
            assert_eq!(found.encode(text, special), tokens, "{text:?}");
            let bytes = |tokenizer: &Tokenizer| -> Vec<u8> {
                tokens.iter().flat_map(|token| tokenizer.bytes_of(*token).to_vec()).collect()
            };
            assert_eq!(bytes(&found), bytes(&expected), "{text:?}");
        }
    }
}

#[test]
fn vocabularies_of_words_encode_alike_in_both_formats() {
    for pre in ["smollm", "llama-bpe", "qwen2", "default", "gpt-4o", "falcon", "bloom"] {
        let vocabulary = Vocabulary::from_gguf(&byte_level(pre)).unwrap();
        for read in both_ways(&vocabulary) {
            assert_eq!(read.len(), vocabulary.len(), "{pre}");
            assert_alike(read, &vocabulary);
        }
        let mut metadata = byte_level(pre);
        metadata.insert("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(false));
        metadata.insert("tokenizer.ggml.add_eos_token".to_owned(), Value::Bool(false));
        let silent = Vocabulary::from_gguf(&metadata).unwrap();
        for read in both_ways(&silent) {
            assert_alike(read, &silent);
        }
    }
}

#[test]
fn whole_words_are_taken_or_not_as_before() {
    let vocabulary = |pre: &str, whole: bool| {
        let by_merges = Vocabulary::from_gguf(&byte_level(pre)).unwrap();
        let set = |whole: bool| format!("\"ignore_merges\":{whole}");
        through_folder(&by_merges, |text| text.replace(&set(!whole), &set(whole)))
    };
    for whole in [false, true] {
        let read = vocabulary("llama-bpe", whole);
        let tokens = Tokenizer::new(read.clone()).unwrap().encode("hello", false);
        assert_eq!(tokens.len() == 1, whole);
        for again in both_ways(&read) {
            assert_alike(again, &read);
        }
    }
    assert!(vocabulary("smollm", false).to_gguf().is_ok());
    let refused = vocabulary("smollm", true).to_gguf().unwrap_err();
    assert!(refused.contains("whole words by the rules of `smollm`"), "{refused}");
}

#[test]
fn pieces_with_scores_are_for_gguf_only() {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "t", "h", "e", "▁t", "he", "▁the", "é", "▁▁"].map(str::to_owned));
    let mut types = [vec![2, 3, 3], vec![6; 256]].concat();
    types.resize(tokens.len(), 1);
    let scores = (0..tokens.len()).map(|at| -(at as f32)).collect();
    let entries = [
        ("model", Value::Text(b"llama".to_vec())),
        ("tokens", texts(&tokens)),
        ("token_type", Value::Signeds(types)),
        ("scores", Value::Floats(scores)),
        // A number beyond all tokens: none.
        ("unknown_token_id", Value::Unsigned(u64::from(u32::MAX))),
    ];
    let metadata = entries.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).into();
    let vocabulary = Vocabulary::from_gguf(&metadata).unwrap();
    assert_eq!(Vocabulary::from_gguf(&vocabulary.to_gguf().unwrap()).unwrap(), vocabulary);
    assert!(vocabulary.to_folder().unwrap_err().contains("SentencePiece"));
}

#[test]
fn what_gguf_cannot_say_of_a_vocabulary_is_an_error() {
    let vocabulary = Vocabulary::from_gguf(&byte_level("smollm")).unwrap();
    let strips = through_folder(&vocabulary, |text| text.replacen("\"rstrip\":false", "\"rstrip\":true", 1));
    assert!(strips.to_gguf().unwrap_err().contains("swallow the blanks"));
    assert_alike(through_folder(&strips, |text| text), &strips);

    let directory = tempfile::tempdir().unwrap();
    for (name, mut value) in vocabulary.to_folder().unwrap() {
        if name == "generation_config.json" {
            value["eos_token_id"] = json!([1, 2, 4]);
        }
        std::fs::write(directory.path().join(name), value.to_string()).unwrap();
    }
    let ends = Vocabulary::from_folder(directory.path()).unwrap();
    assert_eq!(ends.ends().len(), 3);
    assert!(ends.to_gguf().unwrap_err().contains("2 more tokens that end an answer"));
    assert_alike(through_folder(&ends, |text| text), &ends);
}

#[test]
fn the_test_models_vocabulary_encodes_alike_in_both_formats() {
    let Some(path) = std::env::var_os("SKEIN_TEST_MODEL").map(PathBuf::from) else {
        return eprintln!("SKIPPED: SKEIN_TEST_MODEL is not set");
    };
    let vocabulary = Vocabulary::from_gguf(&Header::open(&path).unwrap().metadata).unwrap();
    let [file, folder] = both_ways(&vocabulary);
    assert_eq!(file, vocabulary);
    assert_alike(file, &vocabulary);
    assert_alike(folder, &vocabulary);
}

/// An adapter of the query of one layer and of the down projection of another.
fn adapter(config: &ModelConfig) -> Adapter<'_> {
    let part = |rows, columns, step| Part { rows, columns, values: waves(rows * columns, step) };
    let tensors = BTreeMap::from([
        ("blk.0.attn_q.weight.lora_a".to_owned(), part(2, 32, 0.3)),
        ("blk.0.attn_q.weight.lora_b".to_owned(), part(32, 2, 0.7)),
        ("blk.1.ffn_down.weight.lora_a".to_owned(), part(2, 64, 0.9)),
        ("blk.1.ffn_down.weight.lora_b".to_owned(), part(32, 2, 1.1)),
    ]);
    Adapter { config, base: "someone/tiny", rank: 2, alpha: 4.0, tensors }
}

/// `b · a`, of rank 2.
fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    let width = a.len() / 2;
    let row = |b: &[f32; 2]| (0..width).map(|i| b[0] * a[i] + b[1] * a[width + i]).collect::<Vec<f32>>();
    b.as_chunks::<2>().0.iter().flat_map(row).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

#[test]
fn adapters_are_written_as_peft_writes_them() {
    let directory = tempfile::tempdir().unwrap();
    // A model whose query is what the adapter adds to it.
    let mut writer = writer("llama");
    let at = writer.tensors.iter().position(|(name, ..)| name == "blk.0.attn_q.weight").unwrap();
    let (a, b) = (waves(64, 0.3), waves(64, 0.7));
    writer.tensors[at].2 = bytes_of(&product(&a, &b));
    let original = write(&writer, directory.path());
    let folder = to_folder(&original, directory.path()).unwrap();
    peft_adapter(&adapter(original.config()), directory.path()).unwrap();

    let bytes = std::fs::read(directory.path().join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    let layers = "base_model.model.model.layers";
    assert_eq!(tensors.len(), 4);
    assert_eq!(shape(&format!("{layers}.0.self_attn.q_proj.lora_A.weight")), [2, 32]);
    assert_eq!(shape(&format!("{layers}.0.self_attn.q_proj.lora_B.weight")), [32, 2]);
    assert_eq!(shape(&format!("{layers}.1.mlp.down_proj.lora_A.weight")), [2, 64]);
    assert_eq!(shape(&format!("{layers}.1.mlp.down_proj.lora_B.weight")), [32, 2]);
    // The rows of the adapter lie as those of the folder's query.
    let values = |kind: &str| {
        let name = format!("{layers}.0.self_attn.q_proj.lora_{kind}.weight");
        floats(tensors.tensor(&name).unwrap().data())
    };
    let query = floats(&folder.read("blk.0.attn_q.weight").unwrap());
    assert_eq!(product(&values("A"), &values("B")), query);
    assert_ne!(values("B"), b);

    let config = std::fs::read(directory.path().join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["peft_type"], &config["r"]), (&json!("LORA"), &json!(2)));
    assert_eq!(config["target_modules"], json!(["down_proj", "q_proj"]));
    assert_eq!(
        (config["lora_alpha"].as_f64(), &config["base_model_name_or_path"]),
        (Some(4.0), &json!("someone/tiny"))
    );
}

#[test]
fn adapters_are_written_as_llama_cpp_reads_them() {
    let directory = tempfile::tempdir().unwrap();
    let original = write(&writer("llama"), directory.path());
    let path = directory.path().join("adapter.gguf");
    let adapter = adapter(original.config());
    gguf_adapter(&adapter, &path).unwrap();
    let length = std::fs::metadata(&path).unwrap().len();
    let header = Header::parse(File::open(&path).unwrap(), length).unwrap();
    let text = |key: &str| header.metadata[key].text().unwrap().to_owned();
    assert_eq!([text("general.type"), text("adapter.type")], ["adapter", "lora"]);
    assert_eq!(text("general.architecture"), "llama");
    assert_eq!(header.metadata["adapter.lora.alpha"].float(), Some(4.0));
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(header.tensors.len(), adapter.tensors.len());
    for (name, part) in &adapter.tensors {
        let place = header.tensors[name];
        assert_eq!((place.info.rows, place.info.columns), (part.rows, part.columns), "{name}");
        let found = &bytes[place.start as usize..][..place.bytes as usize];
        assert_eq!(floats(found), part.values, "{name}");
    }
    // Of a folder's model, the rows of the query are turned around.
    let folder = to_folder(&original, directory.path()).unwrap();
    gguf_adapter(&Adapter { config: folder.config(), ..adapter }, &path).unwrap();
    let header = Header::open(&path).unwrap();
    let place = header.tensors["blk.0.attn_q.weight.lora_b"];
    let bytes = std::fs::read(&path).unwrap();
    let found = floats(&bytes[place.start as usize..][..place.bytes as usize]);
    let b = waves(64, 0.7);
    assert_eq!((&found[..4], &found[4..6]), (&[b[0], b[1], b[8], b[9]][..], &b[2..4]));
}

#[test]
fn adapters_of_another_shape_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let original = write(&writer("llama"), directory.path());
    let refused = |name: &str, part: Part| {
        let mut adapter = adapter(original.config());
        adapter.tensors.insert(name.to_owned(), part);
        let found = peft_adapter(&adapter, directory.path()).unwrap_err().to_string();
        assert!(found.contains(&format!("PEFT cannot say the adapter's tensor `{name}`")), "{found}");
        let found = gguf_adapter(&adapter, &directory.path().join("adapter.gguf")).unwrap_err().to_string();
        assert!(found.contains(&format!("GGUF cannot say the adapter's tensor `{name}`")), "{found}");
    };
    let part = |rows, columns, count| Part { rows, columns, values: vec![0.0; count] };
    refused("blk.0.attn_k.weight", part(2, 32, 64));
    refused("blk.0.attn_k.weight.lora_a", part(3, 32, 96));
    refused("blk.0.attn_k.weight.lora_b", part(16, 2, 33));
    refused("token_embd.weight.lora_a", part(2, 32, 64));
}
