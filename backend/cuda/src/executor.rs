//! [`Executor`] on a [`Device`].
//!
//! A pass is submitted without waiting: one block of staging goes up, launches follow, and the
//! answers' way back is queued behind them. So several passes can be in flight, and a row may take
//! the token that an earlier pass has not told the host yet.
//!
//! Passes of generated rows alone, the steps of a running batch, are padded to a bucket and recorded
//! as a graph the second time their shape comes (the first time runs plainly, so that the driver has
//! loaded every kernel before it records). Everything that differs between them is in the staging.

use std::collections::{HashMap, HashSet};

use rewind_checkpoint::ModelSpec;
use rewind_engine::{
    Executor, ExecutorError, Input, Limits, Outputs, Pass, Row, RowResult, Ticket, Weights,
    validate,
};
use rewind_kernels::arguments::{Address, Answer, LOGPROB_ENTRIES, LogprobEntry, PAGE_TOKENS};
use rewind_kernels::geometry;
use rewind_kernels::{Device, DeviceError, Download, Fill, Graph};

use crate::answers;
use crate::buffers::{Buffers, HEAD_ROWS, page_elements};
use crate::driver::Driver;
use crate::error::CudaError;
use crate::forward::Forward;
use crate::model::{self, CudaModel, Layer, Layers};
use crate::plan::WeightMemory;
use crate::staging::{Shape, Staging, table_width};

/// Sizes of a [`CudaExecutor`].
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Sequences that can run at once.
    pub slots: usize,
    /// Most rows of a pass.
    pub rows: usize,
    /// KV pages of 32 positions.
    pub pages: usize,
    /// Longest sequence, in tokens.
    pub positions: usize,
}

impl Config {
    /// What the engine is told, for a model that `model::check` has found no fault with.
    fn limits(self, spec: &ModelSpec) -> Result<Limits, CudaError> {
        let size = |setting, value: usize, most: usize| {
            let allowed = "between 1 and what the kernels index (2^31 - 1; 2^16 rows)";
            let fits = (1..=most).contains(&value);
            fits.then_some(value as u32).ok_or(CudaError::Setting { setting, value, allowed })
        };
        const MOST: usize = i32::MAX as usize;
        Ok(Limits {
            vocabulary: spec.vocab_size as u32,
            layers: spec.layers as u16,
            slots: size("slots", self.slots, MOST)?,
            rows: size("rows", self.rows, 1 << 16)?,
            pages: size("pages", self.pages, MOST)?,
            page_tokens: PAGE_TOKENS,
            positions: size("positions", self.positions, MOST)?,
        })
    }
}

/// Memory of an executor, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Weights.
    pub weights: WeightMemory,
    /// Keys and values, all pages.
    pub kv: usize,
    /// Activations of a pass, logits, tables.
    pub buffers: usize,
}

/// Runs passes on a device.
#[derive(Debug)]
pub struct CudaExecutor<D: Device = Driver> {
    model: CudaModel<D>,
    limits: Limits,
    buffers: Buffers,
    /// For biases, seen tokens, bans and masks, which have no fixed size.
    lists: rewind_kernels::Memory,
    graphs: Graphs,
    /// Slots that have chosen a token.
    chosen: Vec<bool>,
    in_flight: HashMap<u64, InFlight>,
    next_ticket: u64,
    /// Why the device answers nothing any more.
    lost: Option<String>,
}

/// Recorded passes.
#[derive(Debug, Default)]
struct Graphs {
    recorded: HashMap<Key, Graph>,
    /// Shapes that ran once.
    seen: HashSet<Key>,
    /// Recording failed once; passes run plainly since.
    off: bool,
}

/// What a recorded pass depends on besides its staging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    weights: Weights,
    rows: usize,
    splits: usize,
    general: bool,
    logprobs: bool,
}

/// A submitted pass.
#[derive(Debug)]
struct InFlight {
    /// The rows of the pass.
    rows: Vec<Row>,
    /// The row of the pass for each row of the LM head.
    heads: Vec<usize>,
    answers: Option<Download>,
    entries: Option<Download>,
    /// Logits and taps on their way, by row of the pass.
    logits: Vec<(usize, Download)>,
    taps: Vec<(usize, Download)>,
}

/// Most rows of a pass that is recorded.
const LARGEST_GRAPH: usize = 64;

/// Room for lists at the start, in words: a few hundred penalized tokens for each of many rows.
const FIRST_LISTS: usize = 1 << 16;

impl<D: Device> CudaExecutor<D> {
    /// Memory of one KV page of this model, bytes, every layer included.
    pub fn page_bytes(spec: &ModelSpec) -> usize {
        page_elements(spec) * size_of::<u16>()
    }

    /// Device memory that an executor of these sizes takes besides weights and KV pages, bytes;
    /// only longer lists (biases, penalties) than usual ever make it more.
    ///
    /// # Errors
    /// A size is 0 or too large, or the kernels cannot do the model.
    pub fn buffer_bytes(spec: &ModelSpec, config: Config) -> Result<usize, CudaError> {
        model::check(spec)?;
        Ok(Buffers::needed(spec, &config.limits(spec)?)? + FIRST_LISTS * size_of::<u32>())
    }

    /// An executor for this model.
    ///
    /// # Errors
    /// A size is 0 or too large, no weights are loaded, or the memory cannot be had.
    pub fn new(mut model: CudaModel<D>, config: Config) -> Result<Self, CudaError> {
        if model.draft.is_none() && model.shadow.is_none() {
            return Err(CudaError::NoWeights);
        }
        let limits = config.limits(&model.spec)?;
        let buffers = Buffers::new(&mut model, &limits)?;
        let lists = model.take("buffers", FIRST_LISTS * size_of::<u32>(), Fill::Nothing)?;
        let description = model.device.description();
        tracing::info!(
            gpu = description.name,
            architecture = description.architecture,
            multiprocessors = description.multiprocessors,
            "GPU kernels loaded"
        );
        Ok(Self {
            chosen: vec![false; config.slots],
            lists,
            graphs: Graphs::default(),
            in_flight: HashMap::new(),
            next_ticket: 0,
            lost: None,
            limits,
            buffers,
            model,
        })
    }

    /// Memory that this executor holds.
    pub fn memory(&self) -> Memory {
        let Buffers { kv_bytes, bytes, .. } = self.buffers;
        let lists = self.lists.bytes;
        Memory { weights: self.model.memory(), kv: kv_bytes, buffers: bytes + lists }
    }

    /// The model.
    pub fn model(&self) -> &CudaModel<D> {
        &self.model
    }

    /// What computes here, one line for each copy of the weights, for people.
    pub fn kernels(&self) -> Vec<String> {
        let device = self.model.device.description();
        let line = |(name, weights): (&str, &Option<model::Weights>)| {
            let weights = weights.as_ref()?;
            let (formats, activations) = (&weights.formats, activations(weights));
            let place = match weights.layers {
                Layers::Device(_) => "",
                Layers::Host { .. } => ", layers streamed from the host",
            };
            let (gpu, architecture) = (&device.name, &device.architecture);
            Some(format!("{name}: {formats}, {activations}, {gpu} ({architecture}){place}"))
        };
        let copies = [("draft", &self.model.draft), ("shadow", &self.model.shadow)];
        copies.into_iter().filter_map(line).collect()
    }

    fn weights(&self, which: Weights) -> Option<&model::Weights> {
        match which {
            Weights::Draft => self.model.draft.as_ref(),
            Weights::Full => self.model.shadow.as_ref(),
        }
    }

    /// Queues a valid pass, whose rows the caller adds to what is returned.
    fn queue(&mut self, pass: &Pass) -> Result<InFlight, DeviceError> {
        let heads = self.model.spec.heads as u32;
        let tile_rows = geometry::prompt_rows(&self.buffers.cache, heads);
        let staging = Staging::new(pass, &self.limits, tile_rows as usize);
        self.room_for(&staging)?;
        let exact = staging.shape();
        let mut in_flight = InFlight {
            rows: Vec::new(),
            heads: staging.index().iter().map(|&row| staging.order[row as usize]).collect(),
            answers: None,
            entries: None,
            logits: Vec::new(),
            taps: Vec::new(),
        };
        let splits = geometry::splits(staging.furthest) as usize;
        let key = self.key(pass, &staging, splits);
        let shape = match key {
            Some(Key { rows, .. }) => Shape { rows, heads: rows, tables: rows, ..exact },
            None => exact,
        };
        let sections = shape.sections(table_width(&self.limits));
        self.model.device.upload(&staging.block(shape), self.buffers.block)?;
        if !staging.lists.words().is_empty() {
            let lists = bytemuck::cast_slice(staging.lists.words());
            self.model.device.upload(lists, self.lists.address)?;
        }
        let known = key.and_then(|key| self.graphs.recorded.get(&key).copied());
        if let Some(graph) = known {
            self.model.device.replay(graph)?;
        } else {
            let recording = key.is_some_and(|key| !self.graphs.seen.insert(key));
            let model = &mut self.model;
            let weights = match pass.weights {
                Weights::Draft => &model.draft,
                Weights::Full => &model.shadow,
            };
            // `validate` has seen that they are there.
            let Some(weights) = weights else { return Ok(in_flight) };
            let mut forward = Forward {
                device: &mut model.device,
                spec: &model.spec,
                weights,
                buffers: &self.buffers,
                block: sections.at(self.buffers.block),
                shape,
                generated: key.map_or(staging.generated, |key| key.rows),
                splits: key.map_or(splits, |key| key.splits),
                lists: self.lists.address,
                general: staging.has_general(),
                logprobs: staging.has_logprobs(),
            };
            if recording {
                forward.device.begin_capture()?;
            }
            let ran = run(&mut forward, &self.buffers, pass, &staging, &mut in_flight);
            if let Some(key) = key.filter(|_| recording) {
                // Ended even after an error, or the stream would go on recording.
                let graph = model.device.end_capture();
                match ran.and(graph) {
                    Ok(graph) => {
                        self.graphs.recorded.insert(key, graph);
                        model.device.replay(graph)?;
                    }
                    Err(error) => {
                        self.graphs.off = true;
                        tracing::warn!("a pass could not be recorded, graphs are off: {error}");
                        return self.queue(pass);
                    }
                }
            } else {
                ran?;
            }
        }
        let device = &mut self.model.device;
        let heads = exact.heads;
        if heads > 0 {
            let bytes = heads * size_of::<Answer>();
            in_flight.answers = Some(device.download(self.buffers.answers, bytes)?);
            if staging.has_logprobs() {
                let bytes = heads * LOGPROB_ENTRIES as usize * size_of::<LogprobEntry>();
                in_flight.entries = Some(device.download(self.buffers.entries, bytes)?);
            }
        }
        Ok(in_flight)
    }

    /// The graph that a pass may run as; `None` if it must run plainly.
    fn key(&self, pass: &Pass, staging: &Staging, splits: usize) -> Option<Key> {
        let exact = staging.shape();
        let plain = |outputs: &Outputs| !outputs.logits && outputs.taps.is_empty();
        let on_device = matches!(self.weights(pass.weights)?.layers, Layers::Device(_));
        let fits = on_device
            && !self.graphs.off
            && (1..=LARGEST_GRAPH.min(self.limits.rows as usize)).contains(&exact.rows)
            && exact.tiles == 0
            && exact.copies == 0
            && exact.tables <= exact.rows
            && exact.heads > 0
            && pass.rows.iter().all(|row| plain(&row.outputs));
        let most = self.buffers.splits;
        fits.then(|| Key {
            weights: pass.weights,
            rows: exact.rows.next_power_of_two().min(self.limits.rows as usize),
            splits: splits.next_power_of_two().min(most),
            general: staging.has_general(),
            logprobs: staging.has_logprobs(),
        })
    }

    /// Sees to it that the lists fit.
    fn room_for(&mut self, staging: &Staging) -> Result<(), DeviceError> {
        let needed = size_of_val(staging.lists.words());
        if needed > self.lists.bytes {
            let device = &mut self.model.device;
            let memory = device.allocate(needed.next_power_of_two(), Fill::Nothing)?;
            device.free(self.lists)?;
            self.lists = memory;
            // They have the old address in them.
            self.graphs.recorded.retain(|key, _| !key.general);
        }
        Ok(())
    }

    fn collect(&mut self, pass: InFlight) -> Result<Vec<RowResult>, DeviceError> {
        let InFlight { rows, heads, answers, entries, logits, taps } = pass;
        let answers: Vec<Answer> = self.fetch(answers)?;
        let entries: Vec<LogprobEntry> = self.fetch(entries)?;
        let mut entries = entries.chunks_exact(LOGPROB_ENTRIES as usize);
        let mut results: Vec<_> = rows.iter().map(|_| RowResult::empty()).collect();
        for (&row, answer) in heads.iter().zip(&answers) {
            let entries = entries.next().unwrap_or_default();
            results[row] = answers::result(&rows[row].outputs, answer, entries);
        }
        // A row that was not finite has chosen nothing that a later row could be fed.
        for (row, result) in rows.iter().zip(&results) {
            if row.outputs.choose.is_some() {
                self.chosen[row.slot.0 as usize] = result.token.is_some();
            }
        }
        for (row, download) in logits {
            results[row].logits = Some(self.fetch(Some(download))?);
        }
        for (row, download) in taps {
            // In the order of layers, as they were asked for.
            results[row].taps.extend(self.fetch::<f32>(Some(download))?);
        }
        Ok(results)
    }

    fn fetch<T: bytemuck::AnyBitPattern>(
        &mut self,
        download: Option<Download>,
    ) -> Result<Vec<T>, DeviceError> {
        let Some(download) = download else { return Ok(Vec::new()) };
        let mut bytes = Vec::new();
        self.model.device.finish(download, &mut bytes)?;
        // One by one: a byte vector need not be aligned for T.
        Ok(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect())
    }

    fn failure(&mut self, error: DeviceError) -> ExecutorError {
        match error {
            DeviceError::Lost(why) => {
                self.lost.get_or_insert(why.clone());
                ExecutorError::DeviceLost(why)
            }
            other => ExecutorError::PassFailed(other.to_string()),
        }
    }
}

/// Queues everything of a pass but the answers' way back.
fn run<D: Device>(
    forward: &mut Forward<'_, D>,
    buffers: &Buffers,
    pass: &Pass,
    staging: &Staging,
    in_flight: &mut InFlight,
) -> Result<(), DeviceError> {
    if forward.shape.copies > 0 {
        forward.copies()?;
    }
    if forward.shape.rows == 0 {
        return Ok(());
    }
    let (hidden, stride) = (forward.spec.hidden_size, buffers.stream_stride);
    let vocabulary = forward.spec.vocab_size;
    forward.layers(|device, layers| {
        for (at, &row) in staging.order.iter().enumerate() {
            if pass.rows[row].outputs.taps.contains(&(layers as u16)) {
                let from = buffers.stream.offset(at * stride * size_of::<f32>());
                let tap = device.download(from, hidden * size_of::<f32>())?;
                in_flight.taps.push((row, tap));
            }
        }
        Ok(())
    })?;
    for first in (0..forward.shape.heads).step_by(HEAD_ROWS) {
        forward.head(first)?;
        let rows = in_flight.heads.iter().enumerate().skip(first).take(HEAD_ROWS);
        for (number, &row) in rows {
            if pass.rows[row].outputs.logits {
                let at = (number - first) * buffers.logits_stride * size_of::<f32>();
                let from: Address = buffers.logits.offset(at);
                let logits = forward.device.download(from, vocabulary * size_of::<f32>())?;
                in_flight.logits.push((row, logits));
            }
        }
    }
    Ok(())
}

fn activations(weights: &model::Weights) -> &'static str {
    let half = match &weights.layers {
        Layers::Device(layers) => layers.iter().any(Layer::half),
        Layers::Host { layers, .. } => layers.iter().any(|layer| layer.layer.half()),
    };
    if half { "f16 activations" } else { "f32 activations" }
}

impl<D: Device> Executor for CudaExecutor<D> {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn identity(&self, weights: Weights) -> String {
        let Some(copy) = self.weights(weights) else { return "none".to_owned() };
        let architecture = &self.model.device.description().architecture;
        format!("{}, {}, cuda {architecture}, order {ORDER}", copy.formats, activations(copy))
    }

    fn submit(&mut self, pass: Pass) -> Result<Ticket, ExecutorError> {
        if let Some(why) = &self.lost {
            return Err(ExecutorError::DeviceLost(why.clone()));
        }
        validate(&pass, &self.limits, |weights| self.weights(weights).is_some())?;
        if pass.copies.len() > self.limits.pages as usize {
            let (copies, pages) = (pass.copies.len(), self.limits.pages);
            return Err(ExecutorError::InvalidPass(format!("{copies} copies of {pages} pages")));
        }
        for (number, row) in pass.rows.iter().enumerate() {
            if let Input::LastOf(slot) = row.input
                && !self.chosen[slot.0 as usize]
            {
                let slot = slot.0;
                return Err(ExecutorError::InvalidPass(format!(
                    "row {number}: slot {slot} has not chosen a token yet"
                )));
            }
        }
        let queued = self.queue(&pass).map_err(|error| self.failure(error))?;
        for row in pass.rows.iter().filter(|row| row.outputs.choose.is_some()) {
            self.chosen[row.slot.0 as usize] = true;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.in_flight.insert(ticket, InFlight { rows: pass.rows, ..queued });
        Ok(Ticket(ticket))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Vec<RowResult>, ExecutorError> {
        let Some(pass) = self.in_flight.remove(&ticket.0) else {
            let what = format!("ticket {} is not one that waits", ticket.0);
            return Err(ExecutorError::InvalidPass(what));
        };
        self.collect(pass).map_err(|error| self.failure(error))
    }
}

/// Version of the kernels' order of sums; it goes up when any bit of any result changes.
const ORDER: u32 = 1;
