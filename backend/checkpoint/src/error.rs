//! What can be wrong with a checkpoint.

use std::io;
use std::path::{Path, PathBuf};

use crate::{TemplateError, TensorName, TokenizerError};

/// Why a checkpoint could not be opened or read. Every message names the file, the place in it, what
/// is wrong there, and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// The path is nothing that could hold a model.
    #[error(
        "{} is not a checkpoint ({why}); expected a .gguf file or a Hugging Face folder with \
         config.json, tokenizer.json and model.safetensors or model.safetensors.index.json",
        path.display()
    )]
    NotACheckpoint {
        /// The path.
        path: PathBuf,
        /// What is missing.
        why: &'static str,
    },
    /// The file breaks its own format, is cut short, or contradicts itself.
    #[error("{}: {at}: {problem}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Key, tensor or part of the file.
        at: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A well-formed model that Rewind cannot run.
    #[error("{}: {at} is {found}, which is not supported; supported: {supported}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// Key or tensor.
        at: String,
        /// Its value.
        found: String,
        /// Values that would do.
        supported: String,
    },
    /// A tensor of the model is in no file.
    #[error("{}: tensor {name:?} ({tensor}) is missing", file.display())]
    MissingTensor {
        /// The checkpoint.
        file: PathBuf,
        /// What it is for.
        tensor: TensorName,
        /// What the file should call it.
        name: String,
    },
    /// The model has no such tensor: a layer past the last, a bias that its family lacks.
    #[error("this model has no tensor {tensor}")]
    NoSuchTensor {
        /// What was asked for.
        tensor: TensorName,
    },
    /// The tokenizer does not load.
    #[error("{}: {source}", file.display())]
    Tokenizer {
        /// The file.
        file: PathBuf,
        /// Why.
        source: TokenizerError,
    },
    /// The chat template does not compile.
    #[error("{}: {source}", file.display())]
    Template {
        /// The file.
        file: PathBuf,
        /// Why.
        source: TemplateError,
    },
}

impl CheckpointError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }
}

/// A fault found by code that does not know the file's name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Malformed { at: String, problem: String },
    Unsupported { at: String, found: String, supported: String },
}

impl Fault {
    pub(crate) fn malformed(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Malformed { at: at.into(), problem: problem.into() }
    }

    pub(crate) fn unsupported(
        at: impl Into<String>,
        found: impl Into<String>,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported { at: at.into(), found: found.into(), supported: supported.into() }
    }

    pub(crate) fn within(self, file: &Path) -> CheckpointError {
        let file = file.to_owned();
        match self {
            Self::Malformed { at, problem } => CheckpointError::Malformed { file, at, problem },
            Self::Unsupported { at, found, supported } => {
                CheckpointError::Unsupported { file, at, found, supported }
            }
        }
    }
}
