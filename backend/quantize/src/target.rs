//! From importance to formats: the least important layers take fewer bits, as many as a target needs.
//!
//! Source of the scheme: "Layer-Wise Quantization" (arXiv 2406.17415).

use rewind_checkpoint::{LayerTensor, ModelSpec, TensorName};
use rewind_formats::{Format, Mixture};

/// Two formats, and how many bits there may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Format of the least important layers.
    pub low: Format,
    /// Format of the others, of more bits.
    pub high: Format,
    /// Bits that a weight of the layers may take on average, scales included.
    pub bits: f64,
}

/// Why no plan can reach a target.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TargetError {
    /// The formats are the wrong way round, or take as much.
    #[error(
        "{low} takes {low_bits:.2} bits a weight of this model, and {high} {high_bits:.2}: the low \
         format must take fewer than the high one"
    )]
    Order {
        /// The low format.
        low: Format,
        /// Its bits.
        low_bits: f64,
        /// The high format.
        high: Format,
        /// Its bits.
        high_bits: f64,
    },
    /// Not even the low format everywhere does it.
    #[error(
        "{bits} bits a weight are too few: {low} alone takes {low_bits:.2} bits on this model; choose a \
         target from there to {high_bits:.2}"
    )]
    TooFew {
        /// As asked for.
        bits: f64,
        /// The low format.
        low: Format,
        /// Its bits.
        low_bits: f64,
        /// Bits of the high format.
        high_bits: f64,
    },
}

impl Target {
    /// A format for each layer: as few of the least important ones as it takes get the low format. Of equally
    /// important ones, the earlier.
    ///
    /// # Errors
    /// The target is below what the low format takes everywhere, or the formats are the wrong way round.
    pub fn assign(&self, spec: &ModelSpec, importance: &[f64]) -> Result<Vec<Format>, TargetError> {
        let Self { low, high, bits } = *self;
        let [low_bits, high_bits] = [low, high].map(|format| layer_bits(spec, format));
        if low_bits >= high_bits {
            return Err(TargetError::Order { low, low_bits, high, high_bits });
        }
        if bits.is_nan() || bits < low_bits {
            return Err(TargetError::TooFew { bits, low, low_bits, high_bits });
        }
        let share = ((high_bits - bits) / (high_bits - low_bits)).max(0.0);
        // All layers have as many weights. A little less, so that rounding takes no layer more.
        let count = (share * importance.len() as f64 - 1e-9).ceil() as usize;
        let mut order: Vec<usize> = (0..importance.len()).collect();
        order.sort_by(|&a, &b| importance[a].total_cmp(&importance[b]));
        let mut layers = vec![high; importance.len()];
        for &layer in &order[..count.min(order.len())] {
            layers[layer] = low;
        }
        Ok(layers)
    }
}

/// Bits that a weight of a layer's matrices takes on average, scales included.
fn layer_bits(spec: &ModelSpec, format: Format) -> f64 {
    let (mut bits, mut weights) = (0.0, 0.0);
    for tensor in LayerTensor::ALL {
        if let Some(&[rows, cols]) = spec.shape(TensorName::Layer(0, tensor)).as_deref() {
            let count = (rows * cols) as f64;
            bits += count * format.bits_per_weight(cols);
            weights += count;
        }
    }
    bits / weights
}

/// Bits that a weight takes on average in these formats, scales included: of the layers' matrices, and of all
/// tensors, where norms and biases have 32.
///
/// # Panics
/// If the formats are for fewer layers than the model has.
pub fn average_bits(spec: &ModelSpec, mixture: &Mixture) -> [f64; 2] {
    let layers: f64 = (0..spec.layers).map(|layer| layer_bits(spec, mixture.layer(layer))).sum();
    let mut bits = 0.0;
    for tensor in spec.tensors() {
        if spec.tied_head && tensor == TensorName::Head {
            continue;
        }
        let format = match tensor {
            TensorName::Embedding => mixture.embedding(),
            TensorName::Head => mixture.head(),
            TensorName::Layer(layer, _) => mixture.layer(layer),
            // A vector.
            TensorName::FinalNorm => Format::F16,
        };
        bits += match spec.shape(tensor).as_deref() {
            Some(&[rows, cols]) => (rows * cols) as f64 * format.bits_per_weight(cols),
            Some(&[len]) => 32.0 * len as f64,
            _ => 0.0,
        };
    }
    [layers / spec.layers as f64, bits / spec.parameters() as f64]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rewind_checkpoint::{Architecture, Rope, RopeScaling};

    use super::*;

    fn spec() -> ModelSpec {
        ModelSpec {
            architecture: Architecture::Llama,
            vocab_size: 1000,
            hidden_size: 256,
            intermediate_size: 768,
            layers: 10,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            rms_epsilon: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
            max_positions: 2048,
            tied_head: false,
            qkv_bias: false,
            qk_norm: false,
        }
    }

    fn target(low: &str, high: &str, bits: f64) -> Target {
        Target { low: low.parse().unwrap(), high: high.parse().unwrap(), bits }
    }

    #[test]
    fn the_least_important_layers_take_fewer_bits() {
        let importance = [0.5, 0.1, 0.9, 0.1, 0.3, 0.8, 0.7, 0.6, 0.95, 0.4];
        let assigned = |bits| {
            let target = target("int4-g32", "int8-g32", bits);
            let layers = target.assign(&spec(), &importance).unwrap();
            let low = layers.iter().enumerate().filter(|(_, format)| **format == target.low);
            low.map(|(layer, _)| layer).collect::<Vec<_>>()
        };
        // 4.5 and 8.5 bits.
        assert_eq!(assigned(8.5), [0_usize; 0]);
        assert_eq!(assigned(9.0), [0_usize; 0]);
        assert_eq!(assigned(8.1), [1]);
        assert_eq!(assigned(8.09), [1, 3]);
        assert_eq!(assigned(7.3), [1, 3, 4]);
        assert_eq!(assigned(4.5), Vec::from_iter(0..10));
    }

    #[test]
    fn targets_that_cannot_be_reached_are_errors() {
        let assign = |low, high, bits| target(low, high, bits).assign(&spec(), &[0.0; 10]);
        let error = assign("int4-g32", "int8-g32", 4.4).unwrap_err().to_string();
        assert!(error.contains("4.50") && error.contains("8.50"), "{error}");
        assert!(assign("int4-g32", "int8-g32", f64::NAN).is_err());
        let error = assign("int8", "int4-g32", 6.0).unwrap_err();
        assert!(matches!(error, TargetError::Order { .. }), "{error}");
    }

    #[test]
    fn all_tensors_count() {
        let [layers, all] = average_bits(&spec(), &"int4-g32".parse::<Format>().unwrap().into());
        assert_eq!(layers, 4.5);
        let matrices = 10 * (256 * (256 + 128 + 128) + 256 * 256 + 3 * 256 * 768);
        let (ends, norms) = (2 * 1000 * 256, 21 * 256);
        let bits = 4.5 * f64::from(matrices) + 8.5 * f64::from(ends) + 32.0 * f64::from(norms);
        assert!((all - bits / spec().parameters() as f64).abs() < 1e-9, "{all}");
    }

    proptest! {
        #[test]
        fn a_target_is_kept_and_not_undercut_by_more_than_a_layer(
            bits in 4.5_f64..8.5, importance in proptest::collection::vec(-1.0_f64..1.0, 10),
        ) {
            let target = target("int4-g32", "int8-g32", bits);
            let layers = target.assign(&spec(), &importance).unwrap();
            let end = Format::Int8;
            let [found, _] = average_bits(&spec(), &Mixture::new(layers.clone(), end, end));
            prop_assert!(found <= bits + 1e-6 && found > bits - 0.4 - 1e-6, "{found} for {bits}");
            let low = |layer: &usize| layers[*layer] == target.low;
            let most = (0..10).filter(low).map(|l| importance[l]).fold(f64::MIN, f64::max);
            let least = (0..10).filter(|l| !low(l)).map(|l| importance[l]).fold(f64::MAX, f64::min);
            prop_assert!(most <= least);
        }
    }
}
