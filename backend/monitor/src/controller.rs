//! Holds a rewind budget by moving the threshold, slowly.
//!
//! A profile is fitted to a budget on some text; other text has another rate of suspect steps. The
//! controller measures the rate of requests that ran at its present offset, and moves the offset while
//! that rate is off the budget:
//!
//! ```text
//! threshold = base + Nf · (KT + offset)          −BOUND ≤ offset ≤ BOUND
//! ```
//!
//! The unit is the profile's noise floor Nf, the standard deviation of the detector's score between draft
//! and shadow: the only scale that all detectors have. The bound is [`BOUND`] of them: a threshold that
//! would have to move further does not fit this traffic for another reason than noise, and the profile
//! should be calibrated again.
//!
//! Three things keep it from oscillating.
//! - Only requests that were admitted at the present offset count, so there is no delay between a move
//!   and what is measured of it.
//! - A move is [`STEP`] at most, and each turn halves it: a search that closes in. When the step is
//!   smaller than [`SMALLEST_STEP`], or the bound is reached, the offset stays.
//! - An offset that stays does so until the rate is off, twice in a row, by more than twice the dead band
//!   from what it was when the offset came to rest: that is other traffic, and the search starts anew
//!   from there.
//!
//! The threshold of a request is frozen at admission, so a running request never sees a move. Nothing
//! here knows a clock: time is passed in.

use std::time::Duration;

/// Largest distance from the profile's threshold, in noise floors.
pub const BOUND: f32 = 4.0;

/// Largest move, in noise floors. A power of two, so that every offset is exact.
pub const STEP: f32 = 0.5;

/// A move below this many noise floors is not worth making.
pub const SMALLEST_STEP: f32 = 1.0 / 32.0;

/// Without a request for so long, the traffic may be another: back to the profile.
pub const SILENCE: Duration = Duration::from_secs(600);

/// The dead band around the budget, as a share of it.
const RELATIVE_BAND: f64 = 0.1;

/// The dead band is no narrower than this: a measurement of that precision takes too many tokens.
const NARROWEST_BAND: f64 = 0.005;

/// Tokens that a measurement needs at least: requests begin unlike they go on.
const FEWEST_TOKENS: u64 = 1000;

/// A budget is a share of tokens above 0, below 1.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "the rewind budget is {0}: it must be above 0 and below 1, the share of tokens that may be rewound"
)]
pub struct BadBudget(pub f64);

/// An offset of the threshold, as a request gets it at admission.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offset {
    /// In noise floors.
    pub noise_floors: f32,
    /// Which move it came of; a request hands it back with its counts.
    pub epoch: u64,
}

/// Moves the threshold offset of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Controller {
    budget: f64,
    /// Number of moves and resets so far.
    epoch: u64,
    /// In noise floors.
    offset: f32,
    state: State,
    /// Of requests that ran at this offset.
    tokens: u64,
    rewinds: u64,
    /// When a request was last admitted or ended.
    active: Duration,
}

/// What the controller does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// The next move is `step` at most; `direction` is the sign of the last one, 0 before the first.
    Searches { step: f32, direction: f32 },
    /// The offset stays while the rate is about this; `doubted` if it was not the last time.
    Rests { rate: f64, doubted: bool },
}

impl State {
    const START: Self = Self::Searches { step: STEP, direction: 0.0 };
}

impl Controller {
    /// A controller at the profile's own threshold. `budget`: rewinds per token, above 0 and below 1.
    ///
    /// # Errors
    /// The budget is not in that range.
    pub fn new(budget: f64) -> Result<Self, BadBudget> {
        if !(budget > 0.0 && budget < 1.0) {
            return Err(BadBudget(budget));
        }
        Ok(Self {
            budget,
            epoch: 0,
            offset: 0.0,
            state: State::START,
            tokens: 0,
            rewinds: 0,
            active: Duration::ZERO,
        })
    }

    /// The offset of a request that is admitted now.
    pub fn admit(&mut self, now: Duration) -> Offset {
        self.wake(now);
        Offset { noise_floors: self.offset, epoch: self.epoch }
    }

    /// The offset at this moment, for people.
    pub fn noise_floors(&self) -> f32 {
        self.offset
    }

    /// Takes the counts of a request that has ended: its tokens, and how often a suspect step was
    /// rewound. Those of a request that was admitted at another offset say nothing about this one.
    pub fn finished(&mut self, now: Duration, epoch: u64, tokens: u64, rewinds: u64) {
        self.wake(now);
        if epoch != self.epoch {
            return;
        }
        self.tokens = self.tokens.saturating_add(tokens);
        self.rewinds = self.rewinds.saturating_add(rewinds);
        if self.tokens >= self.needed() {
            let rate = self.rewinds as f64 / self.tokens as f64;
            (self.tokens, self.rewinds) = (0, 0);
            self.judge(rate);
        }
    }

    /// Half the width of the dead band.
    fn band(&self) -> f64 {
        (RELATIVE_BAND * self.budget).max(NARROWEST_BAND)
    }

    /// Tokens of a measurement: as many as make the dead band three standard deviations of the rate
    /// that independent steps at the budget have.
    fn needed(&self) -> u64 {
        let variance = self.budget * (1.0 - self.budget);
        ((9.0 * variance / self.band().powi(2)).ceil() as u64).max(FEWEST_TOKENS)
    }

    /// Back to the profile after a silence.
    fn wake(&mut self, now: Duration) {
        if now.saturating_sub(self.active) > SILENCE {
            self.state = State::START;
            self.move_to(0.0);
        }
        self.active = self.active.max(now);
    }

    fn judge(&mut self, rate: f64) {
        let (step, direction) = match self.state {
            State::Rests { rate: rest, doubted } => {
                let off = (rate - rest).abs() > 2.0 * self.band();
                if !(off && doubted) {
                    self.state = State::Rests { rate: rest, doubted: off };
                    return;
                }
                (STEP, 0.0)
            }
            State::Searches { step, direction } => (step, direction),
        };
        let error = rate - self.budget;
        if error.abs() <= self.band() {
            self.state = State::Rests { rate: self.budget, doubted: false };
            return;
        }
        // Too many rewinds: a higher threshold.
        let wanted = if error > 0.0 { 1.0 } else { -1.0 };
        let step = if wanted == -direction { step / 2.0 } else { step };
        let to = (self.offset + wanted * step).clamp(-BOUND, BOUND);
        if step < SMALLEST_STEP || to == self.offset {
            self.state = State::Rests { rate, doubted: false };
            return;
        }
        self.state = State::Searches { step, direction: wanted };
        self.move_to(to);
    }

    fn move_to(&mut self, offset: f32) {
        if offset != self.offset {
            self.offset = offset;
            self.epoch += 1;
        }
        (self.tokens, self.rewinds) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One measurement: a request with enough tokens, rewound at this rate.
    fn measure(controller: &mut Controller, rate: f64) {
        let tokens = controller.needed() * 1000;
        let rewinds = (rate * tokens as f64).round() as u64;
        let epoch = controller.admit(Duration::ZERO).epoch;
        controller.finished(Duration::ZERO, epoch, tokens, rewinds);
    }

    impl Controller {
        fn rests(&self) -> bool {
            matches!(self.state, State::Rests { .. })
        }
    }

    fn controller(budget: f64) -> Controller {
        Controller::new(budget).unwrap()
    }

    /// Most measurements that a search takes: each way to the bound and back, and every halving.
    const SEARCH: usize = 64;

    #[test]
    fn a_budget_is_a_share() {
        for bad in [0.0, 1.0, -0.1, 2.0, f64::NAN, f64::INFINITY] {
            assert!(Controller::new(bad).unwrap_err().to_string().contains("above 0 and below 1"));
        }
    }

    #[test]
    fn too_many_rewinds_raise_the_threshold_and_too_few_lower_it() {
        let mut up = controller(0.2);
        measure(&mut up, 0.4);
        assert_eq!(up.noise_floors(), STEP);
        let mut down = controller(0.2);
        measure(&mut down, 0.1);
        assert_eq!(down.noise_floors(), -STEP);
        let mut there = controller(0.2);
        measure(&mut there, 0.215);
        assert_eq!(there.noise_floors(), 0.0);
    }

    #[test]
    fn few_tokens_move_nothing() {
        let mut controller = controller(0.2);
        let epoch = controller.admit(Duration::ZERO).epoch;
        controller.finished(Duration::ZERO, epoch, controller.needed() - 1, 3000);
        assert_eq!(controller.noise_floors(), 0.0);
        controller.finished(Duration::ZERO, epoch, 1, 0);
        assert_eq!(controller.noise_floors(), STEP);
    }

    #[test]
    fn requests_of_an_earlier_offset_do_not_count() {
        let mut controller = controller(0.2);
        let old = controller.admit(Duration::ZERO);
        measure(&mut controller, 0.4);
        let moved = controller.clone();
        controller.finished(Duration::ZERO, old.epoch, 1_000_000, 400_000);
        assert_eq!(controller, moved);
        assert_ne!(controller.admit(Duration::ZERO).epoch, old.epoch);
    }

    #[test]
    fn silence_brings_the_profile_back() {
        let mut controller = controller(0.2);
        for _ in 0..3 {
            measure(&mut controller, 0.9);
        }
        let offset = controller.admit(SILENCE);
        assert_eq!(offset.noise_floors, 3.0 * STEP);
        // A request that ends counts as a sign of life, whatever its offset was.
        controller.finished(2 * SILENCE, u64::MAX, 1, 0);
        assert_eq!(controller.noise_floors(), 3.0 * STEP);
        let reset = controller.admit(3 * SILENCE + Duration::from_nanos(1));
        assert_eq!(reset.noise_floors, 0.0);
        assert_ne!(reset.epoch, offset.epoch);
        controller.finished(3 * SILENCE, offset.epoch, 1_000_000, 900_000);
        assert_eq!(controller.noise_floors(), 0.0);
        // And the search is as it was at the start.
        measure_at(&mut controller, 3 * SILENCE, 0.9);
        assert_eq!(controller.noise_floors(), STEP);
    }

    fn measure_at(controller: &mut Controller, now: Duration, rate: f64) {
        let tokens = controller.needed() * 1000;
        let epoch = controller.admit(now).epoch;
        controller.finished(now, epoch, tokens, (rate * tokens as f64).round() as u64);
    }

    #[test]
    fn other_traffic_starts_another_search() {
        let mut controller = controller(0.2);
        let plant = |offset: f32, shift: f64| 0.2 - 0.05 * f64::from(offset) + shift;
        for _ in 0..SEARCH {
            let rate = plant(controller.noise_floors(), 0.1);
            measure(&mut controller, rate);
        }
        assert_eq!(controller.noise_floors(), 2.0);
        // Within twice the dead band nothing moves.
        let rate = plant(controller.noise_floors(), 0.1) + 0.039;
        measure(&mut controller, rate);
        assert_eq!(controller.noise_floors(), 2.0);
        for _ in 0..SEARCH {
            let rate = plant(controller.noise_floors(), -0.1);
            measure(&mut controller, rate);
        }
        assert_eq!(controller.noise_floors(), -2.0);
    }

    /// Traffic whose rate of suspect steps falls with the offset: at some places at once, and slowly
    /// between them.
    #[derive(Clone, Debug)]
    struct Plant {
        top: f64,
        slope: f64,
        falls: Vec<(f32, f64)>,
    }

    impl Plant {
        fn rate(&self, offset: f32) -> f64 {
            let fallen: f64 = self
                .falls
                .iter()
                .filter(|(place, _)| offset >= *place)
                .map(|(_, height)| *height)
                .sum();
            (self.top - self.slope * f64::from(offset) - fallen).clamp(0.0, 1.0)
        }
    }

    fn plant() -> impl Strategy<Value = Plant> {
        let falls = prop::collection::vec((-6_f32..6.0, 0.0..0.6), 0..6);
        (0.0..1.0, 0.0..0.2, falls).prop_map(|(top, slope, falls)| Plant { top, slope, falls })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        /// Whatever it is told, in any order and at any time.
        #[test]
        fn bounded(
            budget in 0.001..0.999,
            calls in prop::collection::vec((any::<bool>(), 0_u64..4, any::<u64>(), any::<u64>(), 0_u64..1000), 0..200),
        ) {
            let mut controller = controller(budget);
            let mut now = Duration::ZERO;
            for (admits, back, tokens, rewinds, seconds) in calls {
                let before = controller.noise_floors();
                now += Duration::from_secs(seconds);
                if admits {
                    controller.admit(now);
                } else {
                    let epoch = controller.epoch.saturating_sub(back);
                    controller.finished(now, epoch, tokens >> 32, rewinds >> 33);
                }
                let after = controller.noise_floors();
                prop_assert!(after.abs() <= BOUND);
                // A move is a step at most, or the way back to the profile.
                prop_assert!((after - before).abs() <= STEP || after.abs() <= STEP);
            }
        }

        /// On traffic that does not change it comes to rest, and then it stays.
        #[test]
        fn converges_and_stays(budget in 0.01..0.99, plant in plant()) {
            let mut controller = controller(budget);
            for _ in 0..SEARCH {
                let rate = plant.rate(controller.noise_floors());
                measure(&mut controller, rate);
            }
            let rest = controller.noise_floors();
            for _ in 0..SEARCH {
                measure(&mut controller, plant.rate(rest));
                prop_assert_eq!(controller.noise_floors(), rest);
            }
            // It rests where it should: in the dead band; or at the bound, with the budget beyond it;
            // or next to a place where the rate crosses the budget.
            let (error, band) = (plant.rate(rest) - budget, controller.band() + 1e-6);
            let near = 2.0 * SMALLEST_STEP;
            let (below, above) = (plant.rate(rest - near) - budget, plant.rate(rest + near) - budget);
            let crossed = below >= -band && above <= band;
            let beyond = rest == BOUND && error > 0.0 || rest == -BOUND && error < 0.0;
            prop_assert!(
                error.abs() <= band || crossed || beyond,
                "rests at {}, where the rate is off by {}", rest, error
            );
        }

        /// With the noise of counts, it comes to rest near the budget and is hardly ever roused.
        #[test]
        fn noise_rouses_it_hardly_ever(budget in 0.05..0.5, seed in any::<u64>()) {
            let mut controller = controller(budget);
            let mut state = seed;
            // The sum of twelve uniform numbers is close to normal.
            let mut normal = || {
                let mut sum = -6.0;
                for _ in 0..12 {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    sum += (state >> 11) as f64 / (1_u64 << 53) as f64;
                }
                sum
            };
            let (mut searches, mut moves) = (0, 0);
            for _ in 0..200 {
                let (before, rested) = (controller.noise_floors(), controller.rests());
                let rate = (budget + 0.3 - 0.15 * f64::from(before)).clamp(0.0, 1.0);
                let (tokens, epoch) = (controller.needed(), controller.admit(Duration::ZERO).epoch);
                let deviation = (rate * (1.0 - rate) * tokens as f64).sqrt();
                let rewinds = (rate * tokens as f64 + deviation * normal()).max(0.0) as u64;
                controller.finished(Duration::ZERO, epoch, tokens, rewinds);
                searches += u32::from(rested && !controller.rests());
                moves += u32::from(controller.noise_floors() != before);
            }
            prop_assert!(searches <= 2, "{} searches after the first", searches);
            prop_assert!(moves <= 40, "{} moves", moves);
            let rate = budget + 0.3 - 0.15 * f64::from(controller.noise_floors());
            prop_assert!((rate - budget).abs() <= 0.1, "rate {} for {}", rate, budget);
        }
    }
}
