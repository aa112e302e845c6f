//! Scales of inputs, folded into what makes these inputs: the block computes the same as before.
//!
//! Only where keys and values stay what they are. Draft and shadow share one cache, so what the draft writes there the
//! shadow reads: inputs of the output projection are attention's weighted values and are never scaled.

use rewind_checkpoint::LayerTensor;

use crate::methods::forward::Weights;
use crate::methods::method::scaled;

/// Into the norm whose rows go into these projections: its weight is divided, their columns are multiplied.
pub(crate) fn into_norm(
    weights: &mut Weights,
    norm: LayerTensor,
    projections: &[LayerTensor],
    scales: &[f32],
) {
    if let Some(norm) = weights.get_mut(&norm) {
        norm.iter_mut().zip(scales).for_each(|(weight, scale)| *weight /= scale);
    }
    for projection in projections {
        if let Some(matrix) = weights.get_mut(projection) {
            *matrix = scaled(matrix, scales);
        }
    }
}

/// Into the projection up, of whose outputs each is an input of down, times what gate makes of it.
pub(crate) fn into_up(weights: &mut Weights, scales: &[f32]) {
    if let Some(up) = weights.get_mut(&LayerTensor::Up) {
        let cols = (up.len() / scales.len()).max(1);
        for (row, scale) in up.chunks_mut(cols).zip(scales) {
            row.iter_mut().for_each(|weight| *weight /= scale);
        }
    }
    if let Some(down) = weights.get_mut(&LayerTensor::Down) {
        *down = scaled(down, scales);
    }
}
