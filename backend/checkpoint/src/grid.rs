//! Matrices of integer codes on evenly spaced grids, as most quantizers write them.
//!
//! Whatever their files look like, their weights are `(code − zero) · scale`, with scale and zero for each group of
//! a row. Readers bring them here; here is decided which format of drafts that is.

use half::f16;
use rewind_formats::{Format, Group, PackError, Packed, Scales};

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    Four,
    Eight,
}

impl Bits {
    /// Codes in 32 bits.
    pub(crate) const fn in_word(self) -> usize {
        32 / self.count()
    }

    pub(crate) const fn count(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The code in the middle, which stands for zero in symmetric grids.
    pub(crate) const fn middle(self) -> i16 {
        1 << (self.count() - 1)
    }

    /// The code at place `i` of a word, counted from its low end.
    pub(crate) const fn code(self, word: u32, i: usize) -> u8 {
        let mask = match self {
            Self::Four => 0xf,
            Self::Eight => 0xff,
        };
        (word >> (i * self.count()) & mask) as u8
    }
}

/// Scales and zeros of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Grids {
    pub(crate) bits: Bits,
    /// Outputs.
    pub(crate) rows: usize,
    /// Inputs.
    pub(crate) cols: usize,
    /// Columns that share a scale; at most `cols`.
    pub(crate) group: usize,
    /// `[row][group]`.
    pub(crate) scales: Vec<f32>,
    /// `[row][group]`: the unsigned code that stands for zero.
    pub(crate) zeros: Vec<i16>,
    /// The group of each column, where they do not follow each other.
    pub(crate) order: Option<Vec<u32>>,
}

/// Largest relative error of an f16 that is not subnormal.
const HALF_ROUNDING: f32 = 1.0 / 2048.0;

impl Grids {
    /// Groups of a row.
    pub(crate) fn per_row(cols: usize, group: usize) -> usize {
        cols.div_ceil(group)
    }

    /// The format that keeps these codes, if there is one: 4 bits with and without zeros, 8 bits without.
    ///
    /// Groups may be 32, 64, a multiple of 128, or whole rows. Scales must be f16, or round to it with a relative
    /// error of at most 2⁻¹¹, but for those of whole rows in 8 bits, which stay f32.
    pub(crate) fn format(&self) -> Option<Format> {
        if self.order.is_some() {
            return None;
        }
        let whole = self.group >= self.cols;
        let symmetric = self.zeros.iter().all(|&zero| zero == self.bits.middle());
        if self.bits == Bits::Eight && whole && symmetric {
            return Some(Format::Int8);
        }
        let group = match self.group {
            32 if !whole => Group::G32,
            64 if !whole => Group::G64,
            group if whole || group.is_multiple_of(128) => Group::G128,
            _ => return None,
        };
        let half = |&scale: &f32| {
            let rounded = f16::from_f32(scale).to_f32();
            (rounded - scale).abs() <= scale.abs() * HALF_ROUNDING && rounded.is_finite()
        };
        if !self.scales.iter().all(half) {
            return None;
        }
        match (self.bits, symmetric) {
            (Bits::Four, true) => Some(Format::Int4Group(group)),
            (Bits::Eight, true) => Some(Format::Int8Group(group)),
            (Bits::Four, false) => {
                let offsets = self.scales.iter().zip(&self.zeros);
                let mut offsets = offsets.map(|(&scale, &zero)| self.offset(scale, zero));
                offsets.all(|offset| offset.is_finite()).then_some(Format::Int4Affine(group))
            }
            (Bits::Eight, false) => None,
        }
    }

    /// The value of our code 0, which is their middle one, rounded to f16.
    fn offset(&self, scale: f32, zero: i16) -> f16 {
        f16::from_f32(f32::from(self.bits.middle() - zero) * scale)
    }

    /// The matrix in [`format`](Self::format); `None` if there is none, or if it lacks one of the codes.
    ///
    /// `codes` are unsigned, row-major, one to a byte.
    pub(crate) fn packed(&self, codes: &[u8]) -> Result<Option<Packed>, PackError> {
        let Some(format) = self.format() else { return Ok(None) };
        let codes: Vec<u8> = match self.bits {
            Bits::Four => codes
                .chunks(self.cols)
                .flat_map(|row| row.chunks(2))
                .map(|pair| match *pair {
                    [low, high] => low | high << 4,
                    [last, ..] => last | 8 << 4,
                    [] => 0,
                })
                .collect(),
            // -128 is no code of ours.
            Bits::Eight if codes.contains(&0) => return Ok(None),
            Bits::Eight => codes.iter().map(|code| code ^ 0x80).collect(),
        };
        let half = |scale: f32, _: i16| f16::from_f32(scale);
        let scales = match format {
            Format::Int8 => Scales::PerRow(self.scales.clone().into()),
            Format::Int4Affine(group) => Scales::Affine {
                scales: self.spread(group, half),
                offsets: self.spread(group, |scale, zero| self.offset(scale, zero)),
            },
            format => match format.group() {
                Some(group) => Scales::PerGroup(self.spread(group, half)),
                None => return Ok(None),
            },
        };
        Packed::from_parts(format, self.rows, self.cols, codes, scales).map(Some)
    }

    /// A number for each group of `group` columns, out of scale and zero of the group of ours that it lies in.
    fn spread(&self, group: Group, number: impl Fn(f32, i16) -> f16) -> Box<[f16]> {
        let ours = Self::per_row(self.cols, self.group);
        let of_row = |row: usize| {
            let number = &number;
            (0..self.cols.div_ceil(group.len())).map(move |g| {
                let at = row * ours + g * group.len() / self.group;
                number(self.scales[at], self.zeros[at])
            })
        };
        (0..self.rows).flat_map(of_row).collect()
    }

    /// All weights, each rounded once.
    pub(crate) fn dequantize(&self, codes: &[u8]) -> Vec<f16> {
        let ours = Self::per_row(self.cols, self.group);
        let group = |col: usize| match &self.order {
            Some(order) => order[col] as usize,
            None => col / self.group,
        };
        let mut out = Vec::with_capacity(codes.len());
        for (row, codes) in codes.chunks(self.cols).enumerate() {
            out.extend(codes.iter().enumerate().map(|(col, &code)| {
                let at = row * ours + group(col);
                f16::from_f32(f32::from(i16::from(code) - self.zeros[at]) * self.scales[at])
            }));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grids(bits: Bits, cols: usize, group: usize, zero: i16) -> Grids {
        let count = 2 * Grids::per_row(cols, group);
        let scales = (0..count).map(|i| (1 + i) as f32 / 64.0).collect();
        Grids { bits, rows: 2, cols, group, scales, zeros: vec![zero; count], order: None }
    }

    fn codes(grids: &Grids) -> Vec<u8> {
        let most = 2 * grids.bits.middle() - 1;
        (0..2 * grids.cols).map(|i| (1 + i * 7 % most as usize) as u8).collect()
    }

    #[test]
    fn formats_are_those_that_keep_the_codes() {
        let name = |grids: &Grids| grids.format().map(|format| format.to_string());
        for (bits, cols, group, zero, expected) in [
            (Bits::Four, 256, 32, 8, Some("int4-g32")),
            (Bits::Four, 200, 64, 8, Some("int4-g64")),
            (Bits::Four, 200, 128, 7, Some("int4a-g128")),
            (Bits::Four, 512, 256, 8, Some("int4-g128")),
            (Bits::Four, 96, 96, 8, Some("int4-g128")),
            (Bits::Four, 96, 16, 8, None),
            (Bits::Eight, 96, 96, 128, Some("int8")),
            (Bits::Eight, 96, 32, 128, Some("int8-g32")),
            (Bits::Eight, 96, 32, 127, None),
        ] {
            let grids = grids(bits, cols, group, zero);
            assert_eq!(name(&grids).as_deref(), expected, "{bits:?} {cols} {group} {zero}");
            let codes = codes(&grids);
            let Some(packed) = grids.packed(&codes).unwrap() else { continue };
            for row in 0..2 {
                for col in 0..cols {
                    let at = row * Grids::per_row(cols, group) + col / group;
                    let code = f32::from(codes[row * cols + col]) - f32::from(zero);
                    // All of these numbers are exact.
                    assert_eq!(packed.value(row, col), code * grids.scales[at]);
                }
            }
        }
    }

    #[test]
    fn what_no_format_holds_is_dequantized() {
        let mut shuffled = grids(Bits::Four, 64, 32, 8);
        shuffled.order = Some((0..64).map(|i| i % 2).collect());
        assert_eq!(shuffled.format(), None);
        let found = shuffled.dequantize(&[9; 128]);
        assert_eq!(found[0].to_f32(), shuffled.scales[0]);
        assert_eq!(found[1].to_f32(), shuffled.scales[1]);
        for bad in [1e-7, 1e6, f32::NAN] {
            let mut grids = grids(Bits::Four, 64, 32, 8);
            grids.scales[1] = bad;
            assert_eq!(grids.format(), None, "{bad}");
        }
        // Rounds by less than half a step of f16.
        let mut grids = grids(Bits::Four, 64, 32, 8);
        grids.scales[1] = 0.1;
        assert!(grids.format().is_some());
        let whole = self::grids(Bits::Eight, 64, 64, 128);
        assert_eq!(whole.packed(&[0; 128]).unwrap(), None);
    }
}
