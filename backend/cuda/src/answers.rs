//! From what the device answers to row results.

use std::sync::Arc;

use rewind_engine::{Outputs, RowResult, TokenLogprob};
use rewind_kernels::arguments::{Answer, LogprobEntry, NONE};
use rewind_monitor::Statistics;

/// The result of a row that went through the LM head, without logits and taps.
pub(crate) fn result(outputs: &Outputs, answer: &Answer, entries: &[LogprobEntry]) -> RowResult {
    if answer.finite == 0 {
        return RowResult {
            statistics: Statistics::NOT_FINITE,
            suspect: true,
            ..RowResult::empty()
        };
    }
    let token = |id: u32| (id != NONE).then_some(id);
    let (mut chosen, mut runner_up) = (None, None);
    let mut statistics = Statistics::UNMEASURED;
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
        taps: Vec::new(),
    }
}
