//! Loading for the CPU.

use std::sync::Arc;

use rewind_checkpoint::ModelSpec;
use rewind_cpu::{Config, CpuExecutor, CpuModel, Isa, LoadOptions};
use rewind_engine::Executor;

use super::{Loaded, Source};
use crate::executor::AnyExecutor;
use crate::load_error::LoadError;
use crate::model::Memory;
use crate::sizing::{self, PAGE_TOKENS, Room, Sizes};

/// Bytes of a KV page without padding: keys and values in `f32`. Where a head's dimension is no
/// multiple of a vector, the executor's pages, known once there is one, are larger.
pub(super) fn smallest_page(spec: &ModelSpec) -> u64 {
    [spec.layers, 2, spec.kv_heads, spec.head_dim, PAGE_TOKENS as usize, size_of::<f32>()]
        .into_iter()
        .fold(1, |bytes: u64, count| bytes.saturating_mul(count as u64))
}

/// Reads, packs, and makes the executor.
pub(super) fn load(
    source: &Source<'_>,
    progress: &mut dyn FnMut(f32),
) -> Result<Loaded, LoadError> {
    let (spec, options, threads) = (source.model.spec(), source.options, source.threads());
    let weights = pack(source, threads, progress)?;
    let page = CpuExecutor::page_bytes(&weights, PAGE_TOKENS as usize);
    let page = page.map_or(u64::MAX, |bytes| bytes as u64);
    let sizes = Sizes::of(spec, options, sizing::CPU_PROMPT_ROWS)?;
    let limits = sizes.limits(spec, options, page, Room::Machine(sizing::memory()))?;
    let config = Config {
        threads,
        slots: limits.slots as usize,
        rows: limits.rows as usize,
        pages: limits.pages as usize,
        page_tokens: limits.page_tokens as usize,
        positions: limits.positions as usize,
    };
    let executor = CpuExecutor::new(Arc::new(weights), config)?;
    let memory = executor.memory();
    let weights = memory.weights;
    Ok(Loaded {
        limits: executor.limits().clone(),
        kernels: executor.kernels(),
        memory: Memory {
            draft: weights.draft as u64,
            shadow: weights.shadow as u64,
            shared: weights.shared as u64,
            kv: memory.kv as u64,
            buffers: memory.buffers as u64,
            host: (weights.draft + weights.shadow - weights.shared + memory.kv + memory.buffers)
                as u64,
            gpu: 0,
        },
        executor: AnyExecutor::Cpu(Box::new(executor)),
    })
}

/// Reads and packs both copies of the weights.
fn pack(
    source: &Source<'_>,
    threads: usize,
    progress: &mut dyn FnMut(f32),
) -> Result<CpuModel, LoadError> {
    let isa = Isa::detect();
    let both = LoadOptions { draft: Some(source.draft.clone()), shadow: true, threads, isa };
    let mut draft = |what: LoadOptions, part: f32| {
        CpuModel::load(
            source.model.spec(),
            |tensor| source.draft_tensor(tensor),
            what,
            |p| progress(part * p.done as f32 / p.total.max(1) as f32),
        )
    };
    let Some(shadow) = source.shadow else { return Ok(draft(both, 1.0)?) };
    let full = LoadOptions { draft: None, ..both.clone() };
    let draft = draft(LoadOptions { shadow: false, ..both }, 0.5)?;
    let shadow = CpuModel::load(
        shadow.spec(),
        |tensor| shadow.tensor(tensor),
        full,
        |p| progress(0.5 + 0.5 * p.done as f32 / p.total.max(1) as f32),
    )?;
    Ok(draft.with_shadow_of(shadow))
}

#[cfg(test)]
mod tests {
    use rewind_checkpoint::{Architecture, Rope, RopeScaling};

    use super::*;

    #[test]
    fn the_smallest_page_counts_keys_and_values_of_every_layer() {
        let spec = ModelSpec {
            architecture: Architecture::Llama,
            vocab_size: 49_152,
            hidden_size: 576,
            intermediate_size: 1536,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            rms_epsilon: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
            max_positions: 2048,
            tied_head: true,
            qkv_bias: false,
            qk_norm: false,
        };
        assert_eq!(smallest_page(&spec), 30 * 2 * 3 * 64 * 4 * 32);
    }
}
