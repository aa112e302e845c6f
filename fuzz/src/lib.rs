//! What the fuzz targets do with their bytes, and good files to begin with.
//!
//! Readers map files, so bytes become files, in memory where the system has a folder for that.

use std::path::Path;
use std::sync::LazyLock;

use rewind_checkpoint::{Architecture, Checkpoint};
use rewind_quantize::Plan;
use tempfile::TempDir;

#[path = "../../backend/checkpoint/tests/support/mod.rs"]
mod checkpoints;

use checkpoints::folder::{Folder, safetensors};
use checkpoints::tiny::{self, Element};

static PLACE: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a folder")
});

/// A Hugging Face folder of which all files are good.
static FOLDER: LazyLock<&'static Path> = LazyLock::new(|| {
    good().write(PLACE.path());
    PLACE.path()
});

fn good() -> Folder {
    Folder::new(&tiny::spec(Architecture::Llama), Element::F16)
}

/// The bytes as a GGUF file.
pub fn gguf(bytes: &[u8]) {
    let path = PLACE.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("room");
    read(&path);
}

/// The bytes as the weights of a folder.
pub fn weights(bytes: &[u8]) {
    std::fs::write(FOLDER.join("model.safetensors"), bytes).expect("room");
    read(&FOLDER);
}

/// The bytes as the `config.json` of a folder.
pub fn config(bytes: &[u8]) {
    std::fs::write(FOLDER.join("config.json"), bytes).expect("room");
    read(&FOLDER);
}

/// The bytes as a plan: one that is read is written and read again.
pub fn plan(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(plan) = Plan::parse(text) {
        let text = plan.to_toml();
        let again = Plan::parse(&text).expect("what was written is read");
        assert_eq!(again.to_toml(), text);
    }
}

/// Opens a checkpoint and, if it is one, reads all of it.
fn read(path: &Path) {
    let Ok(checkpoint) = Checkpoint::open(path) else { return };
    for tensor in checkpoint.spec().tensors() {
        let shape = checkpoint.spec().shape(tensor).expect("a tensor of the model");
        // What quantizes a matrix may contradict itself; plain tensors cannot.
        let plain = checkpoint.stored(tensor).is_some();
        let read = checkpoint.tensor(tensor);
        assert!(read.is_ok() || !plain, "an open checkpoint has all tensors");
        for read in [read, checkpoint.stored_tensor(tensor)].into_iter().flatten() {
            assert_eq!(read.shape, shape);
            assert_eq!(read.data.len(), shape.iter().product::<usize>());
        }
    }
}

/// Good files for each target: its name, what to call the file, and the bytes.
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for architecture in
        [Architecture::Llama, Architecture::Mistral, Architecture::Qwen2, Architecture::Qwen3]
    {
        let (name, spec) = (format!("{architecture:?}"), tiny::spec(architecture));
        seeds.push(("gguf", name.clone(), tiny::gguf(&spec, Element::F16).bytes()));
        let folder = Folder::new(&spec, Element::F16);
        seeds.push(("config", name, folder.config.to_string().into_bytes()));
    }
    for element in [Element::F32, Element::F16, Element::Bf16] {
        let folder = Folder::new(&tiny::spec(Architecture::Llama), element);
        seeds.push(("safetensors", format!("{element:?}"), safetensors(&folder.tensors)));
    }
    let plan = "version = 1\nembedding = \"int8-g32\"\nhead = \"f16\"\nlayers = [\"nf4\", \"int4-g128\"]\n";
    let made = "[made]\nby = \"lim\"\nlow = \"nf4\"\nhigh = \"int8\"\ntarget_bits = 5.0\nlayer_bits = 4.9\n\
                all_bits = 5.5\nmodel = \"00\"\nimportance = [0.5, -0.25]\n";
    seeds.push(("plan", "by-hand".into(), plan.into()));
    seeds.push(("plan", "made".into(), format!("{plan}{made}").into()));
    seeds
}
