//! Whole engines: what a request answers depends on the request alone, and `lossless` answers what the
//! shadow does.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rewind_checkpoint::Architecture;
use rewind_engine::sampling::Sampling;
use rewind_engine::text::Vocabulary;
use rewind_engine::{
    Decision, Engine, Event, Executor, FinishReason, GateChoice, Policy, Request, RequestId,
    Selection, Settings, Stop, Token, TokenLogprob, Weights,
};
use rewind_formats::{Format, Group};
use rewind_monitor::{Candidate, Detector, Gate, PromptEntropies, Statistics};

use crate::bench::{DETECTORS, Sizes, prompt};
use crate::model::{Precision, TinyModel, small_spec};
use crate::{Case, Machine};

pub(crate) fn cases<M: Machine>() -> Vec<Case<M>> {
    vec![
        Case::new("policies: lossless is the shadow, greedy", |machine| lossless(machine, 0.0)),
        Case::new("policies: lossless is the shadow, sampled", |machine| lossless(machine, 0.8)),
        Case::new("policies: neighbours and pooling change nothing", neighbours),
        Case::new("policies: every run gives the same bits", reruns),
    ]
}

/// All that a client can see of a request.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<Token>,
    text: String,
    decisions: Vec<Decision>,
    statistics: Vec<Option<Statistics>>,
    logprobs: Vec<Arc<[TokenLogprob]>>,
    rewinds: u32,
    /// Which gate the prompt chose.
    candidate: Option<usize>,
    reason: Option<FinishReason>,
}

impl Answer {
    /// Compares what a client asked for.
    fn same(&self, found: &Self) -> Result<()> {
        first_difference("token", &self.tokens, &found.tokens)?;
        let (a, b) = (&self.text, &found.text);
        ensure!(a == b, "the text is {b:?}, not {a:?}");
        let (a, b) = (self.reason, found.reason);
        ensure!(a == b, "it ended by {b:?}, not {a:?}");
        Ok(())
    }

    /// Compares that, and all that a client can be told about it.
    fn identical(&self, found: &Self) -> Result<()> {
        self.same(found)?;
        first_difference("decision", &self.decisions, &found.decisions)?;
        first_difference("statistics", &self.statistics, &found.statistics)?;
        first_difference("log-probabilities", &self.logprobs, &found.logprobs)?;
        let (a, b) = (self.rewinds, found.rewinds);
        ensure!(a == b, "{b} rewinds, not {a}");
        let (a, b) = (self.candidate, found.candidate);
        ensure!(a == b, "the prompt chose gate {b:?}, not {a:?}");
        Ok(())
    }
}

fn first_difference<T: PartialEq + Debug>(what: &str, expected: &[T], found: &[T]) -> Result<()> {
    if let Some(at) = expected.iter().zip(found).position(|(a, b)| a != b) {
        bail!("{what} {at}: {:?}, not {:?}", found[at], expected[at]);
    }
    ensure!(expected.len() == found.len(), "{what}: {}, not {}", found.len(), expected.len());
    Ok(())
}

/// An engine over an executor that is new.
fn engine<M: Machine>(machine: &M, settings: Settings) -> Result<Engine<M::Executor>> {
    let vocabulary = machine.scale().vocabulary;
    let spec = small_spec(Architecture::Qwen3, vocabulary);
    let model = TinyModel::new(spec, Precision::F16, Format::Int4Group(Group::G32));
    let sizes = Sizes { slots: machine.scale().requests, rows: 64, positions: 128 };
    let executor = machine.make(&model, sizes).context("the executor cannot be made")?;
    let pieces: Vec<String> = (0..vocabulary).map(|id| format!(" {id}")).collect();
    Ok(Engine::new(executor, Vocabulary::new(pieces.iter().map(String::as_bytes)), settings))
}

/// Runs requests beside each other to their ends.
fn serve<E: Executor>(engine: &mut Engine<E>, requests: &[Request]) -> Result<Vec<Answer>> {
    let mut answers: BTreeMap<RequestId, Answer> = BTreeMap::new();
    for request in requests {
        answers.insert(engine.submit(request.clone())?, Answer::default());
    }
    while !engine.is_idle() {
        let step = engine.step(Selection::All);
        ensure!(!step.passes.is_empty() || !step.events.is_empty(), "nothing runs, nothing ends");
        for event in step.events {
            let answer = answers.get_mut(&event.id()).context("an event of an unknown request")?;
            match event {
                Event::Token { committed, .. } => {
                    answer.tokens.push(committed.token);
                    answer.text.push_str(&committed.text);
                    answer.decisions.push(committed.decision);
                    answer.statistics.push(committed.statistics);
                    answer.logprobs.push(committed.logprobs);
                }
                Event::GateChosen { candidate, .. } => answer.candidate = Some(candidate),
                Event::Rewound { .. } => answer.rewinds += 1,
                Event::Finished { reason, text, .. } => {
                    answer.text.push_str(&text);
                    answer.reason = Some(reason);
                }
                Event::Failed { error, .. } => bail!("a request failed: {error}"),
                Event::Cancelled { .. } => bail!("a request was cancelled by nobody"),
            }
        }
    }
    ensure!(engine.load().pages_used == 0, "pages are held for nobody");
    Ok(answers.into_values().collect())
}

/// Requests with prompts of many lengths, each with a seed of its own.
fn requests<M: Machine>(machine: &M, policy: Policy, temperature: f32) -> Vec<Request> {
    let scale = machine.scale();
    let exact = matches!(policy, Policy::Lossless { .. } | Policy::Shadow);
    let request = |number: usize| Request {
        // Some start below the end of a page and grow over it.
        prompt: prompt(number + 1, 3 + 13 * number % 40, scale.vocabulary),
        max_tokens: scale.answer,
        min_tokens: 0,
        stop: Stop::default(),
        sampling: Sampling { temperature, seed: number as u64, ..Sampling::GREEDY },
        policy,
        gate: Gate { detector: Detector::Entropy, threshold: f32::INFINITY }.into(),
        prefill: if exact { Weights::Full } else { Weights::Draft },
        logprobs: Some(2),
    };
    (0..scale.requests).map(request).collect()
}

fn lossless<M: Machine>(machine: &M, temperature: f32) -> Result<()> {
    let mut engine = engine(machine, Settings::default())?;
    let shadow = serve(&mut engine, &requests(machine, Policy::Shadow, temperature))?;
    let (mut verified, mut rewound) = (0, 0);
    for tokens in [2, 4, 8] {
        let requests = requests(machine, Policy::Lossless { tokens }, temperature);
        let together = serve(&mut engine, &requests)?;
        for (number, (shadow, answer)) in shadow.iter().zip(&together).enumerate() {
            let what = || format!("windows of {tokens}, request {number} of {}", requests.len());
            shadow.same(answer).with_context(what)?;
            let count = |kind| answer.decisions.iter().filter(|&&one| one == kind).count();
            verified += count(Decision::Verified);
            rewound += count(Decision::Rewound);
        }
        let alone = serve(&mut engine, &requests[..1])?;
        shadow[0].same(&alone[0]).with_context(|| format!("windows of {tokens}, alone"))?;
        together[0]
            .identical(&alone[0])
            .with_context(|| format!("windows of {tokens}, alone and not"))?;
    }
    // The draft is so poor that both come up; else nothing was tested.
    ensure!(
        verified > 0 && rewound > 0,
        "{verified} tokens were verified and {rewound} rewound; both should come up"
    );
    let alone = requests(machine, Policy::Shadow, temperature).pop().context("a request")?;
    let found = serve(&mut engine, &[alone])?;
    let expected = shadow.last().context("a request")?;
    expected.identical(&found[0]).context("the shadow alone")
}

/// Requests of every policy beside each other, against each alone.
fn neighbours<M: Machine>(machine: &M) -> Result<()> {
    let mut alone = engine(machine, Settings::default())?;
    // A threshold that about half of the steps exceed.
    let observed = serve(&mut alone, &requests(machine, Policy::Observe, 0.8))?;
    let median = |detector: Detector| -> Result<f32> {
        let statistics = observed.iter().flat_map(|answer| answer.statistics.iter().flatten());
        let mut scores: Vec<f32> = statistics.map(|row| detector.score(row)).collect();
        scores.sort_by(f32::total_cmp);
        scores.get(scores.len() / 2).copied().context("no statistics")
    };
    let policies = [
        Policy::Step { refresh: 0 },
        Policy::Window { tokens: 3, refresh: 2 },
        Policy::Lossless { tokens: 3 },
        Policy::Observe,
        Policy::Step { refresh: 4 },
        Policy::Shadow,
        Policy::Off,
        Policy::Window { tokens: 5, refresh: 0 },
    ];
    // Two kinds of prompts that all prompts here lie between.
    let candidate = |gate| {
        let prompts =
            PromptEntropies { mean: 2.0, mean_deviation: 1.0, spread: 0.2, spread_deviation: 0.2 };
        Candidate { gate, prompts }
    };
    let other = |gate: &Gate| {
        let prompts = PromptEntropies { mean: 6.0, ..candidate(*gate).prompts };
        Candidate { gate: Gate { threshold: f32::INFINITY, ..*gate }, prompts }
    };
    // With fewer requests than policies, in several batches of different company.
    let count = machine.scale().requests;
    let mut batches = Vec::new();
    for batch in 0..policies.len().div_ceil(count) {
        let mut all = Vec::new();
        for number in 0..count {
            let index = batch * count + number;
            let policy = policies[index % policies.len()];
            let detector = DETECTORS[index % DETECTORS.len()];
            let temperature = if index.is_multiple_of(3) { 0.0 } else { 0.8 };
            let request = requests(machine, policy, temperature).swap_remove(number);
            let gate = Gate { detector, threshold: median(detector)? };
            // With statistics and without, judged by the draft and by nobody.
            let gate = match index {
                0..=2 | 6 => GateChoice::ByPrompt([other(&gate), candidate(gate)].into()),
                _ => gate.into(),
            };
            all.push(Request { gate, ..request });
        }
        batches.push(all);
    }
    let pooled = |verify_rows, verify_wait| Settings {
        max_batch_rows: 16,
        verify_rows,
        verify_wait,
        ..Settings::default()
    };
    let (mut drafts, mut rewinds) = (0, 0);
    for (number, batch) in batches.iter().enumerate() {
        let mut expected = Vec::new();
        for request in batch {
            let answer = serve(&mut alone, std::slice::from_ref(request))?.remove(0);
            chosen_as_named(&mut alone, request, &answer)?;
            expected.push(answer);
        }
        for (verify_rows, verify_wait) in [(1, 0), (6, 3)] {
            let mut engine = engine(machine, pooled(verify_rows, verify_wait))?;
            let together = serve(&mut engine, batch)?;
            for (request, (expected, found)) in batch.iter().zip(expected.iter().zip(&together)) {
                expected.identical(found).with_context(|| {
                    let policy = request.policy;
                    format!("batch {number}, {policy}, verify_rows {verify_rows}, verify_wait {verify_wait}")
                })?;
            }
        }
        for answer in &expected {
            drafts += answer.decisions.iter().filter(|&&one| one == Decision::Draft).count();
            rewinds += answer.rewinds;
        }
    }
    ensure!(drafts > 0 && rewinds > 0, "{drafts} draft tokens, {rewinds} rewinds: want both");
    Ok(())
}

/// A gate that a prompt chose does as one that was named.
fn chosen_as_named<E: Executor>(
    engine: &mut Engine<E>,
    request: &Request,
    answer: &Answer,
) -> Result<()> {
    let GateChoice::ByPrompt(candidates) = &request.gate else { return Ok(()) };
    let off = request.policy == Policy::Off;
    ensure!(answer.candidate.is_none() == off, "{}: {:?}", request.policy, answer.candidate);
    let gate = candidates[answer.candidate.unwrap_or(0)].gate;
    let named = Request { gate: gate.into(), ..request.clone() };
    let named = serve(engine, &[named])?.remove(0);
    let named = Answer { candidate: answer.candidate, ..named };
    named.identical(answer).context("a gate that the prompt chose, and the same by name")
}

fn reruns<M: Machine>(machine: &M) -> Result<()> {
    let policies = [Policy::Lossless { tokens: 4 }, Policy::Observe, Policy::Shadow];
    let all: Vec<_> = requests(machine, Policy::Observe, 0.8)
        .into_iter()
        .enumerate()
        .map(|(number, request)| {
            let policy = policies[number % policies.len()];
            Request { policy, prefill: Weights::Full, ..request }
        })
        .collect();
    let mut first = engine(machine, Settings::default())?;
    let expected = serve(&mut first, &all)?;
    // Once with everything warm and stale entries in the cache, once from nothing.
    for (name, engine) in
        [("again", &mut first), ("anew", &mut engine(machine, Settings::default())?)]
    {
        let found = serve(engine, &all)?;
        for (number, (expected, found)) in expected.iter().zip(&found).enumerate() {
            expected.identical(found).with_context(|| format!("{name}, request {number}"))?;
        }
    }
    Ok(())
}
