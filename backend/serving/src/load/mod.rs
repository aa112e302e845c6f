//! From checkpoints to an executor: what depends on the device, a file for each.

mod cpu;
mod cuda;

use rewind_checkpoint::Checkpoint;
use rewind_engine::Limits;
use rewind_formats::Mixture;

use crate::device::Processor;
use crate::executor::AnyExecutor;
use crate::load_error::LoadError;
use crate::model::Memory;
use crate::options::Options;
use crate::sizing;

/// What is to be loaded.
pub(crate) struct Source<'a> {
    /// The model: the draft is quantized from it.
    pub(crate) model: &'a Checkpoint,
    /// Another checkpoint of the shadow weights, if they are not the model's own.
    pub(crate) shadow: Option<&'a Checkpoint>,
    /// Formats of the draft.
    pub(crate) draft: &'a Mixture,
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

impl Source<'_> {
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
