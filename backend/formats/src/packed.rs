//! A weight matrix in one of the formats: codes, scales, and the exact value of every weight.

use half::{bf16, f16};

use crate::scale::{self, CodeRange, ScaleType};
use crate::{Format, Group, affine, e4m3, nf4};

/// Scales of a packed matrix.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// The format has none (16-bit floats).
    None,
    /// One per row, length `rows`.
    PerRow(Box<[f32]>),
    /// One per group, row-major, `ceil(cols / group)` to a row.
    PerGroup(Box<[f16]>),
    /// As many scales, and as many offsets.
    Affine {
        /// Distances between neighbouring codes.
        scales: Box<[f16]>,
        /// Values of code 0.
        offsets: Box<[f16]>,
    },
    /// A scale for each row, and a factor for each of its groups, as many as above.
    Nested {
        /// Scales of the rows.
        rows: Box<[f32]>,
        /// Factors, 0 to 255.
        groups: Box<[u8]>,
    },
}

/// A matrix of weights in the canonical layout of its [`Format`].
///
/// Codes are row-major and every row starts at a byte boundary. 16-bit floats are two bytes, little
/// endian; 8-bit codes one byte, two's complement, or E4M3FN. Two 4-bit codes share a byte: element 2i sits in
/// the low nibble, 2i + 1 in the high one, each as code + 8; the spare nibble of an odd row holds
/// code 0. Four 6-bit codes share three bytes: as code + 32, element 4i + j takes the bits 6j .. 6j + 6
/// of a little-endian number; the last number of a row ends with the byte of its last code. Codes of
/// [`nf4`] lie as 4-bit codes, but unsigned, with the code of zero in a spare nibble.
///
/// A weight's exact value is its number times its scale plus its offset, rounded once to f32, where the number
/// is the integer code, or what the code of a float stands for. Scales may be negative; nested ones are the
/// product of the row's scale and the group's factor, rounded once.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_bytes: usize,
    pub(crate) codes: Box<[u8]>,
    pub(crate) scales: Scales,
}

impl Packed {
    /// Packs `weights`, a row-major matrix of `rows` by `cols`.
    ///
    /// Floats round to nearest even. Integer scales are found by least squared error over a small
    /// clip search; the same input gives the same bytes on every machine.
    ///
    /// # Errors
    ///
    /// An empty matrix, a slice of another length, NaN, an infinity, or a weight too large for the
    /// format; the latter three name the row and the column.
    pub fn quantize(
        format: Format,
        rows: usize,
        cols: usize,
        weights: &[f32],
    ) -> Result<Self, PackError> {
        if rows == 0 || cols == 0 {
            return Err(PackError::Empty { rows, cols });
        }
        if rows.checked_mul(cols) != Some(weights.len()) {
            return Err(PackError::Shape { rows, cols, len: weights.len() });
        }
        check_range(format, cols, weights)?;
        // A slice is at most isize::MAX bytes and a weight takes four of them, so no format, with at
        // most two bytes to a weight, can overflow here.
        let row_bytes = (cols * format.code_bits()).div_ceil(8);
        let mut codes = Vec::with_capacity(rows * row_bytes);
        let scales = match format {
            Format::F16 => {
                codes.extend(weights.iter().flat_map(|&w| f16::from_f32(w).to_le_bytes()));
                Scales::None
            }
            Format::Bf16 => {
                codes.extend(weights.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()));
                Scales::None
            }
            Format::Fp8 => Scales::PerRow(quantize_e4m3(cols, weights, &mut codes)),
            Format::Int8 => Scales::PerRow(quantize_8_bit(cols, cols, weights, &mut codes)),
            Format::Int8Group(group) => {
                Scales::PerGroup(quantize_8_bit(cols, group.len(), weights, &mut codes))
            }
            Format::Int6Group(group) => {
                Scales::PerGroup(quantize_6_bit(cols, group, weights, &mut codes))
            }
            Format::Int4Group(group) => {
                Scales::PerGroup(quantize_4_bit(cols, group, weights, &mut codes))
            }
            Format::Int4Affine(group) => quantize_affine(cols, group, weights, &mut codes),
            Format::Nf4 => quantize_nf4(cols, weights, &mut codes),
        };
        Ok(Self { format, rows, cols, row_bytes, codes: codes.into(), scales })
    }

    /// Format of the codes.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Number of rows, outputs of the projection.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns, inputs of the projection.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All codes in the canonical layout, [`row_bytes`](Self::row_bytes) to a row.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Bytes of codes to a row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The codes of one row.
    ///
    /// # Panics
    ///
    /// If `row` is out of range.
    pub fn row_codes(&self, row: usize) -> &[u8] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &self.codes[row * self.row_bytes..][..self.row_bytes]
    }

    /// The scales.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The integer code of one weight.
    ///
    /// # Panics
    ///
    /// If the position is out of range, or the format has no integer codes.
    pub fn code(&self, row: usize, col: usize) -> i8 {
        let bits = self.bits(row, col);
        match self.format {
            Format::F16 | Format::Bf16 | Format::Nf4 | Format::Fp8 => {
                panic!("{} has no integer codes", self.format)
            }
            Format::Int8 | Format::Int8Group(_) => bits as i8,
            Format::Int6Group(_) => bits as i8 - 32,
            Format::Int4Group(_) | Format::Int4Affine(_) => bits as i8 - 8,
        }
    }

    /// The number that the code of one weight stands for, exactly: what is multiplied with its scale.
    ///
    /// # Panics
    ///
    /// If the position is out of range.
    pub fn number(&self, row: usize, col: usize) -> f32 {
        let bits = self.bits(row, col);
        match self.format {
            Format::F16 => f16::from_bits(bits).to_f32(),
            Format::Bf16 => bf16::from_bits(bits).to_f32(),
            Format::Fp8 => e4m3::value(bits as u8),
            Format::Nf4 => nf4::NUMBERS[usize::from(bits)],
            Format::Int8
            | Format::Int8Group(_)
            | Format::Int6Group(_)
            | Format::Int4Group(_)
            | Format::Int4Affine(_) => f32::from(self.code(row, col)),
        }
    }

    /// The bits of one weight's code, as stored.
    fn bits(&self, row: usize, col: usize) -> u16 {
        assert!(col < self.cols, "column {col} of {}", self.cols);
        let codes = self.row_codes(row);
        match self.format {
            Format::F16 | Format::Bf16 => u16::from_le_bytes([codes[2 * col], codes[2 * col + 1]]),
            Format::Int8 | Format::Int8Group(_) | Format::Fp8 => u16::from(codes[col]),
            Format::Int6Group(_) => {
                let (byte, shift) = (col / 4 * 3 + col % 4 * 6 / 8, col % 4 * 6 % 8);
                let next = codes.get(byte + 1).copied().unwrap_or(0);
                u16::from_le_bytes([codes[byte], next]) >> shift & 63
            }
            Format::Int4Group(_) | Format::Int4Affine(_) | Format::Nf4 => {
                u16::from(codes[col / 2] >> (4 * (col % 2)) & 15)
            }
        }
    }

    /// The scale of one weight; 1 for floats.
    ///
    /// # Panics
    ///
    /// If the position is out of range.
    pub fn scale(&self, row: usize, col: usize) -> f32 {
        let group = self.group(row, col);
        match &self.scales {
            Scales::None => 1.0,
            Scales::PerRow(scales) => scales[row],
            Scales::PerGroup(scales) | Scales::Affine { scales, .. } => scales[group].to_f32(),
            Scales::Nested { rows, groups } => f32::from(groups[group]) * rows[row],
        }
    }

    /// What is added to one weight's number times its scale; 0 for symmetric formats.
    ///
    /// # Panics
    ///
    /// If the position is out of range.
    pub fn offset(&self, row: usize, col: usize) -> f32 {
        let group = self.group(row, col);
        match &self.scales {
            Scales::Affine { offsets, .. } => offsets[group].to_f32(),
            Scales::None | Scales::PerRow(_) | Scales::PerGroup(_) | Scales::Nested { .. } => 0.0,
        }
    }

    /// Index of the group of one weight, where there are groups.
    fn group(&self, row: usize, col: usize) -> usize {
        assert!(
            row < self.rows && col < self.cols,
            "({row}, {col}) of {}×{}",
            self.rows,
            self.cols
        );
        let len = self.format.group().map_or(self.cols, Group::len);
        row * self.format.groups_per_row(self.cols) + col / len
    }

    /// The exact value of one weight.
    ///
    /// # Panics
    ///
    /// If the position is out of range.
    pub fn value(&self, row: usize, col: usize) -> f32 {
        let product = self.number(row, col) * self.scale(row, col);
        match &self.scales {
            // An affine product takes 15 bits, so the sum is the one place that rounds.
            Scales::Affine { .. } => product + self.offset(row, col),
            Scales::None | Scales::PerRow(_) | Scales::PerGroup(_) | Scales::Nested { .. } => {
                product
            }
        }
    }

    /// Writes the exact values of one row.
    ///
    /// # Panics
    ///
    /// If `row` is out of range or `out` is not [`cols`](Self::cols) long.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "length of the output row");
        for (col, value) in out.iter_mut().enumerate() {
            *value = self.value(row, col);
        }
    }

    /// Memory of codes and scales, in bytes.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::None => 0,
            Scales::PerRow(scales) => size_of_val::<[f32]>(scales),
            Scales::PerGroup(scales) => size_of_val::<[f16]>(scales),
            Scales::Affine { scales, offsets } => {
                size_of_val::<[f16]>(scales) + size_of_val::<[f16]>(offsets)
            }
            Scales::Nested { rows, groups } => size_of_val::<[f32]>(rows) + groups.len(),
        };
        self.codes.len() + scales
    }
}

/// Why a matrix could not be packed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PackError {
    /// There is nothing to pack.
    #[error("cannot pack an empty matrix of {rows} rows by {cols} columns")]
    Empty {
        /// Rows as given.
        rows: usize,
        /// Columns as given.
        cols: usize,
    },
    /// The slice is not the matrix that was announced.
    #[error("a matrix of {rows} rows by {cols} columns cannot come from {len} weights")]
    Shape {
        /// Rows as given.
        rows: usize,
        /// Columns as given.
        cols: usize,
        /// Weights in the slice.
        len: usize,
    },
    /// NaN or an infinity in the source.
    #[error("weight at row {row}, column {col} is {value}; every weight must be finite")]
    NotFinite {
        /// Row of the first such weight.
        row: usize,
        /// Its column.
        col: usize,
        /// NaN or ±∞.
        value: f32,
    },
    /// A finite weight that the format cannot come near.
    #[error("weight at row {row}, column {col} is {value}; {format} reaches only ±{limit}")]
    OutOfRange {
        /// Row of the first such weight.
        row: usize,
        /// Its column.
        col: usize,
        /// The weight.
        value: f32,
        /// Format asked for.
        format: Format,
        /// Largest magnitude that the format takes.
        limit: f32,
    },
    /// Codes or scales that are not as many as the matrix takes.
    #[error(
        "a matrix of {rows} rows by {cols} columns in {format} takes {} {what}, not {found}",
        expected.map_or("more than any number of".to_owned(), |expected| expected.to_string())
    )]
    Parts {
        /// Format as given.
        format: Format,
        /// Rows as given.
        rows: usize,
        /// Columns as given.
        cols: usize,
        /// What there are too many or too few of.
        what: &'static str,
        /// How many would do; `None` if no memory could hold them.
        expected: Option<usize>,
        /// How many there are.
        found: usize,
    },
    /// Scales of another kind than the format has.
    #[error("the scales are not of the kind that {format} has")]
    Scales {
        /// Format as given.
        format: Format,
    },
    /// A code that the format does not have.
    #[error("row {row}, byte {byte} of the codes is {found:#04x}, which is no code of {format}")]
    Code {
        /// Format as given.
        format: Format,
        /// Row of the first such code.
        row: usize,
        /// Its byte in the row.
        byte: usize,
        /// What it is.
        found: u8,
    },
    /// A scale or an offset by which weights would not be finite.
    #[error("row {row} has the {what} {value}, by which {format} has no finite weights")]
    Scale {
        /// Format as given.
        format: Format,
        /// Which of the two.
        what: &'static str,
        /// Its row.
        row: usize,
        /// Its value.
        value: f32,
    },
    /// Rows that cannot lie in one matrix.
    #[error(
        "rows of {} columns in {} cannot be joined with rows of {} columns in {}",
        first.1, first.0, other.1, other.0
    )]
    Mixed {
        /// Format and columns of the first row.
        first: (Format, usize),
        /// Format and columns of another.
        other: (Format, usize),
    },
}

/// Largest magnitude that a format takes without saturating.
fn limit(format: Format) -> f32 {
    match format {
        Format::F16 => f16::MAX.to_f32(),
        Format::Bf16 => bf16::MAX.to_f32(),
        Format::Int8 => <f32 as ScaleType>::MAX * scale::INT8.high,
        // So that the largest number times the largest scale that is tried stays finite.
        Format::Fp8 => f32::MAX / 2.0,
        Format::Int8Group(_) => <f16 as ScaleType>::MAX * scale::INT8.high,
        Format::Int6Group(_) => <f16 as ScaleType>::MAX * scale::INT6.high,
        Format::Int4Group(_) => <f16 as ScaleType>::MAX * scale::INT4.high,
        // An offset reaches as far, and half the distance between two of these is less than eight scales.
        Format::Int4Affine(_) => <f16 as ScaleType>::MAX,
        // So that the sums over a block stay finite.
        Format::Nf4 => f32::MAX / 256.0,
    }
}

fn check_range(format: Format, cols: usize, weights: &[f32]) -> Result<(), PackError> {
    let limit = limit(format);
    let bad = |w: &f32| w.is_nan() || w.abs() > limit;
    // A search that stops early does not vectorize, so it is made only where there is one to find.
    if !weights.iter().fold(false, |any, w| any | bad(w)) {
        return Ok(());
    }
    let Some(at) = weights.iter().position(bad) else { return Ok(()) };
    let (row, col, value) = (at / cols, at % cols, weights[at]);
    Err(if value.is_finite() {
        PackError::OutOfRange { row, col, value, format, limit }
    } else {
        PackError::NotFinite { row, col, value }
    })
}

/// Finds a scale for each group of each row and hands the weights' codes to `emit`, row by row.
fn quantize_rows<T: ScaleType>(
    cols: usize,
    group: usize,
    range: CodeRange,
    weights: &[f32],
    mut emit: impl FnMut(&[i8]),
) -> Box<[T]> {
    let mut scales = Vec::with_capacity(weights.len() / cols * cols.div_ceil(group));
    let mut codes = vec![0_i8; cols];
    for row in weights.chunks_exact(cols) {
        for (weights, codes) in row.chunks(group).zip(codes.chunks_mut(group)) {
            let scale: T = scale::search(weights, range);
            scale::encode(weights, scale.value(), range, codes);
            scales.push(scale);
        }
        emit(&codes);
    }
    scales.into()
}

fn quantize_8_bit<T: ScaleType>(
    cols: usize,
    group: usize,
    weights: &[f32],
    out: &mut Vec<u8>,
) -> Box<[T]> {
    quantize_rows(cols, group, scale::INT8, weights, |row| {
        out.extend(row.iter().map(|&code| code as u8));
    })
}

fn quantize_e4m3(cols: usize, weights: &[f32], out: &mut Vec<u8>) -> Box<[f32]> {
    let row = |row: &[f32]| {
        let scale = scale::search_e4m3(row);
        let code = |w: &f32| e4m3::code(e4m3::round(if *w == 0.0 { 0.0 } else { w / scale }));
        out.extend(row.iter().map(code));
        scale
    };
    weights.chunks_exact(cols).map(row).collect()
}

fn quantize_6_bit(cols: usize, group: Group, weights: &[f32], out: &mut Vec<u8>) -> Box<[f16]> {
    let join = |codes: &[i8]| {
        let place = |(j, &code): (usize, &i8)| ((code + 32) as u32) << (6 * j);
        codes.iter().enumerate().map(place).fold(0, |bits, code| bits | code).to_le_bytes()
    };
    quantize_rows(cols, group.len(), scale::INT6, weights, |row| {
        // Three bytes for four codes, else one for each.
        out.extend(row.chunks(4).flat_map(|codes| {
            let [a, b, c, _] = join(codes);
            [a, b, c].into_iter().take(codes.len())
        }));
    })
}

fn quantize_4_bit(cols: usize, group: Group, weights: &[f32], out: &mut Vec<u8>) -> Box<[f16]> {
    quantize_rows(cols, group.len(), scale::INT4, weights, |row| {
        extend_nibbles(out, row, 0, biased);
    })
}

fn quantize_affine(cols: usize, group: Group, weights: &[f32], out: &mut Vec<u8>) -> Scales {
    let (mut scales, mut offsets) = (Vec::new(), Vec::new());
    let mut codes = vec![0_i8; cols];
    for row in weights.chunks_exact(cols) {
        for (weights, codes) in row.chunks(group.len()).zip(codes.chunks_mut(group.len())) {
            let grid = affine::search(weights);
            affine::encode(weights, grid, codes);
            // Halves already.
            scales.push(f16::from_f32(grid.scale));
            offsets.push(f16::from_f32(grid.offset));
        }
        extend_nibbles(out, &codes, 0, biased);
    }
    Scales::Affine { scales: scales.into(), offsets: offsets.into() }
}

fn quantize_nf4(cols: usize, weights: &[f32], out: &mut Vec<u8>) -> Scales {
    let (mut rows, mut groups) = (Vec::new(), Vec::new());
    let mut codes = vec![0; cols];
    let mut scales = Vec::new();
    for row in weights.chunks_exact(cols) {
        let blocks = row.chunks(Group::G64.len()).zip(codes.chunks_mut(Group::G64.len()));
        scales.clear();
        scales.extend(blocks.map(|(weights, codes)| nf4::encode(weights, codes)));
        rows.push(nf4::nest(&scales, &mut groups));
        extend_nibbles(out, &codes, nf4::ZERO, |code| code);
    }
    Scales::Nested { rows: rows.into(), groups: groups.into() }
}

/// Appends a row of codes, two to a byte; the code of `zero` fills the last.
fn extend_nibbles<T: Copy>(out: &mut Vec<u8>, row: &[T], zero: T, nibble: impl Fn(T) -> u8) {
    let (pairs, rest) = row.as_chunks::<2>();
    out.extend(pairs.iter().map(|&[low, high]| nibble(low) | nibble(high) << 4));
    out.extend(rest.iter().map(|&last| nibble(last) | nibble(zero) << 4));
}

/// A signed code as a nibble.
fn biased(code: i8) -> u8 {
    (code + 8) as u8
}
