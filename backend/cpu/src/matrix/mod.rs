//! Weight matrices as the kernels read them.
//!
//! Rows are outputs. Each is padded with zeros to whole blocks of 32, and as many neighbouring rows as
//! the instruction set has lanes make a *panel*, padded to whole ones with rows of zeros. In a panel,
//!
//! * floats lie `[input][row]`, those of eight bits too, whose scales, one for a row, lie apart;
//! * 8-bit codes lie `[block of 32][quad][row][4]`: a quad is four neighbouring inputs, which integer
//!   instructions multiply and add at once;
//! * 4-bit codes lie `[block of 32][quad of the first half][row][4]`, a byte holding the code of quad q
//!   in its low nibble and that of quad q + 4 in its high one;
//! * 6-bit codes lie `[block of 32][parity][3][row][4]`: of the quads of one parity, q, q + 2, q + 4 and
//!   q + 6, the first vector holds the low four bits of the first and the third, the next those of the
//!   second and the fourth, in nibbles as above, and the last the high two bits of all, from the lowest
//!   on;
//! * codes of NF4 lie `[pair of inputs][row]`, the first of a pair in the low nibble: they become floats
//!   one input after the other;
//! * scales lie `[group][row]`, in 16 bits where there are groups: they are a ninth of a 4-bit matrix,
//!   and a decode step is bound by its bytes.
//!
//! So one vector holds the same inputs of every row of the panel, and a panel is read front to back.
//!
//! Rejected: rows one after the other, where each output ends in a sum over lanes and the scale of each
//! row has to be spread over a vector of its own.

mod elements;
mod fill;
mod scales;

use half::{bf16, f16};
use rewind_formats::{Format, Group, e4m3, nf4};

use crate::aligned::Aligned;
use crate::arch::{BLOCK, QUADS};
pub(crate) use elements::Elements;
pub(crate) use fill::PartMut;
pub(crate) use scales::{BlockScales, Groups, NestedScales};

/// A matrix of weights.
#[derive(Debug)]
pub(crate) struct Matrix {
    storage: Storage,
    layout: Layout,
    rows: usize,
    cols: usize,
    data: Data,
}

/// Where an element is.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Rows of a panel.
    width: usize,
    /// Elements of a row, padding included.
    stride: usize,
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
    /// E4M3FN, and a scale for each row.
    Fp8(Aligned<u8>, Vec<f32>),
    /// Codes of NF4, two to a byte.
    Nf4(Aligned<u8>, NestedScales),
    /// 8-bit codes.
    Int8(Aligned<i8>, BlockScales),
    /// 6-bit codes + 32, four to three bytes.
    Int6(Aligned<u8>, BlockScales),
    /// 4-bit codes + 8, two to a byte.
    Int4(Aligned<u8>, BlockScales),
}

/// How a matrix is to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Single precision, for checkpoints that have no shorter form.
    F32,
    /// One of the formats.
    Format(Format),
}

impl Layout {
    /// Index of the float of a row of the matrix at an input.
    fn float(self, row: usize, col: usize) -> usize {
        (row / self.width * self.stride + col) * self.width + row % self.width
    }

    /// Index of the byte with the NF4 code of a row of the matrix at an input, and the code's shift.
    fn number(self, row: usize, col: usize) -> (usize, u32) {
        let pair = row / self.width * self.stride / 2 + col / 2;
        (pair * self.width + row % self.width, 4 * (col as u32 % 2))
    }

    /// Index of the 8-bit code of a row of the matrix at an input.
    fn eight(self, row: usize, col: usize) -> usize {
        (row / self.width * self.stride + col / 4 * 4) * self.width + row % self.width * 4 + col % 4
    }

    /// Index of the byte with the 4-bit code of a row of the matrix at an input, and the code's shift.
    fn four(self, row: usize, col: usize) -> (usize, u32) {
        let (block, quad) = (col / BLOCK, col % BLOCK / 4);
        let bytes = row / self.width * self.stride / 2 + block * BLOCK / 2 + quad % (QUADS / 2) * 4;
        let index = bytes * self.width + row % self.width * 4 + col % 4;
        (index, if quad < QUADS / 2 { 0 } else { 4 })
    }

    /// Where the 6-bit code of a row of the matrix at an input is: index of the byte with its low bits and
    /// their shift, and the same of its high bits.
    fn six(self, row: usize, col: usize) -> [(usize, u32); 2] {
        let (block, quad) = (col / BLOCK, col % BLOCK / 4);
        let (parity, place) = (quad % 2, quad / 2);
        let first = row / self.width * self.stride * 3 / 4 + block * BLOCK * 3 / 4 + parity * 12;
        let byte =
            |vector: usize| (first + 4 * vector) * self.width + row % self.width * 4 + col % 4;
        let low = (byte(place % 2), if place < 2 { 0 } else { 4 });
        [low, (byte(2), 2 * place as u32)]
    }

    /// Index of a scale of a row of the matrix, of `per_row`.
    fn scale(self, row: usize, group: usize, per_row: usize) -> usize {
        (row / self.width * per_row + group) * self.width + row % self.width
    }
}

impl Matrix {
    /// A matrix of zeros in panels of `width` rows.
    pub(crate) fn zeroed(storage: Storage, width: usize, rows: usize, cols: usize) -> Self {
        let padded = rows.next_multiple_of(width);
        let layout = Layout { width, stride: cols.next_multiple_of(BLOCK) };
        let len = padded * layout.stride;
        let data = match storage {
            Storage::F32 => Data::F32(Aligned::zeroed(len)),
            Storage::Format(Format::F16) => Data::F16(Aligned::zeroed(len)),
            Storage::Format(Format::Bf16) => Data::Bf16(Aligned::zeroed(len)),
            Storage::Format(Format::Fp8) => Data::Fp8(Aligned::zeroed(len), vec![0.0; padded]),
            Storage::Format(format @ Format::Nf4) => {
                Data::Nf4(Aligned::zeroed(len / 2), NestedScales::zeroed(format, padded, cols))
            }
            Storage::Format(format) => {
                let scales = BlockScales::zeroed(format, padded, cols);
                match format.code_bits() {
                    4 => Data::Int4(Aligned::zeroed(len / 2), scales),
                    6 => Data::Int6(Aligned::zeroed(len / 4 * 3), scales),
                    _ => Data::Int8(Aligned::zeroed(len), scales),
                }
            }
        };
        Self { storage, layout, rows, cols, data }
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
        self.layout.stride
    }

    /// Rows of a panel.
    pub(crate) fn panel_width(&self) -> usize {
        self.layout.width
    }

    /// Whether kernels multiply it with 8-bit activations.
    pub(crate) fn is_integer(&self) -> bool {
        matches!(self.data, Data::Int8(..) | Data::Int6(..) | Data::Int4(..))
    }

    /// Memory of codes and scales, bytes.
    pub(crate) fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(data) => size_of_val::<[f32]>(data),
            Data::F16(data) => size_of_val::<[f16]>(data),
            Data::Bf16(data) => size_of_val::<[bf16]>(data),
            Data::Fp8(codes, scales) => codes.len() + size_of_val::<[f32]>(scales),
            Data::Nf4(codes, scales) => codes.len() + scales.bytes(),
            Data::Int8(codes, scales) => codes.len() + scales.bytes(),
            Data::Int6(codes, scales) | Data::Int4(codes, scales) => codes.len() + scales.bytes(),
        }
    }

    /// Elements in memory from a row on, where a panel begins.
    pub(crate) fn bytes_from(&self, row: usize) -> &[u8] {
        let element = row.min(self.rows) * self.layout.stride;
        match &self.data {
            Data::F32(data) => bytemuck::cast_slice(&data[element..]),
            Data::F16(data) => bytemuck::cast_slice(&data[element..]),
            Data::Bf16(data) => bytemuck::cast_slice(&data[element..]),
            Data::Fp8(codes, _) => &codes[element..],
            Data::Int8(codes, _) => bytemuck::cast_slice(&codes[element..]),
            Data::Int6(codes, _) => &codes[element / 4 * 3..],
            Data::Int4(codes, _) | Data::Nf4(codes, _) => &codes[element / 2..],
        }
    }

    /// Writes the exact values of one row to the first `cols` elements of `out`.
    pub(crate) fn row_values(&self, row: usize, out: &mut [f32]) {
        let layout = self.layout;
        let out = out[..self.cols].iter_mut().enumerate();
        match &self.data {
            Data::F32(data) => out.for_each(|(col, out)| *out = data[layout.float(row, col)]),
            Data::F16(data) => {
                out.for_each(|(col, out)| *out = data[layout.float(row, col)].to_f32());
            }
            Data::Bf16(data) => {
                out.for_each(|(col, out)| *out = data[layout.float(row, col)].to_f32());
            }
            Data::Fp8(codes, scales) => out.for_each(|(col, out)| {
                *out = e4m3::value(codes[layout.float(row, col)]) * scales[row];
            }),
            Data::Nf4(bytes, scales) => out.for_each(|(col, out)| {
                let (index, shift) = layout.number(row, col);
                let number = nf4::NUMBERS[usize::from(bytes[index] >> shift & 15)];
                *out = scales.value(layout, row, col / Group::G64.len(), number);
            }),
            Data::Int8(codes, scales) => out.for_each(|(col, out)| {
                let code = f32::from(codes[layout.eight(row, col)]);
                *out = scales.value(layout, row, col, code);
            }),
            Data::Int6(bytes, scales) => out.for_each(|(col, out)| {
                let [(low, low_shift), (high, high_shift)] = layout.six(row, col);
                let code = bytes[low] >> low_shift & 15 | (bytes[high] >> high_shift & 3) << 4;
                *out = scales.value(layout, row, col, f32::from(code) - 32.0);
            }),
            Data::Int4(bytes, scales) => out.for_each(|(col, out)| {
                let (index, shift) = layout.four(row, col);
                let nibble = bytes[index] >> shift & 15;
                *out = scales.value(layout, row, col, f32::from(nibble) - 8.0);
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use rewind_formats::{FORMAT_NAMES, Packed};

    use super::*;

    fn weights(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.7).sin() * (1.0 + (i / 32) as f32 * 0.1)).collect()
    }

    #[test]
    fn every_format_keeps_the_exact_values_of_the_packed_form() {
        for name in FORMAT_NAMES.split(", ") {
            let format: Format = name.parse().expect("a listed name");
            for (width, rows, cols) in
                [(8, 1, 1), (8, 3, 31), (16, 5, 96), (8, 21, 577), (16, 50, 160), (8, 16, 32)]
            {
                let source = weights(rows * cols);
                let packed = Packed::quantize(format, rows, cols, &source).expect("finite");
                let mut matrix = Matrix::zeroed(Storage::Format(format), width, rows, cols);
                for mut part in matrix.parts_mut(16) {
                    // In two pieces, as where one tensor ends and the next begins.
                    let range = part.range();
                    let middle = range.start + range.len() / 2;
                    let pieces = [range.start..middle, middle..range.end];
                    for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
                        let from = &source[piece.start * cols..piece.end * cols];
                        let at = piece.start - range.start;
                        part.quantize(at, format, Elements::F32(from)).expect("finite");
                    }
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
            let mut matrix = Matrix::zeroed(storage, 8, 2, 35);
            matrix.parts_mut(8)[0].copy(0, Elements::F16(&halves));
            let mut values = vec![0.0; 35];
            matrix.row_values(1, &mut values);
            assert!(values.iter().zip(&halves[35..]).all(|(value, half)| *value == half.to_f32()));
        }
    }

    #[test]
    fn every_element_has_a_place_of_its_own() {
        for width in [8, 16] {
            let layout = Layout { width, stride: 96 };
            let all = || (0..3 * width).flat_map(|row| (0..96).map(move |col| (row, col)));
            let places = |place: &dyn Fn(usize, usize) -> usize| {
                let mut places: Vec<_> = all().map(|(row, col)| place(row, col)).collect();
                places.sort_unstable();
                assert_eq!(places, (0..3 * width * 96).collect::<Vec<_>>());
            };
            places(&|row, col| layout.float(row, col));
            places(&|row, col| layout.eight(row, col));
            places(&|row, col| {
                let (index, shift) = layout.four(row, col);
                2 * index + shift as usize / 4
            });
            places(&|row, col| {
                let (index, shift) = layout.number(row, col);
                2 * index + shift as usize / 4
            });
            places(&|row, col| layout.scale(row, col, 96));
            // In pairs of bits: two of the low ones, and the high one.
            let mut pairs: Vec<_> = all()
                .flat_map(|(row, col)| {
                    let [(low, low_shift), (high, high_shift)] = layout.six(row, col);
                    let pair = |byte: usize, shift: u32| 4 * byte + shift as usize / 2;
                    [pair(low, low_shift), pair(low, low_shift + 2), pair(high, high_shift)]
                })
                .collect();
            pairs.sort_unstable();
            assert_eq!(pairs, (0..3 * width * 96 * 3).collect::<Vec<_>>());
        }
    }
}
