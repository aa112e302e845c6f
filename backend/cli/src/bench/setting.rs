//! Flags that every measurement has, and the model that it runs on.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use rewind_bench::{
    Copies, Copy, Machine, ModelNames, ReadSweep, Report, Room, Session, WeightBytes,
};
use rewind_checkpoint::{Checkpoint, ModelSpec, TensorName};
use rewind_engine::Weights;
use rewind_formats::{DraftFormats, Format};
use rewind_serving::{AnyEngine, AnyExecutor, MAX_WINDOW, Model, PolicyName, Processor};

use crate::arguments::ModelArguments;
use crate::bench::table::Table;
use crate::{output, progress};

/// Flags of every measurement.
#[derive(Debug, Args)]
pub(crate) struct Common {
    #[command(flatten)]
    model: ModelArguments,
    /// Compute threads; all cores if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Times that everything is measured, besides a first time that only warms up.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Print one JSON object, with every sample.
    #[arg(long)]
    json: bool,
}

/// Which copies of the weights to measure.
#[derive(Clone, std::marker::Copy, Debug, ValueEnum)]
pub(crate) enum Which {
    Draft,
    Shadow,
    Both,
}

impl Which {
    pub(crate) fn weights(self) -> Vec<Weights> {
        match self {
            Self::Draft => vec![Weights::Draft],
            Self::Shadow => vec![Weights::Full],
            Self::Both => vec![Weights::Draft, Weights::Full],
        }
    }
}

/// A loaded model, ready to be measured.
pub(crate) struct Setting {
    engine: AnyEngine,
    copies: Copies,
    sweep: Option<ReadSweep>,
    machine: Machine,
    names: ModelNames,
    threads: usize,
    json: bool,
}

impl Common {
    pub(crate) fn rounds(&self) -> usize {
        self.rounds as usize
    }

    /// The checkpoint, for what must be known of it before the model is loaded.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint> {
        let path = &self.model.model;
        Checkpoint::open(path).with_context(|| format!("cannot load {}", path.display()))
    }

    /// Loads the model with this much room.
    pub(crate) fn load(&self, checkpoint: Checkpoint, room: Room) -> Result<Setting> {
        // Before anything runs, so that the load average is that of others.
        let machine = Machine::describe(Vec::new());
        let threads = self.threads.map_or(machine.cores, usize::from);
        let spec = checkpoint.spec();
        let shadow = self.model.shadow.as_deref();
        let shadow = shadow.map(Checkpoint::open).transpose().context("cannot load the shadow")?;
        let mut options = self.model.options(self.threads);
        options.max_sequences = Some(room.slots.try_into()?);
        options.max_batch_rows = Some(room.rows.max(room.slots).try_into()?);
        options.max_sequence_length =
            Some(options.max_sequence_length.unwrap_or(0).max(room.positions.try_into()?).max(2));
        // With the cache of every sequence at full length, which the defaults need not have.
        options.kv_memory = options.kv_memory.or_else(|| Some(kv_memory(spec, room)));
        // Measurements bring their own; that of a server could need more rows than they do.
        options.policy = PolicyName::Off;
        let draft = self.model.draft.formats(spec.layers)?;
        let copies = |model: &Model| {
            let memory = model.memory();
            let limits = model.limits();
            let positions = u64::from(limits.pages) * u64::from(limits.page_tokens);
            let of = shadow.as_ref().unwrap_or(&checkpoint);
            let width = |tensor| width(of, tensor);
            Copies {
                draft: Copy {
                    format: self.model.draft.to_string(),
                    bytes: draft_bytes(&checkpoint, &draft),
                },
                shadow: Copy {
                    format: precision(of).into(),
                    bytes: WeightBytes::of_shadow(of.spec(), width),
                },
                cache_bytes: memory.kv / positions.max(1),
            }
        };
        let (model, engine) = progress::load(options)?;
        let copies = copies(&model);
        let sweep = match model.processor() {
            Processor::Cpu => Some(ReadSweep::new(&machine, threads)?),
            Processor::Cuda(_) => None,
        };
        let names = ModelNames {
            path: self.model.model.display().to_string(),
            fingerprint: checkpoint.fingerprint().to_owned(),
            draft: model.identity(Weights::Draft).to_owned(),
            shadow: model.identity(Weights::Full).to_owned(),
        };
        let machine = Machine { kernels: model.kernels().to_vec(), ..machine };
        Ok(Setting { engine, copies, sweep, machine, names, threads, json: self.json })
    }
}

impl Setting {
    /// Runs a measurement behind a bar of so many ticks.
    pub(crate) fn measure<T>(
        &mut self,
        name: &'static str,
        ticks: u64,
        measurement: impl FnOnce(&mut Session<'_, AnyExecutor>) -> Result<T, rewind_bench::BenchError>,
    ) -> Result<T> {
        let bar = progress::bar(ticks, name);
        let mut tick = || bar.inc(1);
        let mut session = Session {
            executor: self.engine.executor_mut(),
            copies: &self.copies,
            sweep: self.sweep.as_mut(),
            tick: &mut tick,
        };
        let measured = measurement(&mut session);
        bar.finish_and_clear();
        Ok(measured?)
    }

    /// Prints what was measured: one object, or the circumstances and what `print` makes of it.
    pub(crate) fn report<D: serde::Serialize>(
        self,
        command: &str,
        details: D,
        print: impl FnOnce(&D) -> Result<()>,
    ) -> Result<()> {
        let report = Report {
            command: command.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            machine: self.machine,
            model: self.names,
            threads: self.threads,
            bandwidth: self.sweep.map(ReadSweep::bandwidth),
            details,
        };
        if self.json {
            return output::json(&report);
        }
        circumstances(&report)?;
        print(&report.details)
    }
}

fn circumstances<D>(report: &Report<D>) -> Result<()> {
    let Report { machine, model, threads, bandwidth, .. } = report;
    output::line(format_args!("{}: {} cores, {}", machine.cpu, machine.cores, machine.system))?;
    output::line(format_args!("{} ({})", model.path, model.fingerprint))?;
    output::line(format_args!("draft {}\nshadow {}", model.draft, model.shadow))?;
    output::line(format_args!("{threads} threads"))?;
    if let Some([one, five, _]) = machine.load_average {
        output::line(format_args!(
            "load average at the start {one:.2} (1 minute), {five:.2} (5 minutes){}",
            if one > 0.3 { ": something else was running, figures may be low" } else { "" }
        ))?;
    }
    if let Some(bandwidth) = bandwidth {
        let mut table = Table::new(&["threads", "memory read, GB/s", "95 %"]);
        for one in &bandwidth.by_threads {
            let rate = one.gigabytes_per_second.interval();
            table.row([
                one.threads.to_string(),
                format!("{:.1}", rate.median),
                format!("{:.1} – {:.1}", rate.low, rate.high),
            ]);
        }
        output::line("")?;
        table.print()?;
    }
    output::line("")
}

/// Bytes that the keys and values of all sequences can need on any executor: single precision, heads
/// padded to whole vectors, sequences to whole pages and the longest window.
fn kv_memory(spec: &ModelSpec, room: Room) -> u64 {
    const PADDING: usize = 64;
    let positions = (room.positions + MAX_WINDOW as usize).next_multiple_of(PADDING);
    let head = spec.head_dim.next_multiple_of(PADDING);
    (2 * size_of::<f32>() * spec.layers * spec.kv_heads * head * room.slots * positions) as u64
}

/// Bytes of the draft that a step reads.
fn draft_bytes(checkpoint: &Checkpoint, draft: &DraftFormats) -> WeightBytes {
    let spec = checkpoint.spec();
    match draft {
        DraftFormats::Mixture(mixture) => WeightBytes::of_draft(spec, mixture),
        // A tensor that cannot be read has been an error already.
        DraftFormats::Stored => WeightBytes::of_stored(spec, |tensor| {
            checkpoint.stored_format(tensor).unwrap_or(Some(Format::F16))
        }),
    }
}

/// Bytes of a weight of the shadow: blocks of fewer bits are unpacked to half precision.
fn width(checkpoint: &Checkpoint, tensor: TensorName) -> u64 {
    match checkpoint.float_format(tensor) {
        Ok(None) => 4,
        _ => 2,
    }
}

/// Precision of the shadow's linear layers.
fn precision(checkpoint: &Checkpoint) -> &'static str {
    use rewind_checkpoint::LayerTensor;
    match checkpoint.float_format(TensorName::Layer(0, LayerTensor::Gate)) {
        Ok(None) => "f32",
        Ok(Some(Format::Bf16)) => "bf16",
        _ => "f16",
    }
}
