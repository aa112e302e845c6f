//! One running sequence: its tokens, its KV, its text, and where it stands.

use std::sync::Arc;

use rewind_monitor::{Gate, Statistics, prompt};

use crate::event::{Committed, Decision, Event, FinishReason, RewindReason, SequenceError};
use crate::executor::{
    Choose, Input, Outputs, Row, RowClass, RowResult, Slot, Token, TokenLogprob, Weights,
};
use crate::pages::{Kv, Pool};
use crate::request::{GateChoice, Policy, Request, RequestId};
use crate::sampling::{History, Sampling};
use crate::text::{Pushed, TextStream, Vocabulary};

/// A token that the draft proposed and nobody has committed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Drafted {
    pub(crate) token: Token,
    statistics: Option<Statistics>,
    logprobs: Arc<[TokenLogprob]>,
}

/// Where a running sequence stands. Waiting ones have no state yet, ended ones none any more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// The prompt is being read; its KV length says how far.
    Prefilling,
    /// Draft weights propose; `pending` is held back.
    Drafting { pending: Vec<Drafted> },
    /// Shadow weights choose every token.
    Decoding,
    /// `pending` waits for a shadow pass.
    Verifying { pending: Vec<Drafted>, reason: Option<RewindReason> },
}

/// What a row unit of a pass does for its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Work {
    /// One row: the newest token.
    Decode,
    /// Last committed and pending tokens on the shadow, with refreshed entries before them.
    Verify,
    /// A chunk of the prompt.
    Prefill,
}

/// What applying results reads and changes outside of the sequence.
pub(crate) struct Surroundings<'a> {
    pub(crate) vocabulary: &'a Vocabulary,
    pub(crate) pool: &'a mut Pool,
    pub(crate) events: &'a mut Vec<Event>,
}

/// What became of a sequence after its results were applied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Runs,
    Finished(FinishReason, String),
    Failed(SequenceError),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sequence {
    pub(crate) id: RequestId,
    pub(crate) slot: Slot,
    pub(crate) request: Arc<Request>,
    pub(crate) phase: Phase,
    pub(crate) kv: Kv,
    /// Iterations since this sequence last had a row in a pass.
    pub(crate) waited: u32,
    /// Cancelled while in a submitted pass.
    pub(crate) cancelled: bool,
    /// Prompt and committed tokens, then the pending ones.
    tokens: Vec<Token>,
    /// How many of `tokens` are prompt or committed.
    committed: usize,
    /// The sequence ends when this many are.
    limit: usize,
    text: TextStream,
    /// What drafts are judged by; `None` until the prompt has chosen it.
    gate: Option<Gate>,
    /// Entropies of the prompt rows that choose it, so far, as bits.
    entropies: Vec<u32>,
    sampling: Arc<Sampling>,
    /// Sorted EOS and stop ids, banned until `min_tokens`.
    stops: Arc<[Token]>,
}

impl Sequence {
    pub(crate) fn new(
        id: RequestId,
        slot: Slot,
        request: Arc<Request>,
        kv: Kv,
        positions: u32,
    ) -> Self {
        let prompt = request.prompt.len();
        let limit = (prompt as u64 + u64::from(request.max_tokens)).min(u64::from(positions));
        let mut stops: Vec<Token> =
            request.stop.eos.iter().chain(&request.stop.tokens).copied().collect();
        stops.sort_unstable();
        stops.dedup();
        let gate = match &request.gate {
            GateChoice::Fixed(gate) => Some(*gate),
            // Nothing is measured, so nothing can be chosen, and nothing is judged.
            GateChoice::ByPrompt(candidates) if request.policy == Policy::Off => {
                candidates.first().map(|candidate| candidate.gate)
            }
            GateChoice::ByPrompt(_) => None,
        };
        Self {
            id,
            slot,
            phase: Phase::Prefilling,
            kv,
            waited: 0,
            cancelled: false,
            tokens: request.prompt.clone(),
            committed: prompt,
            limit: limit as usize,
            text: TextStream::new(if request.min_tokens == 0 {
                request.stop.strings.clone().into()
            } else {
                // As with stop tokens, min_tokens comes first.
                Arc::default()
            }),
            gate,
            entropies: Vec::new(),
            sampling: Arc::new(request.sampling.clone()),
            stops: stops.into(),
            request,
        }
    }

    /// Tokens that this sequence holds: prompt, committed and pending.
    pub(crate) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Prompt and committed tokens.
    pub(crate) fn committed(&self) -> usize {
        self.committed
    }

    /// What it needs next, and on which weights.
    pub(crate) fn wants(&self) -> (Weights, Work) {
        match self.phase {
            Phase::Prefilling => (self.request.prefill, Work::Prefill),
            Phase::Drafting { .. } => (Weights::Draft, Work::Decode),
            Phase::Decoding => (Weights::Full, Work::Decode),
            Phase::Verifying { .. } => (Weights::Full, Work::Verify),
        }
    }

    /// Rows that `wants` would take, all of them.
    pub(crate) fn wanted_rows(&self) -> u32 {
        match &self.phase {
            Phase::Prefilling => self.tokens.len() as u32 - self.kv.len(),
            Phase::Drafting { .. } | Phase::Decoding => 1,
            Phase::Verifying { pending, .. } => {
                let (first, last) = self.verified_positions(pending);
                self.refreshed_positions(first).len() as u32 + last - first + 1
            }
        }
    }

    /// Rows whose tokens the shadow is to choose, without those it only refreshes on the way.
    pub(crate) fn verified_rows(&self) -> u32 {
        match &self.phase {
            Phase::Verifying { pending, .. } => {
                let (first, last) = self.verified_positions(pending);
                last - first + 1
            }
            _ => 0,
        }
    }

    /// Rows of the next unit of work, at most `most` of a prompt.
    pub(crate) fn rows(&self, most: u32) -> Vec<Row> {
        match &self.phase {
            Phase::Prefilling => {
                let (from, to) = (self.kv.len(), self.tokens.len() as u32);
                (from..to.min(from + most))
                    .map(|position| {
                        let last = position + 1 == to;
                        let outputs = if last {
                            self.outputs(position, true)
                        } else {
                            Outputs { statistics: self.samples(position), ..Outputs::default() }
                        };
                        self.row(position, RowClass::Prompt, outputs)
                    })
                    .collect()
            }
            Phase::Drafting { .. } | Phase::Decoding => {
                let position = self.tokens.len() as u32 - 1;
                vec![self.row(position, RowClass::Generated, self.outputs(position, true))]
            }
            Phase::Verifying { pending, .. } => {
                let (first, last) = self.verified_positions(pending);
                let refreshed = self
                    .refreshed_positions(first)
                    .into_iter()
                    .map(|position| self.row(position, RowClass::Generated, Outputs::default()));
                let verified = (first..=last).map(|position| {
                    // Only a token that no draft stands beside is judged by the shadow's row.
                    let alone = position - first >= pending.len() as u32;
                    self.row(position, RowClass::Generated, self.outputs(position, alone))
                });
                refreshed.chain(verified).collect()
            }
        }
    }

    /// Takes the results of one unit of work. Events go to `events`, the end is returned.
    pub(crate) fn apply(
        &mut self,
        weights: Weights,
        rows: &[Row],
        results: &[RowResult],
        around: &mut Surroundings<'_>,
    ) -> Outcome {
        for row in rows {
            self.kv.wrote(row.position, weights);
        }
        if self.phase == Phase::Prefilling && self.gate.is_none() {
            self.sample(rows, results, around);
        }
        // `plan` never gives a unit without rows.
        let (Some(row), Some(result)) = (rows.last(), results.last()) else { return Outcome::Runs };
        match std::mem::replace(&mut self.phase, Phase::Decoding) {
            Phase::Prefilling if (self.kv.len() as usize) < self.tokens.len() => {
                self.phase = Phase::Prefilling;
                Outcome::Runs
            }
            Phase::Prefilling => match weights {
                Weights::Draft => self.take_draft(Vec::new(), row, result, around),
                Weights::Full => self.take_shadow(Decision::Verified, row, result, around),
            },
            Phase::Decoding => self.take_shadow(Decision::Verified, row, result, around),
            Phase::Drafting { pending } => self.take_draft(pending, row, result, around),
            Phase::Verifying { pending, reason } => {
                self.take_verification(pending, reason, rows, results, around)
            }
        }
    }

    /// Positions whose rows a verification scores: the last committed token's, then the pending
    /// ones'; the last pending token's only if the token after it could be used.
    fn verified_positions(&self, pending: &[Drafted]) -> (u32, u32) {
        let first = self.committed as u32 - 1;
        let Some(newest) = pending.last() else { return (first, first) };
        let bonus = match self.request.policy {
            Policy::Step { .. } => false,
            _ => self.tokens.len() < self.limit && !self.is_stop(newest.token),
        };
        (first, first + pending.len() as u32 - u32::from(!bonus))
    }

    fn refreshed_positions(&self, first: u32) -> Vec<u32> {
        match self.request.policy {
            Policy::Step { refresh } | Policy::Window { refresh, .. } => {
                self.kv.drafts_before(first, refresh)
            }
            _ => Vec::new(),
        }
    }

    fn row(&self, position: u32, class: RowClass, outputs: Outputs) -> Row {
        let gate = match (self.wants().0, self.request.policy) {
            (Weights::Draft, Policy::Step { .. } | Policy::Window { .. }) => {
                self.gate.filter(|_| outputs.choose.is_some())
            }
            _ => None,
        };
        Row {
            slot: self.slot,
            position,
            class,
            input: Input::Token(self.tokens[position as usize]),
            outputs,
            gate,
            adapter: None,
        }
    }

    fn outputs(&self, position: u32, judged: bool) -> Outputs {
        let next = position as usize + 1;
        let prompt = self.request.prompt.len();
        let history = if self.sampling.reads_history() {
            History { tokens: self.tokens[..next].into(), prompt }
        } else {
            History::default()
        };
        let early = next - prompt < self.request.min_tokens as usize;
        Outputs {
            choose: Some(Choose {
                sampling: self.sampling.clone(),
                history,
                banned: if early { self.stops.clone() } else { Arc::default() },
                mask: None,
                position: next as u32,
            }),
            statistics: judged && self.request.policy != Policy::Off,
            logprobs: self.request.logprobs,
            logits: false,
            taps: 0..0,
        }
    }

    fn is_stop(&self, token: Token) -> bool {
        self.stops.binary_search(&token).is_ok()
    }

    /// Whether the prompt row at this position helps to choose the gate.
    fn samples(&self, position: u32) -> bool {
        self.gate.is_none() && prompt::is_sampled(position, self.request.prompt.len() as u32)
    }

    /// Notes the entropies of a chunk of the prompt, and chooses the gate after the last one. Rows that
    /// are not finite have none.
    fn sample(&mut self, rows: &[Row], results: &[RowResult], around: &mut Surroundings<'_>) {
        let sampled = rows.iter().zip(results).filter(|(row, _)| self.samples(row.position));
        let entropies: Vec<u32> = sampled
            .filter(|(_, result)| result.statistics.finite)
            .map(|(_, result)| result.statistics.entropy.to_bits())
            .collect();
        self.entropies.extend(entropies);
        let request = Arc::clone(&self.request);
        let GateChoice::ByPrompt(candidates) = &request.gate else { return };
        if (self.kv.len() as usize) < self.tokens.len() {
            return;
        }
        let entropies: Vec<f32> =
            std::mem::take(&mut self.entropies).into_iter().map(f32::from_bits).collect();
        if let Some(candidate) = prompt::choose(candidates, &entropies) {
            self.gate = Some(candidates[candidate].gate);
            around.events.push(Event::GateChosen { id: self.id, candidate });
        }
    }

    /// Whether a draft must not be trusted. A row that was planned before the gate was chosen, the
    /// prompt's last, carried none and is judged here.
    fn is_suspect(&self, row: &Row, result: &RowResult) -> bool {
        let late = self.gate.filter(|_| row.gate.is_none());
        result.suspect || late.is_some_and(|gate| gate.is_suspect(&result.statistics))
    }

    /// A proposal of the draft weights, after the tokens in `pending`.
    fn take_draft(
        &mut self,
        mut pending: Vec<Drafted>,
        row: &Row,
        result: &RowResult,
        around: &mut Surroundings<'_>,
    ) -> Outcome {
        let policy = self.request.policy;
        let (Some(token), true) = (result.token, result.statistics.finite) else {
            if matches!(policy, Policy::Off | Policy::Observe) {
                return Outcome::Failed(SequenceError::NotFinite {
                    weights: "draft",
                    position: row.position,
                });
            }
            // The entry that this row wrote is as suspect as its logits.
            self.kv.truncate(row.position, around.pool);
            self.phase = Phase::Verifying { pending, reason: Some(RewindReason::NotFinite) };
            return Outcome::Runs;
        };
        self.tokens.push(token);
        pending.push(Drafted {
            token,
            statistics: row.outputs.statistics.then_some(result.statistics),
            logprobs: result.logprobs.clone(),
        });
        let full = |most: u32| {
            pending.len() >= most as usize || self.tokens.len() >= self.limit || self.is_stop(token)
        };
        let (verify, reason) = match policy {
            Policy::Lossless { tokens } if full(tokens) => (true, None),
            Policy::Step { .. } | Policy::Window { .. } if self.is_suspect(row, result) => {
                (true, Some(RewindReason::Suspect))
            }
            Policy::Lossless { .. } => (false, None),
            Policy::Window { tokens, .. } if !full(tokens) => (false, None),
            _ => return self.commit_drafts(pending, around),
        };
        self.phase =
            if verify { Phase::Verifying { pending, reason } } else { Phase::Drafting { pending } };
        Outcome::Runs
    }

    fn commit_drafts(&mut self, pending: Vec<Drafted>, around: &mut Surroundings<'_>) -> Outcome {
        for drafted in pending {
            let Drafted { token, statistics, logprobs } = drafted;
            let ended = self.commit(token, statistics, Decision::Draft, logprobs, around);
            if let Some(end) = ended {
                return end;
            }
        }
        self.phase = Phase::Drafting { pending: Vec::new() };
        Outcome::Runs
    }

    /// A token that the shadow chose with no draft beside it.
    fn take_shadow(
        &mut self,
        decision: Decision,
        row: &Row,
        result: &RowResult,
        around: &mut Surroundings<'_>,
    ) -> Outcome {
        let (Some(token), true) = (result.token, result.statistics.finite) else {
            return Outcome::Failed(SequenceError::NotFinite {
                weights: "shadow",
                position: row.position,
            });
        };
        let shadow = self.request.policy == Policy::Shadow;
        let decision = if shadow { Decision::Shadow } else { decision };
        let statistics = row.outputs.statistics.then_some(result.statistics);
        self.tokens.push(token);
        let logprobs = result.logprobs.clone();
        if let Some(end) = self.commit(token, statistics, decision, logprobs, around) {
            return end;
        }
        self.phase = if shadow { Phase::Decoding } else { Phase::Drafting { pending: Vec::new() } };
        Outcome::Runs
    }

    /// Commits the shadow's tokens up to and including the first that differs from the draft.
    fn take_verification(
        &mut self,
        pending: Vec<Drafted>,
        reason: Option<RewindReason>,
        rows: &[Row],
        results: &[RowResult],
        around: &mut Surroundings<'_>,
    ) -> Outcome {
        let (first, last) = self.verified_positions(&pending);
        let verified = (last - first + 1) as usize;
        let skip = rows.len().saturating_sub(verified);
        let (rows, results) = (&rows[skip..], &results[skip..]);

        let agreed = pending
            .iter()
            .zip(results)
            .take_while(|(drafted, result)| result.token == Some(drafted.token))
            .count();
        let tokens = (pending.len() - agreed) as u32;
        // What the draft wrote is gone; the tokens that agreed come back as the shadow's.
        self.tokens.truncate(self.committed);
        if let Some(reason) = reason {
            around.events.push(Event::Rewound { id: self.id, reason, tokens });
        }

        let mut drafts = pending.into_iter();
        for (row, result) in rows.iter().zip(results) {
            let (Some(token), true) = (result.token, result.statistics.finite) else {
                return Outcome::Failed(SequenceError::NotFinite {
                    weights: "shadow",
                    position: row.position,
                });
            };
            let drafted = drafts.next();
            let agrees = drafted.as_ref().is_some_and(|drafted| drafted.token == token);
            // A draft row that was not finite proposed nothing, but a step was redone all the same.
            let replaced = match drafted {
                Some(_) => !agrees,
                None => reason == Some(RewindReason::NotFinite),
            };
            let statistics = match drafted {
                Some(drafted) => drafted.statistics,
                None => row.outputs.statistics.then_some(result.statistics),
            };
            let decision = if replaced { Decision::Rewound } else { Decision::Verified };
            // Told where it comes to light: an answer that ends before it has no mismatch.
            if replaced && reason.is_none() {
                let reason = RewindReason::Mismatch;
                around.events.push(Event::Rewound { id: self.id, reason, tokens });
            }
            self.tokens.push(token);
            let logprobs = result.logprobs.clone();
            let ended = self.commit(token, statistics, decision, logprobs, around);
            if let Some(end) = ended {
                return end;
            }
            if !agrees {
                break;
            }
        }
        self.kv.truncate(self.committed as u32 - 1, around.pool);
        self.phase = Phase::Drafting { pending: Vec::new() };
        Outcome::Runs
    }

    /// Commits the token at `tokens[committed]` and tests, in this order, for EOS and stop tokens,
    /// stop strings, and length.
    fn commit(
        &mut self,
        token: Token,
        statistics: Option<Statistics>,
        decision: Decision,
        logprobs: Arc<[TokenLogprob]>,
        around: &mut Surroundings<'_>,
    ) -> Option<Outcome> {
        self.committed += 1;
        let generated = self.committed - self.request.prompt.len();
        if generated == self.request.min_tokens as usize {
            self.text.watch(self.request.stop.strings.clone().into());
        }
        let ends = self.is_stop(token);
        let (text, stopped) = if ends {
            (self.text.finish(), true)
        } else {
            match self.text.push(around.vocabulary.piece(token)) {
                Pushed::Text(text) => (text, false),
                Pushed::Stopped(text) => (text, true),
            }
        };
        around.events.push(Event::Token {
            id: self.id,
            committed: Committed { token, text, statistics, decision, logprobs },
        });
        if stopped {
            return Some(Outcome::Finished(FinishReason::Stop, String::new()));
        }
        if self.committed >= self.limit {
            return Some(Outcome::Finished(FinishReason::Length, self.text.finish()));
        }
        None
    }
}
