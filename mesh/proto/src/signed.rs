//! Signed statements: one canonical encoding (Borsh) and one place that signs and verifies.
//!
//! The signature covers `"skein" 0x00 KIND 0x00 network-id borsh(statement)`, so a statement of one
//! kind or network can never be taken for another. Borsh is bijective: what decodes re-encodes to the
//! same bytes. Must never read a clock or draw randomness.
//!
//! For a verifier that is not ours, all of the format:
//! - integers are little-endian, of the width of their type; `bool` is one byte, 0 or 1;
//! - ids and digests are their 32 bytes; `String` and `Vec` are a u32 count and then the bytes or items;
//! - `Option` is a byte 0, or a byte 1 and the value; an enum is a byte that counts its variants from 0 in
//!   the order of their declaration, and then the variant's fields; a struct is its fields in order;
//! - an envelope is `statement, signer (32 bytes), signature (64 bytes)`; the signature is RFC 8032
//!   ed25519 over the bytes above, verified strictly: canonical `R` and `s`, no key of small order;
//! - the network id is BLAKE3 of the encoded genesis (name, policy, started_at_ms, epoch_ms); a job's id is
//!   BLAKE3 of its encoded envelope, a lease's id BLAKE3 of its encoded statement, and the receipt that an
//!   acceptance names is BLAKE3 of the receipt's encoded envelope;
//! - kinds: `offer`, `job`, `lease`, `receipt`, `acceptance`; and of the agent's own, between an owner and his rigs,
//!   `fleet order`.
//!
//! `tests/core/golden/statements.txt` holds one of each in hexadecimal digits.

use borsh::{BorshDeserialize, BorshSerialize};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use crate::ids::{Digest, NetworkId, NodeId};

/// Something that an agent signs.
pub trait Statement: BorshSerialize + BorshDeserialize {
    /// Separates this kind of statement from every other; never reused, never changed.
    const KIND: &'static str;
}

/// Why an envelope was not opened. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Forged {
    /// The signer's id is not a point on the curve.
    #[error("signer {0} is not an ed25519 public key")]
    BadKey(NodeId),
    /// The signature does not belong to this statement, signer and network.
    #[error("signature of {kind} by {signer} does not verify")]
    BadSignature {
        /// The kind of statement.
        kind: &'static str,
        /// Who is said to have signed it.
        signer: NodeId,
    },
}

/// A statement as it travels: not yet believed.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Envelope<T> {
    statement: T,
    signer: NodeId,
    signature: [u8; 64],
}

/// A statement whose signature was checked (or made) here. There is no other way to get one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed<T>(Envelope<T>);

impl<T: Statement> Envelope<T> {
    /// Verifies the signature (strictly: no malleable encodings) and hands out the statement.
    ///
    /// # Errors
    /// [`Forged`] when key or signature are bad.
    pub fn open(self, network: &NetworkId) -> Result<Signed<T>, Forged> {
        let key = VerifyingKey::from_bytes(&self.signer.0).map_err(|_| Forged::BadKey(self.signer))?;
        let signature = ed25519_dalek::Signature::from_bytes(&self.signature);
        key.verify_strict(&signed_bytes(&self.statement, network), &signature)
            .map_err(|_| Forged::BadSignature { kind: T::KIND, signer: self.signer })?;
        Ok(Signed(self))
    }

    /// The statement, unverified: for display and routing only.
    pub fn unverified(&self) -> &T {
        &self.statement
    }

    /// Who is said to have signed it.
    pub fn signer(&self) -> NodeId {
        self.signer
    }

    /// BLAKE3 of the encoded envelope.
    pub fn digest(&self) -> Digest {
        Digest::of(&encode(self))
    }
}

impl<T: Statement> Signed<T> {
    /// Signs `statement` for `network`.
    pub fn new(statement: T, network: &NetworkId, key: &SigningKey) -> Self {
        let signature = key.sign(&signed_bytes(&statement, network)).to_bytes();
        Self(Envelope { statement, signer: NodeId(key.verifying_key().to_bytes()), signature })
    }

    /// What was signed.
    pub fn statement(&self) -> &T {
        &self.0.statement
    }

    /// Who signed it.
    pub fn signer(&self) -> NodeId {
        self.0.signer
    }

    /// The form that travels.
    pub fn envelope(&self) -> &Envelope<T> {
        &self.0
    }

    /// The form that travels, by value.
    pub fn into_envelope(self) -> Envelope<T> {
        self.0
    }

    /// BLAKE3 of the encoded envelope.
    pub fn digest(&self) -> Digest {
        self.0.digest()
    }
}

/// The canonical bytes of `value`.
pub fn encode<T: BorshSerialize>(value: &T) -> Vec<u8> {
    #[expect(
        clippy::expect_used,
        reason = "encoding into memory fails only for lengths above u32, which limits.rs rules out"
    )]
    borsh::to_vec(value).expect("canonical encoding into memory")
}

/// Decodes `bytes` whole: trailing bytes are an error.
///
/// # Errors
/// Whatever is wrong with the bytes, as text for a log.
pub fn decode<T: BorshDeserialize>(bytes: &[u8]) -> Result<T, Malformed> {
    borsh::from_slice(bytes).map_err(|error| Malformed(error.to_string()))
}

/// Bytes that are not a message of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed bytes: {0}")]
pub struct Malformed(String);

impl Malformed {
    /// Bytes of which there are too many to be looked at.
    pub(crate) fn too_long(bytes: usize) -> Self {
        Self(format!("{bytes} bytes are more than a frame may have"))
    }
}

fn signed_bytes<T: Statement>(statement: &T, network: &NetworkId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(b"skein\0");
    bytes.extend_from_slice(T::KIND.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(&network.0);
    bytes.extend_from_slice(&encode(statement));
    bytes
}
