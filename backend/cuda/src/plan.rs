//! How much memory a model's weights take on a GPU, before anything is loaded.

use rewind_checkpoint::{LayerTensor, ModelSpec, TensorName};
use rewind_formats::{Format, Mixture};
use rewind_kernels::packing::{self, Order};

use crate::model::PRODUCTS;
use crate::pack::{Storage, kept_storages};

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

/// What a model will take, with a shadow of `exact` precision and a draft of these formats, if there is to
/// be one. They are for as many layers as the model has.
pub fn plan(
    spec: &ModelSpec,
    draft: Option<&Mixture>,
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
    let one_end = |bytes: Bytes<'_>| bytes(spec.vocab_size, spec.hidden_size) as u64;
    let heads_apart = u64::from(!spec.tied_head);
    let vectors = |tensor: &TensorName| spec.shape(*tensor).is_some_and(|shape| shape.len() == 1);
    let vectors: u64 = spec.tensors().filter(vectors).map(|tensor| 4 * elements(tensor)).sum();

    let layers = spec.layers as u64;
    let shadow_layers = layers * layer_bytes(&in_exact);
    let shadow = shadow_layers + (1 + heads_apart) * one_end(&in_exact) + vectors;
    let (mut draft_bytes, mut shared) = (0, 0);
    if let Some(draft) = draft {
        (draft_bytes, shared) = (vectors, vectors);
        let mut add = |format, bytes: &dyn Fn(Bytes<'_>) -> u64, can_share: bool| {
            draft_bytes += bytes(&in_format(format));
            if exact.is(format) && can_share {
                shared += bytes(&in_exact);
            }
        };
        add(draft.embedding(), &one_end, true);
        add(draft.head(), &|bytes| heads_apart * one_end(bytes), true);
        for number in 0..spec.layers {
            // Layers on the host cannot be the draft's too.
            add(draft.layer(number), &layer_bytes, placement == Placement::Device);
        }
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

/// Device memory of a draft whose tensors are kept as they come, in bytes. `format` is that of each matrix, `None`
/// for single precision.
pub fn stored_bytes(spec: &ModelSpec, format: impl Fn(TensorName) -> Option<Format>) -> u64 {
    use LayerTensor as T;
    let storage = |tensor| format(tensor).map_or(Storage::F32, Storage::Format);
    let bytes = |tensors: &[TensorName], storage: Storage, order: Order| {
        let shapes: Vec<_> = tensors.iter().filter_map(|&tensor| spec.shape(tensor)).collect();
        let padded = |rows: usize| match order {
            Order::Stacked => rows,
            Order::Interleaved => rows.next_multiple_of(packing::TILE_ROWS),
        };
        let rows = shapes.iter().filter_map(|shape| shape.first()).map(|&rows| padded(rows)).sum();
        let cols = shapes.first().and_then(|shape| shape.last()).copied().unwrap_or(0);
        match storage {
            Storage::F32 => 2 * packing::bytes(Format::F16, rows, cols) as u64,
            Storage::Format(format) => packing::bytes(format, rows, cols) as u64,
        }
    };
    let ends = [TensorName::Embedding, TensorName::Head];
    let ends = &ends[..if spec.tied_head { 1 } else { 2 }];
    let mut sum: u64 = ends.iter().map(|&end| bytes(&[end], storage(end), Order::Stacked)).sum();
    for tensor in spec.tensors() {
        let shape = spec.shape(tensor).unwrap_or_default();
        sum += if shape.len() == 1 { 4 * shape[0] as u64 } else { 0 };
    }
    for number in 0..spec.layers {
        let product = |tensors: &[T]| -> Vec<_> {
            tensors.iter().map(|&tensor| TensorName::Layer(number, tensor)).collect()
        };
        let products: Vec<_> = PRODUCTS.iter().map(|(tensors, _)| product(tensors)).collect();
        let each: Vec<Vec<_>> = products
            .iter()
            .map(|tensors| tensors.iter().map(|&tensor| storage(tensor)).collect())
            .collect();
        let kept = kept_storages(&each);
        for ((tensors, storage), (_, order)) in products.iter().zip(kept).zip(PRODUCTS) {
            sum += bytes(tensors, storage, *order);
        }
    }
    sum
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
                let draft: Option<Format> = draft.map(|name| name.parse().unwrap());
                let mixture = draft.map(Mixture::from);
                let plan = plan(&spec, mixture.as_ref(), Exact::Bf16, placement);
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
        let low: Format = "int4-g32".parse().unwrap();
        let plan = plan(&spec, Some(&low.into()), Exact::F32, Placement::Host);
        let ends = 2 * 128_256 * 4096_u64;
        let linear = spec.parameters() - ends;
        let expected = linear * 9 / 16 + ends * 17 / 16;
        assert!(plan.draft.abs_diff(expected) < expected / 1000, "{} {expected}", plan.draft);
        assert!(plan.shadow.abs_diff(4 * spec.parameters()) < spec.parameters() / 1000);
    }

    #[test]
    fn every_layer_counts_in_its_own_format() {
        let spec = llama();
        let of = |mixture: &Mixture| plan(&spec, Some(mixture), Exact::F16, Placement::Device);
        let [low, high]: [Format; 2] = ["int4-g32", "f16"].map(|name| name.parse().unwrap());
        let layers: Vec<_> = (0..32).map(|i| if i % 4 == 0 { high } else { low }).collect();
        let mixed = of(&Mixture::new(layers, low, low));
        let [all_low, all_high] = [low, high].map(|f| of(&Mixture::new(vec![f; 32], low, low)));
        assert_eq!(4 * mixed.draft, 3 * all_low.draft + all_high.draft);
        assert_eq!(4 * mixed.shared, 3 * all_low.shared + all_high.shared);
        assert_eq!(
            of(&Mixture::new(vec![low; 32], low, high)).shared,
            low_and_head(&spec, &all_low)
        );
    }

    /// What is shared if the head is, besides what is anyway.
    fn low_and_head(spec: &ModelSpec, plan: &WeightPlan) -> u64 {
        plan.shared + 2 * (spec.vocab_size * spec.hidden_size) as u64
    }
}
