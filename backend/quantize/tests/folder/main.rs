//! Whole runs over tiny checkpoints: what is written loads, is what it should be, and does not depend on how it came
//! about.

#[path = "../../../checkpoint/tests/support/mod.rs"]
mod checkpoints;

mod errors;
mod folders;
mod resume;

use std::collections::BTreeMap;
use std::path::Path;

use checkpoints::folder::Folder;
use checkpoints::tiny::{Element, spec};
use rewind_checkpoint::{Architecture, ModelSpec};
use rewind_formats::{Format, Mixture};
use rewind_quantize::methods::{Calibration, Job, Manifest, Method, QuantizeError, quantize};
use tempfile::TempDir;

const METHODS: [Method; 3] = [Method::Rtn, Method::Gptq, Method::Awq];

/// Weights that make a model whose layers do something, in a folder.
fn model(spec: &ModelSpec) -> Folder {
    let mut folder = Folder::new(spec, Element::F32);
    let mut random = fastrand::Rng::with_seed(11);
    for tensor in &mut folder.tensors {
        let is_norm = tensor.name.contains("norm");
        for bytes in tensor.data.chunks_exact_mut(4) {
            let uniform = 2.0 * random.f32() - 1.0;
            let value = if is_norm { 1.0 + 0.5 * uniform } else { 0.4 * uniform };
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }
    folder
}

fn written(folder: &Folder) -> TempDir {
    let place = TempDir::new().unwrap();
    folder.write(place.path());
    place
}

/// A text of random tokens.
fn calibration(seed: u64) -> Calibration {
    let mut random = fastrand::Rng::with_seed(seed);
    let vocabulary = spec(Architecture::Llama).vocab_size as u32;
    let mut chunk = |tokens: usize| (0..tokens).map(|_| random.u32(..vocabulary)).collect();
    let chunks = [64, 50, 1, 64, 0, 33].map(&mut chunk).to_vec();
    Calibration { text: "random.txt".to_owned(), blake3: Calibration::hash(b"random"), chunks }
}

fn job<'a>(model: &'a Path, method: Method, out: &'a Path) -> Job<'a> {
    let formats = Mixture::from("int4-g32".parse::<Format>().unwrap());
    let calibration = (method != Method::Rtn).then(|| calibration(1));
    Job { model, method, formats, calibration, threads: 2, out }
}

fn make(job: &Job<'_>) -> Manifest {
    quantize(job, |_| ()).unwrap()
}

fn fails(job: &Job<'_>) -> QuantizeError {
    quantize(job, |_| ()).unwrap_err()
}

/// All files of a folder, hidden ones included.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries
        .map(|path| match path.is_dir() {
            true => (name(&path), b"a folder".to_vec()),
            false => (name(&path), std::fs::read(&path).unwrap()),
        })
        .collect()
}
