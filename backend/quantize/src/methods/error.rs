//! Why a quantized folder could not be made.

use std::io;
use std::path::{Path, PathBuf};

use rewind_checkpoint::{CheckpointError, TensorName};

use crate::methods::method::MethodError;

/// Each message names the file or tensor, and says what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The model cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A matrix cannot be quantized.
    #[error("{tensor}: {source}")]
    Tensor {
        /// Which tensor.
        tensor: TensorName,
        /// What is wrong with it.
        source: MethodError,
    },
    /// The method has no text to see inputs of.
    #[error("{method} reads a calibration text: there are no tokens to read")]
    NoText {
        /// Its name.
        method: &'static str,
    },
    /// The model is quantized already.
    #[error(
        "{} is quantized already, and would lose twice: quantize the original; this one can be a draft as it is \
         (draft: stored)",
        path.display()
    )]
    Quantized {
        /// The folder.
        path: PathBuf,
    },
    /// A token of the calibration is none of the model's.
    #[error("the calibration has token {token}; the model has only {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Tokens of the model.
        vocabulary: usize,
    },
    /// The plan is for another model.
    #[error("the formats are for {formats} layers, and the model has {layers}")]
    Layers {
        /// Layers that formats are given for.
        formats: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// The folder has something in it that is not an unfinished run.
    #[error(
        "{} exists and is no unfinished run of this command: choose another folder, or remove it", path.display()
    )]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The folder has parts of a run with other settings, of another model, or by another version.
    #[error(
        "{} belongs to an unfinished run with another model or other settings: repeat that one, choose another \
         folder, or remove this one",
        path.display()
    )]
    OtherRun {
        /// A file of it.
        path: PathBuf,
    },
    /// `config.json` cannot say what the model is.
    #[error(
        "config.json cannot express {what}: quantize the original Hugging Face folder instead of this file"
    )]
    Config {
        /// What it lacks.
        what: &'static str,
    },
    /// The tokenizer of a GGUF file has no equal among those of `tokenizer.json`.
    #[error("the tokenizer of {} cannot be written as tokenizer.json: {problem}", path.display())]
    Tokenizer {
        /// The model.
        path: PathBuf,
        /// What the written one does otherwise.
        problem: String,
    },
    /// Another file is in its place.
    #[error("{} changed while it was being read", path.display())]
    Changed {
        /// The model.
        path: PathBuf,
    },
    /// What was written does not read back as what it was made of.
    #[error("{} does not read back as the model it was made of: its {what} differs", path.display())]
    ReadBack {
        /// The folder.
        path: PathBuf,
        /// Which part.
        what: &'static str,
    },
}

impl QuantizeError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::File { path: path.to_owned(), source }
    }
}
