//! A model of random weights on a device, and the passes that are timed over it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use rewind_checkpoint::ModelSpec;
use rewind_cuda::{Config, CudaExecutor, CudaModel};
use rewind_engine::sampling::{History, Sampling};
use rewind_engine::{
    Choose, Executor, Input, Limits, Outputs, PageCopy, PageId, PageTable, Pass, Row, RowClass,
    RowResult, Slot, Ticket, Token, Weights,
};
use rewind_formats::Format;
use rewind_kernels::Device;
use rewind_kernels::arguments::PAGE_TOKENS;
use rewind_monitor::{Detector, Gate};

/// What a rig is to have room for, memory permitting.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Sequences beside each other.
    pub sequences: usize,
    /// Positions of each.
    pub context: usize,
    /// Rows of a pass.
    pub rows: usize,
}

/// Which weights a rig has.
#[derive(Clone, Copy, Debug)]
pub struct Copies {
    /// Format of the draft, if there is one.
    pub draft: Option<Format>,
    /// Whether there is a shadow, in bf16.
    pub shadow: bool,
}

/// A decode step of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Sequences.
    pub batch: usize,
    /// Positions that each row sees, its own included.
    pub context: usize,
    /// Whether statistics are taken and the entropy compared with a threshold. Without, a row only
    /// chooses its best token.
    pub monitored: bool,
}

/// Passes that run before the clock starts. The executor runs a shape plainly, records it when it
/// comes again, and replays it from then on.
const WARM_UP: usize = 4;

/// Passes in flight.
const DEPTH: usize = 2;

/// Tokens of the prompt that the cache is filled with, at most.
const FILLING: usize = 512;

/// Device memory that stays free for the executor's buffers, bytes.
const RESERVE: u64 = 1 << 30;

const SEED: u64 = 1;

/// A threshold of no meaning: what a comparison costs does not depend on how it ends.
const GATE: Gate = Gate { detector: Detector::Entropy, threshold: 5.0 };

/// A model and its executor.
#[derive(Debug)]
pub struct Rig<D: Device> {
    executor: CudaExecutor<D>,
    limits: Limits,
}

impl<D: Device> Rig<D> {
    /// Makes weights, takes memory, and fills the cache with what a prompt leaves there.
    ///
    /// # Errors
    /// The weights do not fit, or the device fails.
    pub fn new(device: D, spec: &ModelSpec, copies: Copies, room: Room) -> Result<Self> {
        let model = CudaModel::synthetic(device, spec, copies.draft, copies.shadow, SEED)?;
        let free = model.free_memory();
        let there = free.saturating_sub(RESERVE.min(free / 8));
        let there = there / CudaExecutor::<D>::page_bytes(spec) as u64;
        let wanted = room.sequences * room.context.div_ceil(PAGE_TOKENS as usize);
        // Not less than one: the executor says best what is wrong with no memory at all.
        let pages = wanted.min(there as usize).max(1);
        let Room { sequences: slots, context: positions, rows } = room;
        let executor = CudaExecutor::new(model, Config { slots, rows, pages, positions })?;
        let mut rig = Self { limits: executor.limits().clone(), executor };
        rig.fill(if copies.draft.is_some() { Weights::Draft } else { Weights::Full })?;
        Ok(rig)
    }

    /// Whether so many sequences of so many positions have room.
    pub fn fits(&self, batch: usize, context: usize) -> bool {
        let Limits { slots, positions, pages, .. } = self.limits;
        batch <= slots as usize
            && context <= positions as usize
            && batch * pages_of(context) <= pages as usize
    }

    /// Seconds of a decode pass, the mean over `count` of them.
    ///
    /// Each is a step of the same sequences at the same position, so that all cost the same; the token
    /// is the one that the step before chose, which the host does not know when it queues the pass.
    ///
    /// # Errors
    /// The pass does not fit, or fails.
    pub fn decode(&mut self, weights: Weights, step: Step, count: usize) -> Result<f64> {
        let pass = |fed: fn(Slot) -> Option<Input>| {
            let row = |slot: usize| {
                let row = self.row(slot, step.context - 1, RowClass::Generated);
                let input = fed(row.slot).unwrap_or(row.input);
                let gate = step.monitored.then_some(GATE);
                Row { input, outputs: choosing(row.position, step.monitored), gate, ..row }
            };
            let rows = (0..step.batch).map(row).collect();
            self.pass(weights, step.batch, step.context, rows)
        };
        let (first, next) = (pass(|_| None), pass(|slot| Some(Input::LastOf(slot))));
        self.time(&first, &next, count)
    }

    /// Seconds of a pass over the last `rows` positions of one sequence, all with everything that a
    /// verification asks for.
    ///
    /// # Errors
    /// The pass does not fit, or fails.
    pub fn verify(&mut self, rows: usize, context: usize, count: usize) -> Result<f64> {
        let row = |position| {
            let row = self.row(0, position, RowClass::Generated);
            Row { outputs: choosing(row.position, true), gate: Some(GATE), ..row }
        };
        let rows = (context.saturating_sub(rows)..context).map(row).collect();
        let pass = self.pass(Weights::Full, 1, context, rows);
        self.time(&pass, &pass, count)
    }

    /// Seconds of a prompt of so many tokens, the last of which chooses the next.
    ///
    /// # Errors
    /// The prompt does not fit, or the pass fails.
    pub fn prefill(&mut self, weights: Weights, tokens: usize, count: usize) -> Result<f64> {
        let pass = self.prompt(weights, tokens);
        self.time(&pass, &pass, count)
    }

    /// Seconds of a decode pass without and with the monitor, in pairs. Which comes first alternates,
    /// so that what drifts (clocks, heat) favours neither.
    ///
    /// # Errors
    /// The pass does not fit, or fails.
    pub fn monitor(
        &mut self,
        weights: Weights,
        step: Step,
        pairs: usize,
        count: usize,
    ) -> Result<Vec<[f64; 2]>> {
        let mut found = Vec::new();
        for pair in 0..pairs {
            let mut times = [0.0; 2];
            for monitored in [pair % 2 == 1, pair % 2 == 0] {
                times[usize::from(monitored)] =
                    self.decode(weights, Step { monitored, ..step }, count)?;
            }
            found.push(times);
        }
        Ok(found)
    }

    /// Seconds of a pass: `first` once, then `next` again and again, the next always queued before the
    /// last is waited for.
    fn time(&mut self, first: &Pass, next: &Pass, count: usize) -> Result<f64> {
        let mut queued: VecDeque<Ticket> = VecDeque::new();
        let mut started = Instant::now();
        let mut done = 0;
        for number in 0..WARM_UP + count {
            let pass = if number == 0 { first } else { next };
            queued.push_back(self.executor.submit(pass.clone())?);
            if number + 1 < DEPTH {
                continue;
            }
            if let Some(ticket) = queued.pop_front() {
                self.check(ticket)?;
                done += 1;
            }
            // The clock runs from the end of a pass to the end of a pass, with one in flight at both.
            if done == WARM_UP {
                started = Instant::now();
            }
        }
        for ticket in queued {
            self.check(ticket)?;
        }
        Ok(started.elapsed().as_secs_f64() / count as f64)
    }

    fn check(&mut self, ticket: Ticket) -> Result<()> {
        let results = self.executor.wait(ticket)?;
        let finite = |result: &RowResult| result.statistics.finite;
        ensure!(results.iter().all(finite), "logits are not finite");
        Ok(())
    }

    /// Runs a prompt, and copies the pages that it leaves all over the cache: zeros would be cheaper to
    /// move and to multiply.
    fn fill(&mut self, weights: Weights) -> Result<()> {
        let Limits { rows, pages, positions, .. } = self.limits;
        let tokens = FILLING.min(rows.min(positions).min(pages * PAGE_TOKENS) as usize);
        let prompt = self.prompt(weights, tokens);
        let ticket = self.executor.submit(prompt)?;
        self.check(ticket)?;
        let written = (tokens as u32 / PAGE_TOKENS).max(1);
        let copy = |page| PageCopy { from: PageId(page % written), to: PageId(page) };
        let copies = (written..pages).map(copy).collect();
        let pass = Pass { copies, ..self.pass(weights, 0, 0, Vec::new()) };
        let ticket = self.executor.submit(pass)?;
        self.check(ticket)
    }

    fn prompt(&self, weights: Weights, tokens: usize) -> Pass {
        let mut rows: Vec<_> =
            (0..tokens).map(|position| self.row(0, position, RowClass::Prompt)).collect();
        if let Some(last) = rows.last_mut() {
            last.outputs = choosing(last.position, true);
        }
        self.pass(weights, 1, tokens, rows)
    }

    /// A row that feeds some token and wants nothing.
    fn row(&self, slot: usize, position: usize, class: RowClass) -> Row {
        let token = (slot * 7919 + position * 104_729) % self.limits.vocabulary as usize;
        Row {
            slot: Slot(slot as u32),
            position: position as u32,
            class,
            input: Input::Token(token as Token),
            outputs: Outputs::default(),
            gate: None,
            adapter: None,
        }
    }

    /// A pass over `batch` sequences, their pages one after the other.
    fn pass(&self, weights: Weights, batch: usize, context: usize, rows: Vec<Row>) -> Pass {
        let each = pages_of(context) as u32;
        let table = |slot: u32| PageTable {
            slot: Slot(slot),
            pages: (slot * each..(slot + 1) * each).map(PageId).collect(),
        };
        let tables = (0..batch as u32).map(table).collect();
        Pass { weights, layers: 0..self.limits.layers, copies: Vec::new(), tables, rows }
    }
}

fn pages_of(context: usize) -> usize {
    context.div_ceil(PAGE_TOKENS as usize)
}

/// The best token, with everything that is known about it or without.
fn choosing(position: u32, statistics: bool) -> Outputs {
    let choose = Choose {
        sampling: Arc::new(Sampling::GREEDY),
        history: History::default(),
        banned: Arc::new([]),
        mask: None,
        position: position + 1,
    };
    Outputs { choose: Some(choose), statistics, ..Outputs::default() }
}

#[cfg(test)]
pub(crate) mod tests {
    use rewind_checkpoint::Architecture;
    use rewind_executor_suite::small_spec;
    use rewind_kernels_emulator::{Emulator, Settings};

    use super::*;

    pub(crate) fn emulator() -> Result<Emulator> {
        Ok(Emulator::new(Settings { checks: false, ..Settings::default() })?)
    }

    fn rig(copies: Copies, room: Room) -> Rig<Emulator> {
        let spec = small_spec(Architecture::Qwen3, 300);
        Rig::new(emulator().unwrap(), &spec, copies, room).unwrap()
    }

    #[test]
    fn every_kind_of_pass_runs() {
        let room = Room { sequences: 3, context: 70, rows: 40 };
        let mut rig = rig(Copies { draft: "int4-g32".parse().ok(), shadow: true }, room);
        let step = Step { batch: 3, context: 70, monitored: false };
        for weights in [Weights::Draft, Weights::Full] {
            assert!(rig.decode(weights, step, 3).unwrap() > 0.0);
            assert!(rig.prefill(weights, 40, 1).unwrap() > 0.0);
        }
        for rows in [1, 5] {
            assert!(rig.verify(rows, 70, 1).unwrap() > 0.0);
        }
        let pairs = rig.monitor(Weights::Draft, step, 3, 1).unwrap();
        assert!(pairs.len() == 3 && pairs.iter().flatten().all(|&time| time > 0.0), "{pairs:?}");
    }

    #[test]
    fn room_is_what_the_pages_hold() {
        let room = Room { sequences: 4, context: 64, rows: 8 };
        let rig = rig(Copies { draft: None, shadow: true }, room);
        assert!(rig.fits(4, 64) && rig.fits(1, 33));
        assert!(!rig.fits(5, 32) && !rig.fits(1, 65));
    }

    #[test]
    fn a_pass_that_does_not_fit_is_an_error() {
        let room = Room { sequences: 1, context: 32, rows: 8 };
        let mut rig = rig(Copies { draft: None, shadow: true }, room);
        assert!(rig.verify(9, 32, 1).is_err());
        let step = Step { batch: 2, context: 32, monitored: false };
        assert!(rig.decode(Weights::Full, step, 1).is_err());
    }
}
