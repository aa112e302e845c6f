//! Tasks that can be checked, done under every policy.

use anyhow::Result;
use rewind_engine::Policy;
use rewind_engine::sampling::Sampling;
use rewind_evidence::dead_compute::Play;
use rewind_evidence::tasks::{Kind, Task, tasks};
use rewind_monitor::Gate;
use rewind_serving::{AnyEngine, Model, Parameters, Prompt, Value};
use serde::Serialize;

use super::plan::{Judge, Run, runs};
use super::{Arguments, Bench, NEVER};
use crate::progress;

/// Tokens of an answer: enough for what is asked.
const TOKENS: u32 = 32;

/// One policy and one kind of task.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    #[serde(flatten)]
    run: Run,
    kind: &'static str,
    tasks: usize,
    right: usize,
    /// Right where the shadow is wrong.
    gained: usize,
    /// Wrong where the shadow is right.
    lost: usize,
    /// The same tokens as the shadow's.
    same: usize,
}

/// Whether an answer is right, and its tokens.
type Done = (bool, Vec<u32>);

/// Does them all; nothing if none is asked for.
pub(super) fn run(
    model: &Model,
    engine: &mut AnyEngine,
    bench: &Bench<'_>,
    arguments: &Arguments,
) -> Result<Vec<Line>> {
    let tasks = tasks(arguments.tasks as usize, arguments.seed);
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    let prompts = tasks.iter().map(|task| prompt(model, task)).collect::<Result<Vec<_>>>()?;
    // The refreshes tell nothing new here.
    let runs: Vec<_> = runs(arguments)?
        .into_iter()
        .filter(|run| run.refresh.is_none_or(|refresh| refresh == arguments.refresh))
        .collect();
    let bar = progress::bar((runs.len() * tasks.len()) as u64 * u64::from(TOKENS), "tasks");
    let mut lines = Vec::new();
    let mut reference: Vec<Done> = Vec::new();
    for run in runs {
        let gates = vec![gate(bench, run.judge); prompts.len()];
        let play = Play {
            prompts: &prompts,
            tokens: TOKENS,
            // What is right is asked of the most likely answer.
            sampling: Sampling::GREEDY,
            ..bench.play(&run, &gates)
        };
        let answers = play.run(engine.executor_mut(), || bar.inc(1))?;
        let done: Vec<_> = tasks
            .iter()
            .zip(answers)
            .map(|(task, answer)| (task.is_right(&text(model, &answer.tokens)), answer.tokens))
            .collect();
        if run.policy == Policy::Shadow {
            reference.clone_from(&done);
        }
        for kind in Kind::ALL {
            let of: Vec<_> = tasks
                .iter()
                .zip(done.iter().zip(&reference))
                .filter(|(task, _)| task.kind == kind)
                .map(|(_, pair)| pair)
                .collect();
            let count = |is: fn(&Done, &Done) -> bool| {
                of.iter().filter(|(done, shadow)| is(done, shadow)).count()
            };
            lines.push(Line {
                run,
                kind: kind.name(),
                tasks: of.len(),
                right: count(|done, _| done.0),
                gained: count(|done, shadow| done.0 && !shadow.0),
                lost: count(|done, shadow| !done.0 && shadow.0),
                same: count(|done, shadow| done.1 == shadow.1),
            });
        }
    }
    bar.finish_and_clear();
    Ok(lines)
}

/// The chat domain's, since these are chats.
fn gate(bench: &Bench<'_>, judge: Option<Judge>) -> Gate {
    let gates = bench.gates(judge);
    let chat = bench.prompts.iter().zip(gates).find(|(prompt, _)| prompt.domain == "chat");
    chat.map_or(NEVER, |(_, gate)| gate)
}

fn prompt(model: &Model, task: &Task) -> Result<Vec<u32>> {
    let mut parameters = Parameters::default();
    parameters.set("chat", Value::Bool(true))?;
    Ok(model.prepare(Prompt::Text(task.message.clone()), &parameters)?.request.prompt)
}

/// Up to the end of the answer.
fn text(model: &Model, tokens: &[u32]) -> String {
    let end = tokens.iter().position(|token| model.generation().eos.contains(token));
    let pieces = tokens[..end.unwrap_or(tokens.len())].iter();
    let bytes: Vec<u8> =
        pieces.flat_map(|&token| model.tokenizer().piece(token)).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Line {
    /// For people: policy, tasks, right, gained, lost, same tokens.
    pub(super) fn cells(&self) -> [String; 6] {
        let Self { run, kind, tasks, right, gained, lost, same } = self;
        [
            run.to_string(),
            format!("{tasks} {kind}"),
            format!("{:.1} %", 100.0 * *right as f64 / *tasks as f64),
            gained.to_string(),
            lost.to_string(),
            same.to_string(),
        ]
    }
}
