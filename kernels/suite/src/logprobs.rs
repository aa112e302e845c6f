//! Log-probabilities against the engine's.

use anyhow::{Result, ensure};
use rewind_engine::TokenLogprob;
use rewind_engine::sampling::logprobs;
use rewind_kernels::arguments::{
    Address, Answer, CHOICE_LOGPROBS, Choice, LOGPROB_ENTRIES, LogprobEntry, LogprobsArguments,
    NONE,
};
use rewind_kernels::sampling::{self, logits_stride};
use rewind_monitor::oracle;

use crate::sampling::{Rows, UNTOUCHED, Wish, random_logits};
use crate::{Case, Lab, Random};

pub(crate) const CASES: &[Case] = &[
    Case { name: "logprobs: any number of any row", run: numbers },
    Case { name: "logprobs: ties over a vocabulary", run: ties },
];

/// What an entry holds before.
const BEFORE: LogprobEntry = LogprobEntry { token: 9, logprob: 1.0, rank: 77 };

fn numbers(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(1);
    for vocabulary in [1, 2, 19, 20, 21, 33, 1000] {
        let rows: Vec<_> = (0..12)
            .map(|i| {
                let mut logits = random_logits(vocabulary, &mut random);
                if i == 7 {
                    logits[random.below(vocabulary)] = f32::NAN;
                }
                let wanted = [Some(0), Some(1), Some(5), Some(20), Some(20), None];
                let logprobs = wanted[random.below(wanted.len())];
                let token = [random.below(vocabulary), NONE as usize][usize::from(i % 5 == 4)];
                (Wish { logprobs, ..Wish::greedy(logits) }, token as u32)
            })
            .collect();
        check(lab, &rows)?;
    }
    Ok(())
}

fn ties(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(2);
    let levels = (0..3000).map(|_| random.below(4) as f32).collect();
    let rows = [vec![-2.0; 3000], levels, random.normals(3000, 3.0)];
    let wish = |logits| (Wish { logprobs: Some(20), ..Wish::greedy(logits) }, 2543);
    check(lab, &rows.map(wish))
}

/// Compares rows, each with the token that was chosen.
fn check(lab: &mut Lab<'_>, chosen: &[(Wish, u32)]) -> Result<()> {
    let wishes: Vec<_> = chosen.iter().map(|(wish, _)| wish.clone()).collect();
    let mut rows = Rows::new(&wishes);
    if wishes.len() > 10 {
        rows.choices[9] = Choice::PADDING;
    }
    let answers: Vec<_> = chosen
        .iter()
        .map(|(wish, token)| {
            let max = wish.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let log_z = f64::from(max) - oracle::top1(&oracle::softmax(&wish.logits)).ln();
            Answer { log_z, token: *token, finite: wish.is_finite().into(), ..UNTOUCHED }
        })
        .collect();
    let (logits, on_device) = (rows.put_logits(lab)?, lab.put(&answers)?);
    let entries = launch(lab, &rows, logits, on_device)?;
    for (i, ((wish, choice), answer)) in wishes.iter().zip(&rows.choices).zip(&answers).enumerate()
    {
        check_entries(wish, choice, answer, &entries[i]).map_err(|error| {
            error.context(format!("row {i} of {} logits: {:?}", wish.logits.len(), entries[i]))
        })?;
    }
    Ok(())
}

/// Compares the list of one row.
pub(crate) fn check_entries(
    wish: &Wish,
    choice: &Choice,
    answer: &Answer,
    entries: &[LogprobEntry],
) -> Result<()> {
    if choice.flags & CHOICE_LOGPROBS == 0 {
        ensure!(entries.iter().all(|entry| entry.rank == BEFORE.rank), "a list nobody wants");
        return Ok(());
    }
    let entry = |entry: &LogprobEntry| {
        let LogprobEntry { token, logprob, rank } = *entry;
        TokenLogprob { token, logprob, rank }
    };
    let got: Vec<_> = entries.iter().take_while(|e| e.token != NONE).map(entry).collect();
    if !wish.is_finite() {
        ensure!(got.is_empty(), "a list of a row that is not finite");
        return Ok(());
    }
    let token = (answer.token != NONE).then_some(answer.token);
    let expected = logprobs(&wish.logits, token, wish.logprobs.unwrap_or(0), answer.log_z);
    ensure!(got == expected[..], "expected {expected:?}");
    Ok(())
}

/// Runs `logprobs` over what is there; returns the lists.
pub(crate) fn launch(
    lab: &mut Lab<'_>,
    rows: &Rows<'_>,
    logits: Address,
    answers: Address,
) -> Result<Vec<Vec<LogprobEntry>>> {
    let length = LOGPROB_ENTRIES as usize;
    let entries = lab.put(&vec![BEFORE; length * rows.wishes.len()])?;
    let arguments = LogprobsArguments {
        logits,
        choices: lab.put(&rows.choices)?,
        answers,
        entries,
        count: rows.count(),
        vocabulary: rows.vocabulary(),
        logits_stride: logits_stride(rows.vocabulary()),
        unused: 0,
    };
    lab.run(sampling::logprobs(rows.count()), &arguments)?;
    let entries = lab.get(entries, length * rows.wishes.len())?;
    Ok(entries.chunks(length).map(<[LogprobEntry]>::to_vec).collect())
}
