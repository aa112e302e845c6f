//! Blocks of GGUF files in the formats of drafts.
//!
//! | blocks | format | exact |
//! | --- | --- | --- |
//! | Q8_0 | int8-g32 | yes, unless a code is −128, which no quantizer writes |
//! | Q4_0 | int4-g32 | yes |
//! | Q4_1 | int4a-g32 | codes and scales; offsets, minimum + 8 · scale, are rounded to f16 |
//! | Q4_K | int4a-g32 | codes; scales, the product of a half and six bits, and offsets are rounded to f16 |
//!
//! An offset is off by at most 2⁻¹¹ of itself, a weight of Q4_K by eight such parts of its scale besides.

use half::f16;
use rewind_formats::ggml::GgmlType;
use rewind_formats::{Format, Group, PackError, Packed, Scales};

/// Weights of a group.
const LEN: usize = Group::G32.len();

/// The format that keeps the codes of these blocks, in rows of so many columns, if there is one.
pub(crate) fn format(ty: GgmlType, cols: usize) -> Option<Format> {
    // Otherwise blocks would run over the ends of rows.
    if !cols.is_multiple_of(ty.block_len()) {
        return None;
    }
    match ty {
        GgmlType::Q8_0 => Some(Format::Int8Group(Group::G32)),
        GgmlType::Q4_0 => Some(Format::Int4Group(Group::G32)),
        GgmlType::Q4_1 | GgmlType::Q4K => Some(Format::Int4Affine(Group::G32)),
        _ => None,
    }
}

/// The matrix in that format; `None` if there is none, or if it lacks a code or the range of an offset.
///
/// `bytes` are as many whole blocks as `rows` of `cols` take; the caller has seen to it.
pub(crate) fn packed(
    ty: GgmlType,
    rows: usize,
    cols: usize,
    bytes: &[u8],
) -> Result<Option<Packed>, PackError> {
    let Some(format) = format(ty, cols) else { return Ok(None) };
    let mut groups = Groups::default();
    match ty {
        GgmlType::Q8_0 => bytes.as_chunks().0.iter().for_each(|block| groups.q8_0(block)),
        GgmlType::Q4_0 => bytes.as_chunks().0.iter().for_each(|block| groups.q4_0(block)),
        GgmlType::Q4_1 => bytes.as_chunks().0.iter().for_each(|block| groups.q4_1(block)),
        _ => bytes.as_chunks().0.iter().for_each(|block| groups.q4_k(block)),
    }
    let Groups { codes, scales, offsets } = groups;
    if ty == GgmlType::Q8_0 && codes.contains(&0x80) {
        return Ok(None);
    }
    let finite = |numbers: &[f16]| numbers.iter().all(|number| number.is_finite());
    // What is infinite only by the rounding here can still be read in another way.
    let rounded = !offsets.is_empty();
    if rounded && (!finite(&offsets) || !finite(&scales)) {
        return Ok(None);
    }
    let scales = match format {
        Format::Int4Affine(_) => Scales::Affine { scales: scales.into(), offsets: offsets.into() },
        _ => Scales::PerGroup(scales.into()),
    };
    Packed::from_parts(format, rows, cols, codes, scales).map(Some)
}

/// Groups in the canonical layout, one after the other.
#[derive(Default)]
struct Groups {
    codes: Vec<u8>,
    scales: Vec<f16>,
    offsets: Vec<f16>,
}

impl Groups {
    fn q8_0(&mut self, block: &[u8; 34]) {
        self.scales.push(half(block, 0));
        self.codes.extend_from_slice(&block[2..]);
    }

    fn q4_0(&mut self, block: &[u8; 18]) {
        self.scales.push(half(block, 0));
        self.nibbles(&block[2..]);
    }

    fn q4_1(&mut self, block: &[u8; 20]) {
        let (scale, minimum) = (half(block, 0), half(block, 2));
        self.scales.push(scale);
        // Code 0 is the eighth from the lowest.
        self.offsets.push(f16::from_f32(minimum.to_f32() + 8.0 * scale.to_f32()));
        self.nibbles(&block[4..]);
    }

    fn q4_k(&mut self, block: &[u8; 144]) {
        let (d, dmin) = (half(block, 0).to_f32(), half(block, 2).to_f32());
        let (scales, codes) = block[4..].split_at(12);
        for sub in 0..8 {
            let (scale, minimum) = six_bits(scales, sub);
            let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
            self.scales.push(f16::from_f32(scale));
            self.offsets.push(f16::from_f32(8.0 * scale - minimum));
            // Two of them share 32 bytes: one has the low nibbles, the next the high ones.
            let shift = sub % 2 * 4;
            let (pairs, _) = codes[sub / 2 * LEN..][..LEN].as_chunks::<2>();
            self.codes.extend(pairs.iter().map(|&[a, b]| a >> shift & 15 | (b >> shift & 15) << 4));
        }
    }

    /// Sixteen bytes, of which low nibbles are the first sixteen codes and high ones the others.
    fn nibbles(&mut self, bytes: &[u8]) {
        let (pairs, _) = bytes.as_chunks::<2>();
        self.codes.extend(pairs.iter().map(|&[a, b]| a & 15 | b << 4));
        self.codes.extend(pairs.iter().map(|&[a, b]| a >> 4 | b & 0xf0));
    }
}

fn half(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// Scale and minimum of sub-block `i` of 8, as in `ggml-common.h`: the first four of each are the low bits of bytes
/// 0..4 and 4..8; of the last four, bytes 8..12 hold the low four bits and the spare bits of the others the high two.
fn six_bits(packed: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        return (packed[i] & 63, packed[i + 4] & 63);
    }
    let low = packed[i + 4];
    (low & 15 | (packed[i - 4] >> 6) << 4, low >> 4 | (packed[i] >> 6) << 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of blocks whose halves, at the start, are 2⁻⁶ times small numbers.
    fn blocks(ty: GgmlType, count: usize) -> Vec<u8> {
        let mut state = 7_u32;
        let mut out = Vec::new();
        for _ in 0..count {
            let start = out.len();
            out.extend((0..ty.block_bytes()).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Never -128.
                (state >> 24) as u8 | 1
            }));
            let halves = if ty.block_bytes() > 34 || ty == GgmlType::Q4_1 { 2 } else { 1 };
            for i in 0..halves {
                let number = f16::from_f32((1 + state % 97) as f32 / 1024.0);
                let at = start + 2 * i;
                out[at..at + 2].copy_from_slice(&number.to_le_bytes());
            }
        }
        out
    }

    #[test]
    fn values_are_those_of_the_blocks() {
        let (rows, cols) = (3, 512);
        for ty in [GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q4K] {
            let bytes = blocks(ty, rows * cols / ty.block_len());
            let mut expected = vec![0.0; rows * cols];
            ty.dequantize(&bytes, &mut expected).unwrap();
            let packed = packed(ty, rows, cols, &bytes).unwrap().unwrap();
            assert_eq!(Some(packed.format()), format(ty, cols));
            for row in 0..rows {
                for col in 0..cols {
                    let (found, expected) = (packed.value(row, col), expected[row * cols + col]);
                    let (scale, offset) = (packed.scale(row, col), packed.offset(row, col));
                    let part = 1.0 / 2048.0;
                    let bound = match ty {
                        GgmlType::Q4_1 => part * offset.abs(),
                        GgmlType::Q4K => part * (8.0 * scale.abs() + offset.abs()),
                        _ => 0.0,
                    };
                    let off = (found - expected).abs();
                    assert!(off <= bound * 1.01, "{ty} {row} {col}: {found} for {expected}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_kept_is_left() {
        let mut bytes = blocks(GgmlType::Q8_0, 2);
        bytes[40] = 0x80;
        assert_eq!(packed(GgmlType::Q8_0, 1, 64, &bytes), Ok(None));
        assert_eq!(format(GgmlType::Q6K, 256), None);
        assert_eq!(format(GgmlType::Q4K, 32), None);
        // A scale that is no number is named.
        let mut bytes = blocks(GgmlType::Q4_0, 2);
        bytes[18..20].copy_from_slice(&f16::NAN.to_le_bytes());
        let error = packed(GgmlType::Q4_0, 2, 32, &bytes).unwrap_err();
        assert!(matches!(error, PackError::Scale { row: 1, .. }), "{error}");
    }
}
