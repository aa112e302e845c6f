//! Model check of the engine core: the code that serves, over every interleaving of submissions,
//! cancellations, outside page holders and row results that a small world allows.
//!
//! The mock executor of this model keeps what each KV entry was computed from, so a row that would
//! attend to a missing, stale or foreign entry is a violation, and so is a write to a page that
//! somebody else holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rewind_engine::sampling::Sampling;
use rewind_engine::text::Vocabulary;
use rewind_engine::{
    Core, Event, ExecutorError, GateChoice, Limits, PageId, Pass, Passes, Pin, Policy, Request,
    RequestId, RowClass, RowResult, Selection, Settings, Stop, Token, Weights,
};
use rewind_monitor::{Candidate, Detector, Gate, PromptEntropies, Statistics};
use stateright::{Checker, Model, Property};

const EOS: Token = 0;
const A: Token = 1;
const B: Token = 2;

const PAGE_TOKENS: u32 = 2;

fn vocabulary() -> Vocabulary {
    Vocabulary::new([&b""[..], b"a", b"b"])
}

fn request(policy: Policy, max_tokens: u32, stop: &[&str]) -> Request {
    let exact = matches!(policy, Policy::Lossless { .. } | Policy::Shadow);
    let prefill =
        if exact || matches!(policy, Policy::Step { .. }) { Weights::Full } else { Weights::Draft };
    Request {
        prompt: vec![A, B],
        max_tokens,
        min_tokens: 0,
        stop: Stop {
            eos: vec![EOS],
            tokens: Vec::new(),
            strings: stop.iter().map(|s| (*s).to_owned()).collect(),
        },
        sampling: Sampling::GREEDY,
        policy,
        gate: Gate { detector: Detector::Entropy, threshold: 1.0 }.into(),
        prefill,
        logprobs: None,
    }
}

/// The same with two gates to choose from, of which the second fits the mock's entropies, and calls
/// every step suspect that the executor was not asked about.
fn choosing_gate(request: Request) -> Request {
    let candidate = |mean, threshold| Candidate {
        gate: Gate { detector: Detector::Entropy, threshold },
        prompts: PromptEntropies { mean, mean_deviation: 1.0, spread: 0.0, spread_deviation: 1.0 },
    };
    let candidates = [candidate(5.0, 1.0), candidate(0.5, 0.25)];
    Request { gate: GateChoice::ByPrompt(candidates.into()), ..request }
}

/// Settings of one run of the checker.
#[derive(Clone)]
struct World {
    requests: Vec<Request>,
    pages: u32,
    settings: Settings,
    pins: bool,
    failures: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Seen {
    committed: Vec<Token>,
    finals: u32,
    cancelled: bool,
    policy: Option<Policy>,
    /// Whether the prompt is to choose the gate.
    chooses: bool,
    /// How often it has.
    chosen: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    core: Core,
    submitted: usize,
    flying: Option<Passes>,
    /// What each entry of a held page was computed from.
    memory: BTreeMap<(PageId, u32), (Token, Weights)>,
    seen: BTreeMap<RequestId, Seen>,
    pin: Option<Pin>,
    pinned_once: bool,
    /// Milestones, so that the checker can show that it got there.
    copied: bool,
    rewound: bool,
    ended_in_window: bool,
    chosen: bool,
    violation: Option<String>,
}

/// One possible answer of the mock executor to a row that chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Plain(Token),
    Suspect(Token),
    NotFinite,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Submit,
    Cancel(RequestId),
    Pin(RequestId),
    Unpin,
    Plan,
    /// Answers of the choosing rows of both passes in order.
    Apply(Vec<Answer>),
    /// Both passes fail.
    Fail,
}

fn choosing(passes: &Passes) -> impl Iterator<Item = (Weights, RowClass)> + '_ {
    passes
        .draft
        .iter()
        .chain(&passes.full)
        .flat_map(|pass| pass.rows.iter().map(move |row| (pass.weights, row)))
        .filter(|(_, row)| row.outputs.choose.is_some())
        .map(|(weights, row)| (weights, row.class))
}

/// Every combination of answers while there are few rows; else one row at a time departs from A.
fn answers(passes: &Passes) -> Vec<Vec<Answer>> {
    let choices: Vec<Vec<Answer>> = choosing(passes)
        .map(|(weights, _)| match weights {
            Weights::Draft => {
                vec![Answer::Plain(A), Answer::Suspect(A), Answer::Plain(EOS), Answer::NotFinite]
            }
            Weights::Full => vec![Answer::Plain(A), Answer::Plain(B), Answer::Plain(EOS)],
        })
        .collect();
    let combinations: usize = choices.iter().map(Vec::len).product();
    if combinations <= 27 {
        return choices.iter().fold(vec![Vec::new()], |lists, choice| {
            lists
                .iter()
                .flat_map(|list| choice.iter().map(move |answer| [&list[..], &[*answer]].concat()))
                .collect()
        });
    }
    let usual: Vec<Answer> = choices.iter().map(|choice| choice[0]).collect();
    let mut lists = vec![usual.clone()];
    for (index, choice) in choices.iter().enumerate() {
        for &answer in &choice[1..] {
            let mut list = usual.clone();
            list[index] = answer;
            lists.push(list);
        }
    }
    lists
}

fn result(answer: Option<Answer>) -> RowResult {
    let (token, finite, suspect) = match answer {
        None => (None, true, false),
        Some(Answer::Plain(token)) => (Some(token), true, false),
        Some(Answer::Suspect(token)) => (Some(token), true, true),
        Some(Answer::NotFinite) => (None, false, true),
    };
    let statistics = Statistics { entropy: 0.5, varentropy: 0.0, top1: 0.5, margin: 1.0, finite };
    RowResult {
        token,
        runner_up: None,
        statistics,
        suspect,
        logprobs: Arc::default(),
        logits: None,
        taps: Vec::new(),
    }
}

impl State {
    fn complain(&mut self, text: String) {
        self.violation.get_or_insert(text);
    }

    /// Runs a pass on the mock memory, checking every entry that its rows attend to.
    fn run(&mut self, pass: &Pass) {
        let mut held: BTreeMap<PageId, u32> = BTreeMap::new();
        for audit in self.core.audit() {
            for page in audit.pages {
                *held.entry(*page).or_default() += 1;
            }
        }
        for page in self.pin.iter().flat_map(|pin| pin.pages()) {
            *held.entry(*page).or_default() += 1;
        }
        for copy in &pass.copies {
            self.copied = true;
            for offset in 0..PAGE_TOKENS {
                if let Some(&entry) = self.memory.get(&(copy.from, offset)) {
                    self.memory.insert((copy.to, offset), entry);
                }
            }
        }
        let table = |slot| pass.tables.iter().find(|table| table.slot == slot);
        for row in &pass.rows {
            let Some(table) = table(row.slot) else {
                return self.complain(format!("no table for {:?}", row.slot));
            };
            let page = table.pages[(row.position / PAGE_TOKENS) as usize];
            if held.get(&page) != Some(&1) {
                self.complain(format!("{page:?} is written and has holders {:?}", held.get(&page)));
            }
            let rewind_engine::Input::Token(token) = row.input else {
                return self.complain("the input is not a token".into());
            };
            self.memory.insert((page, row.position % PAGE_TOKENS), (token, pass.weights));
        }
        let mut last: BTreeMap<_, u32> = BTreeMap::new();
        for row in &pass.rows {
            if last.insert(row.slot, row.position).is_some_and(|before| before >= row.position) {
                self.complain(format!("rows of {:?} do not ascend", row.slot));
            }
            let Some(table) = table(row.slot) else { continue };
            let Some(audit) = self
                .core
                .audit()
                .find(|audit| audit.in_flight && audit.pages.first() == table.pages.first())
            else {
                self.complain(format!("{:?} belongs to nobody", row.slot));
                continue;
            };
            let lossless = self.seen.get(&audit.id).is_some_and(|seen| {
                matches!(seen.policy, Some(Policy::Lossless { .. } | Policy::Shadow))
            });
            let mut fault = None;
            for position in 0..=row.position {
                let page = table.pages[(position / PAGE_TOKENS) as usize];
                let entry = self.memory.get(&(page, position % PAGE_TOKENS));
                match entry {
                    Some((token, _)) if *token != audit.tokens[position as usize] => {
                        fault = Some(format!("stale entry at {position}"));
                    }
                    Some((_, Weights::Draft)) if lossless && pass.weights == Weights::Full => {
                        fault = Some(format!("lossless attends to a draft entry at {position}"));
                    }
                    Some(_) => {}
                    None => fault = Some(format!("missing entry at {position}")),
                }
            }
            if let Some(fault) = fault {
                self.complain(fault);
            }
        }
    }

    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            let id = event.id();
            let seen = self.seen.entry(id).or_default();
            if seen.finals > 0 {
                self.complain(format!("{event:?} after the end of {id:?}"));
                continue;
            }
            if event.is_final() {
                seen.finals += 1;
            }
            match event {
                Event::Token { committed, .. } => {
                    if seen.cancelled {
                        self.complain(format!("{id:?} commits after its cancellation"));
                    } else {
                        seen.committed.push(committed.token);
                        if seen.chosen != u32::from(seen.chooses) {
                            let chosen = seen.chosen;
                            self.complain(format!("{id:?} commits with {chosen} gates chosen"));
                        }
                    }
                }
                Event::GateChosen { .. } => {
                    seen.chosen += 1;
                    self.chosen = true;
                }
                Event::Rewound { .. } => self.rewound = true,
                Event::Cancelled { .. } if !seen.cancelled => {
                    self.complain(format!("{id:?} was never cancelled"));
                }
                _ => {}
            }
        }
    }

    /// Checks what must hold between iterations, and forgets entries that nobody can read.
    fn settle(&mut self) {
        let mut readable: BTreeSet<(PageId, u32)> = BTreeSet::new();
        let mut faults = Vec::new();
        for audit in self.core.audit() {
            let written = audit.kv.len() as u32;
            for position in 0..written {
                let page = audit.pages[(position / PAGE_TOKENS) as usize];
                let place = (page, position % PAGE_TOKENS);
                let by = self.memory.get(&place).map(|(_, weights)| *weights);
                if by != Some(audit.kv[position as usize]) {
                    faults.push(format!("entry {position} was written by {by:?}"));
                }
                readable.insert(place);
            }
            if audit.pages.len() as u32 != written.div_ceil(PAGE_TOKENS) {
                faults.push(format!("{} entries in {} pages", written, audit.pages.len()));
            }
            if !audit.prefilling && audit.kv.len() + 1 != audit.tokens.len() {
                faults.push(format!(
                    "{} entries for {} tokens",
                    audit.kv.len(),
                    audit.tokens.len()
                ));
            }
            let committed = &audit.tokens[2..audit.committed];
            let told = self.seen.get(&audit.id).map_or(&[][..], |seen| &seen.committed);
            if committed != told {
                faults.push(format!("{committed:?} committed, {told:?} told"));
            }
        }
        for fault in faults {
            self.complain(fault);
        }
        for page in self.pin.iter().flat_map(|pin| pin.pages()) {
            readable.extend((0..PAGE_TOKENS).map(|offset| (*page, offset)));
        }
        self.memory.retain(|place, _| readable.contains(place));
    }

    fn done(&self) -> bool {
        let load = self.core.load();
        load.waiting + load.prefilling + load.drafting + load.verifying == 0
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let limits = Limits {
            vocabulary: 3,
            layers: 1,
            slots: 2,
            rows: 8,
            pages: self.pages,
            page_tokens: PAGE_TOKENS,
            positions: 8,
        };
        vec![State {
            core: Core::new(limits, self.settings.clone()),
            submitted: 0,
            flying: None,
            memory: BTreeMap::new(),
            seen: BTreeMap::new(),
            pin: None,
            pinned_once: false,
            copied: false,
            rewound: false,
            ended_in_window: false,
            chosen: false,
            violation: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.submitted < self.requests.len() {
            actions.push(Action::Submit);
        }
        for (id, seen) in &state.seen {
            if seen.finals == 0 && !seen.cancelled {
                actions.push(Action::Cancel(*id));
                if self.pins && !state.pinned_once {
                    actions.push(Action::Pin(*id));
                }
            }
        }
        if state.pin.is_some() {
            actions.push(Action::Unpin);
        }
        match &state.flying {
            Some(passes) => {
                actions.extend(answers(passes).into_iter().map(Action::Apply));
                if self.failures {
                    actions.push(Action::Fail);
                }
            }
            None if state.done() && state.seen.values().all(|seen| seen.finals > 0) => {}
            None => actions.push(Action::Plan),
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Submit => {
                let request = self.requests[state.submitted].clone();
                let policy = request.policy;
                let chooses = matches!(request.gate, GateChoice::ByPrompt(_));
                state.submitted += 1;
                match state.core.submit(request) {
                    Ok(id) => {
                        let seen = Seen { policy: Some(policy), chooses, ..Seen::default() };
                        state.seen.insert(id, seen);
                    }
                    Err(refusal) => state.complain(format!("refused: {refusal}")),
                }
            }
            Action::Cancel(id) => {
                state.core.cancel(id);
                state.seen.entry(id).or_default().cancelled = true;
            }
            Action::Pin(id) => {
                state.pin = Some(state.core.pin(id)?);
                state.pinned_once = true;
            }
            Action::Unpin => {
                let pin = state.pin.take()?;
                state.core.unpin(pin);
                if state.flying.is_none() {
                    state.settle();
                }
            }
            Action::Plan => {
                let passes = state.core.plan(Selection::All);
                if passes.draft.is_none() && passes.full.is_none() {
                    let events = state.core.apply(None, None, &vocabulary());
                    if events.is_empty() {
                        state.complain("requests wait and nothing runs".into());
                    }
                    state.take(events);
                    state.settle();
                } else {
                    for pass in passes.draft.iter().chain(&passes.full) {
                        state.run(pass);
                    }
                    state.flying = Some(passes);
                }
            }
            Action::Apply(answers) => {
                let passes = state.flying.take()?;
                let before: BTreeMap<RequestId, usize> =
                    state.seen.iter().map(|(id, seen)| (*id, seen.committed.len())).collect();
                let verified: Vec<RequestId> = state
                    .core
                    .audit()
                    .filter(|audit| {
                        passes.full.as_ref().is_some_and(|pass| {
                            pass.tables
                                .iter()
                                .any(|table| table.pages.first() == audit.pages.first())
                        }) && audit.in_flight
                            && !audit.prefilling
                    })
                    .map(|audit| audit.id)
                    .collect();
                let mut answers = answers.into_iter();
                let mut answer = |pass: &Pass| {
                    Ok(pass
                        .rows
                        .iter()
                        .map(|row| result(row.outputs.choose.as_ref().and_then(|_| answers.next())))
                        .collect::<Vec<_>>())
                };
                let draft = passes.draft.as_ref().map(&mut answer);
                let full = passes.full.as_ref().map(&mut answer);
                let events = state.core.apply(draft, full, &vocabulary());
                state.ended_in_window |= events.iter().any(
                    |event| matches!(event, Event::Finished { id, .. } if verified.contains(id)),
                );
                state.take(events);
                for id in verified {
                    let seen = &state.seen[&id];
                    if !seen.cancelled && seen.committed.len() == before[&id] {
                        state.complain(format!("a verification of {id:?} committed nothing"));
                    }
                }
                state.settle();
            }
            Action::Fail => {
                let passes = state.flying.take()?;
                let error = ExecutorError::PassFailed("scripted".into());
                let draft = passes.draft.map(|_| Err(error.clone()));
                let full = passes.full.map(|_| Err(error));
                let events = state.core.apply(draft, full, &vocabulary());
                state.take(events);
                state.settle();
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no violation", |_, state: &State| state.violation.is_none()),
            Property::always("at most one final event", |_, state: &State| {
                state.seen.values().all(|seen| seen.finals <= 1)
            }),
            Property::always("what is ended is freed", |_, state: &State| {
                !state.done() || state.pin.is_some() || state.core.is_pristine()
            }),
            Property::always("every ended request was told so", |world: &Self, state: &State| {
                let mut actions = Vec::new();
                world.actions(state, &mut actions);
                !actions.is_empty() || state.seen.values().all(|seen| seen.finals == 1)
            }),
            Property::sometimes("a rewind happens", |_, state: &State| state.rewound),
            Property::sometimes("a verified window ends a sequence", |_, state: &State| {
                state.ended_in_window
            }),
            Property::sometimes("a prompt chooses a gate", |world: &Self, state: &State| {
                let fixed = |request: &Request| matches!(request.gate, GateChoice::Fixed(_));
                state.chosen || world.requests.iter().all(fixed)
            }),
            Property::sometimes(
                "a page is copied before a write",
                |world: &Self, state: &State| state.copied || !world.pins,
            ),
            Property::sometimes("everything ends", |world: &Self, state: &State| {
                state.submitted == world.requests.len()
                    && state.seen.values().all(|seen| seen.finals == 1)
            }),
        ]
    }
}

/// Checks a world whole; prints how big it was, and fails with the path to a violation.
fn check(name: &str, world: World) {
    let checker = world.checker().threads(2).spawn_bfs().join();
    println!(
        "{name}: {} unique states, {} visited, depth {}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    if let Some(path) = checker.discovery("no violation") {
        let violation = path.last_state().violation.clone();
        panic!("{name}: {violation:?}\nafter {:#?}", path.into_actions());
    }
    checker.assert_properties();
}

fn pooled(verify_rows: u32, verify_wait: u32) -> Settings {
    Settings { max_queue: 4, max_batch_rows: 8, verify_rows, verify_wait }
}

#[test]
fn step_beside_window() {
    check(
        "step beside window",
        World {
            requests: vec![
                request(Policy::Step { refresh: 1 }, 2, &[]),
                request(Policy::Window { tokens: 2, refresh: 1 }, 3, &[]),
            ],
            pages: 6,
            settings: pooled(3, 1),
            pins: false,
            failures: false,
        },
    );
}

#[test]
fn prompts_that_choose_their_gates() {
    let step = request(Policy::Step { refresh: 1 }, 2, &[]);
    check(
        "gates chosen by prompts",
        World {
            requests: vec![
                choosing_gate(Request { prefill: Weights::Draft, ..step }),
                choosing_gate(request(Policy::Window { tokens: 2, refresh: 1 }, 2, &[])),
            ],
            pages: 6,
            settings: pooled(3, 1),
            pins: false,
            failures: true,
        },
    );
}

#[test]
fn lossless_beside_shadow() {
    check(
        "lossless beside shadow",
        World {
            requests: vec![
                request(Policy::Lossless { tokens: 2 }, 3, &[]),
                request(Policy::Shadow, 2, &[]),
            ],
            pages: 6,
            settings: pooled(3, 1),
            pins: false,
            failures: false,
        },
    );
}

#[test]
fn lossless_alone_with_an_outside_holder_and_failures() {
    check(
        "lossless with a pin",
        World {
            requests: vec![request(Policy::Lossless { tokens: 2 }, 4, &["aba"])],
            pages: 8,
            settings: pooled(4, 0),
            pins: true,
            failures: true,
        },
    );
}

#[test]
fn windows_with_stop_strings_queue_for_one_place() {
    check(
        "windows in a queue",
        World {
            requests: vec![
                request(Policy::Window { tokens: 2, refresh: 0 }, 3, &["aa"]),
                request(Policy::Off, 2, &[]),
                request(Policy::Window { tokens: 2, refresh: 2 }, 2, &[]),
            ],
            // The first two fill the cache, the third must wait for one of them.
            pages: 6,
            settings: pooled(2, 0),
            pins: false,
            failures: false,
        },
    );
}
