//! Owns GPT-2's alphabet, by which byte-level vocabularies write every byte as a printable character.
//! Must never know a vocabulary.

/// The byte that a character stands for.
fn byte(letter_of_byte: char) -> Option<u8> {
    let code = u32::from(letter_of_byte);
    let value = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(value).ok()
}

/// The text that stands for bytes.
pub(super) fn encode(bytes: &[u8]) -> String {
    let letter = |byte: &u8| {
        let code = match byte {
            0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u32::from(*byte),
            0..=0x20 => 0x100 + u32::from(*byte),
            0x7F..=0xA0 => 0x121 + u32::from(*byte) - 0x7F,
            0xAD => 0x143,
        };
        char::from_u32(code)
    };
    bytes.iter().filter_map(letter).collect()
}

/// The bytes that a token's text stands for; `None` if it is not written in the alphabet.
pub(super) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(text).ok()?.chars().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_letter_of_its_own() {
        let letters = (0..0x200).filter_map(char::from_u32);
        let bytes: Vec<u8> = letters.filter_map(byte).collect();
        let distinct: std::collections::BTreeSet<u8> = bytes.iter().copied().collect();
        assert_eq!((bytes.len(), distinct.len()), (256, 256));
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(encode(&all).as_bytes()), Some(all));
        assert_eq!(decode("\u{120}a\u{10a}".as_bytes()), Some(b" a\n".to_vec()));
        assert_eq!(decode(b"two words"), None, "a blank is no letter of the alphabet");
    }
}
