//! A checkpoint of the shape of Llama 2 7B, made of random weights, to see what streams.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::super::command::Rewind;
use super::{Emptied, Large, Quantized};

/// Format that it is quantized to.
const FORMAT: &str = "int4-g128";

/// Elements of the block of random weights that all tensors are made of; a prime, so that none repeats another's rows.
const BLOCK: usize = 8_388_593;

/// Sizes of the model.
#[derive(Debug, Clone, Copy)]
struct Shape {
    layers: usize,
    hidden: usize,
    wide: usize,
    heads: usize,
    vocabulary: usize,
}

const LLAMA_2_7B: Shape =
    Shape { layers: 32, hidden: 4096, wide: 11_008, heads: 32, vocabulary: 32_000 };

/// The same model at a thousandth of the size.
const QUICK: Shape = Shape { layers: 4, hidden: 256, wide: 688, heads: 4, vocabulary: 1000 };

/// Writes the checkpoint, rounds it, and removes both.
pub(super) fn measure(
    rewind: impl Fn(&Path) -> Rewind,
    folder: &Path,
    quick: bool,
) -> Result<Large> {
    let shape = if quick { QUICK } else { LLAMA_2_7B };
    let [source, out] =
        [Emptied::new(folder.join("large"))?, Emptied::new(folder.join("large-quantized"))?];
    println!("writing {} of random weights", shape.told());
    let source_bytes = shape.write(&source.0)?;
    let out_text = out.0.display().to_string();
    let arguments = ["quantize", "--method", "rtn", "--draft", FORMAT, "--out", &out_text];
    let made: Quantized = rewind(&source.0).json(&arguments)?;
    let weights = out.0.join("model.safetensors");
    let bytes = fs::metadata(&weights)
        .with_context(|| format!("cannot look at {}", weights.display()))?
        .len();
    println!("{:.1} s, peak memory {:?} bytes", made.seconds, made.peak_memory);
    Ok(Large {
        shape: shape.told(),
        format: FORMAT.to_owned(),
        source_bytes,
        bytes,
        seconds: made.seconds,
        peak_memory: made.peak_memory,
    })
}

impl Shape {
    fn told(self) -> String {
        let Self { layers, hidden, wide, vocabulary, .. } = self;
        format!(
            "{layers} layers of width {hidden} and {wide}, {vocabulary} tokens ({:.2} billion weights)",
            self.tensors().iter().map(|(_, shape)| count(shape) as f64).sum::<f64>() / 1e9
        )
    }

    /// Names and sizes.
    fn tensors(self) -> Vec<(String, Vec<usize>)> {
        let Self { layers, hidden, wide, vocabulary, .. } = self;
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
            ("lm_head.weight".to_owned(), vec![vocabulary, hidden]),
        ];
        for layer in 0..layers {
            let parts = [
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![hidden, hidden]),
                ("self_attn.v_proj", vec![hidden, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("mlp.gate_proj", vec![wide, hidden]),
                ("mlp.up_proj", vec![wide, hidden]),
                ("mlp.down_proj", vec![hidden, wide]),
            ];
            let named =
                parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape));
            tensors.extend(named);
        }
        tensors
    }

    /// Writes the folder; the size of its weights in bytes.
    fn write(self, folder: &Path) -> Result<u64> {
        let create = || format!("cannot write into {}", folder.display());
        fs::create_dir_all(folder).with_context(create)?;
        for (name, content) in [("config.json", self.config()), ("tokenizer.json", tokenizer())] {
            fs::write(folder.join(name), content.to_string()).with_context(create)?;
        }
        let mut file =
            BufWriter::new(File::create(folder.join("model.safetensors")).with_context(create)?);
        let mut header = Map::new();
        let mut end = 0;
        let tensors = self.tensors();
        for (name, shape) in &tensors {
            let start = end;
            end += 2 * count(shape) as u64;
            let described = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
            header.insert(name.clone(), described);
        }
        let header = Value::Object(header).to_string();
        file.write_all(&(header.len() as u64).to_le_bytes()).with_context(create)?;
        file.write_all(header.as_bytes()).with_context(create)?;
        let random = block();
        let mut at = 0;
        for (_, shape) in &tensors {
            let mut left = 2 * count(shape);
            while left > 0 {
                let piece = left.min(random.len() - at);
                file.write_all(&random[at..at + piece]).with_context(create)?;
                left -= piece;
                at = (at + piece) % random.len();
            }
        }
        file.flush().with_context(create)?;
        ensure!(end > 0, "a shape without weights");
        Ok(end)
    }

    fn config(self) -> Value {
        json!({
            "model_type": "llama",
            "hidden_act": "silu",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.wide,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": false,
        })
    }
}

fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Sums of uniform numbers, as good as normal with a deviation of 0.02, in BF16.
fn block() -> Vec<u8> {
    let mut state = 1_u64;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let number = |_| (0..4).map(|_| uniform()).sum::<f32>() * 0.0173;
    // The upper half of an f32 is a BF16.
    (0..BLOCK).map(number).flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// Bytes as tokens.
fn tokenizer() -> Value {
    let mut shifted = 256_u32..;
    let characters = (0..=255_u32).map(|byte| {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if printable { Some(byte) } else { shifted.next() };
        code.and_then(char::from_u32).map(String::from).unwrap_or_default()
    });
    let vocab: Map<String, Value> =
        characters.enumerate().map(|(id, token)| (token, id.into())).collect();
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": null,
        "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_that_of_seven_billion_weights() {
        assert!(LLAMA_2_7B.told().contains("6.74 billion"), "{}", LLAMA_2_7B.told());
    }

    #[test]
    fn the_file_is_as_long_as_its_header_says() {
        let place = tempfile::tempdir().unwrap();
        let shape = Shape { layers: 1, hidden: 64, wide: 96, heads: 2, vocabulary: 300 };
        let bytes = shape.write(place.path()).unwrap();
        let file = fs::read(place.path().join("model.safetensors")).unwrap();
        let header = u64::from_le_bytes(file[..8].try_into().unwrap());
        assert_eq!(file.len() as u64, 8 + header + bytes);
        let weights = &file[8 + header as usize..];
        let (first, second) = weights.split_at(weights.len() / 2);
        assert!(first != second && weights.iter().any(|&byte| byte != 0));
    }
}
