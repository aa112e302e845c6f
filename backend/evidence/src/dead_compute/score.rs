//! Figures over many answers, with how sure they are.

use rewind_engine::Token;
use serde::Serialize;

use crate::bootstrap::{Resampling, interval};

/// One answer beside the shadow's.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The shadow's answer to the same request and seed.
    pub shadow: &'a [Token],
    /// What was served.
    pub served: &'a [Token],
    /// Of each served token, nats; empty if it was not asked.
    pub regret: &'a [f64],
    /// For each batch size that is priced: seconds of each token.
    pub costs: &'a [&'a [f64]],
    /// Times that draft KV was thrown away.
    pub rewinds: u32,
}

/// A figure with its 95 % bootstrap interval over answers; none if there are fewer than two.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Over all answers.
    pub value: f64,
    /// 95 of 100 such experiments have theirs in here.
    pub interval: Option<[f64; 2]>,
}

/// What a policy did, looked at to one length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Tokens that were looked at, at most, of each answer: of longer ones, more is dead.
    pub length: usize,
    /// Answers.
    pub answers: usize,
    /// Chance per token that an answer leaves the shadow's, over the tokens up to where it does.
    pub hazard: Figure,
    /// Share of answers that have left it by then.
    pub diverged: Figure,
    /// Share of served tokens at or after that place.
    pub dead_tokens: Figure,
    /// Share of cost at or after it, for each batch size.
    pub dead_compute: Vec<Figure>,
    /// Seconds over tokens, for each batch size.
    pub cost_per_token: Vec<Figure>,
    /// Seconds over tokens before that place, for each batch size; infinite if there is none.
    pub cost_per_live_token: Vec<Figure>,
    /// Mean over served tokens, nats; `None` if it was not asked.
    pub regret: Option<Figure>,
    /// Rewinds over served tokens of whole answers.
    pub rewinds_per_token: Figure,
}

/// Sums of both sides of a ratio, an element for each answer.
#[derive(Default)]
struct Ratio {
    over: Vec<f64>,
    under: Vec<f64>,
}

impl Ratio {
    fn push(&mut self, over: f64, under: f64) {
        self.over.push(over);
        self.under.push(under);
    }

    /// Of answers drawn so often; `None` where nothing is under the line.
    fn of(&self, weights: &[f64]) -> Option<f64> {
        let sum = |values: &[f64]| values.iter().zip(weights).map(|(v, w)| v * w).sum::<f64>();
        let under = sum(&self.under);
        (under > 0.0).then(|| sum(&self.over) / under)
    }

    fn figure(&self, resampling: Resampling) -> Figure {
        let all = vec![1.0; self.over.len()];
        let value = self.of(&all).unwrap_or(f64::INFINITY);
        Figure { value, interval: interval(all.len(), resampling, |weights| self.of(weights)) }
    }
}

/// Where an answer leaves the shadow's; its length if it does not.
pub fn divergence(served: &[Token], shadow: &[Token]) -> usize {
    let differs = served.iter().enumerate().position(|(at, token)| shadow.get(at) != Some(token));
    differs.unwrap_or(served.len())
}

impl Figures {
    /// Of these answers, the first `length` tokens of each.
    pub fn of(cases: &[Case<'_>], length: usize, resampling: Resampling) -> Self {
        let batches = cases.iter().map(|case| case.costs.len()).min().unwrap_or(0);
        let [mut hazard, mut diverged, mut dead_tokens, mut regret, mut rewinds] =
            std::array::from_fn(|_| Ratio::default());
        let ratios = || (0..batches).map(|_| Ratio::default()).collect::<Vec<_>>();
        let (mut dead, mut per_token, mut per_live) = (ratios(), ratios(), ratios());
        for case in cases {
            let served = &case.served[..length.min(case.served.len())];
            let tokens = served.len() as f64;
            let leaves = divergence(served, case.shadow);
            let left = leaves < served.len();
            let lived = leaves as f64;
            hazard.push(f64::from(u8::from(left)), lived + f64::from(u8::from(left)));
            diverged.push(f64::from(u8::from(left)), 1.0);
            dead_tokens.push(tokens - lived, tokens);
            let known = &case.regret[..served.len().min(case.regret.len())];
            regret.push(known.iter().sum(), known.len() as f64);
            rewinds.push(f64::from(case.rewinds), case.served.len() as f64);
            for (batch, costs) in case.costs.iter().take(batches).enumerate() {
                let costs = &costs[..served.len().min(costs.len())];
                let all: f64 = costs.iter().sum();
                let after: f64 = costs.iter().skip(leaves).sum();
                dead[batch].push(after, all);
                per_token[batch].push(all, tokens);
                per_live[batch].push(all, lived);
            }
        }
        let figure = |ratio: &Ratio| ratio.figure(resampling);
        let figures = |ratios: &[Ratio]| ratios.iter().map(figure).collect();
        Self {
            length,
            answers: cases.len(),
            hazard: figure(&hazard),
            diverged: figure(&diverged),
            dead_tokens: figure(&dead_tokens),
            dead_compute: figures(&dead),
            cost_per_token: figures(&per_token),
            cost_per_live_token: figures(&per_live),
            regret: (regret.under.iter().sum::<f64>() > 0.0).then(|| figure(&regret)),
            rewinds_per_token: figure(&rewinds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESAMPLING: Resampling = Resampling { draws: 500, seed: 3 };

    #[test]
    fn figures_of_answers_that_can_be_counted_by_hand() {
        let shadow = [1, 2, 3, 4];
        let costs = [1.0, 1.0, 3.0, 1.0];
        let costs: [&[f64]; 1] = [&costs];
        // One leaves at its third token, the other never.
        let case = |served: &'static [Token], regret: &'static [f64]| Case {
            shadow: &shadow,
            served,
            regret,
            costs: &costs,
            rewinds: 1,
        };
        let cases = [case(&[1, 2, 9, 4], &[0.0, 0.0, 0.5, 0.1]), case(&[1, 2, 3, 4], &[0.0; 4])];
        let found = Figures::of(&cases, 4, RESAMPLING);
        assert_eq!(found.hazard.value, 1.0 / 7.0);
        assert_eq!(found.diverged.value, 0.5);
        assert_eq!(found.dead_tokens.value, 2.0 / 8.0);
        assert_eq!(found.dead_compute[0].value, 4.0 / 12.0);
        assert_eq!(found.cost_per_token[0].value, 12.0 / 8.0);
        assert_eq!(found.cost_per_live_token[0].value, 12.0 / 6.0);
        assert!((found.regret.unwrap().value - 0.6 / 8.0).abs() < 1e-9);
        assert_eq!(found.rewinds_per_token.value, 2.0 / 8.0);
        let [low, high] = found.diverged.interval.unwrap();
        assert!(low == 0.0 && high == 1.0, "{low} {high}");

        let short = Figures::of(&cases, 2, RESAMPLING);
        assert_eq!((short.hazard.value, short.dead_tokens.value), (0.0, 0.0));
    }

    #[test]
    fn an_answer_that_is_longer_than_the_shadows_has_left_it() {
        assert_eq!(divergence(&[1, 2, 3], &[1, 2]), 2);
        assert_eq!(divergence(&[1, 2], &[1, 2, 3]), 2);
        assert_eq!(divergence(&[], &[]), 0);
    }
}
