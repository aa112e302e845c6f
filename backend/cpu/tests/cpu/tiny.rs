//! Small random models, and passes over them in few words.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use half::{bf16, f16};
use rewind_checkpoint::{
    Architecture, LayerTensor, ModelSpec, Rope, RopeScaling, Tensor, TensorData, TensorName,
};
use rewind_cpu::{Config, CpuExecutor, CpuModel, Isa, LoadOptions};
use rewind_engine::sampling::{History, Sampling};
use rewind_engine::{
    Choose, Executor, ExecutorError, Input, Outputs, PageId, PageTable, Pass, Row, RowClass,
    RowResult, Slot, Token, Weights,
};

/// Precision of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    F32,
    F16,
    Bf16,
}

/// Two layers with grouped heads and awkward sizes; `vocab_size` spans two tiles of statistics.
pub(crate) fn spec(architecture: Architecture) -> ModelSpec {
    ModelSpec {
        architecture,
        vocab_size: 1100,
        hidden_size: 72,
        intermediate_size: 100,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 12,
        rms_epsilon: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        max_positions: 512,
        tied_head: architecture == Architecture::Llama,
        qkv_bias: architecture == Architecture::Qwen2,
        qk_norm: architecture == Architecture::Qwen3,
    }
}

/// A tensor of random numbers that depend on its name alone.
pub(crate) fn tensor(spec: &ModelSpec, name: TensorName, precision: Precision) -> Tensor {
    let shape = spec.shape(name).expect("a tensor of the model");
    let source =
        if spec.tied_head && name == TensorName::Head { TensorName::Embedding } else { name };
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    let mut state = hasher.finish() | 1;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let norm = matches!(
        name,
        TensorName::FinalNorm
            | TensorName::Layer(
                _,
                LayerTensor::AttentionNorm
                    | LayerTensor::FeedForwardNorm
                    | LayerTensor::QueryNorm
                    | LayerTensor::KeyNorm
            )
    );
    let width = *shape.last().expect("no scalar") as f32;
    let number = |_| if norm { 1.0 + 0.3 * noise() } else { noise() * 3.0 / width.sqrt() };
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(number).collect();
    let data = match precision {
        Precision::F32 => TensorData::F32(values),
        Precision::F16 => TensorData::F16(values.into_iter().map(f16::from_f32).collect()),
        Precision::Bf16 => TensorData::Bf16(values.into_iter().map(bf16::from_f32).collect()),
    };
    Tensor { shape, data }
}

/// Draft and shadow of the random model.
pub(crate) fn model(spec: &ModelSpec, precision: Precision, draft: &str) -> Arc<CpuModel> {
    let draft = Some(draft.parse().expect("a format"));
    let options = LoadOptions { draft, shadow: true, threads: 2 };
    let source = |name| Ok::<_, Infallible>(tensor(spec, name, precision));
    Arc::new(CpuModel::load(spec, source, options, |_| ()).expect("a good model"))
}

pub(crate) const PAGE_TOKENS: usize = 12;
pub(crate) const SLOTS: usize = 8;
pub(crate) const PAGES: usize = 200;
pub(crate) const POSITIONS: usize = 400;

pub(crate) fn config() -> Config {
    Config {
        threads: 1,
        slots: SLOTS,
        rows: 300,
        pages: PAGES,
        page_tokens: PAGE_TOKENS,
        positions: POSITIONS,
        isa: Isa::detect(),
    }
}

pub(crate) fn executor(model: &Arc<CpuModel>, config: Config) -> CpuExecutor {
    CpuExecutor::new(Arc::clone(model), config).expect("a good configuration")
}

/// A greedy choice of the token after `position`.
pub(crate) fn greedy(position: usize) -> Choose {
    Choose {
        sampling: Arc::new(Sampling::GREEDY),
        history: History::default(),
        banned: Arc::new([]),
        mask: None,
        position: position as u32 + 1,
    }
}

/// Everything that a row can answer.
pub(crate) fn everything(position: usize) -> Outputs {
    Outputs {
        choose: Some(greedy(position)),
        statistics: true,
        logprobs: Some(3),
        logits: true,
        tap: Some(1),
    }
}

pub(crate) fn row(slot: usize, position: usize, token: Token, outputs: Outputs) -> Row {
    Row {
        slot: Slot(slot as u32),
        position: position as u32,
        class: RowClass::Prompt,
        input: Input::Token(token),
        outputs,
        gate: None,
        adapter: None,
    }
}

/// Pages of a slot, disjoint from those of others, in no particular order.
pub(crate) fn table(slot: usize) -> PageTable {
    let pages = PAGES / SLOTS;
    let page = |i: usize| PageId(((i * 7 + 3) % pages * SLOTS + slot) as u32);
    PageTable { slot: Slot(slot as u32), pages: (0..pages).map(page).collect() }
}

pub(crate) fn pass(weights: Weights, rows: Vec<Row>) -> Pass {
    let mut slots: Vec<_> = rows.iter().map(|row| row.slot.0 as usize).collect();
    slots.dedup();
    let tables = slots.into_iter().map(table).collect();
    Pass { weights, layers: 0..2, copies: Vec::new(), tables, rows }
}

pub(crate) fn run(executor: &mut CpuExecutor, pass: Pass) -> Result<Vec<RowResult>, ExecutorError> {
    let ticket = executor.submit(pass)?;
    executor.wait(ticket)
}

/// A random prompt.
pub(crate) fn prompt(seed: u64, len: usize) -> Vec<Token> {
    let token = |i| ((seed * 7919 + i as u64 * 104_729 + i as u64 * i as u64 * 31) % 1100) as Token;
    (0..len).map(token).collect()
}

/// Runs a sequence in one pass for each chunk; results of all rows.
pub(crate) fn feed(
    executor: &mut CpuExecutor,
    weights: Weights,
    slot: usize,
    tokens: &[Token],
    chunk: usize,
) -> Vec<RowResult> {
    let mut results = Vec::new();
    for (number, tokens) in tokens.chunks(chunk).enumerate() {
        let rows = tokens.iter().enumerate().map(|(i, &token)| {
            let position = number * chunk + i;
            row(slot, position, token, everything(position))
        });
        results.extend(run(executor, pass(weights, rows.collect())).expect("a good pass"));
    }
    results
}

/// All bits of a result.
pub(crate) fn bits(result: &RowResult) -> impl PartialEq + std::fmt::Debug + use<> {
    let row = |row: &Option<Vec<f32>>| {
        row.as_ref().map(|row| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    };
    let logprobs: Vec<_> =
        result.logprobs.iter().map(|l| (l.token, l.logprob.to_bits(), l.rank)).collect();
    (
        (result.token, result.runner_up, result.statistics, result.suspect),
        (logprobs, row(&result.logits), row(&result.tap)),
    )
}

pub(crate) fn assert_same(a: &[RowResult], b: &[RowResult], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (row, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(bits(a), bits(b), "{what}, row {row}");
    }
}
