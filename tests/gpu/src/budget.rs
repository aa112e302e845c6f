//! Time that may be spent.

use std::time::{Duration, Instant};

/// A time limit, looked at between pieces of work; a piece that has begun is finished.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    started: Instant,
    limit: Duration,
}

impl Budget {
    /// A budget that starts now.
    pub fn new(limit: Duration) -> Self {
        Self { started: Instant::now(), limit }
    }

    /// Time since the start.
    pub fn spent(&self) -> Duration {
        self.started.elapsed()
    }

    /// What is left; zero once it is over.
    pub fn left(&self) -> Duration {
        self.limit.saturating_sub(self.spent())
    }

    /// True once nothing is left.
    pub fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// A part of what is left, as a budget of its own.
    pub fn share(&self, part: f64) -> Self {
        Self::new(self.left().mul_f64(part.clamp(0.0, 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_runs_out() {
        let over = Budget::new(Duration::ZERO);
        assert!(over.is_over() && over.left().is_zero());
        let hour = Budget::new(Duration::from_secs(3600));
        assert!(!hour.is_over());
        let half = hour.share(0.5).left();
        assert!(half <= Duration::from_secs(1800) && half > Duration::from_secs(1790), "{half:?}");
        assert!(hour.share(7.0).left() <= hour.limit);
    }
}
