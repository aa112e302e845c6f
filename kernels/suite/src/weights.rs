//! Random matrices in every format that the products take.

use anyhow::Result;
use half::f16;
use rewind_formats::{FORMAT_NAMES, Format, Packed, Scales};
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

    /// A weight's exact value, as kernels see it.
    pub(crate) fn value(&self, row: usize, col: usize) -> f32 {
        match &self.storage {
            Storage::F32(values) => values[row * self.cols + col],
            Storage::Packed(packed) if packed.format() == Format::Nf4 => {
                rounded(packed.number(row, col)) * packed.scale(row, col)
            }
            Storage::Packed(packed) => packed.value(row, col),
        }
    }

    /// The product of one weight of less than 16 bits and an input, if all others are zero, in f32: the number
    /// times the input is exact, zeros are positive, and what comes then is rounded step by step.
    pub(crate) fn alone(&self, row: usize, col: usize, input: f32) -> Option<f32> {
        let Storage::Packed(packed) = &self.storage else { return None };
        let product = rounded(packed.number(row, col)) * input + 0.0;
        let scale = packed.scale(row, col);
        match packed.scales() {
            Scales::None => None,
            Scales::PerRow(_) => Some(product * scale),
            Scales::PerGroup(_) => Some(product * scale + 0.0),
            Scales::Affine { .. } => {
                Some(packed.offset(row, col).mul_add(input, product * scale + 0.0))
            }
            Scales::Nested { rows, groups } => {
                let group = row * self.cols.div_ceil(64) + col / 64;
                Some((product * f32::from(groups[group]) + 0.0) * rows[row])
            }
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

/// A number as an operand of the products: all but those of NF4 are exact in f16.
fn rounded(number: f32) -> f32 {
    f16::from_f32(number).to_f32()
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
