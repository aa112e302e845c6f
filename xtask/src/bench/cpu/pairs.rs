//! Pairs of measurements, and what they say together.
//!
//! A shared machine is faster in one minute than in the next. So a ratio is taken within a pair, whose sides ran one
//! right after the other, and only then the median over the rounds.

use anyhow::{Context, Result};
use serde::Serialize;

use super::super::spread::Spread;
use super::sides::{Bytes, Ours, Theirs};
use super::work::{Cell, Contest, Task};

/// All pairs of one comparison.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) contest: Contest,
    pub(super) threads: u32,
    pub(super) cell: Cell,
    /// What a pass of Rewind's reads.
    pub(super) bytes: Bytes,
    /// One for each round.
    pub(super) pairs: Vec<Pair>,
}

/// One round's figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Pair {
    /// Rewind's tokens a second.
    pub(super) ours: f64,
    /// llama.cpp's.
    pub(super) theirs: f64,
    /// Bytes a second that the memory gave, as Rewind's process measured it.
    pub(super) bandwidth: f64,
    /// Of the machine, between the two.
    #[serde(flatten)]
    pub(super) between: Between,
}

/// What is measured between the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Between {
    /// f32 operations a second that the processor can do at most.
    pub(super) peak: f64,
    /// Cores that other programs kept busy.
    pub(super) others: f64,
}

/// Adds what both sides measured for `task` to the lines it belongs to, which are made when they are new.
///
/// # Errors
/// A side left something out.
pub(super) fn add(
    lines: &mut Vec<Line>,
    task: Task,
    (ours, theirs): (&Ours, &Theirs),
    between: Between,
) -> Result<()> {
    let Task { contest, threads, work } = task;
    for cell in Cell::of(work) {
        let speed = ours.speed(cell).with_context(|| format!("Rewind told nothing of {cell}"))?;
        let peer = theirs
            .tokens_per_second(cell)
            .with_context(|| format!("llama.cpp told nothing of {cell}"))?;
        let pair = Pair {
            ours: speed.tokens_per_second,
            theirs: peer,
            bandwidth: ours.bandwidth(),
            between,
        };
        let same =
            |line: &&mut Line| (line.contest, line.threads, line.cell) == (contest, threads, cell);
        match lines.iter_mut().find(same) {
            Some(line) => line.pairs.push(pair),
            None => {
                lines.push(Line { contest, threads, cell, bytes: speed.bytes, pairs: vec![pair] });
            }
        }
    }
    Ok(())
}

impl Line {
    /// Rewind's tokens a second.
    pub(super) fn ours(&self) -> Spread {
        self.spread(|pair| pair.ours)
    }

    /// llama.cpp's.
    pub(super) fn theirs(&self) -> Spread {
        self.spread(|pair| pair.theirs)
    }

    /// How many times as fast Rewind was.
    pub(super) fn ratio(&self) -> Spread {
        self.spread(|pair| pair.ours / pair.theirs)
    }

    /// The memory's bytes a second.
    pub(super) fn bandwidth(&self) -> Spread {
        self.spread(|pair| pair.bandwidth)
    }

    /// Any other figure of a pair.
    pub(super) fn spread(&self, figure: impl Fn(&Pair) -> f64) -> Spread {
        Spread::of(self.pairs.iter().map(figure))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::work::{CONTESTS, Work};
    use super::*;

    const BETWEEN: Between = Between { peak: 1e11, others: 0.0 };

    fn task(work: Work) -> Task {
        Task { contest: CONTESTS[0], threads: 2, work }
    }

    fn ours(speeds: &[(u32, f64)]) -> Ours {
        let name = if speeds.len() == 1 { "decode" } else { "batch" };
        let measurement = |&(batch, speed): &(u32, f64)| {
            let step = f64::from(batch) / speed;
            let samples = json!({ "median": step, "low": step, "high": step, "samples": [step] });
            json!({
                "name": name, "weights": "draft", "format": "int4-g32", "batch": batch, "context": 128,
                "step_seconds": samples, "step_bytes": 90_000_000, "head_bytes": 30_000_000,
            })
        };
        let bandwidth = json!({ "threads": 2, "gigabytes_per_second": { "median": 20.5 } });
        serde_json::from_value(json!({
            "command": name, "version": "1", "machine": {}, "threads": 2, "bandwidth": bandwidth,
            "measurements": speeds.iter().map(measurement).collect::<Vec<_>>(),
        }))
        .unwrap()
    }

    fn theirs(speeds: &[(u32, f64)]) -> Theirs {
        let name = if speeds.len() == 1 { "decode" } else { "batch" };
        let measurement = |&(batch, speed): &(u32, f64)| {
            let step = f64::from(batch) / speed;
            json!({ "name": name, "batch": batch, "median_step_seconds": step })
        };
        let measurements: Vec<_> = speeds.iter().map(measurement).collect();
        serde_json::from_value(
            json!({ "version": "1", "system": "", "measurements": measurements }),
        )
        .unwrap()
    }

    #[test]
    fn ratios_are_taken_within_pairs() {
        let mut lines = Vec::new();
        // The machine slows to half for a while: neither side's median tells the ratio, 2, that every pair does.
        for (our, their) in [(256.0, 128.0), (128.0, 64.0), (64.0, 32.0), (512.0, 256.0)] {
            let (our, their) = (ours(&[(1, our)]), theirs(&[(1, their)]));
            add(&mut lines, task(Work::Decode), (&our, &their), BETWEEN).unwrap();
        }
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].ratio(), Spread { median: 2.0, low: 2.0, high: 2.0 });
        assert_eq!(lines[0].ours(), Spread { median: 192.0, low: 64.0, high: 512.0 });
        assert_eq!(lines[0].bandwidth().median, 20.5e9);
        assert_eq!(lines[0].bytes, Bytes { all: 90e6, head: 30e6 });
    }

    #[test]
    fn a_batch_gives_a_line_for_each_size_and_order_does_not_matter() {
        let mut lines = Vec::new();
        let our = ours(&[(1, 9.0), (16, 160.0), (4, 40.0), (8, 80.0)]);
        let their = theirs(&[(8, 40.0), (4, 10.0), (16, 160.0)]);
        add(&mut lines, task(Work::Batch), (&our, &their), BETWEEN).unwrap();
        let ratios: Vec<_> =
            lines.iter().map(|line| (line.cell.sequences, line.ratio().median)).collect();
        assert_eq!(ratios, [(4, 4.0), (8, 2.0), (16, 1.0)]);
    }

    #[test]
    fn a_figure_left_out_is_an_error_that_names_it() {
        let (our, their) = (ours(&[(4, 1.0), (8, 1.0)]), theirs(&[(4, 1.0), (8, 1.0), (16, 1.0)]));
        let error = add(&mut Vec::new(), task(Work::Batch), (&our, &their), BETWEEN).unwrap_err();
        assert_eq!(error.to_string(), "Rewind told nothing of batch 16");
        let our = ours(&[(1, 1.0)]);
        let error = add(&mut Vec::new(), task(Work::Decode), (&our, &their), BETWEEN);
        assert_eq!(error.unwrap_err().to_string(), "llama.cpp told nothing of decode");
    }

    #[test]
    fn spreads() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, low: 1.0, high: 3.0 });
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert!(of(&[]).median.is_nan());
        assert_eq!(format!("{:.1}", of(&[1.0, 2.0, 4.0])), "2.0 (1.0–4.0)");
        assert_eq!(of(&[1.25]).to_string(), "1.25");
        assert_eq!(of(&[1.0, 2.0]).times(10.0), Spread { median: 15.0, low: 10.0, high: 20.0 });
    }
}
