//! `manifest.json`: what a quantized folder was made of, and hashes of what is in it.

use std::collections::BTreeMap;

use rewind_formats::Mixture;
use serde::Serialize;

use crate::methods::method::{BLOCK, DAMPING, STEPS};
use crate::methods::run::Method;

/// The manifest. Hashes are BLAKE3, hexadecimal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Manifest {
    /// Of this layout.
    pub version: u32,
    /// The model.
    pub source: Origin,
    /// How weights became codes.
    pub method: MethodSettings,
    /// What was read for it, if anything.
    pub calibration: Option<Calibrated>,
    /// Formats of all matrices.
    pub formats: Formats,
    /// Bits of a weight of the layers' matrices, scales included.
    pub layer_bits: f64,
    /// Bits of a weight over all tensors.
    pub all_bits: f64,
    /// Hash of the bytes of each tensor of `model.safetensors`.
    pub tensors: BTreeMap<String, String>,
}

impl Manifest {
    /// The version that is written.
    pub const VERSION: u32 = 1;
}

/// Where weights came from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Origin {
    /// Name of the file or folder, without its path.
    pub name: String,
    /// Of the file; of a folder, over names and hashes of `config.json` and the safetensors files.
    pub blake3: String,
}

/// A method with its constants.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MethodSettings {
    /// Its name on the command line.
    pub name: &'static str,
    /// Of GPTQ: share of the mean diagonal that is added to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    /// Of GPTQ: columns of a block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<usize>,
    /// Of AWQ: steps of the exponent that scales are searched with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
}

impl MethodSettings {
    pub(crate) fn of(method: Method) -> Self {
        let none = Self { name: method.name(), damping: None, block: None, steps: None };
        match method {
            Method::Rtn => none,
            Method::Gptq => Self { damping: Some(DAMPING), block: Some(BLOCK), ..none },
            Method::Awq => Self { steps: Some(STEPS), ..none },
        }
    }
}

/// A text that was read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibrated {
    /// Its name.
    pub text: String,
    /// Hash of its bytes.
    pub blake3: String,
    /// Chunks that were read.
    pub chunks: usize,
    /// Tokens of all of them.
    pub tokens: usize,
}

/// Names of formats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Formats {
    /// Of each layer, first to last.
    pub layers: Vec<String>,
    /// Of the embedding.
    pub embedding: String,
    /// Of the head; that of the embedding where they are one matrix.
    pub head: String,
}

impl Formats {
    pub(crate) fn of(mixture: &Mixture, layers: usize, tied: bool) -> Self {
        let head = if tied { mixture.embedding() } else { mixture.head() };
        Self {
            layers: (0..layers).map(|layer| mixture.layer(layer).to_string()).collect(),
            embedding: mixture.embedding().to_string(),
            head: head.to_string(),
        }
    }
}
