//! [`Executor`] on this CPU.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rewind_engine::{
    Executor, ExecutorError, Input, Limits, Pass, Row, RowResult, Ticket, Token, Weights, validate,
};

use crate::error::CpuError;
use crate::forward::{Machine, Position, Task};
use crate::kv::{Cache, Shape};
use crate::model::{self, CpuModel};
use crate::pool::{Panicked, SharedPool};

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
    /// Index of each slot's page table in the pass that runs; of a slot without rows, anything.
    table_of: Vec<usize>,
    positions: Vec<Position>,
    with_head: Vec<usize>,
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
            table_of: vec![0; config.slots],
            positions: Vec::with_capacity(config.rows),
            with_head: Vec::with_capacity(config.rows),
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
        self.locate(pass)?;
        for copy in &pass.copies {
            self.cache.copy(copy.from, copy.to);
        }
        let mut results: Vec<_> = pass.rows.iter().map(|_| RowResult::empty()).collect();
        if results.is_empty() {
            return Ok(results);
        }
        let with_head = (0..pass.rows.len()).filter(|&row| pass.rows[row].outputs.needs_head());
        self.with_head.clear();
        self.with_head.extend(with_head);
        let task = Task {
            spec: &model.spec,
            weights,
            rows: &pass.rows,
            positions: &self.positions,
            tables: &pass.tables,
            with_head: &self.with_head,
        };
        let pool = &mut *self.pool.turn();
        let run = self.machine.run(pool, task, &mut self.cache, &mut results);
        run.map_err(|Panicked(message)| {
            ExecutorError::PassFailed(format!("a compute thread panicked: {message}"))
        })?;
        for (row, result) in pass.rows.iter().zip(&results) {
            if row.outputs.choose.is_some() {
                self.last[row.slot.0 as usize] = result.token;
            }
        }
        Ok(results)
    }

    /// Looks up what each row reads.
    fn locate(&mut self, pass: &Pass) -> Result<(), ExecutorError> {
        for (number, table) in pass.tables.iter().enumerate() {
            self.table_of[table.slot.0 as usize] = number;
        }
        let position = |(number, row): (usize, &Row)| {
            let token = match row.input {
                Input::Token(token) => token,
                Input::LastOf(slot) => self.last[slot.0 as usize].ok_or_else(|| {
                    format!("row {number}: slot {} has not chosen a token yet", slot.0)
                })?,
                Input::Hidden(_) => return Err(format!("row {number}: hidden states as input")),
            };
            let table = self.table_of[row.slot.0 as usize];
            Ok(Position { token: token as usize, position: row.position as usize, table })
        };
        self.positions.clear();
        for row in pass.rows.iter().enumerate() {
            self.positions.push(position(row).map_err(ExecutorError::InvalidPass)?);
        }
        Ok(())
    }
}

const MAX_THREADS: usize = 1024;

fn shape(model: &CpuModel, pages: usize, page_tokens: usize) -> Shape {
    let spec = &model.spec;
    Shape { pages, page_tokens, layers: spec.layers, heads: spec.kv_heads, dim: spec.head_dim }
}

fn activations(weights: &model::Weights) -> &'static str {
    let integer = weights.layers.iter().any(model::Layer::is_integer);
    if integer { "int8-b32 activations" } else { "f32 activations" }
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
            if number == ticket.0 {
                return result;
            }
            self.finished.insert(number, result);
        }
        let nobody = || format!("ticket {} is not one that waits", ticket.0);
        self.finished.remove(&ticket.0).unwrap_or_else(|| Err(ExecutorError::InvalidPass(nobody())))
    }
}

/// Version of [`crate::order`]; it goes up when any bit of any result changes.
const ORDER: u32 = 3;
