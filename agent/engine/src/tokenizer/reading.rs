//! Owns what files of every format have in common: how they write tokens, and which texts end an answer.
//! Must never know where the tokens were read.

use std::collections::BTreeSet;

use super::vocabulary::{Token, TokenType};
use super::{VISIBLE_BLANK, alphabet};

/// Texts that end an answer in some family of models, whatever the file says of their tokens.
pub(super) const ENDS: [&str; 24] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_pad|>",
    "<|file_sep|>",
];

/// Texts that end a turn, the likeliest first.
pub(super) const TURN_ENDS: [&str; 11] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];

/// The token that a file writes as `text`.
pub(super) fn token(text: &[u8], token_type: TokenType, byte_level: bool) -> Token {
    match token_type {
        _ if text.is_empty() => Token { bytes: Vec::new(), token_type: TokenType::Unused },
        TokenType::Byte => match byte_of(text) {
            Some(byte) => Token { bytes: vec![byte], token_type },
            None => Token { bytes: text.to_vec(), token_type: TokenType::Normal },
        },
        TokenType::Normal if byte_level => match alphabet::decode(text) {
            Some(bytes) => Token { bytes, token_type },
            // Not written in the alphabet, so that no text becomes it; Command R has such.
            None => Token { bytes: text.to_vec(), token_type: TokenType::Unused },
        },
        TokenType::Normal => {
            let bytes = match std::str::from_utf8(text) {
                Ok(text) => text.replace(VISIBLE_BLANK, " ").into_bytes(),
                Err(_) => text.to_vec(),
            };
            Token { bytes, token_type }
        }
        TokenType::Unknown | TokenType::Control | TokenType::UserDefined | TokenType::Unused => {
            Token { bytes: text.to_vec(), token_type }
        }
    }
}

/// The byte that SentencePiece writes as `<0x0A>`.
fn byte_of(text: &[u8]) -> Option<u8> {
    let hexadecimal = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    u8::from_str_radix(std::str::from_utf8(hexadecimal).ok()?, 16).ok()
}

/// Tokens that end an answer, found by their texts; some families end otherwise than their vocabularies suggest.
pub(super) fn ends(token_of: impl Fn(&str) -> Option<u32>) -> BTreeSet<u32> {
    let mut ends: BTreeSet<u32> = ENDS.iter().filter_map(|text| token_of(text)).collect();
    let has = |text| token_of(text).is_some();
    let not_the_end = [
        // Harmony and Solar end a message with it, not an answer.
        ("<|end|>", (has("<|return|>") && has("<|call|>")) || (has("<|calls|>") && has("<|flush|>"))),
        // Gemma 4 has it from older vocabularies.
        ("</s>", has("<|tool_response>")),
    ];
    for (text, _) in not_the_end.into_iter().filter(|(_, holds)| *holds) {
        if let Some(token) = token_of(text) {
            ends.remove(&token);
        }
    }
    ends
}
