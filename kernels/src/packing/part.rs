//! One of the matrices that become one, as bytes.

use std::borrow::Cow;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rewind_formats::{Format, Packed, Scales};

use super::Elements;
use super::layout::Kind;

/// One of the matrices, as bytes.
#[derive(Clone, Debug)]
pub(super) struct Part<'a> {
    pub(super) kind: Kind,
    pub(super) rows: usize,
    row_bytes: usize,
    codes: Cow<'a, [u8]>,
    pub(super) scales: PartScales<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum PartScales<'a> {
    None,
    PerRow(&'a [f32]),
    PerGroup { scales: &'a [f16], per_row: usize },
    Affine { scales: &'a [f16], offsets: &'a [f16], per_row: usize },
    Nested { rows: &'a [f32], groups: &'a [u8], per_row: usize },
}

impl<'a> Part<'a> {
    /// None if the width is not `cols`.
    pub(super) fn new(cols: usize, elements: &Elements<'a>) -> Option<Self> {
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
                scales: PartScales::of(packed),
            }),
        }
    }

    pub(super) fn row_codes(&self, row: usize) -> &[u8] {
        &self.codes[row * self.row_bytes..][..self.row_bytes]
    }
}

impl<'a> PartScales<'a> {
    fn of(packed: &'a Packed) -> Self {
        let per_row = packed.format().groups_per_row(packed.cols());
        match packed.scales() {
            Scales::None => Self::None,
            Scales::PerRow(scales) => Self::PerRow(scales),
            Scales::PerGroup(scales) => Self::PerGroup { scales, per_row },
            Scales::Affine { scales, offsets } => Self::Affine { scales, offsets, per_row },
            Scales::Nested { rows, groups } => Self::Nested { rows, groups, per_row },
        }
    }
}

/// Whether codes are taken apart first: 6-bit ones, whose bits go to two places.
fn is_widened(packed: &Packed) -> bool {
    matches!(packed.format(), Format::Int6Group(_))
}

/// 6-bit codes + 32, a byte each.
fn widened<'a>(packed: &Packed) -> Cow<'a, [u8]> {
    let rows = 0..packed.rows();
    let row = |row| (0..packed.cols()).map(move |col| (packed.code(row, col) + 32) as u8);
    rows.flat_map(row).collect()
}
