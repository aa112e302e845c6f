//! How much memory a model's weights take on a GPU, before anything is loaded.

use rewind_checkpoint::{LayerTensor, ModelSpec, TensorName};
use rewind_formats::Format;
use rewind_kernels::packing;

/// Where the shadow weights live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Placement {
    /// In the GPU's memory.
    #[default]
    Device,
    /// The layers in page-locked host memory, copied to the GPU layer by layer in every shadow pass,
    /// each while the one before computes. Embedding, norms and LM head stay on the GPU.
    Host,
}

/// Precision of a checkpoint, and so of the shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exact {
    /// Single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Exact {
    fn is(self, format: Format) -> bool {
        matches!((self, format), (Self::F16, Format::F16) | (Self::Bf16, Format::Bf16))
    }

    /// Device memory of a matrix in this precision.
    fn bytes(self, rows: usize, cols: usize) -> usize {
        let half = packing::bytes(Format::F16, rows, cols);
        if self == Self::F32 { 2 * half } else { half }
    }
}

/// Memory of weights in bytes; matrices with their scales and padding, norms and biases included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightMemory {
    /// The draft, shared parts included; 0 if there is none.
    pub draft: usize,
    /// The shadow, shared parts included, wherever it lives; 0 if there is none.
    pub shadow: usize,
    /// What draft and shadow share; counted in both above.
    pub shared: usize,
}

/// What loading a model will take, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightPlan {
    /// The draft, shared parts included.
    pub draft: u64,
    /// The shadow, shared parts included.
    pub shadow: u64,
    /// What draft and shadow share; counted in both above.
    pub shared: u64,
    /// Of all that, in the GPU's memory, staging buffers included.
    pub device: u64,
    /// Of all that, in page-locked host memory.
    pub host: u64,
    /// What every shadow pass copies from the host to the GPU.
    pub streamed: u64,
}

/// What a model will take, with a shadow of `exact` precision and a draft of format `draft`, if there
/// is to be one.
pub fn plan(
    spec: &ModelSpec,
    draft: Option<Format>,
    exact: Exact,
    placement: Placement,
) -> WeightPlan {
    type Bytes<'a> = &'a dyn Fn(usize, usize) -> usize;
    use LayerTensor as T;
    let elements = |tensor| spec.elements(tensor).unwrap_or(0) as u64;
    let in_layer = |tensor| TensorName::Layer(0, tensor);
    let rows = |tensors: &[T]| -> usize {
        let shape = |&tensor| spec.shape(in_layer(tensor)).and_then(|shape| shape.first().copied());
        tensors.iter().map(|tensor| shape(tensor).unwrap_or(0)).sum()
    };
    let heads = spec.heads * spec.head_dim;
    let in_format = |format: Format| move |rows, cols| packing::bytes(format, rows, cols);
    let in_exact = |rows, cols| exact.bytes(rows, cols);
    let layer_bytes = |bytes: Bytes<'_>| {
        let interleaved = 2 * rows(&[T::Gate]).next_multiple_of(packing::TILE_ROWS);
        let sizes = [
            (rows(&[T::Query, T::Key, T::Value]), spec.hidden_size),
            (rows(&[T::Output]), heads),
            (interleaved, spec.hidden_size),
            (rows(&[T::Down]), spec.intermediate_size),
        ];
        sizes.map(|(rows, cols)| bytes(rows, cols) as u64).iter().sum::<u64>()
    };
    let ends_bytes = |bytes: Bytes<'_>| {
        let one = bytes(spec.vocab_size, spec.hidden_size) as u64;
        if spec.tied_head { one } else { 2 * one }
    };
    let vectors = |tensor: &TensorName| spec.shape(*tensor).is_some_and(|shape| shape.len() == 1);
    let vectors: u64 = spec.tensors().filter(vectors).map(|tensor| 4 * elements(tensor)).sum();

    let layers = spec.layers as u64;
    let shadow_layers = layers * layer_bytes(&in_exact);
    let shadow = shadow_layers + ends_bytes(&in_exact) + vectors;
    let (mut draft_bytes, mut shared) = (0, 0);
    if let Some(format) = draft {
        draft_bytes = layers * layer_bytes(&in_format(format))
            + ends_bytes(&in_format(format.ends()))
            + vectors;
        let same_ends = exact.is(format.ends());
        // Layers on the host cannot be the draft's too.
        let same_layers = exact.is(format) && placement == Placement::Device;
        shared = vectors
            + if same_ends { ends_bytes(&in_exact) } else { 0 }
            + if same_layers { shadow_layers } else { 0 };
    }
    let (host, staging) = match placement {
        Placement::Device => (0, 0),
        Placement::Host => (shadow_layers, 2 * layer_bytes(&in_exact)),
    };
    WeightPlan {
        draft: draft_bytes,
        shadow,
        shared,
        device: draft_bytes + shadow - shared - host + staging,
        host,
        streamed: host,
    }
}

#[cfg(test)]
mod tests {
    use rewind_checkpoint::{Architecture, Rope, RopeScaling};

    use super::*;

    /// The shape of Llama-3.1-8B.
    fn llama() -> ModelSpec {
        ModelSpec {
            architecture: Architecture::Llama,
            vocab_size: 128_256,
            hidden_size: 4096,
            intermediate_size: 14_336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            rms_epsilon: 1e-5,
            rope: Rope { theta: 500_000.0, scaling: RopeScaling::None },
            max_positions: 131_072,
            tied_head: false,
            qkv_bias: false,
            qk_norm: false,
        }
    }

    #[test]
    fn parts_add_up() {
        let spec = llama();
        let parameters = spec.parameters();
        for placement in [Placement::Device, Placement::Host] {
            for draft in [None, Some("int4-g32"), Some("int8"), Some("bf16"), Some("f16")] {
                let draft = draft.map(|name| name.parse().unwrap());
                let plan = plan(&spec, draft, Exact::Bf16, placement);
                // Two bytes a weight, and norms in four.
                assert!(plan.shadow.abs_diff(2 * parameters) < parameters / 1000, "{plan:?}");
                assert_eq!(plan.host, plan.streamed);
                assert!(plan.shared <= plan.draft.min(plan.shadow), "{plan:?}");
                let placed = plan.device + plan.host;
                let staging = if placement == Placement::Host { plan.host / 16 } else { 0 };
                assert_eq!(placed - staging, plan.draft + plan.shadow - plan.shared);
                if draft == Some(Format::Bf16) && placement == Placement::Device {
                    assert_eq!(plan.shared, plan.shadow);
                }
            }
        }
    }

    #[test]
    fn bits_per_weight_are_those_of_the_format() {
        let spec = llama();
        let plan = plan(&spec, "int4-g32".parse().ok(), Exact::F32, Placement::Host);
        let ends = 2 * 128_256 * 4096_u64;
        let linear = spec.parameters() - ends;
        let expected = linear * 9 / 16 + ends * 17 / 16;
        assert!(plan.draft.abs_diff(expected) < expected / 1000, "{} {expected}", plan.draft);
        assert!(plan.shadow.abs_diff(4 * spec.parameters()) < spec.parameters() / 1000);
    }
}
