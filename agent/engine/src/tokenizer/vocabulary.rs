//! Owns the description of a vocabulary as it travels: self-contained, and checked whenever it is decoded.
//! Must never encode text, and never hold a value that [`check`] has not seen.

use std::collections::{BTreeSet, HashSet};
use std::io::{self, Read};

use borsh::{BorshDeserialize, BorshSerialize};

use super::TokenizerError;
use super::pretokenizer;
use crate::limits::{
    CHAT_TEMPLATE_BYTES_MAX, MERGES_MAX, SPECIAL_TOKEN_BYTES_MAX, TOKEN_BYTES_MAX, VOCABULARY_BYTES_MAX,
    VOCABULARY_MAX,
};

/// A vocabulary: what its tokens are, and how text becomes tokens. Sound by construction: there is no way to make one
/// that is not checked, and decoding is one of the ways.
#[derive(Clone, Debug, PartialEq, BorshSerialize)]
pub struct Vocabulary(Parts);

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub(super) enum Kind {
    /// Every byte is a token.
    Bytes,
    /// GPT-2's way: words, cut by a named pre-tokenizer, grow from bytes by merges.
    BytePair {
        /// The name by which GGUF knows the pre-tokenizer.
        pre: String,
        /// Words that are tokens are taken whole.
        whole_words: bool,
        /// Pairs of tokens, the first to be joined first.
        merges: Vec<(u32, u32)>,
    },
    /// Pieces that grow from characters by merges, blanks included; what is no piece becomes bytes.
    PieceMerges(Vec<(u32, u32)>),
    /// The same by the scores of the tokens, the highest first: SentencePiece.
    PieceScores(Vec<f32>),
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) enum TokenType {
    /// A piece of text.
    Normal,
    /// Stands for what no other token can say.
    Unknown,
    /// Steers the model; text yields it only where the caller says so.
    Control,
    /// Stands for its text wherever that occurs.
    UserDefined,
    /// No text becomes it: a gap in the numbering, or a piece that nothing leads to.
    Unused,
    /// One byte, where no piece fits.
    Byte,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Token {
    /// What it adds to a text: blanks are blanks, whatever the file writes for them.
    pub bytes: Vec<u8>,
    pub token_type: TokenType,
}

/// Tokens with a meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
    /// Every token that ends an answer.
    pub ends: BTreeSet<u32>,
    /// Swallow the blanks before them.
    pub strip_left: BTreeSet<u32>,
    /// Swallow the blanks after them.
    pub strip_right: BTreeSet<u32>,
}

/// Whether pieces see a blank before a text that has none, so that its first word looks like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub(super) enum SpacePrefix {
    Never,
    /// Where the text begins.
    FirstText,
    /// There, and after every special token.
    EveryText,
}

/// A vocabulary that is not checked yet.
#[derive(Clone, Debug, PartialEq, BorshSerialize, BorshDeserialize)]
pub(super) struct Parts {
    pub kind: Kind,
    pub tokens: Vec<Token>,
    pub special: SpecialIds,
    pub add_bos: bool,
    pub add_eos: bool,
    pub space_prefix: SpacePrefix,
    pub chat_template: Option<String>,
}

impl Vocabulary {
    /// 256 tokens, each the byte of its number.
    #[must_use]
    pub fn bytes() -> Self {
        let tokens =
            (0..=255).map(|byte| Token { bytes: vec![byte], token_type: TokenType::Normal }).collect();
        Self(Parts {
            kind: Kind::Bytes,
            tokens,
            special: SpecialIds::default(),
            add_bos: false,
            add_eos: false,
            space_prefix: SpacePrefix::Never,
            chat_template: None,
        })
    }

    pub(super) fn new(parts: Parts) -> Result<Self, TokenizerError> {
        check(&parts)?;
        Ok(Self(parts))
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.0
    }

    /// How many tokens there are; their ids count from 0.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.tokens.len()
    }

    /// Whether there are none, which no checked vocabulary allows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.tokens.is_empty()
    }

    /// The author's template of a conversation, in Jinja.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        self.0.chat_template.as_deref()
    }

    /// The token that begins a text.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.0.special.bos
    }

    /// The token that ends a text.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.0.special.eos
    }

    /// The token that ends a turn of a conversation.
    #[must_use]
    pub fn eot(&self) -> Option<u32> {
        self.0.special.eot
    }

    /// The token that fills a batch.
    #[must_use]
    pub fn padding(&self) -> Option<u32> {
        self.0.special.padding
    }

    /// Every token that ends an answer.
    #[must_use]
    pub fn ends(&self) -> &BTreeSet<u32> {
        &self.0.special.ends
    }

    /// Whether a control or user-defined token has this text.
    #[must_use]
    pub fn has_special(&self, text: &str) -> bool {
        let is_special =
            |token: &Token| matches!(token.token_type, TokenType::Control | TokenType::UserDefined);
        self.0.tokens.iter().any(|token| is_special(token) && token.bytes == text.as_bytes())
    }

    /// The text of a token, as a template writes it; `None` if there is no such token or it is no text.
    #[must_use]
    pub fn text(&self, token: u32) -> Option<&str> {
        let token = self.0.tokens.get(usize::try_from(token).ok()?)?;
        std::str::from_utf8(&token.bytes).ok()
    }
}

impl BorshDeserialize for Vocabulary {
    fn deserialize_reader<R: Read>(reader: &mut R) -> io::Result<Self> {
        let parts = Parts::deserialize_reader(&mut reader.take(VOCABULARY_BYTES_MAX))?;
        Self::new(parts).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Everything that encoding relies on.
fn check(parts: &Parts) -> Result<(), TokenizerError> {
    let count = parts.tokens.len();
    let tokens = match u32::try_from(count) {
        Ok(0) => return Err(TokenizerError::NoTokens),
        Ok(tokens) if tokens <= VOCABULARY_MAX => tokens,
        _ => return Err(too_large("tokens", count, VOCABULARY_MAX as usize)),
    };
    let mut seen = HashSet::with_capacity(count);
    for token in &parts.tokens {
        check_token(token)?;
        let is_piece = token.token_type == TokenType::Normal;
        if token.token_type != TokenType::Unused && !seen.insert((is_piece, token.bytes.as_slice())) {
            return Err(TokenizerError::DuplicateToken(String::from_utf8_lossy(&token.bytes).into_owned()));
        }
    }
    check_special(&parts.special, tokens)?;
    if let Some(template) = &parts.chat_template
        && template.len() > CHAT_TEMPLATE_BYTES_MAX
    {
        return Err(too_large("bytes of the chat template", template.len(), CHAT_TEMPLATE_BYTES_MAX));
    }
    match &parts.kind {
        Kind::Bytes => {
            if *parts != Vocabulary::bytes().0 {
                return Err(TokenizerError::NotBytes);
            }
        }
        Kind::BytePair { pre, merges, .. } => {
            if !pretokenizer::is_known(pre) {
                return Err(TokenizerError::UnknownPreTokenizer(pre.clone()));
            }
            check_merges(merges, tokens)?;
        }
        Kind::PieceMerges(merges) => check_merges(merges, tokens)?,
        Kind::PieceScores(scores) => {
            if scores.len() != count {
                return Err(TokenizerError::CountsDiffer {
                    tokens: count,
                    what: "scores",
                    count: scores.len(),
                });
            }
            if let Some(token) = scores.iter().position(|score| !score.is_finite()) {
                return Err(TokenizerError::BadScore(token));
            }
        }
    }
    Ok(())
}

fn check_token(token: &Token) -> Result<(), TokenizerError> {
    let limit = match token.token_type {
        TokenType::Control | TokenType::UserDefined | TokenType::Unknown => SPECIAL_TOKEN_BYTES_MAX,
        TokenType::Normal | TokenType::Unused | TokenType::Byte => TOKEN_BYTES_MAX,
    };
    if token.bytes.len() > limit {
        return Err(too_large("bytes of a token", token.bytes.len(), limit));
    }
    let is_empty = token.bytes.is_empty() && token.token_type != TokenType::Unused;
    if is_empty || (token.token_type == TokenType::Byte && token.bytes.len() != 1) {
        return Err(TokenizerError::BadToken(String::from_utf8_lossy(&token.bytes).into_owned()));
    }
    Ok(())
}

fn check_special(special: &SpecialIds, tokens: u32) -> Result<(), TokenizerError> {
    let single = [special.bos, special.eos, special.eot, special.unknown, special.padding];
    let many = [&special.ends, &special.strip_left, &special.strip_right];
    let mut ids = single.into_iter().flatten().chain(many.into_iter().flatten().copied());
    match ids.find(|id| *id >= tokens) {
        None => Ok(()),
        Some(id) => Err(TokenizerError::OutOfRange { what: "a special token", id, tokens }),
    }
}

fn check_merges(merges: &[(u32, u32)], tokens: u32) -> Result<(), TokenizerError> {
    if merges.len() > MERGES_MAX {
        return Err(too_large("merges", merges.len(), MERGES_MAX));
    }
    match merges.iter().map(|(left, right)| *left.max(right)).find(|id| *id >= tokens) {
        None => Ok(()),
        Some(id) => Err(TokenizerError::OutOfRange { what: "a merge", id, tokens }),
    }
}

fn too_large(what: &'static str, count: usize, limit: usize) -> TokenizerError {
    TokenizerError::TooLarge { what, count, limit }
}
