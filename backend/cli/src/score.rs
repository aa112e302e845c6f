//! Figures over rows of logits.

/// ln Σ e^l over a row of finite logits, in f64.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - f64::from(most)).exp()).sum();
    f64::from(most) + sum.ln()
}

/// Mean of many numbers with its standard error.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mean {
    count: u64,
    sum: f64,
    squares: f64,
}

impl Mean {
    pub(crate) fn add(&mut self, x: f64) {
        self.count += 1;
        self.sum += x;
        self.squares += x * x;
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.squares += other.squares;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// NaN of nothing.
    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// √(variance / (n − 1)), the variance over n; 0 with fewer than two numbers.
    pub(crate) fn standard_error(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        let n = self.count as f64;
        let variance = self.squares / n - self.mean() * self.mean();
        (variance.max(0.0) / (n - 1.0)).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sum_exp_survives_large_logits() {
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2.0_f64.ln())).abs() < 1e-9);
        assert!((log_sum_exp(&[0.0, -1e30]) - 0.0).abs() < 1e-9);
    }

    #[test]
    fn mean_and_error() {
        let mut mean = Mean::default();
        for x in [1.0, 2.0, 3.0, 4.0] {
            mean.add(x);
        }
        assert_eq!(mean.mean(), 2.5);
        // Variance over n is 1.25.
        assert!((mean.standard_error() - (1.25_f64 / 3.0).sqrt()).abs() < 1e-12);
    }
}
