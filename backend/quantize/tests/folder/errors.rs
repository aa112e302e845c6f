//! Every message: what is wrong, where, and what would be right.

use std::fs;

use rewind_checkpoint::Architecture;
use rewind_formats::{Format, Mixture};
use rewind_quantize::methods::{Calibration, Job, Method, QuantizeError, quantize};
use serde_json::json;
use tempfile::TempDir;

use crate::checkpoints::tiny::{self, Element, spec};
use crate::{METHODS, calibration, fails, files, job, make, model, written};

#[test]
fn a_folder_with_something_in_it_is_left_alone() {
    let place = written(&model(&spec(Architecture::Llama)));
    let out = TempDir::new().unwrap();
    let job = job(place.path(), Method::Rtn, out.path());
    fs::write(out.path().join("letter.txt"), "dear").unwrap();
    let error = fails(&job);
    assert!(matches!(error, QuantizeError::Exists { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(out.path().to_str().unwrap()), "{text}");
    assert!(text.contains("choose another folder, or remove it"), "{text}");
    assert_eq!(files(out.path()).into_keys().collect::<Vec<_>>(), ["letter.txt"]);
    // Nor is a finished one written again.
    fs::remove_file(out.path().join("letter.txt")).unwrap();
    make(&job);
    let before = files(out.path());
    assert!(matches!(fails(&job), QuantizeError::Exists { .. }));
    assert_eq!(files(out.path()), before);
}

#[test]
fn an_unfinished_run_with_other_settings_is_left_alone() {
    let spec = spec(Architecture::Llama);
    let place = written(&model(&spec));
    let mut changed = model(&spec);
    changed.tensors[1].data[2] ^= 1;
    let other_model = written(&changed);
    let out = TempDir::new().unwrap();
    let whole = job(place.path(), Method::Gptq, out.path());
    let unfinished = TempDir::new().unwrap();
    quantize(&whole, |done| {
        if done == 2 {
            let [from, to] = [&out, &unfinished].map(|it| it.path().join(".parts"));
            fs::create_dir(&to).unwrap();
            for name in ["ends.safetensors", "layer-000.safetensors"] {
                fs::copy(from.join(name), to.join(name)).unwrap();
            }
        }
    })
    .unwrap();
    let whole = Job { out: unfinished.path(), ..whole };
    let mut tokens = calibration(1);
    tokens.chunks[1][3] ^= 1;
    let formats = Mixture::from("int4-g64".parse::<Format>().unwrap());
    for other in [
        Job { method: Method::Awq, ..whole.clone() },
        Job { method: Method::Rtn, ..whole.clone() },
        Job { formats, ..whole.clone() },
        Job { calibration: Some(tokens), ..whole.clone() },
        Job { model: other_model.path(), ..whole.clone() },
    ] {
        let error = fails(&other);
        assert!(matches!(error, QuantizeError::OtherRun { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("ends.safetensors"), "{text}");
        assert!(text.contains("repeat that one, choose another folder, or remove"), "{text}");
    }
    make(&whole);
    assert_eq!(files(unfinished.path()), files(out.path()));
}

#[test]
fn a_plan_for_another_model_is_refused() {
    let place = written(&model(&spec(Architecture::Llama)));
    let out = TempDir::new().unwrap();
    let format: Format = "int8".parse().unwrap();
    let formats = Mixture::new([format; 3], format, format);
    let error = fails(&Job { formats, ..job(place.path(), Method::Rtn, out.path()) });
    assert_eq!(error.to_string(), "the formats are for 3 layers, and the model has 2");
    assert!(files(out.path()).is_empty(), "nothing is begun");
}

#[test]
fn methods_that_read_need_a_text_of_the_models_tokens() {
    let place = written(&model(&spec(Architecture::Llama)));
    let out = TempDir::new().unwrap();
    for method in METHODS.into_iter().filter(|&method| method != Method::Rtn) {
        let with = |chunks: Vec<Vec<u32>>| {
            let calibration = Some(Calibration { chunks, ..calibration(1) });
            fails(&Job { calibration, ..job(place.path(), method, out.path()) }).to_string()
        };
        let none = fails(&Job { calibration: None, ..job(place.path(), method, out.path()) });
        let expected =
            format!("{} reads a calibration text: there are no tokens to read", method.name());
        assert_eq!(none.to_string(), expected);
        assert_eq!(with(vec![]), expected);
        assert_eq!(with(vec![vec![], vec![]]), expected);
        let expected = "the calibration has token 261; the model has only 261";
        assert_eq!(with(vec![vec![1, 2], vec![3, 261]]), expected);
    }
    assert!(files(out.path()).is_empty());
}

#[test]
fn a_model_that_is_quantized_already_is_refused() {
    let place = written(&model(&spec(Architecture::Llama)));
    let [first, second] = [(); 2].map(|()| TempDir::new().unwrap());
    make(&job(place.path(), Method::Rtn, first.path()));
    let error = fails(&job(first.path(), Method::Rtn, second.path()));
    assert!(matches!(error, QuantizeError::Quantized { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(first.path().to_str().unwrap()) && text.contains("stored"), "{text}");
    assert!(files(second.path()).is_empty());
}

#[test]
fn files_that_cannot_be_read_or_written_are_named() {
    let place = written(&model(&spec(Architecture::Llama)));
    let out = TempDir::new().unwrap();
    let error = fails(&job(&place.path().join("nowhere"), Method::Rtn, out.path()));
    assert!(matches!(error, QuantizeError::Checkpoint(_)), "{error}");
    assert!(error.to_string().contains("nowhere"), "{error}");
    // A file where folders should be.
    let file = out.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = fails(&job(place.path(), Method::Rtn, &path));
        assert!(matches!(error, QuantizeError::File { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    // A folder where a part should go, as good as a full disk.
    let begun = out.path().join("begun");
    let part = begun.join(".parts/layer-001.partial");
    fs::create_dir_all(&part).unwrap();
    let error = fails(&job(place.path(), Method::Gptq, &begun));
    assert!(matches!(error, QuantizeError::File { .. }), "{error}");
    assert!(error.to_string().contains("layer-001.safetensors"), "{error}");
    // What was done by then is not done again.
    assert!(begun.join(".parts/layer-000.safetensors").exists());
    fs::remove_dir(&part).unwrap();
    make(&job(place.path(), Method::Gptq, &begun));
}

#[test]
fn weights_and_inputs_that_are_not_finite_name_the_tensor() {
    let spec = spec(Architecture::Llama);
    for method in METHODS {
        let out = TempDir::new().unwrap();
        let mut folder = model(&spec);
        let tensor = folder.tensor("model.layers.1.mlp.up_proj.weight");
        tensor.data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        let place = written(&folder);
        let error = fails(&job(place.path(), method, out.path())).to_string();
        assert!(error.contains("layer 1") && error.contains("row 0, column 0"), "{error}");
    }
    for method in [Method::Gptq, Method::Awq] {
        let out = TempDir::new().unwrap();
        let mut folder = model(&spec);
        let norm = folder.tensor("model.layers.0.input_layernorm.weight");
        norm.data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
        let place = written(&folder);
        let error = fails(&job(place.path(), method, out.path())).to_string();
        assert!(error.contains("layer 0") && error.contains("calibration text"), "{error}");
    }
}

#[test]
fn what_config_json_cannot_say_is_refused_before_anything_is_done() {
    let spec = spec(Architecture::Llama);
    let mut gguf = tiny::gguf(&spec, Element::F16);
    let divisors: Vec<u8> = [1.0_f32, 1.5, 2.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    gguf.tensors.push(crate::checkpoints::gguf::Tensor {
        name: "rope_freqs.weight".to_owned(),
        dimensions: vec![4],
        ty: 0,
        data: divisors,
    });
    let place = TempDir::new().unwrap();
    let path = place.path().join("model.gguf");
    fs::write(&path, gguf.bytes()).unwrap();
    let out = TempDir::new().unwrap();
    let error = fails(&job(&path, Method::Rtn, out.path())).to_string();
    assert!(error.contains("a divisor for each rotary frequency"), "{error}");
    assert!(error.contains("quantize the original Hugging Face folder"), "{error}");
    assert!(files(out.path()).is_empty());
    // A tokenizer that does not load is the checkpoint's error.
    let mut broken = model(&spec);
    broken.tokenizer = json!({});
    let error = fails(&job(written(&broken).path(), Method::Rtn, out.path()));
    assert!(matches!(error, QuantizeError::Checkpoint(_)), "{error}");
}
