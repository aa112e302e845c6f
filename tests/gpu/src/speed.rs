//! What passes cost: draft steps, shadow passes, the monitor, prompts.
//!
//! A step reads every weight and every key and value once, so its floor is known: bytes over the rate of
//! a copy on the same device. Every table says which fraction of that rate was reached.

use anyhow::Result;
use rewind_bench::{Interval, median};
use rewind_cuda::CudaError;
use rewind_engine::Weights;
use rewind_formats::{Format, Group};
use rewind_kernels::{Device, DeviceError};

use crate::budget::Budget;
use crate::cases::is_lost;
use crate::report::{Findings, Outcome, Table};
use crate::rig::{Copies, Rig, Room, Step};
use crate::shapes::Shape;
use crate::traffic;

/// Opens the device anew; what was on it is gone.
pub type Open<'a, D> = &'a dyn Fn() -> Result<D>;

/// The draft that is measured first, and where one has to do for all.
pub const DRAFT: Format = Format::Int4Group(Group::G32);

/// Every draft format, the most telling first.
const DRAFTS: [Format; 5] = [
    DRAFT,
    Format::Bf16,
    Format::Int8,
    Format::Int8Group(Group::G32),
    Format::Int4Group(Group::G128),
];

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Sequences beside each other.
    pub batches: &'static [usize],
    /// Positions that a decode step sees.
    pub contexts: &'static [usize],
    /// Rows of a shadow pass.
    pub verified: &'static [usize],
    /// Batches of the monitor.
    pub monitored: &'static [usize],
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Timed passes of a figure.
    pub passes: usize,
    /// Rounds of the shadow's figures; their median counts.
    pub rounds: usize,
    /// Pairs of the monitor's.
    pub pairs: usize,
}

impl Extent {
    /// What `gpu-bench` measures.
    pub const FULL: Self = Self {
        batches: &[1, 4, 16, 64],
        contexts: &[512, 8192],
        verified: &[1, 2, 4, 8, 16],
        monitored: &[1, 16],
        prompt: 512,
        passes: 50,
        rounds: 3,
        pairs: 40,
    };
}

/// A measured decode step.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Name of the model's shape.
    pub shape: &'static str,
    /// Format of the draft.
    pub draft: Format,
    /// Sequences.
    pub batch: usize,
    /// Positions that each row sees.
    pub context: usize,
    /// Of a pass.
    pub seconds: f64,
    /// That a pass reads.
    pub bytes: u64,
}

/// Draft steps of every shape and format, over every batch and context. `rate` is that of a copy, bytes
/// a second. What was measured is added to `cells`.
///
/// # Errors
/// The device fails; `cells` holds what was measured before.
pub fn decode<D: Device>(
    open: Open<'_, D>,
    shapes: &[Shape],
    extent: &Extent,
    rate: f64,
    budget: &Budget,
    findings: &mut Findings,
    cells: &mut Vec<Cell>,
) -> Result<Outcome> {
    let ran = decode_cells(open, shapes, extent, budget, findings, cells);
    let title = format!(
        "A draft step with statistics and gate, mean of {} passes, two in flight",
        extent.passes
    );
    let columns = ["shape", "draft", "batch", "context", "ms", "tokens/s", "GB read", "of a copy"];
    let mut table = Table::new(title, &columns);
    for &Cell { shape, draft, batch, context, seconds, bytes } in cells.iter() {
        table.row([
            shape.to_owned(),
            draft.to_string(),
            batch.to_string(),
            context.to_string(),
            milliseconds(seconds),
            format!("{:.0}", batch as f64 / seconds),
            format!("{:.2}", bytes as f64 / 1e9),
            fraction(bytes, seconds, rate),
        ]);
    }
    findings.tables.push(table);
    ran?;
    let headline = cells.first().map(|&Cell { shape, draft, batch, context, seconds, bytes }| {
        format!(
            "{shape} {draft}, batch {batch} at {context}: {} ms, {} of a copy's rate ({} figures)",
            milliseconds(seconds),
            fraction(bytes, seconds, rate),
            cells.len()
        )
    });
    Ok(ended(headline))
}

fn decode_cells<D: Device>(
    open: Open<'_, D>,
    shapes: &[Shape],
    extent: &Extent,
    budget: &Budget,
    findings: &mut Findings,
    cells: &mut Vec<Cell>,
) -> Result<()> {
    let most = |values: &[usize]| values.iter().copied().max().unwrap_or(1);
    let (sequences, context) = (most(extent.batches), most(extent.contexts));
    let room = Room { sequences, context, rows: extent.prompt.max(sequences) };
    for draft in DRAFTS {
        let copies = Copies { draft: Some(draft), shadow: false };
        let all =
            each(open, shapes, copies, room, budget, findings, |Shape { name, spec }, rig| {
                let mut notes = Vec::new();
                for (&batch, &context) in pairs(extent.batches, extent.contexts) {
                    let what = format!("{name}, {draft}, batch {batch} at {context}");
                    if budget.is_over() {
                        notes.push(format!("No time was left from {what} on."));
                        break;
                    }
                    if !rig.fits(batch, context) {
                        let gb = traffic::cache(spec, batch, context) as f64 / 1e9;
                        notes
                            .push(format!("{what} does not fit: keys and values take {gb:.1} GB."));
                        continue;
                    }
                    let step = Step { batch, context, monitored: true };
                    let seconds = rig.decode(Weights::Draft, step, extent.passes)?;
                    println!("{what}: {} ms", milliseconds(seconds));
                    let bytes =
                        traffic::weights(spec, draft) + traffic::cache(spec, batch, context);
                    cells.push(Cell { shape: name, draft, batch, context, seconds, bytes });
                }
                Ok(notes)
            })?;
        if !all {
            break;
        }
    }
    Ok(())
}

/// Every one of the first with every one of the second.
fn pairs<'a, T>(first: &'a [T], second: &'a [T]) -> impl Iterator<Item = (&'a T, &'a T)> {
    first.iter().flat_map(move |a| second.iter().map(move |b| (a, b)))
}

/// Shadow passes over 1 to 16 generated rows of one sequence: what verification costs.
///
/// # Errors
/// The device fails.
pub fn shadow<D: Device>(
    open: Open<'_, D>,
    shapes: &[Shape],
    extent: &Extent,
    rate: f64,
    budget: &Budget,
    findings: &mut Findings,
) -> Result<Outcome> {
    let context = extent.contexts.first().copied().unwrap_or(1);
    let title = format!(
        "A shadow pass over rows of one sequence at {context} positions, median of {} rounds",
        extent.rounds
    );
    let mut table = Table::new(title, &["shape", "rows", "ms", "to one row", "of a copy"]);
    let mut headline = None;
    let copies = Copies { draft: None, shadow: true };
    let room = Room { sequences: 1, context, rows: extent.prompt };
    let ran = each(open, shapes, copies, room, budget, findings, |Shape { name, spec }, rig| {
        let mut times = vec![Vec::new(); extent.verified.len()];
        for _ in 0..extent.rounds {
            for (times, &rows) in times.iter_mut().zip(extent.verified) {
                times.push(rig.verify(rows, context, extent.passes)?);
            }
        }
        let times: Vec<f64> = times.iter().map(|times| median(times)).collect();
        for (&rows, &seconds) in extent.verified.iter().zip(&times) {
            let bytes = traffic::weights(spec, Format::Bf16) + traffic::cache(spec, 1, context);
            let ratio = seconds / times[0];
            table.row([
                (*name).to_owned(),
                rows.to_string(),
                milliseconds(seconds),
                format!("{ratio:.3}"),
                fraction(bytes, seconds, rate),
            ]);
            if rows == 8 {
                headline.get_or_insert(format!("{name}: 8 rows cost {ratio:.3} times one row"));
            }
        }
        Ok(Vec::new())
    });
    findings.tables.push(table);
    ran?;
    Ok(ended(headline))
}

/// A draft step with statistics and entropy gate against one that only chooses its best token.
///
/// # Errors
/// The device fails.
pub fn monitor<D: Device>(
    open: Open<'_, D>,
    shapes: &[Shape],
    extent: &Extent,
    budget: &Budget,
    findings: &mut Findings,
) -> Result<Outcome> {
    let context = extent.contexts.first().copied().unwrap_or(1);
    let title = format!(
        "What the monitor adds to a draft step ({DRAFT}, {context} positions): median of {} pairs of {} passes, 95 % interval",
        extent.pairs, extent.passes
    );
    let mut table = Table::new(title, &["shape", "batch", "ms without", "adds", "interval"]);
    let mut headline = None;
    let sequences = extent.monitored.iter().copied().max().unwrap_or(1);
    let room = Room { sequences, context, rows: extent.prompt.max(sequences) };
    let copies = Copies { draft: Some(DRAFT), shadow: false };
    let ran = each(open, shapes, copies, room, budget, findings, |Shape { name, .. }, rig| {
        for &batch in extent.monitored {
            let step = Step { batch, context, monitored: false };
            let pairs = rig.monitor(Weights::Draft, step, extent.pairs, extent.passes)?;
            let without: Vec<f64> = pairs.iter().map(|&[without, _]| without).collect();
            let added: Vec<f64> =
                pairs.iter().map(|&[without, with]| 100.0 * (with / without - 1.0)).collect();
            let Interval { median: added, low, high } = Interval::of(&added);
            let interval = format!("{low:+.2} to {high:+.2} %");
            let line = format!("{name}, batch {batch}: {added:+.2} % ({interval})");
            println!("{line}");
            table.row([
                (*name).to_owned(),
                batch.to_string(),
                milliseconds(median(&without)),
                format!("{added:+.2} %"),
                interval,
            ]);
            headline.get_or_insert(line);
        }
        Ok(Vec::new())
    });
    findings.tables.push(table);
    ran?;
    Ok(ended(headline))
}

/// A prompt in one pass, by the draft and by the shadow.
///
/// # Errors
/// The device fails.
pub fn prefill<D: Device>(
    open: Open<'_, D>,
    shapes: &[Shape],
    extent: &Extent,
    budget: &Budget,
    findings: &mut Findings,
) -> Result<Outcome> {
    let tokens = extent.prompt;
    let title = format!("A prompt of {tokens} tokens in one pass");
    let mut table = Table::new(title, &["shape", "weights", "ms", "tokens/s"]);
    let mut headline = None;
    let room = Room { sequences: 1, context: tokens, rows: tokens };
    let copies = Copies { draft: Some(DRAFT), shadow: true };
    let ran = each(open, shapes, copies, room, budget, findings, |Shape { name, .. }, rig| {
        for (weights, what) in
            [(Weights::Draft, DRAFT.to_string()), (Weights::Full, "bf16, the shadow".to_owned())]
        {
            // A prompt is long enough to need no more.
            let seconds = rig.prefill(weights, tokens, extent.passes.div_ceil(5))?;
            let tokens_a_second = format!("{:.0}", tokens as f64 / seconds);
            headline.get_or_insert(format!("{name}, {what}: {tokens_a_second} tokens/s"));
            table.row([(*name).to_owned(), what, milliseconds(seconds), tokens_a_second]);
        }
        Ok(Vec::new())
    });
    findings.tables.push(table);
    ran?;
    Ok(ended(headline))
}

/// Makes a rig of each shape and measures on it, which may give notes. Returns whether there was time
/// for all.
fn each<D: Device>(
    open: Open<'_, D>,
    shapes: &[Shape],
    copies: Copies,
    room: Room,
    budget: &Budget,
    findings: &mut Findings,
    mut measure: impl FnMut(&Shape, &mut Rig<D>) -> Result<Vec<String>>,
) -> Result<bool> {
    for shape in shapes {
        if budget.is_over() {
            let draft = said(copies);
            findings.notes.push(format!("No time was left from {}, {draft} on.", shape.name));
            return Ok(false);
        }
        if let Some(mut rig) = made(open()?, shape.name, &shape.spec, copies, room, findings)? {
            findings.notes.extend(measure(shape, &mut rig)?);
        }
    }
    Ok(true)
}

/// A rig, or a note that it does not fit.
fn made<D: Device>(
    device: D,
    name: &str,
    spec: &rewind_checkpoint::ModelSpec,
    copies: Copies,
    room: Room,
    findings: &mut Findings,
) -> Result<Option<Rig<D>>> {
    match Rig::new(device, spec, copies, room) {
        Ok(rig) => Ok(Some(rig)),
        Err(error) if !is_lost(&error) && is_full(&error) => {
            findings.notes.push(format!("{name}, {} does not fit: {error:#}.", said(copies)));
            Ok(None)
        }
        Err(error) => Err(error.context(format!("{name} cannot be made"))),
    }
}

/// The weights, for people.
fn said(copies: Copies) -> String {
    copies.draft.map_or_else(|| "shadow alone".to_owned(), |draft| draft.to_string())
}

/// Whether memory was refused.
fn is_full(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(CudaError::Memory { .. } | CudaError::Device(DeviceError::OutOfMemory { .. }))
    )
}

fn ended(headline: Option<String>) -> Outcome {
    match headline {
        Some(headline) => Outcome::Passed(headline),
        None => Outcome::Skipped("nothing was measured".to_owned()),
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.3}", seconds * 1e3)
}

/// Share of a copy's rate at which so many bytes were read.
fn fraction(bytes: u64, seconds: f64, rate: f64) -> String {
    format!("{:.1} %", 100.0 * bytes as f64 / seconds / rate)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rewind_checkpoint::Architecture;
    use rewind_executor_suite::small_spec;
    use rewind_kernels_emulator::{Emulator, Settings};

    use super::*;
    use crate::rig::tests::emulator;

    const SMALL: Extent = Extent {
        batches: &[1, 3],
        contexts: &[33, 64],
        verified: &[1, 8],
        monitored: &[1],
        prompt: 33,
        passes: 1,
        rounds: 1,
        pairs: 3,
    };

    fn small() -> Vec<Shape> {
        vec![Shape { name: "small", spec: small_spec(Architecture::Llama, 300) }]
    }

    fn hour() -> Budget {
        Budget::new(Duration::from_secs(3600))
    }

    #[test]
    fn decode_measures_every_cell_and_counts_its_bytes() {
        let (mut findings, mut cells): (Findings, _) = Default::default();
        let outcome =
            decode(&emulator, &small(), &SMALL, 1e9, &hour(), &mut findings, &mut cells).unwrap();
        assert_eq!(cells.len(), 5 * 2 * 2);
        assert_eq!(findings.tables[0].rows.len(), cells.len());
        assert!(
            matches!(&outcome, Outcome::Passed(line) if line.starts_with("small int4-g32, batch 1 at 33: "))
        );
        // Two layers, keys and values, two heads of 12 padded to 32, two bytes.
        let spec = &small()[0].spec;
        let cache = 3 * 64 * 2 * 2 * 2 * 32 * 2;
        let last = cells.iter().rfind(|cell| cell.draft == Format::Bf16).unwrap();
        assert_eq!((last.batch, last.context), (3, 64));
        assert_eq!(last.bytes, traffic::weights(spec, Format::Bf16) + cache);
    }

    #[test]
    fn the_other_figures_are_measured() {
        let mut findings = Findings::default();
        let shadow = shadow(&emulator, &small(), &SMALL, 1e9, &hour(), &mut findings).unwrap();
        assert!(
            matches!(&shadow, Outcome::Passed(line) if line.starts_with("small: 8 rows cost ")),
            "{shadow:?}"
        );
        let monitor = monitor(&emulator, &small(), &SMALL, &hour(), &mut findings).unwrap();
        assert!(
            matches!(&monitor, Outcome::Passed(line) if line.starts_with("small, batch 1: ")),
            "{monitor:?}"
        );
        let prefill = prefill(&emulator, &small(), &SMALL, &hour(), &mut findings).unwrap();
        assert!(
            matches!(&prefill, Outcome::Passed(line) if line.starts_with("small, int4-g32: ")),
            "{prefill:?}"
        );
        let rows: Vec<_> = findings.tables.iter().map(|table| table.rows.len()).collect();
        assert_eq!(rows, [2, 1, 2]);
        assert_eq!(findings.notes, Vec::<String>::new());
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let tight = |memory| {
            move || Ok(Emulator::new(Settings { checks: false, memory, ..Settings::default() })?)
        };
        let (mut findings, mut cells): (Findings, _) = Default::default();
        // Room for weights and buffers, not for all keys and values.
        let extent = Extent { batches: &[1, 64], contexts: &[64, 4096], ..SMALL };
        let open = tight(64 << 20);
        decode(&open, &small(), &extent, 1e9, &hour(), &mut findings, &mut cells).unwrap();
        assert!(cells.iter().any(|cell| cell.batch == 64 && cell.context == 64));
        assert!(!cells.iter().any(|cell| cell.batch == 64 && cell.context == 4096));
        let note = "small, int4-g32, batch 64 at 4096 does not fit: keys and values take 0.1 GB.";
        assert_eq!(findings.notes[0], note);

        let mut findings = Findings::default();
        let outcome = shadow(&tight(64 << 10), &small(), &SMALL, 1e9, &hour(), &mut findings);
        assert!(matches!(outcome, Ok(Outcome::Skipped(_))), "{outcome:?}");
        assert!(
            findings.notes[0].starts_with("small, shadow alone does not fit: "),
            "{findings:?}"
        );
    }

    #[test]
    fn time_that_is_over_is_said() {
        let (mut findings, mut cells): (Findings, _) = Default::default();
        let over = Budget::new(Duration::ZERO);
        let outcome =
            decode(&emulator, &small(), &SMALL, 1e9, &over, &mut findings, &mut cells).unwrap();
        assert!(matches!(outcome, Outcome::Skipped(_)) && cells.is_empty());
        assert_eq!(findings.notes, ["No time was left from small, int4-g32 on."]);
    }

    #[test]
    fn what_was_measured_before_an_error_is_kept() {
        let opened = std::cell::Cell::new(0);
        let open = || {
            opened.set(opened.get() + 1);
            if opened.get() > 1 { anyhow::bail!("the driver is gone") } else { emulator() }
        };
        let (mut findings, mut cells): (Findings, _) = Default::default();
        let ended = decode(&open, &small(), &SMALL, 1e9, &hour(), &mut findings, &mut cells);
        assert_eq!(ended.unwrap_err().to_string(), "the driver is gone");
        assert_eq!((cells.len(), findings.tables[0].rows.len()), (4, 4));
    }

    #[test]
    fn a_fraction_is_of_the_copys_rate() {
        assert_eq!(fraction(3_000_000_000, 0.002, 2e12), "75.0 %");
    }
}
