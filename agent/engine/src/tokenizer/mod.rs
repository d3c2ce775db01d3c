//! Owns tokens: what a vocabulary is, and how text becomes tokens and tokens bytes.
//! Must never know a model's weights, and never run code or patterns that came with a vocabulary.
//!
//! Everything here is our own, because the two references differ and neither bounds its input: the `tokenizers` crate
//! runs the patterns of the file, with backtracking, and reads no GGUF; llama.cpp backtracks too. Tests hold the
//! results to llama.cpp's vectors. Encoding n bytes costs n log n whatever they hold, so callers need no limit but
//! that of their context.

mod alphabet;
mod folder;
mod gguf;
mod merge;
mod pretokenizer;
mod reading;
mod special;
mod vocabulary;
mod written;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use merge::{Symbol, Symbols};
use pretokenizer::PreTokenizer;
use special::{Fragment, Special, Specials};
use vocabulary::{Kind, Parts, SpacePrefix, Token, TokenType};

pub use vocabulary::Vocabulary;

/// Why a vocabulary cannot be used. Nothing was kept of it.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TokenizerError {
    #[error("the file lacks `{0}`; hint: convert the model again")]
    Missing(String),
    #[error("`{0}` is of the wrong type; hint: convert the model again")]
    WrongType(String),
    #[error(
        "tokenizer model `{0}` is not supported; hint: byte-pair (`gpt2`, `gemma4`) and SentencePiece (`llama`) are"
    )]
    UnknownModel(String),
    #[error("pre-tokenizer `{0}` is not known; hint: update Skein, or use a model of another family")]
    UnknownPreTokenizer(String),
    #[error("the vocabulary has no tokens")]
    NoTokens,
    #[error("the vocabulary has {count} {what}, more than the {limit} that are allowed")]
    TooLarge { what: &'static str, count: usize, limit: usize },
    #[error("the vocabulary has {tokens} tokens but {count} {what}")]
    CountsDiffer { tokens: usize, what: &'static str, count: usize },
    #[error("{what} names token {id}, but there are {tokens}")]
    OutOfRange { what: &'static str, id: u32, tokens: u32 },
    #[error("token `{0}` is there twice")]
    DuplicateToken(String),
    #[error("token `{0}` is empty, or is no byte but says so")]
    BadToken(String),
    #[error("merge {0} joins what is no token, or into what is no token")]
    BadMerge(usize),
    #[error("the score of token {0} is no finite number")]
    BadScore(usize),
    #[error("a byte vocabulary has 256 tokens, each the byte of its number, and nothing else")]
    NotBytes,
    #[error("the pattern `{pattern}` does not compile: {reason}")]
    BadPattern { pattern: String, reason: String },
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
}

/// Text to tokens and back, for one vocabulary.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    /// Pieces of text by their bytes.
    pieces: HashMap<Vec<u8>, u32>,
    /// Tokens of single bytes.
    bytes: [Option<u32>; 256],
    /// What stands for itself in every text.
    user_defined: Specials,
    /// The same and control tokens.
    all_special: Specials,
    method: Method,
}

/// How words grow.
enum Method {
    /// They do not: every byte is a token.
    Bytes,
    /// By pairs of tokens: rank and joint token.
    Words { pre: PreTokenizer, whole_words: bool, pairs: Pairs },
    /// By pairs of tokens, over lines.
    Lines(Pairs),
    /// By joint tokens: the rank of each. No token is longer than `longest` bytes.
    Scores { ranks: Vec<u32>, longest: usize },
}

type Pairs = HashMap<(u32, u32), (u32, u32)>;

/// SentencePiece's blank, equal to a blank in every way.
const VISIBLE_BLANK: &str = "\u{2581}";

impl Tokenizer {
    /// Builds the tables that encoding needs.
    ///
    /// # Errors
    /// [`TokenizerError::BadMerge`], the one thing that shows only now.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, TokenizerError> {
        let parts = vocabulary.parts();
        let numbered = || (0_u32..).zip(&parts.tokens);
        // Control tokens are no pieces: a text that spells one does not become one.
        let pieces: HashMap<Vec<u8>, u32> = numbered()
            .filter(|(_, token)| token.token_type == TokenType::Normal)
            .map(|(id, token)| (token.bytes.clone(), id))
            .collect();
        let method = match &parts.kind {
            Kind::Bytes => Method::Bytes,
            Kind::BytePair { pre, whole_words, merges } => Method::Words {
                pre: PreTokenizer::new(pre)?,
                whole_words: *whole_words,
                pairs: pairs(merges, &parts.tokens, &pieces)?,
            },
            Kind::PieceMerges(merges) => Method::Lines(pairs(merges, &parts.tokens, &pieces)?),
            Kind::PieceScores(scores) => Method::Scores {
                ranks: ranks(scores),
                longest: pieces.keys().map(Vec::len).max().unwrap_or(0),
            },
        };
        let specials = |types: &'static [TokenType]| {
            let chosen = numbered().filter(move |(_, token)| types.contains(&token.token_type));
            Specials::new(chosen.filter_map(|(id, token)| special(parts, id, token)))
        };
        Ok(Self {
            user_defined: specials(&[TokenType::UserDefined]),
            all_special: specials(&[TokenType::UserDefined, TokenType::Control, TokenType::Unknown]),
            bytes: single_bytes(parts, &pieces),
            pieces,
            method,
            vocabulary,
        })
    }

    /// What it was built from.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The tokens of a text. Where `special`, a control token's text becomes that token: for what a chat template
    /// wrote, never for what a user did.
    #[must_use]
    pub fn encode(&self, text: &str, special: bool) -> Vec<u32> {
        let specials = if special { &self.all_special } else { &self.user_defined };
        let mut tokens = Vec::new();
        for (index, fragment) in specials.split(text).into_iter().enumerate() {
            match fragment {
                Fragment::Token(token) => tokens.push(token),
                // Texts never follow each other, so every text but the first comes after a special token.
                Fragment::Text(text) => self.encode_fragment(text, index == 0, &mut tokens),
            }
        }
        tokens
    }

    /// The tokens of a prompt: with the tokens that the vocabulary wants around a text, and special ones parsed.
    #[must_use]
    pub fn prompt(&self, text: &str) -> Vec<u32> {
        let parts = self.vocabulary.parts();
        let bos = parts.special.bos.filter(|_| parts.add_bos);
        let eos = parts.special.eos.filter(|_| parts.add_eos);
        let mut tokens: Vec<u32> = bos.into_iter().collect();
        let text = self.encode(text, true);
        // Many chat templates write the beginning themselves; it is wanted once.
        tokens.extend(text.strip_prefix(tokens.as_slice()).unwrap_or(&text));
        tokens.extend(eos);
        tokens
    }

    /// A token for every byte, joined to nothing: the way in for models of bytes, whose text need be no UTF-8.
    #[must_use]
    pub fn encode_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let unknown = self.vocabulary.parts().special.unknown;
        bytes.iter().filter_map(|byte| self.bytes[usize::from(*byte)].or(unknown)).collect()
    }

    /// The bytes that a token adds to an answer: part of a character, perhaps, and nothing for tokens that steer the
    /// model or do not exist.
    #[must_use]
    pub fn bytes_of(&self, token: u32) -> &[u8] {
        match self.token(token) {
            None | Some(Token { token_type: TokenType::Control | TokenType::Unknown, .. }) => &[],
            Some(token) => &token.bytes,
        }
    }

    /// The same, but with the names of control tokens.
    #[must_use]
    pub fn bytes_of_any(&self, token: u32) -> &[u8] {
        self.token(token).map_or(&[], |token| &token.bytes)
    }

    /// Whether an answer ends with this token.
    #[must_use]
    pub fn is_end(&self, token: u32) -> bool {
        self.vocabulary.ends().contains(&token)
    }

    /// Every token that ends an answer.
    #[must_use]
    pub fn ends(&self) -> &BTreeSet<u32> {
        self.vocabulary.ends()
    }

    /// The token that says exactly this, special ones first.
    #[must_use]
    pub fn token_of(&self, text: &str) -> Option<u32> {
        match self.all_special.split(text).as_slice() {
            [Fragment::Token(token)] => Some(*token),
            _ => self.pieces.get(text.as_bytes()).copied(),
        }
    }

    fn token(&self, token: u32) -> Option<&Token> {
        self.vocabulary.parts().tokens.get(usize::try_from(token).ok()?)
    }

    fn encode_fragment(&self, text: &str, is_first: bool, tokens: &mut Vec<u32>) {
        match &self.method {
            Method::Bytes => tokens.extend(text.bytes().map(u32::from)),
            Method::Words { pre, whole_words, pairs } => {
                let mut symbols = Symbols::new();
                for word in pre.split(text) {
                    if *whole_words && let Some(token) = self.pieces.get(word.as_bytes()) {
                        tokens.push(*token);
                        continue;
                    }
                    for (start, byte) in word.bytes().enumerate() {
                        symbols.push(start, start + 1, self.bytes[usize::from(byte)]);
                    }
                    symbols.merge(by_pairs(pairs), |symbol| self.say(word, symbol, tokens));
                }
            }
            Method::Lines(pairs) => {
                let text = self.blanks(text, is_first);
                let mut symbols = Symbols::new();
                for line in lines(&text) {
                    // A run of new lines is a token, though merges may not lead there.
                    if line.starts_with('\n')
                        && let Some(token) = self.pieces.get(line.as_bytes())
                    {
                        tokens.push(*token);
                        continue;
                    }
                    self.push_characters(line, &mut symbols);
                    symbols.merge(by_pairs(pairs), |symbol| self.say(line, symbol, tokens));
                }
            }
            Method::Scores { ranks, longest } => {
                let text = self.blanks(text, is_first);
                let mut symbols = Symbols::new();
                self.push_characters(&text, &mut symbols);
                let join = |left: &Symbol, right: &Symbol| {
                    let bytes = text.as_bytes().get(left.start..right.end)?;
                    let token = *(bytes.len() <= *longest).then(|| self.pieces.get(bytes))??;
                    Some((*ranks.get(usize::try_from(token).ok()?)?, token))
                };
                symbols.merge(join, |symbol| self.say(&text, symbol, tokens));
            }
        }
    }

    /// SentencePiece's view of a text: one kind of blank, and perhaps one more before the first word.
    fn blanks(&self, text: &str, is_first: bool) -> String {
        let prefix = match self.vocabulary.parts().space_prefix {
            SpacePrefix::EveryText => " ",
            SpacePrefix::FirstText if is_first => " ",
            SpacePrefix::FirstText | SpacePrefix::Never => "",
        };
        format!("{prefix}{}", text.replace(VISIBLE_BLANK, " "))
    }

    fn push_characters(&self, text: &str, symbols: &mut Symbols) {
        for (start, character) in text.char_indices() {
            let end = start + character.len_utf8();
            symbols.push(start, end, self.pieces.get(&text.as_bytes()[start..end]).copied());
        }
    }

    /// The token of a symbol, or its bytes', or that of the unknown.
    fn say(&self, text: &str, symbol: &Symbol, tokens: &mut Vec<u32>) {
        if let Some(token) = symbol.token {
            tokens.push(token);
            return;
        }
        let bytes = text.as_bytes().get(symbol.start..symbol.end).unwrap_or_default();
        let by_byte: Option<Vec<u32>> = bytes.iter().map(|byte| self.bytes[usize::from(*byte)]).collect();
        match by_byte {
            Some(by_byte) => tokens.extend(by_byte),
            None => tokens.extend(self.vocabulary.parts().special.unknown),
        }
    }
}

fn by_pairs(pairs: &Pairs) -> impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)> {
    |left, right| pairs.get(&(left.token?, right.token?)).copied()
}

/// Runs of new lines, and what lies between them.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let breaks = rest.starts_with('\n');
        let end = rest.find(|character| (character == '\n') != breaks).unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        rest = after;
        (!line.is_empty()).then_some(line)
    })
}

fn pairs(
    merges: &[(u32, u32)],
    tokens: &[Token],
    pieces: &HashMap<Vec<u8>, u32>,
) -> Result<Pairs, TokenizerError> {
    let bytes = |id: u32| Some(tokens.get(usize::try_from(id).ok()?)?.bytes.as_slice());
    let mut pairs = Pairs::with_capacity(merges.len());
    for (index, (rank, (left, right))) in (0_u32..).zip(merges).enumerate() {
        let joint = bytes(*left).zip(bytes(*right)).map(|(left, right)| [left, right].concat());
        let token = joint.and_then(|joint| pieces.get(&joint).copied());
        let token = token.ok_or(TokenizerError::BadMerge(index))?;
        pairs.entry((*left, *right)).or_insert((rank, token));
    }
    Ok(pairs)
}

/// The highest score has the lowest rank; equal scores have equal ranks, and then the leftmost pair is joined first.
fn ranks(scores: &[f32]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|left, right| scores[*right].total_cmp(&scores[*left]));
    let mut ranks = vec![0; scores.len()];
    let mut rank = 0;
    for pair in order.windows(2) {
        if scores[pair[0]] != scores[pair[1]] {
            rank += 1;
        }
        ranks[pair[1]] = rank;
    }
    ranks
}

fn special(parts: &Parts, id: u32, token: &Token) -> Option<Special> {
    Some(Special {
        text: String::from_utf8(token.bytes.clone()).ok()?,
        token: id,
        strip_left: parts.special.strip_left.contains(&id),
        strip_right: parts.special.strip_right.contains(&id),
    })
}

/// Tokens made for a byte, or else pieces that are one.
fn single_bytes(parts: &Parts, pieces: &HashMap<Vec<u8>, u32>) -> [Option<u32>; 256] {
    let mut bytes = [None; 256];
    for byte in 0..=255_u8 {
        bytes[usize::from(byte)] = pieces.get(&[byte][..]).copied();
    }
    for (id, token) in (0_u32..).zip(&parts.tokens) {
        if let (TokenType::Byte, [byte]) = (token.token_type, token.bytes.as_slice()) {
            bytes[usize::from(*byte)] = Some(id);
        }
    }
    bytes
}
