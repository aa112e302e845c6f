//! Scales of a matrix, and those of some of its rows on their way in.

use half::f16;
use rewind_formats::{Format, Scales};

use super::Layout;
use crate::arch::BLOCK;

/// Scales of integer codes.
#[derive(Debug)]
pub(crate) enum BlockScales {
    /// One for a row.
    Row(Vec<f32>),
    /// One for a group.
    Group(Groups),
    /// One for a group, and an offset.
    Affine { scales: Groups, offsets: Groups },
}

/// A number for each `1 << shift` blocks of a row.
#[derive(Debug)]
pub(crate) struct Groups {
    pub(crate) values: Vec<f16>,
    /// Numbers of a row.
    pub(crate) per_row: usize,
    /// log₂ of the blocks in a group.
    pub(crate) shift: u32,
}

/// A scale for a row, and a factor for each [`RUN`](crate::order::RUN) of it.
#[derive(Debug)]
pub(crate) struct NestedScales {
    pub(crate) rows: Vec<f32>,
    pub(crate) factors: Vec<u8>,
    /// Factors of a row.
    pub(crate) per_row: usize,
}

impl BlockScales {
    /// Zeros for a matrix of an integer format, of so many rows with their padding.
    pub(super) fn zeroed(format: Format, padded_rows: usize, cols: usize) -> Self {
        let groups = || Groups {
            values: vec![f16::ZERO; padded_rows * format.groups_per_row(cols)],
            per_row: format.groups_per_row(cols),
            shift: format.group().map_or(0, |group| (group.len() / BLOCK).ilog2()),
        };
        match format {
            Format::Int4Affine(_) => Self::Affine { scales: groups(), offsets: groups() },
            _ if format.group().is_some() => Self::Group(groups()),
            _ => Self::Row(vec![0.0; padded_rows]),
        }
    }

    /// The exact value of a code.
    pub(super) fn value(&self, layout: Layout, row: usize, col: usize, code: f32) -> f32 {
        match self {
            Self::Row(scales) => code * scales[row],
            Self::Group(scales) => code * scales.of(layout, row, col),
            Self::Affine { scales, offsets } => {
                code * scales.of(layout, row, col) + offsets.of(layout, row, col)
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Row(scales) => size_of_val::<[f32]>(scales),
            Self::Group(scales) => scales.bytes(),
            Self::Affine { scales, offsets } => scales.bytes() + offsets.bytes(),
        }
    }

    pub(super) fn part(&mut self) -> PartScales<'_> {
        match self {
            Self::Row(scales) => PartScales::Row(scales),
            Self::Group(scales) => PartScales::Group(&mut scales.values, scales.per_row),
            Self::Affine { scales, offsets } => {
                PartScales::Affine([&mut scales.values, &mut offsets.values], scales.per_row)
            }
        }
    }
}

impl Groups {
    fn of(&self, layout: Layout, row: usize, col: usize) -> f32 {
        self.values[layout.scale(row, (col / BLOCK) >> self.shift, self.per_row)].to_f32()
    }

    fn bytes(&self) -> usize {
        size_of_val::<[f16]>(&self.values)
    }
}

impl NestedScales {
    pub(super) fn zeroed(format: Format, padded_rows: usize, cols: usize) -> Self {
        let per_row = format.groups_per_row(cols);
        let factors = vec![0; padded_rows * per_row];
        Self { rows: vec![0.0; padded_rows], factors, per_row }
    }

    /// The exact value of a number.
    pub(super) fn value(&self, layout: Layout, row: usize, group: usize, number: f32) -> f32 {
        let factor = self.factors[layout.scale(row, group, self.per_row)];
        number * (f32::from(factor) * self.rows[row])
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val::<[f32]>(&self.rows) + self.factors.len()
    }

    pub(super) fn part(&mut self) -> PartScales<'_> {
        PartScales::Nested(&mut self.rows, &mut self.factors, self.per_row)
    }
}

/// Scales of a run of rows; where there are groups, with their number in a row.
#[derive(Debug)]
pub(super) enum PartScales<'a> {
    Row(&'a mut [f32]),
    Group(&'a mut [f16], usize),
    /// Scales and offsets.
    Affine([&'a mut [f16]; 2], usize),
    Nested(&'a mut [f32], &'a mut [u8], usize),
}

impl PartScales<'_> {
    pub(super) fn split(self, rows: usize) -> (Self, Self) {
        match self {
            Self::Row(scales) => {
                let (own, rest) = scales.split_at_mut(rows);
                (Self::Row(own), Self::Row(rest))
            }
            Self::Group(values, per_row) => {
                let (own, rest) = values.split_at_mut(rows * per_row);
                (Self::Group(own, per_row), Self::Group(rest, per_row))
            }
            Self::Affine(both, per_row) => {
                let [(scales, more), (offsets, rest)] =
                    both.map(|values| values.split_at_mut(rows * per_row));
                (Self::Affine([scales, offsets], per_row), Self::Affine([more, rest], per_row))
            }
            Self::Nested(scales, factors, per_row) => {
                let (scales, more) = scales.split_at_mut(rows);
                let (factors, rest) = factors.split_at_mut(rows * per_row);
                (Self::Nested(scales, factors, per_row), Self::Nested(more, rest, per_row))
            }
        }
    }

    /// Takes the scales of rows from `at` on.
    pub(super) fn copy(&mut self, layout: Layout, at: usize, from: &Scales) {
        match (self, from) {
            (Self::Row(to), Scales::PerRow(from)) => to[at..][..from.len()].copy_from_slice(from),
            (Self::Group(to, per_row), Scales::PerGroup(from)) => {
                spread(to, layout, at, *per_row, from);
            }
            (Self::Affine([to, to_offsets], per_row), Scales::Affine { scales, offsets }) => {
                spread(to, layout, at, *per_row, scales);
                spread(to_offsets, layout, at, *per_row, offsets);
            }
            (Self::Nested(to, factors, per_row), Scales::Nested { rows, groups }) => {
                to[at..][..rows.len()].copy_from_slice(rows);
                spread(factors, layout, at, *per_row, groups);
            }
            (to, from) => unreachable!("{to:?} cannot hold {from:?}"),
        }
    }
}

/// Puts numbers of groups in place, row by row from `at` on.
fn spread<T: Copy>(to: &mut [T], layout: Layout, at: usize, per_row: usize, from: &[T]) {
    for (row, from) in from.chunks(per_row).enumerate() {
        for (group, value) in from.iter().enumerate() {
            to[layout.scale(at + row, group, per_row)] = *value;
        }
    }
}
