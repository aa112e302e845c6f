//! GPTQ, as AutoGPTQ and GPTQModel write it.
//!
//! Of a projection of `out` outputs and `in` inputs there are `qweight` I32 `[in / n, out]`, n codes of neighbouring
//! inputs to a word, the first in its low bits; `qzeros` I32 `[groups, out / n]`, packed along outputs; `scales`
//! `[groups, out]`; and `g_idx` I32 `[in]`, the group of each input. A weight is (code − zero) · scale. The first
//! version of the format writes zeros less one, the second as they are. A zero is one of the codes, so all ones in the
//! first version can only be that of code 0, whose predecessor wrapped around; the sum's low bits are right for it.

use super::parts::{FLOATS, Part, Parts, sibling, transpose};
use super::{KEY, Section};
use crate::error::{CheckpointError, Fault};
use crate::grid::{Bits, Grids};
use crate::weights::{Weights, tensor};

/// Settings of the checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    bits: Bits,
    /// `None` for whole rows.
    group: Option<usize>,
    /// Whether zeros are stored less one.
    less_one: bool,
}

impl Settings {
    pub(super) fn read(section: &Section<'_>) -> Result<Self, Fault> {
        let bits = match section.integer("bits")? {
            Some(4) => Bits::Four,
            Some(8) => Bits::Eight,
            Some(other) => return Err(Section::unsupported("bits", other, "4, 8")),
            None => return Err(Fault::malformed(format!("key {KEY}.bits"), "is missing")),
        };
        let group = section.group("group_size")?;
        let less_one = match section.string("checkpoint_format")?.unwrap_or("gptq") {
            "gptq" => true,
            "gptq_v2" => false,
            other => {
                let found = format!("{other:?}");
                return Err(Section::unsupported("checkpoint_format", found, "gptq, gptq_v2"));
            }
        };
        if let Some(dynamic) = section.value("dynamic")
            && dynamic.as_object().is_none_or(|rules| !rules.is_empty())
        {
            return Err(Section::unsupported("dynamic", "set", "the same settings for all layers"));
        }
        Ok(Self { bits, group, less_one })
    }
}

/// One matrix.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    settings: Settings,
    rows: usize,
    cols: usize,
    codes: Part,
    zeros: Part,
    scales: Part,
    order: Option<Part>,
}

/// Looks for the tensors of a matrix.
pub(super) fn open(
    settings: &Settings,
    parts: &mut Parts<'_>,
    name: &str,
    [rows, cols]: [usize; 2],
) -> Result<Option<Matrix>, CheckpointError> {
    let qweight = sibling(name, "qweight");
    if parts.shape(&qweight).is_none() {
        return Ok(None);
    }
    let in_word = settings.bits.in_word();
    if !cols.is_multiple_of(in_word) || !rows.is_multiple_of(in_word) {
        let problem = format!("of {rows} by {cols} weights cannot be packed {in_word} to a word");
        return Err(parts.within(&qweight, Fault::malformed(tensor(&qweight), problem)));
    }
    let groups = settings.group.map_or(1, |group| cols.div_ceil(group));
    Ok(Some(Matrix {
        rows,
        cols,
        codes: parts.need(&qweight, &["I32"], &[&[cols / in_word, rows]])?,
        zeros: parts.need(&sibling(name, "qzeros"), &["I32"], &[&[groups, rows / in_word]])?,
        scales: parts.need(&sibling(name, "scales"), FLOATS, &[&[groups, rows]])?,
        order: parts.may(&sibling(name, "g_idx"), &["I32"], &[&[cols]])?,
        settings: settings.clone(),
    }))
}

impl Matrix {
    /// Scales and zeros.
    pub(super) fn grids(&self, weights: &Weights) -> Result<Grids, String> {
        let Self { rows, cols, settings, .. } = self;
        let (bits, in_word) = (settings.bits, settings.bits.in_word());
        let group = settings.group.unwrap_or(*cols).min(*cols);
        let groups = Grids::per_row(*cols, group);
        let mask = 2 * bits.middle() - 1;
        let words = self.zeros.words(weights);
        let zeros = words.iter().flat_map(|&word| (0..in_word).map(move |i| bits.code(word, i)));
        let zeros: Vec<_> = zeros
            .map(i16::from)
            .map(|zero| if settings.less_one { (zero + 1) & mask } else { zero })
            .collect();
        let order = self.order.as_ref().map(|order| order.words(weights));
        if let Some((col, bad)) =
            order.iter().flatten().enumerate().find(|(_, g)| **g as usize >= groups)
        {
            return Err(format!("has group {bad} for input {col}, but only {groups} groups"));
        }
        let plain =
            |order: &Vec<u32>| (0..).zip(order).all(|(i, &g): (usize, _)| i / group == g as usize);
        Ok(Grids {
            bits,
            rows: *rows,
            cols: *cols,
            group,
            scales: transpose(&self.scales.floats(weights), *rows, groups),
            zeros: transpose(&zeros, *rows, groups),
            order: order.filter(|order| !plain(order)),
        })
    }

    /// Codes, row-major, one to a byte.
    pub(super) fn codes(&self, weights: &Weights) -> Vec<u8> {
        let (bits, in_word) = (self.settings.bits, self.settings.bits.in_word());
        let mut codes = vec![0; self.rows * self.cols];
        for (i, words) in self.codes.words(weights).chunks_exact(self.rows).enumerate() {
            for (row, &word) in words.iter().enumerate() {
                let to = &mut codes[row * self.cols + i * in_word..][..in_word];
                to.iter_mut().enumerate().for_each(|(i, code)| *code = bits.code(word, i));
            }
        }
        codes
    }
}
