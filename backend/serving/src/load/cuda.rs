//! Loading for an NVIDIA GPU.
//!
//! What will be needed is known from the shapes, so a model that does not fit is refused before a
//! weight is read, with what would fit; the executor itself can only say how far it came.

use rewind_checkpoint::ModelSpec;
use rewind_cuda::{Config, CudaError, CudaExecutor, CudaModel, Driver, LoadOptions};
use rewind_engine::Executor;
use rewind_kernels::Device;

use super::{Loaded, Source};
use crate::device::{Processor, ShadowPlacement};
use crate::executor::AnyExecutor;
use crate::gpu_plan::gpu_plan;
use crate::load_error::{GpuMemory, LoadError};
use crate::model::Memory;
use crate::sizing::{self, Room, Sizes};

/// Bytes of a KV page.
pub(super) fn page(spec: &ModelSpec) -> u64 {
    CudaExecutor::<Driver>::page_bytes(spec) as u64
}

/// Reads, packs, uploads, and makes the executor.
pub(super) fn load(
    source: &Source<'_>,
    ordinal: u32,
    progress: &mut dyn FnMut(f32),
) -> Result<Loaded, LoadError> {
    let processor = Processor::Cuda(ordinal);
    let failed = |why| LoadError::Cuda { processor, why };
    let (spec, options) = (source.model.spec(), source.options);
    let driver = Driver::open(ordinal as usize)
        .map_err(|missing| LoadError::Device { processor, missing })?;
    let free = driver.description().free_memory;
    check_memory(source, processor, free)?;

    let mut model = CudaModel::new(driver, spec).map_err(failed)?;
    pack(&mut model, source, progress).map_err(failed)?;
    let sizes = Sizes::of(spec, options, sizing::GPU_PROMPT_ROWS)?;
    let left = model.free_memory();
    let config = |pages| Config {
        slots: sizes.slots as usize,
        rows: sizes.rows as usize,
        pages,
        positions: sizes.positions as usize,
    };
    let most = usize::try_from(sizes.pages_of_all()).unwrap_or(usize::MAX);
    let buffers = CudaExecutor::<Driver>::buffer_bytes(spec, config(most)).map_err(failed)? as u64;
    let room = Room::Gpu(left.saturating_sub(buffers));
    let limits = sizes.limits(spec, options, page(spec), room)?;
    let executor = CudaExecutor::new(model, config(limits.pages as usize)).map_err(failed)?;
    let memory = executor.memory();
    let weights = memory.weights;
    let on_gpu = free.saturating_sub(left);
    let plan = gpu_plan(source.model, source.shadow, source.draft, options.shadow_placement);
    Ok(Loaded {
        limits: executor.limits().clone(),
        kernels: executor.kernels(),
        memory: Memory {
            draft: weights.draft as u64,
            shadow: weights.shadow as u64,
            shared: weights.shared as u64,
            kv: memory.kv as u64,
            buffers: memory.buffers as u64,
            host: plan.host,
            gpu: on_gpu + (memory.kv + memory.buffers) as u64,
        },
        executor: AnyExecutor::Cuda(Box::new(executor)),
    })
}

/// Refuses weights that the GPU cannot hold, `free` being what it has.
fn check_memory(source: &Source<'_>, processor: Processor, free: u64) -> Result<(), LoadError> {
    let options = source.options;
    let plan = |placement| gpu_plan(source.model, source.shadow, source.draft, placement);
    let wanted = plan(options.shadow_placement);
    if wanted.device <= free {
        return Ok(());
    }
    let on_host = match options.shadow_placement {
        ShadowPlacement::Gpu => Some(plan(ShadowPlacement::Host)),
        ShadowPlacement::Host => None,
    };
    Err(GpuMemory {
        processor,
        free,
        draft: wanted.draft,
        shadow: wanted.shadow,
        needed: wanted.device,
        on_host: on_host.map(|plan| (plan.device, plan.streamed)),
    }
    .into())
}

/// Puts both copies of the weights where they belong.
fn pack(
    model: &mut CudaModel<Driver>,
    source: &Source<'_>,
    progress: &mut dyn FnMut(f32),
) -> Result<(), CudaError> {
    let both = LoadOptions {
        draft: Some(source.draft.clone()),
        shadow: true,
        threads: source.threads(),
        placement: source.options.shadow_placement.into(),
    };
    let mut draft = |what: LoadOptions, part: f32| {
        model.load(
            |tensor| source.draft_tensor(tensor),
            what,
            |p| progress(part * p.done as f32 / p.total.max(1) as f32),
        )
    };
    let Some(shadow) = source.shadow else { return draft(both, 1.0) };
    let full = LoadOptions { draft: None, ..both.clone() };
    draft(LoadOptions { shadow: false, ..both }, 0.5)?;
    model.load(
        |tensor| shadow.tensor(tensor),
        full,
        |p| progress(0.5 + 0.5 * p.done as f32 / p.total.max(1) as f32),
    )
}
