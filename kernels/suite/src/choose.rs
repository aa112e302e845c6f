//! The sampling contract on the device against the engine's.

use anyhow::{Context, Result, ensure};
use rewind_engine::sampling::Sampling;
use rewind_kernels::arguments::{Answer, CHOICE_GENERAL, Choice};

use crate::sampling::{Rows, UNTOUCHED, Wish, random_wish};
use crate::{Case, Lab, Random};

pub(crate) const CASES: &[Case] = &[
    Case { name: "choose: all parameters", run: parameters },
    Case { name: "choose: filters over a vocabulary", run: filters },
    Case { name: "choose: ties", run: ties },
    Case { name: "choose: rows that are not finite", run: not_finite },
    Case { name: "choose: a row's bits in any company", run: company },
];

/// How a row's sampling differs from plain sampling at temperature 1.
type Change = fn(&mut Sampling);

/// Small vocabularies, every parameter over its range.
fn parameters(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(1);
    for vocabulary in [1, 2, 3, 5, 31, 32, 33, 40, 100, 333] {
        let wishes: Vec<_> = (0..24).map(|_| random_wish(vocabulary, &mut random)).collect();
        check(lab, &wishes)?;
    }
    Ok(())
}

/// Wide rows, flat ones among them, with filters that keep one, a few, and nearly all.
fn filters(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(2);
    let vocabulary = 12_007;
    let changes: [Change; 10] = [
        |s| s.top_k = 50,
        |s| s.top_k = 12_006,
        |s| s.top_p = 0.95,
        |s| s.top_p = 0.01,
        |s| s.min_p = 0.02,
        |s| s.bias = vec![(17, 3.0)],
        |s| (s.top_p, s.temperature) = (0.99, 1e3),
        |s| (s.top_p, s.temperature) = (0.9, 0.05),
        |s| (s.top_k, s.top_p, s.min_p) = (2000, 0.99, 1e-6),
        |s| (s.top_p, s.temperature) = (0.999_999_9, 0.3),
    ];
    let wishes: Vec<_> = changes
        .iter()
        .zip(0..)
        .map(|(change, position)| {
            let spread = if position % 2 == 0 { 3.0 } else { 0.5 };
            let mut wish = Wish::sampled(random.normals(vocabulary, spread), change);
            wish.sampling.seed = u64::from(random.word());
            Wish { position, ..wish }
        })
        .collect();
    check(lab, &wishes)?;
    Ok(())
}

/// Filters that cut through equal logits keep as many as they must, the lower ids; here all that is chosen by
/// noise must be among them, and over many positions all of them are.
fn ties(lab: &mut Lab<'_>) -> Result<()> {
    let filters: [(Change, usize); 4] = [
        (|s| s.top_k = 3, 3),
        (|s| s.top_p = 0.375, 3),
        (|s| s.top_p = 0.376, 4),
        (|s| (s.top_k, s.top_p) = (6, 0.5), 3),
    ];
    for ((filter, kept), level) in filters.into_iter().zip([0.0, -1e4].into_iter().cycle()) {
        let wishes: Vec<_> = (0..32)
            .map(|position| Wish { position, ..Wish::sampled(vec![level; 8], filter) })
            .collect();
        let mut seen = [false; 8];
        for answer in check(lab, &wishes)? {
            // Padding has not chosen.
            if let Some(seen) = seen.get_mut(answer.token as usize) {
                *seen = true;
            }
        }
        let expected = std::array::from_fn(|token| token < kept);
        ensure!(seen == expected, "{kept} of eight: {seen:?}");
    }
    // So many ties that the cut goes through every digit of the ids.
    let flat = |filter: Change| Wish::sampled(vec![1.5; 3000], filter);
    check(lab, &[flat(|s| s.top_k = 2345), flat(|s| s.top_p = 0.777), flat(|s| s.top_p = 1e-9)])?;
    Ok(())
}

/// They must come to an end; what they answer is for `finish` to overrule.
fn not_finite(lab: &mut Lab<'_>) -> Result<()> {
    let mut wishes = Vec::new();
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for mut row in [vec![bad; 40], vec![1.0; 40]] {
            row[7] = bad;
            for temperature in [0.0, 1.0] {
                wishes.push(Wish::sampled(row.clone(), |s| {
                    (s.temperature, s.top_k, s.top_p, s.min_p) = (temperature, 2, 0.5, 0.1);
                    s.bias = vec![(3, 1.0)];
                }));
            }
        }
    }
    run(lab, &Rows::new(&wishes))?;
    Ok(())
}

fn company(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(3);
    let wishes: Vec<_> = (0..12).map(|_| random_wish(200, &mut random)).collect();
    let all = check(lab, &wishes)?;
    for (i, expected) in all.iter().enumerate() {
        let alone = run(lab, &Rows::new(&wishes[i..=i]))?;
        let bits = |answer: &Answer| (answer.token, answer.runner_up, answer.margin.to_bits());
        ensure!(bits(&alone[0]) == bits(expected), "row {i}: {alone:?}, {expected:?}");
    }
    Ok(())
}

/// Compares general rows with the contract; the others, and padding among them, must stay as they were.
fn check(lab: &mut Lab<'_>, wishes: &[Wish]) -> Result<Vec<Answer>> {
    let mut rows = Rows::new(wishes);
    if wishes.len() > 20 {
        rows.choices[5] = Choice::PADDING;
    }
    let answers = run(lab, &rows)?;
    for ((wish, choice), (answer, i)) in
        wishes.iter().zip(&rows.choices).zip(answers.iter().zip(0..))
    {
        if choice.flags & CHOICE_GENERAL != 0 {
            wish.check(answer).with_context(|| format!("row {i}"))?;
        } else {
            let untouched = bytemuck::bytes_of(answer) == bytemuck::bytes_of(&UNTOUCHED);
            ensure!(untouched, "row {i} is not general: {answer:?}");
        }
    }
    Ok(answers)
}

fn run(lab: &mut Lab<'_>, rows: &Rows<'_>) -> Result<Vec<Answer>> {
    let logits = rows.put_logits(lab)?;
    let answers = lab.put(&vec![UNTOUCHED; rows.wishes.len()])?;
    rows.choose(lab, logits, answers)?;
    lab.get(answers, rows.wishes.len())
}
