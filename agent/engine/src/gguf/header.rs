//! Owns the part of a GGUF file before the elements: version, metadata, and where each tensor lies.
//! Must never allocate for a count that the rest of the file cannot hold, and never interpret metadata.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read;

use super::{GgufError, MAGIC, Metadata, Value};
use crate::dtype::Dtype;
use crate::limits::{METADATA_ELEMENTS_MAX, METADATA_KEYS_MAX, NAME_BYTES_MAX, TENSORS_MAX};
use crate::source::TensorInfo;

/// What precedes the elements.
#[derive(Debug)]
pub struct Header {
    /// Everything but tensors.
    pub metadata: Metadata,
    /// Every tensor by name.
    pub tensors: BTreeMap<String, Place>,
}

/// A tensor and where its elements are: checked to lie inside the file and to overlap no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Type and shape.
    pub info: TensorInfo,
    /// First byte, from the beginning of the file.
    pub start: u64,
    /// Length.
    pub bytes: u64,
}

impl Header {
    /// Reads the header of a file of `length` bytes, of which `reader` stands at the first.
    ///
    /// # Errors
    /// [`GgufError`] says where and what is wrong.
    pub fn parse(reader: impl Read, length: u64) -> Result<Self, GgufError> {
        let mut bytes = Bytes { reader, at: 0, length, elements: 0 };
        let magic = bytes.array::<4>("the magic")?;
        if magic != MAGIC {
            return Err(bytes.malformed("the file does not begin with `GGUF`".to_owned()));
        }
        version(bytes.u32("the version")?)?;
        // The smallest tensor entry takes 33 bytes, the smallest metadata entry 14.
        let tensors = bytes.count("tensors", TENSORS_MAX, 33)?;
        let keys = bytes.count("metadata entries", METADATA_KEYS_MAX, 14)?;
        let metadata = metadata(&mut bytes, keys)?;
        let entries = (0..tensors).map(|_| tensor(&mut bytes)).collect::<Result<Vec<_>, _>>()?;
        let tensors = places(entries, bytes.at, length, alignment(&metadata)?)?;
        Ok(Self { metadata, tensors })
    }
}

/// A tensor as the file lists it; `offset` counts from the first element of all.
struct Listed {
    name: String,
    info: TensorInfo,
    bytes: u64,
    offset: u64,
}

fn version(version: u32) -> Result<(), GgufError> {
    if version == 2 || version == 3 {
        return Ok(());
    }
    let what = match version.swap_bytes() {
        1..=3 => "a big-endian GGUF file".to_owned(),
        _ => format!("GGUF version {version}"),
    };
    Err(GgufError::Unsupported { what, hint: "convert the model to little-endian GGUF version 3" })
}

fn metadata<R: Read>(bytes: &mut Bytes<R>, keys: usize) -> Result<Metadata, GgufError> {
    let mut metadata = Metadata::new();
    for _ in 0..keys {
        let key = bytes.name("a metadata key")?;
        let kind = bytes.u32("a metadata type")?;
        let value = value(bytes, &key, kind)?;
        match metadata.entry(key) {
            Entry::Vacant(place) => _ = place.insert(value),
            Entry::Occupied(place) => {
                let problem = "it is there twice".to_owned();
                return Err(GgufError::BadKey { key: place.key().clone(), problem });
            }
        }
    }
    Ok(metadata)
}

fn value<R: Read>(bytes: &mut Bytes<R>, key: &str, kind: u32) -> Result<Value, GgufError> {
    let what = "a metadata value";
    Ok(match kind {
        0 | 2 | 4 | 10 => Value::Unsigned(bytes.unsigned(kind, what)?),
        1 | 3 | 5 | 11 => Value::Signed(bytes.signed(kind, what)?),
        6 => Value::Float(f64::from(f32::from_le_bytes(bytes.array(what)?))),
        12 => Value::Float(f64::from_le_bytes(bytes.array(what)?)),
        7 => Value::Bool(bytes.bool(what)?),
        8 => Value::Text(bytes.text(what)?),
        9 => array(bytes, key)?,
        _ => return Err(bad_kind(key, kind)),
    })
}

fn array<R: Read>(bytes: &mut Bytes<R>, key: &str) -> Result<Value, GgufError> {
    let what = "an element of a metadata array";
    let kind = bytes.u32("the type of a metadata array")?;
    let size = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => {
            let problem = "arrays of arrays are not allowed".to_owned();
            return Err(GgufError::BadKey { key: key.to_owned(), problem });
        }
        _ => return Err(bad_kind(key, kind)),
    };
    let left = METADATA_ELEMENTS_MAX - bytes.elements;
    let count = bytes.count("array elements", left, size)?;
    bytes.elements += count;
    Ok(match kind {
        0 | 2 | 4 | 10 => Value::Unsigneds(bytes.repeat(count, |bytes| bytes.unsigned(kind, what))?),
        1 | 3 | 5 | 11 => Value::Signeds(bytes.repeat(count, |bytes| bytes.signed(kind, what))?),
        6 => Value::Floats(bytes.repeat(count, |bytes| Ok(f32::from_le_bytes(bytes.array(what)?)))?),
        12 => {
            // Nothing in a model needs the precision of f64.
            Value::Floats(bytes.repeat(count, |bytes| Ok(f64::from_le_bytes(bytes.array(what)?) as f32))?)
        }
        7 => Value::Bools(bytes.repeat(count, |bytes| bytes.bool(what))?),
        _ => Value::Texts(bytes.repeat(count, |bytes| bytes.text(what))?),
    })
}

fn bad_kind(key: &str, kind: u32) -> GgufError {
    GgufError::BadKey { key: key.to_owned(), problem: format!("{kind} is no type of GGUF version 3") }
}

fn tensor<R: Read>(bytes: &mut Bytes<R>) -> Result<Listed, GgufError> {
    let name = bytes.name("a tensor's name")?;
    let bad = |problem| GgufError::BadTensor { name: name.clone(), problem };
    let count = bytes.u32("a tensor's number of dimensions")?;
    if !(1..=4).contains(&count) {
        return Err(bad(format!("it has {count} dimensions, allowed are 1 to 4")));
    }
    let mut dimensions = [1; 4];
    for dimension in dimensions.iter_mut().take(count as usize) {
        *dimension = u64::from_le_bytes(bytes.array("a tensor's dimension")?);
    }
    let kind = bytes.u32("a tensor's type")?;
    let offset = u64::from_le_bytes(bytes.array("a tensor's offset")?);
    let [columns, rows, rest @ ..] = dimensions;
    if columns == 0 || rows == 0 || rest != [1, 1] {
        return Err(bad(format!("its dimensions are {dimensions:?}; allowed are one or two, above 0")));
    }
    let info = TensorInfo { dtype: dtype(&name, kind)?, rows, columns };
    let size = info.bytes().ok_or_else(|| {
        let dtype = info.dtype.name();
        bad(format!("{rows} rows of {columns} columns do not fit a file, or are no whole {dtype} blocks"))
    })?;
    Ok(Listed { name, info, bytes: size, offset })
}

fn dtype(name: &str, kind: u32) -> Result<Dtype, GgufError> {
    if let Some(dtype) = Dtype::ALL.into_iter().find(|dtype| dtype.gguf_number() == kind) {
        return Ok(dtype);
    }
    let unsupported = match kind {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => "unknown",
    };
    Err(GgufError::Unsupported {
        what: format!("tensor `{name}` has type {unsupported} ({kind}), which"),
        hint: "quantise the model to Q4_K_M, Q8_0 or another of F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K",
    })
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let key = "general.alignment";
    let Some(value) = metadata.get(key) else { return Ok(32) };
    let good = value.unsigned().filter(|value| value.is_power_of_two() && *value <= 1 << 20);
    let problem = || format!("it is {value:?}, allowed are powers of two up to 1048576");
    good.ok_or_else(|| GgufError::BadKey { key: key.to_owned(), problem: problem() })
}

/// Finds each tensor's elements in the file: they begin at the first multiple of `alignment` after the header.
fn places(
    entries: Vec<Listed>,
    header_end: u64,
    length: u64,
    alignment: u64,
) -> Result<BTreeMap<String, Place>, GgufError> {
    let data = header_end.checked_next_multiple_of(alignment).unwrap_or(length);
    let mut places = BTreeMap::new();
    for Listed { name, info, bytes, offset } in entries {
        let bad = |problem| Err(GgufError::BadTensor { name: name.clone(), problem });
        if !offset.is_multiple_of(alignment) {
            return bad(format!("its offset {offset} is no multiple of {alignment}"));
        }
        let end = offset.checked_add(bytes).and_then(|end| end.checked_add(data));
        if end.is_none_or(|end| end > length) {
            return bad(format!("{bytes} bytes at offset {offset} exceed the file of {length} bytes"));
        }
        let place = Place { info, start: data + offset, bytes };
        if places.contains_key(&name) {
            return bad("it is there twice".to_owned());
        }
        places.insert(name, place);
    }
    no_overlap(&places)?;
    Ok(places)
}

fn no_overlap(places: &BTreeMap<String, Place>) -> Result<(), GgufError> {
    let mut sorted: Vec<_> = places.iter().collect();
    sorted.sort_by_key(|(_, place)| place.start);
    for pair in sorted.windows(2) {
        if let [(before, first), (name, second)] = pair
            && first.start + first.bytes > second.start
        {
            let problem = format!("it overlaps tensor `{before}`");
            return Err(GgufError::BadTensor { name: (*name).clone(), problem });
        }
    }
    Ok(())
}

/// The bytes of the header, which end where the file ends.
struct Bytes<R> {
    reader: R,
    at: u64,
    length: u64,
    /// Array elements read so far.
    elements: usize,
}

impl<R: Read> Bytes<R> {
    fn malformed(&self, problem: String) -> GgufError {
        GgufError::Malformed { at: self.at, problem }
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<(), GgufError> {
        let end = self.at.saturating_add(buffer.len() as u64);
        if end > self.length || self.reader.read_exact(buffer).is_err() {
            return Err(self.malformed(format!("the file of {} bytes ends in {what}", self.length)));
        }
        self.at = end;
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn unsigned(&mut self, kind: u32, what: &str) -> Result<u64, GgufError> {
        Ok(match kind {
            0 => u64::from(u8::from_le_bytes(self.array(what)?)),
            2 => u64::from(u16::from_le_bytes(self.array(what)?)),
            4 => u64::from(self.u32(what)?),
            _ => u64::from_le_bytes(self.array(what)?),
        })
    }

    fn signed(&mut self, kind: u32, what: &str) -> Result<i64, GgufError> {
        Ok(match kind {
            1 => i64::from(i8::from_le_bytes(self.array(what)?)),
            3 => i64::from(i16::from_le_bytes(self.array(what)?)),
            5 => i64::from(i32::from_le_bytes(self.array(what)?)),
            _ => i64::from_le_bytes(self.array(what)?),
        })
    }

    fn bool(&mut self, what: &str) -> Result<bool, GgufError> {
        match self.array(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.malformed(format!("{other} is no truth value"))),
        }
    }

    /// A number of things that take at least `size` bytes each.
    fn count(&mut self, what: &str, most: usize, size: u64) -> Result<usize, GgufError> {
        let count = u64::from_le_bytes(self.array(what)?);
        let left = self.length - self.at;
        if count > left / size {
            return Err(self.malformed(format!("{count} {what} do not fit the {left} bytes that follow")));
        }
        let counted = usize::try_from(count).ok().filter(|count| *count <= most);
        counted.ok_or_else(|| self.malformed(format!("{count} {what}, at most {most} are allowed")))
    }

    fn text(&mut self, what: &str) -> Result<Vec<u8>, GgufError> {
        let length = self.count("bytes of text", usize::MAX, 1)?;
        let mut text = vec![0; length];
        self.fill(&mut text, what)?;
        Ok(text)
    }

    fn name(&mut self, what: &str) -> Result<String, GgufError> {
        let length = self.count(&format!("bytes of {what}"), NAME_BYTES_MAX, 1)?;
        let mut name = vec![0; length];
        self.fill(&mut name, what)?;
        let text = String::from_utf8(name).ok().filter(|text| !text.is_empty());
        text.ok_or_else(|| self.malformed(format!("{what} is empty or not UTF-8")))
    }

    fn repeat<T>(
        &mut self,
        count: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, GgufError>,
    ) -> Result<Vec<T>, GgufError> {
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            all.push(read(self)?);
        }
        Ok(all)
    }
}
