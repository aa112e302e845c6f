//! Every measurement, over a tiny model on the CPU. What is measured is never asserted, only how.

use std::sync::Arc;

use rewind_bench::{
    BenchError, Choosing, Copies, Copy, Decode, Forced, Machine, Measurement, ModelNames, Overhead,
    Pooling, Prefill, ReadSweep, Report, RewindCost, Room, Session, Throughput, Verdict,
    WeightBytes,
};
use rewind_checkpoint::Architecture;
use rewind_cpu::{Config, CpuExecutor, CpuModel, Isa, LoadOptions};
use rewind_engine::text::Vocabulary;
use rewind_engine::{Executor, Input, Policy, Row, RowClass, Settings, Slot, Token, Weights};
use rewind_executor_suite::bench::{Bench, decisions, generated};
use rewind_executor_suite::{Precision, TinyModel, small_spec};
use rewind_formats::{DraftFormats, Format, Group};
use rewind_monitor::{Detector, Gate};
use serde::Serialize;

const VOCABULARY: usize = 97;
const FORMAT: Format = Format::Int4Group(Group::G32);
const PAGE_TOKENS: usize = 8;

fn load() -> CpuModel {
    let model = TinyModel::new(small_spec(Architecture::Llama, VOCABULARY), Precision::F16, FORMAT);
    let options = LoadOptions {
        draft: model.draft.clone().map(DraftFormats::from),
        shadow: true,
        threads: 1,
        isa: Isa::detect(),
    };
    CpuModel::load(&model.spec, model.source(), options, |_| ()).unwrap()
}

/// An executor with exactly this room.
fn executor(room: Room) -> CpuExecutor {
    let config = Config {
        threads: 1,
        slots: room.slots,
        rows: room.rows,
        pages: room.pages(PAGE_TOKENS),
        page_tokens: PAGE_TOKENS,
        positions: room.positions,
    };
    CpuExecutor::new(Arc::new(load()), config).unwrap()
}

fn copies() -> Copies {
    let spec = small_spec(Architecture::Llama, VOCABULARY);
    Copies {
        draft: Copy {
            format: FORMAT.to_string(),
            bytes: WeightBytes::of_draft(&spec, &FORMAT.into()),
        },
        shadow: Copy { format: "f16".into(), bytes: WeightBytes::of_shadow(&spec, |_| 2) },
        cache_bytes: 384,
    }
}

/// Runs a measurement on an executor of this room, and checks that it ticks as often as it says.
fn measured<T>(
    room: Room,
    ticks: u64,
    run: impl FnOnce(&mut Session<'_, CpuExecutor>) -> Result<T, BenchError>,
) -> (T, ReadSweep) {
    let mut executor = executor(room);
    let mut sweep = ReadSweep::over(1 << 16, 1).unwrap();
    let mut ticked = 0;
    let mut session = Session {
        executor: &mut executor,
        copies: &copies(),
        sweep: Some(&mut sweep),
        tick: &mut || ticked += 1,
    };
    let result = run(&mut session).unwrap();
    assert_eq!(ticked, ticks);
    (result, sweep)
}

#[derive(Debug, Serialize)]
struct Speeds {
    measurements: Vec<Measurement>,
}

#[test]
fn decoding_keeps_every_step() {
    let decode = Decode {
        name: "batch",
        weights: vec![Weights::Draft, Weights::Full],
        batches: vec![1, 3],
        context: 9,
        rounds: 2,
        statistics: true,
    };
    let (measurements, sweep) =
        measured(decode.room(), decode.ticks(), |session| decode.run(session));
    let cases: Vec<_> = measurements.iter().map(|m| (m.batch, m.weights.as_str())).collect();
    assert_eq!(cases, [(1, "draft"), (1, "shadow"), (3, "draft"), (3, "shadow")]);
    for one in &measurements {
        assert_eq!((one.step_seconds.samples.len(), one.tokens_per_second.samples.len()), (18, 2));
        let first: f64 = one.step_seconds.samples[..9].iter().sum();
        let rate = one.tokens_per_second.samples[0];
        assert!((rate * first / (9 * one.batch) as f64 - 1.0).abs() < 1e-9, "{one:?}");
        assert_eq!(one.bytes_per_token * one.batch as f64, one.step_bytes as f64);
        assert!(one.head_bytes < one.step_bytes && one.bandwidth_fraction > Some(0.0), "{one:?}");
        // Rows at positions 0 to 8 see 1 to 9 entries.
        assert_eq!(one.cache_bytes_per_token, 5.0 * 384.0);
    }

    let report = Report {
        command: "batch".into(),
        version: "1".into(),
        machine: Machine::describe(vec!["draft: int4".into()]),
        model: ModelNames {
            path: "tiny".into(),
            fingerprint: "0".into(),
            draft: "int4".into(),
            shadow: "f16".into(),
        },
        threads: 1,
        bandwidth: Some(sweep.bandwidth()),
        details: Speeds { measurements },
    };
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!(value["measurements"][3]["format"], "f16");
    assert!(value["bandwidth"]["gigabytes_per_second"]["median"].as_f64().unwrap() > 0.0);
    // One sample before each of four cases, in three rounds.
    let samples = &value["bandwidth"]["gigabytes_per_second"]["samples"];
    assert_eq!(samples.as_array().unwrap().len(), 12);
}

#[test]
fn prompts_are_read_in_one_pass() {
    let prefill =
        Prefill { weights: vec![Weights::Full], prompt: 20, rounds: 3, statistics: false };
    let (measurements, _) =
        measured(prefill.room(), prefill.ticks(), |session| prefill.run(session));
    let [one] = &measurements[..] else { panic!("{measurements:?}") };
    assert_eq!((one.name.as_str(), one.batch, one.context), ("prefill", 1, 20));
    for (rate, seconds) in one.tokens_per_second.samples.iter().zip(&one.step_seconds.samples) {
        assert!((rate * seconds - 20.0).abs() < 1e-9);
    }
    assert_eq!(one.step_seconds.samples.len(), 3);
}

#[test]
fn pairs_with_and_without_the_monitor() {
    for control in [false, true] {
        let overhead = Overhead {
            batches: vec![1, 4],
            pairs: 25,
            rounds: 2,
            context: 6,
            temperature: 0.8,
            seed: 3,
            control,
        };
        let (figures, _) =
            measured(overhead.room(), overhead.ticks(), |session| overhead.run(session));
        assert_eq!(figures.iter().map(|one| one.batch).collect::<Vec<_>>(), [1, 4]);
        for one in &figures {
            assert_eq!((one.pairs, one.on_seconds.samples.len()), (25, 25));
            let (on, off) = (&one.on_seconds.samples, &one.off_seconds.samples);
            let mut differences: Vec<_> = on.iter().zip(off).map(|(on, off)| on - off).collect();
            differences.sort_by(f64::total_cmp);
            assert_eq!(one.difference_seconds.median, differences[12]);
            let relative = one.difference_seconds.median / one.off_seconds.median;
            assert!((one.relative.median - relative).abs() <= 1e-9 * relative.abs());
            assert_eq!((one.relative_by_round.len(), one.control.is_some()), (2, control));
        }
    }
}

#[test]
fn shadow_passes_are_compared_within_a_turn() {
    let cost = RewindCost { rows: 5, further: vec![8], context: 11, rounds: 2, turns: 4, seed: 0 };
    let (figures, _) = measured(cost.room(), cost.ticks(), |session| cost.run(session));
    let passes: Vec<_> = figures.passes.iter().map(|p| (p.rows, p.choosing)).collect();
    let all = [1, 2, 3, 4, 5, 8].map(|rows| (rows, Choosing::All));
    let last = [2, 3, 4, 5, 8].map(|rows| (rows, Choosing::Last));
    assert_eq!(passes, [&all[..], &last].concat());
    let single = &figures.passes[0];
    assert_eq!((single.shadow_rows.low, single.shadow_rows.high), (1.0, 1.0));
    for pass in &figures.passes {
        assert_eq!(pass.seconds.samples.len(), 8);
        let draft = &figures.draft_step_seconds.samples;
        let mut ratios: Vec<_> =
            pass.seconds.samples.iter().zip(draft).map(|(pass, draft)| pass / draft).collect();
        ratios.sort_by(f64::total_cmp);
        assert_eq!(pass.draft_steps.median, (ratios[3] + ratios[4]) / 2.0);
    }
}

/// A decode row of slot 0 that is judged or not; the gate itself never fires.
fn row(position: usize, judged: bool) -> Row {
    let row = generated(0, position, 5, decisions(position));
    assert_eq!((row.class, row.input, row.slot), (RowClass::Generated, Input::Token(5), Slot(0)));
    let gate = Gate { detector: Detector::Entropy, threshold: f32::INFINITY };
    Row { gate: judged.then_some(gate), ..row }
}

#[test]
fn verdicts_come_at_the_wanted_rate() {
    let fired = |rate, judged| {
        let mut executor = executor(Room { slots: 1, rows: 50, positions: 50 });
        let mut bench = Bench::of(Forced::new(&mut executor, rate, 1));
        let mut fired = 0;
        for _ in 0..20 {
            let rows = (0..50).map(|position| row(position, judged)).collect();
            let results = bench.run(Weights::Draft, rows).unwrap();
            fired += results.iter().filter(|result| result.suspect).count();
        }
        fired
    };
    assert_eq!((fired(0.0, true), fired(1.0, true), fired(1.0, false)), (0, 1000, 0));
    // Five standard deviations of 1000 draws at 0.3.
    assert!(fired(0.3, true).abs_diff(300) < 73);
}

fn prompts() -> Vec<Vec<Token>> {
    vec![vec![1, 2, 3], vec![50, 60]]
}

fn vocabulary() -> Vocabulary {
    Vocabulary::new((0..VOCABULARY).map(|_| &b"x"[..]))
}

#[test]
fn policies_run_at_every_rate() {
    let (prompts, vocabulary) = (prompts(), vocabulary());
    let throughput = Throughput {
        policies: vec![
            Policy::Off,
            Policy::Step { refresh: 2 },
            Policy::Window { tokens: 3, refresh: 2 },
            Policy::Lossless { tokens: 3 },
            Policy::Shadow,
        ],
        rates: vec![0.0, 1.0],
        batches: vec![1, 3],
        tokens: 12,
        rounds: 2,
        seed: 7,
        settings: Settings::default(),
        prompts: &prompts,
        vocabulary: &vocabulary,
    };
    let (figures, _) =
        measured(throughput.room(), throughput.ticks(), |session| throughput.run(session));
    assert_eq!(figures.policies.len(), 2 * (3 + 2 * 2));
    for line in &figures.policies {
        assert_eq!(line.tokens_per_second.samples.len(), 2);
        assert_eq!(line.fired, line.rate, "all or nothing: {line:?}");
        let rows = line.shadow_rows_per_token;
        match (line.policy.as_str(), line.rate) {
            ("off", _) | (_, Some(0.0)) => assert_eq!(rows, 0.0, "{line:?}"),
            // Each token is chosen by the shadow, with two rows that it refreshes at most.
            ("step", _) => assert!((1.0..=3.0).contains(&rows), "{line:?}"),
            ("shadow", _) => assert_eq!(rows, 1.0, "{line:?}"),
            _ => assert!(rows > 0.9, "{line:?}"),
        }
    }
    let met: Vec<_> =
        figures.break_even.iter().map(|one| (one.policy.as_str(), one.batch)).collect();
    assert_eq!(met, [("step", 1), ("window(3)", 1), ("step", 3), ("window(3)", 3)]);
    for one in &figures.break_even {
        assert_eq!(one.rate.is_some(), one.verdict == Verdict::FasterBelow, "{one:?}");
    }
}

#[test]
fn the_sweep_covers_every_setting() {
    let (prompts, vocabulary) = (prompts(), vocabulary());
    let pooling = Pooling {
        policies: vec![Policy::Step { refresh: 1 }],
        batches: vec![2, 4],
        rate: 0.5,
        verify_rows: vec![1, 4],
        verify_wait: vec![1, 2],
        tokens: 8,
        rounds: 1,
        seed: 0,
        settings: Settings::default(),
        prompts: &prompts,
        vocabulary: &vocabulary,
    };
    let (figures, _) = measured(pooling.room(), pooling.ticks(), |session| pooling.run(session));
    assert_eq!((figures.lines.len(), figures.choices.len()), (6, 3));
    for lines in figures.lines.chunks(3) {
        assert_eq!(lines.iter().filter(|line| line.of_best == 1.0).count(), 1, "{lines:?}");
    }
    assert!(figures.choices.is_sorted_by(|a, b| a.of_best >= b.of_best));
}

#[test]
fn what_cannot_be_measured_is_an_error() {
    let mut executor = executor(Room { slots: 1, rows: 4, positions: 16 });
    let mut session =
        Session { executor: &mut executor, copies: &copies(), sweep: None, tick: &mut || () };
    let decode = Decode {
        name: "decode",
        weights: vec![Weights::Draft],
        batches: vec![1],
        context: 16,
        rounds: 1,
        statistics: true,
    };
    let [one] = &decode.run(&mut session).unwrap()[..] else { panic!("one case") };
    assert_eq!(one.bandwidth_fraction, None);
    let mut error = |decode: Decode| decode.run(&mut session).unwrap_err().to_string();
    assert_eq!(
        error(Decode { context: 17, ..decode.clone() }),
        "the measurement needs 17 positions in a sequence and the executor has 16"
    );
    assert!(error(Decode { batches: vec![2], ..decode.clone() }).contains("2 sequences at once"));
    assert_eq!(error(Decode { rounds: 0, ..decode.clone() }), "rounds is 0: it must be at least 1");
    assert!(error(Decode { batches: vec![0], ..decode }).starts_with("batch is 0"));

    let overhead = Overhead {
        batches: vec![1],
        pairs: 2,
        rounds: 1,
        context: 4,
        temperature: 0.8,
        seed: 0,
        control: false,
    };
    let mut error = |overhead: Overhead| overhead.run(&mut session).unwrap_err().to_string();
    let hot = error(Overhead { temperature: f32::NAN, ..overhead.clone() });
    assert!(hot.contains("temperature is NaN"), "{hot}");
    assert!(error(Overhead { rounds: 3, ..overhead }).contains("pairs is 2"));

    let (prompts, vocabulary) = (prompts(), vocabulary());
    let throughput = Throughput {
        policies: vec![Policy::Off],
        rates: vec![1.5],
        batches: vec![1],
        tokens: 1,
        rounds: 1,
        seed: 0,
        settings: Settings::default(),
        prompts: &prompts,
        vocabulary: &vocabulary,
    };
    let rate = throughput.run(&mut session).unwrap_err().to_string();
    assert_eq!(rate, "rate is 1.5: it must be from 0 to 1");
}

#[test]
fn the_bytes_of_a_step_are_in_memory() {
    let model = load();
    let (memory, copies) = (model.memory(), copies());
    assert!(memory.draft as u64 >= copies.draft.bytes.step, "{memory:?} {copies:?}");
    assert!(memory.shadow as u64 >= copies.shadow.bytes.step, "{memory:?} {copies:?}");
    let identity = executor(Room { slots: 1, rows: 1, positions: 1 }).identity(Weights::Draft);
    assert!(identity.contains("head int8-g32"), "{identity}: the bytes of the head assume this");
}
