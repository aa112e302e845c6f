//! compressed-tensors, as llm-compressor writes it: `pack-quantized` integers and `float-quantized` 8-bit floats.
//!
//! Of integers there are `weight_packed` I32 `[out, in / n]`, n codes of neighbouring inputs to a word, the first in
//! its low bits, the last word filled up; `weight_scale` `[out, groups]`; `weight_shape` I64 `[2]`; and, of
//! asymmetric ones, `weight_zero_point`: I32 `[out / n, groups]`, packed along outputs, or I8 `[out, groups]`. Codes
//! and zeros are stored plus the middle one (those in I8 as they are), so that a weight is (code − zero) · scale.
//! With `weight_g_idx` I32 `[in]`, inputs name their groups.
//!
//! Floats are `weight` F8_E4M3 `[out, in]` and `weight_scale`, one for each output or one for all. What the
//! configuration says of activations is left to the kernels.

use rewind_formats::{Format, PackError, Packed, Scales};
use serde_json::Value;

use super::parts::{FLOATS, Part, Parts, sibling};
use super::{KEY, Matrix, Section};
use crate::error::{CheckpointError, Fault};
use crate::grid::{Bits, Grids};
use crate::weights::{Weights, tensor};

/// Settings of the checkpoint: what its groups of layers have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// Bits and columns of a group, `None` for whole rows, for each kind of layer.
    integers: Vec<(Bits, Option<usize>)>,
}

impl Settings {
    pub(super) fn read(section: &Section<'_>) -> Result<Self, Fault> {
        let supported = "pack-quantized, float-quantized, mixed-precision";
        match section.string("format")? {
            Some("pack-quantized" | "float-quantized" | "mixed-precision") => {}
            Some(other) => {
                return Err(Section::unsupported("format", format!("{other:?}"), supported));
            }
            None => return Err(Fault::malformed(format!("key {KEY}.format"), "is missing")),
        }
        // Both change what a product computes.
        for key in ["transform_config", "sparsity_config"] {
            let set = section.value(key).and_then(Value::as_object);
            let dense = |set: &serde_json::Map<String, Value>| {
                set.get("format").and_then(Value::as_str) == Some("dense")
            };
            if set.is_some_and(|set| !set.is_empty() && !dense(set)) {
                return Err(Section::unsupported(key, "set", "none"));
            }
        }
        let groups = section.value("config_groups").and_then(Value::as_object);
        let groups = groups.ok_or_else(|| {
            Fault::malformed(format!("key {KEY}.config_groups"), "is missing, or no object")
        })?;
        let mut integers = Vec::new();
        for (name, group) in groups {
            let key = |key: &str| format!("config_groups.{name}.weights.{key}");
            let Some(config) = group.get("weights").filter(|value| !value.is_null()) else {
                continue;
            };
            let weights = Section { config };
            if weights.string("type")?.unwrap_or("int") != "int" {
                continue;
            }
            let bits = match weights.integer("num_bits")? {
                Some(4) => Bits::Four,
                Some(8) => Bits::Eight,
                other => {
                    let found = other.map_or("missing".to_owned(), |bits| bits.to_string());
                    return Err(Section::unsupported(&key("num_bits"), found, "4, 8"));
                }
            };
            let group = match weights.string("strategy")? {
                Some("group") => weights.group("group_size")?,
                Some("channel") | None => None,
                Some(other) => {
                    let found = format!("{other:?}");
                    return Err(Section::unsupported(&key("strategy"), found, "group, channel"));
                }
            };
            integers.push((bits, group));
        }
        Ok(Self { integers })
    }
}

/// A matrix of integers.
#[derive(Clone, Debug)]
pub(super) struct Integers {
    bits: Bits,
    rows: usize,
    cols: usize,
    group: usize,
    codes: Part,
    scales: Part,
    zeros: Option<Part>,
    order: Option<Part>,
}

/// A matrix of 8-bit floats.
#[derive(Clone, Debug)]
pub(super) struct Floats {
    rows: usize,
    cols: usize,
    codes: Part,
    scales: Part,
}

/// Looks for the tensors of a matrix.
pub(super) fn open(
    settings: &Settings,
    parts: &mut Parts<'_>,
    name: &str,
    shape: [usize; 2],
) -> Result<Option<Matrix>, CheckpointError> {
    if parts.is(name, "F8_E4M3") {
        return floats(parts, name, shape).map(|floats| Some(Matrix::Floats(floats)));
    }
    if parts.shape(&sibling(name, "weight_packed")).is_none() {
        return Ok(None);
    }
    integers(settings, parts, name, shape).map(|integers| Some(Matrix::Integers(integers)))
}

fn floats(
    parts: &mut Parts<'_>,
    name: &str,
    [rows, cols]: [usize; 2],
) -> Result<Floats, CheckpointError> {
    parts.ignore(&sibling(name, "input_scale"));
    let scales: [&[usize]; 4] = [&[rows, 1], &[rows], &[1], &[]];
    Ok(Floats {
        rows,
        cols,
        codes: parts.need(name, &["F8_E4M3"], &[&[rows, cols]])?,
        scales: parts.need(&sibling(name, "weight_scale"), FLOATS, &scales)?,
    })
}

fn integers(
    settings: &Settings,
    parts: &mut Parts<'_>,
    name: &str,
    [rows, cols]: [usize; 2],
) -> Result<Integers, CheckpointError> {
    let packed = sibling(name, "weight_packed");
    let scale = sibling(name, "weight_scale");
    let found = parts.shape(&packed).map(<[_]>::to_vec).unwrap_or_default();
    let scales = parts.shape(&scale).map(<[_]>::to_vec);
    // Layers are told apart by lists of patterns; what fits their tensors is what they have.
    let fits = |&&(bits, group): &&(Bits, Option<usize>)| {
        let groups = group.map_or(1, |group| cols.div_ceil(group));
        found == [rows, cols.div_ceil(bits.in_word())]
            && scales.as_ref().is_none_or(|scales| *scales == [rows, groups])
    };
    let Some(&(bits, group)) = settings.integers.iter().find(fits) else {
        let problem = format!(
            "and its scales have sizes {found:?} and {:?}; no group of {KEY}.config_groups has such \
             ones for {rows} by {cols} weights",
            scales.unwrap_or_default()
        );
        return Err(parts.within(&packed, Fault::malformed(tensor(&packed), problem)));
    };
    let group = group.unwrap_or(cols).min(cols);
    let (in_word, groups) = (bits.in_word(), Grids::per_row(cols, group));
    let told = parts.may(&sibling(name, "weight_shape"), &["I64", "I32"], &[&[2]])?;
    if let Some(told) = told {
        let bytes = parts.bytes(&told);
        let sizes: Vec<i64> = match told.dtype() {
            "I64" => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            _ => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
        };
        if sizes != [rows as i64, cols as i64] {
            let at = sibling(name, "weight_shape");
            let problem = format!("says {sizes:?}; as {name} it must say [{rows}, {cols}]");
            return Err(parts.within(&at, Fault::malformed(tensor(&at), problem)));
        }
    }
    let zeros: [&[usize]; 2] = [&[rows.div_ceil(in_word), groups], &[rows, groups]];
    let zero_point = sibling(name, "weight_zero_point");
    let zeros = match parts.is(&zero_point, "I8") {
        true => parts.may(&zero_point, &["I8"], &zeros[1..])?,
        false => parts.may(&zero_point, &["I32", "I8"], &zeros[..1])?,
    };
    Ok(Integers {
        bits,
        rows,
        cols,
        group,
        codes: parts.need(&packed, &["I32"], &[&[rows, cols.div_ceil(in_word)]])?,
        scales: parts.need(&scale, FLOATS, &[&[rows, groups]])?,
        zeros,
        order: parts.may(&sibling(name, "weight_g_idx"), &["I32"], &[&[cols]])?,
    })
}

impl Integers {
    /// Scales and zeros.
    pub(super) fn grids(&self, weights: &Weights) -> Result<Grids, String> {
        let Self { bits, rows, cols, group, .. } = *self;
        let (in_word, middle) = (bits.in_word(), bits.middle());
        let groups = Grids::per_row(cols, group);
        let zeros = match &self.zeros {
            None => vec![middle; rows * groups],
            Some(zeros) if zeros.dtype() == "I8" => {
                let all = zeros.bytes(weights).iter();
                all.map(|&zero| i16::from(zero.cast_signed()) + middle).collect()
            }
            Some(zeros) => {
                let words = zeros.words(weights);
                let word = |row: usize, g: usize| words[row / in_word * groups + g];
                let all = (0..rows).flat_map(|row| (0..groups).map(move |g| (row, g)));
                all.map(|(row, g)| bits.code(word(row, g), row % in_word).into()).collect()
            }
        };
        // -1 is for inputs in order, which need no index.
        let order = self.order.as_ref().map(|order| order.words(weights));
        let order = order.filter(|order| order.iter().any(|&group| group != u32::MAX));
        let mut wrong = order.iter().flatten().enumerate().filter(|(_, g)| **g as usize >= groups);
        if let Some((col, &bad)) = wrong.next() {
            let bad = bad.cast_signed();
            return Err(format!("has group {bad} for input {col}, but only {groups} groups"));
        }
        let plain = |order: &Vec<u32>| {
            order.iter().enumerate().all(|(col, &found)| col / group == found as usize)
        };
        let scales = self.scales.floats(weights);
        let order = order.filter(|order| !plain(order));
        Ok(Grids { bits, rows, cols, group, scales, zeros, order })
    }

    /// Codes, row-major, one to a byte.
    pub(super) fn codes(&self, weights: &Weights) -> Vec<u8> {
        let in_word = self.bits.in_word();
        let words = self.codes.words(weights);
        let rows = words.chunks_exact(self.cols.div_ceil(in_word));
        let code = |words: &[u32], col: usize| self.bits.code(words[col / in_word], col % in_word);
        rows.flat_map(|words| (0..self.cols).map(move |col| code(words, col))).collect()
    }
}

impl Floats {
    /// The matrix as `fp8`, exactly.
    pub(super) fn packed(&self, weights: &Weights) -> Result<Packed, PackError> {
        let mut scales = self.scales.floats(weights);
        if let [one] = scales[..] {
            scales = vec![one; self.rows];
        }
        let codes = self.codes.bytes(weights);
        Packed::from_parts(Format::Fp8, self.rows, self.cols, codes, Scales::PerRow(scales.into()))
    }
}
