//! A layer on its way from weights to codes.

use std::collections::BTreeMap;

use rewind_checkpoint::{LayerTensor, TensorName};
use rewind_formats::{Format, Packed};

use crate::methods::error::QuantizeError;
use crate::methods::fold;
use crate::methods::forward::{Forward, Weights};
use crate::methods::method::{Hessian, MethodError, compensated, rounded, scaling};
use crate::methods::parts::{Part, dequantized};
use crate::methods::run::Method;

/// Its matrices, in the order in which the model uses them.
const MATRICES: [LayerTensor; 7] = [
    LayerTensor::Query,
    LayerTensor::Key,
    LayerTensor::Value,
    LayerTensor::Output,
    LayerTensor::Gate,
    LayerTensor::Up,
    LayerTensor::Down,
];

/// A layer on its way.
pub(crate) struct Layer<'a> {
    number: usize,
    format: Format,
    /// Those that are quantized already stand dequantized.
    weights: Weights,
    forward: &'a Forward<'a>,
    threads: usize,
    codes: BTreeMap<LayerTensor, Packed>,
}

impl<'a> Layer<'a> {
    /// With its weights as they are in the checkpoint.
    pub(crate) fn new(
        number: usize,
        format: Format,
        weights: Weights,
        forward: &'a Forward<'a>,
        threads: usize,
    ) -> Self {
        Self { number, format, weights, forward, threads, codes: BTreeMap::new() }
    }

    /// All matrices, each weight to the nearest code.
    pub(crate) fn round(&mut self) -> Result<(), QuantizeError> {
        self.matrices(&MATRICES, None)
    }

    /// All matrices, by the inputs that the quantized ones before them give; the states become those that come
    /// out.
    pub(crate) fn calibrate(
        &mut self,
        method: Method,
        states: &mut Vec<Vec<f32>>,
    ) -> Result<(), QuantizeError> {
        use LayerTensor as T;
        let forward = self.forward;
        let projections = [T::Query, T::Key, T::Value];
        let normed = self.normed(method, states, T::AttentionNorm, &projections)?;
        self.by_inputs(method, &projections, &normed)?;
        let attended = forward.attended(&normed, &self.weights);
        drop(normed);
        self.by_inputs(method, &[T::Output], &attended)?;
        forward.add(states, &attended, &self.weights, T::Output);
        drop(attended);
        let normed = self.normed(method, states, T::FeedForwardNorm, &[T::Gate, T::Up])?;
        if method == Method::Awq {
            let gated = forward.gated(&normed, &self.weights);
            if let Some(scales) = self.scales(&[T::Down], &gated)? {
                fold::into_up(&mut self.weights, &scales);
            }
        }
        self.by_inputs(method, &[T::Gate, T::Up], &normed)?;
        let gated = forward.gated(&normed, &self.weights);
        drop(normed);
        self.by_inputs(method, &[T::Down], &gated)?;
        forward.add(states, &gated, &self.weights, T::Down);
        Ok(())
    }

    /// What goes into these projections, at scales that suit them where the method chooses some.
    fn normed(
        &mut self,
        method: Method,
        states: &[Vec<f32>],
        norm: LayerTensor,
        projections: &[LayerTensor],
    ) -> Result<Vec<Vec<f32>>, QuantizeError> {
        let normed = self.forward.normed(states, &self.weights, norm);
        if method != Method::Awq {
            return Ok(normed);
        }
        let Some(scales) = self.scales(projections, &normed)? else { return Ok(normed) };
        drop(normed);
        fold::into_norm(&mut self.weights, norm, projections, &scales);
        Ok(self.forward.normed(states, &self.weights, norm))
    }

    /// Scales of the inputs of projections.
    fn scales(
        &self,
        projections: &[LayerTensor],
        inputs: &[Vec<f32>],
    ) -> Result<Option<Vec<f32>>, QuantizeError> {
        let matrices: Vec<_> =
            projections.iter().filter_map(|&tensor| Some((tensor, self.matrix(tensor)?))).collect();
        let Some(&(first, (_, cols))) = matrices.first() else { return Ok(None) };
        let weights: Vec<&[f32]> = matrices
            .iter()
            .filter_map(|(tensor, _)| self.weights.get(tensor).map(Vec::as_slice))
            .collect();
        let found = scaling(self.format, cols, &weights, inputs, self.threads);
        Ok(found.map_err(|error| self.within(first, error))?.scales)
    }

    /// Matrices of the same inputs, as the method does it.
    fn by_inputs(
        &mut self,
        method: Method,
        tensors: &[LayerTensor],
        inputs: &[Vec<f32>],
    ) -> Result<(), QuantizeError> {
        self.matrices(tensors, Some(inputs).filter(|_| method == Method::Gptq))?;
        for tensor in tensors {
            // What the layers behind see.
            if let Some(packed) = self.codes.get(tensor) {
                self.weights.insert(*tensor, dequantized(packed));
            }
        }
        Ok(())
    }

    /// Rounds matrices; with inputs, errors are compensated.
    fn matrices(
        &mut self,
        tensors: &[LayerTensor],
        inputs: Option<&[Vec<f32>]>,
    ) -> Result<(), QuantizeError> {
        let mut factor = None;
        for &tensor in tensors {
            let Some((rows, cols)) = self.matrix(tensor) else { continue };
            // Where nothing looks at it any more, the memory is better free.
            let weights = self.weights.remove(&tensor).unwrap_or_default();
            let (format, threads) = (self.format, self.threads);
            let packed = match (inputs, &mut factor) {
                (None, _) => rounded(format, rows, cols, &weights, threads).map_err(Into::into),
                (Some(_), Some(factor)) => {
                    compensated(format, rows, cols, &weights, factor, threads)
                }
                (Some(inputs), none) => {
                    let found = Hessian::of(&alike(inputs, cols), cols, threads).inverse_factor();
                    found.and_then(|found| {
                        let factor = none.insert(found);
                        compensated(format, rows, cols, &weights, factor, threads)
                    })
                }
            };
            self.codes.insert(tensor, packed.map_err(|error| self.within(tensor, error))?);
        }
        Ok(())
    }

    /// Rows and columns.
    fn matrix(&self, tensor: LayerTensor) -> Option<(usize, usize)> {
        let shape = self.forward.spec().shape(TensorName::Layer(self.number, tensor))?;
        let &[rows, cols] = &shape[..] else { return None };
        Some((rows, cols))
    }

    fn within(&self, tensor: LayerTensor, source: MethodError) -> QuantizeError {
        QuantizeError::Tensor { tensor: TensorName::Layer(self.number, tensor), source }
    }

    /// Codes, and the vectors.
    pub(crate) fn finish(self) -> Part {
        let mut part = Part::default();
        for (&tensor, packed) in &self.codes {
            part.matrix(TensorName::Layer(self.number, tensor), packed);
        }
        for (&tensor, values) in &self.weights {
            let name = TensorName::Layer(self.number, tensor);
            if self.forward.spec().shape(name).is_some_and(|shape| shape.len() == 1) {
                part.vector(name, values);
            }
        }
        part
    }
}

/// Inputs with every row at unit length, so that each position counts alike; rows of nothing stay.
///
/// Attention comes to rest on the first tokens of a text, whose activations are hundreds of times greater than all
/// others. By their squares they would outweigh the whole text, and weights would be bent to serve them alone; without
/// them, they would be given up, and attention with them. A norm follows every sum, so it is the relative error that
/// matters.
fn alike(inputs: &[Vec<f32>], cols: usize) -> Vec<Vec<f32>> {
    let unit = |row: &[f32]| {
        let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        let factor = if length > 0.0 { (1.0 / length) as f32 } else { 0.0 };
        row.iter().map(|x| x * factor).collect::<Vec<_>>()
    };
    inputs.iter().map(|chunk| chunk.chunks(cols).flat_map(unit).collect()).collect()
}

#[cfg(test)]
mod tests;
