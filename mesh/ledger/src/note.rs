//! Checkpoints: the signed heads of logs, as text that tools which are not ours can read.
//!
//! A checkpoint is a C2SP tlog-checkpoint (`origin`, size, base64 root) in a C2SP signed note:
//!
//! ```text
//! skein/<network id>/<node id>
//! 42
//! Y2hlY2twb2ludCByb290IGluIHN0YW5kYXJkIGJhc2U2NC4=
//!
//! — skein/<network id>/<node id> <base64 of key id (4 bytes) ‖ ed25519 signature (64 bytes)>
//! ```
//!
//! The origin is also the name of the key, and holds both ids whole, so a checkpoint of one network or
//! agent never passes for another's. The signed text begins with `skein/`, every other statement of ours
//! with `skein` and a zero byte, so neither signature can be used as the other. Further signature lines
//! are cosigners': they are kept by whoever keeps the text, and must be well formed, but are not checked
//! here. Must never believe a checkpoint whose log's own signature is missing or bad.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};
use skein_proto::ids::{NetworkId, NodeId};

use crate::limits::{NOTE_BYTES_MAX, NOTE_SIGNATURES_MAX};
use crate::tree::Hash;

/// The algorithm byte of plain ed25519 in a signed note's key id.
const ALGORITHM_ED25519: u8 = 0x01;
/// Every signature line begins with an em dash and a space.
const SIGNATURE_PREFIX: &str = "\u{2014} ";

/// The head of a log: what all its entries were at some size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whose log it is; see [`origin`].
    pub origin: String,
    /// Entries in the log.
    pub size: u64,
    /// The Merkle root over them ([`crate::tree`]).
    pub root: Hash,
}

/// Why a checkpoint was not believed. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNote {
    /// Longer than any honest checkpoint.
    #[error("the checkpoint has {0} bytes; the limit is {NOTE_BYTES_MAX}")]
    TooLong(usize),
    /// Not a signed note that holds a checkpoint.
    #[error("line {line} of the checkpoint is malformed: {why}")]
    Malformed {
        /// Counted from 1.
        line: usize,
        /// What was expected there.
        why: &'static str,
    },
    /// The checkpoint of another log.
    #[error("the checkpoint is of log `{found}`, not of `{expected}`")]
    Origin {
        /// Whose checkpoint was wanted.
        expected: String,
        /// Whose it is.
        found: String,
    },
    /// The node id is not a public key.
    #[error("{0} is not an ed25519 public key")]
    BadKey(NodeId),
    /// The log's own signature is not among the signatures.
    #[error("the checkpoint carries no signature by `{0}`")]
    Unsigned(String),
    /// The log's own signature is wrong.
    #[error("the checkpoint's signature by `{0}` does not verify")]
    BadSignature(String),
}

/// The origin line and key name of `node`'s log on `network`.
pub fn origin(network: &NetworkId, node: &NodeId) -> String {
    format!("skein/{network}/{node}")
}

/// The id by which a signature line names its key: the first four bytes of
/// SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key).
pub fn key_id(name: &str, key: &NodeId) -> [u8; 4] {
    let hash = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', ALGORITHM_ED25519])
        .chain_update(key.0)
        .finalize();
    [hash[0], hash[1], hash[2], hash[3]]
}

impl Checkpoint {
    /// The signed note: this checkpoint under the signature of the log's owner, whose key is `key`.
    /// Equal checkpoints give equal texts.
    pub fn sign(&self, key: &SigningKey) -> String {
        let body = self.body();
        let node = NodeId(key.verifying_key().to_bytes());
        let mut signature = key_id(&self.origin, &node).to_vec();
        signature.extend_from_slice(&key.sign(body.as_bytes()).to_bytes());
        format!("{body}\n{SIGNATURE_PREFIX}{} {}\n", self.origin, STANDARD.encode(signature))
    }

    /// The text that is signed.
    fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }
}

/// Reads a checkpoint and verifies that `node` signed it as the head of its log on `network`.
///
/// # Errors
/// [`BadNote`] says what is wrong with it.
pub fn open_checkpoint(text: &str, node: &NodeId, network: &NetworkId) -> Result<Checkpoint, BadNote> {
    let note = parse(text)?;
    let expected = origin(network, node);
    if note.checkpoint.origin != expected {
        return Err(BadNote::Origin { expected, found: note.checkpoint.origin });
    }
    verify(&note, &expected, node)?;
    Ok(note.checkpoint)
}

/// A well-formed note, not yet believed.
#[derive(Debug)]
struct Note<'a> {
    checkpoint: Checkpoint,
    /// What is signed, its last newline included.
    body: &'a str,
    signatures: Vec<SignatureLine<'a>>,
}

#[derive(Debug)]
struct SignatureLine<'a> {
    name: &'a str,
    key_id: [u8; 4],
    /// 64 bytes for ed25519; cosigners may use others.
    signature: Vec<u8>,
}

/// Every signature that names this key must verify, and there must be one.
fn verify(note: &Note<'_>, name: &str, node: &NodeId) -> Result<(), BadNote> {
    let key = VerifyingKey::from_bytes(&node.0).map_err(|_| BadNote::BadKey(*node))?;
    let id = key_id(name, node);
    let mut own = note.signatures.iter().filter(|line| line.name == name && line.key_id == id).peekable();
    if own.peek().is_none() {
        return Err(BadNote::Unsigned(name.to_owned()));
    }
    own.try_for_each(|line| {
        let signature = Signature::from_slice(&line.signature)?;
        key.verify_strict(note.body.as_bytes(), &signature)
    })
    .map_err(|_| BadNote::BadSignature(name.to_owned()))
}

fn parse(text: &str) -> Result<Note<'_>, BadNote> {
    if text.len() > NOTE_BYTES_MAX {
        return Err(BadNote::TooLong(text.len()));
    }
    let malformed = |line, why| BadNote::Malformed { line, why };
    let mut rest = text;
    let origin = take_line(&mut rest).ok_or(malformed(1, "expected the log's origin"))?;
    if !is_key_name(origin) {
        return Err(malformed(1, "expected the log's origin: no spaces, plus signs or control characters"));
    }
    let size = take_line(&mut rest)
        .and_then(parse_size)
        .ok_or(malformed(2, "expected the number of entries in decimal"))?;
    let root = take_line(&mut rest)
        .and_then(|line| STANDARD.decode(line).ok()?.try_into().ok())
        .ok_or(malformed(3, "expected the root hash: 32 bytes in base64"))?;
    let body = &text[..text.len() - rest.len()];
    if take_line(&mut rest) != Some("") {
        return Err(malformed(4, "expected an empty line before the signatures"));
    }
    let mut signatures = Vec::new();
    while !rest.is_empty() {
        let line = 5 + signatures.len();
        if signatures.len() == NOTE_SIGNATURES_MAX {
            return Err(malformed(line, "too many signatures"));
        }
        let signature = take_line(&mut rest)
            .and_then(parse_signature)
            .ok_or(malformed(line, "expected a signature: an em dash, a name and base64, and a newline"))?;
        signatures.push(signature);
    }
    Ok(Note { checkpoint: Checkpoint { origin: origin.to_owned(), size, root }, body, signatures })
}

/// The next line without its newline; none when no newline is left.
fn take_line<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let (line, after) = rest.split_once('\n')?;
    *rest = after;
    Some(line)
}

/// Decimal without sign or leading zeros, so that a size has one spelling.
fn parse_size(line: &str) -> Option<u64> {
    let canonical = line.bytes().all(|byte| byte.is_ascii_digit()) && (line == "0" || !line.starts_with('0'));
    if canonical { line.parse().ok() } else { None }
}

fn parse_signature(line: &str) -> Option<SignatureLine<'_>> {
    let (name, encoded) = line.strip_prefix(SIGNATURE_PREFIX)?.split_once(' ')?;
    let bytes = STANDARD.decode(encoded).ok()?;
    let (key_id, signature) = bytes.split_first_chunk::<4>()?;
    let sound = is_key_name(name) && !signature.is_empty();
    sound.then(|| SignatureLine { name, key_id: *key_id, signature: signature.to_vec() })
}

fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NETWORK: NetworkId = NetworkId([0xab; 32]);

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn node() -> NodeId {
        NodeId(key().verifying_key().to_bytes())
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: origin(&NETWORK, &node()), size: 42, root: [0x5a; 32] }
    }

    #[test]
    fn golden_checkpoint() {
        // Frozen: other people's tools hold texts like this one.
        let expected = "skein/abababababababababababababababababababababababababababababababab/\
            ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c\n42\n\
            WlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlo=\n\n\
            \u{2014} skein/abababababababababababababababababababababababababababababababab/\
            ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c \
            XSd4V6NIkxCKfGEgDvmFzJ8/0aXHaBlUmEymKDKBZsPEguLpB2U2w4VgpEXVqfQLz1D/xE7l2N3e/Zcsg9XucnY5Hwk=\n";
        assert_eq!(checkpoint().sign(&key()), expected);
    }

    /// The example of Go's golang.org/x/mod/sumdb/note, made by code that is not ours.
    #[test]
    fn the_published_example_of_a_signed_note_verifies() {
        let name = "PeterNeumann";
        let verifier = STANDARD.decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").unwrap();
        assert_eq!(verifier[0], ALGORITHM_ED25519);
        let signer = NodeId(verifier[1..].try_into().unwrap());
        assert_eq!(hex::encode(key_id(name, &signer)), "c74f20a3");
        let line = "\u{2014} PeterNeumann \
            x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=";
        let mut note = Note {
            checkpoint: checkpoint(),
            body: "If you think cryptography is the answer to your problem,\n\
                then you don't know what your problem is.\n",
            signatures: vec![parse_signature(line).unwrap()],
        };
        assert_eq!(verify(&note, name, &signer), Ok(()));
        note.body = "If you think cryptography is the answer to your problem,\n";
        assert_eq!(verify(&note, name, &signer), Err(BadNote::BadSignature(name.to_owned())));
    }

    #[test]
    fn what_is_signed_opens_for_its_own_log_only() {
        let text = checkpoint().sign(&key());
        assert_eq!(open_checkpoint(&text, &node(), &NETWORK), Ok(checkpoint()));
        let elsewhere = NetworkId([0xac; 32]);
        assert!(matches!(open_checkpoint(&text, &node(), &elsewhere), Err(BadNote::Origin { .. })));
        let other = SigningKey::from_bytes(&[8; 32]);
        let other_node = NodeId(other.verifying_key().to_bytes());
        assert!(matches!(open_checkpoint(&text, &other_node, &NETWORK), Err(BadNote::Origin { .. })));
        let forged = checkpoint().sign(&other);
        assert!(matches!(open_checkpoint(&forged, &node(), &NETWORK), Err(BadNote::Unsigned(_))));
    }

    #[test]
    fn every_flipped_byte_is_refused() {
        let text = checkpoint().sign(&key());
        for position in 0..text.len() {
            for bit in [0, 5] {
                let mut bad = text.clone().into_bytes();
                bad[position] ^= 1 << bit;
                let Ok(bad) = String::from_utf8(bad) else { continue };
                assert!(open_checkpoint(&bad, &node(), &NETWORK).is_err(), "byte {position} bit {bit}");
            }
        }
    }

    #[test]
    fn cosignatures_are_passed_over_but_must_be_well_formed() {
        let text = checkpoint().sign(&key());
        let cosigned = format!("{text}\u{2014} witness.example/w1 {}\n", STANDARD.encode([9; 76]));
        assert_eq!(open_checkpoint(&cosigned, &node(), &NETWORK), Ok(checkpoint()));
        let own_line = text.lines().last().unwrap();
        let body = text.split_inclusive('\n').take(4).collect::<String>();
        let reordered =
            format!("{body}\u{2014} witness.example/w1 {}\n{own_line}\n", STANDARD.encode([9; 76]));
        assert_eq!(open_checkpoint(&reordered, &node(), &NETWORK), Ok(checkpoint()));
        for bad in ["\n", "- name AAAAAAA=\n", "\u{2014} name AAAA\n", "\u{2014} na+me AAAAAAA=\n", "x"] {
            let text = format!("{text}{bad}");
            let opened = open_checkpoint(&text, &node(), &NETWORK);
            assert!(matches!(opened, Err(BadNote::Malformed { line: 6, .. })), "{bad}: {opened:?}");
        }
        let many = format!("{text}{}", cosigned.split_inclusive('\n').next_back().unwrap().repeat(64));
        assert!(matches!(
            open_checkpoint(&many, &node(), &NETWORK),
            Err(BadNote::Malformed { line: 69, .. })
        ));
        let long = "x".repeat(NOTE_BYTES_MAX + 1);
        assert_eq!(open_checkpoint(&long, &node(), &NETWORK), Err(BadNote::TooLong(long.len())));
    }

    #[test]
    fn a_size_has_one_spelling() {
        for (spelling, size) in [("0", Some(0)), ("7", Some(7)), ("18446744073709551615", Some(u64::MAX))] {
            assert_eq!(parse_size(spelling), size);
        }
        for spelling in ["", "00", "07", "+7", "-7", " 7", "7 ", "18446744073709551616", "x"] {
            assert_eq!(parse_size(spelling), None, "{spelling:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}\n[0-9]{0,21}\n[A-Za-z0-9+/=]{0,60}\n\n(\u{2014} )?\\PC*\n?") {
            let _ = open_checkpoint(&text, &node(), &NETWORK);
        }
    }
}
