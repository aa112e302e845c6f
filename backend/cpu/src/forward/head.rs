//! The end of a pass: final norm, LM head and answers, for some rows at a time.

use rewind_engine::{Row, RowResult};

use super::{HEAD_ROWS, Own, Pass};
use crate::answer;
use crate::kernels::{Product, Put};
use crate::pool::{Poisoned, Worker};
use crate::statistics::{Measure, TILE};

impl Pass<'_> {
    pub(super) fn head(&self, worker: &mut Worker<'_>, own: &mut Own) -> Result<(), Poisoned> {
        let weights = self.task.weights;
        let chunks = self.task.with_head.chunks(HEAD_ROWS);
        for (number, rows) in chunks.enumerate() {
            if number > 0 {
                // The answers of the last chunk read what this one writes.
                worker.barrier()?;
            }
            let chosen = (rows.len(), |i: usize| rows[i]);
            self.norm(worker, own, chosen, &weights.final_norm, weights.head.is_integer())?;
            self.logits(worker, own, rows);
            worker.barrier()?;
            self.answers(worker, own, rows);
        }
        Ok(())
    }

    /// Logits, measured tile by tile while they are in the worker's cache.
    fn logits(&self, worker: &Worker<'_>, own: &Own, rows: &[usize]) {
        let (count, vocabulary) = (rows.len(), self.task.spec.vocab_size);
        let input = self.normed(worker, own, count);
        for tile in worker.share(vocabulary.div_ceil(TILE)) {
            let columns = tile * TILE..((tile + 1) * TILE).min(vocabulary);
            // SAFETY: tiles are dealt, and read by their worker only.
            let mut out = unsafe { self.logits.part_mut(worker, 0..count, columns.clone()) };
            Product {
                weights: &self.task.weights.head,
                rows: columns.clone(),
                input,
                put: Put::Store,
                out: out.columns(0..columns.len()),
            }
            .run(self.isa);
            // What comes next is asked for once, while the last row is measured.
            let next = self.task.weights.head.bytes_from(columns.end);
            for (i, &row) in rows.iter().enumerate() {
                let sums = self.task.rows[row].needs_sums();
                // SAFETY: as above.
                let to = unsafe { self.tiles.piece_mut(worker, i, tile..tile + 1) };
                let next = if i + 1 == count { next } else { &[] };
                to[0] = self.isa.run_wide(Measure { logits: out.row(i), sums, next });
            }
        }
    }

    /// Answers to the rows whose logits are known. They are dealt if there is more to do than to read
    /// the tiles.
    fn answers(&self, worker: &Worker<'_>, own: &mut Own, rows: &[usize]) {
        let row = |i: usize| -> &Row { &self.task.rows[rows[i]] };
        let all = 0..rows.len();
        let dealt = !all.clone().all(|i| answer::is_cheap(row(i)));
        let mine = match (dealt, worker.number()) {
            (true, _) => worker.share(rows.len()),
            (false, 0) => all,
            (false, _) => return,
        };
        for i in mine {
            // SAFETY: nobody writes logits or tiles in this phase; rows are dealt.
            let (logits, tiles, result) = unsafe {
                (
                    self.logits.part(worker, i..i + 1).row(0),
                    self.tiles.part(worker, i..i + 1).row(0),
                    self.results.row_mut(worker, rows[i]),
                )
            };
            let logits = &logits[..self.task.spec.vocab_size];
            let taps = std::mem::take(&mut result[0].taps);
            let answer = answer::to(row(i), logits, tiles, &mut own.scratch);
            result[0] = RowResult { taps, ..answer };
        }
    }
}
