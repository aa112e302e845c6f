//! Models to measure, without their weights: sizes from their published configurations.

use rewind_checkpoint::{Architecture, ModelSpec, Rope, RopeScaling};

/// A model by name.
#[derive(Clone, Debug)]
pub struct Shape {
    /// As it was published.
    pub name: &'static str,
    /// Its sizes.
    pub spec: ModelSpec,
}

/// All of them, the most telling first.
pub fn shapes() -> Vec<Shape> {
    vec![llama_8b(), qwen_4b(), llama_1b()]
}

fn llama_8b() -> Shape {
    let spec = ModelSpec {
        architecture: Architecture::Llama,
        vocab_size: 128_256,
        hidden_size: 4096,
        intermediate_size: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        rms_epsilon: 1e-5,
        rope: Rope { theta: 500_000.0, scaling: llama_3(8.0) },
        max_positions: 131_072,
        tied_head: false,
        qkv_bias: false,
        qk_norm: false,
    };
    Shape { name: "Llama-3.1-8B", spec }
}

fn qwen_4b() -> Shape {
    let spec = ModelSpec {
        architecture: Architecture::Qwen3,
        vocab_size: 151_936,
        hidden_size: 2560,
        intermediate_size: 9728,
        layers: 36,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        rms_epsilon: 1e-6,
        rope: Rope { theta: 1_000_000.0, scaling: RopeScaling::None },
        max_positions: 40_960,
        tied_head: true,
        qkv_bias: false,
        qk_norm: true,
    };
    Shape { name: "Qwen3-4B", spec }
}

fn llama_1b() -> Shape {
    let spec = ModelSpec {
        architecture: Architecture::Llama,
        vocab_size: 128_256,
        hidden_size: 2048,
        intermediate_size: 8192,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        rms_epsilon: 1e-5,
        rope: Rope { theta: 500_000.0, scaling: llama_3(32.0) },
        max_positions: 131_072,
        tied_head: true,
        qkv_bias: false,
        qk_norm: false,
    };
    Shape { name: "Llama-3.2-1B", spec }
}

fn llama_3(factor: f32) -> RopeScaling {
    RopeScaling::Llama3 {
        factor,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 8192.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_have_as_many_weights_as_published() {
        let found: Vec<_> =
            shapes().iter().map(|shape| (shape.name, shape.spec.parameters())).collect();
        let published = [
            ("Llama-3.1-8B", 8_030_261_248),
            ("Qwen3-4B", 4_022_468_096),
            ("Llama-3.2-1B", 1_235_814_400),
        ];
        assert_eq!(found, published);
    }
}
