//! Weights in the order that the matrix products read them.
//!
//! `matrix.cuh` says what the layout is and why; this is its other half. A matrix becomes panels of
//! [`PANEL_ROWS`] rows, two tiles of [`TILE_ROWS`], in units that a warp loads at once, 16 bytes (two times 16
//! for f32) to a lane; scales follow in an array of their own. Codes keep their exact values; rows,
//! columns and groups that only fill up are zero. Matrices of one width can be packed as one, below
//! each other (queries, keys and values) or tile by tile in turns (gate and up).
//!
//! [`Packing`] knows the sizes and packs any range of panels, so that callers may spread the work over
//! threads and write where they like; [`Tiles`] is the whole in one piece.

use std::borrow::Cow;
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rewind_formats::{Format, Packed, Scales, e4m3};

use crate::arguments::{
    Address, FORMAT_BF16, FORMAT_F16, FORMAT_F32, FORMAT_FP8, FORMAT_INT4_GROUP, FORMAT_INT8,
    FORMAT_INT8_GROUP, Matrix,
};

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;

/// Rows of a panel, two tiles, which is what a block of a product works on.
pub const PANEL_ROWS: usize = 2 * TILE_ROWS;

/// Inputs of the longest unit: rows of activations whose length is a multiple of it fit every format.
pub const INPUT_UNIT: usize = 64;

/// Bytes of a unit for each lane's 16.
const QUAD_BYTES: usize = 512;

/// The weights of one matrix, row-major.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// Full precision.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// Any canonical format.
    Packed(&'a Packed),
}

/// How the rows of several matrices follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// All rows of the first, then all of the second, and so on; only the end is padded.
    Stacked,
    /// Tile 2i is tile i of the first, tile 2i + 1 that of the second; both have as many rows, and are
    /// padded to whole tiles. What an epilogue that joins the two takes.
    Interleaved,
}

/// Why matrices could not be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackingError {
    /// There is nothing to pack.
    #[error("there are no weights to pack")]
    Empty,
    /// A slice is not made of whole rows, or a packed matrix has another width.
    #[error("matrix {part} cannot have rows of {cols} weights")]
    Width {
        /// Which of the matrices, from 0.
        part: usize,
        /// Columns as given.
        cols: usize,
    },
    /// All matrices must have the format of the first.
    #[error("matrix {part} has another format than the first")]
    Format {
        /// Which of the matrices, from 0.
        part: usize,
    },
    /// Only two matrices with as many rows can take turns.
    #[error("tiles of matrices with {rows:?} rows cannot alternate")]
    Turns {
        /// Rows of each.
        rows: Vec<usize>,
    },
    /// Kernels count in 32 bits.
    #[error("{rows} rows by {cols} columns are more than the kernels can count")]
    TooLarge {
        /// Rows in all.
        rows: usize,
        /// Columns.
        cols: usize,
    },
}

/// The layout of one matrix to be, with the weights that go into it.
#[derive(Clone, Debug)]
pub struct Packing<'a> {
    layout: Layout,
    order: Order,
    parts: Vec<Part<'a>>,
}

impl<'a> Packing<'a> {
    /// Plans to pack matrices with rows of `cols` weights as one.
    ///
    /// # Errors
    /// The matrices do not go together; see [`PackingError`].
    pub fn new(cols: usize, matrices: &[Elements<'a>], order: Order) -> Result<Self, PackingError> {
        let parts = matrices
            .iter()
            .enumerate()
            .map(|(i, elements)| {
                Part::new(cols, elements).ok_or(PackingError::Width { part: i, cols })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let first = parts.first().filter(|part| part.rows > 0).ok_or(PackingError::Empty)?;
        let kind = first.kind;
        if let Some(part) = parts.iter().position(|part| part.kind != kind) {
            return Err(PackingError::Format { part });
        }
        if order == Order::Interleaved && (parts.len() != 2 || parts[0].rows != parts[1].rows) {
            return Err(PackingError::Turns { rows: parts.iter().map(|part| part.rows).collect() });
        }
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        let panels = match order {
            Order::Stacked => rows.div_ceil(PANEL_ROWS),
            Order::Interleaved => first.rows.div_ceil(TILE_ROWS),
        };
        // Kernels reach 64 rows of activations, 4 bytes a column, in 32 bits.
        if u32::try_from(panels * PANEL_ROWS).is_err() || cols > (1 << 23) {
            return Err(PackingError::TooLarge { rows, cols });
        }
        Ok(Self { layout: Layout { kind, rows, cols, panels }, order, parts })
    }

    /// Panels in all.
    pub fn panels(&self) -> usize {
        self.layout.panels
    }

    /// Bytes of codes of a panel.
    pub fn panel_codes(&self) -> usize {
        self.layout.panel_codes()
    }

    /// Bytes of scales of a panel; 0 if the format has none.
    pub fn panel_scales(&self) -> usize {
        self.layout.panel_scales()
    }

    /// Packs some panels.
    ///
    /// # Panics
    /// If the panels do not exist, or a slice is not as long as they take.
    pub fn pack(&self, panels: Range<usize>, codes: &mut [u8], scales: &mut [u8]) {
        let (panel_codes, panel_scales) = (self.panel_codes(), self.panel_scales());
        assert!(panels.end <= self.panels(), "panels {panels:?} of {}", self.panels());
        assert_eq!(codes.len(), panels.len() * panel_codes, "bytes of codes");
        assert_eq!(scales.len(), panels.len() * panel_scales, "bytes of scales");
        for (i, panel) in panels.enumerate() {
            let rows = std::array::from_fn(|i| self.row(panel, i));
            self.pack_codes(&rows, &mut codes[i * panel_codes..][..panel_codes]);
            self.pack_scales(&rows, &mut scales[i * panel_scales..][..panel_scales]);
        }
    }

    /// What the kernels are told of it.
    pub fn matrix(&self, codes: Address, scales: Address) -> Matrix {
        self.layout.matrix(self.order, codes, scales)
    }

    /// The matrix and its row that become row `i` of a panel; none is padding.
    fn row(&self, panel: usize, i: usize) -> Option<(&Part<'a>, usize)> {
        match self.order {
            Order::Interleaved => {
                let part = &self.parts[i / TILE_ROWS];
                let row = panel * TILE_ROWS + i % TILE_ROWS;
                (row < part.rows).then_some((part, row))
            }
            Order::Stacked => {
                let mut row = panel * PANEL_ROWS + i;
                for part in &self.parts {
                    if row < part.rows {
                        return Some((part, row));
                    }
                    row -= part.rows;
                }
                None
            }
        }
    }

    fn pack_codes(&self, rows: &[Option<(&Part<'a>, usize)>; PANEL_ROWS], out: &mut [u8]) {
        let rows = rows.map(|row| row.map_or(&[][..], |(part, row)| part.row_codes(row)));
        match self.layout.kind {
            Kind::F32 => pack_units::<64>(&rows, 0, out, encode_f32),
            Kind::F16 | Kind::Bf16 => pack_units::<32>(&rows, 0, out, encode_16),
            // Code + 128.
            Kind::Int8 | Kind::Int8Group(_) => pack_units::<32>(&rows, 0, out, encode_8::<0x80>),
            Kind::Fp8 => pack_units::<32>(&rows, 0, out, encode_8::<0>),
            Kind::Int4Group(_) => pack_units::<32>(&rows, ZERO_NIBBLES, out, encode_4),
        }
    }

    fn pack_scales(&self, rows: &[Option<(&Part<'a>, usize)>; PANEL_ROWS], out: &mut [u8]) {
        out.fill(0);
        for (i, (part, row)) in rows.iter().enumerate().filter_map(|(i, row)| Some((i, (*row)?))) {
            match part.scales {
                PartScales::None => {}
                PartScales::PerRow(scales) => {
                    out[4 * i..][..4].copy_from_slice(&scales[row].to_le_bytes());
                }
                PartScales::PerGroup { scales, per_row } => {
                    let place = scale_place(i);
                    let groups = out.chunks_exact_mut(2 * PANEL_ROWS);
                    for (out, scale) in groups.zip(&scales[row * per_row..][..per_row]) {
                        out[2 * place..][..2].copy_from_slice(&scale.to_le_bytes());
                    }
                }
            }
        }
    }
}

/// Place of a panel's row among the scales of its group: rows g and g + 8 of both tiles are
/// neighbours, for one load.
fn scale_place(row: usize) -> usize {
    4 * (row % 8) + row / 8
}

/// Codes and scales of a matrix, packed.
#[derive(Clone, Debug, PartialEq)]
pub struct Tiles {
    /// Codes of all panels.
    pub codes: Vec<u8>,
    /// Scales of all panels; empty if the format has none.
    pub scales: Vec<u8>,
    layout: Layout,
    order: Order,
}

impl Tiles {
    /// Packs matrices with rows of `cols` weights as one.
    ///
    /// # Errors
    /// As [`Packing::new`].
    pub fn pack(
        cols: usize,
        matrices: &[Elements<'_>],
        order: Order,
    ) -> Result<Self, PackingError> {
        let packing = Packing::new(cols, matrices, order)?;
        let mut codes = vec![0; packing.panels() * packing.panel_codes()];
        let mut scales = vec![0; packing.panels() * packing.panel_scales()];
        packing.pack(0..packing.panels(), &mut codes, &mut scales);
        Ok(Self { codes, scales, layout: packing.layout, order })
    }

    /// What the kernels are told, with codes and scales at these addresses.
    pub fn matrix(&self, codes: Address, scales: Address) -> Matrix {
        self.layout.matrix(self.order, codes, scales)
    }

    /// Rows as they lie in the tiles, padding included.
    pub fn padded_rows(&self) -> usize {
        self.layout.panels * PANEL_ROWS
    }

    /// The exact value of the weight at a row of the tiles (padding and turns included).
    ///
    /// # Panics
    /// If the position is out of range.
    pub fn value(&self, row: usize, col: usize) -> f32 {
        let Layout { kind, cols, .. } = self.layout;
        assert!(row < self.padded_rows() && col < cols, "({row}, {col})");
        let (panel, row_of_panel) = (row / PANEL_ROWS, row % PANEL_ROWS);
        let (tile, half, group) = (row_of_panel / TILE_ROWS, row / 8 % 2, row % 8);
        // Byte of a lane's first code, where a lane has `stretch` neighbours of a block.
        let start = |stretch: usize| {
            let unit = panel * self.layout.units() + col / kind.unit_inputs();
            (2 * unit + tile) * self.layout.unit_bytes() / 2 + (4 * group + col / stretch % 4) * 16
        };
        let bytes = |at: usize| [self.codes[at], self.codes[at + 1]];
        let byte = || self.codes[start(8) + col % 8 / 2 * 4 + half * 2 + col % 2];
        let int8 = || f32::from(i16::from(byte()) - 128);
        let row_scale = || {
            let [a, b, c, d] = std::array::from_fn(|i| self.scales[4 * row + i]);
            f32::from_le_bytes([a, b, c, d])
        };
        let group_scale = |len: usize| {
            let at = (panel * self.layout.groups(len) + col / len) * PANEL_ROWS;
            let at = 2 * (at + scale_place(row_of_panel));
            f16::from_le_bytes([self.scales[at], self.scales[at + 1]]).to_f32()
        };
        match kind {
            Kind::F32 => {
                let at = start(4) + col % 4 / 2 * QUAD_BYTES + col % 2 * 8 + half * 4;
                let ([a, b], [c, d]) = (bytes(at), bytes(at + 2));
                f32::from_le_bytes([a, b, c, d])
            }
            Kind::F16 => f16::from_le_bytes(bytes(start(4) + col % 4 * 4 + half * 2)).to_f32(),
            Kind::Bf16 => bf16::from_le_bytes(bytes(start(4) + col % 4 * 4 + half * 2)).to_f32(),
            Kind::Int8 => int8() * row_scale(),
            Kind::Fp8 => e4m3::value(byte()) * row_scale(),
            Kind::Int8Group(len) => int8() * group_scale(len),
            Kind::Int4Group(len) => {
                let word = start(8) + col % 64 / 32 * 8 + col % 8 / 4 * 4;
                let nibble = col % 4 / 2 * 2 + half + col % 2 * 4;
                let code = self.codes[word + nibble / 2] >> (nibble % 2 * 4) & 15;
                (f32::from(code) - 8.0) * group_scale(len)
            }
        }
    }
}

/// Device memory of a matrix: codes and scales, with their padding. Interleaved matrices: `rows` is
/// the sum of both, each rounded up to whole tiles.
pub fn bytes(format: Format, rows: usize, cols: usize) -> usize {
    let panels = rows.div_ceil(PANEL_ROWS);
    let layout = Layout { kind: Kind::of(format), rows, cols, panels };
    panels * (layout.panel_codes() + layout.panel_scales())
}

/// A format as the kernels tell them apart, with the length of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    F32,
    F16,
    Bf16,
    Int8,
    Int8Group(usize),
    Int4Group(usize),
    Fp8,
}

impl Kind {
    fn of(format: Format) -> Self {
        match format {
            Format::F16 => Self::F16,
            Format::Bf16 => Self::Bf16,
            Format::Int8 => Self::Int8,
            Format::Fp8 => Self::Fp8,
            // No kernel reads 6-bit codes yet: they take a byte.
            Format::Int8Group(group) | Format::Int6Group(group) => Self::Int8Group(group.len()),
            Format::Int4Group(group) => Self::Int4Group(group.len()),
        }
    }

    fn unit_inputs(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 16,
            Self::Int8 | Self::Int8Group(_) | Self::Fp8 => 32,
            Self::Int4Group(_) => 64,
        }
    }

    fn group(self) -> usize {
        match self {
            Self::Int8Group(len) | Self::Int4Group(len) => len,
            Self::F32 | Self::F16 | Self::Bf16 | Self::Int8 | Self::Fp8 => 0,
        }
    }

    fn code(self) -> u32 {
        match self {
            Self::F32 => FORMAT_F32,
            Self::F16 => FORMAT_F16,
            Self::Bf16 => FORMAT_BF16,
            Self::Int8 => FORMAT_INT8,
            Self::Int8Group(_) => FORMAT_INT8_GROUP,
            Self::Int4Group(_) => FORMAT_INT4_GROUP,
            Self::Fp8 => FORMAT_FP8,
        }
    }
}

/// Sizes of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    kind: Kind,
    /// Without padding; of both matrices if their tiles alternate.
    rows: usize,
    cols: usize,
    panels: usize,
}

impl Layout {
    fn units(&self) -> usize {
        self.cols.div_ceil(self.kind.unit_inputs())
    }

    /// Of a panel's unit.
    fn unit_bytes(&self) -> usize {
        if self.kind == Kind::F32 { 4 * QUAD_BYTES } else { 2 * QUAD_BYTES }
    }

    fn panel_codes(&self) -> usize {
        self.units() * self.unit_bytes()
    }

    /// Groups of a row, those included that only the padding of its last unit has.
    fn groups(&self, len: usize) -> usize {
        (self.units() * self.kind.unit_inputs()).div_ceil(len)
    }

    fn panel_scales(&self) -> usize {
        match self.kind {
            Kind::F32 | Kind::F16 | Kind::Bf16 => 0,
            Kind::Int8 | Kind::Fp8 => PANEL_ROWS * size_of::<f32>(),
            Kind::Int8Group(len) | Kind::Int4Group(len) => {
                self.groups(len) * PANEL_ROWS * size_of::<f16>()
            }
        }
    }

    /// All sizes fit, as `Packing::new` has checked.
    fn matrix(&self, order: Order, codes: Address, scales: Address) -> Matrix {
        Matrix {
            codes,
            scales,
            rows: self.rows as u32,
            cols: self.cols as u32,
            units: self.units() as u32,
            group: self.kind.group() as u32,
            format: self.kind.code(),
            interleave: u32::from(order == Order::Interleaved),
        }
    }
}

/// One of the matrices, as bytes.
#[derive(Clone, Debug)]
struct Part<'a> {
    kind: Kind,
    rows: usize,
    row_bytes: usize,
    codes: Cow<'a, [u8]>,
    scales: PartScales<'a>,
}

#[derive(Clone, Copy, Debug)]
enum PartScales<'a> {
    None,
    PerRow(&'a [f32]),
    PerGroup { scales: &'a [f16], per_row: usize },
}

impl<'a> Part<'a> {
    /// None if the width is not `cols`.
    fn new(cols: usize, elements: &Elements<'a>) -> Option<Self> {
        let floats = |kind, codes: &'a [u8], element_bytes: usize| {
            let row_bytes = cols * element_bytes;
            (cols > 0 && codes.len().is_multiple_of(row_bytes)).then(|| Self {
                kind,
                rows: codes.len() / row_bytes,
                row_bytes,
                codes: codes.into(),
                scales: PartScales::None,
            })
        };
        match *elements {
            Elements::F32(values) => floats(Kind::F32, bytemuck::cast_slice(values), 4),
            Elements::F16(values) => {
                floats(Kind::F16, bytemuck::cast_slice(values.reinterpret_cast()), 2)
            }
            Elements::Bf16(values) => {
                floats(Kind::Bf16, bytemuck::cast_slice(values.reinterpret_cast()), 2)
            }
            Elements::Packed(packed) => (packed.cols() == cols).then(|| Self {
                kind: Kind::of(packed.format()),
                rows: packed.rows(),
                row_bytes: if is_widened(packed) { cols } else { packed.row_bytes() },
                codes: if is_widened(packed) { widened(packed) } else { packed.codes().into() },
                scales: match packed.scales() {
                    Scales::None => PartScales::None,
                    Scales::PerRow(scales) => PartScales::PerRow(scales),
                    Scales::PerGroup(scales) => PartScales::PerGroup {
                        scales,
                        per_row: packed.format().scales_per_row(cols),
                    },
                },
            }),
        }
    }

    fn row_codes(&self, row: usize) -> &[u8] {
        &self.codes[row * self.row_bytes..][..self.row_bytes]
    }
}

/// Whether codes take more bits here than in their canonical form.
fn is_widened(packed: &Packed) -> bool {
    matches!(packed.format(), Format::Int6Group(_))
}

/// Integer codes, a byte each.
fn widened<'a>(packed: &Packed) -> Cow<'a, [u8]> {
    let rows = 0..packed.rows();
    let row = |row| (0..packed.cols()).map(move |col| packed.code(row, col).cast_unsigned());
    rows.flat_map(row).collect()
}

/// Bytes of an int4 row whose codes are 0.
const ZERO_NIBBLES: u8 = 0x88;

/// Packs a panel unit by unit. `BYTES` are a row's of one unit; `fill` stands where rows end or are none.
/// `encode` gets a tile's rows g and g + 8, and makes the 16 bytes of lanes 4g .. 4g + 4 (of each
/// load), which start at the byte it is told.
fn pack_units<const BYTES: usize>(
    rows: &[&[u8]; PANEL_ROWS],
    fill: u8,
    out: &mut [u8],
    encode: impl Fn(&[u8; BYTES], &[u8; BYTES], usize, &mut [u8]),
) {
    for (tile, out) in out.chunks_exact_mut(BYTES * TILE_ROWS).enumerate() {
        let (unit, first) = (tile / 2, tile % 2 * TILE_ROWS);
        let stretch = |row: usize| {
            let bytes = rows[first + row].get(unit * BYTES..).unwrap_or(&[]);
            bytes.first_chunk().copied().unwrap_or_else(|| {
                let mut padded = [fill; BYTES];
                padded[..bytes.len()].copy_from_slice(bytes);
                padded
            })
        };
        for g in 0..8 {
            encode(&stretch(g), &stretch(g + 8), 64 * g, out);
        }
    }
}

fn put(out: &mut [u8], at: usize, word: u32) {
    out[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

fn encode_f32(low: &[u8; 64], high: &[u8; 64], start: usize, out: &mut [u8]) {
    let (low, high) = (low.as_chunks::<4>().0, high.as_chunks::<4>().0);
    for (i, (low, high)) in low.iter().zip(high).enumerate() {
        let (lane, input) = (i / 4, i % 4);
        let at = input / 2 * QUAD_BYTES + start + 16 * lane + input % 2 * 8;
        out[at..at + 4].copy_from_slice(low);
        out[at + 4..at + 8].copy_from_slice(high);
    }
}

fn encode_16(low: &[u8; 32], high: &[u8; 32], start: usize, out: &mut [u8]) {
    let pairs = low.as_chunks::<2>().0.iter().zip(high.as_chunks::<2>().0);
    for (i, (&low, &high)) in pairs.enumerate() {
        let word = u32::from(u16::from_le_bytes(low)) | u32::from(u16::from_le_bytes(high)) << 16;
        put(out, start + 4 * i, word);
    }
}

/// With some bits of each code turned over.
fn encode_8<const FLIP: u8>(low: &[u8; 32], high: &[u8; 32], start: usize, out: &mut [u8]) {
    let pairs = low.as_chunks::<2>().0.iter().zip(high.as_chunks::<2>().0);
    for (i, (&low, &high)) in pairs.enumerate() {
        let word = u32::from(u16::from_le_bytes(low)) | u32::from(u16::from_le_bytes(high)) << 16;
        put(out, start + 4 * i, word ^ u32::from_le_bytes([FLIP; 4]));
    }
}

fn encode_4(low: &[u8; 32], high: &[u8; 32], start: usize, out: &mut [u8]) {
    // A lane's eight neighbours become a word for each step: of its four, the nibbles 0, 4, 2 and 6. Those of
    // the other row go between.
    let spread = |nibbles: [u8; 4]| {
        let nibbles = u64::from(u32::from_le_bytes(nibbles));
        let steps = nibbles & 0xffff | (nibbles & 0xffff_0000) << 16;
        steps & 0x0000_0f0f_0000_0f0f | (steps & 0x0000_f0f0_0000_f0f0) << 12
    };
    let lanes = low.as_chunks::<4>().0.iter().zip(high.as_chunks::<4>().0);
    for (i, (&low, &high)) in lanes.enumerate() {
        let at = start + i % 4 * 16 + i / 4 * 8;
        let words = spread(low) | spread(high) << 4;
        out[at..at + 8].copy_from_slice(&words.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.7).collect()
    }

    fn formats() -> impl Iterator<Item = Format> {
        rewind_formats::FORMAT_NAMES.split(", ").map(|name| name.parse().unwrap())
    }

    #[test]
    fn every_value_is_found_again() {
        for format in formats() {
            for (rows, cols) in [(1, 1), (15, 32), (16, 33), (33, 64), (100, 100), (20, 576)] {
                let packed = Packed::quantize(format, rows, cols, &weights(rows, cols)).unwrap();
                let parts = [Elements::Packed(&packed)];
                let tiles = Tiles::pack(cols, &parts, Order::Stacked).unwrap();
                assert_eq!(tiles.codes.len() + tiles.scales.len(), bytes(format, rows, cols));
                for row in 0..tiles.padded_rows() {
                    for col in 0..cols {
                        let value = if row < rows { packed.value(row, col) } else { 0.0 };
                        assert_eq!(tiles.value(row, col), value, "{format} {row} {col}");
                    }
                }
            }
        }
    }

    #[test]
    fn float_slices_are_found_again() {
        let (rows, cols) = (19, 37);
        let exact = weights(rows, cols);
        let halves: Vec<f16> = exact.iter().map(|&x| f16::from_f32(x)).collect();
        let brains: Vec<bf16> = exact.iter().map(|&x| bf16::from_f32(x)).collect();
        let tiles = |elements| Tiles::pack(cols, &[elements], Order::Stacked).unwrap();
        let [single, half, brain] = [
            tiles(Elements::F32(&exact)),
            tiles(Elements::F16(&halves)),
            tiles(Elements::Bf16(&brains)),
        ];
        for (i, &x) in exact.iter().enumerate() {
            let (row, col) = (i / cols, i % cols);
            assert_eq!(single.value(row, col), x);
            assert_eq!(half.value(row, col), halves[i].to_f32());
            assert_eq!(brain.value(row, col), brains[i].to_f32());
        }
    }

    #[test]
    fn parts_are_stacked_row_by_row() {
        let cols = 40;
        for format in formats() {
            let parts = [18, 3, 5]
                .map(|rows| Packed::quantize(format, rows, cols, &weights(rows, cols)).unwrap());
            let elements = parts.each_ref().map(Elements::Packed);
            let tiles = Tiles::pack(cols, &elements, Order::Stacked).unwrap();
            let matrix = tiles.matrix(Address(256), Address(512));
            assert_eq!((matrix.rows, matrix.cols, matrix.interleave), (26, 40, 0));
            let rows = parts.iter().flat_map(|part| (0..part.rows()).map(move |row| (part, row)));
            for (i, (part, row)) in rows.enumerate() {
                for col in 0..cols {
                    assert_eq!(tiles.value(i, col), part.value(row, col), "{format} {i} {col}");
                }
            }
        }
    }

    #[test]
    fn gate_and_up_take_turns() {
        let (rows, cols) = (35, 70);
        for format in formats() {
            let gate = Packed::quantize(format, rows, cols, &weights(rows, cols)).unwrap();
            let negated: Vec<f32> = weights(rows, cols).iter().map(|x| -x / 2.0).collect();
            let up = Packed::quantize(format, rows, cols, &negated).unwrap();
            let elements = [Elements::Packed(&gate), Elements::Packed(&up)];
            let tiles = Tiles::pack(cols, &elements, Order::Interleaved).unwrap();
            assert_eq!(tiles.padded_rows(), 96);
            let matrix = tiles.matrix(Address(256), Address(512));
            assert_eq!((matrix.rows, matrix.interleave), (70, 1));
            for row in 0..96 {
                let (part, row_in) = ([&gate, &up][row / 16 % 2], row / 32 * 16 + row % 16);
                for col in 0..cols {
                    let value = if row_in < rows { part.value(row_in, col) } else { 0.0 };
                    assert_eq!(tiles.value(row, col), value, "{format} {row} {col}");
                }
            }
        }
    }

    #[test]
    fn ranges_of_panels_make_the_whole() {
        let packed =
            Packed::quantize("int4-g64".parse().unwrap(), 90, 200, &weights(90, 200)).unwrap();
        let elements = [Elements::Packed(&packed)];
        let packing = Packing::new(200, &elements, Order::Stacked).unwrap();
        let whole = Tiles::pack(200, &elements, Order::Stacked).unwrap();
        let (codes, scales) = (packing.panel_codes(), packing.panel_scales());
        for range in [0..1, 1..2, 2..packing.panels()] {
            let mut part = (vec![1; range.len() * codes], vec![1; range.len() * scales]);
            packing.pack(range.clone(), &mut part.0, &mut part.1);
            assert_eq!(part.0, whole.codes[range.start * codes..range.end * codes]);
            assert_eq!(part.1, whole.scales[range.start * scales..range.end * scales]);
        }
    }

    #[test]
    fn matrices_that_do_not_go_together_are_refused() {
        let values = weights(6, 8);
        let one = Elements::F32(&values);
        let error = |cols, parts: &[Elements<'_>], order| Packing::new(cols, parts, order).err();
        assert_eq!(error(8, &[], Order::Stacked), Some(PackingError::Empty));
        assert_eq!(error(8, &[Elements::F32(&[])], Order::Stacked), Some(PackingError::Empty));
        let width = PackingError::Width { part: 1, cols: 8 };
        let odd = Elements::F32(&values[..7]);
        assert_eq!(error(8, &[one, odd], Order::Stacked), Some(width));
        assert_eq!(
            error(0, &[one], Order::Stacked),
            Some(PackingError::Width { part: 0, cols: 0 })
        );
        let half = [f16::ONE; 8];
        let format = Some(PackingError::Format { part: 1 });
        assert_eq!(error(8, &[one, Elements::F16(&half)], Order::Stacked), format);
        let turns = Some(PackingError::Turns { rows: vec![6, 1] });
        assert_eq!(error(8, &[one, Elements::F32(&values[..8])], Order::Interleaved), turns);
    }
}
