//! The tensors of a quantized matrix, looked up and checked.

use std::collections::BTreeSet;
use std::path::Path;

use half::{bf16, f16};

use crate::error::{CheckpointError, Fault};
use crate::weights::{Stored, Weights, tensor};

/// Tensors by name, and which of them were asked for.
pub(super) struct Parts<'a> {
    weights: &'a Weights,
    folder: &'a Path,
    names: BTreeSet<String>,
}

/// A tensor whose type and sizes are right.
#[derive(Clone, Debug)]
pub(super) struct Part {
    stored: Stored,
    dtype: String,
}

impl<'a> Parts<'a> {
    pub(super) fn new(weights: &'a Weights, folder: &'a Path) -> Self {
        Self { weights, folder, names: BTreeSet::new() }
    }

    /// Names of all that were found.
    pub(super) fn into_names(self) -> BTreeSet<String> {
        self.names
    }

    /// What the header of the files says under `key`.
    pub(super) fn metadata(&self, key: &str) -> Option<&'a str> {
        self.weights.metadata.get(key).map(String::as_str)
    }

    /// Sizes of a tensor; `None` if there is none.
    pub(super) fn shape(&self, name: &str) -> Option<&'a [usize]> {
        self.weights.tensors.get(name).map(|stored| &stored.shape[..])
    }

    /// Whether there is such a tensor, of this type.
    pub(super) fn is(&self, name: &str, dtype: &str) -> bool {
        self.weights.tensors.get(name).is_some_and(|stored| stored.ty.name() == dtype)
    }

    /// A tensor that must be there, of one of these types and of one of these shapes.
    pub(super) fn need(
        &mut self,
        name: &str,
        dtypes: &[&str],
        shapes: &[&[usize]],
    ) -> Result<Part, CheckpointError> {
        self.may(name, dtypes, shapes)?.ok_or_else(|| {
            let problem = "is missing, and is part of a quantized matrix";
            Fault::malformed(tensor(name), problem).within(self.folder)
        })
    }

    /// The same of one that may be absent.
    pub(super) fn may(
        &mut self,
        name: &str,
        dtypes: &[&str],
        shapes: &[&[usize]],
    ) -> Result<Option<Part>, CheckpointError> {
        let Some(stored) = self.weights.tensors.get(name) else { return Ok(None) };
        let dtype = stored.ty.name();
        if !dtypes.contains(&&*dtype) {
            let fault = Fault::unsupported(
                format!("the type of tensor {name:?}"),
                dtype,
                dtypes.join(", "),
            );
            return Err(self.within(name, fault));
        }
        if !shapes.contains(&&stored.shape[..]) {
            let expected: Vec<_> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
            let problem =
                format!("has sizes {:?}; it must have {}", stored.shape, expected.join(" or "));
            return Err(self.within(name, Fault::malformed(tensor(name), problem)));
        }
        self.names.insert(name.to_owned());
        Ok(Some(Part { stored: stored.clone(), dtype }))
    }

    /// Takes a tensor for known that says nothing about the weights.
    pub(super) fn ignore(&mut self, name: &str) {
        if self.weights.tensors.contains_key(name) {
            self.names.insert(name.to_owned());
        }
    }

    /// A fault of a matrix, in the file that has this tensor.
    pub(super) fn within(&self, name: &str, fault: Fault) -> CheckpointError {
        let stored = self.weights.tensors.get(name);
        let file = stored.map_or(self.folder, |stored| self.weights.files[stored.file].path());
        fault.within(file)
    }

    /// The bytes of a tensor.
    pub(super) fn bytes(&self, part: &Part) -> &'a [u8] {
        part.bytes(self.weights)
    }
}

impl Part {
    pub(super) fn dtype(&self) -> &str {
        &self.dtype
    }

    pub(super) fn bytes<'a>(&self, weights: &'a Weights) -> &'a [u8] {
        &weights.files[self.stored.file][self.stored.range.clone()]
    }

    /// Elements of 32 bits.
    pub(super) fn words(&self, weights: &Weights) -> Vec<u32> {
        self.bytes(weights).as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    /// Elements of a float type, upcast exactly.
    pub(super) fn floats(&self, weights: &Weights) -> Vec<f32> {
        let bytes = self.bytes(weights);
        let halves = bytes.as_chunks().0.iter();
        match &*self.dtype {
            "F16" => halves.map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            "BF16" => halves.map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        }
    }

    /// Elements in half precision, as they are.
    pub(super) fn halves(&self, weights: &Weights) -> Vec<f16> {
        self.bytes(weights).as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()
    }
}

/// The types that scales may have.
pub(super) const FLOATS: &[&str] = &["F16", "BF16", "F32"];

/// The name without `weight`, and with something else in its place.
pub(super) fn sibling(name: &str, part: &str) -> String {
    format!("{}{part}", name.strip_suffix("weight").unwrap_or(name))
}

/// A matrix with rows for columns: `[rows][cols]` out of `[cols][rows]`.
pub(super) fn transpose<T: Copy + Default>(from: &[T], rows: usize, cols: usize) -> Vec<T> {
    // By blocks, or every element of a large matrix would come from another line of the cache.
    const BLOCK: usize = 64;
    let blocks = |count: usize| (0..count).step_by(BLOCK).map(move |i| i..count.min(i + BLOCK));
    let mut to = vec![T::default(); rows * cols];
    for columns in blocks(cols) {
        for row in blocks(rows).flatten() {
            for col in columns.clone() {
                to[row * cols + col] = from[col * rows + row];
            }
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposed_twice_is_as_before() {
        for (rows, cols) in [(1, 1), (3, 200), (130, 64), (65, 129)] {
            let from: Vec<usize> = (0..rows * cols).collect();
            let to = transpose(&from, rows, cols);
            assert_eq!(to[cols - 1], (cols - 1) * rows, "the last of the first row");
            assert_eq!(transpose(&to, cols, rows), from);
        }
    }
}
