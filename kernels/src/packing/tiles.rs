//! A packed matrix in one piece, and the way back.

use half::{bf16, f16};
use rewind_formats::{e4m3, nf4};

use super::layout::{Kind, Layout, scale_place};
use super::{Elements, Order, PANEL_ROWS, Packing, PackingError, QUAD_BYTES, TILE_ROWS};
use crate::arguments::{Address, Matrix};

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

    /// The exact value of the weight at a row of the tiles (padding and turns included); the kernels round numbers
    /// of NF4 to f16.
    ///
    /// # Panics
    /// If the position is out of range.
    pub fn value(&self, row: usize, col: usize) -> f32 {
        let Layout { kind, cols, .. } = self.layout;
        assert!(row < self.padded_rows() && col < cols, "({row}, {col})");
        let (panel, row_of_panel) = (row / PANEL_ROWS, row % PANEL_ROWS);
        let (tile, half, group) = (row_of_panel / TILE_ROWS, row / 8 % 2, row % 8);
        let unit_bytes = self.layout.unit_bytes();
        let unit = (panel * self.layout.units() + col / kind.unit_inputs()) * unit_bytes;
        // Byte of a lane's first code, where a lane has `stretch` neighbours of a block.
        let quads = if kind == Kind::F32 { 2 } else { 1 };
        let lane = |stretch: usize| 4 * group + col / stretch % 4;
        let start = |stretch: usize| unit + tile * quads * QUAD_BYTES + lane(stretch) * 16;
        let bytes = |at: usize| [self.codes[at], self.codes[at + 1]];
        // Of eight bits and less: the input among the lane's eight, the register that it goes to.
        let input = col % 8;
        let register = input % 4 / 2 * 2 + half;
        let byte = || self.codes[start(8) + input / 2 * 4 + half * 2 + input % 2];
        let int8 = || f32::from(i16::from(byte()) - 128);
        let nibble = |number: usize| {
            let word = start(8) + col % 64 / 32 * 8 + input / 4 * 4;
            self.codes[word + number / 2] >> (number % 2 * 4) & 15
        };
        let int4 = || f32::from(nibble(register + input % 2 * 4)) - 8.0;
        let row_scale = || {
            let at = panel * self.layout.panel_scales() + 4 * row_of_panel;
            f32::from_le_bytes(std::array::from_fn(|i| self.scales[at + i]))
        };
        let place = scale_place(row_of_panel);
        let half_at = |first: usize| {
            let at = self.layout.group_at(row, col) + first + 2 * place;
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
            Kind::Int8Group(_) => int8() * half_at(0),
            Kind::Int6Group(_) => {
                let pairs = unit + 2 * QUAD_BYTES + tile * QUAD_BYTES / 2 + lane(8) * 8;
                let bit = 8 * (input / 4) + 2 * register + 16 * (input % 2);
                let high = self.codes[pairs + col % 64 / 32 * 4 + bit / 8] >> (bit % 8) & 3;
                let code = nibble(register + input % 2 * 4) | high << 4;
                (f32::from(code) - 32.0) * half_at(0)
            }
            Kind::Int4Group(_) => int4() * half_at(0),
            Kind::Int4Affine(_) => int4() * half_at(0) + half_at(2 * PANEL_ROWS),
            Kind::Nf4 => {
                let number = nf4::NUMBERS[usize::from(nibble(2 * register + input % 2))];
                let factor = self.scales[self.layout.group_at(row, col) + place];
                number * (f32::from(factor) * row_scale())
            }
        }
    }
}
