//! What a model is, independent of the file format that it came from.

use crate::error::Fault;
use crate::{LayerTensor, TensorName};

/// Most decoder blocks; the deepest published decoders have 126.
const MAX_LAYERS: usize = 4096;
/// Longest context, in tokens; keeps every product of a position and a size far from overflow.
const MAX_POSITIONS: usize = 1 << 30;

/// Family of the decoder. All share one block shape; the differences are the flags of [`ModelSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM, and whatever else uses that block.
    Llama,
    /// Mistral: Llama's block.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on the query, key and value projections.
    Qwen2,
    /// Qwen3: RMS norms on queries and keys, per head.
    Qwen3,
}

/// Shape and constants of a decoder-only transformer with RMS norm, rotary positions and SwiGLU.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Family.
    pub architecture: Architecture,
    /// Number of token ids, rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head, even.
    pub head_dim: usize,
    /// ε of every RMS norm.
    pub rms_epsilon: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// The LM head is the embedding matrix.
    pub tied_head: bool,
    /// The query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Queries and keys are RMS-normed per head before the rotation.
    pub qk_norm: bool,
}

impl ModelSpec {
    /// Every tensor that the model has, in the order of computation.
    ///
    /// The head is among them even where it is the embedding.
    pub fn tensors(&self) -> impl Iterator<Item = TensorName> + '_ {
        let layers = (0..self.layers).flat_map(|layer| {
            LayerTensor::ALL
                .into_iter()
                .filter(|&tensor| self.has(tensor))
                .map(move |tensor| TensorName::Layer(layer, tensor))
        });
        std::iter::once(TensorName::Embedding)
            .chain(layers)
            .chain([TensorName::FinalNorm, TensorName::Head])
    }

    /// Sizes of a tensor, outermost first; `None` if the model has no such tensor.
    pub fn shape(&self, tensor: TensorName) -> Option<Vec<usize>> {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (hidden, wide) = (self.hidden_size, self.intermediate_size);
        Some(match tensor {
            TensorName::Embedding | TensorName::Head => vec![self.vocab_size, hidden],
            TensorName::FinalNorm => vec![hidden],
            TensorName::Layer(layer, tensor) => {
                if layer >= self.layers || !self.has(tensor) {
                    return None;
                }
                match tensor {
                    LayerTensor::AttentionNorm | LayerTensor::FeedForwardNorm => vec![hidden],
                    LayerTensor::Query => vec![queries, hidden],
                    LayerTensor::Key | LayerTensor::Value => vec![keys, hidden],
                    LayerTensor::QueryBias => vec![queries],
                    LayerTensor::KeyBias | LayerTensor::ValueBias => vec![keys],
                    LayerTensor::QueryNorm | LayerTensor::KeyNorm => vec![self.head_dim],
                    LayerTensor::Output => vec![hidden, queries],
                    LayerTensor::Gate | LayerTensor::Up => vec![wide, hidden],
                    LayerTensor::Down => vec![hidden, wide],
                }
            }
        })
    }

    /// Number of elements of a tensor; `None` if the model has no such tensor.
    pub fn elements(&self, tensor: TensorName) -> Option<usize> {
        self.shape(tensor).map(|shape| shape.iter().product())
    }

    /// Number of weights, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        self.tensors()
            .filter(|&tensor| !(self.tied_head && tensor == TensorName::Head))
            .filter_map(|tensor| self.elements(tensor))
            .map(|elements| elements as u64)
            .sum()
    }

    fn has(&self, tensor: LayerTensor) -> bool {
        match tensor {
            LayerTensor::QueryBias | LayerTensor::KeyBias | LayerTensor::ValueBias => self.qkv_bias,
            LayerTensor::QueryNorm | LayerTensor::KeyNorm => self.qk_norm,
            _ => true,
        }
    }

    /// What is wrong with this shape, if anything: the readers of checkpoints have looked already, but
    /// a shape may come from elsewhere, and executors index by it.
    pub fn defect(&self) -> Option<String> {
        self.validate().err().map(|fault| match fault {
            Fault::Malformed { at, problem } => format!("{at} {problem}"),
            Fault::Unsupported { at, found, supported } => {
                format!("{at} is {found}; supported are {supported}")
            }
        })
    }

    /// Checks what no reader can rely on otherwise: sizes in range, divisibility, constants finite,
    /// and that no shape overflows.
    pub(crate) fn validate(&self) -> Result<(), Fault> {
        let whole = |at: &str, value: usize, limit: usize| {
            if value == 0 || value > limit {
                return Err(Fault::malformed(at, format!("is {value}, not in 1..={limit}")));
            }
            Ok(())
        };
        const SIZE: usize = 1 << 24;
        whole("vocabulary size", self.vocab_size, SIZE)?;
        whole("hidden size", self.hidden_size, SIZE)?;
        whole("feed-forward size", self.intermediate_size, SIZE)?;
        whole("number of layers", self.layers, MAX_LAYERS)?;
        whole("number of attention heads", self.heads, 1 << 12)?;
        whole("number of key and value heads", self.kv_heads, self.heads)?;
        whole("head size", self.head_dim, 1 << 12)?;
        whole("context length", self.max_positions, MAX_POSITIONS)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Fault::malformed(
                "number of key and value heads",
                format!("{} does not divide the {} query heads", self.kv_heads, self.heads),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Fault::malformed(
                "head size",
                format!("is {}; rotary positions need an even one", self.head_dim),
            ));
        }
        positive("RMS norm epsilon", self.rms_epsilon)?;
        self.rope.validate(self.head_dim)
    }
}

fn positive(at: &str, value: f32) -> Result<(), Fault> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Fault::malformed(at, format!("is {value}, not a positive number")))
}

/// Rotary position embedding in the "rotate half" form: element i pairs with i + head_dim / 2.
///
/// GGUF files of the Llama family store queries and keys permuted for adjacent pairs; the reader
/// undoes that, so that there is one form only.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f32,
    /// Adjustment of the frequencies.
    pub scaling: RopeScaling,
}

/// Adjustment of the rotary frequencies for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Positions divided by a constant factor.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3: low frequencies divided by `factor`, high ones kept, a smooth ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low_frequency_factor` are divided.
        low_frequency_factor: f32,
        /// Wavelengths below `original_context / high_frequency_factor` are kept.
        high_frequency_factor: f32,
        /// Context length of the original training, in tokens.
        original_context: f32,
    },
    /// A divisor for every pair, as GGUF's `rope_freqs.weight` gives it; length `head_dim / 2`.
    Divisors(Vec<f32>),
}

impl Rope {
    fn validate(&self, head_dim: usize) -> Result<(), Fault> {
        positive("RoPE base", self.theta)?;
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("RoPE scaling factor", *factor),
            RopeScaling::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                original_context,
            } => {
                positive("RoPE scaling factor", *factor)?;
                positive("RoPE low frequency factor", *low_frequency_factor)?;
                positive("RoPE high frequency factor", *high_frequency_factor)?;
                positive("RoPE original context length", *original_context)?;
                if low_frequency_factor >= high_frequency_factor {
                    return Err(Fault::malformed(
                        "RoPE low frequency factor",
                        format!(
                            "is {low_frequency_factor}, not below the high frequency factor \
                             {high_frequency_factor}"
                        ),
                    ));
                }
                Ok(())
            }
            RopeScaling::Divisors(divisors) => {
                if divisors.len() != head_dim / 2 {
                    return Err(Fault::malformed(
                        "RoPE frequency divisors",
                        format!("are {}, not {}, one for each pair", divisors.len(), head_dim / 2),
                    ));
                }
                divisors.iter().try_for_each(|&by| positive("RoPE frequency divisor", by))
            }
        }
    }

    /// Angular frequency of each of the `head_dim / 2` pairs, radians per position.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let half = head_dim / 2;
        let plain = (0..half)
            .map(|pair| (f64::from(self.theta)).powf(-(2.0 * pair as f64) / head_dim as f64));
        match &self.scaling {
            RopeScaling::None => plain.map(|f| f as f32).collect(),
            RopeScaling::Linear { factor } => {
                plain.map(|f| (f / f64::from(*factor)) as f32).collect()
            }
            RopeScaling::Divisors(by) => {
                plain.zip(by).map(|(f, by)| (f / f64::from(*by)) as f32).collect()
            }
            RopeScaling::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                original_context,
            } => {
                let (factor, low, high, context) = (
                    f64::from(*factor),
                    f64::from(*low_frequency_factor),
                    f64::from(*high_frequency_factor),
                    f64::from(*original_context),
                );
                plain
                    .map(|f| {
                        let wavelength = std::f64::consts::TAU / f;
                        if wavelength < context / high {
                            f
                        } else if wavelength > context / low {
                            f / factor
                        } else {
                            let ramp = (context / wavelength - low) / (high - low);
                            (1.0 - ramp) * f / factor + ramp * f
                        }
                    })
                    .map(|f| f as f32)
                    .collect()
            }
        }
    }
}
