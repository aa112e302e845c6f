//! What a model's weights will take on a GPU, before anything is loaded.

use rewind_checkpoint::Checkpoint;
use rewind_cuda::{Exact, Placement, WeightPlan, plan, stored_bytes};
use rewind_formats::{DraftFormats, Format};

use crate::device::ShadowPlacement;

/// What the weights of these two checkpoints will take: a draft of these formats, quantized from `model` or kept
/// as it is there, and the shadow of `shadow`, or of `model` itself.
///
/// Computed from shapes. A checkpoint whose matrices are of several precisions is counted as if all
/// were of the one that most of its weights have.
pub fn gpu_plan(
    model: &Checkpoint,
    shadow: Option<&Checkpoint>,
    draft: &DraftFormats,
    placement: ShadowPlacement,
) -> WeightPlan {
    let exact = precision(shadow.unwrap_or(model));
    let mixture = match draft {
        DraftFormats::Mixture(mixture) => mixture,
        DraftFormats::Stored => {
            let mut plan = plan(model.spec(), None, exact, placement.into());
            // A tensor that cannot be read is an error soon; until then it counts like one that can.
            let format = |tensor| model.stored_format(tensor).unwrap_or(Some(Format::F16));
            plan.draft = stored_bytes(model.spec(), format);
            plan.device += plan.draft;
            return plan;
        }
    };
    let mut plan = plan(model.spec(), Some(mixture), exact, placement.into());
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
    let spec = checkpoint.spec();
    for tensor in spec.tensors() {
        let shape = spec.shape(tensor).unwrap_or_default();
        let count = match checkpoint.float_format(tensor) {
            _ if shape.len() < 2 => continue,
            Ok(None) => &mut single,
            Ok(Some(Format::Bf16)) => &mut brain,
            _ => &mut half,
        };
        *count += shape.iter().product::<usize>();
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
