//! What is in a written folder.

use rewind_checkpoint::{
    Architecture, Checkpoint, LayerTensor, Message, RopeScaling, Tensor, TensorData, TensorName,
};
use rewind_formats::{FORMAT_NAMES, Format, Mixture, Packed};
use rewind_quantize::methods::{Job, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checkpoints::gguf::Gguf;
use crate::checkpoints::tiny::{self, Element, spec};
use crate::{METHODS, files, job, make, model, written};

const FAMILIES: [Architecture; 4] =
    [Architecture::Llama, Architecture::Mistral, Architecture::Qwen2, Architecture::Qwen3];

fn file(gguf: &Gguf) -> TempDir {
    let place = TempDir::new().unwrap();
    std::fs::write(place.path().join("model.gguf"), gguf.bytes()).unwrap();
    place
}

/// What loading makes of a tensor in a format.
fn at_load(tensor: &Tensor, format: Format) -> Tensor {
    let &[rows, cols] = &tensor.shape[..] else { return tensor.clone() };
    let packed = Packed::quantize(format, rows, cols, &tensor.data.to_f32()).unwrap();
    Tensor { data: TensorData::Packed(packed), ..tensor.clone() }
}

fn same(found: &Tensor, expected: &Tensor) -> bool {
    match (&found.data, &expected.data) {
        (TensorData::Packed(found), TensorData::Packed(expected)) => found == expected,
        _ => found.data.to_f32() == expected.data.to_f32(),
    }
}

#[test]
fn rounding_gives_the_codes_of_a_draft_that_is_quantized_at_load() {
    for architecture in FAMILIES {
        for tied in [true, false] {
            let mut spec = spec(architecture);
            spec.tied_head = tied;
            let place = written(&model(&spec));
            let original = Checkpoint::open(place.path()).unwrap();
            for name in FORMAT_NAMES.split(", ") {
                let format: Format = name.parse().unwrap();
                let out = TempDir::new().unwrap();
                make(&Job { formats: format.into(), ..job(place.path(), Method::Rtn, out.path()) });
                let found = Checkpoint::open(out.path()).unwrap();
                assert_eq!(found.spec(), &spec);
                for tensor in spec.tensors() {
                    let format = match tensor {
                        TensorName::Layer(..) => format,
                        _ => format.ends(),
                    };
                    let expected = at_load(&original.tensor(tensor).unwrap(), format);
                    let stored = found.stored_tensor(tensor).unwrap();
                    assert!(same(&stored, &expected), "{architecture:?}, {name}, {tensor}");
                }
            }
        }
    }
}

#[test]
fn every_layer_has_the_format_of_the_plan() {
    let spec = spec(Architecture::Qwen2);
    let place = written(&model(&spec));
    let format = |name: &str| name.parse::<Format>().unwrap();
    let formats =
        Mixture::new([format("int4-g32"), format("int8")], format("nf4"), format("int8-g64"));
    for method in METHODS {
        let out = TempDir::new().unwrap();
        let manifest =
            make(&Job { formats: formats.clone(), ..job(place.path(), method, out.path()) });
        let found = Checkpoint::open(out.path()).unwrap();
        let stored = |tensor| found.stored_format(tensor).unwrap().unwrap().to_string();
        assert_eq!(stored(TensorName::Layer(0, LayerTensor::Key)), "int4-g32");
        assert_eq!(stored(TensorName::Layer(1, LayerTensor::Down)), "int8");
        assert_eq!(stored(TensorName::Embedding), "nf4");
        assert_eq!(manifest.formats.layers, ["int4-g32", "int8"]);
        // The head is the embedding.
        assert_eq!((&manifest.formats.embedding[..], &manifest.formats.head[..]), ("nf4", "nf4"));
    }
}

#[test]
fn gguf_files_bring_their_tokenizer_and_template() {
    for architecture in FAMILIES {
        let place = file(&tiny::gguf(&spec(architecture), Element::F16));
        let path = place.path().join("model.gguf");
        let original = Checkpoint::open(&path).unwrap();
        for method in METHODS {
            let out = TempDir::new().unwrap();
            let manifest = make(&job(&path, method, out.path()));
            assert_eq!(manifest.source.name, "model.gguf");
            let found = Checkpoint::open(out.path()).unwrap();
            for text in ["", " hello, é\n", "the hello<|end|>"] {
                for around in [true, false] {
                    let [expected, ids] = [&original, &found]
                        .map(|checkpoint| checkpoint.tokenizer().encode(text, around).unwrap());
                    assert_eq!(ids, expected, "{text:?}");
                }
            }
            assert_eq!(found.generation(), original.generation());
            let message = Message { role: "user".to_owned(), content: "Hi".to_owned() };
            let chat = found.chat_template().unwrap().render(&[message], true).unwrap();
            assert_eq!(chat, "<|begin|>Hi<|end|>");
        }
    }
}

#[test]
fn gguf_files_without_a_template_stay_without() {
    let mut gguf = tiny::gguf(&spec(Architecture::Llama), Element::F16);
    gguf.remove("tokenizer.chat_template");
    let place = file(&gguf);
    let path = place.path().join("model.gguf");
    let out = TempDir::new().unwrap();
    make(&job(&path, Method::Rtn, out.path()));
    let found = Checkpoint::open(out.path()).unwrap();
    assert!(found.chat_template().is_none());
    assert_eq!(found.generation(), Checkpoint::open(&path).unwrap().generation());
}

#[test]
fn files_of_a_folder_come_along() {
    let mut spec = spec(Architecture::Llama);
    spec.rope.scaling = RopeScaling::Linear { factor: 2.0 };
    let mut source = model(&spec);
    source.config["rope_scaling"] = json!({"rope_type": "linear", "factor": 2.0});
    source.generation_config = Some(json!({"do_sample": true, "temperature": 0.6, "top_k": 7}));
    source.tokenizer_config["chat_template"] = json!("{{ bos_token }}{{ messages[0].content }}");
    source.shards = 3;
    let place = written(&source);
    let out = TempDir::new().unwrap();
    make(&job(place.path(), Method::Rtn, out.path()));
    let [original, found] = [&place, &out].map(|it| Checkpoint::open(it.path()).unwrap());
    assert_eq!(found.spec(), original.spec());
    assert_eq!(found.spec(), &spec);
    assert_eq!(found.generation(), original.generation());
    assert_eq!(found.generation().top_k, Some(7));
    let source = |checkpoint: &Checkpoint| checkpoint.chat_template().unwrap().source().to_owned();
    assert_eq!(source(&found), source(&original));
    let names: Vec<_> = files(out.path()).into_keys().collect();
    let expected = [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
}

#[test]
fn the_manifest_says_what_was_made_of_what() {
    let spec = spec(Architecture::Llama);
    let place = written(&model(&spec));
    for method in METHODS {
        let out = TempDir::new().unwrap();
        let manifest = make(&job(place.path(), method, out.path()));
        let files = files(out.path());
        let text: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(text, serde_json::to_value(&manifest).unwrap());
        assert_eq!(text["version"], 1);
        assert_eq!(text["method"]["name"], method.name());
        let keys = |of: &Value| of.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let settings: &[&str] = match method {
            Method::Rtn => &["name"],
            Method::Gptq => &["block", "damping", "name"],
            Method::Awq => &["name", "steps"],
        };
        assert_eq!(keys(&text["method"]), settings);
        let tokens = if method == Method::Rtn { Value::Null } else { json!(212) };
        assert_eq!(text["calibration"]["tokens"], tokens);
        // Each hash is that of the bytes which the file's header points at.
        let weights = &files["model.safetensors"];
        let length = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&weights[8..8 + length]).unwrap();
        assert_eq!(header["__metadata__"]["format"], "rewind");
        let mut tensors = keys(&header);
        tensors.retain(|name| name != "__metadata__");
        assert_eq!(tensors, keys(&text["tensors"]));
        for name in tensors {
            let offset = |which: usize| header[&name]["data_offsets"][which].as_u64().unwrap();
            let [start, end] = [0, 1].map(|which| 8 + length + offset(which) as usize);
            let hash = blake3::hash(&weights[start..end]).to_hex().to_string();
            assert_eq!(text["tensors"][&name], hash.as_str(), "{name}");
        }
        // A norm is single precision, and scaled by the one method that scales.
        let norm = TensorName::Layer(0, LayerTensor::AttentionNorm);
        let [original, found] = [&place, &out]
            .map(|it| Checkpoint::open(it.path()).unwrap().tensor(norm).unwrap().data.to_f32());
        assert_eq!(original == found, method != Method::Awq);
    }
}

#[test]
fn the_hash_of_the_source_is_of_its_content() {
    let spec = spec(Architecture::Llama);
    let hash = |place: &TempDir| {
        let out = TempDir::new().unwrap();
        make(&job(place.path(), Method::Rtn, out.path())).source.blake3
    };
    let mut folder = model(&spec);
    let plain = written(&folder);
    assert_eq!(hash(&plain), hash(&written(&folder)));
    folder.tensors[3].data[9] ^= 1;
    assert_ne!(hash(&plain), hash(&written(&folder)));
}
