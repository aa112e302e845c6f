//! How far two machines are apart on the same model.
//!
//! Both are fed the same tokens. Where one would choose a token that the other thinks less of than
//! of its own best, the difference in log-probability is the *regret* of that position: 0 where both
//! choose the same, small where they choose differently among near equals, large where one is wrong.

use anyhow::{Context, Result, ensure};
use rewind_checkpoint::Architecture;
use rewind_engine::{
    Executor, Input, Outputs, PageId, PageTable, Pass, Row, RowClass, Slot, Token, Weights,
};
use rewind_formats::{Format, Group, Mixture};
use rewind_monitor::oracle;

use crate::Machine;
use crate::bench::{Sizes, prompt};
use crate::model::{Precision, TinyModel, mixtures, small_spec};

/// Positions of many sequences, compared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Positions.
    pub positions: usize,
    /// Those where both choose the same token.
    pub same: usize,
    /// Largest regret, nats.
    pub worst: f64,
    /// Mean regret, nats.
    pub mean: f64,
    /// Largest difference of two log-probabilities of a token that either chooses, nats.
    pub apart: f64,
}

impl Agreement {
    /// Largest regret of one position that two machines may have, nats.
    pub const WORST: f64 = 0.2;
    /// Largest mean regret, nats.
    pub const MEAN: f64 = 0.06;

    /// Whether both may be called the same model.
    ///
    /// # Errors
    /// What is too far apart.
    pub fn check(&self) -> Result<()> {
        let Self { positions, worst, mean, .. } = *self;
        ensure!(positions > 0, "no position was compared");
        ensure!(worst <= Self::WORST, "a regret of {worst:.4} nats, above {}", Self::WORST);
        ensure!(mean <= Self::MEAN, "a mean regret of {mean:.4} nats, above {}", Self::MEAN);
        Ok(())
    }
}

/// Feeds both machines the same sequences, as prompts, in slot 0 and the pages from 0 on, and compares
/// what they think of every next token.
///
/// # Errors
/// A pass fails, or a sequence does not fit.
pub fn compare<A: Executor, B: Executor>(
    first: &mut A,
    second: &mut B,
    weights: Weights,
    sequences: &[Vec<Token>],
) -> Result<Agreement> {
    let mut agreement = Agreement::default();
    let mut total = 0.0;
    for tokens in sequences {
        let rows = first.limits().rows.min(second.limits().rows).max(1);
        for start in (0..tokens.len()).step_by(rows as usize) {
            let end = tokens.len().min(start + rows as usize);
            let a = logits(first, weights, tokens, start..end).context("the first machine")?;
            let b = logits(second, weights, tokens, start..end).context("the second machine")?;
            for (a, b) in a.iter().zip(&b) {
                let (p, q) = (oracle::softmax(a), oracle::softmax(b));
                let (of_p, of_q) = (best(a), best(b));
                let ln = |p: &[f64], token: usize| p[token].ln();
                let regrets = [ln(&p, of_p) - ln(&p, of_q), ln(&q, of_q) - ln(&q, of_p)];
                let regret = f64::max(regrets[0], regrets[1]);
                let apart = [of_p, of_q].map(|token| (ln(&p, token) - ln(&q, token)).abs());
                agreement.positions += 1;
                agreement.same += usize::from(of_p == of_q);
                agreement.worst = agreement.worst.max(regret);
                agreement.apart = agreement.apart.max(apart[0]).max(apart[1]);
                total += regret;
            }
        }
    }
    agreement.mean = total / agreement.positions.max(1) as f64;
    Ok(agreement)
}

/// Compares two machines on small random models: the shadow, and drafts of each kind.
///
/// # Errors
/// A pass fails, or they are further apart than [`Agreement::check`] allows.
pub fn machines<A: Machine, B: Machine>(first: &A, second: &B) -> Result<()> {
    let vocabulary = first.scale().vocabulary.min(second.scale().vocabulary);
    let spec = small_spec(Architecture::Qwen2, vocabulary);
    let sizes = Sizes { slots: 1, rows: 32, positions: 64 };
    let sequences: Vec<_> = (0..2).map(|seed| prompt(seed, 24, vocabulary)).collect();
    let formats = [
        Format::Int4Group(Group::G32),
        Format::Int6Group(Group::G64),
        Format::Int4Affine(Group::G128),
        Format::Nf4,
        Format::Fp8,
        Format::Int8,
        Format::Bf16,
    ];
    for draft in formats.map(Mixture::from).into_iter().chain(mixtures(spec.layers)) {
        let model = TinyModel::new(spec.clone(), Precision::F16, draft.clone());
        let (mut first, mut second) = (first.make(&model, sizes)?, second.make(&model, sizes)?);
        for weights in [Weights::Draft, Weights::Full] {
            compare(&mut first, &mut second, weights, &sequences)
                .and_then(|agreement| agreement.check())
                .with_context(|| format!("{weights:?} weights, {draft} draft"))?;
        }
    }
    Ok(())
}

/// Logits of some positions of a sequence of which those before are in the cache.
fn logits<E: Executor>(
    executor: &mut E,
    weights: Weights,
    tokens: &[Token],
    range: std::ops::Range<usize>,
) -> Result<Vec<Vec<f32>>> {
    let limits = executor.limits();
    let pages = (tokens.len() as u32).div_ceil(limits.page_tokens);
    let (there, layers) = (limits.pages, limits.layers);
    ensure!(pages <= there, "{} tokens need {pages} pages, there are {there}", tokens.len());
    let row = |position: usize| Row {
        slot: Slot(0),
        position: position as u32,
        class: RowClass::Prompt,
        input: Input::Token(tokens[position]),
        outputs: Outputs { logits: true, ..Outputs::default() },
        gate: None,
        adapter: None,
    };
    let table = PageTable { slot: Slot(0), pages: (0..pages).map(PageId).collect() };
    let rows = range.map(row).collect();
    let pass = Pass { weights, layers: 0..layers, copies: Vec::new(), tables: vec![table], rows };
    let ticket = executor.submit(pass)?;
    let results = executor.wait(ticket)?;
    let logits = |result: rewind_engine::RowResult| {
        let logits = result.logits.context("a row that wanted logits came without")?;
        ensure!(oracle::is_finite(&logits), "logits are not finite");
        Ok(logits)
    };
    results.into_iter().map(logits).collect()
}

fn best(logits: &[f32]) -> usize {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (1..logits.len()).fold(0, better)
}
