//! Checkpoints that came quantized: `quantization_config` in `config.json`, and several tensors for a matrix.
//!
//! What each method calls these tensors, and how it packs them, is told in a file of its own. All are checked when
//! the checkpoint is opened (they are there, of the right type and sizes); only their contents are read later.
//! Whether a matrix is quantized is for its tensors to say, not for the lists of names in the configuration.

mod awq;
mod bitsandbytes;
mod compressed;
mod gptq;
mod parts;
mod rewind;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rewind_formats::{Format, PackError, Packed};
use serde_json::Value;

use self::parts::Parts;
use crate::error::{CheckpointError, Fault};
use crate::grid::Grids;
use crate::tensor::TensorData;
use crate::weights::{Weights, tensor};

/// The key of `config.json`.
const KEY: &str = "quantization_config";

/// How a checkpoint is quantized.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Method {
    Gptq(gptq::Settings),
    Awq(awq::Settings),
    Compressed(compressed::Settings),
    Bitsandbytes,
    Rewind,
}

impl Method {
    /// Reads `quantization_config`; `None` if there is none.
    pub(crate) fn read(config: &Value) -> Result<Option<Self>, Fault> {
        let Some(config) = config.get(KEY).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let settings = Section { config };
        let supported = "gptq, awq, compressed-tensors, bitsandbytes, rewind";
        let Some(method) = settings.string("quant_method")? else {
            return Err(Fault::malformed(
                format!("key {KEY}.quant_method"),
                format!("is missing; supported: {supported}"),
            ));
        };
        Ok(Some(match method {
            "gptq" => Self::Gptq(gptq::Settings::read(&settings)?),
            "awq" => Self::Awq(awq::Settings::read(&settings)?),
            "compressed-tensors" => Self::Compressed(compressed::Settings::read(&settings)?),
            "bitsandbytes" => bitsandbytes::check(&settings).map(|()| Self::Bitsandbytes)?,
            "rewind" => rewind::check(&settings).map(|()| Self::Rewind)?,
            other => {
                let at = format!("key {KEY}.quant_method");
                return Err(Fault::unsupported(at, format!("{other:?}"), supported));
            }
        }))
    }

    /// The matrix that a file without it calls `name`, `[outputs, inputs]` of `shape`; `None` if it is stored as
    /// plain floats, or not at all.
    fn matrix(
        &self,
        parts: &mut Parts<'_>,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Option<Matrix>, CheckpointError> {
        Ok(match self {
            Self::Gptq(settings) => gptq::open(settings, parts, name, shape)?.map(Matrix::Gptq),
            Self::Awq(settings) => awq::open(settings, parts, name, shape)?.map(Matrix::Awq),
            Self::Compressed(settings) => compressed::open(settings, parts, name, shape)?,
            Self::Bitsandbytes => bitsandbytes::open(parts, name, shape)?.map(Matrix::Bitsandbytes),
            Self::Rewind => rewind::open(parts, name, shape)?.map(Matrix::Rewind),
        })
    }
}

/// The section `quantization_config`.
pub(super) struct Section<'a> {
    config: &'a Value,
}

impl<'a> Section<'a> {
    /// A value by key; null counts as absent.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    fn wrong(key: &str, found: &Value, expected: &str) -> Fault {
        let mut shown = found.to_string();
        if shown.chars().count() > 80 {
            shown = shown.chars().take(80).chain("…".chars()).collect();
        }
        Fault::malformed(format!("key {KEY}.{key}"), format!("is {shown}, not {expected}"))
    }

    fn unsupported(key: &str, found: impl ToString, supported: &str) -> Fault {
        Fault::unsupported(format!("key {KEY}.{key}"), found.to_string(), supported)
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>, Fault> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| Self::wrong(key, value, "a string"))
    }

    fn integer(&self, key: &str) -> Result<Option<i64>, Fault> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_i64().map(Some).ok_or_else(|| Self::wrong(key, value, "a whole number"))
    }

    /// Columns of a group: a number, or -1 for whole rows, which is given as `None`.
    fn group(&self, key: &str) -> Result<Option<usize>, Fault> {
        match self.integer(key)? {
            Some(-1) => Ok(None),
            Some(size) if size > 0 => Ok(usize::try_from(size).ok()),
            Some(size) => Err(Self::unsupported(key, size, "-1 and numbers above 0")),
            None => Err(Fault::malformed(format!("key {KEY}.{key}"), "is missing")),
        }
    }
}

/// A matrix that is stored in several tensors.
#[derive(Clone, Debug)]
enum Matrix {
    Gptq(gptq::Matrix),
    Awq(awq::Matrix),
    Integers(compressed::Integers),
    Floats(compressed::Floats),
    Bitsandbytes(bitsandbytes::Matrix),
    Rewind(rewind::Matrix),
}

/// The matrices of a checkpoint that are stored in several tensors.
#[derive(Debug, Default)]
pub(crate) struct Quantized {
    /// By the name that a file without them would have.
    matrices: BTreeMap<String, Matrix>,
    /// Names of their tensors.
    parts: BTreeSet<String>,
    /// `quantization_config` as it stands, for the identity of the model.
    config: String,
}

impl Quantized {
    /// Finds the quantized ones among matrices of these names and shapes.
    pub(crate) fn find(
        method: &Method,
        config: &Value,
        weights: &Weights,
        folder: &Path,
        matrices: impl IntoIterator<Item = (String, [usize; 2])>,
    ) -> Result<Self, CheckpointError> {
        let mut parts = Parts::new(weights, folder);
        let mut found = BTreeMap::new();
        for (name, shape) in matrices {
            if let Some(matrix) = method.matrix(&mut parts, &name, shape)? {
                found.insert(name, matrix);
            }
        }
        let config = config.get(KEY).map(Value::to_string).unwrap_or_default();
        Ok(Self { matrices: found, parts: parts.into_names(), config })
    }

    /// Whether the matrix of this name is one of them.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.matrices.contains_key(name)
    }

    /// Whether a tensor is part of one of them, or goes with one and says nothing.
    pub(crate) fn knows(&self, weights: &Weights, name: &str) -> bool {
        if self.parts.contains(name) {
            return true;
        }
        // Exporters of GPTQ and AWQ give every projection a bias, of zeros where the model has none.
        let of_one =
            name.strip_suffix(".bias").is_some_and(|stem| self.has(&format!("{stem}.weight")));
        of_one && weights.bytes(name).is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0))
    }

    /// What identifies the checkpoint besides its tensors.
    pub(crate) fn config(&self) -> &str {
        &self.config
    }

    /// The format that a matrix is in, f16 where it would be dequantized; `None` if it is none of these.
    pub(crate) fn format(&self, weights: &Weights, name: &str) -> Option<Format> {
        let matrix = self.matrices.get(name)?;
        let format = match matrix {
            Matrix::Gptq(matrix) => matrix.grids(weights).ok().and_then(|grids| grids.format()),
            Matrix::Awq(matrix) => matrix.grids(weights).format(),
            Matrix::Integers(matrix) => matrix.grids(weights).ok().and_then(|grids| grids.format()),
            Matrix::Floats(_) => Some(Format::Fp8),
            Matrix::Bitsandbytes(matrix) => matrix.format(weights),
            Matrix::Rewind(matrix) => Some(matrix.format()),
        };
        Some(format.unwrap_or(Format::F16))
    }

    /// A matrix as it is stored, where that is one of our formats, else dequantized; `None` if it is none of
    /// these.
    pub(crate) fn stored(
        &self,
        weights: &Weights,
        name: &str,
    ) -> Option<Result<TensorData, CheckpointError>> {
        let data = self.matrices.get(name)?.stored(weights);
        Some(data.map_err(|fault| self.within(weights, name, fault)))
    }

    /// A matrix, dequantized and rounded once to f16; `None` if it is none of these.
    pub(crate) fn dequantized(
        &self,
        weights: &Weights,
        name: &str,
    ) -> Option<Result<TensorData, CheckpointError>> {
        let data = self.matrices.get(name)?.dequantized(weights);
        Some(data.map_err(|fault| self.within(weights, name, fault)))
    }

    fn within(&self, weights: &Weights, name: &str, problem: String) -> CheckpointError {
        let stem = name.strip_suffix("weight").unwrap_or(name);
        let part = self.parts.iter().find(|part| part.starts_with(stem));
        let stored = part.and_then(|part| weights.tensors.get(part));
        let file = stored.map_or(Path::new(""), |stored| weights.files[stored.file].path());
        Fault::malformed(tensor(name), problem).within(file)
    }
}

impl Matrix {
    fn stored(&self, weights: &Weights) -> Result<TensorData, String> {
        let said = |error: PackError| error.to_string();
        let (grids, codes) = match self {
            Self::Gptq(matrix) => (matrix.grids(weights)?, matrix.codes(weights)),
            Self::Awq(matrix) => (matrix.grids(weights), matrix.codes(weights)),
            Self::Integers(matrix) => (matrix.grids(weights)?, matrix.codes(weights)),
            Self::Floats(matrix) => {
                return Ok(TensorData::Packed(matrix.packed(weights).map_err(said)?));
            }
            Self::Bitsandbytes(matrix) => return matrix.stored(weights),
            Self::Rewind(matrix) => {
                return Ok(TensorData::Packed(matrix.packed(weights).map_err(said)?));
            }
        };
        Ok(match grids.packed(&codes).map_err(said)? {
            Some(packed) => TensorData::Packed(packed),
            None => TensorData::F16(grids.dequantize(&codes)),
        })
    }

    fn dequantized(&self, weights: &Weights) -> Result<TensorData, String> {
        let of_grids = |grids: Grids, codes: Vec<u8>| TensorData::F16(grids.dequantize(&codes));
        Ok(match self {
            Self::Gptq(matrix) => of_grids(matrix.grids(weights)?, matrix.codes(weights)),
            Self::Awq(matrix) => of_grids(matrix.grids(weights), matrix.codes(weights)),
            Self::Integers(matrix) => of_grids(matrix.grids(weights)?, matrix.codes(weights)),
            Self::Bitsandbytes(matrix) => TensorData::F16(matrix.dequantized(weights)?),
            Self::Floats(_) | Self::Rewind(_) => match self.stored(weights)? {
                TensorData::Packed(packed) => TensorData::F16(halves(&packed)),
                floats => floats,
            },
        })
    }
}

/// The weights of a packed matrix, each rounded once.
pub(crate) fn halves(packed: &Packed) -> Vec<half::f16> {
    let mut row = vec![0.0; packed.cols()];
    let mut out = Vec::with_capacity(packed.rows() * packed.cols());
    for number in 0..packed.rows() {
        packed.dequantize_row(number, &mut row);
        out.extend(row.iter().map(|&value| half::f16::from_f32(value)));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn faults_of_the_section_name_the_key() {
        assert_eq!(Method::read(&json!({"quantization_config": null})), Ok(None));
        for (section, key) in [
            (json!({"bits": 4}), "quant_method"),
            (json!({"quant_method": "hqq"}), "quant_method"),
            (json!({"quant_method": 4}), "quant_method"),
            (json!({"quant_method": "gptq", "group_size": 128}), "bits"),
            (json!({"quant_method": "gptq", "bits": 3, "group_size": 128}), "bits"),
            (json!({"quant_method": "gptq", "bits": 4, "group_size": 0}), "group_size"),
            (json!({"quant_method": "gptq", "bits": 4}), "group_size"),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"}),
                "checkpoint_format",
            ),
            (
                json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}),
                "version",
            ),
            (json!({"quant_method": "awq", "bits": 8, "group_size": 32}), "bits"),
            (json!({"quant_method": "compressed-tensors", "format": "marlin-24"}), "format"),
            (json!({"quant_method": "bitsandbytes", "load_in_8bit": true}), "load_in_8bit"),
            (json!({"quant_method": "rewind", "version": 2}), "version"),
        ] {
            let shown = section.to_string();
            match Method::read(&json!({"quantization_config": section})).unwrap_err() {
                Fault::Malformed { at, .. } | Fault::Unsupported { at, .. } => {
                    assert!(
                        at.starts_with("key quantization_config.") && at.ends_with(key),
                        "{shown}: {at}"
                    );
                }
            }
        }
    }
}
