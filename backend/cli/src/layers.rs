//! Models with some of their layers taken out, to see what each of them is worth.

use anyhow::{Result, bail, ensure};
use rewind_checkpoint::{ModelSpec, TensorName};

/// The layers that stay, first to last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept(Vec<usize>);

impl Kept {
    /// All layers but these, counted from 0.
    ///
    /// # Errors
    /// The model has no such layer, one is named twice, or none would stay.
    pub(crate) fn without(layers: usize, removed: &[usize]) -> Result<Self> {
        for (place, &layer) in removed.iter().enumerate() {
            if layer >= layers {
                bail!(
                    "there is no layer {layer} to leave out: this model has {layers}, from 0 to {}",
                    layers.saturating_sub(1)
                );
            }
            ensure!(!removed[..place].contains(&layer), "layer {layer} is left out twice");
        }
        let kept = Vec::from_iter((0..layers).filter(|layer| !removed.contains(layer)));
        ensure!(!kept.is_empty(), "all {layers} layers are left out: at least one must stay");
        Ok(Self(kept))
    }

    /// The shape of what is left of a model.
    pub(crate) fn spec(&self, whole: &ModelSpec) -> ModelSpec {
        ModelSpec { layers: self.0.len(), ..whole.clone() }
    }

    /// The tensor of the whole model that is this one of what is left.
    pub(crate) fn original(&self, tensor: TensorName) -> TensorName {
        match tensor {
            // A layer past the end is none of the whole model's either.
            TensorName::Layer(layer, part) => {
                TensorName::Layer(self.0.get(layer).copied().unwrap_or(usize::MAX), part)
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use rewind_checkpoint::LayerTensor;

    use super::*;

    #[test]
    fn layers_that_stay_are_numbered_anew() {
        let kept = Kept::without(5, &[3, 0]).unwrap();
        assert_eq!(kept, Kept(vec![1, 2, 4]));
        let layer = |layer| TensorName::Layer(layer, LayerTensor::Down);
        assert_eq!([0, 1, 2].map(|at| kept.original(layer(at))), [1, 2, 4].map(layer));
        assert_eq!(kept.original(TensorName::Head), TensorName::Head);
        assert_eq!(Kept::without(2, &[]).unwrap(), Kept(vec![0, 1]));
    }

    #[test]
    fn what_cannot_be_left_out_is_named() {
        let said = |removed: &[usize]| Kept::without(2, removed).unwrap_err().to_string();
        assert!(said(&[2]).contains("no layer 2") && said(&[2]).contains("from 0 to 1"));
        assert!(said(&[1, 1]).contains("layer 1 is left out twice"));
        assert!(said(&[0, 1]).contains("at least one must stay"));
    }
}
