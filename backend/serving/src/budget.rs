//! The rewind budget of a model: its [`Controller`], and what requests tell it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rewind_engine::{Event, Policy, RewindReason};
use rewind_monitor::Controller;
use rewind_monitor::controller::{BadBudget, Offset};

/// A controller that whoever prepares requests shares with whoever sees them end.
#[derive(Debug)]
pub(crate) struct Budget {
    controller: Mutex<Controller>,
    started: Instant,
}

impl Budget {
    /// At the profiles' own thresholds. `share`: rewinds per token, above 0 and below 1.
    pub(crate) fn new(share: f64) -> Result<Self, BadBudget> {
        Ok(Self { controller: Mutex::new(Controller::new(share)?), started: Instant::now() })
    }

    /// The offset of a request that is admitted now.
    pub(crate) fn admit(&self) -> Offset {
        self.lock().admit(self.started.elapsed())
    }

    /// The offset now, in noise floors.
    pub(crate) fn noise_floors(&self) -> f32 {
        self.lock().noise_floors()
    }

    /// Takes the counts of a request that has ended.
    pub(crate) fn finished(&self, tally: &Tally) {
        if let Some(epoch) = tally.epoch {
            self.lock().finished(self.started.elapsed(), epoch, tally.tokens, tally.rewinds);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Controller> {
        // A few additions happen under the lock; none can panic.
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one request spends of the budget. Empty, and of no consequence, where there is no budget, where
/// the request brings its own threshold, or where its policy rewinds by none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    epoch: Option<u64>,
    tokens: u64,
    rewinds: u64,
}

impl Tally {
    /// Of a request at this offset.
    pub(crate) fn new(offset: Option<Offset>, policy: Policy) -> Self {
        let rewinds = matches!(policy, Policy::Step { .. } | Policy::Window { .. });
        let epoch = offset.filter(|_| rewinds).map(|offset| offset.epoch);
        Self { epoch, ..Self::default() }
    }

    /// Counts an event of the request: tokens, and rewinds of suspect steps.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Token { .. } => self.tokens += 1,
            Event::Rewound { reason: RewindReason::Suspect, .. } => self.rewinds += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rewind_engine::RequestId;

    use super::*;

    const ID: RequestId = RequestId(0);

    fn rewound(reason: RewindReason) -> Event {
        Event::Rewound { id: ID, reason, tokens: 1 }
    }

    #[test]
    fn only_suspect_steps_are_spent() {
        let mut tally = Tally::new(None, Policy::Off);
        tally.event(&rewound(RewindReason::Suspect));
        tally.event(&rewound(RewindReason::NotFinite));
        tally.event(&rewound(RewindReason::Mismatch));
        tally.event(&Event::GateChosen { id: ID, candidate: 0 });
        assert_eq!((tally.tokens, tally.rewinds), (0, 1));
    }

    #[test]
    fn requests_that_rewind_by_the_threshold_move_it() {
        let budget = Budget::new(0.1).unwrap();
        let spend = |policy| {
            let mut tally = Tally::new(Some(budget.admit()), policy);
            (tally.tokens, tally.rewinds) = (1 << 20, 1 << 19);
            budget.finished(&tally);
            budget.noise_floors()
        };
        for policy in [Policy::Off, Policy::Observe, Policy::Lossless { tokens: 2 }, Policy::Shadow]
        {
            assert_eq!(spend(policy), 0.0, "{policy}");
        }
        assert!(spend(Policy::Step { refresh: 0 }) > 0.0);
        let before = budget.noise_floors();
        assert!(spend(Policy::Window { tokens: 2, refresh: 0 }) > before);
        assert!(Budget::new(1.5).is_err());
    }
}
