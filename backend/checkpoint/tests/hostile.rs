//! Files cut short, with bytes flipped, or with hostile lengths: always an answer, never a panic,
//! never an allocation out of proportion.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use rewind_checkpoint::{Architecture, Checkpoint};
use support::folder::Folder;
use support::quantized::{self, Gptq};
use support::tiny::{self, Element};
use tempfile::TempDir;

/// Remembers the largest single allocation of the process.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// The files here take some tens of kilobytes.
const LIMIT: usize = 8 << 20;

/// Opens a checkpoint and, if that goes well, uses all of it.
fn exercise(path: &Path) {
    if let Ok(checkpoint) = Checkpoint::open(path) {
        for name in checkpoint.spec().tensors() {
            // What quantizes a matrix may contradict itself; plain tensors cannot.
            let quantized = checkpoint.stored(name).is_none();
            assert!(checkpoint.tensor(name).is_ok() || quantized, "{name}");
            let _ = checkpoint.stored_tensor(name);
            checkpoint.stored_format(name).unwrap();
        }
        let ids = checkpoint.tokenizer().encode("hello <|end|> wörld", true);
        if let Ok(ids) = ids {
            checkpoint.tokenizer().decode(&ids);
        }
        if let Some(template) = checkpoint.chat_template() {
            let _ = template.render(&[], true);
        }
        assert!(checkpoint.tensors().count() > 0);
    }
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest < LIMIT, "an allocation of {largest} bytes");
}

fn exercise_gguf(bytes: &[u8]) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    exercise(&path);
}

fn tiny_gguf() -> Vec<u8> {
    tiny::gguf(&tiny::spec(Architecture::Llama), Element::F16).bytes()
}

/// Bytes before the tensors' data, where flips matter most.
fn header_len(bytes: &[u8]) -> usize {
    let name = b"output_norm.weight";
    bytes.windows(name.len()).position(|w| w == name).unwrap() + 64
}

/// Breaks one file of a folder.
fn exercise_folder(file: &str, breaking: impl FnOnce(&mut Vec<u8>)) {
    let place = TempDir::new().unwrap();
    let folder = Folder::new(&tiny::spec(Architecture::Qwen3), Element::Bf16);
    let folder = Folder {
        tokenizer_config: serde_json::json!({"chat_template": "{{ messages|length }}"}),
        ..folder
    };
    folder.write(place.path());
    let path = place.path().join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    breaking(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    exercise(place.path());
}

const FILES: [&str; 4] =
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn gguf_flips(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = tiny_gguf();
        let header = header_len(&bytes);
        for (at, value) in flips {
            let at = at.index(header);
            bytes[at] = value;
        }
        exercise_gguf(&bytes);
    }

    #[test]
    fn gguf_hostile_lengths(at in any::<prop::sample::Index>(), value in prop_oneof![
        Just(u64::MAX), Just(u64::MAX / 2), Just(1 << 32), Just(1 << 24), Just(0), any::<u64>(),
    ]) {
        let mut bytes = tiny_gguf();
        let at = at.index(header_len(&bytes));
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        exercise_gguf(&bytes);
    }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn gguf_truncations(length in any::<prop::sample::Index>()) {
        let bytes = tiny_gguf();
        exercise_gguf(&bytes[..length.index(bytes.len())]);
    }

    #[test]
    fn folder_flips(file in 0..FILES.len(), at in any::<prop::sample::Index>(), value: u8) {
        exercise_folder(FILES[file], |bytes| {
            // The first kilobytes hold all of the structure.
            let at = at.index(bytes.len().min(8192));
            bytes[at] = value;
        });
    }

    #[test]
    fn folder_truncations(file in 0..FILES.len(), length in any::<prop::sample::Index>()) {
        exercise_folder(FILES[file], |bytes| bytes.truncate(length.index(bytes.len())));
    }
}

/// Folders of every layout.
fn quantized_folders() -> [Folder; 6] {
    let gptq = Gptq { bits: 4, group: 64, symmetric: false, second_version: false, ordered: false };
    let spec = quantized::spec();
    [
        quantized::gptq(&spec, gptq).folder,
        quantized::awq(&spec, 32).folder,
        quantized::packed_integers(&spec, 8, 64, Some("I8")).folder,
        quantized::packed_floats(&spec, true).folder,
        quantized::bitsandbytes(&spec, true).folder,
        quantized::rewind(&spec, "int6-g32".parse().unwrap()).folder,
    ]
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn quantized_flips(
        number in 0..6_usize,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        in_config: bool,
    ) {
        let place = TempDir::new().unwrap();
        quantized_folders()[number].write(place.path());
        let path = place.path().join(if in_config { "config.json" } else { "model.safetensors" });
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, value) in flips {
            // Half of them where the structure is.
            let reach = if value % 2 == 0 { bytes.len() } else { bytes.len().min(8192) };
            bytes[at.index(reach)] = value;
        }
        std::fs::write(&path, bytes).unwrap();
        exercise(place.path());
    }
}

#[test]
fn every_truncation_of_a_header_is_an_error() {
    let bytes = tiny_gguf();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    for length in (1..bytes.len()).step_by(97) {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = Checkpoint::open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("model.gguf"), "{error}");
    }
}
