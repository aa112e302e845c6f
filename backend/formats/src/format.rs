//! Names of the formats, as they stand in configuration files and on the command line.

use std::fmt;
use std::str::FromStr;

/// Names that [`Format::from_str`] accepts, for error messages and help texts.
pub const FORMAT_NAMES: &str = "f16, bf16, int8, int8-g32, int8-g64, int8-g128, int6-g32, int6-g64, int6-g128, int4-g32, int4-g64, int4-g128, int4a-g32, int4a-g64, int4a-g128, nf4, fp8";

/// Number of neighbouring weights of a row that share one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// 32 weights.
    G32,
    /// 64 weights.
    G64,
    /// 128 weights.
    G128,
}

impl Group {
    /// Length in weights. A row that is not a multiple of it ends in a shorter group.
    #[expect(clippy::len_without_is_empty, reason = "a group is never empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::G32 => 32,
            Self::G64 => 64,
            Self::G128 => 128,
        }
    }

    fn from_suffix(suffix: &str) -> Option<Self> {
        match suffix {
            "32" => Some(Self::G32),
            "64" => Some(Self::G64),
            "128" => Some(Self::G128),
            _ => None,
        }
    }
}

/// How a weight matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Signed 8-bit codes in -127..=127 with one f32 scale per row, symmetric.
    Int8,
    /// Signed 8-bit codes in -127..=127 with one f16 scale per group, symmetric.
    Int8Group(Group),
    /// Signed 6-bit codes in -32..=31 with one f16 scale per group, symmetric.
    Int6Group(Group),
    /// Signed 4-bit codes in -8..=7 with one f16 scale per group, symmetric (no zero point).
    Int4Group(Group),
    /// Signed 4-bit codes in -8..=7 with one f16 scale and one f16 offset, the value of code 0, per group.
    Int4Affine(Group),
    /// 4-bit numbers of a code book for normally distributed weights, see [`nf4`](crate::nf4), in blocks of
    /// 64 with one 8-bit scale, and one f32 scale of these scales per row.
    Nf4,
    /// 8-bit floats E4M3FN with one f32 scale per row.
    Fp8,
}

impl Format {
    /// Whether weights are integer codes times a scale, plus an offset at most: those that kernels multiply
    /// with 8-bit activations on a CPU.
    pub const fn is_integer(self) -> bool {
        match self {
            Self::F16 | Self::Bf16 | Self::Nf4 | Self::Fp8 => false,
            Self::Int8
            | Self::Int8Group(_)
            | Self::Int6Group(_)
            | Self::Int4Group(_)
            | Self::Int4Affine(_) => true,
        }
    }

    /// The format of embedding and LM head where this one is the draft's: `int8-g32` for all below 16 bits,
    /// since errors there reach the logits directly, and the same otherwise.
    pub const fn ends(self) -> Self {
        match self {
            Self::F16 | Self::Bf16 => self,
            Self::Int8
            | Self::Int8Group(_)
            | Self::Int6Group(_)
            | Self::Int4Group(_)
            | Self::Int4Affine(_)
            | Self::Nf4
            | Self::Fp8 => Self::Int8Group(Group::G32),
        }
    }

    /// Width of one code in bits: 16, 8, 6 or 4.
    pub const fn code_bits(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 16,
            Self::Int8 | Self::Int8Group(_) | Self::Fp8 => 8,
            Self::Int6Group(_) => 6,
            Self::Int4Group(_) | Self::Int4Affine(_) | Self::Nf4 => 4,
        }
    }

    /// The group that shares a scale; `None` for floats and for one scale per row.
    pub const fn group(self) -> Option<Group> {
        match self {
            Self::F16 | Self::Bf16 | Self::Int8 | Self::Fp8 => None,
            Self::Int8Group(group)
            | Self::Int6Group(group)
            | Self::Int4Group(group)
            | Self::Int4Affine(group) => Some(group),
            Self::Nf4 => Some(Group::G64),
        }
    }

    /// Groups of a row of `cols` weights, the last one possibly shorter; 0 where none share a scale but the
    /// whole row.
    pub const fn groups_per_row(self, cols: usize) -> usize {
        match self.group() {
            Some(group) => cols.div_ceil(group.len()),
            None => 0,
        }
    }

    /// Bytes that the codes of a row of `cols` weights take; rows start at byte boundaries.
    ///
    /// `None` if that does not fit in a `usize`.
    pub fn row_code_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Self::F16 | Self::Bf16 => cols.checked_mul(2),
            Self::Int8 | Self::Int8Group(_) | Self::Fp8 => Some(cols),
            // Four codes take three bytes.
            Self::Int6Group(_) => Some(cols / 4 * 3 + cols % 4),
            Self::Int4Group(_) | Self::Int4Affine(_) | Self::Nf4 => Some(cols.div_ceil(2)),
        }
    }

    /// Bytes that the scales of a row of `cols` weights take, offsets included; 0 for floats.
    pub const fn row_scale_bytes(self, cols: usize) -> usize {
        let groups = self.groups_per_row(cols);
        match self {
            Self::F16 | Self::Bf16 => 0,
            Self::Int8 | Self::Fp8 => 4,
            Self::Int8Group(_) | Self::Int6Group(_) | Self::Int4Group(_) => 2 * groups,
            Self::Int4Affine(_) => 4 * groups,
            Self::Nf4 => 4 + groups,
        }
    }

    /// Storage per weight in bits, scales and padding of a row of `cols` weights included.
    ///
    /// `cols` must not be 0: the quotient would be NaN.
    pub fn bits_per_weight(self, cols: usize) -> f64 {
        let codes = (cols * self.code_bits()).div_ceil(8);
        8.0 * (codes + self.row_scale_bytes(cols)) as f64 / cols as f64
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F16 => f.pad("f16"),
            Self::Bf16 => f.pad("bf16"),
            Self::Int8 => f.pad("int8"),
            Self::Fp8 => f.pad("fp8"),
            Self::Int8Group(group) => f.pad(&format!("int8-g{}", group.len())),
            Self::Int6Group(group) => f.pad(&format!("int6-g{}", group.len())),
            Self::Int4Group(group) => f.pad(&format!("int4-g{}", group.len())),
            Self::Int4Affine(group) => f.pad(&format!("int4a-g{}", group.len())),
            Self::Nf4 => f.pad("nf4"),
        }
    }
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self, FormatError> {
        match name {
            "f16" => return Ok(Self::F16),
            "bf16" => return Ok(Self::Bf16),
            "int8" => return Ok(Self::Int8),
            "nf4" => return Ok(Self::Nf4),
            "fp8" => return Ok(Self::Fp8),
            _ => {}
        }
        let grouped = |prefix: &str| name.strip_prefix(prefix).and_then(Group::from_suffix);
        if let Some(group) = grouped("int8-g") {
            return Ok(Self::Int8Group(group));
        }
        if let Some(group) = grouped("int6-g") {
            return Ok(Self::Int6Group(group));
        }
        if let Some(group) = grouped("int4-g") {
            return Ok(Self::Int4Group(group));
        }
        if let Some(group) = grouped("int4a-g") {
            return Ok(Self::Int4Affine(group));
        }
        let planned = name.starts_with("plan:");
        let name = name.to_owned();
        Err(if planned { FormatError::NotYet { name } } else { FormatError::Unknown { name } })
    }
}

/// A name that is no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The format is specified, but this version cannot store it.
    #[error("weight format {name:?} is not supported yet; supported are {FORMAT_NAMES}")]
    NotYet {
        /// What was asked for.
        name: String,
    },
    /// No such format.
    #[error("unknown weight format {name:?}; supported are {FORMAT_NAMES}")]
    Unknown {
        /// What was asked for.
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: [Group; 3] = [Group::G32, Group::G64, Group::G128];

    fn all() -> Vec<Format> {
        let mut all = vec![Format::F16, Format::Bf16, Format::Int8];
        all.extend(GROUPS.map(Format::Int8Group));
        all.extend(GROUPS.map(Format::Int6Group));
        all.extend(GROUPS.map(Format::Int4Group));
        all.extend(GROUPS.map(Format::Int4Affine));
        all.push(Format::Nf4);
        all.push(Format::Fp8);
        all
    }

    #[test]
    fn names_round_trip_and_are_listed() {
        let listed: Vec<_> = FORMAT_NAMES.split(", ").collect();
        let names: Vec<_> = all().iter().map(ToString::to_string).collect();
        assert_eq!(listed, names);
        for (format, name) in all().into_iter().zip(names) {
            assert_eq!(name.parse(), Ok(format));
        }
    }

    #[test]
    fn formats_of_later_versions_say_so() {
        for name in ["plan:", "plan:mixed.toml"] {
            let error = name.parse::<Format>().unwrap_err();
            assert_eq!(error, FormatError::NotYet { name: name.to_owned() });
            assert!(error.to_string().contains("int4-g32"), "{error}");
        }
    }

    #[test]
    fn other_names_are_unknown() {
        for name in
            ["", "int4", "int4-g", "int4-g33", "INT8", "int8 ", "int4-g032", "int6-g1", "nf4-g64"]
        {
            let error = name.parse::<Format>().unwrap_err();
            assert_eq!(error, FormatError::Unknown { name: name.to_owned() });
        }
    }

    #[test]
    fn drafts_below_sixteen_bits_have_ends_of_eight() {
        for format in all() {
            let ends = format.ends();
            assert_eq!(ends.ends(), ends);
            let expected =
                if format.code_bits() == 16 { format.to_string() } else { "int8-g32".into() };
            assert_eq!(ends.to_string(), expected);
        }
    }

    #[test]
    fn bits_per_weight_count_scales_and_padding() {
        assert_eq!(Format::F16.bits_per_weight(576), 16.0);
        assert_eq!(Format::Int8.bits_per_weight(32), 9.0);
        assert_eq!(Format::Int8Group(Group::G32).bits_per_weight(576), 8.5);
        assert_eq!(Format::Int6Group(Group::G64).bits_per_weight(576), 6.25);
        assert_eq!(Format::Int4Group(Group::G32).bits_per_weight(576), 4.5);
        // 576 = 4 · 128 + 64: five scales.
        assert_eq!(Format::Int4Group(Group::G128).bits_per_weight(576), 4.0 + 80.0 / 576.0);
        assert_eq!(Format::Int4Affine(Group::G32).bits_per_weight(576), 5.0);
        // Nine blocks with a byte each, and four bytes for all.
        assert_eq!(Format::Nf4.bits_per_weight(576), 4.0 + 8.0 * 13.0 / 576.0);
        // Three codes take two bytes, and one scale two more.
        assert_eq!(Format::Int4Group(Group::G32).bits_per_weight(3), 32.0 / 3.0);
    }
}
