//! The formats of a whole draft.

use std::fmt;
use std::sync::Arc;

use crate::Format;

/// The formats of a draft's matrices: one for all layers, or one for each; and those of embedding and LM head.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mixture {
    layers: Layers,
    embedding: Format,
    head: Format,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Layers {
    All(Format),
    Each(Arc<[Format]>),
}

impl Mixture {
    /// A format for each layer, first to last.
    pub fn new(layers: impl Into<Arc<[Format]>>, embedding: Format, head: Format) -> Self {
        Self { layers: Layers::Each(layers.into()), embedding, head }
    }

    /// Number of layers that it is for; `None` if any number will do.
    pub fn layers(&self) -> Option<usize> {
        match &self.layers {
            Layers::All(_) => None,
            Layers::Each(layers) => Some(layers.len()),
        }
    }

    /// Format of the matrices of a layer, counted from 0.
    ///
    /// # Panics
    ///
    /// If it is for fewer layers.
    pub fn layer(&self, number: usize) -> Format {
        match &self.layers {
            Layers::All(format) => *format,
            Layers::Each(layers) => layers[number],
        }
    }

    /// Format of the embedding.
    pub fn embedding(&self) -> Format {
        self.embedding
    }

    /// Format of the LM head, where it is not the embedding.
    pub fn head(&self) -> Format {
        self.head
    }
}

impl From<Format> for Mixture {
    /// All layers in one format, the others in what goes with it: see [`Format::ends`].
    fn from(format: Format) -> Self {
        Self { layers: Layers::All(format), embedding: format.ends(), head: format.ends() }
    }
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match &self.layers {
            Layers::All(format) => describe([format], self.head),
            Layers::Each(layers) => describe(layers.iter(), self.head),
        };
        f.pad(&text)
    }
}

/// What a draft's matrices are stored in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DraftFormats {
    /// In these formats, quantized when they are loaded.
    Mixture(Mixture),
    /// As the checkpoint has them: codes and scales are kept, floats stay what they are.
    Stored,
}

impl DraftFormats {
    /// Number of layers that they are for; `None` if any number will do.
    pub fn layers(&self) -> Option<usize> {
        match self {
            Self::Mixture(mixture) => mixture.layers(),
            Self::Stored => None,
        }
    }
}

impl<T: Into<Mixture>> From<T> for DraftFormats {
    fn from(mixture: T) -> Self {
        Self::Mixture(mixture.into())
    }
}

impl fmt::Display for DraftFormats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mixture(mixture) => mixture.fmt(f),
            Self::Stored => f.pad("stored"),
        }
    }
}

/// Names of the formats of layers, first to last, and of the ends, for people:
/// `3 × int8, 27 × int4-g32 (embedding and head int8-g32)`. Where all are one, its name.
pub fn describe<T: fmt::Display>(
    layers: impl IntoIterator<Item = T>,
    ends: impl fmt::Display,
) -> String {
    let ends = ends.to_string();
    let mut runs: Vec<(usize, String)> = Vec::new();
    for name in layers.into_iter().map(|layer| layer.to_string()) {
        match runs.last_mut() {
            Some((count, last)) if *last == name => *count += 1,
            _ => runs.push((1, name)),
        }
    }
    let layers = match &runs[..] {
        [(_, name)] => name.clone(),
        runs => {
            let runs: Vec<_> = runs.iter().map(|(n, name)| format!("{n} × {name}")).collect();
            runs.join(", ")
        }
    };
    if layers == ends { layers } else { format!("{layers} (embedding and head {ends})") }
}

/// Names of the formats of one layer's matrices, each once, as in `int4a-g32+f16`.
pub fn each_once(names: impl IntoIterator<Item = String>) -> String {
    let mut found: Vec<String> = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found.join("+")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Group;

    const LOW: Format = Format::Int4Group(Group::G32);

    #[test]
    fn one_format_is_for_any_number_of_layers() {
        let mixture = Mixture::from(LOW);
        assert_eq!((mixture.layers(), mixture.layer(0), mixture.layer(99)), (None, LOW, LOW));
        assert_eq!(mixture.embedding().to_string(), "int8-g32");
        assert_eq!(mixture.to_string(), "int4-g32 (embedding and head int8-g32)");
        assert_eq!(Mixture::from(Format::Bf16).to_string(), "bf16");
    }

    #[test]
    fn layers_are_named_in_runs() {
        let layers = [Format::Int8, LOW, LOW, Format::Int8, Format::Int8];
        let mixture = Mixture::new(layers, Format::Nf4, Format::Fp8);
        assert_eq!(mixture.layers(), Some(5));
        assert_eq!(mixture.layer(2), LOW);
        let expected = "1 × int8, 2 × int4-g32, 2 × int8 (embedding and head fp8)";
        assert_eq!(mixture.to_string(), expected);
    }
}
