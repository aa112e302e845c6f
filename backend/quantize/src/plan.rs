//! A plan: the file that says in which format each layer of a draft is stored.
//!
//! ```toml
//! version = 1
//! embedding = "int8-g32"
//! head = "int8-g32"                    # not read where the embedding is the head
//! layers = ["int8", "int4-g128", "…"]  # first to last
//!
//! [made]                               # absent in a plan that was written by hand
//! by = "lim"
//! low = "int4-g128"
//! high = "int8"
//! target_bits = 5.0
//! layer_bits = 4.97                    # of a weight of the layers, with scales
//! all_bits = 5.73                      # of a weight of the model
//! model = "fingerprint of the weights"
//! importance = [0.71, 0.02]
//! ```
//!
//! A key that is not known is an error: a misspelt one must not silently mean nothing.

use std::path::{Path, PathBuf};
use std::{fs, io};

use rewind_formats::{Format, FormatError, Mixture};
use serde::{Deserialize, Serialize};

/// The one version of the format.
const VERSION: u32 = 1;

/// Longest plan that is read, bytes: a thousand layers take a few ten thousand.
const LONGEST: u64 = 1 << 20;

/// Formats of a draft, and how they were chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Format of the matrices of each layer, first to last; at least one.
    pub layers: Vec<Format>,
    /// Format of the embedding.
    pub embedding: Format,
    /// Format of the LM head, where it is not the embedding.
    pub head: Format,
    /// How it was made; `None` if by hand.
    pub made: Option<Made>,
}

/// How a plan was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// Name of the measure.
    pub by: String,
    /// Format of the least important layers.
    pub low: String,
    /// Format of the others.
    pub high: String,
    /// Bits of a weight of the layers, as asked for.
    pub target_bits: f64,
    /// Bits of a weight of the layers, scales included, as it came out.
    pub layer_bits: f64,
    /// Bits of a weight over all tensors, norms and biases with 32 bits.
    pub all_bits: f64,
    /// Fingerprint of the model.
    pub model: String,
    /// What the text that was read is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Tokens of it that were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Of random numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Of each layer, first to last; the higher the more important.
    pub importance: Vec<f64>,
}

/// Why a plan cannot be used. Each says what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The file cannot be read.
    #[error("cannot read the plan {}: {why}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said; told above, so no source that a caller would print again.
        why: io::Error,
    },
    /// The file is no plan.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: Box<Self>,
    },
    /// Far longer than any plan.
    #[error("a plan has at most {LONGEST} bytes")]
    TooLong,
    /// The text is not TOML, or a key is unknown, missing or of the wrong type.
    #[error("not a valid plan: {0}")]
    Syntax(String),
    /// The format is another one.
    #[error("the plan has version {0}: this build reads version {VERSION}")]
    Version(i64),
    /// No layers.
    #[error("the plan names no layers: \"layers\" must list a format for each layer of the model")]
    Empty,
    /// A format is none.
    #[error("{place}: {why}")]
    Format {
        /// The key, with the number of the layer from 0.
        place: String,
        /// What is wrong with the name.
        why: FormatError,
    },
}

/// As it stands in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    embedding: String,
    head: String,
    layers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made: Option<Made>,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: Option<i64>,
}

impl Plan {
    /// Reads a plan file.
    ///
    /// # Errors
    /// The file cannot be read, or is no plan; it is named.
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        let read = |why| PlanError::Read { path: path.to_owned(), why };
        let within = |why| PlanError::File { path: path.to_owned(), why: Box::new(why) };
        if fs::metadata(path).map_err(read)?.len() > LONGEST {
            return Err(within(PlanError::TooLong));
        }
        Self::parse(&fs::read_to_string(path).map_err(read)?).map_err(within)
    }

    /// Reads the text of a plan file.
    ///
    /// # Errors
    /// It is not a plan of this version.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        // The version first: keys of another version are not mistakes.
        let syntax = |error: toml::de::Error| PlanError::Syntax(error.to_string());
        let VersionOnly { version } = toml::from_str(text).map_err(syntax)?;
        if let Some(found) = version.filter(|&found| found != i64::from(VERSION)) {
            return Err(PlanError::Version(found));
        }
        let text: Text = toml::from_str(text).map_err(syntax)?;
        if text.layers.is_empty() {
            return Err(PlanError::Empty);
        }
        let format = |place: String, name: &str| {
            name.parse::<Format>().map_err(|why| PlanError::Format { place, why })
        };
        let layers = text.layers.iter().enumerate();
        Ok(Self {
            layers: layers
                .map(|(number, name)| format(format!("layers[{number}]"), name))
                .collect::<Result<_, _>>()?,
            embedding: format("embedding".into(), &text.embedding)?,
            head: format("head".into(), &text.head)?,
            made: text.made,
        })
    }

    /// The text of a plan file; [`Plan::parse`] gives the same plan back.
    pub fn to_toml(&self) -> String {
        let text = Text {
            version: VERSION,
            embedding: self.embedding.to_string(),
            head: self.head.to_string(),
            layers: self.layers.iter().map(Format::to_string).collect(),
            made: self.made.clone(),
        };
        // Serialization fails only on types that TOML lacks, and the struct has none of them.
        toml::to_string(&text).unwrap_or_default()
    }

    /// What executors load.
    pub fn mixture(&self) -> Mixture {
        Mixture::new(self.layers.clone(), self.embedding, self.head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let format = |name: &str| name.parse().unwrap();
        Plan {
            layers: ["int8", "int4-g128", "nf4"].map(format).to_vec(),
            embedding: format("int8-g32"),
            head: format("f16"),
            made: Some(Made {
                by: "random".into(),
                low: "int4-g128".into(),
                high: "int8".into(),
                target_bits: 5.0,
                layer_bits: 4.75,
                all_bits: 5.5,
                model: "00ff".into(),
                text: None,
                tokens: None,
                seed: Some(7),
                importance: vec![0.25, -1.0, 0.0],
            }),
        }
    }

    #[test]
    fn plans_come_back_as_they_were() {
        let made = plan();
        assert_eq!(Plan::parse(&made.to_toml()).unwrap(), made);
        let by_hand = Plan { made: None, ..made };
        assert_eq!(Plan::parse(&by_hand.to_toml()).unwrap(), by_hand);
        assert_eq!(by_hand.mixture().layers(), Some(3));
        assert_eq!(by_hand.mixture().layer(2), Format::Nf4);
    }

    #[test]
    fn mistakes_are_named() {
        let good = "version = 1\nembedding = \"f16\"\nhead = \"f16\"\nlayers = [\"int8\"]\n";
        assert!(Plan::parse(good).is_ok());
        for (from, to, said) in [
            ("version = 1", "version = 2", "version 2"),
            ("version = 1", "", "missing field `version`"),
            ("[\"int8\"]", "[]", "no layers"),
            ("[\"int8\"]", "[\"int8\", \"int5\"]", "layers[1]: unknown weight format \"int5\""),
            ("[\"int8\"]", "\"int8\"", "sequence"),
            ("head = \"f16\"", "head = \"plan:x\"", "head: weight format \"plan:x\""),
            ("head = \"f16\"", "haed = \"f16\"", "haed"),
        ] {
            let error = Plan::parse(&good.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn files_are_named() {
        let error = Plan::read(Path::new("/nowhere/a.toml")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/a.toml"), "{error}");
    }
}
