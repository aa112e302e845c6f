//! Who says that a step is suspect.

use rewind_engine::Token;

/// The detector, or one of the controls that a detector has to beat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The detector, by its gate.
    Measured,
    /// Chance: each judged step fires with this probability.
    Random {
        /// Probability, 0 to 1.
        rate: f64,
        /// Of the random numbers.
        seed: u64,
    },
    /// Each judged step at a multiple of this position.
    Periodic {
        /// Steps from one rewind to the next, ≥ 1.
        every: u32,
    },
}

impl Verdict {
    /// The verdict on the row at an absolute position of the request with this prompt; `None` leaves it to the
    /// detector. A pure function, so that it depends neither on neighbours nor on the order of passes.
    pub(crate) fn of(self, prompt: &[Token], position: u32) -> Option<bool> {
        match self {
            Self::Measured => None,
            Self::Periodic { every } => Some(position.is_multiple_of(every.max(1))),
            Self::Random { rate, seed } => {
                let mut hasher = blake3::Hasher::new();
                hasher.update(&seed.to_le_bytes());
                hasher.update(&position.to_le_bytes());
                prompt.iter().for_each(|token| {
                    hasher.update(&token.to_le_bytes());
                });
                let mut bits = [0; 8];
                hasher.finalize_xof().fill(&mut bits);
                // 53 bits are what a double holds.
                let drawn = (u64::from_le_bytes(bits) >> 11) as f64 / (1_u64 << 53) as f64;
                Some(drawn < rate)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_fires_at_its_rate_and_the_same_way_each_time() {
        let random = Verdict::Random { rate: 0.2, seed: 7 };
        let fired = |verdict: Verdict, prompt: &[Token]| -> Vec<_> {
            (0..5000).filter(|&position| verdict.of(prompt, position) == Some(true)).collect()
        };
        let first = fired(random, &[1, 2]);
        // Four standard deviations of a binomial.
        assert!((first.len() as f64 - 1000.0).abs() < 4.0 * (5000.0_f64 * 0.16).sqrt());
        assert_eq!(first, fired(random, &[1, 2]));
        assert_ne!(first, fired(random, &[1, 3]));
        assert_ne!(first, fired(Verdict::Random { rate: 0.2, seed: 8 }, &[1, 2]));
        assert!(fired(Verdict::Random { rate: 0.0, seed: 7 }, &[1]).is_empty());
        assert_eq!(fired(Verdict::Random { rate: 1.0, seed: 7 }, &[1]).len(), 5000);
    }

    #[test]
    fn a_period_fires_evenly() {
        let fired: Vec<_> = (0..10)
            .filter(|&position| Verdict::Periodic { every: 4 }.of(&[], position) == Some(true))
            .collect();
        assert_eq!(fired, [0, 4, 8]);
        assert_eq!(Verdict::Measured.of(&[], 4), None);
    }
}
