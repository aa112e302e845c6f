//! Device memory that passes run with, taken once.
//!
//! Activations have a row for each row of a pass. Where a product reads them, rows are as long as
//! whole packing units; what is behind the last column is zero from the start and nobody writes it.
//! Draft and shadow have buffers of their own where one takes f16 and the other f32.

use rewind_checkpoint::ModelSpec;
use rewind_engine::Limits;
use rewind_kernels::arguments::{
    Address, Answer, Cache, LOGPROB_ENTRIES, LogitTile, LogprobEntry, PAGE_TOKENS, SPLIT,
};
use rewind_kernels::packing::INPUT_UNIT;
use rewind_kernels::{Device, Fill};
use rewind_kernels::{geometry, sampling};

use crate::error::CudaError;
use crate::model::CudaModel;
use crate::staging::{Shape, table_width};

/// Rows that go through the LM head at once; bounds the memory for logits.
pub(crate) const HEAD_ROWS: usize = 64;

/// Generated rows that attend at once; bounds the memory for partial results.
pub(crate) const ATTEND_ROWS: usize = 64;

/// Activations in both types that a product may take them in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activations {
    pub(crate) single: Address,
    pub(crate) half: Address,
    /// Elements of a row, padding included.
    pub(crate) stride: usize,
}

impl Activations {
    /// The form that a product of these weights reads.
    pub(crate) fn of(&self, half: bool) -> Address {
        if half { self.half } else { self.single }
    }

    /// The same from a row on.
    pub(crate) fn row(&self, half: bool, row: usize) -> Address {
        let element = if half { size_of::<u16>() } else { size_of::<f32>() };
        self.of(half).offset(row * self.stride * element)
    }
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// Where blocks of staging go.
    pub(crate) block: Address,
    /// Last token of each slot.
    pub(crate) last: Address,
    /// The residual stream.
    pub(crate) stream: Address,
    /// Elements of a row of it.
    pub(crate) stream_stride: usize,
    pub(crate) normed: Activations,
    /// `[row][queries, keys, values]`.
    pub(crate) qkv: Address,
    /// `[row][head][padded head size]`.
    pub(crate) queries: Address,
    pub(crate) partials: Address,
    pub(crate) attended: Activations,
    pub(crate) gated: Activations,
    pub(crate) head_rows: Activations,
    pub(crate) logits: Address,
    /// Logits after bias and penalties.
    pub(crate) processed: Address,
    pub(crate) tiles: Address,
    /// `[row]`, and behind them the log-probabilities, `[row][LOGPROB_ENTRIES]`.
    pub(crate) answers: Address,
    pub(crate) entries: Address,
    pub(crate) cosines: Address,
    pub(crate) sines: Address,
    pub(crate) cache: Cache,
    /// Splits that a row's partial results have room for.
    pub(crate) splits: usize,
    /// Elements between two rows of logits.
    pub(crate) logits_stride: usize,
    /// Tiles of a row of logits.
    pub(crate) logit_tiles: usize,
    /// Bytes of keys and values.
    pub(crate) kv_bytes: usize,
    /// Bytes of everything else here.
    pub(crate) bytes: usize,
}

/// Elements of a KV page: keys and values of every layer.
pub(crate) fn page_elements(spec: &ModelSpec) -> usize {
    geometry::page_elements(&cache(spec, 0))
}

/// A cache that has no memory yet.
fn cache(spec: &ModelSpec, pages: u32) -> Cache {
    let dim = spec.head_dim.next_multiple_of(PAGE_TOKENS as usize) as u32;
    let (layers, heads) = (spec.layers as u32, spec.kv_heads as u32);
    Cache { data: Address::NULL, layers, heads, dim, pages }
}

impl Buffers {
    /// Takes the memory and fills in what is constant.
    pub(crate) fn new<D: Device>(
        model: &mut CudaModel<D>,
        limits: &Limits,
    ) -> Result<Self, CudaError> {
        let spec = model.spec.clone();
        let mut buffers = Self::lay_out(&spec, limits, |bytes, fill| {
            Ok(model.take("buffers", bytes.max(1), fill)?.address)
        })?;
        buffers.kv_bytes = page_elements(&spec)
            .checked_mul(limits.pages as usize)
            .and_then(|elements| elements.checked_mul(size_of::<u16>()))
            .ok_or(TOO_LARGE)?;
        buffers.cache.data = model.take("keys and values", buffers.kv_bytes, Fill::Zeros)?.address;
        let frequencies = spec.rope.frequencies(spec.head_dim);
        let tables = [(f64::cos as fn(f64) -> f64, buffers.cosines), (f64::sin, buffers.sines)];
        for (function, address) in tables {
            let table = angle_table(&frequencies, limits.positions, function);
            model.device.upload(bytemuck::cast_slice(&table), address)?;
        }
        Ok(buffers)
    }

    /// What [`Buffers::new`] takes, but for keys and values, in bytes.
    pub(crate) fn needed(spec: &ModelSpec, limits: &Limits) -> Result<usize, CudaError> {
        Ok(Self::lay_out(spec, limits, |_, _| Ok(Address::NULL))?.bytes)
    }

    /// All but keys and values, with memory from `allocate`, which is told bytes and what they are
    /// to hold.
    fn lay_out(
        spec: &ModelSpec,
        limits: &Limits,
        mut allocate: impl FnMut(usize, Fill) -> Result<Address, CudaError>,
    ) -> Result<Self, CudaError> {
        let (rows, slots) = (limits.rows as usize, limits.slots as usize);
        let head_rows = HEAD_ROWS.min(rows);
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let splits = (limits.positions as usize).div_ceil(SPLIT as usize);
        let logits_stride = sampling::logits_stride(limits.vocabulary) as usize;
        let logit_tiles = sampling::tiles(limits.vocabulary) as usize;
        let cache = cache(spec, limits.pages);
        let block = largest_shape(limits).sections(table_width(limits)).end;

        let mut bytes = 0;
        let mut take = |elements: usize, size: usize, fill| {
            let wanted = elements.checked_mul(size).ok_or(TOO_LARGE)?;
            bytes += wanted;
            allocate(wanted, fill)
        };
        let mut activations = |rows: usize, cols: usize| {
            let stride = cols.next_multiple_of(INPUT_UNIT);
            let single = take(rows * stride, size_of::<f32>(), Fill::Zeros)?;
            let half = take(rows * stride, size_of::<u16>(), Fill::Zeros)?;
            Ok::<_, CudaError>(Activations { single, half, stride })
        };
        let normed = activations(rows, spec.hidden_size)?;
        let attended = activations(rows, queries)?;
        let gated = activations(rows, spec.intermediate_size)?;
        let head_x = activations(head_rows, spec.hidden_size)?;
        let mut floats = |elements| take(elements, size_of::<f32>(), Fill::Nothing);
        let stream_stride = spec.hidden_size.next_multiple_of(INPUT_UNIT);
        let (stream, qkv) = (floats(rows * stream_stride)?, floats(rows * (queries + 2 * keys))?);
        let rotated = floats(rows * spec.heads * cache.dim as usize)?;
        let partial_rows = ATTEND_ROWS.min(rows) as u32;
        let partials =
            floats(geometry::partials(&cache, spec.heads as u32, splits as u32, partial_rows))?;
        let (logits, processed) =
            (floats(head_rows * logits_stride)?, floats(head_rows * logits_stride)?);
        let half_head = spec.head_dim / 2;
        let angles = limits.positions as usize * half_head;
        let (cosines, sines) = (floats(angles)?, floats(angles)?);
        let tiles = take(head_rows * logit_tiles, size_of::<LogitTile>(), Fill::Nothing)?;
        let answers = take(rows, size_of::<Answer>(), Fill::Zeros)?;
        let entries =
            take(rows * LOGPROB_ENTRIES as usize, size_of::<LogprobEntry>(), Fill::Zeros)?;
        let last = take(slots, size_of::<u32>(), Fill::Zeros)?;
        let block = take(block, 1, Fill::Nothing)?;
        Ok(Self {
            block,
            last,
            stream,
            stream_stride,
            normed,
            qkv,
            queries: rotated,
            partials,
            attended,
            gated,
            head_rows: head_x,
            logits,
            processed,
            tiles,
            answers,
            entries,
            cosines,
            sines,
            cache,
            splits,
            logits_stride,
            logit_tiles,
            kv_bytes: 0,
            bytes,
        })
    }
}

const TOO_LARGE: CudaError = CudaError::Setting {
    setting: "buffers",
    value: usize::MAX,
    allowed: "what a machine can address",
};

/// The shape of the largest block.
fn largest_shape(limits: &Limits) -> Shape {
    let (rows, slots) = (limits.rows as usize, limits.slots as usize);
    // Graphs pad tables to rows.
    let tables = slots.max(rows.next_power_of_two());
    let rows = rows.next_power_of_two();
    Shape { rows, heads: rows, tables, tiles: rows, copies: limits.pages as usize }
}

/// A function of the angle of each pair at each position, `[position][pair]`; angles in `f64`, as on
/// the CPU.
fn angle_table(frequencies: &[f32], positions: u32, function: fn(f64) -> f64) -> Vec<f32> {
    let row = |position: u32| {
        let angle = move |&frequency: &f32| f64::from(position) * f64::from(frequency);
        frequencies.iter().map(angle).map(function).map(|value| value as f32)
    };
    (0..positions).flat_map(row).collect()
}
