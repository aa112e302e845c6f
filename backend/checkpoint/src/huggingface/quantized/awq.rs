//! AWQ in the version `gemm`, as AutoAWQ writes it.
//!
//! Of a projection there are `qweight` I32 `[in, out / 8]`, `qzeros` I32 `[groups, out / 8]` and `scales`
//! `[groups, out]`, all packed along outputs. From the low end of a word on, its eight codes are those of outputs
//! 0, 2, 4, 6, 1, 3, 5, 7. A weight is (code − zero) · scale.

use super::parts::{FLOATS, Part, Parts, sibling, transpose};
use super::{KEY, Section};
use crate::error::{CheckpointError, Fault};
use crate::grid::{Bits, Grids};
use crate::weights::{Weights, tensor};

/// Settings of the checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// `None` for whole rows.
    group: Option<usize>,
}

impl Settings {
    pub(super) fn read(section: &Section<'_>) -> Result<Self, Fault> {
        match section.integer("bits")? {
            Some(4) => {}
            Some(other) => return Err(Section::unsupported("bits", other, "4")),
            None => return Err(Fault::malformed(format!("key {KEY}.bits"), "is missing")),
        }
        let version = section.string("version")?.unwrap_or("gemm");
        if !version.eq_ignore_ascii_case("gemm") {
            return Err(Section::unsupported("version", format!("{version:?}"), "gemm"));
        }
        Ok(Self { group: section.group("group_size")? })
    }
}

/// One matrix.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    rows: usize,
    cols: usize,
    group: usize,
    codes: Part,
    zeros: Part,
    scales: Part,
}

/// Codes of a word.
const IN_WORD: usize = Bits::Four.in_word();

/// The output, of eight, whose code is at each place of a word.
const OUTPUTS: [usize; IN_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

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
    if !rows.is_multiple_of(IN_WORD) {
        let problem = format!("has {rows} outputs, which cannot be packed {IN_WORD} to a word");
        return Err(parts.within(&qweight, Fault::malformed(tensor(&qweight), problem)));
    }
    let group = settings.group.unwrap_or(cols).min(cols);
    let groups = Grids::per_row(cols, group);
    Ok(Some(Matrix {
        rows,
        cols,
        group,
        codes: parts.need(&qweight, &["I32"], &[&[cols, rows / IN_WORD]])?,
        zeros: parts.need(&sibling(name, "qzeros"), &["I32"], &[&[groups, rows / IN_WORD]])?,
        scales: parts.need(&sibling(name, "scales"), FLOATS, &[&[groups, rows]])?,
    }))
}

impl Matrix {
    /// Scales and zeros.
    pub(super) fn grids(&self, weights: &Weights) -> Grids {
        let Self { rows, cols, group, .. } = *self;
        let groups = Grids::per_row(cols, group);
        let zeros: Vec<_> = unpack(&self.zeros.words(weights)).into_iter().map(i16::from).collect();
        Grids {
            bits: Bits::Four,
            rows,
            cols,
            group,
            scales: transpose(&self.scales.floats(weights), rows, groups),
            zeros: transpose(&zeros, rows, groups),
            order: None,
        }
    }

    /// Codes, row-major, one to a byte.
    pub(super) fn codes(&self, weights: &Weights) -> Vec<u8> {
        transpose(&unpack(&self.codes.words(weights)), self.rows, self.cols)
    }
}

/// Codes of words in the order of outputs.
fn unpack(words: &[u32]) -> Vec<u8> {
    let mut codes = vec![0; IN_WORD * words.len()];
    for (codes, &word) in codes.as_chunks_mut::<IN_WORD>().0.iter_mut().zip(words) {
        for (place, output) in OUTPUTS.into_iter().enumerate() {
            codes[output] = Bits::Four.code(word, place);
        }
    }
    codes
}
