//! NF4 of bitsandbytes.
//!
//! The weights of a matrix are cut into blocks one after the other, whatever rows they belong to. There are `weight`
//! U8 `[n / 2, 1]`, two codes to a byte, the first in its high nibble; `weight.quant_map` F32 `[16]`, the number of
//! each code; `weight.absmax`, the scale of each block, F32, or U8 where scales are quantized in their turn: then a
//! scale is `nested_quant_map` of its code times the `nested_absmax` of its 256 scales plus an offset. The offset,
//! and sizes once more, are in `weight.quant_state.bitsandbytes__nf4`, JSON in U8.

use half::f16;
use rewind_formats::{Format, Packed, Scales, nf4};
use serde_json::Value;

use super::Section;
use super::parts::{Part, Parts};
use crate::error::{CheckpointError, Fault};
use crate::tensor::TensorData;
use crate::weights::{Weights, tensor};

/// Refuses what is not NF4, or FP4.
pub(super) fn check(section: &Section<'_>) -> Result<(), Fault> {
    for key in ["load_in_8bit", "_load_in_8bit"] {
        if section.value(key) == Some(&Value::Bool(true)) {
            let supported = "false (4-bit weights, load_in_4bit)";
            return Err(Section::unsupported("load_in_8bit", "true", supported));
        }
    }
    match section.string("bnb_4bit_quant_storage")? {
        None | Some("uint8") => Ok(()),
        Some(other) => {
            Err(Section::unsupported("bnb_4bit_quant_storage", format!("{other:?}"), "uint8"))
        }
    }
}

/// One matrix.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    rows: usize,
    cols: usize,
    /// Weights of a block.
    block: usize,
    codes: Part,
    numbers: Part,
    scales: Part,
    nested: Option<Nested>,
}

/// How scales are quantized.
#[derive(Clone, Debug)]
struct Nested {
    scales: Part,
    numbers: Part,
    /// Scales of a block of them.
    block: usize,
    offset: f32,
}

/// Looks for the tensors of a matrix.
pub(super) fn open(
    parts: &mut Parts<'_>,
    name: &str,
    [rows, cols]: [usize; 2],
) -> Result<Option<Matrix>, CheckpointError> {
    if !parts.is(name, "U8") {
        return Ok(None);
    }
    let part = |part: &str| format!("{name}.{part}");
    let states = ["nf4", "fp4"].map(|ty| part(&format!("quant_state.bitsandbytes__{ty}")));
    let state = states.iter().find(|state| parts.shape(state).is_some()).unwrap_or(&states[0]);
    let length = parts.shape(state).map(<[_]>::to_vec).unwrap_or_default();
    let state_part = parts.need(state, &["U8"], &[&length])?;
    let malformed = |problem: String| Fault::malformed(tensor(state), problem);
    let value: Value = serde_json::from_slice(parts.bytes(&state_part))
        .map_err(|error| parts.within(state, malformed(error.to_string())))?;
    let size = |key: &str| {
        let found = value.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        found.filter(|&size| size > 0).ok_or_else(|| {
            parts.within(state, malformed(format!("has no whole number above 0 as {key:?}")))
        })
    };
    let block = size("blocksize")?;
    let expected = serde_json::json!([rows, cols]);
    if value.get("shape") != Some(&expected) {
        let found = value.get("shape").unwrap_or(&Value::Null);
        let fault = malformed(format!("has \"shape\" {found}; it must be {expected}"));
        return Err(parts.within(state, fault));
    }
    let count = rows * cols;
    if !count.is_multiple_of(2) {
        let fault = Fault::malformed(tensor(name), "has an odd number of weights");
        return Err(parts.within(name, fault));
    }
    let blocks = count.div_ceil(block);
    let nested = match parts.is(&part("absmax"), "U8") {
        false => None,
        true => {
            let block = size("nested_blocksize")?;
            let offset = value.get("nested_offset").and_then(Value::as_f64);
            let offset = offset.ok_or_else(|| {
                parts.within(state, malformed("has no number as \"nested_offset\"".to_owned()))
            })? as f32;
            let (scales, numbers) = (part("nested_absmax"), part("nested_quant_map"));
            Some(Nested {
                scales: parts.need(&scales, &["F32"], &[&[blocks.div_ceil(block)]])?,
                numbers: parts.need(&numbers, &["F32"], &[&[256]])?,
                block,
                offset,
            })
        }
    };
    let scales = if nested.is_some() { "U8" } else { "F32" };
    Ok(Some(Matrix {
        rows,
        cols,
        block,
        codes: parts.need(name, &["U8"], &[&[count / 2, 1], &[1, count / 2]])?,
        numbers: parts.need(&part("quant_map"), &["F32"], &[&[16]])?,
        scales: parts.need(&part("absmax"), &[scales], &[&[blocks]])?,
        nested,
    }))
}

impl Matrix {
    /// `nf4`, where blocks are ours: 64 weights of one row, with the same sixteen numbers.
    pub(super) fn format(&self, weights: &Weights) -> Option<Format> {
        let ours = self.block == 64
            && self.cols.is_multiple_of(64)
            && self.numbers.floats(weights) == nf4::NUMBERS;
        ours.then_some(Format::Nf4)
    }

    /// The scale of each block.
    fn scales(&self, weights: &Weights) -> Result<Vec<f32>, String> {
        let scales: Vec<f32> = match &self.nested {
            None => self.scales.floats(weights),
            Some(Nested { scales, numbers, block, offset }) => {
                let (scales, numbers) = (scales.floats(weights), numbers.floats(weights));
                let codes = self.scales.bytes(weights).iter().enumerate();
                let scale = |(i, &code): (usize, &u8)| {
                    numbers[usize::from(code)] * scales[i / block] + offset
                };
                codes.map(scale).collect()
            }
        };
        match scales.iter().position(|scale| !scale.is_finite()) {
            Some(at) => Err(format!("has {} as the scale of block {at}", scales[at])),
            None => Ok(scales),
        }
    }

    /// Codes, row-major, one to a byte.
    fn codes<'a>(&self, weights: &'a Weights) -> impl Iterator<Item = u8> + 'a {
        self.codes.bytes(weights).iter().flat_map(|&byte| [byte >> 4, byte & 15])
    }

    /// The matrix as `nf4` if that is its [`format`](Self::format), else dequantized.
    ///
    /// Codes stay what they are. Scales become 8-bit parts of their row's largest, so each is off by at most that
    /// largest one divided by 510.
    pub(super) fn stored(&self, weights: &Weights) -> Result<TensorData, String> {
        let scales = self.scales(weights)?;
        // Scales are magnitudes; a file with others is read as it stands.
        if self.format(weights).is_none() || scales.iter().any(|&scale| scale < 0.0) {
            return Ok(TensorData::F16(self.dequantized(weights)?));
        }
        let (mut rows, mut groups) = (Vec::new(), Vec::new());
        for scales in scales.chunks(self.cols / 64) {
            let largest = scales.iter().copied().fold(0.0, f32::max);
            let row = largest / 255.0;
            rows.push(row);
            groups.extend(scales.iter().map(|scale| match row == 0.0 {
                true => 0,
                false => (scale / row).round_ties_even() as u8,
            }));
        }
        let codes: Vec<u8> = self.codes.bytes(weights).iter().map(|b| b.rotate_left(4)).collect();
        let scales = Scales::Nested { rows: rows.into(), groups: groups.into() };
        let packed = Packed::from_parts(Format::Nf4, self.rows, self.cols, codes, scales);
        packed.map(TensorData::Packed).map_err(|error| error.to_string())
    }

    /// All weights, each rounded once.
    pub(super) fn dequantized(&self, weights: &Weights) -> Result<Vec<f16>, String> {
        let (scales, numbers) = (self.scales(weights)?, self.numbers.floats(weights));
        let value = |(i, code): (usize, u8)| {
            f16::from_f32(numbers[usize::from(code)] * scales[i / self.block])
        };
        Ok(self.codes(weights).enumerate().map(value).collect())
    }
}
