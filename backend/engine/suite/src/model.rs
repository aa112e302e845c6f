//! Small random models.

use std::convert::Infallible;

use half::{bf16, f16};
use rewind_checkpoint::{
    Architecture, LayerTensor, ModelSpec, Rope, RopeScaling, Tensor, TensorData, TensorName,
};
use rewind_formats::{Format, Group, Mixture};

/// Precision of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Single.
    F32,
    /// Half.
    F16,
    /// bfloat16.
    Bf16,
}

/// A model of random weights, and what to load of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TinyModel {
    /// Sizes and constants.
    pub spec: ModelSpec,
    /// Precision of the checkpoint, and so of the shadow.
    pub precision: Precision,
    /// Formats of the draft, if there is to be one.
    pub draft: Option<Mixture>,
    /// Whether the shadow is loaded.
    pub shadow: bool,
    /// What is odd about it.
    pub oddity: Option<Oddity>,
}

/// What may be odd about a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// One logit overflows where [`TinyModel::OVERFLOWING`] is fed, and nowhere else.
    Overflows,
    /// Key projections are in single precision, whatever the rest is in.
    Mixed,
}

impl TinyModel {
    /// The token that a model which [overflows](Oddity::Overflows) cannot take.
    pub const OVERFLOWING: u32 = 7;

    /// A model with its shadow and a draft.
    pub fn new(spec: ModelSpec, precision: Precision, draft: impl Into<Mixture>) -> Self {
        Self { spec, precision, draft: Some(draft.into()), shadow: true, oddity: None }
    }

    /// Its tensors, one at a time, as a model is loaded.
    pub fn source(&self) -> impl Fn(TensorName) -> Result<Tensor, Infallible> + '_ {
        |name| Ok(self.tensor(name))
    }

    /// A tensor of random numbers that depend on its name alone.
    ///
    /// One that the model does not have is empty.
    pub fn tensor(&self, name: TensorName) -> Tensor {
        let shape = self.spec.shape(name).unwrap_or_default();
        let tied = self.spec.tied_head && name == TensorName::Head;
        let source = if tied { TensorName::Embedding } else { name };
        let mut state = seed(source);
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let width = shape.last().copied().unwrap_or(1);
        // Wide enough that logits of a few nats come out at the end.
        let scale = 3.0 / (width as f32).sqrt();
        let number = |_| if is_norm(name) { 1.0 + 0.3 * noise() } else { scale * noise() };
        let mut values: Vec<f32> = (0..shape.iter().product::<usize>()).map(number).collect();
        if self.oddity == Some(Oddity::Overflows) {
            overflow(name, &mut values, width, self.spec.hidden_size - 1);
        }
        let is_key = matches!(name, TensorName::Layer(_, LayerTensor::Key));
        let data = match self.precision {
            _ if is_key && self.oddity == Some(Oddity::Mixed) => TensorData::F32(values),
            Precision::F32 => TensorData::F32(values),
            Precision::F16 => TensorData::F16(values.into_iter().map(f16::from_f32).collect()),
            Precision::Bf16 => TensorData::Bf16(values.into_iter().map(bf16::from_f32).collect()),
        };
        Tensor { shape, data }
    }
}

/// Drafts whose layers are of different kinds: integers beside floats, and the same the other way round.
pub(crate) fn mixtures(layers: usize) -> [Mixture; 2] {
    let kinds = [Format::Int4Group(Group::G32), Format::Bf16, Format::Nf4];
    let from = |first: usize| -> Vec<_> {
        (0..layers).map(|layer| kinds[(first + layer) % kinds.len()]).collect()
    };
    let end = Format::Int8Group(Group::G64);
    [Mixture::new(from(0), end, Format::Fp8), Mixture::new(from(1), Format::F16, end)]
}

/// Two layers with grouped heads and awkward sizes.
pub fn small_spec(architecture: Architecture, vocabulary: usize) -> ModelSpec {
    ModelSpec {
        architecture,
        vocab_size: vocabulary,
        hidden_size: 72,
        intermediate_size: 100,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 12,
        rms_epsilon: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        max_positions: 512,
        tied_head: architecture == Architecture::Llama,
        qkv_bias: architecture == Architecture::Qwen2,
        qk_norm: architecture == Architecture::Qwen3,
    }
}

/// Where a tensor's random numbers start.
fn seed(name: TensorName) -> u64 {
    let number = match name {
        TensorName::Embedding => 1,
        TensorName::FinalNorm => 2,
        TensorName::Head => 3,
        TensorName::Layer(layer, tensor) => {
            let place = LayerTensor::ALL.iter().position(|&one| one == tensor).unwrap_or(0);
            16 * (layer + 1) + place
        }
    };
    (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03
}

fn is_norm(name: TensorName) -> bool {
    use LayerTensor as T;
    let norms = [T::AttentionNorm, T::FeedForwardNorm, T::QueryNorm, T::KeyNorm];
    match name {
        TensorName::FinalNorm => true,
        TensorName::Layer(_, tensor) => norms.contains(&tensor),
        _ => false,
    }
}

/// Makes one logit overflow for one token alone: no other token, and no layer, has anything in the
/// `last` element of the residual stream, which that logit reads.
fn overflow(name: TensorName, values: &mut [f32], width: usize, last: usize) {
    let mut rows = values.chunks_mut(width);
    match name {
        TensorName::Embedding => rows.enumerate().for_each(|(token, row)| {
            row[last] = if token == TinyModel::OVERFLOWING as usize { 1e4 } else { 0.0 };
        }),
        TensorName::Layer(_, LayerTensor::Output | LayerTensor::Down) => {
            if let Some(row) = rows.nth(last) {
                row.fill(0.0);
            }
        }
        TensorName::Head => {
            if let Some(row) = rows.nth(9) {
                row[last] = f32::MAX;
            }
        }
        _ => {}
    }
}
