//! What is answered to a row whose logits are known: the token, what its distribution looks like, and
//! whether the gate calls it suspect.

use std::sync::Arc;

use rewind_engine::sampling::{self, Scratch};
use rewind_engine::{Choose, Row, RowResult, Token};
use rewind_monitor::Statistics;

use crate::statistics::{Summary, Tile};

/// The answer to a row.
pub(crate) fn to(row: &Row, logits: &[f32], tiles: &[Tile], scratch: &mut Scratch) -> RowResult {
    let outputs = &row.outputs;
    let summary = Summary::new(logits, tiles);
    let raw = outputs.logits.then(|| logits.to_vec());
    if !summary.finite {
        let statistics = Statistics::NOT_FINITE;
        return RowResult { statistics, suspect: true, logits: raw, ..RowResult::empty() };
    }
    let mut statistics = Statistics::UNMEASURED;
    if row.needs_sums() {
        statistics = summary.statistics();
    }
    let (mut token, mut runner_up) = (None, None);
    if let Some(choose) = &outputs.choose {
        if is_plain(choose) {
            token = Some(summary.best.0 as Token);
            runner_up = summary.second.map(|(id, _)| id as Token);
            statistics.margin = summary.margin();
        } else {
            let choice = sampling::choose(
                logits,
                &choose.sampling,
                &choose.history,
                &choose.banned,
                choose.mask.as_ref(),
                choose.position,
                scratch,
            );
            (token, runner_up) = (Some(choice.token), choice.runner_up);
            statistics.margin = choice.margin;
        }
    }
    let suspect = row.gate.is_some_and(|gate| gate.is_suspect(&statistics));
    if !outputs.statistics {
        statistics = Statistics { margin: statistics.margin, ..Statistics::UNMEASURED };
    }
    let logprobs = match outputs.logprobs {
        Some(count) => sampling::logprobs(logits, token, count, summary.log_z()),
        None => Arc::default(),
    };
    RowResult { token, runner_up, statistics, suspect, logprobs, logits: raw, taps: Vec::new() }
}

/// Whether the answer is in the tiles.
pub(crate) fn is_cheap(row: &Row) -> bool {
    row.outputs.logprobs.is_none() && row.outputs.choose.as_ref().is_none_or(is_plain)
}

/// Whether choosing is no more than reading the summary.
fn is_plain(choose: &Choose) -> bool {
    choose.sampling.is_plain_argmax() && choose.banned.is_empty() && choose.mask.is_none()
}
