//! The parts of a folder in the making: a file for each layer, and one for what stands around the layers.
//!
//! A part's header has a hash of the settings of its run, so that another run cannot take it for its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rewind_checkpoint::{LayerTensor, ModelSpec, TensorName, hugging_face_name};
use rewind_formats::Packed;

use crate::methods::archive::{self, Entry, Metadata, Place};
use crate::methods::error::QuantizeError;
use crate::methods::forward::Weights;

/// Key of the hash in the header of a part.
const SETTINGS: &str = "settings";

/// Tensors of a part, and what its header says of them.
#[derive(Default)]
pub(crate) struct Part {
    entries: Vec<Entry>,
    metadata: Metadata,
}

impl Part {
    pub(crate) fn matrix(&mut self, name: TensorName, matrix: &Packed) {
        let entries = archive::packed(&hugging_face_name(name), matrix, &mut self.metadata);
        self.entries.extend(entries);
    }

    /// Norms and biases stay in f32.
    pub(crate) fn vector(&mut self, name: TensorName, values: &[f32]) {
        self.entries.push(Entry {
            name: hugging_face_name(name),
            dtype: "F32",
            shape: vec![values.len()],
            bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        });
    }
}

/// Their files.
pub(crate) struct Parts {
    folder: PathBuf,
    settings: String,
}

impl Parts {
    /// In a folder that exists.
    pub(crate) fn new(folder: PathBuf, settings: String) -> Self {
        Self { folder, settings }
    }

    /// Of a layer, or of what stands around them.
    pub(crate) fn path(&self, layer: Option<usize>) -> PathBuf {
        self.folder.join(match layer {
            Some(layer) => format!("layer-{layer:03}.safetensors"),
            None => "ends.safetensors".to_owned(),
        })
    }

    /// Whether a part is there. A damaged one is made again.
    pub(crate) fn done(&self, path: &Path) -> Result<bool, QuantizeError> {
        if !path.exists() {
            return Ok(false);
        }
        match archive::read(path) {
            Ok((metadata, _)) if metadata.get(SETTINGS) == Some(&self.settings) => Ok(true),
            Ok(_) => Err(QuantizeError::OtherRun { path: path.to_owned() }),
            Err(_) => Ok(false),
        }
    }

    pub(crate) fn write(&self, path: &Path, mut part: Part) -> Result<(), QuantizeError> {
        part.metadata.insert(SETTINGS.to_owned(), self.settings.clone());
        archive::write(path, &part.metadata, part.entries).map_err(QuantizeError::file(path))
    }

    /// A matrix of a part.
    pub(crate) fn matrix(&self, path: &Path, name: TensorName) -> Result<Packed, QuantizeError> {
        archive::read(path)
            .and_then(|(metadata, places)| {
                archive::matrix(&metadata, &places, &hugging_face_name(name))
            })
            .map_err(QuantizeError::file(path))
    }

    /// What a layer has become: matrices dequantized.
    pub(crate) fn weights(
        &self,
        path: &Path,
        spec: &ModelSpec,
        layer: usize,
    ) -> Result<Weights, QuantizeError> {
        let read = || -> std::io::Result<Weights> {
            let (metadata, places) = archive::read(path)?;
            let mut weights = Weights::new();
            for tensor in LayerTensor::ALL {
                let name = TensorName::Layer(layer, tensor);
                let Some(shape) = spec.shape(name) else { continue };
                let name = hugging_face_name(name);
                let values = match shape.len() {
                    2 => dequantized(&archive::matrix(&metadata, &places, &name)?),
                    _ => archive::vector(&places, &name)?,
                };
                weights.insert(tensor, values);
            }
            Ok(weights)
        };
        read().map_err(QuantizeError::file(path))
    }

    /// One file of all; hashes of its tensors.
    pub(crate) fn join(
        &self,
        to: &Path,
        layers: usize,
    ) -> Result<BTreeMap<String, String>, QuantizeError> {
        let (mut all, mut places) = (Metadata::new(), Vec::<Place>::new());
        for layer in std::iter::once(None).chain((0..layers).map(Some)) {
            let path = self.path(layer);
            let (metadata, found) = archive::read(&path).map_err(QuantizeError::file(&path))?;
            all.extend(metadata);
            places.extend(found);
        }
        all.remove(SETTINGS);
        all.insert("format".to_owned(), "rewind".to_owned());
        all.insert("version".to_owned(), "1".to_owned());
        archive::join(to, &all, places).map_err(QuantizeError::file(to))
    }

    /// Takes all of them away, when they have been joined.
    pub(crate) fn remove(self) -> Result<(), QuantizeError> {
        std::fs::remove_dir_all(&self.folder).map_err(QuantizeError::file(&self.folder))
    }
}

/// The weights of a matrix, exactly.
pub(crate) fn dequantized(packed: &Packed) -> Vec<f32> {
    let mut values = vec![0.0; packed.rows() * packed.cols()];
    for (row, values) in values.chunks_mut(packed.cols()).enumerate() {
        packed.dequantize_row(row, values);
    }
    values
}
