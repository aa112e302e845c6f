//! What a row of logits says, gathered while it is in cache.
//!
//! # Order
//!
//! The vocabulary is cut into tiles of [`TILE`]. Of each tile are known its two best logits, and with
//! t = (logit − best) · log₂ e and e = 2ᵗ the sums Σ e, Σ e·t, Σ e·t²; each sum has 16 lanes over
//! ascending ids, the last by fused multiply-add; lanes j and j + 8 are added, then
//! [`crate::order::tree`]. Powers of ln 2 make them those of [`Sums`]. Tiles are merged in ascending
//! order by [`Sums::merge`], in f64. The two best logits come without order: they are exact. So threads
//! may take any tiles.
//!
//! # Cost
//!
//! Sums take 18 operations for a vector of logits, 16 with AVX-512, whose vectors are twice as wide: most of
//! what the monitor costs, unless it is hidden. Where a step waits for weights, the next ones are asked for
//! meanwhile. Measured and rejected: tiles taken in parts of 128, whose sums move with the best logit so far
//! (docs/benchmarks/monitor.md). Not tried: sums inside the product's loop, whose accumulators need the registers; a running maximum for
//! each vector, which doubles the exponentials.

use std::f32::consts::LOG2_E;
use std::f64::consts::LN_2;
use std::slice::Chunks;

use rewind_monitor::{Statistics, Sums};

use crate::aligned::LINE;
use crate::arch::{WIDE, Wide, WideKernel, sum};
use crate::exp::exp2;

/// Logits of a tile.
pub(crate) const TILE: usize = 1024;

/// Smallest exponent that counts: 2^LOW is the smallest normal number.
const LOW: f32 = -126.0;

/// What is known of one tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    /// Largest logit.
    best: f32,
    /// Second largest, equal to `best` if that is there twice; −∞ if there is one logit.
    second: f32,
    finite: bool,
    /// [`Sums::EMPTY`] if they were not wanted.
    sums: Sums,
}

impl Tile {
    pub(crate) const EMPTY: Self = Self {
        best: f32::NEG_INFINITY,
        second: f32::NEG_INFINITY,
        finite: true,
        sums: Sums::EMPTY,
    };
}

/// Measures up to [`TILE`] logits.
#[derive(Debug)]
pub(crate) struct Measure<'a> {
    pub(crate) logits: &'a [f32],
    /// Whether the sums are wanted.
    pub(crate) sums: bool,
    /// Memory that is read next. As much of it is asked for as can arrive meanwhile.
    pub(crate) next: &'a [u8],
}

impl WideKernel for Measure<'_> {
    type Output = Tile;

    #[inline(always)]
    fn run<W: Wide>(self, w: W) -> Tile {
        let (groups, rest) = self.groups();
        let mut next = self.next.chunks(LINE);
        let low = w.splat(f32::NEG_INFINITY);
        let (mut best, mut second) = (low, low);
        let mut poison = [w.splat(0.0); GROUP];
        for group in groups {
            ask(w, next.by_ref().take(FEW));
            for (x, poison) in group.iter().zip(&mut poison) {
                let x = w.load(x);
                second = w.max(second, w.min(best, x));
                best = w.max(best, x);
                // 0 · x is NaN for NaN and infinities only.
                *poison = w.fma(x, w.splat(0.0), *poison);
            }
        }
        let [a, b, c, d] = poison;
        let poison = w.add(w.add(a, b), w.add(c, d));
        let mut finite = !sum(w, poison).is_nan();
        let (mut candidates, mut seconds) = ([0.0; WIDE], [0.0; WIDE]);
        w.store(best, &mut candidates);
        w.store(second, &mut seconds);
        let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &x in candidates.iter().chain(&seconds).chain(rest) {
            if x > best {
                (best, second) = (x, best);
            } else if x > second {
                second = x;
            }
        }
        finite &= rest.iter().all(|x| x.is_finite());
        let sums = if self.sums { self.sum(w, best, next) } else { Sums::EMPTY };
        Tile { best, second, finite, sums }
    }
}

/// Vectors of a group: as many as additions are needed at once to keep the processor busy.
const GROUP: usize = 4;

/// Lines asked for while a group is compared; twice as many while it is summed. Twice as many again were no
/// better (docs/benchmarks/monitor.md).
const FEW: usize = 2;

#[inline(always)]
fn ask<'a, W: Wide>(w: W, lines: impl Iterator<Item = &'a [u8]>) {
    for line in lines {
        w.prefetch(&line[0]);
    }
}

impl Measure<'_> {
    /// Groups of vectors, and the logits that fill none.
    #[inline(always)]
    fn groups(&self) -> (&[[[f32; WIDE]; GROUP]], &[f32]) {
        let groups = self.logits.as_chunks().0.as_chunks().0;
        (groups, &self.logits[groups.len() * GROUP * WIDE..])
    }

    #[inline(always)]
    fn sum<W: Wide>(&self, w: W, best: f32, mut next: Chunks<'_, u8>) -> Sums {
        let mut sums = [w.splat(0.0); 3];
        let (groups, rest) = self.groups();
        for group in groups {
            ask(w, next.by_ref().take(2 * FEW));
            for x in group {
                accumulate(w, w.load(x), best, WIDE, &mut sums);
            }
        }
        for rest in rest.chunks(WIDE) {
            let mut last = [best; WIDE];
            last[..rest.len()].copy_from_slice(rest);
            accumulate(w, w.load(&last), best, rest.len(), &mut sums);
        }
        let [z, s, q] = sums.map(|lanes| f64::from(sum(w, lanes)));
        Sums { max: best, z, s: LN_2 * s, q: LN_2 * LN_2 * q }
    }
}

/// Adds one vector of logits, of which the first `used` count.
#[inline(always)]
fn accumulate<W: Wide>(w: W, x: W::F, best: f32, used: usize, sums: &mut [W::F; 3]) {
    let t = w.mul(w.sub(x, w.splat(best)), w.splat(LOG2_E));
    // Where 2ᵗ ends, t must too, or a huge |t| would outweigh it.
    let t = w.max(w.splat(LOW), t);
    let mut e = exp2(w, t);
    if used < WIDE {
        let mut lanes = [0.0; WIDE];
        w.store(e, &mut lanes);
        lanes[used..].fill(0.0);
        e = w.load(&lanes);
    }
    let et = w.mul(e, t);
    sums[0] = w.add(sums[0], e);
    sums[1] = w.add(sums[1], et);
    sums[2] = w.fma(et, t, sums[2]);
}

/// What is known of a whole row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    /// Index and value of the largest logit, ties to the lower index.
    pub(crate) best: (usize, f32),
    /// The second, if there is more than one logit.
    pub(crate) second: Option<(usize, f32)>,
    /// No logit was NaN or infinite; otherwise nothing else here means anything.
    pub(crate) finite: bool,
    sums: Sums,
}

impl Summary {
    /// Merges the tiles of a row.
    pub(crate) fn new(logits: &[f32], tiles: &[Tile]) -> Self {
        let finite = tiles.iter().all(|tile| tile.finite);
        let best = tiles.iter().fold(f32::NEG_INFINITY, |a, tile| larger(a, tile.best));
        let sums = tiles.iter().fold(Sums::EMPTY, |sums, tile| sums.merge(tile.sums));
        let mut summary = Self { best: (0, best), second: None, finite, sums };
        if finite && !logits.is_empty() {
            summary.find(logits, tiles);
        }
        summary
    }

    /// Finds the indices of the two best.
    fn find(&mut self, logits: &[f32], tiles: &[Tile]) {
        let first = |value: f32, but: Option<usize>| {
            tiles.iter().zip(logits.chunks(TILE)).enumerate().find_map(
                |(number, (tile, logits))| {
                    // A tile without the value among its two best does not have it first.
                    if tile.best != value && tile.second != value {
                        return None;
                    }
                    let at = |&i: &usize| Some(number * TILE + i) != but && logits[i] == value;
                    (0..logits.len()).find(at).map(|i| number * TILE + i)
                },
            )
        };
        let Some(index) = first(self.best.1, None) else { return };
        self.best.0 = index;
        let others = tiles.iter().enumerate();
        let second = others.map(
            |(number, tile)| {
                if number == index / TILE { tile.second } else { tile.best }
            },
        );
        let second = second.fold(f32::NEG_INFINITY, larger);
        self.second = first(second, Some(index)).map(|i| (i, second));
    }

    /// ln Σ e^logit; needs the sums.
    pub(crate) fn log_z(&self) -> f64 {
        self.sums.log_z()
    }

    /// Entropy and companions of a finite row; needs the sums.
    pub(crate) fn statistics(&self) -> Statistics {
        self.sums.finish(0.0)
    }

    /// Gap between the two best logits; infinite if there is one only.
    pub(crate) fn margin(&self) -> f32 {
        // In f64, as the sampler does it; kept finite, for infinity means that there is no second.
        let gap = |second: f32| f64::from(self.best.1) - f64::from(second);
        let finite = |gap: f64| gap.abs().min(f64::from(f32::MAX)) as f32;
        self.second.map_or(f32::INFINITY, |(_, second)| finite(gap(second)))
    }
}

fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Isa;
    use proptest::prelude::*;
    use rewind_engine::sampling::{History, Sampling, Scratch, choose};
    use rewind_monitor::oracle;

    fn summary(isa: Isa, logits: &[f32]) -> Summary {
        let tiles: Vec<_> = logits
            .chunks(TILE)
            .map(|logits| isa.run_wide(Measure { logits, sums: true, next: &[] }))
            .collect();
        Summary::new(logits, &tiles)
    }

    fn check(logits: &[f32]) {
        let all = Isa::all();
        let first = summary(all[0], logits);
        let (found, exact) = (first.statistics(), oracle::statistics(logits));
        let close = |a: f32, b: f32| (a - b).abs() <= 2e-5 * (1.0 + b.abs());
        assert!(close(found.entropy, exact.entropy), "{found:?} {exact:?}");
        assert!(close(found.varentropy, exact.varentropy), "{found:?} {exact:?}");
        assert!(close(found.top1, exact.top1), "{found:?} {exact:?}");
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let z: f64 = logits.iter().map(|&l| (f64::from(l) - f64::from(max)).exp()).sum();
        let log_z = f64::from(max) + z.ln();
        assert!((first.log_z() - log_z).abs() < 1e-5 * (1.0 + max.abs() as f64));
        let choice = choose(
            logits,
            &Sampling::GREEDY,
            &History::default(),
            &[],
            None,
            1,
            &mut Scratch::default(),
        );
        assert_eq!(first.best.0, choice.token as usize);
        assert_eq!(first.second.map(|(i, _)| i as u32), choice.runner_up);
        assert_eq!(first.margin(), choice.margin);
        for isa in &all[1..] {
            let other = summary(*isa, logits);
            let bits = |s: Sums| [s.z, s.s, s.q].map(f64::to_bits);
            assert_eq!(bits(first.sums), bits(other.sums), "{isa:?}");
            assert_eq!((first.best, first.second), (other.best, other.second));
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_f64_and_with_the_sampler(
            len in 1_usize..4000,
            seed: u32,
            spread in prop::sample::select(vec![0.0_f32, 0.01, 1.0, 10.0, 1e4, 1e30]),
            levels in prop::sample::select(vec![3_u32, 1000, u32::MAX]),
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let level = f64::from(state % levels) / f64::from(levels);
                (level as f32 - 0.5) * spread
            };
            let logits: Vec<f32> = (0..len).map(|_| next()).collect();
            check(&logits);
        }
    }

    #[test]
    fn extremes() {
        check(&[1.0]);
        check(&[f32::MAX, f32::MIN]);
        check(&[-0.0, 0.0, -0.0]);
        check(&vec![7.5; 3 * TILE + 5]);
    }

    #[test]
    fn one_bad_logit_is_enough() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 7, 1023, 1024, 2050] {
                for isa in Isa::all() {
                    let mut logits = vec![1.0; 2051];
                    assert!(summary(isa, &logits).finite);
                    logits[at] = bad;
                    assert!(!summary(isa, &logits).finite, "{bad} at {at} {isa:?}");
                }
            }
        }
    }
}
