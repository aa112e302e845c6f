//! [`Executor`] on this CPU.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rewind_engine::sampling::{self, Scratch};
use rewind_engine::{
    Choose, Executor, ExecutorError, Input, Limits, Pass, Row, RowResult, Ticket, Token, Weights,
    validate,
};
use rewind_monitor::Statistics;

use crate::error::CpuError;
use crate::forward::{HEAD_ROWS, Machine, Position};
use crate::kv::{Cache, Shape};
use crate::model::{self, CpuModel};
use crate::pool::{Panicked, SharedPool};
use crate::statistics::{Summary, Tile};

/// Sizes of a [`CpuExecutor`].
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Threads that compute, the caller's included; at least 1.
    pub threads: usize,
    /// Sequences that can run at once.
    pub slots: usize,
    /// Most rows of a pass.
    pub rows: usize,
    /// KV pages.
    pub pages: usize,
    /// Positions in a page; multiples of 8 waste no memory.
    pub page_tokens: usize,
    /// Longest sequence, in tokens.
    pub positions: usize,
}

/// Memory of an executor, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Weights.
    pub weights: model::WeightMemory,
    /// Keys and values, all pages. The system hands it out when pages are first used.
    pub kv: usize,
    /// Activations of a pass.
    pub buffers: usize,
}

/// Runs passes on this CPU's cores.
///
/// [`submit`](Executor::submit) checks and queues; [`wait`](Executor::wait) computes, on the calling
/// thread and those of the process's pool: executors with as many threads share one and take turns,
/// pass by pass, so that models beside each other do not crowd the cores.
#[derive(Debug)]
pub struct CpuExecutor {
    model: Arc<CpuModel>,
    limits: Limits,
    pool: SharedPool,
    machine: Machine,
    cache: Cache,
    /// The token that each slot chose last.
    last: Vec<Option<Token>>,
    samplers: Vec<Scratch>,
    queue: VecDeque<(u64, Pass)>,
    /// Passes that ran before they were waited for.
    finished: BTreeMap<u64, Result<Vec<RowResult>, ExecutorError>>,
    next_ticket: u64,
}

impl CpuExecutor {
    /// Memory of one KV page of this model, in bytes, every layer included; `None` if it does not fit
    /// in a `usize`.
    pub fn page_bytes(model: &CpuModel, page_tokens: usize) -> Option<usize> {
        shape(model, 1, page_tokens).bytes()
    }

    /// An executor for this model.
    ///
    /// # Errors
    /// A size is 0 or too large, the memory for keys and values cannot be had, or threads not started.
    pub fn new(model: Arc<CpuModel>, config: Config) -> Result<Self, CpuError> {
        let size = |setting, value: usize| {
            let allowed = "between 1 and 4294967295";
            u32::try_from(value).ok().filter(|&value| value > 0).ok_or(CpuError::Setting {
                setting,
                value,
                allowed,
            })
        };
        let limits = Limits {
            // `CpuModel::load` has bounded both.
            vocabulary: model.spec.vocab_size as u32,
            layers: model.spec.layers as u16,
            slots: size("slots", config.slots)?,
            rows: size("rows", config.rows)?,
            pages: size("pages", config.pages)?,
            page_tokens: size("page_tokens", config.page_tokens)?,
            positions: size("positions", config.positions)?,
        };
        if config.threads == 0 || config.threads > MAX_THREADS {
            let (setting, value) = ("threads", config.threads);
            return Err(CpuError::Setting { setting, value, allowed: "between 1 and 1024" });
        }
        let (pages, page_tokens) = (config.pages, config.page_tokens);
        let shape = shape(&model, pages, page_tokens);
        // Asked for before it is taken: a refusal is an error here, not the end of the process.
        let refused = match shape.bytes() {
            Some(bytes) => Vec::<u8>::new().try_reserve_exact(bytes).is_err(),
            None => true,
        };
        if refused {
            return Err(CpuError::KvMemory { pages, page_tokens });
        }
        let threads = config.threads;
        let pool =
            SharedPool::get(threads).map_err(|source| CpuError::Threads { threads, source })?;
        let machine = Machine::new(&model.spec, model.isa, threads, config.rows);
        tracing::info!(isa = model.isa.name(), threads, "CPU kernels chosen");
        Ok(Self {
            cache: Cache::new(shape),
            last: vec![None; config.slots],
            samplers: (0..threads).map(|_| Scratch::default()).collect(),
            queue: VecDeque::new(),
            finished: BTreeMap::new(),
            next_ticket: 0,
            pool,
            machine,
            limits,
            model,
        })
    }

    /// Memory that this executor holds.
    pub fn memory(&self) -> Memory {
        let kv = self.cache.shape().bytes().unwrap_or(usize::MAX);
        Memory { weights: self.model.memory(), kv, buffers: self.machine.bytes() }
    }

    /// What computes here, one line for each copy of the weights, for people.
    pub fn kernels(&self) -> Vec<String> {
        let copies = [("draft", &self.model.draft), ("shadow", &self.model.shadow)];
        let line = |(name, weights): (&str, &Option<model::Weights>)| {
            let weights = weights.as_ref()?;
            let (isa, threads) = (self.machine.isa().name(), self.machine.threads());
            let (formats, activations) = (&weights.formats, activations(weights));
            Some(format!("{name}: {formats}, {activations}, {isa}, {threads} threads"))
        };
        copies.into_iter().filter_map(line).collect()
    }

    fn run(&mut self, pass: &Pass) -> Result<Vec<RowResult>, ExecutorError> {
        let model = Arc::clone(&self.model);
        let weights = match pass.weights {
            Weights::Draft => model.draft.as_ref(),
            Weights::Full => model.shadow.as_ref(),
        };
        let Some(weights) = weights else {
            return Err(ExecutorError::InvalidPass("this model has no such weights".into()));
        };
        let rows = self.positions(pass)?;
        for copy in &pass.copies {
            self.cache.copy(copy.from, copy.to);
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        self.compute(&model, weights, pass, &rows).map_err(|Panicked(message)| {
            ExecutorError::PassFailed(format!("a compute thread panicked: {message}"))
        })
    }

    /// Looks up what each row reads.
    fn positions<'a>(&self, pass: &'a Pass) -> Result<Vec<Position<'a>>, ExecutorError> {
        let mut tables = vec![&[][..]; self.last.len()];
        for table in &pass.tables {
            tables[table.slot.0 as usize] = &table.pages;
        }
        let position = |(number, row): (usize, &Row)| {
            let token = match row.input {
                Input::Token(token) => token,
                Input::LastOf(slot) => self.last[slot.0 as usize].ok_or_else(|| {
                    format!("row {number}: slot {} has not chosen a token yet", slot.0)
                })?,
                Input::Hidden(_) => return Err(format!("row {number}: hidden states as input")),
            };
            let pages = tables[row.slot.0 as usize];
            Ok(Position { token: token as usize, position: row.position as usize, pages })
        };
        let rows: Result<_, String> = pass.rows.iter().enumerate().map(position).collect();
        rows.map_err(ExecutorError::InvalidPass)
    }

    fn compute(
        &mut self,
        model: &CpuModel,
        weights: &model::Weights,
        pass: &Pass,
        rows: &[Position<'_>],
    ) -> Result<Vec<RowResult>, Panicked> {
        let pool = &mut *self.pool.turn();
        let machine = &mut self.machine;
        let mut results: Vec<_> = pass.rows.iter().map(|_| RowResult::empty()).collect();
        machine.layers(
            pool,
            &model.spec,
            weights,
            &mut self.cache,
            rows,
            |layers, row, stream| {
                if pass.rows[row].outputs.tap.map(usize::from) == Some(layers) {
                    results[row].tap = Some(stream.to_vec());
                }
            },
        )?;

        let with_head: Vec<_> =
            (0..rows.len()).filter(|&row| pass.rows[row].outputs.needs_head()).collect();
        for rows in with_head.chunks(HEAD_ROWS) {
            let row = |number: usize| &pass.rows[rows[number]];
            let sums: Vec<_> = (0..rows.len()).map(|number| row(number).needs_sums()).collect();
            machine.head(pool, &model.spec, weights, rows, &sums)?;
            let spread = (0..rows.len()).any(|number| !is_cheap(row(number)));
            let concluded = machine.conclude(
                pool,
                rows.len(),
                spread,
                &mut self.samplers,
                |number, logits, tiles, scratch| conclude(row(number), logits, tiles, scratch),
            )?;
            for (&row, result) in rows.iter().zip(concluded) {
                let tap = results[row].tap.take();
                results[row] = RowResult { tap, ..result };
                if pass.rows[row].outputs.choose.is_some() {
                    self.last[pass.rows[row].slot.0 as usize] = results[row].token;
                }
            }
        }
        Ok(results)
    }
}

const MAX_THREADS: usize = 1024;

fn shape(model: &CpuModel, pages: usize, page_tokens: usize) -> Shape {
    let spec = &model.spec;
    Shape { pages, page_tokens, layers: spec.layers, heads: spec.kv_heads, dim: spec.head_dim }
}

fn activations(weights: &model::Weights) -> &'static str {
    let integer = weights.layers.iter().any(|layer| layer.gate.is_integer());
    if integer { "int8-b32 activations" } else { "f32 activations" }
}

/// Whether choosing is no more than reading the summary.
fn is_plain(choose: &Choose) -> bool {
    choose.sampling.is_plain_argmax() && choose.banned.is_empty() && choose.mask.is_none()
}

fn is_cheap(row: &Row) -> bool {
    row.outputs.logprobs.is_none() && row.outputs.choose.as_ref().is_none_or(is_plain)
}

/// The answer to a row whose logits are known.
fn conclude(row: &Row, logits: &[f32], tiles: &[Tile], scratch: &mut Scratch) -> RowResult {
    let outputs = &row.outputs;
    let summary = Summary::new(logits, tiles);
    let raw = outputs.logits.then(|| logits.to_vec());
    if !summary.finite {
        let statistics = Statistics::NOT_FINITE;
        return RowResult { statistics, suspect: true, logits: raw, ..RowResult::empty() };
    }
    let mut statistics = Statistics::UNMEASURED;
    if row.needs_sums() {
        statistics = summary.statistics();
    }
    let (mut token, mut runner_up) = (None, None);
    if let Some(choose) = &outputs.choose {
        if is_plain(choose) {
            token = Some(summary.best.0 as Token);
            runner_up = summary.second.map(|(id, _)| id as Token);
            statistics.margin = summary.margin();
        } else {
            let choice = sampling::choose(
                logits,
                &choose.sampling,
                &choose.history,
                &choose.banned,
                choose.mask.as_ref(),
                choose.position,
                scratch,
            );
            (token, runner_up) = (Some(choice.token), choice.runner_up);
            statistics.margin = choice.margin;
        }
    }
    let suspect = row.gate.is_some_and(|gate| gate.is_suspect(&statistics));
    if !outputs.statistics {
        statistics = Statistics { margin: statistics.margin, ..Statistics::UNMEASURED };
    }
    let logprobs = match outputs.logprobs {
        Some(count) => sampling::logprobs(logits, token, count, summary.log_z()),
        None => Arc::new([]),
    };
    RowResult { token, runner_up, statistics, suspect, logprobs, logits: raw, tap: None }
}

impl Executor for CpuExecutor {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn identity(&self, weights: Weights) -> String {
        let copy = match weights {
            Weights::Draft => self.model.draft.as_ref(),
            Weights::Full => self.model.shadow.as_ref(),
        };
        let Some(copy) = copy else { return "none".to_owned() };
        let isa = self.machine.isa().name();
        format!("{}, {}, cpu {isa}, order {ORDER}", copy.formats, activations(copy))
    }

    fn submit(&mut self, pass: Pass) -> Result<Ticket, ExecutorError> {
        let model = &self.model;
        validate(&pass, &self.limits, |weights| match weights {
            Weights::Draft => model.draft.is_some(),
            Weights::Full => model.shadow.is_some(),
        })?;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.queue.push_back((ticket, pass));
        Ok(Ticket(ticket))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Vec<RowResult>, ExecutorError> {
        while let Some((number, pass)) = self.queue.pop_front_if(|(number, _)| *number <= ticket.0)
        {
            let result = self.run(&pass);
            self.finished.insert(number, result);
        }
        let nobody = || format!("ticket {} is not one that waits", ticket.0);
        self.finished.remove(&ticket.0).unwrap_or_else(|| Err(ExecutorError::InvalidPass(nobody())))
    }
}

/// Version of [`crate::order`]; it goes up when any bit of any result changes.
const ORDER: u32 = 2;
