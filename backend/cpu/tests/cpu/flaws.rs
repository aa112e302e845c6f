//! The suite finds flaws: each of its claims, against an executor that breaks it.

use std::sync::Arc;

use rewind_cpu::CpuExecutor;
use rewind_engine::{
    Executor, ExecutorError, Input, Limits, Pass, RowClass, RowResult, Ticket, Weights,
};
use rewind_executor_suite::{Machine, Scale, ShadowError, Sizes, TinyModel, cases};

use crate::loading::{config, load};

/// What is wrong with an executor.
#[derive(Clone, Copy, Debug)]
enum Flaw {
    /// Nothing.
    None,
    /// Rows of a batch have another last bit.
    Company,
    /// A chunk of a prompt is told apart from a whole one.
    Chunk,
    /// The shadow is the draft.
    NoShadow,
    /// Pages are not copied.
    NoCopies,
    /// The noise is of another seed.
    Seed,
    /// Suspects pass, others do not.
    Verdict,
    /// Entropy is in bits.
    Bits,
    /// Verification rows choose the runner-up.
    Verification,
    /// The last token of a slot is always 5.
    Forgetful,
    /// Nothing is refused.
    Credulous,
}

struct Flawed {
    executor: CpuExecutor,
    flaw: Flaw,
    passes: Vec<Pass>,
    first: u64,
}

impl Flawed {
    /// The same pass with the flaw in it.
    fn spoil(&self, mut pass: Pass) -> Pass {
        match self.flaw {
            Flaw::NoShadow => pass.weights = Weights::Draft,
            Flaw::NoCopies => pass.copies.clear(),
            Flaw::Credulous => pass.rows.retain(|row| row.position < self.limits().positions),
            _ => {}
        }
        for row in &mut pass.rows {
            if let (Flaw::Seed, Some(choose)) = (self.flaw, &mut row.outputs.choose) {
                Arc::make_mut(&mut choose.sampling).seed ^= 1;
            }
            if matches!((self.flaw, row.input), (Flaw::Forgetful, Input::LastOf(_))) {
                row.input = Input::Token(5);
            }
        }
        pass
    }

    fn flip(result: &mut RowResult) {
        if let Some(first) = result.logits.as_mut().and_then(|logits| logits.first_mut()) {
            *first = first.next_up();
        }
        result.statistics.entropy = result.statistics.entropy.next_up();
    }
}

impl Executor for Flawed {
    fn limits(&self) -> &Limits {
        self.executor.limits()
    }

    fn identity(&self, weights: Weights) -> String {
        self.executor.identity(weights)
    }

    fn submit(&mut self, pass: Pass) -> Result<Ticket, ExecutorError> {
        let ticket = self.executor.submit(self.spoil(pass.clone()))?;
        if self.passes.is_empty() {
            self.first = ticket.0;
        }
        self.passes.push(pass);
        Ok(ticket)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Vec<RowResult>, ExecutorError> {
        let number = ticket.0.wrapping_sub(self.first) as usize;
        let mut results = self.executor.wait(ticket)?;
        let pass = &self.passes[number];
        for (row, result) in pass.rows.iter().zip(&mut results) {
            let generated = row.class == RowClass::Generated;
            match self.flaw {
                Flaw::Company if pass.rows.len() > 1 && generated => Self::flip(result),
                Flaw::Chunk if pass.rows.len() == 33 => Self::flip(result),
                Flaw::Verdict => result.suspect = !result.suspect,
                Flaw::Bits => result.statistics.entropy *= std::f32::consts::LOG2_E,
                Flaw::Verification if pass.rows.len() > 1 && generated => {
                    result.token = result.runner_up;
                }
                _ => {}
            }
        }
        Ok(results)
    }
}

impl Machine for Flaw {
    type Executor = Flawed;

    fn make(&self, model: &TinyModel, sizes: Sizes) -> anyhow::Result<Flawed> {
        let Sizes { slots, rows, positions } = sizes;
        let config = config();
        let pages = sizes.pages(config.page_tokens);
        let config = rewind_cpu::Config { slots, rows, pages, positions, ..config };
        let executor = CpuExecutor::new(load(model)?, config)?;
        Ok(Flawed { executor, flaw: *self, passes: Vec::new(), first: 0 })
    }

    fn siblings(&self) -> Vec<(String, Self)> {
        vec![("in company".to_owned(), Self::Company)]
    }

    fn scale(&self) -> Scale {
        Scale { exhaustive: false, requests: 4, answer: 12, ..Scale::FULL }
    }

    fn shadow_error(&self) -> ShadowError {
        ShadowError { typical: 3e-6, worst: 3e-6 }
    }
}

#[test]
fn the_suite_finds_flaws() {
    let flaws = [
        (Flaw::Company, "invariance: a generated row among any number of others"),
        (Flaw::Chunk, "invariance: chunks change nothing"),
        (Flaw::NoShadow, "exactness: a checkpoint of mixed precision"),
        (Flaw::NoShadow, "exactness: drafts are as close as their bits allow"),
        (Flaw::NoShadow, "invariance: verification overwrites what the draft wrote"),
        (Flaw::NoCopies, "invariance: copied pages part ways"),
        (Flaw::Seed, "outputs: sampling is the engine's"),
        (Flaw::Seed, "outputs: lists of any length"),
        (Flaw::Verdict, "outputs: the gate judges by its detector"),
        (Flaw::Bits, "outputs: statistics and log-probabilities are the definitions'"),
        (Flaw::Verification, "policies: lossless is the shadow, greedy"),
        (Flaw::Verification, "policies: lossless is the shadow, sampled"),
        (Flaw::Company, "policies: neighbours and pooling change nothing"),
        (Flaw::Forgetful, "order: a row takes the token that an earlier pass chose"),
        (Flaw::Forgetful, "order: a slot that chose nothing has no last token"),
        (Flaw::Credulous, "refusals: invalid passes name their defect"),
    ];
    let cases = cases::<Flaw>();
    for (flaw, name) in flaws {
        let case = cases.iter().find(|case| case.name == name).expect(name);
        (case.run)(&Flaw::None).expect("without a flaw it passes");
        let error = (case.run)(&flaw).expect_err(&format!("{flaw:?} is a flaw that {name} misses"));
        println!("{flaw:?}: {name}: {error:#}");
    }
}
