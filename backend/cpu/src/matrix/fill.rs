//! Filling a matrix, on any number of threads.

use half::{bf16, f16};
use rewind_formats::{Format, PackError, Packed};

use super::scales::PartScales;
use super::{Data, Elements, Layout, Matrix};
use crate::arch::BLOCK;

impl Matrix {
    /// Cuts the matrix into ascending runs of `rows` rows, whole panels, that may be filled on
    /// different threads. The last one may be shorter.
    pub(crate) fn parts_mut(&mut self, rows: usize) -> Vec<PartMut<'_>> {
        let Self { layout, cols, rows: all, .. } = *self;
        assert!(rows.is_multiple_of(layout.width), "{rows} rows in panels of {}", layout.width);
        let mut rest = match &mut self.data {
            Data::F32(data) => PartData::F32(data),
            Data::F16(data) => PartData::F16(data),
            Data::Bf16(data) => PartData::Bf16(data),
            Data::Fp8(codes, scales) => PartData::Fp8(codes, PartScales::Row(scales)),
            Data::Nf4(codes, scales) => PartData::Nf4(codes, scales.part()),
            Data::Int8(codes, scales) => PartData::Int8(codes, scales.part()),
            Data::Int6(codes, scales) => PartData::Int6(codes, scales.part()),
            Data::Int4(codes, scales) => PartData::Int4(codes, scales.part()),
        };
        let firsts = (0..all).step_by(rows);
        firsts
            .map(|first| {
                let len = rows.min(all - first);
                let padded = len.next_multiple_of(layout.width);
                let (data, tail) = std::mem::take(&mut rest).split(padded, layout.stride);
                rest = tail;
                PartMut { first, rows: len, cols, layout, data }
            })
            .collect()
    }
}

/// A run of rows of a [`Matrix`], to be filled.
#[derive(Debug)]
pub(crate) struct PartMut<'a> {
    first: usize,
    rows: usize,
    cols: usize,
    layout: Layout,
    data: PartData<'a>,
}

#[derive(Debug)]
enum PartData<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    Bf16(&'a mut [bf16]),
    Fp8(&'a mut [u8], PartScales<'a>),
    Nf4(&'a mut [u8], PartScales<'a>),
    Int8(&'a mut [i8], PartScales<'a>),
    Int6(&'a mut [u8], PartScales<'a>),
    Int4(&'a mut [u8], PartScales<'a>),
}

impl Default for PartData<'_> {
    fn default() -> Self {
        Self::F32(&mut [])
    }
}

impl<'a> PartData<'a> {
    fn split(self, rows: usize, stride: usize) -> (Self, Self) {
        let len = rows * stride;
        match self {
            Self::F32(data) => pair(data.split_at_mut(len), Self::F32),
            Self::F16(data) => pair(data.split_at_mut(len), Self::F16),
            Self::Bf16(data) => pair(data.split_at_mut(len), Self::Bf16),
            Self::Fp8(codes, scales) => {
                let ((codes, more), (scales, rest)) = (codes.split_at_mut(len), scales.split(rows));
                (Self::Fp8(codes, scales), Self::Fp8(more, rest))
            }
            Self::Nf4(codes, scales) => {
                let (codes, more) = codes.split_at_mut(len / 2);
                let (scales, rest) = scales.split(rows);
                (Self::Nf4(codes, scales), Self::Nf4(more, rest))
            }
            Self::Int8(codes, scales) => {
                let ((codes, more), (scales, rest)) = (codes.split_at_mut(len), scales.split(rows));
                (Self::Int8(codes, scales), Self::Int8(more, rest))
            }
            Self::Int6(codes, scales) => {
                let (codes, more) = codes.split_at_mut(len / 4 * 3);
                let (scales, rest) = scales.split(rows);
                (Self::Int6(codes, scales), Self::Int6(more, rest))
            }
            Self::Int4(codes, scales) => {
                let (codes, more) = codes.split_at_mut(len / 2);
                let (scales, rest) = scales.split(rows);
                (Self::Int4(codes, scales), Self::Int4(more, rest))
            }
        }
    }
}

fn pair<T, U>((a, b): (T, T), wrap: impl Fn(T) -> U) -> (U, U) {
    (wrap(a), wrap(b))
}

impl PartMut<'_> {
    /// The rows of the matrix that it holds.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.rows
    }

    /// Takes rows, from the part's row `at` on, exactly as the checkpoint has them, upcast to `f32` if
    /// that is the storage.
    ///
    /// The storage is the checkpoint's own type or `f32`; the caller has seen to it.
    pub(crate) fn copy(&mut self, at: usize, source: Elements<'_>) {
        let (cols, layout) = (self.cols, self.layout);
        match (&mut self.data, source) {
            (PartData::F32(to), Elements::F32(from)) => copy(to, layout, at, cols, from, |x| *x),
            (PartData::F32(to), Elements::F16(from)) => {
                copy(to, layout, at, cols, from, |x| x.to_f32());
            }
            (PartData::F32(to), Elements::Bf16(from)) => {
                copy(to, layout, at, cols, from, |x| x.to_f32());
            }
            (PartData::F32(to), from @ Elements::Packed(_)) => {
                copy(to, layout, at, cols, &from.to_f32(), |x| *x);
            }
            (PartData::F16(to), Elements::F16(from)) => copy(to, layout, at, cols, from, |x| *x),
            (PartData::Bf16(to), Elements::Bf16(from)) => copy(to, layout, at, cols, from, |x| *x),
            (to, from) => unreachable!("{to:?} cannot hold {from:?} exactly"),
        }
    }

    /// Quantizes rows, from the part's row `at` on.
    ///
    /// # Errors
    /// A weight is not finite or too large for the format; its row counts from the first given.
    pub(crate) fn quantize(
        &mut self,
        at: usize,
        format: Format,
        source: Elements<'_>,
    ) -> Result<(), PackError> {
        let values = source.to_f32();
        let rows = values.len() / self.cols;
        self.keep(at, &Packed::quantize(format, rows, self.cols, &values)?);
        Ok(())
    }

    /// Takes the codes and scales of packed rows, from the part's row `at` on.
    ///
    /// The storage is their format; the caller has seen to it.
    pub(crate) fn keep(&mut self, at: usize, packed: &Packed) {
        let (rows, cols, layout) = (packed.rows(), self.cols, self.layout);
        let codes = packed.codes();
        match &mut self.data {
            PartData::F32(_) => unreachable!("f32 is the format of no packed matrix"),
            PartData::F16(to) => {
                copy(to, layout, at, cols, codes.as_chunks().0, |b| f16::from_le_bytes(*b));
            }
            PartData::Bf16(to) => {
                copy(to, layout, at, cols, codes.as_chunks().0, |b| bf16::from_le_bytes(*b));
            }
            PartData::Fp8(to, scales) => {
                copy(to, layout, at, cols, codes, |code| *code);
                scales.copy(layout, at, packed.scales());
            }
            PartData::Nf4(to, scales) => {
                for row in 0..rows {
                    numbers(to, layout, at + row, cols, packed.row_codes(row));
                }
                scales.copy(layout, at, packed.scales());
            }
            PartData::Int8(to, scales) => {
                for (row, codes) in codes.chunks(cols).enumerate() {
                    eights(to, layout, at + row, codes);
                }
                scales.copy(layout, at, packed.scales());
            }
            PartData::Int6(to, scales) => {
                for row in 0..rows {
                    sixes(to, layout, at + row, cols, packed.row_codes(row));
                }
                scales.copy(layout, at, packed.scales());
            }
            PartData::Int4(to, scales) => {
                for row in 0..rows {
                    fours(to, layout, at + row, cols, packed.row_codes(row));
                }
                scales.copy(layout, at, packed.scales());
            }
        }
    }
}

/// Puts the NF4 codes of a row of `cols`, two neighbours to a byte, in place.
fn numbers(to: &mut [u8], layout: Layout, row: usize, cols: usize, codes: &[u8]) {
    // Pairs are what they are in the matrix.
    for (col, byte) in (0..cols).step_by(2).zip(codes) {
        to[layout.number(row, col).0] = *byte;
    }
}

/// Puts the 8-bit codes of a row in place.
fn eights(to: &mut [i8], layout: Layout, row: usize, codes: &[u8]) {
    // Quads are whole in the matrix, so four codes go at a time.
    let (quads, rest) = codes.as_chunks::<4>();
    for (quad, codes) in quads.iter().enumerate() {
        let to = &mut to[layout.eight(row, 4 * quad)..][..4];
        to.copy_from_slice(&codes.map(u8::cast_signed));
    }
    let first = codes.len() - rest.len();
    for (col, code) in rest.iter().enumerate() {
        to[layout.eight(row, first + col)] = code.cast_signed();
    }
}

/// Puts the 6-bit codes of a row of `cols`, four to three bytes, in place.
fn sixes(to: &mut [u8], layout: Layout, row: usize, cols: usize, codes: &[u8]) {
    for (quad, codes) in codes.chunks(3).enumerate() {
        let [a, b, c] = std::array::from_fn(|i| codes.get(i).copied().unwrap_or(0));
        let bits = u32::from_le_bytes([a, b, c, 0]);
        for (j, col) in (4 * quad..(4 * quad + 4).min(cols)).enumerate() {
            let code = (bits >> (6 * j) & 63) as u8;
            let [(low, low_shift), (high, high_shift)] = layout.six(row, col);
            to[low] |= (code & 15) << low_shift;
            to[high] |= (code >> 4) << high_shift;
        }
    }
}

/// Puts the 4-bit codes of a row of `cols`, two neighbours to a byte, in place.
fn fours(to: &mut [u8], layout: Layout, row: usize, cols: usize, codes: &[u8]) {
    let whole = cols / BLOCK;
    let (blocks, _) = codes.as_chunks::<{ BLOCK / 2 }>();
    for (block, codes) in blocks.iter().take(whole).enumerate() {
        let (low, high) = codes.split_at(BLOCK / 4);
        let quads = low.as_chunks::<2>().0.iter().zip(high.as_chunks::<2>().0);
        for (quad, (low, high)) in quads.enumerate() {
            let (index, _) = layout.four(row, block * BLOCK + 4 * quad);
            to[index..][..4].copy_from_slice(&[
                low[0] & 15 | high[0] << 4,
                low[0] >> 4 | high[0] & 0xf0,
                low[1] & 15 | high[1] << 4,
                low[1] >> 4 | high[1] & 0xf0,
            ]);
        }
    }
    for col in whole * BLOCK..cols {
        let (index, shift) = layout.four(row, col);
        to[index] |= (codes[col / 2] >> (4 * (col % 2)) & 15) << shift;
    }
}

/// Puts rows of floats from row `at` of a part on.
fn copy<T, U>(
    to: &mut [T],
    layout: Layout,
    at: usize,
    cols: usize,
    from: &[U],
    convert: impl Fn(&U) -> T,
) {
    for (row, from) in from.chunks(cols).enumerate() {
        let first = layout.float(at + row, 0);
        let to = to[first..].iter_mut().step_by(layout.width);
        to.zip(from).for_each(|(to, from)| *to = convert(from));
    }
}
