//! Block layouts of GGML, the weight types of GGUF files, and their dequantization to f32.
//!
//! Rewind computes in its own [formats](crate::Format); these exist to read checkpoints. The
//! arithmetic is that of GGML's reference: f32, one operation after the other.
//! Layouts: `ggml-common.h` of the ggml project.

use std::fmt;

use half::{bf16, f16};

/// Element type of a GGUF tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GgmlType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 32 codes of 8 bits, scale.
    Q8_0,
    /// 32 codes of 4 bits, scale, symmetric.
    Q4_0,
    /// 32 codes of 4 bits, scale and minimum.
    Q4_1,
    /// 32 codes of 5 bits, scale, symmetric.
    Q5_0,
    /// 32 codes of 5 bits, scale and minimum.
    Q5_1,
    /// 256 codes of 4 bits in 8 sub-blocks, whose scales and minima have 6 bits.
    Q4K,
    /// 256 codes of 5 bits in 8 sub-blocks, whose scales and minima have 6 bits.
    Q5K,
    /// 256 codes of 6 bits in 16 sub-blocks, whose scales have 8 bits.
    Q6K,
}

impl GgmlType {
    /// Every type that can be read.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The type that a GGUF file writes as `id`.
    ///
    /// # Errors
    ///
    /// Types that Rewind cannot read, named where the number is known.
    pub fn from_id(id: u32) -> Result<Self, GgmlError> {
        Self::ALL
            .into_iter()
            .find(|ty| ty.id() == id)
            .ok_or(GgmlError::Unsupported { id, name: name_of_unsupported(id) })
    }

    /// The number of this type in GGUF files.
    pub const fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// Number of elements of one block; 1 for floats.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 2 + 32,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 2 + 2 + 4 + 16,
            Self::Q4K => 2 + 2 + 12 + 128,
            Self::Q5K => 2 + 2 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Whether elements come in quantized blocks.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes that `elements` take; `None` if that is no whole number of blocks or overflows.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Dequantizes whole blocks.
    ///
    /// # Errors
    ///
    /// If `out` is not a whole number of blocks, or `bytes` is not exactly what they take.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) -> Result<(), GgmlError> {
        if self.bytes(out.len()) != Some(bytes.len()) {
            return Err(GgmlError::Length { ty: self, bytes: bytes.len(), elements: out.len() });
        }
        match self {
            Self::F32 => blocks(bytes, out, |b: &[u8; 4], out: &mut [f32; 1]| {
                out[0] = f32::from_le_bytes(*b);
            }),
            Self::F16 => blocks(bytes, out, |b: &[u8; 2], out: &mut [f32; 1]| {
                out[0] = f16::from_le_bytes(*b).to_f32();
            }),
            Self::Bf16 => blocks(bytes, out, |b: &[u8; 2], out: &mut [f32; 1]| {
                out[0] = bf16::from_le_bytes(*b).to_f32();
            }),
            Self::Q8_0 => blocks(bytes, out, q8_0),
            Self::Q4_0 => blocks(bytes, out, q4_0),
            Self::Q4_1 => blocks(bytes, out, q4_1),
            Self::Q5_0 => blocks(bytes, out, q5_0),
            Self::Q5_1 => blocks(bytes, out, q5_1),
            Self::Q4K => blocks(bytes, out, q4_k),
            Self::Q5K => blocks(bytes, out, q5_k),
            Self::Q6K => blocks(bytes, out, q6_k),
        }
        Ok(())
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

/// Why GGML data could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgmlError {
    /// No such type, or one that Rewind does not read.
    #[error(
        "GGML type {id} ({name}) is not supported; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, \
         Q5_0, Q5_1, Q4_K, Q5_K, Q6_K"
    )]
    Unsupported {
        /// Number in the file.
        id: u32,
        /// What GGML calls it.
        name: &'static str,
    },
    /// Bytes and elements do not belong together.
    #[error(
        "{bytes} bytes cannot hold {elements} elements of {ty}, which come {} to {} bytes",
        ty.block_len(), ty.block_bytes()
    )]
    Length {
        /// Type of the elements.
        ty: GgmlType,
        /// Bytes given.
        bytes: usize,
        /// Elements asked for.
        elements: usize,
    },
}

fn name_of_unsupported(id: u32) -> &'static str {
    match id {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
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
        _ => "unknown",
    }
}

fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    dequantize: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        dequantize(block, out);
    }
}

/// Cuts the half-precision number at the front of `block` off.
fn half(block: &[u8]) -> (f32, &[u8]) {
    (f16::from_le_bytes([block[0], block[1]]).to_f32(), &block[2..])
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let (d, codes) = half(block);
    for (x, &q) in out.iter_mut().zip(codes) {
        *x = d * f32::from(q as i8);
    }
}

/// Hands the 4-bit codes of 16 bytes to `value`: low nibbles are elements 0..16, high ones 16..32.
fn nibbles(codes: &[u8], out: &mut [f32; 32], value: impl Fn(usize, u8) -> f32) {
    for (i, &byte) in codes.iter().enumerate() {
        out[i] = value(i, byte & 15);
        out[i + 16] = value(i + 16, byte >> 4);
    }
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let (d, codes) = half(block);
    nibbles(codes, out, |_, q| d * (f32::from(q) - 8.0));
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, rest) = half(block);
    let (min, codes) = half(rest);
    nibbles(codes, out, |_, q| d * f32::from(q) + min);
}

/// The fifth bits of 32 codes, one to an element, moved to where they count 16.
fn fifth_bits(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    move |i| ((bits >> i) & 1) as u8 * 16
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let (d, rest) = half(block);
    let fifth = fifth_bits(rest);
    nibbles(&rest[4..], out, |i, q| d * (f32::from(q | fifth(i)) - 16.0));
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, rest) = half(block);
    let (min, rest) = half(rest);
    let fifth = fifth_bits(rest);
    nibbles(&rest[4..], out, |i, q| d * f32::from(q | fifth(i)) + min);
}

/// Scale and minimum of sub-block `i` of 8, out of the 12 bytes that hold sixteen 6-bit numbers:
/// the first four of each are the low bits of bytes 0..4 and 4..8; of the last four, bytes 8..12
/// hold the low four bits and the spare bits of the others the high two.
fn six_bits(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, min) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        let low = packed[i + 4];
        (low & 15 | (packed[i - 4] >> 6) << 4, low >> 4 | (packed[i] >> 6) << 4)
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, rest) = half(block);
    let (dmin, rest) = half(rest);
    let (scales, codes) = rest.split_at(12);
    // Sub-blocks 2j and 2j + 1 share 32 bytes: low nibbles, then high ones.
    for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = six_bits(scales, sub);
        let (scale, min) = (d * scale, dmin * min);
        let codes = &codes[sub / 2 * 32..][..32];
        for (x, &byte) in out.iter_mut().zip(codes) {
            let q = (byte >> (sub % 2 * 4)) & 15;
            *x = scale * f32::from(q) - min;
        }
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, rest) = half(block);
    let (dmin, rest) = half(rest);
    let (scales, rest) = rest.split_at(12);
    let (high, codes) = rest.split_at(32);
    for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = six_bits(scales, sub);
        let (scale, min) = (d * scale, dmin * min);
        let codes = &codes[sub / 2 * 32..][..32];
        for ((x, &byte), &high) in out.iter_mut().zip(codes).zip(high) {
            let q = (byte >> (sub % 2 * 4)) & 15 | ((high >> sub) & 1) << 4;
            *x = scale * f32::from(q) - min;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let (d, _) = half(d);
    // Each half of the block takes 64 bytes of low nibbles and 32 of high bit pairs; within it, four
    // runs of 32 elements, each with two scales.
    for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, quarter) = (run / 4, run % 4);
        let low = &low[half * 64 + quarter % 2 * 32..][..32];
        let high = &high[half * 32..][..32];
        for (i, x) in out.iter_mut().enumerate() {
            let q = (low[i] >> (quarter / 2 * 4)) & 15 | ((high[i] >> (quarter * 2)) & 3) << 4;
            let scale = scales[run * 2 + i / 16] as i8;
            *x = d * f32::from(scale) * (f32::from(q) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip() {
        for ty in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(ty.id()), Ok(ty));
        }
    }

    #[test]
    fn other_ids_are_named() {
        let error = GgmlType::from_id(10).unwrap_err().to_string();
        assert!(error.starts_with("GGML type 10 (Q2_K) is not supported"), "{error}");
        let error = GgmlType::from_id(77).unwrap_err().to_string();
        assert!(error.starts_with("GGML type 77 (unknown)"), "{error}");
    }

    #[test]
    fn lengths_are_checked() {
        for ty in GgmlType::ALL {
            let (len, bytes) = (ty.block_len(), ty.block_bytes());
            let data = vec![0; 3 * bytes];
            assert_eq!(ty.dequantize(&data, &mut vec![0.0; 3 * len]), Ok(()));
            assert!(ty.dequantize(&data[1..], &mut vec![0.0; 3 * len]).is_err());
            assert!(ty.dequantize(&data, &mut vec![0.0; 2 * len]).is_err());
            assert!(ty.dequantize(&data, &mut vec![0.0; 3 * len + 1]).is_err());
        }
        assert_eq!(GgmlType::F32.bytes(usize::MAX), None);
        assert_eq!(GgmlType::Q4K.bytes(usize::MAX / 256 * 256), Some(usize::MAX / 256 * 144));
    }
}
