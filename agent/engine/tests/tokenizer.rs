//! Owns the promises of vocabularies and tokenizers that need no outside file: what is encoded comes back, hostile
//! descriptions are refused, no text takes long, and both ways of reading a model agree.
//! Must never know what a particular model's tokens are.

#![expect(clippy::expect_used, reason = "a test says by failing what it expected")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use skein_engine::gguf::{Header, Metadata, Value};
use skein_engine::limits::VOCABULARY_MAX;
use skein_engine::tokenizer::{Tokenizer, TokenizerError, Vocabulary};

/// The alphabet of byte-level vocabularies, as GPT-2 lists it.
fn letters() -> Vec<String> {
    let mut spare = 0x100_u32;
    let letter = |byte: u32| {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable { byte } else { spare };
        spare += u32::from(!printable);
        char::from_u32(code).expect("the alphabet is Latin").to_string()
    };
    (0..256).map(letter).collect()
}

fn texts<T: AsRef<str>>(texts: &[T]) -> Value {
    Value::Texts(texts.iter().map(|text| text.as_ref().as_bytes().to_vec()).collect())
}

/// Bytes, a few merges of letters, and special tokens.
fn byte_level() -> Metadata {
    let mut tokens = letters();
    let merges = ["Ġ t", "h e", "Ġt he", "a a", "aa aa", "i n", "Ġ Ġ", "ĠĠ ĠĠ", "Ã ©"];
    tokens.extend(merges.map(|merge| merge.replace(' ', "")));
    let mut types = vec![1; tokens.len()];
    tokens.extend(["<|im_start|>", "<|im_end|>", "<tool>"].map(str::to_owned));
    types.extend([3, 3, 4]);
    Metadata::from([
        ("tokenizer.ggml.model".to_owned(), Value::Text(b"gpt2".to_vec())),
        ("tokenizer.ggml.pre".to_owned(), Value::Text(b"smollm".to_vec())),
        ("tokenizer.ggml.tokens".to_owned(), texts(&tokens)),
        ("tokenizer.ggml.token_type".to_owned(), Value::Signeds(types)),
        ("tokenizer.ggml.merges".to_owned(), texts(&merges)),
        ("tokenizer.ggml.bos_token_id".to_owned(), Value::Unsigned(265)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::Unsigned(266)),
    ])
}

/// A few pieces with scores, and bytes for everything else.
fn pieces() -> Metadata {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    let words = ["▁", "t", "h", "e", "▁t", "he", "▁the", "é", "▁▁", "▁▁▁▁"];
    tokens.extend(words.map(str::to_owned));
    types.extend([1; 10]);
    let scores = (0..tokens.len()).map(|at| if at < 259 { 0.0 } else { 259.0 - at as f32 }).collect();
    Metadata::from([
        ("tokenizer.ggml.model".to_owned(), Value::Text(b"llama".to_vec())),
        ("tokenizer.ggml.tokens".to_owned(), texts(&tokens)),
        ("tokenizer.ggml.token_type".to_owned(), Value::Signeds(types)),
        ("tokenizer.ggml.scores".to_owned(), Value::Floats(scores)),
    ])
}

fn tokenizer(metadata: &Metadata) -> Tokenizer {
    Vocabulary::from_gguf(metadata).and_then(Tokenizer::new).expect("the vocabulary is sound")
}

fn bytes(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| tokenizer.bytes_of(*token).to_vec()).collect()
}

proptest! {
    #[test]
    fn bytes_come_back(text in any::<String>(), dense in "[ athein\n'1é<]{0,40}") {
        let tokenizer = tokenizer(&byte_level());
        for text in [text, dense] {
            prop_assert_eq!(bytes(&tokenizer, &tokenizer.encode(&text, false)), text.as_bytes());
        }
    }

    #[test]
    fn pieces_come_back_after_a_blank(text in "[ theé日\n<s>]{1,40}") {
        let tokenizer = tokenizer(&pieces());
        let back = bytes(&tokenizer, &tokenizer.encode(&text, false));
        prop_assert_eq!(String::from_utf8(back).expect("whole characters"), format!(" {text}"));
    }

    #[test]
    fn any_bytes_are_a_vocabulary_or_an_error(noise in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..9_000) {
        let _ = borsh::from_slice::<Vocabulary>(&noise);
        let sound = Vocabulary::from_gguf(&byte_level()).expect("it is sound");
        let mut encoded = borsh::to_vec(&sound).expect("it is encoded");
        let at = at % encoded.len();
        encoded[at] ^= noise.first().copied().unwrap_or(1) | 1;
        if let Ok(Ok(tokenizer)) = borsh::from_slice::<Vocabulary>(&encoded).map(Tokenizer::new) {
            let tokens = tokenizer.prompt("the <|im_end|> <tool> aaaa 1234 é\n\n");
            prop_assert!(tokens.iter().all(|token| (*token as usize) < tokenizer.vocabulary().len()));
        }
    }
}

#[test]
fn words_grow_by_the_first_merge() {
    let tokenizer = tokenizer(&byte_level());
    let said = |text: &str| {
        let tokens = tokenizer.encode(text, true);
        tokens
            .iter()
            .map(|token| String::from_utf8_lossy(tokenizer.bytes_of_any(*token)).into_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(said(" the in"), [" the", " ", "in"]);
    assert_eq!(said("aaaaaaa"), ["aaaa", "aa", "a"]);
    assert_eq!(said("12<|im_end|><tool>"), ["1", "2", "<|im_end|>", "<tool>"]);
    assert_eq!(said("     the"), ["    ", " the"]);
    let spelled = tokenizer.encode("<|im_end|>", false);
    assert!(spelled.len() > 1, "a user who spells a control token does not get it");
    assert_eq!(tokenizer.encode("<tool>", false), [267]);
    assert!(tokenizer.is_end(266) && !tokenizer.is_end(0));
    assert_eq!((tokenizer.bytes_of(266), tokenizer.bytes_of_any(266)), (&b""[..], &b"<|im_end|>"[..]));
    assert_eq!(tokenizer.bytes_of(u32::MAX), b"");
    assert_eq!(
        (tokenizer.token_of("<|im_end|>"), tokenizer.token_of(" the"), tokenizer.token_of("?!")),
        (Some(266), Some(258), None)
    );
}

#[test]
fn prompts_begin_once() {
    let mut metadata = byte_level();
    assert_eq!(tokenizer(&metadata).prompt("a"), [97]);
    metadata.insert("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(true));
    metadata.insert("tokenizer.ggml.add_eos_token".to_owned(), Value::Bool(true));
    let tokenizer = tokenizer(&metadata);
    assert_eq!(tokenizer.prompt("a"), [265, 97, 266]);
    assert_eq!(tokenizer.prompt("<|im_start|>a"), [265, 97, 266]);
}

#[test]
fn models_of_bytes_say_every_byte() {
    let tokenizer = Tokenizer::new(Vocabulary::bytes()).expect("it is sound");
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(tokenizer.encode_bytes(&all), (0..256).collect::<Vec<u32>>());
    assert_eq!(bytes(&tokenizer, &tokenizer.encode_bytes(&all)), all);
    assert_eq!(tokenizer.encode("é", true), [0xC3, 0xA9]);
}

#[test]
fn a_vocabulary_survives_the_wire() {
    for vocabulary in [
        Vocabulary::bytes(),
        Vocabulary::from_gguf(&byte_level()).expect("sound"),
        Vocabulary::from_gguf(&pieces()).expect("sound"),
    ] {
        let encoded = borsh::to_vec(&vocabulary).expect("it is encoded");
        assert_eq!(borsh::from_slice::<Vocabulary>(&encoded).expect("it is decoded"), vocabulary);
    }
}

#[test]
fn hostile_metadata_are_named_errors() {
    let huge = Value::Texts(vec![Vec::new(); VOCABULARY_MAX as usize + 1]);
    let cases: [(&str, Option<Value>, &str); 15] = [
        ("model", None, "tokenizer.ggml.model"),
        ("model", Some(Value::Text(b"bert".to_vec())), "`bert`"),
        ("model", Some(Value::Unsigned(1)), "wrong type"),
        ("pre", Some(Value::Text(b"martian".to_vec())), "`martian`"),
        ("tokens", None, "tokenizer.ggml.tokens"),
        ("tokens", Some(Value::Texts(Vec::new())), "0 tokens but 268"),
        ("tokens", Some(huge), "1048577"),
        ("tokens", Some(Value::Texts(vec![b"a".to_vec(); 268])), "`a` is there twice"),
        ("token_type", Some(Value::Signeds(vec![1])), "1 token types"),
        ("merges", None, "tokenizer.ggml.merges"),
        ("merges", Some(texts(&["h e", "no such"])), "merge 1"),
        ("merges", Some(texts(&[""])), "merge 0"),
        ("merges", Some(texts(&["h h"])), "merge 0"),
        ("add_bos_token", Some(Value::Unsigned(1)), "add_bos_token"),
        ("bos_token_id", Some(Value::Bool(true)), "bos_token_id"),
    ];
    for (key, value, named) in cases {
        let mut metadata = byte_level();
        let key = format!("tokenizer.ggml.{key}");
        let shown = format!("{key} {}", named);
        match value {
            Some(value) => metadata.insert(key, value),
            None => metadata.remove(&key),
        };
        let error =
            Vocabulary::from_gguf(&metadata).and_then(Tokenizer::new).err().expect(&shown).to_string();
        assert!(error.contains(named), "{shown}: {error}");
    }
    let mut metadata = byte_level();
    metadata.insert("tokenizer.ggml.bos_token_id".to_owned(), Value::Unsigned(4_294_967_295));
    assert_eq!(Vocabulary::from_gguf(&metadata).expect("it means none").bos(), None);
    let mut metadata = pieces();
    metadata.insert("tokenizer.ggml.scores".to_owned(), Value::Floats(vec![f32::NAN; 269]));
    assert!(matches!(Vocabulary::from_gguf(&metadata), Err(TokenizerError::BadScore(0))));
}

#[test]
fn hostile_encodings_are_refused() {
    let sound = borsh::to_vec(&Vocabulary::bytes()).expect("it is encoded");
    assert!(borsh::from_slice::<Vocabulary>(&sound[..sound.len() - 1]).is_err(), "too short");
    // A byte-pair vocabulary of 2^32 - 1 merges, tokens or bytes, of which none follow.
    for prefix in [&[1, 5, 0, 0, 0, b'g', b'p', b't', b'-', b'2', 0][..], &[0], &[0, 1, 0, 0, 0]] {
        let hostile = [prefix, &u32::MAX.to_le_bytes()[..]].concat();
        assert!(borsh::from_slice::<Vocabulary>(&hostile).is_err());
    }
    let mut other = sound;
    other[9] ^= 1;
    assert!(borsh::from_slice::<Vocabulary>(&other).is_err(), "a byte that is another");
    let mut empty = vec![0_u8];
    empty.extend([0; 64]);
    assert!(borsh::from_slice::<Vocabulary>(&empty).is_err(), "no tokens");
}

#[test]
fn no_text_takes_long() {
    let long = 1 << 18;
    let shapes =
        ["a", " ", "\n", "\n ", "<", "<|im_end", "1", "!", "é", "\u{200d}", "Aa'", " \r x", "the ", "▁"];
    let texts = shapes.map(|shape| shape.repeat(long / shape.len()));
    let runs = format!("{}x\n", " ".repeat(2_000)).repeat(long / 2_000);
    for metadata in [byte_level(), pieces()] {
        let tokenizer = tokenizer(&metadata);
        for text in texts.iter().chain([&runs]) {
            let begun = Instant::now();
            let tokens = tokenizer.encode(text, true);
            assert!(!tokens.is_empty());
            let shown: String = text.chars().take(8).collect();
            assert!(begun.elapsed() < Duration::from_secs(10), "{shown:?} took {:?}", begun.elapsed());
        }
    }
}

/// The folder that Hugging Face's tools would write for the metadata of a byte-level vocabulary.
fn folder(metadata: &Metadata) -> tempfile::TempDir {
    let list = |key: &str| match metadata.get(&format!("tokenizer.ggml.{key}")) {
        Some(Value::Texts(texts)) => {
            texts.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
        }
        _ => Vec::new(),
    };
    let number =
        |key: &str| metadata.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(Value::unsigned);
    let Some(Value::Signeds(types)) = metadata.get("tokenizer.ggml.token_type") else { panic!("no types") };
    let tokens = list("tokens");
    let text = |key: &str| number(key).map(|id| tokens[usize::try_from(id).expect("it is small")].clone());
    let added = (0..).zip(tokens.iter().zip(types)).filter(|(_, (_, kind))| **kind != 1);
    let added: Vec<serde_json::Value> = added
        .map(|(id, (text, kind)): (u32, _)| {
            serde_json::json!({"id": id, "content": text, "special": *kind != 4,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    let vocabulary: BTreeMap<&String, u32> = tokens.iter().zip(0..).collect();
    let tokenizer = serde_json::json!({
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": null,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": list("merges"), "ignore_merges": false},
    });
    let config = serde_json::json!({
        "bos_token": text("bos"), "eos_token": {"content": text("eos")}, "unk_token": text("unknown"),
        "pad_token": text("padding"),
        "chat_template": metadata.get("tokenizer.chat_template").and_then(Value::text),
    });
    let folder = tempfile::tempdir().expect("there is room");
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).expect("it is written");
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("it is written");
    folder
}

/// What the `tokenizers` crate (0.23.2), which most models' authors tested with, makes of [`TEXTS`] by the two folders.
const TEXTS: [&str; 3] =
    ["The  theinaaa 1234!\n\n  the<|im_end|>\n<tool>x é", "\t\t don't Don'T 日本語 \u{1f999}", "   "];
const BYTE_LEVEL: [&[u32]; 3] = [
    &[84, 257, 32, 258, 261, 259, 97, 32, 49, 50, 51, 52, 33, 10, 10, 32, 258, 266, 10, 267, 120, 32, 264],
    &[
        9, 9, 32, 100, 111, 110, 39, 116, 32, 68, 111, 110, 39, 84, 32, 230, 151, 165, 230, 156, 172, 232,
        170, 158, 32, 240, 159, 166, 153,
    ],
    &[262, 32],
];
const SMOLLM2: [&[u32]; 3] = [
    &[504, 216, 260, 1787, 11510, 216, 33, 34, 35, 36, 17, 8866, 260, 2, 198, 44, 19324, 46, 104, 26411],
    &[1656, 1326, 982, 4250, 23, 68, 17097, 241, 115, 40993, 179, 120, 248, 15107, 116, 243],
    &[333],
];

#[test]
fn a_folder_and_a_file_of_one_model_agree() {
    let mut models = vec![(byte_level(), BYTE_LEVEL)];
    match std::env::var_os("SKEIN_TEST_MODEL").map(PathBuf::from) {
        Some(path) => models.push((Header::open(&path).expect("the model is sound").metadata, SMOLLM2)),
        None => eprintln!("SKIPPED: SKEIN_TEST_MODEL is not set"),
    }
    for (metadata, theirs) in models {
        let folder = folder(&metadata);
        let read = Vocabulary::from_folder(folder.path()).expect("the folder is sound");
        assert_eq!(read, Vocabulary::from_gguf(&metadata).expect("the file is sound"));
        let ours = Tokenizer::new(read).expect("it is sound");
        for (text, theirs) in TEXTS.into_iter().zip(theirs) {
            assert_eq!(ours.encode(text, true), theirs, "{text:?}");
        }
    }
}

#[test]
fn a_folder_that_asks_for_more_is_a_named_error() {
    let folder = folder(&byte_level());
    let path = folder.path().join("tokenizer.json");
    let sound = std::fs::read_to_string(&path).expect("it is there");
    let changes = [
        ("\"BPE\"", "\"Unigram\"", "Unigram"),
        ("\"normalizer\":null", "\"normalizer\":{\"type\":\"Lowercase\"}", "Lowercase"),
        ("\"add_prefix_space\":false", "\"add_prefix_space\":true", "blank before the text"),
        ("\"Digits\"", "\"UnicodeScripts\"", "UnicodeScripts"),
        (
            "\"individual_digits\":true,\"type\":\"Digits\"",
            "\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"(a+)+b\"}",
            "(a+)+b",
        ),
        ("\"h e\"", "\"h ee\"", "merge 1"),
        ("\"id\":267", "\"id\":4000000000", "4000000000"),
        ("\"vocab\"", "\"words\"", "vocab"),
    ];
    for (from, to, named) in changes {
        assert!(sound.contains(from), "{from} is in {sound}");
        std::fs::write(&path, sound.replace(from, to)).expect("it is written");
        let error = Vocabulary::from_folder(folder.path()).expect_err(to).to_string();
        assert!(error.contains(named), "{named}: {error}");
    }
    std::fs::remove_file(&path).expect("it was there");
    assert!(matches!(Vocabulary::from_folder(folder.path()), Err(TokenizerError::Unreadable { .. })));
}
