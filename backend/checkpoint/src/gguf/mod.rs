//! GGUF files: the container. What the keys and tensors mean is in the sibling modules.
//!
//! Layout (specification: `docs/gguf.md` of the ggml project), all little endian: magic, version,
//! number of tensors, number of keys; keys with typed values; tensors with sizes, type and offset;
//! padding; data. Nothing in a file is believed: every length is checked against what is left of
//! the file before anything is allocated, so memory stays within a small multiple of its size.

mod cursor;
pub(crate) mod kept;
pub(crate) mod model;
pub(crate) mod vocabulary;

use std::collections::BTreeMap;

use rewind_formats::ggml::GgmlType;

use crate::error::{CheckpointError, Fault};
use crate::gguf::cursor::Cursor;
use crate::weights::{Mapping, Stored, StoredType, Weights, tensor};

/// Most keys of a file; real ones have some dozens.
const MAX_KEYS: u64 = 1 << 16;
/// Most tensors of a file; a model of 128 blocks has about 1,500.
const MAX_TENSORS: u64 = 1 << 16;
/// Longest name of a key or tensor, in bytes.
const MAX_NAME: usize = 1 << 16;
/// GGUF allows four.
const MAX_DIMENSIONS: u32 = 4;
/// Largest alignment of the data; 32 is usual.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// A value of a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// Not necessarily UTF-8.
    String(Box<[u8]>),
    Strings(Vec<Box<[u8]>>),
    Integers(Vec<i64>),
    Floats(Vec<f64>),
}

impl Value {
    /// What it is, for messages.
    fn describe(&self) -> String {
        match self {
            Self::Unsigned(v) => v.to_string(),
            Self::Signed(v) => v.to_string(),
            Self::Float(v) => v.to_string(),
            Self::Bool(v) => v.to_string(),
            Self::String(v) => format!("{:?}", String::from_utf8_lossy(&v[..v.len().min(80)])),
            Self::Strings(v) => format!("an array of {} strings", v.len()),
            Self::Integers(v) => format!("an array of {} integers", v.len()),
            Self::Floats(v) => format!("an array of {} floats", v.len()),
        }
    }
}

/// The keys of a file, by name.
#[derive(Debug, Default)]
pub(crate) struct Keys(BTreeMap<String, Value>);

/// Reads keys and tensors of a mapped file; the tensors go to `weights`, under file number 0.
pub(crate) fn read(mapping: Mapping) -> Result<(Keys, Weights), CheckpointError> {
    let (keys, tensors) = parse(&mapping).map_err(|fault| fault.within(mapping.path()))?;
    Ok((keys, Weights { files: vec![mapping], tensors, ..Weights::default() }))
}

fn parse(file: &[u8]) -> Result<(Keys, BTreeMap<String, Stored>), Fault> {
    let mut cursor = Cursor::new(file);
    if cursor.take("magic", 4)? != b"GGUF" {
        return Err(Fault::malformed("magic", "does not start with \"GGUF\""));
    }
    let version = cursor.u32("version")?;
    if version.swap_bytes() <= 3 {
        return Err(Fault::unsupported("byte order", "big endian", "little endian"));
    }
    if !matches!(version, 2 | 3) {
        return Err(Fault::unsupported("GGUF version", version.to_string(), "2, 3"));
    }
    let tensors = bounded(cursor.u64("tensor count")?, MAX_TENSORS, "tensor count")?;
    let keys = bounded(cursor.u64("key count")?, MAX_KEYS, "key count")?;
    let keys = parse_keys(&mut cursor, keys)?;
    if let Some(parts) = keys.optional_u64("split.count")?
        && parts > 1
    {
        return Err(Fault::unsupported("key split.count", parts.to_string(), "1 (a whole model)"));
    }
    let alignment = keys.optional_u64("general.alignment")?.unwrap_or(32);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(Fault::malformed(
            "key general.alignment",
            format!("is {alignment}, not a power of two up to {MAX_ALIGNMENT}"),
        ));
    }
    let tensors = parse_tensors(&mut cursor, tensors, alignment)?;
    Ok((keys, tensors))
}

fn bounded(value: u64, limit: u64, what: &str) -> Result<u64, Fault> {
    if value > limit {
        return Err(Fault::malformed(what, format!("is {value}, more than the limit {limit}")));
    }
    Ok(value)
}

fn name(cursor: &mut Cursor<'_>, what: &str) -> Result<String, Fault> {
    let bytes = cursor.string(what)?;
    if bytes.is_empty() || bytes.len() > MAX_NAME {
        return Err(Fault::malformed(
            what,
            format!("has a name of {} bytes; 1 to {MAX_NAME} are allowed", bytes.len()),
        ));
    }
    let name = str::from_utf8(bytes).map_err(|_| Fault::malformed(what, "name is not UTF-8"))?;
    Ok(name.to_owned())
}

fn parse_keys(cursor: &mut Cursor<'_>, count: u64) -> Result<Keys, Fault> {
    let mut keys = BTreeMap::new();
    for number in 0..count {
        let key = name(cursor, &format!("key number {number}"))?;
        let value = parse_value(cursor, &key)?;
        if keys.insert(key.clone(), value).is_some() {
            return Err(Fault::malformed(format!("key {key}"), "appears twice"));
        }
    }
    Ok(Keys(keys))
}

fn parse_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Fault> {
    let at = format!("key {key}");
    let ty = cursor.u32(&at)?;
    if ty != cursor::ARRAY {
        return cursor.scalar(ty, &at);
    }
    let ty = cursor.u32(&at)?;
    let count = cursor.u64(&at)?;
    let count = cursor.check_array(ty, count, &at)?;
    let mut strings = Vec::new();
    let mut integers = Vec::new();
    let mut floats = Vec::new();
    match ty {
        cursor::STRING => strings.reserve_exact(count),
        cursor::FLOAT32 | cursor::FLOAT64 => floats.reserve_exact(count),
        _ => integers.reserve_exact(count),
    }
    for _ in 0..count {
        match cursor.scalar(ty, &at)? {
            Value::String(v) => strings.push(v),
            Value::Float(v) => floats.push(v),
            Value::Signed(v) => integers.push(v),
            // No array that Rewind reads holds numbers beyond i64.
            Value::Unsigned(v) => integers.push(i64::try_from(v).unwrap_or(i64::MAX)),
            Value::Bool(v) => integers.push(i64::from(v)),
            Value::Strings(_) | Value::Integers(_) | Value::Floats(_) => {
                return Err(Fault::malformed(at, "is an array of arrays"));
            }
        }
    }
    Ok(match ty {
        cursor::STRING => Value::Strings(strings),
        cursor::FLOAT32 | cursor::FLOAT64 => Value::Floats(floats),
        _ => Value::Integers(integers),
    })
}

/// A tensor before its place in the file is known.
struct Declared {
    name: String,
    shape: Vec<usize>,
    ty: GgmlType,
    bytes: usize,
    offset: u64,
}

fn parse_tensors(
    cursor: &mut Cursor<'_>,
    count: u64,
    alignment: u64,
) -> Result<BTreeMap<String, Stored>, Fault> {
    let mut declared = Vec::new();
    for number in 0..count {
        declared.push(parse_tensor(cursor, number)?);
    }
    let start = (cursor.position() as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for Declared { name, shape, ty, bytes, offset } in declared {
        let at = tensor(&name);
        if !offset.is_multiple_of(alignment) {
            return Err(Fault::malformed(
                at,
                format!("offset {offset} is not a multiple of the alignment {alignment}"),
            ));
        }
        let end = start.checked_add(offset).and_then(|from| from.checked_add(bytes as u64));
        let Some(end) = end.filter(|&end| end <= cursor.len() as u64) else {
            return Err(Fault::malformed(
                at,
                format!(
                    "takes {bytes} bytes at {start} + {offset}, but the file ends at {}",
                    cursor.len()
                ),
            ));
        };
        // Both ends are within the file, whose length is a usize.
        let range = end as usize - bytes..end as usize;
        let stored = Stored { file: 0, ty: StoredType::Known(ty), shape, range };
        if tensors.insert(name, stored).is_some() {
            return Err(Fault::malformed(at, "appears twice"));
        }
    }
    Ok(tensors)
}

fn parse_tensor(cursor: &mut Cursor<'_>, number: u64) -> Result<Declared, Fault> {
    let name = name(cursor, &format!("tensor number {number}"))?;
    let at = tensor(&name);
    let dimensions = cursor.u32(&at)?;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(Fault::malformed(
            at,
            format!("has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed"),
        ));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let size = cursor.u64(&at)?;
        match usize::try_from(size) {
            Ok(size) if size > 0 => shape.push(size),
            _ => return Err(Fault::malformed(at, format!("has a dimension of size {size}"))),
        }
    }
    let ty = GgmlType::from_id(cursor.u32(&at)?)
        .map_err(|error| Fault::malformed(at.clone(), error.to_string()))?;
    let offset = cursor.u64(&at)?;
    // The file lists the innermost size first, and blocks run along it.
    let whole_blocks = shape[0].is_multiple_of(ty.block_len());
    let elements = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    let bytes = elements.filter(|_| whole_blocks).and_then(|elements| ty.bytes(elements));
    let Some(bytes) = bytes else {
        return Err(Fault::malformed(
            at,
            format!("of sizes {shape:?} is no whole number of {ty} blocks, or too large"),
        ));
    };
    shape.reverse();
    Ok(Declared { name, shape, ty, bytes, offset })
}

impl Keys {
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> Fault {
        Fault::malformed(format!("key {key}"), format!("is {}, not {expected}", value.describe()))
    }

    fn required<T>(key: &str, value: Option<T>) -> Result<T, Fault> {
        value.ok_or_else(|| Fault::malformed(format!("key {key}"), "is missing"))
    }

    pub(crate) fn optional_u64(&self, key: &str) -> Result<Option<u64>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(v)) => Ok(Some(*v)),
            Some(value @ Value::Signed(v)) => match u64::try_from(*v) {
                Ok(v) => Ok(Some(v)),
                Err(_) => Err(self.wrong(key, value, "a number from 0 up")),
            },
            Some(value) => Err(self.wrong(key, value, "a whole number")),
        }
    }

    pub(crate) fn optional_usize(&self, key: &str) -> Result<Option<usize>, Fault> {
        let Some(value) = self.optional_u64(key)? else { return Ok(None) };
        usize::try_from(value).map(Some).map_err(|_| {
            Fault::malformed(format!("key {key}"), format!("is {value}, which is too large"))
        })
    }

    pub(crate) fn usize(&self, key: &str) -> Result<usize, Fault> {
        Self::required(key, self.optional_usize(key)?)
    }

    /// A token id.
    pub(crate) fn optional_u32(&self, key: &str) -> Result<Option<u32>, Fault> {
        let Some(value) = self.optional_u64(key)? else { return Ok(None) };
        u32::try_from(value).map(Some).map_err(|_| {
            Fault::malformed(format!("key {key}"), format!("is {value}, which is too large"))
        })
    }

    pub(crate) fn optional_f32(&self, key: &str) -> Result<Option<f32>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(v)) => Ok(Some(*v as f32)),
            Some(Value::Unsigned(v)) => Ok(Some(*v as f32)),
            Some(value) => Err(self.wrong(key, value, "a number")),
        }
    }

    pub(crate) fn f32(&self, key: &str) -> Result<f32, Fault> {
        Self::required(key, self.optional_f32(key)?)
    }

    pub(crate) fn optional_bool(&self, key: &str) -> Result<Option<bool>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(value) => Err(self.wrong(key, value, "true or false")),
        }
    }

    pub(crate) fn optional_str(&self, key: &str) -> Result<Option<&str>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(value @ Value::String(v)) => match str::from_utf8(v) {
                Ok(v) => Ok(Some(v)),
                Err(_) => Err(self.wrong(key, value, "valid UTF-8")),
            },
            Some(value) => Err(self.wrong(key, value, "a string")),
        }
    }

    pub(crate) fn str(&self, key: &str) -> Result<&str, Fault> {
        Self::required(key, self.optional_str(key)?)
    }

    pub(crate) fn strings(&self, key: &str) -> Result<&[Box<[u8]>], Fault> {
        match Self::required(key, self.get(key))? {
            Value::Strings(v) => Ok(v),
            value => Err(self.wrong(key, value, "an array of strings")),
        }
    }

    pub(crate) fn integers(&self, key: &str) -> Result<&[i64], Fault> {
        match Self::required(key, self.get(key))? {
            Value::Integers(v) => Ok(v),
            value => Err(self.wrong(key, value, "an array of whole numbers")),
        }
    }

    pub(crate) fn floats(&self, key: &str) -> Result<&[f64], Fault> {
        match Self::required(key, self.get(key))? {
            Value::Floats(v) => Ok(v),
            value => Err(self.wrong(key, value, "an array of floats")),
        }
    }
}
