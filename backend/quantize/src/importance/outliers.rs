//! ZD: how few of a layer's weights are much larger than average.

use std::error::Error;

use rewind_checkpoint::{LayerTensor, ModelSpec, Tensor, TensorName};

/// Which weights count as outliers, by their z-score: their distance from the layer's mean in standard
/// deviations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sides {
    /// Above 1, as the paper's text says.
    #[default]
    One,
    /// Above 1 or below −1.
    Both,
}

/// Why outliers could not be counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutliersError {
    /// The source has no such tensor or failed to read it.
    #[error("cannot read the {tensor} tensor")]
    Source {
        /// Which tensor.
        tensor: TensorName,
        /// What the source said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A weight is NaN or infinite.
    #[error("layer {layer} holds weights that are not finite")]
    NotFinite {
        /// The layer, from 0.
        layer: usize,
    },
}

/// −(share of outliers) for each layer, over the weights of all its matrices: layers with few outliers are the
/// important ones. Needs no data.
///
/// `source` gives each matrix when asked for it; one layer is in memory at a time. `progress` is called after
/// each layer.
///
/// # Errors
/// The source fails; a weight is not finite.
pub fn outliers<E: Into<Box<dyn Error + Send + Sync>>>(
    spec: &ModelSpec,
    source: impl Fn(TensorName) -> Result<Tensor, E>,
    sides: Sides,
    mut progress: impl FnMut(),
) -> Result<Vec<f64>, OutliersError> {
    let mut importance = Vec::with_capacity(spec.layers);
    for layer in 0..spec.layers {
        let mut weights = Vec::new();
        for tensor in LayerTensor::ALL.map(|tensor| TensorName::Layer(layer, tensor)) {
            if spec.shape(tensor).is_some_and(|shape| shape.len() == 2) {
                let read = source(tensor)
                    .map_err(|source| OutliersError::Source { tensor, source: source.into() })?;
                weights.extend(read.data.to_f32());
            }
        }
        let share = share(&weights, sides);
        importance.push(-share.ok_or(OutliersError::NotFinite { layer })?);
        progress();
    }
    Ok(importance)
}

/// The share of outliers; `None` if a weight is not finite. None of equal weights is one.
fn share(weights: &[f32], sides: Sides) -> Option<f64> {
    let count = weights.len() as f64;
    let mean = weights.iter().map(|&w| f64::from(w)).sum::<f64>() / count;
    let squares: f64 = weights.iter().map(|&w| (f64::from(w) - mean).powi(2)).sum();
    let deviation = (squares / count).sqrt();
    if !deviation.is_finite() {
        return None;
    }
    let far = |w: &&f32| {
        let off = f64::from(**w) - mean;
        off > deviation || (sides == Sides::Both && off < -deviation)
    };
    Some(weights.iter().filter(far).count() as f64 / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_are_counted_on_one_side_or_both() {
        // Mean 1, standard deviation √(34 / 8): 2.06.
        let weights = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 5.0, -3.0];
        assert_eq!(share(&weights, Sides::One), Some(1.0 / 8.0));
        assert_eq!(share(&weights, Sides::Both), Some(2.0 / 8.0));
        assert_eq!(share(&[2.5; 9], Sides::Both), Some(0.0));
        assert_eq!(share(&[0.0, f32::NAN], Sides::One), None);
        assert_eq!(share(&[0.0, f32::INFINITY], Sides::One), None);
    }
}
