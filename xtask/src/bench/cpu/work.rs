//! What is compared with what, and what the project asks of each comparison.

use std::fmt;

use clap::ValueEnum;

/// Two copies of the same weights that ought to cost the same to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contest {
    /// Rewind's copy.
    pub(super) ours: Copy,
    /// llama.cpp's format, by its name there.
    pub(super) theirs: &'static str,
    /// Whether the project has a target for it; the others are there for completeness, and measured less.
    pub(super) main: bool,
}

/// One of Rewind's copies of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copy {
    /// The quantized one, in this format.
    Draft(&'static str),
    /// The full-precision one of the demo model.
    Shadow,
    /// The full-precision one of the demo model as this file of the peer's, whose numbers Rewind keeps as they are.
    ShadowOf(&'static str),
}

impl Copy {
    /// Name of the number format.
    pub(super) fn format(self) -> &'static str {
        match self {
            Self::Draft(format) => format,
            Self::Shadow => "f16",
            Self::ShadowOf("BF16") => "bf16",
            Self::ShadowOf(file) => file,
        }
    }
}

impl fmt::Display for Contest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copy = match self.ours {
            Copy::Draft(_) => "draft",
            Copy::Shadow | Copy::ShadowOf(_) => "shadow",
        };
        write!(f, "{copy} `{}` / `{}`", self.ours.format(), self.theirs)
    }
}

/// All there are.
pub(super) const CONTESTS: [Contest; 5] = [
    Contest { ours: Copy::Draft("int4-g32"), theirs: "Q4_0", main: true },
    Contest { ours: Copy::Draft("int8"), theirs: "Q8_0", main: true },
    Contest { ours: Copy::Shadow, theirs: "F16", main: true },
    Contest { ours: Copy::Draft("int8-g32"), theirs: "Q8_0", main: false },
    Contest { ours: Copy::ShadowOf("BF16"), theirs: "BF16", main: false },
];

/// What one process of each side measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Work {
    /// Steps of one sequence.
    Decode,
    /// One prompt.
    Prefill,
    /// Steps of several sequences.
    Batch,
}

impl Work {
    /// Both sides' name for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
            Self::Batch => "batch",
        }
    }
}

/// Timed steps of `decode` and `batch`, from an empty cache.
pub(super) const STEPS: u32 = 128;
/// Tokens of a prompt.
pub(super) const PROMPT: u32 = 256;
/// Prompts that a process reads: one takes less time than a figure needs.
pub(super) const PREFILLS: u32 = 5;
/// Sequences of `batch`.
pub(super) const BATCHES: [u32; 3] = [4, 8, 16];

/// One figure of each side: what `work` gives for this many rows in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) work: Work,
    /// Sequences in a step; 1 for a prompt.
    pub(super) sequences: u32,
}

impl Cell {
    /// Those that one process of `work` measures.
    pub(super) fn of(work: Work) -> Vec<Self> {
        match work {
            Work::Decode | Work::Prefill => vec![Self { work, sequences: 1 }],
            Work::Batch => BATCHES.map(|sequences| Self { work, sequences }).to_vec(),
        }
    }

    /// Tokens that one pass brings.
    pub(super) fn tokens(self) -> u32 {
        match self.work {
            Work::Decode | Work::Batch => self.sequences,
            Work::Prefill => PROMPT,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.work {
            Work::Decode => f.write_str("decode"),
            Work::Prefill => write!(f, "prefill {PROMPT}"),
            Work::Batch => write!(f, "batch {}", self.sequences),
        }
    }
}

/// What is run in one go: a process of each side, one right after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) contest: Contest,
    pub(super) threads: u32,
    pub(super) work: Work,
}

/// Threads of the figures that have targets.
pub(super) const THREADS: u32 = 2;

/// The tasks of one round; `quick` keeps those with targets and what needs no batch.
pub(super) fn tasks(quick: bool) -> Vec<Task> {
    let mut tasks = Vec::new();
    for threads in [THREADS, 1] {
        for contest in CONTESTS {
            for work in [Work::Decode, Work::Prefill, Work::Batch] {
                let less = quick || !contest.main;
                let left_out = quick && !contest.main
                    || less && (threads != THREADS || work == Work::Batch && !contest.main);
                if !left_out {
                    tasks.push(Task { contest, threads, work });
                }
            }
        }
    }
    tasks
}

/// The ratio of Rewind's speed to llama.cpp's that the project asks for, if it asks for one.
pub(super) fn target(contest: Contest, threads: u32, cell: Cell) -> Option<f64> {
    if threads != THREADS {
        return None;
    }
    match (contest.ours, cell.work, cell.sequences) {
        (Copy::Draft("int4-g32" | "int8"), Work::Decode, _) => Some(1.25),
        (Copy::Draft("int4-g32"), Work::Batch, 16) => Some(1.3),
        (Copy::Draft("int4-g32") | Copy::Shadow, Work::Prefill, _) => Some(1.0),
        (Copy::Shadow, Work::Decode, _) => Some(1.05),
        _ => None,
    }
}

/// The share of the memory's bandwidth that a decode step of the shadow has to reach, on [`THREADS`] threads.
pub(super) const BANDWIDTH_TARGET: f64 = 0.88;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_measured_even_in_a_quick_run() {
        let mut targets = Vec::new();
        for Task { contest, threads, work } in tasks(true) {
            targets
                .extend(Cell::of(work).iter().filter_map(|cell| target(contest, threads, *cell)));
        }
        targets.sort_by(f64::total_cmp);
        assert_eq!(targets, [1.0, 1.0, 1.05, 1.25, 1.25, 1.3]);
    }

    #[test]
    fn a_round_measures_each_thing_once() {
        let all = tasks(false);
        for (place, task) in all.iter().enumerate() {
            assert!(!all[..place].contains(task), "{task:?}");
        }
        // Three contests with three kinds of work on two thread counts, and two contests with two kinds on one.
        assert_eq!(all.len(), 3 * 3 * 2 + 2 * 2);
        assert!(tasks(true).iter().all(|task| all.contains(task)));
    }

    #[test]
    fn names_say_what_is_compared() {
        assert_eq!(CONTESTS[0].to_string(), "draft `int4-g32` / `Q4_0`");
        assert_eq!(CONTESTS[4].to_string(), "shadow `bf16` / `BF16`");
        let cells: Vec<String> = Work::value_variants()
            .iter()
            .flat_map(|work| Cell::of(*work))
            .map(|cell| cell.to_string())
            .collect();
        assert_eq!(cells, ["decode", "prefill 256", "batch 4", "batch 8", "batch 16"]);
    }
}
