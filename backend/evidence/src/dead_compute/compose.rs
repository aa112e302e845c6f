//! Which passes a server would have run for answers that are known, and what they cost.
//!
//! The engine that serves runs once more, over an executor that computes nothing and says what was said before. What a
//! request is told depends on the request alone, so it is the same at every number of sequences side by side; which
//! rows meet in a pass is not, and that is what comes out.

use std::collections::{HashMap, VecDeque};

use rewind_engine::{
    Engine, Executor, ExecutorError, Input, Limits, Pass, Request, Row, RowClass, RowResult, Slot,
    Ticket, Token, Weights,
};

use super::play::{Answer, Play, PlayError, drive};
use super::witness::Answers;
use super::{CostTable, Told};

/// What each token of each answer cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// For each request, for each token: seconds, its part of every pass that it took part in. Prompts are not counted.
    pub tokens: Vec<Vec<f64>>,
    /// Rows of shadow passes after the prompts, of all requests.
    pub shadow_rows: usize,
}

/// Runs the requests of a play again, so many side by side, over what they were answered.
///
/// A pass is paid for by its rows in equal parts. A row that chooses a token pays for that token; one that only writes
/// its KV entry anew pays for the last token that is chosen beside it.
///
/// # Errors
/// The answers are not those of this play.
pub fn composed(
    play: &Play<'_>,
    answers: &[Answer],
    batch: usize,
    table: &CostTable,
) -> Result<Costs, PlayError> {
    let mut again = Again::new(play, answers, batch, table);
    let settings = rewind_engine::Settings {
        max_queue: answers.len(),
        max_batch_rows: again.limits.rows,
        ..play.settings.clone()
    };
    let mut engine = Engine::new(&mut again, play.vocabulary.clone(), settings);
    // A prompt of one token, which is the request's number.
    let request = |number| Request { prompt: vec![number as Token], ..play.request(number) };
    drive(&mut engine, request, answers.len(), &mut || ())?;
    Ok(again.costs)
}

/// An executor that says what was said before.
struct Again<'a> {
    limits: Limits,
    table: &'a CostTable,
    left: Vec<Answers>,
    /// Which request holds a slot.
    slots: HashMap<Slot, usize>,
    ready: VecDeque<(u64, Vec<RowResult>)>,
    tickets: u64,
    costs: Costs,
}

/// Positions in a page: any number would do.
const PAGE: usize = 16;

impl<'a> Again<'a> {
    fn new(play: &Play<'_>, answers: &[Answer], batch: usize, table: &'a CostTable) -> Self {
        let rows = play.policy.pass_rows() as usize;
        let positions = play.tokens as usize + rows + 2;
        let highest = answers.iter().flat_map(|answer| &answer.tokens).max();
        let limits = Limits {
            vocabulary: highest.map_or(0, |token| token + 1).max(answers.len() as u32),
            layers: 1,
            slots: batch as u32,
            rows: (batch * rows) as u32,
            pages: (batch * (positions.div_ceil(PAGE) + 1)) as u32,
            page_tokens: PAGE as u32,
            positions: positions as u32,
        };
        let costs = Costs {
            tokens: answers.iter().map(|answer| vec![0.0; answer.tokens.len()]).collect(),
            shadow_rows: 0,
        };
        Self {
            limits,
            table,
            left: answers.iter().map(|answer| answer.answers.clone()).collect(),
            slots: HashMap::new(),
            ready: VecDeque::new(),
            tickets: 0,
            costs,
        }
    }

    fn answer(&mut self, weights: Weights, row: &Row) -> Result<RowResult, ExecutorError> {
        if row.class == RowClass::Prompt
            && let Input::Token(number) = row.input
        {
            self.slots.insert(row.slot, number as usize);
        }
        if row.outputs.choose.is_none() {
            return Ok(RowResult::empty());
        }
        let left = self.slots.get(&row.slot).and_then(|&number| self.left.get_mut(number));
        let told = left.and_then(|answers| answers.of(weights).pop_front());
        let Told { token, runner_up, statistics, suspect } = told.ok_or_else(|| {
            let position = row.position;
            ExecutorError::PassFailed(format!("no answer is left for position {position}"))
        })?;
        Ok(RowResult { token, runner_up, statistics, suspect, ..RowResult::empty() })
    }

    /// Adds a pass to what its tokens cost.
    fn pay(&mut self, pass: &Pass) {
        let generated: Vec<_> =
            pass.rows.iter().filter(|row| row.class == RowClass::Generated).collect();
        if generated.is_empty() {
            return;
        }
        let chooses = |row: &Row| row.outputs.choose.is_some();
        let choosing = generated.iter().filter(|row| chooses(row)).count();
        let each =
            self.table.pass(pass.weights, generated.len(), choosing) / generated.len() as f64;
        if pass.weights == Weights::Full {
            self.costs.shadow_rows += generated.len();
        }
        for rows in generated.chunk_by(|a, b| a.slot == b.slot) {
            let newest = rows.iter().rev().find(|row| chooses(row));
            let Some(tokens) =
                self.slots.get(&rows[0].slot).and_then(|&number| self.costs.tokens.get_mut(number))
            else {
                continue;
            };
            for row in rows {
                let of = if chooses(row) { Some(row) } else { newest };
                // The prompt has one token, so what is chosen at position n is token n.
                let place = of.map_or(0, |row| row.position as usize);
                // Drafts may go beyond the end of the answer: the last token pays.
                let place = place.min(tokens.len().saturating_sub(1));
                if let Some(cost) = tokens.get_mut(place) {
                    *cost += each;
                }
            }
        }
    }
}

impl Executor for &mut Again<'_> {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn identity(&self, _: Weights) -> String {
        "answers given before".into()
    }

    fn submit(&mut self, pass: Pass) -> Result<Ticket, ExecutorError> {
        let results = pass.rows.iter().map(|row| self.answer(pass.weights, row));
        let results = results.collect::<Result<Vec<_>, _>>()?;
        self.pay(&pass);
        self.tickets += 1;
        self.ready.push_back((self.tickets, results));
        Ok(Ticket(self.tickets))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Vec<RowResult>, ExecutorError> {
        let place = self.ready.iter().position(|(number, _)| *number == ticket.0);
        let found = place.and_then(|place| self.ready.remove(place));
        let missing = || ExecutorError::InvalidPass(format!("no pass has ticket {}", ticket.0));
        found.map(|(_, results)| results).ok_or_else(missing)
    }
}
