//! Passes over an executor, timed, with pages of its own for every slot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rewind_engine::sampling::{History, Sampling};
use rewind_engine::{
    Choose, Executor, Input, Limits, Outputs, PageId, PageTable, Pass, Row, RowClass, RowResult,
    Slot, Token, Weights,
};
use rewind_monitor::Gate;

use crate::error::BenchError;
use crate::report::name_of;

/// What a measurement needs of an executor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Sequences that run at once.
    pub slots: usize,
    /// Rows of a pass.
    pub rows: usize,
    /// Tokens of the longest sequence.
    pub positions: usize,
}

impl Room {
    /// KV pages of so many positions that let every sequence have its full length.
    pub fn pages(&self, page_tokens: usize) -> usize {
        self.slots * self.positions.div_ceil(page_tokens)
    }

    /// Refuses an executor that is smaller.
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), BenchError> {
        let pages = self.pages(limits.page_tokens as usize);
        for (what, needed, available) in [
            ("sequences at once", self.slots, limits.slots),
            ("rows in a pass", self.rows, limits.rows),
            ("positions in a sequence", self.positions, limits.positions),
            ("KV pages", pages, limits.pages),
        ] {
            let (needed, available) = (needed as u64, u64::from(available));
            if needed > available {
                return Err(BenchError::Room { what, needed, available });
            }
        }
        Ok(())
    }
}

/// What is wanted of a row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Choose a token so.
    pub(crate) choose: Option<Arc<Sampling>>,
    /// Measure its uncertainty.
    pub(crate) statistics: bool,
    /// Judge it.
    pub(crate) gate: Option<Gate>,
}

impl Wanted {
    /// The best token, with statistics or without.
    pub(crate) fn greedy(statistics: bool) -> Self {
        Self { choose: Some(Arc::new(Sampling::GREEDY)), statistics, gate: None }
    }
}

/// A row of a decode step or of a verification.
pub(crate) fn row(slot: usize, position: usize, input: Input, wanted: &Wanted) -> Row {
    let choose = wanted.choose.clone().map(|sampling| Choose {
        sampling,
        history: History::default(),
        banned: Arc::default(),
        mask: None,
        position: position as u32 + 1,
    });
    Row {
        slot: Slot(slot as u32),
        position: position as u32,
        class: RowClass::Generated,
        input,
        outputs: Outputs { choose, statistics: wanted.statistics, ..Outputs::default() },
        gate: wanted.gate,
        adapter: None,
    }
}

/// A row of a prompt.
pub(crate) fn prompt_row(slot: usize, position: usize, token: Token, wanted: &Wanted) -> Row {
    Row { class: RowClass::Prompt, ..row(slot, position, Input::Token(token), wanted) }
}

/// An executor that nobody else uses.
pub(crate) struct Rig<'a, E> {
    executor: &'a mut E,
    layers: u16,
    vocabulary: u32,
    rows: usize,
    tables: Vec<PageTable>,
}

impl<'a, E: Executor> Rig<'a, E> {
    /// Takes an executor that has the room.
    pub(crate) fn new(executor: &'a mut E, room: Room) -> Result<Self, BenchError> {
        let Limits { layers, vocabulary, rows, page_tokens, .. } = *executor.limits();
        room.check(executor.limits())?;
        let pages = room.positions.div_ceil(page_tokens as usize) as u32;
        let table = |slot: u32| PageTable {
            slot: Slot(slot),
            pages: (slot * pages..(slot + 1) * pages).map(PageId).collect(),
        };
        let tables = (0..room.slots as u32).map(table).collect();
        Ok(Self { executor, layers, vocabulary, rows: rows as usize, tables })
    }

    /// Some token, the same one for the same number.
    pub(crate) fn token(&self, number: usize) -> Token {
        // Ids near the start are often special; a stride that shares no factor with the vocabulary is
        // not needed for tokens that only have to differ.
        ((number as u64 * 7919 + 1000) % u64::from(self.vocabulary)) as Token
    }

    /// Runs a pass; the time is that of the executor alone.
    pub(crate) fn run(
        &mut self,
        weights: Weights,
        rows: Vec<Row>,
    ) -> Result<(Duration, Vec<RowResult>), BenchError> {
        let mut slots: Vec<_> = rows.iter().map(|row| row.slot.0 as usize).collect();
        slots.dedup();
        let tables = slots.into_iter().map(|slot| self.tables[slot].clone()).collect();
        let pass = Pass { weights, layers: 0..self.layers, copies: Vec::new(), tables, rows };
        let start = Instant::now();
        let ticket = self.executor.submit(pass)?;
        let results = self.executor.wait(ticket)?;
        Ok((start.elapsed(), results))
    }

    /// Writes so many tokens into the cache of a slot.
    pub(crate) fn fill(
        &mut self,
        weights: Weights,
        slot: usize,
        positions: usize,
    ) -> Result<(), BenchError> {
        let rows: Vec<_> = (0..positions)
            .map(|at| prompt_row(slot, at, self.token(at), &Wanted::default()))
            .collect();
        for rows in rows.chunks(self.rows) {
            self.run(weights, rows.to_vec())?;
        }
        Ok(())
    }
}

/// The token that a row chose.
pub(crate) fn chosen(
    result: &RowResult,
    weights: Weights,
    position: usize,
) -> Result<Token, BenchError> {
    let missing = BenchError::NoToken { weights: name_of(weights), position: position as u32 };
    result.token.ok_or(missing)
}
