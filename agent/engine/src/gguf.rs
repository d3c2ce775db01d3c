//! Owns GGUF version 3: metadata and tensors of a model in one file.
//! Must never trust a count, a length or an offset before it is checked against the file.

use std::collections::BTreeMap;

/// Metadata by key.
pub type Metadata = BTreeMap<String, Value>;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text. Vocabularies hold tokens that are no UTF-8, so text is bytes until it is looked at.
    Text(Vec<u8>),
    /// Unsigned integers.
    Unsigneds(Vec<u64>),
    /// Signed integers.
    Signeds(Vec<i64>),
    /// Floats.
    Floats(Vec<f32>),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Texts(Vec<Vec<u8>>),
}
