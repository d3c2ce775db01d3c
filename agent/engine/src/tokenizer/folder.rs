//! Owns reading a vocabulary from a folder as Hugging Face lays it out.
//! Must never guess: what `tokenizer.json` asks for and we lack is named in the error.
//!
//! Composition of characters (NFC), which some models ask for, is left out, as llama.cpp leaves it out: nearly all text
//! is composed already.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::reading::{TURN_ENDS, ends, token};
use super::vocabulary::{Kind, Parts, SpacePrefix, SpecialIds, TokenType};
use super::{TokenizerError, VISIBLE_BLANK, Vocabulary, pretokenizer};
use crate::limits::{TOKENIZER_FILE_BYTES_MAX, VOCABULARY_MAX};

/// `tokenizer.json`.
#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

#[derive(Deserialize)]
struct Model {
    vocab: BTreeMap<String, u32>,
    merges: Vec<Merge>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    ignore_merges: bool,
}

/// The kind of model, read first: models of other kinds are laid out otherwise.
#[derive(Deserialize)]
struct OnlyKind {
    model: ModelKind,
}

#[derive(Deserialize)]
struct ModelKind {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

/// `tokenizer_config.json`.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    bos_token: Value,
    #[serde(default)]
    eos_token: Value,
    #[serde(default)]
    unk_token: Value,
    #[serde(default)]
    pad_token: Value,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    #[serde(default)]
    chat_template: Value,
}

/// `generation_config.json`.
#[derive(Default, Deserialize)]
struct Generation {
    #[serde(default)]
    eos_token_id: Value,
}

impl Vocabulary {
    /// Reads `tokenizer.json` and what lies beside it.
    ///
    /// # Errors
    /// [`TokenizerError`], if a file cannot be read, or asks for what is not supported.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let json = read(&path)?.ok_or_else(|| unreadable(&path, "there is no such file"))?;
        match parse::<OnlyKind>(&path, &json)?.model.kind {
            Some(kind) if kind != "BPE" => return Err(TokenizerError::UnknownModel(kind)),
            _ => {}
        }
        let file: TokenizerFile = parse(&path, &json)?;
        let config: Config = read_or_default(&folder.join("tokenizer_config.json"))?;
        let generation: Generation = read_or_default(&folder.join("generation_config.json"))?;
        let template_path = folder.join("chat_template.jinja");
        let chat_template = match read(&template_path)? {
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|error| unreadable(&template_path, error))?),
            None => template(&config.chat_template),
        };
        Self::new(parts(&path, &file, &config, &generation, chat_template)?)
    }
}

fn parts(
    path: &Path,
    file: &TokenizerFile,
    config: &Config,
    generation: &Generation,
    chat_template: Option<String>,
) -> Result<Parts, TokenizerError> {
    let (begins, finishes) = around(&file.post_processor);
    let model = &file.model;
    if [&model.continuing_subword_prefix, &model.end_of_word_suffix]
        .into_iter()
        .flatten()
        .any(|fix| !fix.is_empty())
    {
        return Err(unsupported(path, "affixes of subwords"));
    }
    let text_of = |value: &Value| {
        let text = value.as_str().or_else(|| value.get("content")?.as_str());
        text.map(str::to_owned)
    };
    let unknown = model.unk_token.clone().or_else(|| text_of(&config.unk_token));
    let steps = flat(&file.pre_tokenizer, "pretokenizers");
    let byte_level = steps.iter().any(|step| kind_of(step) == "ByteLevel");
    let texts = numbered(file)?;
    let ids: BTreeMap<&str, u32> = texts.iter().map(|(id, text)| (*text, *id)).collect();
    let merges = merges(&model.merges, &ids)?;
    let (kind, space_prefix) = if byte_level {
        normalizer(path, &file.normalizer, true)?;
        let pre = words(path, &steps)?;
        (Kind::BytePair { pre, whole_words: model.ignore_merges, merges }, SpacePrefix::Never)
    } else {
        let prefix = normalizer(path, &file.normalizer, false)?.max(blanks(path, &steps)?);
        (Kind::PieceMerges(merges), prefix)
    };
    let added: BTreeMap<u32, &AddedToken> = file.added_tokens.iter().map(|token| (token.id, token)).collect();
    let type_of = |id: u32, text: &str| match added.get(&id) {
        Some(added) if added.special => TokenType::Control,
        Some(_) => TokenType::UserDefined,
        None if unknown.as_deref() == Some(text) => TokenType::Unknown,
        None if !byte_level && text.starts_with("<0x") => TokenType::Byte,
        None => TokenType::Normal,
    };
    let length = texts.keys().next_back().map_or(0, |last| last + 1);
    let written = |id: u32| texts.get(&id).copied().unwrap_or_default();
    let token_at = |id: u32| token(written(id).as_bytes(), type_of(id, written(id)), byte_level);
    let id_of = |text: Option<String>| text.and_then(|text| ids.get(text.as_str()).copied());
    let strip = |strips: fn(&AddedToken) -> bool| {
        file.added_tokens
            .iter()
            .filter(|token| strips(token))
            .map(|token| token.id)
            .collect::<BTreeSet<u32>>()
    };
    let bos = id_of(text_of(&config.bos_token).or_else(|| begins.clone()));
    let eos = id_of(text_of(&config.eos_token).or_else(|| finishes.clone()));
    let token_of =
        |text: &str| file.added_tokens.iter().find(|token| token.content == text).map(|token| token.id);
    let mut ends = ends(token_of);
    ends.extend(eos);
    ends.extend(generation_ends(&generation.eos_token_id).filter(|id| *id < length));
    Ok(Parts {
        kind,
        tokens: (0..length).map(token_at).collect(),
        special: SpecialIds {
            bos,
            eos,
            eot: TURN_ENDS.iter().find_map(|text| token_of(text)),
            unknown: id_of(unknown.clone()),
            padding: id_of(text_of(&config.pad_token)),
            ends,
            strip_left: strip(|token| token.lstrip),
            strip_right: strip(|token| token.rstrip),
        },
        add_bos: config.add_bos_token.unwrap_or(begins.is_some()) && bos.is_some(),
        add_eos: config.add_eos_token.unwrap_or(finishes.is_some()) && eos.is_some(),
        space_prefix,
        chat_template,
    })
}

/// Every token's text by its number; those that were added later win.
fn numbered(file: &TokenizerFile) -> Result<BTreeMap<u32, &str>, TokenizerError> {
    let mut texts = BTreeMap::new();
    for (text, id) in &file.model.vocab {
        if texts.insert(*id, text.as_str()).is_some() {
            return Err(TokenizerError::DuplicateToken(text.clone()));
        }
    }
    texts.extend(file.added_tokens.iter().map(|token| (token.id, token.content.as_str())));
    match texts.keys().next_back() {
        Some(id) if *id >= VOCABULARY_MAX => {
            Err(TokenizerError::OutOfRange { what: "`tokenizer.json`", id: *id, tokens: VOCABULARY_MAX })
        }
        _ => Ok(texts),
    }
}

fn merges(merges: &[Merge], ids: &BTreeMap<&str, u32>) -> Result<Vec<(u32, u32)>, TokenizerError> {
    let pair = |(index, merge): (usize, &Merge)| {
        let texts = match merge {
            Merge::Pair(left, right) => Some((left.as_str(), right.as_str())),
            Merge::Text(text) => text.split_once(' '),
        };
        let pair = texts.and_then(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?)));
        pair.ok_or(TokenizerError::BadMerge(index))
    };
    merges.iter().enumerate().map(pair).collect()
}

/// Whether the normalizer is one that we know, and the blank it puts before a text.
fn normalizer(path: &Path, value: &Value, byte_level: bool) -> Result<SpacePrefix, TokenizerError> {
    let mut prefix = SpacePrefix::Never;
    for step in flat(value, "normalizers") {
        let is_blank = |key: &str| step.get(key).and_then(Value::as_str) == Some(VISIBLE_BLANK);
        match kind_of(step) {
            "NFC" => {}
            "Prepend" if !byte_level && is_blank("prepend") => prefix = SpacePrefix::EveryText,
            "Replace"
                if !byte_level && is_blank("content") && step["pattern"]["String"].as_str() == Some(" ") => {}
            other => return Err(unsupported(path, &format!("the normalizer `{other}`"))),
        }
    }
    Ok(prefix)
}

/// Whether SentencePiece's steps are ones that we know, and the blank they put before a text.
fn blanks(path: &Path, steps: &[&Value]) -> Result<SpacePrefix, TokenizerError> {
    let mut prefix = SpacePrefix::Never;
    for step in steps {
        match (kind_of(step), step["prepend_scheme"].as_str()) {
            ("Metaspace", scheme) if step["split"].as_bool() == Some(false) => {
                prefix = match scheme {
                    Some("never") => SpacePrefix::Never,
                    Some("first") => SpacePrefix::FirstText,
                    _ => SpacePrefix::EveryText,
                }
            }
            // Gemma cuts at blanks, of which its normalizer leaves none.
            ("Split", _) if step["pattern"]["String"].as_str() == Some(" ") => {}
            (other, _) => return Err(unsupported(path, &format!("the pre-tokenizer `{other}`"))),
        }
    }
    Ok(prefix)
}

/// The name of the rules that the steps spell out.
fn words(path: &Path, steps: &[&Value]) -> Result<String, TokenizerError> {
    let mut patterns = Vec::new();
    for step in steps {
        let truth = |key: &str| step[key].as_bool();
        match kind_of(step) {
            "ByteLevel" if truth("add_prefix_space") == Some(true) => {
                return Err(unsupported(path, "a blank before the text"));
            }
            "ByteLevel" if truth("use_regex") == Some(false) => {}
            "ByteLevel" => patterns.push(pretokenizer::GPT2.to_owned()),
            "Digits" if truth("individual_digits") == Some(true) => {
                patterns.push(pretokenizer::DIGIT.to_owned())
            }
            "Split" if step["behavior"].as_str() == Some("Isolated") => {
                let pattern =
                    step["pattern"]["Regex"].as_str().or_else(|| step["pattern"]["String"].as_str());
                patterns.extend(pattern.map(str::to_owned));
            }
            other => return Err(unsupported(path, &format!("the pre-tokenizer `{other}`"))),
        }
    }
    match pretokenizer::name_of(&patterns) {
        Some(name) => Ok(name.to_owned()),
        None => Err(TokenizerError::UnknownPreTokenizer(patterns.join("` then `"))),
    }
}

/// The tokens that the post-processor puts before and after a text.
fn around(value: &Value) -> (Option<String>, Option<String>) {
    let steps = flat(value, "processors");
    let template = steps.into_iter().find(|step| kind_of(step) == "TemplateProcessing");
    let single = template.and_then(|step| step["single"].as_array());
    let token = |part: Option<&Value>| Some(part?["SpecialToken"]["id"].as_str()?.to_owned());
    single.map_or((None, None), |single| (token(single.first()), token(single.last())))
}

/// The steps of a sequence, or the one step that there is.
fn flat<'value>(value: &'value Value, key: &str) -> Vec<&'value Value> {
    match value.get(key).and_then(Value::as_array) {
        Some(steps) => steps.iter().collect(),
        None => Some(value).filter(|value| !value.is_null()).into_iter().collect(),
    }
}

fn kind_of(step: &Value) -> &str {
    step["type"].as_str().unwrap_or("without a type")
}

/// A template, or the one called default among several.
fn template(value: &Value) -> Option<String> {
    let named = |name: &str| {
        let templates = value.as_array()?;
        templates.iter().find(|template| template["name"] == name)?["template"].as_str()
    };
    value.as_str().or_else(|| named("default")).map(str::to_owned)
}

fn generation_ends(value: &Value) -> impl Iterator<Item = u32> {
    let several = value.as_array().map_or(&[][..], Vec::as_slice);
    let ids = std::iter::once(value).chain(several).filter_map(Value::as_u64);
    ids.filter_map(|id| u32::try_from(id).ok())
}

fn read_or_default<T: DeserializeOwned + Default>(path: &Path) -> Result<T, TokenizerError> {
    read(path)?.map_or_else(|| Ok(T::default()), |bytes| parse(path, &bytes))
}

/// The bytes of a file; `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(path, error)),
    };
    let mut bytes = Vec::new();
    let read = file.take(TOKENIZER_FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    let length = read.map_err(|error| unreadable(path, error))?;
    if length as u64 > TOKENIZER_FILE_BYTES_MAX {
        return Err(unreadable(path, format!("it has more than {TOKENIZER_FILE_BYTES_MAX} bytes")));
    }
    Ok(Some(bytes))
}

fn parse<T: DeserializeOwned>(path: &Path, json: &[u8]) -> Result<T, TokenizerError> {
    serde_json::from_slice(json).map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, reason: impl ToString) -> TokenizerError {
    TokenizerError::Unreadable { path: path.to_owned(), reason: reason.to_string() }
}

fn unsupported(path: &Path, what: &str) -> TokenizerError {
    unreadable(path, format!("{what} is not supported; hint: use a GGUF file of the model"))
}
