//! Whom a release is believed from: trusted public keys, and signature files checked against them.
//!
//! A `.sig` file has one line per signing key: `ed25519 KEYID BASE64`. One good signature by a trusted key
//! suffices, so that keys can be changed: for a while releases are signed by the old and the new key. Checks are
//! `verify_strict`. Must never accept anything while no key is trusted.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

use crate::error::{Result, UpdateError};

/// No signature file is longer, in bytes.
pub const SIGNATURE_BYTES_MAX: usize = 8 << 10;
/// No more keys are trusted at a time, and no signature file has more lines.
pub const KEYS_MAX: usize = 16;

/// The keys that a machine trusts.
#[derive(Clone, Debug, Default)]
pub struct TrustedKeys(Vec<VerifyingKey>);

impl TrustedKeys {
    /// The keys of packaging/release-keys when this was built; none as long as nobody has published.
    pub fn built_in() -> Result<Self> {
        Self::from_lines(include_str!("../../../packaging/release-keys"))
    }

    /// Reads keys as 64 hex digits, for example `update_keys` of config.toml.
    pub fn from_hex<T: AsRef<str>>(keys: impl IntoIterator<Item = T>) -> Result<Self> {
        let mut trusted = Vec::new();
        for text in keys {
            let key = parse_key(text.as_ref())?;
            if !trusted.contains(&key) {
                trusted.push(key);
            }
            if trusted.len() > KEYS_MAX {
                return Err(UpdateError::BadKey(format!("the {}th key", KEYS_MAX + 1)));
            }
        }
        Ok(Self(trusted))
    }

    /// Reads a file of keys: one per line, `#` begins a comment.
    pub fn from_lines(text: &str) -> Result<Self> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
        Self::from_hex(lines.filter(|line| !line.is_empty()))
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys' ids, for messages.
    pub fn ids(&self) -> String {
        self.0.iter().map(key_id).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn raw(&self) -> Vec<[u8; 32]> {
        self.0.iter().map(VerifyingKey::to_bytes).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &VerifyingKey> {
        self.0.iter()
    }

    /// Checks the text of a `.sig` file over `message`; gives the id of the trusted key that signed.
    pub fn verify(&self, message: &[u8], signatures: &[u8]) -> Result<String> {
        if self.is_empty() {
            return Err(UpdateError::NoTrustedKey);
        }
        let lines = parse_signatures(signatures)?;
        let mut wrong = None;
        for (id, signature) in &lines {
            for key in self.0.iter().filter(|key| key_id(key) == *id) {
                if key.verify_strict(message, signature).is_ok() {
                    return Ok(id.clone());
                }
                wrong = Some(id.clone());
            }
        }
        Err(match wrong {
            Some(key) => UpdateError::BadSignature { key },
            None => UpdateError::Untrusted {
                signed_by: lines.into_iter().map(|(id, _)| id).collect::<Vec<_>>().join(", "),
                trusted: self.ids(),
            },
        })
    }
}

/// The first 16 hex digits of the SHA-256 of the public key: enough to tell keys apart, never trusted by itself.
pub fn key_id(key: &VerifyingKey) -> String {
    let mut id = hex::encode(Sha256::digest(key.as_bytes()));
    id.truncate(16);
    id
}

/// One line of a `.sig` file, with its line end.
pub(crate) fn signature_line(key: &VerifyingKey, signature: &Signature) -> String {
    format!("ed25519 {} {}\n", key_id(key), BASE64_STANDARD.encode(signature.to_bytes()))
}

fn parse_key(text: &str) -> Result<VerifyingKey> {
    let bad = || UpdateError::BadKey(text.chars().take(80).collect());
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| bad())?;
    let key = VerifyingKey::from_bytes(&bytes).map_err(|_| bad())?;
    // A key of low order fits signatures that nobody made.
    if key.is_weak() { Err(bad()) } else { Ok(key) }
}

fn parse_signatures(bytes: &[u8]) -> Result<Vec<(String, Signature)>> {
    let bad = |reason: &str| UpdateError::BadSignatureFile(reason.to_owned());
    if bytes.len() > SIGNATURE_BYTES_MAX {
        return Err(bad("it is too long"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| bad("it is not text"))?;
    let mut found = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [algorithm, id, signature] = words[..] else {
            return Err(bad("a line is not `ed25519 KEYID BASE64`"));
        };
        if algorithm != "ed25519" || id.len() != 16 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad("a line is not `ed25519 KEYID BASE64`"));
        }
        let signature = BASE64_STANDARD.decode(signature).map_err(|_| bad("a signature is not base64"))?;
        let signature = Signature::from_slice(&signature).map_err(|_| bad("a signature is not 64 bytes"))?;
        found.push((id.to_owned(), signature));
        if found.len() > KEYS_MAX {
            return Err(bad("it has too many lines"));
        }
    }
    if found.is_empty() { Err(bad("it is empty")) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn trust(seeds: &[u8]) -> TrustedKeys {
        TrustedKeys::from_hex(seeds.iter().map(|&seed| hex::encode(key(seed).verifying_key()))).unwrap()
    }

    fn sign(seed: u8, message: &[u8]) -> String {
        signature_line(&key(seed).verifying_key(), &key(seed).sign(message))
    }

    #[test]
    fn the_file_built_in_is_readable() {
        TrustedKeys::built_in().unwrap();
    }

    #[test]
    fn comments_and_repetitions_are_no_keys() {
        let one = hex::encode(key(1).verifying_key());
        let keys = TrustedKeys::from_lines(&format!("# a key\n\n{one} # the first\n  {one}\n")).unwrap();
        assert_eq!(keys.raw().len(), 1);
        // The neutral element: every message would be signed by it.
        let weak = format!("01{}", "00".repeat(31));
        for wrong in ["00", "xyz", &one[..62], weak.as_str()] {
            assert!(matches!(TrustedKeys::from_hex([wrong]), Err(UpdateError::BadKey(_))), "{wrong}");
        }
    }

    #[test]
    fn one_trusted_signature_suffices() {
        let both = format!("{}{}", sign(1, b"text"), sign(2, b"text"));
        for trusted in [&[1][..], &[2], &[1, 2], &[3, 2]] {
            trust(trusted).verify(b"text", both.as_bytes()).unwrap();
        }
        let error = trust(&[3]).verify(b"text", both.as_bytes()).unwrap_err();
        assert!(matches!(error, UpdateError::Untrusted { .. }), "{error}");
        let error = trust(&[1]).verify(b"texT", both.as_bytes()).unwrap_err();
        assert!(matches!(error, UpdateError::BadSignature { .. }), "{error}");
        let error = trust(&[]).verify(b"text", both.as_bytes()).unwrap_err();
        assert!(matches!(error, UpdateError::NoTrustedKey), "{error}");
        // Another's signature under a trusted key's id.
        let forged =
            sign(2, b"text").replace(&key_id(&key(2).verifying_key()), &key_id(&key(1).verifying_key()));
        assert!(matches!(
            trust(&[1]).verify(b"text", forged.as_bytes()),
            Err(UpdateError::BadSignature { .. })
        ));
    }

    #[test]
    fn strangers_files_are_bounded_and_refused() {
        let good = sign(1, b"text");
        let cases: [String; 7] = [
            String::new(),
            "hello\n".to_owned(),
            good.replace("ed25519 ", "rsa "),
            good.replace("==", ""),
            good.replace(' ', "  "),
            good.repeat(KEYS_MAX + 1),
            "x".repeat(SIGNATURE_BYTES_MAX + 1),
        ];
        for text in cases {
            let error = trust(&[1]).verify(b"text", text.as_bytes()).unwrap_err();
            assert!(matches!(error, UpdateError::BadSignatureFile(_)), "{error}");
        }
        assert!(trust(&[1]).verify(b"text", &[0xff, 0xfe]).is_err());
    }
}
