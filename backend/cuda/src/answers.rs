//! From what the device answers to row results.

use std::sync::Arc;

use rewind_engine::{Outputs, RowResult, TokenLogprob};
use rewind_kernels::arguments::{Answer, LogprobEntry, NONE};
use rewind_monitor::Statistics;

/// The result of a row that went through the LM head, without logits and tap.
pub(crate) fn result(outputs: &Outputs, answer: &Answer, entries: &[LogprobEntry]) -> RowResult {
    if answer.finite == 0 {
        return RowResult { statistics: Statistics::NOT_FINITE, suspect: true, ..empty() };
    }
    let token = |id: u32| (id != NONE).then_some(id);
    let (mut chosen, mut runner_up) = (None, None);
    let mut statistics = empty().statistics;
    if outputs.statistics {
        statistics.entropy = answer.entropy;
        statistics.varentropy = answer.varentropy;
        statistics.top1 = answer.top1;
    }
    if outputs.choose.is_some() {
        (chosen, runner_up) = (token(answer.token), token(answer.runner_up));
        statistics.margin = answer.margin;
    }
    let listed = entries.iter().take_while(|entry| entry.token != NONE);
    let logprobs = listed.map(|entry| {
        let &LogprobEntry { token, logprob, rank } = entry;
        TokenLogprob { token, logprob, rank }
    });
    RowResult {
        token: chosen,
        runner_up,
        statistics,
        suspect: answer.suspect != 0,
        logprobs: if outputs.logprobs.is_some() { logprobs.collect() } else { Arc::new([]) },
        logits: None,
        tap: None,
    }
}

/// The answer to a row that wants nothing.
pub(crate) fn empty() -> RowResult {
    RowResult {
        token: None,
        runner_up: None,
        statistics: Statistics {
            entropy: 0.0,
            varentropy: 0.0,
            top1: 0.0,
            margin: 0.0,
            finite: true,
        },
        suspect: false,
        logprobs: Arc::new([]),
        logits: None,
        tap: None,
    }
}
