//! The demo model, where it is present: `REWIND_DEMO_MODEL` holds the path of its GGUF file.

use std::path::PathBuf;

use rewind_checkpoint::{
    Architecture, Checkpoint, LayerTensor, Message, TensorData, TensorName, Tokenizer,
};
use serde_json::Value;

/// The model's path; `None`, with a line that says so, where tests run without it.
fn demo() -> Option<PathBuf> {
    let path = std::env::var_os("REWIND_DEMO_MODEL").map(PathBuf::from);
    if path.is_none() {
        println!("SKIP: REWIND_DEMO_MODEL is not set; `cargo xtask test` sets it");
    }
    path
}

#[test]
fn spec_of_the_demo_model() {
    let Some(path) = demo() else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let spec = checkpoint.spec();
    assert_eq!(spec.architecture, Architecture::Llama);
    assert_eq!((spec.vocab_size, spec.hidden_size, spec.intermediate_size), (49152, 576, 1536));
    assert_eq!((spec.layers, spec.heads, spec.kv_heads, spec.head_dim), (30, 9, 3, 64));
    assert_eq!((spec.rope.theta, spec.max_positions, spec.tied_head), (100_000.0, 8192, true));
    assert_eq!(spec.parameters(), 134_515_008);
    // <|endoftext|> and <|im_end|>.
    assert_eq!(checkpoint.generation().eos, [0, 2]);
    assert_eq!(checkpoint.generation().bos, Some(1));
    assert_eq!(checkpoint.tensors().count(), 272);
    assert_eq!(checkpoint.fingerprint(), Checkpoint::open(&path).unwrap().fingerprint());
}

#[test]
fn every_tensor_is_read_and_finite() {
    let Some(path) = demo() else { return };
    let checkpoint = Checkpoint::open(path).unwrap();
    for name in checkpoint.spec().tensors() {
        let tensor = checkpoint.tensor(name).unwrap();
        assert_eq!(Some(&tensor.shape), checkpoint.spec().shape(name).as_ref());
        assert_eq!(Some(tensor.data.len()), checkpoint.spec().elements(name));
        let is_norm = tensor.shape.len() == 1;
        assert_eq!(matches!(tensor.data, TensorData::F32(_)), is_norm, "{name}");
        assert!(tensor.data.to_f32().iter().all(|x| x.is_finite()), "{name}");
    }
    assert!(checkpoint.tensor(TensorName::Layer(30, LayerTensor::Query)).is_err());
    assert!(checkpoint.tensor(TensorName::Layer(0, LayerTensor::QueryBias)).is_err());
}

#[test]
fn ids_are_those_of_the_reference() {
    let Some(path) = demo() else { return };
    let checkpoint = Checkpoint::open(path).unwrap();
    let tokenizer = checkpoint.tokenizer();
    let cases: Value = serde_json::from_str(include_str!("golden/smollm2_tokens.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 100);
    let written = Tokenizer::from_json(&tokenizer.to_json().unwrap(), 49152).unwrap();
    for id in 0..49152 {
        assert_eq!(written.piece(id), tokenizer.piece(id), "{id}");
    }
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(Value::from(ids.clone()), case["smollm"], "{text:?}");
        assert_eq!(written.encode(text, true).unwrap(), ids, "{text:?}");
        // Special tokens are the only text that pieces leave out.
        let plain = [
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "<repo_name>",
            "<reponame>",
            "<file_sep>",
        ]
        .iter()
        .fold(text.to_owned(), |text, special| text.replace(special, ""));
        assert_eq!(tokenizer.decode(&ids), plain);
    }
}

#[test]
fn pieces_are_bytes() {
    let Some(path) = demo() else { return };
    let checkpoint = Checkpoint::open(path).unwrap();
    let tokenizer = checkpoint.tokenizer();
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert!(!tokenizer.strips_leading_space());
    let im_end = tokenizer.token_id("<|im_end|>").unwrap();
    assert_eq!((im_end, tokenizer.piece(im_end)), (2, &b""[..]));
    assert_eq!(tokenizer.piece(u32::MAX), b"");
    // An emoji takes several tokens, none of which is UTF-8 by itself.
    let ids = tokenizer.encode("🦀", false).unwrap();
    assert!(ids.len() > 1);
    assert!(ids.iter().any(|&id| str::from_utf8(tokenizer.piece(id)).is_err()));
    assert_eq!(tokenizer.decode(&ids), "🦀");
    let longest = (0..49152).map(|id| tokenizer.piece(id).len()).max().unwrap();
    assert_eq!(tokenizer.max_piece_len(), longest);
}

#[test]
fn the_chat_template_renders() {
    let Some(path) = demo() else { return };
    let checkpoint = Checkpoint::open(path).unwrap();
    let message = Message { role: "user".to_owned(), content: "Hi".to_owned() };
    let prompt = checkpoint.chat_template().unwrap().render(&[message], true).unwrap();
    assert_eq!(
        prompt,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\
         <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
}
