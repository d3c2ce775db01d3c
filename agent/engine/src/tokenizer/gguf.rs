//! Owns reading a vocabulary from the metadata of a GGUF file.
//! Must never guess: a model or pre-tokenizer that is not known is named in the error.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::reading::{TURN_ENDS, ends, token};
use super::vocabulary::{Kind, Parts, SpacePrefix, SpecialIds, TokenType};
use super::{TokenizerError, Vocabulary};
use crate::gguf::{Metadata, Value};
use crate::limits::{MERGES_MAX, VOCABULARY_MAX};

impl Vocabulary {
    /// Reads the vocabulary of a GGUF file.
    ///
    /// # Errors
    /// [`TokenizerError`], if the metadata lack what is needed, contradict themselves or name what is not supported.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let reader = Reader(metadata);
        let model = reader.text("tokenizer.ggml.model")?.ok_or_else(|| missing("tokenizer.ggml.model"))?;
        let texts = reader.texts("tokenizer.ggml.tokens", VOCABULARY_MAX as usize)?;
        let mut types = reader.token_types(texts.len())?;
        let ids: HashMap<&[u8], u32> = texts.iter().map(Vec::as_slice).zip(0..).collect();
        if ids.len() < texts.len() {
            let mut seen = HashSet::new();
            let twice = texts.iter().find(|text| !seen.insert(text.as_slice()));
            return Err(TokenizerError::DuplicateToken(lossy(twice.map_or(&[], Vec::as_slice))));
        }
        let pre = reader.text("tokenizer.ggml.pre")?.unwrap_or_else(|| "default".to_owned());
        let (kind, defaults) = match model.as_str() {
            "gpt2" => {
                let takes_words = takes_whole_words(&pre);
                let merges = reader.merges(&ids)?;
                let kind = Kind::BytePair { whole_words: takes_words, pre, merges };
                (kind, Defaults { add_bos: takes_words, ..Defaults::default() })
            }
            "gemma4" => {
                (Kind::PieceMerges(reader.merges(&ids)?), Defaults { add_bos: true, ..Defaults::default() })
            }
            "llama" => (
                Kind::PieceScores(reader.scores(texts.len())?),
                Defaults {
                    add_bos: true,
                    add_space_prefix: true,
                    bos: Some(1),
                    eos: Some(2),
                    unknown: Some(0),
                },
            ),
            _ => return Err(TokenizerError::UnknownModel(model)),
        };
        let special = reader.special(texts, &ids, &mut types, &joints(&kind, texts, &ids), &defaults)?;
        let space_prefix = match reader.flag("tokenizer.ggml.add_space_prefix")? {
            Some(true) => SpacePrefix::EveryText,
            None if defaults.add_space_prefix => SpacePrefix::EveryText,
            Some(false) | None => SpacePrefix::Never,
        };
        let byte_level = matches!(kind, Kind::BytePair { .. });
        let tokens = texts.iter().zip(types).map(|(text, kind)| token(text, kind, byte_level)).collect();
        Self::new(Parts {
            kind,
            tokens,
            special,
            add_bos: reader.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(defaults.add_bos),
            add_eos: reader.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            space_prefix,
            chat_template: reader.text("tokenizer.chat_template")?,
        })
    }
}

/// Whether words that are tokens are taken whole, which GGUF says by the name of the pre-tokenizer.
pub(super) fn takes_whole_words(pre: &str) -> bool {
    let names =
        ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"];
    names.contains(&pre)
}

/// What holds where the file is silent.
#[derive(Default)]
struct Defaults {
    add_bos: bool,
    add_space_prefix: bool,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
}

/// The tokens that merges lead to.
fn joints(kind: &Kind, texts: &[Vec<u8>], ids: &HashMap<&[u8], u32>) -> HashSet<u32> {
    let merges = match kind {
        Kind::BytePair { merges, .. } | Kind::PieceMerges(merges) => merges.as_slice(),
        Kind::Bytes | Kind::PieceScores(_) => &[],
    };
    let text = |id: u32| texts.get(usize::try_from(id).ok()?).map(Vec::as_slice);
    let joint =
        |(left, right): &(u32, u32)| ids.get([text(*left)?, text(*right)?].concat().as_slice()).copied();
    merges.iter().filter_map(joint).collect()
}

/// Typed access to metadata.
struct Reader<'metadata>(&'metadata Metadata);

impl Reader<'_> {
    fn text(&self, key: &str) -> Result<Option<String>, TokenizerError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => String::from_utf8(text.clone()).map(Some).map_err(|_| wrong_type(key)),
            Some(_) => Err(wrong_type(key)),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, TokenizerError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(wrong_type(key)),
        }
    }

    fn texts(&self, key: &str, limit: usize) -> Result<&[Vec<u8>], TokenizerError> {
        match self.0.get(key) {
            None => Err(missing(key)),
            Some(Value::Texts(texts)) if texts.len() <= limit => Ok(texts),
            Some(Value::Texts(texts)) => {
                Err(TokenizerError::TooLarge { what: "tokens or merges", count: texts.len(), limit })
            }
            Some(_) => Err(wrong_type(key)),
        }
    }

    fn scores(&self, tokens: usize) -> Result<Vec<f32>, TokenizerError> {
        const KEY: &str = "tokenizer.ggml.scores";
        match self.0.get(KEY) {
            None => Err(missing(KEY)),
            Some(Value::Floats(scores)) if scores.len() == tokens => Ok(scores.clone()),
            Some(Value::Floats(scores)) => {
                Err(TokenizerError::CountsDiffer { tokens, what: "scores", count: scores.len() })
            }
            Some(_) => Err(wrong_type(KEY)),
        }
    }

    fn token_types(&self, tokens: usize) -> Result<Vec<TokenType>, TokenizerError> {
        const KEY: &str = "tokenizer.ggml.token_type";
        let numbers: Vec<i64> = match self.0.get(KEY) {
            None => return Ok(vec![TokenType::Normal; tokens]),
            Some(Value::Signeds(numbers)) => numbers.clone(),
            Some(Value::Unsigneds(numbers)) => {
                numbers.iter().map(|number| i64::try_from(*number).unwrap_or(0)).collect()
            }
            Some(_) => return Err(wrong_type(KEY)),
        };
        if numbers.len() != tokens {
            return Err(TokenizerError::CountsDiffer { tokens, what: "token types", count: numbers.len() });
        }
        let by_number = |number| match number {
            1 => TokenType::Normal,
            2 => TokenType::Unknown,
            3 => TokenType::Control,
            4 => TokenType::UserDefined,
            6 => TokenType::Byte,
            _ => TokenType::Unused,
        };
        Ok(numbers.into_iter().map(by_number).collect())
    }

    /// A merge is written as two tokens with a blank between them.
    fn merges(&self, ids: &HashMap<&[u8], u32>) -> Result<Vec<(u32, u32)>, TokenizerError> {
        let texts = self.texts("tokenizer.ggml.merges", MERGES_MAX)?;
        let merge = |(index, text): (usize, &Vec<u8>)| {
            // A token may itself be a blank, so the first character does not separate.
            let blank = text.iter().skip(1).position(|byte| *byte == b' ').map(|at| at + 1);
            let pair = blank.and_then(|at| Some((*ids.get(&text[..at])?, *ids.get(&text[at + 1..])?)));
            pair.ok_or(TokenizerError::BadMerge(index))
        };
        texts.iter().enumerate().map(merge).collect()
    }

    fn special(
        &self,
        texts: &[Vec<u8>],
        ids: &HashMap<&[u8], u32>,
        types: &mut [TokenType],
        joints: &HashSet<u32>,
        defaults: &Defaults,
    ) -> Result<SpecialIds, TokenizerError> {
        let id = |name: &str, default: Option<u32>| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id = match self.0.get(&key) {
                None => default,
                Some(Value::Unsigned(id)) => u32::try_from(*id).ok(),
                // Converters write -1 for none.
                Some(Value::Signed(id)) => u32::try_from(*id).ok(),
                Some(_) => return Err(wrong_type(&key)),
            };
            // Files exist that name tokens which they do not have, meaning none.
            Ok(id.filter(|id| usize::try_from(*id).is_ok_and(|id| id < texts.len())))
        };
        // A token that merges lead to is a piece of text whatever it spells: in Qwen's, `</s>` ends struck-out HTML.
        let token_of = |text: &str| ids.get(text.as_bytes()).copied().filter(|id| !joints.contains(id));
        let mut ends = ends(token_of);
        for end in &ends {
            // Files exist that call these normal; as such, a template's text would not become them.
            if let Some(kind) = usize::try_from(*end).ok().and_then(|end| types.get_mut(end)) {
                *kind = TokenType::Control;
            }
        }
        let eot = id("eot", TURN_ENDS.iter().find_map(|text| token_of(text)))?;
        let eos = id("eos", defaults.eos)?;
        ends.extend(eos.into_iter().chain(eot).chain(id("eom", None)?));
        Ok(SpecialIds {
            bos: id("bos", defaults.bos)?,
            eos,
            eot,
            unknown: id("unknown", defaults.unknown)?,
            padding: id("padding", None)?,
            ends,
            strip_left: BTreeSet::new(),
            strip_right: self.strip_right(texts, types)?,
        })
    }

    /// GGUF does not say which tokens swallow blanks; those of Phi 3 are known to.
    fn strip_right(&self, texts: &[Vec<u8>], types: &[TokenType]) -> Result<BTreeSet<u32>, TokenizerError> {
        let name = self.text("general.name")?.unwrap_or_default().to_lowercase();
        if !name.contains("phi-3") && !name.contains("phi3") {
            return Ok(BTreeSet::new());
        }
        let strips = |text: &[u8], kind| {
            matches!(kind, TokenType::Control | TokenType::UserDefined | TokenType::Unknown)
                && ![&b"<unk>"[..], b"<s>", b"<|endoftext|>"].contains(&text)
        };
        let numbered = (0_u32..).zip(texts.iter().zip(types));
        Ok(numbered.filter(|(_, (text, kind))| strips(text, **kind)).map(|(id, _)| id).collect())
    }
}

fn missing(key: &str) -> TokenizerError {
    TokenizerError::Missing(key.to_owned())
}

fn wrong_type(key: &str) -> TokenizerError {
    TokenizerError::WrongType(key.to_owned())
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}
