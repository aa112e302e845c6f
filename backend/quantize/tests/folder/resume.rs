//! Runs that were interrupted, and threads.

use std::fs;
use std::path::Path;

use rewind_checkpoint::Architecture;
use rewind_quantize::methods::{Job, quantize};
use tempfile::TempDir;

use crate::checkpoints::tiny::spec;
use crate::{METHODS, files, job, make, model, written};

const PARTS: &str = ".parts";

/// A copy of an unfinished folder as it is at this moment.
fn snapshot(from: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    fs::create_dir(copy.path().join(PARTS)).unwrap();
    for entry in fs::read_dir(from.join(PARTS)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(PARTS).join(path.file_name().unwrap())).unwrap();
    }
    copy
}

#[test]
fn an_interrupted_run_ends_in_the_same_bytes() {
    for architecture in [Architecture::Llama, Architecture::Qwen3] {
        let place = written(&model(&spec(architecture)));
        for method in METHODS {
            let out = TempDir::new().unwrap();
            let mut interrupted = Vec::new();
            let whole = job(place.path(), method, out.path());
            let manifest = quantize(&whole, |done| {
                interrupted.push((done, snapshot(out.path())));
            });
            let manifest = manifest.unwrap();
            let expected = files(out.path());
            let parts: Vec<_> = interrupted.iter().map(|(done, _)| *done).collect();
            assert_eq!(parts, [1, 2, 3], "embedding and head, two layers");
            for (done, unfinished) in interrupted {
                // What a killed process leaves of the next part.
                let begun = unfinished.path().join(PARTS).join("layer-001.partial");
                fs::write(begun, b"half a").unwrap();
                let again = Job { out: unfinished.path(), threads: 3, ..whole.clone() };
                let mut written = Vec::new();
                let same = quantize(&again, |part| {
                    written.push(part);
                });
                assert_eq!(same.unwrap(), manifest, "{method:?}, after {done} parts");
                assert_eq!(written, [1, 2, 3]);
                assert_eq!(files(unfinished.path()), expected, "{method:?}, after {done} parts");
            }
        }
    }
}

#[test]
fn damaged_and_missing_parts_are_made_again() {
    let place = written(&model(&spec(Architecture::Llama)));
    for method in METHODS {
        let out = TempDir::new().unwrap();
        let mut copies = Vec::new();
        let whole = job(place.path(), method, out.path());
        quantize(&whole, |done| {
            if done == 3 {
                copies.extend([(); 4].map(|()| snapshot(out.path())));
            }
        })
        .unwrap();
        let expected = files(out.path());
        let part = |copy: usize, name: &str| copies[copy].path().join(PARTS).join(name);
        let cut = part(0, "layer-000.safetensors");
        let bytes = fs::read(&cut).unwrap();
        fs::write(&cut, &bytes[..bytes.len() - 1]).unwrap();
        fs::write(part(1, "layer-001.safetensors"), b"").unwrap();
        fs::remove_file(part(2, "ends.safetensors")).unwrap();
        fs::remove_file(part(3, "layer-000.safetensors")).unwrap();
        // Killed while the joined file was written.
        fs::write(copies[3].path().join("model.partial"), b"half").unwrap();
        fs::write(copies[3].path().join("config.json"), b"{").unwrap();
        for (number, copy) in copies.iter().enumerate() {
            make(&Job { out: copy.path(), ..whole.clone() });
            assert_eq!(files(copy.path()), expected, "{method:?}, {number}");
        }
    }
}

#[test]
fn threads_change_no_byte() {
    let place = written(&model(&spec(Architecture::Qwen2)));
    for method in METHODS {
        let [one, two, three] = [1, 2, 3].map(|threads| {
            let out = TempDir::new().unwrap();
            make(&Job { threads, ..job(place.path(), method, out.path()) });
            files(out.path())
        });
        assert_eq!(one, two, "{method:?}");
        assert_eq!(two, three, "{method:?}");
    }
}
