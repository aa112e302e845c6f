//! What a model's weights will take on a GPU, before anything is loaded.

use rewind_checkpoint::Checkpoint;
use rewind_cuda::{Exact, Placement, WeightPlan, plan};
use rewind_formats::Mixture;

use crate::device::ShadowPlacement;

/// What the weights of these two checkpoints will take: a draft of these formats, quantized from `model`, and
/// the shadow of `shadow`, or of `model` itself.
///
/// Computed from shapes. A checkpoint whose matrices are of several precisions is counted as if all
/// were of the one that most of its weights have.
pub fn gpu_plan(
    model: &Checkpoint,
    shadow: Option<&Checkpoint>,
    draft: &Mixture,
    placement: ShadowPlacement,
) -> WeightPlan {
    let exact = precision(shadow.unwrap_or(model));
    let mut plan = plan(model.spec(), Some(draft), exact, placement.into());
    if shadow.is_some() {
        // Two checkpoints share nothing, not even their norms.
        plan.device += plan.shared;
        plan.shared = 0;
    }
    plan
}

/// Precision of most weights of a shadow: that of the file, f16 where it is quantized.
fn precision(checkpoint: &Checkpoint) -> Exact {
    let (mut single, mut half, mut brain) = (0, 0, 0);
    for tensor in checkpoint.tensors().filter(|tensor| tensor.shape.len() > 1) {
        let count = match tensor.dtype.as_str() {
            "F32" => &mut single,
            "BF16" => &mut brain,
            _ => &mut half,
        };
        *count += tensor.shape.iter().product::<usize>();
    }
    if single > half.max(brain) {
        Exact::F32
    } else if brain > half {
        Exact::Bf16
    } else {
        Exact::F16
    }
}

impl From<ShadowPlacement> for Placement {
    fn from(placement: ShadowPlacement) -> Self {
        match placement {
            ShadowPlacement::Gpu => Self::Device,
            ShadowPlacement::Host => Self::Host,
        }
    }
}
