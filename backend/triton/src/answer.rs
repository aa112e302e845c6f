//! What becomes of a request's events: the parts of its answer, and figures about it.
//!
//! Shared by both drivers, free of Triton, and run off the engine's thread.

use std::mem;

use rewind_engine::{Committed, Event, FinishReason};
use rewind_serving::{Frozen, Parameters, Prepared, Tally};

use crate::ffi::{Code, Error};
use crate::metrics::Record;

/// State of one answer.
#[derive(Debug)]
pub(crate) struct Answer {
    terms: Terms,
    /// What the prompt may choose from instead of the terms' own.
    candidates: Vec<Frozen>,
    tally: Tally,
    stream: bool,
    /// Not sent yet.
    part: Part,
    clock: Clock,
}

/// What every response of a request is built with; fixed at admission.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// Which outputs to build.
    pub(crate) wanted: Wanted,
    /// Profile, detector, threshold and KT, frozen.
    pub(crate) frozen: Frozen,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: u32,
    /// Seed that repeats the answer.
    pub(crate) seed: u64,
}

/// Outputs that the client asked for and has switched on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) text: bool,
    pub(crate) finish_reason: bool,
    pub(crate) logprobs: bool,
    pub(crate) num_input_tokens: bool,
    pub(crate) num_output_tokens: bool,
    pub(crate) token_ids: bool,
    pub(crate) entropy: bool,
    pub(crate) score: bool,
    pub(crate) threshold: bool,
    pub(crate) decision: bool,
    pub(crate) rewinds: bool,
}

impl Wanted {
    /// Text comes unasked, everything else behind its flag; nothing that the client did not list.
    fn new(parameters: &Parameters, outputs: &[String]) -> Self {
        let has = |name: &str| outputs.iter().any(|output| output == name);
        let rewind = |name| parameters.return_rewind && has(name);
        Self {
            text: has("text_output"),
            finish_reason: parameters.return_finish_reason && has("finish_reason"),
            logprobs: parameters.return_logprobs && has("logprobs"),
            num_input_tokens: parameters.return_num_input_tokens && has("num_input_tokens"),
            num_output_tokens: parameters.return_num_output_tokens && has("num_output_tokens"),
            token_ids: rewind("token_ids"),
            entropy: rewind("entropy"),
            score: rewind("score"),
            threshold: rewind("threshold"),
            decision: rewind("decision"),
            rewinds: rewind("rewinds"),
        }
    }
}

/// Content of one response.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Part {
    /// New text; the prompt stands before it where that was asked for.
    pub(crate) text: String,
    /// New tokens.
    pub(crate) tokens: Vec<Committed>,
    /// How often draft KV was discarded meanwhile.
    pub(crate) rewinds: u32,
    /// Why the sequence ended, in the last part.
    pub(crate) finish: Option<FinishReason>,
}

/// What an iteration means for the client.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Progress {
    /// Nothing to send.
    Nothing,
    /// A part, with more to come.
    Part(Part),
    /// The last part.
    Last(Part),
    /// The end without one; cancellations are errors of [`Code::Cancelled`].
    Failed(Error),
}

/// When things happened, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Clock {
    arrived: u64,
    /// The last committed token.
    token: Option<u64>,
}

impl Answer {
    /// `outputs`: names that the client listed; `echo`: the prompt stands before the answer;
    /// `arrived`: when the backend got the request.
    pub(crate) fn new(
        parameters: &Parameters,
        outputs: &[String],
        prepared: &Prepared,
        echo: bool,
        arrived: u64,
    ) -> Self {
        let text = prepared.prompt_text.clone().filter(|_| echo);
        Self {
            terms: Terms {
                wanted: Wanted::new(parameters, outputs),
                frozen: prepared.frozen.clone(),
                prompt_tokens: prepared.prompt_tokens,
                seed: prepared.seed,
            },
            candidates: prepared.candidates.clone(),
            tally: prepared.tally.clone(),
            stream: parameters.stream,
            part: Part { text: text.unwrap_or_default(), ..Part::default() },
            clock: Clock { arrived, token: None },
        }
    }

    /// What responses are built with.
    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// What the request has spent of the rewind budget.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Takes the events of one iteration, in order. `at`: when it ended, in nanoseconds.
    pub(crate) fn take(&mut self, events: Vec<Event>, at: u64, record: &mut Record) -> Progress {
        let committed = events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
        self.clock(committed, at, record);
        for event in events {
            self.tally.event(&event);
            match event {
                Event::GateChosen { candidate, .. } => {
                    if let Some(chosen) = self.candidates.get(candidate) {
                        self.terms.frozen = chosen.clone();
                        record.threshold(chosen.gate.threshold);
                    }
                }
                Event::Token { committed, .. } => {
                    record.token(&committed);
                    self.part.text.push_str(&committed.text);
                    self.part.tokens.push(committed);
                }
                Event::Rewound { reason, tokens, .. } => {
                    record.rewind(reason, tokens);
                    self.part.rewinds += 1;
                }
                Event::Finished { reason, text, .. } => {
                    record.end(seconds(at, self.clock.arrived));
                    self.part.text.push_str(&text);
                    self.part.finish = Some(reason);
                    return Progress::Last(mem::take(&mut self.part));
                }
                Event::Cancelled { .. } => return Progress::Failed(Error::cancelled()),
                Event::Failed { error, .. } => {
                    return Progress::Failed(Error::new(Code::Internal, error.to_string()));
                }
            }
        }
        // A rewind alone waits for the tokens that it brings.
        if self.stream && !self.part.tokens.is_empty() {
            Progress::Part(mem::take(&mut self.part))
        } else {
            Progress::Nothing
        }
    }

    fn clock(&mut self, committed: usize, at: u64, record: &mut Record) {
        if committed == 0 {
            return;
        }
        let mut later = committed;
        if self.clock.token.is_none() {
            record.first_token(seconds(at, self.clock.arrived), self.terms.prompt_tokens);
            later -= 1;
        }
        // Tokens that were committed together share the time since the last one.
        let since = self.clock.token.map_or(0.0, |token| seconds(at, token));
        for _ in 0..later {
            record.later_token(since / committed as f64);
        }
        self.clock.token = Some(at);
    }
}

fn seconds(later: u64, earlier: u64) -> f64 {
    later.saturating_sub(earlier) as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rewind_engine::{Decision, RequestId, RewindReason};
    use rewind_monitor::{Detector, Gate};

    use super::*;

    const ID: RequestId = RequestId(1);

    fn frozen(profile: &str, threshold: f32) -> Frozen {
        let gate = Gate { detector: Detector::Entropy, threshold };
        Frozen { profile: profile.into(), gate, thermal_coefficient: 1.0 }
    }

    #[test]
    fn the_prompts_choice_is_what_the_answer_tells() {
        let mut answer = answer(true, None);
        answer.candidates = vec![frozen("code", 2.0), frozen("math", 3.0)];
        let (mut record, chosen) = (Record::default(), Event::GateChosen { id: ID, candidate: 1 });
        assert_eq!(answer.take(vec![chosen], 1, &mut record), Progress::Nothing);
        assert_eq!(answer.terms().frozen, frozen("math", 3.0));
        assert_eq!(record.latest_threshold(), Some(3.0));
    }

    fn answer(stream: bool, prompt: Option<&str>) -> Answer {
        Answer {
            terms: Terms {
                wanted: Wanted::default(),
                frozen: frozen("prose", 1.0),
                prompt_tokens: 5,
                seed: 1,
            },
            candidates: Vec::new(),
            tally: Tally::default(),
            stream,
            part: Part { text: prompt.unwrap_or_default().into(), ..Part::default() },
            clock: Clock { arrived: 0, token: None },
        }
    }

    fn token(token: u32, text: &str) -> Event {
        Event::Token {
            id: ID,
            committed: Committed {
                token,
                text: text.into(),
                statistics: None,
                decision: Decision::Draft,
                logprobs: Arc::from([]),
            },
        }
    }

    fn texts(part: &Part) -> (&str, Vec<u32>) {
        (&part.text, part.tokens.iter().map(|committed| committed.token).collect())
    }

    #[test]
    fn streams_a_part_for_each_iteration() {
        let mut answer = answer(true, None);
        let record = &mut Record::default();
        let Progress::Part(part) = answer.take(vec![token(1, "a")], 1, record) else { panic!() };
        assert_eq!(texts(&part), ("a", vec![1]));
        // A token that lets go of no text is still a part, so that arrays line up.
        let Progress::Part(part) = answer.take(vec![token(2, "")], 2, record) else { panic!() };
        assert_eq!(texts(&part), ("", vec![2]));
        let rewound = Event::Rewound { id: ID, reason: RewindReason::Suspect, tokens: 2 };
        assert_eq!(answer.take(vec![rewound], 3, record), Progress::Nothing);
        let end = Event::Finished { id: ID, reason: FinishReason::Stop, text: "d".into() };
        let last = answer.take(vec![token(3, "b"), token(4, "c"), end], 4, record);
        let Progress::Last(part) = last else { panic!() };
        assert_eq!(texts(&part), ("bcd", vec![3, 4]));
        assert_eq!((part.rewinds, part.finish), (1, Some(FinishReason::Stop)));
    }

    #[test]
    fn gathers_everything_without_streaming() {
        let mut answer = answer(false, Some("prompt "));
        let record = &mut Record::default();
        assert_eq!(answer.take(vec![token(1, "a")], 1, record), Progress::Nothing);
        let end = Event::Finished { id: ID, reason: FinishReason::Length, text: String::new() };
        let Progress::Last(part) = answer.take(vec![token(2, "b"), end], 2, record) else {
            panic!()
        };
        assert_eq!(texts(&part), ("prompt ab", vec![1, 2]));
    }

    #[test]
    fn cancellation_is_an_error_of_its_own() {
        let progress =
            answer(true, None).take(vec![Event::Cancelled { id: ID }], 1, &mut Record::default());
        let Progress::Failed(error) = progress else { panic!() };
        assert_eq!(error.code(), Code::Cancelled);
    }

    #[test]
    fn outputs_need_their_flag_and_a_place_on_the_list() {
        let mut parameters = Parameters::default();
        parameters.return_finish_reason = true;
        parameters.return_rewind = true;
        let listed = ["text_output", "logprobs", "entropy"].map(String::from);
        let wanted = Wanted::new(&parameters, &listed);
        assert_eq!(wanted, Wanted { text: true, entropy: true, ..Wanted::default() });
    }
}
