//! How many bytes of weights a decode step reads.
//!
//! Counted from the shapes and the definitions of the formats, not from what an executor holds: padding
//! and other traces of a layout are no work that a user asked for.

use rewind_checkpoint::{ModelSpec, TensorName};
use rewind_formats::{Format, Mixture};

/// Bytes of one copy of the weights that a step with at least one chosen token reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightBytes {
    /// All of them, the head included. Of an embedding that is not the head, a step reads one row for
    /// each token, which is not counted.
    pub step: u64,
    /// Those of the LM head: engines differ in its precision more than in that of the layers.
    pub head: u64,
}

impl WeightBytes {
    /// Of a draft in these formats, which are for as many layers as the model has.
    pub fn of_draft(spec: &ModelSpec, draft: &Mixture) -> Self {
        Self::sum(spec, |tensor, cols| {
            let format = match tensor {
                TensorName::Layer(number, _) => draft.layer(number),
                // The head of a model that has no other is its embedding.
                TensorName::Head if !spec.tied_head => draft.head(),
                _ => draft.embedding(),
            };
            row_bytes(format, cols)
        })
    }

    /// Of a draft whose matrices are kept in the formats that the checkpoint has them in; `None` is single
    /// precision.
    pub fn of_stored(spec: &ModelSpec, format: impl Fn(TensorName) -> Option<Format>) -> Self {
        Self::sum(spec, |tensor, cols| {
            format(tensor).map_or(4 * cols as u64, |format| row_bytes(format, cols))
        })
    }

    /// Of a shadow whose tensors have as many bytes a weight as `width` says.
    pub fn of_shadow(spec: &ModelSpec, width: impl Fn(TensorName) -> u64) -> Self {
        Self::sum(spec, |tensor, cols| width(tensor) * cols as u64)
    }

    /// `row` gives the bytes of a row of so many weights of a tensor.
    fn sum(spec: &ModelSpec, row: impl Fn(TensorName, usize) -> u64) -> Self {
        let bytes = |tensor| match spec.shape(tensor).as_deref() {
            // Norms and biases are held in single precision.
            Some(&[len]) => 4 * len as u64,
            Some(&[rows, cols]) => rows as u64 * row(tensor, cols),
            _ => 0,
        };
        let read = spec.tensors().filter(|&tensor| tensor != TensorName::Embedding);
        Self { step: read.map(bytes).sum(), head: bytes(TensorName::Head) }
    }
}

fn row_bytes(format: Format, cols: usize) -> u64 {
    let codes = cols * format.code_bits();
    (codes.div_ceil(8) + format.row_scale_bytes(cols)) as u64
}

#[cfg(test)]
mod tests {
    use rewind_checkpoint::{Architecture, Rope, RopeScaling};
    use rewind_formats::Group;

    use super::*;

    /// SmolLM2-135M.
    fn spec() -> ModelSpec {
        ModelSpec {
            architecture: Architecture::Llama,
            vocab_size: 49_152,
            hidden_size: 576,
            intermediate_size: 1536,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            rms_epsilon: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
            max_positions: 2048,
            tied_head: true,
            qkv_bias: false,
            qk_norm: false,
        }
    }

    const HEAD: u64 = 49_152 * 576;
    const LAYERS: u64 = 30 * (576 * (576 + 192 + 192) + 576 * 576 + 3 * 576 * 1536);
    const NORMS: u64 = 4 * 576 * 61;

    #[test]
    fn drafts_have_scales_and_a_finer_head() {
        let int4 = WeightBytes::of_draft(&spec(), &Format::Int4Group(Group::G32).into());
        // Each group of 32 has a scale of two bytes.
        assert_eq!(int4.head, HEAD * 34 / 32);
        assert_eq!(int4.step, LAYERS * 18 / 32 + int4.head + NORMS);
        let half = WeightBytes::of_draft(&spec(), &Format::F16.into());
        assert_eq!(half, WeightBytes { step: 2 * (LAYERS + HEAD) + NORMS, head: 2 * HEAD });
    }

    #[test]
    fn shadows_have_the_width_of_the_file() {
        let width = |tensor| if tensor == TensorName::Head { 4 } else { 2 };
        let shadow = WeightBytes::of_shadow(&spec(), width);
        assert_eq!(shadow, WeightBytes { step: 2 * LAYERS + 4 * HEAD + NORMS, head: 4 * HEAD });
        // A head of its own is read as a tied one is; the embedding beside it is not.
        let apart = ModelSpec { tied_head: false, ..spec() };
        assert_eq!(WeightBytes::of_shadow(&apart, width), shadow);
    }
}
