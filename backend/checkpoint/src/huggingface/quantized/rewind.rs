//! Rewind's own folders: matrices in the formats of drafts, byte for byte.
//!
//! The header of the safetensors file says `format` "rewind", `version` "1", and for each packed matrix NAME: `NAME`,
//! its format, and `NAME.cols`, its columns. Its tensors are `NAME.codes` U8 `[rows, bytes of a row]` in the
//! canonical layout of [`Packed`], and by format `NAME.scales` F32 `[rows]` (int8, fp8, nf4) or F16 `[rows,
//! groups]`, `NAME.offsets` F16 `[rows, groups]` (int4a) and `NAME.factors` U8 `[rows, groups]` (nf4).

use rewind_formats::{Format, PackError, Packed, Scales};

use super::parts::{Part, Parts};
use super::{KEY, Section};
use crate::error::{CheckpointError, Fault};
use crate::weights::{Weights, tensor};

/// Refuses versions that are not known.
pub(super) fn check(section: &Section<'_>) -> Result<(), Fault> {
    match section.integer("version")? {
        Some(1) => Ok(()),
        Some(other) => Err(Section::unsupported("version", other, "1")),
        None => Err(Fault::malformed(format!("key {KEY}.version"), "is missing")),
    }
}

/// One matrix.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    format: Format,
    rows: usize,
    cols: usize,
    codes: Part,
    scales: Option<Part>,
    offsets: Option<Part>,
    factors: Option<Part>,
}

/// Looks for the tensors of a matrix.
pub(super) fn open(
    parts: &mut Parts<'_>,
    name: &str,
    [rows, cols]: [usize; 2],
) -> Result<Option<Matrix>, CheckpointError> {
    let part = |part: &str| format!("{name}.{part}");
    let codes = part("codes");
    if parts.shape(&codes).is_none() {
        return Ok(None);
    }
    let says = |key: &str, expected: &str, parts: &Parts<'_>| match parts.metadata(key) {
        Some(found) if found == expected => Ok(()),
        found => {
            let found = found.map_or("missing".to_owned(), |found| format!("{found:?}"));
            let problem = format!("is {found}; it must be {expected:?}");
            Err(parts.within(&codes, Fault::malformed(format!("metadata {key:?}"), problem)))
        }
    };
    says("format", "rewind", parts)?;
    says("version", "1", parts)?;
    says(&part("cols"), &cols.to_string(), parts)?;
    let metadata = |problem: String| Fault::malformed(format!("metadata {name:?}"), problem);
    let format = match parts.metadata(name).map(str::parse::<Format>) {
        Some(Ok(format)) => format,
        Some(Err(error)) => return Err(parts.within(&codes, metadata(error.to_string()))),
        None => {
            let problem = "is missing; it must be the format of the matrix".to_owned();
            return Err(parts.within(&codes, metadata(problem)));
        }
    };
    let groups = format.groups_per_row(cols);
    let (per_row, per_group): (&[usize], &[usize]) = (&[rows], &[rows, groups]);
    let scales = part("scales");
    let (scales, offsets, factors) = match format {
        Format::F16 | Format::Bf16 => (None, None, None),
        Format::Int8 | Format::Fp8 => {
            (Some(parts.need(&scales, &["F32"], &[per_row])?), None, None)
        }
        Format::Int8Group(_) | Format::Int6Group(_) | Format::Int4Group(_) => {
            (Some(parts.need(&scales, &["F16"], &[per_group])?), None, None)
        }
        Format::Int4Affine(_) => {
            let scales = parts.need(&scales, &["F16"], &[per_group])?;
            let offsets = parts.need(&part("offsets"), &["F16"], &[per_group])?;
            (Some(scales), Some(offsets), None)
        }
        Format::Nf4 => {
            let scales = parts.need(&scales, &["F32"], &[per_row])?;
            let factors = parts.need(&part("factors"), &["U8"], &[per_group])?;
            (Some(scales), None, Some(factors))
        }
    };
    let Some(row_bytes) = format.row_code_bytes(cols) else {
        let fault = Fault::malformed(tensor(&codes), "would be larger than memory");
        return Err(parts.within(&codes, fault));
    };
    let codes = parts.need(&codes, &["U8"], &[&[rows, row_bytes]])?;
    Ok(Some(Matrix { format, rows, cols, codes, scales, offsets, factors }))
}

impl Matrix {
    /// Its format.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// The matrix, exactly.
    pub(super) fn packed(&self, weights: &Weights) -> Result<Packed, PackError> {
        let floats = |part: &Option<Part>| part.as_ref().map(|part| part.floats(weights).into());
        let halves = |part: &Option<Part>| part.as_ref().map(|part| part.halves(weights).into());
        let scales = match self.format {
            Format::F16 | Format::Bf16 => Scales::None,
            Format::Int8 | Format::Fp8 => Scales::PerRow(floats(&self.scales).unwrap_or_default()),
            Format::Int8Group(_) | Format::Int6Group(_) | Format::Int4Group(_) => {
                Scales::PerGroup(halves(&self.scales).unwrap_or_default())
            }
            Format::Int4Affine(_) => Scales::Affine {
                scales: halves(&self.scales).unwrap_or_default(),
                offsets: halves(&self.offsets).unwrap_or_default(),
            },
            Format::Nf4 => {
                let factors = self.factors.as_ref().map(|part| part.bytes(weights).into());
                Scales::Nested {
                    rows: floats(&self.scales).unwrap_or_default(),
                    groups: factors.unwrap_or_default(),
                }
            }
        };
        let codes = self.codes.bytes(weights);
        Packed::from_parts(self.format, self.rows, self.cols, codes, scales)
    }
}
