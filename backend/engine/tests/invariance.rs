//! What a request answers depends on the request alone: not on its neighbours, on how rows are
//! batched, chunked and pooled, on the driver, or on pages that somebody else holds.

mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use rewind_engine::sampling::Sampling;
use rewind_engine::text::Vocabulary;
use rewind_engine::{
    Decision, Engine, Event, FinishReason, GateChoice, Limits, Policy, Request, RequestId,
    Selection, Settings, Stop, Weights,
};
use rewind_monitor::{Candidate, Detector, Fused, Gate, PromptEntropies};
use support::{EOS, HashModel, limits};

/// All that a client could see of a request.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    text: String,
    decisions: Vec<Decision>,
    entropies: Vec<Option<u32>>,
    rewinds: u32,
    candidate: Option<usize>,
    reason: Option<FinishReason>,
    failed: bool,
}

fn vocabulary() -> Vocabulary {
    let pieces: Vec<Vec<u8>> = (0..16u8)
        .map(|id| match id {
            0 => Vec::new(),
            // Two halves of one character.
            14 => vec![0xc3],
            15 => vec![0xa9],
            id => vec![b'a' + id],
        })
        .collect();
    Vocabulary::new(pieces.iter().map(|piece| &piece[..]))
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![
        Just(Policy::Off),
        Just(Policy::Observe),
        (0..9u32).prop_map(|refresh| Policy::Step { refresh }),
        (1..6u32, 0..9u32).prop_map(|(tokens, refresh)| Policy::Window { tokens, refresh }),
        (1..9u32).prop_map(|tokens| Policy::Lossless { tokens }),
        Just(Policy::Shadow),
    ]
}

/// Gates that trigger seldom or often, by one statistic or several; or prompts that choose one.
fn gate() -> impl Strategy<Value = GateChoice> {
    let fused = Fused { bias: -3.0, entropy: 0.5, margin: -1.0, ..Fused::default() };
    let gate = prop_oneof![
        (1_f32..10.0).prop_map(|threshold| Gate { detector: Detector::Entropy, threshold }),
        (-3_f32..1.0)
            .prop_map(move |threshold| Gate { detector: Detector::Fused(fused), threshold }),
    ];
    // The mock's entropies are uniform over 0 to 10.
    let candidate = (gate.clone(), 2.0..8.0, 0.5..5.0).prop_map(|(gate, mean, spread)| Candidate {
        gate,
        prompts: PromptEntropies { mean, mean_deviation: 1.0, spread, spread_deviation: 1.0 },
    });
    prop_oneof![
        gate.prop_map(GateChoice::Fixed),
        prop::collection::vec(candidate, 1..4)
            .prop_map(|candidates| GateChoice::ByPrompt(candidates.into())),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    (
        prop::collection::vec(1..16u32, 1..40),
        1..30u32,
        0..4u32,
        any::<bool>(),
        prop::option::of("[b-f]{1,2}"),
        policy(),
        any::<bool>(),
        any::<u64>(),
        gate(),
    )
        .prop_map(
            |(prompt, max_tokens, min_tokens, eos, stop, policy, draft_prefill, seed, gate)| {
                let exact = matches!(policy, Policy::Lossless { .. } | Policy::Shadow);
                Request {
                    prompt,
                    max_tokens,
                    min_tokens,
                    stop: Stop {
                        eos: if eos { vec![EOS] } else { Vec::new() },
                        tokens: vec![3],
                        strings: stop.into_iter().collect(),
                    },
                    sampling: Sampling { seed, ..Sampling::GREEDY },
                    policy,
                    gate,
                    prefill: if draft_prefill && !exact { Weights::Draft } else { Weights::Full },
                    logprobs: None,
                }
            },
        )
}

fn settings() -> impl Strategy<Value = Settings> {
    (16..64u32, 1..12u32, 0..5u32).prop_map(|(max_batch_rows, verify_rows, verify_wait)| Settings {
        max_queue: 64,
        max_batch_rows,
        verify_rows,
        verify_wait,
    })
}

/// How the engine is driven.
#[derive(Clone, Copy, Debug)]
enum Driver {
    InFlight,
    /// A rotating part of the requests takes part in each iteration.
    Iterative,
}

fn serve(requests: &[Request], settings: Settings, slots: u32, driver: Driver) -> Vec<Answer> {
    let mut engine = Engine::new(HashModel::new(limits(64, slots)), vocabulary(), settings);
    let ids: Vec<RequestId> = requests
        .iter()
        .map(|request| engine.submit(request.clone()).expect("every generated request fits"))
        .collect();
    let mut answers: BTreeMap<RequestId, Answer> =
        ids.iter().map(|id| (*id, Answer::default())).collect();
    for iteration in 0..10_000 {
        if engine.is_idle() {
            break;
        }
        let some: Vec<RequestId> =
            ids.iter().copied().filter(|id| (id.0 + iteration) % 3 != 0).collect();
        let step = match driver {
            Driver::InFlight => engine.step(Selection::All),
            Driver::Iterative => engine.step(Selection::Only(&some)),
        };
        for event in step.events {
            let answer = answers.get_mut(&event.id()).expect("events are of known requests");
            assert!(answer.reason.is_none() && !answer.failed, "an event after the end");
            match event {
                Event::Token { committed, .. } => {
                    answer.tokens.push(committed.token);
                    answer.text.push_str(&committed.text);
                    answer.decisions.push(committed.decision);
                    answer
                        .entropies
                        .push(committed.statistics.map(|statistics| statistics.entropy.to_bits()));
                }
                Event::GateChosen { candidate, .. } => {
                    assert!(answer.tokens.is_empty(), "a gate is chosen before the first token");
                    assert_eq!(answer.candidate.replace(candidate), None, "a gate is chosen once");
                }
                Event::Rewound { .. } => answer.rewinds += 1,
                Event::Finished { reason, text, .. } => {
                    answer.text.push_str(&text);
                    answer.reason = Some(reason);
                }
                Event::Failed { .. } => answer.failed = true,
                Event::Cancelled { .. } => panic!("nothing was cancelled"),
            }
        }
    }
    assert!(engine.is_idle(), "requests never ended");
    assert_eq!(engine.load().pages_used, 0);
    answers.into_values().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn company_and_settings_change_nothing(
        requests in prop::collection::vec(request(), 1..7),
        settings in settings(),
        slots in 1..8u32,
        iterative in any::<bool>(),
    ) {
        let driver = if iterative { Driver::Iterative } else { Driver::InFlight };
        let together = serve(&requests, settings, slots, driver);
        for (request, answer) in requests.iter().zip(&together) {
            let alone = serve(
                std::slice::from_ref(request),
                Settings::default(),
                1,
                Driver::InFlight,
            );
            prop_assert_eq!(&alone[0], answer);
        }
    }

    /// A gate that a prompt chose does as one that was named.
    #[test]
    fn chosen_is_as_named(request in request()) {
        let serve = |request: &Request| {
            serve(std::slice::from_ref(request), Settings::default(), 1, Driver::InFlight).remove(0)
        };
        let answer = serve(&request);
        let candidate = match &request.gate {
            GateChoice::Fixed(_) => None,
            GateChoice::ByPrompt(candidates) => answer.candidate.map(|index| candidates[index]),
        };
        if let Some(candidate) = candidate {
            let named = serve(&Request { gate: candidate.gate.into(), ..request });
            prop_assert_eq!(Answer { candidate: answer.candidate, ..named }, answer);
        } else {
            prop_assert_eq!(answer.candidate, None);
        }
    }

    #[test]
    fn lossless_is_the_shadow(request in request(), tokens in 1..9u32) {
        let with = |policy| Request { policy, prefill: Weights::Full, ..request.clone() };
        let answers = serve(
            &[with(Policy::Lossless { tokens }), with(Policy::Shadow)],
            Settings::default(),
            2,
            Driver::InFlight,
        );
        prop_assert_eq!(&answers[0].tokens, &answers[1].tokens);
        prop_assert_eq!(&answers[0].text, &answers[1].text);
        prop_assert_eq!(answers[0].reason, answers[1].reason);
    }

    #[test]
    fn step_that_never_triggers_is_observe(request in request()) {
        let with = |policy| Request {
            policy,
            gate: Gate { detector: Detector::Entropy, threshold: f32::INFINITY }.into(),
            ..request.clone()
        };
        let answers = serve(
            &[with(Policy::Step { refresh: 0 }), with(Policy::Observe)],
            Settings::default(),
            2,
            Driver::InFlight,
        );
        // With a threshold that nothing exceeds, only rows that are not finite part them.
        if answers[0].rewinds == 0 && !answers[1].failed {
            prop_assert_eq!(&answers[0].tokens, &answers[1].tokens);
        }
    }
}

/// The property above would hold of an engine that never drafts; this one does.
#[test]
fn the_mock_exercises_every_decision() {
    let requests: Vec<Request> = [
        Policy::Step { refresh: 2 },
        Policy::Window { tokens: 3, refresh: 2 },
        Policy::Lossless { tokens: 4 },
        Policy::Shadow,
    ]
    .into_iter()
    .flat_map(|policy| {
        (1..9).map(move |first| Request {
            prompt: vec![first, 5, 6],
            max_tokens: 40,
            min_tokens: 0,
            stop: Stop::default(),
            sampling: Sampling::GREEDY,
            policy,
            gate: Gate { detector: Detector::Entropy, threshold: 7.0 }.into(),
            prefill: Weights::Full,
            logprobs: None,
        })
    })
    .collect();
    let answers = serve(&requests, Settings::default(), 4, Driver::InFlight);
    for decision in Decision::ALL {
        let count: usize = answers
            .iter()
            .flat_map(|answer| &answer.decisions)
            .filter(|taken| **taken == decision)
            .count();
        assert!(count > 20, "{decision} was taken {count} times");
    }
    assert!(answers.iter().map(|answer| answer.rewinds).sum::<u32>() > 50);
}

/// Passes that hold fewer verifications than fall due must still serve everybody in turn.
#[test]
fn nobody_starves_when_verifications_do_not_fit() {
    const SEQUENCES: u32 = 16;
    let limits = Limits {
        rows: 16,
        pages: 4096,
        positions: 512,
        slots: SEQUENCES,
        ..limits(4096, SEQUENCES)
    };
    let settings = Settings { max_batch_rows: 16, ..Settings::default() };
    let mut engine = Engine::new(HashModel::new(limits), vocabulary(), settings);
    let mut last: BTreeMap<RequestId, u32> = BTreeMap::new();
    for first in 1..=SEQUENCES {
        let request = Request {
            prompt: vec![first % 15 + 1, first % 16],
            max_tokens: 300,
            min_tokens: 0,
            stop: Stop::default(),
            sampling: Sampling { seed: first.into(), ..Sampling::GREEDY },
            policy: Policy::Lossless { tokens: 8 },
            gate: Gate { detector: Detector::Entropy, threshold: f32::INFINITY }.into(),
            prefill: Weights::Full,
            logprobs: None,
        };
        last.insert(engine.submit(request).expect("fits"), 0);
    }
    let mut iteration = 0;
    // Until the first one ends: from then on there is room.
    while last.len() == SEQUENCES as usize {
        iteration += 1;
        for event in engine.step(Selection::All).events {
            match event {
                Event::Token { id, .. } => _ = last.insert(id, iteration),
                Event::Finished { id, .. } => _ = last.remove(&id),
                _ => {}
            }
        }
        // A window of drafts, and one verification of each of the others.
        let (id, longest) =
            last.iter().map(|(id, at)| (id, iteration - at)).max_by_key(|x| x.1).unwrap();
        assert!(longest <= 8 + 2 * SEQUENCES, "{id:?} has waited for {longest} iterations");
    }
}
