//! The model that is quantized, read one tensor at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use rewind_checkpoint::{Checkpoint, TensorName};

use crate::methods::error::QuantizeError;

/// Bytes that are read before the files are mapped anew.
const REMAP: u64 = 1 << 30;

/// A checkpoint, opened again now and then: pages of a mapped file that were read count as memory of the process
/// until it is unmapped, and a model may be larger than memory.
pub(crate) struct Source {
    path: PathBuf,
    checkpoint: Checkpoint,
    read: u64,
}

impl Source {
    /// Refuses what is quantized already, but for GGUF files, which often are all there is.
    pub(crate) fn open(path: &Path) -> Result<Self, QuantizeError> {
        let checkpoint = Checkpoint::open(path)?;
        // Several tensors stand for a quantized matrix, so that none does.
        if checkpoint.spec().tensors().any(|tensor| checkpoint.stored(tensor).is_none()) {
            return Err(QuantizeError::Quantized { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), checkpoint, read: 0 })
    }

    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The elements of a tensor.
    pub(crate) fn tensor(&mut self, name: TensorName) -> Result<Vec<f32>, QuantizeError> {
        if self.read > REMAP {
            let again = Checkpoint::open(&self.path)?;
            if again.fingerprint() != self.checkpoint.fingerprint() {
                return Err(QuantizeError::Changed { path: self.path.clone() });
            }
            *self = Self { path: self.path.clone(), checkpoint: again, read: 0 };
        }
        let values = self.checkpoint.tensor(name)?.data.to_f32();
        self.read += 2 * values.len() as u64;
        Ok(values)
    }

    /// Hash of the file; of a folder, of names and hashes of its `config.json` and safetensors files.
    pub(crate) fn hash(&self) -> Result<String, QuantizeError> {
        let of = |path: &Path| -> Result<blake3::Hash, QuantizeError> {
            let mut hash = blake3::Hasher::new();
            let file = File::open(path).map_err(QuantizeError::file(path))?;
            hash.update_reader(file).map_err(QuantizeError::file(path))?;
            Ok(hash.finalize())
        };
        if !self.path.is_dir() {
            return Ok(of(&self.path)?.to_hex().to_string());
        }
        let failed = || QuantizeError::file(&self.path);
        let entries = std::fs::read_dir(&self.path).map_err(failed())?;
        let paths: Result<Vec<PathBuf>, _> = entries.map(|e| e.map(|e| e.path())).collect();
        let mut paths = paths.map_err(failed())?;
        paths.retain(|path| {
            path.extension().is_some_and(|extension| extension == "safetensors")
                || path.file_name().is_some_and(|name| name == "config.json")
        });
        paths.sort();
        let mut all = blake3::Hasher::new();
        for path in paths {
            all.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            all.update(of(&path)?.as_bytes());
        }
        Ok(all.finalize().to_hex().to_string())
    }

    /// Last component of the path.
    pub(crate) fn name(&self) -> String {
        let whole = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}
