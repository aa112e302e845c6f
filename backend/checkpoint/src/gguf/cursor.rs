//! Bounds-checked reading of little-endian values.

use crate::error::Fault;
use crate::gguf::Value;

/// Longest array; the largest vocabularies have under 300,000 entries.
const MAX_ARRAY: u64 = 1 << 24;
/// Longest string in bytes; whole tokenizer files are embedded as one.
const MAX_STRING: u64 = 1 << 26;

// Numbers of the value types.
const UINT8: u32 = 0;
const INT8: u32 = 1;
const UINT16: u32 = 2;
const INT16: u32 = 3;
const UINT32: u32 = 4;
const INT32: u32 = 5;
pub(super) const FLOAT32: u32 = 6;
const BOOL: u32 = 7;
pub(super) const STRING: u32 = 8;
pub(super) const ARRAY: u32 = 9;
const UINT64: u32 = 10;
const INT64: u32 = 11;
pub(super) const FLOAT64: u32 = 12;

/// A position in a file. `at` says what is being read, for messages.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    pub(super) fn take(&mut self, at: &str, count: usize) -> Result<&'a [u8], Fault> {
        let Some(bytes) = self.bytes[self.position..].get(..count) else {
            return Err(Fault::malformed(
                at,
                format!(
                    "needs {count} bytes at offset {}, but the file ends at {}",
                    self.position,
                    self.bytes.len()
                ),
            ));
        };
        self.position += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, at: &str) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(at, N)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, at: &str) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array(at)?))
    }

    pub(super) fn u64(&mut self, at: &str) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array(at)?))
    }

    pub(super) fn string(&mut self, at: &str) -> Result<&'a [u8], Fault> {
        let length = self.u64(at)?;
        if length > MAX_STRING {
            return Err(Fault::malformed(
                at,
                format!("has a string of {length} bytes, more than the limit {MAX_STRING}"),
            ));
        }
        self.take(at, length as usize)
    }

    /// Checks that an array of `count` elements of type `ty` can be in the rest of the file.
    pub(super) fn check_array(&self, ty: u32, count: u64, at: &str) -> Result<usize, Fault> {
        let least = match ty {
            UINT8 | INT8 | BOOL => 1,
            UINT16 | INT16 => 2,
            UINT32 | INT32 | FLOAT32 => 4,
            // A string takes at least its length.
            UINT64 | INT64 | FLOAT64 | STRING => 8,
            ARRAY => return Err(Fault::malformed(at, "is an array of arrays")),
            _ => return Err(unknown_type(ty, at)),
        };
        // The count is at most 2²⁴, so the product does not overflow.
        if count > MAX_ARRAY || count * least > self.left() as u64 {
            return Err(Fault::malformed(
                at,
                format!(
                    "is an array of {count} elements, more than the limit {MAX_ARRAY} or the {} \
                     bytes left in the file",
                    self.left()
                ),
            ));
        }
        Ok(count as usize)
    }

    pub(super) fn scalar(&mut self, ty: u32, at: &str) -> Result<Value, Fault> {
        Ok(match ty {
            UINT8 => Value::Unsigned(self.array::<1>(at)?[0].into()),
            INT8 => Value::Signed(i8::from_le_bytes(self.array(at)?).into()),
            UINT16 => Value::Unsigned(u16::from_le_bytes(self.array(at)?).into()),
            INT16 => Value::Signed(i16::from_le_bytes(self.array(at)?).into()),
            UINT32 => Value::Unsigned(u32::from_le_bytes(self.array(at)?).into()),
            INT32 => Value::Signed(i32::from_le_bytes(self.array(at)?).into()),
            FLOAT32 => Value::Float(f32::from_le_bytes(self.array(at)?).into()),
            FLOAT64 => Value::Float(f64::from_le_bytes(self.array(at)?)),
            UINT64 => Value::Unsigned(u64::from_le_bytes(self.array(at)?)),
            INT64 => Value::Signed(i64::from_le_bytes(self.array(at)?)),
            STRING => Value::String(self.string(at)?.into()),
            BOOL => match self.array::<1>(at)? {
                [byte @ (0 | 1)] => Value::Bool(byte == 1),
                [byte] => return Err(Fault::malformed(at, format!("is a boolean of {byte}"))),
            },
            _ => return Err(unknown_type(ty, at)),
        })
    }
}

fn unknown_type(ty: u32, at: &str) -> Fault {
    Fault::malformed(at, format!("has value type {ty}; 0 to 12 are known"))
}
