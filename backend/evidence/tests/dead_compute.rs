//! Answers, their price, and regret, over a tiny model on the CPU.

use std::sync::Arc;

use rewind_checkpoint::Architecture;
use rewind_cpu::{Config, CpuExecutor, CpuModel, Isa, LoadOptions};
use rewind_engine::sampling::Sampling;
use rewind_engine::text::Vocabulary;
use rewind_engine::{
    Decision, Executor, ExecutorError, Limits, Pass, Policy, RowClass, RowResult, Settings, Ticket,
    Token, Weights,
};
use rewind_evidence::dead_compute::{
    CostTable, Curve, Play, PlayError, Verdict, composed, regret, threshold_at,
};
use rewind_executor_suite::{Precision, TinyModel, small_spec};
use rewind_formats::{DraftFormats, Format, Group};
use rewind_monitor::{Detector, Gate};

const VOCABULARY: usize = 97;
const TOKENS: u32 = 12;

fn executor(slots: usize) -> CpuExecutor {
    let format = Format::Int4Group(Group::G32);
    let model = TinyModel::new(small_spec(Architecture::Llama, VOCABULARY), Precision::F16, format);
    let options = LoadOptions {
        draft: model.draft.clone().map(DraftFormats::from),
        shadow: true,
        threads: 1,
        isa: Isa::detect(),
    };
    let model = CpuModel::load(&model.spec, model.source(), options, |_| ()).unwrap();
    let config =
        Config { threads: 1, slots, rows: 64, pages: 16 * slots, page_tokens: 8, positions: 64 };
    CpuExecutor::new(Arc::new(model), config).unwrap()
}

fn prompts() -> Vec<Vec<Token>> {
    (0..7).map(|number| (0..3 + number).map(|at| (7 * at + 11 * number) % 97).collect()).collect()
}

struct Scene {
    prompts: Vec<Vec<Token>>,
    gates: Vec<Gate>,
    vocabulary: Vocabulary,
}

impl Scene {
    fn new(detector: Detector, threshold: f32) -> Self {
        let prompts = prompts();
        let gates = vec![Gate { detector, threshold }; prompts.len()];
        Self { prompts, gates, vocabulary: Vocabulary::new([&b"x"[..]; VOCABULARY]) }
    }

    fn play(&self, policy: Policy, verdict: Verdict) -> Play<'_> {
        let prefill = match policy {
            Policy::Off | Policy::Observe => Weights::Draft,
            _ => Weights::Full,
        };
        Play {
            prompts: &self.prompts,
            gates: &self.gates,
            tokens: TOKENS,
            policy,
            verdict,
            prefill,
            sampling: Sampling { temperature: 0.8, seed: 5, ..Sampling::GREEDY },
            settings: Settings::default(),
            vocabulary: &self.vocabulary,
        }
    }
}

fn table() -> CostTable {
    let curve = |points: &[(usize, f64)]| Curve::new(points.to_vec()).unwrap();
    CostTable {
        draft: curve(&[(1, 1.0), (4, 1.5), (16, 4.0)]),
        shadow: curve(&[(1, 2.0), (4, 3.0), (16, 9.0)]),
        shadow_last: curve(&[(1, 2.0), (4, 2.5), (16, 7.0)]),
    }
}

/// Adds up what passes cost, as they really run.
struct Priced<'a> {
    executor: &'a mut CpuExecutor,
    seconds: f64,
}

impl Executor for Priced<'_> {
    fn limits(&self) -> &Limits {
        self.executor.limits()
    }

    fn identity(&self, weights: Weights) -> String {
        self.executor.identity(weights)
    }

    fn submit(&mut self, pass: Pass) -> Result<Ticket, ExecutorError> {
        let generated: Vec<_> =
            pass.rows.iter().filter(|row| row.class == RowClass::Generated).collect();
        let choosing = generated.iter().filter(|row| row.outputs.choose.is_some()).count();
        self.seconds += table().pass(pass.weights, generated.len(), choosing);
        self.executor.submit(pass)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Vec<RowResult>, ExecutorError> {
        self.executor.wait(ticket)
    }
}

const POLICIES: [Policy; 7] = [
    Policy::Off,
    Policy::Observe,
    Policy::Step { refresh: 0 },
    Policy::Step { refresh: 4 },
    Policy::Window { tokens: 3, refresh: 2 },
    Policy::Lossless { tokens: 4 },
    Policy::Shadow,
];

#[test]
fn what_is_priced_alone_is_what_runs_alone() {
    let scene = Scene::new(Detector::Margin, -0.2);
    let mut together = executor(5);
    let mut alone = executor(1);
    for policy in POLICIES {
        let play = scene.play(policy, Verdict::Measured);
        let answers = play.run(&mut together, || ()).unwrap();
        let costs = composed(&play, &answers, 1, &table()).unwrap();
        let mut priced = Priced { executor: &mut alone, seconds: 0.0 };
        let again = play.run(&mut priced, || ()).unwrap();
        assert_eq!(again, answers, "{policy}: answers do not depend on neighbours");
        let sum: f64 = costs.tokens.iter().flatten().sum();
        assert!((sum - priced.seconds).abs() < 1e-9, "{policy}: {sum} {}", priced.seconds);
        assert!(answers.iter().all(|answer| answer.tokens.len() == TOKENS as usize));
    }
}

#[test]
fn more_side_by_side_cost_less() {
    let scene = Scene::new(Detector::Margin, -0.2);
    let mut executor = executor(7);
    for policy in POLICIES {
        let play = scene.play(policy, Verdict::Measured);
        let answers = play.run(&mut executor, || ()).unwrap();
        let sum = |batch| -> f64 {
            let costs = composed(&play, &answers, batch, &table()).unwrap();
            costs.tokens.iter().flatten().sum()
        };
        let (one, seven) = (sum(1), sum(7));
        assert!(seven < one, "{policy}: {seven} against {one}");
    }
}

#[test]
fn lossless_has_the_tokens_of_the_shadow_and_no_regret_when_greedy() {
    let scene = Scene::new(Detector::Margin, f32::INFINITY);
    let mut executor = executor(3);
    let mut greedy = |policy| {
        let play = Play { sampling: Sampling::GREEDY, ..scene.play(policy, Verdict::Measured) };
        play.run(&mut executor, || ()).unwrap()
    };
    let shadow = greedy(Policy::Shadow);
    let lossless = greedy(Policy::Lossless { tokens: 4 });
    let off = greedy(Policy::Off);
    let tokens = |answers: &[rewind_evidence::dead_compute::Answer]| {
        answers.iter().map(|answer| answer.tokens.clone()).collect::<Vec<_>>()
    };
    assert_eq!(tokens(&shadow), tokens(&lossless));
    assert_ne!(tokens(&shadow), tokens(&off), "the draft is to be another model");
    let sum = |executor: &mut CpuExecutor, served: &[Token]| -> f64 {
        regret(executor, &scene.prompts[0], served).unwrap().iter().sum()
    };
    let answered = regret(&mut executor, &scene.prompts[0], &shadow[0].tokens).unwrap();
    assert_eq!(answered.len(), TOKENS as usize);
    // Prompt rows and generated ones differ in the last bits only.
    assert!(sum(&mut executor, &shadow[0].tokens) < 1e-3);
    assert!(sum(&mut executor, &[96; 12]) > 0.1);
}

#[test]
fn controls_fire_as_they_say() {
    let scene = Scene::new(Detector::Entropy, f32::INFINITY);
    let mut executor = executor(4);
    let step = Policy::Step { refresh: 0 };
    let mut rewinds = |verdict| {
        let answers = scene.play(step, verdict).run(&mut executor, || ()).unwrap();
        answers.iter().map(|answer| answer.rewinds).collect::<Vec<_>>()
    };
    assert!(rewinds(Verdict::Measured).iter().all(|&n| n == 0));
    // The first token comes with the prompt, from the shadow.
    let every = rewinds(Verdict::Random { rate: 1.0, seed: 1 });
    assert!(every.iter().all(|&n| n == TOKENS - 1), "{every:?}");
    let fourth = rewinds(Verdict::Periodic { every: 4 });
    assert!(fourth.iter().all(|&n| (2..=3).contains(&n)), "{fourth:?}");
}

#[test]
fn a_threshold_from_an_observed_run_gives_about_its_budget() {
    let mut scene = Scene::new(Detector::Margin, f32::INFINITY);
    let mut executor = executor(4);
    let observed =
        scene.play(Policy::Observe, Verdict::Measured).run(&mut executor, || ()).unwrap();
    let scores: Vec<f32> = observed
        .iter()
        .flat_map(|answer| answer.statistics.iter().flatten())
        .map(|statistics| Detector::Margin.score(statistics))
        .collect();
    let threshold = threshold_at(0.25, scores.clone());
    scene.gates.iter_mut().for_each(|gate| gate.threshold = threshold);
    let play = scene.play(Policy::Step { refresh: 2 }, Verdict::Measured);
    let answers = play.run(&mut executor, || ()).unwrap();
    let fired: u32 = answers.iter().map(|answer| answer.rewinds).sum();
    let share = f64::from(fired) / scores.len() as f64;
    assert!((0.05..0.6).contains(&share), "{share}");
    let rewound = answers.iter().flat_map(|answer| &answer.decisions);
    assert!(rewound.into_iter().any(|d| matches!(d, Decision::Rewound | Decision::Verified)));
}

#[test]
fn mistakes_are_named() {
    let mut scene = Scene::new(Detector::Margin, 0.0);
    scene.prompts[4] = scene.prompts[1].clone();
    let error =
        scene.play(Policy::Off, Verdict::Measured).run(&mut executor(1), || ()).unwrap_err();
    assert_eq!(error.to_string(), "prompts 1 and 4 are the same tokens: each must be another");
    scene.gates.pop();
    let error =
        scene.play(Policy::Off, Verdict::Measured).run(&mut executor(1), || ()).unwrap_err();
    assert!(matches!(error, PlayError::Gates { gates: 6, prompts: 7 }), "{error}");
    let error = regret(&mut executor(1), &[1; 60], &[2; 60]).unwrap_err();
    assert!(
        error.to_string().contains("119 tokens") && error.to_string().contains("64"),
        "{error}"
    );
}
