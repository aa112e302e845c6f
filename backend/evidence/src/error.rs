//! What can go wrong, one tree for each thing that is done.

use std::io;
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use rewind_engine::ExecutorError;

use crate::document::FEWEST_DOCUMENTS;

/// Why a document could not be traced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// There is nothing after the prompt.
    #[error(
        "document {document:?} has {tokens} tokens, {prompt} of them prompt: none is left to judge"
    )]
    TooShort {
        /// Its name.
        document: String,
        /// All its tokens.
        tokens: usize,
        /// Those of the prompt.
        prompt: usize,
    },
    /// Draft and shadow do not both fit.
    #[error(
        "document {document:?} has {tokens} tokens, twice, for draft and shadow: the model is loaded for {slots} \
         sequences of {positions} tokens and {pages} KV pages of {page_tokens} tokens"
    )]
    TooLong {
        /// Its name.
        document: String,
        /// All its tokens.
        tokens: usize,
        /// Sequences that the executor holds.
        slots: u32,
        /// Positions of each.
        positions: u32,
        /// KV pages.
        pages: u32,
        /// Positions of a page.
        page_tokens: u32,
    },
    /// A pass was refused or failed.
    #[error("document {document:?}: {source}")]
    Pass {
        /// Its name.
        document: String,
        /// What the executor said.
        source: ExecutorError,
    },
    /// A row of logits holds a NaN or an infinity.
    #[error("document {document:?}: logits of the {weights} at position {position} are not finite")]
    NotFinite {
        /// Its name.
        document: String,
        /// Draft or shadow.
        weights: &'static str,
        /// Where.
        position: usize,
    },
    /// The executor left out what was asked for.
    #[error("document {document:?}: the executor gave no {what} at position {position}")]
    Missing {
        /// Its name.
        document: String,
        /// What.
        what: &'static str,
        /// Where.
        position: usize,
    },
}

/// Why nothing could be fitted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// Too little text.
    #[error(
        "domain {domain:?} has {documents} documents: at least {least} are needed, so that some can be held out",
        least = FEWEST_DOCUMENTS
    )]
    Documents {
        /// The domain.
        domain: String,
        /// How many it has.
        documents: usize,
    },
    /// All documents are the same, or nearly.
    #[error("domain {domain:?}: {half} has no document, since too many of them are equal")]
    EmptyHalf {
        /// The domain.
        domain: String,
        /// Train or test.
        half: &'static str,
    },
    /// The draft is as good as the shadow.
    #[error(
        "domain {domain:?}: draft and shadow choose the same token at all {steps} positions of the train half: there \
         is nothing to detect; take more text or a poorer draft"
    )]
    NoDisagreement {
        /// The domain.
        domain: String,
        /// Positions of the train half.
        steps: usize,
    },
    /// The draft is never right.
    #[error(
        "domain {domain:?}: draft and shadow choose different tokens at all {steps} positions of the train half: there \
         is nothing to tell apart"
    )]
    NoAgreement {
        /// The domain.
        domain: String,
        /// Positions of the train half.
        steps: usize,
    },
}

/// Why records could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// The file cannot be made.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("{}: {source}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the writer said.
        source: ParquetError,
    },
}

impl RecordsError {
    pub(crate) fn parquet(path: &Path) -> impl Fn(ParquetError) -> Self + '_ {
        |source| Self::Parquet { path: path.to_owned(), source }
    }
}
