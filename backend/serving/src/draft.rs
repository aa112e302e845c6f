//! What the draft is stored in: one format, a plan with one for each layer, or what the checkpoint has.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rewind_formats::{DraftFormats, FORMAT_NAMES, Format, FormatError};
use rewind_quantize::Plan;

use crate::load_error::LoadError;

/// What leaves the checkpoint's matrices as they are.
const STORED: &str = "stored";

/// What stands before the path of a plan.
const PLAN: &str = "plan:";

/// The setting `draft`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Draft {
    /// All layers in this format.
    Format(Format),
    /// Each layer in the format that this file says.
    Plan(PathBuf),
    /// Each matrix as the checkpoint has it.
    Stored,
}

impl Draft {
    /// The same, its path relative to `folder`.
    pub(crate) fn within(self, folder: &Path) -> Self {
        match self {
            Self::Format(format) => Self::Format(format),
            Self::Plan(path) => Self::Plan(folder.join(path)),
            Self::Stored => Self::Stored,
        }
    }

    /// The formats of a model of so many layers.
    ///
    /// # Errors
    /// The plan cannot be read, or is for a model of other depth.
    pub fn formats(&self, layers: usize) -> Result<DraftFormats, LoadError> {
        let path = match self {
            Self::Format(format) => return Ok((*format).into()),
            Self::Stored => return Ok(DraftFormats::Stored),
            Self::Plan(path) => path,
        };
        let mixture = Plan::read(path)?.mixture();
        match mixture.layers() {
            Some(plan) if plan != layers => {
                Err(LoadError::PlanLayers { path: path.clone(), plan, model: layers })
            }
            _ => Ok(mixture.into()),
        }
    }
}

impl From<Format> for Draft {
    fn from(format: Format) -> Self {
        Self::Format(format)
    }
}

impl fmt::Display for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(format) => format.fmt(f),
            Self::Plan(path) => write!(f, "{PLAN}{}", path.display()),
            Self::Stored => f.write_str(STORED),
        }
    }
}

impl FromStr for Draft {
    type Err = UnknownDraft;

    fn from_str(text: &str) -> Result<Self, UnknownDraft> {
        match text.strip_prefix(PLAN).map(str::trim) {
            Some("") => Err(UnknownDraft::NoFile),
            Some(path) => Ok(Self::Plan(path.into())),
            None if text == STORED => Ok(Self::Stored),
            None => Ok(Self::Format(text.parse()?)),
        }
    }
}

/// Not what a draft can be stored in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownDraft {
    /// No format.
    #[error("{0}, stored, and plan:FILE")]
    Format(#[from] FormatError),
    /// A plan without a file.
    #[error(
        "\"plan:\" must be followed by the path of a plan; without one, a format: {FORMAT_NAMES}"
    )]
    NoFile,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_and_plans_are_told_apart() {
        for text in ["int8", "nf4", "stored", "plan:a/b.toml", "plan:/c d.toml"] {
            let draft: Draft = text.parse().unwrap();
            assert_eq!(draft.to_string(), text);
        }
        let plan: Draft = "plan: a.toml".parse().unwrap();
        assert_eq!(plan.within(Path::new("/m/1")), Draft::Plan("/m/1/a.toml".into()));
        for (text, said) in [("plan:", "path of a plan"), ("int5", "plan:FILE")] {
            let error = text.parse::<Draft>().unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("int4-g32"), "{error}");
        }
    }

    #[test]
    fn a_plan_must_be_as_deep_as_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        let text =
            "version = 1\nembedding = \"f16\"\nhead = \"f16\"\nlayers = [\"int8\", \"nf4\"]\n";
        std::fs::write(&path, text).unwrap();
        let draft = Draft::Plan(path.clone());
        let DraftFormats::Mixture(mixture) = draft.formats(2).unwrap() else { panic!("a plan") };
        assert_eq!(mixture.layer(1), Format::Nf4);
        let error = draft.formats(3).unwrap_err().to_string();
        assert!(error.contains("p.toml") && error.contains('2') && error.contains('3'), "{error}");
        std::fs::write(&path, "version = 7").unwrap();
        let error = draft.formats(2).unwrap_err().to_string();
        assert!(error.contains("p.toml") && error.contains("version 7"), "{error}");
        assert_eq!(Draft::from(Format::Int8).formats(3).unwrap().layers(), None);
        assert_eq!(Draft::Stored.formats(3).unwrap(), DraftFormats::Stored);
    }
}
