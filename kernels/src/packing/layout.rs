//! What the kernels call the formats, and where everything of a packed matrix lies.

use half::f16;
use rewind_formats::{Format, Group};

use super::{Order, PANEL_ROWS, QUAD_BYTES};
use crate::arguments::{
    Address, FORMAT_BF16, FORMAT_F16, FORMAT_F32, FORMAT_FP8, FORMAT_INT4_AFFINE,
    FORMAT_INT4_GROUP, FORMAT_INT6_GROUP, FORMAT_INT8, FORMAT_INT8_GROUP, FORMAT_NF4, Matrix,
};

/// A format as the kernels tell them apart, with the length of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
    Int8,
    Int8Group(usize),
    Int6Group(usize),
    Int4Group(usize),
    Int4Affine(usize),
    Nf4,
    Fp8,
}

impl Kind {
    pub(super) fn of(format: Format) -> Self {
        match format {
            Format::F16 => Self::F16,
            Format::Bf16 => Self::Bf16,
            Format::Int8 => Self::Int8,
            Format::Fp8 => Self::Fp8,
            Format::Nf4 => Self::Nf4,
            Format::Int8Group(group) => Self::Int8Group(group.len()),
            Format::Int6Group(group) => Self::Int6Group(group.len()),
            Format::Int4Group(group) => Self::Int4Group(group.len()),
            Format::Int4Affine(group) => Self::Int4Affine(group.len()),
        }
    }

    pub(super) fn unit_inputs(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 16,
            Self::Int8 | Self::Int8Group(_) | Self::Fp8 => 32,
            Self::Int6Group(_) | Self::Int4Group(_) | Self::Int4Affine(_) | Self::Nf4 => 64,
        }
    }

    /// Weights of a group; 0 where there are none.
    fn group(self) -> usize {
        match self {
            Self::Int8Group(len)
            | Self::Int6Group(len)
            | Self::Int4Group(len)
            | Self::Int4Affine(len) => len,
            Self::Nf4 => Group::G64.len(),
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
            Self::Int6Group(_) => FORMAT_INT6_GROUP,
            Self::Int4Group(_) => FORMAT_INT4_GROUP,
            Self::Int4Affine(_) => FORMAT_INT4_AFFINE,
            Self::Nf4 => FORMAT_NF4,
            Self::Fp8 => FORMAT_FP8,
        }
    }
}

/// Sizes of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) kind: Kind,
    /// Without padding; of both matrices if their tiles alternate.
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) panels: usize,
}

impl Layout {
    pub(super) fn units(&self) -> usize {
        self.cols.div_ceil(self.kind.unit_inputs())
    }

    /// Of a panel's unit.
    pub(super) fn unit_bytes(&self) -> usize {
        match self.kind {
            Kind::F32 => 4 * QUAD_BYTES,
            Kind::Int6Group(_) => 3 * QUAD_BYTES,
            _ => 2 * QUAD_BYTES,
        }
    }

    pub(super) fn panel_codes(&self) -> usize {
        self.units() * self.unit_bytes()
    }

    /// Groups of a row, those included that only the padding of its last unit has.
    fn groups(&self) -> usize {
        let inputs = self.units() * self.kind.unit_inputs();
        if self.kind.group() == 0 { 0 } else { inputs.div_ceil(self.kind.group()) }
    }

    /// Bytes of the scales of a panel's rows, which come before those of its groups.
    pub(super) fn row_scales(&self) -> usize {
        match self.kind {
            Kind::Int8 | Kind::Fp8 | Kind::Nf4 => PANEL_ROWS * size_of::<f32>(),
            _ => 0,
        }
    }

    /// Bytes of the scales of a group of a panel, and of the offsets behind them.
    pub(super) fn group_scales(&self) -> usize {
        match self.kind {
            Kind::F32 | Kind::F16 | Kind::Bf16 | Kind::Int8 | Kind::Fp8 => 0,
            Kind::Int8Group(_) | Kind::Int6Group(_) | Kind::Int4Group(_) => {
                PANEL_ROWS * size_of::<f16>()
            }
            Kind::Int4Affine(_) => 2 * PANEL_ROWS * size_of::<f16>(),
            Kind::Nf4 => PANEL_ROWS,
        }
    }

    pub(super) fn panel_scales(&self) -> usize {
        self.row_scales() + self.groups() * self.group_scales()
    }

    /// Byte of the scales of the group of a row of the tiles at an input.
    pub(super) fn group_at(&self, row: usize, col: usize) -> usize {
        let group = col / self.kind.group() * self.group_scales();
        row / PANEL_ROWS * self.panel_scales() + self.row_scales() + group
    }

    /// All sizes fit, as `Packing::new` has checked.
    pub(super) fn matrix(&self, order: Order, codes: Address, scales: Address) -> Matrix {
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

/// Place of a panel's row among the scales of its group: rows g and g + 8 of both tiles are
/// neighbours, for one load.
pub(super) fn scale_place(row: usize) -> usize {
    4 * (row % 8) + row / 8
}
