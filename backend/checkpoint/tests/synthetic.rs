//! Tiny checkpoints: what goes in comes out, and what is broken is named.

mod support;

use std::path::PathBuf;

use rewind_checkpoint::{
    Architecture, Checkpoint, CheckpointError, Container, LayerTensor, Message, ModelSpec,
    RopeScaling, TensorData, TensorName, Tokenizer,
};
use rewind_formats::ggml::GgmlType;
use serde_json::{Value as Json, json};
use support::folder::{Folder, hf_name};
use support::gguf::{Gguf, Value};
use support::tiny::{self, Element, weights};
use tempfile::TempDir;

const FAMILIES: [Architecture; 4] =
    [Architecture::Llama, Architecture::Mistral, Architecture::Qwen2, Architecture::Qwen3];

fn open_gguf(file: &Gguf) -> Result<Checkpoint, CheckpointError> {
    open_bytes(&file.bytes())
}

fn open_bytes(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    // The mapping outlives the name.
    Checkpoint::open(path)
}

fn open_folder(folder: &Folder) -> Result<Checkpoint, CheckpointError> {
    let place = TempDir::new().unwrap();
    folder.write(place.path());
    Checkpoint::open(place.path())
}

fn check_weights(checkpoint: &Checkpoint, spec: &ModelSpec, element: Element) {
    for name in spec.tensors() {
        let source = match name {
            TensorName::Head if spec.tied_head => TensorName::Embedding,
            name => name,
        };
        let tensor = checkpoint.tensor(name).unwrap();
        assert_eq!(Some(&tensor.shape), spec.shape(name).as_ref(), "{name}");
        assert_eq!(tensor.data.to_f32(), weights(spec, source), "{name}");
        let kept = match tensor.data {
            TensorData::F32(_) => Element::F32,
            TensorData::F16(_) => Element::F16,
            TensorData::Bf16(_) => Element::Bf16,
            TensorData::Packed(_) => panic!("{name} is packed"),
        };
        assert_eq!(kept, element);
    }
}

#[test]
fn both_containers_give_back_every_family() {
    for architecture in FAMILIES {
        for element in [Element::F32, Element::F16, Element::Bf16] {
            for tied_head in [true, false] {
                let mut spec = ModelSpec { tied_head, ..tiny::spec(architecture) };
                let folder = open_folder(&Folder::new(&spec, element)).unwrap();
                assert_eq!(folder.spec(), &spec);
                assert_eq!(folder.container(), Container::HuggingFace);
                check_weights(&folder, &spec, element);
                let gguf = open_gguf(&tiny::gguf(&spec, element)).unwrap();
                if architecture == Architecture::Mistral {
                    // GGUF calls both llama.
                    spec.architecture = Architecture::Llama;
                }
                assert_eq!(gguf.spec(), &spec);
                assert_eq!(gguf.container(), Container::Gguf);
                check_weights(&gguf, &spec, element);
            }
        }
    }
}

#[test]
fn shards_make_no_difference() {
    let spec = tiny::spec(Architecture::Qwen2);
    let folder = Folder { shards: 3, ..Folder::new(&spec, Element::Bf16) };
    check_weights(&open_folder(&folder).unwrap(), &spec, Element::Bf16);
}

#[test]
fn quantized_blocks_are_rounded_once_to_f16() {
    // Rows of 256 fit every type.
    let spec =
        ModelSpec { hidden_size: 256, intermediate_size: 256, ..tiny::spec(Architecture::Qwen2) };
    for ty in GgmlType::ALL.into_iter().filter(|ty| ty.is_quantized()) {
        let mut file = tiny::gguf(&spec, Element::F32);
        let bytes: Vec<u8> = (0..ty.bytes(256 * 256).unwrap())
            // Bits 10…13 of every half clear: no infinity or NaN among the scales.
            .map(|i| (i * 37 % 251) as u8 & 0x9f)
            .collect();
        let mut values = vec![0.0; 256 * 256];
        ty.dequantize(&bytes, &mut values).unwrap();
        let tensor = file.tensor("blk.1.ffn_down.weight");
        (tensor.ty, tensor.data) = (ty.id(), bytes);
        let checkpoint = open_gguf(&file).unwrap();
        let down = checkpoint.tensor(TensorName::Layer(1, LayerTensor::Down)).unwrap();
        let expected = values.iter().map(|&v| half::f16::from_f32(v)).collect();
        assert_eq!(down.data, TensorData::F16(expected), "{ty}");
        let listed = checkpoint.tensors().find(|t| t.name == "blk.1.ffn_down.weight").unwrap();
        assert_eq!((listed.dtype, listed.shape), (ty.to_string(), &[256, 256][..]));
        assert_eq!(Some(listed.bytes), ty.bytes(256 * 256));
    }
}

#[test]
fn rope_divisors_become_scaling() {
    let mut file = tiny::gguf(&tiny::spec(Architecture::Llama), Element::F32);
    let divisors = [1.0, 1.0, 2.5, 8.0];
    file.tensors.push(support::gguf::Tensor {
        name: "rope_freqs.weight".to_owned(),
        dimensions: vec![4],
        ty: 0,
        data: Element::F32.bytes(&divisors),
    });
    let checkpoint = open_gguf(&file).unwrap();
    assert_eq!(checkpoint.spec().rope.scaling, RopeScaling::Divisors(divisors.to_vec()));
    let frequencies = checkpoint.spec().rope.frequencies(8);
    assert_eq!(frequencies[0], 1.0);
    assert!((frequencies[3] - 0.001 / 8.0).abs() < 1e-9);
    file.tensor("rope_freqs.weight").data = Element::F32.bytes(&[1.0, 0.0, 1.0, 1.0]);
    let error = open_gguf(&file).unwrap_err().to_string();
    assert!(error.contains("rope_freqs.weight") && error.contains("positive"), "{error}");
}

#[test]
fn fingerprints_tell_models_apart() {
    let spec = tiny::spec(Architecture::Llama);
    let file = tiny::gguf(&spec, Element::F16);
    let fingerprint = |file: &Gguf| open_gguf(file).unwrap().fingerprint().to_owned();
    let plain = fingerprint(&file);
    assert_eq!(plain.len(), 32);
    assert_eq!(plain, fingerprint(&file));
    // The chat template is not the model; a weight and RoPE's base are.
    let mut other = file.clone();
    other.set("tokenizer.chat_template", Value::Str("x".to_owned()));
    assert_eq!(plain, fingerprint(&other));
    let mut other = file.clone();
    other.set("llama.rope.freq_base", Value::F32(5e5));
    assert_ne!(plain, fingerprint(&other));
    let mut other = file;
    let data = &mut other.tensor("blk.0.ffn_up.weight").data;
    let middle = data.len() / 2;
    data[middle] ^= 1;
    assert_ne!(plain, fingerprint(&other));
}

/// As a `tokenizer.json` gives it back.
fn written(tokenizer: &Tokenizer) -> Tokenizer {
    Tokenizer::from_json(&tokenizer.to_json().unwrap(), tokenizer.vocab_size()).unwrap()
}

#[test]
fn tokens_around_a_prompt_are_written() {
    let spec = tiny::spec(Architecture::Llama);
    for (begins, ends) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut file = tiny::gguf(&spec, Element::F16);
        file.set("tokenizer.ggml.add_bos_token", Value::Bool(begins));
        file.set("tokenizer.ggml.add_eos_token", Value::Bool(ends));
        let checkpoint = open_gguf(&file).unwrap();
        for tokenizer in [checkpoint.tokenizer(), &written(checkpoint.tokenizer())] {
            let expected = [&[0][..usize::from(begins)], &[1][..usize::from(ends)]].concat();
            assert_eq!(tokenizer.encode("", true).unwrap(), expected);
            assert_eq!(tokenizer.encode("", false).unwrap(), [0; 0]);
        }
    }
}

#[test]
fn both_tokenizers_agree() {
    let spec = tiny::spec(Architecture::Llama);
    let gguf = open_gguf(&tiny::gguf(&spec, Element::F16)).unwrap();
    let folder = open_folder(&Folder::new(&spec, Element::F16)).unwrap();
    let id = |token: &str| gguf.tokenizer().token_id(token).unwrap();
    let [begin, end, he, ll] = ["<|begin|>", "<|end|>", "Ġhe", "ll"].map(id);
    let [of_gguf, of_folder] = [gguf.tokenizer(), folder.tokenizer()];
    for tokenizer in [of_gguf, of_folder, &written(of_gguf), &written(of_folder)] {
        assert_eq!(tokenizer.vocab_size(), spec.vocab_size);
        // The file's truncation to three tokens must not apply.
        let ids = tokenizer.encode(" hello, é<|end|>", true).unwrap();
        assert_eq!(ids[..3], [begin, he, ll]);
        assert_eq!(ids.last(), Some(&end));
        assert_eq!(ids.len(), 9);
        assert_eq!(tokenizer.decode(&ids), " hello, é");
        assert_eq!(tokenizer.encode(" hello, é<|end|>", false).unwrap(), ids[1..]);
        assert_eq!(tokenizer.encode("", true).unwrap(), [begin]);
        assert_eq!(tokenizer.piece(he), b" he");
        assert_eq!((tokenizer.piece(end), tokenizer.max_piece_len()), (&b""[..], 3));
        assert_eq!(tokenizer.token_id("no such token"), None);
        // Half a character decodes to a replacement.
        assert_eq!(tokenizer.decode(&ids[ids.len() - 2..]), "\u{fffd}");
    }
}

#[test]
fn sentence_piece_ids_are_those_of_the_reference() {
    let golden: Json = serde_json::from_str(include_str!("golden/spm_tokens.json")).unwrap();
    let list = |value: &Json| value.as_array().unwrap().clone();
    let tokens: Vec<String> =
        list(&golden["tokens"]).iter().map(|t| t.as_str().unwrap().to_owned()).collect();
    let spec = ModelSpec { vocab_size: tokens.len(), ..tiny::spec(Architecture::Llama) };
    let mut file = tiny::gguf(&spec, Element::F16);
    file.set("tokenizer.ggml.model", Value::Str("llama".to_owned()));
    file.set("tokenizer.ggml.tokens", Value::Strs(tokens));
    let scores = list(&golden["scores"]).iter().map(|s| s.as_f64().unwrap() as f32).collect();
    file.set("tokenizer.ggml.scores", Value::F32s(scores));
    let types = list(&golden["types"]).iter().map(|t| t.as_i64().unwrap() as i32).collect();
    file.set("tokenizer.ggml.token_type", Value::I32s(types));
    file.set("tokenizer.ggml.unknown_token_id", Value::U32(0));
    file.set("tokenizer.ggml.bos_token_id", Value::U32(1));
    file.set("tokenizer.ggml.eos_token_id", Value::U32(2));
    let checkpoint = open_gguf(&file).unwrap();
    let cases = list(&golden["cases"]);
    assert!(cases.len() > 100);
    for tokenizer in [checkpoint.tokenizer(), &written(checkpoint.tokenizer())] {
        assert!(tokenizer.strips_leading_space());
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            let expected: Vec<u32> =
                list(&case["ids"]).iter().map(|id| id.as_u64().unwrap() as u32).collect();
            assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
            if !text.contains('<') {
                assert_eq!(tokenizer.decode(&expected), text);
            }
        }
    }
}

#[test]
fn chat_templates_come_from_every_place() {
    let spec = tiny::spec(Architecture::Llama);
    let messages = [Message { role: "user".to_owned(), content: "hi".to_owned() }];
    let render = |checkpoint: &Checkpoint| {
        checkpoint.chat_template().map(|t| t.render(&messages, false).unwrap())
    };
    let gguf = open_gguf(&tiny::gguf(&spec, Element::F16)).unwrap();
    assert_eq!(render(&gguf).as_deref(), Some("<|begin|>hi<|end|>"));

    let mut folder = Folder::new(&spec, Element::F16);
    assert_eq!(render(&open_folder(&folder).unwrap()), None);
    folder.tokenizer_config["chat_template"] = json!("{{ eos_token }}{{ messages[0].content }}");
    assert_eq!(render(&open_folder(&folder).unwrap()).as_deref(), Some("<|end|>hi"));
    folder.tokenizer_config["chat_template"] = json!([
        {"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"},
    ]);
    assert_eq!(render(&open_folder(&folder).unwrap()).as_deref(), Some("yes"));

    let place = TempDir::new().unwrap();
    folder.write(place.path());
    std::fs::write(place.path().join("chat_template.jinja"), "file").unwrap();
    let checkpoint = Checkpoint::open(place.path()).unwrap();
    assert_eq!(render(&checkpoint).as_deref(), Some("file"));
    std::fs::write(place.path().join("chat_template.jinja"), "{% if").unwrap();
    let error = Checkpoint::open(place.path()).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja"), "{error}");
}

#[test]
fn generation_defaults_come_from_every_place() {
    let spec = tiny::spec(Architecture::Llama);
    let mut folder = Folder::new(&spec, Element::F16);
    folder.config["eos_token_id"] = json!([5, 4]);
    folder.config["bos_token_id"] = json!(0);
    let generation = open_folder(&folder).unwrap().generation().clone();
    assert_eq!((generation.eos, generation.bos), (vec![1, 4, 5], Some(0)));
    assert_eq!(generation.temperature, None);

    folder.generation_config = Some(json!({
        "eos_token_id": 7, "do_sample": true, "temperature": 0.5, "top_p": 0.75, "top_k": 20,
    }));
    let generation = open_folder(&folder).unwrap().generation().clone();
    assert_eq!(generation.eos, [1, 7]);
    assert_eq!((generation.temperature, generation.top_p), (Some(0.5), Some(0.75)));
    assert_eq!(generation.top_k, Some(20));

    folder.generation_config = Some(json!({"temperature": 0.5, "do_sample": false}));
    assert_eq!(open_folder(&folder).unwrap().generation().temperature, None);

    for bad in [json!("</s>"), json!([1, 9999]), json!(-1)] {
        folder.generation_config = Some(json!({"eos_token_id": bad}));
        let error = open_folder(&folder).unwrap_err().to_string();
        assert!(error.contains("generation_config.json: key eos_token_id"), "{error}");
    }
}

/// Breaks a GGUF file and checks that the error names what was broken.
fn broken_gguf(named: &[&str], breaking: impl FnOnce(&mut Gguf)) {
    let mut file = tiny::gguf(&tiny::spec(Architecture::Llama), Element::F16);
    breaking(&mut file);
    let error = open_gguf(&file).unwrap_err().to_string();
    assert!(error.contains("model.gguf"), "no file in {error}");
    for name in named {
        assert!(error.contains(name), "no {name} in {error}");
    }
}

#[test]
fn broken_gguf_files_are_named() {
    let text = |text: &str| Value::Str(text.to_owned());
    broken_gguf(&["magic"], |f| f.magic = *b"GGML");
    broken_gguf(&["version", "1"], |f| f.version = 1);
    broken_gguf(&["big endian"], |f| f.version = 3 << 24);
    broken_gguf(&["general.architecture", "gemma"], |f| {
        f.set("general.architecture", text("gemma"));
    });
    broken_gguf(&["general.architecture", "missing"], |f| f.remove("general.architecture"));
    broken_gguf(&["general.alignment"], |f| f.set("general.alignment", Value::U32(33)));
    broken_gguf(&["split.count"], |f| f.set("split.count", Value::U32(2)));
    broken_gguf(&["expert_count"], |f| f.set("llama.expert_count", Value::U32(8)));
    broken_gguf(&["llama.block_count", "missing"], |f| f.remove("llama.block_count"));
    broken_gguf(&["llama.block_count", "string"], |f| {
        f.set("llama.block_count", Value::Strs(vec!["x".to_owned()]));
    });
    broken_gguf(&["blk.2.attn_norm.weight", "layer 2"], |f| {
        f.set("llama.block_count", Value::U32(3));
    });
    broken_gguf(&["blk.1.", "not supported"], |f| f.set("llama.block_count", Value::U32(1)));
    broken_gguf(&["number of layers"], |f| f.set("llama.block_count", Value::U32(1 << 20)));
    broken_gguf(&["embedding_length"], |f| {
        f.set("llama.embedding_length", text("thirty-two"));
    });
    broken_gguf(&["token_embd.weight", "[261, 32]"], |f| {
        f.set("llama.embedding_length", Value::U32(64));
    });
    broken_gguf(&["rope.scaling.type", "yarn"], |f| f.set("llama.rope.scaling.type", text("yarn")));
    broken_gguf(&["rope.dimension_count"], |f| {
        f.set("llama.rope.dimension_count", Value::U32(4));
    });
    broken_gguf(&["blk.0.attn_q.weight", "missing"], |f| {
        f.tensors.retain(|t| t.name != "blk.0.attn_q.weight");
    });
    broken_gguf(&["blk.0.attn_q.bias", "not supported"], |f| {
        let extra = support::gguf::Tensor {
            name: "blk.0.attn_q.bias".to_owned(),
            dimensions: vec![32],
            ty: 0,
            data: vec![0; 128],
        };
        f.tensors.push(extra);
    });
    broken_gguf(&["blk.0.ffn_up.weight", "Q2_K"], |f| f.tensor("blk.0.ffn_up.weight").ty = 10);
    broken_gguf(&["blk.0.ffn_up.weight", "blocks"], |f| {
        // Rows of 32 are no blocks of 256.
        f.tensor("blk.0.ffn_up.weight").ty = GgmlType::Q4K.id();
    });
    broken_gguf(&["blk.0.ffn_up.weight", "dimensions"], |f| {
        f.tensor("blk.0.ffn_up.weight").dimensions = vec![2, 2, 2, 2, 2];
    });
    broken_gguf(&["blk.0.ffn_up.weight", "too large"], |f| {
        f.tensor("blk.0.ffn_up.weight").dimensions = vec![1 << 32, 1 << 32];
    });
    broken_gguf(&["output_norm.weight", "file ends"], |f| {
        f.tensor("output_norm.weight").dimensions = vec![32, 1000];
    });
    broken_gguf(&["output_norm.weight", "size 0"], |f| {
        f.tensor("output_norm.weight").dimensions = vec![0];
    });
    broken_gguf(&["output_norm.weight", "twice"], |f| {
        let again = f.tensor("output_norm.weight").clone();
        f.tensors.push(again);
    });
    broken_gguf(&["tokenizer.ggml.model", "bert"], |f| f.set("tokenizer.ggml.model", text("bert")));
    broken_gguf(&["tokenizer.ggml.pre", "tekken"], |f| f.set("tokenizer.ggml.pre", text("tekken")));
    broken_gguf(&["tokenizer.ggml.pre", "missing"], |f| f.remove("tokenizer.ggml.pre"));
    broken_gguf(&["tokenizer.ggml.tokens"], |f| {
        f.set("tokenizer.ggml.tokens", Value::Strs(vec![]));
    });
    broken_gguf(&["tokenizer.ggml.tokens", "entry 1", "entry 0"], |f| {
        f.set("tokenizer.ggml.tokens", Value::Strs(vec!["x".to_owned(); 2]));
        f.set("tokenizer.ggml.token_type", Value::I32s(vec![1; 2]));
    });
    broken_gguf(&["tokenizer.ggml.tokens", "300"], |f| {
        f.set("tokenizer.ggml.tokens", Value::Strs(vec!["x".to_owned(); 300]));
    });
    broken_gguf(&["tokenizer.ggml.token_type"], |f| {
        f.set("tokenizer.ggml.token_type", Value::I32s(vec![1; 3]));
    });
    broken_gguf(&["tokenizer.ggml.merges", "entry 0"], |f| {
        f.set("tokenizer.ggml.merges", Value::Strs(vec!["together".to_owned()]));
    });
    broken_gguf(&["tokenizer.ggml.merges"], |f| {
        f.set("tokenizer.ggml.merges", Value::Strs(vec!["zz zz".to_owned()]));
    });
    broken_gguf(&["tokenizer.ggml.eos_token_id", "261"], |f| {
        f.set("tokenizer.ggml.eos_token_id", Value::U32(9999));
    });
    broken_gguf(&["tokenizer.ggml.bos_token_id", "missing"], |f| {
        f.remove("tokenizer.ggml.bos_token_id");
    });
    broken_gguf(&["chat template"], |f| f.set("tokenizer.chat_template", text("{% for")));
}

/// Breaks a folder and checks that the error names what was broken.
fn broken_folder(named: &[&str], breaking: impl FnOnce(&mut Folder)) {
    let mut folder = Folder::new(&tiny::spec(Architecture::Llama), Element::F16);
    breaking(&mut folder);
    let error = open_folder(&folder).unwrap_err().to_string();
    for name in named {
        assert!(error.contains(name), "no {name} in {error}");
    }
}

#[test]
fn broken_folders_are_named() {
    let query = hf_name(TensorName::Layer(1, LayerTensor::Query));
    broken_folder(&["config.json", "hidden_size"], |f| f.config["hidden_size"] = json!("big"));
    broken_folder(&["config.json", "not an object"], |f| f.config = json!([]));
    broken_folder(&[&query, "missing"], |f| f.tensors.retain(|t| t.name != query));
    broken_folder(&["lm_head.weight", "missing"], |f| {
        f.config["tie_word_embeddings"] = json!(false);
    });
    broken_folder(&[&query, "[32, 32]", "[16, 64]"], |f| f.tensor(&query).shape = vec![16, 64]);
    broken_folder(&[&query, "I16", "BF16"], |f| f.tensor(&query).dtype = "I16");
    broken_folder(&["model.safetensors", "header"], |f| f.tensor(&query).shape = vec![33, 32]);
    broken_folder(&["adapter", "not supported"], |f| {
        let mut extra = f.tensor(&query).clone();
        extra.name = "adapter".to_owned();
        f.tensors.push(extra);
    });
    broken_folder(&["tokenizer.json"], |f| f.tokenizer = json!({"version": "1.0"}));
    broken_folder(&["tokenizer.json", "WordPiece"], |f| {
        f.tokenizer["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    });
    broken_folder(&["tokenizer.json", "none"], |f| f.tokenizer["decoder"] = Json::Null);
    // A post-processor whose special token is not defined parses and would panic when used.
    broken_folder(&["tokenizer.json", "contradict"], |f| {
        f.tokenizer["post_processor"]["special_tokens"] = json!({});
    });
}

#[test]
fn harmless_tensors_are_allowed() {
    let spec = tiny::spec(Architecture::Llama);
    let mut folder = Folder::new(&spec, Element::F16);
    let mut extra = folder.tensors[0].clone();
    extra.name = "lm_head.weight".to_owned();
    folder.tensors.push(extra.clone());
    extra.name = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
    folder.tensors.push(extra);
    check_weights(&open_folder(&folder).unwrap(), &spec, Element::F16);
}

#[test]
fn shard_indices_are_checked() {
    let folder =
        Folder { shards: 2, ..Folder::new(&tiny::spec(Architecture::Llama), Element::F16) };
    let place = TempDir::new().unwrap();
    folder.write(place.path());
    let index = place.path().join("model.safetensors.index.json");
    let good: Json = serde_json::from_str(&std::fs::read_to_string(&index).unwrap()).unwrap();
    let norm = hf_name(TensorName::FinalNorm);
    let expect = |shard: &str, named: &[&str]| {
        let mut bad = good.clone();
        bad["weight_map"][&norm] = json!(shard);
        std::fs::write(&index, bad.to_string()).unwrap();
        let error = Checkpoint::open(place.path()).unwrap_err().to_string();
        for name in named {
            assert!(error.contains(name), "no {name} in {error}");
        }
    };
    expect("../../etc/passwd", &["model.safetensors.index.json", &norm, "passwd"]);
    expect("model-0.safetensors", &["model.safetensors.index.json", &norm, "model-0"]);
    expect("model-9.safetensors", &["model-9.safetensors"]);
    // The same tensor in two shards.
    std::fs::copy(place.path().join("model-0.safetensors"), place.path().join("again.safetensors"))
        .unwrap();
    expect("again.safetensors", &["another shard"]);
}

#[test]
fn other_paths_are_refused() {
    let place = TempDir::new().unwrap();
    let refuse = |path: PathBuf, named: &str| {
        let error = Checkpoint::open(path).unwrap_err().to_string();
        assert!(error.contains(named), "no {named} in {error}");
    };
    refuse(place.path().join("absent.gguf"), "absent.gguf");
    refuse(place.path().to_owned(), "no config.json");
    std::fs::write(place.path().join("model.bin"), "x").unwrap();
    refuse(place.path().join("model.bin"), "neither a folder nor a .gguf file");
    std::fs::write(place.path().join("empty.gguf"), "").unwrap();
    refuse(place.path().join("empty.gguf"), "is empty");
    Folder::new(&tiny::spec(Architecture::Llama), Element::F16).write(place.path());
    std::fs::remove_file(place.path().join("model.safetensors")).unwrap();
    refuse(place.path().to_owned(), "no model.safetensors");
}
