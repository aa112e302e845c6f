//! The document: every word of it but the remarks is written by the command.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::super::markdown::{count, table};
use super::super::remarks;
use super::super::spread::Spread;
use super::others::QUIET;
use super::pairs::Line;
use super::sides::{Bytes, File};
use super::work::{
    BANDWIDTH_TARGET, BATCHES, Contest, Copy, PREFILLS, PROMPT, STEPS, THREADS, Task, Work, target,
};
use super::{Run, sides};
use crate::setup::CMAKE_ARGUMENTS;

/// The whole file. `plot` is the name of the picture beside it.
pub(super) fn write(run: &Run, remarks: &str, plot: &str) -> String {
    let mut text = format!(
        "# Speed on a CPU, beside llama.cpp\n\n\
         Written by `{}` on {}; only the remarks are kept from one time to the next.\n\
         Rewind {} ({}), llama.cpp of llama-cpp-python {}, {}, {}. Model: SmolLM2-135M-Instruct.\n",
        run.command,
        run.date,
        run.version,
        run.revision,
        run.peer_version,
        count(run.rounds, "round"),
        run.machine.get("cpu").and_then(Value::as_str).unwrap_or("an unknown processor"),
    );
    if !quiet(run) {
        let _ = write!(
            text,
            "\n**Other programs kept {:.1} cores busy meanwhile. These figures say little, those of {THREADS} threads\n\
             least: measure again on a machine that does nothing else.**\n",
            run.others(),
        );
    }
    let sections = [
        ("What the project asks for", targets(run)),
        ("Ratios", format!("![Rewind's speed in llama.cpp's, for every comparison]({plot})\n")),
        ("Tokens a second", speeds(run)),
        ("Bytes and bandwidth", bandwidth(run)),
        ("Prompts and arithmetic", arithmetic(run)),
        ("Remarks", remarks::marked(remarks)),
        ("How it was measured", method(run)),
        ("Machine", machine(run)),
    ];
    for (title, section) in sections {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n## {title}\n\n{section}");
    }
    text
}

fn quiet(run: &Run) -> bool {
    run.others().median <= QUIET
}

/// Medians against targets. Nothing is judged by figures that say little.
fn targets(run: &Run) -> String {
    let verdict = |found, target| match quiet(run) {
        true => verdict(found, target),
        false => "not judged".into(),
    };
    let mut rows = Vec::new();
    for line in run.lines.iter().filter(|line| line.threads == THREADS) {
        let what = format!("{}, {}", line.contest, line.cell);
        if let Some(target) = target(line.contest, line.threads, line.cell) {
            let ratio = line.ratio();
            let verdict = verdict(ratio.median, target);
            rows.push(vec![
                what.clone(),
                format!("≥ {target:.2} ×"),
                format!("{ratio:.2} ×"),
                verdict,
            ]);
        }
        if line.contest.ours == Copy::Shadow && line.cell.work == Work::Decode {
            let share = fraction(line, line.bytes);
            rows.push(vec![
                format!("shadow `f16`, {}: share of the memory's bandwidth", line.cell),
                format!("≥ {:.0} %", 100.0 * BANDWIDTH_TARGET),
                format!("{:.0} %", share.times(100.0)),
                match share.median {
                    // The memory was slower when it was measured, which says nothing of the step.
                    1.0.. => "not judged".into(),
                    share => verdict(share, BANDWIDTH_TARGET),
                },
            ]);
        }
    }
    let head = [&format!("{THREADS} threads"), "asked for", "measured", ""];
    format!(
        "Medians of the rounds' ratios, in brackets the lowest and the highest round.\n\n{}",
        table(&head, &rows)
    )
}

/// `met`, or how much is missing of what was asked for.
fn verdict(found: f64, target: f64) -> String {
    if found >= target {
        "met".into()
    } else {
        format!("missed by {:.0} %", (100.0 * (1.0 - found / target)).max(1.0))
    }
}

fn speeds(run: &Run) -> String {
    let mut text = String::new();
    for threads in run.thread_counts() {
        let rows: Vec<_> = run
            .lines
            .iter()
            .filter(|line| line.threads == threads)
            .map(|line| {
                vec![
                    line.contest.to_string(),
                    line.cell.to_string(),
                    format!("{:.0}", line.ours()),
                    format!("{:.0}", line.theirs()),
                    format!("{:.2}", line.ratio()),
                ]
            })
            .collect();
        let head = ["Rewind / llama.cpp", "work", "Rewind", "llama.cpp", "ratio"];
        let _ = write!(text, "{}:\n\n{}\n", count(threads as usize, "thread"), table(&head, &rows));
    }
    text.trim_end().to_owned() + "\n"
}

/// What a decode step reads, and how near that is to what the memory gives.
fn bandwidth(run: &Run) -> String {
    let mut sizes = Vec::new();
    let mut shares = Vec::new();
    for line in run.lines.iter().filter(|line| line.cell.work == Work::Decode) {
        let Some(theirs) = run.files.get(line.contest.theirs) else { continue };
        let ours = line.bytes;
        if line.threads == THREADS {
            sizes.push(size_row(line.contest, ours, theirs));
        }
        let peer = Bytes { all: theirs.bytes_per_token, head: theirs.head_bytes };
        shares.push(vec![
            line.contest.to_string(),
            line.threads.to_string(),
            format!("{:.1}", line.bandwidth().times(1e-9)),
            format!("{:.0} %", fraction(line, ours).times(100.0)),
            format!("{:.0} %", peer_fraction(line, peer).times(100.0)),
        ]);
    }
    let head = [
        "Rewind / llama.cpp",
        "Rewind, MB",
        "of it the head",
        "llama.cpp, MB",
        "of it the head",
        "Rewind with llama.cpp's head, MB",
    ];
    let sizes = table(&head, &sizes);
    let head = ["decode", "threads", "memory, GB/s", "Rewind", "llama.cpp"];
    format!(
        "Weights that a decode step of one sequence reads, counted from shapes and formats:\n\n{sizes}\n\
         What that is of the bandwidth that `rewind bench` measured in the same process. More than 100 % means\n\
         that the memory was slower while it was measured, or that the cache held part of the weights:\n\n{}",
        table(&head, &shares)
    )
}

fn size_row(contest: Contest, ours: Bytes, theirs: &File) -> Vec<String> {
    let megabytes = |bytes: f64| format!("{:.1}", bytes / 1e6);
    vec![
        contest.to_string(),
        megabytes(ours.all),
        megabytes(ours.head),
        megabytes(theirs.bytes_per_token),
        format!("{} (`{}`)", megabytes(theirs.head_bytes), theirs.head_type),
        megabytes(ours.all - ours.head + theirs.head_bytes),
    ]
}

/// Rewind's bytes a second, of the memory's.
fn fraction(line: &Line, bytes: Bytes) -> Spread {
    line.spread(|pair| pair.ours * bytes.all / pair.bandwidth)
}

fn peer_fraction(line: &Line, bytes: Bytes) -> Spread {
    line.spread(|pair| pair.theirs * bytes.all / pair.bandwidth)
}

/// How near a prompt's products come to what the processor can do.
fn arithmetic(run: &Run) -> String {
    let rows: Vec<_> = run
        .lines
        .iter()
        .filter(|line| line.contest.ours == Copy::Shadow && line.cell.work == Work::Prefill)
        .map(|line| {
            // Each weight of 16 bits is multiplied and added once for each token.
            let operations = 2.0 * (line.bytes.all - line.bytes.head) / 2.0;
            vec![
                line.contest.to_string(),
                line.threads.to_string(),
                format!("{:.0}", line.spread(|pair| pair.between.peak / 1e9)),
                format!(
                    "{:.0} %",
                    line.spread(|pair| 100.0 * pair.ours * operations / pair.between.peak)
                ),
                format!(
                    "{:.0} %",
                    line.spread(|pair| 100.0 * pair.theirs * operations / pair.between.peak)
                ),
            ]
        })
        .collect();
    let head = [&format!("prefill {PROMPT}"), "threads", "peak, 10⁹/s", "Rewind", "llama.cpp"];
    format!(
        "f32 operations in the products with the layers' weights (attention and the head are not counted), of the\n\
         most that a loop of nothing but fused multiply-adds did between the two sides:\n\n{}",
        table(&head, &rows)
    )
}

fn method(run: &Run) -> String {
    let example = Task { contest: run.lines[0].contest, threads: THREADS, work: Work::Decode };
    let ours = sides::our_arguments(example).join(" ");
    let theirs = sides::their_arguments(example).join(" ");
    format!(
        "- Each figure of a round is a process of its own, which loads, warms up, and measures once: Rewind's and\n  \
           llama.cpp's one right after the other, in turns which of them first. A ratio is taken within such a pair.\n\
         - `decode` and `batch` generate {STEPS} tokens in each of 1, or {}, sequences from an empty cache, greedily; `prefill`\n  \
           reads a prompt of {PROMPT} tokens in one pass that chooses one token, {PREFILLS} times. A process's figure is that of its median\n  \
           step or pass: one that another program got in the way of counts for neither side. Tokens a second are those of\n  \
           all sequences together.\n\
         - Rewind: `rewind bench decode {ours} --model …`, and likewise for the other formats and kinds of work.\n  \
           Its steps include the monitor's statistics as the command has them by default.\n\
         - llama.cpp: `tests/peer/measure.py decode {theirs} --model …`, over the functions of `llama.h`. Its steps include\n  \
           the choice of the next token by numpy's argmax, as Rewind's include theirs. Built with\n  \
           `{CMAKE_ARGUMENTS}` by {}; its threads are OpenMP's, and its flash attention is on or off as it decides itself.\n\
         - The same weights on both sides: Rewind's shadow is the 16-bit dequantization of the demo model's `Q4_1`\n  \
           file, and llama.cpp's quantizer made `F16` of that same file, and the other formats of the `F16` one. `bf16` is\n  \
           llama.cpp's `BF16` file on both sides.\n\
         - No process was pinned to a core from outside. Between the sides, other programs kept {:.2} cores busy; what else\n  \
           ran on the machine's host shows in the spread alone.\n\
         - All samples: `{}`.\n",
        BATCHES.map(|batch| batch.to_string()).join(", "),
        run.compiler,
        run.others(),
        run.samples,
    )
}

fn machine(run: &Run) -> String {
    let mut rows = facts(&run.machine);
    for kernels in &run.kernels {
        rows.push(vec!["kernels".into(), kernels.clone()]);
    }
    rows.push(vec!["rustc".into(), run.rustc.clone()]);
    rows.push(vec!["llama.cpp".into(), run.peer_system.clone()]);
    table(&["", ""], &rows)
}

/// The plain fields of Rewind's description of the machine; what it does not know is left out.
fn facts(machine: &Map<String, Value>) -> Vec<Vec<String>> {
    let told = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(parts) if parts.iter().all(Value::is_number) => {
            Some(parts.iter().map(Value::to_string).collect::<Vec<_>>().join(", "))
        }
        _ => None,
    };
    let fact = |(name, value): (&String, &Value)| {
        Some(match (name.strip_suffix("_bytes"), value.as_f64()) {
            (Some(name), Some(bytes)) => {
                vec![name.replace('_', " "), format!("{:.1} MiB", bytes / f64::from(1 << 20))]
            }
            _ => vec![name.replace('_', " "), told(value)?],
        })
    };
    machine.iter().filter_map(fact).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::super::pairs::{Between, Pair};
    use super::super::work::{CONTESTS, Cell};
    use super::*;

    fn line(contest: Contest, threads: u32, work: Work, pairs: &[(f64, f64)]) -> Line {
        let between = Between { peak: 50e9, others: 0.0 };
        let pair = |&(ours, theirs): &(f64, f64)| Pair { ours, theirs, bandwidth: 20e9, between };
        let pairs = pairs.iter().map(pair);
        let bytes = Bytes { all: 90e6, head: 30e6 };
        Line { contest, threads, cell: Cell::of(work)[0], bytes, pairs: pairs.collect() }
    }

    fn run() -> Run {
        let lines = vec![
            line(CONTESTS[0], 2, Work::Decode, &[(240.0, 200.0), (260.0, 200.0), (250.0, 200.0)]),
            line(CONTESTS[0], 2, Work::Prefill, &[(450.0, 500.0)]),
            line(CONTESTS[0], 1, Work::Decode, &[(150.0, 100.0)]),
        ];
        let head_type = "Q8_0".to_owned();
        let q4 = File { bytes_per_token: 95e6, head_bytes: 35e6, head_type };
        let machine = json!({
            "cpu": "Some CPU",
            "memory_bytes": 3_u64 << 30,
            "governor": null,
            "load_average": [0.5, 1, 2],
            "kernels": ["avx2"],
        });
        Run {
            command: "cargo xtask bench cpu".into(),
            date: "2026-01-02".into(),
            rounds: 3,
            version: "1.2.3".into(),
            revision: "commit abc".into(),
            rustc: "rustc 1".into(),
            machine: machine.as_object().cloned().unwrap(),
            kernels: ["draft: avx2 | int4".to_owned()].into(),
            peer_version: "0.3".into(),
            peer_system: "CPU : AVX2 = 1 | OPENMP = 1 |".into(),
            compiler: "c++ 1".into(),
            files: BTreeMap::from([("Q4_0".to_owned(), q4)]),
            lines,
            samples: "cpu.json".into(),
        }
    }

    #[test]
    fn ratios_are_held_against_targets() {
        let text = targets(&run());
        let decode = "| draft `int4-g32` / `Q4_0`, decode | ≥ 1.25 × | 1.25 (1.20–1.30) × | met |";
        assert!(text.contains(decode), "{text}");
        assert!(text.contains("prefill 256 | ≥ 1.00 × | 0.90 × | missed by 10 % |"), "{text}");
        assert_eq!(text.matches('≥').count(), 2, "one thread has no targets: {text}");
    }

    #[test]
    fn the_shadow_is_held_against_the_memory() {
        let lines = vec![line(CONTESTS[2], 2, Work::Decode, &[(190.0, 100.0)])];
        let text = targets(&Run { lines, ..run() });
        // 190 × 90 MB of 20 GB.
        assert!(
            text.contains("share of the memory's bandwidth | ≥ 88 % | 86 % | missed by 3 % |"),
            "{text}"
        );
    }

    #[test]
    fn more_than_the_memory_gives_is_not_judged() {
        let lines = vec![line(CONTESTS[2], 2, Work::Decode, &[(230.0, 100.0)])];
        let text = targets(&Run { lines, ..run() });
        assert!(
            text.contains("share of the memory's bandwidth | ≥ 88 % | 103 % | not judged |"),
            "{text}"
        );
    }

    #[test]
    fn a_near_miss_is_a_miss() {
        assert_eq!(verdict(1.2499, 1.25), "missed by 1 %");
        assert_eq!(verdict(1.25, 1.25), "met");
    }

    #[test]
    fn speeds_are_told_for_each_number_of_threads() {
        let text = speeds(&run());
        let (two, one) = text.split_once("\n1 thread:\n").unwrap();
        assert!(two.starts_with("2 threads:\n"), "{text}");
        assert!(two.contains("| decode | 250 (240–260) | 200 | 1.25 (1.20–1.30) |"), "{text}");
        assert!(one.contains("| decode | 150 | 100 | 1.50 |"), "{text}");
    }

    #[test]
    fn bytes_are_told_of_both_and_at_like_head() {
        let text = bandwidth(&run());
        assert!(text.contains("| 90.0 | 30.0 | 95.0 | 35.0 (`Q8_0`) | 95.0 |"), "{text}");
        // 250 × 90 MB and 200 × 95 MB of 20 GB.
        assert!(text.contains("| 2 | 20.0 | 112 (108–117) % | 95 % |"), "{text}");
    }

    #[test]
    fn prompts_are_held_against_the_processors_peak() {
        let lines = vec![line(CONTESTS[2], 2, Work::Prefill, &[(500.0, 400.0)])];
        let text = arithmetic(&Run { lines, ..run() });
        // 500 and 400 times 30 million weights, two operations each, of 50 · 10⁹.
        assert!(text.contains("| 2 | 50 | 60 % | 48 % |"), "{text}");
    }

    #[test]
    fn the_machine_is_told_as_far_as_it_is_known() {
        let text = machine(&run());
        assert!(text.contains("| cpu | Some CPU |"), "{text}");
        assert!(text.contains("| memory | 3072.0 MiB |"), "{text}");
        assert!(text.contains("| load average | 0.5, 1, 2 |"), "{text}");
        assert!(!text.contains("governor"), "{text}");
        assert!(text.contains("draft: avx2 \\| int4"), "{text}");
    }

    #[test]
    fn a_machine_that_was_not_quiet_is_told_first() {
        let mut run = run();
        assert!(!write(&run, "", "cpu.svg").contains("**Other programs"));
        for line in &mut run.lines {
            line.pairs.iter_mut().for_each(|pair| pair.between.others = 1.5);
        }
        let text = write(&run, "", "cpu.svg");
        assert!(text.contains("**Other programs kept 1.5 cores busy"), "{text}");
        assert_eq!(text.matches("| not judged |").count(), 2, "{text}");
    }

    #[test]
    fn remarks_stand_in_the_document_and_come_out_of_it() {
        let text = write(&run(), "Slow *disk*.", "cpu.svg");
        assert_eq!(remarks::of(&text), "Slow *disk*.");
        assert!(text.contains("](cpu.svg)"), "{text}");
        assert!(text.starts_with("# Speed on a CPU"), "{text}");
    }
}
