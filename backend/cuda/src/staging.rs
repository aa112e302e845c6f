//! What a pass tells the device, as bytes.
//!
//! Rows, page tables, choices and lists travel in one block and one copy. Where each section starts
//! depends on a [`Shape`] alone, so that a recorded graph finds them at the same addresses in every
//! pass of its shape.

use bytemuck::Pod;
use rewind_engine::sampling::History;
use rewind_engine::{Input, Limits, Pass, Row, RowClass};
use rewind_kernels::arguments::{
    self as device, Address, CHOICE_GATE, CHOICE_GENERAL, CHOICE_LOGPROBS, CHOICE_QUIET,
    CHOICE_SUMS, Choice, DETECTOR_ENTROPY, DETECTOR_MARGIN, DETECTOR_TOP1, LAST_OF, NONE, PADDING,
    PAGE_TOKENS,
};
use rewind_kernels::sampling::Lists;
use rewind_monitor::Detector;

/// Counts that fix where everything lies in the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Rows, padding included.
    pub(crate) rows: usize,
    /// Rows that go through the LM head, padding included.
    pub(crate) heads: usize,
    /// Page tables.
    pub(crate) tables: usize,
    /// Tiles of prompt rows.
    pub(crate) tiles: usize,
    /// Page copies.
    pub(crate) copies: usize,
}

/// Where the sections of a block start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sections {
    pub(crate) rows: usize,
    pub(crate) index: usize,
    pub(crate) choices: usize,
    pub(crate) pages: usize,
    pub(crate) tiles: usize,
    pub(crate) copies: usize,
    /// Length of the block.
    pub(crate) end: usize,
}

impl Shape {
    /// Sections of a block whose page tables are `width` pages long.
    pub(crate) fn sections(self, width: usize) -> Sections {
        let mut end = 0_usize;
        let mut section = |bytes: usize| {
            let start = end.next_multiple_of(ALIGNMENT);
            end = start + bytes;
            start
        };
        let rows = section(self.rows * size_of::<device::Row>());
        let index = section(self.heads * size_of::<u32>());
        let choices = section(self.heads * size_of::<Choice>());
        let pages = section(self.tables * width * size_of::<u32>());
        let tiles = section(self.tiles * 2 * size_of::<u32>());
        let copies = section(self.copies * 2 * size_of::<u32>());
        Sections { rows, index, choices, pages, tiles, copies, end }
    }
}

/// Sections start at multiples of this, so that each is aligned for whatever it holds.
const ALIGNMENT: usize = 16;

/// A pass in the form that the device reads, before it is padded to a shape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Staging {
    /// Rows in the device's order: generated ones first, then the prompt's.
    rows: Vec<device::Row>,
    /// For each of them, which row of the pass it is.
    pub(crate) order: Vec<usize>,
    /// How many are generated.
    pub(crate) generated: usize,
    /// Rows of the device that go through the LM head.
    index: Vec<u32>,
    choices: Vec<Choice>,
    /// One table after the other, each `width` long.
    pages: Vec<u32>,
    width: usize,
    /// (first row, rows) of each tile of prompt rows.
    tiles: Vec<[u32; 2]>,
    copies: Vec<[u32; 2]>,
    /// Biases, seen tokens, bans and masks.
    pub(crate) lists: Lists,
    /// Highest position of a generated row.
    pub(crate) furthest: u32,
}

impl Staging {
    /// Lays out a pass that [`rewind_engine::validate`] has accepted; `tile_rows` prompt rows of one
    /// sequence make a tile.
    pub(crate) fn new(pass: &Pass, limits: &Limits, tile_rows: usize) -> Self {
        let width = table_width(limits);
        let mut staging = Self { width, ..Self::default() };
        let mut table_of = vec![0_u32; limits.slots as usize];
        for table in &pass.tables {
            table_of[table.slot.0 as usize] = staging.pages.len() as u32;
            let pages = table.pages.iter().take(width).map(|page| page.0);
            let end = staging.pages.len() + width;
            staging.pages.extend(pages);
            staging.pages.resize(end, 0);
        }
        staging.copies = pass.copies.iter().map(|copy| [copy.from.0, copy.to.0]).collect();

        let of_class = |class: RowClass| {
            pass.rows.iter().enumerate().filter(move |(_, row)| row.class == class)
        };
        for (number, row) in of_class(RowClass::Generated) {
            staging.furthest = staging.furthest.max(row.position);
            staging.push(number, row, &table_of, limits);
        }
        staging.generated = staging.rows.len();
        for (number, row) in of_class(RowClass::Prompt) {
            let first = staging.rows.len() as u32;
            let before = first.checked_sub(1).map(|before| staging.rows[before as usize]);
            match staging.tiles.last_mut() {
                Some([_, rows])
                    if (*rows as usize) < tile_rows
                        && before.is_some_and(|before| before.slot == row.slot.0) =>
                {
                    *rows += 1;
                }
                _ => staging.tiles.push([first, 1]),
            }
            staging.push(number, row, &table_of, limits);
        }
        staging.quieten(limits);
        staging
    }

    /// Leaves each slot one row that may set its last token: the last of the pass that chooses.
    /// Otherwise blocks that run beside each other would write the same word.
    fn quieten(&mut self, limits: &Limits) {
        let mut last_row = vec![None; limits.slots as usize];
        let row_of = |&row: &u32| self.order[row as usize];
        let choosing = |choice: &Choice| choice.slot != NONE;
        for (row, choice) in self.index.iter().zip(&self.choices).filter(|(_, c)| choosing(c)) {
            let last = &mut last_row[choice.slot as usize];
            *last = (*last).max(Some(row_of(row)));
        }
        for (row, choice) in self.index.iter().zip(&mut self.choices) {
            if choosing(choice) && last_row[choice.slot as usize] != Some(row_of(row)) {
                choice.flags |= CHOICE_QUIET;
            }
        }
    }

    fn push(&mut self, number: usize, row: &Row, table_of: &[u32], limits: &Limits) {
        let token = match row.input {
            Input::Token(token) => token,
            // Hidden states as input do not pass validation.
            Input::LastOf(slot) | Input::Hidden(slot) => LAST_OF | slot.0,
        };
        if row.outputs.needs_head() {
            self.index.push(self.rows.len() as u32);
            let choice = self.choice(row, limits.vocabulary);
            self.choices.push(choice);
        }
        let (slot, table) = (row.slot.0, table_of[row.slot.0 as usize]);
        self.rows.push(device::Row { token, position: row.position, table, slot });
        self.order.push(number);
    }

    fn choice(&mut self, row: &Row, vocabulary: u32) -> Choice {
        let outputs = &row.outputs;
        let mut choice = Choice { position: row.position + 1, ..Choice::PADDING };
        if row.needs_sums() {
            choice.flags |= CHOICE_SUMS;
        }
        if let Some(gate) = row.gate {
            choice.flags |= CHOICE_GATE;
            choice.threshold = gate.threshold;
            match gate.detector {
                Detector::Entropy => choice.detector = DETECTOR_ENTROPY,
                Detector::Top1 => choice.detector = DETECTOR_TOP1,
                Detector::Margin => choice.detector = DETECTOR_MARGIN,
                Detector::Fused(fused) => choice.judge_fused(fused.weights()),
            }
        }
        if let Some(count) = outputs.logprobs {
            choice.flags |= CHOICE_LOGPROBS;
            choice.logprobs = u32::from(count);
        }
        let Some(choose) = &outputs.choose else { return choice };
        let sampling = &*choose.sampling;
        choice.slot = row.slot.0;
        choice.position = choose.position;
        choice.seed = sampling.seed;
        choice.temperature = if sampling.is_greedy() { 0.0 } else { sampling.temperature };
        choice.top_p = sampling.top_p;
        choice.min_p = sampling.min_p;
        choice.top_k = sampling.top_k;
        choice.repetition = sampling.repetition_penalty;
        choice.presence = sampling.presence_penalty;
        choice.frequency = sampling.frequency_penalty;
        self.lists.bias(&mut choice, &sampling.bias);
        if sampling.reads_history() {
            let History { tokens, prompt } = &choose.history;
            self.lists.history(&mut choice, vocabulary, tokens, *prompt);
        }
        if choose.mask.is_some() || !choose.banned.is_empty() {
            let mask = choose.mask.as_ref().map(|mask| &*mask.0);
            self.lists.exclude(&mut choice, vocabulary, &choose.banned, mask);
        }
        choice.mark_general(vocabulary);
        choice
    }

    /// Its exact shape.
    pub(crate) fn shape(&self) -> Shape {
        Shape {
            rows: self.rows.len(),
            heads: self.index.len(),
            tables: self.pages.len() / self.width.max(1),
            tiles: self.tiles.len(),
            copies: self.copies.len(),
        }
    }

    /// Whether a row must go through the whole sampling contract.
    pub(crate) fn has_general(&self) -> bool {
        self.choices.iter().any(|choice| choice.flags & CHOICE_GENERAL != 0)
    }

    /// Whether a row wants log-probabilities.
    pub(crate) fn has_logprobs(&self) -> bool {
        self.choices.iter().any(|choice| choice.flags & CHOICE_LOGPROBS != 0)
    }

    /// The row of the device for each row of the LM head.
    pub(crate) fn index(&self) -> &[u32] {
        &self.index
    }

    /// The block, padded to a shape of at least this size.
    pub(crate) fn block(&self, shape: Shape) -> Vec<u8> {
        let sections = shape.sections(self.width);
        let mut block = vec![0; sections.end];
        let padding = device::Row { token: 0, position: PADDING, table: 0, slot: 0 };
        fill(&mut block[sections.rows..], &self.rows, shape.rows, padding);
        fill(&mut block[sections.index..], &self.index, shape.heads, 0);
        fill(&mut block[sections.choices..], &self.choices, shape.heads, Choice::PADDING);
        fill(&mut block[sections.pages..], &self.pages, shape.tables * self.width, 0);
        fill(&mut block[sections.tiles..], &self.tiles, shape.tiles, [0; 2]);
        fill(&mut block[sections.copies..], &self.copies, shape.copies, [0; 2]);
        block
    }
}

fn fill<T: Pod>(section: &mut [u8], values: &[T], len: usize, padding: T) {
    let padded = values.iter().copied().chain(std::iter::repeat(padding)).take(len);
    for (place, value) in section.chunks_exact_mut(size_of::<T>()).zip(padded) {
        place.copy_from_slice(bytemuck::bytes_of(&value));
    }
}

/// Pages in a page table of the device.
pub(crate) fn table_width(limits: &Limits) -> usize {
    limits.positions.div_ceil(PAGE_TOKENS) as usize
}

/// Addresses of the sections in device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) rows: Address,
    pub(crate) index: Address,
    pub(crate) choices: Address,
    pub(crate) pages: Address,
    pub(crate) tiles: Address,
    pub(crate) copies: Address,
}

impl Sections {
    /// Where they lie in a block at `base`.
    pub(crate) fn at(self, base: Address) -> Block {
        Block {
            rows: base.offset(self.rows),
            index: base.offset(self.index),
            choices: base.offset(self.choices),
            pages: base.offset(self.pages),
            tiles: base.offset(self.tiles),
            copies: base.offset(self.copies),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rewind_engine::sampling::Sampling;
    use rewind_engine::{Choose, Outputs, PageCopy, PageId, PageTable, Slot, Weights};
    use rewind_kernels::arguments::{CHOICE_GENERAL, DETECTOR_FUSED};
    use rewind_monitor::{Fused, Gate};

    use super::*;

    const LIMITS: Limits = Limits {
        vocabulary: 100,
        layers: 2,
        slots: 4,
        rows: 32,
        pages: 50,
        page_tokens: PAGE_TOKENS,
        positions: 100,
    };

    fn row(slot: u32, position: u32, class: RowClass, outputs: Outputs) -> Row {
        let (slot, input) = (Slot(slot), Input::Token(slot * 10 + position));
        Row { slot, position, class, input, outputs, gate: None, adapter: None }
    }

    fn choosing(position: u32, sampling: Sampling) -> Outputs {
        let choose = Choose {
            sampling: Arc::new(sampling),
            history: History::default(),
            banned: Arc::new([]),
            mask: None,
            position: position + 1,
        };
        Outputs { choose: Some(choose), ..Outputs::default() }
    }

    /// Slot 2: five prompt rows; slot 1: one generated row; slot 0: two more prompt rows.
    fn pass() -> Pass {
        let prompt = RowClass::Prompt;
        let mut rows: Vec<_> =
            (0..5).map(|position| row(2, position, prompt, Outputs::default())).collect();
        let mut generated = row(1, 40, RowClass::Generated, choosing(40, Sampling::GREEDY));
        generated.input = Input::LastOf(Slot(1));
        let fused = Fused { bias: 1.0, entropy: 2.0, varentropy: 3.0, ln_top1: 4.0, margin: 5.0 };
        generated.gate = Some(Gate { detector: Detector::Fused(fused), threshold: 0.25 });
        rows.push(generated);
        let sampling = Sampling { temperature: 0.5, top_k: 7, ..Sampling::GREEDY };
        rows.extend([
            row(0, 3, prompt, Outputs::default()),
            row(0, 4, prompt, choosing(4, sampling)),
        ]);
        let table = |slot: u32| PageTable {
            slot: Slot(slot),
            pages: (0..2).map(|page| PageId(10 * slot + page)).collect(),
        };
        let copies = vec![PageCopy { from: PageId(3), to: PageId(4) }];
        let tables = [2, 1, 0].map(table).into();
        Pass { weights: Weights::Draft, layers: 0..2, copies, tables, rows }
    }

    fn read<T: bytemuck::AnyBitPattern>(block: &[u8], at: usize, len: usize) -> Vec<T> {
        let bytes = &block[at..][..len * size_of::<T>()];
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    #[test]
    fn generated_rows_come_first_and_tiles_stay_within_a_sequence() {
        let staging = Staging::new(&pass(), &LIMITS, 3);
        assert_eq!(staging.order, [5, 0, 1, 2, 3, 4, 6, 7]);
        assert_eq!((staging.generated, staging.furthest), (1, 40));
        assert_eq!(staging.tiles, [[1, 3], [4, 2], [6, 2]]);
        assert_eq!(staging.index(), [0, 7]);
        assert!(staging.has_general() && !staging.has_logprobs());
    }

    #[test]
    fn a_block_holds_every_section_padded() {
        let staging = Staging::new(&pass(), &LIMITS, 8);
        let shape = Shape { rows: 16, heads: 4, tables: 5, ..staging.shape() };
        let block = staging.block(shape);
        let sections = shape.sections(table_width(&LIMITS));
        assert_eq!(block.len(), sections.end);

        let rows: Vec<device::Row> = read(&block, sections.rows, 16);
        assert_eq!((rows[0].token, rows[0].position, rows[0].slot), (LAST_OF | 1, 40, 1));
        assert_eq!((rows[3].token, rows[3].position, rows[3].slot), (22, 2, 2));
        assert!(rows[8..].iter().all(|row| row.position == PADDING));
        // Four pages make a table: 100 positions.
        assert_eq!((rows[0].table, rows[1].table, rows[7].table), (4, 0, 8));
        let pages: Vec<u32> = read(&block, sections.pages, 5 * 4);
        assert_eq!(pages, [20, 21, 0, 0, 10, 11, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

        let choices: Vec<Choice> = read(&block, sections.choices, 4);
        assert_eq!((choices[0].slot, choices[0].position), (1, 41));
        assert_eq!((choices[0].detector, choices[0].threshold), (DETECTOR_FUSED, 0.25));
        assert_eq!((choices[0].fused_bias, choices[0].fused_entropy), (1.0, 2.0));
        assert_eq!((choices[0].fused_varentropy, choices[0].fused_ln_top1), (3.0, 4.0));
        assert_eq!(choices[0].fused_margin, 5.0);
        assert_eq!(choices[0].flags, CHOICE_SUMS | CHOICE_GATE);
        assert_eq!((choices[1].flags, choices[1].top_k), (CHOICE_GENERAL, 7));
        assert!(choices[2..].iter().all(|c| c.slot == NONE && c.position == PADDING));
        let copies: Vec<[u32; 2]> = read(&block, sections.copies, 1);
        assert_eq!(copies, [[3, 4]]);
    }

    #[test]
    fn one_row_of_a_slot_sets_its_last_token() {
        let mut pass = pass();
        for row in &mut pass.rows {
            row.outputs = choosing(row.position, Sampling::GREEDY);
        }
        let staging = Staging::new(&pass, &LIMITS, 8);
        let quiet = |choice: &Choice| choice.flags & CHOICE_QUIET != 0;
        let loud: Vec<_> = (0..8).filter(|&row| !quiet(&staging.choices[row])).collect();
        let loud: Vec<_> = loud.into_iter().map(|row| staging.order[row]).collect();
        assert_eq!(loud, [5, 4, 7]);
    }

    #[test]
    fn sections_are_aligned_and_apart() {
        for (rows, heads, tables) in [(1, 1, 1), (3, 1, 2), (7, 5, 3)] {
            let shape = Shape { rows, heads, tables, tiles: 1, copies: 1 };
            let Sections { rows, index, choices, pages, tiles, copies, end } = shape.sections(3);
            let starts = [rows, index, choices, pages, tiles, copies];
            assert!(starts.is_sorted() && copies < end);
            assert!(starts.iter().all(|start| start % ALIGNMENT == 0));
        }
    }
}
