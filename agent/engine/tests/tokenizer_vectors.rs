//! Owns equality with llama.cpp: every vocabulary of its `models` folder that has test vectors, encoded token for token.
//! Must never pass because a vocabulary was silently left out: those that are not supported are listed with their errors.

#![expect(clippy::expect_used, reason = "a test says by failing what it expected")]

use std::path::{Path, PathBuf};

use skein_engine::gguf::Header;
use skein_engine::tokenizer::{Tokenizer, TokenizerError, Vocabulary};

/// Vocabularies that we refuse, and what the error names.
const REFUSED: [(&str, &str); 1] = [
    // WordPiece serves embedding models alone, which Skein does not run.
    ("ggml-vocab-bert-bge.gguf", "bert"),
];

/// llama.cpp's vocabularies that have vectors, in order.
fn vocabularies() -> Vec<PathBuf> {
    let Ok(folder) = std::env::var("SKEIN_TEST_VOCABS") else {
        eprintln!("SKIPPED: SKEIN_TEST_VOCABS does not name llama.cpp's models folder");
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
        .filter(|path| with_suffix(path, ".inp").exists() && with_suffix(path, ".out").exists())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "the folder holds vectors");
    paths
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn open(path: &Path) -> Result<Tokenizer, TokenizerError> {
    let header = Header::open(path).expect("llama.cpp's files are sound");
    Vocabulary::from_gguf(&header.metadata).and_then(Tokenizer::new)
}

#[test]
fn every_vector_of_llama_cpp_is_encoded_alike() {
    let mut wrong = Vec::new();
    for path in vocabularies() {
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        let tokenizer = match (open(&path), REFUSED.iter().find(|(refused, _)| *refused == name)) {
            (Ok(tokenizer), None) => tokenizer,
            (Err(error), Some((_, named))) if error.to_string().contains(named) => continue,
            (result, _) => {
                wrong.push(format!("{name}: {:?}", result.map(|_| "is no longer refused")));
                continue;
            }
        };
        let inputs = std::fs::read_to_string(with_suffix(&path, ".inp")).expect("the inputs are UTF-8");
        let outputs = std::fs::read_to_string(with_suffix(&path, ".out")).expect("the outputs are UTF-8");
        let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
        let outputs: Vec<&str> = outputs.lines().collect();
        assert!(inputs.len() >= outputs.len() && outputs.len() > 40, "{name} has vectors");
        for (input, output) in inputs.iter().zip(&outputs) {
            let expected: Vec<u32> =
                output.split_whitespace().map(|token| token.parse().expect("tokens are numbers")).collect();
            let tokens = tokenizer.encode(input, false);
            if tokens != expected {
                wrong.push(format!("{name}: {input:?}\n  ours   {tokens:?}\n  theirs {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
