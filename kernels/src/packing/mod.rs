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

mod encode;
mod layout;
mod part;
mod tiles;

use std::ops::Range;

use half::{bf16, f16};
use rewind_formats::{Format, Packed};

use self::encode::{
    ZERO_NIBBLES, ZERO_NUMBERS, ZERO_SIX, encode_4, encode_6, encode_8, encode_16, encode_f32,
    encode_nf4, pack_units,
};
use self::layout::{Kind, Layout, scale_place};
use self::part::{Part, PartScales};
pub use self::tiles::Tiles;
use crate::arguments::{Address, Matrix};

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
        let unit = self.layout.unit_bytes();
        match self.layout.kind {
            Kind::F32 => pack_units::<64>(&rows, 0, unit, out, encode_f32),
            Kind::F16 | Kind::Bf16 => pack_units::<32>(&rows, 0, unit, out, encode_16),
            // Code + 128.
            Kind::Int8 | Kind::Int8Group(_) => {
                pack_units::<32>(&rows, 0, unit, out, encode_8::<0x80>);
            }
            Kind::Fp8 => pack_units::<32>(&rows, 0, unit, out, encode_8::<0>),
            Kind::Int6Group(_) => pack_units::<64>(&rows, ZERO_SIX, unit, out, encode_6),
            Kind::Int4Group(_) | Kind::Int4Affine(_) => {
                pack_units::<32>(&rows, ZERO_NIBBLES, unit, out, encode_4);
            }
            Kind::Nf4 => pack_units::<32>(&rows, ZERO_NUMBERS, unit, out, encode_nf4),
        }
    }

    fn pack_scales(&self, rows: &[Option<(&Part<'a>, usize)>; PANEL_ROWS], out: &mut [u8]) {
        out.fill(0);
        let (of_rows, of_groups) = out.split_at_mut(self.layout.row_scales());
        let group_bytes = self.layout.group_scales();
        for (i, (part, row)) in rows.iter().enumerate().filter_map(|(i, row)| Some((i, (*row)?))) {
            let mut put_row =
                |scale: f32| of_rows[4 * i..][..4].copy_from_slice(&scale.to_le_bytes());
            let place = scale_place(i);
            let mut put_halves = |first: usize, halves: &[f16], per_row: usize| {
                let groups = of_groups.chunks_exact_mut(group_bytes);
                for (out, half) in groups.zip(&halves[row * per_row..][..per_row]) {
                    out[first + 2 * place..][..2].copy_from_slice(&half.to_le_bytes());
                }
            };
            match part.scales {
                PartScales::None => {}
                PartScales::PerRow(scales) => put_row(scales[row]),
                PartScales::PerGroup { scales, per_row } => put_halves(0, scales, per_row),
                PartScales::Affine { scales, offsets, per_row } => {
                    put_halves(0, scales, per_row);
                    put_halves(2 * PANEL_ROWS, offsets, per_row);
                }
                PartScales::Nested { rows, groups: factors, per_row } => {
                    put_row(rows[row]);
                    let groups = of_groups.chunks_exact_mut(group_bytes);
                    for (out, factor) in groups.zip(&factors[row * per_row..][..per_row]) {
                        out[place] = *factor;
                    }
                }
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
