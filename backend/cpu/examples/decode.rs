//! Speed of this executor on a model: decode and prefill, draft and shadow.
//!
//! `cargo run --release -p rewind-cpu --example decode -- MODEL [FORMAT] [THREADS]`
//!
//! Prints tokens per second, and for decode the bytes of weights that each token reads and the
//! bandwidth that makes: decoding is bound by it.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rewind_checkpoint::Checkpoint;
use rewind_cpu::{Config, CpuExecutor, CpuModel, Isa, LoadOptions};
use rewind_engine::sampling::{History, Sampling};
use rewind_engine::{
    Choose, Executor, Input, Outputs, PageId, PageTable, Pass, Row, RowClass, Slot, Weights,
};

const PAGE_TOKENS: usize = 32;
const PROMPT: usize = 256;
const STEPS: usize = 128;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("usage: decode MODEL [FORMAT] [THREADS]")?);
    let format = arguments.next().map_or("int4-g32".parse(), |name| name.parse())?;
    let threads = arguments.next().map_or(Ok(2), |count| count.parse())?;

    let start = Instant::now();
    let checkpoint = Checkpoint::open(&path)?;
    let options = LoadOptions { draft: Some(format), shadow: true, threads };
    let model = CpuModel::load(checkpoint.spec(), |name| checkpoint.tensor(name), options, |_| ())?;
    println!("loaded in {:.2?}", start.elapsed());
    let config = Config {
        threads,
        slots: 16,
        rows: PROMPT,
        pages: 16 * (PROMPT + STEPS).div_ceil(PAGE_TOKENS),
        page_tokens: PAGE_TOKENS,
        positions: PROMPT + STEPS,
        isa: Isa::detect(),
    };
    let mut executor = CpuExecutor::new(Arc::new(model), config)?;
    executor.kernels().iter().for_each(|line| println!("{line}"));
    println!("{:?}", executor.memory());

    let memory = executor.memory().weights;
    for (weights, bytes) in [(Weights::Draft, memory.draft), (Weights::Full, memory.shadow)] {
        let elapsed = best(3, || prefill(&mut executor, weights))?;
        println!("{weights:?} prefill: {:.0} tok/s", PROMPT as f64 / elapsed.as_secs_f64());
        for rows in [1, 2, 4, 8, 16] {
            for statistics in [false, true] {
                let elapsed = best(3, || decode(&mut executor, weights, rows, statistics))?;
                let step = elapsed.as_secs_f64() / STEPS as f64;
                println!(
                    "{weights:?} decode, batch {rows}, statistics {statistics}: {:.1} tok/s, {:.3} \
                     ms a step, {:.1} GB/s",
                    rows as f64 / step,
                    step * 1e3,
                    bytes as f64 / step / 1e9,
                );
            }
        }
    }
    Ok(())
}

/// The shortest of several runs: noise only ever adds.
fn best(
    runs: usize,
    mut run: impl FnMut() -> Result<Duration, Box<dyn Error>>,
) -> Result<Duration, Box<dyn Error>> {
    let mut best = run()?;
    for _ in 1..runs {
        best = best.min(run()?);
    }
    Ok(best)
}

fn row(slot: usize, position: usize, input: Input, head: bool, statistics: bool) -> Row {
    let choose = head.then(|| Choose {
        sampling: Arc::new(Sampling::GREEDY),
        history: History::default(),
        banned: Arc::new([]),
        mask: None,
        position: position as u32 + 1,
    });
    Row {
        slot: Slot(slot as u32),
        position: position as u32,
        class: RowClass::Generated,
        input,
        outputs: Outputs { choose, statistics: statistics && head, ..Outputs::default() },
        gate: None,
        adapter: None,
    }
}

fn run(
    executor: &mut CpuExecutor,
    weights: Weights,
    rows: Vec<Row>,
) -> Result<Duration, Box<dyn Error>> {
    let pages = (PROMPT + STEPS).div_ceil(PAGE_TOKENS) as u32;
    let mut slots: Vec<_> = rows.iter().map(|row| row.slot).collect();
    slots.dedup();
    let table = |slot: Slot| PageTable {
        slot,
        pages: (slot.0 * pages..(slot.0 + 1) * pages).map(PageId).collect(),
    };
    let pass = Pass {
        weights,
        layers: 0..executor.limits().layers,
        copies: Vec::new(),
        tables: slots.into_iter().map(table).collect(),
        rows,
    };
    let start = Instant::now();
    let ticket = executor.submit(pass)?;
    executor.wait(ticket)?;
    Ok(start.elapsed())
}

fn prefill(executor: &mut CpuExecutor, weights: Weights) -> Result<Duration, Box<dyn Error>> {
    let rows = (0..PROMPT).map(|position| {
        row(0, position, Input::Token(position as u32 + 100), position + 1 == PROMPT, true)
    });
    run(executor, weights, rows.collect())
}

fn decode(
    executor: &mut CpuExecutor,
    weights: Weights,
    rows: usize,
    statistics: bool,
) -> Result<Duration, Box<dyn Error>> {
    let mut total = Duration::ZERO;
    for step in 0..STEPS {
        let rows = (0..rows).map(|slot| {
            let input = match step {
                0 => Input::Token(1000 + slot as u32),
                _ => Input::LastOf(Slot(slot as u32)),
            };
            row(slot, step, input, true, statistics)
        });
        total += run(executor, weights, rows.collect())?;
    }
    Ok(total)
}
