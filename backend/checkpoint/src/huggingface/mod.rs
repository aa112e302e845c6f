//! Hugging Face folders: `config.json`, safetensors in one file or in shards, and the small JSON
//! files around them. Only file names inside the folder are followed.

pub(crate) mod config;
pub(crate) mod quantized;
pub(crate) mod special;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path};

use rewind_formats::ggml::GgmlType;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{CheckpointError, Fault};
use crate::weights::{Mapping, Stored, StoredType, Weights, tensor};

/// Largest tokenizer, index or configuration file, in bytes; the largest known has about 35 MB.
const MAX_TEXT_FILE: u64 = 1 << 28;

/// Reads a small file of the folder; `None` if there is none.
pub(crate) fn text_file(folder: &Path, name: &str) -> Result<Option<String>, CheckpointError> {
    let path = folder.join(name);
    let file = match fs::File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(CheckpointError::io(&path))?,
    };
    let mut text = String::new();
    let read = file.take(MAX_TEXT_FILE + 1).read_to_string(&mut text);
    read.map_err(CheckpointError::io(&path))?;
    if text.len() as u64 > MAX_TEXT_FILE {
        let problem = format!("is larger than the limit of {MAX_TEXT_FILE} bytes");
        return Err(Fault::malformed("file", problem).within(&path));
    }
    Ok(Some(text))
}

/// Reads a JSON file of the folder; `None` if there is none.
pub(crate) fn json_file(folder: &Path, name: &str) -> Result<Option<Value>, CheckpointError> {
    let Some(text) = text_file(folder, name)? else { return Ok(None) };
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| Fault::malformed("JSON", error.to_string()).within(&folder.join(name)))?;
    if !value.is_object() {
        return Err(Fault::malformed("JSON", "is not an object").within(&folder.join(name)));
    }
    Ok(Some(value))
}

/// Maps the safetensors files and catalogues their tensors.
pub(crate) fn weights(folder: &Path) -> Result<Weights, CheckpointError> {
    const SINGLE: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";
    let mut weights = Weights::default();
    // The index goes first, as a folder with both has the single file for a part.
    if let Some(text) = text_file(folder, INDEX)? {
        let index = folder.join(INDEX);
        let index_fault = |fault: Fault| fault.within(&index);
        let places = shard_index(&text).map_err(index_fault)?;
        for shard in places.values().collect::<BTreeSet<_>>() {
            add(&mut weights, Mapping::open(&folder.join(shard))?)?;
        }
        for (name, shard) in &places {
            let found = weights.tensors.get(name).map(|stored| weights.files[stored.file].path());
            if found != Some(folder.join(shard).as_path()) {
                let problem = format!("is not in {shard}, where this index puts it");
                return Err(index_fault(Fault::malformed(tensor(name), problem)));
            }
        }
    } else if folder.join(SINGLE).exists() {
        add(&mut weights, Mapping::open(&folder.join(SINGLE))?)?;
    } else {
        let why = "it has no model.safetensors and no model.safetensors.index.json";
        return Err(CheckpointError::NotACheckpoint { path: folder.to_owned(), why });
    }
    Ok(weights)
}

/// Which file holds each tensor. File names must be plain: an index is no way out of the folder.
fn shard_index(text: &str) -> Result<BTreeMap<String, String>, Fault> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_str(text).map_err(|error| Fault::malformed("JSON", error.to_string()))?;
    for (name, shard) in &index.weight_map {
        let mut components = Path::new(shard).components();
        let plain = matches!(components.next(), Some(Component::Normal(part)) if part == &**shard)
            && components.next().is_none()
            && shard.ends_with(".safetensors");
        if !plain {
            return Err(Fault::malformed(
                tensor(name),
                format!("is in {shard:?}, which is not the name of a .safetensors file"),
            ));
        }
    }
    if index.weight_map.is_empty() {
        return Err(Fault::malformed("key weight_map", "is empty"));
    }
    Ok(index.weight_map)
}

fn add(weights: &mut Weights, mapping: Mapping) -> Result<(), CheckpointError> {
    let file = weights.files.len();
    let (header, metadata) = SafeTensors::read_metadata(&mapping)
        .map_err(|error| Fault::malformed("header", error.to_string()).within(mapping.path()))?;
    // `read_metadata` has checked that the offsets follow each other, fit types and shapes, and end
    // with the file.
    let start = size_of::<u64>() + header;
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        let stored = Stored {
            file,
            ty: stored_type(info.dtype),
            shape: info.shape.clone(),
            range: start + from..start + to,
        };
        if weights.tensors.insert(name.clone(), stored).is_some() {
            let fault = Fault::malformed(tensor(&name), "is also in another shard");
            return Err(fault.within(mapping.path()));
        }
    }
    weights.files.push(mapping);
    for (key, value) in metadata.metadata().iter().flatten() {
        weights.metadata.insert(key.clone(), value.clone());
    }
    Ok(())
}

fn stored_type(dtype: Dtype) -> StoredType {
    match dtype {
        Dtype::F32 => StoredType::Known(GgmlType::F32),
        Dtype::F16 => StoredType::Known(GgmlType::F16),
        Dtype::BF16 => StoredType::Known(GgmlType::Bf16),
        other => StoredType::Other(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cannot_leave_the_folder() {
        for shard in ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "x.bin", "", ".."] {
            let text = serde_json::json!({"weight_map": {"t": shard}}).to_string();
            assert!(shard_index(&text).is_err(), "{shard}");
        }
        let text = serde_json::json!({"weight_map": {"t": "x-1.safetensors"}}).to_string();
        assert_eq!(shard_index(&text).unwrap()["t"], "x-1.safetensors");
    }
}
