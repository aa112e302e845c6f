//! Why a quantized folder could not be made.

use std::io;
use std::path::{Path, PathBuf};

use rewind_checkpoint::{CheckpointError, TensorName};

use crate::method::GptqError;

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
        source: GptqError,
    },
    /// GPTQ has no text to see inputs of.
    #[error("gptq reads a calibration text: there are no tokens to read")]
    NoText,
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
    /// A GGUF file has its tokenizer inside.
    #[error(
        "{} has no tokenizer.json to copy: give the one of the model's Hugging Face folder (--tokenizer FILE)",
        path.display()
    )]
    NoTokenizer {
        /// The model.
        path: PathBuf,
    },
    /// The tokenizer that was given is another one.
    #[error("{} is not the tokenizer of this model: {problem}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What it does otherwise.
        problem: String,
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
