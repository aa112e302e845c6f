//! Does the chip's temperature move entropy?
//!
//! A text is read again and again while the chip works at full load. The same rows must give the same bits however warm it
//! is; what grows with the temperature by rule is the threshold.

use serde::Serialize;

use crate::record::Trace;

/// One reading of the text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct HeatRound {
    /// From the start to its end.
    pub seconds: f64,
    /// The chip at its end, °C; `None` without a sensor.
    pub celsius: Option<f32>,
    /// KT then, ≥ 1.
    pub coefficient: f32,
    /// CL of a request that would have come then, in the unit of the detector's score.
    pub threshold: f32,
    /// Mean entropy of the draft, nats.
    pub draft_entropy: f64,
    /// Mean entropy of the shadow, nats.
    pub shadow_entropy: f64,
    /// Numbers, of two for each position, whose bits are not those of the first round.
    pub moved: usize,
    /// The greatest change against the first round, nats.
    pub largest: f32,
}

/// All readings so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heat {
    /// Entropies of the first round: draft and shadow of each position.
    first: Vec<[f32; 2]>,
    rounds: Vec<HeatRound>,
}

/// What they say together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct HeatSummary {
    /// Readings of the text.
    pub rounds: usize,
    /// Positions of the text.
    pub positions: usize,
    /// Lowest and highest temperature, °C; `None` without a sensor.
    pub celsius: Option<[f32; 2]>,
    /// Lowest and highest threshold.
    pub threshold: [f32; 2],
    /// Numbers that were ever other than in the first round.
    pub moved: usize,
    /// The greatest change, nats.
    pub largest: f32,
}

impl Heat {
    /// Adds a reading, and gives what was made of it. Entropies that are not a number count as moved unless they were
    /// not in the first round either.
    pub fn add(
        &mut self,
        seconds: f64,
        coefficient: f32,
        threshold: f32,
        trace: &Trace,
    ) -> HeatRound {
        let entropies: Vec<[f32; 2]> = trace
            .records
            .iter()
            .map(|record| [record.draft.statistics.entropy, record.shadow.statistics.entropy])
            .collect();
        if self.first.is_empty() {
            self.first.clone_from(&entropies);
        }
        let pairs = || self.first.iter().flatten().zip(entropies.iter().flatten());
        let missing = 2 * self.first.len().abs_diff(entropies.len());
        let mean = |side: usize| {
            let sum: f64 = entropies.iter().map(|pair| f64::from(pair[side])).sum();
            sum / entropies.len().max(1) as f64
        };
        let round = HeatRound {
            seconds,
            celsius: trace.records.last().and_then(|record| record.chip.celsius),
            coefficient,
            threshold,
            draft_entropy: mean(0),
            shadow_entropy: mean(1),
            moved: missing + pairs().filter(|(a, b)| a.to_bits() != b.to_bits()).count(),
            largest: pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max),
        };
        self.rounds.push(round);
        round
    }

    /// Every reading.
    pub fn rounds(&self) -> &[HeatRound] {
        &self.rounds
    }

    /// All of them together; `None` before the first.
    pub fn summary(&self) -> Option<HeatSummary> {
        let span = |values: &mut dyn Iterator<Item = f32>| {
            values.fold(None, |span: Option<[f32; 2]>, x| {
                Some(span.map_or([x, x], |[low, high]| [low.min(x), high.max(x)]))
            })
        };
        let threshold = span(&mut self.rounds.iter().map(|round| round.threshold))?;
        Some(HeatSummary {
            rounds: self.rounds.len(),
            positions: self.first.len(),
            celsius: span(&mut self.rounds.iter().filter_map(|round| round.celsius)),
            threshold,
            moved: self.rounds.iter().map(|round| round.moved).max().unwrap_or(0),
            largest: self.rounds.iter().map(|round| round.largest).fold(0.0, f32::max),
        })
    }
}

#[cfg(test)]
mod tests {
    use rewind_monitor::Statistics;
    use rewind_monitor::prompt::PromptSummary;

    use super::*;
    use crate::record::{Reading, Record, Side};

    fn trace(entropies: &[[f32; 2]], celsius: f32) -> Trace {
        let side = |entropy| Side {
            token: 0,
            statistics: Statistics { entropy, ..Statistics::UNMEASURED },
        };
        let record = |(position, pair): (usize, &[f32; 2])| Record {
            position: position as u32,
            fed: 0,
            draft: side(pair[0]),
            shadow: side(pair[1]),
            divergence: 0.0,
            regret: 0.0,
            sampled: Vec::new(),
            chip: Reading { celsius: Some(celsius), megahertz: None },
        };
        let prompt = PromptSummary { mean: 0.0, spread: 0.0 };
        Trace { prompt, records: entropies.iter().enumerate().map(record).collect() }
    }

    #[test]
    fn the_same_bits_have_not_moved() {
        let mut heat = Heat::default();
        assert_eq!(heat.summary(), None);
        for (second, celsius) in [(1.0, 40.0), (2.0, 80.0)] {
            let round = heat.add(
                second,
                1.0,
                3.0 + celsius / 100.0,
                &trace(&[[1.0, 2.0], [3.0, 4.0]], celsius),
            );
            assert_eq!((round.moved, round.draft_entropy, round.shadow_entropy), (0, 2.0, 3.0));
        }
        let summary = heat.summary().unwrap();
        assert_eq!(summary.celsius, Some([40.0, 80.0]));
        assert_eq!(summary.threshold, [3.4, 3.8]);
        assert_eq!((summary.moved, summary.largest), (0, 0.0));
    }

    #[test]
    fn one_bit_is_seen() {
        let mut heat = Heat::default();
        heat.add(1.0, 1.0, 3.0, &trace(&[[1.0, 2.0]], 40.0));
        let next = f32::from_bits(1.0_f32.to_bits() + 1);
        let round = heat.add(2.0, 1.0, 3.0, &trace(&[[next, 2.0]], 41.0));
        assert_eq!((round.moved, round.largest), (1, f32::EPSILON));
        // A position that is missing is two numbers that are not the same.
        assert_eq!(heat.add(3.0, 1.0, 3.0, &trace(&[], 42.0)).moved, 2);
    }
}
