//! From tiles to answers, against the engine's contract and the monitor's definitions.

use anyhow::{Context, Result, ensure};
use rewind_kernels::arguments::{
    Address, Answer, CHOICE_GENERAL, CHOICE_QUIET, CHOICE_SUMS, Choice, FinishArguments, LogitTile,
    NONE, PADDING,
};
use rewind_kernels::sampling::{finish, logits_stride, tiles as tiles_of};
use rewind_monitor::{Gate, Statistics, oracle};

use crate::lab::same_bits;
use crate::sampling::{DETECTORS, Rows, UNTOUCHED, Wish, random_logits};
use crate::tile::tiles;
use crate::{Case, Lab, Random};

pub(crate) const CASES: &[Case] = &[
    Case { name: "finish: all kinds of rows", run: kinds },
    Case { name: "finish: long and flat rows", run: long },
    Case { name: "finish: the gate, close to its threshold", run: gates },
    Case { name: "finish: a row's bits in any company", run: company },
];

/// The token that a slot has before.
const BEFORE: u32 = 4_000_000;

fn kinds(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(1);
    for vocabulary in [1, 2, 31, 32, 33, 64, 1000] {
        let wishes: Vec<_> =
            (0..24).map(|i| random_plain_wish(vocabulary, i, &mut random)).collect();
        check(lab, &wishes)?;
    }
    Ok(())
}

/// More tiles than threads, among them rows in which every tile can hold the best.
fn long(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(2);
    let vocabulary = 9001;
    let rows = [
        random.normals(vocabulary, 3.0),
        vec![0.25; vocabulary],
        (0..vocabulary).map(|i| -(i as f32).sqrt()).collect(),
    ];
    let mut wishes = Vec::new();
    for row in rows {
        let greedy = Wish { sums: true, ..Wish::greedy(row.clone()) };
        let sampled = Wish::sampled(row, |s| (s.temperature, s.seed) = (0.8, 5));
        wishes.extend([greedy, sampled]);
    }
    check(lab, &wishes)
}

fn gates(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(3);
    let mut wishes = Vec::new();
    for detector in DETECTORS {
        let logits = random.normals(300, 2.0);
        // What the kernel itself finds decides: just above, at, and just below it.
        let gate = Some(Gate { detector, threshold: 0.0 });
        let mut wish = Wish { gate, sums: true, ..Wish::greedy(logits) };
        let score = detector.score(&statistics(&run(lab, &Rows::new(&[wish.clone()]), None)?.0[0]));
        for (threshold, suspect) in
            [(score.next_down(), true), (score, false), (score.next_up(), false)]
        {
            wish.gate = Some(Gate { detector, threshold });
            let (answers, _) = run(lab, &Rows::new(&[wish.clone()]), None)?;
            ensure!(answers[0].suspect == u32::from(suspect), "{detector} {score} {threshold}");
            wishes.push(wish.clone());
        }
        // One token: nothing to choose between is no reason to doubt.
        let gate = Some(Gate { detector, threshold: -1e30 });
        let only = Wish { gate, ..Wish::greedy(vec![3.0]) };
        let (answers, _) = run(lab, &Rows::new(&[only]), None)?;
        ensure!(answers[0].suspect == u32::from(!detector.reads_margin()), "{answers:?}");
    }
    check(lab, &wishes)
}

fn company(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(4);
    let wishes: Vec<_> = (0..10).map(|i| random_plain_wish(700, i, &mut random)).collect();
    let (all, _) = run(lab, &Rows::new(&wishes), None)?;
    for (i, expected) in all.iter().enumerate() {
        let (alone, _) = run(lab, &Rows::new(&wishes[i..=i]), None)?;
        same_bits("an answer", bytemuck::bytes_of(&alone[0]), bytemuck::bytes_of(expected))?;
    }
    Ok(())
}

/// Any row that no filter or list has a say in.
fn random_plain_wish(vocabulary: usize, i: usize, random: &mut Random) -> Wish {
    let mut logits = random_logits(vocabulary, random);
    if i % 6 == 5 {
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.below(3)];
        logits[random.below(vocabulary)] = bad;
    }
    let temperatures = [0.0, 0.0, 1.0, 0.7, 1e-40, 1e30, f32::NAN];
    let temperature = temperatures[random.below(temperatures.len())];
    let gate = (random.below(2) == 0).then(|| Gate {
        detector: DETECTORS[random.below(DETECTORS.len())],
        threshold: [f32::INFINITY, 0.5, -1.0][random.below(3)],
    });
    Wish {
        position: random.word() >> 1,
        chooses: random.below(4) > 0,
        gate,
        sums: random.below(2) == 0,
        ..Wish::sampled(logits, |s| {
            (s.temperature, s.seed) = (temperature, u64::from(random.word()) << 20);
        })
    }
}

/// Compares rows with contract and definitions. Of eight rows, one is padding, one
/// general, one not its slot's last.
fn check(lab: &mut Lab<'_>, wishes: &[Wish]) -> Result<()> {
    let mut rows = Rows::new(wishes);
    for (i, choice) in rows.choices.iter_mut().enumerate() {
        match i % 8 {
            3 => *choice = Choice::PADDING,
            1 => choice.flags |= CHOICE_QUIET,
            6 => choice.flags |= CHOICE_GENERAL,
            _ => {}
        }
    }
    let (answers, last) = run(lab, &rows, Some(UNTOUCHED))?;
    for (i, (wish, choice)) in wishes.iter().zip(&rows.choices).enumerate() {
        check_answer(wish, choice, &answers[i], last[i]).with_context(|| {
            format!("row {i} of {} logits, {choice:?}: {:?}", wish.logits.len(), answers[i])
        })?;
    }
    Ok(())
}

/// Compares the answer to one row; `last` is its slot's token after.
pub(crate) fn check_answer(wish: &Wish, choice: &Choice, got: &Answer, last: u32) -> Result<()> {
    if choice.position == PADDING {
        let empty =
            Answer { token: NONE, runner_up: NONE, finite: 1, ..bytemuck::Zeroable::zeroed() };
        same_bits("padding", bytemuck::bytes_of(got), bytemuck::bytes_of(&empty))?;
        ensure!(last == BEFORE, "padding has chosen {last}");
        return Ok(());
    }
    let chooses = choice.slot != NONE;
    let keeps = chooses && choice.flags & CHOICE_QUIET == 0;
    if !wish.is_finite() {
        ensure!((got.finite, got.suspect) == (0, 1), "not finite, and nobody knows");
        ensure!((got.token, got.runner_up) == (NONE, NONE), "not finite, and still chosen");
        let statistics = [got.entropy, got.varentropy, got.top1, got.margin];
        ensure!(statistics.iter().all(|value| value.is_nan()), "statistics that are numbers");
        ensure!(last == if keeps { 0 } else { BEFORE }, "last token {last}");
        return Ok(());
    }
    ensure!(got.finite == 1, "not found finite");

    let expected = oracle::statistics(&wish.logits);
    let close = |what: &str, got: f32, expected: f32| {
        let error = (got - expected).abs();
        ensure!(error <= 2e-5 * (1.0 + expected.abs()), "{what} is {got}, not {expected}");
        Ok(())
    };
    if choice.flags & CHOICE_SUMS != 0 {
        close("entropy", got.entropy, expected.entropy)?;
        close("varentropy", got.varentropy, expected.varentropy)?;
        close("top1", got.top1, expected.top1)?;
        let max = wish.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_z = f64::from(max) - f64::from(expected.top1).ln();
        let error = (got.log_z - log_z).abs();
        ensure!(error <= 1e-6 * (1.0 + f64::from(max).abs()), "ln Z {}, not {log_z}", got.log_z);
    } else {
        ensure!(got.entropy == 0.0 && got.log_z == 0.0, "statistics that nobody wanted");
    }

    if !chooses {
        ensure!((got.token, got.runner_up, got.margin) == (NONE, NONE, 0.0), "chosen for nobody");
    } else if choice.flags & CHOICE_GENERAL != 0 && !wish_is_general(wish) {
        let before = (UNTOUCHED.token, UNTOUCHED.runner_up, UNTOUCHED.margin);
        ensure!((got.token, got.runner_up, got.margin) == before, "decided again");
    } else {
        wish.check(got)?;
    }
    ensure!(last == if keeps { got.token } else { BEFORE }, "last token {last}");
    let suspect = wish.gate.is_some_and(|gate| gate.is_suspect(&statistics(got)));
    ensure!(got.suspect == u32::from(suspect), "suspect should be {suspect}");
    Ok(())
}

/// Whether a wish is general by itself, not because a case says so.
fn wish_is_general(wish: &Wish) -> bool {
    wish.choice(0, &mut rewind_kernels::sampling::Lists::default()).flags & CHOICE_GENERAL != 0
}

fn statistics(answer: &Answer) -> Statistics {
    let Answer { entropy, varentropy, top1, margin, finite, .. } = *answer;
    Statistics { entropy, varentropy, top1, margin, finite: finite == 1 }
}

/// Answers and last tokens of rows whose tiles are the reference's.
fn run(
    lab: &mut Lab<'_>,
    rows: &Rows<'_>,
    before: Option<Answer>,
) -> Result<(Vec<Answer>, Vec<u32>)> {
    let stride = tiles_of(rows.vocabulary()) as usize;
    let mut all: Vec<LogitTile> = Vec::new();
    for (wish, choice) in rows.wishes.iter().zip(&rows.choices) {
        all.extend(tiles(&wish.logits, choice));
    }
    ensure!(all.len() == stride * rows.wishes.len(), "{} tiles", all.len());
    let (logits, tiles) = (rows.put_logits(lab)?, lab.put(&all)?);
    let answers = match before {
        Some(before) => lab.put(&vec![before; rows.wishes.len()])?,
        None => lab.room::<Answer>(rows.wishes.len())?,
    };
    launch(lab, rows, logits, tiles, answers)
}

/// Runs `finish` over what is there; returns the answers and the slots' last tokens.
pub(crate) fn launch(
    lab: &mut Lab<'_>,
    rows: &Rows<'_>,
    logits: Address,
    tiles: Address,
    answers: Address,
) -> Result<(Vec<Answer>, Vec<u32>)> {
    let last = lab.put(&vec![BEFORE; rows.wishes.len()])?;
    let arguments = FinishArguments {
        logits,
        tiles,
        choices: lab.put(&rows.choices)?,
        answers,
        last,
        count: rows.count(),
        vocabulary: rows.vocabulary(),
        logits_stride: logits_stride(rows.vocabulary()),
        tile_stride: tiles_of(rows.vocabulary()),
    };
    lab.run(finish(rows.count()), &arguments)?;
    Ok((lab.get(answers, rows.wishes.len())?, lab.get(last, rows.wishes.len())?))
}
