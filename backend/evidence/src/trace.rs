//! One text read by both copies of the weights.
//!
//! Both are fed the same tokens (teacher-forced), each over keys and values of its own, so that the records tell how
//! two models differ on a text and not how an answer strays. Rows are of the class of generated ones: their numbers
//! are those that a gate would judge.

use std::ops::Range;
use std::sync::Arc;

use rewind_engine::sampling::{History, Sampling, Scratch, choose};
use rewind_engine::{
    Choose, Executor, Input, Outputs, PageId, PageTable, Pass, Row, RowClass, RowResult, Slot,
    Weights,
};
use rewind_monitor::prompt::{PromptSummary, is_sampled};

use crate::document::Document;
use crate::error::TraceError;
use crate::record::{Reading, Record, Sampled, Side, Trace};

/// Rows of a pass, at most: both copies' logits of a pass are in memory, four bytes for each token of the vocabulary.
const ROWS: usize = 64;

/// How a text is read.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    /// Temperatures to sample at, each above 0.
    pub temperatures: Vec<f32>,
    /// Key of the noise.
    pub seed: u64,
    /// Threads that compare logits; at least 1.
    pub threads: usize,
}

/// Feeds a document to both copies of the weights. `sensors` is asked once a pass, `progress` is told of positions that
/// are done, again and again.
///
/// The executor must hold no sequence: slots 0 and 1 and the first pages are used. Memory: the logits of 64 rows of
/// each copy, whatever the document's length.
///
/// # Errors
/// The document is too short or too long, a pass fails, or logits are not finite.
pub fn trace(
    executor: &mut impl Executor,
    document: &Document,
    settings: &TraceSettings,
    mut sensors: impl FnMut() -> Reading,
    mut progress: impl FnMut(usize),
) -> Result<Trace, TraceError> {
    let reader = Reader::new(executor, document)?;
    let tokens = document.tokens.len();
    let rows = ROWS.min(executor.limits().rows as usize).max(1);
    let mut records = Vec::with_capacity(tokens - document.prompt);
    let mut entropies = Vec::new();
    for first in (0..tokens).step_by(rows) {
        let range = first..(first + rows).min(tokens);
        let draft = reader.read(executor, Weights::Draft, range.clone())?;
        let shadow = reader.read(executor, Weights::Full, range.clone())?;
        for (position, row) in range.clone().zip(&shadow) {
            if reader.is_sampled(position) {
                entropies.push(row.statistics.entropy);
            }
        }
        let chip = sensors();
        let judged: Vec<_> = range
            .clone()
            .zip(draft.iter().zip(&shadow))
            .filter(|(position, _)| *position >= document.prompt)
            .collect();
        let share = judged.len().div_ceil(settings.threads.max(1)).max(1);
        let compared = std::thread::scope(|scope| {
            let workers: Vec<_> = judged
                .chunks(share)
                .map(|part| scope.spawn(|| compare_all(document, settings, chip, part)))
                .collect();
            let joined = workers.into_iter().map(|worker| match worker.join() {
                Ok(records) => records,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect::<Result<Vec<_>, _>>()
        })?;
        records.extend(compared.into_iter().flatten());
        progress(range.len());
    }
    // A prompt has at least one row, and its last one is looked at.
    let prompt = PromptSummary::of(&entropies).unwrap_or(PromptSummary { mean: 0.0, spread: 0.0 });
    Ok(Trace { prompt, records })
}

/// A document on its way through an executor.
struct Reader<'a> {
    document: &'a Document,
    layers: u16,
    /// Pages of the draft, and of the shadow.
    pages: [Arc<[PageId]>; 2],
}

impl<'a> Reader<'a> {
    fn new(executor: &impl Executor, document: &'a Document) -> Result<Self, TraceError> {
        let limits = executor.limits();
        let tokens = document.tokens.len();
        if document.prompt == 0 || document.prompt >= tokens {
            let (document, prompt) = (document.name.clone(), document.prompt);
            return Err(TraceError::TooShort { document, tokens, prompt });
        }
        let needed = tokens.div_ceil(limits.page_tokens.max(1) as usize);
        if tokens > limits.positions as usize
            || 2 * needed > limits.pages as usize
            || limits.slots < 2
        {
            return Err(TraceError::TooLong {
                document: document.name.clone(),
                tokens,
                slots: limits.slots,
                positions: limits.positions,
                pages: limits.pages,
                page_tokens: limits.page_tokens,
            });
        }
        let needed = needed as u32;
        let pages = [0..needed, needed..2 * needed].map(|range| range.map(PageId).collect());
        Ok(Self { document, layers: limits.layers, pages })
    }

    /// Reads some positions. Those after the prompt answer with everything, the sampled ones of the prompt with
    /// statistics.
    fn read(
        &self,
        executor: &mut impl Executor,
        weights: Weights,
        range: Range<usize>,
    ) -> Result<Vec<RowResult>, TraceError> {
        let side = usize::from(weights == Weights::Full);
        let slot = Slot(side as u32);
        let rows = range
            .clone()
            .map(|position| Row {
                slot,
                position: position as u32,
                class: RowClass::Generated,
                input: Input::Token(self.document.tokens[position]),
                outputs: self.outputs(position),
                gate: None,
                adapter: None,
            })
            .collect();
        let pass = Pass {
            weights,
            layers: 0..self.layers,
            copies: Vec::new(),
            tables: vec![PageTable { slot, pages: Arc::clone(&self.pages[side]) }],
            rows,
        };
        let failed = |source| TraceError::Pass { document: self.document.name.clone(), source };
        let ticket = executor.submit(pass).map_err(failed)?;
        let results = executor.wait(ticket).map_err(failed)?;
        if let Some((position, _)) =
            range.zip(&results).find(|(_, result)| !result.statistics.finite)
        {
            return Err(TraceError::NotFinite {
                document: self.document.name.clone(),
                weights: ["draft", "shadow"][side],
                position,
            });
        }
        Ok(results)
    }

    /// Whether the entropy of a row counts for the prompt.
    fn is_sampled(&self, position: usize) -> bool {
        is_sampled(position as u32, self.document.prompt as u32)
    }

    fn outputs(&self, position: usize) -> Outputs {
        let judged = position >= self.document.prompt;
        let choose = judged.then(|| Choose {
            sampling: Arc::new(Sampling::GREEDY),
            history: History::default(),
            banned: Arc::default(),
            mask: None,
            position: position as u32 + 1,
        });
        let statistics = judged || self.is_sampled(position);
        Outputs { choose, statistics, logits: judged, ..Outputs::default() }
    }
}

fn compare_all(
    document: &Document,
    settings: &TraceSettings,
    chip: Reading,
    rows: &[(usize, (&RowResult, &RowResult))],
) -> Result<Vec<Record>, TraceError> {
    let samplings: Vec<_> = settings
        .temperatures
        .iter()
        .map(|&temperature| Sampling { temperature, seed: settings.seed, ..Sampling::GREEDY })
        .collect();
    let mut scratch = Scratch::default();
    rows.iter()
        .map(|&(position, (draft, shadow))| {
            let missing =
                |what| TraceError::Missing { document: document.name.clone(), what, position };
            let of_draft = draft.logits.as_deref().ok_or_else(|| missing("logits"))?;
            let of_shadow = shadow.logits.as_deref().ok_or_else(|| missing("logits"))?;
            let token = |row: &RowResult| row.token.ok_or_else(|| missing("token"));
            let side = |row: &RowResult| {
                Ok::<_, TraceError>(Side { token: token(row)?, statistics: row.statistics })
            };
            let (draft, shadow) = (side(draft)?, side(shadow)?);
            let (divergence, best) = divergence(of_shadow, of_draft);
            let served =
                of_shadow.get(draft.token as usize).ok_or_else(|| missing("logit of its token"))?;
            let mut sample = |sampling: &Sampling, logits: &[f32]| {
                let at = position as u32 + 1;
                choose(logits, sampling, &History::default(), &[], None, at, &mut scratch)
            };
            let sampled = samplings
                .iter()
                .map(|sampling| {
                    let draft = sample(sampling, of_draft);
                    let shadow = sample(sampling, of_shadow);
                    Sampled {
                        temperature: sampling.temperature,
                        draft: draft.token,
                        shadow: shadow.token,
                        margin: draft.margin,
                    }
                })
                .collect();
            Ok(Record {
                position: position as u32,
                fed: document.tokens[position],
                draft,
                shadow,
                divergence: divergence as f32,
                // The normalizer cancels: ln p − ln p' = l − l'.
                regret: best - served,
                sampled,
                chip,
            })
        })
        .collect()
}

/// KL(p ‖ q) in nats of two rows of finite logits, and the greatest logit of p.
fn divergence(p: &[f32], q: &[f32]) -> (f64, f32) {
    let greatest = |row: &[f32]| row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (best, best_q) = (greatest(p), greatest(q));
    let (mut z, mut z_q, mut gap) = (0.0, 0.0, 0.0);
    for (&p, &q) in p.iter().zip(q) {
        let (p, q) = (f64::from(p) - f64::from(best), f64::from(q) - f64::from(best_q));
        let weight = p.exp();
        z += weight;
        z_q += q.exp();
        gap += weight * (p - q);
    }
    // Rounding must not make a distance negative.
    ((gap / z - z.ln() + z_q.ln()).max(0.0), best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_known_distributions() {
        let two = 2.0_f32.ln();
        // (1/2, 1/4, 1/4) beside (1/4, 1/2, 1/4).
        let (found, best) = divergence(&[two, 0.0, 0.0], &[0.0, two, 0.0]);
        assert!((found - f64::from(two) / 4.0).abs() < 1e-6, "{found}");
        assert_eq!(best, two);
        let (same, _) = divergence(&[1000.0, 999.0], &[0.0, -1.0]);
        assert!(same < 1e-9, "{same}");
    }
}
