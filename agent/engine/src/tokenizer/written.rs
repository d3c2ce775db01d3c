//! Owns writing a vocabulary as other programs read it: metadata of a GGUF file, and a Hugging Face folder's files.
//! Must never write what `gguf` and `folder` would read as a vocabulary that encodes otherwise.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value as Json, json};

use super::vocabulary::{Kind, SpacePrefix, Token, TokenType};
use super::{VISIBLE_BLANK, Vocabulary, alphabet, gguf, pretokenizer, reading};
use crate::gguf::{Metadata, Value};

/// Bytes need no words; the oldest rules will do.
const RULES_OF_BYTES: &str = "gpt-2";

impl Vocabulary {
    /// What a GGUF file's metadata say of it.
    ///
    /// # Errors
    /// Names what GGUF has no words for.
    pub fn to_gguf(&self) -> Result<Metadata, String> {
        let parts = self.parts();
        let special = &parts.special;
        if !special.strip_left.is_empty() || !special.strip_right.is_empty() {
            return Err("tokens that swallow the blanks beside them".to_owned());
        }
        let texts = self.written()?;
        let merges = |merges: &[(u32, u32)]| {
            let merge = |(left, right): &(u32, u32)| {
                format!("{} {}", text_of(&texts, *left), text_of(&texts, *right)).into_bytes()
            };
            Value::Texts(merges.iter().map(merge).collect())
        };
        let mut metadata = Metadata::new();
        let mut set = |key: &str, value| drop(metadata.insert(format!("tokenizer.ggml.{key}"), value));
        let text = |text: &str| Value::Text(text.into());
        match &parts.kind {
            Kind::Bytes => {
                set("model", text("gpt2"));
                set("pre", text(RULES_OF_BYTES));
                set("merges", merges(&[]));
            }
            Kind::BytePair { pre, whole_words, merges: pairs } => {
                // GGUF says by the name alone whether words are taken whole, and one set of rules has several names.
                let mut names = std::iter::once(pre.as_str()).chain(pretokenizer::names(pre).iter().copied());
                let name = names.find(|name| gguf::takes_whole_words(name) == *whole_words);
                let words = if *whole_words { "whole words" } else { "words that grow by merges only" };
                set("model", text("gpt2"));
                set("pre", text(name.ok_or_else(|| format!("{words} by the rules of `{pre}`"))?));
                set("merges", merges(pairs));
            }
            Kind::PieceScores(scores) => {
                if parts.space_prefix == SpacePrefix::FirstText {
                    return Err("a blank before the first text only".to_owned());
                }
                set("model", text("llama"));
                set("scores", Value::Floats(scores.clone()));
            }
            Kind::PieceMerges(_) => {
                return Err("a SentencePiece vocabulary that came as merges without scores".to_owned());
            }
        }
        let number = |token: &Token| match token.token_type {
            TokenType::Normal => 1,
            TokenType::Unknown => 2,
            TokenType::Control => 3,
            TokenType::UserDefined => 4,
            TokenType::Unused => 5,
            TokenType::Byte => 6,
        };
        set("token_type", Value::Signeds(parts.tokens.iter().map(number).collect()));
        // Where a file of pieces is silent, readers take the first three tokens; a number beyond all means none.
        let silent = matches!(parts.kind, Kind::PieceScores(_)).then_some(u32::MAX);
        for (name, id) in [
            ("bos", special.bos.or(silent)),
            ("eos", special.eos.or(silent)),
            ("unknown", special.unknown.or(silent)),
            ("eot", special.eot),
            ("eom", self.another_end(&texts)?),
            ("padding", special.padding),
        ] {
            if let Some(id) = id {
                set(&format!("{name}_token_id"), Value::Unsigned(u64::from(id)));
            }
        }
        set("add_bos_token", Value::Bool(parts.add_bos));
        set("add_eos_token", Value::Bool(parts.add_eos));
        set("add_space_prefix", Value::Bool(parts.space_prefix != SpacePrefix::Never));
        set("tokens", Value::Texts(texts.into_iter().map(String::into_bytes).collect()));
        if let Some(template) = &parts.chat_template {
            metadata.insert("tokenizer.chat_template".to_owned(), text(template));
        }
        Ok(metadata)
    }

    /// The files of a Hugging Face folder, by name.
    ///
    /// # Errors
    /// Names what they have no words for.
    pub fn to_folder(&self) -> Result<Vec<(&'static str, Json)>, String> {
        let parts = self.parts();
        let (pre, whole_words, merges) = match &parts.kind {
            Kind::Bytes => (RULES_OF_BYTES, false, &[][..]),
            Kind::BytePair { pre, whole_words, merges } => (pre.as_str(), *whole_words, merges.as_slice()),
            Kind::PieceMerges(_) | Kind::PieceScores(_) => {
                return Err("a SentencePiece vocabulary".to_owned());
            }
        };
        let texts = self.written()?;
        // Those that are added later are listed here too: libraries number the others anew.
        let mut vocabulary = Map::new();
        let mut added = Vec::new();
        for ((id, token), text) in (0_u32..).zip(&parts.tokens).zip(&texts) {
            let is_special = match token.token_type {
                TokenType::Normal => None,
                TokenType::UserDefined => Some(false),
                TokenType::Control | TokenType::Unknown => Some(true),
                // No text becomes it, so a gap in the numbering will do.
                TokenType::Unused => continue,
                TokenType::Byte => return Err(format!("token {id}, a byte beside the alphabet's")),
            };
            vocabulary.insert(text.clone(), json!(id));
            added.extend(is_special.map(|is_special| {
                json!({
                    "id": id, "content": text, "special": is_special, "single_word": false, "normalized": false,
                    "lstrip": parts.special.strip_left.contains(&id),
                    "rstrip": parts.special.strip_right.contains(&id),
                })
            }));
        }
        let pair = |(left, right): &(u32, u32)| json!([text_of(&texts, *left), text_of(&texts, *right)]);
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        });
        let split = |pattern: &&str| {
            let regex = json!({ "Regex": pattern });
            json!({ "type": "Split", "pattern": regex, "behavior": "Isolated", "invert": false })
        };
        let patterns = pretokenizer::patterns(pre).unwrap_or_default();
        let steps: Vec<Json> = patterns.iter().map(split).chain([byte_level.clone()]).collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
            "post_processor": self.around(&texts).unwrap_or_else(|| byte_level.clone()),
            "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": whole_words, "vocab": vocabulary,
                "merges": merges.iter().map(pair).collect::<Vec<Json>>(),
            },
        });
        let special = &parts.special;
        let text = |id: Option<u32>| id.map(|id| text_of(&texts, id));
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false,
            "bos_token": text(special.bos), "eos_token": text(special.eos),
            "unk_token": text(special.unknown), "pad_token": text(special.padding),
            "add_bos_token": parts.add_bos, "add_eos_token": parts.add_eos,
            "chat_template": parts.chat_template,
        });
        let ends = Some(&special.ends).filter(|ends| !ends.is_empty());
        let generation = json!({ "bos_token_id": special.bos, "eos_token_id": ends });
        Ok(vec![
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", config),
            ("generation_config.json", generation),
        ])
    }

    /// The step that puts tokens around a text; none where nothing is put there.
    fn around(&self, texts: &[String]) -> Option<Json> {
        let parts = self.parts();
        let bos = parts.special.bos.filter(|_| parts.add_bos);
        let eos = parts.special.eos.filter(|_| parts.add_eos);
        let piece =
            |id: u32, text: u32| json!({ "SpecialToken": { "id": text_of(texts, id), "type_id": text } });
        let one = |name: &str, text: u32| -> Vec<Json> {
            let sequence = json!({ "Sequence": { "id": name, "type_id": text } });
            let (first, last) = (bos.map(|id| piece(id, text)), eos.map(|id| piece(id, text)));
            first.into_iter().chain([sequence]).chain(last).collect()
        };
        let known = |id: u32| {
            let text = text_of(texts, id);
            (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }))
        };
        let tokens: Map<String, Json> = bos.into_iter().chain(eos).map(known).collect();
        let pair = [one("A", 0), one("B", 1)].concat();
        (!tokens.is_empty()).then(|| {
            json!({
                "type": "TemplateProcessing", "single": one("A", 0), "pair": pair,
                "special_tokens": tokens,
            })
        })
    }

    /// The end that GGUF's readers would not find by themselves, for which it has one place.
    fn another_end(&self, texts: &[String]) -> Result<Option<u32>, String> {
        let special = &self.parts().special;
        let ids: HashMap<&str, u32> = texts.iter().map(String::as_str).zip(0..).collect();
        let mut found = reading::ends(|text| ids.get(text).copied());
        found.extend(special.eos.into_iter().chain(special.eot));
        let others: BTreeSet<u32> = special.ends.difference(&found).copied().collect();
        match others.len() {
            0 | 1 => Ok(others.first().copied()),
            several => Err(format!("{several} more tokens that end an answer")),
        }
    }

    /// Every token as files write it, each different from all others.
    fn written(&self) -> Result<Vec<String>, String> {
        let parts = self.parts();
        let byte_level = matches!(parts.kind, Kind::Bytes | Kind::BytePair { .. });
        let mut seen = BTreeSet::new();
        let mut all = Vec::with_capacity(self.len());
        for (id, token) in parts.tokens.iter().enumerate() {
            let text = || {
                let text = String::from_utf8(token.bytes.clone());
                text.map_err(|_| format!("token {id}, which is no text"))
            };
            let text = match token.token_type {
                TokenType::Normal if byte_level => alphabet::encode(&token.bytes),
                TokenType::Normal => text()?.replace(' ', VISIBLE_BLANK),
                TokenType::Byte => {
                    format!("<0x{:02X}>", token.bytes.first().copied().unwrap_or_default())
                }
                TokenType::Unused if token.bytes.is_empty() => format!("[UNUSED{id}]"),
                TokenType::Unused | TokenType::Unknown | TokenType::Control | TokenType::UserDefined => {
                    text()?
                }
            };
            if !seen.insert(text.clone()) {
                return Err(format!("`{text}`, which two tokens are"));
            }
            all.push(text);
        }
        Ok(all)
    }
}

/// The text of a token that there is: all numbers in a vocabulary were checked.
fn text_of(texts: &[String], id: u32) -> &str {
    texts.get(id as usize).map_or("", String::as_str)
}
