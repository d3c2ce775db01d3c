//! Owns the writing of GGUF files: small models made here, and inputs of tests.
//! Must never be given what a stranger chose: it writes what it is told, sound or not.

use super::{MAGIC, Metadata, Value};
use crate::source::TensorInfo;

/// Elements begin at multiples of it.
pub(crate) const ALIGNMENT: usize = 32;

/// A GGUF file in memory.
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    /// Written in order of the keys.
    pub metadata: Metadata,
    /// Written in this order: name, type and shape, elements.
    pub tensors: Vec<(String, TensorInfo, Vec<u8>)>,
}

impl GgufWriter {
    /// Adds or replaces a metadata entry.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.metadata.insert(key.to_owned(), value);
        self
    }

    /// Adds a tensor, whose elements should be as long as `info` says.
    #[must_use]
    pub fn tensor(mut self, name: &str, info: TensorInfo, elements: Vec<u8>) -> Self {
        self.tensors.push((name.to_owned(), info, elements));
        self
    }

    /// The bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let tensors =
            self.tensors.iter().map(|(name, info, elements)| (name.as_str(), *info, elements.len()));
        let mut file = head(&self.metadata, tensors);
        for (_, _, elements) in &self.tensors {
            file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
            file.extend(elements);
        }
        file
    }
}

/// What precedes the elements: metadata, then name, type, shape and place of every tensor, whose elements follow in this
/// order, so many bytes each, each at a multiple of [`ALIGNMENT`].
pub(crate) fn head<'a>(
    metadata: &Metadata,
    tensors: impl Iterator<Item = (&'a str, TensorInfo, usize)>,
) -> Vec<u8> {
    let (mut places, mut count, mut offset) = (Vec::new(), 0_u64, 0_usize);
    for (name, info, bytes) in tensors {
        count += 1;
        text(&mut places, name.as_bytes());
        // One dimension for vectors, as other writers do.
        places.extend(if info.rows == 1 { 1_u32 } else { 2 }.to_le_bytes());
        places.extend(info.columns.to_le_bytes());
        if info.rows != 1 {
            places.extend(info.rows.to_le_bytes());
        }
        places.extend(info.dtype.gguf_number().to_le_bytes());
        places.extend((offset as u64).to_le_bytes());
        offset += bytes.next_multiple_of(ALIGNMENT);
    }
    let mut file = MAGIC.to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend(count.to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut file, key.as_bytes());
        self::value(&mut file, value);
    }
    file.extend(places);
    file
}

fn text(file: &mut Vec<u8>, text: &[u8]) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text);
}

fn value(file: &mut Vec<u8>, value: &Value) {
    let (kind, elements) = match value {
        // Readers ask for 32 bits where they fit.
        Value::Unsigned(value) => match u32::try_from(*value) {
            Ok(value) => (4, value.to_le_bytes().to_vec()),
            Err(_) => (10, value.to_le_bytes().to_vec()),
        },
        Value::Signed(value) => (11, value.to_le_bytes().to_vec()),
        Value::Float(value) => (6, (*value as f32).to_le_bytes().to_vec()),
        Value::Bool(value) => (7, vec![u8::from(*value)]),
        Value::Text(value) => {
            file.extend(8_u32.to_le_bytes());
            return text(file, value);
        }
        Value::Unsigneds(all) => return array(file, 10, all, |file, value| file.extend(value.to_le_bytes())),
        // llama.cpp takes types of tokens in 32 bits only.
        Value::Signeds(all) if all.iter().all(|value| i32::try_from(*value).is_ok()) => {
            return array(file, 5, all, |file, value| file.extend((*value as i32).to_le_bytes()));
        }
        Value::Signeds(all) => return array(file, 11, all, |file, value| file.extend(value.to_le_bytes())),
        Value::Floats(all) => return array(file, 6, all, |file, value| file.extend(value.to_le_bytes())),
        Value::Bools(all) => return array(file, 7, all, |file, value| file.push(u8::from(*value))),
        Value::Texts(all) => return array(file, 8, all, |file, value| text(file, value)),
    };
    file.extend(u32::to_le_bytes(kind));
    file.extend(elements);
}

fn array<T>(file: &mut Vec<u8>, kind: u32, all: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    file.extend(9_u32.to_le_bytes());
    file.extend(kind.to_le_bytes());
    file.extend((all.len() as u64).to_le_bytes());
    all.iter().for_each(|value| write(file, value));
}
