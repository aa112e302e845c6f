//! The document: every word of it but the remarks is written by the command.

use std::fmt::{self, Write};

use serde_json::{Map, Value};

use super::super::markdown::{count, table};
use super::super::remarks;
use super::super::spread::Spread;
use super::profile::quantile;
use super::requests::{LENGTHS, POLICY};
use super::sides::{Client, Round};
use super::{Cell, Contest, INFLIGHT, ITERATIVE, Run, Served};

/// What the in-flight model must reach of the bare engine's speed.
const RATIO_TARGET: f64 = 0.97;
/// Share of the time with work that may pass without a pass.
const IDLE_TARGET: f64 = 0.03;

/// The whole file.
pub(super) fn write(run: &Run, remarks: &str) -> String {
    let mut text = format!(
        "# Through Triton, beside the engine alone\n\n\
         Written by `{}` on {}; only the remarks are kept from one time to the next.\n\
         {}, {}. Model: SmolLM2-135M-Instruct, draft `int4-g32`, on the CPU. In tables, medians of the rounds, and in\n\
         brackets the lowest and the highest round.\n",
        run.command,
        run.date,
        count(run.rounds, "round"),
        run.machine.get("cpu").and_then(Value::as_str).unwrap_or("an unknown processor"),
    );
    let sections = [
        ("What the project asks for", targets(&run.apart)),
        ("One compute thread, on a core of its own", contest(&run.apart)),
        ("Two compute threads, cores shared with the server and the clients", contest(&run.shared)),
        ("Schedulers of the iterative model", schedulers(run)),
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

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PerfAnalyzer => "perf_analyzer",
            Self::Own => "own client",
        })
    }
}

impl Served {
    fn title(&self) -> String {
        let model = if self.model == ITERATIVE { "iterative" } else { "in-flight" };
        format!("{model}, {}", self.client)
    }

    fn is_the_contestant(&self) -> bool {
        self.model == INFLIGHT && self.client == Client::PerfAnalyzer
    }

    /// Speed in the bare engine's, pair by pair.
    fn ratio(&self, bare: &[Round]) -> Spread {
        Spread::of(
            self.rounds.iter().zip(bare).map(|(ours, bare)| ours.figures.rate / bare.figures.rate),
        )
    }
}

fn rate(rounds: &[Round]) -> Spread {
    Spread::of(rounds.iter().map(|round| round.figures.rate))
}

/// In percent.
fn idle(rounds: &[Round]) -> Spread {
    Spread::of(rounds.iter().map(|round| 100.0 * round.idle))
}

fn targets(contest: &Contest) -> String {
    let mut rows = Vec::new();
    for cell in &contest.cells {
        let Some(served) = cell.served.iter().find(|served| served.is_the_contestant()) else {
            continue;
        };
        let (ratio, idle) = (served.ratio(&cell.bare), idle(&served.rounds));
        rows.push(vec![
            format!("{} in flight: speed in the bare engine's", cell.load.concurrency),
            format!("≥ {RATIO_TARGET}"),
            format!("{ratio:.3}"),
            verdict(ratio.median - RATIO_TARGET, 1.0, 3),
        ]);
        rows.push(vec![
            format!("{} in flight: time with work in which no pass ran", cell.load.concurrency),
            format!("≤ {:.0} %", 100.0 * IDLE_TARGET),
            format!("{idle:.2} %"),
            verdict(IDLE_TARGET - idle.median / 100.0, 100.0, 2),
        ]);
    }
    format!(
        "The in-flight model under perf_analyzer, one compute thread on both sides.\n\n{}",
        table(&["", "asked for", "measured", ""], &rows)
    )
}

/// `met`, or by how much not, in units of `1 / scale`.
fn verdict(margin: f64, scale: f64, digits: usize) -> String {
    if margin >= 0.0 { "met".into() } else { format!("missed by {:.digits$}", -margin * scale) }
}

fn contest(contest: &Contest) -> String {
    let sides = |cell: &Cell| cell.served.iter().map(Served::title).collect::<Vec<_>>();
    let titles = contest.cells.first().map(sides).unwrap_or_default();
    let mut head = vec!["in flight".to_owned(), "engine alone".to_owned()];
    head.extend(titles.iter().flat_map(|title| [title.clone(), "ratio".to_owned()]));
    let speeds: Vec<Vec<String>> = contest
        .cells
        .iter()
        .map(|cell| {
            let mut row =
                vec![cell.load.concurrency.to_string(), format!("{:.1}", rate(&cell.bare))];
            for served in &cell.served {
                row.push(format!("{:.1}", rate(&served.rounds)));
                row.push(format!("{:.3}", served.ratio(&cell.bare)));
            }
            row
        })
        .collect();

    let mut latencies = Vec::new();
    let mut gaps = Vec::new();
    for cell in &contest.cells {
        let alone = ("engine alone".to_owned(), &cell.bare);
        let served = cell.served.iter().map(|served| (served.title(), &served.rounds));
        for (title, rounds) in [alone].into_iter().chain(served) {
            let first = pooled(rounds, |round| &round.figures.first_token);
            let later = pooled(rounds, |round| &round.figures.gaps);
            let mut row = vec![cell.load.concurrency.to_string(), title.clone()];
            row.extend(first.into_iter().chain(later));
            latencies.push(row);
            let rows: Vec<f64> = rounds.iter().filter_map(|round| round.rows).collect();
            let rows =
                if rows.is_empty() { String::new() } else { format!("{:.2}", Spread::of(rows)) };
            gaps.push(vec![
                cell.load.concurrency.to_string(),
                title,
                format!("{:.2} %", idle(rounds)),
                rows,
            ]);
        }
    }
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    format!(
        "Tokens a second:\n\n{}\n\
         Milliseconds, over the requests of all rounds:\n\n{}\n\
         Time with work in which no pass ran, and tokens that a pass brought:\n\n{}",
        table(&head, &speeds),
        table(
            &[
                "in flight",
                "",
                "first token: median",
                "90 %",
                "99 %",
                "between tokens: median",
                "90 %",
                "99 %"
            ],
            &latencies
        ),
        table(&["in flight", "", "no pass ran", "tokens a pass"], &gaps),
    )
}

/// Median, 90 % and 99 % of the values of all rounds.
fn pooled(rounds: &[Round], values: impl Fn(&Round) -> &Vec<f64>) -> [String; 3] {
    let all: Vec<f64> = rounds.iter().flat_map(|round| values(round).iter().copied()).collect();
    [0.5, 0.9, 0.99].map(|share| format!("{:.2}", quantile(&all, share)))
}

fn schedulers(run: &Run) -> String {
    let rows: Vec<Vec<String>> = run
        .schedulers
        .iter()
        .map(|scheduler| {
            let rounds = &scheduler.rounds;
            let [first, _, last] = pooled(rounds, |round| &round.figures.first_token);
            let [median, _, most] = pooled(rounds, |round| &round.figures.gaps);
            let rows = Spread::of(rounds.iter().filter_map(|round| round.rows));
            vec![
                format!("`{}`", scheduler.setting),
                format!("{:.1}", rate(rounds)),
                format!("{rows:.2}"),
                format!("{:.2} %", idle(rounds)),
                first,
                last,
                median,
                most,
            ]
        })
        .collect();
    let most = run.apart.cells.last().map_or(0, |cell| cell.load.concurrency);
    format!(
        "One compute thread, {most} requests in flight, own client:\n\n{}",
        table(
            &[
                "in `sequence_batching`",
                "tok/s",
                "tokens a pass",
                "no pass ran",
                "ms to the first token: median",
                "99 %",
                "between tokens: median",
                "99 %"
            ],
            &rows
        )
    )
}

fn method(run: &Run) -> String {
    let cores = match run.apart.cores {
        Some(cores) => format!(
            "the compute thread on core {}, alone; the server's other threads and the client on core {}. The bare \
             engine's process on core {}.",
            cores.compute, cores.rest, cores.compute
        ),
        None => "nothing was pinned.".to_owned(),
    };
    let loads = |contest: &Contest| {
        let each = contest.cells.iter().map(|cell| {
            format!("{} requests with {} in flight", cell.load.requests, cell.load.concurrency)
        });
        each.collect::<Vec<_>>().join(", ")
    };
    format!(
        "- A round: {}. Each load is run by all sides one right after the other, in turns from which end; a ratio is \
         taken within such a pair.\n\
         - Requests: the prompts of `tests/data/prompts.txt`, answers of {} tokens in turn, greedy, streaming, policy \
         `{POLICY}`. All sides get them from one file, in the same order: place i of n sends entries i, i + n, i + 2n, ….\n\
         - Tokens a second are counted while all places are taken: from when the last of them sends its first request \
         to when the first of them has no more to send.\n\
         - The engine alone: `rewind bench-engine`, the same engine in the same build without a server; a place sends \
         its next request between two iterations.\n\
         - In flight: `perf_analyzer --async --streaming -i grpc --concurrency-range N --request-count R \
         --input-data …`; speeds and latencies are computed from its `--profile-export-file`. Own client: \
         `tests/bench/iterative.py`, which writes the same log; perf_analyzer cannot drive the iterative model \
         ([drivers](../drivers.md#sequence-flags)).\n\
         - One compute thread (`threads: 1`): {cores}\n\
         - Time with work in which no pass ran: 1 − `rewind_pass_seconds` ÷ `rewind_active_seconds_total`, over the \
         round ([metrics](../metrics.md)). The bare engine's is counted over the whole round.\n\
         - The two-thread part: `threads: 2`, and every thread where the system puts it, so compute threads, the \
         server's other threads and the client share two cores.\n",
        loads(&run.apart),
        LENGTHS.map(|length| length.to_string()).join(", "),
    )
}

fn machine(run: &Run) -> String {
    let mut rows = facts(&run.machine);
    rows.extend(run.versions.iter().map(|(name, version)| vec![name.clone(), version.clone()]));
    table(&["", ""], &rows)
}

/// The description that the bare engine's process gave; what it does not know is left out.
fn facts(machine: &Map<String, Value>) -> Vec<Vec<String>> {
    let told = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(parts) => {
            let parts =
                parts.iter().map(|part| part.as_str().map_or(part.to_string(), str::to_owned));
            Some(parts.collect::<Vec<_>>().join(", "))
        }
        _ => None,
    };
    let fact = |(name, value): (&String, &Value)| {
        Some(match (name.strip_suffix("_bytes"), value.as_f64()) {
            (Some(name), Some(bytes)) => {
                vec![name.replace('_', " "), format!("{:.0} MiB", bytes / f64::from(1 << 20))]
            }
            _ => vec![name.replace('_', " "), told(value)?],
        })
    };
    machine.iter().filter_map(fact).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::cores::Cores;
    use super::super::profile::Figures;
    use super::super::sides::Load;
    use super::super::{SCHEDULERS, Scheduler};
    use super::*;

    fn round(rate: f64, idle: f64) -> Round {
        let figures = Figures {
            rate,
            first_token: vec![20.0, 30.0, 40.0],
            gaps: vec![5.0, 7.0],
            tokens: 100,
        };
        Round { figures, idle, rows: Some(3.5) }
    }

    fn contest_of(ratios: &[f64], idle: f64) -> Contest {
        let served = |model, client| Served {
            model,
            client,
            // The machine halves its speed from round to round; ratios do not care.
            rounds: (1..)
                .zip(ratios)
                .map(|(n, ratio)| round(ratio * 200.0 / f64::from(n), idle))
                .collect(),
        };
        let bare = (1..)
            .zip(ratios)
            .map(|(n, _)| Round { rows: None, ..round(200.0 / f64::from(n), 0.01) });
        let cell = Cell {
            load: Load { concurrency: 4, requests: 32 },
            bare: bare.collect(),
            served: vec![served(INFLIGHT, Client::PerfAnalyzer), served(ITERATIVE, Client::Own)],
        };
        Contest { cores: Some(Cores { compute: 0, rest: 1 }), cells: vec![cell] }
    }

    fn run_of(ratios: &[f64], idle: f64) -> Run {
        let schedulers = SCHEDULERS.iter().map(|(name, setting)| Scheduler {
            name,
            setting,
            rounds: vec![round(100.0, 0.2)],
        });
        let machine = json!({"cpu": "A chip", "memory_bytes": 1 << 30, "kernels": ["k|1", "k2"]});
        Run {
            command: "cargo xtask bench triton".into(),
            date: "2026-01-02".into(),
            rounds: ratios.len(),
            versions: vec![("tritonserver".into(), "2.51.0".into())],
            machine: machine.as_object().cloned().unwrap(),
            apart: contest_of(ratios, idle),
            shared: contest_of(ratios, idle),
            schedulers: schedulers.collect(),
        }
    }

    #[test]
    fn ratios_are_taken_within_pairs() {
        let text = write(&run_of(&[0.98, 0.99, 0.97], 0.02), "");
        assert!(text.contains("| ≥ 0.97 | 0.980 (0.970–0.990) | met |"), "{text}");
        assert!(text.contains("| ≤ 3 % | 2.00 % | met |"), "{text}");
    }

    #[test]
    fn what_is_missed_is_told_with_its_distance() {
        let text = write(&run_of(&[0.95], 0.05), "");
        assert!(text.contains("| 0.950 | missed by 0.020 |"), "{text}");
        assert!(text.contains("| 5.00 % | missed by 2.00 |"), "{text}");
    }

    #[test]
    fn every_side_has_its_rows_and_tables_keep_their_columns() {
        let text = write(&run_of(&[1.0], 0.0), "");
        let row = "| 4 | iterative, own client | 30.00 | 38.00 | 39.80 | 6.00 | 6.80 | 6.98 |";
        assert_eq!(text.matches(row).count(), 2, "{text}");
        assert!(text.contains("| engine alone | 1.00 % |  |"), "{text}");
        for (_, setting) in SCHEDULERS {
            assert!(text.contains(&format!("| `{setting}` | 100.0 |")), "{text}");
        }
        assert!(text.contains("| kernels | k\\|1, k2 |") && text.contains("| memory | 1024 MiB |"));
        let mut columns = None;
        for line in text.lines() {
            let bars = line.replace("\\|", "").matches('|').count();
            columns = line.starts_with('|').then(|| columns.unwrap_or(bars));
            assert!(columns.is_none_or(|columns| columns == bars), "{line}");
        }
    }

    #[test]
    fn remarks_are_kept() {
        let run = run_of(&[1.0], 0.0);
        let first = write(&run, "The sender is cheap.");
        assert_eq!(write(&run, remarks::of(&first)), first);
    }
}
