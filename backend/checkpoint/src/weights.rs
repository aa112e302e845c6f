//! Mapped weight files and the tensors that lie in them.
//!
//! GGUF and safetensors come down to the same thing: names, element types, shapes, byte ranges. One
//! catalogue serves both. Tensors are copied out, never borrowed, so that dropping the catalogue
//! unmaps the files and a later change of them on disk reaches nobody. Rejected: reading files
//! instead of mapping them, which needs a seek and an extra copy per tensor for nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use rewind_formats::ggml::GgmlType;
use sha2::{Digest, Sha256};

use crate::error::{CheckpointError, Fault};
use crate::tensor::TensorData;

/// A file mapped read-only.
#[derive(Debug)]
pub(crate) struct Mapping {
    path: PathBuf,
    map: Mmap,
}

impl Mapping {
    /// Maps a regular file. An empty one is an error, as is a folder.
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(CheckpointError::io(path))?;
        let length = file.metadata().map_err(CheckpointError::io(path))?.len();
        if length == 0 {
            return Err(Fault::malformed("file", "is empty").within(path));
        }
        #[allow(
            unsafe_code,
            reason = "memory maps cannot be safe: another process may write the file"
        )]
        // SAFETY: the map is read-only and private to this crate; its bytes are only ever read as
        // plain numbers, checked when they are read and copied out before use. A process that
        // truncates the file while a checkpoint is open can still end this one (SIGBUS), which is
        // why checkpoints are dropped once their weights are packed.
        let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::io(path))?;
        Ok(Self { path: path.to_owned(), map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Element type of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoredType {
    /// One that can be read.
    Known(GgmlType),
    /// One that cannot, by name: harmless unless the model needs that tensor.
    Other(String),
}

impl StoredType {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Known(ty) => ty.to_string(),
            Self::Other(name) => name.clone(),
        }
    }
}

/// Where a tensor lies. The range is within its file, and for a known type it is as long as type and
/// shape demand; whoever fills the catalogue has checked both.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) file: usize,
    pub(crate) ty: StoredType,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
    pub(crate) range: Range<usize>,
}

/// All tensors of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    pub(crate) files: Vec<Mapping>,
    pub(crate) tensors: BTreeMap<String, Stored>,
    /// What the headers of safetensors files say besides.
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Weights {
    /// The bytes of a tensor, if there is one of this name.
    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        let stored = self.tensors.get(name)?;
        Some(&self.files[stored.file][stored.range.clone()])
    }

    /// Copies a tensor out. Quantized blocks are dequantized in f32 and rounded to f16.
    pub(crate) fn read(&self, name: &str, stored: &Stored) -> Result<TensorData, CheckpointError> {
        let file = &self.files[stored.file];
        let StoredType::Known(ty) = stored.ty else {
            return Err(unreadable_type(name, stored).within(file.path()));
        };
        let bytes = &file[stored.range.clone()];
        Ok(match ty {
            GgmlType::F32 => TensorData::F32(elements(bytes, f32::from_le_bytes)),
            GgmlType::F16 => TensorData::F16(elements(bytes, f16::from_le_bytes)),
            GgmlType::Bf16 => TensorData::Bf16(elements(bytes, bf16::from_le_bytes)),
            _ => {
                TensorData::F16(dequantize(ty, bytes).map_err(|e| {
                    Fault::malformed(tensor(name), e.to_string()).within(file.path())
                })?)
            }
        })
    }

    /// Feeds names, types, shapes, sizes and a sample of every tensor's bytes to `hash`.
    pub(crate) fn fingerprint(&self, hash: &mut Sha256) {
        // Enough to tell two trainings of one architecture apart, little enough to touch only a page
        // of each tensor.
        const SAMPLE: usize = 256;
        for (name, stored) in &self.tensors {
            hash.update(name.as_bytes());
            hash.update(stored.ty.name().as_bytes());
            for size in &stored.shape {
                hash.update((*size as u64).to_le_bytes());
            }
            let bytes = &self.files[stored.file][stored.range.clone()];
            hash.update((bytes.len() as u64).to_le_bytes());
            let middle = bytes.len() / 2;
            hash.update(&bytes[middle..bytes.len().min(middle + SAMPLE)]);
        }
    }
}

pub(crate) fn tensor(name: &str) -> String {
    format!("tensor {name:?}")
}

pub(crate) fn unreadable_type(name: &str, stored: &Stored) -> Fault {
    Fault::unsupported(
        format!("the type of tensor {name:?}"),
        stored.ty.name(),
        GgmlType::ALL.map(|ty| ty.to_string()).join(", "),
    )
}

fn elements<const N: usize, T>(bytes: &[u8], from_le_bytes: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|b| from_le_bytes(*b)).collect()
}

fn dequantize(ty: GgmlType, bytes: &[u8]) -> Result<Vec<f16>, rewind_formats::ggml::GgmlError> {
    // Through a small buffer, so that no second copy of the tensor in f32 is ever needed.
    const BLOCKS: usize = 16;
    let mut buffer = vec![0.0_f32; BLOCKS * ty.block_len()];
    let mut halves = vec![f16::ZERO; buffer.len()];
    let mut out = Vec::with_capacity(bytes.len() / ty.block_bytes() * ty.block_len());
    for bytes in bytes.chunks(BLOCKS * ty.block_bytes()) {
        let values = &mut buffer[..bytes.len() / ty.block_bytes() * ty.block_len()];
        ty.dequantize(bytes, values)?;
        // Slices convert by vectors, single numbers by calls.
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        out.extend_from_slice(halves);
    }
    Ok(out)
}
