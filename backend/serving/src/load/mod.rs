//! From checkpoints to an executor: what depends on the device, a file for each.

mod cpu;
mod cuda;

use rewind_checkpoint::{Checkpoint, CheckpointError, Tensor, TensorName};
use rewind_engine::Limits;
use rewind_formats::DraftFormats;

use crate::device::Processor;
use crate::executor::AnyExecutor;
use crate::load_error::LoadError;
use crate::model::Memory;
use crate::options::Options;
use crate::sizing;

/// What is to be loaded.
pub(crate) struct Source<'a> {
    /// The model: the draft is quantized from it, or kept as it is there.
    pub(crate) model: &'a Checkpoint,
    /// The checkpoint that the shadow is read from apart from the draft, if it is: see [`separate_shadow`].
    pub(crate) shadow: Option<&'a Checkpoint>,
    /// Formats of the draft.
    pub(crate) draft: &'a DraftFormats,
    /// What the owner set.
    pub(crate) options: &'a Options,
}

/// An executor and what there is to tell of it.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The executor.
    pub(crate) executor: AnyExecutor,
    /// Its limits.
    pub(crate) limits: Limits,
    /// Its memory.
    pub(crate) memory: Memory,
    /// What computes each copy of the weights, a line each.
    pub(crate) kernels: Vec<String>,
}

/// The checkpoint that the shadow is read from, if not in one go with the draft: another one, or, where the draft
/// is kept as it is stored, the same in its other form, so that the shadow does not depend on the draft.
pub(crate) fn separate_shadow<'a>(
    model: &'a Checkpoint,
    shadow: Option<&'a Checkpoint>,
    draft: &DraftFormats,
) -> Option<&'a Checkpoint> {
    shadow.or_else(|| (*draft == DraftFormats::Stored).then_some(model))
}

impl Source<'_> {
    /// A tensor of the draft, or of draft and shadow where they are read in one go.
    fn draft_tensor(&self, tensor: TensorName) -> Result<Tensor, CheckpointError> {
        match self.draft {
            DraftFormats::Stored => self.model.stored_tensor(tensor),
            DraftFormats::Mixture(_) => self.model.tensor(tensor),
        }
    }

    /// Refuses sizes that cannot do on this processor, before any weight is read.
    pub(crate) fn check(&self, processor: Processor) -> Result<(), LoadError> {
        let spec = self.model.spec();
        let page = match processor {
            Processor::Cpu => cpu::smallest_page(spec),
            Processor::Cuda(_) => cuda::page(spec),
        };
        sizing::check(spec, self.options, page)
    }

    /// Reads and packs both copies of the weights, and makes an executor of them. `progress` is told
    /// the share of the weights that is packed, 0 to 1.
    pub(crate) fn load(
        &self,
        processor: Processor,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Loaded, LoadError> {
        match processor {
            Processor::Cpu => cpu::load(self, progress),
            Processor::Cuda(ordinal) => cuda::load(self, ordinal, progress),
        }
    }

    /// Threads that pack, and that compute on the CPU.
    fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        self.options.threads.unwrap_or_else(cores)
    }
}
