//! Weight matrices as the kernels read them.
//!
//! Rows are outputs. Each is padded with zeros to whole blocks of 32 and starts at a multiple of a
//! block's bytes. 4-bit codes are rearranged within a block: byte i holds element i in its low nibble
//! and i + 16 in its high one, so that one shift and one mask give 32 codes in order. Scales stay in
//! 16 bits: they are a ninth of a 4-bit matrix, and a decode step is bound by its bytes.
//!
//! Rejected: interleaving eight rows, which saves the final lane sums but ties the layout to one
//! vector width.

use std::ops::Range;

use half::{bf16, f16};
use rewind_checkpoint::TensorData;
use rewind_formats::{Format, PackError, Packed, Scales};

use crate::aligned::Aligned;
use crate::arch::{BLOCK, LANES};

/// A matrix of weights.
#[derive(Debug)]
pub(crate) struct Matrix {
    storage: Storage,
    rows: usize,
    cols: usize,
    data: Data,
}

/// Elements, by kind.
#[derive(Debug)]
pub(crate) enum Data {
    /// Single precision.
    F32(Aligned<f32>),
    /// Half precision.
    F16(Aligned<f16>),
    /// bfloat16.
    Bf16(Aligned<bf16>),
    /// 8-bit codes.
    Int8(Aligned<i8>, BlockScales),
    /// 4-bit codes + 8, two to a byte.
    Int4(Aligned<u8>, BlockScales),
}

/// Scales of integer codes.
#[derive(Debug)]
pub(crate) enum BlockScales {
    /// One for a row.
    Row(Vec<f32>),
    /// One for `1 << shift` blocks of a row.
    Group {
        /// Row-major; a few zeros follow the last, so that eight may be read from any.
        values: Vec<f16>,
        /// Scales of a row.
        per_row: usize,
        /// log₂ of the blocks in a group.
        shift: u32,
    },
}

impl BlockScales {
    /// Scales of the blocks `8 * chunk ..` of a row; those past its end are anything finite.
    #[inline(always)]
    pub(crate) fn eight(&self, row: usize, chunk: usize) -> [f16; LANES] {
        match self {
            // Only groups are asked, see `row_scale`.
            Self::Row(_) => [f16::ONE; LANES],
            Self::Group { values, per_row, shift } => {
                let first = &values[row * per_row + ((chunk * LANES) >> shift)..];
                let mut eight = [f16::ZERO; LANES];
                match shift {
                    0 => eight.copy_from_slice(&first[..8]),
                    1 => spread::<4>(first, &mut eight),
                    _ => spread::<2>(first, &mut eight),
                }
                eight
            }
        }
    }

    /// The scale of a whole row, if it has one.
    #[inline(always)]
    pub(crate) fn row_scale(&self, row: usize) -> Option<f32> {
        match self {
            Self::Row(scales) => Some(scales[row]),
            Self::Group { .. } => None,
        }
    }

    /// The scale of one block.
    fn block(&self, row: usize, block: usize) -> f32 {
        match self {
            Self::Row(scales) => scales[row],
            Self::Group { values, per_row, shift } => {
                values[row * per_row + (block >> shift)].to_f32()
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Row(scales) => size_of_val::<[f32]>(scales),
            Self::Group { values, .. } => size_of_val::<[f16]>(values) - SPARE * size_of::<f16>(),
        }
    }
}

/// Scales that may be read behind the last one.
const SPARE: usize = LANES;

/// Repeats each of the first N scales 8 / N times.
#[inline(always)]
fn spread<const N: usize>(from: &[f16], to: &mut [f16; LANES]) {
    let from = &from[..N];
    for (i, to) in to.iter_mut().enumerate() {
        *to = from[i * N / LANES];
    }
}

/// How a matrix is to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Single precision, for checkpoints that have no shorter form.
    F32,
    /// One of the formats.
    Format(Format),
}

impl Matrix {
    /// A matrix of zeros.
    pub(crate) fn zeroed(storage: Storage, rows: usize, cols: usize) -> Self {
        let len = rows * cols.next_multiple_of(BLOCK);
        let data = match storage {
            Storage::F32 => Data::F32(Aligned::zeroed(len)),
            Storage::Format(Format::F16) => Data::F16(Aligned::zeroed(len)),
            Storage::Format(Format::Bf16) => Data::Bf16(Aligned::zeroed(len)),
            Storage::Format(format) => {
                let scales = match format.group() {
                    None => BlockScales::Row(vec![0.0; rows]),
                    Some(group) => {
                        let per_row = format.scales_per_row(cols);
                        BlockScales::Group {
                            values: vec![f16::ZERO; rows * per_row + SPARE],
                            per_row,
                            shift: (group.len() / BLOCK).ilog2(),
                        }
                    }
                };
                match format.code_bits() {
                    4 => Data::Int4(Aligned::zeroed(len / 2), scales),
                    _ => Data::Int8(Aligned::zeroed(len), scales),
                }
            }
        };
        Self { storage, rows, cols, data }
    }

    /// Name of the format.
    pub(crate) fn storage_name(&self) -> String {
        match self.storage {
            Storage::F32 => "f32".to_owned(),
            Storage::Format(format) => format.to_string(),
        }
    }

    /// Outputs.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn data(&self) -> &Data {
        &self.data
    }

    /// Elements of a row, padding included.
    pub(crate) fn stride(&self) -> usize {
        self.cols.next_multiple_of(BLOCK)
    }

    /// Whether kernels multiply it with 8-bit activations.
    pub(crate) fn is_integer(&self) -> bool {
        matches!(self.data, Data::Int8(..) | Data::Int4(..))
    }

    /// Memory of codes and scales, bytes.
    pub(crate) fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(data) => size_of_val::<[f32]>(data),
            Data::F16(data) => size_of_val::<[f16]>(data),
            Data::Bf16(data) => size_of_val::<[bf16]>(data),
            Data::Int8(codes, scales) => codes.len() + scales.bytes(),
            Data::Int4(codes, scales) => codes.len() + scales.bytes(),
        }
    }

    /// Writes the exact values of one row to the first `cols` elements of `out`.
    pub(crate) fn row_values(&self, row: usize, out: &mut [f32]) {
        let stride = self.stride();
        let out = &mut out[..self.cols];
        match &self.data {
            Data::F32(data) => out.copy_from_slice(&data[row * stride..][..self.cols]),
            Data::F16(data) => {
                out.iter_mut().zip(&data[row * stride..]).for_each(|(o, w)| *o = w.to_f32());
            }
            Data::Bf16(data) => {
                out.iter_mut().zip(&data[row * stride..]).for_each(|(o, w)| *o = w.to_f32());
            }
            Data::Int8(codes, scales) => {
                let codes = &codes[row * stride..][..stride];
                for (block, (out, codes)) in
                    out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).enumerate()
                {
                    let scale = scales.block(row, block);
                    out.iter_mut().zip(codes).for_each(|(o, &code)| *o = f32::from(code) * scale);
                }
            }
            Data::Int4(bytes, scales) => {
                let bytes = &bytes[row * stride / 2..][..stride / 2];
                let blocks = out.chunks_mut(BLOCK).zip(bytes.chunks(BLOCK / 2));
                for (block, (out, bytes)) in blocks.enumerate() {
                    let scale = scales.block(row, block);
                    for (i, o) in out.iter_mut().enumerate() {
                        let nibble = (bytes[i % 16] >> (4 * (i / 16))) & 15;
                        *o = (f32::from(nibble) - 8.0) * scale;
                    }
                }
            }
        }
    }

    /// Cuts the matrix into ascending runs of rows that may be filled on different threads.
    ///
    /// The lengths of the runs sum up to [`rows`](Self::rows).
    pub(crate) fn parts_mut(&mut self, runs: impl Iterator<Item = usize>) -> Vec<PartMut<'_>> {
        let (cols, stride) = (self.cols, self.stride());
        let mut rest = match &mut self.data {
            Data::F32(data) => PartData::F32(data),
            Data::F16(data) => PartData::F16(data),
            Data::Bf16(data) => PartData::Bf16(data),
            Data::Int8(codes, scales) => PartData::Int8(codes, scales.part()),
            Data::Int4(codes, scales) => PartData::Int4(codes, scales.part()),
        };
        runs.map(|rows| {
            let (part, tail) = std::mem::take(&mut rest).split(rows, stride);
            rest = tail;
            PartMut { rows, cols, stride, data: part }
        })
        .collect()
    }
}

/// A run of rows of a [`Matrix`], to be filled.
#[derive(Debug)]
pub(crate) struct PartMut<'a> {
    rows: usize,
    cols: usize,
    stride: usize,
    data: PartData<'a>,
}

#[derive(Debug)]
enum PartData<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    Bf16(&'a mut [bf16]),
    Int8(&'a mut [i8], PartScales<'a>),
    Int4(&'a mut [u8], PartScales<'a>),
}

#[derive(Debug)]
enum PartScales<'a> {
    Row(&'a mut [f32]),
    Group(&'a mut [f16], usize),
}

impl Default for PartData<'_> {
    fn default() -> Self {
        Self::F32(&mut [])
    }
}

impl BlockScales {
    fn part(&mut self) -> PartScales<'_> {
        match self {
            Self::Row(scales) => PartScales::Row(scales),
            Self::Group { values, per_row, .. } => PartScales::Group(values, *per_row),
        }
    }
}

impl<'a> PartData<'a> {
    fn split(self, rows: usize, stride: usize) -> (Self, Self) {
        let len = rows * stride;
        match self {
            Self::F32(data) => pair(data.split_at_mut(len), Self::F32),
            Self::F16(data) => pair(data.split_at_mut(len), Self::F16),
            Self::Bf16(data) => pair(data.split_at_mut(len), Self::Bf16),
            Self::Int8(codes, scales) => {
                let ((codes, more), (scales, rest)) = (codes.split_at_mut(len), scales.split(rows));
                (Self::Int8(codes, scales), Self::Int8(more, rest))
            }
            Self::Int4(codes, scales) => {
                let (codes, more) = codes.split_at_mut(len / 2);
                let (scales, rest) = scales.split(rows);
                (Self::Int4(codes, scales), Self::Int4(more, rest))
            }
        }
    }
}

impl PartScales<'_> {
    fn split(self, rows: usize) -> (Self, Self) {
        match self {
            Self::Row(scales) => pair(scales.split_at_mut(rows), Self::Row),
            Self::Group(values, per_row) => {
                pair(values.split_at_mut(rows * per_row), |values| Self::Group(values, per_row))
            }
        }
    }
}

fn pair<T, U>((a, b): (T, T), wrap: impl Fn(T) -> U) -> (U, U) {
    (wrap(a), wrap(b))
}

impl PartMut<'_> {
    /// Takes the rows exactly as the checkpoint has them, upcast to `f32` if that is the storage.
    ///
    /// The storage is the checkpoint's own type or `f32`; the caller has seen to it.
    pub(crate) fn copy(&mut self, source: Elements<'_>) {
        let (cols, stride) = (self.cols, self.stride);
        match (&mut self.data, source) {
            (PartData::F32(to), Elements::F32(from)) => copy_rows(to, from, stride, cols, |x| *x),
            (PartData::F32(to), Elements::F16(from)) => {
                copy_rows(to, from, stride, cols, |x| x.to_f32());
            }
            (PartData::F32(to), Elements::Bf16(from)) => {
                copy_rows(to, from, stride, cols, |x| x.to_f32());
            }
            (PartData::F16(to), Elements::F16(from)) => copy_rows(to, from, stride, cols, |x| *x),
            (PartData::Bf16(to), Elements::Bf16(from)) => copy_rows(to, from, stride, cols, |x| *x),
            (to, from) => unreachable!("{to:?} cannot hold {from:?} exactly"),
        }
    }

    /// Quantizes the rows.
    ///
    /// # Errors
    /// A weight is not finite or too large for the format; its row counts from this part's first.
    pub(crate) fn quantize(
        &mut self,
        format: Format,
        source: Elements<'_>,
    ) -> Result<(), PackError> {
        let values = source.to_f32();
        let packed = Packed::quantize(format, self.rows, self.cols, &values)?;
        let (cols, stride) = (self.cols, self.stride);
        let codes = packed.codes();
        match &mut self.data {
            PartData::F32(to) => copy_rows(to, &values, stride, cols, |x| *x),
            PartData::F16(to) => {
                copy_rows(to, codes.as_chunks().0, stride, cols, |b| f16::from_le_bytes(*b));
            }
            PartData::Bf16(to) => {
                copy_rows(to, codes.as_chunks().0, stride, cols, |b| bf16::from_le_bytes(*b));
            }
            PartData::Int8(to, scales) => {
                copy_rows(to, codes, stride, cols, |b| b.cast_signed());
                scales.copy(packed.scales());
            }
            PartData::Int4(to, scales) => {
                for (row, to) in to.chunks_mut(stride / 2).enumerate() {
                    let from = packed.row_codes(row);
                    let nibble = |i: usize| match from.get(i / 2) {
                        Some(byte) if i < cols => (byte >> (4 * (i % 2))) & 15,
                        // Code 0 in the padding.
                        _ => 8,
                    };
                    for (i, to) in to.iter_mut().enumerate() {
                        let first = i / 16 * BLOCK + i % 16;
                        *to = nibble(first) | nibble(first + 16) << 4;
                    }
                }
                scales.copy(packed.scales());
            }
        }
        Ok(())
    }
}

impl PartScales<'_> {
    fn copy(&mut self, from: &Scales) {
        match (self, from) {
            (Self::Row(to), Scales::PerRow(from)) => to.copy_from_slice(from),
            // The last part also holds the spare zeros.
            (Self::Group(to, _), Scales::PerGroup(from)) => to[..from.len()].copy_from_slice(from),
            (to, from) => unreachable!("{to:?} cannot hold {from:?}"),
        }
    }
}

fn copy_rows<T, U>(
    to: &mut [T],
    from: &[U],
    stride: usize,
    cols: usize,
    convert: impl Fn(&U) -> T,
) {
    for (to, from) in to.chunks_mut(stride).zip(from.chunks(cols)) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = convert(from));
    }
}

/// Some elements of a tensor, in the checkpoint's precision.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> Elements<'a> {
    /// A range of a tensor's elements.
    pub(crate) fn of(data: &'a TensorData, range: Range<usize>) -> Self {
        match data {
            TensorData::F32(data) => Self::F32(&data[range]),
            TensorData::F16(data) => Self::F16(&data[range]),
            TensorData::Bf16(data) => Self::Bf16(&data[range]),
        }
    }

    /// Where the first NaN or infinity is.
    pub(crate) fn first_not_finite(self) -> Option<(usize, f32)> {
        fn find<T: Copy>(data: &[T], value: impl Fn(T) -> f32) -> Option<(usize, f32)> {
            let at = data.iter().position(|&x| !value(x).is_finite())?;
            Some((at, value(data[at])))
        }
        match self {
            Self::F32(data) => find(data, |x| x),
            Self::F16(data) => {
                data.iter().position(|x| !x.is_finite()).map(|i| (i, data[i].to_f32()))
            }
            Self::Bf16(data) => find(data, bf16::to_f32),
        }
    }

    fn to_f32(self) -> Vec<f32> {
        match self {
            Self::F32(data) => data.to_vec(),
            Self::F16(data) => data.iter().map(|x| x.to_f32()).collect(),
            Self::Bf16(data) => data.iter().map(|x| x.to_f32()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rewind_formats::FORMAT_NAMES;

    fn weights(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.7).sin() * (1.0 + (i / 32) as f32 * 0.1)).collect()
    }

    #[test]
    fn every_format_keeps_the_exact_values_of_the_packed_form() {
        for name in FORMAT_NAMES.split(", ") {
            let format: Format = name.parse().expect("a listed name");
            for (rows, cols) in [(1, 1), (3, 31), (5, 96), (7, 577), (2, 160)] {
                let source = weights(rows * cols);
                let packed = Packed::quantize(format, rows, cols, &source).expect("finite");
                let mut matrix = Matrix::zeroed(Storage::Format(format), rows, cols);
                let runs = [rows / 2, rows - rows / 2];
                let mut at = 0;
                for (mut part, run) in matrix.parts_mut(runs.into_iter()).into_iter().zip(runs) {
                    if run > 0 {
                        let from = Elements::F32(&source[at * cols..(at + run) * cols]);
                        part.quantize(format, from).expect("finite");
                    }
                    at += run;
                }
                let mut values = vec![0.0; cols];
                for row in 0..rows {
                    matrix.row_values(row, &mut values);
                    for (col, value) in values.iter().enumerate() {
                        let expected = packed.value(row, col);
                        assert_eq!(value.to_bits(), expected.to_bits(), "{name} {row} {col}");
                    }
                }
            }
        }
    }

    #[test]
    fn copies_are_exact() {
        let halves: Vec<f16> = weights(70).iter().map(|&x| f16::from_f32(x)).collect();
        for storage in [Storage::F32, Storage::Format(Format::F16)] {
            let mut matrix = Matrix::zeroed(storage, 2, 35);
            matrix.parts_mut([2].into_iter())[0].copy(Elements::F16(&halves));
            let mut values = vec![0.0; 35];
            matrix.row_values(1, &mut values);
            assert!(values.iter().zip(&halves[35..]).all(|(value, half)| *value == half.to_f32()));
        }
    }

    #[test]
    fn not_finite_elements_are_found() {
        let mut data = vec![f16::ONE; 10];
        data[7] = f16::NEG_INFINITY;
        assert_eq!(Elements::F16(&data).first_not_finite(), Some((7, f32::NEG_INFINITY)));
        assert_eq!(Elements::F16(&data[..7]).first_not_finite(), None);
    }
}
