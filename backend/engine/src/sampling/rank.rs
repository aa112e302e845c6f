//! The ranking of candidates and the filters that keep a prefix of it.
//!
//! Nothing here sorts a whole vocabulary: top-k keeps a short list while it reads the logits once,
//! and top-p sorts pieces of growing size from the top until the probability is reached.

use crate::executor::Token;

use super::{Choice, Sampling};

/// Place of a candidate in the ranking; the greater is the better.
///
/// One word, so that to compare two is one instruction: the logit's bits in an order-preserving
/// form above the complement of the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(u64);

impl Rank {
    /// Below every candidate, above everything excluded.
    const LAST: Self = Self(0x0080_0000 << 32);

    pub(super) fn new(logit: f32, token: Token) -> Self {
        // Adding zero makes −0 equal to +0.
        let bits = (logit + 0.0).to_bits();
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self(u64::from(ordered) << 32 | u64::from(!token))
    }

    pub(super) fn token(self) -> Token {
        !(self.0 as u32)
    }

    pub(super) fn logit(self) -> f32 {
        let ordered = (self.0 >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered ^ 1 << 31 } else { !ordered })
    }
}

/// What the filters left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Candidates below this one are out.
    pub(super) last: Rank,
    /// How many are in; only told exactly if a filter is on.
    pub(super) survivors: usize,
}

/// Applies top-k, top-p and min-p to the processed logits (−∞: no candidate).
pub(super) fn filter(processed: &[f32], sampling: &Sampling, ranks: &mut Vec<Rank>) -> Cut {
    let everything = Cut { last: Rank::LAST, survivors: processed.len() };
    let top_k = (1..processed.len()).contains(&(sampling.top_k as usize));
    let (top_p, min_p) = (sampling.top_p < 1.0, sampling.min_p > 0.0);
    if !(top_k || top_p || min_p) {
        return everything;
    }

    ranks.clear();
    if top_k {
        keep_best(processed, sampling.top_k as usize, ranks);
    } else {
        ranks.extend(candidates(processed));
    }
    let Some(first) = ranks.iter().copied().max() else { return everything };
    let weights =
        Weights { best: f64::from(first.logit()), temperature: f64::from(sampling.temperature) };
    if top_p {
        if top_k {
            ranks.sort_unstable_by_key(|rank| rank.token());
        }
        let total: f64 = ranks.iter().map(|&rank| weights.of(rank)).sum();
        keep_nucleus(ranks, &weights, f64::from(sampling.top_p) * total);
    }
    if min_p {
        // As a logarithm: no exponential per token, and exact for min_p = 1.
        let least = f64::from(sampling.min_p.min(1.0)).ln();
        ranks.retain(|&rank| weights.exponent(rank) >= least);
    }
    Cut { last: ranks.iter().copied().min().unwrap_or(first), survivors: ranks.len().max(1) }
}

/// Unnormalized probabilities at a temperature.
struct Weights {
    best: f64,
    temperature: f64,
}

impl Weights {
    fn exponent(&self, rank: Rank) -> f64 {
        (f64::from(rank.logit()) - self.best) / self.temperature
    }

    fn of(&self, rank: Rank) -> f64 {
        self.exponent(rank).exp()
    }
}

fn candidates(processed: &[f32]) -> impl Iterator<Item = Rank> + '_ {
    let ids = 0..processed.len() as Token;
    ids.zip(processed)
        .filter(|&(_, &logit)| logit > f32::NEG_INFINITY)
        .map(|(token, &logit)| Rank::new(logit, token))
}

/// Puts the `k` best candidates (all, if there are fewer) into `ranks`, in no order.
pub(super) fn keep_best(processed: &[f32], k: usize, ranks: &mut Vec<Rank>) {
    // Twice the size and some, so that a selection, which costs the length of the list, happens
    // once in at least k insertions.
    let limit = k.saturating_mul(2).saturating_add(64);
    let (mut floor, mut floor_logit) = (Rank::LAST, f32::MIN);
    ranks.clear();
    for (token, &logit) in processed.iter().enumerate() {
        if logit < floor_logit {
            continue;
        }
        let rank = Rank::new(logit, token as Token);
        if rank > floor {
            ranks.push(rank);
            if ranks.len() == limit {
                truncate_to_best(ranks, k);
                floor = ranks[k - 1];
                floor_logit = floor.logit();
            }
        }
    }
    truncate_to_best(ranks, k);
}

/// Leaves the `k ≥ 1` best, the least of them last.
fn truncate_to_best(ranks: &mut Vec<Rank>, k: usize) {
    if ranks.len() > k {
        ranks.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        ranks.truncate(k);
    }
}

/// Leaves the shortest prefix of the ranking whose weights sum to `target`.
fn keep_nucleus(ranks: &mut Vec<Rank>, weights: &Weights, target: f64) {
    let (mut sorted, mut width, mut sum) = (0, 32, 0.0);
    while sorted < ranks.len() {
        let rest = &mut ranks[sorted..];
        let piece = width.min(rest.len());
        if piece < rest.len() {
            rest.select_nth_unstable_by(piece - 1, |a, b| b.cmp(a));
        }
        rest[..piece].sort_unstable_by(|a, b| b.cmp(a));
        for (index, &rank) in rest[..piece].iter().enumerate() {
            sum += weights.of(rank);
            if sum >= target {
                ranks.truncate(sorted + index + 1);
                return;
            }
        }
        sorted += piece;
        width *= 4;
    }
    // Rounding can keep the sum of all just below the target: then all are needed.
}

/// The two best of scores that are offered in ascending order of id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaders {
    first: f64,
    second: f64,
    winner: Option<Token>,
    runner_up: Option<Token>,
}

impl Leaders {
    pub(super) const NONE: Self =
        Self { first: f64::NEG_INFINITY, second: f64::NEG_INFINITY, winner: None, runner_up: None };

    /// The first two of the ranking, in one pass; −∞ never leads.
    pub(super) fn of(logits: &[f32]) -> Self {
        const CHUNK: usize = 64;
        let mut leaders = Self::NONE;
        for (chunk, start) in logits.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
            if f64::from(greatest(chunk)) > leaders.second {
                for (&logit, token) in chunk.iter().zip(start..) {
                    leaders.offer(f64::from(logit), token);
                }
            }
        }
        leaders
    }

    /// Takes a score into account. Equal scores leave the earlier, lower id in front.
    #[inline]
    pub(super) fn offer(&mut self, score: f64, token: Token) {
        if score > self.first {
            (self.second, self.runner_up) = (self.first, self.winner);
            (self.first, self.winner) = (score, Some(token));
        } else if score > self.second {
            (self.second, self.runner_up) = (score, Some(token));
        }
    }

    /// A score below this cannot lead.
    #[inline]
    pub(super) fn floor(&self) -> f64 {
        self.second
    }

    /// The choice; `unit` turns a difference of scores into one of logits.
    pub(super) fn choice(&self, unit: f64) -> Choice {
        let margin = match self.runner_up {
            // Kept finite, for infinity means that there is no runner-up.
            Some(_) => ((self.first - self.second) * unit).min(f64::from(f32::MAX)) as f32,
            None => f32::INFINITY,
        };
        Choice { token: self.winner.unwrap_or(0), runner_up: self.runner_up, margin }
    }
}

/// The greatest of some logits; −∞ for none. Lane by lane, which compiles to vector code.
fn greatest(logits: &[f32]) -> f32 {
    const LANES: usize = 8;
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let (groups, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for group in groups {
        for (lane, &logit) in lanes.iter_mut().zip(group) {
            *lane = greater(*lane, logit);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, greater)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_order_by_logit_then_lower_id_and_can_be_read_back() {
        let logits = [f32::MIN, -1.5, -1e-40, 0.0, 1e-40, 2.0, f32::MAX];
        for pair in logits.windows(2) {
            assert!(Rank::new(pair[0], 0) < Rank::new(pair[1], 9));
        }
        assert!(Rank::new(-0.0, 3) > Rank::new(0.0, 4));
        assert!(Rank::new(0.0, 3) > Rank::new(-0.0, 4));
        assert!(Rank::new(f32::NEG_INFINITY, 0) < Rank::LAST);
        assert!(Rank::new(f32::MIN, u32::MAX) >= Rank::LAST);
        for logit in logits {
            let rank = Rank::new(logit, 77);
            assert_eq!((rank.logit(), rank.token()), (logit, 77));
        }
    }
}
