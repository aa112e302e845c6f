//! Random matrices in every format that the products take.

use anyhow::Result;
use rewind_formats::{FORMAT_NAMES, Format, Packed, e4m3};
use rewind_kernels::arguments::{Address, Matrix};
use rewind_kernels::packing::{Elements, Order, Tiles};

use crate::{Lab, Random};

/// A matrix with known weights.
pub(crate) struct Weights {
    /// Format and shape, for messages.
    pub(crate) name: String,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    storage: Storage,
}

enum Storage {
    F32(Vec<f32>),
    Packed(Packed),
}

impl Weights {
    /// One matrix in each format.
    pub(crate) fn in_every_format(
        rows: usize,
        cols: usize,
        random: &mut Random,
    ) -> Result<Vec<Self>> {
        every_format()?.into_iter().map(|f| Self::new(f, rows, cols, random)).collect()
    }

    /// Random weights; `None` is f32.
    pub(crate) fn new(
        format: Option<Format>,
        rows: usize,
        cols: usize,
        random: &mut Random,
    ) -> Result<Self> {
        let mut exact = random.normals(rows * cols, 0.05);
        // Zeros, and what is subnormal in f16.
        exact.iter_mut().step_by(97).for_each(|weight| *weight = 0.0);
        exact.iter_mut().skip(5).step_by(89).for_each(|weight| *weight *= 1e-5);
        let (name, storage) = match format {
            None => ("f32".to_owned(), Storage::F32(exact)),
            Some(format) => {
                let packed = Packed::quantize(format, rows, cols, &exact)?;
                (format.to_string(), Storage::Packed(packed))
            }
        };
        Ok(Self { name: format!("{name} {rows}×{cols}"), rows, cols, storage })
    }

    /// Whether products take f16 activations, else f32.
    pub(crate) fn takes_half(&self) -> bool {
        matches!(&self.storage, Storage::Packed(packed) if packed.format().code_bits() < 16)
    }

    /// Whether a row has one scale, which comes after the whole sum.
    pub(crate) fn has_row_scales(&self) -> bool {
        matches!(&self.storage, Storage::Packed(packed) if packed.format().scale_bytes() == 4)
    }

    /// A weight's exact value.
    pub(crate) fn value(&self, row: usize, col: usize) -> f32 {
        match &self.storage {
            Storage::F32(values) => values[row * self.cols + col],
            Storage::Packed(packed) => packed.value(row, col),
        }
    }

    /// Code, as a number, and scale of a weight of less than 16 bits.
    pub(crate) fn code_and_scale(&self, row: usize, col: usize) -> Option<(f32, f32)> {
        match &self.storage {
            Storage::Packed(packed) if packed.format() == Format::Fp8 => {
                Some((e4m3::value(packed.row_codes(row)[col]), packed.scale(row, col)))
            }
            Storage::Packed(packed) if packed.format().is_integer() => {
                Some((f32::from(packed.code(row, col)), packed.scale(row, col)))
            }
            Storage::Packed(_) | Storage::F32(_) => None,
        }
    }

    /// Packs it and puts it on the device.
    pub(crate) fn put(&self, lab: &mut Lab<'_>) -> Result<Matrix> {
        put(lab, &[self], Order::Stacked)
    }

    fn elements(&self) -> Elements<'_> {
        match &self.storage {
            Storage::F32(values) => Elements::F32(values),
            Storage::Packed(packed) => Elements::Packed(packed),
        }
    }
}

/// f32 and all the formats that have a name.
pub(crate) fn every_format() -> Result<Vec<Option<Format>>> {
    let named = FORMAT_NAMES.split(", ").map(|name| Ok(Some(name.parse()?)));
    std::iter::once(Ok(None)).chain(named).collect()
}

/// Packs matrices of one width as one and puts it on the device.
pub(crate) fn put(lab: &mut Lab<'_>, parts: &[&Weights], order: Order) -> Result<Matrix> {
    let elements: Vec<_> = parts.iter().map(|weights| weights.elements()).collect();
    let tiles = Tiles::pack(parts[0].cols, &elements, order)?;
    let codes = lab.put(&tiles.codes)?;
    let scales = if tiles.scales.is_empty() { Address::NULL } else { lab.put(&tiles.scales)? };
    Ok(tiles.matrix(codes, scales))
}
